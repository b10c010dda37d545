"""What must hold once everybody has talked to everybody: each checker raises what it found."""

import hashlib
from typing import Any

import msgspec

from divandb import revtree
from divandb.store import databases, documents
from tests.sim.cluster import Cluster, Node


def same_everywhere(cluster: Cluster) -> None:
    """Equal vectors mean equal digests, over leaves, contexts, bodies, registers, generations."""
    digests = {node.name: digest(node) for node in cluster.nodes}
    assert len(set(digests.values())) == 1, {node.name: contents(node) for node in cluster.nodes}


def digest(node: Node) -> str:
    """One number for all that a node holds."""
    return hashlib.sha256(repr(contents(node)).encode()).hexdigest()


def contents(node: Node) -> list[Any]:
    """All that a node holds, in an order that does not depend on how it came."""
    found: list[Any] = []
    newest = databases.newest(databases.load_all(node.connection))
    for name, database in sorted(newest.items()):
        found.append((name, database.generation, database.dropped))
        if not database.dropped:
            found += _documents(node, database.num)
            found += _registers(node, database.num)
    return found


def _documents(node: Node, num: int) -> list[Any]:
    rows = node.connection.execute("SELECT id FROM doc WHERE db = ? ORDER BY id", (num,)).fetchall()
    states = [documents.read_state(node.connection, num, doc_id) for (doc_id,) in rows]
    return [(state.id, state.document.leaves, sorted(state.document.context.items()),
             state.bodies) for state in states]  # fmt: skip


def _registers(node: Node, num: int) -> list[Any]:
    return node.connection.execute(
        "SELECT kind, key, value, stamp FROM register WHERE db = ? ORDER BY kind, key", (num,)
    ).fetchall()


class Acknowledged:
    """No acknowledged write lost: each is a leaf, in a leaf's ancestry, or was replaced by a write
    that had seen it.
    """

    def __init__(self) -> None:
        self.writes: list[tuple[str, int, str, str, tuple[int, int]]] = []

    def note(self, node: Node, name: str, doc_id: str, rev: str) -> None:
        """A client was told that this is stored."""
        assert node.ledger.origin is not None
        dot = (node.ledger.origin, node.ledger.vector[node.ledger.origin])
        generation = node.ledger.register[name].generation
        self.writes.append((name, generation, doc_id, rev, dot))

    def check(self, cluster: Cluster) -> None:
        """On every node."""
        for node in cluster.nodes:
            for name, generation, doc_id, rev, dot in self.writes:
                database = node.ledger.register[name]
                if database.dropped or database.generation != generation:
                    continue
                document = node.row(name, doc_id).document
                assert document.context.get(dot[0], 0) >= dot[1], (node.name, doc_id, rev, dot)
                if not revtree.descendants(document.leaves, rev):
                    assert dot not in {d for leaf in document.leaves for d in leaf.dots}

    def check_vector(self, node: Node) -> None:
        """At any time: what a node's vector covers is in its documents (Rule 4)."""
        for name, generation, doc_id, rev, dot in self.writes:
            database = node.ledger.register.get(name)
            if database is None or (database.generation, database.dropped) > (generation, False):
                continue
            if node.ledger.vector.get(dot[0], 0) >= dot[1]:
                context = node.row(name, doc_id).document.context
                assert context.get(dot[0], 0) >= dot[1], (node.name, doc_id, rev, dot)


def marks_are_truthful(cluster: Cluster) -> None:
    """What a mark covers has its place before it, and what has its place before it is covered."""
    for node in cluster.nodes:
        rows: Any = node.connection.execute("SELECT db, seq, vector FROM mark").fetchall()
        for db, seq, packed in rows:
            vector = msgspec.msgpack.decode(packed, type=dict[int, int])
            before: Any = node.connection.execute(
                "SELECT id FROM doc WHERE db = ? AND place <= ?", (db, db << 40 | seq)
            ).fetchall()
            for (doc_id,) in before:
                context = documents.read_row(node.connection, db, doc_id).document.context
                assert all(vector.get(o, 0) >= n for o, n in context.items()), (node.name, db, seq)
