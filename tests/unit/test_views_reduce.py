"""Built-in reduce functions against what they mean, however rows are split."""

import itertools
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import InvalidValue
from divandb.mango import keys
from divandb.views.reduce import BUILTINS, SUM_ERROR, Row, builtin_of, overflows, parts


def rows(*values: Any, key: Any = None) -> list[Row]:
    return [row(key, value) for value in values]


def row(key: Any, value: Any) -> Row:
    text = b'"key":%b,"value":%b' % (orjson.dumps(key), orjson.dumps(value))
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Row(keys.encoded(key), "a", number, text)


def reduced(name: str, some: Sequence[Row]) -> Any:
    builtin = BUILTINS[name]
    return builtin.final(builtin.reduce(some))


def in_pieces(name: str, some: Sequence[Row], cuts: Sequence[int]) -> Any:
    """The same by way of several reductions."""
    builtin = BUILTINS[name]
    places = sorted({0, len(some), *[cut % (len(some) + 1) for cut in cuts]})
    pieces = [some[low:high] for low, high in itertools.pairwise(places)]
    return builtin.final(builtin.rereduce([builtin.reduce(piece) for piece in pieces]))


whole = st.integers(-(2**40), 2**40)
cuts = st.lists(st.integers(0, 100), max_size=4)
json_keys = st.recursive(
    st.none() | st.booleans() | whole | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.lists(whole, min_size=1), cuts)
def test_numbers_are_added_counted_and_described(values: list[int], cut: list[int]) -> None:
    expected = {
        "_sum": sum(values),
        "_count": len(values),
        "_stats": {
            "sum": sum(values), "count": len(values), "min": min(values), "max": max(values),
            "sumsqr": sum(value * value for value in values),
        },
    }  # fmt: skip
    for name, result in expected.items():
        assert reduced(name, rows(*values)) == result
        assert in_pieces(name, rows(*values), cut) == result


@given(st.lists(st.lists(whole, max_size=4), min_size=1), cuts)
def test_arrays_are_added_place_by_place(values: list[list[int]], cut: list[int]) -> None:
    longest = max([1, *map(len, values)])  # CouchDB begins with 0
    padded = [value + [0] * (longest - len(value)) for value in values]
    expected = [sum(column) for column in zip(*padded, strict=True)]
    assert reduced("_sum", rows(*values)) == expected
    assert in_pieces("_sum", rows(*values), cut) == expected


counts = st.dictionaries(st.sampled_from("abc"), whole, max_size=3)


@given(st.lists(counts, min_size=1), cuts)
def test_objects_are_added_by_name(values: list[dict[str, int]], cut: list[int]) -> None:
    names = {name for value in values for name in value}
    expected = {name: sum(value.get(name, 0) for value in values) for name in names}
    assert reduced("_sum", rows(*values)) == expected
    assert in_pieces("_sum", rows(*values), cut) == expected


def test_a_number_beside_an_array_counts_for_its_first_place() -> None:
    assert reduced("_sum", rows(1, [10, 20], 2)) == [13, 20]
    assert reduced("_sum", rows({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1, 5]}})) == {
        "a": {"b": 3, "c": [2, 5]}
    }


@pytest.mark.parametrize("bad", ["x", None, True, [1, "x"], {"a": "x"}])
def test_what_cannot_be_added_is_an_error_in_the_place_of_the_sum(bad: Any) -> None:
    first = {"a": 1} if isinstance(bad, dict) else 1
    for some in (rows(first, bad), rows(first, bad, first, first)):
        told = in_pieces("_sum", some, [1, 2])
        assert told["error"] == "builtin_reduce_error" and told["reason"] == SUM_ERROR
        assert told["caused_by"] == bad


def test_a_sum_that_does_not_shrink_is_an_error() -> None:
    values = [{f"name-{number}-{place}": 1 for place in range(200)} for number in range(4)]
    told = reduced("_sum", rows(*values))
    assert told["error"] == "builtin_reduce_error"
    assert told["reason"].startswith("Reduce output must shrink more rapidly: input size: ")
    same = [{f"name-{place}": 1 for place in range(400)}] * 4
    assert reduced("_sum", rows(*same)) == {f"name-{place}": 4 for place in range(400)}
    assert not overflows(10, 5000) and overflows(10_000, 5001) and not overflows(10_002, 5001)


@given(st.lists(st.lists(whole, min_size=2, max_size=2), min_size=1), cuts)
def test_stats_of_arrays_are_by_place(values: list[list[int]], cut: list[int]) -> None:
    told = in_pieces("_stats", rows(*values), cut)
    assert [one["sum"] for one in told] == [sum(column) for column in zip(*values, strict=True)]


def test_stats_of_stats_are_joined() -> None:
    made = {"sum": 3, "count": 2, "min": 1, "max": 2, "sumsqr": 5}
    assert reduced("_stats", rows(made, 10)) == {
        "sum": 13, "count": 3, "min": 1, "max": 10, "sumsqr": 105,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    ["x", None, {"sum": 1}, {**dict.fromkeys(("sum", "count", "min", "max"), 1), "sumsqr": "x"}],
)
def test_stats_of_anything_else_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidValue):
        reduced("_stats", rows(1, bad))
    with pytest.raises(InvalidValue):
        reduced("_stats", rows([1, 2], [1]))


@given(st.lists(json_keys, min_size=1, max_size=50), cuts)
def test_few_keys_are_counted_nearly_exactly(values: list[Any], cut: list[int]) -> None:
    some = [row(value, None) for value in values]
    distinct = len({one.key for one in some})
    told = reduced("_approx_count_distinct", some)
    assert abs(told - distinct) <= 1
    assert in_pieces("_approx_count_distinct", some, cut) == told


@pytest.mark.parametrize("distinct", [1000, 30_000])
def test_many_keys_are_counted_within_a_few_percent(distinct: int) -> None:
    some = [row(number % distinct, None) for number in range(distinct)]
    told = reduced("_approx_count_distinct", some)
    assert abs(told - distinct) / distinct < 0.05


def test_a_name_may_have_anything_behind_it_as_in_couchdb() -> None:
    assert builtin_of("_sum\n \nand more") == "_sum"
    assert builtin_of("_approx_count_distinct") == "_approx_count_distinct"
    assert builtin_of("_none") is None


def test_a_rows_text_is_split_where_its_value_begins() -> None:
    text = b'"key":["\\",\\"value\\":1",{"value":2}],"value":{"key":3}'
    assert parts(text) == (b'["\\",\\"value\\":1",{"value":2}]', b'{"key":3}')
