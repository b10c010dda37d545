"""The boards that the suite runs over. A new one needs a ``Backend`` here and an entry below."""

import asyncio
import contextlib
import inspect
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from deploy.kafka import broker as kafka_broker
from deploy.kafka.broker import Broker
from divandb.board.base import BoardLimits, EventBoard
from divandb.board.embedded import EmbeddedBoard
from divandb.board.embedded_server import BoardConfig, serving
from divandb.board.kafka import KafkaBoard
from divandb.board.kafka_client import KafkaBounds
from divandb.board.log import LogSettings
from divandb.board.memory import MemoryBoard
from divandb.clock import SystemClock, SystemRng
from divandb.config import BoardAccess, TopicSettings
from divandb.link import LinkBounds
from divandb.telemetry import LineLog

ADMIN = "admin"
LIMITS = BoardLimits(message_bytes_max=20_000, batch_bytes_max=60_000, answer_bytes_max=30_000)
TOPICS = TopicSettings(message_bytes_max=LIMITS.message_bytes_max)
LOG = LogSettings(segment_bytes_max=60_000, retention_bytes=200_000, recent_bytes_max=50_000)


class Backend(Protocol):
    """A kind of board, started for one test, and the misfortunes that the suite needs."""

    limits: BoardLimits

    async def __aenter__(self) -> "Backend":
        """Start the board."""
        ...

    async def __aexit__(self, *problem: object) -> None:
        """Stop it, and close all clients."""
        ...

    async def connect(self, principal: str) -> EventBoard:
        """A view for a principal, which is made known if it is not; ``ADMIN`` is an admin."""
        ...

    async def expire(self, topic: str, partition: int) -> None:
        """Let retention remove something from the beginning of a partition that is not empty."""
        ...

    async def remake(self, topic: str) -> None:
        """Let the topic's log be lost, and made again with as many partitions and rights."""
        ...

    async def stop(self) -> None:
        """Let the board be away."""
        ...

    async def start(self) -> None:
        """Let it be back, with all that it had."""
        ...


class Clients:
    """Views by principal, closed at the end."""

    def __init__(self) -> None:
        self._clients: list[EventBoard] = []

    def keep(self, client: EventBoard) -> EventBoard:
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class Memory:
    """The board in memory."""

    limits = LIMITS

    def __init__(self) -> None:
        self.board = MemoryBoard(SystemRng(), LIMITS)
        self._clients = Clients()

    async def __aenter__(self) -> "Memory":
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._clients.close()

    async def connect(self, principal: str) -> EventBoard:
        return self._clients.keep(self.board.connect(principal, is_admin=principal == ADMIN))

    async def expire(self, topic: str, partition: int) -> None:
        self.board.forget(topic, partition, self.board.partition(topic, partition).start + 1)

    async def remake(self, topic: str) -> None:
        self.board.lose(topic)

    async def stop(self) -> None:
        self.board.is_up = False

    async def start(self) -> None:
        self.board.is_up = True


class Embedded:
    """The embedded board, serving on a port of this machine from this event loop."""

    limits = LIMITS

    def __init__(self, folder: Path) -> None:
        self.config = BoardConfig(
            folder / "board", {ADMIN: secret_of(ADMIN)}, limits=LIMITS, log=LOG
        )
        self.port = 0
        self.secure: ssl.SSLContext | None = None
        """For TLS."""
        self._clients = Clients()
        self._known = {ADMIN}
        self._running: contextlib.AsyncExitStack | None = None

    async def __aenter__(self) -> "Embedded":
        await self.start()
        self._admin = await self.connect(ADMIN)
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self._clients.close()
        await self.stop()

    async def start(self) -> None:
        running = contextlib.AsyncExitStack()
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        running.callback(listener.close)
        clock = SystemClock()
        async with running:
            self.broker = await running.enter_async_context(
                serving(
                    self.config,
                    [listener],
                    clock,
                    SystemRng(),
                    LineLog("board", clock),
                    self.secure,
                )
            )
            self._running = running.pop_all()

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.aclose()
            self._running = None

    def client(self, principal: str, secret: str) -> EmbeddedBoard:
        """A view with this secret, right or wrong."""
        bounds = LinkBounds(answer_s_max=5.0, back_off_s_max=0.05)
        url = f"http://127.0.0.1:{self.port}"
        client = EmbeddedBoard(url, principal, secret, SystemRng(), LIMITS, bounds)
        self._clients.keep(client)
        return client

    async def connect(self, principal: str) -> EventBoard:
        if principal not in self._known:
            await self._admin.set_principal(principal, secret_of(principal))
            self._known.add(principal)
        return self.client(principal, secret_of(principal))

    async def expire(self, topic: str, partition: int) -> None:
        before = (await self._admin.describe(topic)).partitions[partition].start
        while (await self._admin.describe(topic)).partitions[partition].start == before:
            await self._admin.publish(topic, partition, [b"x" * 19_000] * 3)

    async def remake(self, topic: str) -> None:
        known = self.broker._topics[topic]
        partitions, access = len(known.logs), known.access
        await self.stop()
        shutil.rmtree(self.config.data / "topics" / topic)
        await self.start()
        await self._admin.create_topic(topic, partitions, access)


class Kafka:
    """The boards on a Kafka broker, which all tests share: its topics go before each of them."""

    limits = LIMITS
    bounds = KafkaBounds(answer_s_max=4.0, fetch_wait_ms=100)

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._clients = Clients()
        self._known = {ADMIN}

    async def __aenter__(self) -> "Kafka":
        self._admin = self.client(kafka_broker.ADMIN, self.broker.ensemble.secret)
        self._raw = AdminClient(self._admin._settings)
        await asyncio.to_thread(self._clear)
        return self

    def _clear(self) -> None:
        topics = [name for name in self._raw.list_topics(timeout=10).topics if name[0] != "_"]
        self._delete(topics)
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY,
            AclPermissionType.ANY,
        )  # fmt: skip
        for done in self._raw.delete_acls([everything]).values():
            done.result(10)
        # Kafka tells only those who may ask about a topic that there is none.
        asking = AclBinding(
            ResourceType.TOPIC, "nothing", ResourcePatternType.LITERAL, "User:m1", "*",
            AclOperation.DESCRIBE, AclPermissionType.ALLOW,
        )  # fmt: skip
        for done in self._raw.create_acls([asking]).values():
            done.result(10)

    def _delete(self, topics: list[str]) -> None:
        if topics:
            for done in self._raw.delete_topics(topics).values():
                done.result(10)
        while set(topics) & set(self._raw.list_topics(timeout=10).topics):
            time.sleep(0.01)

    async def __aexit__(self, *problem: object) -> None:
        await self._clients.close()
        await self.start()

    def client(self, principal: str, secret: str, bounds: KafkaBounds | None = None) -> KafkaBoard:
        """A view with this secret, right or wrong."""
        access = BoardAccess(self.broker.ensemble.url, principal, secret)
        client = KafkaBoard(access, LIMITS, bounds or self.bounds, TOPICS)
        self._clients.keep(client)
        return client

    async def connect(self, principal: str) -> EventBoard:
        if principal == ADMIN:
            return self.client(kafka_broker.ADMIN, self.broker.ensemble.secret)
        if principal not in self._known:
            await self._admin.set_principal(principal, secret_of(principal))
            self._known.add(principal)
        return self.client(principal, secret_of(principal))

    async def expire(self, topic: str, partition: int, count: int = 1) -> None:
        info = await self._admin.describe(topic)
        before = TopicPartition(topic, partition, info.partitions[partition].start + count)
        for done in self._raw.delete_records([before]).values():
            await asyncio.to_thread(done.result, 10)

    async def remake(self, topic: str) -> None:
        info = await self._admin.describe(topic)
        await asyncio.to_thread(self._delete, [topic])
        await self._admin.admin.make_topic(
            topic, len(info.partitions), self._admin._topic_settings(), 1
        )

    async def stop(self) -> None:
        await asyncio.to_thread(self.broker.stop)

    async def start(self) -> None:
        if self.broker.process is None:
            self.broker.start()
            await asyncio.to_thread(self.broker.await_up)


def secret_of(principal: str) -> str:
    """The secret of a principal in these tests."""
    return f"the secret of {principal}"


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Backend]] = {
    "memory": lambda request: Memory(),
    "embedded": lambda request: request.getfixturevalue("embedded"),
    "kafka": lambda request: request.getfixturevalue("kafka"),
}


@pytest.fixture(
    params=[
        "memory",
        "embedded",
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def backend(request: pytest.FixtureRequest) -> Backend:
    """A board of each kind; started in the test's event loop."""
    return BACKENDS[request.param](request)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka broker."""
    folder = tmp_path_factory.mktemp("kafka")
    with kafka_broker.brokers(folder, kafka_broker.planned()) as (started,):
        yield started


@pytest.fixture
def kafka(broker: Broker) -> Kafka:
    """The boards on Kafka; connected in the test's event loop."""
    return Kafka(broker)


@pytest.fixture
def embedded(tmp_path: Path) -> Embedded:
    """An embedded board; started in the test's event loop."""
    return Embedded(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine, within the boards among its arguments."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for argument in arguments.values():
                if hasattr(argument, "__aenter__"):
                    await stack.enter_async_context(argument)
            await test(**arguments)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in production
        runner.run(run())
    return True
