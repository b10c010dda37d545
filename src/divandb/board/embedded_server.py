"""The embedded board as a process: opens everything in order, serves, closes it in reverse.

It is started like a node: by a parent that hands over listening sockets, and ended by SIGTERM or
SIGINT.
"""

import asyncio
import dataclasses
import fcntl
import gc
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from divandb.board.access import SALT_BYTES, Credential, Principal, Principals
from divandb.board.base import Access, BoardLimits, TopicInfo
from divandb.board.broker import Broker, BrokerLimits, Offload
from divandb.board.disk import SystemDisk
from divandb.board.log import LogSettings
from divandb.board.routes import Routes
from divandb.board.topics import Shelf
from divandb.board.wire import Wire, WireLimits
from divandb.clock import Clock, Rng, SystemClock, SystemRng
from divandb.config import TlsFiles
from divandb.telemetry import LineLog, Log
from divandb.tls import HANDSHAKE_S_MAX, Tls

SWITCH_INTERVAL_S = 0.001
APPEND_THREADS = 4
READ_THREADS = 2
GRACE_S_MAX = 5.0
ARRANGE_RETRY_S = 5.0
BACKLOG_CONNECTIONS_MAX = 1024
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BoardConfig:
    """The embedded board's configuration."""

    data: Path
    """The folder that holds topics and principals."""
    admins: Mapping[str, str]
    """Name → secret of those who may create topics and principals, and read and write all."""
    name: str = "board"
    """What its log lines begin with."""
    arrange: "Arrange | None" = None
    """Makes topics and principals, before the board listens and at each SIGHUP."""
    tls: TlsFiles = dataclasses.field(default_factory=TlsFiles)
    """With a certificate: TLS only."""
    limits: BoardLimits = dataclasses.field(default_factory=BoardLimits)
    broker: BrokerLimits = dataclasses.field(default_factory=BrokerLimits)
    wire: WireLimits = dataclasses.field(default_factory=WireLimits)
    log: LogSettings = dataclasses.field(default_factory=LogSettings)


class Steward:
    """The board's own admin, within its process."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._principal = Principal("steward", is_admin=True)

    async def set_principal(self, name: str, secret: str) -> None:
        """Make a principal known, unless it is known by this secret."""
        known = self._broker.principals.known.get(name)
        if known is None or not known.fits(secret):
            await self._broker.set_principal(self._principal, name, secret)

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """Make a topic, or give one more partitions and these rights."""
        return await self._broker.create_topic(self._principal, topic, partitions, access, durable)


Arrange = Callable[[Steward], Awaitable[None]]


class InUse(Exception):
    """Another process has the data folder; the text is for the operator."""


def serve(config: BoardConfig, sockets: list[socket.socket]) -> None:
    """Serve on these listening sockets until SIGTERM or SIGINT; then close in order.

    Raises ``InUse``, ``topics.UnknownFormat``, ``TlsError``, ``OSError`` when it cannot start.
    """
    # An appending thread must not wait 5 ms for the loop to let go of the interpreter.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_serve(config, sockets))


async def _serve(config: BoardConfig, sockets: list[socket.socket]) -> None:
    clock = SystemClock()
    log = LineLog(config.name, clock)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tls = Tls(config.tls)
    async with serving(config, sockets, clock, SystemRng(), log, tls.served) as broker:
        log.event("serving", data=str(config.data))
        gc.collect()
        gc.freeze()
        if config.arrange is None:
            await stopping.wait()
            return
        due = asyncio.Event()

        def on_hangup() -> None:
            due.set()
            tls.renew(log.event)

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        arranging = asyncio.create_task(_arrange(config.arrange, Steward(broker), due, log))
        await stopping.wait()
        await _cancelled(arranging)


async def _arrange(arrange: Arrange, steward: Steward, due: asyncio.Event, log: Log) -> None:
    """Arrange the topics each time it is due, and again while it fails."""
    while True:
        await due.wait()
        due.clear()
        if not await _arranged(arrange, steward, log):
            await asyncio.sleep(ARRANGE_RETRY_S)
            due.set()


async def _arranged(arrange: Arrange, steward: Steward, log: Log) -> bool:
    try:
        await arrange(steward)
    except Exception as fault:
        log.event("topics cannot be arranged", fault=repr(fault))
        return False
    return True


@asynccontextmanager
async def serving(
    config: BoardConfig, sockets: list[socket.socket], clock: Clock, rng: Rng, log: Log,
    secure: ssl.SSLContext | None = None,
) -> AsyncIterator[Broker]:  # fmt: skip
    """A board that serves on these sockets, with TLS if it is ``secure``, while the context is
    open.
    """
    async with AsyncExitStack() as stack:
        _lock(config.data, stack)
        append = _offload(stack, APPEND_THREADS, "append")
        read = _offload(stack, READ_THREADS, "read")
        shelf = Shelf(SystemDisk(config.data), config.log, clock, rng, log)
        principals = _principals(config.admins, shelf, rng)
        broker = Broker(
            shelf, principals, config.limits, config.broker, clock, rng, append, read, log
        )
        stack.push_async_callback(broker.close)
        if config.arrange is not None:
            await _arranged(config.arrange, Steward(broker), log)
        wire = Wire(Routes(broker, config.wire.connections_per_principal_max), config.wire, log)
        for work in (broker.tend(), wire.sweep()):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        stack.push_async_callback(wire.close, GRACE_S_MAX)
        stack.callback(broker.stop_waiting)
        for listener in sockets:
            server = await asyncio.get_running_loop().create_server(
                wire.connection, sock=listener, ssl=secure, backlog=BACKLOG_CONNECTIONS_MAX,
                ssl_handshake_timeout=HANDSHAKE_S_MAX if secure else None,
            )  # fmt: skip
            stack.callback(server.close)
        yield broker


def _lock(data: Path, stack: AsyncExitStack) -> None:
    """Keep the folder to this process: two that append to one file would ruin it."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"another board uses {data}") from None


def _offload(stack: AsyncExitStack, threads: int, name: str) -> Offload:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    stack.callback(pool.shutdown)
    loop = asyncio.get_running_loop()

    def offload(function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return loop.run_in_executor(pool, function, *arguments)

    return offload


def _principals(admins: Mapping[str, str], shelf: Shelf, rng: Rng) -> Principals:
    made = {name: Credential.of(secret, rng.token(SALT_BYTES)) for name, secret in admins.items()}
    decoy = Credential.of(rng.token(SALT_BYTES).hex(), rng.token(SALT_BYTES))
    return Principals(made, shelf.principals(), decoy)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
