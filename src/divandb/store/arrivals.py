"""Other nodes' writes: what an event changes here, inside the writer's transaction.

Applying is commutative, associative and idempotent (Rule 2): documents merge, registers and
databases take the later of two states. An event that this version cannot read is stored whole and
is a hole in the vector; it does not stop the rest.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from divandb import event as events
from divandb import merge
from divandb.event import Chunk, Creation, DocumentState, Event, Payload, RegisterValue, Unreadable
from divandb.store import blobs, documents, registers
from divandb.store.databases import Database
from divandb.store.ledger import Ledger
from divandb.vector import covers

_encode_vector = msgspec.msgpack.Encoder().encode
_decode_vector = msgspec.msgpack.Decoder(dict[int, int]).decode


def take(ledger: Ledger, messages: Sequence[bytes], now_ms: int) -> int:
    """Apply encoded events in their order; how many could not be applied, and are holes now."""
    holes = 0
    for data in messages:
        try:
            event = events.decode(data)
            payload = events.open_payload(event)
        except Unreadable as fault:
            _keep_hole(ledger, data, fault.reason)
            holes += 1
            continue
        apply(ledger, event, payload, now_ms)
        if event.mark > event.after:
            ledger.cover(event.origin, event.slot, event.after, event.mark)
    release_waiting(ledger, now_ms)
    ledger.mark_touched()
    return holes


def apply(ledger: Ledger, event: Event, payload: Payload, now_ms: int) -> None:
    """Bring one event's state into the file; the vector is the caller's."""
    if isinstance(payload, Chunk):
        _take_chunk(ledger, payload, now_ms)
        return
    database = _database(ledger, event, payload, now_ms)
    if isinstance(payload, DocumentState):
        if database is not None:
            _merge(ledger, database, payload)
    elif isinstance(payload, RegisterValue):
        _take_register(ledger, database, event, payload)
    elif payload is None and database is not None:
        ledger.drop_database(database)


def retry_holes(ledger: Ledger, now_ms: int) -> int:
    """Try again what could not be applied; how many still cannot."""
    rows: Any = ledger.connection.execute("SELECT n, event FROM hole ORDER BY n").fetchall()
    ledger.connection.execute("DELETE FROM hole")
    take(ledger, [data for _, data in rows], now_ms)
    left: Any = ledger.connection.execute("SELECT count(*) FROM hole").fetchone()
    count: int = left[0]
    return count


def _keep_hole(ledger: Ledger, data: bytes, reason: str) -> None:
    ledger.connection.execute(
        "INSERT OR IGNORE INTO hole (reason, event) VALUES (?, ?)", (reason, data)
    )


def _database(ledger: Ledger, event: Event, payload: Payload, now_ms: int) -> Database | None:
    """The living database that the event is about, made if it is not known; ``None`` if the event
    is about an older or dropped generation, or about none.
    """
    if not event.database:
        return None
    known = ledger.register.get(event.database)
    if known is not None and known.generation >= event.generation:
        return known if known.generation == event.generation and not known.dropped else None
    creation = payload if isinstance(payload, Creation) else Creation("{}", now_ms)
    return ledger.add_generation(
        event.database, event.generation, creation.created_ms, creation.options
    )


def _merge(ledger: Ledger, database: Database, arrived: DocumentState) -> None:
    row = documents.read_row(ledger.connection, database.num, arrived.id)
    # What is covered is contained: looked at before any body is.
    if row.place and covers(row.document.context, arrived.document.context):
        return
    ledger.reach(arrived.document.context)
    merged = merge.merge(row.document, arrived.document)
    here = {(leaf.rev, leaf.digest) for leaf in row.document.leaves}
    kept = {(leaf.rev, leaf.digest) for leaf in merged.leaves}
    born = {
        (leaf.rev, leaf.digest): (leaf, body)
        for leaf, body in zip(arrived.document.leaves, arrived.bodies, strict=True)
        if (leaf.rev, leaf.digest) in kept - here
    }
    documents.store(ledger, database, row, merged, list(born.values()))


def _take_register(
    ledger: Ledger, database: Database | None, event: Event, arrived: RegisterValue
) -> None:
    if event.database and database is None:
        return
    if arrived.kind == registers.LOCAL and not covers(ledger.vector, arrived.seen):
        ledger.connection.execute(
            "INSERT OR IGNORE INTO waiting (seen, event) VALUES (?, ?)",
            (_encode_vector(arrived.seen), events.encode(event)),
        )
        return
    registers.take(
        ledger, database, arrived.kind, arrived.key,
        registers.Register(arrived.value, arrived.stamp, arrived.origin, arrived.oseq),
    )  # fmt: skip


def release_waiting(ledger: Ledger, now_ms: int) -> None:
    """Show the `_local` documents whose writes are here by now."""
    rows: Any = ledger.connection.execute(
        "SELECT n, seen, event FROM waiting ORDER BY n"
    ).fetchall()
    for n, seen, data in rows:
        if covers(ledger.vector, _decode_vector(seen)):
            ledger.connection.execute("DELETE FROM waiting WHERE n = ?", (n,))
            event = events.decode(data)
            apply(ledger, event, events.open_payload(event), now_ms)


def _take_chunk(ledger: Ledger, chunk: Chunk, now_ms: int) -> None:
    """Store a piece of an attachment; the last one to come makes it whole."""
    blobs.take_chunk(ledger.connection, chunk.blob, chunk.index, chunk.length, chunk.data, now_ms)
