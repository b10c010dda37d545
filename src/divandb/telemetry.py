"""The log: one line an event, on standard error, with names and values."""

import sys
import traceback
from datetime import UTC, datetime
from typing import Protocol, TextIO

from divandb.clock import Clock


class Log(Protocol):
    """What the parts ask of a log."""

    def event(self, what: str, **values: object) -> None:
        """Something that an operator may want to know."""
        ...

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        """Something that should not have happened, with where it did."""
        ...


TROUBLE_S_MIN = 2.0
"""What has been tried again for so long without success is logged."""


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


class LineLog:
    """Writes lines such as ``2026-01-31T12:00:00.123Z m1 started url=http://127.0.0.1:5984``."""

    def __init__(self, name: str, clock: Clock, out: TextIO = sys.stderr) -> None:
        self._name = name
        self._clock = clock
        self._out = out

    def event(self, what: str, **values: object) -> None:
        """One line."""
        shown = "".join(f" {key}={_shown(value)}" for key, value in values.items())
        # In one piece: several processes write to the same place.
        self._out.write(f"{rfc3339(self._clock.wall_ms())} {self._name} {what}{shown}\n")
        self._out.flush()

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        """One line, and the traceback below it."""
        self.event(what, fault=repr(fault), **values)
        traceback.print_exception(fault, file=self._out)


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or not text.isprintable() or " " in text else text


def rfc3339(wall_ms: int) -> str:
    """A moment in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(wall_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
