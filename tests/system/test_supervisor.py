"""The supervisor over real processes, with nodes that behave as badly as a test wants."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from divandb.datadir import ClusterRecord, read_cluster

WAIT_S_MAX = 20.0


class Supervised:
    """The process of `fake_nodes`."""

    def __init__(self, behaviour: str, data: Path, *options: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fake_nodes", behaviour, str(data), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def cluster(self) -> ClusterRecord:
        found = read_cluster(self.data)
        assert found is not None
        return found

    def pids(self) -> list[int | None]:
        return [node.pid for node in self.cluster().nodes]

    def end(self) -> tuple[int, str]:
        """Exit status and what it said, within a bound."""
        _, said = self.process.communicate(timeout=WAIT_S_MAX)
        return self.process.returncode, said.decode()


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


def ask_to_end(url: str) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("POST", "/end")
        connection.getresponse().read()


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
        assert running.process.stderr is not None
        while b"stopping signal=SIGINT" not in running.process.stderr.readline():
            pass
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


def test_an_idle_supervisor_uses_no_cpu(tmp_path: Path) -> None:
    """It waits for signals only: no tick of CPU and no wake-up in two seconds."""
    with supervised("good", tmp_path) as running:
        running.ready()
        status = Path(f"/proc/{running.process.pid}/status")
        await_true(lambda: "State:\tS" in status.read_text())
        before = _switches(status)
        time.sleep(2)
        assert _switches(status) - before <= 1


def _switches(status: Path) -> int:
    lines = status.read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
