"""Masters in one process: production code on simulated time, a simulated board and network."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from divandb import document
from divandb.applier import Applier
from divandb.attachments import pack
from divandb.clock import HybridClock
from divandb.commands import (
    CreateDatabase,
    DropDatabase,
    Edit,
    Graft,
    Purge,
    SetRegister,
    WriteDocuments,
)
from divandb.config import Limits
from divandb.errors import DivanError
from divandb.master import Master
from divandb.publisher import Publisher
from divandb.revtree import Attachment, parse_rev
from divandb.store import arrivals, catchup, documents, file, outbox, positions, registers
from divandb.store.catchup import End
from divandb.store.documents import Row
from divandb.store.file import Disk
from divandb.store.ledger import Ledger
from divandb.store.positions import Position
from divandb.store.writer import Job, Writer
from tests.sim.board import Away, Faults, Partition, SimBoard
from tests.sim.world import SimClock, SimLoop
from tests.stores import SeededRng


class QuietLog:
    """Nobody reads a simulation's log but when it fails."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append(f"{what} {values}")

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        self.lines.append(f"{what} {fault!r} {values}")


class Node:
    """A master: its file, and the loops that publish and apply."""

    def __init__(self, cluster: "Cluster", index: int, folder: Path) -> None:
        self.cluster = cluster
        self.index = index
        self.name = f"m{index + 1}"
        self.rng = SeededRng(cluster.rng.randrange(2**32))
        self.clock = SimClock(cluster.loop)
        self.log = QuietLog()
        self.disk = Disk(folder / f"{self.name}.sqlite", synchronous="OFF")
        self.up = False
        self.wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Open the file and begin; after a crash, what the file has is what there is."""
        self.connection = file.open_for_writing(self.disk, cache_bytes=2**20)
        file.take_identity(self.connection, self.rng)
        self.ledger = Ledger(self.connection, self.name, HybridClock(self.clock), self.rng)
        master = Master(self.ledger, self.clock, self.cluster.revs_limit)
        self._writer = Writer(master, Limits(), lambda jobs, changes: None, _fail)
        self.up = True
        retry = Job(
            lambda ledger: arrivals.retry_holes(ledger, self.clock.wall_ms()),
            0,
            lambda result: None,
        )
        self._writer.run([retry])
        loops = [self._publisher(), *(self._applier(other) for other in range(self.cluster.size))]
        self._tasks = [asyncio.ensure_future(loop.run()) for loop in loops]

    def _publisher(self) -> Publisher:
        return Publisher(
            lambda after, rows_max: outbox.page(self.connection, after, rows_max),
            lambda messages: self.cluster.board.publish(self.index, messages),
            lambda upto: self.execute(lambda ledger: outbox.trim(ledger.connection, upto)),
            self.wake, self.rng, self.log,
        )  # fmt: skip

    def _applier(self, partition: int) -> Applier:
        source = Partition(self.cluster.board, partition)
        position = positions.read(self.connection, source.board, source.topic, partition)

        async def take(messages: list[bytes], reached: Position) -> None:
            def step(ledger: Ledger) -> None:
                arrivals.take(ledger, messages, self.clock.wall_ms())
                positions.write(ledger.connection, reached)

            await self.execute(step)
            self.cluster.applied(self)

        return Applier(source, position, take, self._has_gap, self.catch_up, self.rng, self.log)

    def _has_gap(self) -> bool:
        return bool(self.connection.execute("SELECT 1 FROM ahead LIMIT 1").fetchall())

    async def catch_up(self) -> bool:
        """Take what a live peer has beyond our vector; was there one?"""
        peers = [n for n in self.cluster.nodes if n is not self and self.cluster.linked(self, n)]
        if not peers:
            return False
        peer = self.cluster.rng.choice(peers)
        answer = catchup.beyond(peer.connection, dict(self.ledger.vector))
        try:
            messages = []
            for item in answer:
                if isinstance(item, End):
                    end = item
                else:
                    messages.append(item)
        finally:
            answer.close()
        holes = 0
        for start in range(0, len(messages), 10):
            page = messages[start : start + 10]
            await asyncio.sleep(self.cluster.rng.random() * 0.01)
            if not self.cluster.linked(self, peer):
                return False  # half an answer: it counts for nothing
            holes += await self.execute(lambda ledger, page=page: arrivals.take(ledger, page, 0))
        if holes:
            return False  # what could not be applied is not contained
        await self.execute(lambda ledger: catchup.finish(ledger, end, self.clock.wall_ms()))
        self.cluster.applied(self)
        return True

    def crash(self) -> None:
        """Gone, in the middle of whatever it did."""
        self.up = False
        for task in self._tasks:
            task.cancel()
        self.connection.close()

    async def execute(self, command: Any) -> Any:
        """Carry out a command in a transaction of its own."""
        if not self.up:
            raise Away(f"{self.name} is down")
        job = Job(command, 0, lambda result: None)
        self._writer.run([job])
        self.wake.set()
        if isinstance(job.result, Exception):
            raise job.result
        return job.result

    # What clients do

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

    def row(self, name: str, doc_id: str) -> Row:
        """The document's state here."""
        return documents.read_row(self.connection, self.ledger.register[name].num, doc_id)

    def leaves(self, name: str, doc_id: str) -> list[str]:
        """Revisions shown, the winner first."""
        return [leaf.rev for leaf in self.row(name, doc_id).document.shown()]


class Cluster:
    """Some masters, a board, and links between them."""

    def __init__(
        self, loop: SimLoop, folder: Path, seed: int, *, size: int = 3, revs_limit: int = 1000
    ) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.size = size
        self.revs_limit = revs_limit
        self.faults = Faults()
        self.board = SimBoard(self.rng, self.faults)
        self.cut: set[frozenset[int]] = set()
        self.watch: Callable[[Node], None] = lambda node: None
        """Called whenever a node has applied something; an ``AssertionError`` is a violation."""
        self.violations: list[AssertionError] = []
        self.nodes = [Node(self, index, folder) for index in range(size)]
        for node in self.nodes:
            node.start()

    def linked(self, one: Node, other: Node) -> bool:
        """Can they talk?"""
        return one.up and other.up and frozenset((one.index, other.index)) not in self.cut

    def applied(self, node: Node) -> None:
        """A node has applied something. The loops carry on after any fault, so what is found is
        kept for whoever waits.
        """
        try:
            self.watch(node)
        except AssertionError as violation:
            self.violations.append(violation)

    async def until(self, condition: Callable[[], bool], within_s: float = 120.0) -> None:
        """Let simulated time pass until something holds."""
        deadline = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > deadline:
                raise AssertionError(f"not within {within_s} simulated seconds: {self.describe()}")
            await asyncio.sleep(0.05)
        if self.violations:
            raise self.violations[0]

    async def settled(self, within_s: float = 120.0) -> None:
        """Until all nodes contain the same writes, with nothing left to publish."""
        await self.until(self._is_settled, within_s)

    def _is_settled(self) -> bool:
        vectors = [node.ledger.vector for node in self.nodes]
        return all(vector == vectors[0] for vector in vectors) and not any(
            node.connection.execute("SELECT 1 FROM outbox LIMIT 1").fetchall()
            for node in self.nodes
        )

    def describe(self) -> str:
        """Where everybody is, for a failure's message."""
        return "; ".join(
            f"{node.name} {sorted(node.ledger.vector.items())} {node.log.lines[-2:]}"
            for node in self.nodes
        )


def _attachment(data: bytes) -> Attachment:
    return pack(data, "application/octet-stream").attachment("a", "application/octet-stream", 1)


def _fail(fault: BaseException) -> None:
    raise fault
