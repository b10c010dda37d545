"""Reading all rows of a database, to see whether they are what was written.

Rows are read in pieces by a reader, in short transactions; the writer takes each piece into the
tally (``tally``) if its rows are all still there, which it sees by their number: rows leave their
places and never come back to one. At the end the tally is that of the rows, and the counters and
the digest that the database keeps are set to it: a row that was changed or lost behind the writer's
back shows in the digest from then on, and so in the next comparison with another node.
"""

from typing import Any

import msgspec

from divandb.store import digests, soundness
from divandb.store.databases import Database
from divandb.store.documents import weight
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.tally import Scan, Tally

PIECE_ROWS_MAX = 128
PIECE_BYTES_MAX = 1024 * 1024
"""A piece ends with the row that passes either."""
REGISTERS_MAX = 512
"""Registers that the writer counts at a time."""

_ROWS = """
SELECT place, id, flags, rev, body, tree FROM doc
WHERE place > ? AND place <= ? ORDER BY place LIMIT ?
"""
_COUNT = "SELECT count(*) FROM doc WHERE place > ? AND place <= ?"
_LAST = "SELECT max(place) FROM doc WHERE place > ? AND place < ?"
_REGISTERS = """
SELECT kind, key, value, stamp FROM register
WHERE db = ? AND (kind, key) > (?, ?) ORDER BY kind, key LIMIT ?
"""


class Piece(msgspec.Struct, frozen=True):
    """The rows in (after, upto], as they were at one moment."""

    after: int
    upto: int
    rows: int
    tally: Tally
    faults: list[tuple[str, str]]
    """(id, what is wrong) of documents that are not what was written."""


def living(ledger: Ledger) -> list[tuple[int, str, int]]:
    """(number, name, generation) of each database that can be counted."""
    return [(d.num, d.name, d.generation) for d in ledger.databases.values() if not d.dropped]


def begin(ledger: Ledger, num: int) -> tuple[int, int] | None:
    """Begin to count a database: (how far the count has come, how far it has to come); ``None`` if
    there is none.
    """
    database = ledger.databases.get(num)
    if database is None or database.dropped:
        ledger.scan = None
        return None
    last = _last_place(ledger.connection, database)
    if last > database.place | database.seq:
        # A counter that was put back: the next write would meet a place that is taken.
        database.seq = last - database.place
        ledger.touch(database)
    ledger.scan = Scan(num, database.place, last)
    return database.place, last


def take_registers(ledger: Ledger, num: int) -> bool | None:
    """Count the next registers; are there more? ``None``: begin again."""
    scan = _scan_of(ledger, num)
    if scan is None:
        return None
    rows: Any = ledger.connection.execute(
        _REGISTERS, (num, *scan.register, REGISTERS_MAX)
    ).fetchall()
    for kind, key, value, stamp in rows:
        scan.tally.digest ^= digests.of_register(kind, key, value, stamp)
        scan.register = (kind, key)
    if len(rows) == REGISTERS_MAX:
        return True
    scan.register = ("\U0010ffff", "")
    return False


def read(connection: Connection, num: int, after: int, goal: int) -> Piece:
    """The next rows up to ``goal``, on a reader's connection."""
    tally = Tally()
    faults: list[tuple[str, str]] = []
    count = size = 0
    upto = goal
    with connection:
        for columns in connection.execute(_ROWS, (after, goal, PIECE_ROWS_MAX)):
            row, fault = soundness.row_of(columns)
            fault = fault or soundness.fault_of_bodies(connection, num, row)
            if fault is not None:
                faults.append((row.id, fault))
            number = digests.of_document(row.id, row.document.leaves)
            tally.count(weight(row.flags, row.body), number)
            count += 1
            size += len(row.body) + len(columns[-1])
            if count >= PIECE_ROWS_MAX or size >= PIECE_BYTES_MAX:
                upto = row.place
                break
    return Piece(after, upto, count, tally, faults)


def take(ledger: Ledger, num: int, piece: Piece) -> tuple[int, int] | None:
    """Count a piece, unless one of its rows is gone since: then it is to be read again.

    As ``begin``; ``None``: begin again.
    """
    scan = _scan_of(ledger, num)
    if scan is None:
        return None
    here: Any = ledger.connection.execute(_COUNT, (scan.place, piece.upto)).fetchone()
    if piece.after == scan.place and here[0] == piece.rows:
        scan.tally.join(piece.tally)
        scan.place = piece.upto
    return scan.place, scan.goal


def finish(ledger: Ledger, num: int) -> bool | None:
    """Set the database's counters to what was counted; was its digest another? ``None``: begin
    again.
    """
    scan = _scan_of(ledger, num)
    if scan is None or scan.place < scan.goal:
        return None
    ledger.scan = None
    database, tally = ledger.databases[num], scan.tally
    kept = (database.docs, database.tombstones, database.body_bytes)
    counted = (tally.docs, tally.tombstones, tally.body_bytes)
    wrong = database.digest != digests.as_bytes(tally.digest)
    if wrong or kept != counted:
        database.digest = digests.as_bytes(tally.digest)
        database.docs, database.tombstones, database.body_bytes = counted
        ledger.touch(database)
    return wrong


def _scan_of(ledger: Ledger, num: int) -> Scan | None:
    scan = ledger.scan
    database = ledger.databases.get(num)
    if scan is None or scan.num != num or database is None or database.dropped:
        return None
    return scan


def _last_place(connection: Connection, database: Database) -> int:
    row: Any = connection.execute(_LAST, (database.place, database.place_end)).fetchone()
    return max(row[0] or 0, database.place | database.seq)
