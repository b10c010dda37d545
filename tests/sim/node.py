"""A simulated node: the parts of ``divandb.server`` on simulated time, disk, board and network.

Everything is production code but the writer's thread, which here is a step of the loop, and the
sockets. ``start`` and ``crash`` may follow each other any number of times: the file stays.
"""

import asyncio
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divandb import document
from divandb import node as roles
from divandb.attachments import pack
from divandb.catalog import Catalog
from divandb.clock import HybridClock
from divandb.cluster import removal, topics, trust
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
from divandb.cluster.witness import Witness
from divandb.commands import (
    CreateDatabase,
    DropDatabase,
    Edit,
    Graft,
    Job,
    Purge,
    SetRegister,
    WriteDocuments,
)
from divandb.config import MASTER, REPLICA, BoardAccess, Config, Keys, Limits, Member
from divandb.datadir import is_drained, set_drained
from divandb.delivery import Delivery
from divandb.designs import Designs
from divandb.entry import Entry
from divandb.errors import DivanError
from divandb.governor import LOOK_S, Governor, Shortages, Work
from divandb.hot import HotDocuments
from divandb.httpd.app import App
from divandb.httpd.authenticator import Authenticator
from divandb.httpd.forward import Forwarder
from divandb.httpd.lane import Lane
from divandb.httpd.peer_lane import PeerLane
from divandb.httpd.services import Services
from divandb.httpd.standing import Standing, View
from divandb.master import Master
from divandb.node import Execute, Parts, Role
from divandb.replica import Replica
from divandb.revtree import Attachment, parse_rev
from divandb.senses import Senses
from divandb.server import TABLES, _result
from divandb.settings import Settings
from divandb.store import arrivals, documents, file, outbox, registers, succession
from divandb.store.checkpoints import Checkpointer, WalGauge
from divandb.store.documents import Row
from divandb.store.file import Disk
from divandb.store.ledger import Changes, Ledger
from divandb.store.spares import Spares
from divandb.store.upkeep import Upkeep, all_kept, tend
from divandb.store.writer import Writer
from divandb.tenure import Owner, Tenure
from tests.sim import front
from tests.sim.board import LIMITS
from tests.sim.checkers import LagIsNoLess
from tests.sim.disk import VFS_NAME, Platter
from tests.sim.network import Exchange, SimLink, SimTransport
from tests.sim.world import Process, SimClock
from tests.stores import SeededRng

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

CACHE_BYTES = 2**18
COMMIT_S_MAX = 0.002
SECRET = bytes(32)
ADMIN = "admin:pw"


class Killed(BaseException):
    """The process dies here."""


class KeptLog:
    """Nobody reads a simulation's log but when it fails; what should not have happened fails it."""

    def __init__(self, bugs: list[BaseException]) -> None:
        self.lines: list[str] = []
        self._bugs = bugs

    def event(self, what: str, **values: object) -> None:
        self.lines.append(f"{what} {values}")

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        self.lines.append(f"{what} {fault!r} {values}")
        self._bugs.append(fault)


class QuickSettings(Settings):
    """Passwords are hashed in one round: nobody guesses them here."""

    def number(self, section: str, key: str, low: int, high: int) -> int:
        return 1 if key == "iterations" else super().number(section, key, low, high)


class Told(Master):
    """A master whose writes are told once they are committed."""

    def __init__(self, node: "Node", ledger: Ledger, *args: Any) -> None:
        super().__init__(ledger, *args)
        self._node = node
        self._told: list[tuple[Any, Any, Any, Any]] = []

    def execute(self, command: Any) -> Any:
        before = self._ledger.newest
        result = super().execute(command)
        after = self._ledger.newest
        if after is not None and after != before:
            self._told.append((command, result, before, after))
        return result

    def commit(self) -> Changes:
        changes = super().commit()
        told, self._told = self._told, []
        for one in told:
            self._node.cluster.wrote(self._node, *one)
        if told and self._node.dies_after_commit:
            raise Killed
        return changes

    def rollback(self) -> None:
        self._told.clear()
        super().rollback()


class ToldView(View):
    """With whom the node took for owners then: of others an answer says nothing."""

    owners: dict[str, Owner]


class ToldStanding(Standing):
    """What is said of the view's age is judged, each time that it is said."""

    def __init__(self, node: "Node", *args: Any) -> None:
        super().__init__(*args)
        self._node = node
        self._kept: ToldView | None = None

    def view(self) -> View:
        found = ToldView(*super().view())
        found.owners = dict(self._node.tenure.owners)
        return found

    def age(self) -> list[tuple[str, str]]:
        said = super().age()
        if self._kept is not None:
            self._tell(said, self._kept)
        return said

    def age_of(self, view: View, kept_s: float = 0.0) -> list[tuple[str, str]]:
        said = super().age_of(view, kept_s)
        assert isinstance(view, ToldView)
        if kept_s:
            self._kept = view
        else:
            self._tell(said, view)
        return said

    def _tell(self, said: list[tuple[str, str]], view: ToldView) -> None:
        self._node.cluster.told(LagIsNoLess, self._node, said, view.owners)


class SimWriter(Writer):
    """The writer with its queue and group commit, as steps of the loop."""

    def __init__(self, node: "Node", work: Master, deliver: Any) -> None:
        super().__init__(work, node.config.limits, deliver, _fail)
        self._node = node

    def _call(self, is_inner: bool) -> None:
        wait_s = self._node.cluster.rng.random() * self._node.commit_s_max
        asyncio.get_running_loop().call_later(wait_s, self._turn)

    def _turn(self) -> None:
        self._is_due = False
        if not self.waiting_jobs or not self._node.up:
            return
        batch = self._take()
        try:
            jobs, made = self.run(batch)
        except Killed:
            self._node.crash()
            return
        self._node.cluster.committed(self._node, made)
        self._deliver(jobs, made)
        if self.waiting_jobs and not self._is_due:
            self._is_due = True
            self._call(is_inner=True)


def _fail(fault: BaseException) -> None:
    raise fault


class Node:
    """One node: its file, and while it runs its process."""

    def __init__(self, cluster: "Cluster", member: Member, folder: Path) -> None:
        self.cluster = cluster
        self.member = member
        self.name = member.name
        self.is_master = member.role == MASTER
        self.rng = SeededRng(cluster.rng.randrange(2**32))
        self.clock = SimClock(cluster.loop)
        self.log = KeptLog(cluster.bugs)
        self.folder = folder / member.name
        self.folder.mkdir()
        self.platter = Platter(self.folder)
        self.disk = Disk(
            self.folder / file.FILE_NAME, VFS_NAME, "FULL" if self.is_master else "NORMAL"
        )
        self.process = Process(cluster.loop, self.name)
        self.process.kill()
        self.commit_s_max = COMMIT_S_MAX
        self.ends_when_removed = False
        """Or does it go on to refuse its clients, as one whose end takes its time?"""
        self.dies_after_commit = False
        """Is it killed after its next write, before anybody hears of that?"""
        self.may_forget = cluster.loop.now_s > 0
        """May its file lack what it contained before, or what others have known for long?"""
        self.site = cluster.network.add(self.name)
        self.site.serve = lambda exchange: front.answer(self, exchange)
        self.site.serve_at_once = lambda exchange: front.answer_peer(self, exchange)
        self.config: Config

    @property
    def up(self) -> bool:
        return self.process.is_alive

    @property
    def credential(self) -> bytes:
        """The ``Authorization`` header by which other nodes know it."""
        config = _config(self, self.cluster.members, self.cluster.revs_limit)
        return (trust.SCHEME + config.keys.token).encode()

    # Running

    def start(self) -> None:
        """Open the file and begin; after a crash, what the file has is what there is."""
        cluster = self.cluster
        self.dies_after_commit = False
        self.process = self.site.process = Process(cluster.loop, self.name)
        cluster.processes.append(self.process)
        self.config = _config(self, cluster.members, cluster.revs_limit)
        _open_file(self)
        _open_reads(self)
        _open_writer(self)
        _open_peers(self)
        _open_front(self)
        self.process.start(self._run())

    async def _run(self) -> None:
        try:
            await self._run_role()
        except Exception as fault:
            self.log.fault("the role ended", fault)

    async def _run_role(self) -> None:
        await self.execute_here(lambda ledger: arrivals.retry_holes(ledger, self.clock.wall_ms()))
        parts = _parts(self)
        self.peers.is_hasty = self.role.is_cut_off
        self.peers.is_fed = self.role.is_fed
        beating = asyncio.ensure_future(self.peers.run())
        succeeding = asyncio.ensure_future(self.failover.run())
        verifying = asyncio.ensure_future(self.verifier.run())
        tending = asyncio.ensure_future(
            tend(
                self.upkeep,
                self._checkpointer,
                _executing(self),
                self._offload,
                self.governor.pace(Work.UPKEEP),
                self.log,
            )
        )
        senses = Senses(
            self.governor, lambda: self.requests,
            lambda: self.progress.lag(self.config.limits.silent_slot_ms)[0], Shortages, self.log,
            probe_s=LOOK_S,
        )  # fmt: skip
        looking = asyncio.ensure_future(senses.run())
        expelled = asyncio.Event()
        self.peers.expelled = expelled.set
        leaving = asyncio.ensure_future(self._leave(expelled))
        try:
            await roles.run(parts, self.role)
        finally:
            looking.cancel()
            leaving.cancel()
            beating.cancel()
            succeeding.cancel()
            verifying.cancel()
            tending.cancel()

    async def _leave(self, expelled: asyncio.Event) -> None:
        await expelled.wait()
        await removal.leave(
            self.tenure, self.role, _executing(self), lambda: outbox.unpublished(self.reading),
            self.log,
        )  # fmt: skip
        if self.ends_when_removed:
            self.crash()

    async def _offload(self, function: Any, *arguments: Any) -> Any:
        """As long as another thread may take."""
        await asyncio.sleep(self.cluster.rng.random() * 0.001)
        return function(*arguments)

    def crash(self, *, power: bool = False) -> None:
        """Gone, in the middle of whatever it did; ``power``: what was not fsynced may be, too."""
        self.process.kill()
        files = self.platter.image()
        if power:
            files = self.platter.power_cut(files, self.cluster.rng)
            self.may_forget = True
        with self.platter.with_room():  # what a connection does that closes in order is undone
            self.spares.close()
            for connection in (self.connection, self.reading):
                connection.close()
            self._checkpointer.close()
        self.platter.put_back(files)

    def restart(self) -> None:
        """Killed, and at once there again."""
        self.crash()
        self.cluster.start(self)

    def lose_file(self) -> None:
        """Its disk is gone; the next start finds an empty one."""
        self.platter.put_back({})
        self.may_forget = True

    def stop(self) -> None:
        """SIGSTOP: until ``go_on`` nothing happens here."""
        self.process.stop()

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.go_on()

    def die_at_statement(self, number: int) -> None:
        """Be killed just before the SQL statement of that number, of those in transactions."""
        left = number

        def count(cursor: Any, sql: str, bindings: Any) -> bool:
            nonlocal left
            left -= self.connection.in_transaction
            if left < 0:
                raise Killed
            return True

        self.connection.exec_trace = count

    # What happens in its process

    async def execute_here(self, command: Any) -> Any:
        return await _result(self.writer.submit, command, 0)

    async def execute(self, command: Any) -> Any:
        """Carry out a command in a transaction; raises ``Gone``."""
        return await self.process.do(self.execute_here(command))

    async def catch_up(self) -> bool:
        """Take what a live peer has beyond our vector; was there one?"""
        return await self.process.do(self.fetcher.catch_up())

    # What clients do, at a master itself

    async def create(self, name: str) -> None:
        known = self.ledger.register.get(name)
        await self.execute(CreateDatabase(name, (known.generation if known else 0) + 1, "{}"))

    async def drop(self, name: str) -> None:
        await self.execute(DropDatabase(name, self.ledger.register[name].generation))

    def edit(
        self, doc_id: str, value: object, *, parent: str | None = None, deleted: bool = False,
        blob: bytes | None = None,
    ) -> Edit:  # fmt: skip
        """An edit as an entry node fixes it."""
        members = {"v": value}
        held = (_attachment(blob),) if blob is not None else ()
        packed = document.dump_members(members)
        rev_hash = document.rev_hash(parent, deleted, members, held)
        pos = parse_rev(parent)[0] + 1 if parent else 1
        body = document.body_bytes(doc_id, f"{pos}-{rev_hash}", deleted, packed, held)
        digest = document.content_digest(packed, deleted, held)
        blobs = ((held[0].blob, blob),) if blob is not None else ()
        return Edit(doc_id, parent, rev_hash, deleted, digest, body, held, blobs)

    async def put(
        self, name: str, doc_id: str, value: object, *, parent: str | None = None,
        deleted: bool = False,
    ) -> str:  # fmt: skip
        """Edit a document; the new revision. Raises ``DivanError`` when refused."""
        return await self.write(name, self.edit(doc_id, value, parent=parent, deleted=deleted))

    async def put_attachment(self, name: str, doc_id: str, data: bytes) -> str:
        """A new document with one attachment."""
        return await self.write(name, self.edit(doc_id, 1, blob=data))

    async def set_register(self, name: str, kind: str, key: str, value: bytes) -> None:
        """Set a last-writer-wins value, stamped as an entry node here stamps it."""
        generation = self.ledger.register[name].generation
        stamp = self.ledger.stamp()
        await self.execute(SetRegister(name, generation, kind, key, value, stamp))

    def register(self, name: str, kind: str, key: str) -> bytes | None:
        """What a register holds here."""
        return registers.value(self.connection, self.ledger.register[name].num, kind, key)

    async def graft(self, name: str, doc_id: str, path: str, value: object) -> str:
        """Store a revision made elsewhere: ``path`` is `3-c,b,a`."""
        start, _, hashes = path.partition("-")
        ancestry = tuple(hashes.split(","))
        packed = document.dump_members({"v": value})
        body = document.body_bytes(doc_id, f"{start}-{ancestry[0]}", False, packed, ())
        digest = document.content_digest(packed, False, ())
        return await self.write(name, Graft(doc_id, int(start), ancestry, False, digest, body))

    async def purge(self, name: str, doc_id: str, rev: str) -> None:
        generation = self.ledger.register[name].generation
        await self.execute(Purge(name, generation, {doc_id: [rev]}))

    async def write(self, name: str, write: Edit | Graft, *, repeat: bool = False) -> str:
        """Have a write carried out; ``repeat`` marks an attempt after the first."""
        generation = self.ledger.register[name].generation
        (result,) = await self.execute(WriteDocuments(name, generation, [write], repeat))
        if isinstance(result, DivanError):
            raise result
        rev: str = result
        return rev

    # What can be seen

    def row(self, name: str, doc_id: str) -> Row:
        """The document's state here."""
        return documents.read_row(self.connection, self.ledger.register[name].num, doc_id)

    def leaves(self, name: str, doc_id: str) -> list[str]:
        """Revisions shown, the winner first; none where the database is not known."""
        if name not in self.ledger.register:
            return []
        return [leaf.rev for leaf in self.row(name, doc_id).document.shown()]

    def count(self, table: str) -> int:
        """How many rows a table has."""
        number: Any = self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        found: int = number[0]
        return found

    @property
    def vector(self) -> dict[int, int]:
        """What is contained, without what is not."""
        return {origin: oseq for origin, oseq in self.ledger.vector.items() if oseq}


def _executing(node: Node) -> Execute:
    return lambda step, size: _result(node.writer.submit, step, size)


def _parts(node: Node) -> Parts:
    return Parts(
        config=node.config, tenure=node.tenure,
        open_board=lambda access: node.cluster.board.connect(node.name, access.principal),
        limits=LIMITS,
        reading=node.reading, writing=node.reading, there=lambda work: work,
        execute=lambda step, size: _result(node.writer.submit, step, size, is_inner=True),
        has_gap=lambda: node.ledger.has_gap, progress=node.progress, boarded=node.boarded,
        published=node._delivery.published,
        wrote=node._wrote, peers=node.peers, catch_up=node.fetcher.catch_up,
        give=node.giver.give,
        set_synchronous=functools.partial(setattr, node.ledger, "synchronous"),
        own_origin=lambda: node.ledger.origin,
        governor=node.governor, clock=node.clock, rng=node.rng, log=node.log,
    )  # fmt: skip


def _attachment(data: bytes) -> Attachment:
    return pack(data, "application/octet-stream").attachment("a", "application/octet-stream", 1)


def _config(node: Node, members: list[Member], revs_limit: int) -> Config:
    me = node.member
    keys: Keys = trust.keys_of(SECRET, me.name, me.role, me.slot, is_master=node.is_master)
    return Config(
        data=node.folder, name=me.name, role=me.role, slot=me.slot, url=me.url, admin=ADMIN,
        board=BoardAccess("sim", topics.principal_of(me), ""), keys=keys,
        spare=trust.spare_of(SECRET, me),
        seeds=tuple(other for other in members if other.name != me.name),
        limits=dataclasses.replace(node.cluster.limits, revs_limit=revs_limit),
    )  # fmt: skip


# The parts, opened in the order of ``divandb.server.opened``


def _open_file(node: Node) -> None:
    node.connection = file.open_for_writing(node.disk, cache_bytes=CACHE_BYTES)
    node.identity = file.take_identity(node.connection, node.rng, node.config.keys.cluster)
    node.reading = file.connect(node.disk, readonly=True, cache_bytes=CACHE_BYTES)


def _open_reads(node: Node) -> None:
    config = node.config
    node.hlc = HybridClock(node.clock)
    node.ledger = Ledger(node.connection, config.slot, node.hlc, node.rng)
    node.settings = QuickSettings(config.keys.cookies)
    node.catalog = Catalog(node.reading, config.limits.revs_limit)
    node.replica = Replica(
        node.reading, node.catalog, node.identity.numbering, config.limits.feeds_max,
        HotDocuments(config.limits.hot_bytes_max), lambda: node.ledger.closings,
    )  # fmt: skip
    node.ledger.replacing = node.replica.hot.replacing
    node.tenure = Tenure(config, succession.owners(node.reading))
    node.governor, node.requests = Governor(config.limits), 0
    node.progress = Progress(
        dict(node.ledger.vector), node.ledger.slots(), node.clock,
        config.slot if node.tenure.is_owner else None, lambda: node.ledger.closings,
    )  # fmt: skip
    node.authenticator = Authenticator(
        node.catalog, node.replica, node.settings, node.clock, node.rng, node._offload,
        config.admin, config.limits.login_queue_max,
    )  # fmt: skip


def _open_writer(node: Node) -> None:
    limits = node.config.limits
    gauge = WalGauge(node.connection)
    node.upkeep = Upkeep(node.ledger, gauge, node.clock, limits, all_kept)
    node._checkpointer = Checkpointer(node.disk, gauge, limits)
    node.boarded = Reach(outbox.unpublished(node.reading))
    node._wrote = asyncio.Event()
    node.designs = Designs(node.reading)
    node._delivery = delivery = Delivery(
        node.cluster.loop, node.catalog, node.settings, node.authenticator, node.replica,
        node.designs,
        lambda databases: None,  # nobody queries here
        node.upkeep, node.progress, node.boarded, node._wrote, lambda: node.ledger.origin,
        node.config.slot,
    )  # fmt: skip
    node.writer = SimWriter(
        node, Told(node, node.ledger, node.clock, limits.revs_limit), delivery.hand_over
    )


def _open_peers(node: Node) -> None:
    config, limits, clock, log = node.config, node.config.limits, node.clock, node.log
    network = node.cluster.network
    transport = SimTransport(network, node.name)
    node.peers = Peers(
        config, node.tenure, node.progress,
        lambda url: SimLink(
            network, node.name, url, {"authorization": trust.SCHEME + node.tenure.keys.token}
        ),
        clock, log,
    )  # fmt: skip

    async def execute(step: Any, size_bytes: int) -> Any:
        return await _result(node.writer.submit, step, size_bytes)

    node.peers.part_with(node.replica.removed())
    node._delivery.removed = lambda: node.peers.part_with(node.replica.removed())
    node.fetcher = Fetcher(
        node.peers, node.progress, execute, config.keys.token, clock, limits, log, transport
    )
    node.peers.fetch = node.fetcher.fetch
    node.spares = Spares(node.disk)
    node.giver = Giver(node.spares, node._offload, node.governor.pace(Work.COPIES), clock, limits)
    node.shelf = Shelf(node.disk, clock, node.rng, limits, node._offload, log)
    node.forwarder = Forwarder(transport)
    node.findings, node.witness = Findings(clock, log), Witness(node.spares, node._offload)
    node.scanner = Scanner(
        node.spares, execute, node._offload, node.findings, node.governor.pace(Work.PROOFS), clock,
        limits, log,
    )  # fmt: skip
    node.verifier = Verifier(
        config, node.spares, node.peers, node.scanner, node.findings, execute, node._offload,
        node.governor.pace(Work.PROOFS), clock, log,
    )  # fmt: skip
    node.witness.differs, node.witness.doubted = node.verifier.notice, node.scanner.doubt


class NoFunctions:
    """Design documents without functions: there are no workers here."""

    def is_asked(self, command: WriteDocuments) -> bool:
        return False

    async def refusals(self, command: WriteDocuments) -> dict[int, DivanError]:
        raise AssertionError("nobody asks")


def _open_front(node: Node) -> None:
    config, limits = node.config, node.config.limits
    needs = Needs(node.progress, node.peers, node.fetcher.fetch, limits)
    desk = Desk(
        node.writer.submit, config.slot, node.progress, node.boarded, node.peers,
        needs, node.clock, limits, NoFunctions(),
    )  # fmt: skip
    courier = Courier(node.peers, desk.submit, node.clock, limits)
    desk.elsewhere = courier.submit

    def submit(job: Job) -> None:
        (desk if node.tenure.serves else courier).submit(job)

    node.role = Role()
    node.failover = Failover(
        config, node.tenure, node.peers, node.progress, node.role, node.fetcher.fetch,
        lambda step, size_bytes: _result(node.writer.submit, step, size_bytes), node.clock,
        node.log,
    )  # fmt: skip
    node.tenure.is_drained = is_drained(node.folder)
    node.failover.succeeded = node.verifier.notice_group
    drain = Drain(
        node.tenure, node.failover, node.peers, node.role,
        lambda: node.writer.waiting_jobs + courier.waiting_jobs,
        lambda: outbox.rows(node.reading), functools.partial(set_drained, node.folder), node.log,
    )  # fmt: skip
    node.entry = Entry(
        submit, node.catalog, node.replica, node.hlc, node.rng, limits, node._offload,
        node.authenticator.password_settings, needs,
    )  # fmt: skip
    node.settings.refresh(node.replica.settings())
    node.standing = ToldStanding(
        node, node.peers, node.progress, node.replica.contained, node.settings, limits,
        node.identity.cluster,
    )  # fmt: skip
    node.services = Services(
        config=config, limits=limits, cluster=node.identity.cluster, catalog=node.catalog,
        replica=node.replica, entry=node.entry, settings=node.settings,
        authenticator=node.authenticator, clock=node.clock, rng=node.rng, log=node.log,
        stopping=asyncio.Event(), compact=node.upkeep.request,
        compacting=node.upkeep.compacting, tasks=node.upkeep.tasks, progress=node.progress,
        peers=node.peers, standing=node.standing, snapshots=node.shelf,
        forwarder=node.forwarder, witness=node.witness, verifier=node.verifier,
        give=node.giver.give, replications=None, watch=None,
        carry_out=desk.submit, finder=None, failover=node.failover, drain=drain, condition=dict,
        is_ready=lambda: True, numbers=dict,
        designs=node.designs, viewer=None, versions=None, functions=None, tidy=lambda num: None,
    )  # fmt: skip
    node.app = App(node.services, TABLES)
    node.lane = Lane(node.services)
    node.peer_lane = PeerLane(node.services)


__all__ = ["ADMIN", "MASTER", "REPLICA", "Exchange", "Killed", "Limits", "Node"]
