"""Connections for reading that are kept for who reads next: to open one and read the schema takes
longer than most of what is read over it. Used on any thread, by one at a time.
"""

from divandb.store import file
from divandb.store.file import Connection, Disk

CACHE_BYTES = 2 * 2**20
"""Of one in use."""
IDLE_MAX = 2


class Spares:
    """Those of one file."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._idle: list[Connection] = []
        self._is_closed = False

    def take(self) -> Connection:
        """A connection that nobody else uses, until it is given back, or closed."""
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have been first
            return file.connect(self._disk, readonly=True, cache_bytes=CACHE_BYTES)

    def give_back(self, connection: Connection) -> None:
        """It is not used any more."""
        if self._is_closed or connection.in_transaction or len(self._idle) >= IDLE_MAX:
            connection.close()
            return
        connection.release_memory()
        self._idle.append(connection)
        if self._is_closed:  # meanwhile
            self.close()

    def close(self) -> None:
        """Keep none from now on."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()
