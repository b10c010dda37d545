"""What a Kafka broker alone takes: a bare loop of produce and consume, in a process of its own:
``python -m bench.bare``.

It takes Write Events that lie on the Masters' Board, and sends those bytes through a topic of its
own in the same cluster, at an even rate, one message each time. Producer and consumer have
librdkafka's settings that bear on latency and safety as the boards have them (all copies
acknowledge, in order, LZ4, no lingering). A message's time is from the call that produces it until
the consumer's thread has it.

The plan comes as JSON on stdin; when all is ready it says so on stdout, and begins at the next line
on stdin; the outcome goes as JSON to stdout. Who may do that is the admin of
``DIVANDB_BOARD_ADMIN_SECRET`` and its kin, as with `divandb up --board`.
"""

import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench import stats
from bench.apart import Apart
from bench.servers import BenchError
from divandb.board.kafka_client import KafkaBounds, common
from divandb.configfile import ConfigFileError, kafka_given

BOUNDS = KafkaBounds()
READING = {
    "group.id": "divandb.bench",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "check.crcs": True,
    "fetch.wait.max.ms": BOUNDS.fetch_wait_ms,
    "fetch.queue.backoff.ms": 5,
}
WRITING = {"acks": "all", "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 0}
SAMPLE_MESSAGES_MAX = 1000
LOOK_S = 0.1
ANSWER_S_MAX = 30.0
READY = "ready\n"
WARM_UP_MESSAGES = 50
ENDS_S_MAX = 120.0
"""So long beyond its time it may take to start, read and end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``source`` is the topic whose messages are sent; ``rate`` is messages a second."""

    url: str
    source: str
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan; ``per_s`` is the rate that was kept, bytes are the messages' mean."""

    messages: int
    per_s: float
    p50_ms: float
    p99_ms: float
    message_bytes: float
    cpu_s: float


class Running:
    """A process that carries out a plan. It is ready once this is made, and begins when told."""

    def __init__(self, plan: Plan) -> None:
        """BenchError when it does not get ready."""
        self._wait_s_max = plan.seconds + ENDS_S_MAX
        self._apart = Apart("bench.bare", "bare loop", asdict(plan))
        if self._apart.hear() != READY:
            self.outcome()

    def go(self) -> None:
        """Begin."""
        self._apart.tell("")

    def outcome(self) -> Outcome:
        """Waits for the end. BenchError when it has no outcome."""
        return Outcome(**self._apart.outcome(self._wait_s_max))

    def kill(self) -> None:
        """Ends the process if it has not ended."""
        self._apart.kill()


def measured(plan: Plan) -> Outcome:
    """What comes of a plan that begins at once."""
    running = Running(plan)
    running.go()
    return running.outcome()


class Loop:
    """A topic of its own, with a producer and a consumer at it."""

    def __init__(self, settings: dict[str, Any], topic: str, messages: Sequence[bytes]) -> None:
        self._topic = topic
        self._messages = messages
        self._producer = Producer(settings | WRITING)
        self._consumer = Consumer(settings | READING)
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self._sent: list[float] = []
        self._seen: list[float] = []
        self._has_ended = threading.Event()
        self._taking = threading.Thread(target=self._take)
        self._taking.start()

    def close(self) -> None:
        """End the consumer's thread."""
        self._has_ended.set()
        self._taking.join()
        self._consumer.close()

    def warm_up(self) -> None:
        """Some messages one by one: what a first time costs is not measured."""
        for _ in range(WARM_UP_MESSAGES):
            self._send()
            self._await_seen()

    def run(self, plan: Plan) -> Outcome:
        """All that the plan says."""
        warm = len(self._sent)
        start = now = time.perf_counter()
        while now - start < plan.seconds:
            due = start + (len(self._sent) - warm) / plan.rate
            if now < due:
                time.sleep(min(due - now, plan.seconds))
            else:
                self._send()
            now = time.perf_counter()
        self._await_seen()
        return self._outcome(warm, now - start)

    def _send(self) -> None:
        message = self._messages[len(self._sent) % len(self._messages)]
        self._sent.append(time.perf_counter())
        self._producer.produce(self._topic, message, partition=0)
        self._producer.poll(0)

    def _take(self) -> None:
        while not self._has_ended.is_set():
            message = self._consumer.poll(LOOK_S)
            now = time.perf_counter()
            if message is not None and not message.error():
                self._seen.append(now)

    def _await_seen(self) -> None:
        until = time.perf_counter() + ANSWER_S_MAX
        while len(self._seen) < len(self._sent):
            if time.perf_counter() > until:
                raise BenchError(f"{len(self._sent) - len(self._seen)} messages did not come back")
            time.sleep(0.001)

    def _outcome(self, warm: int, seconds: float) -> Outcome:
        pairs = zip(self._sent[warm:], self._seen[warm:], strict=True)
        took_ms = [(seen - sent) * 1e3 for sent, seen in pairs]
        return Outcome(
            messages=len(took_ms),
            per_s=len(took_ms) / seconds,
            p50_ms=stats.percentile(took_ms, 50),
            p99_ms=stats.percentile(took_ms, 99),
            message_bytes=sum(map(len, self._messages)) / len(self._messages),
            cpu_s=time.process_time(),
        )


def sample(settings: dict[str, Any], source: str) -> list[bytes]:
    """The latest messages of a topic's first partition. BenchError when there are none."""
    consumer = Consumer(settings | READING)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(source, 0), timeout=ANSWER_S_MAX)
        start = max(low, high - SAMPLE_MESSAGES_MAX)
        consumer.assign([TopicPartition(source, 0, start)])
        found: list[bytes] = []
        while start + len(found) < high:
            message = consumer.poll(ANSWER_S_MAX)
            if message is None or message.error():
                raise BenchError(f"{source} cannot be read: {message and message.error()}")
            found.append(message.value() or b"")
    finally:
        consumer.close()
    if not found:
        raise BenchError(f"there is nothing in {source}")
    return found


def carried_out(plan: Plan) -> Outcome:
    """The plan, in this process."""
    access, _ = kafka_given(plan.url, os.environ)
    settings = common(access, BOUNDS)
    messages = sample(settings, plan.source)
    admin = AdminClient(settings)
    topic = f"divandb.bench.{secrets.token_hex(8)}"
    admin.create_topics([NewTopic(topic, 1, -1)])[topic].result(ANSWER_S_MAX)
    try:
        loop = Loop(settings, topic, messages)
        try:
            loop.warm_up()
            print(READY, end="", flush=True)
            sys.stdin.readline()
            return loop.run(plan)
        finally:
            loop.close()
    finally:
        admin.delete_topics([topic])[topic].result(ANSWER_S_MAX)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(carried_out(Plan(**json.loads(sys.stdin.readline()))))))
    except (BenchError, KafkaException, ConfigFileError) as problem:
        sys.exit(str(problem))
