"""Others' events on to the slot's Replicas' Board: the same bytes, in the order applied.

A master hands each batch over once it has applied it. What has been passed on is where the file
says that this node begins to read again, so that a crash in between passes a batch on twice, which
changes nothing, and never leaves one out.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from divandb.clock import Rng
from divandb.store.positions import Position
from divandb.telemetry import Log
from divandb.trouble import Trouble

Send = Callable[[Sequence[bytes]], Awaitable[None]]


class Relay:
    """A bounded queue and the loop that publishes it."""

    def __init__(self, send: Send, bytes_max: int, rng: Rng, log: Log) -> None:
        self._send = send
        self._bytes_max = bytes_max
        self._rng = rng
        self._trouble = Trouble(log, "relaying fails")
        self._queue: deque[tuple[list[bytes], Position]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._passed_on: dict[tuple[str, int], Position] = {}

    @property
    def failing(self) -> str | None:
        """The last fault, while publishing fails."""
        return self._trouble.failing

    def passed_on(self, position: Position) -> Position:
        """What may be stored in place of ``position``: how far its partition was passed on."""
        return self._passed_on.get((position.topic, position.partition), position)

    @property
    def waits(self) -> bool:
        """Is something still to be passed on?"""
        return bool(self._queue)

    def places(self) -> list[Position]:
        """How far each partition was passed on."""
        return list(self._passed_on.values())

    async def say(self, message: bytes) -> None:
        """Publish a message of this master's own behind what was passed on so far."""
        await self._send([message])

    def begin(self, position: Position) -> None:
        """This partition is read from here on."""
        self._passed_on[(position.topic, position.partition)] = position

    def begin_once(self, position: Position) -> None:
        """The same, if nothing is known of the partition."""
        self._passed_on.setdefault((position.topic, position.partition), position)

    async def put(self, messages: list[bytes], position: Position) -> None:
        """Queue a batch that was applied; waits while the queue is full."""
        while self._bytes >= self._bytes_max:
            self._room.clear()
            await self._room.wait()
        self._queue.append((messages, position))
        self._bytes += sum(map(len, messages))
        self._filled.set()

    async def run(self) -> None:
        """Publish until cancelled, in order; what fails is tried again with back-off."""
        while True:
            await self._filled.wait()
            with self._trouble.attempt():
                await self._pass_on(list(self._queue))
            await self._trouble.back_off(self._rng)

    async def _pass_on(self, taken: list[tuple[list[bytes], Position]]) -> None:
        await self._publish([message for messages, _ in taken for message in messages])
        for messages, position in taken:
            self._queue.popleft()
            self._bytes -= sum(map(len, messages))
            self.begin(position)
        if not self._queue:
            self._filled.clear()
        self._room.set()

    async def _publish(self, messages: list[bytes]) -> None:
        if messages:
            await self._send(messages)
