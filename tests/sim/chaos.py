"""Random runs: misfortunes and clients, drawn from the cluster's seed."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from divandb.config import Limits
from divandb.errors import DivanError
from tests.sim.client import Client, Follower, Notebook, Unanswered
from tests.sim.cluster import Cluster
from tests.sim.node import Node
from tests.sim.world import Gone

DATABASE = "x"
LIMITS = Limits(forward_wait_ms_max=6_000, concern_wait_ms_max=3_000)
"""Less patience than usual: simulated time costs time, too."""
ANSWER_S = 3.0
Chance = tuple[float, Callable[[], Awaitable[None] | None]]


def worsen(c: Cluster, rng: random.Random) -> None:
    """Draw how bad the network and the board are for this run."""
    faults = c.faults
    faults.answer_s = ANSWER_S
    faults.delay_s = rng.choice([0.001, 0.02, 0.2])
    faults.slow = rng.choice([0.0, 0.02])
    faults.requests_lost = rng.choice([0.0, 0.0, 0.05])
    faults.replies_lost = rng.choice([0.0, 0.0, 0.05])
    faults.requests_doubled = rng.choice([0.0, 0.0, 0.05])
    faults.lost_answers = rng.choice([0.0, 0.1])
    faults.torn_batches = rng.choice([0.0, 0.1])
    faults.late_batches = rng.choice([0.0, 0.05])


def misfortune(c: Cluster, rng: random.Random) -> None:
    """One thing goes wrong, or goes right again."""
    node = rng.choice(c.nodes)
    roll = rng.random()
    if not node.up:
        c.start(node)
    elif not node.process.is_running:
        node.go_on()
    elif roll < 0.3:
        node.crash()
    elif roll < 0.5:
        node.stop()
    elif roll < 0.65:
        c.cut(*_halves(c, rng))
    elif roll < 0.7:
        c.cut_from_board(node)
    elif roll < 0.8:
        c.heal()
    elif roll < 0.9:
        c.board.up = not c.board.up
    elif roll < 0.93:
        c.board.forget()
    elif roll < 0.96:
        c.board.truncate(keep=rng.randrange(10))
    else:
        node.clock.offset_ms = rng.choice([-3_600_000, 0, 60_000])


def _halves(c: Cluster, rng: random.Random) -> tuple[list[Node], list[Node]]:
    nodes = list(c.nodes)
    rng.shuffle(nodes)
    size = rng.randrange(1, len(nodes))
    return nodes[:size], nodes[size:]


class Crowd:
    """Clients of all kinds at all nodes."""

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        self.cluster = c
        self.rng = rng
        self._value = 0
        self._anybody = Client(c, "anybody")
        self.notebooks = [
            Notebook(Client(c, "header", "header"), DATABASE),
            Notebook(Client(c, "cookies", "cookies"), DATABASE),
        ]
        self.followers = [
            Follower(Client(c, f"follower{n}"), DATABASE, by_rows=n == 1) for n in range(2)
        ]
        self._busy: dict[str, asyncio.Task[None]] = {}

    def act(self) -> None:
        """Somebody does something, if the same one is not still waiting for an answer."""
        node = self.rng.choice(self.cluster.nodes)
        name, work = self.rng.choice(self._works())
        before = self._busy.get(name)
        if before is None or before.done():
            if before is not None:
                before.result()
            self._busy[name] = asyncio.ensure_future(work(node))

    def _works(self) -> list[tuple[str, Callable[[Node], Awaitable[None]]]]:
        works: list[tuple[str, Callable[[Node], Awaitable[None]]]] = [
            (f"edit{place}", self._edit) for place in range(4)
        ]
        for place, notebook in enumerate(self.notebooks):
            works.append((f"notebook{place}", lambda node, n=notebook: self._note(node, n)))
        for place, follower in enumerate(self.followers):
            limit = self.rng.choice([1, 3, 100])
            works.append(
                (f"follow{place}", lambda node, f=follower, n=limit: _ignored(f.poll(node, n)))
            )
        return works

    async def _note(self, node: Node, notebook: Notebook) -> None:
        if self.rng.random() < 0.7:
            await notebook.write(node)
        for _ in range(2):
            await notebook.read(self.rng.choice(self.cluster.nodes))

    async def _edit(self, node: Node) -> None:
        """Anybody's write to one of a few documents."""
        rng, client = self.rng, self._anybody
        path = f"/{DATABASE}/{rng.choice('abcdefgh')}"
        self._value += 1
        body = {"v": self._value, "long": "x" * rng.choice([1, 1, 3_000])}
        roll = rng.random()
        with contextlib.suppress(Unanswered):
            found = await client.get(node, path + "?conflicts=true")
            revs = []
            if found.status == 200:
                revs = [found.json["_rev"], *found.json.get("_conflicts", ())]
            if revs and roll < 0.15:
                await client.delete(node, f"{path}?rev={rng.choice(revs)}")
            elif revs and roll < 0.18:
                await client.post(node, f"/{DATABASE}/_purge", {path[3:]: [rng.choice(revs)]})
            elif roll < 0.25:
                docs = [{"_id": f"bulk{rng.randrange(20)}", **body}, {"v": self._value}]
                await client.post(node, f"/{DATABASE}/_bulk_docs", {"docs": docs})
            elif roll < 0.3:
                await client.put(node, f"/{DATABASE}/_local/{rng.choice('ab')}", body)
            else:
                parent = {"_rev": rng.choice(revs)} if revs else {}
                await client.put(node, path, {**body, **parent})

    async def finish(self) -> None:
        """Everybody gets an answer, or gives up."""
        await self.cluster.until(lambda: all(task.done() for task in self._busy.values()), 200)
        for task in self._busy.values():
            task.result()

    async def read_on(self) -> None:
        """Those who follow read to the end: now they have seen everything."""
        for follower in self.followers:
            await follower.poll(self.rng.choice(self.cluster.nodes), 1000)
            follower.check_all()


async def _ignored(work: Awaitable[object]) -> None:
    await work


async def at_a_master(c: Cluster, rng: random.Random, values: Callable[[], int]) -> None:
    """A write, a purge, a drop or a create at some master itself."""
    node = rng.choice(c.masters)
    if not node.up or not node.process.is_running:
        return
    database = node.ledger.register.get(DATABASE)
    with contextlib.suppress(DivanError, Gone):
        if database is None or database.dropped or rng.random() < 0.01:
            await (node.create if database is None or database.dropped else node.drop)(DATABASE)
            return
        doc_id = rng.choice("abcdefgh")
        shown = node.row(DATABASE, doc_id).document.shown()
        parent = rng.choice(shown).rev if shown else None
        if shown and rng.random() < 0.05:
            await node.purge(DATABASE, doc_id, shown[0].rev)
            return
        deleted = parent is not None and rng.random() < 0.1
        await node.put(DATABASE, doc_id, values(), parent=parent, deleted=deleted)
