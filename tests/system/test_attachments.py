"""Attachments over HTTP: one at a time, and with their documents as multipart."""

import contextlib
import gzip
import itertools
import json
import socket
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from divandb.httpd.multipart import MultipartParser, PartBegin, PartData, boundary_of
from divandb.packing import gzip_bytes
from divandb.store.file import FILE_NAME
from tests.running import Running, basic, running

BINARY = bytes(range(256)) * 40
TEXT = b"some words, and again some words, " * 100
MIB = 2**20
LARGE_BYTES = 20 * MIB
QUIET_TIMES = 10
RSS_GROWTH_BYTES_MAX = 8 * MIB
_numbers = itertools.count()

Part = tuple[dict[str, str], bytes]


class Client(httpx.Client):
    """An admin's client, with one database."""

    def __init__(self, node: Running, name: str) -> None:
        super().__init__(
            base_url=node.url,
            auth=(node.admin, node.password),
            timeout=30,
            headers={"accept": "*/*"},
        )
        self.name = name

    def put_att(self, path: str, data: Any, kind: str | None = None, **headers: str) -> str:
        """PUT an attachment; the new revision."""
        if kind is not None:
            headers["content-type"] = kind
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.put(f"/{self.name}/{path}", content=data, headers=named)
        assert answer.status_code == 201, answer.text
        rev: str = answer.json()["rev"]
        return rev

    def doc(self, doc_id: str, **parameters: str) -> dict[str, Any]:
        """A document as JSON."""
        json_only = {"accept": "application/json"}
        answer = self.get(f"/{self.name}/{doc_id}", params=parameters, headers=json_only)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
def client(node: Running) -> Iterator[Client]:
    """A database of its own for each test."""
    with Client(node, f"att{next(_numbers)}") as client:
        assert client.put(f"/{client.name}").status_code == 201
        yield client


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    return answer.status_code, body["error"], body["reason"]


def digest_of(data: bytes) -> str:
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()


def noise(size: int) -> bytes:
    """Bytes that do not pack well, quickly made."""
    block = b"".join(md5(b"%d" % n, usedforsecurity=False).digest() for n in range(4096))
    return (block * (size // len(block) + 1))[:size]


# --- one attachment


def test_an_attachment_is_read_back_as_it_was_written(client: Client) -> None:
    answer = client.put(
        f"/{client.name}/new/data.bin", content=BINARY, headers={"content-type": "image/x-test"}
    )
    assert answer.status_code == 201
    body = answer.json()
    assert body["ok"] is True and body["id"] == "new" and body["rev"].startswith("1-")
    assert answer.headers["etag"] == f'"{body["rev"]}"'
    assert answer.headers["location"].endswith(f"/{client.name}/new/data.bin")

    read = client.get(f"/{client.name}/new/data.bin")
    assert (read.status_code, read.content) == (200, BINARY)
    assert read.headers["content-type"] == "image/x-test"
    assert read.headers["etag"] == f'"{digest_of(BINARY)}"'
    assert read.headers["accept-ranges"] == "bytes"
    assert read.headers["content-length"] == str(len(BINARY))
    assert read.headers["content-security-policy"] == "sandbox"
    stub = client.doc("new")["_attachments"]["data.bin"]
    assert stub == {
        "content_type": "image/x-test",
        "revpos": 1,
        "digest": f"md5-{digest_of(BINARY)}",
        "length": len(BINARY),
        "stub": True,
    }


def test_a_new_attachment_keeps_members_and_other_attachments(client: Client) -> None:
    doc = {"a": 1, "_attachments": {"old": {"data": b64encode(BINARY).decode()}}}
    rev = client.put(f"/{client.name}/doc", json=doc).json()["rev"]
    second = client.put_att(f"doc/new?rev={rev}", b"x", "text/plain")
    found = client.doc("doc")
    assert found["_rev"] == second and found["a"] == 1
    assert {name: att["revpos"] for name, att in found["_attachments"].items()} == {
        "old": 1,
        "new": 2,
    }
    assert client.get(f"/{client.name}/doc/old").content == BINARY
    third = client.put_att(f"doc/old?rev={second}", b"another")
    assert client.get(f"/{client.name}/doc/old").content == b"another"
    assert client.get(f"/{client.name}/doc/old?rev={rev}").content == BINARY
    assert client.doc("doc")["_rev"] == third


def test_the_type_defaults_to_bytes_and_empty_ones_are_fine(client: Client) -> None:
    client.put_att("plain/a", b"x")
    assert client.get(f"/{client.name}/plain/a").headers["content-type"] == (
        "application/octet-stream"
    )
    for kind in ("text/plain", "image/png"):
        name = quote(f"empty {kind}", safe="")
        client.put_att(f"{name}/a", b"", kind)
        read = client.get(f"/{client.name}/{name}/a", headers={"accept-encoding": "identity"})
        assert (read.status_code, read.content, read.headers["content-length"]) == (200, b"", "0")
        assert client.get(f"/{client.name}/{name}/a", headers={"range": "bytes=0-"}).content == b""


def test_head_says_what_get_would(client: Client) -> None:
    client.put_att("doc/bin", BINARY, "image/png")
    client.put_att("text/big", noise(MIB), "text/plain")
    for path, headers in (
        ("doc/bin", {}),
        ("doc/bin", {"range": "bytes=1-4"}),
        ("text/big", {"accept-encoding": "gzip"}),
        ("text/big", {"accept-encoding": "identity"}),
    ):
        got = client.get(f"/{client.name}/{path}", headers=headers)
        head = client.head(f"/{client.name}/{path}", headers=headers)
        assert head.status_code == got.status_code and head.content == b""
        same = [dict(each.headers) for each in (got, head)]
        for each in same:
            each.pop("date", None)
        assert same[0] == same[1]


def test_names_may_have_slashes_encoded_or_not(client: Client) -> None:
    rev = client.put_att("doc/dir/file.txt", b"one", "text/plain")
    rev = client.put_att(f"doc/dir%2Fother?rev={rev}", b"two", "text/plain")
    rev = client.put_att(f"doc/dir%252Fthird?rev={rev}", b"three", "text/plain")
    client.put_att(f"doc/{quote('Kолян ?&#.txt')}?rev={rev}", b"four", "text/plain")
    names = {"dir/file.txt", "dir/other", "dir%2Fthird", "Kолян ?&#.txt"}
    assert set(client.doc("doc")["_attachments"]) == names
    for path, content in (
        ("dir%2Ffile.txt", b"one"),
        ("dir/other", b"two"),
        ("dir%252Fthird", b"three"),
        (quote("Kолян ?&#.txt"), b"four"),
    ):
        assert client.get(f"/{client.name}/doc/{path}").content == content
    assert client.get(f"/{client.name}/doc/dir/third").status_code == 404
    assert client.get(f"/{client.name}/doc/%FF").status_code == 400


@pytest.fixture
def user(node: Running, client: Client) -> Iterator[httpx.Client]:
    """A client of somebody who is nobody's admin."""
    name = f"user-{client.name}"
    account = {"name": name, "password": "pw", "roles": [], "type": "user"}
    client.put("/_users")
    made = client.put(f"/_users/org.couchdb.user:{name}", json=account)
    assert made.status_code == 201, made.text
    with httpx.Client(base_url=node.url, auth=(name, "pw"), timeout=30) as theirs:
        yield theirs


def test_design_documents_have_attachments_for_admins_to_write(
    client: Client, user: httpx.Client
) -> None:
    everybody: dict[str, Any] = {"names": [], "roles": []}
    security = {"admins": everybody, "members": everybody}
    assert client.put(f"/{client.name}/_security", json=security).status_code == 200
    rev = client.put_att("_design/app/index.html", b"<p>", "text/html")
    rev = client.put_att(f"_design%2Fapp/a/b?rev={rev}", b"two")
    read = user.get(f"/{client.name}/_design/app/index.html")
    assert read.content == b"<p>" and read.headers["content-type"] == "text/html"
    assert user.get(f"/{client.name}/_design/app/a/b").content == b"two"
    assert user.put(f"/{client.name}/_design/other/a", content=b"x").status_code == 403
    assert user.delete(f"/{client.name}/_design/app/a/b?rev={rev}").status_code == 403
    assert user.put(f"/{client.name}/ordinary/a", content=b"x").status_code == 201


def test_attachments_of_accounts_are_their_users(tmp_path: Path) -> None:
    with running(tmp_path) as own, Client(own, "_users") as client:
        client.put("/_users")
        everybody: dict[str, Any] = {"names": [], "roles": []}
        security = {"admins": everybody, "members": everybody}
        assert client.put("/_users/_security", json=security).status_code == 200
        revs = {}
        for name in ("ann", "bob"):
            account: dict[str, Any] = {"name": name, "password": "pw", "roles": [], "type": "user"}
            made = client.put(f"/_users/org.couchdb.user:{name}", json=account)
            rev = made.json()["rev"]
            revs[name] = client.put_att(f"org.couchdb.user:{name}/a?rev={rev}", b"x")
        with httpx.Client(base_url=own.url, auth=("ann", "pw"), timeout=30) as ann:
            theirs = "/_users/org.couchdb.user:bob/a"
            missing = (404, "not_found", "missing")
            assert refusal(ann.get(theirs)) == missing
            assert refusal(ann.put(f"{theirs}?rev={revs['bob']}", content=b"y")) == missing
            assert refusal(ann.delete(f"{theirs}?rev={revs['bob']}")) == missing
            hers = "/_users/org.couchdb.user:ann/a"
            wrote = ann.put(f"{hers}?rev={revs['ann']}", content=b"mine")
            assert wrote.status_code == 201, wrote.text
            assert ann.get(hers).content == b"mine"
            assert ann.get("/_session").json()["userCtx"]["name"] == "ann"


def test_only_members_read_and_write(client: Client, node: Running, user: httpx.Client) -> None:
    rev = client.put_att("doc/a", b"secret")
    with httpx.Client(base_url=node.url) as stranger:
        for who, status in ((stranger, 401), (user, 403)):
            path = f"/{client.name}/doc/a?rev={rev}"
            assert who.get(path).status_code == status
            assert who.put(path, content=b"x").status_code == status
            assert who.delete(path).status_code == status
            body = related_body({"_id": "other"})
            headers = {"content-type": "multipart/related; boundary=abc123"}
            wrote = who.put(f"/{client.name}/other", content=body, headers=headers)
            assert wrote.status_code == status


def test_reasons_of_404_are_couchdbs(client: Client) -> None:
    rev = client.put_att("doc/a", b"x")
    get = client.get
    assert refusal(get(f"/{client.name}/none/a")) == (404, "not_found", "missing")
    missing = (404, "not_found", "Document is missing attachment")
    assert refusal(get(f"/{client.name}/doc/b")) == missing
    assert refusal(get(f"/{client.name}/doc/_b")) == missing
    assert refusal(get(f"/{client.name}/doc/a?rev=1-abc")) == (404, "not_found", "missing")
    assert get(f"/{client.name}/doc/a?rev=abc").status_code == 400
    gone = client.delete(f"/{client.name}/doc?rev={rev}").json()["rev"]
    assert refusal(get(f"/{client.name}/doc/a")) == (404, "not_found", "deleted")
    assert refusal(get(f"/{client.name}/doc/a?rev={gone}")) == missing
    assert get(f"/{client.name}/doc/a?rev={rev}").content == b"x"
    again = client.put_att("doc/c", b"back")
    assert again.startswith("3-")
    assert set(client.doc("doc")["_attachments"]) == {"c"}


def test_a_write_needs_the_current_revision(client: Client) -> None:
    rev = client.put_att("doc/a", b"x")
    path = f"/{client.name}/doc/a"
    conflict = (409, "conflict", "Document update conflict.")
    assert refusal(client.put(path, content=b"y")) == conflict
    unknown = (409, "not_found", "missing_rev")
    assert refusal(client.put(f"{path}?rev=1-abc", content=b"y")) == unknown
    assert refusal(client.delete(f"{path}?rev=4-garbage")) == unknown
    second = client.put(path, content=b"y", headers={"if-match": f'"{rev}"'})
    assert second.status_code == 201
    assert refusal(client.put(f"{path}?rev={rev}", content=b"z")) == conflict
    differ = client.put(f"{path}?rev={rev}", content=b"z", headers={"if-match": '"1-abc"'})
    assert differ.status_code == 400
    assert client.put(f"{path}?rev=bad", content=b"z").status_code == 400
    assert client.get(path).content == b"y"


def test_deleting_an_attachment(client: Client) -> None:
    rev = client.put_att("doc/a", b"x")
    rev = client.put_att(f"doc/b?rev={rev}", b"y")
    path = f"/{client.name}/doc"
    missing = (404, "not_found", "Document is missing attachment")
    assert refusal(client.delete(f"{path}/none?rev={rev}")) == missing
    assert refusal(client.delete(f"{path}/none")) == missing
    assert refusal(client.delete(f"/{client.name}/none/a")) == (404, "not_found", "missing")
    assert refusal(client.delete(f"{path}/a"))[0] == 409
    gone = client.request("DELETE", f"{path}/a?rev={rev}", content=b"a body that nobody reads")
    assert gone.status_code == 200 and gone.json()["rev"].startswith("3-")
    assert "location" not in gone.headers
    assert set(client.doc("doc")["_attachments"]) == {"b"}
    rev = gone.json()["rev"]
    assert client.delete(f"{path}/b", headers={"if-match": f'"{rev}"'}).status_code == 200
    assert "_attachments" not in client.doc("doc")


def test_what_is_refused(client: Client) -> None:
    put = client.put
    local = (400, "bad_request", "_local documents do not accept attachments.")
    assert refusal(put(f"/{client.name}/_local%2Fdoc/a", content=b"x")) == local
    assert put(f"/{client.name}/_local/doc/a", content=b"x").status_code == 400
    underscore = put(f"/{client.name}/doc/_a", content=b"x")
    reason = "Attachment name '_a' starts with prohibited character '_'"
    assert refusal(underscore) == (400, "bad_request", reason)
    assert put(f"/{client.name}/_doc/a", content=b"x").status_code == 400
    assert client.post(f"/{client.name}/doc/a", content=b"x").status_code == 405
    packed = {"content-encoding": "br"}
    answer = put(f"/{client.name}/doc/a", content=b"x", headers=packed)
    assert answer.status_code == 415
    assert client.get(f"/{client.name}/doc").status_code == 404


def test_the_md5_that_a_client_sends_is_checked(client: Client) -> None:
    path = f"/{client.name}/doc/a"
    wrong = client.put(path, content=BINARY, headers={"content-md5": digest_of(b"else")})
    assert refusal(wrong) == (400, "content_md5_mismatch", "Possible message corruption.")
    assert client.get(path).status_code == 404
    client.put_att("doc/a", BINARY, content_md5=digest_of(BINARY))
    client.put_att("text/a", TEXT, "text/plain", content_md5=digest_of(TEXT))
    assert client.get(path).content == BINARY


def test_etags(client: Client) -> None:
    client.put_att("doc/a", BINARY)
    path, tag = f"/{client.name}/doc/a", f'"{digest_of(BINARY)}"'
    for sent in (tag, f"W/{tag}", f'"other", {tag}'):
        answer = client.get(path, headers={"if-none-match": sent})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-28", 206, 0, 28),
        ("bytes=2-", 206, 2, len(BINARY) - 1),
        ("bytes=-3", 206, len(BINARY) - 3, len(BINARY) - 1),
        ("bytes=0-", 200, 0, len(BINARY) - 1),
        ("bytes:1-2", 200, 0, len(BINARY) - 1),
        ("bytes=" + ",".join(["0-1"] * 10), 200, 0, len(BINARY) - 1),
        ("bytes=5-3", 416, 0, 0),
        ("bytes=99999-", 416, 0, 0),
    ],
)
def test_ranges(client: Client, asked: str, status: int, first: int, last: int) -> None:
    client.put_att("doc/a", BINARY)
    answer = client.get(f"/{client.name}/doc/a", headers={"range": asked})
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(BINARY)}"
        assert answer.json()["error"] == "requested_range_not_satisfiable"
        return
    assert answer.content == BINARY[first : last + 1]
    assert answer.headers["content-length"] == str(last + 1 - first)
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(BINARY)}"


def test_a_range_over_chunks_of_a_large_attachment(client: Client) -> None:
    data = noise(3 * MIB)
    client.put_att("doc/a", data)
    for first, last in ((MIB - 5, MIB + 5), (262_143, 262_144), (10, 3 * MIB - 10)):
        answer = client.get(f"/{client.name}/doc/a", headers={"range": f"bytes={first}-{last}"})
        assert answer.status_code == 206 and answer.content == data[first : last + 1]


def test_several_ranges_are_multipart(client: Client) -> None:
    client.put_att("doc/a", BINARY, "image/png")
    answer = client.get(f"/{client.name}/doc/a", headers={"range": "bytes=0-3,10-15"})
    assert answer.status_code == 206
    assert int(answer.headers["content-length"]) == len(answer.content)
    parts = parts_of(answer.headers["content-type"], answer.content)
    assert [body for _, body in parts] == [BINARY[:4], BINARY[10:16]]
    assert [headers["content-range"] for headers, _ in parts] == [
        f"bytes 0-3/{len(BINARY)}",
        f"bytes 10-15/{len(BINARY)}",
    ]
    assert {headers["content-type"] for headers, _ in parts} == {"image/png"}


def test_if_range_guards_against_mixing_two_contents(client: Client) -> None:
    client.put_att("doc/a", BINARY)
    path, tag = f"/{client.name}/doc/a", f'"{digest_of(BINARY)}"'
    for guard, status in ((tag, 206), ('"older"', 200)):
        headers = {"range": "bytes=1-2", "if-range": guard}
        assert client.get(path, headers=headers).status_code == status


def test_text_is_stored_packed_and_sent_as_the_client_takes_it(client: Client) -> None:
    client.put_att("doc/a", TEXT, "text/plain; charset=utf-8")
    path, stored = f"/{client.name}/doc/a", gzip_bytes(TEXT)
    packed = client.get(path, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["content-length"] == str(len(stored))
    assert packed.content == TEXT
    plain = client.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["content-length"] == str(len(TEXT))
    assert plain.content == TEXT
    for answer in (packed, plain):
        assert answer.headers["accept-ranges"] == "none"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["etag"] == f'"{digest_of(stored)}"'
    ranged = client.get(path, headers={"accept-encoding": "identity", "range": "bytes=0-3"})
    assert (ranged.status_code, ranged.content) == (200, TEXT)
    stub = client.doc("doc", att_encoding_info="true")["_attachments"]["a"]
    assert (stub["length"], stub["encoding"]) == (len(TEXT), "gzip")
    assert stub["encoded_length"] == len(stored)


def test_a_small_json_attachment_is_no_document(client: Client) -> None:
    rev = client.put_att("doc/a", b'{"b":1}', "application/json")
    client.put_att("doc/a", b'{"b":2}', "application/json", if_match=f'"{rev}"')
    assert client.get(f"/{client.name}/doc/a").json() == {"b": 2}
    assert set(client.doc("doc")) == {"_id", "_rev", "_attachments"}


def test_a_packed_upload_is_stored_as_it_came(client: Client) -> None:
    packed = gzip.compress(TEXT, 1, mtime=99)
    client.put_att("doc/a", packed, "application/octet-stream", content_encoding="gzip")
    path = f"/{client.name}/doc/a"
    assert client.get(path).headers["etag"] == f'"{digest_of(packed)}"'
    assert client.get(path).content == TEXT
    assert client.get(path, headers={"accept-encoding": "identity"}).content == TEXT
    bad = {"content-encoding": "gzip"}
    for data in (b"not gzip", packed[:-4]):
        answer = client.put(f"/{client.name}/bad/a", content=data, headers=bad)
        assert answer.status_code == 400
    assert client.get(f"/{client.name}/bad").status_code == 404


@pytest.mark.parametrize("kind", ["текст/plain", "text/plain\t; a=b", "x\x85y"])
def test_any_content_type_makes_a_safe_header(client: Client, kind: str) -> None:
    doc_type = kind if kind.isprintable() else "image/png"
    doc = {"_attachments": {"a": {"content_type": doc_type, "data": "eA=="}}}
    assert client.put(f"/{client.name}/doc", json=doc).status_code == 201
    read = client.get(f"/{client.name}/doc/a")
    assert read.status_code == 200
    assert read.headers["content-type"].encode(read.headers.encoding) == doc_type.encode()
    sent = {b"content-type": kind.encode()}
    wrote = client.put(f"/{client.name}/raw/a", content=b"x", headers=sent)
    assert wrote.status_code == 201
    assert client.doc("raw")["_attachments"]["a"]["content_type"].isprintable()
    assert client.get(f"/{client.name}/raw/a").status_code == 200


# --- on the wire


def exchange(node: Running, request: bytes, *, close_early: bool = False) -> bytes:
    """Send raw bytes; what comes until the server closes, or nothing when the client goes first."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(request)
        if close_early:
            return b""
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def head(node: Running, path: str, *lines: str, close: bool = True) -> bytes:
    all_lines = [
        f"PUT {path} HTTP/1.1",
        "host: localhost",
        f"authorization: {basic(node.credentials)}",
        *(["connection: close"] if close else []),
        *lines,
        "",
        "",
    ]
    return "\r\n".join(all_lines).encode()


def test_a_chunked_upload(client: Client, node: Running) -> None:
    pieces = [BINARY, b"x", noise(200_000)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    request = head(node, f"/{client.name}/doc/a", "transfer-encoding: chunked") + body
    assert exchange(node, request).startswith(b"HTTP/1.1 201 ")
    assert client.get(f"/{client.name}/doc/a").content == b"".join(pieces)


def test_expect_100_continue(client: Client, node: Running) -> None:
    lines = [f"content-length: {len(BINARY)}", "expect: 100-continue"]
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as connection:
        connection.sendall(head(node, f"/{client.name}/doc/a", *lines, close=False))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BINARY)
        assert connection.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert client.get(f"/{client.name}/doc/a").content == BINARY


def await_no_begun_blob(node: Running) -> None:
    """Wait until no chunks are kept of attachments that were not received whole.

    An upload is seen to begin only after a moment, so nothing must be there several times running.
    """
    quiet = itertools.count(1)
    place = f"file:{node.data / 'm1' / FILE_NAME}?mode=ro"

    def none_begun() -> bool:
        nonlocal quiet
        with contextlib.closing(sqlite3.connect(place, uri=True)) as file:
            begun = file.execute("SELECT count(*) FROM blob WHERE name IS NULL").fetchone()[0]
        if begun:
            quiet = itertools.count(1)
        return not begun and next(quiet) >= QUIET_TIMES

    node.await_true(none_begun)


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_a_client_that_goes_away_leaves_nothing(client: Client, node: Running, size: int) -> None:
    data = noise(size)
    request = head(node, f"/{client.name}/doc/a", f"content-length: {size + 1}") + data
    exchange(node, request, close_early=True)
    unended = head(node, f"/{client.name}/doc/a", "transfer-encoding: chunked")
    exchange(node, unended + b"%x\r\n%b\r\n" % (size, data), close_early=True)
    await_no_begun_blob(node)
    assert client.get(f"/{client.name}/doc").status_code == 404
    assert client.put_att("doc/a", data).startswith("1-")
    assert client.get(f"/{client.name}/doc/a").content == data


def test_a_refused_upload_leaves_the_connection_usable(client: Client, node: Running) -> None:
    client.put_att("doc/a", b"x")
    data = noise(2 * MIB)
    lines = [f"content-length: {len(data)}"]
    again = head(node, f"/{client.name}/doc/b", "content-length: 1") + b"x"
    answers = exchange(
        node, head(node, f"/{client.name}/doc/a", *lines, close=False) + data + again
    )
    assert answers.startswith(b"HTTP/1.1 409 ") and answers.count(b"HTTP/1.1 409 ") == 2


def memory_bytes(pid: int, line: str) -> int:
    """``VmRSS``, or ``VmHWM``: the most since ``forget_peak``."""
    for each in Path(f"/proc/{pid}/status").read_text().splitlines():
        if each.startswith(f"{line}:"):
            return int(each.split()[1]) * 1024
    raise AssertionError(f"no {line}")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def blocks(size: int, step: int = 65536) -> Iterator[bytes]:
    block = noise(step)
    for start in range(0, size, step):
        yield block[: size - start]


def send_and_fetch(client: Client, size: int, kind: str) -> None:
    """Upload an attachment and fetch it in every form."""
    expected = md5(usedforsecurity=False)
    for block in blocks(size):
        expected.update(block)
    client.put_att(f"{size}/a", blocks(size), kind)
    for accepts in ("gzip", "identity"):
        found = md5(usedforsecurity=False)
        headers = {"accept-encoding": accepts}
        with client.stream("GET", f"/{client.name}/{size}/a", headers=headers) as answer:
            for piece in answer.iter_bytes():
                found.update(piece)
        assert found.digest() == expected.digest()
    with client.stream("GET", f"/{client.name}/{size}?attachments=true") as answer:
        assert sum(map(len, answer.iter_raw())) == int(answer.headers["content-length"])
    parameters = {"open_revs": "all"}
    with client.stream("GET", f"/{client.name}/{size}", params=parameters) as answer:
        assert answer.status_code == 200
        for _ in answer.iter_raw():
            pass


def send_related(client: Client, size: int, kind: str) -> None:
    """The same upload as a part of multipart/related."""
    doc = attached(a={"follows": True, "content_type": kind})
    before, after = related_body(doc, ({}, b"*")).split(b"*")
    body = itertools.chain([before], blocks(size), [after])
    answer = put_related(client, f"related{size}", body)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("kind", ["image/png", "text/plain"])
def test_large_attachments_are_never_whole_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # SQLite's page caches fill up to their bound whatever is stored; here they are not what counts.
    monkeypatch.setenv("DIVANDB_SQLITE_CACHE_BYTES_MAX", str(MIB))
    with running(tmp_path) as own, Client(own, "large") as client:
        client.put("/large")
        for exercise in (send_and_fetch, send_related):
            exercise(client, 2 * MIB, kind)
            before = memory_bytes(own.node_pid, "VmRSS")
            forget_peak(own.node_pid)
            exercise(client, LARGE_BYTES, kind)
            assert memory_bytes(own.node_pid, "VmHWM") - before < RSS_GROWTH_BYTES_MAX


def test_too_large_an_attachment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIVANDB_ATTACHMENT_BYTES_MAX", str(MIB))
    too_large = (413, "attachment_too_large", "a")
    with running(tmp_path) as own, Client(own, "small") as client:
        client.put("/small")
        for kind in ("image/png", "text/plain"):
            headers = {"content-type": kind}
            path = f"/small/{quote(kind, safe='')}/a"
            for content in (noise(MIB + 1), blocks(MIB + 1)):
                assert refusal(client.put(path, content=content, headers=headers)) == too_large
            assert client.put(path, content=noise(MIB), headers=headers).status_code == 201
        packed = {"content-encoding": "gzip"}
        bomb = client.put("/small/bomb/a", content=gzip.compress(bytes(MIB + 1)), headers=packed)
        assert refusal(bomb) == too_large
        body = related_body({"_attachments": {"a": {"follows": True}}}, ({}, noise(MIB + 1)))
        assert refusal(put_related(client, "multi", body)) == too_large


# --- multipart


def parts_of(content_type: str, body: bytes) -> list[Part]:
    parser = MultipartParser(boundary_of(content_type))
    parts: list[Part] = []
    for event in parser.feed(body):
        if isinstance(event, PartBegin):
            parts.append((event.headers, b""))
        elif isinstance(event, PartData):
            parts[-1] = (parts[-1][0], parts[-1][1] + bytes(event.data))
    parser.close()
    return parts


def related_body(doc: Any, *parts: Part) -> bytes:
    first: Part = ({"Content-Type": "application/json"}, json.dumps(doc).encode())
    body = b""
    for headers, data in (first, *parts):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body += b"\r\n--abc123\r\n" + lines.encode() + b"\r\n" + data
    return body[2:] + b"\r\n--abc123--epilogue"


def put_related(client: Client, doc_id: str, body: Any, **parameters: str) -> httpx.Response:
    headers = {"content-type": 'multipart/related;boundary="abc123"'}
    return client.put(f"/{client.name}/{doc_id}", content=body, headers=headers, params=parameters)


def follows(kind: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"follows": True, "content_type": kind, "length": len(data), **more}


def test_a_document_is_put_with_its_attachments(client: Client) -> None:
    large = noise(2 * MIB)
    doc = {
        "a": 1,
        "_attachments": {
            "bin": follows("image/png", BINARY),
            "text": follows("text/plain", TEXT),
            "large": follows("image/png", large),
            "inline": {"content_type": "text/plain", "data": b64encode(b"inline").decode()},
        },
    }
    answer = put_related(client, "doc", related_body(doc, ({}, BINARY), ({}, TEXT), ({}, large)))
    assert answer.status_code == 201, answer.text
    for name, content in (("bin", BINARY), ("text", TEXT), ("large", large), ("inline", b"inline")):
        assert client.get(f"/{client.name}/doc/{name}").content == content
    stubs = client.doc("doc", att_encoding_info="true")["_attachments"]
    assert stubs["text"]["encoding"] == "gzip" and "encoding" not in stubs["bin"]

    rev = answer.json()["rev"]
    stub = {"_attachments": {"bin": {"stub": True}, "text": follows("text/plain", b"newer")}}
    newer = put_related(client, "doc", related_body(stub, ({}, b"newer")), rev=rev)
    assert newer.status_code == 201
    assert set(client.doc("doc")["_attachments"]) == {"bin", "text"}
    assert client.get(f"/{client.name}/doc/text").content == b"newer"
    assert client.get(f"/{client.name}/doc/bin").content == BINARY


def test_parts_are_matched_by_name_else_in_order(client: Client) -> None:
    doc = {"_attachments": {name: {"follows": True} for name in ("one", "two", "three")}}
    parts: list[Part] = [
        ({"Content-Disposition": 'attachment; filename="three"'}, b"3"),
        ({}, b"1"),
        ({"Content-Disposition": 'attachment; filename="unheard of"'}, b"2"),
    ]
    assert put_related(client, "doc", related_body(doc, *parts)).status_code == 201
    for name, content in (("one", b"1"), ("two", b"2"), ("three", b"3")):
        assert client.get(f"/{client.name}/doc/{name}").content == content


@pytest.mark.parametrize("by_header", [True, False])
def test_packed_parts_are_stored_as_they_came(client: Client, by_header: bool) -> None:
    packed = gzip.compress(TEXT, 3, mtime=5)
    entry = follows("text/plain", TEXT, digest=f"md5-{digest_of(packed)}")
    headers = {"Content-Encoding": "gzip"} if by_header else {}
    if not by_header:
        entry |= {"encoding": "gzip", "encoded_length": len(packed)}
    doc = {"_attachments": {"a": entry}}
    answer = put_related(client, "doc", related_body(doc, (headers, packed)))
    assert answer.status_code == 201, answer.text
    read = client.get(f"/{client.name}/doc/a", headers={"accept-encoding": "gzip"})
    assert read.headers["etag"] == f'"{digest_of(packed)}"' and read.content == TEXT
    stub = client.doc("doc", att_encoding_info="true")["_attachments"]["a"]
    assert (stub["length"], stub["encoded_length"]) == (len(TEXT), len(packed))


def test_couchdbs_lengths_of_a_packed_upload_are_taken(client: Client) -> None:
    packed = gzip.compress(TEXT)
    size = len(packed)
    entry = {"follows": True, "encoding": "gzip", "length": size, "encoded_length": size}
    body = related_body({"_attachments": {"a": entry}}, ({}, packed))
    assert put_related(client, "doc", body).status_code == 201
    assert client.get(f"/{client.name}/doc/a").content == TEXT


def attached(**entries: Any) -> dict[str, Any]:
    return {"_attachments": entries}


BAD_BODIES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "a part is missing": (lambda: related_body(attached(a={"follows": True})), 400, "not follow"),
    "a part too many": (lambda: related_body({}, ({}, b"x")), 400, "more parts"),
    "too long": (
        lambda: related_body(attached(a=follows("image/png", b"x")), ({}, b"xy")),
        400,
        "attachment longer than expected",
    ),
    "too short": (
        lambda: related_body(attached(a=follows("image/png", b"xy")), ({}, b"x")),
        400,
        "attachment shorter than expected",
    ),
    "another digest": (
        lambda: related_body(
            attached(a={"follows": True, "digest": f"md5-{digest_of(b'y')}"}), ({}, b"x")
        ),
        400,
        "Possible message corruption.",
    ),
    "another plain length": (
        lambda: related_body(
            attached(
                a={
                    "follows": True,
                    "encoding": "gzip",
                    "length": 5,
                    "encoded_length": len(gzip_bytes(b"x")),
                }
            ),
            ({}, gzip_bytes(b"x")),
        ),
        400,
        "another length",
    ),
    "not gzip": (
        lambda: related_body(attached(a={"follows": True, "encoding": "gzip"}), ({}, b"x")),
        400,
        "gzip",
    ),
    "an unknown encoding": (
        lambda: related_body(attached(a={"follows": True, "encoding": "br"}), ({}, b"x")),
        415,
        "encoding",
    ),
    "a length that is none": (
        lambda: related_body(attached(a={"follows": True, "length": "1"}), ({}, b"x")),
        400,
        "length",
    ),
    "the same part twice": (
        lambda: related_body(
            attached(a={"follows": True}, b={"follows": True}),
            *[({"Content-Disposition": 'attachment; filename="a"'}, b"x")] * 2,
        ),
        400,
        "twice",
    ),
    "no JSON": (
        lambda: b"--abc123\r\nContent-Type: application/json\r\n\r\n{]\r\n--abc123--",
        400,
        "JSON",
    ),
    "no document": (lambda: b"--abc123--", 400, "no document"),
    "a document of another type": (
        lambda: b"--abc123\r\nContent-Type: text/plain\r\n\r\n{}\r\n--abc123--",
        415,
        "application/json",
    ),
    "an array": (lambda: related_body([]), 400, "object"),
    "a bad member": (lambda: related_body({"_foo": 1}), 400, "_foo"),
    "attachments that are none": (
        lambda: related_body({"_attachments": 5}, ({}, b"x")),
        400,
        "object",
    ),
    "no end": (
        lambda: related_body(attached(a={"follows": True}), ({}, b"x"))[:-14],
        400,
        "closing boundary",
    ),
    "an unknown stub": (lambda: related_body(attached(a={"stub": True})), 412, "stub"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_multipart_body_changes_nothing(client: Client, case: str) -> None:
    body, status, reason = BAD_BODIES[case]
    answer = put_related(client, "doc", body())
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["reason"]
    assert client.get(f"/{client.name}/doc").status_code == 404


def test_a_multipart_body_that_is_cut_off_changes_nothing(client: Client, node: Running) -> None:
    body = related_body(attached(a={"follows": True}), ({}, noise(2 * MIB)))
    lines = [
        "content-type: multipart/related; boundary=abc123",
        f"content-length: {len(body)}",
    ]
    exchange(node, head(node, f"/{client.name}/doc", *lines) + body[:-100], close_early=True)
    await_no_begun_blob(node)
    assert client.get(f"/{client.name}/doc").status_code == 404


def test_more_parts_than_a_document_may_have(client: Client) -> None:
    doc = {"_attachments": {f"{n}": {"follows": True} for n in range(1001)}}
    parts: list[Part] = [({}, b"x")] * 1001
    assert put_related(client, "doc", related_body(doc, *parts)).status_code == 413


def test_a_multipart_answer_can_be_put_again(client: Client) -> None:
    odd = 'a "quoted" näme;\\.txt'
    doc = {
        "a": 1,
        "_attachments": {
            odd: follows("image/png", BINARY),
            "text": follows("text/plain", TEXT),
        },
    }
    put_related(client, "doc", related_body(doc, ({}, BINARY), ({}, TEXT)))
    answer = client.get(f"/{client.name}/doc?attachments=true&revs=true")
    kind = answer.headers["content-type"]
    assert kind.startswith("multipart/related; ")
    assert answer.headers["content-length"] == str(len(answer.content))
    (json_headers, body), *atts = parts_of(kind, answer.content)
    assert json_headers == {"content-type": "application/json"}
    found = json.loads(body)
    assert [att["follows"] for att in found["_attachments"].values()] == [True, True]
    assert found["_attachments"]["text"]["encoded_length"] == len(gzip_bytes(TEXT))
    assert [content for _, content in atts] == [BINARY, gzip_bytes(TEXT)]
    assert atts[1][0]["content-encoding"] == "gzip"
    assert atts[1][0]["content-length"] == str(len(gzip_bytes(TEXT)))

    client.put(f"/{client.name}-copy")
    copied = client.put(
        f"/{client.name}-copy/doc?new_edits=false",
        content=answer.content,
        headers={"content-type": kind},
    )
    assert copied.status_code == 201, copied.text
    again = client.get(f"/{client.name}-copy/doc?attachments=true&revs=true")
    assert json.loads(parts_of(again.headers["content-type"], again.content)[0][1]) == found
    assert client.get(f"/{client.name}-copy/doc/{quote(odd)}").content == BINARY


def test_repeating_a_multipart_graft_is_harmless(client: Client) -> None:
    data = noise(100_000)
    body = related_body(attached(a=follows("image/png", data)), ({}, data))
    rev = put_related(client, "doc", body).json()["rev"]
    for _ in range(5):
        answer = put_related(client, "doc", body, rev=rev, new_edits="false")
        assert answer.status_code == 201


def test_json_is_given_to_who_asks_for_it(client: Client) -> None:
    client.put_att("doc/a", TEXT, "text/plain")
    found = client.doc("doc", attachments="true")["_attachments"]["a"]
    assert b64decode(found["data"]) == TEXT


def test_only_newer_attachments_follow_with_atts_since(client: Client) -> None:
    first = client.put_att("doc/old", BINARY)
    client.put_att(f"doc/new?rev={first}", TEXT, "text/plain")
    path = f"/{client.name}/doc"
    for since in ([first], ["1-2897589", first]):
        answer = client.get(path, params={"atts_since": json.dumps(since)})
        parts = parts_of(answer.headers["content-type"], answer.content)
        assert len(parts) == 2 and parts[1][1] == gzip_bytes(TEXT)
        atts = json.loads(parts[0][1])["_attachments"]
        assert atts["old"]["stub"] is True and atts["new"]["follows"] is True
    rev = client.doc("doc")["_rev"]
    answer = client.get(path, params={"atts_since": json.dumps([rev])})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert all(att["stub"] for att in answer.json()["_attachments"].values())


def two_leaves(client: Client) -> tuple[str, str]:
    """A document with two leaves, one of them with attachments."""
    with_atts = {
        "_id": "doc",
        "_rev": "1-a",
        "_attachments": {
            "text": {"content_type": "text/plain", "data": b64encode(TEXT).decode()},
            "bin": {"content_type": "image/png", "data": b64encode(BINARY).decode()},
        },
    }
    docs = [with_atts, {"_id": "doc", "_rev": "1-b", "n": 2}]
    sent = {"docs": docs, "new_edits": False}
    assert client.post(f"/{client.name}/_bulk_docs", json=sent).status_code == 201
    return "1-a", "1-b"


@pytest.mark.parametrize("accept", ["*/*", "multipart/mixed"])
def test_open_revs_is_mixed(client: Client, accept: str) -> None:
    first, second = two_leaves(client)
    answer = client.get(
        f"/{client.name}/doc",
        params={"open_revs": json.dumps([first, second, "1-c"])},
        headers={"accept": accept},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("multipart/mixed; boundary=")
    parts = parts_of(answer.headers["content-type"], answer.content)
    assert len(parts) == 3
    kinds = [headers["content-type"] for headers, _ in parts]
    (_, document), *atts = parts_of(kinds[0], parts[0][1])
    assert json.loads(document)["_rev"] == first
    assert sorted(content for _, content in atts) == sorted([BINARY, gzip_bytes(TEXT)])
    assert kinds[1:] == ["application/json", 'application/json; error="true"']
    assert json.loads(parts[1][1]) == {"_id": "doc", "_rev": second, "n": 2}
    assert json.loads(parts[2][1]) == {"missing": "1-c"}


def test_open_revs_sends_only_newer_attachments_with_atts_since(client: Client) -> None:
    first, _ = two_leaves(client)
    parameters = {"open_revs": json.dumps([first]), "atts_since": json.dumps([first])}
    answer = client.get(f"/{client.name}/doc", params=parameters)
    (part,) = parts_of(answer.headers["content-type"], answer.content)
    assert part[0]["content-type"] == "application/json"
    assert all(att["stub"] for att in json.loads(part[1])["_attachments"].values())


@pytest.mark.parametrize("accept", ["multipart/mixed", "multipart/related"])
def test_bulk_get_is_multipart_when_asked_for(client: Client, accept: str) -> None:
    first, second = two_leaves(client)
    docs = [
        {"id": "doc", "rev": first},
        {"id": "doc", "rev": second},
        {"id": "doc", "rev": "1-c"},
        {"id": "none"},
        {"id": "_bad"},
    ]
    path = f"/{client.name}/_bulk_get"
    answer = client.post(path, json={"docs": docs}, headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(f"{accept}; boundary=")
    parts = parts_of(answer.headers["content-type"], answer.content)
    assert len(parts) == 5
    headers, body = parts[0]
    assert (headers["x-doc-id"], headers["x-rev-id"]) == ("doc", first)
    (_, document), *atts = parts_of(headers["content-type"], body)
    assert json.loads(document)["_attachments"]["bin"]["follows"] is True
    assert sorted(content for _, content in atts) == sorted([BINARY, gzip_bytes(TEXT)])
    assert json.loads(parts[1][1]) == {"_id": "doc", "_rev": second, "n": 2}
    for headers, _ in parts[2:]:
        assert headers["content-type"] == 'application/json; error="true"'
    errors = [json.loads(body) for _, body in parts[2:]]
    assert errors[0] == {"rev": "1-c", "error": "not_found", "reason": "missing"}
    assert (errors[1]["id"], errors[1]["error"]) == ("none", "not_found")
    assert errors[2]["error"] == "illegal_docid"

    empty = client.post(path, json={"docs": []}, headers={"accept": accept})
    assert (empty.status_code, empty.content) == (200, b"")
