"""Nodes are added while clients write: they come to hold what all others hold."""

import time
from collections.abc import Iterator

import pytest

from tests.running import Cluster, clustered, divandb
from tests.system.load import load
from tests.system.wire import faults

CONVERGE_S = 5.0
"""From the last write to nodes that all hold the same."""
BEFORE_S = 1.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters without replicas: their Replicas' Boards get nothing yet."""
    with clustered(tmp_path_factory.mktemp("grow"), masters=2, replicas=0) as started:
        assert started.request("PUT", "/old")[0] == 201
        docs = [{"_id": f"d{number:05}", "filling": "x" * 500} for number in range(5_000)]
        assert started.request("POST", "/old/_bulk_docs", {"docs": docs})[0] == 201
        started.await_converged()
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


def added(cluster: Cluster, *arguments: str) -> list[str]:
    """Run `divandb add`; the names of the new nodes, which the cluster knows from here on."""
    done = divandb("add", *arguments, "--data", str(cluster.data), **cluster.environment)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    for name in names:
        (cluster.replicas if "-" in name else cluster.masters).append(name)
    return names


@pytest.mark.parametrize(
    ("arguments", "names", "after_s"),
    [
        # Nobody read m2's Replicas' Board before: what m2 accepts between the new node's copy of
        # the file and its first heartbeat is on no board that the new node may open, and nothing
        # comes later that would show the gap.
        (["replica", "--to", "m2"], ["m2-r1"], 0.0),
        (["replica", "--to", "m2"], ["m2-r2"], 2.0),
        (["replica", "--to", "m1"], ["m1-r1"], 2.0),
        (["master"], ["m3"], 0.0),
        (["master", "--replicas", "1"], ["m4", "m4-r1"], 2.0),
        (["replica", "--to", "m3"], ["m3-r1"], 0.0),
    ],
)
def test_a_node_that_is_added_under_load_holds_what_all_hold(
    own: Cluster, arguments: list[str], names: list[str], after_s: float
) -> None:
    db = "grown-" + "-".join(names)
    with load(own, db, [*own.masters, own.nodes[-1]]) as busy:
        time.sleep(BEFORE_S)
        began = time.monotonic()
        assert added(own, *arguments) == names
        print(f"{names} added after {time.monotonic() - began:.2f} s")
        time.sleep(after_s)
    ended = time.monotonic()
    own.await_converged(CONVERGE_S)
    took_s = time.monotonic() - ended
    from_peers = [own.status_of(name)["caught_up_events"] for name in names]
    print(f"{names} like all others after {took_s:.2f} s, events from peers: {from_peers}")
    busy.check()
    assert own.everywhere(lambda node: own.request("GET", "/old/d04999", node=node)[0]) == 200


def test_what_is_written_at_a_new_node_comes_to_all(own: Cluster) -> None:
    """At a new master and at a new replica, as soon as it has answered."""
    db = "through-new"
    assert own.request("PUT", f"/{db}")[0] == 201
    for names in (added(own, "master"), added(own, "replica", "--to", "m5")):
        for name in names:
            with load(own, db, [name, name]) as busy:
                time.sleep(BEFORE_S)
            own.await_converged(CONVERGE_S)
            busy.check()
    assert own.status_of("m5-r1")["slot"] == "m5"
