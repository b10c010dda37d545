"""Indexes: ordered entries that documents give, in a file of their own, brought on by change.

An index is known by its database and a signature of what it is made by: who changes a definition
gets another index beside the one in use. What a document gives is the business of whoever asks for
a step (``Recipe``); here it is a key whose bytes have the order, a value, and the document's id.

``indexes.sqlite`` holds nothing that is not in the node's file. It has a writer of its own, so that
building one holds up no write; it is not in snapshots, and in no digest. It is not flushed with
each step, but steps are whole: the entries of a step and how far it came are one transaction.

What it says is true of one history of the node's file. So at each start an index stays only if it
was made under the numbering that the file had until then, and came no farther than the file now is:
a file that lost its last commits, or was put back, has fewer changes than its indexes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import apsw
import msgspec

from divandb.document import with_members
from divandb.store import databases, documents, file
from divandb.store.databases import SEQ_MASK
from divandb.store.documents import CONFLICTS, DELETED, NOTHING_SHOWN
from divandb.store.file import Connection, Disk, Identity

FILE_NAME = "indexes.sqlite"
FORMAT = 3
STEP_ROWS_MAX = 128
STEP_BYTES_MAX = 1024 * 1024
"""A step ends with the document that passes either."""
SWEEP_ROWS_MAX = 2000
SWEEP_PAGES_MAX = 256
WAL_PAGES = 1000
WAL_KEPT_BYTES = 16 * 2**20
_SIDES = ("-wal", "-shm", "-journal")

Entry = tuple[bytes, bytes | None, float | None]
"""(key, value, the value as a number if it is one)"""
Entries = Callable[[Sequence[tuple[str, bytes]]], Sequence[Sequence[Entry]]]
"""What each of these documents, (id, body), gives: of the first of them at least. Whatever it
raises ends the building.
"""

_CHANGED = """
SELECT place, id, flags, body FROM doc WHERE place > ? AND place <= ? ORDER BY place LIMIT ?
"""
_BUILT = "SELECT num, db, signature, seq, fresh, name FROM built WHERE signature IS NOT NULL"
_USED = """
SELECT used.db, used.name, built.signature, used.about
FROM used JOIN built ON built.num = used.built WHERE built.signature IS NOT NULL
"""
# Left to itself SQLite would go through the whole index.
_GONE = "DELETE FROM entry INDEXED BY entry_by_document WHERE built = ? AND id = ?"
_GONE_COUNTED = _GONE + " RETURNING key"
_HOLD = """
INSERT INTO held VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET entries = entries + excluded.entries
"""
_SWEEP = """
DELETE FROM entry WHERE (built, key, id, n) IN
    (SELECT built, key, id, n FROM entry WHERE built = ? LIMIT ?)
"""


class Recipe(msgspec.Struct, frozen=True):
    """How an index is made."""

    entries: Entries
    designs: bool = False
    """Are design documents in it?"""
    conflicts: bool = False
    """Do bodies have `_conflicts` and `_deleted_conflicts` where there are any?"""
    local_seq: bool = False
    """Do they have `_local_seq`?"""
    part_bytes: int = 0
    """So many bytes of a key say which part of the index it is in; 0: parts are not counted."""
    about: bytes | None = None
    """What a reader must know to use it when its definition is gone: of an index that goes on
    answering then.
    """


class Built(msgspec.Struct, frozen=True):
    """An index as far as it has come."""

    num: int
    db: int
    signature: bytes
    seq: int
    fresh: int
    name: str = ""

    @property
    def is_complete(self) -> bool:
        """Has it ever come as far as its database was when it was begun?"""
        return self.seq >= self.fresh


class _Changed(msgspec.Struct):
    """A step's documents, by change."""

    seq: int
    """How far the step goes."""
    gone: list[tuple[int, str]] = []
    """(seq, id) of those that may have entries."""
    living: list[tuple[str, bytes]] = []
    """(id, body) of those that may give some."""
    seqs: list[int] = []
    """Of the living."""


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

    def used(self) -> list[tuple[int, str, bytes, bytes]]:
        """(database, design document, signature of the index that answers for it, about)"""
        return list(self._writing.execute(_USED))

    def use(self, db: int, name: str, num: int, about: bytes) -> None:
        """From now on this index answers for that design document."""
        row = (db, name, num, about)
        with self._writing:
            self._writing.execute("INSERT OR REPLACE INTO used VALUES (?, ?, ?, ?)", row)

    def disuse(self, db: int, name: str) -> None:
        """None answers for it any more."""
        with self._writing:
            self._writing.execute("DELETE FROM used WHERE db = ? AND name = ?", (db, name))

    def begin(self, db: int, signature: bytes, seq: int, name: str = "") -> Built:
        """An index that was not there before, of a database that now is at ``seq``."""
        with self._writing:
            self._writing.execute(
                "INSERT OR IGNORE INTO built (db, signature, seq, fresh, name)"
                " VALUES (?, ?, 0, ?, ?)",
                (db, signature, seq, name),
            )
        rows: Any = self._writing.execute(
            _BUILT + " AND db = ? AND signature = ?", (db, signature)
        ).fetchone()
        return Built(*rows)

    def step(self, built: Built, goal: int, recipe: Recipe) -> Built:
        """Take in the next changes up to ``goal``, the database's seq at some moment; the index as
        it is then.
        """
        changed = self._changed(built, goal, recipe)
        given = recipe.entries(changed.living) if changed.living else []
        if len(given) < len(changed.living):
            changed.seq = changed.seqs[len(given)] - 1
        rows = [
            (built.num, key, doc_id, n, number, value)
            for (doc_id, _), some in zip(changed.living, given, strict=False)
            for n, (key, value, number) in enumerate(some)
        ]
        gone = [(built.num, doc_id) for seq, doc_id in changed.gone if seq <= changed.seq]
        with self._writing:
            counts = self._remove(gone, recipe.part_bytes) if gone else Counter()
            if rows:
                self._writing.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", rows)
            if recipe.part_bytes:
                counts.update([row[1][: recipe.part_bytes] for row in rows])
                changes = [(built.num, part, count) for part, count in counts.items() if count]
                self._writing.executemany(_HOLD, changes)
            self._writing.execute(
                "UPDATE built SET seq = ? WHERE num = ?", (changed.seq, built.num)
            )
        return msgspec.structs.replace(built, seq=changed.seq)

    def _remove(self, gone: list[tuple[int, str]], part_bytes: int) -> Counter[bytes]:
        """Remove what these documents gave; what that is to each part's count."""
        found: Any = self._writing.executemany(_GONE_COUNTED if part_bytes else _GONE, gone)
        counts: Counter[bytes] = Counter()
        counts.subtract([key[:part_bytes] for (key,) in found] if part_bytes else ())
        return counts

    def _changed(self, built: Built, goal: int, recipe: Recipe) -> _Changed:
        base = built.db << databases.PLACE_BITS
        found, size = _Changed(goal), 0
        cursor: Any = self._reading.execute(
            _CHANGED, (base | built.seq, base | goal, STEP_ROWS_MAX)
        )
        for count, (place, doc_id, flags, body) in enumerate(cursor, 1):
            size += len(body)
            seq = place & SEQ_MASK
            if seq > built.fresh:
                found.gone.append((seq, doc_id))
            if not flags & (DELETED | NOTHING_SHOWN) and (
                recipe.designs or not doc_id.startswith("_design/")
            ):
                found.living.append(
                    (doc_id, self._body(built.db, seq, doc_id, flags, body, recipe))
                )
                found.seqs.append(seq)
            if count >= STEP_ROWS_MAX or size >= STEP_BYTES_MAX:
                found.seq = seq
                cursor.close()
                break
        return found

    def _body(
        self, db: int, seq: int, doc_id: str, flags: int, body: bytes, recipe: Recipe
    ) -> bytes:
        """A document as the recipe wants it."""
        members: dict[str, object] = {}
        if recipe.local_seq:
            members["_local_seq"] = seq
        if recipe.conflicts and flags & CONFLICTS:
            losers = documents.read_row(self._reading, db, doc_id).document.shown()[1:]
            for name, deleted in (("_conflicts", False), ("_deleted_conflicts", True)):
                revs = [leaf.rev for leaf in losers if leaf.deleted == deleted]
                if revs:
                    members[name] = revs
        return with_members(body, members) if members else body

    def retire(self, nums: Iterable[int]) -> None:
        """These indexes are no longer used; ``sweep`` frees what they take."""
        with self._writing:
            for num in nums:
                self._doom(num)

    def _doom(self, num: int) -> None:
        self._writing.execute("UPDATE built SET signature = NULL WHERE num = ?", (num,))
        self._writing.execute("DELETE FROM used WHERE built = ?", (num,))

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
                self._writing.execute("DELETE FROM held WHERE built = ?", (found[0],))
                self._writing.execute("DELETE FROM built WHERE num = ?", (found[0],))
        self._writing.execute(f"PRAGMA incremental_vacuum({SWEEP_PAGES_MAX})").fetchall()
        return True
