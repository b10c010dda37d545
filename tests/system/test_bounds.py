"""Everything is bounded: what is too much is refused, says so, and changes nothing."""

import base64
import contextlib
import gzip
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Running, running
from tests.system.wire import Wire, wired

BODY_BYTES_MAX = 200_000
DOCUMENT_BYTES_MAX = 50_000
ATTACHMENT_BYTES_MAX = 100_000
INLINE_BYTES_MAX = 10_000
BULK_DOCS_MAX = 20
ATTACHMENTS_MAX = 5
HEADER_BYTES_MAX = 8000
FEEDS_MAX = 3
UUIDS_MAX = 10
KEEP_ALIVE_S = 1
LONG_S = 15.0
"""More than enough for what happens after ``KEEP_ALIVE_S`` on a busy machine."""
SMALL = {
    "BODY_BYTES_MAX": BODY_BYTES_MAX,
    "DOCUMENT_BYTES_MAX": DOCUMENT_BYTES_MAX,
    "ATTACHMENT_BYTES_MAX": ATTACHMENT_BYTES_MAX,
    "INLINE_ATTACHMENT_BYTES_MAX": INLINE_BYTES_MAX,
    "BULK_DOCS_MAX": BULK_DOCS_MAX,
    "ATTACHMENTS_MAX": ATTACHMENTS_MAX,
    "HEADER_BYTES_MAX": HEADER_BYTES_MAX,
    "FEEDS_MAX": FEEDS_MAX,
    "UUIDS_MAX": UUIDS_MAX,
}
JSON = {"content-type": "application/json"}
GZIP = {**JSON, "content-encoding": "gzip"}
RELATED = {"content-type": 'multipart/related; boundary="b"'}


@contextlib.contextmanager
def bounded(folder: Path, limits: dict[str, int]) -> Iterator[Running]:
    """A node with these limits and a database ``db``."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in limits.items():
                environment.setenv(f"DIVANDB_{name}", str(value))
            node = stack.enter_context(running(folder))
        assert node.request("PUT", "/db")[0] == 201
        yield node
        log = node.log.read_text()
        assert "request failed" not in log and "ASGI" not in log


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node with small limits."""
    with bounded(tmp_path_factory.mktemp("small"), SMALL) as node:
        yield node


@pytest.fixture
def wire(small: Running) -> Iterator[Wire]:
    with wired(small) as made:
        yield made


@pytest.fixture
def unchanged(wire: Wire) -> Iterator[None]:
    """Nothing that the test sends may change anything."""
    before = _state(wire)
    yield
    assert _state(wire) == before


def _state(wire: Wire) -> tuple[Any, ...]:
    info = wire.ask("GET", "/db").json
    return (
        info["update_seq"],
        info["doc_count"],
        info["sizes"],
        wire.ask("GET", "/_all_dbs").json,
        wire.ask("GET", "/db/_security").json,
        wire.ask("GET", "/db/_local_docs").json,
        wire.ask("GET", "/_node/_local/_config").json,
    )


def _part(head: bytes, body: bytes) -> bytes:
    return b"\r\n--b\r\n" + head + b"\r\n\r\n" + body


def _related(doc: dict[str, Any], *bodies: bytes) -> bytes:
    parts = [_part(b"content-type: application/json", json.dumps(doc).encode())]
    parts += [_part(b"x: y", body) for body in bodies]
    return b"".join(parts) + b"\r\n--b--"


def _follows(**lengths: int) -> dict[str, Any]:
    atts = {
        name: {"follows": True, "length": length, "content_type": "image/x"}
        for name, length in lengths.items()
    }
    return {"_attachments": atts}


# --- bodies

LARGE = b'{"a":"' + b"x" * BODY_BYTES_MAX + b'"}'
BOMB = gzip.compress(b'{"a":"' + b"x" * 50_000_000 + b'"}')


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/db/large"),
        ("POST", "/db"),
        ("POST", "/db/_bulk_docs"),
        ("POST", "/db/_bulk_get"),
        ("POST", "/db/_all_docs"),
        ("POST", "/db/_all_docs/queries"),
        ("POST", "/db/_changes"),
        ("POST", "/db/_revs_diff"),
        ("POST", "/db/_missing_revs"),
        ("POST", "/db/_purge"),
        ("PUT", "/db/_security"),
        ("PUT", "/db/_revs_limit"),
        ("PUT", "/db/_local/large"),
        ("PUT", "/db/_design/large"),
        ("POST", "/db/_compact"),
        ("POST", "/db/_ensure_full_commit"),
        ("POST", "/_session"),
        ("POST", "/_dbs_info"),
        ("PUT", "/_node/_local/_config/x/y"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_body_that_is_too_large_is_413(wire: Wire, method: str, path: str) -> None:
    """Announced, in chunks, and a gzip bomb; none of them is read to its end into memory."""
    too_large = (413, "too_large", "the request entity is too large")
    assert wire.ask(method, path, LARGE, JSON).error == too_large
    assert wire.ask(method, path, BOMB, GZIP).error == too_large
    head = f"{method} {path} HTTP/1.1\r\ntransfer-encoding: chunked\r\n"
    start = wire.request(method, path, None, JSON).partition(b"\r\n")[2]
    wire.close()
    wire.send(head.encode() + start + b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE))
    assert wire.answer(method).error == too_large


@pytest.mark.usefixtures("unchanged")
def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(wire: Wire) -> None:
    for path in ("/db/large", "/db/large/att"):
        wire.send(wire.request("PUT", path, None, {**JSON, "content-length": str(10**15)}))
        assert wire.answer().status == 413
        wire.close()


@pytest.mark.usefixtures("unchanged")
def test_a_document_that_is_too_large_is_413(wire: Wire) -> None:
    doc = {"a": "x" * DOCUMENT_BYTES_MAX}
    too_large = (413, "document_too_large", "large")
    assert wire.ask("PUT", "/db/large", doc).error == too_large
    assert wire.ask("PUT", "/db/large", doc, {"x-other": "way"}).error == too_large
    assert wire.ask("PUT", "/db/large?new_edits=false", {**doc, "_rev": "1-a"}).error == too_large
    assert wire.ask("POST", "/db", {**doc, "_id": "large"}).error == too_large
    rows = wire.ask("POST", "/db/_bulk_docs", {"docs": [{**doc, "_id": "large"}]}).json
    assert rows == [{"id": "large", "error": "document_too_large", "reason": "large"}]
    assert wire.ask("PUT", "/db/_local/large", doc).status == 413


def test_a_document_of_just_the_size_is_taken(wire: Wire) -> None:
    size = DOCUMENT_BYTES_MAX - len('{"a":""}')
    assert wire.ask("PUT", "/db/fits", {"a": "x" * size}).status == 201
    assert wire.ask("PUT", "/db/fits2", {"a": "x" * (size + 1)}).status == 413


@pytest.mark.usefixtures("unchanged")
def test_an_attachment_that_is_too_large_is_413(wire: Wire) -> None:
    """By itself, in chunks, gzipped, in multipart and inside JSON; what had come is dropped."""
    data = os.urandom(ATTACHMENT_BYTES_MAX + 1)
    plain = {"content-type": "image/x"}
    too_large = (413, "attachment_too_large", "att")
    assert wire.ask("PUT", "/db/large/att", data, plain).error == too_large
    packed = {**plain, "content-encoding": "gzip"}
    assert wire.ask("PUT", "/db/large/att", gzip.compress(data), packed).error == too_large
    assert wire.ask("PUT", "/db/large/att", BOMB, packed).error == too_large
    chunks = b"".join(
        b"3e8\r\n%b\r\n" % data[start : start + 1000] for start in range(0, len(data) - 1000, 1000)
    )
    head = wire.request("PUT", "/db/large/att", None, {**plain, "transfer-encoding": "chunked"})
    wire.send(head + chunks + b"3e8\r\n" + data[:1000] + b"\r\n0\r\n\r\n")
    assert wire.answer().error == too_large
    doc = _follows(att=len(data))
    assert wire.ask("PUT", "/db/large", _related(doc, data), RELATED).error == too_large
    inside = {"_attachments": {"att": {"data": base64.b64encode(data).decode()}}}
    assert wire.ask("PUT", "/db/large", inside).status == 413


@pytest.mark.usefixtures("unchanged")
def test_too_many_attachments_are_413(wire: Wire) -> None:
    many = {f"a{number}": {"data": ""} for number in range(ATTACHMENTS_MAX + 1)}
    assert wire.ask("PUT", "/db/many", {"_attachments": many}).status == 413
    names = dict.fromkeys(many, 0)
    answer = wire.ask("PUT", "/db/many", _related(_follows(**names), *[b""] * len(many)), RELATED)
    assert answer.status == 413


def test_as_many_attachments_as_may_be_are_taken(wire: Wire) -> None:
    some = {f"a{number}": {"data": ""} for number in range(ATTACHMENTS_MAX)}
    assert wire.ask("PUT", "/db/some", {"_attachments": some}).status == 201


@pytest.mark.usefixtures("unchanged")
def test_too_much_at_once_is_refused(wire: Wire) -> None:
    more = BULK_DOCS_MAX + 1
    docs: list[dict[str, Any]] = [{"_id": f"d{number}"} for number in range(more)]
    revs = {f"d{number}": ["1-a"] for number in range(more)}
    ids = [doc["_id"] for doc in docs]
    for method, path, body in [
        ("POST", "/db/_bulk_docs", {"docs": docs}),
        ("POST", "/db/_bulk_docs", {"docs": docs, "new_edits": False}),
        ("POST", "/db/_bulk_get", {"docs": [{"id": doc_id} for doc_id in ids]}),
        ("POST", "/db/_all_docs", {"keys": ids}),
        ("POST", "/db/_all_docs/queries", {"queries": [{"keys": ids}]}),
        ("POST", "/db/_local_docs", {"keys": ids}),
        ("POST", "/db/_revs_diff", revs),
        ("POST", "/db/_missing_revs", revs),
        ("POST", "/db/_purge", revs),
        ("POST", "/_dbs_info", {"keys": ids}),
        ("GET", f"/_uuids?count={UUIDS_MAX + 1}", None),
    ]:
        answer = wire.ask(method, path, body)
        assert answer.status in (400, 413), (path, answer)
        assert answer.json["reason"], path


def test_as_much_at_once_as_may_be_is_taken(wire: Wire) -> None:
    docs = [{"_id": f"b{number}"} for number in range(BULK_DOCS_MAX)]
    assert wire.ask("POST", "/db/_bulk_docs", {"docs": docs}).status == 201
    keys = [doc["_id"] for doc in docs]
    assert len(wire.ask("POST", "/db/_all_docs", {"keys": keys}).json["rows"]) == BULK_DOCS_MAX


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("depth", [300, 1000, 1100, 60_000])
def test_what_is_nested_too_deeply_is_400(wire: Wire, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    doc = b'{"_id":"deep","a":' + nested + b"}"
    for method, path, body in [
        ("PUT", "/db/deep", doc),
        ("POST", "/db", doc),
        ("POST", "/db/_bulk_docs", b'{"docs":[' + doc + b"]}"),
        ("PUT", "/db/_local/deep", doc),
        ("PUT", "/db/_security", b'{"a":' + nested + b"}"),
        ("POST", "/db/_all_docs", b'{"keys":[1,' + nested + b"]}"),
        ("POST", "/db/_all_docs", b'{"limit":' + nested + b"}"),
        ("POST", "/db/_all_docs/queries", b'{"queries":[{"keys":[1,' + nested + b"]}]}"),
        ("POST", "/_dbs_info", b'{"keys":[' + nested + b"]}"),
    ]:
        answer = wire.ask(method, path, body, JSON)
        if path == "/db/_bulk_docs" and answer.status == 201:
            assert [row["error"] for row in answer.json] == ["bad_request"], path
        else:
            assert answer.status == 400, (path, answer)


def test_what_is_nested_as_deeply_as_may_be_comes_back(wire: Wire) -> None:
    nested: Any = []
    for _ in range(200):
        nested = [nested]
    assert wire.ask("PUT", "/db/nested", {"a": nested}).status == 201
    assert wire.ask("GET", "/db/nested").json["a"] == nested


# --- heads, connections, queues, feeds


@pytest.mark.usefixtures("unchanged")
def test_a_head_that_is_too_large_is_431(wire: Wire) -> None:
    for request in [
        wire.request("GET", "/db", None, {"x": "y" * HEADER_BYTES_MAX}),
        wire.request("GET", "/db", None, {f"x{number}": "y" * 80 for number in range(100)}),
        wire.request("GET", "/db/" + "y" * HEADER_BYTES_MAX),
        wire.request("PUT", "/db/x", {}, {"x": "y" * HEADER_BYTES_MAX}),
    ]:
        wire.send(request)
        answer = wire.answer()
        assert answer.error == (431, "too_large", "The head of the request is too large.")
        assert answer.headers["connection"] == "close"
        assert not wire.is_open


def test_a_head_of_nearly_that_size_is_read(wire: Wire) -> None:
    assert wire.ask("GET", "/db", None, {"x": "y" * (HEADER_BYTES_MAX - 500)}).status == 200


def test_a_feed_too_many_is_503(small: Running, wire: Wire) -> None:
    with contextlib.ExitStack() as open_feeds:
        for _ in range(FEEDS_MAX):
            feed = open_feeds.enter_context(wired(small))
            feed.send(feed.request("GET", "/db/_changes?feed=continuous&since=now&heartbeat=1000"))
            assert feed.begin().status == 200
        for kind in ("longpoll", "continuous", "eventsource"):
            answer = wire.ask("GET", f"/db/_changes?feed={kind}&since=now&timeout=10000")
            assert answer.error == (503, "service_unavailable", "Too many feeds are open.")
            assert answer.headers["retry-after"] == "1"
        assert wire.ask("GET", "/db/_changes").status == 200
    # A feed whose client has gone gives its place back, at the latest with its next heartbeat.
    small.await_true(
        lambda: wire.ask("GET", "/db/_changes?feed=longpoll&since=now&timeout=1").status == 200,
        LONG_S,
    )


def test_a_feed_with_a_request_behind_it_ends_with_its_client(small: Running, wire: Wire) -> None:
    """When the client leaves, it is the feed that must know, not the request heard of last."""
    for _ in range(FEEDS_MAX):
        with wired(small) as feed:
            feed.send(feed.request("GET", "/db/_changes?feed=continuous&since=now&heartbeat=100"))
            assert feed.begin().status == 200
            feed.send(feed.request("GET", "/"))
            time.sleep(0.1)
    path = "/db/_changes?feed=longpoll&since=now&timeout=1"
    small.await_true(lambda: wire.ask("GET", path).status == 200, LONG_S)
    log = small.log.read_text()
    assert "ASGI" not in log, log


def test_a_write_too_many_is_503(tmp_path: Path) -> None:
    """With one place in the queue, and the writer held by large writes, others are turned away;
    those that were taken are there, and afterwards all is well."""
    with bounded(tmp_path, {"WRITE_QUEUE_JOBS_MAX": 1}) as node:
        answers: list[tuple[str, int, str | None]] = []
        deadline = time.monotonic() + 60

        def is_enough() -> bool:
            return {201, 503} <= {each[1] for each in answers} or time.monotonic() > deadline

        def hold(number: int) -> None:
            docs = [{"n": number} for _ in range(3000)]
            with wired(node) as wire:
                while not is_enough():
                    wire.ask("POST", "/db/_bulk_docs", {"docs": docs})

        def write(number: int) -> None:
            with wired(node) as wire:
                for count in itertools.count():
                    headers = {} if count % 2 else {"x-other": "way"}
                    answer = wire.ask("PUT", f"/db/{number}-{count}", {}, headers)
                    answers.append(
                        (f"{number}-{count}", answer.status, answer.headers["retry-after"])
                    )
                    if is_enough():
                        return

        threads = [threading.Thread(target=hold, args=(number,)) for number in range(2)]
        threads += [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {status for _, status, _ in answers} == {201, 503}
        assert {retry for _, status, retry in answers if status == 503} == {"1"}
        rows = node.request("GET", "/db/_all_docs")[1]["rows"]
        written = {doc_id for doc_id, status, _ in answers if status == 201}
        assert {row["id"] for row in rows if "-" in row["id"]} == written
        assert node.request("PUT", "/db/after", {})[0] == 201


def test_a_write_too_large_for_the_queue_is_503(tmp_path: Path) -> None:
    with bounded(tmp_path, {"WRITE_QUEUE_BYTES_MAX": 10_000}) as node:
        assert node.request("PUT", "/db/small", {"a": "x" * 1000})[0] == 201
        status, answer = node.request("PUT", "/db/large", {"a": "x" * 10_000})
        assert (status, answer["error"]) == (503, "service_unavailable")
        assert node.request("PUT", "/db/small2", {"a": "x" * 1000})[0] == 201


def test_a_connection_too_many_is_503(tmp_path: Path) -> None:
    """It hears why and is closed; those that were there go on; when one has gone there is room."""
    most = 5
    with bounded(tmp_path, {"CONNECTIONS_MAX": most}) as node:
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(wired(node)) for _ in range(most)]
            for wire in wires:
                assert wire.ask("GET", "/db").status == 200
            for method in ("GET", "PUT"):
                with wired(node) as another:
                    another.send(another.request(method, "/db/x", {}))
                    answer = another.answer()
                    assert answer.error[:2] == (503, "service_unavailable")
                    assert answer.headers["retry-after"] == "1"
                    assert not another.is_open
            with wired(node) as silent:
                silent.send(b"")
                assert silent.is_closed_within(LONG_S)
            for wire in wires:
                assert wire.ask("GET", "/db").status == 200
        node.await_true(lambda: node.request("GET", "/db")[0] == 200, LONG_S)


# --- slow clients


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A node that waits a second for a client."""
    with bounded(tmp_path_factory.mktemp("impatient"), {"KEEP_ALIVE_S": KEEP_ALIVE_S}) as node:
        yield node


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nx",
        b"PUT /db/x HTTP/1.1\r\nauthorization: @login@\r\ncontent-length: 2\r\n\r\n",
        b"PUT /db/x HTTP/1.1\r\nauthorization: @login@\r\ncontent-length: 2\r\n\r\n{",
        b"PUT /db/x HTTP/1.1\r\nauthorization: @login@\r\ncontent-length: 2\r\nx: y\r\n\r\n{",
        b"PUT /db/x/att HTTP/1.1\r\nauthorization: @login@\r\ncontent-length: 2\r\n\r\n{",
        b"POST /db HTTP/1.1\r\nauthorization: @login@\r\ntransfer-encoding: chunked\r\n\r\n2\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_a_silent_client_is_not_waited_for(impatient: Running, begun: bytes) -> None:
    with wired(impatient) as wire:
        login = dict([wire._default[0]])["authorization"]
        wire.send(begun.replace(b"@login@", login.encode()))
        started = time.monotonic()
        assert wire.is_closed_within(LONG_S)
        assert time.monotonic() - started > KEEP_ALIVE_S * 0.8
    assert impatient.request("GET", "/db")[1]["doc_count"] == 0


def test_a_head_that_comes_drop_by_drop_is_not_waited_for(impatient: Running) -> None:
    with wired(impatient) as wire:
        wire.send(b"GET / HTTP/1.1\r\n")
        deadline = time.monotonic() + LONG_S
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                wire.send(b"x: y\r\n")
                time.sleep(0.1)


def test_a_slow_body_that_keeps_coming_is_taken(impatient: Running) -> None:
    with wired(impatient) as wire:
        head = wire.request("PUT", "/db2", None)
        assert wire.ask("PUT", "/db2").status == 201
        head = wire.request("PUT", "/db2/x/att", None, {"content-length": "20"})
        wire.send(head)
        for _ in range(20):
            time.sleep(KEEP_ALIVE_S / 10)
            wire.send(b"x")
        assert wire.answer().status == 201


def test_a_client_that_waits_for_its_answer_is_not_silent(impatient: Running) -> None:
    with wired(impatient) as wire:
        wait_ms = KEEP_ALIVE_S * 3000
        answer = wire.ask("GET", f"/db/_changes?feed=longpoll&since=now&timeout={wait_ms}")
        assert (answer.status, answer.json["results"]) == (200, [])


def test_a_client_that_takes_nothing_of_its_answer_is_not_waited_for(impatient: Running) -> None:
    """An attachment larger than what the system holds for a connection: the node sees it stuck."""
    with wired(impatient) as wire:
        assert wire.ask("PUT", "/db3").status == 201
        size = 30_000_000
        answer = wire.ask("PUT", "/db3/x/att", b"x" * size, {"content-type": "image/x"})
        assert answer.status == 201
        wire.send(wire.request("GET", "/db3/x/att"))
        time.sleep(KEEP_ALIVE_S * 5)
        assert wire.is_closed_within(LONG_S)
        wire.close()
        wire.send(wire.request("GET", "/db3/x/att"))
        response = wire.begin()
        received = 0
        while piece := response.read(2_000_000):  # slow, but it takes what there is
            received += len(piece)
            time.sleep(KEEP_ALIVE_S / 4)
        assert received == size


def test_a_hundred_silent_clients_hinder_nobody(impatient: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", impatient.port)))
            silent.sendall(b"POST /_session HTTP/1.1\r\ncontent-length: 100\r\n\r\nname=")
        started = time.monotonic()
        assert impatient.request("GET", "/db")[0] == 200
        assert time.monotonic() - started < KEEP_ALIVE_S


# --- nonsense changes nothing


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "name",
    [
        "Db",
        "1db",
        "_db",
        "d%C3%A9",
        "d%20b",
        "d.b",
        "d%00b",
        "d" * 239,
        "d%22",
        "%2Fdb",
        "-db",
        "_local",
    ],
)
def test_an_illegal_database_name_is_400(wire: Wire, name: str) -> None:
    status, error, reason = wire.ask("PUT", f"/{name}").error
    too_long = len(name) > 238
    assert (status, error) == (
        400,
        "database_name_too_long" if too_long else "illegal_database_name",
    )
    assert too_long or reason.startswith("Name: '")


def test_the_longest_and_the_oddest_legal_names_are_taken(wire: Wire) -> None:
    for name in ("d" * 238, "a0_$()+-%2F", "a%2Fb"):
        assert wire.ask("PUT", f"/{name}").status == 201
        assert wire.ask("GET", f"/{name}").status == 200
        assert wire.ask("DELETE", f"/{name}").status == 200


def _bodies() -> Iterator[tuple[str, bytes]]:
    yield from {
        "empty": b"",
        "half": b'{"a":',
        "two": b"{}{}",
        "list": b"[]",
        "text": b'"a"',
        "number": b"7",
        "null": b"null",
        "nan": b'{"a":NaN}',
        "infinite": b'{"a":Infinity}',
        "not UTF-8": b'{"a":"\xff"}',
        "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
        "lone surrogate": b'{"a":"\\ud800"}',
        "single quotes": b"{'a':1}",
        "comma": b'{"a":1,}',
        "control character": b'{"a":"\x01"}',
        "zero": b"\x00",
        "latin-1": '{"a":"é"}'.encode("latin-1"),
        "utf-16": '{"a":1}'.encode("utf-16"),
        "comment": b"{/**/}",
    }.items()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("what", "body"), list(_bodies()))
def test_bad_json_is_400(wire: Wire, what: str, body: bytes) -> None:
    for method, path in [
        ("PUT", "/db/bad"),
        ("POST", "/db"),
        ("PUT", "/db/_local/bad"),
        ("PUT", "/db/_design/bad"),
        ("POST", "/db/_bulk_docs"),
        ("POST", "/db/_bulk_get"),
        ("POST", "/db/_all_docs/queries"),
        ("POST", "/db/_revs_diff"),
        ("POST", "/db/_purge"),
        ("PUT", "/db/_security"),
        ("PUT", "/db/_revs_limit"),
        ("PUT", "/_node/_local/_config/a/b"),
    ]:
        if (what, path) in {
            ("number", "/db/_revs_limit"),
            ("text", "/_node/_local/_config/a/b"),
        }:
            continue
        answer = wire.ask(method, path, body, JSON)
        assert answer.status == 400, (path, answer)
        assert answer.json["error"] and answer.json["reason"]


BAD_DOCS: list[tuple[Any, str]] = [
    ({"_rev": "x"}, "bad_request"),
    ({"_rev": "-1"}, "bad_request"),
    ({"_rev": "a-a"}, "bad_request"),
    ({"_rev": 1}, "bad_request"),
    ({"_rev": "99999999999999999999999-a"}, "bad_request"),
    ({"_rev": "1-" + "a" * 5000}, "bad_request"),
    ({"_rev": {}}, "bad_request"),
    ({"_rev": {"a": []}}, "bad_request"),
    ({"_rev": [1]}, "bad_request"),
    ({"_id": 7}, "illegal_docid"),
    ({"_id": ""}, "illegal_docid"),
    ({"_id": "_x"}, "illegal_docid"),
    ({"_id": "_design/"}, "illegal_docid"),
    ({"_id": "_local/"}, "illegal_docid"),
    ({"_id": "x" * 7169}, "illegal_docid"),
    ({"_id": "é" * 3585}, "illegal_docid"),
    ({"_foo": 1}, "doc_validation"),
    ({"_deleted": "yes"}, "doc_validation"),
    ({"_attachments": 1}, "doc_validation"),
    ({"_attachments": {"a": 1}}, "bad_request"),
    ({"_attachments": {"_a": {"data": ""}}}, "bad_request"),
    ({"_attachments": {"": {"data": ""}}}, "bad_request"),
    ({"_attachments": {"a": {}}}, "bad_request"),
    ({"_attachments": {"a": {"data": 1}}}, "bad_request"),
    ({"_attachments": {"a": {"data": "!"}}}, "bad_request"),
    ({"_attachments": {"a": {"data": "YQ"}}}, "bad_request"),
    ({"_attachments": {"a": {"data": "", "content_type": 1}}}, "bad_request"),
    ({"_attachments": {"a": {"data": "", "content_type": "a\nb"}}}, "bad_request"),
    ({"_attachments": {"a": {"data": "YQ==", "encoding": "gzip"}}}, "bad_request"),
    ({"_attachments": {"a": {"stub": True}}}, "missing_stub"),
    ({"_attachments": {"a": {"follows": True}}}, "bad_request"),
    ({"_revisions": 1}, "doc_validation"),
    ({"_revisions": {"start": "a", "ids": []}}, "doc_validation"),
    ({"_revisions": {"start": 1, "ids": "a"}}, "doc_validation"),
    ({"_revisions": {"start": 1, "ids": [1]}}, "doc_validation"),
    ({"_revisions": {"start": -1, "ids": ["a"]}}, "doc_validation"),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("doc", "error"), BAD_DOCS)
def test_a_bad_document_is_refused(wire: Wire, doc: dict[str, Any], error: str) -> None:
    status = 412 if error == "missing_stub" else 400
    if "_id" not in doc:
        assert wire.ask("PUT", "/db/bad", doc).error[:2] == (status, error)
        assert wire.ask("PUT", "/db/bad", doc, {"x-other": "way"}).error[:2] == (status, error)
    assert wire.ask("POST", "/db", doc).error[:2] == (status, error)
    answer = wire.ask("POST", "/db/_bulk_docs", {"docs": [doc]})
    if answer.status == 201:
        assert [row["error"] for row in answer.json] == [error]
    else:
        assert answer.error[:2] == (status, error)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("rev", ["1-", "1-a\r\nx: y", '1-"', "1-é", "1-\x7f", "1-a b", "1-𝄞"])
def test_a_revision_that_a_header_could_not_carry_is_refused(wire: Wire, rev: str) -> None:
    """Or else it would split the answers to come: revisions stand in their ETag."""
    doc: dict[str, Any] = {"_id": "bad", "_rev": rev}
    assert wire.ask("PUT", "/db/bad?new_edits=false", doc).status == 400
    rows = wire.ask("POST", "/db/_bulk_docs", {"docs": [doc], "new_edits": False}).json
    assert [row["error"] for row in rows] == ["bad_request"]  # PouchDB counts on it for "1-"
    if rev != "1-":
        doc = {"_id": "bad", "_revisions": {"start": 2, "ids": ["a", rev[2:]]}}
        assert wire.ask("PUT", "/db/bad?new_edits=false", doc).status == 400


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("headers", [{}, {"x-other": "way"}])
def test_a_bad_id_in_the_path_is_400(wire: Wire, headers: dict[str, str]) -> None:
    for doc_id in ("_x", "x" * 7169, "%ff", "%ed%a0%80", "_design", "_local"):
        answer = wire.ask("PUT", f"/db/{doc_id}", {}, headers)
        assert answer.status in (400, 405), (doc_id[:20], answer)
        assert wire.ask("GET", f"/db/{doc_id}", None, headers).status in (400, 404), doc_id[:20]


MULTIPART: dict[str, bytes] = {
    "empty": b"",
    "no boundary in it": b"{}",
    "not closed": _related({})[:-4],
    "no document": b"--b--",
    "no JSON part": b"--b\r\ncontent-type: text/plain\r\n\r\n{}\r\n--b--",
    "bad JSON": b"--b\r\ncontent-type: application/json\r\n\r\n{\r\n--b--",
    "bad boundary line": b"--bx\r\ncontent-type: application/json\r\n\r\n{}\r\n--b--",
    "bad header": b"--b\r\ncontent type\r\n\r\n{}\r\n--b--",
    "header not UTF-8": b"--b\r\ncontent-type: \xff\r\n\r\n{}\r\n--b--",
    "part too many": _related({}, b"x"),
    "part missing": _related(_follows(a=1)),
    "part too long": _related(_follows(a=1), b"xx"),
    "part too short": _related(_follows(a=2), b"x"),
    "second part missing": _related(_follows(a=1, b=1), b"x"),
    "large part cut off": _related(_follows(a=50_000), b"x" * 50_000)[:-6],
    "large part too short": _related(_follows(a=50_001), b"x" * 50_000),
    "large part and a missing one": _related(_follows(a=50_000, b=1), b"x" * 50_000),
    "stub of nothing": _related({"_attachments": {"a": {"stub": True}}}),
    "not gzip": _related(
        {"_attachments": {"a": {"follows": True, "encoding": "gzip", "length": 1}}}, b"x"
    ),
    "large headers": _part(b"content-type: application/json\r\nx: " + b"y" * 20_000, b"{}"),
    "bad member": _related({"_foo": 1}),
    "bad rev": _related({"_rev": "x"}),
    "bad length": _related({"_attachments": {"a": {"follows": True, "length": -1}}}, b"x"),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("what", sorted(MULTIPART))
def test_bad_multipart_is_4xx(wire: Wire, what: str) -> None:
    answer = wire.ask("PUT", "/db/bad", MULTIPART[what], RELATED)
    assert 400 <= answer.status < 500, answer
    assert answer.json["error"] and answer.json["reason"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "boundary", ["", "; boundary=", '; boundary="é"', "; boundary=" + "b" * 300]
)
def test_a_bad_boundary_is_400(wire: Wire, boundary: str) -> None:
    headers = {"content-type": "multipart/related" + boundary}
    assert wire.ask("PUT", "/db/bad", b"--b--", headers).status == 400


@pytest.mark.usefixtures("unchanged")
def test_bad_gzip_is_400_and_other_encodings_are_415(wire: Wire) -> None:
    packed = gzip.compress(b'{"a":1}')
    for body in (b"{}", packed[:-4], packed[:8], b"", packed[:-1] + b"\x00\x00"):
        for path in ("/db/bad", "/db/bad/att"):
            assert wire.ask("PUT", path, body, GZIP).status == 400, (path, body)
    for path in ("/db/bad", "/db/bad/att"):
        answer = wire.ask("PUT", path, b"{}", {**JSON, "content-encoding": "br"})
        assert answer.error[:2] == (415, "bad_content_type")


def test_good_gzip_is_taken(wire: Wire) -> None:
    assert wire.ask("PUT", "/db/packed", gzip.compress(b'{"a":1}'), GZIP).status == 201
    assert wire.ask("GET", "/db/packed").json["a"] == 1


@pytest.mark.usefixtures("unchanged")
def test_bad_revisions_in_queries_are_400(wire: Wire) -> None:
    for method, path in [
        ("GET", "/db/fits?rev=x"),
        ("GET", "/db/fits?open_revs=x"),
        ("GET", "/db/fits?open_revs=[1]"),
        ("GET", '/db/fits?open_revs=["x"]'),
        ("GET", "/db/fits?open_revs={}"),
        ("GET", "/db/fits?atts_since=x"),
        ("DELETE", "/db/fits?rev=x"),
        ("GET", "/db/_changes?since=x"),
        ("GET", "/db/_changes?since=1-%00"),
        ("GET", "/db/_changes?since=" + "9" * 5000),
        ("GET", "/db/_changes?limit=x"),
        ("GET", "/db/_changes?feed=x"),
        ("GET", "/db/_all_docs?limit=-1"),
        ("GET", "/db/_all_docs?key=x"),
        ("GET", "/db/_all_docs?descending=x"),
    ]:
        answer = wire.ask(method, path)
        assert answer.status == 400, (path, answer)
        assert answer.json["reason"]


@pytest.mark.usefixtures("unchanged")
def test_a_request_that_breaks_off_changes_nothing(small: Running, wire: Wire) -> None:
    """The client goes away in the middle of its body, with and without having announced its end."""
    body = json.dumps({"docs": [{"_id": "half"}]}).encode()
    for cut in (0, 1, len(body) // 2, len(body) - 1):
        for path in ("/db/_bulk_docs", "/db"):
            with wired(small) as other:
                other.send(other.request("POST", path, body, JSON)[: cut - len(body)])
        for path in ("/db/half", "/db/half/att"):
            with wired(small) as other:
                other.send(other.request("PUT", path, body, JSON)[: cut - len(body)])
            with wired(small) as other:
                chunked = {**JSON, "transfer-encoding": "chunked"}
                other.send(other.request("PUT", path, None, chunked))
                other.send(b"%x\r\n%b\r\n" % (len(body), body))
    assert wire.ask("GET", "/_up").status == 200


# --- the node as a whole


def test_memory_stays_bounded_while_a_large_attachment_passes(tmp_path: Path) -> None:
    """Up and down again: the peak of the node's memory moves by less than a third of it. (It would
    be less still, but the file's index of its log is mapped into memory and counted.)"""
    size = 120_000_000
    with bounded(tmp_path, {"SQLITE_CACHE_BYTES_MAX": 2**20}) as node, wired(node) as wire:
        answer = wire.ask("PUT", "/db/x/small", b"x" * 2_000_000, {"content-type": "image/x"})
        assert answer.status == 201
        rev = wire.ask("GET", "/db/x").json["_rev"]
        before = _peak_bytes(node.node_pid)
        head = wire.request(
            "PUT", f"/db/x/att?rev={rev}", None,
            {"content-type": "image/x", "content-length": str(size)},
        )  # fmt: skip
        wire.send(head)
        piece = os.urandom(1_000_000)
        for _ in range(size // len(piece)):
            wire.send(piece)
        assert wire.answer().status == 201
        wire.send(wire.request("GET", "/db/x/att"))
        response, received = wire.begin(), 0
        while data := response.read(1_000_000):
            received += len(data)
        assert received == size
        assert _peak_bytes(node.node_pid) - before < size // 3


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(each for each in status.splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("stop", [signal.SIGTERM])
def test_a_stop_ends_feeds_and_open_requests(
    tmp_path: Path, stop: signal.Signals, start: Callable[[], float] = time.monotonic
) -> None:
    """A node does not wait for clients that wait for it."""
    with bounded(tmp_path, {}) as node, contextlib.ExitStack() as stack:
        feed = stack.enter_context(wired(node))
        feed.send(feed.request("GET", "/db/_changes?feed=continuous&heartbeat=1000"))
        response = feed.begin()
        half = stack.enter_context(wired(node))
        half.send(half.request("PUT", "/db/x", None, {"content-length": "10"}) + b"{")
        idle = stack.enter_context(wired(node))
        assert idle.ask("GET", "/db").status == 200
        started = start()
        assert node.stop(stop) == 0
        assert start() - started < 9
        assert response.read().strip().endswith(b"}")
