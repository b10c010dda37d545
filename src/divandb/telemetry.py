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
