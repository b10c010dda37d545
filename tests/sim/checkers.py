"""What must hold, at every moment or in the end: each checker raises what it found.

VectorIsTruthful     what a node's vector covers is in its file, after every commit (Rule 4)
EqualVectors         equal vectors mean equal digests, on whatever node and whenever
NothingComesBack     what a write has replaced or deleted shows nowhere that has this write
NothingLost          in the end every committed write is a leaf, an ancestor of one, or purged
LagIsNoLess          a view is never older than an answer says
MarksAreTruthful     what a cursor's mark vouches for, both ways
SameEverywhere       in the end all nodes hold the same, kept digests are right
AnsweredIsCommitted  what is answered has been committed
OwnWritesAreRead     who carries a token reads what it wrote
ReadsNeverGoBack     and, with the header, nothing older than before
FeedsMissNothing     a reader of changes was shown all that its cursor vouches for
OneOwner             an origin is of one run of one node, and has no number twice
LagReturns           some time after all has healed every view is young again
StaysBounded         queues keep to their limits
VectorsAreUnderstood what a node tells of its vector others take for just that
"""

from bisect import bisect_left
from collections.abc import Iterable
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from divandb.merge import Document
from divandb.store import databases, digests, documents
from divandb.store.databases import Database
from divandb.tenure import Owner
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

    def healed(self) -> None:
        """Nothing goes wrong from now on."""

    def finished(self) -> None:
        """Everybody has talked to everybody."""

    def told(self, *what: Any) -> None:
        """A client has seen something."""


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
        rows = _Rows(node)
        for origin, oseq, write in writes:
            if (origin, oseq) in self.history.excused:
                continue
            replaces = write.kind == DOCUMENT and write.parent is not None
            if replaces and _lives(node, write) and not self._is_made_twice(write):
                assert write.parent not in rows.shown(write), (
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


class _Rows:
    """Documents of a node while nothing moves, each read once."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._known: dict[tuple[str, str], tuple[Document, set[str]]] = {}

    def _read(self, write: Write) -> tuple[Document, set[str]]:
        place = (write.name, write.key)
        if place not in self._known:
            document = self._node.row(*place).document
            self._known[place] = document, {leaf.rev for leaf in document.shown()}
        return self._known[place]

    def document(self, write: Write) -> Document:
        """The one that was written."""
        return self._read(write)[0]

    def shown(self, write: Write) -> set[str]:
        """Its leaves."""
        return self._read(write)[1]


class NothingLost(Checker):
    """In the end every committed write is a leaf, in a leaf's ancestry, or was replaced by a write
    that had seen it; but for those whose only copies were on disks that are gone.
    """

    def finished(self) -> None:
        for node in self.cluster.nodes:
            rows = _Rows(node)
            for origin, oseq, write in self.history.all():
                if write.kind != DOCUMENT or not _lives(node, write):
                    continue
                if (origin, oseq) in self.history.excused:
                    continue
                document = rows.document(write)
                assert document.context.get(origin, 0) >= oseq, (node.name, write)
                if write.rev is not None:
                    shown = rows.shown(write)
                    kept = shown | self.history.purged[write.place]
                    assert write.rev in self.history.ancestors(write.place, kept), (
                        node.name, write, shown,
                    )  # fmt: skip


class LagIsNoLess(Checker):
    """What an answer says of its view's age: all is there that slots' owners, as the node knows
    them, contained of their slots' writes before, but for silent slots; whoever accepted these
    writes, and whatever owners have lost since. Judged at every answer, not only now and then.

    An owner that was started with less than it had knows no more of the rest than its file says.
    """

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self.looks = 0
        """How often a node said how old its view is, and was judged."""
        self._had: dict[str, list[tuple[float, dict[int, int]]]] = {}
        """name → (when, what it contained from then on of its slot's writes)."""

    def started(self, node: "Node") -> None:
        own, known = self._own(node), self._had.setdefault(node.name, [])
        if known and not covers(own, known[-1][1]):
            known.clear()
        known.append((self.cluster.loop.now_s, own))

    def committed(self, node: "Node") -> None:
        own, known = self._own(node), self._had[node.name]
        if own != known[-1][1]:
            known.append((self.cluster.loop.now_s, own))

    def _own(self, node: "Node") -> dict[int, int]:
        slots, slot = self.history.slots, node.member.slot
        return {o: oseq for o, oseq in node.ledger.vector.items() if slots.get(o) == slot}

    def looked(self, node: "Node") -> None:
        node.standing.age()  # tells what it says, as every answer does

    def told(self, node: "Node", said: list[tuple[str, str]], owners: dict[str, Owner]) -> None:
        found = dict(said)
        lag = found.get("divan-lag", "unknown")
        if lag == "unknown":
            return
        self.looks += 1
        silent = {part.split("=")[0] for part in found.get("divan-silent", "").split(", ")}
        moment_s = self.cluster.loop.now_s - int(lag) / 1000
        here = node.progress.vector
        for slot, owner in owners.items():
            if slot not in silent and owner.name != node.name:
                wrote = self._before(owner.name, moment_s)
                assert covers(here, wrote), (node.name, said, slot, owner, wrote, here)

    def _before(self, name: str, moment_s: float) -> dict[int, int]:
        """What this node contained at a moment of its slot's writes."""
        known = self._had.get(name, [])
        place = bisect_left(known, moment_s, key=itemgetter(0))
        return known[place - 1][1] if place else {}


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


class VectorsAreUnderstood(Checker):
    """What a node tells of its vector is all of it for who has heard of the same ends, and never
    more for anybody. Members whose files have lost nothing have heard of them.
    """

    every_s = 1.0

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._looked_s: dict[str, float] = {}
        self._judged: dict[tuple[str, str], tuple[Any, ...]] = {}
        """What was said, what is there and what the other has heard of, of two nodes."""
        self.short = 0
        """How often a vector named less than the origins that were written under."""

    def looked(self, node: "Node") -> None:
        now_s = self.cluster.loop.time()
        if now_s < self._looked_s.get(node.name, -self.every_s) + self.every_s:
            return
        self._looked_s[node.name] = now_s
        self._check(node)

    def finished(self) -> None:
        for node in self.cluster.nodes:
            self._check(node)

    def _check(self, node: "Node") -> None:
        told, whole = node.progress.told, node.progress.vector
        self.short += len(told) < len(whole)
        for other in self.cluster.nodes:
            if not other.up:
                continue
            place, now = (node.name, other.name), (told, whole, other.ledger.closings)
            before = self._judged.get(place, ())
            if before and all(one is former for one, former in zip(now, before, strict=True)):
                continue
            self._judged[place] = now
            taken = other.ledger.closings.expand(told)
            assert covers(whole, taken), ("more than was said", node.name, other.name, told)
            if not other.may_forget:
                assert covers(taken, whole), ("less than was said", node.name, other.name, told)


def _marks(node: "Node") -> list[tuple[int, int, dict[int, int]]]:
    rows: Any = node.connection.execute("SELECT db, seq, vector FROM mark").fetchall()
    living = {num for num, database in node.ledger.databases.items() if not database.dropped}
    decode = msgspec.msgpack.Decoder(dict[int, int]).decode
    whole = node.ledger.closings.expand
    return [(db, seq, whole(decode(packed))) for db, seq, packed in rows if db in living]


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


class AnsweredIsCommitted(Checker):
    """What a client is told was written has been committed by then, at some master."""

    def told(self, name: str, doc_id: str, rev: str) -> None:
        assert self.history.is_known(name, doc_id, rev), ("answered, not committed", doc_id, rev)


class OwnWritesAreRead(Checker):
    """Who carries a session's token reads what it wrote."""

    def told(self, node: "Node", path: str, wrote: int, seen: int, shown: int) -> None:
        assert shown >= wrote, ("a write is not read", node.name, path, wrote, shown)


class ReadsNeverGoBack(Checker):
    """Who carries it in the header reads nothing older than it has read before."""

    def told(self, node: "Node", path: str, wrote: int, seen: int, shown: int) -> None:
        assert shown >= seen, ("a read goes back", node.name, path, seen, shown)


class FeedsMissNothing(Checker):
    """What a reader's cursor vouches for was shown to it: each write that its vector covers, or a
    later one of that document, or there is another that the vector does not cover, so that the
    document will be shown with all its leaves.
    """

    def told(
        self, node: "Node", database: tuple[str, int], shown: dict[str, set[str]],
        before: dict[int, int], vector: dict[int, int],
    ) -> None:  # fmt: skip
        for _, _, write in self.history.behind(before, vector):
            ours = (write.name, write.generation) == database
            if write.kind == DOCUMENT and ours and write.rev is not None:
                known = shown.get(write.key, set()) | self.history.purged[write.place]
                seen = write.rev in self.history.ancestors(write.place, known)
                assert seen or self.history.has_uncovered(write.place, vector), (
                    "a change is missed", node.name, write, vector,
                )  # fmt: skip


class BoardKeeps(Checker):
    """What was answered with concern ``board`` outlives any one disk, as long as the board does."""

    def told(self, name: str, written: list[tuple[str, str]]) -> None:
        losses = self.cluster.losses
        if losses.disks > 1 or losses.boards:
            return
        for doc_id, rev in written:
            for node in self.cluster.nodes:
                assert rev in node.leaves(name, doc_id), (node.name, doc_id, "is lost")


class CheckpointsVouch(BoardKeeps):
    """So do the documents that an answered checkpoint vouches for."""


class OneOwner(Checker):
    """Nobody goes on where another began: an origin is of one run of one node, and its numbers
    have no gap.
    """

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._owners: dict[int, tuple[str, object]] = {}
        self._last: dict[int, int] = {}

    def told(self, node: "Node", origin: int, first: int, last: int) -> None:
        run = (node.name, node.process)
        owner = self._owners.setdefault(origin, run)
        assert owner == run, (node.name, "writes under the origin of", owner[0], origin)
        before = self._last.get(origin, 0)
        assert first == before + 1, (node.name, "uses number", first, "after", before, origin)
        self._last[origin] = last


class DropsHitWhatTheyMeant(Checker):
    """A drop is of the generation that its client knew, however late it comes."""

    def told(self, node: "Node", meant: int, dropped: int) -> None:
        assert meant == dropped, (node.name, "was to drop", meant, "and dropped", dropped)


class LagReturns(Checker):
    """Some time after all has healed every node's view of all slots is young, and stays so."""

    within_s = 20.0
    lag_ms_max = 2_000

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._since_s = inf
        self._late: set[str] = set()

    def healed(self) -> None:
        self._since_s = self.cluster.loop.time() + self.within_s
        self._late = {node.name for node in self.cluster.nodes}

    @property
    def waits(self) -> bool:
        """Is there a node at which nobody has looked since then?"""
        return bool(self._late)

    def looked(self, node: "Node") -> None:
        if node.standing.is_alone:
            self._late.discard(node.name)
        elif self.cluster.loop.time() >= self._since_s:
            self._judge(node)

    def _judge(self, node: "Node") -> None:
        said = dict(node.standing.age())
        lag = said.get("divan-lag", "unknown")
        is_young = lag != "unknown" and int(lag) <= self.lag_ms_max
        assert is_young and "divan-silent" not in said, (
            node.name, said, "so long after all has healed:", self.within_s,
        )  # fmt: skip
        self._late.discard(node.name)


class StaysBounded(Checker):
    """No queue is longer than its limit, and no process has many more tasks than it has loops."""

    tasks_max = 400
    rows_every_s = 2.0

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(cluster)
        self._counted_s: dict[str, float] = {}

    def looked(self, node: "Node") -> None:
        limits = node.config.limits
        found = {
            "jobs": (node.writer.waiting_jobs, limits.write_queue_jobs_max),
            "catch-ups": (node.giver.under_way, limits.catch_ups_max),
            "tasks": (node.process.tasks, self.tasks_max),
        }
        relay = node.role.relay
        if relay is not None:
            found["relay"] = (relay._bytes, limits.relay_bytes_max + RELAY_BATCH_BYTES)
        now_s = self.cluster.loop.time()
        if now_s >= self._counted_s.get(node.name, 0.0) + self.rows_every_s:
            self._counted_s[node.name] = now_s
            for table in ("outbox", "waiting"):
                found[table] = (node.count(table), ROWS_MAX)
        for what, (count, most) in found.items():
            assert count <= most, (node.name, what, count, "of", most)


ROWS_MAX = 20_000
"""A run writes less."""
RELAY_BATCH_BYTES = 256 * 1024
"""The last batch that was let in."""


ALL = (
    VectorIsTruthful, EqualVectors, NothingComesBack, NothingLost, LagIsNoLess, MarksAreTruthful,
    SameEverywhere, AnsweredIsCommitted, OwnWritesAreRead, ReadsNeverGoBack, FeedsMissNothing,
    BoardKeeps, CheckpointsVouch, OneOwner, DropsHitWhatTheyMeant, LagReturns, StaysBounded,
    VectorsAreUnderstood,
)  # fmt: skip
__all__ = ["ALL", "DOCUMENT", "REGISTER", "Checker", "contents"]
