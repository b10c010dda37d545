"""The Python client against servers that are functions."""

import asyncio
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import parse_qsl

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import client as api
from divandb.client import (
    AsyncClient,
    BadAnswerError,
    Client,
    ClientError,
    ConflictError,
    ForbiddenError,
    NoAnswerError,
    NotFoundError,
    Options,
    PreconditionFailedError,
    ServerError,
    TooBusyError,
    UnauthorizedError,
    UnavailableError,
    calls,
    tokens,
    wire,
)
from divandb.client.calls import Listing
from divandb.client.feed import Feed, Wish
from divandb.client.wire import Answer, Send
from divandb.cluster import sessions
from divandb.cluster.sessions import Token
from tests.unit.test_client_sender import World, ok

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, **changes: Any) -> Client:
    changes = {"direct": False, "retry_s_max": 0.2, **changes}
    return Client("http://one", "u", "p", transport=httpx.MockTransport(handler), **changes)


def run(
    handler: Handler, body: Callable[[AsyncClient], Coroutine[Any, Any, Any]], **changes: Any
) -> Any:
    async def whole() -> Any:
        own = {"direct": False, "retry_s_max": 0.2, **changes}
        transport = httpx.MockTransport(handler)
        async with AsyncClient("http://one", "u", "p", transport=transport, **own) as made:
            return await body(made)

    return asyncio.run(whole())


def answering(status: int, value: Any = None, **headers: str) -> Handler:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda _: httpx.Response(status, json=value, headers=named)


# What is raised


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, "unauthorized", UnauthorizedError),
        (403, "forbidden", ForbiddenError),
        (404, "not_found", NotFoundError),
        (409, "conflict", ConflictError),
        (412, "file_exists", PreconditionFailedError),
        (503, "service_unavailable", UnavailableError),
        (500, "timeout", ServerError),
    ],
)
def test_refusals_have_a_type_each_and_say_what_the_server_said(
    status: int, error: str, kind: type[ServerError]
) -> None:
    with client(answering(status, {"error": error, "reason": "why"})) as made:
        with pytest.raises(kind) as caught:
            made.database("db").get("d")
    assert (caught.value.status, caught.value.error, caught.value.reason) == (status, error, "why")


def test_a_refusal_of_a_proxy_need_not_be_json() -> None:
    with client(lambda _: httpx.Response(403, text="<html>no")) as made:
        with pytest.raises(ForbiddenError, match="<html>no"):
            made.info()


def test_what_is_no_json_is_said() -> None:
    with client(lambda _: httpx.Response(200, text="<html>")) as made:
        with pytest.raises(BadAnswerError):
            made.info()


def test_an_answer_that_is_too_large_is_given_up() -> None:
    with client(lambda _: httpx.Response(200, content=b" " * 1001), answer_bytes_max=1000) as made:
        with pytest.raises(BadAnswerError, match="more than 1000 bytes"):
            made.info()


def test_nobody_there() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client(handler) as made:
        with pytest.raises(NoAnswerError):
            made.database("db").save({"_id": "a"})


def test_a_full_pool_is_no_fault_of_the_node() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.PoolTimeout("full")

    with client(handler) as made:
        with pytest.raises(TooBusyError):
            made.info()


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:5984", "", []])
def test_a_bad_url_is_refused_at_once(url: Any) -> None:
    with pytest.raises(ValueError, match=r"URL|HOST"):
        Client(url)


def test_a_closed_client_asks_nobody() -> None:
    made = client(answering(200, {}))
    made.close()
    with pytest.raises(ClientError, match="closed"):
        made.info()


def test_a_closed_asynchronous_client_asks_nobody() -> None:
    async def body(made: AsyncClient) -> None:
        await made.close()
        with pytest.raises(ClientError, match="closed"):
            await made.info()

    run(answering(200, {}), body)


@pytest.mark.parametrize("is_sync", [True, False])
def test_measuring_survives_an_answer_that_is_too_large(is_sync: bool) -> None:
    probes: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/_up":
            probes.append(request.url.host)
            return httpx.Response(200, content=b" " * 100)
        return httpx.Response(200, json={})

    options = {"direct": True, "answer_bytes_max": 10, "probe_every_s": 0.01}
    deadline = time.monotonic() + 30

    async def body(made: AsyncClient) -> None:
        await made.info()
        while len(probes) < 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    if not is_sync:
        run(handler, body, **options)
        return
    with client(handler, **options) as made:
        made.info()
        while len(probes) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# What is sent


def test_the_password_may_stand_in_the_url() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    transport = httpx.MockTransport(handler)
    with Client("http://me:a%20b@one:5984/", direct=False, transport=transport) as made:
        made.info()
    assert str(seen[0].url) == "http://one:5984/"
    assert seen[0].headers["authorization"] == "Basic bWU6YSBi"


def test_cookies_of_one_session_do_not_go_with_another() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={}, headers={"set-cookie": "DivanSession-m1=x; Path=/"})

    with client(handler) as made:
        made.info()
        made.info()
    assert all("cookie" not in request.headers for request in seen)


def test_names_and_ids_are_escaped() -> None:
    assert wire.document("a/b c") == "a%2Fb%20c"
    assert wire.document("_design/a/b") == "_design/a%2Fb"
    assert wire.document("_local/x") == "_local/x"
    assert wire.query({"startkey": "a", "limit": 3, "reduce": False, "rev": None}) == (
        "?startkey=%22a%22&limit=3&reduce=false"
    )


def test_a_session_of_its_own_begins_with_nothing_and_goes_on_with_a_token() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["divan-session"])
        return httpx.Response(200, json={}, headers={"divan-session": f"t{len(seen)}"})

    async def body(made: AsyncClient) -> None:
        await made.info()
        other = made.session()
        await other.info()
        assert (made.token, other.token) == ("t1", "t2")
        await made.session("saved").info()
        await made.using(concern="board").info()
        await other.close()  # it leaves the connections open
        await made.info()

    run(handler, body)
    assert seen == ["kA", "kA", "saved", "t1", "t4"]


# Documents


class Store:
    """A database that is a dictionary."""

    def __init__(self) -> None:
        self.docs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(f"{request.method} {request.url.raw_path.decode()}")
        doc_id = request.url.path.rpartition("/")[2]
        if request.method == "PUT":
            sent = orjson.loads(request.content)
            held = self.docs.get(doc_id)
            if (held and held["_rev"]) != sent.get("_rev"):
                return httpx.Response(409, json={"error": "conflict", "reason": "r"})
            rev = f"{int((sent.get('_rev') or '0-').split('-')[0]) + 1}-x"
            self.docs[doc_id] = {**sent, "_rev": rev}
            return httpx.Response(201, json={"ok": True, "id": doc_id, "rev": rev})
        if doc_id == "_bulk_docs":
            rows = [
                {"id": one["_id"], "error": "conflict", "reason": "r"}
                if one["_id"] == "taken"
                else {"id": one["_id"], "ok": True, "rev": "1-b"}
                for one in orjson.loads(request.content)["docs"]
            ]
            return httpx.Response(201, json=rows)
        held = self.docs.get(doc_id)
        if held is None or held.get("_deleted"):
            return httpx.Response(404, json={"error": "not_found", "reason": "missing"})
        return httpx.Response(200, json=held)


def test_open_change_save() -> None:
    store = Store()
    store.docs["a"] = {"_id": "a", "_rev": "1-x", "n": 1}
    with client(store) as made:
        db = made.database("db")
        with db.open("a") as doc:
            doc["n"] += 1
        assert store.docs["a"]["n"] == 2 and doc.rev == "2-x" and not doc.is_dirty
        before = len(store.asked)
        with db.open("a") as doc:
            pass
        assert len(store.asked) == before + 1, "nothing was changed, nothing is sent"
        with pytest.raises(ZeroDivisionError), db.open("a") as doc:
            doc["n"] = 1 / 0
        assert store.docs["a"]["n"] == 2
        with pytest.raises(NotFoundError), db.open("b"):
            pass
        with db.open("b", create=True) as doc:
            doc["new"] = True
        assert store.docs["b"]["new"] and doc.exists


def test_a_document_knows_what_became_of_it() -> None:
    store = Store()

    async def body(made: AsyncClient) -> None:
        db = made.database("db")
        doc = await db.create("a", data={"n": 1})
        assert doc.is_dirty and not doc.exists and doc.rev is None
        assert await doc.save() == "1-x"
        assert doc.exists
        with pytest.raises(ConflictError):
            await db.create("a")
        assert (await db.create("a", exists_ok=True))["n"] == 1
        other = await db["a"]
        other["n"] = 2
        await other.save()
        doc["n"] = 3
        with pytest.raises(ConflictError):
            await doc.fetch()
        with pytest.raises(ConflictError):
            await doc.save()
        await doc.fetch(discard_changes=True)
        assert doc.json == {"_id": "a", "_rev": "2-x", "n": 2}
        await doc.delete()
        assert not doc.exists and store.docs["a"]["_deleted"]
        assert (await db.get("a", default={"n": 0}))["n"] == 0
        made_up = await db.create()
        assert re.fullmatch("[0-9a-f]{32}", made_up.id)

    run(store, body)
    assert not [one for one in store.asked if one.startswith("POST")]


def test_a_change_is_made_again_when_somebody_else_was_faster() -> None:
    store = Store()
    store.docs["a"] = {"_id": "a", "_rev": "1-x", "n": 1}
    calls_made = 0

    def add(doc: api.Document) -> None:
        nonlocal calls_made
        calls_made += 1
        if calls_made < 3:  # somebody else saves meanwhile
            held = store.docs["a"]
            store.docs["a"] = {**held, "_rev": f"{calls_made + 1}-y", "n": held["n"] + 10}
        doc["n"] += 1

    with client(store) as made:
        db = made.database("db")
        assert db.change("a", add)["n"] == 22
        calls_made = -10
        with pytest.raises(ConflictError):
            db.change("a", add, tries_max=2)


def test_each_document_of_many_is_accepted_or_refused_by_itself() -> None:
    with client(Store(), page_rows=2) as made:
        db = made.database("db")
        with db.create_docs(["a", "taken"]) as bulk:
            mine = bulk.create(data={"n": 1})
        assert [doc.id for doc in bulk.ok] == ["a", mine.id]
        assert mine.rev == "1-b" and not mine.is_dirty
        assert list(bulk.error) == ["taken"]
        assert isinstance(bulk.error["taken"], ConflictError)
        docs: list[dict[str, Any]] = [{"_id": "x"}, {"_id": "taken"}, {"n": 3}]
        saved = db.save_all(docs)
    assert [one.rev for one in saved] == ["1-b", None, "1-b"]
    assert docs[2]["_rev"] == "1-b" and "_rev" not in docs[1]


def test_security_is_changed_and_saved() -> None:
    held: dict[str, Any] = {"members": {"names": ["a"]}}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            held.clear()
            held.update(orjson.loads(request.content))
        return httpx.Response(200, json=held)

    with client(handler) as made:
        security = made.database("db").security()
        security.members.append("b")
        security.admin_roles.append("chef")
        security.save()
    assert held["members"]["names"] == ["a", "b"] and held["admins"] == {"roles": ["chef"]}


# Attachments


def test_an_attachment_comes_and_goes_as_bytes_and_as_a_stream() -> None:
    held: dict[str, bytes] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/notes.txt"):
            if request.method == "PUT":
                held["data"] = request.read()
                return httpx.Response(201, json={"ok": True, "rev": "2-x"})
            if not held:
                return httpx.Response(404, json={"error": "not_found", "reason": "r"})
            return httpx.Response(200, content=held["data"], headers={"content-type": "text/plain"})
        return httpx.Response(200, json={"_id": "d", "_rev": "2-x"})

    with client(handler) as made:
        doc = made.database("db").get("d")
        notes = doc.attachment("notes.txt")
        assert not notes.exists()
        notes.save(iter([b"sl", b"ow"]), "text/plain")
        assert notes.exists() and notes.fetch() == b"slow"
        assert b"".join(notes.stream()) == b"slow"
        assert notes.content_type == "text/plain" and doc.rev == "2-x"


# Listings


KEYS = st.sampled_from(["a", "b", "c"])
ROWS = st.lists(st.tuples(KEYS, st.sampled_from("xyz")), max_size=30)


def listing_server(held: list[dict[str, Any]], asked: list[int]) -> Callable[[Send], Answer]:
    """A view that answers ranges as CouchDB does."""

    def respond(effect: Send) -> Answer:
        query = dict(parse_qsl(effect.url.partition("?")[2]))
        asked.append(int(query["limit"]))
        found = held
        if "startkey" in query:
            start = (orjson.loads(query["startkey"]), query.get("startkey_docid", ""))
            found = [row for row in found if (row["key"], row["id"]) >= start]
        return ok({"rows": found[: int(query["limit"])]})

    return respond


@given(ROWS, st.integers(1, 7))
def test_pages_give_every_row_once(pairs: list[tuple[str, str]], page_rows: int) -> None:
    """Even where one document has many rows of one key."""
    held = [
        {"key": key, "id": doc_id, "value": number}
        for number, (key, doc_id) in enumerate(sorted(pairs))
    ]
    world = World(page_rows=page_rows)
    found, place, asked = [], None, list[int]()
    respond = listing_server(held, asked)
    for _ in range(100):
        rows, place = world.run(calls.page(world.line, Listing("/v", {}), place), respond)
        found += rows
        if place is None:
            break
    assert [row["value"] for row in found] == [row["value"] for row in held]


def test_a_row_that_is_removed_between_pages_takes_no_other_with_it() -> None:
    held = [{"key": name, "id": name, "value": 0} for name in "abcdef"]
    world = World(page_rows=1)
    respond = listing_server(held, [])
    rows, place = world.run(calls.page(world.line, Listing("/v", {})), respond)
    assert [row["id"] for row in rows] == ["a", "b"]
    del held[1]
    rows, place = world.run(calls.page(world.line, Listing("/v", {}), place), respond)
    assert [row["id"] for row in rows] == ["c", "d", "e"]
    rows, place = world.run(calls.page(world.line, Listing("/v", {}), place), respond)
    assert [row["id"] for row in rows] == ["f"] and place is None


def test_rows_that_were_reduced_come_in_one_request() -> None:
    world = World(page_rows=1)

    def respond(effect: Send) -> Answer:
        rows = [{"key": key, "value": 1} for key in "abc"]
        return ok({"rows": rows[:2] if "limit" in effect.url else rows})

    rows, place = world.run(calls.page(world.line, Listing("/v", {})), respond)
    assert len(rows) == 3 and place is None


def test_a_view_is_asked_by_its_name_and_in_json() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.raw_path.decode()}")
        rows = [{"key": ["a", 1], "id": "d", "value": 2}, {"key": "b", "error": "not_found"}]
        return httpx.Response(200, json={"rows": rows, "total_rows": 2})

    with client(handler, page_rows=10) as made:
        view = made.database("a/b").view("_design/by", "kind/size", descending=True)
        assert view.get(group=True, startkey=["a"])["total_rows"] == 2
        assert view.post(["x"], reduce=False)["rows"]
        assert list(view.keys(limit=5)) == [["a", 1]] and list(view.values(limit=5)) == [2]
        assert list(view.items(key="a")) == [(["a", 1], 2)]
    path = "/a%2Fb/_design/by/_view/kind%2Fsize?descending=true"
    assert asked == [
        f"GET {path}&group=true&startkey=%5B%22a%22%5D",
        f"POST {path}&reduce=false",
        f"GET {path}&limit=5",
        f"GET {path}&limit=5",
        f"GET {path}&key=%22a%22",
    ]


def test_queries_go_on_at_the_bookmark_until_the_limit() -> None:
    asked: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        question = orjson.loads(request.content)
        asked.append(question)
        start = int(question.get("bookmark", 0))
        docs = [{"_id": str(n)} for n in range(start, min(start + question["limit"], 7))]
        return httpx.Response(200, json={"docs": docs, "bookmark": str(start + len(docs))})

    async def body(made: AsyncClient) -> list[str]:
        db = made.database("db")
        some = [doc.id async for doc in db.find({"a": 1}, limit=4, fields=["_id"])]
        every = [doc.id async for doc in db.find({"a": 1})]
        assert every == [str(n) for n in range(7)]
        return some

    assert run(handler, body, page_rows=3) == ["0", "1", "2", "3"]
    assert [one["limit"] for one in asked] == [3, 1, 3, 3, 3]
    assert asked[0]["fields"] == ["_id"]


def test_documents_by_id_are_found_made_or_missed() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        keys = orjson.loads(request.content)["keys"]
        row = {"id": "a", "key": "a", "value": {}, "doc": {"_id": "a", "_rev": "1-x"}}
        rows = [row if key == "a" else {"key": key, "error": "not_found"} for key in keys]
        return httpx.Response(200, json={"rows": rows})

    with client(handler) as made:
        db = made.database("db")
        assert [doc.exists for doc in db.docs(["a", "b"], create=True)] == [True, False]
        with pytest.raises(NotFoundError):
            list(db.docs(["a", "b"]))
        assert list(db.all_docs.ids(["a", "b"])) == ["a"]
        with pytest.raises(ValueError, match="prefix"):
            list(db.docs(["a"], prefix="a"))


# Changes


def lines_of(count: int) -> bytes:
    rows = [{"seq": f"{n}-s", "id": f"d{n}", "changes": [{"rev": "1-x"}]} for n in range(count)]
    return b"\n".join(orjson.dumps(row) + b"\n" for row in rows)  # with heartbeats in between


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(0, 12))
def test_a_feed_may_be_cut_anywhere(sizes: list[int], count: int) -> None:
    feed = Feed(World().line, "/db", Wish(live=True))
    data, found = lines_of(count), []
    for size in sizes:
        found += feed.take(data[:size])
        data = data[size:]
    found += feed.take(data)
    assert [change.id for change in found] == [f"d{n}" for n in range(count)]
    assert feed.since == (f"{count - 1}-s" if count else "0")


class Breaking(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        raise httpx.ReadError("it died")


def test_a_feed_goes_on_at_another_node_behind_what_it_read() -> None:
    asked: list[tuple[str, str]] = []
    rows = lines_of(5).replace(b"\n\n", b"\n").splitlines(keepends=True)

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/_up":
            return httpx.Response(200, json={})
        since = request.url.params["since"]
        asked.append((request.url.host, since))
        start = 0 if since == "0" else int(since.partition("-")[0]) + 1
        # Two whole changes and half of the third, then the node dies.
        data = b"".join(rows[start : start + 2]) + b'{"seq":'
        return httpx.Response(200, stream=Breaking(data))

    transport = httpx.MockTransport(handler)
    with Client(["http://a", "http://b"], direct=False, transport=transport) as made:
        found = []
        for change in made.database("db").changes(live=True):
            found.append(change.id)
            if len(found) == 5:
                break
    assert found == ["d0", "d1", "d2", "d3", "d4"]
    assert [since for _, since in asked] == ["0", "1-s", "3-s"]
    assert asked[0][0] != asked[1][0]


def test_a_feed_that_never_gives_anything_ends() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Breaking(b"\n"))

    with client(handler, feed_tries_max=3, pause_s_max=0.001) as made:
        with pytest.raises(NoAnswerError, match="broke 4 times"):
            next(made.database("db").changes(live=True))


@pytest.mark.parametrize("line", [b"<html>\n", b"[]\n", b'{"error":"x"}\n'])
def test_a_feed_with_something_else_in_it_is_refused(line: bytes) -> None:
    with pytest.raises(BadAnswerError):
        Feed(World().line, "/db", Wish(live=True)).take(line)


def test_what_there_is_comes_page_by_page_with_its_filter() -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        start = int(request.url.params["since"])
        stop = min(start + int(request.url.params["limit"]), 5)
        rows = [
            {"seq": n + 1, "id": f"d{n}", "changes": [{"rev": "1-x"}], "deleted": n == 2}
            for n in range(start, stop)
        ]
        told = {"results": rows, "last_seq": stop, "pending": 5 - stop}
        return httpx.Response(200, json=told)

    async def body(made: AsyncClient) -> list[Any]:
        db = made.database("db")
        found = db.changes(selector={"a": 1}, include_docs=True, style="all_docs")
        return [change async for change in found]

    found = run(handler, body, page_rows=2)
    assert [change.id for change in found] == [f"d{n}" for n in range(5)]
    assert [change.deleted for change in found] == [False, False, True, False, False]
    assert [one.url.params["since"] for one in asked] == ["0", "2", "4"]
    assert asked[0].method == "POST" and orjson.loads(asked[0].content) == {"selector": {"a": 1}}
    params = asked[0].url.params
    assert (params["filter"], params["style"]) == ("_selector", "all_docs")


# Tokens


TOKENS = st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**40), max_size=5)


@given(TOKENS, TOKENS)
def test_tokens_are_joined_as_nodes_join_them(one: dict[int, int], other: dict[int, int]) -> None:
    slots = {origin: f"m{abs(origin) % 3}" for origin in {**one, **other}}
    here = tokens.joined(sessions.text(one, slots), sessions.text(other, slots))
    there = Token(one, {}).joined(Token(other, {})).vector
    assert sessions.parse(here).vector == there
    assert sessions.parse(here).slots == {origin: slots[origin] for origin in there}


def test_only_answers_that_came_meanwhile_are_joined() -> None:
    """What a node leaves out of the token that it was sent is needed no more."""
    long, short = sessions.text({1: 5, 2: 7}, {}), sessions.text({3: 1}, {})
    session = tokens.Session(long)
    session.note(long, short, is_behind=False)
    assert session.token == short
    session.note(long, sessions.text({1: 6}, {}), is_behind=True)
    assert sessions.parse(session.token).vector == {1: 6, 3: 1} and session.is_behind
    session.note(session.token, None, is_behind=False)
    assert sessions.parse(session.token).vector == {1: 6, 3: 1} and not session.is_behind


def test_a_token_of_a_form_that_is_not_known_is_kept_as_it_is() -> None:
    assert tokens.joined("a!", "b!") == "b!"
    assert sessions.parse(tokens.NOTHING) == Token()


# The whole


def shape(kind: type) -> dict[str, list[str]]:
    """Public method → its parameters."""
    return {
        name: [one.replace("Async", "") for one in inspect.signature(value).parameters]
        for name, value in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


ITERATES = {"akeys": "keys", "avalues": "values", "aitems": "items"}


@pytest.mark.parametrize(
    "name", ["Client", "Database", "Document", "Attachment", "Security", "Bulk", "View"]
)
def test_both_clients_have_the_same_calls(name: str) -> None:
    own, other = shape(getattr(api, name)), shape(getattr(api, f"Async{name}"))
    renamed = {ITERATES.get(key, key): value for key, value in other.items()}
    assert own == renamed


def test_the_client_imports_no_server() -> None:
    code = "import divandb.client, sys; print(*(m for m in sys.modules if m[:7] == 'divandb'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    found = {name for name in done.stdout.split() if not name.startswith("divandb.client")}
    assert found == {"divandb", "divandb.clock", "divandb.closest"}
    heavy = "import divandb.client, sys; print([m for m in ('apsw', 'uvicorn', 'starlette', "
    heavy += "'confluent_kafka') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_option_can_be_given_by_name() -> None:
    with client(answering(200, {}), zone="eu", connections_max=3) as made:
        options = made._line.sender.options
    assert (options.zone, options.connections_max) == ("eu", 3)
    assert options.read_s_max == Options().read_s_max
    with pytest.raises(TypeError):
        client(answering(200, {}), colour="red")
