"""A simulated disk: it keeps what was fsynced, and of the rest what it likes.

An SQLite VFS. Each write of which no fsync has followed can be undone: a power cut takes back the
last of them, and may leave one of those in part, or with a bit that has flipped. A killed process
loses nothing, since the operating system has it all. A full disk takes nothing more.
"""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from divandb.store.file import FILE_NAME

VFS_NAME = "divandb-simulation"
OPEN_FOR_WRITING = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
PAGES_LIE = 0.5
"""The chance that the write at which a power cut stops is there, in part or with a flipped bit."""


class _Undo(NamedTuple):
    """What lay where something was written, and how long the file was."""

    offset: int
    before: bytes
    size: int
    written: int


class Platter:
    """One node's disk: its files, by name. ``folder`` holds what a process would read of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_full = False
        self._unsynced: dict[str, list[_Undo]] = {}
        _DISK.platters[str(folder)] = self

    def forget(self) -> None:
        """The run is over."""
        _DISK.platters.pop(str(self.folder), None)

    # What the VFS tells

    def changes(self, name: str, undo: _Undo) -> None:
        """Something is about to be overwritten or cut off."""
        self._unsynced.setdefault(name, []).append(undo)

    def settled(self, name: str) -> None:
        """All that was written to the file is durable, or the file is gone."""
        self._unsynced.pop(name, None)

    # What becomes of it; nobody has a file open

    def image(self) -> dict[str, bytes]:
        """The files as a process that starts finds them."""
        return {path.name: path.read_bytes() for path in _files(self.folder)}

    def power_cut(self, files: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
        """The same when the power went at that moment."""
        return {
            name: _without(data, self._unsynced.get(name, []), rng) for name, data in files.items()
        }

    def put_back(self, files: dict[str, bytes]) -> None:
        """Let the disk hold these."""
        # Also what SQLite's connections share: whoever is dead and has it open keeps the old one.
        for path in self.folder.glob(FILE_NAME + "*"):
            path.unlink()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        self._unsynced.clear()

    @contextlib.contextmanager
    def with_room(self) -> Iterator[None]:
        """It takes everything meanwhile."""
        was_full, self.is_full = self.is_full, False
        yield
        self.is_full = was_full

    @property
    def unsynced_bytes(self) -> int:
        """What a power cut may take, at most."""
        return sum(undo.written for undos in self._unsynced.values() for undo in undos)


def _files(folder: Path) -> list[Path]:
    # What SQLite shares between connections, `-shm`, lives in memory.
    return sorted(folder / (FILE_NAME + end) for end in ("", "-wal") if _is_there(folder, end))


def _is_there(folder: Path, end: str) -> bool:
    return (folder / (FILE_NAME + end)).exists()


def _without(data: bytes, undos: list[_Undo], rng: random.Random) -> bytes:
    """Only the first of these writes were made: how many is drawn. The next is there in part, with
    a flipped bit, or not at all.
    """
    kept = rng.randrange(len(undos) + 1)
    held = bytearray(data)
    last = b""
    for undo in reversed(undos[kept:]):
        last = bytes(held[undo.offset : undo.offset + undo.written])
        held[undo.offset : undo.offset + max(undo.written, len(undo.before))] = undo.before
        held[undo.size :] = b""
    if kept < len(undos) and last and rng.random() < PAGES_LIE:
        _damage(held, undos[kept].offset, last, rng)
    return bytes(held)


def _damage(held: bytearray, offset: int, last: bytes, rng: random.Random) -> None:
    part = bytearray(last[: rng.randrange(len(last)) + 1])
    if rng.random() < PAGES_LIE:
        part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
    held[offset : offset + len(part)] = part


class _Disk(apsw.VFS):
    """All platters of this process, by the folder that a file lies in."""

    def __init__(self) -> None:
        super().__init__(VFS_NAME, "")
        self.platters: dict[str, Platter] = {}

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        platter = self.platters.get(str(path.parent))
        is_ours = platter is not None and path.name.startswith(FILE_NAME)
        if not is_ours or not flags[0] & OPEN_FOR_WRITING:
            return apsw.VFSFile("", name, flags)
        return _File(platter, path.name, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        path = Path(filename)
        if str(path.parent) in self.platters:
            self.platters[str(path.parent)].settled(path.name)
        if path.exists():  # a connection of a dead process closes whenever it likes
            super().xDelete(filename, syncdir)


class _File(apsw.VFSFile):
    def __init__(self, platter: Any, held_as: str, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._platter: Platter = platter
        self._name = held_as

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._platter.is_full:
            raise apsw.FullError
        size, before = self.xFileSize(), b""
        if offset < size:
            before = self.xRead(min(len(data), size - offset), offset)
        self._platter.changes(self._name, _Undo(offset, before, size, len(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        size = self.xFileSize()
        if newsize < size:
            cut = self.xRead(size - newsize, newsize)
            self._platter.changes(self._name, _Undo(newsize, cut, size, 0))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._platter.settled(self._name)


_DISK = _Disk()


__all__ = ["VFS_NAME", "Platter"]
