"""Documents as rows: reading a winner, a whole state or a body; storing a new state."""

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from divandb import revtree
from divandb.clock import stamp_ms
from divandb.event import DocumentState
from divandb.merge import NOTHING, Document
from divandb.revtree import Attachment, Leaf
from divandb.store import blobs, digests
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.tally import Weight

DELETED = 1
NOTHING_SHOWN = 2
CONFLICTS = 4

_encode = msgspec.msgpack.Encoder().encode
_decode_document = msgspec.msgpack.Decoder(Document).decode
_decode_attachments = msgspec.msgpack.Decoder(tuple[Attachment, ...]).decode

_WINNER = "SELECT rev, flags, body FROM doc WHERE db = ? AND id = ?"
_ROW = "SELECT place, flags, rev, body, tree FROM doc WHERE db = ? AND id = ?"
_TREES = "SELECT place, id, tree FROM doc WHERE place > ? AND place < ? ORDER BY place LIMIT ?"
_INSERT = "INSERT INTO doc VALUES (?, ?, ?, ?, ?, ?, ?)"
_EXISTING = """
SELECT id FROM doc INDEXED BY doc_by_id WHERE db = ? AND id IN (SELECT value FROM json_each(?))
"""
_DELETE = "DELETE FROM doc WHERE place = ?"
_BODY = "SELECT body, attachments, deleted FROM body WHERE db = ? AND id = ? AND rev = ?"
_BODY_OF_LEAF = "SELECT body FROM body WHERE db = ? AND id = ? AND rev = ? AND digest = ?"
_KEEP_BODY = "INSERT OR IGNORE INTO body VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_KEEP_OLD_BODY = f"{_KEEP_BODY} RETURNING length(body)"
_DROP_BODY = """
DELETE FROM body WHERE db = ? AND id = ? AND rev = ? AND digest = ?
RETURNING leaf, length(body)
"""
_BODIES_AFTER = """
SELECT id, rev, digest, leaf, length(body) FROM body
WHERE db = ? AND (id, rev, digest) > (?, ?, ?) ORDER BY id, rev, digest LIMIT ?
"""
_DROP_LEAVES = "DELETE FROM body WHERE db = ? AND id = ? AND leaf = 1"
_RELEASE = "DELETE FROM blob_use WHERE db = ? AND id = ? AND rev = ? RETURNING blob"
_BODY_IS_OLD = """
UPDATE body SET leaf = 0 WHERE db = ? AND id = ? AND rev = ? AND digest = ? AND leaf = 1
RETURNING length(body)
"""


_USES = "SELECT db, id, rev FROM blob_use WHERE blob = ? LIMIT ?"


class Row(msgspec.Struct):
    """A document as its row has it; ``place`` is 0 while there is none."""

    id: str
    place: int
    flags: int
    rev: str
    body: bytes
    document: Document

    @property
    def seq(self) -> int:
        return self.place & ((1 << 40) - 1)

    @property
    def winner(self) -> Leaf | None:
        """The leaf whose body ``body`` is."""
        shown = self.document.shown()
        return shown[0] if shown else None


class Revision(msgspec.Struct, frozen=True):
    """One revision that can be answered: its body is the bytes that are sent."""

    rev: str
    deleted: bool
    body: bytes
    attachments: tuple[Attachment, ...]


def read_winner(connection: Connection, num: int, doc_id: str) -> tuple[str, int, bytes] | None:
    """(rev, flags, body) of the winner, or ``None``."""
    cursor: Any = connection.execute(_WINNER, (num, doc_id))
    row: tuple[str, int, bytes] | None = cursor.fetchone()
    return row


def read_row(connection: Connection, num: int, doc_id: str) -> Row:
    """The document's whole state; a row with ``NOTHING`` in it when there is none."""
    row: Any = connection.execute(_ROW, (num, doc_id)).fetchone()
    if row is None:
        return Row(doc_id, 0, 0, "", b"", NOTHING)
    place, flags, rev, body, tree = row
    return Row(doc_id, place, flags, rev, body, _decode_document(tree))


def read_revision(connection: Connection, num: int, row: Row, rev: str) -> Revision | None:
    """One revision of the document, if its body is still there."""
    winner = row.winner
    if winner is not None and winner.rev == rev:
        return Revision(rev, winner.deleted, row.body, winner.attachments)
    shown = next((leaf for leaf in row.document.shown() if leaf.rev == rev), None)
    if shown is not None:
        body = read_leaf_body(connection, num, row.id, shown)
        return Revision(rev, shown.deleted, body, shown.attachments)
    if not revtree.descendants(row.document.leaves, rev):
        return None
    old: Any = connection.execute(_BODY, (num, row.id, rev)).fetchone()
    if old is None:
        return None
    attachments = _decode_attachments(old[1]) if old[1] is not None else ()
    return Revision(rev, bool(old[2]), old[0], attachments)


def read_leaf_body(connection: Connection, num: int, doc_id: str, leaf: Leaf) -> bytes:
    """The body of a leaf that does not win; raises ``LookupError`` if the file lacks it."""
    key = (num, doc_id, leaf.rev, leaf.digest)
    row: Any = connection.execute(_BODY_OF_LEAF, key).fetchone()
    if row is None:
        raise LookupError(f"the body of leaf {leaf.rev} of {doc_id!r} is not in the file")
    body: bytes = row[0]
    return body


def read_state(connection: Connection, num: int, doc_id: str) -> DocumentState:
    """The document as a Write Event carries it: leaves and context, with the leaves' bodies."""
    row = read_row(connection, num, doc_id)
    winner = row.winner
    bodies_of = tuple(
        row.body if _same(leaf, winner) else read_leaf_body(connection, num, doc_id, leaf)
        for leaf in row.document.leaves
    )
    return DocumentState(doc_id, row.document, bodies_of)


def contexts_after(
    connection: Connection, place: int, end: int, limit: int
) -> list[tuple[int, str, dict[int, int]]]:
    """(place, id, context) of the next rows between two places."""
    rows: Any = connection.execute(_TREES, (place, end, limit))
    return [(at, doc_id, _decode_document(tree).context) for at, doc_id, tree in rows]


def bodies(connection: Connection, num: int, doc_id: str) -> dict[str, bool]:
    """revision → deleted, of all revisions with a body beside the winner's."""
    found = connection.execute(
        "SELECT rev, deleted FROM body WHERE db = ? AND id = ?", (num, doc_id)
    )
    return {rev: bool(deleted) for rev, deleted in found}


def existing(connection: Connection, num: int, doc_ids: list[str]) -> set[str]:
    """Those of ``doc_ids`` that have a row, be it a tombstone's or a purged document's."""
    rows = connection.execute(_EXISTING, (num, orjson.dumps(doc_ids).decode()))
    return {doc_id for (doc_id,) in rows}


class Births:
    """Documents that were not there before, or in which one leaf simply follows one leaf: their
    rows are put together and stored in one go.
    """

    def __init__(self, ledger: Ledger, database: Database) -> None:
        self._ledger = ledger
        self._database = database
        self._rows: list[tuple[int, int, str, int, str, bytes, bytes]] = []
        self._gone: list[tuple[int]] = []
        self._old: list[tuple[int, str, str, bytes, bool, bool, bytes, bytes | None]] = []
        self._digest = 0

    def add(self, doc_id: str, leaf: Leaf, body: bytes) -> None:
        """A new document of one leaf."""
        ((origin, oseq),) = leaf.dots
        self._put(doc_id, Document((leaf,), {origin: oseq}), leaf, body)

    def follow(self, row: Row, document: Document, body: bytes) -> None:
        """A new state of one leaf in the place of a row of one leaf, of another revision."""
        (before,), (after,) = row.document.leaves, document.leaves
        attachments = _encode(before.attachments) if before.attachments else None
        key = (self._database.num, row.id, before.rev, before.digest)
        self._gone.append((row.place,))
        self._ledger.replaced.append((self._database.num, row.id))
        self._old.append((*key, False, before.deleted, row.body, attachments))
        _count(self._database, row, -1)
        number = digests.of_document(row.id, (before,))
        self._digest ^= number
        _leave(self._ledger, self._database, row, number)
        self._put(row.id, document, after, body)

    def _put(self, doc_id: str, document: Document, leaf: Leaf, body: bytes) -> None:
        database = self._database
        place = self._ledger.next_place(database, doc_id)
        flags = DELETED if leaf.deleted else 0
        tree = _encode(document)
        self._rows.append((place, database.num, doc_id, flags, leaf.rev, body, tree))
        if leaf.deleted:
            database.tombstones += 1
        else:
            database.docs += 1
        database.body_bytes += len(body)
        number = digests.of_document(doc_id, (leaf,))
        self._digest ^= number
        _enter(self._ledger, database, flags, body, number)
        if leaf.attachments:
            use_blobs(self._ledger, database.num, doc_id, leaf)

    def flush(self) -> None:
        """Store what was added."""
        if self._rows:
            connection, database = self._ledger.connection, self._database
            if self._gone:
                connection.executemany(_DELETE, self._gone)
                kept: Any = connection.executemany(_KEEP_OLD_BODY, self._old)
                # One that had been cut from the tree may have come again: it is counted already.
                database.old_bytes += sum(length for (length,) in kept)
                self._gone.clear()
                self._old.clear()
            connection.executemany(_INSERT, self._rows)
            self._rows.clear()
            database.digest = digests.combined(database.digest, self._digest)
            self._digest = 0


def store(
    ledger: Ledger,
    database: Database,
    row: Row,
    document: Document,
    born: Sequence[tuple[Leaf, bytes]] = (),
    *,
    purging: bool = False,
) -> None:
    """Store ``document`` as the new state of ``row``, at the database's next place.

    ``born`` are the leaves that the write brought, with their bodies. Bodies of leaves that are
    replaced are kept as old revisions, or dropped when ``purging``. ``row`` is brought up to date.
    """
    shown = document.shown()
    winner = shown[0] if shown else None
    body = _settle_bodies(ledger, database, row, document, winner, born, purging)
    if row.place:
        ledger.connection.execute(_DELETE, (row.place,))
        ledger.replaced.append((database.num, row.id))
    _count(database, row, -1)
    before = digests.of_document(row.id, row.document.leaves)
    _leave(ledger, database, row, before)
    row.place = ledger.next_place(database, row.id)
    row.document = document
    row.body = body
    row.rev = winner.rev if winner else ""
    row.flags = flags_of(shown)
    _count(database, row, +1)
    after = digests.of_document(row.id, document.leaves)
    database.digest = digests.combined(database.digest, before, after)
    _enter(ledger, database, row.flags, row.body, after)
    ledger.connection.execute(
        _INSERT, (row.place, database.num, row.id, row.flags, row.rev, row.body, _encode(document))
    )


def discard(ledger: Ledger, database: Database, row: Row) -> None:
    """Take a damaged row out of the file, with the bodies of its leaves: it is as if the document
    had never been here. ``row`` is as the file has it.
    """
    ledger.connection.execute(_DELETE, (row.place,))
    ledger.replaced.append((database.num, row.id))
    ledger.connection.execute(_DROP_LEAVES, (database.num, row.id))
    number = digests.of_document(row.id, row.document.leaves)
    _count(database, row, -1)
    _leave(ledger, database, row, number)
    database.digest = digests.combined(database.digest, number)
    ledger.touch(database)


def flags_of(shown: list[Leaf]) -> int:
    """The flags of the row of a document of which these leaves show, the winner first."""
    if not shown:
        return NOTHING_SHOWN
    return (DELETED if shown[0].deleted else 0) | (CONFLICTS if len(shown) > 1 else 0)


def weight(flags: int, body: bytes) -> Weight:
    """What a row counts in its database."""
    if flags & NOTHING_SHOWN:
        return (0, 0, 0)
    return (0, 1, len(body)) if flags & DELETED else (1, 0, len(body))


def _count(database: Database, row: Row, step: int) -> None:
    if row.place == 0:
        return
    docs, tombstones, size = weight(row.flags, row.body)
    database.docs += step * docs
    database.tombstones += step * tombstones
    database.body_bytes += step * size


def _leave(ledger: Ledger, database: Database, row: Row, number: int) -> None:
    scan = ledger.scan
    if scan is not None and scan.num == database.num and row.place:
        scan.leave(row.place, weight(row.flags, row.body), number)


def _enter(ledger: Ledger, database: Database, flags: int, body: bytes, number: int) -> None:
    scan = ledger.scan
    if scan is not None and scan.num == database.num:
        scan.enter(weight(flags, body), number)


def _settle_bodies(
    ledger: Ledger,
    database: Database,
    row: Row,
    document: Document,
    winner: Leaf | None,
    born: Sequence[tuple[Leaf, bytes]],
    purging: bool,
) -> bytes:
    """Move bodies between the row and the body table; returns the new winner's."""
    before = row.winner
    kept = {(leaf.rev, leaf.digest) for leaf in document.leaves}
    for leaf, _ in born:
        if leaf.attachments:
            use_blobs(ledger, database.num, row.id, leaf)
    if before is not None and not _same(before, winner):
        _retire(ledger, database, row, before, document, purging)
    for leaf in row.document.leaves:
        if (leaf.rev, leaf.digest) not in kept and not _same(leaf, before):
            _lose(ledger, database, row.id, leaf, document, purging)
    won: bytes | None = None
    for leaf, body in born:
        if _same(leaf, winner):
            won = body
        else:
            is_leaf = (leaf.rev, leaf.digest) in kept
            keep_body(ledger, database, row.id, leaf, body, leaf=is_leaf)
    if winner is None:
        return b""
    if won is not None:
        # The same revision may have been there as one of those that do not win.
        if not _same(before, winner) and any(_same(leaf, winner) for leaf in row.document.leaves):
            _drop_body(ledger, database, row.id, winner)
        return won
    if _same(before, winner):
        return row.body
    body = read_leaf_body(ledger.connection, database.num, row.id, winner)
    _drop_body(ledger, database, row.id, winner)
    return body


def _same(one: Leaf | None, other: Leaf | None) -> bool:
    return (
        one is not None and other is not None and (one.rev, one.digest) == (other.rev, other.digest)
    )


def _retire(
    ledger: Ledger, database: Database, row: Row, before: Leaf, document: Document, purging: bool
) -> None:
    is_leaf = any(_same(leaf, before) for leaf in document.leaves)
    if is_leaf or not purging:
        keep_body(ledger, database, row.id, before, row.body, leaf=is_leaf)
    else:
        release_blobs(ledger, database.num, row.id, before.rev, document)


def keep_body(
    ledger: Ledger, database: Database, doc_id: str, revision: Leaf, body: bytes, *, leaf: bool
) -> None:
    """Keep the body of a revision that does not win."""
    attachments = _encode(revision.attachments) if revision.attachments else None
    key = (database.num, doc_id, revision.rev, revision.digest)
    values = (*key, leaf, revision.deleted, body, attachments)
    ledger.connection.execute(_KEEP_BODY, values)
    if not ledger.connection.changes():
        # The revision had been cut from the tree, and was brought again while its old body was
        # here.
        _drop_body(ledger, database, doc_id, revision)
        ledger.connection.execute(_KEEP_BODY, values)
    if not leaf:
        database.old_bytes += len(body)
        ledger.touch(database)


def _lose(
    ledger: Ledger, database: Database, doc_id: str, leaf: Leaf, document: Document, purging: bool
) -> None:
    if purging:
        _drop_body(ledger, database, doc_id, leaf)
        release_blobs(ledger, database.num, doc_id, leaf.rev, document)
        return
    key = (database.num, doc_id, leaf.rev, leaf.digest)
    for (length,) in ledger.connection.execute(_BODY_IS_OLD, key):
        database.old_bytes += length


def _drop_body(ledger: Ledger, database: Database, doc_id: str, leaf: Leaf) -> None:
    key = (database.num, doc_id, leaf.rev, leaf.digest)
    for was_leaf, length in ledger.connection.execute(_DROP_BODY, key):
        if not was_leaf:
            database.old_bytes -= length


def drop_old_bodies(ledger: Ledger, database: Database, doc_id: str) -> None:
    """Forget the old revisions of one document (it was purged whole)."""
    gone: Any = ledger.connection.execute(
        "DELETE FROM body WHERE db = ? AND id = ? AND leaf = 0 RETURNING rev, length(body)",
        (database.num, doc_id),
    ).fetchall()
    for rev, length in gone:
        database.old_bytes -= length
        release_blobs(ledger, database.num, doc_id, rev, NOTHING)


Position = tuple[str, str, bytes]
"""(id, revision, digest) of a body."""


def drop_old_after(
    ledger: Ledger, database: Database, after: Position, rows_max: int, bytes_max: int
) -> tuple[Position | None, list[int]]:
    """Drop old revisions' bodies behind a position, looking at a bounded number of rows.

    Returns where to go on (``None`` at the end) and the sizes of those dropped, in bytes.
    """
    rows: Any = ledger.connection.execute(
        _BODIES_AFTER, (database.num, *after, rows_max)
    ).fetchall()
    dropped: list[int] = []
    size = 0
    for doc_id, rev, digest, leaf, length in rows:
        after = (doc_id, rev, digest)
        if leaf:
            continue
        ledger.connection.execute(_DROP_BODY, (database.num, *after)).fetchall()
        document = read_row(ledger.connection, database.num, doc_id).document
        release_blobs(ledger, database.num, doc_id, rev, document)
        dropped.append(length)
        size += length
        if size >= bytes_max:
            break
    if dropped:
        database.old_bytes -= size
        ledger.touch(database)
    return (after if rows else None), dropped


def use_blobs(ledger: Ledger, num: int, doc_id: str, leaf: Leaf) -> None:
    """Note that a revision refers to its attachments' blobs, be they here or not."""
    ledger.connection.executemany(
        "INSERT OR IGNORE INTO blob_use VALUES (?, ?, ?, ?)",
        [(num, doc_id, leaf.rev, att.blob) for att in leaf.attachments],
    )
    for att in leaf.attachments:
        ledger.unmet_blobs += blobs.find(ledger.connection, att.blob) is None


def blob_lengths(connection: Connection, name: bytes, uses_max: int) -> set[int]:
    """How many bytes a blob has by the revisions that refer to it, of which so many are asked: one
    length, unless one of them is wrong; none if nothing refers to it.
    """
    rows: Any = connection.execute(_USES, (name, uses_max)).fetchall()
    found: set[int] = set()
    for num, doc_id, rev in rows:
        row = read_row(connection, num, doc_id)
        leaves = [leaf.attachments for leaf in row.document.leaves if leaf.rev == rev]
        old = None if leaves else read_revision(connection, num, row, rev)
        for attachments in leaves or ([old.attachments] if old is not None else []):
            found |= {att.encoded_length for att in attachments if att.blob == name}
    return found


def release_blobs(ledger: Ledger, num: int, doc_id: str, rev: str, document: Document) -> None:
    """A body of ``rev`` is gone: unless the revision has another, it uses its blobs no longer.

    They are touched, because an answer that is being sent may still read them.
    """
    if any(leaf.rev == rev for leaf in document.leaves):
        return
    key = (num, doc_id, rev)
    if ledger.connection.execute(_BODY, key).fetchone() is not None:
        return
    released: Any = ledger.connection.execute(_RELEASE, key).fetchall()
    if released:
        now_ms = stamp_ms(ledger.stamp())
        for (name,) in released:
            blobs.touch(ledger.connection, name, now_ms)
