"""Portable `_changes` cursors: ``N-<numbering id, generation, vector>``.

N is a change's number in one database on the node with that numbering. The vector held when a
change at or before N was stored, so that on any other node it finds a place before which everything
was seen already.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

from divandb.errors import BadRequest


class Cursor(msgspec.Struct, frozen=True):
    """All of a cursor but N."""

    numbering: int
    generation: int
    vector: dict[int, int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, list[tuple[int, int]]]).decode
CURSOR_CHARS_MAX = 65_536
SEQ_MAX = 2**40 - 1
"""A database's changes are numbered up to here."""


def suffix(cursor: Cursor) -> str:
    """What follows N: a dash and base64 that is safe in URLs."""
    packed = _encode((cursor.numbering, cursor.generation, sorted(cursor.vector.items())))
    return "-" + urlsafe_b64encode(packed).rstrip(b"=").decode()


def parse(text: str) -> tuple[int, Cursor | None]:
    """(N, cursor) of a sequence; a bare ``0`` has no cursor. Raises ``BadRequest`` for anything
    else.
    """
    if text == "0":
        return 0, None
    number, _, packed = text.partition("-")
    try:
        if len(text) > CURSOR_CHARS_MAX or not number.isascii() or not number.isdigit():
            raise ValueError(text)
        if len(number) > 13 or int(number) > SEQ_MAX:
            raise ValueError(number)
        numbering, generation, pairs = _decode(urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("Malformed sequence supplied in 'since' parameter.") from None
    return int(number), Cursor(numbering, generation, dict(pairs))
