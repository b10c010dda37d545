"""A simulated Event Board: the one in memory, over a network that delays, loses and cuts."""

import asyncio
import random
from collections.abc import Callable, Sequence

from divandb.board.base import Access, Batch, BoardLimits, Full, TopicInfo, Unreachable
from divandb.board.memory import MemoryBoard, MemoryClient
from divandb.cluster import topics
from divandb.config import Member
from tests.sim.network import Faults
from tests.sim.world import SimLoop
from tests.stores import SeededRng

BOARD = "board"
"""The board's name on the network."""
SILENCE_S = 2.0
"""So long a client waits for a board that it cannot reach."""


class SimBoard:
    """All topics of one cluster, with their access lists."""

    def __init__(
        self, loop: SimLoop, rng: random.Random, faults: Faults, cluster: str,
        linked: Callable[[str, str], bool],
    ) -> None:  # fmt: skip
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.linked = linked
        self.name = BOARD
        self.memory = MemoryBoard(SeededRng(rng.randrange(2**32)))
        self.refuses = ""
        """A topic to which nothing can be published just now."""
        self._cluster = cluster
        self._topics: dict[str, int] = {}

    async def arrange(self, members: Sequence[Member]) -> None:
        """Make the topics of these members, with who may open them, as ``divandb up`` does."""
        admin = self.memory.connect("admin", is_admin=True)
        await topics.arrange(admin, self._cluster, members, {}, {})
        self._topics = {name: n for name, (n, _) in topics.layout(self._cluster, members).items()}

    def connect(self, name: str, principal: str = "") -> "SimBoardClient":
        """What the node of this name sees of it as this principal; as itself, if none is given."""
        return SimBoardClient(self, name, self.memory.connect(principal or name))

    @property
    def masters(self) -> str:
        """The topic of the Masters' Board."""
        return topics.masters(self._cluster)

    def replicas(self, slot: str) -> str:
        """The topic of a slot's Replicas' Board."""
        return topics.replicas(self._cluster, slot)

    @property
    def up(self) -> bool:
        return self.memory.is_up

    @up.setter
    def up(self, up: bool) -> None:
        self.memory.is_up = up

    def forget(self) -> None:
        """All topics were deleted and made again: other logs, same names."""
        for topic in self._topics:
            self._while_up(lambda topic=topic: self.memory.lose(topic))

    def lose_end(self, count: int) -> None:
        """Each partition loses its last messages, as if the disk had been put back."""
        for topic, partitions in self._topics.items():
            for partition in range(partitions):
                self._while_up(lambda t=topic, p=partition: self._cut(t, p, count))

    def _cut(self, topic: str, partition: int, count: int) -> None:
        log = self.memory.partition(topic, partition)
        self.memory.cut(topic, partition, max(log.end - count, log.start))

    def truncate(self, keep: int) -> None:
        """Retention: only the last ``keep`` messages of each partition stay."""
        for topic, count in self._topics.items():
            for partition in range(count):
                self._while_up(lambda t=topic, p=partition: self._forget(t, p, keep))

    def _forget(self, topic: str, partition: int, keep: int) -> None:
        log = self.memory.partition(topic, partition)
        self.memory.forget(topic, partition, max(log.end - keep, log.start))

    def _while_up(self, misfortune: Callable[[], None]) -> None:
        was_up = self.memory.is_up
        if not was_up:
            self.memory.is_up = True
        misfortune()
        if not was_up:
            self.memory.is_up = False

    def inject(self, partition: int, message: bytes) -> None:
        """Put a message on the Masters' Board that nobody published."""
        self.memory.partition(self.masters, partition).append([message], 2**40)

    def messages(self, topic: str, partition: int = 0) -> list[bytes]:
        """What a partition holds."""
        return list(self.memory.partition(topic, partition).messages)

    def masters_messages(self) -> list[bytes]:
        """What the Masters' Board holds, be it up or not."""
        found: list[bytes] = []
        self._while_up(lambda: found.extend(self._of_masters()))
        return found

    def _of_masters(self) -> list[bytes]:
        count = self._topics.get(self.masters, 0)
        return [m for partition in range(count) for m in self.messages(self.masters, partition)]


class SimBoardClient:
    """An ``EventBoard`` as one node sees it."""

    def __init__(self, board: SimBoard, name: str, inner: MemoryClient) -> None:
        self._board = board
        self._name = name
        self._inner = inner

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """Append, at least once: an answer may be lost, and a batch be torn or late."""
        await self._pass()
        rng, faults = self._board.rng, self._board.faults
        if topic == self._board.refuses:
            raise Full("There is no room.")
        if rng.random() < faults.torn_batches:
            part = messages[: rng.randrange(len(messages) + 1)]
            if part:
                await self._inner.publish(topic, partition, part)
            raise Unreachable("the answer is lost")
        if rng.random() < faults.late_batches:
            self._board.loop.later(rng.random() * faults.late_s, self._late, topic, partition,
                                   list(messages))  # fmt: skip
            raise Unreachable("no answer in time")
        first = await self._inner.publish(topic, partition, messages)
        if rng.random() < faults.lost_answers:
            raise Unreachable("the answer is lost")
        await self._pass()
        return first

    def _late(self, topic: str, partition: int, messages: list[bytes]) -> None:
        if self._board.up:
            self._board.memory.partition(topic, partition).append(messages, 2**40)

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """What lies there, in answers of any size."""
        await self._pass()
        size = self._board.rng.choice((1, 2_000, 10_000, bytes_max))
        batch = await self._inner.read(topic, partition, offset, bytes_max=size, wait_s=wait_s)
        await self._pass()
        return batch

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard``."""
        await self._pass()
        return await self._inner.describe(topic)

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """See ``EventBoard``."""
        return await self._inner.create_topic(topic, partitions, access, durable=durable)

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard``."""
        await self._inner.set_principal(name, secret)

    async def close(self) -> None:
        """See ``EventBoard``."""
        await self._inner.close()

    async def _pass(self) -> None:
        await asyncio.sleep(self._board.rng.random() * self._board.faults.delay_s)
        if not self._board.linked(self._name, BOARD):
            await asyncio.sleep(SILENCE_S)
            raise Unreachable("the board does not answer")


LIMITS = BoardLimits(message_bytes_max=2_000, batch_bytes_max=10_000)
"""What nodes send at once: little, so that events travel in pieces and pages in several batches.
The board itself takes more.
"""
