"""The outbox as events: what of this node's own writes is still to be published, in their order.

A row names a write; its event is made of the state that the row's document or register has when it
is read, which contains that write and perhaps later ones; marks say what each message completes
(Rule 4).
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import msgspec

from divandb import event as events
from divandb.event import Creation, Event, Payload, RegisterValue
from divandb.store import blobs, changes, databases, documents, registers
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


class Page(msgspec.Struct, frozen=True):
    """Encoded events, and the last outbox row that they complete; no events: nothing to send."""

    messages: list[bytes]
    upto: int


def page(connection: Connection, after: int, rows_max: int) -> Page:
    """The events of the next rows behind ``after``, read in one snapshot."""
    with connection:
        rows = [_row(row) for row in connection.execute(_ROWS, (after, rows_max))]
        if not rows:
            return Page([], after)
        # One origin a page: marks are of one origin.
        rows = [row for row in rows if row.origin == rows[0].origin]
        seen = changes.vector(connection)
        messages: list[bytes] = []
        after = rows[0].oseq - 1
        for row, mark in _sent(rows):
            messages += _encoded(connection, row, after, mark, seen)
            after = mark
    return Page(messages, rows[-1].n)


def _row(row: Any) -> Row:
    return Row(*row)


def trim(connection: Connection, upto: int) -> None:
    """Rows up to here are on the board."""
    connection.execute("DELETE FROM outbox WHERE n <= ?", (upto,))


def _sent(rows: list[Row]) -> Iterator[tuple[Row, int]]:
    """The rows to send, each with the mark that it completes.

    Of rows about one document that stand next to each other only the last is sent. Others are not
    left out, though a later state holds their writes too: a message may vouch only for writes that
    it carries itself, since those before it may never arrive.
    """
    for row, following in zip_longest(rows, rows[1:]):
        if following is None or _about(row) != _about(following):
            yield row, row.oseq


def _about(row: Row) -> tuple[int, int, str]:
    return (row.kind, row.db, row.key)


def _encoded(
    connection: Connection, row: Row, after: int, mark: int, seen: Vector
) -> Iterator[bytes]:
    database = databases.load(connection, row.db) if row.db else None
    payload: Payload = None
    if row.kind == Kind.DOCUMENT:
        state = documents.read_state(connection, row.db, row.key)
        payload = state
        for leaf in state.document.leaves:
            for att in leaf.attachments:
                yield from _chunks(connection, row, after, att.blob)
    elif row.kind == Kind.REGISTER:
        kind, _, key = row.key.partition("/")
        held = registers.read(connection, row.db, kind, key)
        held = held or registers.Register(None, row.stamp, row.origin, row.oseq)
        payload = RegisterValue(
            kind, key, held.value, held.stamp, held.origin, held.oseq, dict(seen)
        )
    elif row.kind == Kind.CREATED and database is not None:
        payload = Creation(database.options, database.created_ms)
    yield _event(row, after, mark, _KINDS[Kind(row.kind)], database, payload)


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


def _chunks(connection: Connection, row: Row, after: int, blob: bytes) -> Iterator[bytes]:
    for chunk in blobs.chunks(connection, blob):
        yield _event(row, after, after, events.BLOB, None, chunk)
