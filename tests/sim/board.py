"""A simulated Masters' Board and network: they drop, delay, repeat, and go away."""

import asyncio
import random
from collections.abc import Sequence

from divandb.applier import Batch, PlaceGone

READ_MESSAGES_MAX = 20
POLL_S = 0.5


class Away(Exception):
    """The board or the peer does not answer."""


class Faults:
    """How bad things are; a scenario sets these."""

    def __init__(self) -> None:
        self.delay_s = 0.002
        self.lost_answers = 0.0
        """Share of publishes that are stored but not acknowledged."""
        self.torn_batches = 0.0
        """Share of publishes of which only a part is stored, and which are not acknowledged."""


class SimBoard:
    """One topic with a partition a slot; what was acknowledged stays until it is told to forget."""

    def __init__(self, rng: random.Random, faults: Faults) -> None:
        self._rng = rng
        self._faults = faults
        self._logs: dict[int, list[bytes]] = {}
        self._starts: dict[int, int] = {}
        self.identity = "log-0"
        self.up = True
        self._arrived = asyncio.Event()

    async def publish(self, partition: int, messages: Sequence[bytes]) -> None:
        """Append, at least once."""
        await self._pass()
        log = self._logs.setdefault(partition, [])
        if self._rng.random() < self._faults.torn_batches:
            log.extend(messages[: self._rng.randrange(len(messages) + 1)])
            raise Away("the answer is lost")
        log.extend(messages)
        self._arrived.set()
        if self._rng.random() < self._faults.lost_answers:
            raise Away("the answer is lost")

    async def read(self, partition: int, offset: int) -> Batch:
        """Up to ``READ_MESSAGES_MAX`` messages."""
        await self._pass()
        log, start = self._logs.get(partition, []), self._starts.get(partition, 0)
        if not start <= offset <= start + len(log):
            raise PlaceGone(start)
        if offset == start + len(log):
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), POLL_S)
            except TimeoutError:
                return Batch([], offset)
        size = self._rng.randint(1, READ_MESSAGES_MAX)
        found = log[offset - start : offset - start + size]
        return Batch(found, offset + len(found))

    async def _pass(self) -> None:
        await asyncio.sleep(self._rng.random() * self._faults.delay_s)
        if not self.up:
            raise Away("the board is down")

    def forget(self, identity: str) -> None:
        """The topic was deleted and made again: other log, same name."""
        self._logs.clear()
        self._starts.clear()
        self.identity = identity

    def forget_again(self) -> None:
        """The same, whatever it is called by now."""
        self.forget(f"log-{int(self.identity.removeprefix('log-')) + 1}")

    def truncate(self, keep: int) -> None:
        """Retention: only the last ``keep`` messages of each partition stay."""
        for partition, log in self._logs.items():
            gone = max(len(log) - keep, 0)
            self._starts[partition] = self._starts.get(partition, 0) + gone
            del log[:gone]

    def inject(self, partition: int, message: bytes) -> None:
        """Put a message there that nobody published."""
        self._logs.setdefault(partition, []).append(message)
        self._arrived.set()


class Partition:
    """One partition of a board, as an applier's source."""

    def __init__(self, board: SimBoard, partition: int) -> None:
        self._board = board
        self.board = "sim"
        self.topic = "masters"
        self.partition = partition

    async def identity(self) -> str:
        return self._board.identity

    async def read(self, offset: int) -> Batch:
        return await self._board.read(self.partition, offset)
