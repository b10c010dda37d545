"""Erlang's external term format, as far as CouchDB's revision hashes need it.

CouchDB names a revision by the MD5 of an Erlang term. Giving the same name to the same edit means
that documents which move between the two, or are edited alike on both, do not conflict. Format:
erlang.org, "External Term Format"; the term: `couch_db:new_revid`.
"""

from struct import Struct
from typing import Any

_U32 = Struct(">I").pack
_I32 = Struct(">i").pack
_U16 = Struct(">H").pack
_F64 = Struct(">d").pack
_BYTES = [bytes((97, number)) for number in range(256)]
_BINARY = [b"m" + _U32(length) for length in range(256)]
_ATOMS = {True: b"d\x00\x04true", False: b"d\x00\x05false", None: b"d\x00\x04null"}
_NIL = b"j"
_STRING_MAX = 65_535


def append(out: bytearray, value: Any) -> None:
    """Append a decoded JSON value as a term: objects as ``{[{Key, Value}, …]}``."""
    kind = type(value)
    if kind is str:
        append_binary(out, value.encode())
    elif kind is int:
        append_int(out, value)
    elif kind is dict:
        append_object(out, value)
    elif kind is list:
        _append_list(out, value)
    elif kind is float:
        out += b"F" + _F64(value)
    else:
        out += _ATOMS[value]


def append_binary(out: bytearray, data: bytes) -> None:
    """Append bytes."""
    length = len(data)
    out += _BINARY[length] if length < 256 else b"m" + _U32(length)
    out += data


def append_int(out: bytearray, value: int) -> None:
    """Append a whole number of up to 255 bytes."""
    if 0 <= value < 256:
        out += _BYTES[value]
    elif -(2**31) <= value < 2**31:
        out += b"b" + _I32(value)
    else:
        size = (abs(value).bit_length() + 7) // 8
        out += b"n" + bytes((size, value < 0)) + abs(value).to_bytes(size, "little")


def append_object(out: bytearray, members: dict[str, Any]) -> None:
    """Append a JSON object, its members in their order."""
    if not members:
        out += b"h\x01j"
        return
    out += b"h\x01l" + _U32(len(members))
    for name, value in members.items():
        out += b"h\x02"
        append_binary(out, name.encode())
        append(out, value)
    out += _NIL


def _append_list(out: bytearray, values: list[Any]) -> None:
    if not values:
        out += _NIL
    elif len(values) <= _STRING_MAX and all(type(v) is int and 0 <= v < 256 for v in values):
        # Erlang takes a list of bytes for a string.
        out += b"k" + _U16(len(values)) + bytes(values)
    else:
        out += b"l" + _U32(len(values))
        for value in values:
            append(out, value)
        out += _NIL
