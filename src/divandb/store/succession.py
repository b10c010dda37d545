"""What a node must not forget for the case that its slot changes hands."""

from collections.abc import Mapping
from typing import Any

import msgspec

from divandb.event import Passed
from divandb.store import file, positions
from divandb.store.file import Connection
from divandb.store.positions import Position
from divandb.tenure import Owner
from divandb.vector import Vector

PASSED = "passed"
"""Positions under this board's name are the master's, as its replicas know them."""
_OWNERS, _BOARDED, _ESTATE = "owners", "boarded", "estate"
_encode = msgspec.msgpack.Encoder().encode
_owners = msgspec.msgpack.Decoder(dict[str, Owner]).decode
_vector = msgspec.msgpack.Decoder(dict[int, int]).decode


def owners(connection: Connection) -> dict[str, Owner]:
    """Who owned the slots when this was last written."""
    data = file.get_meta(connection, _OWNERS)
    return {} if data is None else _owners(data)


def set_owners(connection: Connection, known: Mapping[str, Owner]) -> None:
    """Remember the owners."""
    file.set_meta(connection, _OWNERS, _encode(known))


def note(connection: Connection, passed: Passed) -> None:
    """The slot's master has said how far it has come."""
    for place in passed.places:
        positions.write(connection, Position(PASSED, *place))
    file.set_meta(connection, _BOARDED, _encode(passed.boarded))


def boarded(connection: Connection) -> dict[int, int]:
    """What of the slot's writes its master has said to be on the Masters' Board."""
    data = file.get_meta(connection, _BOARDED)
    return {} if data is None else _vector(data)


def estate(connection: Connection) -> dict[int, int] | None:
    """Origins of former owners of the slot, and how far each is on the Masters' Board: what lies
    beyond is still to be published. ``None``: nothing is.
    """
    data: Any = file.get_meta(connection, _ESTATE)
    return None if data is None else _vector(data)


def set_estate(connection: Connection, left: Vector | None) -> None:
    """Remember what is still to be published."""
    if left is None:
        connection.execute("DELETE FROM meta WHERE key = ?", (_ESTATE,))
    else:
        file.set_meta(connection, _ESTATE, _encode(dict(left)))
