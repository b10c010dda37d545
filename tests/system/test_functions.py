"""Functions of design documents over HTTP: validation, filters, update handlers."""

import json
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Cluster, Running, basic

VALIDATE = """function(newDoc, oldDoc, userCtx, secObj) {
    if (newDoc.kind === 'locked' && oldDoc)
        throw({forbidden: 'locked at ' + oldDoc.n + ' of ' + oldDoc._rev});
    if (newDoc._deleted) throw({forbidden: 'nothing goes'});
    if (newDoc.owner && newDoc.owner !== userCtx.name) throw({unauthorized: 'not ' + userCtx.name});
    if (newDoc.tell)
        throw({forbidden: toJSON([userCtx, secObj, newDoc._rev || null, newDoc._revisions])});
    if (newDoc.odd) throw(newDoc.odd);
    if (newDoc.broken) newDoc.no.where;
}"""
FILTERS = {
    "least": "function(doc, req) { return doc.n >= parseInt(req.query.least) }",
    "mine": "function(doc, req) { return doc.owner == req.userCtx.name && req.method == 'GET' }",
    "broken": "function(doc, req) { return doc.no.where }",
    "gone": "function(doc, req) { return doc._deleted }",
}
UPDATES = {
    "count": """function(doc, req) {
        if (!doc) return [{_id: req.id || req.uuid, n: 1, by: req.userCtx.name}, 'made'];
        doc.n++;
        return [doc, {code: 202, headers: {'X-N': '' + doc.n}, json: {n: doc.n}}];
    }""",
    "echo": "function(doc, req) { return [null, req.method + ' ' + req.body + toJSON(req.form)] }",
    "bytes": "function(d, r) { return [null, {base64: 'AAEC', headers: {'content-type': 'a/b'}}] }",
    "bad": "function(doc, req) { return [null, {headers: {'x': 'a\\r\\nb: c'}}] }",
    "none": "function(doc, req) { return 'x' }",
}
ANSWER_S_MAX = 20.0
LOOP_S_MAX = 60.0
"""A function has 5 s of a core, which others may be using."""


class Database:
    """A database with functions."""

    def __init__(self, running: Running, **design: Any) -> None:
        self.running = running
        self.path = f"/functions-{uuid4().hex}"
        assert self.ask("", method="PUT")[0] == 201
        assert self.ask("/_design/d", design, "PUT")[0] == 201

    def ask(self, path: str, body: Any = None, method: str = "GET", **more: Any) -> tuple[int, Any]:
        return self.running.request(method, self.path + path, body, **more)

    def put(self, doc_id: str, node: str | None = None, **members: Any) -> tuple[int, Any]:
        return self.ask(f"/{doc_id}", members, "PUT", node=node)


@pytest.fixture
def strict(node: Running) -> Iterator[Database]:
    made = Database(node, validate_doc_update=VALIDATE)
    yield made
    made.ask("", method="DELETE")


def test_a_write_is_refused_with_what_the_function_throws(strict: Database) -> None:
    assert strict.put("a", owner="admin")[0] == 201
    assert strict.put("b", owner="ann") == (401, {"error": "unauthorized", "reason": "not admin"})
    status, answer = strict.put("c", tell=1)
    assert (status, answer["error"]) == (403, "forbidden")
    context, security, rev, revisions = json.loads(answer["reason"])
    assert context == {"db": strict.path[1:], "name": "admin", "roles": ["_admin"]}
    assert security["admins"] == {"roles": ["_admin"]}
    assert (rev, revisions) == (None, {"start": 0, "ids": []})
    assert [strict.ask(f"/{doc_id}")[0] for doc_id in "abc"] == [200, 404, 404]


def test_the_function_sees_what_is_replaced(strict: Database) -> None:
    first = strict.put("a", kind="locked", n=1)[1]["rev"]
    reason = f"locked at 1 of {first}"
    assert strict.put("a", kind="locked", n=2, _rev=first)[1]["reason"] == reason
    assert strict.put("a", _rev="1-" + "0" * 32)[1]["error"] == "conflict"
    status, second = strict.put("a", _rev=first)
    assert status == 201
    told = json.loads(strict.put("a", tell=1, _rev=second["rev"])[1]["reason"])
    assert told[2] == second["rev"] and told[3]["start"] == 2
    assert told[3]["ids"] == [second["rev"][2:], first[2:]]
    answer = strict.ask(f"/a?rev={second['rev']}", method="DELETE")
    assert answer == (403, {"error": "forbidden", "reason": "nothing goes"})


def test_each_of_many_is_judged_by_itself(strict: Database) -> None:
    docs = [{"_id": "a"}, {"_id": "b", "owner": "x"}, {"_id": "c", "odd": {"what": "why"}},
            {"_id": "d", "odd": "text"}, {"_id": "e", "broken": 1}, {"_id": "f"}]  # fmt: skip
    status, rows = strict.ask("/_bulk_docs", {"docs": docs}, "POST")
    assert status == 201
    assert [row.get("error") for row in rows] == [
        None, "unauthorized", "unknown_error", "unknown_error", "os_process_error", None,
    ]  # fmt: skip
    assert [row["reason"] for row in rows[2:4]] == ["why", "text"]
    assert "TypeError" in rows[4]["reason"] and "on document e" in rows[4]["reason"]
    assert "rev" in rows[0] and "rev" in rows[5]


def test_replicators_are_judged_too(strict: Database) -> None:
    rev = "3-" + "a" * 32
    docs = [{"_id": "a", "_rev": rev}, {"_id": "b", "_rev": rev, "owner": "x"}]
    status, rows = strict.ask("/_bulk_docs", {"docs": docs, "new_edits": False}, "POST")
    assert status == 201 and [(row["id"], row["error"]) for row in rows] == [("b", "unauthorized")]
    assert [strict.ask(f"/{doc_id}")[0] for doc_id in "ab"] == [200, 404]


def test_design_and_local_documents_are_not_judged(strict: Database) -> None:
    assert strict.put("_design/x", owner="x")[0] == 201
    assert strict.put("_local/x", owner="x")[0] == 201
    assert strict.put("x", owner="x")[0] == 401


def test_a_change_of_the_function_holds_from_the_next_write_on(strict: Database) -> None:
    design = strict.ask("/_design/d")[1]
    assert strict.put("a", owner="x")[0] == 401
    assert strict.put("_design/d", _rev=design["_rev"])[0] == 201
    assert strict.put("a", owner="x")[0] == 201


def test_a_function_that_does_not_end_refuses_and_delays_nobody_for_ever(node: Running) -> None:
    loop = "function(doc) { if (doc.loop) for (;;); }"
    database = Database(node, validate_doc_update=loop)
    docs = [{"_id": "a"}, {"_id": "b", "loop": 1}, {"_id": "c", "loop": 1}, {"_id": "d"}]
    rows = database.ask("/_bulk_docs", {"docs": docs}, "POST", wait_s_max=LOOP_S_MAX)[1]
    assert [row.get("error") for row in rows] == [None, *["os_process_error"] * 3]
    assert "ran longer than" in rows[1]["reason"] and "on document b" in rows[1]["reason"]
    assert database.put("e")[0] == 201


def test_masters_judge_what_comes_through_any_node_and_know_who_it_is(cluster: Cluster) -> None:
    user = {"name": "ann", "password": "secret", "roles": ["writer"], "type": "user"}
    path = "/_users/org.couchdb.user:ann?concern=visible"
    assert cluster.request("PUT", path, user)[0] in (201, 409)
    database = Database(cluster, validate_doc_update=VALIDATE)
    open_to_all = {"members": {"names": [], "roles": []}, "admins": {}}
    assert database.ask("/_security", open_to_all, "PUT")[0] == 200
    ann = {"authorization": basic("ann:secret")}
    for count, name in enumerate(cluster.nodes):
        made = database.ask(
            f"/{count}", {"owner": "ann"}, "PUT", node=name, headers=ann, admin=False
        )
        assert made[0] == 201, made
        refused = database.put(f"x{count}", name, owner="ann")
        assert refused == (401, {"error": "unauthorized", "reason": "not admin"})
    told = database.ask("/t", {"tell": 1}, "PUT", node="m2-r3", headers=ann, admin=False)[1]
    assert json.loads(told["reason"])[0]["roles"] == ["writer"]
    docs = [{"_id": "y", "owner": "x"}, {"_id": "z"}]
    rows = database.ask("/_bulk_docs", {"docs": docs}, "POST", node="m3-r1")[1]
    assert [row.get("error") for row in rows] == ["unauthorized", None]


# Filters


@pytest.fixture
def filtered(node: Running) -> Iterator[Database]:
    views = {"odd": {"map": "function(doc) { if (doc.n % 2) emit(doc.n) }"}}
    made = Database(node, filters=FILTERS, views=views)
    docs = [{"_id": f"{n:03}", "n": n, "owner": "admin" if n == 7 else "x"} for n in range(600)]
    assert made.ask("/_bulk_docs", {"docs": docs}, "POST")[0] == 201
    yield made
    made.ask("", method="DELETE")


def shown(answer: Any) -> list[str]:
    return [row["id"] for row in answer["results"]]


def test_a_normal_feed_shows_what_a_filter_takes(filtered: Database) -> None:
    changes = "/_changes?filter=d/"
    assert shown(filtered.ask(changes + "least&least=597")[1]) == ["597", "598", "599"]
    answer = filtered.ask(changes + "least&least=100&limit=2&include_docs=true")[1]
    assert [row["doc"]["n"] for row in answer["results"]] == [100, 101] and answer["pending"] > 0
    rest = filtered.ask(f"{changes}least&least=100&limit=2&since={answer['last_seq']}")[1]
    assert shown(rest) == ["102", "103"]
    assert shown(filtered.ask(changes + "least&least=0&descending=true&limit=1")[1]) == ["599"]
    assert shown(filtered.ask(changes + "mine")[1]) == ["007"]
    odd = filtered.ask("/_changes?filter=_view&view=d/odd")[1]
    assert shown(odd) == [f"{n:03}" for n in range(1, 600, 2)]


def test_a_filter_sees_each_leaf_and_what_is_deleted(filtered: Database) -> None:
    rev = filtered.ask("/599")[1]["_rev"]
    assert filtered.ask(f"/599?rev={rev}", method="DELETE")[0] == 200
    assert shown(filtered.ask("/_changes?filter=d/gone")[1]) == ["599"]
    low = {"_id": "598", "n": 1, "_rev": "1-" + "0" * 32}
    assert filtered.ask("/_bulk_docs", {"docs": [low], "new_edits": False}, "POST")[0] == 201
    everything = filtered.ask("/_changes?filter=d/least&least=598&style=all_docs")[1]
    assert [(row["id"], len(row["changes"])) for row in everything["results"]] == [("598", 1)]


@pytest.mark.parametrize(
    ("query", "status", "error", "reason"),
    [
        ("filter=d/none", 404, "not_found", "missing json key: none"),
        ("filter=none/x", 404, "not_found", "missing"),
        ("filter=d", 400, "bad_request", "`filter` must be of the form `designname/filtername`"),
        ("filter=_view", 400, "bad_request", "`view` filter parameter is not provided."),
        ("filter=_view&view=d/no", 404, "not_found", "missing json key: no"),
        ("filter=d/broken", 500, "os_process_error", "The function filters/broken in _design/d"),
    ],
)
def test_a_filter_that_cannot_be_asked(
    filtered: Database, query: str, status: int, error: str, reason: str
) -> None:
    got, answer = filtered.ask(f"/_changes?{query}")
    assert (got, answer["error"]) == (status, error) and answer["reason"].startswith(reason)


@pytest.mark.parametrize("feed", ["longpoll", "continuous", "eventsource"])
def test_a_live_feed_shows_what_a_filter_takes_when_it_comes(filtered: Database, feed: str) -> None:
    since = filtered.ask("/_changes?limit=0&descending=true")[1]["last_seq"]
    path = f"/_changes?feed={feed}&since={since}&filter=d/least&least=1000&limit=1&timeout=15000"
    found: list[tuple[int, Any]] = []
    reading = threading.Thread(target=lambda: found.append(filtered.ask(path)))
    reading.start()
    assert filtered.put("low", n=1)[0] == 201
    assert filtered.put("high", n=1000)[0] == 201
    reading.join(ANSWER_S_MAX)
    assert not reading.is_alive()
    ((status, answer),) = found
    text = answer.decode() if isinstance(answer, bytes) else json.dumps(answer)
    assert status == 200 and '"high"' in text and '"low"' not in text


# Update handlers


@pytest.fixture
def updated(node: Running) -> Iterator[Database]:
    made = Database(node, updates=UPDATES)
    yield made
    made.ask("", method="DELETE")


def test_an_update_function_makes_and_changes_documents(updated: Database) -> None:
    path = f"{updated.path}/_design/d/_update/count"
    status, headers, body = updated.running.exchange("PUT", f"{path}/a")
    assert (status, body) == (201, b"made")
    assert headers["content-type"] == "text/html; charset=utf-8" and headers["x-couch-id"] == "a"
    made = updated.ask("/a")[1]
    assert made["_rev"] == headers["x-couch-update-newrev"]
    assert (made["n"], made["by"]) == (1, "admin")
    status, headers, body = updated.running.exchange("POST", f"{path}/a")
    assert (status, headers["x-n"], json.loads(body)) == (202, "2", {"n": 2})
    status, headers, body = updated.running.exchange("POST", path)
    assert status == 201 and updated.ask("/" + headers["x-couch-id"])[1]["n"] == 1
    assert updated.running.exchange("PUT", f"{path}/with/slash")[0] == 201
    assert updated.ask("/with%2Fslash")[0] == 200


def test_an_update_function_may_only_answer(updated: Database) -> None:
    path = f"{updated.path}/_design/d/_update/"
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = updated.running.exchange("POST", path + "echo", b"a=1&b=x+y", form)
    assert answer[0] == 200 and answer[2] == b'POST a=1&b=x+y{"a":"1","b":"x y"}'
    status, headers, body = updated.running.exchange("POST", path + "bytes")
    assert (status, headers["content-type"], body) == (200, "a/b", b"\0\1\2")


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [("bad", 500, "external_response_error"), ("none", 500, "os_process_error"),
     ("missing", 404, "not_found")],
)  # fmt: skip
def test_an_update_function_that_does_not_answer(
    updated: Database, name: str, status: int, error: str
) -> None:
    got, answer = updated.ask(f"/_design/d/_update/{name}", {}, "POST")
    assert (got, answer["error"]) == (status, error)


def test_show_list_and_rewrite_say_that_they_are_not_run(updated: Database) -> None:
    for kind in ("_show/x", "_list/x/y", "_rewrite/x"):
        status, answer = updated.ask(f"/_design/d/{kind}")
        assert (status, answer["error"]) == (501, "not_implemented")
        assert "not run here" in answer["reason"]
