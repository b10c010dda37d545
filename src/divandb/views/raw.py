"""JSON values as bytes in the order of Erlang's terms: CouchDB's "raw" collation.

    numbers < false < null < true < objects < arrays < strings

A view with `"options": {"collation": "raw"}` has its rows in this order; in every view it is the
order of what one document emits with one key. Numbers compare by value, strings by code point,
arrays and objects item by item: an object's items are its names and values as they stand.

As with ``mango.keys`` no encoding is the beginning of another one, and behind a value nothing is as
high as ``keys.ABOVE``:

    a number             0x10, and what ``keys.number`` makes of it
    false, null, true    0x11, 0x12, 0x13
    an object            0x14, name and value of each member, 0x01
    an array             0x15, its items, 0x01
    a string             0x16, its UTF-8 with 0x01 0x01 for 0x00 and 0x01 0x02 for 0x01, 0x00

Nothing here recurses, so that values may be nested to any depth.

Source of the order: CouchDB ``couch_mrview_util:maybe_define_less_fun``, and its documentation of
views, "Raw collation".
"""

from typing import Any, Final

from divandb.mango import keys

_NUMBER: Final = b"\x10"
_FALSE, _NULL, _TRUE = b"\x11", b"\x12", b"\x13"
_OBJECT, _ARRAY, _STRING = b"\x14", b"\x15", b"\x16"
_ENDED: Final = object()
_END: Final = b"\x01"


def encoded(value: Any) -> bytes:
    """The key of a JSON value whose numbers are within 64 bits."""
    found = bytearray()
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found += _string(one)
        elif one is _ENDED:
            found += _END
        elif isinstance(one, bool) or one is None:
            found += _NULL if one is None else _TRUE if one else _FALSE
        elif isinstance(one, dict):
            found += _OBJECT
            left.append(_ENDED)
            for name, member in reversed(one.items()):
                left += (member, name)
        elif isinstance(one, list):
            found += _ARRAY
            left.append(_ENDED)
            left += reversed(one)
        else:
            found += _NUMBER + keys.number(one)
    return bytes(found)


def _string(text: str) -> bytes:
    plain = text.encode().replace(b"\x01", b"\x01\x02").replace(b"\x00", b"\x01\x01")
    return _STRING + plain + b"\x00"
