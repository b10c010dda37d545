"""Networks that are cut: between network namespaces, silently, under load.

Needs root and iproute2; without them the tests fail and say so.
"""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divandb.cli.lab import OUTSIDE
from tests.running import BOARD, divandb
from tests.system.isolated import Isolated, ids_in, isolated
from tests.system.load import Load, Writer, connected, load
from tests.system.test_failover import await_taken_over, owner_of

TAKEN_OVER_S_MAX = 10.0
"""2 s are promised, on a machine that has nothing else to do."""
GAP_S_MAX = 3.0
"""0.75 s are."""
CUT_S = 3.0
ALONE_DOCS = 500
ORPHAN_RETRIES = Path("/proc/sys/net/ipv4/tcp_orphan_retries")
SOCKETS = Path("/proc/thread-self/net/tcp")
BETWEEN_S = 1.0

pytestmark = pytest.mark.timeout_s(240)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isolated]:
    """Two masters with a replica each."""
    with isolated(tmp_path_factory.mktemp("partition"), 2, 1) as cluster:
        yield cluster


def other_of(slot: str, name: str) -> str:
    """The other node of the group."""
    return slot if name != slot else f"{slot}-r1"


def sockets() -> list[str]:
    """Those of this thread's host; state 04 has sent all that it will and waits for an answer."""
    return SOCKETS.read_text().splitlines()


def check(own: Isolated, busy: Load) -> None:
    """All that was acknowledged, on either side, is on all nodes."""
    own.await_converged()
    busy.check()


def writer_at(busy: Load, name: str) -> Writer:
    """Who writes through this node."""
    (found,) = (one for one in busy.writers if re.fullmatch(rf"writer {name}-\d", one.name))
    return found


def longest_s(busy: Load, name: str, since: float, until: float) -> float:
    """The longest time in which this writer got no answer."""
    moments = [since, *(at for at in writer_at(busy, name).answered_at if since < at < until)]
    found = max(after - before for before, after in itertools.pairwise([*moments, until]))
    print(f"{name}: {found:.2f} s without an acknowledgement")
    return found


def test_an_owner_that_is_cut_off_from_everyone(own: Isolated) -> None:
    """Both sides take writes. After healing all of them are everywhere, and a receipt names those
    that the former owner alone had.
    """
    former = owner_of(own, "m1", "m2")
    replica = other_of("m1", former)
    with load(own, "cut", [former, replica, "m2"]) as busy:
        time.sleep(BETWEEN_S)
        since = time.monotonic()
        with own.lab.cut_off(former):
            assert await_taken_over(own, "m1", former, "m2") == replica
            after_s = time.monotonic() - since
            print(f"a new owner after {after_s:.2f} s")
            assert after_s < TAKEN_OVER_S_MAX
            time.sleep(max(since + CUT_S - time.monotonic(), 0))
            until = time.monotonic()
        own.await_true(lambda: own.status_of(former)["role"] == "replica")
        time.sleep(BETWEEN_S)
    for name in (replica, "m2"):
        assert longest_s(busy, name, since, until) < GAP_S_MAX
    beside = writer_at(busy, former)
    assert sum(since < at < until for at in beside.answered_at) > 10
    check(own, busy)
    # New documents that it took while nobody heard it.
    alone = taken_alone(beside, since + BETWEEN_S, until)
    assert alone
    own.await_true(lambda: alone <= ids_in(own.receipts(replica)))
    assert own.receipts("m2") == own.receipts(former)


def taken_alone(writer: Writer, since: float, until: float) -> set[str]:
    """Documents that a writer made between these moments."""
    return {
        doc_id
        for doc_id, known in writer.docs.items()
        if known.made_at is not None and since < known.made_at < until
    }


def test_an_owner_that_hears_and_is_not_heard(own: Isolated) -> None:
    """One way: what it says arrives nowhere. To the others it is gone."""
    former = owner_of(own, "m1", "m2")
    replica = other_of("m1", former)
    others = [BOARD, OUTSIDE, *(name for name in own.nodes if name != former)]
    with load(own, "deaf", [replica, "m2"]) as busy:
        time.sleep(BETWEEN_S)
        since = time.monotonic()
        own.lab.hosts.cut((former, other) for other in others)
        try:
            assert await_taken_over(own, "m1", former, "m2") == replica
            print(f"a new owner after {time.monotonic() - since:.2f} s")
            until = time.monotonic()
        finally:
            own.lab.hosts.heal()
        own.await_true(lambda: own.status_of(former)["role"] == "replica")
    for name in (replica, "m2"):
        assert longest_s(busy, name, since, until) < GAP_S_MAX
    check(own, busy)


def test_a_drill_cuts_a_cluster_of_its_own_apart() -> None:
    """And leaves nothing behind. Whoever may not do that is told what is missing."""
    done = divandb("drill", "partition", "--json", "--rounds", "1", "--pause", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (one,) = found["rounds"]
    assert found["missing"] == {}
    assert 0 < one["gap_ms"] < 1000 * GAP_S_MAX
    assert (one["owner_after_ms"] < 1000 * TAKEN_OVER_S_MAX, one["cut_off_writes"] > 10) == (
        True, True,
    )  # fmt: skip
    refused = divandb("drill", "partition", PATH="/nowhere")
    assert (refused.returncode, "need root and the packages iproute2" in refused.stderr) == (
        1,
        True,
    )


def test_all_that_an_owner_took_alone_before_it_died_comes_back(own: Isolated) -> None:
    """Cut off from the board and all others it takes 500 writes, and is killed. A replica is made
    the owner by hand, and it returns: every document is named, and the one in conflict.
    """
    former = owner_of(own, "m1", "m2")
    replica = other_of("m1", former)
    assert own.request("PUT", "/tail", node="m2")[0] == 201
    status, both = own.request("PUT", "/tail/both", {}, node=former)
    assert status == 201
    own.await_converged()
    revs: dict[str, str] = {}
    with own.lab.cut_off(former):
        with own.beside(former), contextlib.closing(connected(own, former)) as wire:
            for number in range(ALONE_DOCS - 1):
                revs[f"{number:03}"] = wire.ask("PUT", f"/tail/{number:03}", {}).json["rev"]
            edited = wire.ask("PUT", "/tail/both", {"_rev": both["rev"], "side": "alone"})
            revs["both"] = edited.json["rev"]
            ORPHAN_RETRIES.write_text("1")
        own.lab.kill(former)
        with own.beside(former):
            # What lay in the buffers of its connections would leave it yet.
            own.await_true(lambda: not any(" 04 " in line for line in sockets()))
    place = ("--data", str(own.data))
    own.await_true(lambda: divandb("promote", replica, *place).returncode == 0)
    status, _ = own.request("PUT", "/tail/both", {"_rev": both["rev"], "v": 2}, node="m2")
    assert status == 201
    own.lab.start(former)
    own.lab.await_up()
    own.await_converged()

    def named() -> dict[str, dict[str, Any]]:
        told = json.loads(divandb("receipts", "--json", *place).stdout)["receipts"]
        return {one["id"]: one for part in told for one in part["documents"] if one["db"] == "tail"}

    own.await_true(lambda: len(named()) >= ALONE_DOCS)
    found = named()
    assert {doc_id: one["revs"] for doc_id, one in found.items()} == {
        doc_id: [rev] for doc_id, rev in revs.items()
    }
    assert [doc_id for doc_id, one in found.items() if one["conflict"]] == ["both"]
    for name in own.nodes:
        assert own.request("GET", "/tail", node=name)[1]["doc_count"] == ALONE_DOCS


def test_a_board_that_is_cut_off_stops_nobody(own: Isolated) -> None:
    """Nodes fetch from each other meanwhile, and go on reading where they were. No owner changes:
    masters hear of each other.
    """
    owners = [owner_of(own, slot, "m2") for slot in ("m1", "m2")]
    with load(own, "boardless", own.nodes) as busy:
        time.sleep(BETWEEN_S)
        since = time.monotonic()
        with own.lab.cut_off(BOARD):
            time.sleep(CUT_S)
            # What is written there is read at the other master all the same.
            status, written = own.request("PUT", "/boardless/far", {}, node=owners[0])
            assert status == 201, written
            path = "/boardless/far"
            own.await_true(lambda: own.request("GET", path, node=owners[1])[0] == 200, 20)
            until = time.monotonic()
    for name in own.nodes:
        assert longest_s(busy, name, since, until) < GAP_S_MAX
    assert [owner_of(own, slot, "m2") for slot in ("m1", "m2")] == owners
    check(own, busy)
