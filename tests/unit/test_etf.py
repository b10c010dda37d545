"""Terms as Erlang writes them: each expectation is what ``term_to_binary`` gives after its 131."""

from typing import Any

import pytest

from divandb import etf


@pytest.mark.parametrize(
    ("value", "term"),
    [
        (0, b"a\x00"),
        (255, b"a\xff"),
        (256, b"b\x00\x00\x01\x00"),
        (-1, b"b\xff\xff\xff\xff"),
        (2**31 - 1, b"b\x7f\xff\xff\xff"),
        (2**31, b"n\x04\x00\x00\x00\x00\x80"),
        (-(2**31) - 1, b"n\x04\x01\x01\x00\x00\x80"),
        (2**64, b"n\x09\x00" + bytes(8) + b"\x01"),
        (1.5, b"F\x3f\xf8\x00\x00\x00\x00\x00\x00"),
        (True, b"d\x00\x04true"),
        (False, b"d\x00\x05false"),
        (None, b"d\x00\x04null"),
        ("", b"m\x00\x00\x00\x00"),
        ("\u00e9", b"m\x00\x00\x00\x02\xc3\xa9"),
        ("x" * 300, b"m\x00\x00\x01\x2c" + b"x" * 300),
        ([], b"j"),
        ([1, 2], b"k\x00\x02\x01\x02"),
        ([1, 256], b"l\x00\x00\x00\x02a\x01b\x00\x00\x01\x00j"),
        ([True], b"l\x00\x00\x00\x01d\x00\x04truej"),
        ({}, b"h\x01j"),
        ({"a": []}, b"h\x01l\x00\x00\x00\x01h\x02m\x00\x00\x00\x01ajj"),
    ],
)
def test_terms(value: Any, term: bytes) -> None:
    out = bytearray()
    etf.append(out, value)
    assert bytes(out) == term


def test_a_long_list_of_bytes_is_a_list() -> None:
    out = bytearray()
    etf.append(out, [7] * 65_536)
    assert out[:5] == b"l\x00\x01\x00\x00"
