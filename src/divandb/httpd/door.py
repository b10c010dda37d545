"""The clients' port as one process serves it: a door that can be closed while others stay open.

Closed, it takes no connections. Those that there are end in peace: the next answer of each says
``Connection: close``, feeds give their last line, and who asks nothing for ``IDLE_S`` is let go.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

IDLE_S = 1.0


class Connection(Protocol):
    """One of a client's, on the clients' port."""

    def leave_idle(self, idle_s: float) -> None:
        """Close if nothing was asked for so long, and nothing is under way."""
        ...


class Door:
    """Is it open, and who came through it?"""

    def __init__(self, wake: Callable[[], None], *, is_closed: bool = False) -> None:
        """``wake`` has feeds look whether they are to end."""
        self.is_closed = is_closed
        self.listen: Callable[[], None] = lambda: None
        """Have the socket take connections."""
        self.shut: Callable[[], None] = lambda: None
        """Have it take none."""
        self._wake = wake
        self._there: set[Connection] = set()
        self._looking: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._there)

    def came(self, connection: Connection) -> None:
        """A client has connected."""
        self._there.add(connection)

    def went(self, connection: Connection) -> None:
        """And is gone."""
        self._there.discard(connection)

    def close(self) -> None:
        """Take no more, and let go of those that there are."""
        self.is_closed = True
        self.shut()
        self._wake()
        self._look_later()

    def open(self) -> None:
        """Take clients again."""
        self.is_closed = False
        if self._looking is not None:
            self._looking.cancel()
        self.listen()

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(IDLE_S, self._look)

    def _look(self) -> None:
        for connection in list(self._there):
            connection.leave_idle(IDLE_S)
        if self._there:
            self._look_later()
