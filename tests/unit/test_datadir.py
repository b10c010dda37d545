import os
import stat
from pathlib import Path

import pytest

from divandb import datadir
from divandb.clock import SystemClock


class Fixed:
    """Randomness that a test knows."""

    def token(self, size: int) -> bytes:
        return bytes(range(size))

    def uniform(self) -> float:
        return 0.5


def cluster(pid: int) -> datadir.ClusterRecord:
    node = datadir.NodeRecord("m1", "master", None, "http://127.0.0.1:1", pid, 0, None)
    return datadir.ClusterRecord("http://127.0.0.1:2", pid, [node])


def dead_pid() -> int:
    """The id of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_the_admin_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "admin.tmp").write_text("left behind by a crash")
    made = datadir.make_admin(tmp_path, Fixed())
    assert made == "admin:AAECAwQFBgcICQoLDA0ODxAR"
    assert stat.S_IMODE((tmp_path / "admin").stat().st_mode) == 0o600
    assert datadir.read_admin(tmp_path) == made
    assert os.listdir(tmp_path) == ["admin"]


def test_an_admin_file_that_is_there_is_used(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("root:with:colons\n")
    assert datadir.make_admin(tmp_path, Fixed()) == "root:with:colons"


@pytest.mark.parametrize("content", [b"", b"admin", b"admin:", b":x", b"a:b\nc:d", b"\xff:x"])
def test_a_damaged_admin_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "admin").write_bytes(content)
    with pytest.raises(datadir.DataDirError, match="admin"):
        datadir.make_admin(tmp_path, Fixed())


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    data = tmp_path / "a" / "b"
    datadir.make(data)
    datadir.make(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(datadir.DataDirError, match="data folder"):
        datadir.make(tmp_path / "file" / "data")


def test_a_living_supervisor_keeps_others_out_at_once(tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with datadir.locked(tmp_path, SystemClock(), orphan_s_max=0):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(datadir.DataDirError, match=f"in use by divandb, process {pid}"):
        with datadir.locked(tmp_path, SystemClock(), orphan_s_max=60):
            pass
    os.write(done[1], b"x")
    os.waitpid(pid, 0)
    for end in (*ready, *done):
        os.close(end)
    with datadir.locked(tmp_path, SystemClock(), orphan_s_max=0):
        pass


def test_an_orphaned_node_keeps_others_out_until_it_has_ended(tmp_path: Path) -> None:
    end = os.pipe()
    with datadir.locked(tmp_path, SystemClock(), orphan_s_max=0):
        pid = os.fork()
        if pid == 0:  # inherits the lock, as a node does
            os.close(end[1])
            os.read(end[0], 1)
            os._exit(0)
    with pytest.raises(datadir.DataDirError, match="killed supervisor"):
        with datadir.locked(tmp_path, SystemClock(), orphan_s_max=0):
            pass
    os.close(end[1])
    with datadir.locked(tmp_path, SystemClock(), orphan_s_max=30):
        pass
    os.waitpid(pid, 0)
    os.close(end[0])


def test_what_runs_is_read_as_it_was_written(tmp_path: Path) -> None:
    datadir.write_cluster(tmp_path, cluster(os.getpid()))
    assert datadir.read_cluster(tmp_path) == cluster(os.getpid())
    datadir.remove_cluster(tmp_path)
    datadir.remove_cluster(tmp_path)
    assert datadir.read_cluster(tmp_path) is None


def test_what_a_killed_supervisor_left_does_not_run(tmp_path: Path) -> None:
    datadir.write_cluster(tmp_path, cluster(dead_pid()))
    assert datadir.read_cluster(tmp_path) is None


def test_a_damaged_record_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(datadir.DataDirError, match=r"cluster\.json"):
        datadir.read_cluster(tmp_path)
