"""Views over HTTP, as CouchDB answers them, on a node and a cluster; functions that misbehave."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from tests.running import CONVERGE_S_MAX, Cluster, Running

BY_AGE = "function(doc) { if (doc.age !== undefined) emit(doc.age, doc.name) }"
BY_TEAM = "function(doc) { if (doc.team) emit([doc.team, doc.age], doc.age) }"
TEXT_SUM = "function(keys, values, rereduce) { return sum(values) }"
PEOPLE = [
    {"_id": "ann", "name": "Ann", "age": 30, "team": "red"},
    {"_id": "bob", "name": "Bob", "age": 20, "team": "blue"},
    {"_id": "cid", "name": "Cid", "age": 40, "team": "red"},
    {"_id": "dee", "name": "Dee", "age": 30, "team": "blue"},
    {"_id": "eve", "name": "Eve"},
]
PAUSE_S = 0.02


class Database:
    """A database with a design document."""

    def __init__(self, running: Running, **members: Any) -> None:
        self.running = running
        self.path = f"/views-{uuid4().hex}"
        assert self.ask("", method="PUT")[0] == 201
        self.rev: str | None = None
        if members:
            self.design(**members)

    def ask(self, path: str, body: Any = None, method: str = "GET", **more: Any) -> tuple[int, Any]:
        return self.running.request(method, self.path + path, body, **more)

    def design(self, name: str = "d", **members: Any) -> None:
        rev = {} if self.rev is None or name != "d" else {"_rev": self.rev}
        status, made = self.ask(f"/_design/{name}", {**members, **rev}, "PUT")
        assert status == 201, made
        if name == "d":
            self.rev = made["rev"]

    def add(self, *docs: dict[str, Any]) -> list[dict[str, Any]]:
        status, rows = self.ask("/_bulk_docs?concern=visible", {"docs": docs}, "POST")
        assert status == 201
        found: list[dict[str, Any]] = rows
        return found

    def view(self, name: str, node: str | None = None, **query: Any) -> dict[str, Any]:
        status, answer = self.asked(name, node, **query)
        assert status == 200, answer
        found: dict[str, Any] = answer
        return found

    def asked(self, name: str, node: str | None = None, **query: Any) -> tuple[int, Any]:
        texts = ("startkey_docid", "endkey_docid", "stale")
        given = {
            key: value if key in texts else json.dumps(value).strip('"' if key == "update" else "")
            for key, value in query.items()
        }
        return self.ask(f"/_design/d/_view/{name}?{urlencode(given)}", node=node)

    def ids(self, name: str, **query: Any) -> list[str]:
        return [row["id"] for row in self.view(name, **query)["rows"]]

    def groups(self, name: str, **query: Any) -> list[tuple[Any, Any]]:
        return [(row["key"], row["value"]) for row in self.view(name, **query)["rows"]]


VIEWS = {
    "by-age": {"map": BY_AGE},
    "by-team": {"map": BY_TEAM, "reduce": "_sum"},
    "stats": {"map": BY_TEAM, "reduce": "_stats"},
    "distinct": {"map": BY_TEAM, "reduce": "_approx_count_distinct"},
    "summed": {"map": BY_TEAM, "reduce": TEXT_SUM},
}


@pytest.fixture
def people(node: Running) -> Iterator[Database]:
    made = Database(node, views=VIEWS)
    made.add(*PEOPLE)
    yield made
    made.ask("", method="DELETE")


def await_true(condition: Callable[[], bool], within_s: float = CONVERGE_S_MAX) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(PAUSE_S)


def test_rows_stand_in_the_order_of_keys_and_ids(people: Database) -> None:
    answer = people.view("by-age")
    assert answer == {
        "total_rows": 4,
        "offset": 0,
        "rows": [
            {"id": "bob", "key": 20, "value": "Bob"},
            {"id": "ann", "key": 30, "value": "Ann"},
            {"id": "dee", "key": 30, "value": "Dee"},
            {"id": "cid", "key": 40, "value": "Cid"},
        ],
    }


@pytest.mark.parametrize(
    ("query", "ids", "offset"),
    [
        ({"descending": True}, ["cid", "dee", "ann", "bob"], 0),
        ({"limit": 2, "skip": 1}, ["ann", "dee"], 1),
        ({"skip": 9}, [], 4),
        ({"limit": 0}, [], 0),
        ({"key": 30}, ["ann", "dee"], 1),
        ({"startkey": 30}, ["ann", "dee", "cid"], 1),
        ({"endkey": 30}, ["bob", "ann", "dee"], 0),
        ({"endkey": 30, "inclusive_end": False}, ["bob"], 0),
        ({"startkey": 25, "endkey": 35, "descending": False}, ["ann", "dee"], 1),
        ({"startkey": 35, "endkey": 25, "descending": True}, ["dee", "ann"], 1),
        ({"startkey": 30, "startkey_docid": "b"}, ["dee", "cid"], 2),
        ({"startkey": 30, "endkey": 30, "endkey_docid": "ann"}, ["ann"], 1),
        ({"keys": [40, 20, 7, 40]}, ["cid", "bob", "cid"], 3),
        ({"keys": [30, 20], "descending": True}, ["bob", "dee", "ann"], 3),
        ({"keys": []}, [], 0),
        ({"startkey": [1]}, [], 4),
    ],
)
def test_parameters_say_which_rows(
    people: Database, query: dict[str, Any], ids: list[str], offset: int
) -> None:
    answer = people.view("by-age", **query)
    assert [row["id"] for row in answer["rows"]] == ids
    assert (answer["total_rows"], answer["offset"]) == (4, offset)


def test_documents_come_along_also_those_that_values_name(people: Database) -> None:
    people.add({"_id": "x", "boss": "bob"}, {"_id": "y", "boss": "nobody"}, {"_id": "z", "boss": 1})
    link = "function(doc) { if (doc.boss) emit(doc._id, {_id: doc.boss}); else emit(doc._id) }"
    people.design(views={"link": {"map": link}})
    rows = people.view("link", include_docs=True, startkey="dee")["rows"]
    docs = [row["doc"] and row["doc"]["_id"] for row in rows]
    assert docs == ["dee", "eve", "bob", None, None]
    assert rows[0]["doc"]["name"] == "Dee"


def test_a_value_may_name_a_revision(people: Database) -> None:
    status, first = people.ask("/ann")
    assert status == 200
    people.add({**first, "age": 31})
    link = "function(doc) { if (doc.rev) emit(null, {_id: 'ann', _rev: doc.rev}) }"
    people.add({"_id": "l", "rev": first["_rev"]})
    people.design(views={"link": {"map": link}})
    (row,) = people.view("link", include_docs=True)["rows"]
    assert row["doc"]["age"] == 30


def test_attachments_and_conflicts_come_along(people: Database) -> None:
    people.add(
        {"_id": "a", "age": 1, "_attachments": {"t": {"data": "aGk=", "content_type": "t/x"}}}
    )
    loser = {"_id": "a", "_rev": "1-" + "0" * 32, "age": 1}
    assert people.ask("/_bulk_docs", {"docs": [loser], "new_edits": False}, "POST")[0] == 201
    (row,) = people.view("by-age", key=1, include_docs=True, conflicts=True, attachments=True)[
        "rows"
    ]
    assert row["doc"]["_conflicts"] == [loser["_rev"]]
    assert row["doc"]["_attachments"]["t"]["data"] == "aGk="
    seen = (
        "function(doc) { if (doc._conflicts) emit(doc._conflicts, Object.keys(doc._attachments)) }"
    )
    people.design(views={"seen": {"map": seen}})
    assert people.groups("seen") == [([loser["_rev"]], ["t"])]


def test_posts_and_queries_say_the_same(people: Database) -> None:
    path = "/_design/d/_view/by-age"
    status, answer = people.ask(path, {"keys": [40, 20]}, "POST")
    assert status == 200 and [row["id"] for row in answer["rows"]] == ["cid", "bob"]
    assert people.ask(f"{path}?limit=1", {"startkey": 30}, "POST")[1]["rows"][0]["id"] == "ann"
    asked = {"queries": [{"key": 20}, {"descending": True, "limit": 1}, {"keys": [30]}]}
    status, answer = people.ask(f"{path}/queries", asked, "POST")
    assert [[row["id"] for row in one["rows"]] for one in answer["results"]] == [
        ["bob"], ["cid"], ["ann", "dee"],
    ]  # fmt: skip


@pytest.mark.parametrize("view", ["by-team", "summed"])
def test_rows_are_reduced_by_group(people: Database, view: str) -> None:
    assert people.groups(view) == [(None, 120)]
    assert people.groups(view, group_level=1) == [(["blue"], 50), (["red"], 70)]
    assert people.groups(view, group=True, limit=2) == [(["blue", 20], 20), (["blue", 30], 30)]
    assert people.groups(view, group=True, skip=3) == [(["red", 40], 40)]
    assert people.groups(view, group_level=1, descending=True, limit=1) == [(["red"], 70)]
    assert people.groups(view, startkey=["blue", 25], endkey=["red", 30]) == [(None, 60)]
    assert people.groups(view, group_level=9, startkey=["red"]) == [
        (["red", 30], 30), (["red", 40], 40),
    ]  # fmt: skip
    assert people.groups(view, startkey=["zoo"]) == []
    keys = [["red", 40], ["none"], ["blue", 20]]
    assert people.groups(view, keys=keys, group=True) == [(["red", 40], 40), (["blue", 20], 20)]
    assert people.ids(view, reduce=False, limit=1) == ["bob"]


def test_the_other_built_in_functions(people: Database) -> None:
    expected = {"sum": 120, "count": 4, "min": 20, "max": 40, "sumsqr": 3800}
    assert people.groups("stats") == [(None, expected)]
    assert people.groups("distinct") == [(None, 4)]
    assert people.groups("distinct", group_level=1) == [(["blue"], 2), (["red"], 2)]


def test_large_and_small_groups_add_up(node: Running) -> None:
    """More rows than a page has, so that groups are added up in SQL from their middle on."""
    emit = "function(doc) { for (var n = 0; n < 50; n++) emit([doc.g, n % 3], doc.v) }"
    views = {
        "sum": {"map": emit, "reduce": "_sum"},
        "text": {"map": emit, "reduce": TEXT_SUM},
        "count": {"map": emit, "reduce": "_count"},
    }
    database = Database(node, views=views)
    groups = {"large": 60, "other": 30, "small": 1, "tiny": 1}
    docs = [{"g": g, "v": number} for g, count in groups.items() for number in range(count)]
    database.add(*docs)
    per_group = {g: sum(range(count)) * 50 for g, count in groups.items()}
    for view in ("sum", "text"):
        assert database.groups(view, group_level=1) == [([g], n) for g, n in per_group.items()]
        found = database.groups(view, group_level=1, descending=True)
        assert found == [([g], n) for g, n in reversed(per_group.items())]
        assert database.groups(view) == [(None, sum(per_group.values()))]
    exact = database.groups("count", group=True)
    assert exact == [
        ([g, n], count * len(range(n, 50, 3))) for g, count in groups.items() for n in range(3)
    ]


@pytest.mark.parametrize(
    ("view", "query", "status", "error", "reason"),
    [
        ("none", {}, 404, "not_found", "missing_named_view"),
        ("by-age", {"reduce": True}, 400, "query_parse_error", "Reduce is invalid"),
        ("by-age", {"group": True}, 400, "query_parse_error", "Invalid use of grouping"),
        ("by-age", {"group_level": 1}, 400, "query_parse_error", "Invalid use of grouping"),
        ("by-age", {"startkey": 2, "endkey": 1}, 400, "query_parse_error", "No rows can match"),
        ("by-age", {"limit": -1}, 400, "query_parse_error", "Invalid value for positive integer"),
        ("by-age", {"limit": "x"}, 400, "query_parse_error", "Invalid value for integer"),
        ("by-age", {"keys": {}}, 400, "bad_request", "`keys` parameter must be an array."),
        ("by-age", {"keys": [1, 2], "key": 1}, 400, "query_parse_error", "`keys` is incompatible"),
        ("by-age", {"update": 7}, 400, "query_parse_error", "Invalid value for `update`."),
        ("by-age", {"stale": "7"}, 400, "query_parse_error", "Invalid value for `stale`."),
        ("by-team", {"include_docs": True}, 400, "query_parse_error", "`include_docs` is invalid"),
        ("by-team", {"conflicts": True}, 400, "query_parse_error", "`conflicts` is invalid"),
        ("by-team", {"keys": [1, 2]}, 400, "query_parse_error", "Multi-key fetches"),
        ("by-team", {"group": False, "group_level": 1}, 400, "query_parse_error", "Can't specify"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_couchdbs_words(
    people: Database, view: str, query: dict[str, Any], status: int, error: str, reason: str
) -> None:
    got, answer = people.asked(view, **query)
    assert (got, answer["error"]) == (status, error) and answer["reason"].startswith(reason)


def test_what_is_no_design_document_is_not_there(people: Database) -> None:
    assert people.ask("/_design/x/_view/y")[1] == {"error": "not_found", "reason": "missing"}
    assert people.ask(f"/_design/d?rev={people.rev}", method="DELETE")[0] == 200
    assert people.asked("by-age")[1] == {"error": "not_found", "reason": "deleted"}
    bad = {"views": {"v": {"map": "function(doc) {"}}}
    assert people.ask("/_design/bad", bad, "PUT")[1]["error"] == "compilation_error"
    bad = {"views": {"v": {"map": BY_AGE, "reduce": "_none"}}}
    assert people.ask("/_design/bad", bad, "PUT")[1]["error"] == "invalid_design_doc"
    other = {"language": "erlang", "views": {"v": {"map": "x"}}}
    assert people.ask("/_design/other", other, "PUT")[0] == 201
    assert people.ask("/_design/other/_view/v")[1]["error"] == "unknown_query_language"
    assert people.ask("/_temp_view", {"map": BY_AGE}, "POST")[0] == 410


def test_options_and_modules_of_a_design_document(node: Running) -> None:
    emit = "function(doc) { emit(doc._local_seq, require('views/lib/up')(doc._id)) }"
    lib = {"up": "module.exports = function (text) { return text.toUpperCase() }"}
    database = Database(
        node, views={"v": {"map": emit}, "lib": lib},
        options={"local_seq": True, "include_design": True},
    )  # fmt: skip
    database.add({"_id": "a"})
    assert database.groups("v") == [(1, "_DESIGN/D"), (2, "A")]


def test_raw_collation_is_the_order_of_erlangs_terms(node: Running) -> None:
    """As CouchDB's documentation has it; a view without the option stays as it is beside it."""
    emit = "function(doc) { doc.keys.forEach(function (key) { emit(key, 1) }) }"
    options = {"collation": "raw"}
    views = {
        "raw": {"map": emit, "options": options},
        "usual": {"map": emit},
        "counted": {"map": emit, "options": options, "reduce": "_count"},
    }
    database = Database(node, views=views)
    ordered = [
        -1, 1, 2.5, False, None, True, {}, {"a": "a"}, {"b": 0}, [], ["a"], ["a", 1], ["b"],
        "", "B", "a", "aB", "ab", "b", "é", "\ufff0",
    ]  # fmt: skip
    database.add({"_id": "a", "keys": ordered[1::2]}, {"_id": "b", "keys": ordered[::-2]})

    def keys(view: str = "raw", **query: Any) -> list[Any]:
        return [row["key"] for row in database.view(view, **query)["rows"]]

    assert keys() == ordered
    assert keys(descending=True) == ordered[::-1]
    assert keys(startkey="B", endkey="ab") == ["B", "a", "aB", "ab"]
    assert keys(startkey=True, endkey={"a": "b"}) == [True, {}, {"a": "a"}]
    assert keys(startkey=["b"], endkey=[], descending=True) == [["b"], ["a", 1], ["a"], []]
    assert keys(keys=["b", None, {"b": 0}]) == ["b", None, {"b": 0}]
    assert database.view("raw", startkey="")["offset"] == ordered.index("")
    assert keys(startkey=[], endkey="\ufff0") == ordered[ordered.index([]) :]
    groups = database.groups("counted", group_level=1, startkey=[], endkey=["z"])
    assert groups == [([], 1), (["a"], 2), (["b"], 1)]
    assert database.groups("counted", group=True) == [(key, 1) for key in ordered]
    usual = keys("usual")
    assert usual[:3] == [None, False, True] and usual[-1] == {"b": 0}
    assert [key for key in usual if isinstance(key, str)] == [
        "", "a", "ab", "aB", "b", "B", "é", "\ufff0",
    ]  # fmt: skip
    status, reason = database.asked("raw", startkey="a", endkey="B")
    assert status == 400 and reason["error"] == "query_parse_error"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"options": {"local_seq": 1}}, "`options.local_seq` field must have boolean type"),
        ({"options": {"include_design": "x"}}, "`options.include_design` field must have boolean"),
        ({"options": {"partitioned": None}}, "`options.partitioned` field must have boolean type"),
        ({"options": {"partitioned": True}}, "partitioned option cannot be true in a non-partit"),
        ({"options": []}, "`options` field must have object type"),
        ({"filters": {"f": 1}}, "`filters.f` field must have object or string type"),
        ({"views": {"v": {"map": 1}}}, "`views.v.map` field must have string type"),
        ({"views": {"v": {"map": "f", "reduce": {}}}}, "`views.v.reduce` field must have string"),
        ({"views": {"v": {}}}, "View `v` must contain map function"),
        ({"language": "query", "views": {"v": {"map": "f"}}}, "`views.v.map` field must have ob"),
    ],
)
def test_what_has_not_the_form_of_a_design_document_is_refused(
    people: Database, members: dict[str, Any], reason: str
) -> None:
    status, said = people.ask("/_design/bad", members, "PUT")
    assert (status, said["error"]) == (400, "invalid_design_doc")
    assert said["reason"].startswith(reason)


def test_design_documents_may_say_partitioned_where_the_database_does(node: Running) -> None:
    """Their views are of all documents: there are no partitions."""
    path = f"/views-{uuid4().hex}"
    assert node.request("PUT", f"{path}?partitioned=true")[0] == 201
    assert node.request("PUT", f"{path}/p:a", {})[0] == 201
    for name, flag in (("yes", True), ("no", False)):
        views = {"v": {"map": "function(doc) { emit(doc._id) }"}}
        design = {"views": views, "options": {"partitioned": flag}}
        assert node.request("PUT", f"{path}/_design/{name}", design)[0] == 201
        status, found = node.request("GET", f"{path}/_design/{name}/_view/v")
        assert status == 200 and [row["key"] for row in found["rows"]] == ["p:a"]


def test_changes_come_into_a_view_and_go(people: Database) -> None:
    assert people.ids("by-age", key=30) == ["ann", "dee"]
    ann = people.ask("/ann")[1]
    people.add({**ann, "age": 50}, {"_id": "flo", "name": "Flo", "age": 30})
    assert people.ids("by-age") == ["bob", "dee", "flo", "cid", "ann"]
    assert people.ask(f"/dee?rev={people.ask('/dee')[1]['_rev']}", method="DELETE")[0] == 200
    answer = people.view("by-age", startkey=30, update_seq=True)
    assert [row["id"] for row in answer["rows"]] == ["flo", "cid", "ann"]
    assert (answer["total_rows"], answer["offset"]) == (4, 1)
    changes = people.ask(f"/_changes?since={answer['update_seq']}")[1]
    assert changes["results"] == []


def test_who_does_not_wait_gets_what_there_is(people: Database) -> None:
    assert people.ids("by-age")
    await_true(lambda: people.ids("by-age", update=False) == ["bob", "ann", "dee", "cid"])
    assert people.ids("by-age", stale="ok") == ["bob", "ann", "dee", "cid"]
    people.add({"_id": "flo", "age": 1})
    people.view("by-age", update="lazy")
    await_true(lambda: people.ids("by-age", update=False)[0] == "flo")


def test_a_new_version_is_built_beside_the_one_in_use(node: Running) -> None:
    slow = "var until = Date.now() + 40; while (Date.now() < until);"
    database = Database(node, views={"v": {"map": "function(doc) { emit(doc._id, 'old') }"}})
    database.add(*[{"_id": f"d{number:02}"} for number in range(40)])
    assert len(database.ids("v")) == 40
    views = {"v": {"map": f"function(doc) {{ {slow} emit(doc._id, 'new') }}", "reduce": "_count"}}
    database.design(views=views)
    told = database.ask("/_design/d/_info")[1]["view_index"]
    assert not told["ready"] and told["in_use"] != told["signature"]
    before = database.view("v", update=False)
    assert {row["value"] for row in before["rows"]} == {"old"} and before["total_rows"] == 40
    assert database.groups("v") == [(None, 40)]  # who waits gets the new one
    told = database.ask("/_design/d/_info")[1]["view_index"]
    assert told["ready"] and told["in_use"] == told["signature"]
    assert database.groups("v", update=False) == [(None, 40)]


def test_progress_is_an_active_task(node: Running) -> None:
    database = Database(node)
    database.add(*[{"_id": f"d{number:02}"} for number in range(40)])
    slow = "function(doc) { var until = Date.now() + 40; while (Date.now() < until); emit(1) }"
    database.design(views={"v": {"map": slow}})

    def tasks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = node.request("GET", "/_active_tasks")[1]
        return [task for task in found if task["database"] == database.path[1:]]

    await_true(lambda: bool(tasks()))
    (task,) = tasks()
    assert (task["type"], task["design_document"]) == ("indexer", "_design/d")
    assert database.view("v")["total_rows"] == 40


def test_cleaning_up_and_compacting_are_accepted(people: Database) -> None:
    assert people.ask("/_view_cleanup", {}, "POST") == (202, {"ok": True})
    assert people.ask("/_compact/d", {}, "POST") == (202, {"ok": True})
    assert people.ask("/_compact/none", {}, "POST")[0] == 404


def test_views_need_the_right_to_read(people: Database) -> None:
    assert (
        people.running.request("GET", f"{people.path}/_design/d/_view/by-age", admin=False)[0]
        == 401
    )


# Functions that misbehave

FUNCTION_MS_MAX = 400
TROUBLE = {
    "loop": ("for (;;);", "ran longer than 400 ms on document bad"),
    "more": (
        "var a = []; for (;;) a.push(new Array(1000).fill(1));",
        "MiB of memory on document bad",
    ),
}


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node that ends functions early."""
    started = Running(tmp_path_factory.mktemp("bounded"))
    started.environment["DIVANDB_FUNCTION_MS_MAX"] = str(FUNCTION_MS_MAX)
    started.start()
    yield started
    assert started.stop() == 0


@pytest.mark.parametrize("kind", sorted(TROUBLE))
def test_a_map_that_does_not_end_is_named_and_the_node_serves_on(
    bounded: Running, kind: str
) -> None:
    code, reason = TROUBLE[kind]
    source = f"function(doc) {{ if (doc._id == 'bad') {{ {code} }} emit(doc._id) }}"
    database = Database(bounded, views={"v": {"map": source}})
    database.add({"_id": "a"})
    assert database.ids("v") == ["a"]
    database.add({"_id": "bad"}, {"_id": "c"})
    status, answer = database.asked("v")
    assert (status, answer["error"]) == (500, "os_process_error")
    assert answer["reason"].startswith("The function v in _design/d") and reason in answer["reason"]
    assert database.asked("v")[1] == answer  # it is not tried again at once
    assert database.ids("v", update=False) == ["a"]
    other = Database(bounded, views={"v": {"map": "function(doc) { emit(doc._id) }"}})
    other.add({"_id": "x"})
    assert other.ids("v") == ["x"]
    database.design(views={"v": {"map": "function(doc) { emit(doc._id) }"}})
    assert database.ids("v") == ["a", "bad", "c"]


def test_a_map_that_throws_skips_the_document_and_says_so(bounded: Running) -> None:
    source = "function(doc) { if (doc.bad) throw new Error('no ' + doc._id); emit(doc._id) }"
    database = Database(bounded, views={"v": {"map": source}})
    database.add({"_id": "a"}, {"_id": "odd-one", "bad": 1}, {"_id": "c"})
    assert database.ids("v") == ["a", "c"]
    said = "map function of view v raised Error: no odd-one on document odd-one"
    assert said in bounded.log.read_text()


def test_a_reduce_that_throws_or_does_not_end(bounded: Running) -> None:
    emit = "function(doc) { emit(doc._id, 1) }"
    views = {
        "throws": {"map": emit, "reduce": "function(k, v) { throw new Error('no') }"},
        "loops": {"map": emit, "reduce": "function(k, v) { for (;;); }"},
        "grows": {"map": emit, "reduce": "function(k, v) { return 'x'.repeat(9000) }"},
    }
    database = Database(bounded, views=views)
    database.add({"_id": "a"})
    assert database.groups("throws") == [(None, None)]
    ((_, told),) = database.groups("grows")
    assert told["reduce_overflow_error"].startswith("Reduce output must shrink more rapidly")
    status, answer = database.asked("loops")
    assert (status, answer["error"]) == (500, "os_process_error")
    assert database.ids("loops", reduce=False) == ["a"]


def workers(running: Running) -> list[int]:
    """The process ids of the node's workers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if int(parent) == running.node_pid and b"worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def test_a_worker_that_is_killed_while_a_view_builds_is_replaced(bounded: Running) -> None:
    slow = (
        "function(doc) { var until = Date.now() + 10; while (Date.now() < until); emit(doc._id) }"
    )
    database = Database(bounded)
    database.add(*[{"_id": f"d{number:03}"} for number in range(200)])
    before = set(workers(bounded))
    database.design(views={"v": {"map": slow}})
    database.view("v", update="lazy")
    await_true(lambda: bool(workers(bounded)))
    for pid in workers(bounded):
        os.kill(pid, signal.SIGKILL)
    answer = database.view("v")
    assert answer["total_rows"] == 200 and not set(workers(bounded)) & before
    ids = [row["id"] for row in answer["rows"]]
    assert ids == [f"d{number:03}" for number in range(200)]


# On a cluster


def test_a_view_is_there_on_every_node_when_its_design_document_is_answered(
    cluster: Cluster,
) -> None:
    database = Database(cluster)
    for count, name in enumerate(cluster.nodes):
        views = {"v": {"map": f"function(doc) {{ emit({count}) }}"}}
        assert database.ask(f"/_design/{count}", {"views": views}, "PUT", node=name)[0] == 201
        path = f"/_design/{count}/_view/v"
        assert [database.ask(path, node=one)[0] for one in cluster.nodes] == [200] * 12
    database.ask("", method="DELETE")


def test_every_node_has_the_same_rows(cluster: Cluster) -> None:
    database = Database(cluster, views=VIEWS)
    database.add(*PEOPLE)
    for name in cluster.nodes:
        rows = database.view("by-age", name)["rows"]
        assert [row["id"] for row in rows] == ["bob", "ann", "dee", "cid"]
        assert database.view("summed", name, group_level=1)["rows"] == [
            {"key": ["blue"], "value": 50}, {"key": ["red"], "value": 70},
        ]  # fmt: skip
    database.ask("", method="DELETE")
