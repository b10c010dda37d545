"""`divandb status`: what is asked, what is made of the answers, and how it is shown."""

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from divandb import datadir
from divandb.cli import asking, divandb
from divandb.cli import status as command
from divandb.cli.asking import credentials_in
from divandb.cli.status import collected, compare, grouped
from divandb.cli.tables import as_text, table
from divandb.cluster import trust
from divandb.cluster.snapshots import NOTE_NAME, PART_NAME
from divandb.datadir import ClusterRecord, NodeRecord

ADMIN = "admin:pass:word"
SECRET = bytes(range(32))
KEYS = trust.keys_of(SECRET, "m1", "master", "m1", is_master=True)


class Handler(BaseHTTPRequestHandler):
    server: "FakeNode"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/_up":
            self._say(404 if self.server.is_board else 200, {})
        elif self.path == "/board/v1/_up" and self.server.is_board:
            self._say(200, {"status": "ok"})
        elif not self._is_allowed(self.headers.get("authorization", "")):
            self._say(401, {"error": "unauthorized", "reason": "Name or password is incorrect."})
        else:
            self._say(200, self.server.condition)

    def _is_allowed(self, authorization: str) -> bool:
        is_member = trust.holder(KEYS, authorization) is not None
        return is_member or authorization == self.server.authorization

    def _say(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


class FakeNode(ThreadingHTTPServer):
    """A node, or a board, that answers as it is told."""

    daemon_threads = True
    authorization = "Basic " + base64.b64encode(ADMIN.encode()).decode()

    def __init__(self, name: str, role: str, slot: str, upto: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.role, self.slot = name, role, slot
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.peers: list[FakeNode] = []
        self.upto = upto

    @property
    def is_board(self) -> bool:
        return self.role == "board"

    @property
    def condition(self) -> dict[str, Any]:
        return {
            **self.shown,
            "pid": 4711,
            "started": "2026-02-01T00:00:00.456Z",
            "vector": {"00000000000000aa": self.upto},
            "lag_ms": 12.34,
            "silent": {},
            "slots": {"m1": {"lag_ms": 12.3, "lag_events": None}},
            "board": {
                "failing": None,
                "relay_failing": None,
                "reading": {"m1": {"next": self.upto, "end": 7, "failing": None}},
            },
            "queue_jobs": 3,
            "budget": {"share": 0.5, "reason": "start", "hurts": False},
            "peers": [peer.shown for peer in self.peers],
        }

    @property
    def shown(self) -> dict[str, Any]:
        return {"name": self.name, "role": self.role, "slot": self.slot, "url": self.url}

    def record(self, pid: int | None = 1) -> NodeRecord:
        master = self.slot if self.role == "replica" else None
        started = None if pid is None else "2026-01-31T12:00:00.123Z"
        return NodeRecord(self.name, self.role, master, self.url, pid, 2, started)


@contextmanager
def serving(*nodes: FakeNode) -> Iterator[None]:
    with ExitStack() as stack:
        for node in nodes:
            thread = threading.Thread(target=node.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(node.server_close)
            stack.callback(node.shutdown)
        yield


@pytest.fixture
def nodes() -> Iterator[dict[str, FakeNode]]:
    made = [
        FakeNode("board", "board", ""),
        FakeNode("m1", "master", "m1", 7),
        FakeNode("m1-r1", "replica", "m1", 5),
    ]
    with serving(*made):
        yield {node.name: node for node in made}


@pytest.fixture
def data(tmp_path: Path, nodes: dict[str, FakeNode], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DIVANDB_ADMIN", raising=False)
    (tmp_path / "secret").write_text(SECRET.hex())
    record(tmp_path, [node.record() for node in nodes.values()])
    return tmp_path


def record(data: Path, nodes: list[NodeRecord]) -> None:
    datadir.write_cluster(data, ClusterRecord("http://127.0.0.1:1", os.getpid(), nodes))


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {node["name"]: node for node in found["nodes"]}


# Asking


def test_every_process_is_asked_for_its_condition(data: Path, nodes: dict[str, FakeNode]) -> None:
    found = collected(data, None)
    assert (found["url"], found["pid"]) == ("http://127.0.0.1:1", os.getpid())
    shown = by_name(found)
    assert [node["state"] for node in shown.values()] == ["up", "up", "up"]
    replica = shown["m1-r1"]
    assert replica["master"] == "m1"
    assert (replica["pid"], replica["restarts"]) == (1, 2)
    assert (replica["lag_ms"], replica["queue_jobs"]) == (12.34, 3)
    assert replica["slots"] == {"m1": {"lag_ms": 12.3, "lag_events": 2}}
    assert "vector" not in shown["board"]
    assert nodes["m1"].asked == ["/_up", "/_divan/status"]


def test_a_node_that_is_not_there_is_down(data: Path, nodes: dict[str, FakeNode]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    gone = NodeRecord("m2", "master", None, f"http://127.0.0.1:{port}", 5, 0, None)
    ended = NodeRecord("m3", "master", None, nodes["m1"].url, None, 0, None)
    record(data, [nodes["m1"].record(), gone, ended])
    states = {name: node["state"] for name, node in by_name(collected(data, None)).items()}
    assert states == {"m1": "up", "m2": "down", "m3": "down"}


def test_a_node_that_does_not_answer_is_silent_and_holds_nobody_up(
    data: Path, nodes: dict[str, FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "UP_S_MAX", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        url = f"http://127.0.0.1:{stopped.getsockname()[1]}"
        record(data, [nodes["m1"].record(), NodeRecord("m2", "master", None, url, 5, 0, None)])
        shown = by_name(collected(data, None))
    assert (shown["m2"]["state"], shown["m2"]["up"]) == ("silent", False)
    assert shown["m1"]["up"]


def test_a_node_that_fetches_a_file_says_how_far_it_is(
    data: Path, nodes: dict[str, FakeNode]
) -> None:
    folder = data / "m2"
    folder.mkdir()
    (folder / NOTE_NAME).write_text('{"source": "http://m1", "offer": {"size_bytes": 200}}')
    (folder / PART_NAME).write_bytes(b"x" * 50)
    record(
        data, [nodes["m1"].record(), NodeRecord("m2", "master", None, "http://x", None, 0, None)]
    )
    found = collected(data, None)
    assert by_name(found)["m2"]["copying"] == {
        "source": "http://m1",
        "bytes": 50,
        "total_bytes": 200,
    }
    assert "copying 25%" in as_text(found)


def test_another_clusters_secret_is_said_and_the_node_is_up_all_the_same(data: Path) -> None:
    (data / "secret").write_text(bytes(32).hex())
    result = CliRunner().invoke(divandb, ["status", "--data", str(data)])
    assert result.exit_code == 0
    assert "divandb: m1: answered 401, Name or password is incorrect." in result.output


def test_when_no_process_is_up_the_status_is_1(data: Path) -> None:
    record(data, [NodeRecord("m1", "master", None, "http://127.0.0.1:1", None, 0, None)])
    result = CliRunner().invoke(divandb, ["status", "--data", str(data), "--json"])
    assert result.exit_code == 1
    assert "divandb: no node answers" in result.output


def test_a_url_leads_to_all_others(nodes: dict[str, FakeNode]) -> None:
    m1, replica = nodes["m1"], nodes["m1-r1"]
    replica.peers = [m1]
    place = replica.url.replace("http://", "http://admin:pass%3Aword@")
    found = collected(Path("nowhere"), place)
    assert found["url"] == replica.url
    assert [node["name"] for node in found["nodes"]] == ["m1", "m1-r1"]
    assert all(node["up"] and node["pid"] == 4711 for node in found["nodes"])
    assert found["nodes"][0]["started_at"] == "2026-02-01T00:00:00.456Z"
    assert by_name(found)["m1-r1"]["slots"]["m1"]["lag_events"] == 2


def test_a_node_on_another_host_is_shown_with_the_folders(
    data: Path, nodes: dict[str, FakeNode]
) -> None:
    record(data, [nodes["m1"].record()])
    nodes["m1"].peers = [nodes["m1-r1"]]
    found = by_name(collected(data, None))
    assert list(found) == ["m1", "m1-r1"]
    assert found["m1-r1"]["master"] == "m1"
    assert found["m1-r1"]["lag_ms"] == 12.34


def test_a_url_that_does_not_help_is_a_clear_error(nodes: dict[str, FakeNode]) -> None:
    with pytest.raises(click.ClickException, match="answered 401"):
        collected(Path("nowhere"), nodes["m1"].url)
    with pytest.raises(click.ClickException, match="is not an http"):
        collected(Path("nowhere"), "localhost:5984")


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("http://h:1", "a:b", ("http://h:1", "a:b")),
        ("http://u:p@h:1/", "a:b", ("http://h:1", "u:p")),
        ("https://u:p%40@[::1]:1", None, ("https://[::1]:1", "u:p@")),
    ],
)
def test_credentials_in_a_url_go_before_others(
    url: str, given: str | None, expected: tuple[str, str | None]
) -> None:
    assert credentials_in(url, given) == expected


# Showing


def node_of(name: str, role: str, slot: str, slots: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "role": role,
        "master": slot if role == "replica" else None,
        "url": "http://192.168.100.200:65535",
        "pid": 4194304,
        "restarts": 12,
        "started_at": "2026-01-31T12:00:00.123Z",
        "up": True,
        "state": "up",
        "refused": None,
        "copying": None,
        "slot": slot,
        "vector": {"aa": 10**9},
        "lag_ms": 123456.78,
        "silent": {},
        "slots": {one: {"lag_ms": 1.0, "lag_events": 123_456} for one in slots},
        "board": {
            "failing": None,
            "relay_failing": None,
            "reading": {
                one: {"next": 12_345_678, "end": 12_345_678, "failing": None}
                for one in ([s for s in slots if s != slot] if role == "master" else ["replicas"])
            },
        },
        "queue_jobs": 4096,
        "budget": {"share": 0.5, "reason": "start", "hurts": False},
        "peers": [],
    }


def three_by_three() -> dict[str, Any]:
    slots = ["m1", "m2", "m3"]
    nodes = [node_of(slot, "master", slot, slots) for slot in slots]
    nodes += [node_of(f"{slot}-r{n}", "replica", slot, slots) for slot in slots for n in (1, 2, 3)]
    board = {**node_of("board", "board", "", []), "master": None}
    del board["vector"]
    shared = {"epoch": 0, "up": 4, "members": 4, "switching": []}
    groups = {slot: {"owner": slot, **shared} for slot in slots}
    return {"url": "http://127.0.0.1:5984", "pid": 1, "nodes": [board, *nodes], "groups": groups}


def test_a_group_that_lost_nodes_has_a_line() -> None:
    found = three_by_three()
    found["groups"]["m2"] |= {"owner": "m2-r1", "up": 1}
    assert "\n\nm2: redundancy 1/4, owned by m2-r1" in as_text(found)


def test_the_latest_owner_that_any_node_knows_is_the_groups_master() -> None:
    slots = ["m1", "m2"]
    nodes = [node_of(slot, "master", slot, slots) for slot in slots]
    nodes.append({**node_of("m1-r1", "replica", "m1", slots), "master": "m1"})
    nodes[0] |= {"up": False, "owners": {"m1": {"name": "m1", "epoch": 0, "confirmed": True}}}
    nodes[2]["owners"] = {"m1": {"name": "m1-r1", "epoch": 1, "confirmed": False}}
    groups = grouped(nodes)
    assert groups == {"m1": {"owner": "m1-r1", "epoch": 1, "up": 1, "members": 2, "switching": []}}
    assert [(node["role"], node["master"]) for node in nodes] == [
        ("replica", "m1-r1"), ("master", None), ("master", None),
    ]  # fmt: skip


def test_a_groups_new_versions_of_views_are_told_once() -> None:
    found = three_by_three()
    told = {"database": "movies", "design_document": "_design/d", "in_use": "3" * 32}
    told |= {"next": "9" * 32, "held": False}
    by_name = {node["name"]: node for node in found["nodes"]}
    by_name["m2"]["indexes"] = {"switching": [{**told, "ready": False, "waits_for": ["m2-r2"]}]}
    by_name["m2-r1"]["indexes"] = {"switching": [{**told, "ready": True, "waits_for": ["m2-r2"]}]}
    by_name["m2-r2"]["indexes"] = {"switching": [{**told, "ready": False, "waits_for": []}]}
    for node in found["nodes"]:
        node["owners"] = {"m2": {"name": "m2", "epoch": 0, "confirmed": True}}
    found["groups"] = grouped(found["nodes"])
    (said,) = found["groups"]["m2"]["switching"]
    assert (said["ready"], said["waits_for"]) == (["m2-r1"], ["m2-r2"])
    assert said["building"] == ["m2", "m2-r2"]
    line = "m2: movies/_design/d: version 33333333 answers until 99999999 is ready; ready on m2-r1;"
    assert f"\n\n{line} building on m2, m2-r2" in as_text(found)


def test_thirteen_processes_fit_into_120_columns() -> None:
    lines = as_text(three_by_three()).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == "http://127.0.0.1:5984  13 of 13 processes answer"
    first, second = [line for line in lines if line.startswith("NAME")]
    assert first.split() == [
        "NAME", "ROLE", "MASTER", "STATE", "PID", "RESTARTS", "UP", "SINCE", "URL",
    ]  # fmt: skip
    assert second.split() == [
        "NAME", "LAG", "MS", "m1", "m2", "m3", "QUEUE", "SHARE", "BOARD", "NEXT/END",
    ]  # fmt: skip
    assert sum(line.startswith("m") for line in lines) == 24


def test_the_tables_line_up() -> None:
    assert table([("NAME", "N"), ("a", "1"), ("bcdef", "-"), ("g", "123")]).splitlines() == [
        "NAME     N",
        "a        1",
        "bcdef    -",
        "g      123",
    ]


def test_what_fails_has_a_line_of_its_own() -> None:
    node = node_of("m1", "master", "m1", ["m1", "m2"])
    node["board"]["failing"] = "cannot be reached"
    node["board"]["reading"]["m2"]["failing"] = "403"
    node["silent"] = {"m2": 4321}
    lines = as_text({"url": "u", "groups": {}, "pid": 1, "nodes": [node]}).splitlines()
    assert lines[-3:] == [
        "m1 cannot publish: cannot be reached",
        "m1 cannot read m2: 403",
        "m1 has not heard of m2 for 4.3 s",
    ]


def test_holes_and_alarms_have_lines_of_their_own_when_there_are_any() -> None:
    node = node_of("m1", "master", "m1", ["m1"])
    node |= {
        "holes": {"count": 0, "reasons": []},
        "waiting_local": 7,
        "missing_blobs": 0,
        "alarms": {"hlc_drift_ms_max": 0, "hlc_drift_events": 0, "damaged_blobs": 0},
    }
    calm = as_text({"url": "u", "groups": {}, "pid": 1, "nodes": [node]})
    assert calm == as_text(
        {"url": "u", "groups": {}, "pid": 1, "nodes": [node_of("m1", "master", "m1", ["m1"])]}
    )
    node |= {
        "holes": {"count": 2, "reasons": ["event version 2, this node reads 1", "damaged event"]},
        "missing_blobs": 3,
        "alarms": {"hlc_drift_ms_max": 400_000, "hlc_drift_events": 5, "damaged_blobs": 1},
    }
    lines = as_text({"url": "u", "groups": {}, "pid": 1, "nodes": [node]}).splitlines()
    assert lines[-5:] == [
        "m1 cannot apply 2 events: event version 2, this node reads 1; damaged event",
        "m1 lacks the bytes of 3 attachments",
        "m1 alarm hlc_drift_ms_max: 400000",
        "m1 alarm hlc_drift_events: 5",
        "m1 alarm damaged_blobs: 1",
    ]


def test_many_masters_are_cut() -> None:
    slots = [f"m{number}" for number in range(1, 20)]
    text = as_text(
        {"url": "u", "groups": {}, "pid": 1, "nodes": [node_of("m1", "master", "m1", slots)]}
    )
    assert "…" in text
    assert text.index(" m9 ") < text.index(" m10 ")


def test_a_node_that_says_nothing_is_only_in_the_first_table() -> None:
    found = three_by_three()
    for node in found["nodes"]:
        node.pop("vector", None)
    assert as_text(found).count("NAME") == 1


def test_lag_is_counted_against_each_master_that_answered() -> None:
    nodes = [
        {"role": "master", "slot": "m1", "vector": {"a": 5, "b": 1}, "slots": {}},
        {"role": "master", "slot": "m2", "vector": {"a": 4, "b": 3}, "slots": {}},
        {"role": "replica", "slot": "m2", "vector": {"b": 3}, "slots": {}},
        {"role": "master", "slot": "m3"},
    ]
    compare(nodes)
    lags = [{slot: one["lag_events"] for slot, one in n["slots"].items()} for n in nodes[:3]]
    assert lags == [{"m1": 0, "m2": 2}, {"m1": 1, "m2": 0}, {"m1": 5, "m2": 4}]


# Watching


def test_watch_prints_again_until_it_is_interrupted(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            datadir.remove_cluster(data)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = CliRunner().invoke(divandb, ["status", "--data", str(data), "--watch"])
    assert result.exit_code == 0
    assert result.output.count("3 of 3 processes answer") == 2
    assert f"nothing runs in {data}" in result.output
    assert "\x1b" not in result.output
    assert waits == [1.0] * 3


def test_watch_as_json_is_a_line_each(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = CliRunner().invoke(divandb, ["status", "--data", str(data), "--watch", "--json"])
    (line,) = result.output.splitlines()
    assert len(json.loads(line)["nodes"]) == 3
