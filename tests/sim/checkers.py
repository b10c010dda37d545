"""What must hold, at every moment or in the end: each checker raises what it found.

    VectorIsTruthful     what a node's vector covers is in its file, after every commit (Rule 4)
    EqualVectors         equal vectors mean equal digests, on whatever node and whenever
    NothingComesBack     what a write has replaced or deleted shows nowhere that has this write
    NothingLost          in the end every committed write is a leaf, an ancestor of one, or purged
    LagIsNoLess          a view is never older than it says
    MarksAreTruthful     what a cursor's mark vouches for, both ways
    SameEverywhere       in the end all nodes hold the same, kept digests are right

What clients see is checked by ``client``: sessions and feeds know what they were told.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from divandb.store import databases, digests, documents
from divandb.store.databases import Database
from divandb.vector import covers
from tests.sim.history import CREATED, DOCUMENT, DROPPED, REGISTER, Write

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Node


class Checker:
    """Looks after every commit of any node, now and then, and when all have settled."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.history = cluster.history

    def started(self, node: "Node") -> None:
        """A node has opened its file."""

    def committed(self, node: "Node") -> None:
        """A node has committed something that moved its vector."""

    def looked(self, node: "Node") -> None:
        """Some time has passed."""

    def finished(self) -> None:
        """Everybody has talked to everybody."""


class VectorIsTruthful(Checker):
    """What a node's vector covers is in its documents, registers and databases."""

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._seen: dict[str, dict[int, int]] = {}

    def started(self, node: "Node") -> None:
        self._seen[node.name] = {}
        self.committed(node)

    def committed(self, node: "Node") -> None:
        vector = dict(node.ledger.vector)
        for origin, oseq, write in self.history.behind(self._seen[node.name], vector):
            assert _holds(node, origin, oseq, write), (node.name, origin, oseq, write)
        self._seen[node.name] = vector


def _holds(node: "Node", origin: int, oseq: int, write: Write) -> bool:
    known = node.ledger.register.get(write.name)
    if write.name:
        if known is None or known.generation < write.generation:
            return False
        if write.kind == DROPPED and known.generation == write.generation:
            return known.dropped
        if known.generation > write.generation or known.dropped or write.kind == CREATED:
            return True
    num = known.num if known is not None else 0
    if write.kind == DOCUMENT:
        context = documents.read_row(node.connection, num, write.key).document.context
        return context.get(origin, 0) >= oseq
    kind, _, key = write.key.partition("/")
    stamp: Any = node.connection.execute(
        "SELECT stamp FROM register WHERE db = ? AND kind = ? AND key = ?", (num, kind, key)
    ).fetchone()
    if stamp is not None and stamp[0] >= write.stamp:
        return True
    return bool(_waits(node, num, key))


def _waits(node: "Node", num: int, key: str) -> Any:
    return node.connection.execute(
        "SELECT 1 FROM waiting WHERE db = ? AND key = ?", (num, key)
    ).fetchall()


class EqualVectors(Checker):
    """Equal vectors mean equal digests, as soon as nothing is on its way there."""

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._known: dict[frozenset[tuple[int, int]], tuple[str, dict[str, str]]] = {}
        self.compared = 0
        """How often there was something to compare."""

        self._seen: dict[str, dict[int, int]] = {}
        self._expected: dict[str, dict[str, tuple[int, bool]]] = {}

    def started(self, node: "Node") -> None:
        self._seen[node.name] = {}
        self._expected[node.name] = {}

    def committed(self, node: "Node") -> None:
        if self._is_ahead(node):
            return
        shown = {
            name: digests.shown(database, database.digest)
            for name, database in sorted(node.ledger.register.items())
        }
        who, before = self._known.setdefault(frozenset(node.vector.items()), (node.name, shown))
        self.compared += who != node.name
        assert before == shown, (who, node.name, node.vector)

    def _is_ahead(self, node: "Node") -> bool:
        """Does the node hold, or hold back, something that its vector does not cover?"""
        vector = node.ledger.vector
        expected = self._databases(node, vector)
        if not covers(vector, node.ledger.reached) or node.ledger.has_gap or node.count("waiting"):
            return True
        found = {name: (db.generation, db.dropped) for name, db in node.ledger.register.items()}
        if found != expected:
            return True
        rows: Any = node.connection.execute("SELECT origin, oseq FROM register").fetchall()
        return any(vector.get(origin, 0) < oseq for origin, oseq in rows)

    def _databases(self, node: "Node", vector: dict[int, int]) -> dict[str, tuple[int, bool]]:
        """name → (generation, dropped), as the writes say that the vector covers."""
        expected = self._expected[node.name]
        for _, _, write in self.history.behind(self._seen[node.name], vector):
            if write.name:
                state = (write.generation, write.kind == DROPPED)
                expected[write.name] = max(expected.get(write.name, (0, False)), state)
        self._seen[node.name] = dict(vector)
        return expected


class NothingComesBack(Checker):
    """Whoever has a write does not show what that write has replaced."""

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._seen: dict[str, dict[int, int]] = {}

    def started(self, node: "Node") -> None:
        self._seen[node.name] = {}

    def committed(self, node: "Node") -> None:
        vector = dict(node.ledger.vector)
        self._check(node, self.history.behind(self._seen[node.name], vector))
        self._seen[node.name] = vector

    def finished(self) -> None:
        for node in self.cluster.nodes:
            self._check(node, self.history.all())

    def _check(self, node: "Node", writes: Iterable[tuple[int, int, Write]]) -> None:
        for _, _, write in writes:
            replaces = write.kind == DOCUMENT and write.parent is not None
            if replaces and _lives(node, write) and not self._is_made_twice(write):
                assert write.parent not in node.leaves(write.name, write.key), (
                        node.name, write,
                    )  # fmt: skip

    def _is_made_twice(self, write: Write) -> bool:
        """Where ancestries are cut short, or after a purge, the second may stay beside a child."""
        many = len(self.history.dots[write.place, write.parent or ""]) > 1
        return many and (self.cluster.revs_limit < 100 or bool(self.history.purged[write.place]))


def _lives(node: "Node", write: Write) -> bool:
    database = node.ledger.register.get(write.name)
    return (
        database is not None and not database.dropped and (database.generation == write.generation)
    )


class NothingLost(Checker):
    """In the end every committed write is a leaf, in a leaf's ancestry, or was replaced by a write
    that had seen it.
    """

    def finished(self) -> None:
        for node in self.cluster.nodes:
            for origin, oseq, write in self.history.all():
                if write.kind != DOCUMENT or not _lives(node, write):
                    continue
                document = node.row(write.name, write.key).document
                assert document.context.get(origin, 0) >= oseq, (node.name, write)
                if write.rev is not None:
                    shown = {leaf.rev for leaf in document.shown()}
                    kept = shown | self.history.purged[write.place]
                    assert write.rev in self.history.ancestors(write.place, kept), (
                        node.name, write, shown,
                    )  # fmt: skip


class LagIsNoLess(Checker):
    """What a node says of its view's age: all that was written before is there, but for silent
    slots.
    """

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self.looks = 0
        """How often a node knew how old its view is."""

    def looked(self, node: "Node") -> None:
        said = dict(node.standing.age())
        lag = said.get("divan-lag", "unknown")
        if lag == "unknown":
            return
        self.looks += 1
        silent = {part.split("=")[0] for part in said.get("divan-silent", "").split(", ")}
        moment_s = self.cluster.loop.time() - int(lag) / 1000
        for origin, oseq, slot in self.history.before(moment_s):
            here = node.progress.vector.get(origin, 0)
            assert slot in silent or here >= oseq, (node.name, said, slot, here, oseq)


class MarksAreTruthful(Checker):
    """What a mark covers has its place before it, and what has its place before it is covered."""

    def finished(self) -> None:
        for node in self.cluster.nodes:
            for num, seq, vector in _marks(node):
                for doc_id in _documents_upto(node, num, seq):
                    context = documents.read_row(node.connection, num, doc_id).document.context
                    assert covers(vector, context), (node.name, num, seq)
                self._check_covered(node, num, seq, vector)

    def _check_covered(self, node: "Node", num: int, seq: int, vector: dict[int, int]) -> None:
        database = node.ledger.databases[num]
        behind = {
            doc_id: documents.read_row(node.connection, num, doc_id).document.context
            for doc_id in _documents_behind(node, num, seq)
        }
        for _, _, write in self.history.covered(vector):
            if write.kind == DOCUMENT and (write.name, write.generation) == (
                database.name, database.generation,
            ):  # fmt: skip
                # Behind the mark it may stand only for a later write that the mark does not cover.
                context = behind.get(write.key)
                assert context is None or not covers(vector, context), (node.name, num, seq, write)


def _marks(node: "Node") -> list[tuple[int, int, dict[int, int]]]:
    rows: Any = node.connection.execute("SELECT db, seq, vector FROM mark").fetchall()
    living = {num for num, database in node.ledger.databases.items() if not database.dropped}
    decode = msgspec.msgpack.Decoder(dict[int, int]).decode
    return [(db, seq, decode(packed)) for db, seq, packed in rows if db in living]


def _documents_upto(node: "Node", num: int, seq: int) -> list[str]:
    return _ids(node, "place > ? AND place <= ?", num << 40, num << 40 | seq)


def _documents_behind(node: "Node", num: int, seq: int) -> list[str]:
    return _ids(node, "place > ? AND place < ?", num << 40 | seq, (num + 1) << 40)


def _ids(node: "Node", where: str, *values: int) -> list[str]:
    rows: Any = node.connection.execute(f"SELECT id FROM doc WHERE {where}", values).fetchall()
    return [doc_id for (doc_id,) in rows]


class SameEverywhere(Checker):
    """All nodes hold the same, over leaves, contexts, bodies, registers and generations; the
    digests that they keep are those that a scan finds.
    """

    def finished(self) -> None:
        first = self.cluster.nodes[0]
        expected, shown = contents(first), self._digests(first)
        for node in self.cluster.nodes[1:]:
            found = contents(node)
            assert found == expected, (first.name, node.name, _differing(expected, found))
            assert self._digests(node) == shown, (first.name, node.name)

    def _digests(self, node: "Node") -> list[str]:
        for database in databases.load_all(node.connection):
            assert digests.recomputed(node.connection, database) == database.digest, (
                node.name, database,
            )  # fmt: skip
        return [
            digests.shown(database, database.digest)
            for _, database in sorted(node.ledger.register.items())
        ]


def _differing(one: list[Any], other: list[Any]) -> list[Any]:
    return [row for row in one if row not in other] + [row for row in other if row not in one]


def contents(node: "Node") -> list[Any]:
    """All that a node holds, in an order that does not depend on how it came."""
    found: list[Any] = []
    newest = databases.newest(databases.load_all(node.connection))
    for name, database in sorted(newest.items()):
        found.append((name, database.generation, database.dropped))
        if not database.dropped:
            found += _documents(node, database)
            found += _registers(node, database)
    return found


def _documents(node: "Node", database: Database) -> list[Any]:
    num = database.num
    ids = sorted(_ids(node, "db = ?", num))
    states = [documents.read_state(node.connection, num, doc_id) for doc_id in ids]
    return [(state.id, state.document.leaves, sorted(state.document.context.items()),
             state.bodies) for state in states]  # fmt: skip


def _registers(node: "Node", database: Database) -> list[Any]:
    return node.connection.execute(
        "SELECT kind, key, value, stamp FROM register WHERE db = ? ORDER BY kind, key",
        (database.num,),
    ).fetchall()


ALL = (
    VectorIsTruthful, EqualVectors, NothingComesBack, NothingLost, LagIsNoLess, MarksAreTruthful,
    SameEverywhere,
)  # fmt: skip
__all__ = ["ALL", "DOCUMENT", "REGISTER", "Checker", "contents"]
