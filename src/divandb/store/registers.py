"""Last-writer-wins values: `_security`, database options, `_local` documents, settings.

A register holds the value with the greatest stamp; of equal stamps, the greater dot. A deletion is
a value of ``None`` that keeps its stamp, so that an older write which arrives late stays beaten.
"""

from typing import Any

import msgspec

from divandb.store import digests, endings
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.store.ledger import Kind, Ledger

NODE = 0
"""The db number of registers that belong to no database."""
SECURITY = "security"
LOCAL = "local"
OPTION = "option"
SETTING = "setting"
RECEIPT = "receipt"
REMOVED = "removed"


class Register(msgspec.Struct, frozen=True):
    """A value with what decides between it and another."""

    value: bytes | None
    stamp: int
    origin: int
    oseq: int


def read(connection: Connection, db: int, kind: str, key: str) -> Register | None:
    """The register, with deletions; ``None`` if it was never set."""
    row: Any = connection.execute(
        "SELECT value, stamp, origin, oseq FROM register WHERE db = ? AND kind = ? AND key = ?",
        (db, kind, key),
    ).fetchone()
    return Register(*row) if row else None


def value(connection: Connection, db: int, kind: str, key: str) -> bytes | None:
    """The value, or ``None`` if it was never set or was deleted."""
    register = read(connection, db, kind, key)
    return register.value if register else None


def scan(connection: Connection, db: int, kind: str) -> list[tuple[str, bytes]]:
    """(key, value) of all registers of a kind that are not deleted, by key."""
    rows = connection.execute(
        "SELECT key, value FROM register WHERE db = ? AND kind = ? AND value IS NOT NULL"
        " ORDER BY key",
        (db, kind),
    )
    return [(key, held) for key, held in rows]


def page(
    connection: Connection, db: int, kind: str, after: str, bytes_max: int
) -> tuple[list[bytes], str | None]:
    """(values behind the key ``after``, by key: one at least, and no more once they have
    ``bytes_max`` bytes; the key of the last, if there are more).
    """
    rows = connection.execute(
        "SELECT key, value FROM register WHERE db = ? AND kind = ? AND value IS NOT NULL"
        " AND key > ? ORDER BY key",
        (db, kind, after),
    )
    found: list[bytes] = []
    size, last = 0, after
    for key, held in rows:
        if size >= bytes_max:
            return found, last
        found.append(held)
        size, last = size + len(held), key
    return found, None


def write(
    ledger: Ledger, database: Database | None, kind: str, key: str, new: bytes | None, stamp: int
) -> Register:
    """Set a register on this master; the stamp is raised above the one it replaces."""
    num = database.num if database else NODE
    before = read(ledger.connection, num, kind, key)
    if before is not None and stamp <= before.stamp:
        stamp = ledger.stamp(before.stamp)
    origin, oseq = ledger.next_dot(Kind.REGISTER, num, f"{kind}/{key}", stamp)
    register = Register(new, stamp, origin, oseq)
    _store(ledger, database, kind, key, before, register)
    return register


def take(ledger: Ledger, database: Database | None, kind: str, key: str, arrived: Register) -> bool:
    """Take another node's value if it is later than ours; was it?"""
    num = database.num if database else NODE
    before = read(ledger.connection, num, kind, key)
    if before is not None and order(before) >= order(arrived):
        return False
    _store(ledger, database, kind, key, before, arrived)
    ledger.seen(arrived.stamp)
    return True


def _store(
    ledger: Ledger,
    database: Database | None,
    kind: str,
    key: str,
    before: Register | None,
    new: Register,
) -> None:
    num = database.num if database else NODE
    ledger.connection.execute(
        "INSERT OR REPLACE INTO register VALUES (?, ?, ?, ?, ?, ?, ?)",
        (num, kind, key, new.value, new.stamp, new.origin, new.oseq),
    )
    ledger.changes.registers.add((num, kind, key))
    if kind in endings.KINDS:
        ledger.hear_of_end()
    if database is not None:
        gone = digests.of_register(kind, key, before.value, before.stamp) if before else 0
        put = digests.of_register(kind, key, new.value, new.stamp)
        database.digest = digests.combined(database.digest, gone, put)
        if ledger.scan is not None and ledger.scan.num == num:
            ledger.scan.set(kind, key, gone, put)
        ledger.touch(database)


def order(register: Register) -> tuple[int, int, int]:
    """What decides between two values: the greater is taken everywhere."""
    return (register.stamp, register.origin, register.oseq)
