"""Checkpoints off the writer's thread: inside a commit they are what makes one slow.

``WalGauge`` hears of every commit that writes; ``Checkpointer`` copies the write-ahead log into the
file, on a connection of its own.
"""

import contextlib
import threading
from typing import Any

import apsw

from divandb.config import MIB, Limits
from divandb.store import file
from divandb.store.file import Connection, Disk
from divandb.store.ledger import Ledger

CHECKPOINT_BYTES = 8 * MIB
"""The write-ahead log is copied into the file each time it has grown by this much."""
TRUNCATE_WAIT_MS = 1000


class WalGauge:
    """Hears of every commit that wrote: how many there were and what the write-ahead log holds.

    Its numbers are set on the writer's thread and may be read on any.
    """

    def __init__(self, connection: Connection) -> None:
        self.commits = 0
        self.pages = 0
        self.resets = 0
        size: Any = connection.pragma("page_size")
        self._page_bytes: int = size
        connection.set_wal_hook(self._committed)

    def _committed(self, connection: Connection, name: str, pages: int) -> int:
        if pages < self.pages:
            self.resets += 1
        self.pages = pages
        self.commits += 1
        return apsw.SQLITE_OK

    def bytes_since(self, pages: int) -> int:
        """How much the log has grown since it had so many pages."""
        return (self.pages - pages) * self._page_bytes


class Checkpointer:
    """Copies the write-ahead log into the file, on a connection and a thread of its own."""

    def __init__(self, disk: Disk, gauge: WalGauge, limits: Limits) -> None:
        self._connection = file.connect(disk, readonly=False, cache_bytes=0)
        self._connection.execute(f"PRAGMA synchronous = {disk.synchronous}")
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._gauge = gauge
        self._limits = limits
        self._tried = (0, 0)
        self._lock = threading.Lock()
        self._open = True
        self.runs = 0

    def due(self) -> bool:
        """Has the log grown enough since the last attempt?"""
        resets, pages = self._tried
        return (
            self._gauge.bytes_since(pages if resets == self._gauge.resets else 0)
            >= CHECKPOINT_BYTES
        )

    def run(self) -> None:
        """Copy what needs no waiting; all of a log that is too long, though writers then wait."""
        with self._lock:
            if not self._open:
                return
            self._tried = (self._gauge.resets, self._gauge.pages)
            self.runs += 1
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                if self._gauge.bytes_since(0) > self._limits.wal_bytes_max:
                    self._truncate()
            except apsw.BusyError:  # a reader is in the way: again when the log has grown further
                return

    def _truncate(self) -> None:
        self._connection.set_busy_timeout(TRUNCATE_WAIT_MS)
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def close(self) -> None:
        """End, when what is running is done."""
        with self._lock:
            self._open = False
            self._connection.close()


def rewind(ledger: Ledger) -> None:
    """On the writer's thread, behind its commit: copy the few pages that outran a checkpoint.

    Then the log begins again at its start, over blocks that the file has already. While it grows
    instead, each fsync of it waits for the file system's journal, and with that for the pages
    that the checkpoint is just writing.
    """
    ledger.after_commit.append(lambda: _copy_rest(ledger.connection))


def _copy_rest(connection: Connection) -> None:
    # The commit stands: a disk that refuses this must not make it look refused.
    with contextlib.suppress(apsw.Error):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
