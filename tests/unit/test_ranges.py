"""Range headers, decided as CouchDB decides them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import RangeNotSatisfiable
from divandb.httpd.ranges import RANGES_MAX, content_range, parse_range


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        ("bytes=0-28", [(0, 28)]),
        ("bytes=2-", [(2, 28)]),
        ("bytes=0-3", [(0, 3)]),
        ("bytes=10-15", [(10, 15)]),
        ("bytes=-3", [(26, 28)]),
        ("bytes=-29", [(0, 28)]),
        ("bytes=-300", [(0, 28)]),
        ("bytes=20-300", [(20, 28)]),
        ("bytes=28-28", [(28, 28)]),
        ("bytes=0-99999999999999999999999", [(0, 28)]),
        ("Bytes = 1-2", [(1, 2)]),
        ("bytes=0-1,,4-5 , -2", [(0, 1), (4, 5), (27, 28)]),
    ],
)
def test_ranges_are_resolved_against_the_size(header: str, ranges: list[tuple[int, int]]) -> None:
    assert parse_range(header, 29) == ranges


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes:0-",
        "lines=1-2",
        "bytes=a-b",
        "bytes=1",
        "bytes=1-2-3",
        "bytes=--3",
        "bytes=+1-2",
        "bytes=1-2,x",
        "bytes=\u0661-\u0662",
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-",
        "bytes=0-,0-,0-",
        "bytes=3-4,0-",
    ],
)
def test_malformed_and_whole_ranges_are_ignored(header: str | None) -> None:
    assert parse_range(header, 29) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=5-3", 29),
        ("bytes=300-310", 29),
        ("bytes=300-", 29),
        ("bytes=29-", 29),
        ("bytes=-0", 29),
        ("bytes=0-1,40-50", 29),
        ("bytes=0-5", 0),
        ("bytes=-5", 0),
    ],
)
def test_ranges_outside_are_refused_with_the_size(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        parse_range(header, size)
    assert refused.value.headers == {"content-range": f"bytes */{size}"}
    assert refused.value.reason == "Requested range not satisfiable"


def test_too_many_ranges_are_ignored() -> None:
    assert parse_range("bytes=" + ",".join(["0-1"] * RANGES_MAX), 29) == [(0, 1)] * RANGES_MAX
    assert parse_range("bytes=" + ",".join(["0-1"] * (RANGES_MAX + 1)), 29) is None


def test_content_range() -> None:
    assert content_range(2, 28, 29) == "bytes 2-28/29"


@given(st.text("bytes=0123456789-, \t", max_size=40), st.integers(0, 200))
def test_whatever_comes_out_lies_inside(header: str, size: int) -> None:
    try:
        ranges = parse_range("bytes=" + header, size)
    except RangeNotSatisfiable:
        return
    assert all(0 <= first <= last < size for first, last in ranges or [])
