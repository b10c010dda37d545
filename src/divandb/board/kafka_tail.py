"""One partition of a Kafka topic, read on and on from an offset.

A tail goes one way: a consumer is assigned an offset once, and gives what lies there and behind it.
Who wants to read elsewhere closes it and takes another, so that nothing of the old place can ever
come in at the new one. No group is joined and nothing is committed. What a broker does not have at
the offset is an error, never another place (``auto.offset.reset=error``).

A thread waits for librdkafka and hands over to the event loop what has come, at once and all that
is there, while somebody waits for it. What comes meanwhile stays in librdkafka's queue, which stops
fetching at ``ahead_bytes_max``: so who is busy is not woken, and the next batch is larger.
"""

import asyncio
import threading
from collections import deque
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from divandb.board.base import KIB, BoardError, Damaged, Unidentified, Unreachable
from divandb.board.kafka_client import POLL_S, KafkaBounds, error_of

CHUNK_MESSAGES_MAX = 1000
GONE_MS = 1000
"""A topic that the brokers do not know for so long is none."""
QUEUE_BACK_OFF_MS = 5
"""A full queue of librdkafka is looked at again after this time."""


class Lost(Exception):
    """A broker does not have what the tail is to read next: ask it what it has."""


class Tail:
    """Messages of one partition from ``offset`` on."""

    def __init__(
        self,
        settings: dict[str, Any],
        bounds: KafkaBounds,
        who: str,
        topic: str,
        partition: int,
        offset: int,
        identity: str,
    ) -> None:
        """``settings`` are those of all clients. Begins to fetch at once."""
        self.topic = topic
        self.partition = partition
        self.identity = identity
        """Of the log that it began in."""
        self.verified_at = 0.0
        """When the loop's clock said that the log was still that one."""
        self.is_in_doubt = False
        """No broker could be reached lately."""
        self.end = offset
        """The log's end as far as known."""
        self._who = who
        self._next = offset
        self._messages: deque[tuple[int, bytes]] = deque()
        self._problem: BoardError | Lost | None = None
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Event()
        self._is_closed = False
        self.ended = self._loop.create_future()
        """Done once the thread has let go of everything."""
        self._settings = settings | {
            "group.id": f"divandb.{who}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "check.crcs": True,
            "topic.metadata.propagation.max.ms": GONE_MS,
            "fetch.wait.max.ms": bounds.fetch_wait_ms,
            "fetch.queue.backoff.ms": QUEUE_BACK_OFF_MS,
            "fetch.message.max.bytes": bounds.ahead_bytes_max,
            "queued.max.messages.kbytes": bounds.ahead_bytes_max // KIB,
            "error_cb": self._on_error,
        }
        self._place = TopicPartition(topic, partition, offset)
        threading.Thread(target=self._run, name="kafka-tail", daemon=True).start()

    # Of the loop

    def covers(self, offset: int) -> bool:
        """Will it give what lies at ``offset``, as the next thing that it has or gets?"""
        first = self._messages[0][0] if self._messages else self._next
        return not self._is_closed and first <= offset <= self._next

    def has(self, offset: int) -> bool:
        """Is something here that lies at ``offset`` or behind it?"""
        return bool(self._messages) and self._messages[-1][0] >= offset

    async def wait(self, offset: int, wait_s: float) -> bool:
        """Wait for something at ``offset`` or behind it: is it there? What lies before is
        forgotten. Raises what became of the tail, a ``BoardError`` or ``Lost``; ``Unreachable``
        while no broker is.
        """
        self._forget(offset)
        if not self.has(offset) and self._problem is None and not self.is_in_doubt:
            self._wanted.set()
            woken = self._loop.create_future()
            timer = self._loop.call_later(wait_s, _settle, woken)
            self._waiting[woken] = None
            try:
                await woken
            finally:
                timer.cancel()
                del self._waiting[woken]
        if self.has(offset):
            return True
        if self._problem is not None:
            raise self._problem
        if self.is_in_doubt:
            raise Unreachable(f"{self._who} could not read {self.topic}: no broker answers.")
        return False

    def take(self, offset: int, bytes_max: int) -> tuple[list[bytes], int, int]:
        """Messages from ``offset``, at least one if there is any; the offset of the first, and
        where to go on.
        """
        self._forget(offset)
        if not self._messages:
            return [], offset, offset
        first = after = self._messages[0][0]
        found: list[bytes] = []
        for number, message in self._messages:
            # A gap ends a batch: offsets in it are contiguous.
            if number != after or (found and len(message) > bytes_max):
                break
            found.append(message)
            bytes_max -= len(message)
            after += 1
        return found, first, after

    def _forget(self, before: int) -> None:
        """Others who read at the same place have been given theirs."""
        messages = self._messages
        while messages and messages[0][0] < before:
            messages.popleft()

    def close(self, why: str) -> None:
        """Let go of everything soon; who waits hears why."""
        self._is_closed = True
        self._wanted.set()
        self._fail(Unreachable(why))

    def _fail(self, problem: BoardError | Lost) -> None:
        if self._problem is None:
            self._problem = problem
        self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            _settle(waiting)

    def _arrived(self, messages: list[tuple[int, bytes]], end: int) -> None:
        self._messages.extend(messages)
        self._next = messages[-1][0] + 1
        self.end = max(self.end, end, self._next)
        self.is_in_doubt = False
        self._wake()

    def _doubt(self) -> None:
        self.is_in_doubt = True
        self._wake()

    # Of the thread

    def _run(self) -> None:
        try:
            consumer = Consumer(self._settings)
            try:
                consumer.assign([self._place])
                while not self._is_closed:
                    self._wanted.wait()
                    self._step(consumer)
            finally:
                consumer.close()
        except KafkaException as problem:  # of settings, or of all that the consumer does
            self._tell(self._fail, error_of(problem.args[0], self._who, f"read {self.topic}"))
        finally:
            self._tell(_settle, self.ended)

    def _step(self, consumer: Consumer) -> None:
        first = consumer.poll(POLL_S)
        if first is None or self._is_closed:
            return
        found: list[tuple[int, bytes]] = []
        for message in [first, *consumer.consume(CHUNK_MESSAGES_MAX, 0)]:
            problem = message.error()
            if problem is not None:
                self._give(consumer, found)
                found = []
                self._met(problem, message)
                continue
            found.append((message.offset() or 0, message.value() or b""))
        self._give(consumer, found)

    def _give(self, consumer: Consumer, found: list[tuple[int, bytes]]) -> None:
        if found:
            # Before it is told: who then waits for more says so anew.
            self._wanted.clear()
            known = consumer.get_watermark_offsets(self._place, cached=True)
            self._tell(self._arrived, found, known[1] if known else 0)

    def _met(self, problem: KafkaError, message: Message) -> None:
        """An error in the place of a message."""
        code = problem.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._tell(self._fail, Lost())
        elif code in (KafkaError._BAD_MSG, KafkaError.INVALID_MSG):
            offset = message.offset() or 0
            where = f"{self.topic}/{self.partition}"
            self._tell(self._fail, Damaged(where, offset, offset + 1))
        elif code == KafkaError.GROUP_AUTHORIZATION_FAILED:
            pass  # the group is looked up, and never needed
        else:
            self._tell(self._fail, error_of(problem, self._who, f"read {self.topic}"))

    def _on_error(self, problem: KafkaError) -> None:
        """What librdkafka tells of its connections, within ``poll``."""
        error = error_of(problem, self._who, f"read {self.topic}")
        if isinstance(error, Unidentified):
            self._tell(self._fail, error)
        elif problem.code() == KafkaError._ALL_BROKERS_DOWN:
            self._tell(self._doubt)

    def _tell(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._is_closed = True  # the loop is closed, and nobody is there to be told


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
