"""One partition of a Kafka topic, written to in order: nothing ever lands without what goes before.

A pen is one session of an idempotent producer: acknowledged by all in-sync replicas, in order,
without repetitions. librdkafka tries again by itself for as long as it takes
(``message.timeout.ms=0``). At the first message that a broker refuses for good, or when somebody
has waited too long, the pen is *broken*: everything that is on its way is purged and every publish
that waits fails. The next publish takes a new pen, and begins at its oldest message.

Why that leaves no gap. What a pen hands over stands in its partition in the order of ``write``, and
a refused message stops the session (``enable.gapless.guarantee``), so what arrives of it is always
a beginning. Something that was purged may still arrive, from the buffers of a dead connection, even
behind its repetition by the next pen. But the next pen begins at or before the first message that
this one had no acknowledgement for. So at every place of the log, what stands before it is a
beginning of what was to be published, with repetitions: 51 52 53 51 52 is possible, 52 without 51
before it is not. Who reads takes a repeated message for what it is.

One publish is on its way at a time; those that come meanwhile go together, when it has arrived.

What it costs: a producer for each partition that is written to, and a failed message fails others
of its partition, which are published once more.
"""

import asyncio
import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from divandb.board.base import BoardError, Full, TooLarge, Unidentified, Unreachable
from divandb.board.kafka_client import BATCH_OVERHEAD_BYTES, IDLE_S, POLL_S, KafkaBounds, error_of

MESSAGES_MAX = 1_000_000
"""Of one pen, on their way: more than fit into its bytes."""
REQUEST_BYTES_MAX = 1_000_000
"""Messages that travel in one record batch, as far as one message alone is not larger."""


_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._FATAL}


class _Publish:
    """The messages of one ``write``, on their way."""

    def __init__(self, messages: Sequence[bytes], size: int, done: "asyncio.Future[int]") -> None:
        self.messages = messages
        self.left = len(messages)
        self.size = size
        self.first: int | None = None
        self.done = done


@dataclasses.dataclass(frozen=True)
class Paper:
    """What is written on."""

    topic: str
    partition: int
    message_bytes_max: int
    """The largest message that the topic takes."""


class Pen:
    """One session of writing to one partition."""

    def __init__(
        self,
        settings: dict[str, Any],
        bounds: KafkaBounds,
        who: str,
        paper: Paper,
        broken: Callable[["Pen"], None],
    ) -> None:
        """``settings`` are those of all clients; ``broken`` is told, once, that this pen is done
        for.
        """
        self.paper = paper
        self._who = who
        self._bounds = bounds
        self._tell_broken = broken
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[_Publish, None] = {}
        self._waiting: list[_Publish] = []
        """Those that are handed over once the ones before have arrived."""
        self._handed = 0
        self._bytes = 0
        self._is_broken = False
        self._due = threading.Event()
        self.ended = self._loop.create_future()
        """Done once the thread has let go of everything."""
        request_bytes = min(paper.message_bytes_max, REQUEST_BYTES_MAX)
        self._producer: Producer | None = Producer(
            settings
            | {
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "acks": "all",
                "message.timeout.ms": 0,
                # A publish is handed over whole: there is nothing to wait for.
                "linger.ms": 0,
                "compression.type": "lz4",
                "message.max.bytes": paper.message_bytes_max + BATCH_OVERHEAD_BYTES,
                "batch.size": request_bytes,
                "queue.buffering.max.messages": MESSAGES_MAX,
                "queue.buffering.max.kbytes": 2 * bounds.publish_bytes_max // 1024,
                "error_cb": self._on_error,
            }
        )
        threading.Thread(target=self._run, name="kafka-pen", daemon=True).start()

    # Of the loop

    async def write(self, messages: Sequence[bytes]) -> int:
        """See ``EventBoard.publish``. Messages of an earlier call stand before these."""
        if self._is_broken:
            raise Unreachable(f"{self._who} writes {self.paper.topic} with another pen by now.")
        largest = max(map(len, messages))
        if largest > self.paper.message_bytes_max:
            raise TooLarge(
                f"A message of {largest} bytes is above what {self.paper.topic} takes, "
                f"{self.paper.message_bytes_max}."
            )
        size = sum(map(len, messages))
        if self._bytes and self._bytes + size > self._bounds.publish_bytes_max:
            raise Full(f"{self._bytes} bytes are on their way to {self.paper.topic} already.")
        publish = self._enqueue(messages, size)
        await asyncio.wait([publish.done], timeout=self._bounds.answer_s_max)
        if not publish.done.done():
            self.fail(Unreachable(f"{self._who} could not write {self.paper.topic}: no answer."))
        return await publish.done

    def _enqueue(self, messages: Sequence[bytes], size: int) -> _Publish:
        publish = _Publish(messages, size, self._loop.create_future())
        # Who was cancelled does not ask what became of it.
        publish.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._under_way[publish] = None
        self._waiting.append(publish)
        self._bytes += size
        if not self._handed:
            self._hand_over()
        return publish

    def _hand_over(self) -> None:
        """All that waits goes together: each time costs as much as some twenty messages."""
        taken, self._waiting = self._waiting, []
        self._handed = len(taken)
        paper, producer = self.paper, self._producer
        if producer is None:  # its session has just ended, which we hear of in a moment
            self.fail(Unreachable(f"{self._who} could not write {paper.topic}: it is over."))
            return
        messages = [{"value": one} for publish in taken for one in publish.messages]
        on_their_way = deque(taken)

        def delivered(problem: KafkaError | None, message: Message) -> None:
            self._delivered(on_their_way, problem, message)

        try:
            if not self._due.is_set():
                producer.poll(0)  # what was told before is old news
            self._due.set()
            count = producer.produce_batch(paper.topic, messages, paper.partition, delivered)
        except (BufferError, KafkaException) as problem:
            self.fail(self._error(problem))
        else:
            if count != len(messages):
                self.fail(Full(f"librdkafka takes no more messages for {paper.topic}."))

    def fail(self, error: BoardError) -> None:
        """Break it: nothing more is handed over, and all that waits has failed."""
        if self._is_broken:
            return
        self._is_broken = True
        self._tell_broken(self)
        for publish in list(self._under_way):
            self._settle(publish, error)
        self._due.set()

    def close(self) -> None:
        """Let go of everything soon; what is on its way may arrive or not."""
        self.fail(Unreachable("The client is closed."))

    def _settle(self, publish: _Publish, result: int | BoardError) -> None:
        if publish not in self._under_way:
            return
        del self._under_way[publish]
        self._bytes -= publish.size
        if not self._is_broken:
            self._handed -= 1
            if not self._handed and self._waiting:
                self._hand_over()
            elif not self._under_way:
                self._due.clear()
        if publish.done.done():
            return
        if isinstance(result, BoardError):
            publish.done.set_exception(result)
        else:
            publish.done.set_result(result)

    def _error(self, problem: BufferError | KafkaException) -> BoardError:
        if isinstance(problem, BufferError):
            return Full(f"librdkafka takes no more messages for {self.paper.topic}.")
        return error_of(problem.args[0], self._who, f"write {self.paper.topic}")

    # Of the thread

    def _run(self) -> None:
        producer = self._producer
        assert producer is not None
        while not self._is_broken:
            is_due = self._due.wait(IDLE_S)
            try:
                producer.poll(POLL_S if is_due else 0)
            except KafkaException as fatal:  # the session is over
                with contextlib.suppress(KafkaException):
                    producer.poll(POLL_S)  # the message that it is about says more
                self._tell(self.fail, self._error(fatal))
                break
        with contextlib.suppress(KafkaException):  # what is purged is fatal to a session
            producer.purge(in_queue=True, in_flight=True, blocking=True)
            producer.poll(0)
        self._producer = None
        del producer  # this ends librdkafka's threads
        self._tell(_settle, self.ended)

    def _delivered(
        self, on_their_way: deque[_Publish], problem: KafkaError | None, message: Message
    ) -> None:
        """Within ``poll``: one message has arrived, or never will. They arrive in their order."""
        if problem is not None:
            if problem.code() not in _PURGED:  # else whoever purged it says why
                self._tell(self.fail, error_of(problem, self._who, f"write {self.paper.topic}"))
            return
        publish = on_their_way[0]
        if publish.first is None:
            publish.first = message.offset()
        publish.left -= 1
        if not publish.left:
            on_their_way.popleft()
            self._tell(self._settle, publish, publish.first)

    def _on_error(self, problem: KafkaError) -> None:
        """What librdkafka tells of its connections, within ``poll``."""
        if not self._due.is_set():
            return
        error = error_of(problem, self._who, f"write {self.paper.topic}")
        if isinstance(error, Unidentified) or problem.code() == KafkaError._ALL_BROKERS_DOWN:
            self._tell(self.fail, error)

    def _tell(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._is_broken = True  # the loop is closed, and nobody is there to be told


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
