"""What clients do, with intent: each class is one habit that is hard on a database.

``act`` does one thing at some node; a ``Crowd`` of them goes on until it is told to ``finish``.
What a client may expect of the answers is judged by ``client`` and by the checkers.
"""

import asyncio
import base64
import random
from collections.abc import Sequence
from typing import Any

from tests.sim.checkers import BoardKeeps, CheckpointsVouch
from tests.sim.client import Answer, Client, Follower, Notebook, Unanswered
from tests.sim.cluster import Cluster
from tests.sim.node import Node

DATABASE = "x"
OTHER = "y"
FINISH_S = 200.0


class Workload:
    """One habit. ``weight``: how much more often than others it acts."""

    weight = 1

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        self.c = c
        self.rng = rng
        self.client = Client(c, f"{type(self).__name__}{len(c.network.sites)}")
        self._count = 0

    async def act(self, node: Node) -> None:
        """Do one thing; raises ``Unanswered``."""
        raise NotImplementedError

    async def read_on(self) -> None:
        """All has settled: look at what is there."""

    def value(self) -> dict[str, Any]:
        """A body that nobody has written yet."""
        self._count += 1
        return {"v": f"{self.client.name}-{self._count}"}

    def anybody(self) -> Node:
        """Some other node."""
        return self.rng.choice(self.c.nodes)

    async def revs(self, node: Node, path: str) -> list[str]:
        """The revisions that are shown, the winner first."""
        found = await self.client.get(node, path + "?conflicts=true")
        if found.status != 200:
            return []
        return [found.json["_rev"], *found.json.get("_conflicts", ())]


class HotDocuments(Workload):
    """Everybody edits the same few documents, conflicts included."""

    weight = 4

    async def act(self, node: Node) -> None:
        path = f"/{DATABASE}/{self.rng.choice('abc')}"
        revs = await self.revs(node, path)
        body = self.value()
        if self.rng.random() < 0.1:
            body["long"] = "x" * 3_000
        if revs and self.rng.random() < 0.9:
            body["_rev"] = self.rng.choice(revs)
        await self.client.put(node, path, body)


class ConcurrentEdits(Workload):
    """The same revision is replaced at two nodes at once; sometimes by the very same edit."""

    async def act(self, node: Node) -> None:
        path = f"/{DATABASE}/{self.rng.choice('de')}"
        revs = await self.revs(node, path)
        parent = {"_rev": revs[0]} if revs else {}
        one = self.value()
        other = one if self.rng.random() < 0.3 else self.value()
        await _all(
            self.client.put(node, path, {**one, **parent}),
            self.client.put(self.anybody(), path, {**other, **parent}),
        )


class DeletesAndRecreates(Workload):
    """A document is deleted, and made again without naming a revision."""

    weight = 2

    async def act(self, node: Node) -> None:
        path = f"/{DATABASE}/{self.rng.choice('fg')}"
        revs = await self.revs(node, path)
        if revs:
            await self.client.delete(node, f"{path}?rev={self.rng.choice(revs)}")
            node = self.anybody()
        await self.client.put(node, path, self.value())


class Purges(Workload):
    """A leaf is purged while others extend it."""

    async def act(self, node: Node) -> None:
        doc_id = self.rng.choice("abfp")
        revs = await self.revs(node, f"/{DATABASE}/{doc_id}")
        if revs and self.rng.random() < 0.3:
            await self.client.post(node, f"/{DATABASE}/_purge", {doc_id: [self.rng.choice(revs)]})
        else:
            parent = {"_rev": revs[0]} if revs else {}
            await self.client.put(node, f"/{DATABASE}/{doc_id}", {**self.value(), **parent})


class Databases(Workload):
    """A database is dropped and made again while others write into it."""

    async def act(self, node: Node) -> None:
        roll = self.rng.random()
        if roll < 0.15:
            await self.client.delete(node, f"/{OTHER}")
        elif roll < 0.4:
            await self.client.put(node, f"/{OTHER}", {})
        else:
            path = f"/{OTHER}/{self.rng.choice('abc')}"
            revs = await self.revs(node, path)
            parent = {"_rev": revs[0]} if revs else {}
            await self.client.put(self.anybody(), path, {**self.value(), **parent})


class Bulk(Workload):
    """Many documents at once, some new, some with revisions made elsewhere."""

    async def act(self, node: Node) -> None:
        docs: list[dict[str, Any]] = [
            {"_id": f"bulk{self.rng.randrange(30)}", **self.value()}
            for _ in range(self.rng.randrange(1, 12))
        ]
        body: dict[str, Any] = {"docs": [*docs, self.value()]}
        if self.rng.random() < 0.4:
            body = {"docs": [self._grafted() for _ in range(4)], "new_edits": False}
        await self.client.post(node, f"/{DATABASE}/_bulk_docs", body)

    def _grafted(self) -> dict[str, Any]:
        """A revision of another database, as a replicator brings it: few roots, many branches."""
        path = [f"{self.rng.randrange(3):032x}" for _ in range(self.rng.randrange(1, 5))]
        doc_id = f"graft{self.rng.randrange(3)}"
        revisions = {"start": len(path), "ids": path}
        # The same revision always has the same content, as CouchDB's have.
        return {"_id": doc_id, "v": path[0], "_rev": f"{len(path)}-{path[0]}",
                "_revisions": revisions}  # fmt: skip


class Attachments(Workload):
    """Small and large attachments come, are kept as stubs, and go."""

    async def act(self, node: Node) -> None:
        path = f"/{DATABASE}/{self.rng.choice('hi')}"
        revs = await self.revs(node, path)
        parent = {"_rev": revs[0]} if revs else {}
        size = self.rng.choice([0, 10, 5_000, 40_000])
        data = base64.b64encode(self.rng.randbytes(1) * size).decode()
        att: dict[str, Any] = {"data": data, "content_type": "a/b"}
        if revs and self.rng.random() < 0.4:
            att = {"stub": True}
        body = {**self.value(), **parent, "_attachments": {"a": att}}
        if revs and self.rng.random() < 0.2:
            del body["_attachments"]
        await self.client.put(node, path, body)


class Sessions(Workload):
    """Somebody writes, and reads what was written wherever it likes."""

    weight = 4

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        super().__init__(c, rng)
        carries = rng.choice(["header", "cookies"])
        self.client.carries = carries
        self.notebook = Notebook(self.client, DATABASE)

    async def act(self, node: Node) -> None:
        if self.rng.random() < 0.7:
            await self.notebook.write(node)
        for _ in range(2):
            await self.notebook.read(self.anybody())


class Feeds(Workload):
    """Somebody reads changes, each page at another node."""

    weight = 2

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        super().__init__(c, rng)
        self.follower = Follower(self.client, DATABASE, by_rows=rng.random() < 0.5)
        self.limit = rng.choice([1, 3, 100])

    async def act(self, node: Node) -> None:
        await self.follower.poll(node, self.limit)

    async def read_on(self) -> None:
        await self.follower.poll(self.anybody(), 1000)
        self.follower.check_all()


class Checkpoints(Workload):
    """A replicator: some documents, then a `_local` checkpoint that vouches for them."""

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        super().__init__(c, rng)
        self.client.carries = "header"
        self._saved: list[tuple[str, str]] = []

    async def act(self, node: Node) -> None:
        self._count += 1
        doc_id = f"{self.client.name}-{self._count}"
        written = await self.client.put(node, f"/{DATABASE}/{doc_id}", {"v": 1})
        if written.status != 201:
            return
        checkpoint = {"v": doc_id, "rev": written.json["rev"]}
        path = f"/{DATABASE}/_local/{self.client.name}"
        saved = await self.client.put(self.anybody(), path, checkpoint)
        if saved.status == 201:
            self._saved.append((doc_id, written.json["rev"]))

    async def read_on(self) -> None:
        self.c.told(CheckpointsVouch, DATABASE, self._saved)


class Approved(Workload):
    """Writes of concern ``board``: one lost disk does not take them."""

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        super().__init__(c, rng)
        self._saved: list[tuple[str, str]] = []

    async def act(self, node: Node) -> None:
        self._count += 1
        doc_id = f"{self.client.name}-{self._count}"
        said = await self.client.put(node, f"/{DATABASE}/{doc_id}", {}, divan_concern="board")
        if said.status == 201 and said.header("divan-concern") in ("board", "visible"):
            self._saved.append((doc_id, said.json["rev"]))

    async def read_on(self) -> None:
        self.c.told(BoardKeeps, DATABASE, self._saved)


class Settings(Workload):
    """Registers: `_security` and `_revs_limit`, through all nodes."""

    async def act(self, node: Node) -> None:
        if self.rng.random() < 0.5:
            security = {"members": {"names": [self.value()["v"]]}}
            await self.client.put(node, f"/{DATABASE}/_security", security)
        else:
            await self.client.put(node, f"/{DATABASE}/_revs_limit", self.rng.choice([900, 1000]))


ALL: tuple[type[Workload], ...] = (
    HotDocuments, ConcurrentEdits, DeletesAndRecreates, Purges, Databases, Bulk, Attachments,
    Sessions, Feeds, Checkpoints, Approved, Settings,
)  # fmt: skip


async def _all(*works: Any) -> list[Answer]:
    """All of them, whatever becomes of each."""
    answers = await asyncio.gather(*works, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, Unanswered):
            raise answer
    return [answer for answer in answers if isinstance(answer, Answer)]


class Crowd:
    """Clients of these kinds, each of which does one thing at a time."""

    def __init__(self, c: Cluster, rng: random.Random, kinds: Sequence[type[Workload]]) -> None:
        self._c = c
        self._rng = rng
        self._works = [kind(c, rng) for kind in kinds]
        self._weights = [work.weight for work in self._works]
        self._busy: dict[Workload, asyncio.Task[None]] = {}
        self.acts = 0

    def act(self) -> None:
        """Somebody does something, if the same one is not still waiting for an answer."""
        (work,) = self._rng.choices(self._works, self._weights)
        node = self._rng.choice(self._c.nodes)
        before = self._busy.get(work)
        if before is None or before.done():
            if before is not None:
                before.result()
            self.acts += 1
            self._busy[work] = asyncio.ensure_future(self._done(work, node))

    async def _done(self, work: Workload, node: Node) -> None:
        try:
            await work.act(node)
            self._c.note(f"{work.client.name} at {node.name}", True)
        except Unanswered:
            self._c.note(f"{work.client.name} at {node.name}", False)

    async def finish(self) -> None:
        """Everybody gets an answer, or gives up."""
        busy = self._busy.values()
        await self._c.until(lambda: all(task.done() for task in busy), FINISH_S)
        for task in busy:
            task.result()

    async def read_on(self) -> None:
        """All has settled: everybody looks once more."""
        for work in self._works:
            await work.read_on()
