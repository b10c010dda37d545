"""Copies of the file: of one moment, without the peer's identity, put in place whatever happens."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from divandb.store import arrivals, catchup, changes, file, outbox, positions, snapshot
from divandb.store.catchup import End
from divandb.store.file import Connection, Disk, FileError, FormatError
from divandb.store.positions import Position
from divandb.store.snapshot import Abandoned, Info
from tests.stores import SeededRng, Store, edit

WAIT_S = 30.0
POSITION = Position("b", "masters", 0, "log", 7)
STATE_TABLES = (
    "origin", "database", "doc", "body", "mark", "register", "blob", "blob_chunk", "blob_use",
    "ahead", "hole", "waiting", "position",
)  # fmt: skip


def reading(path: Path) -> Connection:
    return file.connect(Disk(path), readonly=True, cache_bytes=2**20)


def rows(path: Path, sql: str) -> list[Any]:
    connection = reading(path)
    try:
        found: list[Any] = connection.execute(sql).fetchall()
        return found
    finally:
        connection.close()


def taken(store: Store, name: str = "copy.sqlite") -> Info:
    return snapshot.take(store.disk, store.disk.path.with_name(name))


def folder(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(folder(tmp_path, "peer"))
    made.create("db")
    return made


def fill(store: Store, count: int, size: int = 100) -> None:
    for start in range(0, count, 100):
        writes = [
            edit(f"d{number:06}", None, {"n": number, "s": "x" * size})
            for number in range(start, min(start + 100, count))
        ]
        store.write("db", *writes)


# Taking


def test_a_copy_holds_all_of_the_state(store: Store) -> None:
    fill(store, 300)
    info = taken(store)
    for table in STATE_TABLES:
        sql = f"SELECT * FROM {table}"
        assert rows(info.path, sql) == store.rows(sql), table
    assert info.vector == changes.vector(store.reader)
    assert info.cluster == store.identity.cluster
    assert info.size_bytes == info.path.stat().st_size
    assert info.sha256 == hashlib.sha256(info.path.read_bytes()).hexdigest()
    assert rows(info.path, "PRAGMA integrity_check") == [("ok",)]
    pragmas = ("user_version", "page_size", "auto_vacuum")
    assert [rows(info.path, f"PRAGMA {name}") for name in pragmas] == [
        [(file.FORMAT,)], [(file.PAGE_BYTES,)], [(2,)],
    ]  # fmt: skip
    store.close()


def test_every_table_is_carried_or_is_known_not_to_be(store: Store) -> None:
    tables = {
        name
        for (name,) in store.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not name.startswith("sqlite_")
    }
    assert tables == {*STATE_TABLES, "meta", "outbox"}
    store.close()


def test_identity_is_not_carried(store: Store) -> None:
    fill(store, 10)
    file.set_meta(store.connection, "anything else", 1)
    assert store.count("outbox") == 11
    info = taken(store)
    assert rows(info.path, "SELECT key FROM meta") == [("cluster",)]
    assert rows(info.path, "SELECT count(*) FROM outbox") == [(0,)]
    # Numbers of outbox rows are not used again, and the peer keeps its own.
    (last,) = rows(info.path, "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'")[0]
    assert last == 11
    assert store.count("outbox") == 11
    store.close()


def test_what_was_set_aside_is_carried(store: Store) -> None:
    """Board positions are carried, and they say that all of this was read."""
    positions.write(store.connection, POSITION)
    store.connection.execute("INSERT INTO hole VALUES (1, 'why', x'01')")
    store.connection.execute("INSERT INTO waiting VALUES (1, 'k', 7, 1, x'02')")
    store.connection.execute("INSERT INTO ahead VALUES (5, 10, 20)")
    store.connection.execute("INSERT INTO blob (arriving, length, touched_ms) VALUES (x'03', 9, 0)")
    info = taken(store)
    for table in ("position", "hole", "waiting", "ahead", "blob"):
        assert len(rows(info.path, f"SELECT * FROM {table}")) == 1
    store.close()


def test_a_copy_taken_under_writes_is_of_one_moment(store: Store) -> None:
    """Trace 2, and 28: hundreds of transactions are committed meanwhile, and it ends."""
    fill(store, 4000, size=4000)
    stop, written, faults = threading.Event(), threading.Semaphore(0), []

    def write() -> None:
        number = 4000
        try:
            while not stop.is_set():
                store.write("db", edit(f"d{number:06}", None, {"n": number}))
                written.release()
                number += 1
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=write)
    thread.start()
    copies = []
    try:
        for turn in range(3):
            for _ in range(100):
                assert written.acquire(timeout=WAIT_S)
            copies.append(taken(store, f"copy{turn}.sqlite"))
    finally:
        stop.set()
        thread.join()
    assert not faults
    for copy in copies:
        _check_moment(copy)
    counts = [sum(copy.vector.values()) for copy in copies]
    assert counts == sorted(set(counts))
    store.close()


def _check_moment(copy: Info) -> None:
    """Of one origin: its first write made the database, each of the others one document."""
    (contained,) = copy.vector.values()
    ids = [doc_id for (doc_id,) in rows(copy.path, "SELECT id FROM doc ORDER BY place")]
    assert ids == [f"d{number:06}" for number in range(contained - 1)]
    assert rows(copy.path, "SELECT seq, docs FROM database") == [(contained - 1, contained - 1)]
    (mark,) = rows(copy.path, "SELECT max(seq) FROM mark")[0]
    assert 0 <= contained - 1 - mark <= 100


def test_a_copy_can_be_given_up(store: Store) -> None:
    fill(store, 4000, size=4000)
    looks = iter([False] * 3 + [True] * 10_000)
    target = store.disk.path.with_name("copy.sqlite")
    with pytest.raises(Abandoned):
        snapshot.take(store.disk, target, lambda: next(looks))
    assert not target.exists()
    store.close()


def test_nothing_stays_of_a_copy_that_fails(store: Store) -> None:
    target = store.disk.path.with_name("copy.sqlite")
    with pytest.raises(apsw.Error):
        snapshot.take(Disk(store.disk.path.with_name("none")), target)
    assert not target.exists()
    store.close()


# Going on from it


def test_a_new_node_goes_on_from_the_copys_vector(store: Store, tmp_path: Path) -> None:
    fill(store, 150)
    info = taken(store)
    place = folder(tmp_path, "new")
    info.path.rename(place / "incoming")
    snapshot.adopt(place / "incoming")
    store.write("db", edit("later", None, {"n": 1}))
    node = Store(place, rng=SeededRng(2))
    assert node.identity.cluster == store.identity.cluster
    assert node.identity.numbering != store.identity.numbering
    # It publishes nothing of the peer's, and its own writes have an origin of their own.
    assert outbox.page(node.reader, 0, 100).messages == []
    node.write("db", edit("own", None, {"n": 2}))
    own = set(changes.vector(node.reader)) - set(info.vector)
    assert [row[0] for row in node.rows("SELECT DISTINCT origin FROM outbox")] == list(own)

    found = list(catchup.beyond(store.reader, info.vector))
    end = found.pop()
    assert isinstance(end, End)
    messages = [one for one in found if isinstance(one, bytes)]
    node.do(lambda ledger: arrivals.take(ledger, messages, 0))
    node.do(lambda ledger: catchup.finish(ledger, end))
    assert changes.vector(node.reader).items() >= changes.vector(store.reader).items()
    assert node.count("doc", "id = 'later'") == 1
    node.close()
    store.close()


# Putting it in place


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    """A copy of ``store`` in the folder of another node."""
    fill(store, 20)
    info = taken(store)
    path = folder(tmp_path, "node") / "incoming"
    info.path.rename(path)
    store.close()
    return path


def old_node(copy: Path, cluster: str | None = None) -> None:
    """A file that a killed process left, with most of it in its log."""
    old = Store(copy.parent, rng=SeededRng(3))
    if cluster is None:
        (held,) = rows(copy, "SELECT value FROM meta WHERE key = 'cluster'")[0]
        cluster = held
    file.set_meta(old.connection, "cluster", cluster)
    old.create("old")
    log = old.disk.path.with_name("node.sqlite-wal").read_bytes()
    old.crash()
    # The last connection copied the log into the file; a killed process would not have.
    old.disk.path.with_name("node.sqlite-wal").write_bytes(log)


def names(path: Path) -> list[str]:
    return [
        name for (name,) in rows(path / file.FILE_NAME, "SELECT name FROM database ORDER BY name")
    ]


def test_a_copy_becomes_the_file_of_a_new_node(copy: Path) -> None:
    snapshot.adopt(copy)
    assert names(copy.parent) == ["db"]
    assert not copy.exists()
    assert not snapshot.finish(copy.parent)


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(copy: Path) -> None:
    old_node(copy)
    with pytest.raises(FileError, match="there already"):
        snapshot.adopt(copy)
    assert names(copy.parent) == ["old"]
    snapshot.adopt(copy, replace=True)
    assert names(copy.parent) == ["db"]


def test_another_clusters_file_is_never_replaced(copy: Path) -> None:
    old_node(copy, cluster="cd" * 16)
    with pytest.raises(FileError, match="another cluster"):
        snapshot.adopt(copy, replace=True)
    assert names(copy.parent) == ["old"]


def test_a_copy_of_another_format_is_refused(copy: Path) -> None:
    connection = file.connect(Disk(copy), readonly=False, cache_bytes=2**20)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="format 99"):
        snapshot.adopt(copy)
    assert copy.exists()


def test_what_is_no_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        snapshot.adopt(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(FileError):
        snapshot.adopt(tmp_path / "bad")
    assert not (tmp_path / file.FILE_NAME).exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("calls_before", range(12))
@pytest.mark.parametrize("replace", [False, True])
def test_adoption_is_whole_or_not_begun_whenever_it_is_killed(
    copy: Path, monkeypatch: pytest.MonkeyPatch, calls_before: int, replace: bool
) -> None:
    """Each change of the folder may be the last one; the next start finishes, or finds the old."""
    if replace:
        old_node(copy)
    left = calls_before

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return function(*arguments, **options)

        return call

    killed = False
    with monkeypatch.context() as patch:
        patch.setattr(snapshot.os, "replace", counted(snapshot.os.replace))
        patch.setattr(snapshot.os, "fsync", counted(snapshot.os.fsync))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            snapshot.adopt(copy, replace=replace)
        except Killed:
            killed = True
    finished = snapshot.finish(copy.parent)
    if calls_before == 0:
        assert copy.exists()
        assert not finished
        assert (copy.parent / file.FILE_NAME).exists() == replace
        assert not replace or names(copy.parent) == ["old"]
        return
    assert killed == (calls_before < 8)
    # No log of the old file lies beside the new one.
    assert sorted(path.name for path in copy.parent.iterdir()) == ["node.sqlite"]
    assert names(copy.parent) == ["db"]
    assert rows(copy.parent / "node.sqlite", "PRAGMA integrity_check") == [("ok",)]


# What would be lost


def test_standing_of_a_node_that_does_not_run(store: Store, tmp_path: Path) -> None:
    fill(store, 5)
    store.connection.execute("INSERT INTO origin VALUES (7, 'm2', 10, 12, 0)")
    store.connection.execute("INSERT INTO ahead VALUES (7, 20, 25)")
    store.connection.execute("INSERT INTO hole VALUES (1, 'why', x'01')")
    cluster, vector = store.identity.cluster, changes.vector(store.reader)
    store.crash()
    standing = snapshot.standing(store.disk)
    assert standing == snapshot.Standing(cluster, {**vector, 7: 25}, 7)
    assert snapshot.standing(Disk(tmp_path / "none")) is None


def test_standing_of_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(FileError):
        snapshot.standing(Disk(tmp_path / "bad"))
