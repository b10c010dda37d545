"""Other nodes' writes: what an event changes here, inside the writer's transaction.

Applying is commutative, associative and idempotent (Rule 2): documents merge, registers and
databases take the later of two states. An event that this version cannot read is stored whole and
is a hole in the vector; it does not stop the rest.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from divandb import event as events
from divandb import merge
from divandb.clock import COUNTER_BITS, stamp_ms
from divandb.event import (
    Chunk,
    Creation,
    DocumentState,
    Event,
    Large,
    Passed,
    Payload,
    RegisterValue,
    Unreadable,
)
from divandb.merge import Document
from divandb.revtree import Leaf
from divandb.store import blobs, documents, registers, succession
from divandb.store.databases import Database
from divandb.store.documents import Births
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.vector import Vector, covers, join

DRIFT_MS_MAX = 5 * 60_000
"""Another node's clock may be this far ahead of ours; more is applied and raises an alarm."""
HOLES_A_PAGE = 64
COUNT_MAX = 10_000
"""Who only looks does not count further."""

Born = list[tuple[Leaf, bytes]]


def take(ledger: Ledger, messages: Sequence[bytes], now_ms: int, *, checked: bool = False) -> int:
    """Apply encoded events in their order; how many could not be applied, and are holes now.

    ``checked``: another node has looked already whether their parts fit, the only one that could
    have sent them.
    """
    batch = _Batch(ledger, now_ms, checked)
    holes = 0
    for data in messages:
        try:
            event = events.decode(data)
            # Contained already: nobody looks at the payload.
            if not event.after < event.mark <= ledger.vector.get(event.origin, 0):
                batch.add(event)
        except Unreadable as fault:
            _keep_hole(ledger, data, fault.reason)
            holes += 1
    batch.apply()
    release_waiting(ledger)
    ledger.mark_touched()
    return holes


def retry_holes(ledger: Ledger, now_ms: int) -> int:
    """Try again what could not be applied; how many still cannot."""
    newest: Any = ledger.connection.execute("SELECT coalesce(max(n), 0) FROM hole").fetchone()
    after, upto = 0, newest[0]
    while after < upto:
        rows: Any = ledger.connection.execute(
            "SELECT n, event FROM hole WHERE n > ? AND n <= ? ORDER BY n LIMIT ?",
            (after, upto, HOLES_A_PAGE),
        ).fetchall()
        if not rows:
            break
        after = rows[-1][0]
        ledger.connection.executemany("DELETE FROM hole WHERE n = ?", [(n,) for n, _ in rows])
        take(ledger, [data for _, data in rows], now_ms)
    left: Any = ledger.connection.execute("SELECT count(*) FROM hole").fetchone()
    count: int = left[0]
    return count


def holes(connection: Connection, reasons_max: int) -> tuple[int, list[str]]:
    """How many events could not be applied, counted up to ``COUNT_MAX``; the latest reasons."""
    rows: Any = connection.execute(
        "SELECT reason FROM hole ORDER BY n DESC LIMIT ?", (reasons_max,)
    ).fetchall()
    return _count(connection, "SELECT n FROM hole ORDER BY n"), [reason for (reason,) in rows]


def count_waiting(connection: Connection) -> int:
    """How many `_local` documents wait for what they vouch for, counted up to ``COUNT_MAX``."""
    return _count(connection, "SELECT origin FROM waiting")


def _count(connection: Connection, rows: str) -> int:
    sql = f"SELECT count(*) FROM ({rows} LIMIT {COUNT_MAX})"
    found: Any = connection.execute(sql).fetchone()
    count: int = found[0]
    return count


def _keep_hole(ledger: Ledger, data: bytes, reason: str) -> None:
    ledger.connection.execute(
        "INSERT OR IGNORE INTO hole (reason, event) VALUES (?, ?)", (reason, data)
    )


def _unpacked(ledger: Ledger, large: Large) -> tuple[Event, Payload]:
    """The event that went ahead in chunks; raises ``Unreadable`` while some are missing."""
    try:
        data = b"".join(blobs.read(ledger.connection, large.blob))
    except LookupError as missing:
        raise Unreadable(f"large event: {missing}") from None
    event = events.decode(data)
    payload = events.open_payload(event)
    if isinstance(payload, Large):
        raise Unreadable("damaged large event: it holds another one")
    return event, payload


class _Shelf:
    """A database while a batch is applied to it."""

    def __init__(self, ledger: Ledger, database: Database, doc_ids: list[str]) -> None:
        self.database = database
        self.there = documents.existing(ledger.connection, database.num, doc_ids)
        self.births = Births(ledger, database)
        self.unsaved: set[str] = set()
        """Documents that wait in ``births`` for their rows."""

    def flush(self) -> None:
        self.births.flush()
        self.unsaved.clear()


class _Batch:
    """Events on their way into the file, where documents that are new are put in one go."""

    def __init__(self, ledger: Ledger, now_ms: int, checked: bool) -> None:
        self._ledger = ledger
        self._now_ms = now_ms
        self._checked = checked
        self._stamp_max = (now_ms + DRIFT_MS_MAX) << COUNTER_BITS
        self._opened: list[tuple[Event, Payload]] = []
        self._doc_ids: dict[tuple[str, int], list[str]] = {}
        self._shelves: dict[int, _Shelf] = {}

    def add(self, event: Event) -> None:
        """The next event; raises ``Unreadable`` if it cannot be applied."""
        if event.origin == self._ledger.origin and event.after < event.mark:
            raise Unreadable("an event of a write that this node has not made")
        try:
            payload = events.open_payload(event, checked=self._checked)
        except Unreadable:
            if event.kind != events.BLOB:
                raise
            # It completes nothing: a good copy can come from anybody.
            self._ledger.alarms.damaged_blobs += 1
            return
        if isinstance(payload, Large):
            self.apply()  # its pieces may be among what was added
            event, payload = _unpacked(self._ledger, payload)
        if isinstance(payload, DocumentState):
            ids = self._doc_ids.setdefault((event.database, event.generation), [])
            ids.append(payload.id)
        self._opened.append((event, payload))

    def apply(self) -> None:
        """Apply what was added, and move the vector by what that completes."""
        for event, payload in self._opened:
            if isinstance(payload, DocumentState):
                # Between the two: the mark with which a database begins must not cover the event,
                # and one that is due can be stored at the change itself.
                database = self._database(event)
                self._cover(event)
                if database is not None:
                    self._take_document(database, event, payload)
            else:
                self._take_other(event, payload)
                self._cover(event)
            if event.stamp > self._stamp_max:
                self._note_drift(event.stamp)
        self._flush()
        self._opened.clear()
        self._doc_ids.clear()
        self._shelves.clear()

    def _flush(self) -> None:
        for shelf in self._shelves.values():
            shelf.flush()

    def _note_drift(self, stamp: int) -> None:
        alarms = self._ledger.alarms
        alarms.hlc_drift_events += 1
        drift_ms = stamp_ms(stamp) - self._now_ms
        alarms.hlc_drift_ms_max = max(alarms.hlc_drift_ms_max, drift_ms)

    def _cover(self, event: Event) -> None:
        if event.mark > event.after:
            self._ledger.cover(event.origin, event.slot, event.after, event.mark)

    def _take_document(self, database: Database, event: Event, arrived: DocumentState) -> None:
        shelf = self._shelves.get(database.num)
        if shelf is None:
            ids = self._doc_ids[event.database, event.generation]
            shelf = self._shelves[database.num] = _Shelf(self._ledger, database, ids)
        if arrived.id not in shelf.there:
            shelf.there.add(arrived.id)
            if _is_birth(arrived.document):
                self._ledger.reach(arrived.document.context)
                shelf.births.add(arrived.id, arrived.document.leaves[0], arrived.bodies[0])
                shelf.unsaved.add(arrived.id)
                return
        elif arrived.id in shelf.unsaved:
            shelf.flush()
        _merge(self._ledger, shelf, arrived)

    def _take_other(self, event: Event, payload: Payload) -> None:
        ledger = self._ledger
        if isinstance(payload, Chunk):
            whole = blobs.take_chunk(ledger.connection, ledger.sums, payload, self._now_ms)
            ledger.alarms.damaged_blobs += not whole
        elif isinstance(payload, RegisterValue):
            if payload.stamp > self._stamp_max:
                self._note_drift(payload.stamp)
            _take_register(ledger, self._database(event), event, payload)
        elif isinstance(payload, Creation):
            self._database(event, payload)
        elif isinstance(payload, Passed):
            succession.note(ledger.connection, payload)
        elif event.kind == events.DROPPED:
            self._flush()
            database = self._database(event)
            if database is not None:
                ledger.drop_database(database)

    def _database(self, event: Event, creation: Creation | None = None) -> Database | None:
        """The living database that the event is about, made if it is not known; ``None`` if the
        event is about an older or dropped generation, or about none.
        """
        known = self._ledger.register.get(event.database)
        if known is not None and known.generation >= event.generation:
            if known.generation > event.generation:
                return None
            if creation is not None:
                self._ledger.learn_creation(known, creation.created_ms, creation.options)
            return None if known.dropped else known
        if not event.database:
            return None
        self._flush()
        # Its creation may still come; whatever it says then counts.
        made = creation or Creation("{}", 0)
        return self._ledger.add_generation(
            event.database, event.generation, made.created_ms, made.options
        )


def _is_birth(document: Document) -> bool:
    """Is it a document of one leaf that one write made, and nothing else was ever in it?"""
    if len(document.leaves) != 1 or len(document.context) != 1:
        return False
    dots = document.leaves[0].dots
    return len(dots) == 1 and document.context.get(dots[0][0]) == dots[0][1]


def _merge(ledger: Ledger, shelf: _Shelf, arrived: DocumentState) -> None:
    row = documents.read_row(ledger.connection, shelf.database.num, arrived.id)
    here, there = row.document, arrived.document
    # What is covered is contained: looked at before any body is.
    if covers(here.context, there.context):
        return
    ledger.reach(there.context)
    if not _follows(here, there):
        merged = merge.merge(here, there)
        documents.store(ledger, shelf.database, row, merged, born_in(here, merged, arrived))
        return
    if not covers(there.context, here.context):
        there = Document(there.leaves, join(here.context, there.context))
    shelf.births.follow(row, there, arrived.bodies[0])
    shelf.unsaved.add(arrived.id)


def _follows(here: Document, there: Document) -> bool:
    """Does one leaf simply take the place of one leaf? Then ``merge`` has nothing to find out."""
    if len(here.leaves) != 1 or len(there.leaves) != 1:
        return False
    (before,), (after,) = here.leaves, there.leaves
    if len(before.dots) != 1 or len(after.dots) != 1 or before.rev == after.rev:
        return False
    (gone, gone_oseq), (new, new_oseq) = before.dots[0], after.dots[0]
    return there.context.get(gone, 0) >= gone_oseq and here.context.get(new, 0) < new_oseq


def born_in(here: Document, merged: Document, arrived: DocumentState) -> Born:
    """The leaves that are new in ``merged``, with their bodies."""
    known = {(leaf.rev, leaf.digest) for leaf in here.leaves}
    kept = {(leaf.rev, leaf.digest) for leaf in merged.leaves}
    born = {
        (leaf.rev, leaf.digest): (leaf, body)
        for leaf, body in zip(arrived.document.leaves, arrived.bodies, strict=True)
        if (leaf.rev, leaf.digest) in kept - known
    }
    return list(born.values())


def _take_register(
    ledger: Ledger, database: Database | None, event: Event, arrived: RegisterValue
) -> None:
    if event.database and database is None:
        return
    if arrived.kind == registers.LOCAL and database is not None:
        missing = _missing(ledger, arrived.seen)
        if missing is not None:
            _have_wait(ledger, database.num, event, arrived, missing)
            return
    registers.take(
        ledger, database, arrived.kind, arrived.key,
        registers.Register(arrived.value, arrived.stamp, arrived.origin, arrived.oseq),
    )  # fmt: skip


# `_local` documents show only where all that their writers had seen is contained. One that must
# wait is found by one of the writes that are missing: when that comes, the next is looked for.


def _missing(ledger: Ledger, seen: Vector) -> tuple[int, int] | None:
    """One of the writes in ``seen`` that are not contained here."""
    # What it means by what it does not name is known once all that it names is here.
    for needs in (seen, ledger.ends().expand(seen)):
        for origin, oseq in needs.items():
            if ledger.vector.get(origin, 0) < oseq:
                return origin, oseq
    return None


def _have_wait(
    ledger: Ledger, num: int, event: Event, arrived: RegisterValue, missing: tuple[int, int]
) -> None:
    """Keep the event, unless a later one of its key waits: what is older will not be missed."""
    key = (num, arrived.key)
    held: Any = ledger.connection.execute(
        "SELECT event FROM waiting WHERE db = ? AND key = ?", key
    ).fetchone()
    if held is None or _order(_register_in(held[0])[1]) < _order(arrived):
        ledger.connection.execute(
            "INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?)",
            (*key, *missing, events.encode(event)),
        )


def _register_in(data: bytes) -> tuple[Event, RegisterValue]:
    event = events.decode(data)
    payload = events.open_payload(event)
    assert isinstance(payload, RegisterValue)
    return event, payload


def _order(register: RegisterValue) -> tuple[int, int, int]:
    return (register.stamp, register.origin, register.oseq)


def release_waiting(ledger: Ledger) -> None:
    """Show the `_local` documents whose last missing write has come in this transaction."""
    for num, key, data in list(_reached(ledger)):
        event, arrived = _register_in(data)
        missing = _missing(ledger, arrived.seen)
        if missing is not None:
            ledger.connection.execute(
                "UPDATE waiting SET origin = ?, oseq = ? WHERE db = ? AND key = ?",
                (*missing, num, key),
            )
            continue
        ledger.connection.execute("DELETE FROM waiting WHERE db = ? AND key = ?", (num, key))
        database = ledger.register.get(event.database)
        if database is not None and (database.num, database.dropped) == (num, False):
            _take_register(ledger, database, event, arrived)


def _reached(ledger: Ledger) -> Iterator[tuple[int, str, bytes]]:
    """What waits for a write that is contained by now."""
    for origin in ledger.moved:
        rows: Any = ledger.connection.execute(
            "SELECT db, key, event FROM waiting WHERE origin = ? AND oseq <= ?",
            (origin, ledger.vector[origin]),
        )
        yield from rows
