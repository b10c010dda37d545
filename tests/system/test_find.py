"""`_find`, `_explain`, `_index` over HTTP, as CouchDB 3.5 answers them, on a node and a cluster."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Cluster, Running, basic

HEROES = [
    {"_id": "dk", "name": "donkey kong", "rank": 7, "series": "mario", "debut": 1981},
    {"_id": "falcon", "name": "captain falcon", "rank": 4, "series": "f-zero", "debut": 1990},
    {"_id": "fox", "name": "fox", "rank": 3, "series": "star fox", "debut": 1993},
    {"_id": "kirby", "name": "kirby", "rank": 2, "series": "kirby", "debut": 1992},
    {"_id": "link", "name": "link", "rank": 10, "series": "zelda", "debut": 1986},
    {"_id": "luigi", "name": "luigi", "rank": 11, "series": "mario", "debut": 1983},
    {"_id": "mario", "name": "mario", "rank": 5, "series": "mario", "debut": 1981},
    {"_id": "ness", "name": "ness", "rank": 9, "series": "earthbound", "debut": 1994},
    {"_id": "puff", "name": "jigglypuff", "rank": 8, "series": "pokemon", "debut": 1996},
]
LOSER = "1-" + "0" * 32
NO_INDEX = "No matching index found, create an index to optimize query time."


class Database:
    """A database with documents in it."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.path = f"/find-{uuid4().hex}"
        assert self.post("", method="PUT")[0] == 201
        self.add(*HEROES)

    def post(
        self, path: str, body: Any = None, method: str = "POST", **more: Any
    ) -> tuple[int, Any]:
        return self.running.request(method, self.path + path, body, **more)

    def add(self, *docs: dict[str, Any]) -> None:
        status, rows = self.post("/_bulk_docs", {"docs": docs})
        assert status == 201 and all("error" not in row for row in rows), rows

    def find(self, selector: Any, **members: Any) -> dict[str, Any]:
        status, answer = self.post("/_find", {"selector": selector, **members})
        assert status == 200, answer
        found: dict[str, Any] = answer
        return found

    def ids(self, selector: Any, **members: Any) -> list[str]:
        return [doc["_id"] for doc in self.find(selector, **members)["docs"]]

    def index(self, *fields: str, **members: Any) -> dict[str, Any]:
        partial = members.pop("partial", None)
        given = {
            "fields": list(fields),
            **({"partial_filter_selector": partial} if partial else {}),
        }
        status, made = self.post("/_index", {"index": given, **members})
        assert status == 200, made
        found: dict[str, Any] = made
        return found


@pytest.fixture
def heroes(node: Running) -> Iterator[Database]:
    made = Database(node)
    yield made
    made.post("", method="DELETE")


def test_without_an_index_all_documents_are_gone_through(heroes: Database) -> None:
    answer = heroes.find({"series": "mario"}, fields=["_id"], execution_stats=True)
    assert answer["docs"] == [{"_id": "dk"}, {"_id": "luigi"}, {"_id": "mario"}]
    assert answer["warning"] == NO_INDEX
    told = answer["execution_stats"]
    assert told.pop("execution_time_ms") >= 0
    assert told == {
        "total_keys_examined": 9, "total_docs_examined": 9, "total_quorum_docs_examined": 0,
        "results_returned": 3,
    }  # fmt: skip


def test_the_frame_is_couchdbs(heroes: Database) -> None:
    asked = json.dumps({"selector": {"_id": "fox"}, "fields": ["_id"]}).encode()
    json_type = {"content-type": "application/json"}
    _, _, content = heroes.running.exchange("POST", heroes.path + "/_find", asked, json_type)
    lines = content.split(b"\r\n")
    assert lines[:3] == [b'{"docs":[', b'{"_id":"fox"}', b"],"]
    assert (
        lines[3].startswith(b'"bookmark": "') and lines[4] == f'"warning": "{NO_INDEX}"}}'.encode()
    )
    nothing = json.dumps({"selector": {"_id": "none"}}).encode()
    _, _, content = heroes.running.exchange("POST", heroes.path + "/_find", nothing, json_type)
    assert content.startswith(b'{"docs":[\r\n],\r\n"bookmark": "nil"')


def test_an_index_gives_its_order_and_no_warning(heroes: Database) -> None:
    made = heroes.index("debut", "name", ddoc="by-debut", name="x")
    assert made == {"result": "created", "id": "_design/by-debut", "name": "x"}
    again = heroes.index("debut", "name", ddoc="by-debut", name="x")
    assert again == {**made, "result": "exists"}
    answer = heroes.find({"debut": {"$lt": 1990}}, sort=["debut", "name"], fields=["_id", "debut"])
    assert [doc["_id"] for doc in answer["docs"]] == ["dk", "mario", "luigi", "link"]
    assert "warning" not in answer
    down = heroes.ids({"debut": {"$lt": 1990}}, sort=[{"debut": "desc"}, {"name": "desc"}])
    assert down == ["link", "luigi", "mario", "dk"]
    heroes.add({"_id": "new", "debut": 1982, "name": "x"}, {"_id": "none", "debut": 1982})
    fresh = heroes.ids({"debut": 1982}, sort=["debut", "name"])
    assert fresh == ["new"], "an index is current for whoever asks"
    assert heroes.ids({"debut": 1982}) == ["new", "none"], "it lacks what has not all its fields"


def test_whatever_index_serves_the_documents_are_the_same(heroes: Database) -> None:
    values = [None, False, True, -1, 0, 1.5, 2**60, "a", "A", "b", "é", "z", [], [1], {}, {"a": 1}]
    heroes.add(*({"_id": f"v{place:02}", "v": value} for place, value in enumerate(values)))
    asked = [{op: value} for op in ("$lt", "$lte", "$eq", "$gte", "$gt") for value in values]
    asked += [{"$in": ["a", 1.5, None]}, {"$beginsWith": "a"}, {"$regex": "[a-z]"}, {"$ne": 0}]
    before = [sorted(heroes.ids({"v": one})) for one in asked]
    heroes.index("v")
    order = {doc_id: place for place, doc_id in enumerate(heroes.ids({"v": {"$exists": True}}))}
    assert list(order) == [f"v{place:02}" for place in range(len(values))], "CouchDB's collation"
    for one, ids in zip(asked, before, strict=True):
        answer = heroes.find({"v": one})
        assert "No matching index" not in answer.get("warning", "")
        assert sorted(doc["_id"] for doc in answer["docs"]) == ids, one


def test_partial_indexes_serve_who_names_them(heroes: Database) -> None:
    heroes.index("rank", ddoc="few", name="few", partial={"series": "mario"})
    assert NO_INDEX in heroes.find({"rank": {"$gt": 5}, "series": "mario"})["warning"]
    named = heroes.find({"rank": {"$gt": 5}}, use_index="few")
    assert [doc["_id"] for doc in named["docs"]] == ["dk", "luigi"] and "warning" not in named
    (_, shown) = heroes.post("/_index", method="GET")[1]["indexes"]
    assert shown["def"]["partial_filter_selector"] == {"series": {"$eq": "mario"}}


def test_limit_skip_and_bookmark(heroes: Database) -> None:
    heroes.index("rank")
    everything = heroes.ids({"rank": {"$gt": 0}})
    assert heroes.ids({"rank": {"$gt": 0}}, limit=3, skip=2) == everything[2:5]
    for selector in ({"rank": {"$gt": 0}}, {"name": {"$gt": ""}}):
        everything, seen, mark = heroes.ids(selector), [], "nil"
        while True:
            page = heroes.find(selector, limit=4, bookmark=mark)
            mark = page["bookmark"]
            if not page["docs"]:
                break
            seen += [doc["_id"] for doc in page["docs"]]
        assert seen == everything and mark != "nil"
    assert heroes.find({"rank": {"$gt": 0}}, limit=0)["docs"] == []
    for bad in ("nonsense", mark):
        status, answer = heroes.post("/_find", {"selector": {"rank": 1}, "bookmark": bad})
        assert (status, answer["error"]) == (400, "invalid_bookmark")


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/_find", {"selector": {"rank": 1}, "sort": ["nobody"]}, 400, "no_usable_index"),
        ("/_find", {}, 400, "missing_required_key"),
        ("/_find", [], 400, "bad_request"),
        ("/_find", {"selector": {"a": {"$foo": 1}}}, 400, "invalid_operator"),
        ("/_find", {"selector": {"a": {"$regex": "("}}}, 400, "bad_arg"),
        ("/_find", {"selector": {}, "partition": "x"}, 400, "bad_request"),
        ("/_find?partition=x", {"selector": {}}, 400, "bad_request"),
        ("/_explain", {"selector": {}, "sort": "x"}, 400, "invalid_sort_json"),
        ("/_index", {"index": {"fields": ["a"]}, "type": "text"}, 501, "index_not_implemented"),
        ("/_index", {"index": {"fields": ["a"], "partial_filter_selector": {"a": {"$regex": "("}}}},
         400, "bad_arg"),
        ("/_index", {"index": {"fields": ["a"]}, "ddoc": "_design/"}, 400, "illegal_docid"),
        ("/_index", {"index": {"fields": ["a"]}, "partitioned": True}, 400, "bad_request"),
        ("/_index/_bulk_delete", {"docids": 1}, 400, "invalid_bulk_docs"),
        ("/_index/_bulk_delete", {}, 400, "missing_required_key"),
    ],
)  # fmt: skip
def test_what_is_refused(heroes: Database, path: str, body: Any, status: int, error: str) -> None:
    got, answer = heroes.post(path, body)
    assert (got, answer["error"]) == (status, error), answer


def test_indexes_are_listed_and_removed(heroes: Database) -> None:
    for name in ("a", "b", "c"):
        heroes.index(name, ddoc=name, name=name)
    heroes.index("d", ddoc="a", name="d")
    _, listed = heroes.post("/_index", method="GET")
    assert listed["total_rows"] == 5
    assert [one["name"] for one in listed["indexes"]] == ["_all_docs", "a", "d", "b", "c"]
    _, some = heroes.post("/_index?skip=1&limit=2", method="GET")
    assert [one["name"] for one in some["indexes"]] == ["a", "d"]
    assert heroes.post("/_index?limit=0", method="GET")[1]["error"] == "invalid_list_index_params"
    for path in ("/_index/a/json/a", "/_index/_design/a/json/d", "/_index/_design%2Fb/json/b"):
        assert heroes.post(path, method="DELETE") == (200, {"ok": True})
    assert heroes.post("/_design/a", method="GET")[0] == 404, "nothing was left in it"
    assert heroes.post("/_index/b/json/b", method="DELETE")[0] == 404
    assert heroes.post("/_index/c/text/c", method="DELETE")[0] == 404
    heroes.index("e", ddoc="c", name="e")
    _, gone = heroes.post("/_index/_bulk_delete", {"docids": ["_design/c", "nobody"]})
    assert gone == {
        "success": [{"id": "_design/c", "ok": True}],
        "fail": [{"id": "_design/nobody", "error": "not_found"}],
    }
    assert heroes.post("/_index", method="GET")[1]["total_rows"] == 1


def test_an_index_does_not_go_into_a_view(heroes: Database) -> None:
    heroes.add({"_id": "_design/js", "views": {"v": {"map": "function (doc) {}"}}})
    status, answer = heroes.post("/_index", {"index": {"fields": ["a"]}, "ddoc": "js"})
    assert (status, answer["error"]) == (400, "invalid_ddoc_lang")


def test_a_changed_index_and_a_dropped_database_are_built_anew(heroes: Database) -> None:
    heroes.index("rank", ddoc="d", name="n")
    assert heroes.ids({"rank": {"$lt": 4}}) == ["kirby", "fox"]
    heroes.index("debut", ddoc="d", name="n")
    assert heroes.ids({"debut": {"$lt": 1982}}) == ["dk", "mario"]
    assert NO_INDEX in heroes.find({"rank": {"$lt": 4}})["warning"]
    assert heroes.post("", method="DELETE")[0] == 200
    assert heroes.post("", method="PUT")[0] == 201
    heroes.index("debut", ddoc="d", name="n")
    assert heroes.ids({"debut": {"$lt": 1982}}) == []
    heroes.add({"_id": "dk2", "debut": 1980})
    assert heroes.ids({"debut": {"$lt": 1982}}) == ["dk2"]


def test_update_false_takes_the_index_as_it_is(heroes: Database) -> None:
    heroes.index("rank", ddoc="r")
    asked = {"rank": {"$gt": 10}}
    assert heroes.ids(asked) == ["luigi"]
    heroes.add({"_id": "late", "rank": 12})
    early = heroes.ids(asked, update=False)
    assert early in (["luigi"], ["luigi", "late"])
    heroes.running.await_true(lambda: heroes.ids(asked, update=False) == ["luigi", "late"])
    heroes.add({"_id": "later", "rank": 13})
    heroes.ids(asked, update="lazy")
    heroes.running.await_true(lambda: heroes.ids(asked, stale="ok") == ["luigi", "late", "later"])


def test_conflicts_deleted_documents_and_designs(heroes: Database) -> None:
    heroes.add({"_id": "gone", "rank": 1, "_deleted": True}, {"_id": "_design/x", "rank": 1})
    other = {"_id": "fox", "_rev": LOSER, "rank": 0}
    heroes.post("/_bulk_docs", {"docs": [other], "new_edits": False})
    assert heroes.ids({"rank": {"$lt": 2}}) == []
    (fox,) = heroes.find({"_id": "fox"}, conflicts=True)["docs"]
    assert fox["_conflicts"] == [LOSER]
    assert heroes.ids({"_conflicts": {"$exists": True}}, conflicts=True) == ["fox"]
    heroes.index("rank")
    (fox,) = heroes.find({"rank": 3}, conflicts=True, r=2)["docs"]
    assert fox["_conflicts"] == [LOSER]


def test_ids_are_compared_by_code_point(heroes: Database) -> None:
    heroes.add({"_id": "Z"}, {"_id": "é"})
    assert heroes.ids({"_id": {"$lt": "a"}}) == ["Z"]
    assert heroes.ids({"_id": {"$gt": "puff"}}) == ["é"]
    assert heroes.ids({"_id": {"$gte": "ness", "$lte": "puff"}}, sort=[{"_id": "desc"}]) == [
        "puff", "ness",
    ]  # fmt: skip
    assert len(heroes.ids({"_id": {"$gt": {}}})) == 11 and heroes.ids({"_id": {"$lt": []}}) == []
    assert heroes.ids({"_id": {"$in": ["fox", "Z", "nobody"]}}) == ["Z", "fox"]


def test_only_members_query_and_only_admins_index(heroes: Database) -> None:
    user = {"_id": f"org.couchdb.user:{uuid4().hex}", "type": "user", "roles": [], "password": "p"}
    user["name"] = str(user["_id"]).removeprefix("org.couchdb.user:")
    assert heroes.running.request("PUT", f"/_users/{user['_id']}", user)[0] == 201
    security = {"members": {"names": [user["name"]]}, "admins": {"names": []}}
    assert heroes.post("/_security", security, method="PUT")[0] == 200
    login = {"authorization": basic(f"{user['name']}:p")}
    asked = {"selector": {"_id": "fox"}}
    assert heroes.post("/_find", asked, headers=login, admin=False)[0] == 200
    given = {"index": {"fields": ["a"]}}
    status, answer = heroes.post("/_index", given, headers=login, admin=False)
    assert (status, answer["error"]) in ((401, "unauthorized"), (403, "forbidden"))
    assert heroes.post("/_index", method="GET")[1]["total_rows"] == 1
    path = "/_users/_find"
    assert heroes.running.request("POST", path, asked, headers=login, admin=False)[0] in (401, 403)


def test_an_index_outlives_a_killed_node(heroes: Database) -> None:
    heroes.index("rank")
    assert heroes.ids({"rank": {"$lt": 4}}) == ["kirby", "fox"]
    heroes.running.kill_node()
    answer = heroes.find({"rank": {"$lt": 4}}, update=False)
    assert [doc["_id"] for doc in answer["docs"]] == ["kirby", "fox"], "and is not built anew"


@pytest.mark.parametrize("style", ["main_only", "all_docs"])
def test_changes_with_a_selector(heroes: Database, style: str) -> None:
    heroes.add(*({"_id": f"n{number:04}", "n": number} for number in range(1500)))
    other = {"_id": "fox", "_rev": LOSER, "n": 7}
    heroes.post("/_bulk_docs", {"docs": [other], "new_edits": False})
    path = f"/_changes?filter=_selector&style={style}"
    asked = {"selector": {"n": {"$lt": 8, "$gt": 5}}}
    _, answer = heroes.post(path, asked)
    expected = ["n0006", "n0007", *(["fox"] if style == "all_docs" else [])]
    assert [row["id"] for row in answer["results"]] == expected
    assert answer["pending"] == 0
    _, down = heroes.post(path + "&descending=true", asked)
    assert [row["id"] for row in down["results"]] == expected[::-1]
    _, first = heroes.post(path + "&limit=1", asked)
    _, rest = heroes.post(f"{path}&since={first['last_seq']}", asked)
    both = first["results"] + rest["results"]
    assert [row["id"] for row in both] == expected


# The cluster


def test_an_index_made_at_one_node_serves_at_all(cluster: Cluster, db: str) -> None:
    docs = [{**hero, "n": number} for number, hero in enumerate(HEROES)]
    assert cluster.request("POST", f"/{db}/_bulk_docs", {"docs": docs}, node="m1")[0] == 201
    made = cluster.request("POST", f"/{db}/_index", {"index": {"fields": ["rank"]}}, node="m2-r1")
    assert made[0] == 200, made
    cluster.await_converged()

    def ask(node: str) -> Any:
        body = {"selector": {"rank": {"$gt": 5}}, "sort": [{"rank": "desc"}], "limit": 3}
        status, answer = cluster.request("POST", f"/{db}/_find", body, node=node)
        return status, answer

    status, answer = cluster.everywhere(ask)
    assert status == 200 and [doc["_id"] for doc in answer["docs"]] == ["luigi", "link", "ness"]
    body = {
        "selector": {"rank": {"$gt": 5}}, "sort": [{"rank": "desc"}],
        "bookmark": answer["bookmark"],
    }  # fmt: skip
    _, rest = cluster.request("POST", f"/{db}/_find", body, node="m3-r2")
    assert [doc["_id"] for doc in rest["docs"]] == ["puff", "dk"], "a bookmark is good on any node"
    assert (
        cluster.request("DELETE", f"/{db}/_index/{made[1]['id']}/json/{made[1]['name']}")[0] == 200
    )
