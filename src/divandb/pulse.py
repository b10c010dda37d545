"""Proof that a child's event loop turns, and the place on the clients' port that hangs on it.

Several processes listen on one port, each with a socket of its own (SO_REUSEPORT), and the kernel
deals connections out to all of them, also to one that is stopped or blocked: those would hang. So
a child that serves clients writes the time into memory that it shares with its supervisor, and the
supervisor shuts the listener of one that has been silent for too long (``Vigil`` decides). Both
hold the same socket: the child sees there that it was shut, and listens again.

    child       ``keep_listening``: beat, and listen if it does not      every ``BEAT_S``
    supervisor  ``Vigil.look``: who is silent?  ``shut`` its listener    when a beat is overdue

On a machine with more work than cores healthy children are silent too: they wait for a core. Shut,
they would lose the connections in their queue and leave the work to others, no less starved. So the
supervisor looks at what the kernel says of a silent one (``signs_of``), and shuts at once only what
is stopped or stuck.

The state of the socket, asked of the kernel, is the only note that they exchange, so none can be
lost. The loop's server object stays: the loop (uvloop 0.21 and 0.23 were tried) accepts again as
soon as its socket listens again. Until then it turns without rest, less than one ``BEAT_S``.
"""

import asyncio
import contextlib
import dataclasses
import mmap
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from divandb.clock import Clock

BACKLOG_CONNECTIONS_MAX = 1024
BEAT_S = 0.1
"""Between two beats. Each wakes the process: about 0.1 ms of CPU where it is idle."""
LATE_S_MAX = 0.1
"""A look that comes later than this tells of the supervisor's own pause, not of the children's."""
LOOK_AGAIN_S = 0.05
"""Between two looks at a child that is silent: five of the kernel's ticks."""


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


async def keep_listening(
    pulse: Pulse, shared: socket.socket, is_wanted: Callable[[], bool] = lambda: True
) -> None:
    """Beat, and listen again on ``shared`` whenever the supervisor has shut it, as long as this
    child is to serve clients at all.

    To be run beside the server of ``shared``, once there is one; ends when it is cancelled or the
    socket is closed.
    """
    while shared.fileno() >= 0:
        pulse.beat()
        if is_wanted() and not is_listening(shared):
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


@dataclasses.dataclass(frozen=True)
class Signs:
    """What the kernel says of a process."""

    states: frozenset[str]
    """Those of its threads, as letters of proc(5); none when it has ended."""
    cpu_ticks: int
    """What they have used, in hundredths of a second."""

    @property
    def is_stopped(self) -> bool:
        """By a signal, or by a debugger."""
        return not self.states.isdisjoint("Tt")

    def is_stuck_since(self, before: "Signs") -> bool:
        """Has it neither used nor wanted a core? It sleeps in a system call, or waits for a lock
        that nobody gives back.
        """
        wants_core = "R" in self.states or "R" in before.states
        return not wants_core and self.cpu_ticks == before.cpu_ticks


def signs_of(pid: int) -> Signs:
    """The signs of a process."""
    lines = []
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            # A program's name, in brackets before the rest, may hold anything.
            lines.append(path.read_text(errors="replace").rpartition(")")[2].split())
    ticks = sum(int(line[11]) + int(line[12]) for line in lines)
    return Signs(frozenset(line[0] for line in lines), ticks)


class Vigil:
    """Which listeners are to be shut: decisions only, on the times and signs it is given.

    Rules: a child that has not beaten for ``silent_s_max`` is silent. A listener is dead when its
    process is down, or silent and stopped, or silent and stuck between two looks, or silent for
    ``starved_s_max`` whatever its signs are. Dead ones are shut while another is left; where none
    is, nothing is: to wait is better than to be refused. When the supervisor itself was away,
    everybody gets the full time anew.
    """

    def __init__(self, silent_s_max: float, starved_s_max: float) -> None:
        self._silent_s_max = silent_s_max
        self._starved_s_max = max(starved_s_max, silent_s_max)
        self._next_look = 0.0
        self._since = 0.0
        self._signs: dict[str, Signs] = {}
        """Of those that are silent, as of the last look."""

    def look(
        self, beats: Mapping[str, float | None], now: float, signs: Callable[[str], Signs]
    ) -> list[str]:
        """The names to shut; ``beats``: when each that listens last beat, None if it is down."""
        if now > self._next_look + LATE_S_MAX:
            self._since = now
        due = {name: self._next_due(name, beat, now, signs) for name, beat in beats.items()}
        left = [time for time in due.values() if time is not None]
        self._next_look = min(left, default=now + self._silent_s_max)
        return [name for name, time in due.items() if time is None] if left else []

    def _next_due(
        self, name: str, beat: float | None, now: float, signs: Callable[[str], Signs]
    ) -> float | None:
        """When this one is to be looked at again; None: it is dead."""
        if beat is None:
            return None
        since = max(beat, self._since)
        before = self._signs.pop(name, None)
        if now < since + self._silent_s_max:
            return since + self._silent_s_max
        if now >= since + self._starved_s_max:
            return None
        seen = self._signs[name] = signs(name)
        if seen.is_stopped or (before is not None and seen.is_stuck_since(before)):
            return None
        return min(now + LOOK_AGAIN_S, since + self._starved_s_max)

    def wait_s(self, now: float) -> float:
        """Seconds until the next look: when the first of those left may be dead."""
        return max(0.0, self._next_look - now)
