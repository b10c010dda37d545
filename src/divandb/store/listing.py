"""Documents by id: the rows of `_all_docs`, put together where they are."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from divandb.store.file import Connection

_WHERE = """
FROM doc INDEXED BY doc_by_id
WHERE db = ?1 AND flags & 3 = 0 AND id {low} ?2 AND (?3 IS NULL OR id {high} ?3)
ORDER BY id {order} LIMIT ?4
"""
_ROW = """
SELECT id, '{{"id":' || json_quote(id) || ',"key":' || json_quote(id)
    || ',"value":{{"rev":' || json_quote(rev) || '}}' || {doc} || '}}' AS line
"""
_PLAIN_ROW = _ROW.format(doc="''")
_ROW_WITH_DOC = _ROW.format(doc="""',"doc":' || CAST(body AS TEXT)""")
_PAGE = "SELECT group_concat(line, char(44, 13, 10)), min(id), max(id), count(*) FROM ({rows})"
_LEAP = "SELECT min(id), max(id), count(*) FROM (SELECT id {where})"
_LOCALS = """
SELECT key, value FROM register WHERE db = ?1 AND kind = 'local' AND value IS NOT NULL
AND key {low} ?2 AND (?3 IS NULL OR key {high} ?3) ORDER BY key {order} LIMIT ?4
"""
_DESIGN_REVS = """
SELECT id, rev FROM doc INDEXED BY doc_by_id
WHERE db = ? AND id >= '_design/' AND id < '_design0' AND flags & 3 = 0 ORDER BY id LIMIT ?
"""
_FLAGS = "SELECT flags FROM doc WHERE db = ? AND id = ?"
_LIVING_BODY = "SELECT body FROM doc WHERE db = ? AND id = ? AND flags & 3 = 0"
BETWEEN = b",\r\n"
"""What stands between two rows; JSON has no such bytes within a row."""
PAGE_BYTES_MAX = 512 * 1024
"""A page with documents in it ends with the document that passes this."""


class Span(msgspec.Struct, frozen=True):
    """A range of ids, with whether each end belongs to it; a ``high`` of None is open."""

    low: str = ""
    high: str | None = None
    low_in: bool = True
    high_in: bool = True


class Page(msgspec.Struct, frozen=True):
    """Rows as JSON, joined by ``BETWEEN``; ``last`` is the last id in reading order."""

    text: bytes
    last: str
    count: int


def _ordered(template: str, span: Span, descending: bool) -> str:
    return template.format(
        low=">=" if span.low_in else ">",
        high="<=" if span.high_in else "<",
        order="DESC" if descending else "ASC",
    )


def page(
    connection: Connection,
    num: int,
    span: Span,
    limit: int,
    *,
    descending: bool = False,
    include_docs: bool = False,
) -> Page:
    """The next ``limit`` living documents of a span as rows; fewer when documents are large."""
    where = _ordered(_WHERE, span, descending)
    bindings = (num, span.low, span.high, limit)
    if include_docs:
        return _page_with_docs(connection, _ROW_WITH_DOC + where, bindings)
    found: Any = connection.execute(_PAGE.format(rows=_PLAIN_ROW + where), bindings).fetchone()
    text, low, high, count = found
    return Page((text or "").encode(), (low if descending else high) or "", count)


def _page_with_docs(
    connection: Connection, sql: str, bindings: tuple[int, str, str | None, int]
) -> Page:
    """Row by row, so that a page of large documents does not fill the memory."""
    found: list[str] = []
    size, last = 0, ""
    cursor: Any = connection.execute(sql, bindings)
    for doc_id, line in cursor:
        found.append(line)
        last, size = doc_id, size + len(line)
        if size >= PAGE_BYTES_MAX:
            break
    return Page(BETWEEN.decode().join(found).encode(), last, len(found))


def ids(
    connection: Connection, num: int, span: Span, limit: int, *, descending: bool = False
) -> list[str]:
    """The next ``limit`` ids of living documents of a span."""
    sql = "SELECT id" + _ordered(_WHERE, span, descending)
    rows: Any = connection.execute(sql, (num, span.low, span.high, limit))
    return [doc_id for (doc_id,) in rows]


def leap(
    connection: Connection, num: int, span: Span, limit: int, *, descending: bool = False
) -> tuple[int, str]:
    """(how many, the last id) of the next ``limit`` living documents of a span."""
    sql = _LEAP.format(where=_ordered(_WHERE, span, descending))
    found: Any = connection.execute(sql, (num, span.low, span.high, limit)).fetchone()
    low, high, count = found
    return count, (low if descending else high) or ""


def local_page(
    connection: Connection, num: int, span: Span, limit: int, *, descending: bool = False
) -> list[tuple[str, bytes]]:
    """(id, body) of the next ``limit`` `_local` documents of a span; fewer when they are large."""
    found: list[tuple[str, bytes]] = []
    size = 0
    cursor: Any = connection.execute(
        _ordered(_LOCALS, span, descending), (num, span.low, span.high, limit)
    )
    for key, value in cursor:
        found.append((key, value))
        size += len(value)
        if size >= PAGE_BYTES_MAX:
            break
    return found


def rest_after(span: Span, last: str, *, descending: bool = False) -> Span:
    """What of the span lies behind ``last`` in reading order."""
    if descending:
        return msgspec.structs.replace(span, high=last, high_in=False)
    return msgspec.structs.replace(span, low=last, low_in=False)


def design_revs(connection: Connection, num: int, limit: int) -> list[tuple[str, str]]:
    """(id, revision) of the first ``limit`` living design documents."""
    rows: Any = connection.execute(_DESIGN_REVS, (num, limit)).fetchall()
    found: list[tuple[str, str]] = rows
    return found


def bodies(connection: Connection, num: int, doc_ids: Iterable[str]) -> Iterator[bytes]:
    """The winners' bodies of those documents that live."""
    for doc_id in doc_ids:
        row: Any = connection.execute(_LIVING_BODY, (num, doc_id)).fetchone()
        if row is not None:
            yield row[0]


def deleted(connection: Connection, num: int, doc_id: str) -> bool:
    """Is there a document of that id, and is it deleted?"""
    row: Any = connection.execute(_FLAGS, (num, doc_id)).fetchone()
    return row is not None and bool(row[0] & 1)
