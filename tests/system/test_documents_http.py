"""CouchDB's answers that surprise, to the letter; and both ways to an answer give the same.

The numbers are those of the list of surprises that clients rely on.
"""

import base64
import gzip
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest

from divandb.cluster import sessions
from tests.running import Running
from tests.system.wire import Answer, Wire, wired

_NUMBERS = count(1)
CONFLICT = (409, "conflict", "Document update conflict.")
MISSING = (404, "not_found", "missing")
DELETED = (404, "not_found", "deleted")
BINARY = bytes(range(256)) * 8
TEXT = "é€𝄞 text that packs well; " * 40


@pytest.fixture
def wire(node: Running) -> Iterator[Wire]:
    with wired(node) as made:
        yield made


@pytest.fixture
def db(wire: Wire) -> Iterator[str]:
    """The path of a new database."""
    path = f"/answers{next(_NUMBERS)}"
    assert wire.ask("PUT", path).status == 201
    yield path
    wire.ask("DELETE", path)


def put(wire: Wire, path: str, **members: Any) -> str:
    """Write a document; its revision."""
    answer = wire.ask("PUT", path, members)
    assert answer.status == 201, answer
    rev: str = answer.json["rev"]
    return rev


def graft(wire: Wire, db: str, *docs: dict[str, Any]) -> None:
    """Write revisions as a replicator does."""
    answer = wire.ask("POST", f"{db}/_bulk_docs", {"docs": list(docs), "new_edits": False})
    assert (answer.status, answer.json) == (201, [])


def fork(wire: Wire, db: str, doc_id: str = "fork") -> None:
    """2-b wins over 2-a; 3-c is deleted; all come from 1-x."""
    leaves: list[tuple[list[str], dict[str, Any]]] = [
        (["a", "x"], {"n": "a"}),
        (["b", "x"], {"n": "b"}),
        (["c", "o", "x"], {"_deleted": True}),
    ]
    for ids, members in leaves:
        revisions = {"start": len(ids), "ids": ids}
        graft(wire, db, {"_id": doc_id, "_revisions": revisions, **members})


def attach(wire: Wire, path: str, **atts: tuple[str, bytes]) -> str:
    """Write a document with attachments: name → (type, bytes)."""
    inline = {
        name: {"content_type": kind, "data": base64.b64encode(data).decode()}
        for name, (kind, data) in atts.items()
    }
    return put(wire, path, _attachments=inline)


def parts(answer: Answer) -> list[tuple[dict[str, str], bytes]]:
    """Headers and bytes of each part of a multipart answer."""
    boundary = re.search('boundary="([^"]+)"', answer.headers["content-type"])
    assert boundary is not None
    delimiter = b"--" + boundary[1].encode()
    assert answer.body.rstrip().endswith(delimiter + b"--")
    found = []
    for piece in answer.body.split(delimiter)[1:-1]:
        head, _, body = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n") if line]
        found.append(({name.lower(): value for name, value in lines}, body.removesuffix(b"\r\n")))
    return found


# --- 1: the frame of _changes


def test_1_changes_are_framed_by_lines(wire: Wire, db: str) -> None:
    assert re.fullmatch(
        rb'{"results":\[\n\n\],\n"last_seq":"0[^"]*","pending":0}\n',
        wire.ask("GET", f"{db}/_changes").body,
    )
    revs = [put(wire, f"{db}/{name}") for name in "abc"]
    body = wire.ask("GET", f"{db}/_changes").body
    lines = body.split(b"\n")
    assert lines[0] == b'{"results":['
    for line, name, rev in zip(lines[1:4], "abc", revs, strict=True):
        row = json.loads(line.rstrip(b"\r,"))
        assert (row["id"], row["changes"]) == (name, [{"rev": rev}])
        assert list(row) == ["seq", "id", "changes"]
    assert [line[-2:] for line in lines[1:4]] == [b",\r", b",\r", b"]}"]
    assert lines[4] == b"],"
    assert re.fullmatch(rb'"last_seq":"[^"]+","pending":0}', lines[5])
    assert lines[6:] == [b""]
    last = json.loads(body)["last_seq"]
    assert wire.ask("GET", f"{db}/_changes?since={last}").json["results"] == []


def test_1_a_continuous_feed_is_a_line_a_change_and_ends_with_last_seq(wire: Wire, db: str) -> None:
    for name in "ab":
        put(wire, f"{db}/{name}")
    answer = wire.ask("GET", f"{db}/_changes?feed=continuous&timeout=100")
    lines = [json.loads(line) for line in answer.body.split(b"\n") if line]
    assert [line.get("id") for line in lines] == ["a", "b", None]
    assert set(lines[-1]) == {"last_seq", "pending"}


# --- 2: multipart unless the client says otherwise


@pytest.mark.parametrize("accept", [{}, {"accept": "*/*"}, {"accept": "multipart/mixed"}])
def test_2_open_revs_are_multipart(wire: Wire, db: str, accept: dict[str, str]) -> None:
    fork(wire, db)
    answer = wire.ask("GET", f'{db}/fork?open_revs=["2-a","9-z","2-b"]', None, accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("multipart/mixed; boundary=")
    (first, a), (second, z), (_, b) = parts(answer)
    assert (first["content-type"], json.loads(a)) == (
        "application/json",
        {"_id": "fork", "_rev": "2-a", "n": "a"},
    )
    assert second["content-type"] == 'application/json; error="true"'
    assert json.loads(z) == {"missing": "9-z"}
    assert json.loads(b)["n"] == "b"


def test_2_open_revs_are_json_for_who_accepts_only_that(wire: Wire, db: str) -> None:
    fork(wire, db)
    accept = {"accept": "application/json"}
    answer = wire.ask("GET", f'{db}/fork?open_revs=["2-a","9-z"]', None, accept)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == [{"ok": {"_id": "fork", "_rev": "2-a", "n": "a"}}, {"missing": "9-z"}]
    everything = wire.ask("GET", f"{db}/fork?open_revs=all", None, accept).json
    assert [row["ok"]["_rev"] for row in everything] == ["2-b", "2-a", "3-c"]
    assert wire.ask("GET", f"{db}/none?open_revs=all", None, accept).error == MISSING
    rows = wire.ask("GET", f'{db}/none?open_revs=["1-a"]', None, accept).json
    assert rows == [{"missing": "1-a"}]


@pytest.mark.parametrize("accept", [{}, {"accept": "*/*"}, {"accept": "multipart/related"}])
def test_2_a_document_with_its_attachments_is_multipart(
    wire: Wire, db: str, accept: dict[str, str]
) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()), bin=("image/x", BINARY))
    answer = wire.ask("GET", f"{db}/x?attachments=true", None, accept)
    assert answer.headers["content-type"].startswith('multipart/related; boundary="')
    assert int(answer.headers["content-length"]) == len(answer.body)
    (head, doc), (one, packed), (two, plain) = parts(answer)
    assert head["content-type"] == "application/json"
    stubs = json.loads(doc)["_attachments"]
    assert stubs["text"]["follows"] is True and stubs["bin"]["follows"] is True
    assert (one["content-encoding"], gzip.decompress(packed).decode()) == ("gzip", TEXT)
    assert one["content-disposition"] == 'attachment; filename="text"'
    assert one["content-type"] == "text/plain"
    assert int(one["content-length"]) == len(packed)
    assert plain == BINARY
    assert "content-encoding" not in two


def test_2_a_document_with_its_attachments_is_json_for_who_wants_that(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()), bin=("image/x", BINARY))
    answer = wire.ask("GET", f"{db}/x?attachments=true", None, {"accept": "application/json"})
    atts = answer.json["_attachments"]
    assert base64.b64decode(atts["text"]["data"]).decode() == TEXT
    assert base64.b64decode(atts["bin"]["data"]) == BINARY
    assert "stub" not in atts["bin"] and "length" not in atts["bin"]


def test_2_multipart_goes_in_as_it_comes_out(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()), bin=("image/x", BINARY))
    answer = wire.ask("GET", f"{db}/x?attachments=true&revs=true", None)
    kind = {"content-type": answer.headers["content-type"]}
    copied = wire.ask("PUT", f"{db}2", None)
    assert copied.status == 201
    assert wire.ask("PUT", f"{db}2/x?new_edits=false", answer.body, kind).status == 201
    assert wire.ask("GET", f"{db}2/x").json == wire.ask("GET", f"{db}/x").json
    assert wire.ask("GET", f"{db}2/x/text").body.decode() == TEXT
    wire.ask("DELETE", f"{db}2")


# --- 3: _bulk_get


def test_3_bulk_get_without_a_rev_gives_all_leaves(wire: Wire, db: str) -> None:
    fork(wire, db)
    asked = {"docs": [{"id": "fork"}, {"id": "none"}, {"id": "none", "rev": "1-a"}]}
    (every, unknown, missing) = wire.ask("POST", f"{db}/_bulk_get", asked).json["results"]
    assert every["id"] == "fork"
    assert [each["ok"]["_rev"] for each in every["docs"]] == ["2-b", "2-a", "3-c"]
    assert every["docs"][2]["ok"]["_deleted"] is True
    error = {"id": "none", "rev": "undefined", "error": "not_found", "reason": "missing"}
    assert unknown == {"id": "none", "docs": [{"error": error}]}
    assert missing == {"id": "none", "docs": [{"error": {**error, "rev": "1-a"}}]}


def test_3_latest_gives_every_leaf_below_an_old_revision(wire: Wire, db: str) -> None:
    fork(wire, db)
    asked = {"docs": [{"id": "fork", "rev": "1-x"}, {"id": "fork", "rev": "2-o"}]}
    rows = wire.ask("POST", f"{db}/_bulk_get?latest=true", asked).json["results"]
    assert {each["ok"]["_rev"] for each in rows[0]["docs"]} == {"2-a", "2-b", "3-c"}
    assert [each["ok"]["_rev"] for each in rows[1]["docs"]] == ["3-c"]
    rows = wire.ask("POST", f"{db}/_bulk_get", asked).json["results"]
    assert rows[0]["docs"][0]["error"]["error"] == "not_found"


def test_3_bulk_get_gives_revisions_and_attachments(wire: Wire, db: str) -> None:
    rev = attach(wire, f"{db}/x", bin=("image/x", BINARY))
    asked = {"docs": [{"id": "x", "rev": rev}]}
    answer = wire.ask("POST", f"{db}/_bulk_get?revs=true&attachments=true", asked).json
    found = answer["results"][0]["docs"][0]["ok"]
    assert found["_revisions"] == {"start": 1, "ids": [rev[2:]]}
    assert base64.b64decode(found["_attachments"]["bin"]["data"]) == BINARY
    asked["docs"][0]["atts_since"] = [rev]  # type: ignore[assignment]
    answer = wire.ask("POST", f"{db}/_bulk_get?attachments=true", asked).json
    assert answer["results"][0]["docs"][0]["ok"]["_attachments"]["bin"]["stub"] is True


def test_3_bulk_get_is_multipart_when_asked_for(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", bin=("image/x", BINARY))
    asked = {"docs": [{"id": "x"}, {"id": "none"}]}
    for kind in ("multipart/mixed", "multipart/related"):
        answer = wire.ask("POST", f"{db}/_bulk_get", asked, {"accept": kind})
        assert answer.headers["content-type"].startswith(f"{kind}; boundary=")
        (head, _), (error, reason) = parts(answer)
        assert head["x-doc-id"] == "x"
        assert head["content-type"].startswith("multipart/related; boundary=")
        assert error["content-type"] == 'application/json; error="true"'
        assert json.loads(reason)["error"] == "not_found"
    answer = wire.ask("POST", f"{db}/_bulk_get", asked, {"accept": "*/*"})
    assert answer.headers["content-type"] == "application/json"


# --- 4: new_edits=false


def test_4_new_edits_false_answers_an_empty_list_also_when_repeated(wire: Wire, db: str) -> None:
    doc = {"_id": "x", "_rev": "2-b", "_revisions": {"start": 2, "ids": ["b", "a"]}, "n": 1}
    for _ in range(3):
        graft(wire, db, doc)
    assert wire.ask("GET", f"{db}/x?revs=true").json["_revisions"] == doc["_revisions"]
    assert wire.ask("GET", db).json["doc_count"] == 1


def test_4_without_a_revision_it_is_400(wire: Wire, db: str) -> None:
    body = {"docs": [{"_id": "x"}], "new_edits": False}
    reason = "When `new_edits: false`, the document needs `_rev` or `_revisions` specified"
    assert wire.ask("POST", f"{db}/_bulk_docs", body).error == (400, "bad_request", reason)
    assert wire.ask("PUT", f"{db}/x?new_edits=false", {}).status == 400


def test_4_members_of_answers_are_accepted(wire: Wire, db: str) -> None:
    members = {"_conflicts": ["1-a"], "_deleted_conflicts": [], "_local_seq": 1, "_revs_info": []}
    assert wire.ask("PUT", f"{db}/x", {"n": 1, **members}).status == 201
    assert list(wire.ask("GET", f"{db}/x").json) == ["_id", "_rev", "n"]


def test_4_on_put_it_is_a_query_parameter(wire: Wire, db: str) -> None:
    answer = wire.ask("PUT", f"{db}/x?new_edits=false", {"_rev": "3-abc", "n": 1})
    assert (answer.status, answer.json) == (201, {"ok": True, "id": "x", "rev": "3-abc"})
    assert wire.ask("GET", f"{db}/x").json["_rev"] == "3-abc"
    other = wire.ask("PUT", f"{db}/x?new_edits=false", {"_rev": "3-abd"})
    assert other.json["rev"] == "3-abd"
    assert wire.ask("GET", f"{db}/x?conflicts=true").json["_conflicts"] == ["3-abc"]


# --- 5: _bulk_docs


def test_5_bulk_docs_answers_row_by_row_in_order(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/b")
    docs = [
        {"_id": "a"},
        {"_id": "b"},
        {"_id": "none", "_rev": "1-a"},
        {"n": 1},
        {"_id": "b", "_rev": rev},
    ]
    answer = wire.ask("POST", f"{db}/_bulk_docs", {"docs": docs})
    assert answer.status == 201
    rows = answer.json
    assert rows[0] == {"ok": True, "id": "a", "rev": rows[0]["rev"]}
    conflict = {"error": "conflict", "reason": "Document update conflict."}
    assert rows[1] == {"id": "b", **conflict}
    assert rows[2] == {"id": "none", **conflict}
    assert rows[3]["ok"] and re.fullmatch("[0-9a-f]{32}", rows[3]["id"])
    assert rows[4]["ok"] and rows[4]["rev"].startswith("2-")


@pytest.mark.parametrize(
    ("doc", "error"),
    [
        (
            {"_id": "_x"},
            (400, "illegal_docid", "Only reserved document ids may start with underscore."),
        ),
        ({"_id": 7}, (400, "illegal_docid", "Document id must be a string")),
        ({"_id": ""}, (400, "illegal_docid", "Document id must not be empty")),
        ({"_foo": 1}, (400, "doc_validation", "Bad special document member: _foo")),
        ({"_rev": "x"}, (400, "bad_request", "Invalid rev format")),
    ],
)  # fmt: skip
def test_5_what_cannot_be_a_document_fails_the_whole_request(
    wire: Wire, db: str, doc: dict[str, Any], error: tuple[int, str, str]
) -> None:
    answer = wire.ask("POST", f"{db}/_bulk_docs", {"docs": [{"_id": "good"}, doc]})
    assert answer.error == error
    assert wire.ask("GET", f"{db}/good").error == MISSING


def test_5_the_reasons_of_a_bad_body(wire: Wire, db: str) -> None:
    path = f"{db}/_bulk_docs"
    reason = "POST body must include `docs` parameter."
    assert wire.ask("POST", path, {}).error == (400, "bad_request", reason)
    reason = "`docs` parameter must be an array."
    assert wire.ask("POST", path, {"docs": {}}).error == (400, "bad_request", reason)
    reason = "Request body must be a JSON object"
    assert wire.ask("POST", path, []).error == (400, "bad_request", reason)
    reason = "invalid UTF-8 JSON"
    sent = {"content-type": "application/json"}
    assert wire.ask("POST", path, b"{", sent).error == (400, "bad_request", reason)
    reason = "Content-Type must be application/json"
    assert wire.ask("POST", path, b"{}").error == (415, "bad_content_type", reason)


# --- 6: _local


def test_6_local_documents_count_for_themselves(wire: Wire, db: str) -> None:
    path = f"{db}/_local/x"
    for _ in range(2):
        answer = wire.ask("PUT", path, {"n": 1})
        assert (answer.status, answer.json) == (201, {"ok": True, "id": "_local/x", "rev": "0-1"})
    assert wire.ask("PUT", path, {"_rev": "0-5"}).json["rev"] == "0-6"
    assert wire.ask("GET", path).json == {"_id": "_local/x", "_rev": "0-6"}
    assert wire.ask("DELETE", path).status == 200
    assert wire.ask("GET", path).error == MISSING
    assert wire.ask("DELETE", path).error == MISSING


def test_6_local_documents_are_in_no_listing(wire: Wire, db: str) -> None:
    put(wire, f"{db}/_local/x", n=1)
    assert wire.ask("GET", f"{db}/_all_docs").json["rows"] == []
    assert wire.ask("GET", f"{db}/_changes").json["results"] == []
    assert wire.ask("GET", db).json["doc_count"] == 0
    rows = wire.ask("GET", f"{db}/_local_docs").json["rows"]
    assert rows == [{"id": "_local/x", "key": "_local/x", "value": {"rev": "0-1"}}]


def test_6_local_documents_have_no_attachments(wire: Wire, db: str) -> None:
    refused = (400, "bad_request", "_local documents do not accept attachments.")
    for method in ("PUT", "GET", "DELETE"):
        assert wire.ask(method, f"{db}/_local/x/att", b"x").error == refused
    atts = {"_attachments": {"a": {"data": ""}}}
    assert wire.ask("PUT", f"{db}/_local/x", atts).status == 201
    assert wire.ask("GET", f"{db}/_local/x").json == {"_id": "_local/x", "_rev": "0-1"}


# --- 7: conflicts


def test_7_conflicts_and_deleted_conflicts(wire: Wire, db: str) -> None:
    fork(wire, db)
    path = f"{db}/fork?conflicts=true&deleted_conflicts=true&revs_info=true&local_seq=true"
    doc = wire.ask("GET", path).json
    assert (doc["_rev"], doc["_conflicts"], doc["_deleted_conflicts"]) == ("2-b", ["2-a"], ["3-c"])
    assert doc["_revs_info"] == [
        {"rev": "2-b", "status": "available"},
        {"rev": "1-x", "status": "missing"},
    ]
    assert "_local_seq" in doc
    put(wire, f"{db}/plain")
    doc = wire.ask("GET", f"{db}/plain?conflicts=true&deleted_conflicts=true").json
    assert "_conflicts" not in doc and "_deleted_conflicts" not in doc


def test_7_style_all_docs_shows_both_kinds_of_losers(wire: Wire, db: str) -> None:
    fork(wire, db)
    for style, revs in [("main_only", ["2-b"]), ("all_docs", ["2-b", "2-a", "3-c"])]:
        (row,) = wire.ask("GET", f"{db}/_changes?style={style}").json["results"]
        assert [each["rev"] for each in row["changes"]] == revs


def test_7_revs_diff(wire: Wire, db: str) -> None:
    fork(wire, db)
    asked = {"fork": ["2-a", "4-z", "1-x"], "known": ["1-a"], "other": ["2-b"]}
    graft(wire, db, {"_id": "known", "_rev": "1-a"})
    answer = wire.ask("POST", f"{db}/_revs_diff", asked).json
    ancestors = answer["fork"].pop("possible_ancestors")
    assert answer == {"fork": {"missing": ["4-z"]}, "other": {"missing": ["2-b"]}}
    assert set(ancestors) == {"2-a", "2-b", "3-c"}
    missing = wire.ask("POST", f"{db}/_missing_revs", asked).json
    assert missing == {"missing_revs": {"fork": ["4-z"], "other": ["2-b"]}}


# --- 8: _changes


def test_8_since_that_is_no_sequence_is_400(wire: Wire, db: str) -> None:
    for since in ("bogus", "1-bogus", "-1", "1.5", "{}"):
        assert wire.ask("GET", f"{db}/_changes?since={since}").error[:2] == (400, "bad_request")


def test_8_limit_0_gives_no_rows_but_pending(wire: Wire, db: str) -> None:
    for name in "abc":
        put(wire, f"{db}/{name}")
    answer = wire.ask("GET", f"{db}/_changes?limit=0").json
    assert (answer["results"], answer["pending"]) == ([], 3)
    answer = wire.ask("GET", f"{db}/_changes?limit=2").json
    assert (len(answer["results"]), answer["pending"]) == (2, 1)
    rest = wire.ask("GET", f"{db}/_changes?since={answer['last_seq']}").json
    assert [row["id"] for row in rest["results"]] == ["c"]


@pytest.mark.parametrize("feed", ["longpoll", "continuous"])
def test_8_a_timeout_ends_with_last_seq(wire: Wire, db: str, feed: str) -> None:
    put(wire, f"{db}/a")
    body = wire.ask("GET", f"{db}/_changes?feed={feed}&since=now&timeout=50").body
    last = (
        json.loads(body.strip().splitlines()[-1].decode())
        if feed == "continuous"
        else json.loads(body)
    )
    assert last["last_seq"].startswith("1-")
    assert last["pending"] == 0


def test_8_longpoll_answers_with_the_first_change(node: Running, wire: Wire, db: str) -> None:
    timer = threading.Timer(0.2, lambda: node.request("PUT", f"{db}/late", {}))
    timer.start()
    started = time.monotonic()
    answer = wire.ask("GET", f"{db}/_changes?feed=longpoll&since=now&heartbeat=10000").json
    timer.join()
    assert [row["id"] for row in answer["results"]] == ["late"]
    assert time.monotonic() - started < 5


def test_8_a_heartbeat_is_a_bare_newline(wire: Wire, db: str) -> None:
    wire.send(wire.request("GET", f"{db}/_changes?feed=continuous&since=now&heartbeat=100"))
    response = wire.begin()
    assert [response.readline() for _ in range(3)] == [b"\n"] * 3


def test_8_eventsource_has_heartbeats_and_quoted_ids(wire: Wire, db: str) -> None:
    put(wire, f"{db}/a")
    wire.send(wire.request("GET", f"{db}/_changes?feed=eventsource&heartbeat=100"))
    response = wire.begin()
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [response.readline().decode().rstrip("\n") for _ in range(6)]
    change = json.loads(lines[0].removeprefix("data: "))
    assert change["id"] == "a"
    assert lines[1:5] == [f'id: "{change["seq"]}"', "", "event: heartbeat", "data: "]


# --- 9: filters


@pytest.mark.parametrize(
    ("method", "query", "body", "reason"),
    [
        ("GET", "filter=_doc_ids", None, "`doc_ids` filter parameter is not a list of doc ids."),
        ("POST", "filter=_doc_ids", {}, "`doc_ids` filter parameter is not a list of doc ids."),
        ("POST", "filter=_doc_ids", {"doc_ids": 7},
         "`doc_ids` filter parameter is not a list of doc ids."),
        ("POST", "filter=_selector", {"selector": []}, "Selector error: expected a JSON object"),
        ("POST", "filter=_selector", {}, "Selector error: expected a JSON object"),
        ("GET", "filter=_selector", None, "Selector must be specified in POST payload"),
        ("GET", "filter=nothing", None, "`filter` must be of the form `designname/filtername`"),
        ("GET", "filter=_view", None, "`view` filter parameter is not provided."),
    ],
)  # fmt: skip
def test_9_filters_without_what_they_need_are_400(
    wire: Wire, db: str, method: str, query: str, body: Any, reason: str
) -> None:
    answer = wire.ask(method, f"{db}/_changes?{query}", body)
    assert answer.error == (400, "bad_request", reason)


def test_9_filters_filter(wire: Wire, db: str) -> None:
    for number, name in enumerate(["a", "b", "_design/c"]):
        put(wire, f"{db}/{name}", n=number)
    for method, query, body, ids in [
        ("POST", "filter=_doc_ids", {"doc_ids": ["b", "none"]}, ["b"]),
        ("GET", 'filter=_doc_ids&doc_ids=["a"]', None, ["a"]),
        ("POST", "filter=_selector", {"selector": {"n": {"$gt": 0}}}, ["b", "_design/c"]),
        ("GET", "filter=_design", None, ["_design/c"]),
    ]:
        rows = wire.ask(method, f"{db}/_changes?{query}", body).json["results"]
        assert [row["id"] for row in rows] == ids
    answer = wire.ask("GET", f"{db}/_changes?filter=no/such")
    assert answer.error == MISSING


# --- 10: attachments


def test_10_text_is_stored_packed_and_binary_as_it_is(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()), bin=("image/x", BINARY))
    plain = wire.ask("GET", f"{db}/x").json["_attachments"]
    digest = base64.b64encode(hashlib.md5(BINARY).digest()).decode()
    assert plain["bin"] == {
        "content_type": "image/x", "revpos": 1, "digest": f"md5-{digest}", "length": len(BINARY),
        "stub": True,
    }  # fmt: skip
    assert plain["text"]["length"] == len(TEXT.encode())
    told = wire.ask("GET", f"{db}/x?att_encoding_info=true").json["_attachments"]
    assert told["text"]["encoding"] == "gzip"
    assert told["text"]["encoded_length"] < len(TEXT.encode()) // 2
    assert "encoding" not in told["bin"]


def test_10_packed_attachments_have_no_ranges(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()), bin=("image/x", BINARY))
    part = {"range": "bytes=10-19"}
    text = wire.ask("GET", f"{db}/x/text", None, part)
    assert (text.status, text.headers["accept-ranges"], text.body.decode()) == (200, "none", TEXT)
    binary = wire.ask("GET", f"{db}/x/bin", None, part)
    assert (binary.status, binary.body) == (206, BINARY[10:20])
    assert binary.headers["content-range"] == f"bytes 10-19/{len(BINARY)}"
    assert wire.ask("GET", f"{db}/x/bin").headers["accept-ranges"] == "bytes"
    beyond = wire.ask("GET", f"{db}/x/bin", None, {"range": "bytes=99999-"})
    assert beyond.error[:2] == (416, "requested_range_not_satisfiable")
    assert wire.ask("HEAD", f"{db}/x/bin").headers["content-length"] == str(len(BINARY))


def test_10_gzip_goes_out_to_who_takes_it(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", text=("text/plain", TEXT.encode()))
    packed = wire.ask("GET", f"{db}/x/text", None, {"accept-encoding": "gzip, deflate"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body).decode() == TEXT
    plain = wire.ask("GET", f"{db}/x/text")
    assert plain.headers["content-encoding"] is None
    assert plain.headers["content-type"] == "text/plain"
    tag = plain.headers["etag"]
    assert wire.ask("GET", f"{db}/x/text", None, {"if-none-match": tag}).status == 304


def test_10_a_stub_of_nothing_is_412_and_bad_base64_400(wire: Wire, db: str) -> None:
    answer = wire.ask("PUT", f"{db}/x", {"_attachments": {"a": {"stub": True}}})
    assert answer.error == (412, "missing_stub", 'Invalid attachment stub in "x" for "a"')
    answer = wire.ask("PUT", f"{db}/x", {"_attachments": {"a": {"data": "!"}}})
    assert answer.error == (400, "bad_request", "Invalid attachment data for a")


def test_10_names_with_slashes_encoded_or_not(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/x")
    answer = wire.ask("PUT", f"{db}/x/a/b%20c?rev={rev}", b"1", {"content-type": "image/x"})
    assert answer.status == 201
    for path in ("a/b%20c", "a%2Fb%20c"):
        assert wire.ask("GET", f"{db}/x/{path}").body == b"1"
    rev = answer.json["rev"]
    assert wire.ask("DELETE", f"{db}/x/a%2Fb%20c").error == CONFLICT
    assert wire.ask("DELETE", f"{db}/x/a%2Fb%20c?rev={rev}").status == 200
    missing = (404, "not_found", "Document is missing attachment")
    assert wire.ask("GET", f"{db}/x/a%2Fb%20c").error == missing


# --- 11: reasons


def test_11_reasons_of_404_409_and_412(wire: Wire, db: str) -> None:
    no_database = (404, "not_found", "Database does not exist.")
    for method in ("GET", "DELETE"):
        assert wire.ask(method, "/no_such_database").error == no_database
    assert wire.ask("GET", "/no_such_database/x").error == no_database
    assert wire.ask("PUT", "/no_such_database/x", {}).error == no_database
    exists = "The database could not be created, the file already exists."
    assert wire.ask("PUT", db).error == (412, "file_exists", exists)
    assert wire.ask("GET", f"{db}/x").error == MISSING
    assert wire.ask("DELETE", f"{db}/x?rev=1-a").error == MISSING
    rev = put(wire, f"{db}/x")
    assert wire.ask("PUT", f"{db}/x", {}).error == CONFLICT
    assert wire.ask("PUT", f"{db}/x", {"_rev": "1-a"}).error == CONFLICT
    assert wire.ask("DELETE", f"{db}/x").error == CONFLICT
    assert wire.ask("DELETE", f"{db}/x?rev=1-a").error == CONFLICT
    assert wire.ask("GET", f"{db}/x?rev=1-a").error == MISSING
    assert wire.ask("GET", f"{db}/x/att").error == (
        404,
        "not_found",
        "Document is missing attachment",
    )
    assert wire.ask("DELETE", f"{db}/x?rev={rev}").status == 200
    assert wire.ask("GET", f"{db}/x").error == DELETED
    assert wire.ask("GET", f"{db}/x/att").error == DELETED
    assert wire.ask("DELETE", f"{db}/x").error == DELETED
    both = wire.ask("PUT", f"{db}/y?rev=1-a", {"_rev": "1-b"}).error
    reason = "Document rev from request body and query string have different values"
    assert both == (400, "bad_request", reason)


def test_11_a_deleted_document_is_there_by_its_revision(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/x", n=1)
    gone = wire.ask("DELETE", f"{db}/x?rev={rev}").json["rev"]
    found = wire.ask("GET", f"{db}/x?rev={gone}").json
    assert found == {"_id": "x", "_rev": gone, "_deleted": True}
    again = put(wire, f"{db}/x", n=2)
    assert again.startswith("3-")


def test_11_a_method_that_is_not_allowed_names_those_that_are(wire: Wire, db: str) -> None:
    answer = wire.ask("POST", f"{db}/x", {})
    assert answer.status == 405
    assert answer.json["error"] == "method_not_allowed"
    assert set(answer.headers["allow"].split(",")) >= {"GET", "HEAD", "PUT", "DELETE", "COPY"}


# --- 12: _all_docs by keys


def test_12_all_docs_keeps_the_order_of_keys(wire: Wire, db: str) -> None:
    a, gone = put(wire, f"{db}/a", n=1), put(wire, f"{db}/gone")
    gone = wire.ask("DELETE", f"{db}/gone?rev={gone}").json["rev"]
    keys = ["none", "a", "gone", "a", 7]
    expected = [
        {"key": "none", "error": "not_found"},
        {"id": "a", "key": "a", "value": {"rev": a}},
        {"id": "gone", "key": "gone", "value": {"rev": gone, "deleted": True}},
        {"id": "a", "key": "a", "value": {"rev": a}},
        {"key": 7, "error": "not_found"},
    ]
    answer = wire.ask("POST", f"{db}/_all_docs", {"keys": keys}).json
    assert (answer["total_rows"], answer["rows"]) == (1, expected)
    query = quote(json.dumps(keys))
    assert wire.ask("GET", f"{db}/_all_docs?keys={query}").json["rows"] == expected
    rows = wire.ask("POST", f"{db}/_all_docs?include_docs=true", {"keys": keys}).json["rows"]
    assert rows[1]["doc"] == {"_id": "a", "_rev": a, "n": 1}
    assert rows[2]["doc"] is None


# --- 14: _compact, _purge, _security


def test_14_compact_needs_a_json_content_type(wire: Wire, db: str) -> None:
    reason = "Content-Type must be application/json"
    assert wire.ask("POST", f"{db}/_compact").error == (415, "bad_content_type", reason)
    sent = {"content-type": "application/json"}
    answer = wire.ask("POST", f"{db}/_compact", b"", sent)
    assert (answer.status, answer.json) == (202, {"ok": True})
    deadline = time.monotonic() + 20
    while wire.ask("GET", db).json["compact_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_14_purge_answers_no_sequence(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/x")
    asked = {"x": [rev, "1-a"], "none": ["1-a"]}
    answer = wire.ask("POST", f"{db}/_purge", asked)
    assert answer.status == 201
    assert answer.json == {"purge_seq": None, "purged": {"x": [rev], "none": []}}
    assert wire.ask("GET", f"{db}/x").error == MISSING
    assert wire.ask("GET", db).json["doc_count"] == 0


def test_14_the_default_security_names_admins(wire: Wire, db: str) -> None:
    admins = {"roles": ["_admin"]}
    assert wire.ask("GET", f"{db}/_security").json == {"members": admins, "admins": admins}


def test_14_limits_and_commits(wire: Wire, db: str) -> None:
    assert wire.ask("GET", f"{db}/_revs_limit").body == b"1000\n"
    assert wire.ask("PUT", f"{db}/_revs_limit", 2).json == {"ok": True}
    rev = put(wire, f"{db}/x")
    for _ in range(3):
        rev = put(wire, f"{db}/x", _rev=rev)
    assert len(wire.ask("GET", f"{db}/x?revs=true").json["_revisions"]["ids"]) == 2
    sent = {"content-type": "application/json"}
    answer = wire.ask("POST", f"{db}/_ensure_full_commit", b"", sent)
    assert answer.status == 201 and answer.json["ok"]


# --- 16 to 18 stand with what they belong to; here is what a stranger sees of them


def test_16_a_malformed_authorization_is_anonymous(node: Running) -> None:
    with wired(node, "") as wire:
        for header in ("Basic !", "Basic", "nonsense"):
            answer = wire.ask("GET", "/_session", None, {"authorization": header})
            assert (answer.status, answer.json["userCtx"]["name"]) == (200, None)
        assert "AuthSession=;" in wire.ask("DELETE", "/_session").headers["set-cookie"]


def test_18_cors_is_off_until_it_is_configured(wire: Wire, db: str) -> None:
    answer = wire.ask("GET", db, None, {"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] is None


# --- further answers of documents


def test_etag_and_304(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/x")
    answer = wire.ask("GET", f"{db}/x")
    assert answer.headers["etag"] == f'"{rev}"'
    for tag in (f'"{rev}"', f'"1-a", "{rev}"', "*"):
        not_modified = wire.ask("GET", f"{db}/x", None, {"if-none-match": tag})
        assert (not_modified.status, not_modified.body) == (304, b"")
    assert wire.ask("GET", f"{db}/x", None, {"if-none-match": '"1-a"'}).status == 200


def test_if_match_names_the_revision(wire: Wire, db: str) -> None:
    rev = put(wire, f"{db}/x")
    assert wire.ask("PUT", f"{db}/x", {}, {"if-match": "1-a"}).error == CONFLICT
    answer = wire.ask("PUT", f"{db}/x", {}, {"if-match": f'"{rev}"'})
    assert answer.status == 201
    gone = wire.ask("DELETE", f"{db}/x", None, {"if-match": answer.json["rev"]})
    assert gone.status == 200


def test_batch_is_202_without_a_rev(wire: Wire, db: str) -> None:
    answer = wire.ask("PUT", f"{db}/x?batch=ok", {})
    assert (answer.status, answer.json) == (202, {"ok": True, "id": "x"})
    deadline = time.monotonic() + 10
    while wire.ask("GET", f"{db}/x").status != 200:
        assert time.monotonic() < deadline


def test_copy(wire: Wire, db: str) -> None:
    attach(wire, f"{db}/x", bin=("image/x", BINARY))
    answer = wire.ask("COPY", f"{db}/x", None, {"destination": "a%2Fb"})
    assert (answer.status, answer.json["id"]) == (201, "a/b")
    assert wire.ask("GET", f"{db}/a%2Fb/bin").body == BINARY
    assert wire.ask("COPY", f"{db}/x", None, {"destination": "a%2Fb"}).error == CONFLICT
    target = f"a%2Fb?rev={answer.json['rev']}"
    assert wire.ask("COPY", f"{db}/x", None, {"destination": target}).status == 201
    assert wire.ask("COPY", f"{db}/x").status == 400
    assert wire.ask("COPY", f"{db}/none", None, {"destination": "y"}).error == MISSING


def test_an_id_may_be_any_text(wire: Wire, db: str) -> None:
    for doc_id in (
        "a/b",
        "é€𝄞",
        "a b",
        "+",
        "a+b",
        "?",
        "#",
        "%",
        "&=",
        "\u0000",
        "..",
        ".",
        '"\\',
        "a" * 7168,
    ):
        path = f"{db}/{quote(doc_id, safe='')}"
        answer = wire.ask("PUT", path, {"n": 1})
        assert (answer.status, answer.json["id"]) == (201, doc_id)
        assert wire.ask("GET", path).json["_id"] == doc_id
        assert wire.ask("GET", answer.headers["location"]).json["_id"] == doc_id


def test_numbers_and_order_come_back_as_they_were_sent(wire: Wire, db: str) -> None:
    body = b'{"z":1,"a":1.5,"m":12345678901234567,"e":[1e-7,-0.0,100],"\\u00e9":"\\ud834\\udd1e"}'
    wire.ask("PUT", f"{db}/x", body, {"content-type": "application/json"})
    sent = json.loads(body)
    found = wire.ask("GET", f"{db}/x").json
    assert {key: found[key] for key in sent} == sent
    assert list(found) == ["_id", "_rev", *sent]


# --- the lane and the normal way

PLAIN: dict[str, str] = {}
JSON = {"content-type": "application/json"}
ELSEWHERE = sessions.text({7: 3}, {7: "m9"})
"""Where nobody has been."""
TOKENS: list[dict[str, str]] = [
    {"divan-session": sessions.text({}, {})},
    {"divan-session": ""},
    {"divan-session": ELSEWHERE},
    {"divan-session": "nonsense"},
    {"divan-session": "A"},
    {"divan-session": "\xe9"},
    {"divan-session": "x" * 20_000},
    {"cookie": f"@ours@m9={ELSEWHERE}"},
    {"cookie": f"DivanSession-m9={ELSEWHERE}"},
    {"cookie": "@ours@m1=nonsense; theme=dark"},
    {"cookie": "AuthSession="},
    {"cookie": "AuthSession=nonsense"},
    {"cookie": f"@ours@m9={ELSEWHERE}", "divan-session": sessions.text({}, {})},
]
READS: list[tuple[str, str, dict[str, str]]] = [
    (method, path, headers)
    for method in ("GET", "HEAD")
    for path, headers in [
        ("plain", PLAIN),
        ("plain", {"accept": "application/json"}),
        ("plain", {"accept": "text/html"}),
        ("plain", {"accept": "multipart/mixed", "accept-encoding": "gzip"}),
        ("plain", {"if-none-match": '"@rev@"'}),
        ("plain", {"if-none-match": 'W/"@rev@"'}),
        ("plain", {"if-none-match": '"1-a", "@rev@"'}),
        ("plain", {"if-none-match": '"1-a"'}),
        ("plain", {"if-none-match": "*"}),
        ("plain", {"if-none-match": ""}),
        ("plain", {"content-type": "application/json"}),
        ("plain", {"content-type": "text/plain", "user-agent": "x", "pragma": "no-cache"}),
        ("plain", {"connection": "close"}),
        ("plain", {"connection": "keep-alive"}),
        *[("plain", headers) for headers in TOKENS],
        ("plain", {"if-none-match": '"@rev@"', **TOKENS[0]}),
        ("none", TOKENS[0]),
        ("plain/", PLAIN),
        ("plain#x", PLAIN),
        ("plain?", PLAIN),
        ("plain?rev=@rev@", PLAIN),
        ("plain;x", PLAIN),
        ("%70lain", PLAIN),
        ("none", PLAIN),
        ("none", {"if-none-match": "*"}),
        ("deleted", PLAIN),
        ("forked", PLAIN),
        ("attached", PLAIN),
        ("a+b", PLAIN),
        ("a:b@c,d", PLAIN),
        ("a%2Bb", PLAIN),
        ("_design/d", PLAIN),
        ("_local/l", PLAIN),
        ("_x", PLAIN),
        ("x" * 7169, PLAIN),
        ("\xe9", PLAIN),
        ("", PLAIN),
    ]
]


def tidy(answer: Answer, db: str) -> tuple[int, dict[str, str], bytes]:
    """What must be the same: all but the date and the database's name."""
    headers = {
        name.lower(): value.replace(db, "/DB")
        for name, value in answer.headers.items()
        if name.lower() != "date"
    }
    return answer.status, headers, answer.body


def stock(wire: Wire, db: str) -> str:
    """Documents to read; the revision of ``plain``."""
    rev = put(wire, f"{db}/plain", n=1, text="é€𝄞")
    for name in ("a+b", "a:b@c,d", "_design/d", "_local/l"):
        put(wire, f"{db}/{name}")
    gone = put(wire, f"{db}/deleted")
    wire.ask("DELETE", f"{db}/deleted?rev={gone}")
    fork(wire, db, "forked")
    attach(wire, f"{db}/attached", bin=("image/x", BINARY))
    return rev


@pytest.fixture(scope="module")
def stocked(node: Running) -> Iterator[tuple[str, str]]:
    """A database with documents to read, and the revision of ``plain``."""
    with wired(node) as wire:
        path = f"/answers{next(_NUMBERS)}"
        assert wire.ask("PUT", path).status == 201
        yield path, stock(wire, path)
        wire.ask("DELETE", path)


def filled(wire: Wire, headers: dict[str, str], rev: str) -> dict[str, str]:
    """With the revision, and with how this cluster's cookies are named."""
    ours = sessions.prefix_of(wire.ask("GET", "/").json["uuid"])
    return {
        name: value.replace("@rev@", rev).replace("@ours@", ours) for name, value in headers.items()
    }


@pytest.mark.parametrize(("method", "path", "headers"), READS)
def test_the_lane_reads_as_the_normal_way_does(
    wire: Wire, stocked: tuple[str, str], method: str, path: str, headers: dict[str, str]
) -> None:
    db, rev = stocked
    target = f"{db}/{path.replace('@rev@', rev)}"
    sent = filled(wire, headers, rev)
    lane = wire.ask(method, target, None, sent)
    normal = wire.ask(method, target, None, {**sent, "x-other": "way"})
    assert tidy(lane, db) == tidy(normal, db)


WRITES: list[tuple[str, bytes, dict[str, str]]] = [
    ("new", b"{}", JSON),
    ("new", b'{"n":1,"text":"\xc3\xa9"}', JSON),
    ("new", b' {"b":1 , "a":[1.0,1e3,-0.0]} ', JSON),
    ("new", b"{}", {"content-type": "application/json; charset=utf-8"}),
    ("new", b"{}", {"content-type": "application/jsonx"}),
    ("new", b"{}", {"content-type": "text/plain"}),
    ("new", b"{}", PLAIN),
    ("new", b"{}", {**JSON, "accept": "text/html", "user-agent": "x"}),
    ("new", b"{}", {**JSON, "connection": "close"}),
    ("new", b"{}", {**JSON, "if-none-match": "*"}),
    ("new", b'{"_id":"new"}', JSON),
    ("new", b'{"_id":"other"}', JSON),
    ("new", b'{"_id":7}', JSON),
    ("new", b'{"_rev":"1-a"}', JSON),
    ("new", b'{"_rev":"x"}', JSON),
    ("new", b'{"_rev":null}', JSON),
    ("new", b'{"_rev":""}', JSON),
    ("new", b'{"_deleted":true}', JSON),
    ("new", b'{"_deleted":false}', JSON),
    ("new", b'{"_deleted":1}', JSON),
    ("new", b'{"_foo":1}', JSON),
    ("new", b'{"_conflicts":[]}', JSON),
    ("new", b'{"_revisions":{"start":1,"ids":["a"]}}', JSON),
    ("new", b'{"_attachments":{"a":{"data":"YQ=="}}}', JSON),
    ("new", b'{"_attachments":{"a":{"stub":true}}}', JSON),
    ("new", b'{"_attachments":{}}', JSON),
    ("new", b"", JSON),
    ("new", b"[]", JSON),
    ("new", b"null", JSON),
    ("new", b"{", JSON),
    ("new", b'{"a":"\xff"}', JSON),
    ("new", b'{"a":"\\ud800"}', JSON),
    ("new", b'{"a":1,"a":2}', JSON),
    ("new", b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", JSON),
    ("new", b'{"a":"' + b"x" * 65_000 + b'"}', JSON),
    ("new", b'{"a":"' + b"x" * 70_000 + b'"}', JSON),
    ("new", b'{"a":"' + b"x" * 9_000_000 + b'"}', JSON),
    *[("new", b"{}", {**JSON, **headers}) for headers in TOKENS],
    ("plain", b"{}", JSON),
    ("plain", b'{"_rev":"@rev@","n":2}', JSON),
    ("plain", b'{"_rev":"@rev@","n":3}', {**JSON, **TOKENS[0]}),
    ("plain", b'{"_rev":"@rev@","_deleted":true}', JSON),
    ("plain", b'{"_rev":"1-a"}', JSON),
    ("deleted", b"{}", JSON),
    ("deleted", b'{"n":1}', JSON),
    ("deleted", b'{"_deleted":true}', JSON),
    ("forked", b'{"_rev":"2-a","n":2}', JSON),
    ("forked", b'{"_rev":"3-c","n":2}', JSON),
    ("attached", b"{}", JSON),
    ("a+b", b"{}", JSON),
    ("c+d;e", b"{}", JSON),
    ("new/", b"{}", JSON),
    ("new#x", b"{}", JSON),
    ("%6eew", b"{}", JSON),
    ("new?batch=ok", b"{}", JSON),
    ("_x", b"{}", JSON),
    ("_design/d2", b"{}", JSON),
    ("x" * 7168, b"{}", JSON),
    ("x" * 7169, b"{}", JSON),
    ("\xe9", b"{}", JSON),
]


@pytest.mark.parametrize(
    ("path", "body", "headers"), WRITES, ids=[f"{number:02}" for number in range(len(WRITES))]
)
def test_the_lane_writes_as_the_normal_way_does(
    wire: Wire, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """The same answer, the same document afterwards, and again the same answer to the repeat."""
    results = []
    for extra in ({}, {"x-other": "way"}):
        db = f"/answers{next(_NUMBERS)}"
        assert wire.ask("PUT", db).status == 201
        try:
            rev = stock(wire, db)
            sent, told = body.replace(b"@rev@", rev.encode()), filled(wire, headers, rev)
            answers = [
                tidy(wire.ask("PUT", f"{db}/{path}", sent, {**told, **extra}), db) for _ in range(2)
            ]
            after = wire.ask("GET", f"{db}/_changes?include_docs=true&style=all_docs").json
            rows = [{**row, "seq": 0} for row in after["results"]]
            results.append((answers, rows))
        finally:
            wire.ask("DELETE", db)
    assert results[0] == results[1]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("connection", [None, "close", "keep-alive"])
def test_the_lane_keeps_and_closes_connections_as_the_normal_way_does(
    node: Running, stocked: tuple[str, str], version: str, connection: str | None
) -> None:
    db, _ = stocked
    results = []
    for extra in ({}, {"x-other": "way"}):
        sent = {**extra, **({"connection": connection} if connection else {})}
        for method in ("GET", "HEAD", "PUT"):
            with wired(node) as wire:
                body = {"n": 1} if method == "PUT" else None
                data = wire.request(method, f"{db}/plain", body, sent)
                wire.send(data.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
                answer = wire.answer(method)
                results.append((tidy(answer, db), wire.is_open))
    assert results[:3] == results[3:]


def test_requests_in_one_go_are_answered_in_order(node: Running, stocked: tuple[str, str]) -> None:
    """Reads and writes of the lane and of the normal way, sent without waiting for answers."""
    db, _ = stocked
    asked: list[tuple[str, str, Any, dict[str, str], int]] = []
    for number in range(30):
        extra = {"x-other": "way"} if number % 3 == 0 else {}
        asked.append(("PUT", f"{db}/go{number}", {"n": number}, extra, 201))
        asked.append(("GET", f"{db}/go{number}", None, {}, 200))
        asked.append(("GET", f"{db}/go{number}?revs=true", None, extra, 200))
        asked.append(("HEAD", f"{db}/none", None, {}, 404))
        asked.append(("PUT", f"{db}/go{number}", {"n": number}, {}, 409))
    with wired(node) as wire:
        requests = [wire.request(*each[:4]) for each in asked]
        wire.send(requests[0])
        sender = threading.Thread(target=wire.send, args=(b"".join(requests[1:]),))
        sender.start()
        for method, path, _, _, status in asked:
            answer = wire.answer(method)
            assert answer.status == status, (method, path, answer)
            if method == "GET":
                assert answer.json["_id"] == path.split("/")[2].partition("?")[0]
        sender.join()
