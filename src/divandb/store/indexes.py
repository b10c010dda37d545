"""Indexes: ordered entries that documents give, in a file of their own, brought on by change.

An index is known by its database and a signature of what it is made by: who changes a definition
gets another index beside the one in use. What a document gives is the business of whoever asks for
a step (``Entries``); here it is a key whose bytes have the order, a value, and the document's id.

``indexes.sqlite`` holds nothing that is not in the node's file. It has a writer of its own, so that
building one holds up no write; it is not in snapshots, and in no digest. It is not flushed with
each step, but steps are whole: the entries of a step and how far it came are one transaction.

What it says is true of one history of the node's file. So at each start an index stays only if it
was made under the numbering that the file had until then, and came no farther than the file now is:
a file that lost its last commits, or was put back, has fewer changes than its indexes.
"""

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import apsw
import msgspec

from divandb.store import databases, file
from divandb.store.databases import SEQ_MASK
from divandb.store.documents import DELETED, NOTHING_SHOWN
from divandb.store.file import Connection, Disk, Identity

FILE_NAME = "indexes.sqlite"
FORMAT = 1
STEP_ROWS_MAX = 128
STEP_BYTES_MAX = 1024 * 1024
"""A step ends with the document that passes either."""
SWEEP_ROWS_MAX = 2000
SWEEP_PAGES_MAX = 256
WAL_PAGES = 1000
WAL_KEPT_BYTES = 16 * 2**20
_SIDES = ("-wal", "-shm", "-journal")

Entry = tuple[bytes, bytes | None]
"""(key, value)"""
Entries = Callable[[Sequence[tuple[str, bytes]]], Iterable[Sequence[Entry]]]
"""What each of these documents, (id, body), gives. Raises nothing that a document could cause."""

_CHANGED = """
SELECT place, id, flags, body FROM doc WHERE place > ? AND place <= ? ORDER BY place LIMIT ?
"""
_BUILT = "SELECT num, db, signature, seq, fresh FROM built WHERE signature IS NOT NULL"
# Left to itself SQLite would go through the whole index.
_GONE = "DELETE FROM entry INDEXED BY entry_by_document WHERE built = ? AND id = ?"
_SWEEP = """
DELETE FROM entry WHERE (built, key, id, n) IN
    (SELECT built, key, id, n FROM entry WHERE built = ? LIMIT ?)
"""


class Built(msgspec.Struct, frozen=True):
    """An index as far as it has come."""

    num: int
    db: int
    signature: bytes
    seq: int
    fresh: int


class IndexFile:
    """The writing side. Everything but ``close`` is for one thread at a time."""

    def __init__(self, path: Path, disk: Disk, cache_bytes: int) -> None:
        """Open the file, or make it; one that cannot be used is made again. ``disk`` is where the
        node's file is.
        """
        self.path = path
        self._cache_bytes = cache_bytes
        try:
            self._writing = self._opened()
        except (apsw.Error, file.FormatError):
            for side in ("", *_SIDES):
                path.with_name(path.name + side).unlink(missing_ok=True)
            self._writing = self._opened()
        self._reading = file.connect(disk, readonly=True, cache_bytes=2**20)

    def _opened(self) -> Connection:
        connection = file.connect(Disk(self.path), readonly=False, cache_bytes=self._cache_bytes)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.pragma("user_version")
        if version not in (0, FORMAT):
            raise file.FormatError(f"{self.path} has format {version}")
        if version == 0:
            connection.execute(f"PRAGMA page_size = {file.PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            schema = resources.files("divandb.store").joinpath("indexes.sql").read_text()
            with connection:
                connection.execute(schema)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")

    def close(self) -> None:
        """Close it."""
        self._reading.close()
        self._writing.close()

    def settle(self, identity: Identity) -> list[Built]:
        """Drop what is not true of the node's file as it was opened; the indexes that there are.

        Called before anything is written to the node's file.
        """
        with self._writing:
            known = file.get_meta(self._writing, "numbering")
            seqs = {
                one.num: one.seq
                for one in databases.load_all(self._reading)
                if not one.dropped and known is not None and known == identity.before
            }
            for one in self.built():
                if one.seq > seqs.get(one.db, -1):
                    self._doom(one.num)
            file.set_meta(self._writing, "numbering", identity.numbering)
        return self.built()

    def built(self) -> list[Built]:
        """All indexes."""
        return [Built(*row) for row in self._writing.execute(_BUILT)]

    def begin(self, db: int, signature: bytes, seq: int) -> Built:
        """An index that was not there before, of a database that now is at ``seq``."""
        with self._writing:
            self._writing.execute(
                "INSERT OR IGNORE INTO built (db, signature, seq, fresh) VALUES (?, ?, 0, ?)",
                (db, signature, seq),
            )
        rows: Any = self._writing.execute(
            _BUILT + " AND db = ? AND signature = ?", (db, signature)
        ).fetchone()
        return Built(*rows)

    def step(self, built: Built, goal: int, entries: Entries) -> Built:
        """Take in the next changes up to ``goal``, the database's seq at some moment; the index as
        it is then.
        """
        seq, gone, living = self._changed(built, goal)
        given = entries(living)
        rows = [
            (built.num, key, doc_id, n, value)
            for (doc_id, _), some in zip(living, given, strict=True)
            for n, (key, value) in enumerate(some)
        ]
        with self._writing:
            if gone:
                self._writing.executemany(_GONE, gone)
            if rows:
                self._writing.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", rows)
            self._writing.execute("UPDATE built SET seq = ? WHERE num = ?", (seq, built.num))
        return msgspec.structs.replace(built, seq=seq)

    def _changed(
        self, built: Built, goal: int
    ) -> tuple[int, list[tuple[int, str]], list[tuple[str, bytes]]]:
        """How far the step goes, whose entries go, and whose may come."""
        base = built.db << databases.PLACE_BITS
        gone, living, size, seq = [], [], 0, goal
        cursor: Any = self._reading.execute(
            _CHANGED, (base | built.seq, base | goal, STEP_ROWS_MAX)
        )
        for count, (place, doc_id, flags, body) in enumerate(cursor, 1):
            size += len(body)
            if place & SEQ_MASK > built.fresh:
                gone.append((built.num, doc_id))
            if not flags & (DELETED | NOTHING_SHOWN) and not doc_id.startswith("_design/"):
                living.append((doc_id, body))
            if count >= STEP_ROWS_MAX or size >= STEP_BYTES_MAX:
                seq = place & SEQ_MASK
                cursor.close()
                break
        return seq, gone, living

    def retire(self, nums: Iterable[int]) -> None:
        """These indexes are no longer used; ``sweep`` frees what they take."""
        with self._writing:
            for num in nums:
                self._doom(num)

    def _doom(self, num: int) -> None:
        self._writing.execute("UPDATE built SET signature = NULL WHERE num = ?", (num,))

    def sweep(self) -> bool:
        """Free a little of what retired indexes take; is there more?"""
        found: Any = self._writing.execute(
            "SELECT num FROM built WHERE signature IS NULL LIMIT 1"
        ).fetchone()
        if found is None:
            return False
        with self._writing:
            self._writing.execute(_SWEEP, (found[0], SWEEP_ROWS_MAX))
            if self._writing.changes() < SWEEP_ROWS_MAX:
                self._writing.execute("DELETE FROM built WHERE num = ?", (found[0],))
        self._writing.execute(f"PRAGMA incremental_vacuum({SWEEP_PAGES_MAX})").fetchall()
        return True
