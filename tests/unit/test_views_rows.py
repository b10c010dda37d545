"""Rows of a view as SQLite gives them: pages, leaps, counts and sums, against a list."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import reducing
from divandb.mango import keys
from divandb.reducing import PAGE_ROWS, Groups, reducer_of
from divandb.store import queries, rows
from divandb.store.file import Connection
from divandb.store.indexes import IndexFile, Recipe
from divandb.views import reduce
from divandb.views.engine import Program
from divandb.views.query import Query
from divandb.views.ranges import Stretch, all_of
from tests.stores import Store, edit

PART = b"\0\0"
Made = list[tuple[Any, str, Any]]
"""(key, id, value), in order."""


class View:
    """A view in a file, and what is in it."""

    def __init__(self, folder: Path, emitted: list[tuple[Any, Any]]) -> None:
        store = Store(folder)
        num = store.create("x").num
        for number, (key, value) in enumerate(emitted):
            store.write("x", edit(f"d{number:03}", None, {"key": key, "value": value}))
        self.file = IndexFile(folder / "indexes.sqlite", store.disk, 2**20)
        self.file.settle(store.identity)
        seq = store.ledger.register["x"].seq
        built = self.file.begin(num, bytes(16), seq)
        while built.seq < seq:
            built = self.file.step(built, seq, Recipe(_entries, part_bytes=2))
        self.built = built.num
        self.connection: Connection = queries.connect(store.disk, self.file.path, 2**20)
        self.store = store
        made = [(key, f"d{number:03}", value) for number, (key, value) in enumerate(emitted)]
        self.rows: Made = sorted(made, key=lambda row: (keys.encoded(row[0]), row[1]))

    def close(self) -> None:
        self.connection.close()
        self.file.close()
        self.store.close()


def _entries(documents: Any) -> list[list[tuple[bytes, bytes, Any]]]:
    found = []
    for _, body in documents:
        doc = orjson.loads(body)
        key, value = doc["key"], doc["value"]
        text = b'"key":%b,"value":%b' % (orjson.dumps(key), orjson.dumps(value))
        number = value if isinstance(value, int) else None
        found.append([(PART + keys.encoded(key), text, number)])
    return found


small = st.integers(0, 3)
key_values = st.lists(small, min_size=1, max_size=3) | small
emitted = st.lists(st.tuples(key_values, st.integers(-9, 9)), max_size=30)


@settings(deadline=None, max_examples=25)
@given(
    given_rows=emitted, descending=st.booleans(), limit=st.integers(1, 7), leap=st.integers(1, 9)
)
def test_pages_leaps_and_counts_are_those_of_the_list(
    given_rows: list[tuple[Any, Any]], descending: bool, limit: int, leap: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    view = View(tmp_path_factory.mktemp("rows"), given_rows)
    expected = view.rows[::-1] if descending else view.rows
    whole = all_of(PART, descending=descending)
    left, found = whole, []
    while True:
        page, is_more = rows.page(
            view.connection, view.built, left.low, left.high, limit, descending=descending
        )
        found += [(orjson.loads(reduce.parts(text)[0]), doc_id) for _, doc_id, _, _, text in page]
        if not is_more:
            break
        left = left.behind(page[-1][:3])
        before = left.before(whole)
        assert rows.count(view.connection, view.built, before.low, before.high) == len(found) - 1
    assert found == [(key, doc_id) for key, doc_id, _ in expected]
    place = rows.leap(
        view.connection, view.built, whole.low, whole.high, leap, descending=descending
    )
    assert (None if place is None else place[1]) == (
        expected[leap - 1][1] if leap <= len(expected) else None
    )
    assert rows.held(view.connection, view.built, PART) == len(expected)
    view.close()


def expected_groups(some: Made, level: int | None) -> list[tuple[Any, list[Any]]]:
    groups: list[tuple[Any, list[Any]]] = []
    for key, _, value in some:
        shown = None if level == 0 else key
        if level and isinstance(key, list):
            shown = key[:level]
        if not groups or groups[-1][0] != shown:
            groups.append((shown, []))
        groups[-1][1].append(value)
    return groups


@settings(deadline=None, max_examples=40)
@given(
    given_rows=emitted, level=st.sampled_from([None, 0, 1, 2]), descending=st.booleans(),
    skip=st.integers(0, 2), limit=st.none() | st.integers(1, 3),
    name=st.sampled_from(["_sum", "_count", "_stats"]),
    page_rows=st.sampled_from([2, 5, PAGE_ROWS]),
)  # fmt: skip
def test_groups_are_reduced_as_the_list_is(
    given_rows: list[tuple[Any, Any]], level: int | None, descending: bool, skip: int,
    limit: int | None, name: str, page_rows: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    view = View(tmp_path_factory.mktemp("groups"), given_rows)
    some = view.rows[::-1] if descending else view.rows
    values: dict[str, Any] = {
        "_sum": sum, "_count": len,
        "_stats": lambda all: {"sum": sum(all), "count": len(all), "min": min(all),
                               "max": max(all), "sumsqr": sum(one * one for one in all)},
    }  # fmt: skip
    groups = expected_groups(some, level)[skip:][: limit if limit is not None else None]
    query = Query(
        group_level=level, group=level is None, descending=descending, skip=skip,
        **({} if limit is None else {"limit": limit}),
    )  # fmt: skip
    stretches: list[Stretch] = [all_of(PART, descending=descending)]
    nobody: Any = None
    reducer = reducer_of(name, Program(b"", "", ""), nobody, "")
    reading, found = Groups(view.built, stretches, query, reducer, keys.encoded), []
    before, reducing.PAGE_ROWS = reducing.PAGE_ROWS, page_rows
    try:
        while not reading.over:
            reading.step(view.connection)
            found += reading.reduced()
    finally:
        reducing.PAGE_ROWS = before
    assert [(orjson.loads(key), orjson.loads(value)) for key, value in found] == [
        (key, values[name](some_values)) for key, some_values in groups
    ]
    view.close()
