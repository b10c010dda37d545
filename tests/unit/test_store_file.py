"""Opening the node's file, and who it says it is."""

from pathlib import Path

import apsw
import pytest

from divandb.store import file
from divandb.store.file import Disk, FileError, FormatError
from tests.stores import SeededRng, Store

MIB = 2**20


def test_a_new_file_has_its_tables_and_pragmas(tmp_path: Path) -> None:
    disk = Disk(tmp_path / file.FILE_NAME)
    connection = file.open_for_writing(disk, cache_bytes=MIB)
    pragmas = {
        name: connection.pragma(name)
        for name in ("user_version", "journal_mode", "page_size", "auto_vacuum", "synchronous",
                     "wal_autocheckpoint", "journal_size_limit", "cache_size")
    }  # fmt: skip
    assert pragmas == {
        "user_version": file.FORMAT,
        "journal_mode": "wal",
        "page_size": file.PAGE_BYTES,
        "auto_vacuum": 2,
        "synchronous": 2,
        "wal_autocheckpoint": 0,
        "journal_size_limit": file.WAL_KEPT_BYTES,
        "cache_size": -1024,
    }
    assert connection.execute("SELECT count(*) FROM doc").fetchone() == (0,)
    file.release(connection)
    assert not (tmp_path / "node.sqlite-wal").exists()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    disk = Disk(tmp_path / file.FILE_NAME)
    connection = file.open_for_writing(disk, cache_bytes=MIB)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(FormatError, match="format 99"):
        file.open_for_writing(disk, cache_bytes=MIB)


def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    disk = Disk(tmp_path / file.FILE_NAME)
    other = apsw.Connection(str(disk.path))
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(FormatError, match="format 0"):
        file.open_for_writing(disk, cache_bytes=MIB)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    disk = Disk(tmp_path / file.FILE_NAME)
    disk.path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(FileError, match="not a database"):
        file.open_for_writing(disk, cache_bytes=MIB)


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(apsw.ReadOnlyError):
        store.reader.execute("DELETE FROM doc")
    store.close()
    with pytest.raises(apsw.CantOpenError):
        file.connect(Disk(tmp_path / "none"), readonly=True, cache_bytes=MIB)


def test_meta_values(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert file.get_meta(store.connection, "k") is None
    for value in (b"\x00\xff", "text", -(2**63)):
        file.set_meta(store.connection, "k", value)
        assert file.get_meta(store.connection, "k") == value
    store.close()


def test_identity_outlives_an_ordered_stop(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.identity
    assert not first.clean
    assert len(first.cluster) == 32
    store.close()
    store.open()
    numbering = first.numbering
    assert store.identity == file.Identity(first.cluster, numbering, True, numbering)
    assert first.before is None
    store.close()


def test_an_unclean_stop_changes_the_numbering_but_not_the_cluster(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.identity
    store.crash()
    store.open()
    second = store.identity
    assert second.cluster == first.cluster
    assert second.numbering != first.numbering
    assert not second.clean
    # It counts as in use from the moment it was opened.
    store.crash()
    store.open()
    assert store.identity.numbering not in (first.numbering, second.numbering)
    store.close()


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a = Store(tmp_path / "a", rng=SeededRng(1))
    b = Store(tmp_path / "b", rng=SeededRng(2))
    assert a.identity.cluster != b.identity.cluster
    assert a.identity.numbering != b.identity.numbering
    a.close()
    b.close()
