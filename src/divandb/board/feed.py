"""A reader of the embedded board who is sent what comes, without asking for it each time.

It is sent as much as it takes. What it does not take stays in the log, and it goes on from there:
so a slow one holds no memory but what was sent last, and nobody waits for it. Where it cannot be
served it is ended; when it asks again it hears why.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from divandb.board.base import BoardError
from divandb.board.log import Slice


class Answer(NamedTuple):
    """What a reader is given."""

    slice: Slice
    identity: str


Recent = Callable[[int], Answer | None]
"""What lies at an offset and behind it, if memory has it; raises ``BoardError``."""
Read = Callable[[int], Awaitable[Answer]]
"""The same from the disk."""


class Feed:
    """One reader's place in a partition. Lives on the event loop."""

    def __init__(self, recent: Recent, read: Read, feeds: "set[Feed]", first: Answer) -> None:
        """``first`` is what it is sent first; it is in ``feeds`` while it is open."""
        self._recent = recent
        self._read = read
        self._feeds = feeds
        self._first = first
        self._is_full = False
        self._reading: asyncio.Task[None] | None = None
        self.identity = first.identity
        self.next = first.slice.next
        """Where it goes on."""

    @property
    def first(self) -> Slice:
        """What to send first."""
        return self._first.slice

    @property
    def silence(self) -> Slice:
        """What to send when there is nothing: the reader hears that somebody is there."""
        return Slice(b"", self.next, self.next)

    def open(
        self, send: Callable[[Slice], bool], end: Callable[[], None], *, has_room: bool
    ) -> None:
        """Begin behind ``first``. ``send`` says whether it takes more at once; when it said no, or
        ``has_room`` does, ``go_on`` must be told that it does. ``end`` is called when there will be
        no more.
        """
        self._send, self._end = send, end
        self._is_full = not has_room
        self._feeds.add(self)
        self.go_on()

    def go_on(self, *, has_room: bool = False) -> None:
        """Send what has come; ``has_room``: more is taken again."""
        self._is_full = self._is_full and not has_room
        try:
            while not self._is_full and self._reading is None:
                found = self._recent(self.next)
                if found is None:
                    self._reading = asyncio.create_task(self._go_back())
                elif not self._sent(found):
                    return
        except BoardError:
            self._end()

    def _sent(self, found: Answer) -> bool:
        """Was there something to send?"""
        if found.identity != self.identity:
            raise BoardError("It is another log.")
        if not found.slice.records:
            return False
        self.next = found.slice.next
        self._is_full = not self._send(found.slice)
        return True

    async def _go_back(self) -> None:
        """Memory does not reach back so far."""
        try:
            found = await self._read(self.next)
            self._reading = None
            self._sent(found)
        except Exception:
            # Asking again, it is answered with the error, and what is no BoardError is logged.
            self._end()
            return
        self.go_on()

    def close(self) -> None:
        """The reader is gone, or there is no more for it."""
        self._feeds.discard(self)
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
