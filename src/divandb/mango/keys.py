"""JSON values as bytes whose order is the values' order: what indexes are sorted by.

``encoded(a) < encoded(b)`` exactly if ``collate.compare(a, b) < 0``, and they are equal exactly if
it gives 0. No encoding is the beginning of another one, so the encodings of several values one
behind the other compare as the list of the values does.

    null, false, true    one byte
    a number             0x13, its double (8 bytes), and by how much the number itself differs (2)
    a string             0x14, and each of its three levels in UTF-8, ended by 0x00
    an array             0x15, its items, 0x01
    an object            0x16, name and value of each member, 0x01

A level has no 0x00 in it, and UTF-8 keeps the order of code points. Behind a value nothing is as
high as ``ABOVE``: ``encoded(v) + ABOVE`` stands above all keys that begin with ``v``, and below
those of the next value.
"""

import struct
from typing import Any, Final

from divandb.mango import collate
from divandb.mango.collate import RANK_NUMBER, RANK_STRING

ABOVE: Final = b"\xff"
_FIRST: Final = 0x10
_END: Final = b"\x01"
_RANKS: Final = tuple(bytes([_FIRST + rank]) for rank in range(7))
_NUMBER, _STRING = _RANKS[RANK_NUMBER], _RANKS[RANK_STRING]
_ZERO: Final = 1 << 63
_LOW: Final = 1 << 15
_pack_double = struct.Struct(">d").pack
_unpack_bits = struct.Struct(">Q").unpack
_pack_number = struct.Struct(">QH").pack


def encoded(value: Any) -> bytes:
    """The key of a JSON value whose numbers are within 64 bits."""
    if isinstance(value, str):
        return _STRING + _levels(collate.string_key(value))
    rank = collate.rank(value)
    if rank == RANK_NUMBER:
        return _NUMBER + number(value)
    return _RANKS[rank] if rank < RANK_NUMBER else _container(value)


def row(values: list[Any]) -> bytes:
    """The key of several values, the first counting most."""
    return b"".join([encoded(value) for value in values])


def beginning(prefix: str) -> bytes:
    """What the keys of all strings that begin with ``prefix`` begin with; so may some others."""
    return _STRING + collate.string_key(prefix)[0].encode()


def _levels(key: collate.StringKey) -> bytes:
    return f"{key[0]}\0{key[1]}\0{key[2]}\0".encode()


def number(value: float) -> bytes:
    """A number's 10 bytes, in the order of numbers."""
    nearest = float(value)
    (bits,) = _unpack_bits(_pack_double(nearest + 0.0))  # -0.0 is 0.0
    bits = (bits ^ (2 * _ZERO - 1)) if bits & _ZERO else bits | _ZERO
    rest = value - int(nearest) if isinstance(value, int) else 0
    return _pack_number(bits, rest + _LOW)


def _container(value: Any) -> bytes:
    """By parts as ``collate`` gives them, so that nothing here recurses."""
    found = bytearray()
    is_number = False
    for part in collate.parts(value):
        if is_number:
            found += number(part)
            is_number = False
        elif isinstance(part, tuple):
            found += _STRING + _levels(part) if part else _END
        elif part < 0:
            found += _END
        elif part == RANK_STRING:
            continue  # its levels follow, which begin with the same byte
        else:
            found += _RANKS[part]
            is_number = part == RANK_NUMBER
    return bytes(found)
