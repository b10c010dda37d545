"""What the embedded board does, whoever brings the requests: rights, group commit, waiting.

Runs on one event loop. Disk work is handed to ``Offload`` functions, threads in a server and plain
calls in a simulation; a partition has one append under way at a time, and what arrives meanwhile
shares the next one and its sync. Readers are answered from memory when they keep up, else by other
threads than those that append, so that a reader who begins far back delays nobody.
"""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from divandb.board import records
from divandb.board.access import (
    SALT_BYTES,
    Credential,
    Principal,
    Principals,
    check_admin,
    check_any_right,
    check_right,
)
from divandb.board.base import (
    KIB,
    MIB,
    OFFSET_MAX,
    Access,
    BadRequest,
    BoardError,
    BoardLimits,
    Full,
    NoTopic,
    PartitionInfo,
    Right,
    TooLarge,
    TopicInfo,
    check_growth,
    topic_named,
)
from divandb.board.feed import Answer, Feed
from divandb.board.log import PartitionLog, Pieces
from divandb.board.topics import Shelf, Topic
from divandb.clock import Clock, Rng
from divandb.telemetry import Log

TOPICS_MAX = 4096
UNSYNCED_BYTES_MAX = 64 * KIB
"""A publish that is not synced and no larger than this is written on the event loop."""
T = TypeVar("T")


class Offload(Protocol):
    """Runs a function somewhere, perhaps in a thread."""

    def __call__(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        """What the function returns or raises."""
        ...


@dataclasses.dataclass(frozen=True)
class BrokerLimits:
    """What the broker holds at a time."""

    publish_bytes_max: int = 64 * MIB
    """Publishes under way: on their way in or waiting for the disk. One more is ``Full``."""
    append_bytes_max: int = 4 * MIB
    """Publishes to a partition that share one sync; at least one is taken."""
    retention_check_s: float = 60.0
    """How often old segments are looked for when nothing is published."""


@dataclasses.dataclass(eq=False)
class _Publish:
    pieces: Pieces
    size: int
    done: asyncio.Future[int]


class _Partition:
    """A log and those who wait for it."""

    def __init__(self, log: PartitionLog) -> None:
        self.log = log
        self.publishes: deque[_Publish] = deque()
        self.readers: set[asyncio.Future[None]] = set()
        self.feeds: set[Feed] = set()
        self.appending: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Let waiting readers look again."""
        for reader in self.readers:
            if not reader.done():
                reader.set_result(None)
        for feed in list(self.feeds):
            feed.go_on()

    def take(self, bytes_max: int) -> list[_Publish]:
        """The publishes of the next append."""
        taken: list[_Publish] = []
        room = bytes_max
        while self.publishes and (not taken or self.publishes[0].size <= room):
            publish = self.publishes.popleft()
            room -= publish.size
            taken.append(publish)
        return taken


class Admission:
    """Leave to publish ``size`` bytes; ``release`` it whatever becomes of it."""

    def __init__(self, broker: "Broker", partition: _Partition, size: int) -> None:
        self._broker = broker
        self._partition = partition
        self._size = size

    def release(self) -> None:
        """Give the bytes back; again does nothing."""
        self._broker.publish_bytes -= self._size
        self._size = 0

    async def publish(self, body: bytes) -> int:
        """Append the messages of a packed body; the first one's offset, once all are durable."""
        return await self._broker.append(self._partition, body)

    def publish_now(self, body: bytes) -> int | None:
        """The same at once, if there is no disk to wait for; None if it must be waited for."""
        return self._broker.append_now(self._partition, body)


class Broker:
    """The embedded board without its network."""

    def __init__(
        self,
        shelf: Shelf,
        principals: Principals,
        limits: BoardLimits,
        bounds: BrokerLimits,
        clock: Clock,
        rng: Rng,
        append: Offload,
        read: Offload,
        log: Log,
    ) -> None:
        """Open the shelf's topics. ``append`` and ``read`` run disk work, without waiting for each
        other.
        """
        self.limits = limits
        self.publish_bytes = 0
        self._shelf = shelf
        self.principals = principals
        self._bounds = bounds
        self._clock = clock
        self._rng = rng
        self._append = append
        self._read = read
        self._log = log
        self._shelving = asyncio.Lock()
        self._stopping = False
        self._topics = shelf.topics()
        self._partitions = {
            topic.name: [_Partition(one) for one in topic.logs] for topic in self._topics.values()
        }

    # Publishing

    def admit(self, principal: Principal, topic: str, partition: int, size: int) -> Admission:
        """Leave to publish a body of ``size`` bytes, before any of it is read.

        Raises ``Refused``, ``NoTopic``, ``TooLarge``, ``Full``.
        """
        check_right(principal, self._topic(topic).access, Right.WRITE, topic)
        place = self._partition(topic, partition)
        if size > self.limits.batch_bytes_max:
            raise TooLarge(
                f"A batch of {size} bytes is above the limit of {self.limits.batch_bytes_max}."
            )
        if self._stopping or self.publish_bytes + size > self._bounds.publish_bytes_max:
            raise Full("The board is stopping." if self._stopping else "Too much is under way.")
        self.publish_bytes += size
        return Admission(self, place, size)

    async def append(self, partition: _Partition, body: bytes) -> int:
        """Append an admitted body's messages."""
        pieces = self._pieces(body)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        publish = _Publish(pieces, len(body), done)
        partition.publishes.append(publish)
        if partition.appending is None:
            partition.appending = asyncio.create_task(self._drain(partition))
        try:
            return await done
        except asyncio.CancelledError:
            # Nobody waits for it: it must not use up memory while the disk is slow.
            with suppress(ValueError):
                partition.publishes.remove(publish)
            raise

    def append_now(self, partition: _Partition, body: bytes) -> int | None:
        """The same without a thread, where nothing is synced: a few bytes go to memory faster than
        to a thread. None for a durable topic, and for what is large or must stand in line.
        """
        is_free = partition.appending is None and not partition.publishes
        if partition.log.is_durable or not is_free or len(body) > UNSYNCED_BYTES_MAX:
            return None
        [first] = self._append_to(partition.log, [self._pieces(body)])
        partition.wake()
        return first

    def _pieces(self, body: bytes) -> Pieces:
        try:
            bytes_max = self.limits.answer_bytes_max - records.HEADER_BYTES
            pieces, largest = records.pieces(body, bytes_max)
        except ValueError as problem:
            raise BadRequest(f"The body cannot be read: {problem}.") from None
        if not pieces:
            raise BadRequest("There is nothing to publish.")
        if largest > self.limits.message_bytes_max:
            raise TooLarge(
                f"A message of {largest} bytes is above the limit of"
                f" {self.limits.message_bytes_max}."
            )
        return pieces

    async def _drain(self, partition: _Partition) -> None:
        """Append until nothing waits."""
        try:
            while taken := partition.take(self._bounds.append_bytes_max):
                await self._append_all(partition, taken)
        finally:
            partition.appending = None

    async def _append_all(self, partition: _Partition, publishes: list[_Publish]) -> None:
        batches = [publish.pieces for publish in publishes]
        try:
            firsts = await self._append(self._append_to, partition.log, batches)
        except Exception as fault:
            if not isinstance(fault, BoardError):
                self._log.fault("append failed", fault)
                fault = BoardError(f"The append failed: {fault}.")
            for publish in publishes:
                if not publish.done.done():
                    publish.done.set_exception(fault)
        else:
            partition.wake()
            for publish, first in zip(publishes, firsts, strict=True):
                if not publish.done.done():
                    publish.done.set_result(first)

    def _append_to(self, log: PartitionLog, batches: list[Pieces]) -> list[int]:
        """In a thread: one append, and what retention makes of it."""
        wall_ms = self._clock.wall_ms()
        firsts = log.append(batches, wall_ms)
        self._retain(log, wall_ms)
        return firsts

    # Reading

    async def read(
        self,
        principal: Principal,
        topic: str,
        partition: int,
        offset: int,
        bytes_max: int,
        wait_s: float,
    ) -> Answer:
        """Records from ``offset`` on; none if nothing came in ``wait_s`` seconds."""
        found = await self._look(principal, topic, partition, offset, bytes_max)
        if not found.slice.records and wait_s > 0 and not self._stopping:
            wait_s = min(wait_s, self.limits.wait_ms_max / 1000)
            await self._wait(self._partition(topic, partition), wait_s)
            found = await self._look(principal, topic, partition, offset, bytes_max)
        return found

    def recent(
        self, principal: Principal, topic: str, partition: int, offset: int, bytes_max: int
    ) -> Answer | None:
        """The same from memory and at once, perhaps without records; None if it is not there."""
        if not 0 <= offset <= OFFSET_MAX:
            raise BadRequest("An offset is a number from 0 on.")
        known = self._topic(topic)
        check_right(principal, known.access, Right.READ, topic)
        log = self._partition(topic, partition).log
        found = log.recent(offset, min(bytes_max, self.limits.answer_bytes_max))
        return None if found is None else Answer(found, known.identity)

    async def feed(
        self, principal: Principal, topic: str, partition: int, offset: int, bytes_max: int
    ) -> Feed:
        """A reader who is to be sent what lies at ``offset`` and behind it, and all that comes."""
        secrets = self.principals.known

        def recent(at: int) -> Answer | None:
            if self._stopping or self.principals.known is not secrets:
                raise Full("Ask again: the board stops, or a secret has changed.")
            return self.recent(principal, topic, partition, at, bytes_max)

        async def read(at: int) -> Answer:
            return await self._look(principal, topic, partition, at, bytes_max)

        return Feed(recent, read, self._partition(topic, partition).feeds, await read(offset))

    async def _look(
        self, principal: Principal, topic: str, partition: int, offset: int, bytes_max: int
    ) -> Answer:
        found = self.recent(principal, topic, partition, offset, bytes_max)
        if found is not None:
            return found
        log = self._partition(topic, partition).log
        bytes_max = min(bytes_max, self.limits.answer_bytes_max)
        return Answer(await self._read(log.read, offset, bytes_max), self._topic(topic).identity)

    async def _wait(self, partition: _Partition, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(wait_s, _settle, woken)
        partition.readers.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            partition.readers.discard(woken)

    # Topics and principals

    def describe(self, principal: Principal, topic: str) -> TopicInfo:
        """Identity and offsets, for those with any right on the topic."""
        known = self._topic(topic)
        check_any_right(principal, known.access, topic)
        return self._info(known)

    def _info(self, topic: Topic) -> TopicInfo:
        partitions = tuple(PartitionInfo(log.start, log.end) for log in topic.logs)
        return TopicInfo(topic.name, topic.identity, partitions, self.limits.message_bytes_max)

    async def create_topic(
        self, principal: Principal, topic: str, partitions: int, access: Access, durable: bool
    ) -> TopicInfo:
        """Make a topic, or give one more partitions and these rights."""
        check_admin(principal, f"create {topic}")
        topic_named(topic)
        async with self._shelving:
            known = self._topics.get(topic)
            check_growth(topic, len(known.logs) if known else 0, partitions)
            if known is None:
                if len(self._topics) >= TOPICS_MAX:
                    raise Full(f"There are {TOPICS_MAX} topics already.")
                known = await self._append(self._shelf.create, topic, partitions, access, durable)
                self._topics[topic] = known
            else:
                await self._append(self._shelf.change, known, partitions, access)
            places = self._partitions.setdefault(topic, [])
            places.extend(_Partition(log) for log in known.logs[len(places) :])
            return self._info(known)

    async def set_principal(self, principal: Principal, name: str, secret: str) -> None:
        """Make a principal known, or change its secret."""
        check_admin(principal, f"set the secret of {name}")
        credential = Credential.of(secret, self._rng.token(SALT_BYTES))
        async with self._shelving:
            known = {**self.principals.known, self.principals.checked(name): credential}
            await self._append(self._shelf.keep_principals, known)
            self.principals.known = known

    def _topic(self, name: str) -> Topic:
        known = self._topics.get(name)
        if known is None:
            raise NoTopic(f"There is no topic {name}.")
        return known

    def _partition(self, topic: str, partition: int) -> _Partition:
        places = self._partitions[topic]
        if not 0 <= partition < len(places):
            raise NoTopic(f"{topic} has {len(places)} partitions; there is no {partition}.")
        return places[partition]

    # Keeping and ending

    async def tend(self) -> None:
        """Remove old segments now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._bounds.retention_check_s)
            for place in self._all():
                await self._read(self._retain, place.log, self._clock.wall_ms())

    def _retain(self, log: PartitionLog, wall_ms: int) -> None:
        try:
            log.retain(wall_ms)
        except OSError as problem:
            self._log.event("cannot remove old segments", reason=problem.strerror)

    def stop_waiting(self) -> None:
        """Take no more publishes, and let waiting readers go."""
        self._stopping = True
        for place in self._all():
            place.wake()

    async def close(self) -> None:
        """Finish appends under way, then close the logs."""
        self.stop_waiting()
        for place in self._all():
            while place.appending is not None:
                with suppress(Exception):
                    await place.appending
            place.log.close()

    def _all(self) -> list[_Partition]:
        return [place for places in self._partitions.values() for place in places]


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
