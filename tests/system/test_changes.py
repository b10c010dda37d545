"""`_changes` over HTTP, as CouchDB 3.5 answers it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.running import Running, running


def client_of(node: Running) -> httpx.Client:
    return httpx.Client(base_url=node.url, auth=(node.admin, node.password), timeout=30)


@pytest.fixture(scope="module")
def server(node: Running) -> Iterator[httpx.Client]:
    with client_of(node) as client:
        yield client


@pytest.fixture
def db(server: httpx.Client) -> str:
    """A new database."""
    name = f"/db-{uuid4().hex}"
    assert server.put(name).status_code == 201
    return name


def put(server: httpx.Client, db: str, *doc_ids: str, **members: Any) -> None:
    for doc_id in doc_ids:
        server.put(f"{db}/{doc_id}", json=members).raise_for_status()


def conflict(server: httpx.Client, db: str, doc_id: str) -> None:
    body = {"docs": [{"_id": doc_id, "_rev": "1-0", "lost": True}], "new_edits": False}
    server.post(f"{db}/_bulk_docs", json=body).raise_for_status()


def ask(server: httpx.Client, db: str, **params: str) -> dict[str, Any]:
    answer = server.get(f"{db}/_changes", params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [row["id"] for row in answer["results"]]


def post(server: httpx.Client, db: str, body: Any, **params: str) -> list[str]:
    answer = server.post(f"{db}/_changes", params=params, json=body)
    assert answer.status_code == 200, answer.text
    return ids(answer.json())


class Later:
    """Does something a moment from now."""

    def __init__(self, action: Any, *arguments: Any) -> None:
        self._timer = threading.Timer(0.2, action, arguments)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.join()


def test_the_frame(server: httpx.Client, db: str) -> None:
    assert server.get(f"{db}/_changes").text.startswith('{"results":[\n\n],\n"last_seq":"0-')
    put(server, db, "a", "b")
    answer = server.get(f"{db}/_changes")
    first, second, close, rest = answer.text.splitlines()[1:]
    assert first.startswith('{"seq":"1-') and first.endswith("]},")
    assert second.startswith('{"seq":"2-') and second.endswith("]}")
    assert close == "],"
    assert rest.startswith('"last_seq":"2-') and rest.endswith('","pending":0}')
    assert answer.text.endswith("}\n")
    assert list(json.loads(second)) == ["seq", "id", "changes"]
    assert answer.headers["content-type"] == "application/json"


def test_a_change_moves_its_document_to_the_end(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b")
    before = ask(server, db)
    rev = before["results"][0]["changes"][0]["rev"]
    gone = server.delete(f"{db}/a", params={"rev": rev}).json()["rev"]
    after = ask(server, db)
    assert ids(after) == ["b", "a"]
    assert after["results"][1]["deleted"] is True
    assert after["results"][1]["changes"] == [{"rev": gone}]
    assert ids(ask(server, db, since=before["last_seq"])) == ["a"]
    assert ids(ask(server, db, since="now")) == []
    assert ids(ask(server, db, since=f'"{before["last_seq"]}"')) == ["a"]
    update_seq = server.get(db).json()["update_seq"]
    assert after["last_seq"] == update_seq
    assert ids(ask(server, db, since=update_seq)) == []


@pytest.mark.parametrize("since", ["bogus", "5", "", "-1", "5-", "5-!!", "1-k9PV", "9" * 20_000])
def test_a_malformed_since(server: httpx.Client, db: str, since: str) -> None:
    answer = server.get(f"{db}/_changes", params={"since": since})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "bad_request",
        "reason": "Malformed sequence supplied in 'since' parameter.",
    }


def test_limit_and_pending(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b", "c")
    answer = ask(server, db, limit="2")
    assert (ids(answer), answer["pending"]) == (["a", "b"], 1)
    answer = ask(server, db, since=answer["last_seq"], limit="2")
    assert (ids(answer), answer["pending"]) == (["c"], 0)
    answer = ask(server, db, limit="0")
    assert (ids(answer), answer["pending"]) == ([], 3)
    assert ids(ask(server, db, since=answer["last_seq"])) == ["a", "b", "c"]
    answer = ask(server, db, descending="true", limit="1")
    assert (ids(answer), answer["pending"]) == (["c"], 2)
    assert ids(ask(server, db, descending="true", since="now")) == ["c", "b", "a"]


def test_seq_interval(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b", "c", "d")
    rows = ask(server, db, seq_interval="2", limit="4")["results"]
    assert [row["seq"] is None for row in rows] == [False, True, False, True]


def test_documents(server: httpx.Client, db: str) -> None:
    attachment = {"t": {"content_type": "text/plain", "data": "aGFsbG8="}}
    server.put(f"{db}/a", json={"n": 1, "_attachments": attachment})
    put(server, db, "b", n=2)
    rev = server.get(f"{db}/b").json()["_rev"]
    server.delete(f"{db}/b", params={"rev": rev})
    conflict(server, db, "a")
    b, a = ask(server, db, include_docs="true")["results"]
    assert b["doc"]["_deleted"] is True
    assert (a["doc"]["n"], a["doc"]["_attachments"]["t"]["stub"]) == (1, True)
    assert "_conflicts" not in a["doc"]
    more = {"include_docs": "true", "conflicts": "true"}
    assert ask(server, db, **more)["results"][1]["doc"]["_conflicts"] == ["1-0"]
    a = ask(server, db, attachments="true", **more)["results"][1]
    assert a["doc"]["_attachments"]["t"]["data"] == "aGFsbG8="
    assert a["doc"]["_conflicts"] == ["1-0"]
    a = ask(server, db, att_encoding_info="true", include_docs="true")["results"][1]
    assert a["doc"]["_attachments"]["t"]["encoding"] == "gzip"


def test_style_all_docs(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b")
    conflict(server, db, "a")
    for more in ({}, {"include_docs": "true"}):
        b, a = ask(server, db, style="all_docs", **more)["results"]
        winner = server.get(f"{db}/a").json()["_rev"]
        assert a["changes"] == [{"rev": winner}, {"rev": "1-0"}]
        assert len(b["changes"]) == 1
    assert len(ask(server, db)["results"][1]["changes"]) == 1


def test_local_documents_are_no_changes(server: httpx.Client, db: str) -> None:
    put(server, db, "_local/x", "a")
    assert ids(ask(server, db)) == ["a"]


# Filters

NOT_IDS = "`doc_ids` filter parameter is not a list of doc ids."


def test_filter_doc_ids(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b", "c")
    body = {"doc_ids": ["c", "a", "none"]}
    assert post(server, db, body, filter="_doc_ids") == ["a", "c"]
    answer = ask(server, db, filter="_doc_ids", doc_ids='["b"]')
    assert ids(answer) == ["b"]
    assert answer["last_seq"].startswith("3-")
    assert post(server, db, {}, filter="_doc_ids", doc_ids='["b"]') == ["b"]
    assert post(server, db, {"doc_ids": []}, filter="_doc_ids") == []
    many = {"doc_ids": ["a", *map(str, range(3000))]}
    assert post(server, db, many, filter="_doc_ids") == ["a"]
    assert post(server, db, {"doc_ids": ["a"]}) == ["a", "b", "c"]


def test_filter_selector(server: httpx.Client, db: str) -> None:
    put(server, db, "a", kind="x")
    put(server, db, "b", kind="y", deep={"n": 1, "m": 2})
    body: dict[str, Any] = {"selector": {"kind": "y"}}
    assert post(server, db, body, filter="_selector") == ["b"]
    body["fields"] = ["_id", "deep.n"]
    answer = server.post(f"{db}/_changes?filter=_selector&include_docs=true", json=body)
    assert answer.json()["results"][0]["doc"] == {"_id": "b", "deep": {"n": 1}}
    conflict(server, db, "b")
    lost = {"selector": {"lost": True}}
    assert post(server, db, lost, filter="_selector") == []
    answer = server.post(f"{db}/_changes?filter=_selector&style=all_docs", json=lost)
    assert answer.json()["results"][0]["changes"] == [{"rev": "1-0"}]


def test_filter_design(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "_design/x", "b")
    assert ids(ask(server, db, filter="_design")) == ["_design/x"]


@pytest.mark.parametrize(
    ("query", "body", "reason"),
    [
        ("filter=_doc_ids", {}, NOT_IDS),
        ("filter=_doc_ids", {"doc_ids": 5}, NOT_IDS),
        ("filter=_doc_ids", {"doc_ids": [5]}, NOT_IDS),
        ("filter=_selector", {}, "Selector error: expected a JSON object"),
        ("filter=_selector", {"selector": 5}, "Selector error: expected a JSON object"),
        ("filter=_selector", {"selector": {"a": {"$no": 1}}}, "Invalid operator: $no"),
        (
            "filter=_selector",
            {"selector": {}, "fields": 5},
            "Selector error: fields must be JSON array",
        ),
        ("filter=_view", {}, "`view` filter parameter is not provided."),
        ("filter=_view&view=a", {}, "`view` must be of the form `designname/viewname`"),
        ("filter=_other", {}, "unknown builtin filter name"),
        ("filter=a", {}, "`filter` must be of the form `designname/filtername`"),
        ("filter=a/b/c", {}, "`filter` must be of the form `designname/filtername`"),
        ("feed=x", {}, "Supported `feed` types: normal, continuous, live, longpoll, eventsource"),
        ("heartbeat=0", {}, "The heartbeat value should be a positive integer (in milliseconds)."),
        ("", [], "Request body must be a JSON object"),
    ],
)  # fmt: skip
def test_refused(server: httpx.Client, db: str, query: str, body: Any, reason: str) -> None:
    answer = server.post(f"{db}/_changes?{query}", json=body)
    assert answer.json() == {"error": "bad_request", "reason": reason}
    assert answer.status_code == 400


def test_other_refusals(server: httpx.Client, db: str) -> None:
    assert server.post(f"{db}/_changes", content=b"{}").status_code == 415
    assert server.get(f"{db}/_changes?filter=_selector").status_code == 400
    assert server.get(f"{db}/_changes?filter=_doc_ids&doc_ids=[").status_code == 400
    assert server.get("/db-nowhere/_changes").status_code == 404
    assert server.put(f"{db}/_changes").status_code == 405
    assert httpx.get(server.base_url.join(f"{db}/_changes")).status_code == 401


def test_filters_that_are_not_there(server: httpx.Client, db: str) -> None:
    design = {"filters": {"f": "function () {}"}, "views": {"v": {"map": "function () {}"}}}
    server.put(f"{db}/_design/x", json=design).raise_for_status()
    put(server, db, "_design/gone")
    rev = server.get(f"{db}/_design/gone").json()["_rev"]
    server.delete(f"{db}/_design/gone", params={"rev": rev})
    for query, status, reason in (
        ("filter=x/f", 200, None),
        ("filter=_view&view=x/v", 200, None),
        ("filter=x/g", 404, "missing json key: g"),
        ("filter=_view&view=x/g", 404, "missing json key: g"),
        ("filter=none/f", 404, "missing"),
        ("filter=gone/f", 404, "deleted"),
    ):
        answer = server.get(f"{db}/_changes?{query}")
        assert answer.status_code == status
        assert reason is None or answer.json()["reason"] == reason


# Feeds


def test_longpoll(server: httpx.Client, db: str) -> None:
    put(server, db, "a")
    assert ids(ask(server, db, feed="longpoll")) == ["a"]
    with Later(put, server, db, "b"):
        answer = ask(server, db, feed="longpoll", since="now", heartbeat="10000")
    assert ids(answer) == ["b"]
    started = time.monotonic()
    answer = ask(server, db, feed="longpoll", since="now", timeout="300")
    assert 0.25 < time.monotonic() - started < 5
    assert (ids(answer), answer["pending"]) == ([], 0)
    assert answer["last_seq"].startswith("2-")


def test_continuous(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b")
    text = server.get(f"{db}/_changes?feed=continuous&timeout=100&include_docs=true").text
    a, b, last = map(json.loads, text.splitlines())
    assert (a["id"], b["doc"]["_id"]) == ("a", "b")
    assert (list(last), last["pending"]) == (["last_seq", "pending"], 0)
    with Later(put, server, db, "c", "d"):
        params = {"feed": "live", "since": last["last_seq"], "limit": "2", "heartbeat": "100"}
        text = server.get(f"{db}/_changes", params=params).text
    c, d, last = map(json.loads, text.split())
    assert (c["id"], d["id"]) == ("c", "d")
    assert text.startswith("\n")


def test_eventsource(server: httpx.Client, db: str) -> None:
    put(server, db, "a", "b")
    path = f"{db}/_changes?feed=eventsource&timeout=100"
    answer = server.get(path)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    events = [event.splitlines() for event in answer.text.strip().split("\n\n")]
    assert [json.loads(data.removeprefix("data: "))["id"] for data, _ in events] == ["a", "b"]
    seq = events[0][1].removeprefix("id: ")
    assert seq.startswith('"1-') and seq.endswith('"')
    rest = server.get(path, headers={"last-event-id": seq}).text
    assert '"id":"b"' in rest and '"id":"a"' not in rest
    with server.stream("GET", f"{db}/_changes?feed=eventsource&since=now&heartbeat=100") as feed:
        text = ""
        for piece in feed.iter_text():
            text += piece
            if "heartbeat" in text:
                break
    assert text.lstrip("\n") == "event: heartbeat\ndata: \n\n"


def test_a_dropped_database_ends_its_feeds(server: httpx.Client, db: str) -> None:
    put(server, db, "a")
    with Later(server.delete, db):
        answer = ask(server, db, feed="longpoll", since="now", heartbeat="true")
    assert ids(answer) == []
    assert answer["last_seq"].startswith("1-")


def test_conditional_requests(server: httpx.Client, db: str) -> None:
    put(server, db, "a")
    tag = server.get(f"{db}/_changes").headers["etag"]
    assert server.get(f"{db}/_changes", headers={"if-none-match": tag}).status_code == 304
    put(server, db, "b")
    answer = server.get(f"{db}/_changes", headers={"if-none-match": tag})
    assert (answer.status_code, len(answer.json()["results"])) == (200, 2)


def test_head_has_no_body_and_does_not_wait(server: httpx.Client, db: str) -> None:
    for feed in ("normal", "longpoll", "continuous", "eventsource"):
        answer = server.head(f"{db}/_changes?feed={feed}&heartbeat=true&since=now")
        assert (answer.status_code, answer.content) == (200, b"")


def test_many_changes_come_in_pages(server: httpx.Client, db: str) -> None:
    wanted = [f"{number:05}" for number in range(3500)]
    docs = [{"_id": doc_id, "text": "x" * 500} for doc_id in wanted]
    server.post(f"{db}/_bulk_docs", json={"docs": docs}).raise_for_status()
    conflict(server, db, "01234")
    wanted.remove("01234")
    wanted.append("01234")
    for params in (
        {},
        {"include_docs": "true"},
        {"style": "all_docs"},
        {"style": "all_docs", "include_docs": "true"},
        {"include_docs": "true", "conflicts": "true"},
        {"include_docs": "true", "attachments": "true"},
        {"seq_interval": "100"},
    ):
        assert ids(ask(server, db, **params)) == wanted
        assert ids(ask(server, db, descending="true", **params)) == wanted[::-1]
        seq, found = "0", []
        while True:
            answer = ask(server, db, since=seq, limit="999", **params)
            found += ids(answer)
            seq = answer["last_seq"]
            if not answer["results"]:
                break
        assert found == wanted
    events = server.get(f"{db}/_changes?feed=eventsource&timeout=100").text
    assert events.count("\nid: ") == len(wanted)
    lines = server.get(f"{db}/_changes?feed=continuous&timeout=100").text.splitlines()
    assert [json.loads(line)["id"] for line in lines[:-1]] == wanted


def test_a_reader_that_goes_on_from_each_seq_misses_nothing(server: httpx.Client, db: str) -> None:
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            doc_id = f"{len(written):05}"
            put(server, db, doc_id)
            written.append(doc_id)

    writer = threading.Thread(target=write)
    writer.start()
    found: list[str] = []
    seq = "0"
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline or len(set(found)) < len(written):
        answer = ask(server, db, since=seq, feed="longpoll", limit="7", timeout="500")
        found += ids(answer)
        seq = answer["results"][-1]["seq"] if answer["results"] else answer["last_seq"]
        if time.monotonic() > deadline:
            stop.set()
            writer.join()
    assert found == written


LIVE = {"feed": "continuous", "since": "now", "heartbeat": "60000"}


def test_a_lost_client_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIVANDB_FEEDS_MAX", "1")
    with running(tmp_path) as own, client_of(own) as server:
        server.put("/db").raise_for_status()
        with client_of(own) as other:
            with other.stream("GET", "/db/_changes", params=LIVE) as feed:
                raw = feed.iter_raw()  # closes the connection when it is let go
                assert next(raw) == b"\n"
                refused = server.get("/db/_changes?feed=longpoll")
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "1"
                assert server.get("/db/_changes").status_code == 200
        path = "/db/_changes?feed=longpoll&timeout=1"
        own.await_true(lambda: server.get(path).status_code == 200, 10)


def test_feeds_end_when_the_node_stops(tmp_path: Path) -> None:
    with running(tmp_path) as own, client_of(own) as server:
        server.put("/db").raise_for_status()
        lines: list[str] = []
        begun = threading.Event()

        def follow() -> None:
            with client_of(own) as other:
                with other.stream("GET", "/db/_changes", params=LIVE) as feed:
                    for line in feed.iter_lines():
                        begun.set()
                        lines.append(line)

        follower = threading.Thread(target=follow)
        follower.start()
        assert begun.wait(10)
        started = time.monotonic()
        assert own.stop() == 0
        assert time.monotonic() - started < 4
        follower.join(10)
        assert "last_seq" in lines[-1]
