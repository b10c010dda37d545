"""Portable cursors: what comes back is what was given out, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import cursor
from divandb.cursor import Cursor
from divandb.errors import BadRequest

int64 = st.integers(-(2**63), 2**63 - 1)
cursors = st.builds(
    Cursor,
    int64,
    st.integers(0, 2**40),
    st.dictionaries(int64, st.integers(0, 2**63 - 1), max_size=9),
)


@given(st.integers(0, cursor.SEQ_MAX), cursors)
def test_round_trip(number: int, given_out: Cursor) -> None:
    text = f"{number}{cursor.suffix(given_out)}"
    assert cursor.parse(text) == (number, given_out)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_equal_vectors_give_equal_cursors() -> None:
    assert cursor.suffix(Cursor(1, 1, {3: 1, 2: 5})) == cursor.suffix(Cursor(1, 1, {2: 5, 3: 1}))


def test_the_form_is_stable() -> None:
    # Clients keep cursors for years: a change here makes them all start again.
    assert cursor.suffix(Cursor(-5, 2, {7: 9, -1: 300})) == "-k_sCkpL_zQEskgcJ"
    assert cursor.parse("12-k_sCkpL_zQEskgcJ") == (12, Cursor(-5, 2, {7: 9, -1: 300}))


def test_zero_is_the_beginning() -> None:
    assert cursor.parse("0") == (0, None)


@given(st.text() | st.from_regex(r"[0-9]{0,14}-?[A-Za-z0-9_=-]*", fullmatch=True))
def test_anything_else_is_a_bad_request(text: str) -> None:
    try:
        number, found = cursor.parse(text)
    except BadRequest:
        return
    assert (number, found) == (0, None) or cursor.suffix(found or Cursor(0, 0, {}))


@pytest.mark.parametrize(
    "text",
    ["", "bogus", "1", "12", "-1", "+1", "1-", "1-AA", "1-é", "١-k_sC", "0-", "1-k_sCgQ", "1-====",
     "9" * 5000, "1-" + "A" * 100_000, "1-k_sCkpL_zQEskg"],
)  # fmt: skip
def test_malformed_ones(text: str) -> None:
    with pytest.raises(BadRequest, match="Malformed sequence"):
        cursor.parse(text)
