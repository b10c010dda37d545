"""Proof that a child's event loop turns, and the place on the clients' port that hangs on it.

Several processes listen on one port, each with a socket of its own (SO_REUSEPORT), and the kernel
deals connections out to all of them, also to one that is stopped or blocked: those would hang. So
a child that serves clients writes the time into memory that it shares with its supervisor, and the
supervisor shuts the listener of one that has been silent for too long (``Vigil`` decides). Both
hold the same socket: the child sees there that it was shut, and listens again.

    child       ``keep_listening``: beat, and listen if it does not      every ``BEAT_S``
    supervisor  ``Vigil.look``: who is silent?  ``shut`` its listener    when a beat is overdue

The state of the socket, asked of the kernel, is the only note that they exchange, so none can be
lost. The loop's server object stays: the loop (uvloop 0.21 and 0.23 were tried) accepts again as
soon as its socket listens again. Until then it turns without rest, less than one ``BEAT_S``.
"""

import asyncio
import contextlib
import dataclasses
import mmap
import socket
from collections.abc import Mapping

from divandb.clock import Clock

BACKLOG_CONNECTIONS_MAX = 1024
BEAT_S = 0.1
"""Between two beats. Each wakes the process: about 0.1 ms of CPU where it is idle."""
LATE_S_MAX = 0.1
"""A look that comes later than this tells of the supervisor's own pause, not of the children's."""


class Pulse:
    """Shared memory that one child writes and its supervisor reads; made before the fork."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # One aligned number: written and read in one piece.
        self._slot = memoryview(mmap.mmap(-1, 8)).cast("d")

    def beat(self) -> None:
        """The loop turns."""
        self._slot[0] = self._clock.monotonic()

    @property
    def last_beat(self) -> float:
        """When it last did, on the monotonic clock that all processes share; 0.0 for never."""
        return self._slot[0]


@dataclasses.dataclass(frozen=True)
class Sockets:
    """What a child gets from its supervisor."""

    own: socket.socket
    """Listens on the child's own port from the beginning."""
    shared: socket.socket | None
    """For a child that serves clients: bound to their port, and listening once the child listens,
    which asyncio's ``create_server`` does.
    """
    pulse: Pulse

    def listening(self) -> list[socket.socket]:
        """All that the child is to listen on."""
        return [self.own] if self.shared is None else [self.own, self.shared]


async def keep_listening(pulse: Pulse, shared: socket.socket) -> None:
    """Beat, and listen again on ``shared`` whenever the supervisor has shut it.

    To be run beside the server of ``shared``, once there is one; ends when it is cancelled or the
    socket is closed.
    """
    while shared.fileno() >= 0:
        pulse.beat()
        if not is_listening(shared):
            shared.listen(BACKLOG_CONNECTIONS_MAX)
        await asyncio.sleep(BEAT_S)


def is_listening(listener: socket.socket) -> bool:
    """Whether the kernel gives connections to this socket."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def shut(listener: socket.socket) -> None:
    """Let the socket take no connections, in every process that has it; it stays bound.

    Connections that wait in its queue are reset.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RD)


class Vigil:
    """Which listeners are to be shut: decisions only, on the times it is given.

    Rules: a listener is silent when its process is down, or has not beaten for ``silent_s_max``.
    Silent ones are shut while another is awake; where none is, nothing is: to wait is better than
    to be refused. When the supervisor itself was away, everybody gets the full time anew.
    """

    def __init__(self, silent_s_max: float) -> None:
        self._silent_s_max = silent_s_max
        self._next_look = 0.0
        self._since = 0.0

    def look(self, beats: Mapping[str, float | None], now: float) -> list[str]:
        """The names to shut; ``beats``: when each that listens last beat, None if it is down."""
        if now > self._next_look + LATE_S_MAX:
            self._since = now
        due = {
            name: now if beat is None else max(beat, self._since) + self._silent_s_max
            for name, beat in beats.items()
        }
        awake = [time for time in due.values() if time > now]
        self._next_look = min(awake, default=now + self._silent_s_max)
        return [name for name, time in due.items() if time <= now] if awake else []

    def wait_s(self, now: float) -> float:
        """Seconds until the next look: when the first of the awake would be silent."""
        return max(0.0, self._next_look - now)
