"""An Event Board in memory: the same semantics, without disk, network or threads.

For unit tests and simulations. It takes time only where the running event loop's time passes: a
reader that waits. ``connect`` gives a principal's view; the rest are a board's misfortunes.
"""

import asyncio
from collections.abc import Sequence

from divandb.board.access import Principal, check_admin, check_any_right, check_right
from divandb.board.base import (
    MIB,
    OFFSET_MAX,
    Access,
    BadRequest,
    Batch,
    BoardLimits,
    NoTopic,
    OffsetAhead,
    OffsetGone,
    PartitionInfo,
    Right,
    TopicInfo,
    Unreachable,
    check_batch,
    check_growth,
    topic_named,
)
from divandb.clock import Rng


class _Partition:
    """Messages by offset, and those who wait for more."""

    def __init__(self) -> None:
        self.start = 0
        self.messages: list[bytes] = []
        self.bytes = 0
        self.readers: dict[asyncio.Future[None], None] = {}

    @property
    def end(self) -> int:
        return self.start + len(self.messages)

    def append(self, messages: Sequence[bytes], retention_bytes: int) -> int:
        first = self.end
        self.messages.extend(messages)
        self.bytes += sum(map(len, messages))
        if self.bytes > retention_bytes:
            self.forget(self._retained(retention_bytes // 2))
        self.wake()
        return first

    def _retained(self, bytes_max: int) -> int:
        """Where the last ``bytes_max`` bytes begin; never behind the last message."""
        size, offset = 0, self.end
        while offset > self.start and size <= bytes_max:
            offset -= 1
            size += len(self.messages[offset - self.start])
        return offset

    def forget(self, start: int) -> None:
        self._replace(start, self.messages[start - self.start :])

    def cut(self, end: int) -> None:
        self._replace(self.start, self.messages[: end - self.start])

    def _replace(self, start: int, messages: list[bytes]) -> None:
        self.start, self.messages = start, messages
        self.bytes = sum(map(len, messages))

    def from_offset(self, offset: int, bytes_max: int) -> list[bytes]:
        if offset < self.start:
            raise OffsetGone(self.start)
        if offset > self.end:
            raise OffsetAhead(self.end)
        begin = at = offset - self.start
        room = bytes_max
        while at < len(self.messages) and (at == begin or len(self.messages[at]) <= room):
            room -= len(self.messages[at])
            at += 1
        return self.messages[begin:at]

    def wake(self) -> None:
        for reader in self.readers:
            _settle(reader)


class _Topic:
    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.partitions: list[_Partition] = []
        self.access: Access = {}


class MemoryBoard:
    """The board itself."""

    def __init__(
        self, rng: Rng, limits: BoardLimits | None = None, retention_bytes: int = 256 * MIB
    ) -> None:
        self.limits = limits or BoardLimits()
        self.retention_bytes = retention_bytes
        self._rng = rng
        self._is_up = True
        self._topics: dict[str, _Topic] = {}

    def connect(self, name: str, *, is_admin: bool = False) -> "MemoryClient":
        """A principal's view; there is nothing to prove."""
        return MemoryClient(self, Principal(name, is_admin))

    @property
    def is_up(self) -> bool:
        """While False everything is ``Unreachable``, for those who wait too."""
        return self._is_up

    @is_up.setter
    def is_up(self, is_up: bool) -> None:
        self._is_up = is_up
        for topic in self._topics.values():
            _wake(topic)

    def lose(self, topic: str) -> None:
        """The log is gone and is made again, empty, under another identity."""
        known = self.topic(topic)
        known.identity = self.draw()
        for partition in known.partitions:
            partition.forget(partition.end)
            partition.start = 0
        _wake(known)

    def forget(self, topic: str, partition: int, start: int) -> None:
        """Retention removes what lies before ``start``."""
        self.partition(topic, partition).forget(start)

    def cut(self, topic: str, partition: int, end: int) -> None:
        """The log loses its end, as if its disk had been rolled back, and says nothing of it."""
        self.partition(topic, partition).cut(end)

    # For the clients

    def draw(self) -> str:
        """A new identity."""
        return self._rng.token(16).hex()

    def topic(self, name: str) -> _Topic:
        """Raises ``Unreachable``, ``NoTopic``."""
        if not self._is_up:
            raise Unreachable("The board is down.")
        known = self._topics.get(topic_named(name))
        if known is None:
            raise NoTopic(f"There is no topic {name}.")
        return known

    def partition(self, topic: str, partition: int) -> _Partition:
        """Raises ``Unreachable``, ``NoTopic``."""
        found = self.topic(topic).partitions
        if not 0 <= partition < len(found):
            raise NoTopic(f"{topic} has {len(found)} partitions; there is no {partition}.")
        return found[partition]

    def create(self, name: str, partitions: int, access: Access) -> None:
        """Make a topic or let it grow."""
        if not self._is_up:
            raise Unreachable("The board is down.")
        known = self._topics.get(topic_named(name))
        check_growth(name, len(known.partitions) if known else 0, partitions)
        if known is None:
            known = self._topics[name] = _Topic(self.draw())
        known.access = dict(access)
        missing = partitions - len(known.partitions)
        known.partitions.extend(_Partition() for _ in range(missing))


class MemoryClient:
    """An ``EventBoard`` over a ``MemoryBoard``."""

    def __init__(self, board: MemoryBoard, principal: Principal) -> None:
        self._board = board
        self._principal = principal
        self._is_closed = False
        self._waits: set[asyncio.Future[None]] = set()

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """See ``EventBoard.publish``."""
        check_batch(messages, self._board.limits)
        place = self._partition(topic, partition, Right.WRITE)
        return place.append(messages, self._board.retention_bytes)

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """See ``EventBoard.read``."""
        if not 0 <= offset <= OFFSET_MAX:
            raise BadRequest("An offset is a number from 0 on.")
        place = self._partition(topic, partition, Right.READ)
        if not place.from_offset(offset, 0) and wait_s > 0:
            await self._wait(place, min(wait_s, self._board.limits.wait_ms_max / 1000))
            place = self._partition(topic, partition, Right.READ)
        bytes_max = min(bytes_max, self._board.limits.answer_bytes_max)
        messages = place.from_offset(offset, bytes_max)
        identity = self._board.topic(topic).identity
        return Batch(messages, offset, offset + len(messages), place.end, identity)

    async def _wait(self, place: _Partition, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(wait_s, _settle, woken)
        place.readers[woken] = None
        self._waits.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            place.readers.pop(woken)
            self._waits.discard(woken)

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard.describe``."""
        self._check_open()
        known = self._board.topic(topic)
        check_any_right(self._principal, known.access, topic)
        partitions = tuple(PartitionInfo(one.start, one.end) for one in known.partitions)
        return TopicInfo(topic, known.identity, partitions, self._board.limits.message_bytes_max)

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """See ``EventBoard.create_topic``."""
        self._check_open()
        check_admin(self._principal, f"create {topic}")
        self._board.create(topic, partitions, access)
        return await self.describe(topic)

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard.set_principal``; here everybody is who they say."""
        self._check_open()
        check_admin(self._principal, f"set the secret of {name}")

    async def close(self) -> None:
        """See ``EventBoard.close``."""
        self._is_closed = True
        for wait in self._waits:
            _settle(wait)

    def _partition(self, topic: str, partition: int, right: Right) -> _Partition:
        self._check_open()
        check_right(self._principal, self._board.topic(topic).access, right, topic)
        return self._board.partition(topic, partition)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unreachable("The client is closed.")


def _wake(topic: _Topic) -> None:
    for partition in topic.partitions:
        partition.wake()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
