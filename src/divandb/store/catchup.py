"""What lies beyond a vector: the one way in which nodes make up for what they missed.

Vectors are whole here, on both sides: who has missed something may have missed an end, too.

``beyond`` reads, in one snapshot, everything that holds a write which the asker's vector does not
cover, and the snapshot's own vector last: only whoever has taken all of it may say that it contains
that much (Rule 4). Marks tell where in each database to begin, so that the answer to a small gap is
found without a scan.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from divandb import event as events
from divandb.closings import Closings
from divandb.cursor import Cursor
from divandb.event import (
    Creation,
    DocumentState,
    Event,
    Number,
    Origin,
    Payload,
    RegisterValue,
)
from divandb.store import arrivals, blobs, changes, databases, documents, endings
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.vector import Vector, contains, covers

ROWS_A_READ = 256
Slots = dict[Origin, str]


class End(msgspec.Struct, frozen=True):
    """The last of an answer: what its reader contains now, and whose origins those are."""

    vector: dict[Origin, Number]
    slots: Slots


def beyond(connection: Connection, vector: Vector) -> Iterator[bytes | End]:
    """Encoded events, then one ``End``. Holds a read transaction until it is used up or closed."""
    with connection:
        rows: Any = connection.execute("SELECT origin, slot, contained FROM origin").fetchall()
        end = End(
            {origin: contained for origin, _, contained in rows},
            {origin: slot for origin, slot, _ in rows},
        )
        closings = endings.load(connection)
        for database in databases.load_all(connection):
            yield from _database(connection, database, vector, closings)
        seen = closings.compact(end.vector)
        yield from _registers(connection, databases.load_all(connection), seen, vector)
        held: Any = connection.execute("SELECT event FROM waiting ORDER BY db, key").fetchall()
        for (waiting,) in held:
            # Completes nothing here: ``End`` does.
            yield events.encode(msgspec.structs.replace(events.decode(waiting), after=0, mark=0))
        yield end


def finish(ledger: Ledger, end: End) -> None:
    """All of an answer was taken: the vector may say so, and what waited for that may show."""
    for origin, contained in end.vector.items():
        if origin != ledger.origin:
            slot = end.slots.get(origin, "")
            ledger.cover(origin, slot if events.is_slot(slot) else "", 0, contained)
    arrivals.release_waiting(ledger)
    ledger.mark_touched()


def _database(
    connection: Connection, database: Database, vector: Vector, closings: Closings
) -> Iterator[bytes]:
    yield _event(database, events.CREATED, Creation(database.options, database.created_ms))
    if database.dropped:
        yield _event(database, events.DROPPED, None)
        return
    place = changes.place_of(connection, database, Cursor(0, 0, dict(vector)), lambda: closings)
    end = database.place_end
    while rows := documents.contexts_after(connection, place, end, ROWS_A_READ):
        for row_place, doc_id, context in rows:
            place = row_place
            if not covers(vector, context):
                yield from _document(connection, database, doc_id)


def _document(connection: Connection, database: Database, doc_id: str) -> Iterator[bytes]:
    state: DocumentState = documents.read_state(connection, database.num, doc_id)
    for leaf in state.document.leaves:
        for att in leaf.attachments:
            for chunk in blobs.chunks(connection, att.blob):
                yield _event(None, events.BLOB, chunk)
    yield _event(database, events.DOCUMENT, state)


def _registers(
    connection: Connection, known: list[Database], seen: dict[int, int], vector: Vector
) -> Iterator[bytes]:
    by_num = {database.num: database for database in known if not database.dropped}
    rows = connection.execute("SELECT db, kind, key, value, stamp, origin, oseq FROM register")
    for db, kind, key, value, stamp, origin, oseq in rows:
        if db and db not in by_num:
            continue
        if kind in endings.KINDS and contains(vector, (origin, oseq)):
            continue  # there are many of them, and none ever changes
        payload = RegisterValue(kind, key, value, stamp, origin, oseq, seen)
        yield _event(by_num.get(db), events.REGISTER, payload)


def _event(database: Database | None, kind: str, payload: Payload) -> bytes:
    """An event that completes nothing: ``End`` does."""
    name, generation = (database.name, database.generation) if database else ("", 0)
    packed = events.pack(payload)
    return events.encode(Event(events.VERSION, "", 0, 0, 0, 0, 0, kind, name, generation, packed))
