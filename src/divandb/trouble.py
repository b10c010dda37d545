"""What fails and is tried again: with growing waits, and told to the operator once it lasts."""

import asyncio
import contextlib
from collections.abc import Iterator

from divandb.clock import Rng
from divandb.telemetry import Log

TROUBLE_S_MIN = 2.0
"""What has been tried again for so long without success is logged."""
RETRY_S_MIN = 0.05
RETRY_S_MAX = 2.0


class Trouble:
    """What keeps something from working that is tried again: told when it has lasted for a while.

    What passes by itself is nothing for an operator, such as a board that begins after its nodes.
    """

    def __init__(self, log: Log, what: str, **values: object) -> None:
        """``what`` is the log's line, with these values."""
        self._log = log
        self._what = what
        self._values = values
        self._since: float | None = None
        self._is_told = False
        self._pause_s = RETRY_S_MIN
        self.failing: str | None = None
        """The last fault, until ``over``."""

    def met(self, fault: Exception, now: float) -> None:
        """An attempt has failed, at ``now`` in seconds of a clock that does not step back."""
        self.failing = str(fault) or repr(fault)
        if self._since is None:
            self._since = now
        if not self._is_told and now - self._since > TROUBLE_S_MIN:
            self._is_told = True
            self._log.event(self._what, fault=repr(fault), **self._values)

    def over(self) -> None:
        """It works again."""
        self.failing = self._since = None
        self._is_told = False
        self._pause_s = RETRY_S_MIN

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Try it once, on an event loop: a fault is noted here and goes no further."""
        try:
            yield
        except Exception as fault:
            self.met(fault, asyncio.get_running_loop().time())
        else:
            self.over()

    async def back_off(self, rng: Rng) -> None:
        """Wait if the last attempt failed: 0.05 s, twice as long each time up to 2 s, give or take
        a half.
        """
        if self.failing is not None:
            await asyncio.sleep(self._pause_s * (0.5 + rng.uniform()))
            self._pause_s = min(self._pause_s * 2, RETRY_S_MAX)
