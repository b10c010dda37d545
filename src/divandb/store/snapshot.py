"""A copy of the file for another node: taken in one read transaction, put in place in steps.

``take`` copies with one ``VACUUM INTO``: a backup in steps would begin again at each write and
never end. The copy holds all of the state (events that are kept aside or could not be applied as
well: the board positions say that they were read) and nothing of who the peer is: its places get
another numbering, and the writes in its outbox it publishes itself.

``adopt`` puts a copy in the place of the node's file. Once the copy has the name ``NEXT_NAME`` the
matter is decided; what a crash leaves undone then, ``finish`` does at the next start, before the
file is opened.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from divandb.closings import NONE, Closings
from divandb.config import MIB
from divandb.store import changes, endings, file
from divandb.store.file import (
    FILE_NAME,
    FORMAT,
    Connection,
    DamagedError,
    Disk,
    FileError,
    FormatError,
)
from divandb.vector import join

NEXT_NAME = "node.sqlite.next"
"""A whole copy that is about to be the node's file."""
FLUSH_BYTES = 4 * MIB
"""The copy goes to the disk in parts of this size: one large fsync at the end would make those of
the writer wait.
"""
HASH_BYTES = MIB
LOOK_EVERY_OPS = 500
"""Between two looks at how far the copy is, in steps of SQLite's machine."""
CACHE_BYTES = MIB
_SIDES = ("-wal", "-shm", "-journal")
_CARRIED_META = ("cluster",)
_AHEAD = "SELECT origin, max(upto) FROM ahead GROUP BY origin"
_KEPT = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM hole)"


@dataclasses.dataclass(frozen=True)
class Info:
    """A finished copy."""

    path: Path
    size_bytes: int
    sha256: str
    """64 hex digits."""
    cluster: str
    format: int
    vector: dict[int, int]


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a file of a node that does not run would lose by being replaced."""

    cluster: str
    vector: dict[int, int]
    """origin → the highest write that is anywhere in the file, be it ahead of its vector or not."""
    kept_rows: int
    """Rows of the outbox, and events that could not be applied: perhaps nobody else has them."""
    closings: Closings = dataclasses.field(default=NONE, compare=False)
    """Ends of origins that it has heard of."""


class Abandoned(Exception):
    """The copy was given up because nobody wants it any more."""


def never() -> bool:
    """Nobody gives up."""
    return False


def take(disk: Disk, target: Path, given_up: Callable[[], bool] = never) -> Info:
    """Copy the file to ``target``, which must not exist, while its node goes on; durable on return.

    Blocks, for a second or so each 100 MB; ``given_up`` is asked now and then. Raises
    ``Abandoned``, or ``apsw.Error`` and ``OSError`` as the disk gives them; nothing stays at
    ``target`` then.
    """
    try:
        _copy(disk, target, given_up)
        cluster, vector = _strip(disk, target)
        with open(target, "r+b") as copy:
            sha256 = _digest(copy, given_up)
            os.fsync(copy.fileno())
        _sync_folder(target.parent)
        return Info(target, target.stat().st_size, sha256, cluster, FORMAT, vector)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(disk: Disk, target: Path, given_up: Callable[[], bool]) -> None:
    connection = file.connect(disk, readonly=True, cache_bytes=CACHE_BYTES)
    try:
        connection.execute("PRAGMA query_only = 0")  # VACUUM counts as writing wherever it writes
        connection.execute("PRAGMA synchronous = OFF")  # of the copy: it is flushed here
        with open(target, "x+b") as copy:
            flushing = _Flushing(copy, given_up)
            connection.set_progress_handler(flushing.step, LOOK_EVERY_OPS)
            connection.execute("VACUUM INTO ?", (str(target),))
    except apsw.InterruptError:
        raise Abandoned from None
    finally:
        connection.close()


class _Flushing:
    """Called while the copy grows."""

    def __init__(self, copy: BinaryIO, given_up: Callable[[], bool]) -> None:
        self._fd = copy.fileno()
        self._given_up = given_up
        self._flushed_bytes = 0

    def step(self) -> bool:
        """Flush what has been written; true ends the copy."""
        size = os.fstat(self._fd).st_size
        if size - self._flushed_bytes >= FLUSH_BYTES:
            os.fdatasync(self._fd)
            self._flushed_bytes = size
        return self._given_up()


def _strip(disk: Disk, target: Path) -> tuple[str, dict[int, int]]:
    """Take the peer's identity out of the copy; its cluster and vector."""
    copy = file.connect(dataclasses.replace(disk, path=target), readonly=False, cache_bytes=MIB)
    try:
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute("PRAGMA journal_mode = MEMORY")
        marks = ", ".join("?" * len(_CARRIED_META))
        with copy:
            copy.execute("DELETE FROM outbox")
            copy.execute(f"DELETE FROM meta WHERE key NOT IN ({marks})", _CARRIED_META)
        return str(file.get_meta(copy, "cluster")), changes.vector(copy)
    finally:
        copy.close()


def _digest(copy: BinaryIO, given_up: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    while piece := copy.read(HASH_BYTES):
        if given_up():
            raise Abandoned
        digest.update(piece)
    return digest.hexdigest()


def standing(disk: Disk) -> Standing | None:
    """What the file of a node that is about to start holds; ``None`` if there is no file.

    Raises ``FileError`` for one that cannot be read, ``DamagedError`` if its bytes are at fault.
    """
    if not disk.path.exists():
        return None
    try:
        connection = file.connect(disk, readonly=True, cache_bytes=CACHE_BYTES)
        try:
            return _standing(connection)
        finally:
            connection.close()
    except (apsw.CorruptError, apsw.NotADBError) as fault:
        raise DamagedError(f"{disk.path}: {fault}") from fault
    except apsw.Error as fault:
        raise FileError(f"{disk.path}: {fault}") from fault


def _standing(connection: Connection) -> Standing:
    with connection:
        rows: Any = connection.execute("SELECT origin, max(contained, reached) FROM origin")
        held = dict(rows)
        ahead: Any = connection.execute(_AHEAD).fetchall()
        kept: Any = connection.execute(_KEPT).fetchone()
        cluster = str(file.get_meta(connection, "cluster"))
        closings = endings.load(connection)
    return Standing(cluster, join(held, dict(ahead)), kept[0], closings)


def adopt(path: Path, *, replace: bool = False) -> None:
    """Make the copy at ``path``, in the data folder, the node's file. No process may have it open.

    Raises ``FileError`` if there is a file already and it is not to be replaced, or is of another
    cluster; ``FormatError`` if the copy is not in this version's format.
    """
    check(path, path.with_name(FILE_NAME), replace=replace)
    decide(path)
    finish(path.parent)


def check(path: Path, current: Path, *, replace: bool) -> None:
    """Raises what ``adopt`` raises."""
    version = _format(path)
    if version != FORMAT:
        raise FormatError(f"{path} has format {version}, this version reads format {FORMAT}")
    held, copied = standing(Disk(current)), standing(Disk(path))
    if held is not None and not replace:
        raise FileError(f"{current} is there already")
    if held is not None and copied is not None and held.cluster != copied.cluster:
        raise FileError(f"{current} belongs to another cluster than the copy")


def _format(path: Path) -> int:
    try:
        connection = file.connect(Disk(path), readonly=True, cache_bytes=CACHE_BYTES)
        try:
            version: Any = connection.pragma("user_version")
            return int(version)
        finally:
            connection.close()
    except apsw.Error as fault:
        raise FileError(f"{path}: {fault}") from fault


def decide(path: Path) -> None:
    """The first step: from here on the copy is what the node will open."""
    os.replace(path, path.with_name(NEXT_NAME))
    _sync_folder(path.parent)


def finish(folder: Path) -> bool:
    """The other steps; called at each start before the file is opened. Was there anything to do?

    The old file's log goes before the new file comes, which it would damage; the old file without
    its log is no file any more, but ``NEXT_NAME`` stands until it is replaced.
    """
    copied = folder / NEXT_NAME
    if not copied.exists():
        return False
    for side in _SIDES:
        (folder / f"{FILE_NAME}{side}").unlink(missing_ok=True)
    _sync_folder(folder)
    os.replace(copied, folder / FILE_NAME)
    _sync_folder(folder)
    return True


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
