"""The writer's view of the file: dots, places, marks and counters of the transaction under way.

Only the writer's thread holds one. In memory it keeps what every write needs (the vector, this
run's origin, the databases' counters); ``commit`` writes those rows and makes all of it durable at
once, ``rollback`` forgets it and reads the file again.
"""

import enum
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from divandb.clock import HybridClock, Rng
from divandb.closings import Closings
from divandb.store import databases, endings
from divandb.store.blobs import Sums
from divandb.store.databases import EMPTY_DIGEST, Database
from divandb.store.file import Connection
from divandb.store.tally import Scan
from divandb.vector import Dot, Origin, Vector, covers

MARK_CHANGES_MAX = 100
_encode = msgspec.msgpack.Encoder().encode


class Kind(enum.IntEnum):
    """What an outbox row is about."""

    DOCUMENT = 1
    REGISTER = 2
    CREATED = 3
    DROPPED = 4


class Changes(msgspec.Struct):
    """What a commit changed, for whoever answers, wakes feeds or caches."""

    documents: set[int]
    """Numbers of the databases with new places."""
    registers: set[tuple[int, str, str]]
    """(db, kind, key) of each register set."""
    databases: set[int]
    """Numbers of the databases that were created or dropped."""
    vector: Vector | None = None
    """What the file contains since, if that has changed."""
    designs: set[int] = msgspec.field(default_factory=set)
    """Numbers of the databases whose design documents have changed."""
    slots: dict[Origin, str] = msgspec.field(default_factory=dict)
    """Whose origins are that the file has come to know of."""


def no_changes() -> Changes:
    """A fresh, empty ``Changes``."""
    return Changes(set(), set(), set())


class Alarms(msgspec.Struct):
    """What an operator should look at, since the start. Set on the writer's thread, read on any."""

    hlc_drift_ms_max: int = 0
    """The farthest that another node's stamp was ahead of this node's clock, if too far."""
    hlc_drift_events: int = 0
    """Events with such a stamp."""
    damaged_blobs: int = 0
    """Attachments, or pieces of them, that were not what their name says, and were dropped."""


class Ledger:
    """The state behind the one writing connection."""

    def __init__(self, connection: Connection, slot: str, hlc: HybridClock, rng: Rng) -> None:
        self.connection = connection
        self._slot = slot
        self._synchronous = self.synchronous = connection.pragma("synchronous")
        """Set on any thread: SQLite's number from the next transaction on, 2 for FULL."""
        self._hlc = hlc
        self._rng = rng
        self.origin: Origin | None = None
        self.closings: Closings
        """All ends of origins in the file, and perhaps in the transaction under way. Set on the
        writer's thread before they are committed, read on any.
        """
        self.alarms = Alarms()
        self.unmet_blobs = 0
        """How often since the start a revision came before the bytes of its attachment. Set on the
        writer's thread, read on any.
        """
        self.replacing: Callable[[list[tuple[int, str]]], AbstractContextManager[None]] = (
            lambda keys: nullcontext()
        )
        """Around each commit, with what it replaces."""
        self.replaced: list[tuple[int, str]] = []
        """(db, id) of the documents whose rows the transaction under way has replaced."""
        self.after_commit: list[Callable[[], object]] = []
        """What to call once the transaction under way is durable; forgotten when it is undone.

        None of them may raise: the commit stands.
        """
        self._load()

    def _load(self) -> None:
        rows: Any = self.connection.execute(
            "SELECT origin, contained, reached, stamp FROM origin"
        ).fetchall()
        self.vector: dict[Origin, int] = {origin: contained for origin, contained, _, _ in rows}
        self.reached: dict[Origin, int] = {origin: reached for origin, _, reached, _ in rows}
        self.closings = endings.load(self.connection)
        self._has_more_ends = False
        self.databases = {row.num: row for row in databases.load_all(self.connection)}
        self.register = databases.newest(list(self.databases.values()))
        self.changes = no_changes()
        self._touched: set[int] = set()
        self._moved: set[Origin] = set()
        self.after_commit.clear()
        self.replaced.clear()
        self._outbox: list[tuple[int, int, int, int, str, int]] = []
        ahead: Any = self.connection.execute("SELECT DISTINCT origin FROM ahead")
        self._ahead: set[Origin] = {origin for (origin,) in ahead}
        # What the file may have lost again is read again when it is needed.
        self.sums = Sums()
        self.scan: Scan | None = None
        """Rows that are being counted anew; it begins again if a transaction is undone."""
        self._begun = 0
        self._wrote = False
        for _, _, _, stamp in rows:
            self._hlc.seen(stamp)
        if self.origin is not None and self.origin not in self.vector:
            self.origin = None

    def begin(self) -> None:
        """Start a transaction."""
        if self._synchronous != self.synchronous:
            self._synchronous = self.synchronous
            self.connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        self.connection.execute("BEGIN IMMEDIATE")
        self._begun = self._hlc.stamp()

    def commit(self) -> Changes:
        """Write the rows that every commit writes, make all durable, and say what changed."""
        self.ends()
        self._write_outbox()
        for num in self._touched:
            databases.update(self.connection, self.databases[num])
        for origin in self._moved:
            self.connection.execute(
                "UPDATE origin SET contained = ?, reached = ? WHERE origin = ?",
                (self.vector[origin], self.reached[origin], origin),
            )
        with self.replacing(self.replaced):
            self.connection.execute("COMMIT")
        self.replaced.clear()
        if self._moved or self._wrote:
            self.changes.vector = dict(self.vector)
        self._touched.clear()
        self._moved.clear()
        self._wrote = False
        changes, self.changes = self.changes, no_changes()
        calls, self.after_commit = self.after_commit, []
        for call in calls:
            call()
        return changes

    def rollback(self) -> None:
        """Undo the transaction in the file and in memory."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._load()

    def hear_of_end(self) -> None:
        """The transaction under way has stored an end of an origin."""
        self._has_more_ends = True

    def ends(self) -> Closings:
        """All ends by now; on the writer's thread."""
        if self._has_more_ends:
            self.closings = endings.load(self.connection)
            self._has_more_ends = False
        return self.closings

    def stamp(self, after: int = 0) -> int:
        """A hybrid-logical-clock time above every earlier one and above ``after``."""
        return self._hlc.stamp(after)

    def seen(self, stamp: int) -> None:
        """Take note of another node's stamp: our next ones exceed it."""
        self._hlc.seen(stamp)

    def next_dot(self, kind: Kind, db: int, key: str, stamp: int | None = None) -> Dot:
        """Name the next write of this origin and give it its outbox row."""
        origin = self.current_origin()
        oseq = self.vector[origin] + 1
        self.vector[origin] = self.reached[origin] = oseq
        self._outbox.append((origin, oseq, kind, db, key, stamp or self._begun))
        self._wrote = True
        return (origin, oseq)

    def current_origin(self) -> Origin:
        """The origin of this run's writes; the first of them opens it."""
        return self.origin if self.origin is not None else self._open_origin()

    def _open_origin(self) -> Origin:
        # Nobody continues another's origin: each run that accepts a write opens its own.
        origin = int.from_bytes(self._rng.token(8), "big", signed=True)
        self.connection.execute(
            "INSERT INTO origin VALUES (?, ?, 0, 0, ?)", (origin, self._slot, self._hlc.stamp())
        )
        self.vector[origin] = self.reached[origin] = 0
        self.origin = origin
        return origin

    def end_origin(self) -> None:
        """The next write opens another: nobody goes on with one over a change of owner."""
        self.origin = None

    def _write_outbox(self) -> None:
        if not self._outbox:
            return
        self.connection.executemany(
            "INSERT INTO outbox (origin, oseq, kind, db, key, stamp) VALUES (?, ?, ?, ?, ?, ?)",
            self._outbox,
        )
        for origin, oseq in {row[0]: row[1] for row in self._outbox}.items():
            self.connection.execute(
                "UPDATE origin SET contained = ?1, reached = ?1, stamp = ?2 WHERE origin = ?3",
                (oseq, self._hlc.last, origin),
            )
        self._outbox.clear()

    def cover(self, origin: Origin, slot: str, after: int, upto: int) -> None:
        """Take note that another origin's writes in (after, upto] are in the file (Rule 4).

        The vector moves only where they join what it covers; others are kept aside until they do.
        """
        contained = self._known(origin, slot)
        if upto <= contained:
            return
        if after > contained:
            self.connection.execute(
                "INSERT INTO ahead VALUES (?1, ?2, ?3)"
                " ON CONFLICT DO UPDATE SET upto = max(upto, excluded.upto)",
                (origin, after, upto),
            )
            self._ahead.add(origin)
            return
        self.vector[origin] = self._joined(origin, upto)
        self.reached[origin] = max(self.reached[origin], self.vector[origin])
        self._moved.add(origin)

    def reach(self, context: Vector) -> None:
        """Take note that a document holds these writes, be they ahead of the vector or not."""
        for origin, oseq in context.items():
            if self.reached.get(origin, -1) < oseq:
                self._known(origin, "")
                self.reached[origin] = oseq
                self._moved.add(origin)

    def _known(self, origin: Origin, slot: str) -> int:
        """What is contained of an origin; its row is made, and gets its slot once that is known."""
        if origin not in self.vector:
            self.connection.execute("INSERT INTO origin VALUES (?, ?, 0, 0, 0)", (origin, slot))
            self.vector[origin] = self.reached[origin] = 0
        elif slot and not self.vector[origin]:
            self.connection.execute("UPDATE origin SET slot = ? WHERE origin = ?", (slot, origin))
        else:
            return self.vector[origin]
        if slot:
            self.changes.slots[origin] = slot
        return self.vector[origin]

    def _joined(self, origin: Origin, upto: int) -> int:
        """``upto``, moved on by what was kept aside and now joins it."""
        if origin not in self._ahead:
            return upto
        rows: Any = self.connection.execute(
            "SELECT after, upto FROM ahead WHERE origin = ? ORDER BY after", (origin,)
        ).fetchall()
        for after, end in rows:
            if after > upto:
                return upto
            upto = max(upto, end)
            self.connection.execute(
                "DELETE FROM ahead WHERE origin = ? AND after = ?", (origin, after)
            )
        self._ahead.discard(origin)
        return upto

    def slots(self) -> dict[Origin, str]:
        """Whose the origins are, as far as it is known."""
        rows: Any = self.connection.execute("SELECT origin, slot FROM origin WHERE slot != ''")
        return dict(rows.fetchall())

    @property
    def has_gap(self) -> bool:
        """Was anything applied ahead of the vector? May be asked on any thread."""
        return bool(self._ahead)

    @property
    def newest(self) -> Dot | None:
        """The last dot of this run's origin."""
        return (self.origin, self.vector[self.origin]) if self.origin is not None else None

    @property
    def moved(self) -> set[Origin]:
        """Others' origins of which the transaction under way brought more."""
        return self._moved

    def touch(self, database: Database) -> None:
        """Have the database's counters written with the commit."""
        self._touched.add(database.num)

    def next_place(self, database: Database, doc_id: str) -> int:
        """The place of the database's next change; stores a mark when one is due.

        Called after the change's dot was taken: the mark then covers the change itself.
        """
        database.seq += 1
        self.mark_if_due(database)
        self._touched.add(database.num)
        self.changes.documents.add(database.num)
        if doc_id.startswith("_design/"):
            self.changes.designs.add(database.num)
        return database.place | database.seq

    def mark_if_due(self, database: Database) -> None:
        """Store a mark if the last one is far back and what the documents hold is all covered.

        A mark vouches both ways: what it covers has its place before it, and what has its place
        before it is covered. While documents hold writes ahead of the vector, none can be made.
        """
        due = database.seq - database.mark_seq >= MARK_CHANGES_MAX
        if due and covers(self.vector, self.reached):
            self.mark(database)

    def mark_touched(self) -> None:
        """Store the marks that are due in what this transaction has changed so far."""
        for num in self._touched:
            self.mark_if_due(self.databases[num])

    def mark(self, database: Database) -> None:
        """Note that all writes the vector covers have places up to the database's newest."""
        self.connection.execute(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?)",
            (database.num, database.seq, _encode(self.ends().compact(self.vector))),
        )
        database.mark_seq = database.seq

    def next_num(self) -> int:
        """The number of the next generation that is added."""
        return max(self.databases, default=0) + 1

    def add_generation(self, name: str, generation: int, created_ms: int, options: str) -> Database:
        """Take a new generation into the file and the register.

        An older one that lives is dropped by it: the word of its drop may come late, or never.
        """
        known = self.register.get(name)
        if known is not None and not known.dropped:
            self.drop_database(known)
        database = Database(
            self.next_num(), name, generation, False, False, created_ms,
            0, 0, 0, 0, 0, 0, 0, options,
        )  # fmt: skip
        databases.insert(self.connection, database)
        self.databases[database.num] = database
        self.register[database.name] = database
        self.mark(database)
        self.changes.databases.add(database.num)
        return database

    def learn_creation(self, database: Database, created_ms: int, options: str) -> None:
        """Another creation of this generation: of two, all nodes take the same one."""
        if databases.creation_order(created_ms, options) < database.creation:
            database.created_ms, database.options = created_ms, options
            self.touch(database)
            self.changes.databases.add(database.num)

    def drop_database(self, database: Database) -> None:
        """Mark a generation dropped; its rows are freed by the upkeep."""
        database.dropped = True
        database.digest = EMPTY_DIGEST
        self.touch(database)
        self.changes.databases.add(database.num)

    def forget_database(self, num: int) -> None:
        """A freed generation that a newer one has followed leaves the file and memory."""
        databases.delete(self.connection, num)
        self.databases.pop(num, None)
        self._touched.discard(num)
