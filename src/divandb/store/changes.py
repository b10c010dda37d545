"""Changes by place: pages for feeds, the marks behind portable cursors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from divandb.closings import Closings
from divandb.cursor import Cursor
from divandb.merge import Document
from divandb.store.databases import SEQ_MASK, Database
from divandb.store.documents import CONFLICTS, NOTHING_SHOWN, Row
from divandb.store.file import Connection
from divandb.vector import Vector, covers, short_of

_decode_document = msgspec.msgpack.Decoder(Document).decode
_decode_vector = msgspec.msgpack.Decoder(dict[int, int]).decode

_ROWS = """
SELECT place, id, flags, rev, body, tree FROM doc
WHERE place > ? AND place < ? AND flags & 2 = 0 ORDER BY place {order} LIMIT ?
"""
_ROWS_UP, _ROWS_DOWN = _ROWS.format(order="ASC"), _ROWS.format(order="DESC")
# A sieve sees one leaf: a document with more of them passes where all are asked for.
_SIFTED = """
SELECT place, id, flags, rev, body, tree FROM doc
WHERE place > ? AND place < ? AND flags & 2 = 0 AND ({{several}}{{sieve}}) ORDER BY place {order}
"""
_SIFTED_UP, _SIFTED_DOWN = _SIFTED.format(order="ASC"), _SIFTED.format(order="DESC")
_NEXT = (
    "SELECT place FROM doc WHERE place > ? AND place < ? ORDER BY place {order} LIMIT 1 OFFSET ?"
)
_NEXT_UP, _NEXT_DOWN = _NEXT.format(order="ASC"), _NEXT.format(order="DESC")
_ROW_AT = "SELECT place, id, flags, rev, body, tree FROM doc WHERE place = ? AND flags & 2 = 0"
_PLACE_OF = "SELECT place FROM doc INDEXED BY doc_by_id WHERE db = ? AND id = ? AND flags & 2 = 0"
_PLACES_IN = """
SELECT place FROM doc INDEXED BY doc_by_id WHERE db = ? AND id >= ? AND id < ? AND flags & 2 = 0
"""
_NEXT_MARKS = "SELECT seq, vector FROM mark WHERE db = ? AND seq > ? ORDER BY seq LIMIT 8"
_TREES = "SELECT tree FROM doc WHERE place > ? AND place <= ? AND flags & 2 = 0 LIMIT ?"
TREES_MAX = 1024
"""Changes that are looked at for one cursor; if there are more, it stays at the mark before."""
# The lines of a feed are put together where the rows are: ten times the rows a second of doing it
# in Python.
_LINE = """
SELECT place, flags, '{{"seq":"' || (place & 1099511627775) || ?1 || '","id":' || json_quote(id)
    || ',"changes":[{{"rev":' || json_quote(rev) || '}}]' || iif(flags & 1, ',"deleted":true', '')
    || {doc} || '}}' AS line
FROM doc WHERE place > ?2 AND place < ?3 AND flags & 2 = 0 ORDER BY place {order} LIMIT ?4
"""
_LINES = """
SELECT group_concat(line, char(44, 13, 10)), min(place), max(place), count(*), max(flags & 4)
FROM ({line})
"""
_DOC_MEMBER = """',"doc":' || CAST(body AS TEXT)"""
_ORDERS = {False: "ASC", True: "DESC"}
_LINES_FOR = {
    descending: _LINES.format(line=_LINE.format(doc="''", order=order))
    for descending, order in _ORDERS.items()
}
_DOC_LINES_FOR = {
    descending: _LINE.format(doc=_DOC_MEMBER, order=order) for descending, order in _ORDERS.items()
}
Ends = Callable[[], Closings]
"""All ends of origins in the file, or more: what marks leave out must be known."""
BETWEEN = b",\r\n"
"""What stands between two lines; JSON has no such bytes within a line."""
PAGE_BYTES_MAX = 512 * 1024
"""A page with documents in it ends with the document that passes this."""
PENDING_SCAN_MAX = 20_000


class Lines(msgspec.Struct, frozen=True):
    """Feed lines, joined by ``BETWEEN``: ``count`` of them, up to ``place``."""

    text: bytes
    place: int
    count: int


def lines(
    connection: Connection,
    after: int,
    before: int,
    limit: int,
    suffix: str,
    *,
    include_docs: bool = False,
    descending: bool = False,
    all_leaves: bool = False,
) -> Lines | None:
    """The next ``limit`` changes between two places as feed lines; fewer when documents are large.

    ``None`` if one of them has several leaves to show and ``all_leaves`` asks for them: then the
    caller takes ``rows``. ``place`` is the last one in the direction of reading.
    """
    if include_docs:
        return _doc_lines(connection, after, before, limit, suffix, descending, all_leaves)
    found: Any = connection.execute(
        _LINES_FOR[descending], (suffix, after, before, limit)
    ).fetchone()
    text, low, high, count, several = found
    if not count:
        return Lines(b"", before if descending else after, 0)
    if several and all_leaves:
        return None
    return Lines(text.encode(), low if descending else high, count)


def _doc_lines(
    connection: Connection,
    after: int,
    before: int,
    limit: int,
    suffix: str,
    descending: bool,
    all_leaves: bool,
) -> Lines | None:
    """The same with documents: line by line, so that large ones do not fill the memory."""
    found: list[str] = []
    size, last = 0, before if descending else after
    cursor: Any = connection.execute(_DOC_LINES_FOR[descending], (suffix, after, before, limit))
    for place, flags, line in cursor:
        if all_leaves and flags & CONFLICTS:
            if not found:
                return None
            break
        found.append(line)
        last, size = place, size + len(line)
        if size >= PAGE_BYTES_MAX:
            break
    return Lines(BETWEEN.decode().join(found).encode(), last, len(found))


def rows(
    connection: Connection, after: int, before: int, limit: int, *, descending: bool = False
) -> list[Row]:
    """The next ``limit`` changed documents between places; fewer when large, none at the end."""
    sql = _ROWS_DOWN if descending else _ROWS_UP
    found: list[Row] = []
    size = 0
    for columns in connection.execute(sql, (after, before, limit)):
        found.append(_row(columns))
        size += len(found[-1].body)
        if size >= PAGE_BYTES_MAX:
            break
    return found


def sifted(
    connection: Connection,
    after: int,
    before: int,
    limit: int,
    sieve: tuple[str, Sequence[str | int | float]],
    *,
    descending: bool = False,
    all_leaves: bool = False,
) -> tuple[list[Row], int | None]:
    """Those of the next ``limit`` changed documents between places that pass a sieve, an SQL
    expression over ``body`` and what is bound to it; and the place that this goes to, ``None`` at
    the end. Fewer when they are large.
    """
    end: Any = connection.execute(
        _NEXT_DOWN if descending else _NEXT_UP, (after, before, limit)
    ).fetchone()
    if end is not None and descending:
        after = end[0]
    elif end is not None:
        before = end[0]
    sql = (_SIFTED_DOWN if descending else _SIFTED_UP).format(
        several="flags & 4 OR " if all_leaves else "", sieve=sieve[0]
    )
    found: list[Row] = []
    size = 0
    for columns in connection.execute(sql, (after, before, *sieve[1])):
        found.append(_row(columns))
        size += len(found[-1].body)
        if size >= PAGE_BYTES_MAX:
            return found, found[-1].place
    if end is None:
        return found, None
    return found, after + 1 if descending else before - 1


def row_at(connection: Connection, place: int) -> Row | None:
    """The document whose last change is at this place, if it still is."""
    columns: Any = connection.execute(_ROW_AT, (place,)).fetchone()
    return None if columns is None else _row(columns)


def _row(columns: Any) -> Row:
    place, doc_id, flags, rev, body, tree = columns
    return Row(doc_id, place, flags, rev, body, _decode_document(tree))


def places_of(connection: Connection, num: int, doc_ids: Iterable[str]) -> list[int]:
    """The places of these documents' last changes, those that there are."""
    found = (connection.execute(_PLACE_OF, (num, doc_id)).fetchone() for doc_id in doc_ids)
    return [columns[0] for columns in found if columns is not None]


def places_in(connection: Connection, num: int, low: str, high: str) -> list[int]:
    """The places of the last changes of all documents with ids from ``low`` to below ``high``."""
    return [place for (place,) in connection.execute(_PLACES_IN, (num, low, high))]


def pending(connection: Connection, database: Database, after: int) -> int:
    """How many changes lie behind a place; above ``PENDING_SCAN_MAX``, an upper bound."""
    newest = database.place | database.seq
    if after >= newest:
        return 0
    total = database.docs + database.tombstones
    if newest - after <= PENDING_SCAN_MAX:
        return _count(connection, after, newest)
    if after - database.place <= PENDING_SCAN_MAX:
        return total - _count(connection, database.place, after)
    return min(total, newest - after)


def _count(connection: Connection, after: int, upto: int) -> int:
    row: Any = connection.execute(
        "SELECT count(*) FROM doc WHERE place > ? AND place <= ? AND flags & ? = 0",
        (after, upto, NOTHING_SHOWN),
    ).fetchone()
    number: int = row[0]
    return number


def vector_at(connection: Connection, database: Database, seq: int, known: Ends) -> Vector:
    """The whole vector of the last mark stored at or before ``seq``; ``known`` is asked after it
    was read.
    """
    row: Any = connection.execute(
        "SELECT vector FROM mark WHERE db = ? AND seq <= ? ORDER BY seq DESC LIMIT 1",
        (database.num, seq),
    ).fetchone()
    return known().expand(_decode_vector(row[0])) if row else {}


def vector_behind(
    connection: Connection, database: Database, seq: int, held: Vector, had: Vector,
    known: Ends,
) -> Vector:  # fmt: skip
    """What a reader vouches for who has come to ``seq`` and vouched for ``had`` before.

    ``held`` is what the file contained before ``database`` was read. Each change behind ``seq``
    that the reader has not seen must hold a write which the answer does not cover. Those up to the
    next mark are looked at; those behind the mark hold a write that the mark itself does not cover.
    So the cursors of short pages move on, on whatever node each page is read.
    """
    if seq >= database.seq:
        return held
    marked = vector_at(connection, database, seq, known)
    # Not both together: what the mark covers of a document may stand behind ``seq`` since, moved
    # by a write that the reader has seen elsewhere. Joined, nobody would show it.
    base = marked if covers(marked, had) else had
    upto, ahead = _first_mark(connection, database, seq, base, known) or (database.seq, held)
    trees: Any = connection.execute(
        _TREES, (database.place | seq, database.place | upto, TREES_MAX + 1)
    ).fetchall()
    if len(trees) > TREES_MAX:
        return base
    return short_of(ahead, base, (_decode_document(tree).context for (tree,) in trees))


def _first_mark(
    connection: Connection, database: Database, seq: int, base: Vector, known: Ends
) -> tuple[int, Vector] | None:
    """(seq, vector) of the first mark behind ``seq`` that covers ``base``, if it is near."""
    rows: Any = connection.execute(_NEXT_MARKS, (database.num, seq))
    for found, packed in rows:
        vector = known().expand(_decode_vector(packed))
        if covers(vector, base):
            return found, vector
    return None


def vector(connection: Connection) -> dict[int, int]:
    """What the file contains."""
    rows: Any = connection.execute("SELECT origin, contained FROM origin")
    return dict(rows)


def place_of(connection: Connection, database: Database, cursor: Cursor, known: Ends) -> int:
    """A place before which a reader with this cursor has seen everything, on this numbering. Its
    vector is whole.

    Marks only grow, so the last one that the cursor covers is found by halving.
    """
    seqs = [
        seq
        for (seq,) in connection.execute(
            "SELECT seq FROM mark WHERE db = ? ORDER BY seq", (database.num,)
        )
    ]
    low, high = 0, len(seqs)
    while low < high:
        middle = (low + high) // 2
        if covers(cursor.vector, vector_at(connection, database, seqs[middle], known)):
            low = middle + 1
        else:
            high = middle
    return database.place | (seqs[low - 1] if low else 0)


def unseen(found: list[Row], vector: Vector) -> Iterator[Row]:
    """Those rows that hold a write which ``vector`` does not cover."""
    return (row for row in found if not covers(vector, row.document.context))


def seq_of(place: int) -> int:
    """The change's number in its database."""
    return place & SEQ_MASK
