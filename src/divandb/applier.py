"""Board → store: the loop that brings others' writes in.

It reads one partition from where the node's file says, and hands each batch to the writer together
with the new position: events and position are one transaction (Rule 2 makes it harmless to read a
batch twice). What it cannot read on the board, because its place is gone, the log is another one,
or something is missing, it asks of a peer.

Every answer of the board says of which log it is. An offset means nothing in another log, even
where it happens to be valid: such an answer is thrown away, and the other log read from 0.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from divandb.board.base import Batch
from divandb.board.source import PlaceGone
from divandb.clock import Rng
from divandb.store.positions import Position
from divandb.telemetry import Log
from divandb.trouble import Trouble

EVENTS_MAX = 256
"""Events in one transaction."""
GAP_PATIENCE_S = 1.0
"""So long, what is missing may still come by itself."""
NO_LOG = ""
"""The identity of no log: nothing was ever read."""


class Source(Protocol):
    """What the applier asks of a board: one partition."""

    board: str
    topic: str
    partition: int

    async def read(self, offset: int) -> Batch:
        """What lies at ``offset``, waiting a while for something, and the identity of the log in
        which it does; raises ``PlaceGone``.
        """
        ...


Take = Callable[[list[bytes], Position], Awaitable[None]]
Pace = Callable[[float, int], Awaitable[None]]


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
        *,
        pace: Pace,
        events_max: Callable[[], int] = lambda: EVENTS_MAX,
        applied: Take | None = None,
    ) -> None:
        """``take`` applies messages and stores the position, both or neither; ``catch_up`` asks a
        peer: was there an answer?

        ``pace`` is awaited after each transaction, with the seconds that it took and how many
        messages there were to apply; meanwhile nothing is read. ``events_max`` says how many of
        them one transaction may have. ``applied`` is awaited before that, with what
        ``take`` was given; there are no messages when only the position moved. Until it has
        returned once for a batch, it is tried again and nothing more is read; a process that ends
        before leaves it untold.
        """
        self._source = source
        self._take = take
        self._has_gap = has_gap
        self._catch_up = catch_up
        self._pace = pace
        self._events_max = events_max
        self._rng = rng
        self._trouble = Trouble(log, "applying waits", topic=source.topic)
        self._applied = applied
        self._untold: tuple[list[bytes], Position] | None = None
        self._gap_since: float | None = None
        # What was missed while the node was down may be gone from the board: ask once.
        self._owed = True
        self.position = position or self._at(NO_LOG, 0)
        """How far was applied."""
        self.end: int | None = None
        """The log's end as last seen: ``end - position.next`` events are still to be applied."""

    @property
    def failing(self) -> str | None:
        """The last fault, while applying fails."""
        return self._trouble.failing

    async def run(self) -> None:
        """Apply until cancelled; a board that is away is tried again with back-off."""
        while True:
            with self._trouble.attempt():
                await self._tell()
                await self._step()
                await self._mend()
            await self._trouble.back_off(self._rng)

    async def _step(self) -> None:
        position = self.position
        try:
            batch = await self._source.read(position.next)
        except PlaceGone as gone:
            # If it is another log's place, the next answer says so.
            await self._begin_at(position.identity, gone.resume)
            return
        self.end = batch.end
        if batch.identity != position.identity:
            await self._begin_at(batch.identity, 0)
            return
        if batch.first != position.next:
            # What the board cut off after a crash may have been an event: ask for it.
            self._owed = True
        if batch.messages or batch.next != position.next:
            await self._move(self._at(batch.identity, batch.next), batch.messages)

    async def _begin_at(self, identity: str, offset: int) -> None:
        """Go on elsewhere. What the board lacks a peer is asked for; until one has answered, marks
        keep the vector from passing it.
        """
        self._owed = True
        await self._move(self._at(identity, offset), [])

    async def _move(self, position: Position, messages: list[bytes]) -> None:
        most = max(self._events_max(), 1)
        last = max(len(messages) - 1, 0) // most * most
        for first in range(0, last, most):
            # The place is the old one until all are applied: after a crash they are read again.
            took_s = await self._timed(messages[first : first + most], self.position)
            await self._pace(took_s, len(messages))
        took_s = await self._timed(messages[last:], position)
        self.position = position
        self._untold = (messages, position)
        await self._tell()
        if messages:
            await self._pace(took_s, len(messages))

    async def _timed(self, messages: list[bytes], position: Position) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._take(messages, position)
        return loop.time() - began

    async def _tell(self) -> None:
        if self._applied is not None and self._untold is not None:
            await self._applied(*self._untold)
        self._untold = None

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
