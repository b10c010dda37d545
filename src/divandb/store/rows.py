"""Rows of a view: entries of an index in their order, between two places; see `views.ranges`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from divandb.store.file import Connection

Place = tuple[bytes, str | bytes, int]
"""(key, id, n): between two rows, or at one."""
Entry = tuple[bytes, str, int, float | None, bytes]
"""(key, id, n, number, value)"""

PIECE_BYTES_MAX = 512 * 1024
"""A piece ends with the row that passes this."""

_WHERE = "built = ? AND (key, id, n) > (?, ?, ?) AND (key, id, n) < (?, ?, ?)"
_PAGE = f"""
SELECT key, id, n, number, value FROM indexes.entry WHERE {_WHERE}
ORDER BY key {{order}}, id {{order}}, n {{order}} LIMIT ?
"""
_LEAP = f"""
SELECT key, id, n FROM indexes.entry WHERE {_WHERE}
ORDER BY key {{order}}, id {{order}}, n {{order}} LIMIT 1 OFFSET ?
"""
_HELD = "SELECT entries FROM indexes.held WHERE built = ? AND part = ?"
# Comparing keys alone is three times as fast; where a place is not at the edge of a key it will
# not do.
_TOTALS = "SELECT {what} FROM indexes.entry WHERE built = ? AND {where}"
COUNT, SUM = "count(*)", "count(*), count(number), sum(number)"
STATS = f"{SUM}, min(number), max(number), sum(number * number)"
"""What SQL is asked to find."""


class Totals(NamedTuple):
    """What SQL finds of many rows at once."""

    rows: int
    numbers: int = 0
    """How many of their values are numbers."""
    sum: float = 0
    min: float = 0
    max: float = 0
    squares: float = 0


def page(
    connection: Connection, built: int, low: Place, high: Place, limit: int, *, descending: bool
) -> tuple[list[Entry], bool]:
    """The next rows between two places, and whether there may be more."""
    sql = _PAGE.format(order="DESC" if descending else "ASC")
    rows: Any = connection.execute(sql, (built, *low, *high, limit))
    found: list[Entry] = []
    size = 0
    for row in rows:
        found.append(row)
        size += len(row[4])
        if size >= PIECE_BYTES_MAX:
            return found, True
    return found, len(found) == limit


def leap(
    connection: Connection, built: int, low: Place, high: Place, rows: int, *, descending: bool
) -> tuple[bytes, str, int] | None:
    """The place of the ``rows``-th row; None if there are fewer."""
    sql = _LEAP.format(order="DESC" if descending else "ASC")
    found: Any = connection.execute(sql, (built, *low, *high, rows - 1)).fetchone()
    place: tuple[bytes, str, int] | None = found
    return place


def count(connection: Connection, built: int, low: Place, high: Place) -> int:
    """How many rows there are between two places."""
    found = totals(connection, built, low, high, COUNT)
    assert found is not None
    return found.rows


def held(connection: Connection, built: int, part: bytes) -> int:
    """How many rows there are in a part."""
    found: Any = connection.execute(_HELD, (built, part)).fetchone()
    return found[0] if found else 0


def totals(connection: Connection, built: int, low: Place, high: Place, what: str) -> Totals | None:
    """``COUNT``, ``SUM`` or ``STATS`` of the rows between two places; None where they do not go
    into 64 bits.
    """
    where, bindings = _between(low, high)
    sql = _TOTALS.format(what=what, where=where)
    try:
        found: Any = connection.execute(sql, (built, *bindings)).fetchone()
    except apsw.SQLError:  # integer overflow
        return None
    return Totals(*[number or 0 for number in found])


def _between(low: Place, high: Place) -> tuple[str, Sequence[bytes | str | int]]:
    if _is_at_edge(low) and _is_at_edge(high):
        after = ">=" if low[2] < 0 else ">"
        upto = "<" if high[2] < 0 else "<="
        return f"key {after} ? AND key {upto} ?", (low[0], high[0])
    return "(key, id, n) > (?, ?, ?) AND (key, id, n) < (?, ?, ?)", (*low, *high)


def _is_at_edge(place: Place) -> bool:
    """Is it before or behind all rows of its key?"""
    _, doc_id, n = place
    return (doc_id == "" and n < 0) or (isinstance(doc_id, bytes) and n > 0)
