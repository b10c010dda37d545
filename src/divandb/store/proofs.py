"""What a node holds, in numbers that another node can compare with its own.

Two nodes are never at the same vector while clients write. They need not be. A document that holds
no write beyond a vector W is the same on all nodes that contain W: it is the merge of the same
writes. So two nodes at V1 and V2 compare all but what holds a write that the other does not
contain, and since a digest is an exclusive or, what is left out of the comparison is taken out of
the digest: no rows are read but those that have just changed.

What is compared is named by a key: ``d`` and the id of a document, ``r``, kind, ``/`` and key of a
register. Each answer is read in one transaction, with the vector that holds in it. Registers that
wait to be shown (`arrivals`) are left out, too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from divandb import event as events
from divandb.cursor import Cursor
from divandb.event import Creation, Event, Payload, RegisterValue
from divandb.store import changes, databases, digests, documents, endings, registers, soundness
from divandb.store.databases import EMPTY_DIGEST, Database
from divandb.store.file import Connection
from divandb.vector import Vector, covers

DOCUMENT = "d"
REGISTER = "r"
CHANGED_MAX = 2048
"""Rows that are taken out of a comparison; if there are more, nodes are too far apart for one."""
RANGE_ROWS_MAX = 512
WAITING_MAX = 4096

_DOCUMENTS = """
SELECT id, tree FROM doc INDEXED BY doc_by_id WHERE db = ? AND id > ? AND id <= ?
ORDER BY id LIMIT ?
"""
_REST_OF_DOCUMENTS = """
SELECT id, tree FROM doc INDEXED BY doc_by_id WHERE db = ? AND id > ? ORDER BY id LIMIT ?
"""
_CHANGED = "SELECT id, tree FROM doc WHERE place > ? AND place < ? LIMIT ?"
_TREE = "SELECT tree FROM doc WHERE db = ? AND id = ?"
_REGISTERS = """
SELECT kind, key, value, stamp, origin, oseq FROM register WHERE db = ? AND (kind, key) > (?, ?)
ORDER BY kind, key LIMIT ?
"""
_ALL_REGISTERS = "SELECT kind, key, value, stamp, origin, oseq FROM register WHERE db = ?"
_WAITING = "SELECT key FROM waiting WHERE db = ? LIMIT ?"


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A database as a node has it: its latest generation."""

    name: str
    generation: int
    dropped: bool
    digest: bytes


class Held(msgspec.Struct, frozen=True):
    """Something that a node holds: its number (``digests``), and the writes that are in it."""

    key: str
    number: int
    context: Vector
    waits: bool = False
    """Is it a register, of which a later value waits to be shown?"""

    def is_beyond(self, vector: Vector) -> bool:
        """May somebody who contains this vector have it otherwise?"""
        return self.waits or not covers(vector, self.context)


def claims(connection: Connection, after: str = "") -> list[Claim]:
    """All databases behind a name, by name."""
    newest = databases.newest(databases.load_all(connection))
    return [claim_of(newest[name]) for name in sorted(newest) if name > after]


def claim_of(database: Database) -> Claim:
    """A database's generation and digest."""
    digest = EMPTY_DIGEST if database.dropped else database.digest
    return Claim(database.name, database.generation, database.dropped, digest)


def living(connection: Connection, name: str, generation: int) -> Database | None:
    """This generation, if it is the latest here and lives."""
    found = databases.find(connection, name)
    if found is None or found.dropped or found.generation != generation:
        return None
    return found


def changed(connection: Connection, database: Database, vector: Vector) -> list[Held] | None:
    """All that somebody who contains ``vector`` may have otherwise; ``None`` if it is too much."""
    cursor, closings = Cursor(0, 0, dict(vector)), endings.load(connection)
    place = changes.place_of(connection, database, cursor, lambda: closings)
    rows: Any = connection.execute(
        _CHANGED, (place, database.place_end, CHANGED_MAX + 1)
    ).fetchall()
    if len(rows) > CHANGED_MAX:
        return None
    waiting = _waiting(connection, database)
    held = [*waiting.values(), *(_document(doc_id, tree) for doc_id, tree in rows)]
    held += _registers(connection.execute(_ALL_REGISTERS, (database.num,)), waiting)
    found = {one.key: one for one in held if one.is_beyond(vector)}
    return list(found.values()) if len(found) <= CHANGED_MAX else None


def held(connection: Connection, database: Database, keys: Iterable[str]) -> list[Held]:
    """These, as far as they are here."""
    found = []
    for key in keys:
        one = _one(connection, database, key)
        if one is not None:
            found.append(one)
    return found


def stretch(
    connection: Connection, database: Database, after: str, upto: str | None
) -> tuple[list[Held], str | None]:
    """What is held in (after, upto], the first ``RANGE_ROWS_MAX`` of it, by key; ``None``: to the
    end. And how far that goes.
    """
    found: list[Held] = []
    if after < REGISTER:
        found = _documents_between(connection, database, after[1:], upto)
    left = RANGE_ROWS_MAX - len(found)
    if left and (upto is None or upto >= REGISTER):
        kind, _, key = after[1:].partition("/") if after >= REGISTER else ("", "", "")
        rows = connection.execute(_REGISTERS, (database.num, kind, key, left))
        waiting = _waiting(connection, database)
        found += (one for one in _registers(rows, waiting) if upto is None or one.key <= upto)
        left = RANGE_ROWS_MAX - len(found)
        end = upto if left else found[-1].key
        known = {one.key for one in found}
        found += (
            one
            for one in waiting.values()
            if one.key not in known and after < one.key and (end is None or one.key <= end)
        )
        return found, end
    return found, upto if left else found[-1].key


def _documents_between(
    connection: Connection, database: Database, after: str, upto: str | None
) -> list[Held]:
    if upto is None or upto >= REGISTER:
        rows = connection.execute(_REST_OF_DOCUMENTS, (database.num, after, RANGE_ROWS_MAX))
    else:
        bounds = (database.num, after, upto[1:], RANGE_ROWS_MAX)
        rows = connection.execute(_DOCUMENTS, bounds)
    return [_document(doc_id, tree) for doc_id, tree in rows]


def _document(doc_id: str, tree: bytes) -> Held:
    found = soundness.read_tree(tree)
    if found is None:
        return Held(DOCUMENT + doc_id, 0, {})
    return Held(DOCUMENT + doc_id, digests.of_document(doc_id, found.leaves), found.context)


def _registers(rows: Iterable[Any], waiting: dict[str, Held]) -> Iterator[Held]:
    for kind, key, value, stamp, origin, oseq in rows:
        name = f"{REGISTER}{kind}/{key}"
        number = digests.of_register(kind, key, value, stamp)
        yield Held(name, number, {origin: oseq}, name in waiting)


def _waiting(connection: Connection, database: Database) -> dict[str, Held]:
    rows = connection.execute(_WAITING, (database.num, WAITING_MAX))
    names = [f"{REGISTER}{registers.LOCAL}/{key}" for (key,) in rows]
    return {name: Held(name, 0, {}, waits=True) for name in names}


def _one(connection: Connection, database: Database, key: str) -> Held | None:
    if key.startswith(DOCUMENT):
        row: Any = connection.execute(_TREE, (database.num, key[1:])).fetchone()
        return None if row is None else _document(key[1:], row[0])
    kind, _, name = key[1:].partition("/")
    found = registers.read(connection, database.num, kind, name)
    if found is None:
        return None
    number = digests.of_register(kind, name, found.value, found.stamp)
    return Held(key, number, {found.origin: found.oseq})


# States, for those who differ


def register_events(connection: Connection, name: str) -> list[bytes]:
    """What makes a database what it is here, as Write Events that complete nothing."""
    database = databases.find(connection, name)
    if database is None:
        return []
    creation = Creation(database.options, database.created_ms)
    made = [_event(database, events.CREATED, creation)]
    return [*made, _event(database, events.DROPPED, None)] if database.dropped else made


def state_event(
    connection: Connection, database: Database, key: str, vector: Vector
) -> bytes | None:
    """A document or register as a Write Event that completes nothing; ``None`` if it is not here,
    or is damaged here.
    """
    payload: Payload
    if key.startswith(DOCUMENT):
        row, fault = soundness.examined(connection, database.num, key[1:])
        if not row.place or fault is not None:
            return None
        payload = documents.read_state(connection, database.num, key[1:])
        return _event(database, events.DOCUMENT, payload)
    kind, _, name = key[1:].partition("/")
    found = registers.read(connection, database.num, kind, name)
    if found is None:
        return None
    payload = RegisterValue(
        kind, name, found.value, found.stamp, found.origin, found.oseq, dict(vector)
    )
    return _event(database, events.REGISTER, payload)


def _event(database: Database, kind: str, payload: Payload) -> bytes:
    packed = events.pack(payload)
    return events.encode(
        Event(events.VERSION, "", 0, 0, 0, 0, 0, kind, database.name, database.generation, packed)
    )
