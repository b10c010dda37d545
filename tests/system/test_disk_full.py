"""A disk that is full: writes are refused, nothing is lost, and with room again all goes on."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import apsw
import pytest

from divandb.store.file import FILE_NAME
from tests.running import Running, running
from tests.system.wire import Answer, Wire, wired

DISK_BYTES = 44 * 2**20
BALLAST_BYTES = 28 * 2**20
FILE_BYTES_MAX = 6 * 2**20
WRITERS = 4
WRITES_MAX = 20_000
DOC_BYTES = 20_000
REFUSED = {
    (507, "insufficient_storage", "The disk is full or failing: nothing was stored."),
    (503, "service_unavailable", "Too many writes are waiting; try again shortly."),
}
RECOVERY_S_MAX = 30.0


class Disk(Protocol):
    """A disk that is too small for what the test writes."""

    def shrink(self, node: Running) -> None:
        """The node runs: from now on there is little room."""
        ...

    def free(self, node: Running) -> None:
        """Make room."""
        ...


class SmallDisk:
    """A file system of its own, in memory, with a ballast file on it."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"
        with open(self._ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)

    def shrink(self, node: Running) -> None:
        """It is small from the beginning."""

    def free(self, node: Running) -> None:
        """Throw the ballast out."""
        self._ballast.unlink()


class SmallFiles:
    """Where nobody may mount: no file of the node's, or of one that follows it, may grow far."""

    def shrink(self, node: Running) -> None:
        """From now on."""
        self._limit(node, FILE_BYTES_MAX)

    def free(self, node: Running) -> None:
        """No limit any more."""
        self._limit(node, resource.RLIM_INFINITY)

    def _limit(self, node: Running, size_bytes: int) -> None:
        assert node.process is not None
        for pid in {node.process.pid, node.cluster["nodes"][0]["pid"]} - {None}:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A small file system at ``folder``; where that is not allowed, small files."""
    folder.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield SmallFiles()
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(params=["a small disk", "small files"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Running, Disk]]:
    """A node and its disk, which is about to be full."""
    with contextlib.ExitStack() as stack:
        disk: Disk = SmallFiles()
        if request.param == "a small disk":
            disk = stack.enter_context(mounted(tmp_path / "data"))
        node = stack.enter_context(running(tmp_path))
        assert node.request("PUT", "/db")[0] == 201
        assert node.request("PUT", "/db/first", {"n": 1})[0] == 201
        disk.shrink(node)
        yield node, disk
        assert "request failed" not in node.log.read_text()


class Filler(threading.Thread):
    """Writes until it has been refused a few times, and notes what was acknowledged."""

    def __init__(self, node: Running, number: int, written: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._number = number
        self._written = written
        self.surprise: BaseException | None = None

    def run(self) -> None:
        try:
            with wired(self._node) as wire:
                refusals = 0
                for count in range(WRITES_MAX):
                    doc_id = f"{self._number}-{count:05}"
                    extra = {"x-other": "way"} if count % 2 else {}
                    body = {"text": os.urandom(DOC_BYTES // 2).hex()}
                    answer = wire.ask("PUT", f"/db/{doc_id}", body, extra)
                    if answer.status == 201:
                        self._written[doc_id] = answer.json["rev"]
                    else:
                        check_refused(answer)
                        refusals += 1
                    if refusals == 5:
                        return
                raise AssertionError("the disk is never full")
        except BaseException as surprise:
            self.surprise = surprise


def check_refused(answer: Answer) -> None:
    assert answer.error in REFUSED, answer
    assert answer.headers["retry-after"] == "1"


def fill(node: Running) -> dict[str, str]:
    """Fill the disk; id → revision of all that was acknowledged."""
    written: dict[str, str] = {}
    fillers = [Filler(node, number, written) for number in range(WRITERS)]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join()
    assert [filler.surprise for filler in fillers] == [None] * WRITERS
    assert len(written) > 20
    return written


def check_there(wire: Wire, written: dict[str, str]) -> None:
    rows = wire.ask("GET", "/db/_all_docs").json["rows"]
    found = {row["id"]: row["value"]["rev"] for row in rows}
    assert {doc_id: found.get(doc_id) for doc_id in written} == written
    for doc_id in list(written)[::20]:
        assert len(wire.ask("GET", f"/db/{doc_id}").json["text"]) >= DOC_BYTES - 1
    changes = wire.ask("GET", "/db/_changes").json["results"]
    assert set(written) <= {row["id"] for row in changes}


def writes(size_bytes: int) -> list[tuple[str, str, Any, dict[str, str]]]:
    """A write of each kind, of at least this size."""
    data = os.urandom(size_bytes)
    doc = {"text": data.hex()}
    return [
        ("PUT", "/db/lane", doc, {}),
        ("PUT", "/db/normal", doc, {"x-other": "way"}),
        ("POST", "/db", doc, {}),
        ("POST", "/db/_bulk_docs", {"docs": [doc]}, {}),
        ("PUT", "/db/_local/doc", doc, {}),
        ("PUT", "/db/_design/doc", doc, {}),
        ("PUT", "/db/_security", doc, {}),
        ("PUT", "/db/small/att", data, {"content-type": "image/x"}),
        ("PUT", "/db/large/att", data * 20, {"content-type": "image/x"}),
    ]


@pytest.mark.timeout_s(240)
def test_a_full_disk_refuses_writes_and_loses_nothing(full: tuple[Running, Disk]) -> None:
    node, disk = full
    pid = node.node_pid
    written = fill(node)
    with wired(node) as wire:
        check_there(wire, written)
        for method, path, body, headers in writes(1_000_000):
            check_refused(wire.ask(method, path, body, headers))
            assert wire.ask("GET", "/db/first").json["n"] == 1
        assert wire.ask("GET", "/_up").status == 200
        feed = wire.ask("GET", "/db/_changes?feed=longpoll&since=now&timeout=10")
        assert (feed.status, feed.json["results"]) == (200, [])
        check_there(wire, written)

        disk.free(node)
        node.await_true(lambda: wire.ask("PUT", "/db/after", {}).status == 201, RECOVERY_S_MAX)
        for method, path, body, headers in writes(100_000):
            answer = wire.ask(method, path, body, headers)
            assert answer.status in (200, 201), (path, answer)
        assert len(wire.ask("GET", "/db/large/att").body) == 2_000_000
        check_there(wire, written)
    assert node.node_pid == pid
    check_sound(node, written)


@pytest.mark.timeout_s(240)
def test_a_node_that_dies_on_a_full_disk_comes_back(full: tuple[Running, Disk]) -> None:
    """At once if it can, or else as soon as there is room; with all that it had acknowledged."""
    node, disk = full
    written = fill(node)
    killed = node.node_pid
    os.kill(killed, signal.SIGKILL)
    node.await_true(lambda: not Path(f"/proc/{killed}").exists())
    disk.free(node)
    node.await_true(lambda: node.request("PUT", "/db/after", {})[0] == 201, RECOVERY_S_MAX)
    with wired(node) as wire:
        check_there(wire, written)
    check_sound(node, written)


def check_sound(node: Running, written: dict[str, str]) -> None:
    """After a restart all is there, and the file is whole."""
    node.restart()
    with wired(node) as wire:
        check_there(wire, written)
    assert node.stop() == 0
    path = node.data / "m1" / FILE_NAME
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(connection):
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    del connection
