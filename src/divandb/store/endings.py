"""Ends of origins in the file: registers of the cluster, written once each and kept for ever.

    ended/<origin>/<number>/<by>    the origin ended there, says the owner whose origin is ``by``
    closed/<origin>/<number>/<by>   and all members know of it

The row of a register names the write that set it: that is the dot which ``closings`` goes by.
"""

from typing import Any

from divandb.closings import Closings, End
from divandb.store.file import Connection

ENDED = "ended"
CLOSED = "closed"
KINDS = (ENDED, CLOSED)
_ROWS = """
SELECT kind, key, stamp, origin, oseq FROM register WHERE db = 0 AND kind IN ('ended', 'closed')
"""


def key_of(origin: int, upto: int, by: int) -> str:
    """The key of both registers."""
    return f"{origin % 2**64:016x}/{upto}/{by % 2**64:016x}"


def load(connection: Connection) -> Closings:
    """All ends in the file."""
    rows: Any = connection.execute(_ROWS).fetchall()
    closed = {key for kind, key, _, _, _ in rows if kind == CLOSED}
    return Closings(
        End(*_named(key), (origin, oseq), stamp, key in closed)
        for kind, key, stamp, origin, oseq in rows
        if kind == ENDED
    )


def _named(key: str) -> tuple[int, int]:
    """The origin, and the number."""
    origin, upto, _ = key.split("/")
    return int.from_bytes(bytes.fromhex(origin), "big", signed=True), int(upto)
