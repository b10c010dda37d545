"""The writer's view of the file: dots, places, marks and counters of the transaction under way.

Only the writer's thread holds one. In memory it keeps what every write needs (the vector, this
run's origin, the databases' counters); ``commit`` writes those rows and makes all of it durable at
once, ``rollback`` forgets it and reads the file again.
"""

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from divandb.clock import HybridClock, Rng
from divandb.store import databases
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.vector import Dot, Origin

MARK_CHANGES_MAX = 100


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


def no_changes() -> Changes:
    """A fresh, empty ``Changes``."""
    return Changes(set(), set(), set())


class Ledger:
    """The state behind the one writing connection."""

    def __init__(self, connection: Connection, slot: str, hlc: HybridClock, rng: Rng) -> None:
        self.connection = connection
        self._slot = slot
        self._hlc = hlc
        self._rng = rng
        self.origin: Origin | None = None
        self.after_commit: list[Callable[[], None]] = []
        """What to call once the transaction under way is durable; forgotten when it is undone."""
        self._load()

    def _load(self) -> None:
        rows: Any = self.connection.execute(
            "SELECT origin, contained, stamp FROM origin"
        ).fetchall()
        self.vector: dict[Origin, int] = {origin: contained for origin, contained, _ in rows}
        self.databases = {row.num: row for row in databases.load_all(self.connection)}
        self.register = databases.newest(list(self.databases.values()))
        self.changes = no_changes()
        self._touched: set[int] = set()
        self.after_commit.clear()
        self._outbox: list[tuple[int, int, int, int, str, int]] = []
        self._begun = 0
        for _, _, stamp in rows:
            self._hlc.seen(stamp)
        if self.origin is not None and self.origin not in self.vector:
            self.origin = None

    def begin(self) -> None:
        """Start a transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self._begun = self._hlc.stamp()

    def commit(self) -> Changes:
        """Write the rows that every commit writes, make all durable, and say what changed."""
        self._write_outbox()
        for num in self._touched:
            databases.update(self.connection, self.databases[num])
        self.connection.execute("COMMIT")
        self._touched.clear()
        for call in self.after_commit:
            call()
        self.after_commit.clear()
        changes, self.changes = self.changes, no_changes()
        return changes

    def rollback(self) -> None:
        """Undo the transaction in the file and in memory."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        self._load()

    def stamp(self, after: int = 0) -> int:
        """A hybrid-logical-clock time above every earlier one and above ``after``."""
        return self._hlc.stamp(after)

    def next_dot(self, kind: Kind, db: int, key: str, stamp: int | None = None) -> Dot:
        """Name the next write of this origin and give it its outbox row."""
        origin = self.origin if self.origin is not None else self._open_origin()
        oseq = self.vector[origin] + 1
        self.vector[origin] = oseq
        self._outbox.append((origin, oseq, kind, db, key, stamp or self._begun))
        return (origin, oseq)

    def _open_origin(self) -> Origin:
        # Nobody continues another's origin: each run that accepts a write opens its own.
        origin = int.from_bytes(self._rng.token(8), "big", signed=True)
        self.connection.execute(
            "INSERT INTO origin VALUES (?, ?, 0, ?)", (origin, self._slot, self._hlc.stamp())
        )
        self.vector[origin] = 0
        self.origin = origin
        return origin

    def _write_outbox(self) -> None:
        if not self._outbox:
            return
        self.connection.executemany(
            "INSERT INTO outbox (origin, oseq, kind, db, key, stamp) VALUES (?, ?, ?, ?, ?, ?)",
            self._outbox,
        )
        origin, oseq = self._outbox[-1][:2]
        self.connection.execute(
            "UPDATE origin SET contained = ?, stamp = ? WHERE origin = ?",
            (oseq, self._hlc.last, origin),
        )
        self._outbox.clear()

    def touch(self, database: Database) -> None:
        """Have the database's counters written with the commit."""
        self._touched.add(database.num)

    def next_place(self, database: Database) -> int:
        """The place of the database's next change; stores a mark when one is due.

        Called after the change's dot was taken: the mark then covers the change itself.
        """
        database.seq += 1
        if database.seq - database.mark_seq >= MARK_CHANGES_MAX:
            self.mark(database)
        self._touched.add(database.num)
        self.changes.documents.add(database.num)
        return database.place | database.seq

    def mark(self, database: Database) -> None:
        """Note that all writes the vector covers have places up to the database's newest."""
        self.connection.execute(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?)",
            (database.num, database.seq, msgspec.msgpack.encode(self.vector)),
        )
        database.mark_seq = database.seq

    def add_database(self, database: Database) -> None:
        """Take a new generation into the file and the register."""
        databases.insert(self.connection, database)
        self.databases[database.num] = database
        self.register[database.name] = database
        self.mark(database)
        self.changes.databases.add(database.num)

    def drop_database(self, database: Database) -> None:
        """Mark a generation dropped; its rows are freed by the upkeep."""
        database.dropped = True
        self.touch(database)
        self.changes.databases.add(database.num)

    def forget_database(self, num: int) -> None:
        """A freed generation that a newer one has followed leaves the file and memory."""
        databases.delete(self.connection, num)
        self.databases.pop(num, None)
        self._touched.discard(num)
