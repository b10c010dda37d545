"""Who is the closest: by zone first, then by round-trip time, and not another one every second.

A round-trip time is an exponential average of what was measured. Of the same zone comes before of
another one, whatever was measured; who was not measured yet comes behind those of its zone that
were. Who was chosen stays chosen until another one is closer by a quarter and by a millisecond
(hysteresis): two that are about as far never take turns.

Pure: nodes and the Python client both use it.
"""

from collections.abc import Iterable
from typing import NamedTuple

NEW_SHARE = 0.2
"""What the latest measurement counts for in an average."""
GAIN_SHARE_MIN = 0.25
"""Another one is worth the move if this share of the time is saved,"""
GAIN_S_MIN = 0.001
"""and at least this."""


class Candidate(NamedTuple):
    """One who could be chosen."""

    name: str
    is_away: bool
    """Is it in another zone?"""
    rtt_s: float | None
    """``None``: it was not measured yet."""


def averaged(before_s: float | None, measured_s: float) -> float:
    """The average with another measurement in it."""
    if before_s is None:
        return measured_s
    return before_s * (1 - NEW_SHARE) + measured_s * NEW_SHARE


def is_away(own_zone: str, zone: str) -> bool:
    """Is it in another zone? Who names no zone is as near as anybody."""
    return bool(own_zone) and bool(zone) and own_zone != zone


class Closest:
    """Remembers whom it chose."""

    def __init__(self) -> None:
        self.chosen: str | None = None

    def order(self, candidates: Iterable[Candidate]) -> list[str]:
        """Their names, the chosen one first, then the others, the closest first."""
        found = sorted(candidates, key=_distance)
        if not found:
            return []
        held = next((one for one in found if one.name == self.chosen), None)
        first = found[0] if held is None or _is_worth_it(held, found[0]) else held
        self.chosen = first.name
        return [first.name, *(one.name for one in found if one is not first)]


def _distance(one: Candidate) -> tuple[bool, bool, float, str]:
    return one.is_away, one.rtt_s is None, one.rtt_s or 0.0, one.name


def _is_worth_it(held: Candidate, other: Candidate) -> bool:
    """Is it worth to move from the one that is held?"""
    if held.is_away != other.is_away:
        return held.is_away
    if held.rtt_s is None or other.rtt_s is None:
        return other.rtt_s is not None
    gain_s = held.rtt_s - other.rtt_s
    return gain_s >= GAIN_S_MIN and gain_s >= held.rtt_s * GAIN_SHARE_MIN
