"""The supervisor over real processes, with nodes that behave as badly as a test wants."""

import collections
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from divandb.datadir import ClusterRecord, read_cluster

WAIT_S_MAX = 20.0


class Supervised:
    """The process of `fake_nodes`."""

    def __init__(self, behaviour: str, data: Path, *options: str) -> None:
        self.data = data
        self._said = data / "said"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.fake_nodes", behaviour, str(data), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
            )

    def ready(self) -> float:
        """Wait for it; how long it took, in seconds."""
        assert self.process.stdout is not None
        word, _, seconds = self.process.stdout.readline().partition(b" ")
        assert word == b"ready", self.said()
        return float(seconds)

    def said(self) -> str:
        return self._said.read_text()

    def said_of(self, what: str, name: str) -> int:
        """How often it has said that of the node."""
        return self.said().count(f"{what} node={name} ")

    def cluster(self) -> ClusterRecord:
        found = read_cluster(self.data)
        assert found is not None
        return found

    def pids(self) -> list[int | None]:
        return [node.pid for node in self.cluster().nodes]

    def pid(self, name: str) -> int:
        (pid,) = [node.pid for node in self.cluster().nodes if node.name == name]
        assert pid is not None
        return pid

    def url(self, name: str) -> str:
        (url,) = [node.url for node in self.cluster().nodes if node.name == name]
        return url

    def end(self) -> tuple[int, str]:
        """Exit status and what it said, within a bound."""
        self.process.communicate(timeout=WAIT_S_MAX)
        return self.process.returncode, self.said()


@contextlib.contextmanager
def supervised(behaviour: str, data: Path, *options: str) -> Iterator[Supervised]:
    started = Supervised(behaviour, data, *options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


def await_true(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int | None) -> bool:
    """Whether the process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def ask(url: str, method: str = "GET", path: str = "/", wait_s_max: float = 5.0) -> Any:
    """What a node says of itself, over a new connection."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, wait_s_max)
    with contextlib.closing(connection):
        connection.request(method, path)
        return json.loads(connection.getresponse().read())


def ask_to_end(url: str) -> None:
    with contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError):
        ask(url, "POST", "/end")


def shares(url: str, connections: int = 200) -> collections.Counter[str]:
    """Who answers how many new connections; each has to be answered within a second."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: ask(url, wait_s_max=1.0)["name"], range(connections))
        return collections.Counter(answers)


def test_all_nodes_answer_before_ready_and_end_with_the_supervisor(tmp_path: Path) -> None:
    with supervised("good", tmp_path) as running:
        running.ready()
        pids = running.pids()
        assert all(is_running(pid) for pid in pids)
        running.process.terminate()
        status, said = running.end()
        assert status == 0
        assert "stopping signal=SIGTERM" in said
        assert not any(is_running(pid) for pid in pids)
        assert read_cluster(tmp_path) is None


def test_a_killed_node_is_started_again_and_the_other_is_left_alone(tmp_path: Path) -> None:
    with supervised("good", tmp_path) as running:
        running.ready()
        first, second = running.pids()
        assert second is not None
        os.kill(second, signal.SIGKILL)
        await_true(lambda: running.pids()[1] not in (None, second))
        assert running.pids()[0] == first
        assert [node.restarts for node in running.cluster().nodes] == [0, 1]
        running.process.terminate()
        status, said = running.end()
        assert status == 0
        assert f"node killed node=m2 pid={second} signal=SIGKILL restart_s=0.05" in said


def test_without_restart_the_supervisor_ends_with_its_last_node(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "no-restart") as running:
        running.ready()
        for node in running.cluster().nodes:
            ask_to_end(node.url)
        status, said = running.end()
        assert status == 7
        assert said.count("node ended") == said.count("status=7") == 2


def test_a_node_that_does_not_end_is_killed_after_the_bound(tmp_path: Path) -> None:
    with supervised("stubborn", tmp_path) as running:
        running.ready()
        pids = running.pids()
        before = time.monotonic()
        running.process.terminate()
        status, _ = running.end()
        assert status == 0
        assert time.monotonic() - before >= 0.4
        assert not any(is_running(pid) for pid in pids)


def test_a_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    with supervised("stubborn", tmp_path) as running:
        running.ready()
        running.process.send_signal(signal.SIGINT)
        await_true(lambda: "stopping signal=SIGINT" in running.said())
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 130


def test_the_nodes_of_a_killed_supervisor_end_and_the_next_one_starts(tmp_path: Path) -> None:
    with supervised("good", tmp_path) as running:
        running.ready()
        pids = running.pids()
        running.process.kill()
        with supervised("good", tmp_path) as following:
            following.ready()
            assert not any(is_running(pid) for pid in pids)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("fails", "divandb: node m1: [Errno 28] No space left on device"),
        ("crashes", "ZeroDivisionError"),
        ("silent", "no answer from m1, m2 in 2 s"),
    ],
)
def test_nodes_that_do_not_come_up_are_an_error(tmp_path: Path, behaviour: str, words: str) -> None:
    with supervised(behaviour, tmp_path) as running:
        status, said = running.end()
        assert status == 1
        assert words in said
        assert read_cluster(tmp_path) is None


def test_an_idle_supervisor_hardly_uses_cpu(tmp_path: Path) -> None:
    """It looks at nine listeners, and writes nothing: under 0.3% of a core, with room for noise."""
    with supervised("good", tmp_path, "cluster") as running:
        running.ready()
        recorded = (tmp_path / "cluster.json").stat().st_mtime_ns
        before = _cpu_s(running.process.pid)
        time.sleep(3)
        assert _cpu_s(running.process.pid) - before < 3 * 0.003 * 2
        assert (tmp_path / "cluster.json").stat().st_mtime_ns == recorded


def test_a_supervisor_with_one_listener_never_wakes_up(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "single") as running:
        running.ready()
        status = Path(f"/proc/{running.process.pid}/status")
        await_true(lambda: "State:\tS" in status.read_text())
        before = _switches(status)
        time.sleep(1)
        assert _switches(status) - before <= 1


def _cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _switches(status: Path) -> int:
    lines = status.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


# A whole cluster


def test_thirteen_processes_are_ready_and_know_each_other(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "cluster") as running:
        assert running.ready() < 1.5
        cluster = running.cluster()
        assert [node.role for node in cluster.nodes] == ["board", *["master"] * 3, *["replica"] * 9]
        assert [node.master for node in cluster.nodes[4:7]] == ["m1", "m1", "m1"]
        urls = {node.name: node.url for node in cluster.nodes}
        assert all(ask(url)["urls"] == urls for url in urls.values())
        assert set(shares(cluster.url)) == {name for name in urls if ".r" in name}


def test_the_board_ends_after_all_others(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "cluster") as running:
        running.ready()
        running.process.terminate()
        assert running.end()[0] == 0
        ended = (tmp_path / "ended").read_text().split()
        assert len(ended) == 13
        assert ended[-1] == "board"


def test_the_board_ends_cleanly_even_behind_nodes_that_do_not(tmp_path: Path) -> None:
    with supervised("stubborn", tmp_path, "cluster") as running:
        running.ready()
        before = time.monotonic()
        running.process.terminate()
        status, said = running.end()
        assert status == 0
        assert time.monotonic() - before >= 0.35
        assert said.count("signal=SIGKILL") == 12
        assert (tmp_path / "ended").read_text() == "board\n"


def test_without_restart_a_board_alone_is_no_work(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "no-restart", "cluster") as running:
        running.ready()
        for node in running.cluster().nodes[1:]:
            ask_to_end(node.url)
        assert running.end()[0] == 7
        assert (tmp_path / "ended").read_text() == "board\n"


def test_who_stays_down_refuses_connections(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "no-restart", "cluster") as running:
        running.ready()
        url = running.url("m2")
        ask_to_end(url)
        await_true(lambda: running.said_of("node ended", "m2"))
        with pytest.raises(ConnectionRefusedError):
            ask(url)
        assert len(shares(running.cluster().url)) == 9


# Trace 25: stopped listeners


def test_trace_25_a_stopped_listener_gets_no_connections_until_it_wakes(tmp_path: Path) -> None:
    """Twice: what woke can be shut again."""
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        url, pid = running.cluster().url, running.pid("r2")
        assert set(shares(url)) == {"r1", "r2", "r3"}
        for times in (1, 2):
            os.kill(pid, signal.SIGSTOP)
            await_true(lambda times=times: running.said_of("listener shut", "r2") == times)
            assert set(shares(url)) == {"r1", "r3"}
            os.kill(pid, signal.SIGCONT)
            await_true(lambda times=times: running.said_of("listener open again", "r2") == times)
            assert shares(url)["r2"] >= 30
        assert running.pid("r2") == pid
        assert running.said().count("listener shut") == 2


def test_a_blocked_loop_is_as_good_as_stopped(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        url = running.url("r1")
        with ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(ask, url, path="/block")
            await_true(lambda: running.said_of("listener shut", "r1"))
            assert set(shares(running.cluster().url, 50)) <= {"r2", "r3"} or blocked.done()
            assert blocked.result()["name"] == "r1"
        await_true(lambda: running.said_of("listener open again", "r1"))
        assert set(shares(running.cluster().url)) == {"r1", "r2", "r3"}


def test_who_is_only_short_of_a_core_keeps_its_callers(tmp_path: Path) -> None:
    """A loop that turns late, since there is much to do, is not a dead one."""
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        assert ask(running.url("r1"), path="/spin")["name"] == "r1"
        assert "listener shut" not in running.said()
        assert set(shares(running.cluster().url)) == {"r1", "r2", "r3"}


def test_who_waits_in_a_stopped_queue_is_reset_and_not_left_hanging(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        os.kill(running.pid("r1"), signal.SIGSTOP)
        address = urlsplit(running.cluster().url)
        waiting = [
            socket.create_connection((address.hostname, address.port), timeout=5) for _ in range(30)
        ]
        await_true(lambda: running.said_of("listener shut", "r1"))
        reset = sum(_is_reset(one) for one in waiting)
        assert 1 <= reset < 30
        os.kill(running.pid("r1"), signal.SIGCONT)


def _is_reset(connection: socket.socket) -> bool:
    with connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return not connection.recv(100)
        except ConnectionResetError:
            return True


def test_listeners_that_are_all_stopped_keep_their_callers(tmp_path: Path) -> None:
    """To wait is better than to be refused."""
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        pids = [pid for pid in running.pids() if pid is not None]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.6)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, running.cluster().url)
            time.sleep(0.1)
            # Between two of them the supervisor would take the later ones for the only stopped.
            os.kill(running.process.pid, signal.SIGSTOP)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            os.kill(running.process.pid, signal.SIGCONT)
            assert answer.result()["name"] in {"r1", "r2", "r3"}


def test_a_pause_of_the_supervisor_shuts_nobody(tmp_path: Path) -> None:
    """As when the machine slept, or a terminal stopped them all: each gets its time anew."""
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        group = [pid for pid in (running.process.pid, *running.pids()) if pid is not None]
        for pid in group:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.6)
        for pid in group:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
        assert set(shares(running.cluster().url)) == {"r1", "r2", "r3"}
        assert "listener shut" not in running.said()


def test_clients_never_wait_for_a_dead_listener(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "readers") as running:
        running.ready()
        os.kill(running.pid("r3"), signal.SIGKILL)
        await_true(lambda: running.said_of("listener open again", "r3"))
        assert running.said_of("listener shut", "r3") == 1
        assert set(shares(running.cluster().url)) == {"r1", "r2", "r3"}


# Growing


def test_a_signal_adds_what_is_new_in_the_plan(tmp_path: Path) -> None:
    with supervised("good", tmp_path, "cluster") as running:
        running.ready()
        before = running.pids()
        (tmp_path / "more").write_text("m2.r4 m2.r5")
        running.process.send_signal(signal.SIGUSR1)
        await_true(lambda: len(running.cluster().nodes) == 15)
        assert running.pids()[:13] == before
        added = running.cluster().nodes[13:]
        assert [(node.name, node.role, node.master) for node in added] == [
            ("m2.r4", "replica", "m2"),
            ("m2.r5", "replica", "m2"),
        ]
        urls = {node.name: node.url for node in running.cluster().nodes}
        assert ask(urls["m2.r5"])["urls"] == urls
        await_true(lambda: {"m2.r4", "m2.r5"} <= set(shares(running.cluster().url)))
        os.kill(running.pid("m2.r4"), signal.SIGKILL)
        await_true(lambda: running.cluster().nodes[13].restarts == 1)
        running.process.terminate()
        assert running.end()[0] == 0
        assert "m2.r5\n" in (tmp_path / "ended").read_text()


def test_a_plan_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    with supervised("good", tmp_path) as running:
        running.ready()
        before = running.pids()
        running.process.send_signal(signal.SIGUSR1)
        await_true(lambda: "cannot read what to add" in running.said())
        assert running.pids() == before


def test_a_port_that_is_taken_leaves_one_out_and_the_rest_alone(tmp_path: Path) -> None:
    with supervised("good", tmp_path) as running, socket.create_server(("127.0.0.1", 0)) as taken:
        running.ready()
        (tmp_path / "more").write_text(f"r1:{taken.getsockname()[1]} r2")
        running.process.send_signal(signal.SIGUSR1)
        await_true(lambda: [node.name for node in running.cluster().nodes] == ["m1", "m2", "r2"])
        assert "cannot add node node=r1 reason='cannot listen on 127.0.0.1" in running.said()
