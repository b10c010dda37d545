"""The composition root: opens everything in order, serves, and closes it in reverse.

The one place that names concrete classes.
"""

import asyncio
import functools
import gc
import logging
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import uvicorn
import uvloop

from divandb import node as roles
from divandb import streams
from divandb.across import across
from divandb.auth.policy import UserContext
from divandb.board.across import BoardAcross
from divandb.board.base import BoardLimits, EventBoard
from divandb.board.embedded import EmbeddedBoard
from divandb.catalog import Catalog
from divandb.clock import HybridClock, Rng, SystemClock, SystemRng
from divandb.closings import Closings
from divandb.cluster import blobs, removal, trust
from divandb.cluster.blobs import Gatherer
from divandb.cluster.courier import Courier
from divandb.cluster.desk import Desk
from divandb.cluster.drain import Drain
from divandb.cluster.failover import Failover
from divandb.cluster.fetching import Fetcher, Giver
from divandb.cluster.findings import Findings
from divandb.cluster.needs import Needs
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress, Reach
from divandb.cluster.scanner import Scanner
from divandb.cluster.snapshots import Shelf
from divandb.cluster.verifier import Verifier
from divandb.cluster.versions import Versions
from divandb.cluster.warming import Warming
from divandb.cluster.witness import Witness
from divandb.commands import Job
from divandb.condition import Inside, condition
from divandb.config import MASTER, BoardAccess, Config, TlsFiles
from divandb.datadir import is_drained, set_drained
from divandb.delivery import Delivery
from divandb.designs import Designs
from divandb.entry import Entry
from divandb.errors import DivanError, Removed
from divandb.finder import Finder
from divandb.governor import Governor, Work
from divandb.hot import HotDocuments
from divandb.httpd import (
    attachments,
    bulk,
    changes,
    cluster,
    databases,
    divan,
    documents,
    find,
    functions,
    info,
    listing,
    replicate,
    session,
    snapshots,
    verify,
    views,
)
from divandb.httpd.app import App
from divandb.httpd.authenticator import Authenticator
from divandb.httpd.call import RouteTable
from divandb.httpd.door import Door
from divandb.httpd.forward import Forwarder
from divandb.httpd.lane import Lane
from divandb.httpd.peer_lane import PeerLane
from divandb.httpd.protocol import protocol_class
from divandb.httpd.services import Services
from divandb.httpd.standing import Standing
from divandb.indexer import Indexer
from divandb.joining import join
from divandb.judge import Judge
from divandb.link import Link
from divandb.master import Master
from divandb.node import Parts, Role
from divandb.pulse import Sockets, keep_listening, shut
from divandb.readers import Readers
from divandb.replica import Replica
from divandb.replication.end import ANSWER_S_MAX, End
from divandb.replication.inside import Hall
from divandb.replication.inside import Inside as Within
from divandb.replication.jobs import DATABASE, Jobs
from divandb.replication.placement import slot_for
from divandb.replication.request import Side
from divandb.replication.watch import OWN, SERVER, Watch
from divandb.senses import Machine, Senses
from divandb.settings import Settings
from divandb.store import arrivals, file, indexes, membership, outbox, succession
from divandb.store.checkpoints import Checkpointer, WalGauge
from divandb.store.ledger import Ledger
from divandb.store.spares import Spares
from divandb.store.upkeep import Upkeep, all_kept, no_board, tend
from divandb.store.writer import Writer
from divandb.telemetry import LineLog
from divandb.tenure import Tenure
from divandb.tls import HANDSHAKE_S_MAX, Tls
from divandb.viewer import Viewer
from divandb.views.engine import Engine, tended

TABLES: list[RouteTable] = [
    cluster.ROUTES, snapshots.ROUTES, verify.ROUTES, replicate.ROUTES,
    session.ROUTES, info.ROUTES, databases.ROUTES, bulk.ROUTES, listing.ROUTES, changes.ROUTES,
    find.ROUTES, views.ROUTES, functions.ROUTES,
    divan.ROUTES, documents.ROUTES, attachments.ROUTES,
]  # fmt: skip
SYSTEM_DATABASES = ("_users", "_replicator")
SWITCH_INTERVAL_S = 0.001
YOUNG_OBJECTS_MAX = 20_000
"""So many new objects that others may refer to before cycles among them are looked for."""
OFFLOAD_THREADS = 2
GRACE_S = 5
TICK_S = 1.0
REPLICATION_TIMEOUT = httpx.Timeout(ANSWER_S_MAX, connect=10.0)
FIRST_START_RETRY_S = 0.2


def serve(config: Config, sockets: Sockets) -> None:
    """Serve on these listening sockets until SIGTERM or SIGINT; then close in order.

    With TLS, certificates are read again at SIGHUP. Raises ``TlsError``.
    """
    # The writer's thread must not wait 5 ms for the loop to let go of the interpreter.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Hardly anything here is a cycle: Python's own 700 are a batch of writes.
    gc.set_threshold(YOUNG_OBJECTS_MAX)
    # What is wrong with a request its sender hears; a log that anybody can fill helps nobody.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvloop.run(_serve(config, sockets))


async def _serve(config: Config, sockets: Sockets) -> None:
    tls = Tls(config.tls)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(opened(config, tls.trusted))
        services = node.services
        app = node.app
        server = _Server(
            uvicorn.Config(
                app,
                http=protocol_class(
                    Lane(services), PeerLane(services), config.limits.header_bytes_max
                ),
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
            tls.served,
            sockets.shared,
        )
        if config.tls != TlsFiles():
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, functools.partial(tls.renew, services.log.event)
            )
        node.asked = lambda: server.server_state.total_requests
        services.log.event("serving", role=config.role, data=str(config.data))
        if sockets.shared is not None:
            sockets.pulse.beat()
            door = server.door
            beating = keep_listening(sockets.pulse, sockets.shared, lambda: not door.is_closed)
            await stack.enter_async_context(_background(beating))
        await server.serve(sockets.listening())


class _Server(uvicorn.Server):
    """Ends feeds before it waits for requests to end."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        secure: ssl.SSLContext | None,
        shared: socket.socket | None,
    ) -> None:
        """``shared`` is the socket on the clients' port."""
        super().__init__(config)
        self._services = services
        self._secure = secure
        self._shared = shared
        self._at_door: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        drain = services.drain
        self.door = Door(services.replica.wake_all, is_closed=drain.left() is not None)
        self.door.listen, self.door.shut = self._open_door, self._shut_door
        if shared is not None:
            drain.stands_at(self.door)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn knows no bound on the time of a handshake."""
        await super().startup([])
        for listener in sockets or []:
            if listener is not self._shared:
                await self._listen(listener, None)
        if self._shared is not None and not self.door.is_closed:
            await self._listen_at_door()

    async def _listen(self, listener: socket.socket, door: Door | None) -> asyncio.Server:
        make: Any = self.config.http_protocol_class
        protocol = functools.partial(
            make,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            door=door,
        )
        server = await asyncio.get_running_loop().create_server(
            protocol, sock=listener, ssl=self._secure, backlog=self.config.backlog,
            ssl_handshake_timeout=None if self._secure is None else HANDSHAKE_S_MAX,
        )  # fmt: skip
        self.servers.append(server)
        return server

    async def _listen_at_door(self) -> None:
        """A copy, that can be closed: a server over a socket that was shut turns without rest."""
        assert self._shared is not None
        self._at_door = await self._listen(self._shared.dup(), self.door)

    def _open_door(self) -> None:
        if self._at_door is None and not self.should_exit:
            self._opening = asyncio.ensure_future(self._listen_at_door())

    def _shut_door(self) -> None:
        server, self._at_door = self._at_door, None
        if server is not None:
            self.servers.remove(server)
            server.close()
        if self._shared is not None:
            shut(self._shared)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM or SIGINT: no new work, and feeds give their last line."""
        self._services.stopping.set()
        self._services.replica.wake_all()
        self.should_exit = True  # not more: uvicorn would raise the signal again before we close

    async def main_loop(self) -> None:
        """What uvicorn does ten times a second, once a second: twelve nodes would wake often."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._services.stopping.wait()


class Node:
    """A whole node but for its sockets."""

    def __init__(self, services: Services, app: App) -> None:
        self.services = services
        self.app = app
        self.asked: Callable[[], int] = lambda: 0
        """How many requests have come so far, but for those that watch the node."""


@asynccontextmanager
async def opened(config: Config, tls: ssl.SSLContext | None = None) -> AsyncIterator[Node]:
    """Open everything in order; close it in reverse. ``tls`` is for https URLs of others."""
    limits, clock, rng = config.limits, SystemClock(), SystemRng()
    started_ms = clock.wall_ms()
    log = LineLog(config.name, clock)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        pool = ThreadPoolExecutor(OFFLOAD_THREADS, thread_name_prefix="offload")
        stack.callback(pool.shutdown)

        async def offload(function: Any, *arguments: Any) -> Any:
            return await loop.run_in_executor(pool, function, *arguments)

        await join(config, clock, rng, log, lambda progress: None, tls)

        # The file
        is_master = config.role == MASTER
        disk = file.Disk(
            config.data / file.FILE_NAME, synchronous="FULL" if is_master else "NORMAL"
        )
        writing = file.open_for_writing(disk, cache_bytes=limits.sqlite_cache_bytes_max)
        broken = threading.Event()
        stack.callback(lambda: file.release(writing, sound=not broken.is_set()))
        identity = file.take_identity(writing, rng, config.keys.cluster)
        reading = file.connect(disk, readonly=True, cache_bytes=limits.sqlite_cache_bytes_max)
        stack.callback(reading.close)
        if membership.is_removed(reading, config.name):
            raise Removed(
                f"{config.name} was removed from its cluster. Its place is taken by a new node: "
                "`divandb add replica`."
            )

        index_path = config.data / indexes.FILE_NAME
        index_file = indexes.IndexFile(index_path, disk, limits.sqlite_cache_bytes_max)
        stack.callback(index_file.close)
        index_file.settle(identity)

        # Reads
        hlc = HybridClock(clock)
        ledger = Ledger(writing, config.slot, hlc, rng)

        def ends() -> Closings:
            return ledger.closings

        settings = Settings(config.keys.cookies)
        catalog = Catalog(reading, limits.revs_limit)
        replica = Replica(
            reading, catalog, identity.numbering, limits.feeds_max,
            HotDocuments(limits.hot_bytes_max), ends,
        )  # fmt: skip
        ledger.replacing = replica.hot.replacing
        tenure = Tenure(config, succession.owners(reading))
        tenure.is_drained = is_drained(config.data)
        own_slot = config.slot if tenure.is_owner else None
        progress = Progress(dict(ledger.vector), ledger.slots(), clock, own_slot, ends)
        authenticator = Authenticator(
            catalog, replica, settings, clock, rng, offload, config.admin, limits.login_queue_max
        )

        governor = Governor(limits)

        # Queries
        index_pool = ThreadPoolExecutor(1, thread_name_prefix="indexer")
        stack.callback(index_pool.shutdown)

        async def on_indexes(function: Any, *arguments: Any) -> Any:
            return await loop.run_in_executor(index_pool, function, *arguments)

        indexer = Indexer(
            index_file, catalog, on_indexes, governor.pace(Work.INDEXES), clock, log
        )  # fmt: skip
        readers = Readers(disk, index_path, limits.sqlite_cache_bytes_max)
        stack.callback(readers.close)
        finder = Finder(reading, readers, catalog, indexer, clock, limits)
        designs = Designs(reading)
        building, asking = (
            Engine(
                limits.function_memory_bytes_max, limits.function_ms_max,
                limits.function_idle_s_max, clock, log,
            )
            for _ in range(2)
        )  # fmt: skip
        viewer = Viewer(
            designs, readers, catalog, indexer, building, asking, clock, limits
        )  # fmt: skip

        # The writer
        gauge = WalGauge(writing)
        upkeep = Upkeep(ledger, gauge, clock, limits, all_kept if config.board else no_board)
        boarded = Reach(outbox.unpublished(reading))
        wrote = asyncio.Event()
        delivery = Delivery(
            loop, catalog, settings, authenticator, replica, designs, indexer.changed, upkeep,
            progress,
            boarded, wrote, lambda: ledger.origin, config.slot,
        )  # fmt: skip
        writer = Writer(
            Master(ledger, clock, limits.revs_limit),
            limits,
            delivery.hand_over,
            _fatal(log, broken),
            uvloop.new_event_loop,
        )
        writer.start()
        stack.callback(writer.stop)

        async def execute(step: Callable[[Ledger], Any], size_bytes: int) -> Any:
            return await _result(writer.submit, step, size_bytes)

        await execute(lambda ledger: arrivals.retry_holes(ledger, clock.wall_ms()), 0)

        # The other nodes
        peers = Peers(
            config, tenure, progress,
            lambda url: Link(
                url, {"authorization": trust.SCHEME + tenure.keys.token}, rng, tls=tls
            ),
            clock, log,
        )  # fmt: skip
        stack.push_async_callback(peers.close)
        peers.part_with(replica.removed())
        delivery.removed = lambda: peers.part_with(replica.removed())
        fetcher = Fetcher(peers, progress, execute, config.keys.token, clock, limits, log, tls=tls)
        peers.fetch = fetcher.fetch
        gatherer = Gatherer(
            peers, lambda: offload(blobs.scan, disk), lambda: ledger.unmet_blobs, execute, clock,
            log,
        )  # fmt: skip
        fetcher.caught_up = gatherer.notice
        spares = Spares(disk)
        stack.callback(spares.close)
        giver = Giver(spares, offload, governor.pace(Work.COPIES), clock, limits)
        shelf = Shelf(disk, clock, rng, limits, offload, log)
        stack.push_async_callback(shelf.close)
        await stack.enter_async_context(_background(shelf.tend()))
        findings, witness = Findings(clock, log), Witness(spares, offload)
        scanner = Scanner(
            spares, execute, offload, findings, governor.pace(Work.PROOFS), clock, limits, log
        )  # fmt: skip
        verifier = Verifier(
            config, spares, peers, scanner, findings, execute, offload,
            governor.pace(Work.PROOFS), clock, log,
        )  # fmt: skip
        witness.differs, witness.doubted = verifier.notice, scanner.doubt
        versions = Versions(peers, viewer, clock, limits, log)
        viewer.is_alone, viewer.is_last = versions.is_alone, versions.is_last
        needs = Needs(progress, peers, fetcher.fetch, limits)
        functions_pool = ThreadPoolExecutor(1, thread_name_prefix="functions")
        stack.callback(functions_pool.shutdown, cancel_futures=True)

        async def on_functions(function: Any, *arguments: Any) -> Any:
            return await loop.run_in_executor(functions_pool, function, *arguments)

        judge = Judge(designs, catalog, replica, asking, on_functions)
        desk = Desk(
            writer.submit, config.slot, progress, boarded if config.board else None, peers,
            needs, clock, limits, judge,
        )  # fmt: skip
        courier = Courier(peers, desk.submit, clock, limits)
        stack.push_async_callback(courier.close)
        desk.elsewhere = courier.submit
        # Without boards there is no other node that might ever own the slot.
        tenure.is_ready = config.board is None

        def submit(job: Job) -> None:
            (desk if tenure.serves else courier).submit(job)

        entry = Entry(
            submit, catalog, replica, hlc, rng, limits, offload, authenticator.password_settings,
            needs,
        )  # fmt: skip
        settings.refresh(replica.settings())

        standing = Standing(peers, progress, replica.contained, settings, limits, identity.cluster)
        forwarder = Forwarder(tls=tls)
        stack.push_async_callback(forwarder.close)
        role = Role()
        failover = Failover(
            config, tenure, peers, progress, role, fetcher.fetch, execute, clock, log
        )
        failover.succeeded = verifier.notice_group
        drain = Drain(
            tenure, failover, peers, role,
            lambda: writer.waiting_jobs + courier.waiting_jobs, lambda: outbox.rows(reading),
            functools.partial(set_drained, config.data), log,
        )  # fmt: skip
        inside = Inside(
            config, started_ms, progress, peers, role, fetcher, gatherer, shelf, verifier, indexer,
            viewer.switching, writer, courier, governor, replica.hot, drain, ledger.alarms, reading,
            clock,
        )  # fmt: skip
        warming = Warming(peers, replica, governor.pace(Work.COPIES), clock)
        hall = Hall()

        def end_of(side: Side, user: UserContext) -> End:
            transport = None if side.url else Within(hall, user)
            asking = streams.client(
                side.url, REPLICATION_TIMEOUT, connections_max=2, transport=transport, tls=tls
            )
            return End(side, asking, clock, rng)

        replications = Jobs(
            config.name, identity.cluster, end_of, clock, rng, limits,
            governor.pace(Work.COPIES), log,
        )  # fmt: skip
        watch = Watch(
            end_of(OWN, SERVER), replications, lambda: _version(catalog, DATABASE),
            lambda doc_id: _runs_here(doc_id, config, tenure, peers), identity.cluster, clock,
            limits, log,
        )  # fmt: skip
        services = Services(
            config=config,
            limits=limits,
            cluster=identity.cluster,
            catalog=catalog,
            replica=replica,
            designs=designs,
            finder=finder,
            viewer=viewer,
            functions=functools.partial(on_functions, asking.ask),
            entry=entry,
            settings=settings,
            authenticator=authenticator,
            clock=clock,
            rng=rng,
            log=log,
            stopping=asyncio.Event(),
            compact=upkeep.request,
            compacting=upkeep.compacting,
            tidy=lambda num: indexer.changed({num}),
            tasks=lambda: [*upkeep.tasks(), *indexer.tasks(), *replications.tasks()],
            replications=replications,
            watch=watch,
            progress=progress,
            peers=peers,
            standing=standing,
            snapshots=shelf,
            forwarder=forwarder,
            witness=witness,
            verifier=verifier,
            versions=versions,
            give=giver.give,
            carry_out=desk.submit,
            failover=failover,
            drain=drain,
            condition=lambda: condition(inside),
            is_ready=_from_then_on(lambda: _has_system_databases(catalog)),
            numbers=lambda: (
                upkeep.status()
                | {"write_queue_jobs": writer.waiting_jobs}
                | verifier.numbers()
                | governor.numbers()
                | {f"hot_{name}": count for name, count in replica.hot.status().items()}
            ),
            want=gatherer.want,
            hottest=warming.answer,
        )
        hall.app = App(services, TABLES)
        node = Node(services, hall.app)

        # What runs beside requests
        if config.board is not None:
            limits_of_board = BoardLimits()

            def opened_there(access: BoardAccess) -> EventBoard:
                return BoardAcross(open_board(access, rng, limits_of_board, tls), writer.loop)

            def on_either(step: Callable[[Ledger], Any], size_bytes: int) -> Any:
                is_inner = asyncio.get_running_loop() is writer.loop
                return _result(writer.submit, step, size_bytes, is_inner=is_inner)

            parts = Parts(
                config, tenure, opened_there, limits_of_board, reading, ledger.connection,
                functools.partial(across, writer.loop), on_either, lambda: ledger.has_gap,
                progress, boarded, delivery.published, wrote, peers,
                lambda: across(loop, fetcher.catch_up()), giver.give,
                functools.partial(setattr, ledger, "synchronous"), lambda: ledger.origin,
                governor, clock, rng, log,
            )  # fmt: skip
            peers.is_hasty = role.is_cut_off
            peers.is_fed = role.is_fed
            await stack.enter_async_context(_background(peers.run()))
            await stack.enter_async_context(_background(gatherer.run()))
            await stack.enter_async_context(_background(roles.run(parts, role)))
            await stack.enter_async_context(_background(failover.run()))
            await stack.enter_async_context(_background(warming.run()))
        if is_master:
            await stack.enter_async_context(
                _background(_first_start(entry, catalog, settings, rng))
            )
        leaving = asyncio.Event()
        peers.expelled = leaving.set
        farewell = functools.partial(
            removal.leave, tenure, role, execute, lambda: outbox.unpublished(reading), log
        )
        await stack.enter_async_context(_background(_leave(leaving, farewell)))
        await stack.enter_async_context(_background(verifier.run()))
        stack.callback(building.close)  # before the threads that may wait for them are
        stack.callback(asking.close)
        await stack.enter_async_context(_background(indexer.run()))
        await stack.enter_async_context(_background(versions.run()))
        senses = Senses(
            governor, lambda: node.asked(),
            lambda: progress.lag(limits.silent_slot_ms)[0], Machine(clock).look, log,
        )  # fmt: skip
        await stack.enter_async_context(_background(senses.run()))
        await stack.enter_async_context(_background(tended([building, asking], offload)))
        checkpointer = Checkpointer(disk, gauge, limits)
        stack.callback(checkpointer.close)
        await stack.enter_async_context(
            _background(
                tend(upkeep, checkpointer, execute, offload, governor.pace(Work.UPKEEP), log)
            )
        )
        stack.push_async_callback(replications.close)
        await stack.enter_async_context(_background(watch.run()))
        gc.freeze()
        yield node


def open_board(
    access: BoardAccess, rng: Rng, limits: BoardLimits, tls: ssl.SSLContext | None
) -> EventBoard:
    """The boards at this URL, as this principal sees them. ``tls`` is the embedded board's."""
    if access.is_kafka:
        # Costs memory and time that nobody else should pay.
        from divandb.board.kafka import KafkaBoard

        return KafkaBoard(access, limits)
    return EmbeddedBoard(access.url, access.principal, access.secret, rng, limits, tls=tls)


async def _result(
    submit: Callable[[Job], None], command: Any, size_bytes: int, *, is_inner: bool = False
) -> Any:
    """A command's result once its commit is through, its error raised. ``is_inner``: asked for on
    the writer's thread.
    """
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(job: Job) -> None:
        if answer.done():
            return
        if isinstance(job.result, Exception):
            answer.set_exception(job.result)
        else:
            answer.set_result(job.result)

    submit(Job(command, size_bytes, done, is_inner=is_inner))
    return await answer


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _first_start(entry: Entry, catalog: Catalog, settings: Settings, rng: SystemRng) -> None:
    """What a new cluster has from the beginning: a secret for cookies, and the system databases.

    Several masters may begin at once; what one refuses another has done, or is tried again.
    """
    while not (_has_secret(settings) and _has_system_databases(catalog)):
        with suppress(DivanError):
            if not _has_secret(settings):
                await entry.set_setting("chttpd_auth/secret", rng.token(16).hex().encode())
            for name in SYSTEM_DATABASES:
                if catalog.find(name) is None:
                    await entry.create_database(name, {})
        await asyncio.sleep(FIRST_START_RETRY_S)


async def _leave(leaving: asyncio.Event, farewell: Callable[[], Awaitable[None]]) -> None:
    """Once the node was removed: take leave, and end."""
    await leaving.wait()
    try:
        await farewell()
    finally:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _version(catalog: Catalog, name: str) -> object:
    """Another one whenever the database has changed; ``None`` without it."""
    known = catalog.find(name)
    return None if known is None else (known.generation, catalog.counters(known).seq)


def _runs_here(doc_id: str, config: Config, tenure: Tenure, peers: Peers) -> bool:
    """Is this the live master that runs the replication of this document?"""
    if not tenure.serves:
        return False
    others = [peer.member.slot for peer in peers.masters() if not peer.is_drained]
    return slot_for(doc_id, [config.slot, *others]) == config.slot


def _has_secret(settings: Settings) -> bool:
    return bool(settings.find("chttpd_auth", "secret"))


def _has_system_databases(catalog: Catalog) -> bool:
    return all(catalog.find(name) is not None for name in SYSTEM_DATABASES)


def _from_then_on(condition: Callable[[], bool]) -> Callable[[], bool]:
    """Whether ``condition`` holds or has ever held when it was asked for: a node that was ready
    stays ready, also when an admin drops what it had to wait for.
    """
    held = False

    def holds() -> bool:
        nonlocal held
        held = held or condition()
        return held

    return holds


def _fatal(log: LineLog, broken: threading.Event) -> Any:
    def fatal(fault: BaseException) -> None:
        """The writer cannot go on: stop the process, and let the supervisor start a sound one."""
        log.fault("the writer failed; the node stops", fault)
        broken.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    return fatal
