"""Time and randomness as arguments.

Only this module asks the operating system for either, so that a whole cluster can run on a
simulated clock from one seed. Everything else is handed a ``Clock`` and an ``Rng``.

``HybridClock`` follows Kulkarni et al., "Logical Physical Clocks" (2014): a stamp is
``milliseconds << 16 | counter``, always greater than every stamp given or seen before, and close
to wall time otherwise.
"""

import random
import secrets
import threading
import time
from typing import Protocol

COUNTER_BITS = 16


class Clock(Protocol):
    """What the database asks of time."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970; may step back."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never steps back; only differences mean something."""
        ...


class Rng(Protocol):
    """What the database asks of chance."""

    def token(self, size: int) -> bytes:
        """``size`` unpredictable bytes, fit for keys and salts."""
        ...

    def uniform(self) -> float:
        """A number in [0, 1) for jitter and sampling."""
        ...


class SystemClock:
    """The machine's own clock."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class SystemRng:
    """The operating system's randomness."""

    def token(self, size: int) -> bytes:
        return secrets.token_bytes(size)

    def uniform(self) -> float:
        return random.random()


class HybridClock:
    """Stamps that never repeat and never go back, even when the wall clock does."""

    def __init__(self, clock: Clock, last: int = 0) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.last = last

    def stamp(self, after: int = 0) -> int:
        """A stamp greater than every one given before and greater than ``after``."""
        wall = self._clock.wall_ms() << COUNTER_BITS
        with self._lock:
            self.last = max(wall, self.last + 1, after + 1)
            return self.last

    def seen(self, stamp: int) -> None:
        """Take note of another node's ``stamp``: later stamps exceed it."""
        with self._lock:
            self.last = max(self.last, stamp)


def stamp_ms(stamp: int) -> int:
    """The wall-clock milliseconds in a hybrid stamp."""
    return stamp >> COUNTER_BITS
