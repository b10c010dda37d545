"""Masters killed, stopped and replaced under load: a replica takes over, and nothing is lost."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.running import BOARD, Cluster, clustered, divandb
from tests.system.load import Load, load
from tests.system.wire import faults

TAKEN_OVER_S_MAX = 15.0
"""A second, on a machine that has nothing else to do."""
GAP_S_MAX = 3.0
BETWEEN_S = 1.0
RETURNED_DOCS = 500

pytestmark = pytest.mark.timeout_s(240)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with two replicas each. Tests leave the slots to whom they please."""
    folder = tmp_path_factory.mktemp("failover")
    with clustered(folder, masters=2, replicas=2) as started:
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


@pytest.fixture
def db(own: Cluster) -> str:
    """A new database, which is there on all nodes."""
    name = f"db-{uuid4().hex}"
    assert own.request("PUT", f"/{name}")[0] == 201
    own.await_converged()
    return name


def owner_of(cluster: Cluster, slot: str, asked: str) -> str:
    """Who owns the slot, as one node knows."""
    name: str = cluster.status_of(asked)["owners"][slot]["name"]
    return name


def await_taken_over(cluster: Cluster, slot: str, former: str, asked: str) -> str:
    """The new owner, once it accepts writes."""

    def has_one() -> bool:
        name = owner_of(cluster, slot, asked)
        return name != former and bool(cluster.status_of(name)["serves"])

    cluster.await_true(has_one, TAKEN_OVER_S_MAX)
    return owner_of(cluster, slot, asked)


def check_all_went_on(busy: Load, since: float, until: float) -> None:
    """Each writer was answered all the time."""
    for writer in busy.writers:
        inside = [since, *(at for at in writer.answered_at if since < at < until), until]
        longest_s = max(b - a for a, b in itertools.pairwise(inside))
        print(f"{writer.name}: longest time without an acknowledgement: {longest_s:.2f} s")
        assert longest_s < GAP_S_MAX


def test_a_stopped_master_is_replaced_and_steps_down_when_it_goes_on(own: Cluster, db: str) -> None:
    former = owner_of(own, "m1", "m2-r1")
    others = [name for name in ("m1", "m1-r1", "m1-r2") if name != former]
    with load(own, db, [*others, "m2-r1", None]) as busy:
        time.sleep(BETWEEN_S)
        with own.frozen(former):
            since = time.monotonic()
            new = await_taken_over(own, "m1", former, "m2-r1")
            time.sleep(BETWEEN_S)
            until = time.monotonic()
        own.await_true(lambda: own.status_of(former)["role"] == "replica", TAKEN_OVER_S_MAX)
        time.sleep(BETWEEN_S)
    check_all_went_on(busy, since, until)
    assert own.status_of(new)["role"] == "master"
    own.await_converged()
    busy.check()


def test_slots_change_hands_by_request_under_load(own: Cluster, db: str) -> None:
    former = owner_of(own, "m2", "m1-r1")
    new = next(name for name in ("m2-r1", "m2-r2", "m2") if name != former)
    place = ("--data", str(own.data))
    with load(own, db, ["m1-r1", "m2-r1", "m2-r2", None]) as busy:
        time.sleep(BETWEEN_S)
        since = time.monotonic()
        done = divandb("promote", new, *place)
        assert done.returncode == 0, done.stderr
        assert f"{new} owns its slot" in done.stdout
        time.sleep(BETWEEN_S)
        done = divandb("demote", new, *place)
        assert done.returncode == 0, done.stderr
        until = time.monotonic()
        time.sleep(BETWEEN_S)
    check_all_went_on(busy, since, until)
    assert not any(writer.refusals for writer in busy.writers)
    assert owner_of(own, "m2", "m1-r1") != new
    own.await_converged()
    busy.check()
    receipts = json.loads(divandb("receipts", "--json", *place).stdout)["receipts"]
    assert not [one for one in receipts if one["slot"] == "m2"]
    refused = divandb("demote", new, *place)
    assert (refused.returncode, "does not own" in refused.stderr) == (1, True)
    assert divandb("promote", "m9", *place).returncode == 1


@pytest.mark.parametrize("what", ["kill", "pause", "board"])
def test_a_drill_shows_what_clients_notice(own: Cluster, what: str) -> None:
    place = ("--data", str(own.data))
    admin = own.credentials
    done = divandb(
        "drill", what, "--json", "--rounds", "1", "--pause", "2", *place, DIVANDB_ADMIN=admin
    )
    if what == BOARD and own.broker is not None:
        assert (done.returncode, "the boards are not run here" in done.stderr) == (1, True)
        return
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (one,) = found["rounds"]
    assert found["missing"] == {}
    assert (one["node"] == BOARD) == (what == BOARD)
    assert 0 < one["gap_ms"] < 1000 * GAP_S_MAX
    assert one["reads"] > 10
    if what == "kill":
        assert one["owner_after_ms"] < 1000 * TAKEN_OVER_S_MAX
    assert "drill" not in " ".join(own.request("GET", "/_all_dbs")[1])
    refused = divandb("drill", what, "--slot", "m9", *place, DIVANDB_ADMIN=admin)
    assert (refused.returncode, "no slot m9" in refused.stderr) == (1, True)


def test_all_masters_are_killed_at_once(tmp_path: Path) -> None:
    """For good: their replicas go on, and read all the time."""
    with clustered(tmp_path, "--no-restart", masters=2, replicas=2) as cluster:
        with load(cluster, "db", ["m1-r1", "m2-r2", None]) as busy:
            time.sleep(BETWEEN_S)
            for name in cluster.masters:
                cluster.kill_for_good(name)
            killed = time.monotonic()
            for slot in ("m1", "m2"):
                await_taken_over(cluster, slot, slot, "m1-r1")
            while time.monotonic() < killed + 3 * BETWEEN_S:
                assert cluster.request("GET", "/db")[0] == 200
        assert all(writer.answered_at[-1] > killed for writer in busy.writers)
        done = divandb("status", "--data", str(cluster.data))
        assert "m1: redundancy 2/3, owned by m1-r" in done.stdout
        cluster.restart()
        cluster.await_converged()
        busy.check()


def test_what_only_an_old_master_had_comes_back_with_a_receipt(tmp_path: Path) -> None:
    """Board and peers are out of its reach when it accepts writes and is killed."""
    with clustered(tmp_path, "--no-restart", masters=2, replicas=2) as cluster:
        assert cluster.request("PUT", "/db")[0] == 201
        cluster.await_converged()
        with cluster.frozen(BOARD, *(name for name in cluster.nodes if name != "m1")):
            for number in range(RETURNED_DOCS):
                status, answer = cluster.request("PUT", f"/db/{number:03}", {}, node="m1")
                assert status == 201, answer
            cluster.kill_for_good("m1")
        new = await_taken_over(cluster, "m1", "m1", "m2")
        # What was in the buffers of a connection has left it all the same.
        rows = cluster.request("GET", "/db/_all_docs", node=new)[1]["rows"]
        left = {row["id"] for row in rows}
        assert len(left) < RETURNED_DOCS / 10
        cluster.restart()
        cluster.await_converged()
        place = ("--data", str(cluster.data))

        def documents() -> list[str]:
            found = json.loads(divandb("receipts", "--json", *place).stdout)
            return [one["id"] for each in found["receipts"] for one in each["documents"]]

        cluster.await_true(lambda: len(documents()) >= RETURNED_DOCS - len(left))
        assert {*documents(), *left} == {f"{number:03}" for number in range(RETURNED_DOCS)}
        for name in cluster.nodes:
            assert cluster.request("GET", "/db", node=name)[1]["doc_count"] == RETURNED_DOCS
        assert owner_of(cluster, "m1", "m2") == new
        assert documents()[0] in divandb("receipts", *place).stdout
