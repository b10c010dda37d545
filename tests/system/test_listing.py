"""`_all_docs`, `_design_docs` and `_local_docs` over HTTP, as CouchDB 3.5 answers them."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from tests.running import Running

IDS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def server(node: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=node.url, auth=(node.admin, node.password), timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def db(server: httpx.Client) -> str:
    """Five documents, one deleted, one with a conflict, one with an attachment; designs, locals."""
    name = f"/db-{uuid4().hex}"
    assert server.put(name).status_code == 201
    docs: list[dict[str, Any]] = [{"_id": doc_id, "v": doc_id} for doc_id in IDS]
    docs[3]["_attachments"] = {"t": {"content_type": "text/plain", "data": "aGFsbG8="}}
    docs += [{"_id": "dead", "_deleted": True}, {"_id": "_design/x"}, {"_id": "_design/y"}]
    server.post(f"{name}/_bulk_docs", json={"docs": docs})
    other = {"_id": "b", "_rev": "1-0"}
    server.post(f"{name}/_bulk_docs", json={"docs": [other], "new_edits": False})
    for number in range(3):
        server.put(f"{name}/_local/l{number}", json={"n": number})
    return name


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in answer.json()["rows"]]


def ask(server: httpx.Client, path: str, **params: str) -> httpx.Response:
    return server.get(path, params=params)


def test_the_frame(server: httpx.Client, db: str) -> None:
    answer = ask(server, f"{db}/_all_docs", limit="2", skip="2")
    lines = answer.text.split("\r\n")
    assert lines[0] == '{"total_rows":7,"offset":2,"rows":['
    assert lines[1].startswith('{"id":"a","key":"a","value":{"rev":"1-')
    assert lines[1].endswith('"}},')
    assert lines[3:] == ["]}\n"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "must-revalidate"


def test_nothing_is_an_empty_array(server: httpx.Client, db: str) -> None:
    answer = ask(server, f"{db}/_all_docs", startkey='"z"')
    assert answer.text == '{"total_rows":7,"offset":7,"rows":[\r\n\r\n]}\n'


@pytest.mark.parametrize(
    ("params", "expected", "offset"),
    [
        ({}, ["_design/x", "_design/y", *IDS], 0),
        ({"descending": "true"}, [*IDS[::-1], "_design/y", "_design/x"], 0),
        ({"startkey": '"b"', "endkey": '"d"'}, ["b", "c", "d"], 3),
        ({"start_key": '"b"', "end_key": '"d"', "inclusive_end": "false"}, ["b", "c"], 3),
        ({"startkey": '"d"', "endkey": '"b"', "descending": "true"}, ["d", "c", "b"], 1),
        ({"startkey": '"d"', "endkey": '"b"'}, [], 5),
        ({"key": '"c"'}, ["c"], 4),
        ({"key": '"dead"'}, [], 6),
        ({"key": "5"}, [], 0),
        ({"startkey": "5", "limit": "1"}, ["_design/x"], 0),
        ({"endkey": "[]"}, [], 0),
        ({"startkey": "{}", "descending": "true"}, [], 7),
        ({"limit": "0"}, [], 0),
        ({"skip": "5"}, ["d", "e"], 5),
        ({"skip": "100"}, [], 7),
        ({"startkey": '"b"', "skip": "1", "limit": "1"}, ["c"], 4),
        ({"keys": '["c"]'}, ["c"], None),
        ({"keys": '["c","a"]'}, ["c", "a"], None),
        ({"keys": '["c","a","b"]', "descending": "true", "limit": "2"}, ["b", "a"], None),
        ({"keys": '["c","a","b"]', "skip": "1"}, ["a", "b"], None),
        ({"keys": "[]"}, [], None),
    ],
)
def test_ranges(
    server: httpx.Client, db: str, params: dict[str, str], expected: list[str], offset: int | None
) -> None:
    answer = ask(server, f"{db}/_all_docs", **params)
    assert ids(answer) == expected
    assert answer.json()["offset"] == offset
    assert answer.json()["total_rows"] == 7
    if not {"key", "keys", "startkey", "endkey", "start_key", "end_key"} & params.keys():
        return
    body = {
        name: httpx.Response(200, text=text).json() if text not in ("true", "false") else text
        for name, text in params.items()
    }
    assert ids(server.post(f"{db}/_all_docs", json=body)) == expected


def test_keys_show_what_is_deleted_and_what_is_not_there(server: httpx.Client, db: str) -> None:
    keys = ["dead", "nothing", 5, None, "_local/l0", "a", "a"]
    for documents in (False, True):
        body = {"keys": keys, "include_docs": documents}
        rows = server.post(f"{db}/_all_docs", json=body).json()["rows"]
        dead, *strangers, a, again = rows
        assert dead["value"] == {"rev": dead["value"]["rev"], "deleted": True}
        assert dead.get("doc", "left out") == (None if documents else "left out")
        assert strangers == [{"key": key, "error": "not_found"} for key in keys[1:5]]
        assert a == again
        assert ("doc" in a) is documents


def test_documents(server: httpx.Client, db: str) -> None:
    rows = ask(server, f"{db}/_all_docs", include_docs="true", startkey='"a"').json()["rows"]
    assert [row["doc"]["v"] for row in rows] == IDS
    assert all(row["doc"]["_rev"] == row["value"]["rev"] for row in rows)
    assert rows[3]["doc"]["_attachments"]["t"]["stub"] is True
    assert not any("_conflicts" in row["doc"] for row in rows)


@pytest.mark.parametrize("keys", [None, '["b","d"]'])
def test_documents_with_more(server: httpx.Client, db: str, keys: str | None) -> None:
    more = {"include_docs": "true", "conflicts": "true", "attachments": "true"}
    where = {"startkey": '"b"', "endkey": '"d"'} if keys is None else {"keys": keys}
    rows = ask(server, f"{db}/_all_docs", **more, **where).json()["rows"]
    by_id = {row["id"]: row["doc"] for row in rows}
    assert by_id["b"]["_conflicts"] == ["1-0"]
    assert by_id["d"]["_attachments"]["t"]["data"] == "aGFsbG8="
    assert "_conflicts" not in by_id["d"]


def test_encoding_info(server: httpx.Client, db: str) -> None:
    params = {"include_docs": "true", "att_encoding_info": "true", "key": '"d"'}
    [row] = ask(server, f"{db}/_all_docs", **params).json()["rows"]
    assert row["doc"]["_attachments"]["t"]["encoding"] == "gzip"


def test_the_update_seq_comes_when_it_is_asked_for(server: httpx.Client, db: str) -> None:
    answer = ask(server, f"{db}/_all_docs", update_seq="true", limit="0").json()
    assert answer["update_seq"] == server.get(db).json()["update_seq"]
    assert list(answer) == ["total_rows", "offset", "update_seq", "rows"]
    assert ask(server, f"{db}/_all_docs", update_seq="true", keys="[]").json()["update_seq"] is None
    assert "update_seq" not in ask(server, f"{db}/_all_docs").json()


def test_design_documents(server: httpx.Client, db: str) -> None:
    answer = ask(server, f"{db}/_design_docs")
    assert ids(answer) == ["_design/x", "_design/y"]
    assert answer.json()["total_rows"] == 2
    path = f"{db}/_design_docs"
    assert ids(ask(server, path, descending="true")) == ["_design/y", "_design/x"]
    assert ids(ask(server, path, startkey='"_design/y"')) == ["_design/y"]
    assert ids(ask(server, path, keys='["_design/y","a","_design/x"]')) == [
        "_design/y",
        "_design/x",
    ]
    assert ids(server.post(path, json={"limit": 1})) == ["_design/x"]


def test_local_documents(server: httpx.Client, db: str) -> None:
    path = f"{db}/_local_docs"
    answer = ask(server, path, include_docs="true")
    assert ids(answer) == ["_local/l0", "_local/l1", "_local/l2"]
    assert (answer.json()["total_rows"], answer.json()["offset"]) == (None, None)
    row = answer.json()["rows"][1]
    assert row["value"] == {"rev": "0-1"}
    assert row["doc"] == {"_id": "_local/l1", "_rev": "0-1", "n": 1}
    assert ids(ask(server, path, descending="true", skip="1")) == ["_local/l1", "_local/l0"]
    assert ids(ask(server, path, startkey='"_local/l1"', limit="1")) == ["_local/l1"]
    rows = ask(server, path, keys='["_local/l2","a","_local/no"]').json()["rows"]
    assert rows == [
        {"id": "_local/l2", "key": "_local/l2", "value": {"rev": "0-1"}},
        {"key": "_local/no", "error": "not_found"},
    ]


def test_queries(server: httpx.Client, db: str) -> None:
    asked = [{"keys": ["b", "a"]}, {"startkey": "d", "limit": 1}, {"keys": ["dead"]}]
    answer = server.post(f"{db}/_all_docs/queries", json={"queries": asked})
    found = [[row["id"] for row in result["rows"]] for result in answer.json()["results"]]
    # One key is a range there, which has no deleted documents.
    assert found == [["b", "a"], ["d"], []]
    assert answer.text.startswith('{"results":[\r\n{"total_rows":7,"offset":null,"rows":[\r\n{')
    assert answer.text.endswith('"rows":[\r\n\r\n]}\r\n]}\n')
    for kind, expected in (("_design_docs", "_design/y"), ("_local_docs", "_local/l2")):
        body = {"queries": [{"descending": True, "limit": 1}]}
        [result] = server.post(f"{db}/{kind}/queries", json=body).json()["results"]
        assert [row["id"] for row in result["rows"]] == [expected]
    empty = server.post(f"{db}/_all_docs/queries", json={"queries": []})
    assert empty.json() == {"results": []}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "POST body must include `queries` parameter."),
        ({"queries": 5}, "`queries` member must be an array."),
        ({"queries": [5]}, "Each of `queries` must be a JSON object."),
        ({"queries": [{"limit": "x"}]}, 'Invalid value for integer: "x"'),
    ],
)
def test_refused_queries(server: httpx.Client, db: str, body: Any, reason: str) -> None:
    answer = server.post(f"{db}/_all_docs/queries", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("limit=-1", "query_parse_error"),
        ("skip=x", "query_parse_error"),
        ("include_docs=1", "query_parse_error"),
        ("startkey=a", "bad_request"),
        ("keys=5", "bad_request"),
        ("keys=%5B", "bad_request"),
        ('keys=["a","b"]&key="a"', "query_parse_error"),
        ("partition=p", "query_parse_error"),
    ],
)
def test_refused(server: httpx.Client, db: str, query: str, error: str) -> None:
    answer = server.get(f"{db}/_all_docs?{query}")
    assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_refused_bodies(server: httpx.Client, db: str) -> None:
    path = f"{db}/_all_docs"
    assert server.post(path, content=b"{}").status_code == 415
    for body in (b"[]", b"{", b"\xff", b'{"keys":5}', b'{"limit":"1"}', b'{"startkey":'):
        answer = server.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body
    assert server.get("/db-nowhere/_all_docs").status_code == 404
    assert server.put(path).status_code == 405


def test_head_has_no_body(server: httpx.Client, db: str) -> None:
    answer = server.head(f"{db}/_all_docs")
    assert (answer.status_code, answer.content) == (200, b"")


def test_only_admins_list_users(server: httpx.Client) -> None:
    name = f"u{uuid4().hex}"
    user = {"name": name, "password": "p", "roles": [], "type": "user"}
    server.put(f"/_users/org.couchdb.user:{name}", json=user).raise_for_status()
    open_to_all: dict[str, Any] = {"admins": {}, "members": {}}
    before = server.get("/_users/_security").json()
    server.put("/_users/_security", json=open_to_all)
    try:
        for path in ("_all_docs", "_all_docs?include_docs=true", "_changes"):
            answer = httpx.get(server.base_url.join(f"/_users/{path}"), auth=(name, "p"))
            assert answer.status_code == 401, path
            assert answer.json()["reason"] == "You are not a server admin."
            assert server.get(f"/_users/{path}").status_code == 200
    finally:
        server.put("/_users/_security", json=before)


def test_odd_ids(server: httpx.Client) -> None:
    name = f"/db-{uuid4().hex}"
    server.put(name)
    odd = ["", "\u0001", '"', "\\", "a/b", "ä", "\U0001f600", "\uffff", " ", "%2F", "é" * 100]
    wanted = sorted(odd[1:], key=lambda doc_id: doc_id.encode())
    for doc_id in wanted:
        assert server.put(f"{name}/{quote(doc_id, safe='')}", json={}).status_code == 201
    assert ids(server.get(f"{name}/_all_docs")) == wanted
    assert ids(server.get(f"{name}/_all_docs?include_docs=true")) == wanted
    assert ids(server.post(f"{name}/_all_docs", json={"keys": wanted})) == wanted
    changed = server.get(f"{name}/_changes").json()["results"]
    assert [row["id"] for row in changed] == wanted


def test_many_rows_come_in_pages(server: httpx.Client) -> None:
    name = f"/db-{uuid4().hex}"
    server.put(name)
    wanted = [f"{number:05}" for number in range(3500)]
    docs = [{"_id": doc_id, "text": "x" * 500} for doc_id in wanted]
    server.post(f"{name}/_bulk_docs", json={"docs": docs}).raise_for_status()
    for params in (
        {},
        {"include_docs": "true"},
        {"include_docs": "true", "conflicts": "true"},
        {"descending": "true"},
        {"descending": "true", "include_docs": "true"},
    ):
        answer = ask(server, f"{name}/_all_docs", **params)
        assert answer.headers["transfer-encoding"] == "chunked"
        assert ids(answer) == (wanted[::-1] if "descending" in params else wanted)
    answer = ask(server, f"{name}/_all_docs", startkey='"02000"', skip="500", limit="700")
    assert ids(answer) == wanted[2500:3200]
    assert answer.json()["offset"] == 2500
    assert ids(server.post(f"{name}/_all_docs", json={"keys": wanted[::-1]})) == wanted[::-1]
