"""Outbox → board: this node's own writes as Write Events, in their order, at least once.

A page of the outbox is published whole before the next is read, and its rows go when the board has
acknowledged it: a crash in between publishes it again, which changes nothing anywhere. While the
board is away the outbox grows, writes go on, and the publisher tries again with back-off.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from divandb.clock import Rng
from divandb.store.outbox import Page
from divandb.telemetry import Log

ROWS_MAX = 256
"""Writes of a page."""
RETRY_S_MIN = 0.05
RETRY_S_MAX = 2.0

ReadPage = Callable[[int, int], Page]
Send = Callable[[Sequence[bytes]], Awaitable[None]]
Trim = Callable[[int], Awaitable[None]]


class Publisher:
    """One loop: read, send, trim. ``wake`` is to be set when something was written."""

    def __init__(
        self, read: ReadPage, send: Send, trim: Trim, wake: asyncio.Event, rng: Rng, log: Log
    ) -> None:
        self._read = read
        self._send = send
        self._trim = trim
        self._wake = wake
        self._rng = rng
        self._log = log
        self.published = 0
        """The last outbox row that is on the board."""
        self.failing = False
        """Did the last attempt to publish fail?"""

    async def run(self) -> None:
        """Publish until cancelled. After any fault the same page is tried again: the next write
        must not pass this one.
        """
        pause_s = RETRY_S_MIN
        while True:
            try:
                await self._round()
                self.failing = False
                pause_s = RETRY_S_MIN
            except Exception as fault:
                if not self.failing:
                    self._log.event("publishing fails", fault=repr(fault))
                self.failing = True
                await asyncio.sleep(pause_s * (0.5 + self._rng.uniform()))
                pause_s = min(pause_s * 2, RETRY_S_MAX)

    async def _round(self) -> None:
        self._wake.clear()
        page = self._read(self.published, ROWS_MAX)
        if page.upto == self.published:
            await self._wake.wait()
            return
        await self._send(page.messages)
        self.published = page.upto
        await self._trim(page.upto)
