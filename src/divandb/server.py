"""The composition root: opens everything in order, serves, and closes it in reverse.

The one place that names concrete classes.
"""

import asyncio
import dataclasses
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvicorn
import uvloop

from divandb.auth import users
from divandb.catalog import Catalog
from divandb.clock import HybridClock, SystemClock, SystemRng
from divandb.config import Config
from divandb.entry import Entry
from divandb.httpd import attachments, bulk, changes, databases, documents, info, listing, session
from divandb.httpd.app import App
from divandb.httpd.authenticator import Authenticator
from divandb.httpd.call import RouteTable
from divandb.httpd.lane import Lane
from divandb.httpd.protocol import protocol_class
from divandb.httpd.services import Services
from divandb.master import Master
from divandb.replica import Replica
from divandb.settings import Settings
from divandb.store import file, registers
from divandb.store.checkpoints import Checkpointer, WalGauge
from divandb.store.ledger import Changes, Ledger
from divandb.store.upkeep import Upkeep, tend
from divandb.store.writer import Job, Writer
from divandb.telemetry import LineLog

TABLES: list[RouteTable] = [
    session.ROUTES, info.ROUTES, databases.ROUTES, bulk.ROUTES, listing.ROUTES, changes.ROUTES,
    documents.ROUTES, attachments.ROUTES,
]  # fmt: skip
SWITCH_INTERVAL_S = 0.001
OFFLOAD_THREADS = 2
GRACE_S = 5


def serve(config: Config, sockets: list[socket.socket]) -> None:
    """Serve on these listening sockets until SIGTERM or SIGINT; then close in order."""
    # The writer's thread must not wait 5 ms for the loop to let go of the interpreter.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is wrong with a request its sender hears; a log that anybody can fill helps nobody.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    uvloop.run(_serve(config, sockets))


async def _serve(config: Config, sockets: list[socket.socket]) -> None:
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(opened(config))
        app = App(services, TABLES)
        server = _Server(
            uvicorn.Config(
                app,
                http=protocol_class(Lane(services), config.limits.header_bytes_max),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.limits.connections_max,
                backlog=1024,
                timeout_keep_alive=config.limits.keep_alive_s,
                timeout_graceful_shutdown=GRACE_S,
                headers=[("server", f"DivanDB/{info.VERSION}")],
            ),
            services,
        )
        services.log.event("serving", data=str(config.data))
        await server.serve(sockets)


class _Server(uvicorn.Server):
    """Ends feeds before it waits for requests to end."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM or SIGINT: no new work, and feeds give their last line."""
        self._services.stopping.set()
        self._services.replica.wake_all()
        self.should_exit = True  # not more: uvicorn would raise the signal again before we close


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Services]:
    """A whole node but for its sockets."""
    limits, clock, rng = config.limits, SystemClock(), SystemRng()
    log = LineLog(config.name, clock)
    async with AsyncExitStack() as stack:
        disk = file.Disk(config.data / file.FILE_NAME)
        writing = file.open_for_writing(disk, cache_bytes=limits.sqlite_cache_bytes_max)
        broken = threading.Event()
        stack.callback(lambda: file.release(writing, sound=not broken.is_set()))
        identity = file.take_identity(writing, rng)
        reading = file.connect(disk, readonly=True, cache_bytes=limits.sqlite_cache_bytes_max)
        stack.callback(reading.close)

        hlc = HybridClock(clock)
        ledger = Ledger(writing, config.name, hlc, rng)
        settings = Settings()
        catalog = Catalog(reading, limits.revs_limit)
        replica = Replica(reading, catalog, identity.numbering, limits.feeds_max)

        pool = ThreadPoolExecutor(OFFLOAD_THREADS, thread_name_prefix="offload")
        stack.callback(pool.shutdown)
        loop = asyncio.get_running_loop()

        async def offload(function: Any, *arguments: Any) -> Any:
            return await loop.run_in_executor(pool, function, *arguments)

        authenticator = Authenticator(
            catalog, replica, settings, clock, rng, offload, config.admin, limits.login_queue_max
        )
        gauge = WalGauge(writing)
        upkeep = Upkeep(ledger, gauge, clock, limits)

        delivery = _Delivery(loop, catalog, settings, authenticator, replica, upkeep)
        writer = Writer(
            Master(ledger, clock, limits.revs_limit),
            limits,
            delivery.hand_over,
            _fatal(log, broken),
        )
        writer.start()
        stack.callback(writer.stop)
        entry = Entry(
            writer.submit,
            catalog,
            replica,
            hlc,
            rng,
            limits,
            offload,
            authenticator.password_settings,
        )
        settings.refresh(replica.settings())
        await _first_start(entry, catalog, settings, rng)

        checkpointer = Checkpointer(disk, gauge, limits)
        stack.callback(checkpointer.close)
        keeping = asyncio.create_task(tend(upkeep, checkpointer, entry.execute, offload, log))
        stack.push_async_callback(_cancelled, keeping)
        gc.freeze()
        yield Services(
            config=config,
            limits=limits,
            cluster=identity.cluster,
            catalog=catalog,
            replica=replica,
            entry=entry,
            settings=settings,
            authenticator=authenticator,
            clock=clock,
            rng=rng,
            log=log,
            stopping=asyncio.Event(),
            compact=upkeep.request,
            compacting=upkeep.compacting,
            tasks=upkeep.tasks,
            numbers=lambda: upkeep.status() | {"write_queue_jobs": writer.waiting_jobs},
        )


@dataclasses.dataclass(frozen=True)
class _Delivery:
    """Commits on their way from the writer's thread to everybody on the loop."""

    loop: asyncio.AbstractEventLoop
    catalog: Catalog
    settings: Settings
    authenticator: Authenticator
    replica: Replica
    upkeep: Upkeep

    def hand_over(self, jobs: list[Job], made: Changes | None) -> None:
        """On the writer's thread: one wake-up of the loop a batch."""
        self.loop.call_soon_threadsafe(self._answer, jobs, made)

    def _answer(self, jobs: list[Job], made: Changes | None) -> None:
        """What was committed shows everywhere before any client hears of it."""
        if made is not None:
            self._spread(made)
        for job in jobs:
            job.done(job.result)

    def _spread(self, made: Changes) -> None:
        if made.databases or made.registers:
            self.catalog.refresh(made)
        if any(kind == registers.SETTING for _, kind, _ in made.registers):
            self.settings.refresh(self.replica.settings())
            self.authenticator.admins_changed()
        known = self.catalog.find(users.USERS_DB)
        if made.databases or (known is not None and known.num in made.documents):
            self.authenticator.users_changed()
        self.replica.wake(made.documents | made.databases)
        self.upkeep.changed.set()


async def _first_start(entry: Entry, catalog: Catalog, settings: Settings, rng: SystemRng) -> None:
    """What a new cluster has from the beginning: a secret for cookies, and the system databases."""
    if not settings.find("chttpd_auth", "secret"):
        await entry.set_setting("chttpd_auth/secret", rng.token(16).hex().encode())
    for name in ("_users", "_replicator"):
        if catalog.find(name) is None:
            await entry.create_database(name, {})


def _fatal(log: LineLog, broken: threading.Event) -> Any:
    def fatal(fault: BaseException) -> None:
        """The writer cannot go on: stop the process, and let the supervisor start a sound one."""
        log.fault("the writer failed; the node stops", fault)
        broken.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    return fatal


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
