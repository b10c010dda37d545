"""Opening the node's file: its schema, its identity, its connections.

Identity: ``cluster`` (a uuid that every node of a cluster shares), ``numbering`` (64 random bits,
new when the folder is new and after an unclean stop: places in the file mean something only under
it). The disk is an argument: ``vfs`` names the SQLite VFS that does the reading and writing.
"""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

import apsw

from divandb.clock import Rng

FILE_NAME = "node.sqlite"
FORMAT = 1
PAGE_BYTES = 4096
BUSY_TIMEOUT_MS = 10_000
WAL_KEPT_BYTES = 64 * 2**20
"""An emptied write-ahead log is cut to this size."""

Connection = apsw.Connection


class FileError(OSError):
    """The node's file cannot be used: it is damaged, or the disk refuses it."""


class DamagedError(FileError):
    """The file's bytes are not what SQLite has written."""


class FormatError(FileError):
    """The file was written by another version of the database, or is not ours."""


@dataclasses.dataclass(frozen=True)
class Disk:
    """Where the file is and who does its I/O."""

    path: Path
    vfs: str | None = None
    synchronous: str = "FULL"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who this file is: ``cluster`` is 32 hex digits, ``numbering`` a signed 64-bit number."""

    cluster: str
    numbering: int
    clean: bool
    """Was it closed in order the last time?"""
    before: int | None = None
    """The numbering that it had until this start; None: it had none."""


def connect(disk: Disk, *, readonly: bool, cache_bytes: int) -> Connection:
    """A connection with the pragmas that all of them share; readers are query-only."""
    flags = (
        apsw.SQLITE_OPEN_READONLY
        if readonly
        else (apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    )
    connection = apsw.Connection(str(disk.path), flags=flags, vfs=disk.vfs, statementcachesize=200)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute(f"PRAGMA cache_size = -{max(cache_bytes // 1024, 64)}")
    connection.execute("PRAGMA query_only = 1" if readonly else "PRAGMA foreign_keys = 0")
    return connection


def open_for_writing(disk: Disk, *, cache_bytes: int) -> Connection:
    """The writer's connection; makes the file and its tables when they are not there.

    Raises ``FormatError`` for a file of another format, ``FileError`` for one that is damaged or
    cannot be written.
    """
    try:
        return _opened(disk, cache_bytes)
    except apsw.Error as fault:
        raise FileError(f"{disk.path}: {fault}") from fault


def _opened(disk: Disk, cache_bytes: int) -> Connection:
    connection = connect(disk, readonly=False, cache_bytes=cache_bytes)
    version = connection.pragma("user_version")
    if version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall():
        _create(connection)
    elif version != FORMAT:
        raise FormatError(f"{disk.path} has format {version}, this version reads format {FORMAT}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {disk.synchronous}")
    # Checkpoints are the upkeep's work: inside a commit they are what makes one slow.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    return connection


def _create(connection: Connection) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    schema = resources.files("divandb.store").joinpath("schema.sql").read_text()
    with connection:
        connection.execute(schema)
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def get_meta(connection: Connection, key: str) -> Any:
    """The value kept under ``key`` or ``None``."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def set_meta(connection: Connection, key: str, value: Any) -> None:
    """Keep ``value`` under ``key``."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def set_aside(folder: Path, stamp: str) -> Path:
    """Move the node's file out of the way, with all that belongs to it; where it is now. No process
    may have it open.
    """
    place = folder / f"damaged-{stamp}"
    place.mkdir(mode=0o700)
    for part in folder.glob(f"{FILE_NAME}*"):
        part.rename(place / part.name)
    return place


def take_identity(connection: Connection, rng: Rng, cluster: str = "") -> Identity:
    """The file's identity for this run; marks the file as in use until ``release``.

    ``cluster`` is that of a file that has none yet; empty: one is chosen. Raises ``FileError`` when
    the disk refuses that, or the file belongs to another cluster.
    """
    try:
        return _taken(connection, rng, cluster)
    except apsw.Error as fault:
        raise FileError(f"{connection.filename}: {fault}") from fault


def _taken(connection: Connection, rng: Rng, given: str) -> Identity:
    with connection:
        cluster = get_meta(connection, "cluster")
        if cluster is None:
            cluster = given or rng.token(16).hex()
            set_meta(connection, "cluster", cluster)
        elif given and cluster != given:
            raise FileError(f"{connection.filename} belongs to another cluster, {cluster}")
        clean = get_meta(connection, "clean") == 1
        numbering = before = get_meta(connection, "numbering")
        if numbering is None or not clean:
            numbering = int.from_bytes(rng.token(8), "big", signed=True)
            set_meta(connection, "numbering", numbering)
        set_meta(connection, "clean", 0)
    return Identity(cluster, numbering, clean, before)


def release(connection: Connection, *, sound: bool = True) -> None:
    """Close the file; if ``sound``, say that this was in order, so that its numbering goes on."""
    if sound:
        with connection:
            set_meta(connection, "clean", 1)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
