"""Replication with another implementation: PouchDB behind express-pouchdb, run by either side."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Running
from tests.system.js_clients import FOLDER, auth_url, install

DONE_S_MAX = 60.0
STOP_S_MAX = 20.0
POLL_S = 0.05

pytestmark = pytest.mark.timeout_s(240)


class Peer:
    """The other server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The answer; an ``HTTPError`` if it is none."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "accept": "application/json"}
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=DONE_S_MAX) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """The other server, for all tests."""
    problem = install()
    assert problem is None, problem
    process = subprocess.Popen(
        ["node", "peer.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        yield Peer(int(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(STOP_S_MAX) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Pair:
    """A database of the same name at both sides."""

    def __init__(self, node: Running, peer: Peer) -> None:
        self.node = node
        self.peer = peer
        self.name = f"p{uuid4().hex}"
        self.here = f"{auth_url(node)}/{self.name}"
        self.there = f"{peer.url}/{self.name}"
        assert node.request("PUT", f"/{self.name}")[0] == 201
        assert peer.request("PUT", f"/{self.name}") == {"ok": True}

    def ask_here(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.node.request(
            method, f"/{self.name}{path}", body, wait_s_max=DONE_S_MAX
        )
        assert status in (200, 201, 202), answer
        return answer

    def ask_there(self, method: str, path: str, body: Any = None) -> Any:
        return self.peer.request(method, f"/{self.name}{path}", body)

    def by_us(self, source: str, target: str, **members: Any) -> Any:
        body = {"source": source, "target": target, **members}
        status, answer = self.node.request("POST", "/_replicate", body, wait_s_max=DONE_S_MAX)
        assert status in (200, 202), answer
        return answer

    def by_peer(self, source: str, target: str, **members: Any) -> Any:
        body = {"source": source, "target": target, **members}
        return self.peer.request("POST", "/_replicate", body)

    def await_ids(self, ask: Callable[..., Any], wanted: list[str]) -> None:
        until = time.monotonic() + DONE_S_MAX
        while ids(ask) != wanted:
            assert time.monotonic() < until, ids(ask)
            time.sleep(POLL_S)


def docs(prefix: str, count: int) -> list[dict[str, Any]]:
    return [{"_id": f"{prefix}{n}", "n": n, "even": n % 2 == 0} for n in range(count)]


def ids(ask: Callable[..., Any]) -> list[str]:
    return [row["id"] for row in ask("GET", "/_all_docs")["rows"]]


def revs(ask: Callable[..., Any]) -> dict[str, list[str]]:
    """All leaves, by document."""
    rows = ask("GET", "/_changes?style=all_docs")["results"]
    return {row["id"]: sorted(one["rev"] for one in row["changes"]) for row in rows}


def checkpoints(pair: Pair) -> list[dict[str, Any]]:
    rows = pair.ask_here("GET", "/_local_docs?include_docs=true")["rows"]
    return [row["doc"] for row in rows]


@pytest.fixture
def pair(node: Running, peer: Peer) -> Pair:
    """Some documents at the other side, with a conflict, a deletion and an attachment."""
    made = Pair(node, peer)
    made.ask_there("POST", "/_bulk_docs", {"docs": docs("there", 6)})
    torn = [{"_id": "torn", "_rev": f"1-{letter * 32}", "v": letter} for letter in "ab"]
    made.ask_there("POST", "/_bulk_docs", {"docs": torn, "new_edits": False})
    (gone,) = made.ask_there("POST", "/_bulk_docs", {"docs": [{"_id": "gone"}]})
    made.ask_there("DELETE", f"/gone?rev={gone['rev']}")
    note = {"content_type": "text/plain", "data": "aGVsbG8="}
    made.ask_there("PUT", "/noted", {"_attachments": {"note.txt": note}})
    return made


def test_both_sides_have_the_same_leaves_after_one_way_and_the_other(pair: Pair) -> None:
    pulled = pair.by_us(pair.there, pair.name)
    assert pulled["ok"] and pulled["history"][0]["docs_written"] == 10
    assert revs(pair.ask_here) == revs(pair.ask_there)
    status, note = pair.node.request("GET", f"/{pair.name}/noted/note.txt")
    assert (status, note) == (200, b"hello")
    pair.ask_here("POST", "/_bulk_docs", {"docs": docs("here", 4)})
    pushed = pair.by_us(pair.name, pair.there)
    assert pushed["history"][0]["docs_written"] == 4
    assert revs(pair.ask_here) == revs(pair.ask_there)


def test_we_go_on_where_we_were_with_checkpoints_at_both_sides(pair: Pair) -> None:
    first = pair.by_us(pair.there, pair.name)
    again = pair.by_us(pair.there, pair.name)
    assert again.get("no_changes") or again["history"][0]["docs_read"] == 0
    (here,) = checkpoints(pair)
    there = pair.ask_there("GET", f"/{here['_id']}")
    assert here["session_id"] == there["session_id"] == first["session_id"]
    pair.ask_there("POST", "/_bulk_docs", {"docs": docs("later", 2)})
    more = pair.by_us(pair.there, pair.name)
    assert more["history"][0]["docs_read"] == 2


def test_doc_ids_choose_either_way_and_a_selector_chooses_of_ours(pair: Pair) -> None:
    """The other side's `_changes` knows no `_selector`."""
    chosen = ["there1", "noted", "nothing"]
    empty = Pair(pair.node, pair.peer)
    pair.by_us(pair.there, empty.name, doc_ids=chosen)
    assert ids(empty.ask_here) == ["noted", "there1"]
    pair.by_us(pair.there, pair.name)
    pair.by_us(pair.name, empty.there, doc_ids=chosen)
    assert ids(empty.ask_there) == ["noted", "there1"]
    pair.by_us(pair.name, empty.there, selector={"even": True, "n": {"$gt": 0}})
    assert ids(empty.ask_there) == ["noted", "there1", "there2", "there4"]


def test_continuous_ones_follow_both_sides_until_they_are_cancelled(pair: Pair) -> None:
    ways = [(pair.there, pair.name), (pair.name, pair.there)]
    for way in ways:
        assert pair.by_us(*way, continuous=True)["ok"]
    pair.await_ids(pair.ask_here, ids(pair.ask_there))
    pair.ask_here("POST", "/_bulk_docs", {"docs": docs("a", 2)})
    pair.ask_there("POST", "/_bulk_docs", {"docs": docs("b", 2)})
    wanted = sorted({*ids(pair.ask_here), "a0", "a1", "b0", "b1"})
    pair.await_ids(pair.ask_here, wanted)
    pair.await_ids(pair.ask_there, wanted)
    for way in ways:
        assert pair.by_us(*way, continuous=True, cancel=True)["ok"]


def test_the_other_sides_replicator_finds_its_checkpoints_here(pair: Pair) -> None:
    """PouchDB's, both ways: what it reads and writes here are a source and a target as any."""
    assert pair.by_peer(pair.name, pair.here)["docs_written"] == 10
    assert revs(pair.ask_here) == revs(pair.ask_there)
    assert pair.by_peer(pair.name, pair.here)["docs_read"] == 0
    pair.ask_here("POST", "/_bulk_docs", {"docs": docs("here", 3)})
    back = pair.by_peer(pair.here, pair.name)
    assert back["docs_written"] == 3 and revs(pair.ask_here) == revs(pair.ask_there)
    assert pair.by_peer(pair.here, pair.name)["docs_read"] == 0
    kept = checkpoints(pair)
    assert len(kept) == 2 and all({"session_id", "history", "last_seq"} <= set(one) for one in kept)
    for one in kept:
        assert pair.ask_there("GET", f"/{one['_id']}")["session_id"] == one["session_id"]
