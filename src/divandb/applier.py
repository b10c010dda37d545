"""Board → store: the loop that brings others' writes in.

It reads one partition from where the node's file says, and hands each batch to the writer together
with the new position: events and position are one transaction (Rule 2 makes it harmless to read a
batch twice). What it cannot read on the board, because its place is gone, the log is another one,
or something is missing, it asks of a peer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from divandb.clock import Rng
from divandb.store.positions import Position
from divandb.telemetry import Log

RETRY_S_MIN = 0.05
RETRY_S_MAX = 2.0
GAP_PATIENCE_S = 1.0
"""So long, what is missing may still come by itself."""


class PlaceGone(Exception):
    """The board no longer has that offset, or not yet: only a peer can help. ``start`` is where
    what it has begins.
    """

    def __init__(self, start: int) -> None:
        super().__init__(f"the board begins at {start}")
        self.start = start


class Batch(msgspec.Struct, frozen=True):
    """Messages in their order, and the offset behind them."""

    messages: list[bytes]
    next: int


class Source(Protocol):
    """What the applier asks of a board: one partition."""

    board: str
    topic: str
    partition: int

    async def identity(self) -> str:
        """The log's identity: another one means another log."""
        ...

    async def read(self, offset: int) -> Batch:
        """What lies at ``offset``, waiting a while for something; raises ``PlaceGone``."""
        ...


Take = Callable[[list[bytes], Position], Awaitable[None]]


class Applier:
    """One partition's loop."""

    def __init__(
        self,
        source: Source,
        position: Position | None,
        take: Take,
        has_gap: Callable[[], bool],
        catch_up: Callable[[], Awaitable[bool]],
        rng: Rng,
        log: Log,
    ) -> None:
        self._source = source
        self._position = position
        self._take = take
        self._has_gap = has_gap
        self._catch_up = catch_up
        self._rng = rng
        self._log = log
        self._gap_since: float | None = None
        # What was missed while the node was down may be gone from the board: ask once.
        self._owed = True

    async def run(self) -> None:
        """Apply until cancelled; a board that is away is tried again with back-off."""
        pause_s = RETRY_S_MIN
        while True:
            try:
                await self._step()
                await self._mend()
                pause_s = RETRY_S_MIN
            except Exception as fault:
                self._log.event("applying waits", topic=self._source.topic, fault=repr(fault))
                await asyncio.sleep(pause_s * (0.5 + self._rng.uniform()))
                pause_s = min(pause_s * 2, RETRY_S_MAX)

    async def _step(self) -> None:
        identity = await self._source.identity()
        position = self._position
        if position is None or position.identity != identity:
            # A log that is not the one we read has its own beginning; peers have the rest.
            await self._begin_at(0)
            return
        try:
            batch = await self._source.read(position.next)
        except PlaceGone as gone:
            await self._begin_at(gone.start)
            return
        if batch.messages or batch.next != position.next:
            await self._move(self._at(identity, batch.next), batch.messages)

    async def _begin_at(self, start: int) -> None:
        """Go on where the board begins. What it lacks a peer is asked for; until one has answered,
        marks keep the vector from passing it.
        """
        self._owed = True
        await self._move(self._at(await self._source.identity(), start), [])

    async def _move(self, position: Position, messages: list[bytes]) -> None:
        await self._take(messages, position)
        self._position = position

    async def _mend(self) -> None:
        """Ask a peer for what is missing: at once for what the board cannot have, after a while
        for what may still come.
        """
        now = asyncio.get_running_loop().time()
        if not self._has_gap():
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now
        waited_long = self._gap_since is not None and now - self._gap_since > GAP_PATIENCE_S
        if (self._owed or waited_long) and await self._catch_up():
            self._owed = False
            self._gap_since = None

    def _at(self, identity: str, offset: int) -> Position:
        source = self._source
        return Position(source.board, source.topic, source.partition, identity, offset)
