"""Thirteen processes: they start, answer, agree, stop, start again, and know who may do what."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb.cluster import messages, topics, trust
from divandb.cluster.messages import Heartbeat, Seen
from divandb.datadir import NodeRecord
from tests.running import BOARD, Cluster, clustered, divandb
from tests.system.load import load
from tests.system.rights import BoardClient, secret_of
from tests.system.wire import faults

START_S_MAX = 15.0
"""The aim is 1.5 s; more are allowed to a machine that does something else besides."""


@pytest.fixture(scope="module")
def secret(cluster: Cluster) -> bytes:
    """The cluster's secret, which everything comes from."""
    return secret_of(cluster)


def test_thirteen_processes_start_answer_stop_and_start_again(tmp_path: Path) -> None:
    with clustered(tmp_path) as own:
        print(f"ready after {own.start_s:.2f} s")
        assert own.start_s < START_S_MAX
        assert {one["name"] for one in own.cluster["nodes"]} == own.processes
        assert all(own.answers(name) for name in [BOARD, *own.nodes])
        assert len({own.pid_of(name) for name in [BOARD, *own.nodes]}) == 13

        with load(own, "kept", ["m1", "m2-r2", "m3-r1", None]) as busy:
            own.await_true(lambda: busy.acknowledged > 100)
        # Straight after the last answer, with events still on their way.
        assert own.stop() == 0
        said = own.log.read_text()
        assert "node killed" not in said, "a process did not come to its end"
        assert not (own.data / "cluster.json").exists()

        own.start()
        print(f"ready again after {own.start_s:.2f} s")
        before = own.await_converged()
        busy.check()
        own.restart()
        after = own.await_converged()
        assert {db: held for db, held in after.items() if db != "vector"} == {
            db: held for db, held in before.items() if db != "vector"
        }
        assert faults(own) == ""


def test_the_supervisor_holds_no_thread(cluster: Cluster) -> None:
    """One that does not block signals would take a SIGTERM, and end without stopping anything."""
    assert os.listdir(f"/proc/{cluster.cluster['pid']}/task") == [str(cluster.cluster["pid"])]


def test_status_shows_every_process(cluster: Cluster) -> None:
    done = divandb(
        "status", "--json", "--data", str(cluster.data), DIVANDB_ADMIN=cluster.credentials
    )
    assert done.returncode == 0, done.stderr
    shown = {node["name"]: node for node in json.loads(done.stdout)["nodes"]}
    assert set(shown) == cluster.processes
    fields = {field.name for field in msgspec.structs.fields(NodeRecord)}
    for node in cluster.cluster["nodes"]:
        assert {name: shown[node["name"]][name] for name in fields} == node
        assert shown[node["name"]]["up"] is True
    for name in cluster.nodes:
        assert isinstance(shown[name]["vector"], dict)
        assert shown[name]["lag_ms"] is not None
    assert [shown[name]["role"] for name in ("m1", "m2-r3")] == ["master", "replica"]
    assert BOARD not in shown or shown[BOARD]["role"] == BOARD
    assert shown["m2-r3"]["master"] == "m2"
    text = divandb("status", "--data", str(cluster.data), DIVANDB_ADMIN=cluster.credentials).stdout
    assert all(name in text for name in cluster.nodes)


def test_status_by_url_shows_processes_and_since_when(cluster: Cluster) -> None:
    done = divandb("status", "--json", "--url", cluster.url, DIVANDB_ADMIN=cluster.credentials)
    assert done.returncode == 0, done.stderr
    for node in json.loads(done.stdout)["nodes"]:
        assert node["pid"] == cluster.pid_of(node["name"])
        assert node["started_at"] >= cluster.record(node["name"])["started_at"]
        assert (node["holes"], node["missing_blobs"]) == ({"count": 0, "reasons": []}, 0)
        assert not any(node["alarms"].values())
        is_master = node["role"] == "master"
        assert (node["forwarding_jobs"] is None, node["outbox_rows"] is None) == (
            is_master,
            not is_master,
        )


def test_every_node_says_who_it_is_and_whom_it_hears(cluster: Cluster) -> None:
    for name in cluster.nodes:
        status = cluster.status_of(name)
        record = cluster.record(name)
        assert (status["name"], status["role"], status["url"]) == (
            name,
            record["role"],
            record["url"],
        )
        assert status["slot"] == name[:2]
    for name in cluster.masters:
        cluster.await_true(
            lambda name=name: (
                {p["name"] for p in cluster.status_of(name)["peers"] if p["live"]}
                == set(cluster.nodes) - {name}
            )
        )


# --- Rule 3: who may open which board


def test_a_replica_may_open_nothing_but_its_own_groups_board(
    cluster: Cluster, secret: bytes
) -> None:
    client = BoardClient(cluster, secret, "m1-r1")
    masters = topics.masters(client.cluster_id)
    own = topics.replicas(client.cluster_id, "m1")
    other = topics.replicas(client.cluster_id, "m2")
    for partition in range(3):
        assert client.read(masters, partition) == 403
        assert client.write(masters, partition) == 403
    assert client.describe(masters) == 403
    assert (client.read(other), client.write(other), client.describe(other)) == (403,) * 3
    assert (client.read(own), client.describe(own)) == (200, 200)
    assert client.write(own) == 403


def test_a_master_may_not_open_another_groups_board(cluster: Cluster, secret: bytes) -> None:
    client = BoardClient(cluster, secret, "m1")
    masters = topics.masters(client.cluster_id)
    other = topics.replicas(client.cluster_id, "m2")
    assert (client.read(other), client.write(other)) == (403, 403)
    assert all(client.read(masters, partition) == 200 for partition in range(3))


def test_the_board_opens_to_nobody_without_a_secret(cluster: Cluster, secret: bytes) -> None:
    client = BoardClient(cluster, b"x" * 32, "m1")
    topic = topics.masters(trust.keys_of(secret, "", "", "", is_master=False).cluster)
    assert (client.read(topic), client.write(topic)) == (401, 401)


# --- Peer links

PEER_ROUTES = ["heartbeat", "commands", "reached", "beyond", "snapshot"]


def token(secret: bytes, name: str, role: str, slot: str, *, knows_masters: bool = True) -> str:
    """A node's credential; of one who does not know the masters' key the second mark is wrong."""
    members, masters = trust.derived(secret, "members"), trust.derived(secret, "masters")
    return trust.SCHEME + trust.token(members, masters if knows_masters else b"", name, role, slot)


def post(cluster: Cluster, node: str, route: str, body: Any, authorization: str = "") -> int:
    """The status of one request between nodes."""
    headers = {"authorization": authorization} if authorization else {}
    path = f"/_divan/{route}"
    data = messages.encode(body)
    return cluster.exchange("POST", path, data, headers, admin=False, node=node)[0]


def heartbeat(name: str, role: str, slot: str) -> Heartbeat:
    return Heartbeat({}, {}, 0.0, None, [], [Seen(name, role, slot, "http://127.0.0.1:9", 0, 0.0)])


@pytest.mark.parametrize("route", PEER_ROUTES)
def test_peer_routes_refuse_who_is_no_member(cluster: Cluster, secret: bytes, route: str) -> None:
    body = heartbeat("m1-r1", "replica", "m1")
    right = token(secret, "m1-r1", "replica", "m1")
    changed = right.replace("m1-r1", "m1-r2")
    foreign = token(b"y" * 32, "m1-r1", "replica", "m1")
    for node in ("m1", "m2-r1"):
        for authorization in ("", "Divan nonsense", changed, foreign):
            assert post(cluster, node, route, body, authorization) == 401, authorization
        status, _, _ = cluster.exchange(
            "POST", f"/_divan/{route}", messages.encode(body), node=node
        )
        assert status == 401, "an administrator is no node"


def test_a_node_speaks_for_itself_alone(cluster: Cluster, secret: bytes) -> None:
    replica = token(secret, "m1-r1", "replica", "m1")
    told = heartbeat("m1-r1", "replica", "m1")
    for claim in (
        heartbeat("m1", "master", "m1"),
        heartbeat("m1-r1", "master", "m1"),
        heartbeat("m1-r1", "replica", "m2"),
    ):
        assert post(cluster, "m2", "heartbeat", claim, replica) == 403
    status = cluster.status_of("m2")
    (m1,) = [peer for peer in status["peers"] if peer["name"] == "m1"]
    assert m1["url"] == cluster.record("m1")["url"]
    assert told.members[0].url != cluster.record("m1-r1")["url"]


def test_a_replicas_key_makes_no_token_that_a_master_takes(cluster: Cluster, secret: bytes) -> None:
    forged = token(secret, "m1", "master", "m1", knows_masters=False)
    for route in PEER_ROUTES:
        assert post(cluster, "m2", route, heartbeat("m1", "master", "m1"), forged) == 401


def test_a_nodes_credential_opens_no_database(cluster: Cluster, secret: bytes) -> None:
    authorization = {"authorization": token(secret, "m1", "master", "m1")}
    for path in ("/", "/_all_dbs", "/_users", "/_users/_all_docs"):
        status, _ = cluster.request("GET", path, headers=authorization, admin=False, node="m2")
        assert status == 403


def test_the_status_of_a_node_is_for_server_admins(cluster: Cluster) -> None:
    assert cluster.request("GET", "/_divan/status", node="m1-r1", admin=False)[0] == 401
