"""Documents for a query: by id, or by the entries of an index, a bounded piece at a time.

On a connection of its own, with the indexes' file beside the node's (``connect``). The two are not
read as of one moment: an entry may be of a document that has changed since. Whoever asks looks at
the document again.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from divandb.store import documents, file
from divandb.store.file import Connection, Disk

_LIVES = """
db = ? AND id {after} ? AND id {upto} ? AND flags & 3 = 0
AND (id < '_design/' OR id >= '_design0')
"""
_END = f"""
SELECT max(id), min(id), count(*) FROM (
    SELECT id FROM doc INDEXED BY doc_by_id WHERE {_LIVES} ORDER BY id {{order}} LIMIT ?)
"""
_BY_ID = f"""
SELECT id, flags, body FROM doc INDEXED BY doc_by_id WHERE {_LIVES} AND {{sieve}}
ORDER BY id {{order}}
"""
_COUNT = f"SELECT count(*) FROM doc INDEXED BY doc_by_id WHERE {_LIVES}"
_BY_KEY = """
SELECT e.key, e.id, d.flags, d.body FROM indexes.entry AS e
LEFT JOIN doc AS d INDEXED BY doc_by_id ON d.db = ? AND d.id = e.id AND d.flags & 3 = 0
WHERE e.built = ? AND (e.key, e.id, e.n) {after} (?, ?, ?) AND e.key {upto} ?
ORDER BY e.key {order}, e.id {order}, e.n {order} LIMIT ?
"""
_EVERY_ID = b""
"""Stands behind every text."""
_BEFORE_ALL, _BEHIND_ALL = -1, 2**62
"""Numbers of entries: the first is 0."""

PIECE_BYTES_MAX = 1024 * 1024
"""A piece ends with the document that passes this."""

Sieve = tuple[str, Sequence[str | int | float]]
"""An SQL expression over ``body`` and what is bound to it."""
Found = tuple[str, int, bytes]
"""(id, flags, body)"""


class Stretch(msgspec.Struct, frozen=True):
    """Ids from ``low`` to ``high``, both of them in it but where one is said to be behind; a
    ``high`` of None is open.
    """

    low: str
    high: str | None
    descending: bool = False
    behind: str | None = None
    """What was read last."""

    def bounds(self) -> tuple[str, str, str | bytes, str | bytes]:
        """Comparison and id, at the beginning and at the end in reading order."""
        high: str | bytes = _EVERY_ID if self.high is None else self.high
        begin: str | bytes = high if self.descending else self.low
        end: str | bytes = self.low if self.descending else high
        after = ("<" if self.descending else ">") + ("" if self.behind is not None else "=")
        return after, ">=" if self.descending else "<=", self.behind or begin, end


def connect(disk: Disk, indexes: Path, cache_bytes: int) -> Connection:
    """A reading connection to both files; the indexes' must be there."""
    connection = file.connect(disk, readonly=True, cache_bytes=cache_bytes)
    connection.execute("ATTACH ? AS indexes", (str(indexes),))
    connection.execute(f"PRAGMA indexes.cache_size = {-cache_bytes // 1024}")  # each has its own
    return connection


def by_id(
    connection: Connection, num: int, stretch: Stretch, rows_max: int, sieve: Sieve | None
) -> tuple[list[Found], Stretch | None, int]:
    """The documents among the next ``rows_max`` that pass the sieve; what is left (None: nothing),
    and how many were passed over or found.
    """
    after, upto, begin, end = stretch.bounds()
    order = "DESC" if stretch.descending else "ASC"
    sql = _END.format(after=after, upto=upto, order=order)
    last: Any = connection.execute(sql, (num, begin, end, rows_max)).fetchone()
    count: int = last[2]
    if not count:
        return [], None, 0
    end = last[1] if stretch.descending else last[0]
    expression, values = sieve or ("1", ())
    sql = _BY_ID.format(after=after, upto=upto, order=order, sieve=expression)
    rows: Any = connection.execute(sql, (num, begin, end, *values))
    found, is_cut = _bounded(rows)
    if is_cut:
        end = found[-1][0]
        count = count_ids(connection, num, stretch, end)
    rest = msgspec.structs.replace(stretch, behind=end) if is_cut or count == rows_max else None
    return found, rest, count


def _bounded(rows: Iterable[Any]) -> tuple[list[Any], bool]:
    """Rows up to the one that passes ``PIECE_BYTES_MAX``; were there more?"""
    found, size = [], 0
    for row in rows:
        found.append(row)
        size += len(row[-1] or b"")
        if size >= PIECE_BYTES_MAX:
            return found, True
    return found, False


def count_ids(connection: Connection, num: int, stretch: Stretch, last: str) -> int:
    """How many documents lie in the stretch up to ``last``."""
    after, upto, begin, _ = stretch.bounds()
    sql = _COUNT.format(after=after, upto=upto)
    found: Any = connection.execute(sql, (num, begin, last)).fetchone()
    number: int = found[0]
    return number


def by_key(
    connection: Connection,
    num: int,
    built: int,
    span: tuple[bytes, bytes],
    behind: tuple[bytes, str] | None,
    rows_max: int,
    *,
    descending: bool,
) -> tuple[list[tuple[bytes, str, int | None, bytes]], bool]:
    """(key, id, flags, body) of the next entries of a span, behind one of them, and whether there
    may be more; ``flags`` is None where the document is gone.
    """
    if descending:
        sql = _BY_KEY.format(after="<", upto=">=", order="DESC")
        key, doc_id = behind or (span[1], "")
        number, end = _BEFORE_ALL, span[0]
    else:
        sql = _BY_KEY.format(after=">", upto="<", order="ASC")
        key, doc_id = behind or (span[0], "")
        number, end = _BEHIND_ALL if behind else _BEFORE_ALL, span[1]
    rows: Any = connection.execute(sql, (num, built, key, doc_id, number, end, rows_max))
    found, is_cut = _bounded(rows)
    return found, is_cut or len(found) == rows_max


def conflicts(connection: Connection, num: int, doc_id: str) -> list[str]:
    """The revisions of a document's leaves that live and do not win."""
    shown = documents.read_row(connection, num, doc_id).document.shown()
    return [leaf.rev for leaf in shown[1:] if not leaf.deleted]
