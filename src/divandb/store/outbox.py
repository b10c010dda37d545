"""The outbox as events: what of this node's own writes is still to be published, in their order.

A row names a write; its event is made of the state that the row's document or register has when it
is read, which contains that write and perhaps later ones; marks say what each message completes
(Rule 4).
"""

import functools
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import msgspec

from divandb import event as events
from divandb.event import Creation, Event, Payload, RegisterValue
from divandb.store import blobs, changes, databases, documents, endings, registers
from divandb.store.file import Connection
from divandb.store.ledger import Kind
from divandb.vector import Vector

_ROWS = """
SELECT n, outbox.origin, slot, oseq, kind, db, key, outbox.stamp FROM outbox
JOIN origin ON origin.origin = outbox.origin WHERE n > ? ORDER BY n LIMIT ?
"""
_KINDS = {
    Kind.DOCUMENT: events.DOCUMENT,
    Kind.REGISTER: events.REGISTER,
    Kind.CREATED: events.CREATED,
    Kind.DROPPED: events.DROPPED,
}
_FREED = (Kind.DOCUMENT, Kind.REGISTER)


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One row: write ``oseq`` of ``origin``."""

    n: int
    origin: int
    slot: str
    oseq: int
    kind: int
    db: int
    key: str
    stamp: int


class Attached(msgspec.Struct, frozen=True):
    """An attachment that goes ahead of its document: too large to be held whole."""

    row: Row
    after: int
    blob: bytes


class Page(msgspec.Struct, frozen=True):
    """Encoded events, and the last outbox row that they complete; no events: nothing to send."""

    messages: list[bytes | Attached]
    upto: int
    origin: int = 0
    oseq: int = 0
    """The write of that row."""


def page(connection: Connection, after: int, rows_max: int, bytes_max: int = 2**63) -> Page:
    """The events of the next rows behind ``after``, read in one snapshot: those of one row at
    least, and no more once they have ``bytes_max`` bytes.
    """
    with connection:
        rows = [_row(row) for row in connection.execute(_ROWS, (after, rows_max))]
        if not rows:
            return Page([], after)
        # One origin a page: marks are of one origin.
        rows = [row for row in rows if row.origin == rows[0].origin]
        seen = functools.cache(lambda: endings.load(connection).compact(changes.vector(connection)))
        messages: list[bytes | Attached] = []
        mark, size, last = rows[0].oseq - 1, 0, rows[0]
        for last in _sent(rows):
            made = list(_encoded(connection, last, mark, seen))
            messages += made
            mark = last.oseq
            size += sum(len(one) for one in made if isinstance(one, bytes))
            if size >= bytes_max:
                break
    return Page(messages, last.n, last.origin, last.oseq)


def unpublished(connection: Connection) -> dict[int, int]:
    """origin → the last write of it that is on the board, for origins that have more to publish."""
    rows: Any = connection.execute("SELECT origin, min(oseq) - 1 FROM outbox GROUP BY origin")
    return dict(rows.fetchall())


def newest(connection: Connection) -> dict[int, int]:
    """origin → the last write of it that is in the outbox."""
    rows: Any = connection.execute("SELECT origin, max(oseq) FROM outbox GROUP BY origin")
    return dict(rows.fetchall())


def span(connection: Connection) -> tuple[int, int]:
    """The first and the last row that are in it, (1, 0) when there is none."""
    # Each by itself is found at an end of the table; both together would be a scan.
    row: Any = connection.execute(
        "SELECT (SELECT min(n) FROM outbox), (SELECT max(n) FROM outbox)"
    ).fetchone()
    return row[0] or 1, row[1] or 0


def rows(connection: Connection) -> int:
    """How many there are, at most."""
    first, last = span(connection)
    return max(last - first + 1, 0)


def chunks(connection: Connection, attached: Attached) -> Iterator[bytes]:
    """An attachment as events, a chunk each; every one is a read of its own."""
    for chunk in blobs.chunks(connection, attached.blob):
        yield _event(attached.row, attached.after, attached.after, events.BLOB, None, chunk)


def _row(row: Any) -> Row:
    return Row(*row)


def trim(connection: Connection, upto: int) -> None:
    """Rows up to here are on the board."""
    connection.execute("DELETE FROM outbox WHERE n <= ?", (upto,))


def _sent(rows: list[Row]) -> Iterator[Row]:
    """The rows to send; the message of each completes all up to it.

    Of rows about one document that stand next to each other only the last is sent. Others are not
    left out, though a later state holds their writes too: a message may vouch only for writes that
    it carries itself, since those before it may never arrive.
    """
    for row, following in zip_longest(rows, rows[1:]):
        if following is None or _about(row) != _about(following):
            yield row


def _about(row: Row) -> tuple[int, int, str]:
    return (row.kind, row.db, row.key)


def _encoded(
    connection: Connection, row: Row, after: int, seen: Callable[[], Vector]
) -> Iterator[bytes | Attached]:
    database = databases.load(connection, row.db) if row.db else None
    payload: Payload = None
    if database is not None and database.dropped and row.kind in _FREED:
        # What it wrote may be freed by now: what there is to know of that is the drop.
        yield _event(row, after, row.oseq, events.DROPPED, database, None)
        return
    if row.kind == Kind.DOCUMENT:
        state = documents.read_state(connection, row.db, row.key)
        payload = state
        for leaf in state.document.leaves:
            for att in leaf.attachments:
                yield Attached(row, after, att.blob)
    elif row.kind == Kind.REGISTER:
        kind, _, key = row.key.partition("/")
        held = registers.read(connection, row.db, kind, key)
        held = held or registers.Register(None, row.stamp, row.origin, row.oseq)
        payload = RegisterValue(
            kind, key, held.value, held.stamp, held.origin, held.oseq, dict(seen())
        )
    elif row.kind == Kind.CREATED and database is not None:
        payload = Creation(database.options, database.created_ms)
    yield _event(row, after, row.oseq, _KINDS[Kind(row.kind)], database, payload)


def _event(
    row: Row,
    after: int,
    mark: int,
    kind: str,
    database: databases.Database | None,
    payload: Payload,
) -> bytes:
    name, generation = (database.name, database.generation) if database else ("", 0)
    return events.encode(
        Event(
            events.VERSION, row.slot, row.origin, row.oseq, after, mark, row.stamp, kind,
            name, generation, events.pack(payload),
        )
    )  # fmt: skip
