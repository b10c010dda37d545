"""Processes killed, stopped and robbed of their data in the middle of writes: nothing is lost."""

import os
import shutil
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.running import BOARD, Cluster, clustered
from tests.system.load import Load, load
from tests.system.wire import faults

OUTAGE_S = float(os.environ.get("DIVANDB_TEST_OUTAGE_S", "8"))
"""How long something is stopped; 60 to be thorough."""
NOTICED_S_MAX = 25.0
"""A board that is stopped is told as such when answers are overdue, which takes ten seconds."""
SILENCE_S_MAX = 3.0
"""While something is stopped, somewhere a write is acknowledged at least this often."""
BETWEEN_S = 1.0

pytestmark = pytest.mark.timeout_s(120 + 3 * OUTAGE_S)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with two replicas each; every test leaves it in order."""
    with clustered(tmp_path_factory.mktemp("faults"), masters=2, replicas=2) as started:
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


def check_went_on(busy: Load, since: float, until: float) -> None:
    """Between these moments writes were acknowledged all the time."""
    longest_s = busy.longest_silence_s(since, until)
    print(f"longest time without an acknowledgement: {longest_s:.2f} s")
    assert longest_s < SILENCE_S_MAX


def test_writes_go_on_while_the_board_is_stopped(own: Cluster, db: str) -> None:
    """Masters fetch from each other what the board does not bring, and feed it afterwards."""
    with load(own, db, ["m1", "m2", "m1-r1", "m2-r2", None]) as busy:
        time.sleep(BETWEEN_S)
        with own.frozen(BOARD):
            since = time.monotonic()
            time.sleep(OUTAGE_S / 2)
            status, answer = own.request("PUT", f"/{db}/_local/checkpoint", {"n": 1}, node="m1")
            assert status == 201, answer
            time.sleep(max(since + OUTAGE_S - time.monotonic(), 0))
            until = time.monotonic()
            if OUTAGE_S > NOTICED_S_MAX:
                assert all(own.status_of(name)["board"]["failing"] for name in own.masters)
        time.sleep(BETWEEN_S)
    check_went_on(busy, since, until)
    for writer in busy.writers:
        inside = [at for at in writer.answered_at if since < at < until]
        assert len(inside) > OUTAGE_S / 2, f"{writer.name}: {len(inside)} writes"
    own.await_converged()
    busy.check()


def test_what_was_written_while_the_board_was_stopped_comes_to_other_masters_at_once(
    own: Cluster, db: str
) -> None:
    """Before the board is back."""
    with own.frozen(BOARD):
        for number in range(3):
            path = f"/{db}/{number}"
            status, answer = own.request("PUT", path, {"n": number}, node="m1")
            assert status == 201, answer
            for node in own.nodes:
                own.await_true(
                    lambda path=path, node=node: own.request("GET", path, node=node)[0] == 200,
                    wait_s_max=15,
                )
    own.await_converged()


def load_while_stopped(
    own: Cluster, db: str, stopped: str, at: list[str | None]
) -> tuple[Load, float, float]:
    """Writers at these nodes while another is stopped; from when to when it was."""
    with load(own, db, at) as busy:
        time.sleep(BETWEEN_S)
        with own.frozen(stopped):
            since = time.monotonic()
            time.sleep(OUTAGE_S)
            until = time.monotonic()
        time.sleep(BETWEEN_S)
    check_went_on(busy, since, until)
    return busy, since, until


def test_a_replica_that_was_stopped_takes_up_what_it_missed(own: Cluster, db: str) -> None:
    busy, _, _ = load_while_stopped(own, db, "m1-r1", ["m1", "m2", "m1-r2", "m2-r1"])
    own.await_converged()
    busy.check()


def test_a_master_that_was_stopped_takes_up_what_it_missed(own: Cluster, db: str) -> None:
    """Meanwhile its replicas forward writes to the other master."""
    busy, since, until = load_while_stopped(own, db, "m1", ["m1-r1", "m1-r2", "m2", "m2-r1"])
    for writer in busy.writers:
        inside = [at for at in writer.answered_at if since + OUTAGE_S / 2 < at < until]
        assert inside, f"{writer.name} was stuck"
    own.await_converged()
    busy.check()


@pytest.mark.parametrize("node", ["m2-r1", "m1"])
def test_a_node_that_lost_its_folder_gets_everything_again(
    own: Cluster, db: str, node: str
) -> None:
    """Others wrote what is lost with the disk, or have it: a master's own writes were published."""
    assert own.request("PUT", f"/{db}/old", {"by": node}, node=node)[0] == 201
    own.await_converged()
    nodes = [name for name in own.nodes if not name.startswith(node)]
    with load(own, db, [name for name in nodes if name[:2] == "m2"] + ["m2"]) as busy:
        time.sleep(BETWEEN_S)
        since = time.monotonic()
        with own.frozen(node):
            for path in (own.data / node).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            pid = own.pid_of(node)
            os.kill(pid, 9)
        own.await_true(lambda: own.record(node)["pid"] not in (None, pid))
        own.await_true(lambda: own.answers(node))
        until = time.monotonic()
        time.sleep(BETWEEN_S)
    check_went_on(busy, since, until)
    own.await_converged()
    busy.check()
    assert own.everywhere(lambda at: own.request("GET", f"/{db}/old", node=at)[0]) == 200


def test_every_process_is_killed_in_turn_in_the_middle_of_writes(own: Cluster, db: str) -> None:
    """Clients see nothing but closed connections and 503; what was answered is everywhere."""
    with load(own, db, ["m1", "m2", "m1-r1", "m2-r1", None]) as busy:
        for name in [*own.nodes, BOARD, *own.masters]:
            time.sleep(BETWEEN_S)
            own.kill(name)
        time.sleep(BETWEEN_S)
        for writer in busy.writers:
            before = len(writer.answered_at)
            own.await_true(lambda w=writer, n=before: len(w.answered_at) > n, wait_s_max=20)
    print(sum((writer.refusals for writer in busy.writers), start=busy.writers[0].refusals))
    own.await_converged()
    busy.check()
