"""The Event Boards on Apache Kafka: an ``EventBoard`` over librdkafka.

    kafka          what a board is asked: a publish, a read, a topic, a principal
    kafka_pen      one partition written to: an idempotent producer
    kafka_tail     one partition read on and on: a consumer
    kafka_admin    topics, places, rights, principals
    kafka_client   settings and errors

Clients of librdkafka are made when they are needed, never before the first request.

An identity is the cluster's id and the topic's. A tail begins in a log whose identity it knows, and
it is looked again every ``verify_s``: what was read meanwhile in a topic that was made again is
told apart late, but it is. Then the reader begins at 0 in the new log; what it took before were
sound events, and what it lacks shows as a gap.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaException

from divandb.board.base import (
    OFFSET_MAX,
    Access,
    BadRequest,
    Batch,
    BoardError,
    BoardLimits,
    NoTopic,
    OffsetAhead,
    OffsetGone,
    Refused,
    Right,
    TopicInfo,
    Unreachable,
    check_batch,
    check_growth,
    topic_named,
)
from divandb.board.kafka_admin import Admin, Where
from divandb.board.kafka_client import BATCH_OVERHEAD_BYTES, KafkaBounds, common
from divandb.board.kafka_pen import Paper, Pen
from divandb.board.kafka_tail import Lost, Tail
from divandb.config import BoardAccess, TopicSettings

CLOSE_S_MAX = 2.0
SEEN_S = 0.1
"""A broker hears of a right that was taken away this long after the one that was asked."""

_Place = tuple[str, int]


class KafkaBoard:
    """A principal's view of the boards on Kafka."""

    def __init__(
        self,
        access: BoardAccess,
        limits: BoardLimits | None = None,
        bounds: KafkaBounds | None = None,
        topics: TopicSettings | None = None,
    ) -> None:
        """``topics`` is how ``create_topic`` makes them."""
        self._access = access
        self._limits = limits or BoardLimits()
        self._bounds = bounds or KafkaBounds()
        self._topics = topics or TopicSettings()
        self._settings = common(access, self._bounds)
        self.admin = Admin(self._settings, self._bounds, access.principal)
        """For what only Kafka can be asked."""
        self._pens: dict[_Place, Pen] = {}
        self._tails: dict[_Place, Tail] = {}
        self._opening: dict[_Place, asyncio.Lock] = {}
        self._ending: set[asyncio.Future[None]] = set()
        self._is_closed = False

    # EventBoard

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """See ``EventBoard.publish``. Contiguous among the messages of this client; those of
        another one may stand between if a batch is larger than a Kafka record batch.
        """
        check_batch(messages, self._limits)
        place = (topic_named(topic), partition)
        while True:
            self._check_open()
            async with self._opening.setdefault(place, asyncio.Lock()):
                pen = self._pens.get(place) or await self._new_pen(place)
            self._check_open()
            if self._pens.get(place) is pen:
                return await pen.write(messages)

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """See ``EventBoard.read``."""
        if not 0 <= offset <= OFFSET_MAX:
            raise BadRequest("An offset is a number from 0 on.")
        place = (topic_named(topic), partition)
        wait_s = min(wait_s, self._limits.wait_ms_max / 1000)
        loop = asyncio.get_running_loop()
        until, given_up_at = loop.time() + wait_s, loop.time() + self._bounds.answer_s_max
        self._check_open()
        while True:
            tail = self._tails.get(place)
            if tail is None or not tail.covers(offset) or self._is_due(tail, offset, until):
                where = await self._looked(place, offset)
                if offset == where.end and loop.time() >= until:
                    return Batch([], offset, offset, offset, where.identity)
                tail = self._tail_at(place, offset, where)
                if offset < where.end:
                    until = max(until, given_up_at)  # it is there
            if await self._waited(place, tail, offset, until) or loop.time() >= until:
                bytes_max = min(bytes_max, self._limits.answer_bytes_max)
                messages, first, after = tail.take(offset, bytes_max)
                return Batch(messages, first, after, max(tail.end, after), tail.identity)

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard.describe``."""
        self._check_open()
        return await self.admin.describe(topic_named(topic), self._limits.message_bytes_max)

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """See ``EventBoard.create_topic``; all topics are as durable as the brokers make them. When
        it returns, a right that was taken away is gone for those who wait, too. Settings of a topic
        that exists are left as they are.
        """
        self._check_open()
        try:
            before = len((await self.admin.describe(topic_named(topic), 0)).partitions)
        except NoTopic:
            before = 0
        except Refused as refused:
            raise Refused(f"{refused.reason} To create it takes an admin.") from None
        check_growth(topic, before, partitions)
        if before == 0:
            await self.admin.make_topic(
                topic, partitions, self._topic_settings(), self._topics.replication_factor or -1
            )
        elif before < partitions:
            await self.admin.grow_topic(topic, partitions)
        if self._access.kafka.has_principals and await self.admin.set_access(topic, access):
            # A fetch that was under way is still answered.
            await asyncio.sleep(self._bounds.fetch_wait_ms / 1000 + SEEN_S)
        return await self.describe(topic)

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard.set_principal``. Where principals are not SCRAM's, the brokers' operator
        makes them known, and this does nothing.
        """
        self._check_open()
        if self._access.kafka.has_scram:
            await self.admin.set_scram(name, secret, self._access.kafka.mechanism)

    async def close(self) -> None:
        """See ``EventBoard.close``."""
        self._is_closed = True
        for place in list(self._tails):
            self._drop(place, "The client is closed.")
        for pen in list(self._pens.values()):
            pen.close()
        if self._ending:
            await asyncio.wait(self._ending, timeout=CLOSE_S_MAX)
        await self.admin.close()

    # Topics

    def _topic_settings(self) -> dict[str, str]:
        chosen = self._topics
        found = {
            "cleanup.policy": "delete",
            "retention.ms": str(chosen.retention_ms),
            "retention.bytes": str(chosen.retention_bytes),
            "max.message.bytes": str(chosen.message_bytes_max + BATCH_OVERHEAD_BYTES),
        }
        if chosen.min_insync_replicas:
            found["min.insync.replicas"] = str(chosen.min_insync_replicas)
        return found

    # Reading

    def _is_due(self, tail: Tail, offset: int, until: float) -> bool:
        """Has a broker to be asked first?"""
        now = asyncio.get_running_loop().time()
        is_old = now - tail.verified_at >= self._bounds.verify_s
        # Who does not wait wants to know where the log ends now.
        return is_old or now >= until or (tail.is_in_doubt and not tail.has(offset))

    async def _looked(self, place: _Place, offset: int) -> Where:
        """What a broker says of the partition; raises if ``offset`` does not lie in it."""
        where = await self.admin.where(*place)
        self._check_open()
        if offset < where.start:
            self._drop(place, f"{place[0]} begins later.")
            raise OffsetGone(where.start)
        if offset > where.end:
            self._drop(place, f"{place[0]} ends earlier.")
            raise OffsetAhead(where.end)
        return where

    def _tail_at(self, place: _Place, offset: int, where: Where) -> Tail:
        """The tail that gives what lies at ``offset``: the one there is, or a new one."""
        tail = self._tails.get(place)
        if tail is None or not tail.covers(offset) or tail.identity != where.identity:
            self._drop(place, f"{place[0]} is read elsewhere.")
            tail = Tail(
                self._settings, self._bounds, self._access.principal, *place, offset,
                where.identity,
            )  # fmt: skip
            self._tails[place] = tail
        tail.verified_at = asyncio.get_running_loop().time()
        tail.is_in_doubt = False
        tail.end = max(tail.end, where.end)
        return tail

    async def _waited(self, place: _Place, tail: Tail, offset: int, until: float) -> bool:
        """Is something there? Waits for it, but no longer than the tail's log is known to be the
        same.
        """
        until = min(until, tail.verified_at + self._bounds.verify_s)
        try:
            return await tail.wait(offset, max(until - asyncio.get_running_loop().time(), 0.0))
        except Lost:
            self._drop(place, f"{place[0]} has not what is to be read.")
            where = await self._looked(place, offset)
            # It has, by now: the log is not what it was.
            raise OffsetAhead(where.end) from None
        except BoardError:
            if not tail.is_in_doubt:
                self._drop(place, f"{place[0]} cannot be read.")
            raise

    def _drop(self, place: _Place, why: str) -> None:
        tail = self._tails.pop(place, None)
        if tail is not None:
            tail.close(why)
            self._await_end(tail.ended)

    # Writing

    async def _new_pen(self, place: _Place) -> Pen:
        _, limit = await asyncio.gather(  # is there such a partition?
            self.admin.where(*place, Right.WRITE),
            self.admin.message_bytes_max(place[0], self._limits.message_bytes_max),
        )
        self._check_open()

        def broken(pen: Pen) -> None:
            if self._pens.get(place) is pen:
                del self._pens[place]
            self._await_end(pen.ended)

        try:
            pen = Pen(
                self._settings, self._bounds, self._access.principal, Paper(*place, limit), broken
            )
        except KafkaException as problem:
            raise BoardError(f"There is no Kafka producer: {problem}") from None
        self._pens[place] = pen
        return pen

    # Both

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unreachable("The client is closed.")

    def _await_end(self, ended: "asyncio.Future[Any]") -> None:
        self._ending.add(ended)
        ended.add_done_callback(self._ending.discard)
