"""The parameters of `_all_docs` and its kin, and the ids they mean."""

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import BadRequest, QueryParseError, TooLarge
from divandb.httpd.listing import (
    DESIGN,
    EVERYTHING,
    LIMIT_MAX,
    LOCAL,
    Query,
    check_query,
    read_query,
    span_of,
)
from divandb.replica import Span


def query(text: str, body: dict[str, Any] | None = None) -> Query:
    base = read_query(Query(), (body or {}).items(), decoded=True)
    return read_query(base, parse_qsl(text, keep_blank_values=True), decoded=False)


def test_nothing_asked_for_is_everything() -> None:
    assert query("") == Query()
    assert span_of(query(""), EVERYTHING) == Span()


def test_both_spellings_of_the_bounds() -> None:
    assert query('startkey="a"&endkey="b"') == query('start_key="a"&end_key="b"')
    assert span_of(query('startkey="a"&endkey="b"'), EVERYTHING) == Span("a", "b")


def test_key_is_a_range_of_one() -> None:
    assert span_of(query('key="a"'), EVERYTHING) == Span("a", "a")


def test_one_of_keys_in_a_query_string_is_a_key() -> None:
    assert (query('keys=["a"]').start, query('keys=["a"]').keys) == ("a", None)
    assert query('keys=["a","b"]').keys == ["a", "b"]


def test_the_query_string_wins_over_the_body() -> None:
    assert query("limit=1", {"limit": 2, "skip": 3}) == Query(limit=1, skip=3)


def test_descending_turns_the_bounds_round() -> None:
    asked = query('descending=true&startkey="m"&endkey="c"&inclusive_end=false')
    assert span_of(asked, EVERYTHING) == Span("c", "m", False, True)


@pytest.mark.parametrize("value", [None, False, True, 5, 1.5, [], ["a"], {}, {"a": 1}])
def test_what_is_no_string_comes_before_all_ids(value: Any) -> None:
    text = json.dumps(value)
    nothing = Span("", "", True, False)
    assert span_of(query(f"startkey={text}"), EVERYTHING) == Span()
    assert span_of(query(f"endkey={text}"), EVERYTHING) == nothing
    assert span_of(query(f"descending=true&startkey={text}"), EVERYTHING) == nothing
    assert span_of(query(f"descending=true&endkey={text}"), EVERYTHING) == Span()


def test_a_namespace_bounds_every_range() -> None:
    assert span_of(query(""), DESIGN) == DESIGN
    assert span_of(query('startkey="a"&endkey="z"'), LOCAL) == Span("a", "_local0", True, False)
    assert span_of(query('startkey="A"&endkey="_design/m"'), DESIGN) == Span(
        "_design/", "_design/m"
    )


@given(
    st.text(alphabet="abc", max_size=2),
    st.text(alphabet="abc", max_size=2),
    st.booleans(),
    st.booleans(),
    st.text(alphabet="abc", max_size=2),
)
def test_a_span_holds_what_lies_between_the_bounds(
    start: str, end: str, descending: bool, inclusive: bool, doc_id: str
) -> None:
    asked = Query(start=start, end=end, descending=descending, inclusive_end=inclusive)
    span = span_of(asked, EVERYTHING)
    inside = (
        span.high is not None
        and (span.low < doc_id or (span.low_in and span.low == doc_id))
        and (doc_id < span.high or (span.high_in and span.high == doc_id))
    )
    low, high = (end, start) if descending else (start, end)
    assert inside == (low <= doc_id <= high and (inclusive or doc_id != end))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("limit=-1", "Invalid value for positive integer: -1"),
        ("skip=x", 'Invalid value for integer: "x"'),
        ("limit=", 'Invalid value for integer: ""'),
        ("limit=1.5", 'Invalid value for integer: "1.5"'),
        ("descending=1", 'Invalid boolean parameter: "1"'),
        ("reduce=true", "Reduce is invalid for map-only views."),
        ("group=true", "Invalid use of grouping on a map view."),
        ("group_level=2", "Invalid use of grouping on a map view."),
        ("stale=no", "Invalid value for `stale`."),
        ("stable=no", "Invalid value for `stable`."),
        ("update=no", "Invalid value for `update`."),
        ("partition=p", "`partition` parameter is not supported on this db"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(QueryParseError) as refused:
        query(text)
    assert refused.value.reason == reason


def test_what_views_know_is_passed_over() -> None:
    text = "stale=ok&stable=true&update=lazy&reduce=false&group=false&group_level=0"
    assert query(text + "&startkey_docid=a&sorted=true&unheard=of") == Query()


def test_flags_take_any_case() -> None:
    assert query("include_docs=TRUE&descending=False") == Query(include_docs=True)


def test_a_limit_beyond_measure_is_no_limit() -> None:
    assert query("limit=" + "9" * 100).limit == LIMIT_MAX


@pytest.mark.parametrize("text", ["startkey=a", "key=", "keys=[", 'endkey="\\ud800"'])
def test_bad_json(text: str) -> None:
    with pytest.raises(BadRequest, match="invalid UTF-8 JSON"):
        query(text)


@pytest.mark.parametrize("limit", ["1", True, 1.0, None])
def test_a_number_in_a_body_is_a_number(limit: Any) -> None:
    with pytest.raises(QueryParseError):
        query("", {"limit": limit})


def test_keys_go_with_no_range() -> None:
    for asked in ('keys=["a","b"]&startkey="a"', 'keys=["a","b"]&key="a"'):
        with pytest.raises(QueryParseError, match="`keys` is incompatible with"):
            check_query(query(asked), 10)
    check_query(Query(keys=["a"], start="a", end="a"), 10)
    check_query(Query(keys=[], start="a"), 10)
    with pytest.raises(QueryParseError, match="must be an array"):
        check_query(query("keys=5"), 10)


def test_keys_are_bounded() -> None:
    check_query(Query(keys=["a"] * 10), 10)
    with pytest.raises(TooLarge):
        check_query(Query(keys=["a"] * 11), 10)
