"""Stretches of a view against what CouchDB means by its parameters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import QueryParseError
from divandb.mango import collate, keys
from divandb.views import raw
from divandb.views.query import UNSET
from divandb.views.ranges import Encode, Stretch, all_of, between, group_of, of_key

PART = b"\0\1"
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "B", "ab"]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
ids = st.sampled_from(["a", "b", "c"])
rows = st.lists(st.tuples(values, ids), max_size=12)


def sql_order(one: str | bytes) -> tuple[bool, str | bytes]:
    """As SQLite orders texts and blobs."""
    return (isinstance(one, bytes), one)


def place(stretch_place: tuple[bytes, str | bytes, int]) -> tuple[Any, ...]:
    key, doc_id, number = stretch_place
    return key, sql_order(doc_id), number


def inside(stretch: Stretch, key: Any, doc_id: str) -> bool:
    at = place((PART + keys.encoded(key), doc_id, 0))
    return place(stretch.low) < at < place(stretch.high)


bounds = st.just(UNSET) | values
maybe_id = st.none() | ids


@given(rows, bounds, bounds, maybe_id, maybe_id, st.booleans(), st.booleans())
def test_a_range_has_the_rows_that_couchdb_gives(
    some: list[tuple[Any, str]], start: Any, end: Any, start_id: str | None, end_id: str | None,
    descending: bool, inclusive_end: bool,
) -> None:  # fmt: skip
    way = -1 if descending else 1

    def takes(key: Any, doc_id: str) -> bool:
        if start is not UNSET:
            order = way * collate.compare(key, start)
            if order < 0:
                return False
            if order == 0 and start_id is not None and way * _compare(doc_id, start_id) < 0:
                return False
        if end is not UNSET:
            order = way * collate.compare(key, end)
            if order > 0 or (order == 0 and not inclusive_end and end_id is None):
                return False
            if order == 0 and end_id is not None:
                behind = way * _compare(doc_id, end_id)
                return behind < 0 or (behind == 0 and inclusive_end)
        return True

    def asked() -> Stretch:
        low, high = (None if bound is UNSET else keys.encoded(bound) for bound in (start, end))
        return between(
            PART, low, high, start_id, end_id, descending=descending, inclusive_end=inclusive_end
        )

    is_reversed = UNSET not in (start, end) and way * collate.compare(start, end) > 0
    if is_reversed:
        with pytest.raises(QueryParseError, match="No rows can match your key range"):
            asked()
        return
    stretch = asked()
    assert [inside(stretch, *row) for row in some] == [takes(*row) for row in some]


def _compare(one: str, other: str) -> int:
    return (one > other) - (one < other)


@given(rows, values, st.booleans())
def test_a_key_has_its_own_rows(some: list[tuple[Any, str]], key: Any, descending: bool) -> None:
    stretch = of_key(PART, keys.encoded(key), descending=descending)
    assert [inside(stretch, *row) for row in some] == [
        collate.compare(value, key) == 0 for value, _ in some
    ]


@given(rows, st.booleans())
def test_all_rows_of_a_view_are_in_it_and_none_of_another(
    some: list[tuple[Any, str]], descending: bool
) -> None:
    stretch = all_of(PART, descending=descending)
    for key, doc_id in some:
        assert inside(stretch, key, doc_id)
        for other in (b"\0\0", b"\0\2", b"\1\1"):
            at = place((other + keys.encoded(key), doc_id, 0))
            assert not place(stretch.low) < at < place(stretch.high)


@given(rows, values, ids, st.booleans())
def test_what_was_read_and_what_comes_before_are_all(
    some: list[tuple[Any, str]], key: Any, doc_id: str, descending: bool
) -> None:
    whole = all_of(PART, descending=descending)
    rest = whole.behind((PART + keys.encoded(key), doc_id, 0))
    before = rest.before(whole)
    for row in some:
        is_it = collate.compare(row[0], key) == 0 and row[1] == doc_id
        assert inside(rest, *row) + inside(before, *row) == (0 if is_it else 1)


@given(
    st.lists(values, min_size=1, max_size=8), st.none() | st.integers(1, 3),
    st.sampled_from([keys.encoded, raw.encoded]),
)  # fmt: skip
def test_groups_are_of_keys_that_begin_alike(
    some: list[Any], level: int | None, encode: Encode
) -> None:
    def group(key: Any) -> Any:
        return key[:level] if level is not None and isinstance(key, list) else key

    for first in some:
        shown, beginning, exact = group_of(first, encode(first), encode, level)
        assert collate.compare(shown, group(first)) == 0
        for key in some:
            encoded = encode(key)
            taken = encoded == beginning if exact else encoded.startswith(beginning)
            assert taken == (collate.compare(group(key), shown) == 0)


numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
json = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=3) | st.text("\0\1\2a", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("\0\1ab"), inner, max_size=3)
    ),
    max_leaves=6,
)


def raw_compare(one: Any, other: Any) -> int:
    """Erlang's order, as CouchDB's documentation lists it."""
    kinds = [_raw_rank(value) for value in (one, other)]
    if kinds[0] != kinds[1]:
        return _compare_any(*kinds)
    if isinstance(one, dict):
        one, other = ([part for pair in each.items() for part in pair] for each in (one, other))
    if isinstance(one, list):
        parts = (raw_compare(*pair) for pair in zip(one, other, strict=False))
        return next((order for order in parts if order), _compare_any(len(one), len(other)))
    return 0 if one is None else _compare_any(one, other)


def _raw_rank(value: Any) -> float:
    if isinstance(value, bool) or value is None:
        return 1 if value is False else 2 if value is None else 3
    ranks = {int: 0, float: 0, dict: 4, list: 5, str: 6}
    return ranks[type(value)]


def _compare_any(one: Any, other: Any) -> int:
    return (one > other) - (one < other)


@given(json, json)
def test_raw_keys_have_erlangs_order(one: Any, other: Any) -> None:
    left, right = raw.encoded(one), raw.encoded(other)
    assert _compare_any(left, right) == raw_compare(one, other)
    assert left == right or not right.startswith(left)


def test_values_of_one_key_stand_in_erlangs_order() -> None:
    ordered = [
        -1, 0.5, 2, False, None, True, {}, {"a": 1}, {"a": 1, "b": 0}, {"a": 2}, {"b": 0}, [],
        [1], [1, 2], [2], [[]], ["a"], "", "B", "a", "a\0", "a\1", "aa", "é", "\ufff0", "😀",
    ]  # fmt: skip
    backwards = ordered[::-1]
    assert sorted(backwards, key=raw.encoded) == ordered
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert raw.encoded(deep) > raw.encoded([])
