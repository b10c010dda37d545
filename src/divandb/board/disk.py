"""Files and fsync as an argument, so that a simulation can lose what was not synced."""

import contextlib
import os
from pathlib import Path
from typing import Protocol

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class File(Protocol):
    """A file open for reading and writing."""

    def write_at(self, position: int, data: bytes) -> None:
        """Write all of ``data``; not durable yet."""
        ...

    def sync(self) -> None:
        """Return when all that was written is durable, and the size with it."""
        ...

    def truncate(self, size: int) -> None:
        """Cut to ``size`` bytes; not durable yet."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Disk(Protocol):
    """A folder's files. Names are relative, with `/` between folders. All raise ``OSError``."""

    @property
    def boot(self) -> str:
        """Another one once what was written but not synced may have been lost; empty if that is
        not known.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder; nothing if there is no such folder."""
        ...

    def make_folder(self, folder: str) -> None:
        """Make a folder with its parents, durably; nothing happens if it is there."""
        ...

    def create(self, name: str) -> File:
        """Make an empty file, durably; an existing one is emptied."""
        ...

    def open(self, name: str) -> File:
        """Open an existing file."""
        ...

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        ...

    def read(self, name: str, position: int, bytes_max: int) -> bytes:
        """What is in the file from ``position`` on; less than ``bytes_max`` only at its end."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put a whole file in another's place, durably: readers find the old or the new."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; durable at some later time."""
        ...


class SystemFile:
    """A file of the operating system."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, position: int, data: bytes) -> None:
        """Write all of ``data``; not durable yet."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, position)
            position += written
            rest = rest[written:]

    def sync(self) -> None:
        """Return when all that was written is durable, and the size with it."""
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        """Cut to ``size`` bytes; not durable yet."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class SystemDisk:
    """The files below a folder of the operating system, readable by their owner only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def boot(self) -> str:
        """The running kernel's own name."""
        with contextlib.suppress(OSError):
            return BOOT_ID.read_text().strip()
        return ""

    def names(self, folder: str) -> list[str]:
        """What is in a folder; nothing if there is no such folder."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self._root / folder))
        return []

    def make_folder(self, folder: str) -> None:
        """Make a folder with its parents, durably; nothing happens if it is there."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._root
        _sync_folder(path.parent)
        for part in Path(folder).parts:
            path /= part
            path.mkdir(mode=0o700, exist_ok=True)
            # Also when it was there: whoever made it may have been killed before its sync.
            _sync_folder(path.parent)

    def create(self, name: str) -> SystemFile:
        """Make an empty file, durably; an existing one is emptied."""
        file = self._open(name, os.O_CREAT | os.O_TRUNC)
        try:
            _sync_folder((self._root / name).parent)
        except BaseException:
            file.close()
            raise
        return file

    def open(self, name: str) -> SystemFile:
        """Open an existing file."""
        return self._open(name, 0)

    def _open(self, name: str, flags: int) -> SystemFile:
        return SystemFile(os.open(self._root / name, os.O_RDWR | os.O_CLOEXEC | flags, 0o600))

    def size(self, name: str) -> int:
        """A file's size in bytes."""
        return (self._root / name).stat().st_size

    def read(self, name: str, position: int, bytes_max: int) -> bytes:
        """What is in the file from ``position`` on; less than ``bytes_max`` only at its end."""
        with open(self._root / name, "rb", buffering=0) as file:
            file.seek(position)
            found = file.read(bytes_max) or b""
            while 0 < len(found) < bytes_max and (more := file.read(bytes_max - len(found))):
                found += more
            return found

    def replace(self, name: str, data: bytes) -> None:
        """Put a whole file in another's place, durably: readers find the old or the new."""
        path = self._root / name
        unfinished = path.with_name(f"{path.name}.tmp")
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        _sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file; durable at some later time."""
        (self._root / name).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
