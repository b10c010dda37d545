"""A group whose nodes build views for themselves and are killed, cut off and short of disk: nobody
turns back, nobody turns alone, and in the end all have the newest version and nothing else.

Store, indexes, indexer, viewer and the rules are those of production. Simulated are time, links,
and the functions, whose text is what they emit.
"""

import asyncio
import contextlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from divandb import indexer
from divandb.catalog import Catalog
from divandb.cluster import versions
from divandb.cluster.versions import Versions
from divandb.config import Limits
from divandb.designs import Designs
from divandb.errors import DivanError, NotFound, StorageFull
from divandb.indexer import Indexer
from divandb.link import LinkBroken
from divandb.store import indexes
from divandb.store.indexes import FILE_NAME, IndexFile
from divandb.store.ledger import Changes
from divandb.viewer import Viewer
from divandb.views.engine import Program
from tests.sim.world import Process, SimClock, SimLoop, run
from tests.stores import Lines, Store, edit

SEEDS = int(os.environ.get("DIVANDB_SIM_VIEW_SEEDS", "16"))
FIRST_SEED = int(os.environ.get("DIVANDB_SIM_FIRST_SEED", "0"))
LIMITS = Limits(view_switch_s_max=60)
DOCS = 12
STEP_ROWS = 3
STEP_S_MAX = 1.5
LOOK_S = 0.1
HEARD_S = 2 * (versions.LOOK_S + STEP_S_MAX)
"""Who has lived for so long was heard of by all before they decided what now shows."""
CALM_S = 600.0
STANDS_STILL_S_MAX = LIMITS.view_switch_s_max + indexer.DISK_PAUSE_S_MAX + 10
DESIGNS = ("_design/d", "_design/e")
"""They may have the same views."""


class Functions:
    """In the place of a worker: a map function emits its own text for each document."""

    def attempt(
        self, program: Program, function: str, calls: Sequence[list[str]], labels: Sequence[str]
    ) -> tuple[list[str], DivanError | None]:
        sources = [source for _, source in orjson.loads(program.text)["maps"]]
        rows = [[[doc_id, source] for source in sources] for doc_id in labels]
        return [orjson.dumps([[row] for row in one]).decode() for one in rows], None


class Node:
    """A member of the group, and what it has shown."""

    def __init__(
        self, name: str, group: dict[str, "Node"], folder: Path, loop: SimLoop,
        processes: list[Process],
    ) -> None:  # fmt: skip
        self.name = name
        self.group = group
        self.loop = loop
        self.processes = processes
        self.rng = random.Random(name)
        self.log = Lines()
        folder.mkdir()
        self.store = Store(folder)
        self.store.create("x")
        self.is_full = False
        self.full_at = -math.inf
        """Until when the disk was full the last time."""
        self.silent_since: float | None = None
        self.shown = dict.fromkeys(DESIGNS, -1)
        """The highest version that was shown of each design document."""
        self.ready: set[tuple[str, int]] = set()
        self.begin()

    # A process

    def begin(self) -> None:
        """A start of the node."""
        self.process = Process(self.loop, self.name)
        self.processes.append(self.process)
        self.process.new_context().run(self._begin)
        self.process.start(self.indexer.run())
        self.process.start(self.versions.run())
        self.silent_since = None
        self.began_at = self.loop.time()

    def _begin(self) -> None:
        store, clock = self.store, SimClock(self.loop)
        self.file = IndexFile(store.disk.path.with_name(FILE_NAME), store.disk, 2**20)
        self.file.settle(store.identity)
        self.catalog = Catalog(store.reader, 1000)
        self.known = self.catalog.get("x")
        self.kept = Designs(store.reader)
        self.indexer = Indexer(self.file, self.catalog, self.offload, self.pace, clock, self.log)
        nobody: Any = None
        functions: Any = Functions()
        self.viewer = Viewer(
            self.kept, nobody, self.catalog, self.indexer, functions, nobody, clock, LIMITS
        )
        is_owner = self.name == "m1"
        tenure = SimpleNamespace(is_owner=is_owner, owns=lambda one: one.name == "m1")
        peers: Any = SimpleNamespace(
            group=self.others, all=self.others, tenure=tenure,
            is_live=lambda peer: self.group[peer.member.name].lives,
        )  # fmt: skip
        self.versions = Versions(peers, self.viewer, clock, LIMITS, self.log)
        self.viewer.is_alone, self.viewer.is_last = self.versions.is_alone, self.versions.is_last

    def others(self) -> list[Any]:
        return [
            SimpleNamespace(
                member=SimpleNamespace(name=one.name), link=SimpleNamespace(ask=one.ask),
                is_drained=False,
            )
            for one in self.group.values()
            if one is not self
        ]  # fmt: skip

    @property
    def lives(self) -> bool:
        """As the others see it: within its lease."""
        since = self.silent_since
        return since is None or self.loop.time() - since < LIMITS.lease_ms / 1000

    async def ask(self, method: str, path: str, body: bytes, **bounds: Any) -> Any:
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        if not self.process.is_running:
            await asyncio.sleep(2)
            raise LinkBroken("gave no answer in time", sent=True)
        said = self.process.new_context().run(self.versions.answer, body)
        return SimpleNamespace(status=200, body=msgspec.msgpack.encode(said))

    def kill(self) -> None:
        self.process.kill()
        self.silent_since = self.loop.time()
        self.file.close()
        self.store.crash()
        self.store.open()

    async def offload(self, function: Any, *arguments: Any) -> Any:
        process = self.process
        await asyncio.sleep(self.rng.uniform(0.01, STEP_S_MAX))
        if not process.is_alive:
            raise asyncio.CancelledError
        if self.is_full:
            raise StorageFull("the disk is full")
        return function(*arguments)

    async def pace(self, took_s: float) -> None:
        await asyncio.sleep(0.01)

    # Writes, and what clients see

    def write(self, doc_id: str, members: dict[str, Any]) -> None:
        rows = self.store.rows("SELECT rev FROM doc WHERE id = ?", doc_id)
        self.store.write("x", edit(doc_id, rows[0][0] if rows else None, members))
        if self.process.is_alive:
            self.kept.forget({self.known.num})
            self.catalog.refresh(Changes({self.known.num}, set(), {self.known.num}))
            self.known = self.catalog.get("x")
            self.process.new_context().run(self.indexer.changed, {self.known.num})

    async def look(self) -> None:
        """Ask as a client that does not wait does."""
        for design_id in DESIGNS:
            with contextlib.suppress(NotFound):
                design = self.kept.get(self.known, design_id.partition("/")[2])
                serving = await self.viewer.serving(self.known, design, "v", update=False)
                self._check(design_id, serving)

    def _check(self, design_id: str, serving: Any) -> None:
        version = int(serving.view.map.source)
        assert version >= self.shown[design_id], (self.name, "turned back", design_id, version)
        if version > self.shown[design_id] >= 0:
            assert serving.built is not None and serving.built.is_complete
            waited = [one for one in self.group.values() if one.counts and one is not self]
            missing = [one.name for one in waited if (design_id, version) not in one.ready]
            assert not missing, (self.name, "turned alone", design_id, version, missing)
        self.shown[design_id] = version

    @property
    def counts(self) -> bool:
        """Is it a replica that whoever turns has to wait for? One that lacked disk may have stood
        still for too long.
        """
        is_fit = not self.is_full and self.loop.time() - self.full_at > STANDS_STILL_S_MAX
        is_heard_of = self.process.is_running and self.loop.time() - self.began_at > HEARD_S
        return self.name != "m1" and is_heard_of and is_fit

    def note(self) -> None:
        """What it is ready for."""
        for design_id, design in self.kept.of(self.known).items():
            built = self.indexer.find(self.known, design.views.signature)
            if built is not None and built.is_complete:
                version = int(design.views.views["v"].map.source)
                self.ready.add((design_id, version))


class Group:
    """All nodes, and a story by chance."""

    def __init__(
        self, folder: Path, loop: SimLoop, rng: random.Random, processes: list[Process]
    ) -> None:
        self.rng = rng
        self.loop = loop
        self.nodes: dict[str, Node] = {}
        for name in ("m1", "m1-r1", "m1-r2"):
            self.nodes[name] = Node(name, self.nodes, folder / name, loop, processes)
        self.version = 0

    async def put(self, design_ids: Sequence[str]) -> None:
        """A version of these design documents comes to all nodes, to one after the other."""
        self.version += 1
        for node in self.nodes.values():
            for design_id in design_ids:
                node.write(design_id, {"views": {"v": {"map": str(self.version)}}})
            await asyncio.sleep(self.rng.uniform(0, 0.4))

    async def watch(self) -> None:
        while True:
            running = [node for node in self.nodes.values() if node.process.is_running]
            for node in running:
                node.note()
            for node in running:
                if node.process.is_running:
                    await node.process.do(node.look())
            await asyncio.sleep(LOOK_S)

    async def trouble(self) -> None:
        rng, node = self.rng, self.rng.choice(list(self.nodes.values()))
        if rng.random() < 0.6:
            if node.process.is_alive:
                node.kill()
                await asyncio.sleep(rng.uniform(0.1, 8))
                node.begin()
        else:
            node.is_full = True
            await asyncio.sleep(rng.uniform(1, 40))
            node.is_full, node.full_at = False, self.loop.time()

    async def story(self) -> None:
        rng = self.rng
        for node in self.nodes.values():
            for number in range(DOCS):
                node.write(f"a{number:02}", {})
        await self.put(DESIGNS)
        await asyncio.sleep(60)  # the first version needs nobody's consent
        watching = asyncio.create_task(self.watch())
        for _ in range(rng.randrange(3, 7)):
            await self.put(rng.choice([DESIGNS, DESIGNS[:1], DESIGNS[1:]]))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(rng.uniform(0, 15))
                await self.trouble()
            await asyncio.sleep(rng.uniform(0, 25))
            assert not watching.done() or watching.result()
        await asyncio.sleep(CALM_S)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled(), watching.exception()
        self.is_settled()

    def is_settled(self) -> None:
        for node in self.nodes.values():
            wanted = {one.views.signature for one in node.kept.of(node.known).values()}
            assert {one.signature for one in node.file.built()} == wanted, node.name
            assert node.viewer.coming() == []
            for design_id, design in node.kept.of(node.known).items():
                assert node.shown[design_id] == int(design.views.views["v"].map.source)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(indexes, "STEP_ROWS_MAX", STEP_ROWS)
    monkeypatch.setattr("divandb.indexer.STEP_ROWS_MAX", STEP_ROWS)
    yield


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_a_group_turns_together_whatever_happens(
    seed: int, folder: Path, small_steps: None
) -> None:
    processes: list[Process] = []
    loop = SimLoop()
    group = Group(folder, loop, random.Random(seed), processes)
    run(group.story(), loop, processes)
