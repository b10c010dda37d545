"""Nodes are taken out of service by plan: writers hardly notice, and what is under way ends."""

import http.client
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import Cluster, clustered, divandb
from tests.system.wire import Wire, faults

GAP_S_MAX = 2.0
"""0.2 is asked, and measured on a machine that has nothing else to do."""
BEAT_S = 0.02
FEEDS = 16
"""So many are dealt out over two processes: hardly all to one."""
FEED_S = 0.3
BETWEEN_S = 0.5

pytestmark = pytest.mark.timeout_s(180)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One master: while its slot changes hands there is no other to take writes."""
    with clustered(tmp_path_factory.mktemp("drain"), masters=1, replicas=2) as started:
        for name in ("db", "quiet"):
            assert started.request("PUT", f"/{name}")[0] == 201
        started.await_converged()
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


class Client(threading.Thread):
    """Writes every 20 ms over a connection to the clients' port that it opens anew when it must."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._wire = Wire(cluster.port, cluster.credentials)
        self._ends = threading.Event()
        self.answered: dict[str, float] = {}
        self.failed: list[Any] = []

    def run(self) -> None:
        for number in itertools.count():
            if self._ends.is_set():
                break
            doc_id, due = f"{id(self)}-{number}", time.monotonic() + BEAT_S
            try:
                self._wire.send(self._wire.request("PUT", f"/db/{doc_id}", {}))
                answer = self._wire.answer("PUT")
            except (OSError, http.client.HTTPException) as fault:
                self._wire.close()
                self.failed.append(fault)
            else:
                if answer.status == 201:
                    self.answered[doc_id] = time.monotonic()
                else:
                    self.failed.append(answer)
            self._ends.wait(max(due - time.monotonic(), 0))
        self._wire.close()

    def __enter__(self) -> "Client":
        self.start()
        time.sleep(BETWEEN_S)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(BETWEEN_S)
        self._ends.set()
        self.join()

    def check(self, cluster: Cluster, what: str) -> None:
        """There was no long pause, and everything is everywhere."""
        moments = sorted(self.answered.values())
        gap_s = max(after - before for before, after in itertools.pairwise(moments))
        print(f"{what}: longest gap {1000 * gap_s:.0f} ms, failed {self.failed}")
        assert gap_s < GAP_S_MAX
        cluster.await_converged()
        for name in cluster.nodes:
            rows = cluster.request("GET", "/db/_all_docs", node=name)[1]["rows"]
            assert self.answered.keys() <= {row["id"] for row in rows}


def command(cluster: Cluster, *words: str) -> Any:
    return divandb(*words, "--data", str(cluster.data))


def owner_of(cluster: Cluster) -> str:
    name: str = cluster.status_of("m1-r1")["owners"]["m1"]["name"]
    return name


def other_than(cluster: Cluster, *names: str) -> str:
    return next(name for name in cluster.nodes if name not in names)


@pytest.mark.parametrize("what", ["promote", "demote", "drain"])
def test_writers_of_the_only_slot_hardly_notice_that_it_changes_hands(
    own: Cluster, what: str
) -> None:
    former = owner_of(own)
    node = other_than(own, former) if what == "promote" else former
    with Client(own) as client:
        done = command(own, what, node)
        assert done.returncode == 0, done.stderr
    assert owner_of(own) != former
    client.check(own, what)
    assert command(own, "drain", node, "--off").returncode == 0


def test_a_drained_node_serves_nobody_until_it_is_brought_back(own: Cluster) -> None:
    command(own, "promote", "m1")
    node, second = own.replicas
    feeds = [Wire(own.port, own.credentials) for _ in range(FEEDS)]
    for wire in feeds:
        wire.send(wire.request("GET", "/quiet/_changes?feed=continuous&since=now&heartbeat=60000"))
        assert wire.begin().status == 200
    with Client(own) as client:
        done = command(own, "drain", node)
        assert done.returncode == 0, done.stderr
        assert f"{node} is drained: it may be stopped" in done.stdout
        assert own.status_of(node)["drain"]["done"]
        check_some_have_ended(feeds)
        # New connections go elsewhere; its own port says that it is not to be asked.
        for _ in range(50):
            assert own.request("GET", "/_up")[0] == 200
        assert own.request("GET", "/_up", node=node) == (
            404, {"status": "maintenance_mode", "seeds": {}},
        )  # fmt: skip
        assert own.request("GET", "/db", node=node)[0] == 200
        # It follows: now and then something waits there to be written.
        own.await_true(lambda: "drained" in command(own, "status").stdout)
        # It stays so over a restart, and takes no slot.
        before = own.pid_of(node)
        own.send(node, signal.SIGKILL)
        own.await_true(lambda: own.record(node)["pid"] not in (None, before))
        assert own.request("GET", "/db", node=node)[0] == 200
        assert own.status_of(node)["drain"]["done"]
        refused = command(own, "promote", node)
        assert (refused.returncode, "was drained" in refused.stderr) == (1, True)
        # Somebody has to stay at the clients' port.
        refused = command(own, "drain", second)
        assert (refused.returncode, "No other node" in refused.stderr) == (1, True)
        assert command(own, "drain", node, "--off").returncode == 0
        assert own.answers(node)
        own.await_true(lambda: command(own, "drain", second).returncode == 0)
        assert command(own, "drain", second, "--off").returncode == 0
    client.check(own, "both replicas drained")


def check_some_have_ended(feeds: list[Wire]) -> None:
    """Those of the drained node, each with its last line."""
    ended = []
    for wire in feeds:
        told = wire.rest(FEED_S)
        ended.append(b"last_seq" in told)
        wire.close()
    assert any(ended) and not all(ended)
