"""A cluster that is started again and again, and a node that is removed: real processes."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from divandb.cluster import topics
from divandb.datadir import is_alive
from tests.running import Cluster, clustered, divandb
from tests.system.rights import BoardClient, secret_of
from tests.system.wire import faults

RUNS = 3
CLOSED_S_MAX = 60.0
"""Some seconds, on a machine that has nothing else to do."""

pytestmark = pytest.mark.timeout_s(240)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with a replica each."""
    with clustered(tmp_path_factory.mktemp("removal"), masters=2, replicas=1) as running:
        assert running.request("PUT", "/db")[0] == 201
        running.await_converged()
        yield running
        assert running.stop() == 0
        assert faults(running) == ""


def shown(cluster: Cluster) -> list[dict[str, Any]]:
    """What `divandb status` says of the nodes."""
    done = divandb("status", "--json", "--data", str(cluster.data))
    return [one for one in json.loads(done.stdout)["nodes"] if one["role"] != "board"]


def remove(cluster: Cluster, *arguments: str) -> Any:
    return divandb("remove", *arguments, "--data", str(cluster.data), **cluster.environment)


def is_heard(cluster: Cluster, name: str) -> bool:
    """Does the owner of its slot hear of it?"""
    peers = cluster.status_of("m2")["peers"]
    return any(one["live"] for one in peers if one["name"] == name)


def test_a_cluster_that_was_started_often_has_small_vectors(own: Cluster) -> None:
    """Each run of a master has an origin of its own; nodes show those of the last one."""
    for run in range(RUNS):
        if run:
            own.restart()
            own.await_true(lambda: all(own.status_of(name)["serves"] for name in own.masters))
        for name in own.masters:
            own.await_true(
                lambda name=name, run=run: (
                    own.request("PUT", f"/db/{name}-{run}", {}, node=name)[0] in (201, 409)
                )
            )
    own.await_true(
        lambda: all(len(one["vector"]) <= 2 for one in shown(own)), CLOSED_S_MAX
    )  # fmt: skip
    nodes = shown(own)
    assert len(nodes) == 4
    assert all(one["closed_origins"] >= 2 * (RUNS - 1) for one in nodes)
    assert all(one["slots"][slot]["lag_events"] == 0 for one in nodes for slot in one["slots"])
    for name in own.nodes:
        assert own.request("GET", "/db", node=name)[1]["doc_count"] == 2 * RUNS


def test_an_owner_and_a_node_that_nobody_knows_are_not_removed(own: Cluster) -> None:
    refused = remove(own, "m1")
    assert (refused.returncode, "owns m1" in refused.stderr) == (1, True), refused.stderr
    refused = remove(own, "m7")
    assert (refused.returncode, "no node m7" in refused.stderr) == (1, True), refused.stderr
    assert len(shown(own)) == 4


def test_a_dead_replica_is_removed_for_good(own: Cluster) -> None:
    """It is not started again, not waited for, has no rights, and its name is not given again."""
    own.send("m2-r1", signal.SIGSTOP)
    own.await_true(lambda: not is_heard(own, "m2-r1"))
    known = BoardClient(own, secret_of(own), "m2-r1")
    replicas_board = topics.replicas(known.cluster_id, "m2")
    assert known.read(replicas_board) == 200
    refused = remove(own, "m2-r1")
    assert (refused.returncode, "does not answer" in refused.stderr) == (1, True)
    done = remove(own, "m2-r1", "--force")
    assert (done.returncode, done.stdout) == (0, "m2-r1 is removed\n"), done.stderr
    own.replicas.remove("m2-r1")
    own.await_true(lambda: known.read(replicas_board) in (401, 403))
    left = {one["name"] for one in shown(own)}
    assert left == {"m1", "m2", "m1-r1"}
    assert own.request("PUT", "/db/visible?concern=visible", {}, node="m1")[0] == 201
    added = divandb("add", "replica", "--to", "m2", "--data", str(own.data), **own.environment)
    assert (added.returncode, added.stdout.split()[0]) == (0, "m2-r2"), added.stderr
    own.replicas.append("m2-r2")
    own.await_converged()
    del own.options[:4]  # the folder knows by itself who belongs to it
    own.restart()
    assert {one["name"] for one in shown(own)} == {"m1", "m2", "m1-r1", "m2-r2"}
    assert (own.data / "m2-r1").is_dir()


def test_a_live_replica_that_is_removed_ends(own: Cluster) -> None:
    pid = own.pid_of("m2-r2")
    done = remove(own, "m2-r2")
    assert done.returncode == 0, done.stderr
    own.replicas.remove("m2-r2")
    assert "m2-r2" not in {one["name"] for one in own.cluster["nodes"]}
    assert not is_alive(pid)
    last = remove(own, "m1-r1")
    assert (last.returncode, "only node that serves clients" in last.stderr) == (1, True)


def test_a_node_is_removed_by_url(own: Cluster) -> None:
    """As the operator of a cluster that spans machines does it: no folder is touched, and what is
    left to do is said.
    """
    added = divandb("add", "replica", "--to", "m2", "--data", str(own.data), **own.environment)
    assert added.returncode == 0, added.stderr
    name = added.stdout.split()[0]
    own.await_converged()
    (url,) = [one["url"] for one in own.cluster["nodes"] if one["name"] == "m1"]

    def by_url(node: str) -> Any:
        return divandb("remove", node, "--url", url, DIVANDB_ADMIN=own.credentials)

    refused = by_url("m2")
    assert (refused.returncode, "owns m2" in refused.stderr) == (1, True), refused.stderr
    done = by_url(name)
    assert (done.returncode, done.stdout) == (0, f"{name} is removed\n"), done.stderr
    assert "files of the board and of other nodes" in done.stderr
    own.await_true(lambda: not is_heard(own, name))
    again = by_url(name)
    assert (again.returncode, f"no node {name}" in again.stderr) == (1, True), again.stderr
    assert name in {one["name"] for one in own.cluster["nodes"]}
