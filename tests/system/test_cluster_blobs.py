"""Attachments whose bytes a node has not: they are read there all the same, and fetched."""

import contextlib
import gzip
import hashlib
import http.client
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.running import Cluster, basic, clustered
from tests.system.wire import faults

MIB = 2**20
NODE = "m2-r1"
BINARY = random.Random(30).randbytes(3 * MIB + 17)
TEXT = b"the same line again\n" * 5_000
DB = "attached"
FETCHED_S_MAX = 20.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with a replica each, and a database with attachments."""
    with clustered(tmp_path_factory.mktemp("blobs"), masters=2, replicas=1) as started:
        assert started.request("PUT", f"/{DB}")[0] == 201
        for path, data, kind in (
            ("large/data", BINARY, "application/x-data"),
            ("text/readme", TEXT, "text/plain"),
        ):
            headers = {"content-type": kind}
            # Through one master, so that all nodes have them in one order.
            status, answer = started.request("PUT", f"/{DB}/{path}", data, headers, node="m1")
            assert status == 201, answer
        started.await_converged()
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


def held(cluster: Cluster, node: str) -> int:
    """How many attachments a node has the bytes of."""
    with contextlib.closing(sqlite3.connect(cluster.data / node / "node.sqlite")) as file:
        found: int = file.execute("SELECT count(*) FROM blob WHERE name IS NOT NULL").fetchone()[0]
        return found


def rob(cluster: Cluster, *nodes: str) -> None:
    """Let nodes lose all bytes of attachments."""
    for node in nodes:
        with contextlib.closing(
            sqlite3.connect(cluster.data / node / "node.sqlite", timeout=20, isolation_level=None)
        ) as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute("DELETE FROM blob")
            file.execute("DELETE FROM blob_chunk")
            file.execute("COMMIT")


JSON = {"accept": "application/json"}
MIXED = {"accept": "multipart/mixed"}
RELATED = {"accept": "multipart/related"}
WANTED = json.dumps({"docs": [{"id": "large"}, {"id": "text"}, {"id": "none"}]}).encode()
AS_JSON = {"content-type": "application/json"}

READS: dict[str, tuple[str, str, bytes | None, dict[str, str]]] = {
    "whole": ("GET", "large/data", None, {}),
    "range": ("GET", "large/data", None, {"range": "bytes=1048570-1048999"}),
    "ranges": ("GET", "large/data", None, {"range": "bytes=0-5,2097152-2097159"}),
    "range that is wrong": ("GET", "large/data", None, {"range": "bytes=9999999999-"}),
    "unpacked": ("GET", "text/readme", None, {}),
    "packed": ("GET", "text/readme", None, {"accept-encoding": "gzip"}),
    "head": ("HEAD", "large/data", None, {}),
    "document": ("GET", "large?attachments=true", None, JSON),
    "document as multipart": ("GET", "text?attachments=true", None, RELATED),
    "revisions": ("GET", "text?open_revs=all&attachments=true", None, JSON),
    "revisions as multipart": ("GET", "large?open_revs=all", None, MIXED),
    "bulk": ("POST", "_bulk_get?attachments=true", WANTED, JSON | AS_JSON),
    "bulk as multipart": ("POST", "_bulk_get", WANTED, MIXED | AS_JSON),
    "packed bulk": (
        "POST", "_bulk_get?attachments=true", gzip.compress(WANTED),
        JSON | AS_JSON | {"content-encoding": "gzip"},
    ),
    "list": ("GET", "_all_docs?include_docs=true&attachments=true", None, {}),
    "list of keys": (
        "POST", "_all_docs?include_docs=true&attachments=true", b'{"keys":["text","none"]}',
        AS_JSON,
    ),
    "changes": ("GET", "_changes?include_docs=true&attachments=true", None, {}),
    "changes of one": (
        "POST", "_changes?include_docs=true&attachments=true&filter=_doc_ids&feed=continuous"
        "&timeout=100", b'{"doc_ids":["text"]}', AS_JSON,
    ),
}  # fmt: skip


def read(cluster: Cluster, what: str, node: str) -> tuple[int, dict[str, str], str]:
    """Status, the headers that say what it is, and a digest of the body without its boundaries
    and without sequences, which are a node's own.
    """
    method, path, body, headers = READS[what]
    status, said, content = cluster.exchange(method, f"/{DB}/{path}", body, headers, node=node)
    told = {
        name: said[name]
        for name in ("content-type", "content-length", "content-range", "etag", "content-encoding")
        if said[name] is not None and "changes" not in what
    }
    boundaries = set(re.findall(rb'boundary="(\w+)"', content))
    boundaries |= set(re.findall(rb'boundary="(\w+)"', (said["content-type"] or "").encode()))
    told["content-type"] = re.sub(r'"\w+"', '""', said["content-type"] or "")
    for boundary in boundaries:
        content = content.replace(boundary, b"BOUNDARY")
    content = re.sub(rb'"(seq|last_seq)":"[^"]*"', b'"seq":0', content)
    return status, told, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("what", READS)
def test_bytes_that_are_not_here_are_read_all_the_same(own: Cluster, what: str) -> None:
    own.await_true(lambda: held(own, NODE) == 2, FETCHED_S_MAX)
    expected = read(own, what, "m1")
    rob(own, NODE)
    assert read(own, what, NODE) == expected
    method, path, body, headers = READS["whole"]
    assert own.exchange(method, f"/{DB}/{path}", body, headers, node=NODE)[2] == BINARY
    own.exchange("GET", f"/{DB}/text/readme", node=NODE)
    own.await_true(lambda: held(own, NODE) == 2, FETCHED_S_MAX)
    assert read(own, what, NODE) == expected


def test_who_did_not_ask_for_gzip_gets_none_from_another_node_either(own: Cluster) -> None:
    rob(own, NODE)
    url = urlsplit(own.record(NODE)["url"])
    with contextlib.closing(http.client.HTTPConnection(url.hostname or "", url.port)) as calling:
        calling.putrequest("GET", f"/{DB}/text/readme", skip_accept_encoding=True)
        calling.putheader("authorization", basic(own.credentials))
        calling.endheaders()
        answer = calling.getresponse()
        assert (answer.getheader("content-encoding"), answer.read()) == (None, TEXT)


def test_another_nodes_answer_has_its_headers_once(own: Cluster) -> None:
    rob(own, NODE)
    _, said, content = own.exchange("GET", f"/{DB}/large/data", node=NODE)
    assert content == BINARY
    for name in ("divan-lag", "content-length", "date", "server", "etag"):
        assert len(said.get_all(name) or []) == 1, (name, said.items())


def test_a_node_that_lost_bytes_fetches_them_at_its_next_start(own: Cluster) -> None:
    """Without anybody asking for them. One may come from the board, which is read some way back."""
    for node in ("m2", NODE):
        rob(own, node)
        assert held(own, node) == 0
        own.kill(node)
        own.await_true(lambda node=node: held(own, node) == 2, FETCHED_S_MAX)
        own.await_true(lambda node=node: own.status_of(node)["missing_blobs"] == 0)
        assert own.exchange("GET", f"/{DB}/large/data", node=node)[2] == BINARY


def test_an_edit_keeps_an_attachment_whose_bytes_lie_elsewhere(own: Cluster) -> None:
    """A stub needs no bytes, be it at a replica or at the master that takes the write."""
    doc: dict[str, Any] = own.request("GET", f"/{DB}/text", node=NODE)[1]
    token = {"divan-session": ""}
    for number in range(2):
        rob(own, "m2", NODE)
        edited, path = doc | {"edit": number}, f"/{DB}/text"
        status, said, content = own.exchange("PUT", path, edited, token, node=NODE)
        assert status == 201, content
        doc["_rev"] = json.loads(content)["rev"]
        token = {"divan-session": said["divan-session"]}
    own.await_converged()
    for node in own.nodes:
        assert own.exchange("GET", f"/{DB}/text/readme", node=node)[2] == TEXT


@pytest.mark.parametrize("what", ["whole", "document", "bulk as multipart"])
def test_bytes_that_are_nowhere_are_a_503_that_says_so(own: Cluster, what: str) -> None:
    method, path, body, headers = READS[what]
    rob(own, *own.nodes)
    status, said, content = own.exchange(method, f"/{DB}/{path}", body, headers, node=NODE)
    try:
        assert status == 503, content
        assert said["retry-after"] == "1"
        assert json.loads(content) == {
            "error": "service_unavailable",
            "reason": "The bytes of attachment data have not come here yet; try again shortly.",
        }
    finally:
        put_again(own)


def put_again(cluster: Cluster) -> None:
    """The same bytes are the same blobs: whoever has them heals what was lost."""
    for number, data in enumerate((BINARY, TEXT)):
        kind = ("application/x-data", "text/plain")[number]
        path = f"/{DB}/again-{random.randrange(10**9)}/data"
        status, answer = cluster.request("PUT", path, data, {"content-type": kind}, node="m1")
        assert status == 201, answer
    cluster.await_converged()
    cluster.await_true(lambda: all(held(cluster, node) == 2 for node in cluster.nodes))
