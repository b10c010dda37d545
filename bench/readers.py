"""Readers at half of the highest rate, whose p99 says what they feel of other work: by wrk, in
slices of a second whose histograms are joined.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import load, outputs, stats
from bench.servers import Target

CONNECTIONS = 16
SLICE_S = 1
"""There is a p99 for each slice."""
TUNE_TURNS = 4
TUNED_WITHIN = 0.05

PACED_LUA = """
local mean_ms = %(delay_ms)f
function delay()
  return math.floor(mean_ms * 2 * math.random() + math.random())
end
"""
"""The pause of a connection between two requests: wrk counts it in whole milliseconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What readers saw: ``slices`` are (seconds of the run, p99 ms) for each second."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    slices: list[tuple[float, float]] = field(default_factory=list)


class Readers:
    """They GET random documents of ``db`` at one node; ``ids`` is a file with a line for each."""

    def __init__(self, target: Target, db: str, ids: Path, seed: int) -> None:
        self._target = target
        self._folder = ids.parent
        self._script = load.random_script(target, db, ids, seed)
        self.start = time.perf_counter()
        """What the times of slices count from."""

    def half(self, seconds: int) -> tuple[Reading, float]:
        """What they get at their highest rate, and the pause at which they ask for half of it."""
        outputs.say("the highest rate")
        highest = self.read(seconds, 0.0)
        return highest, self._tuned(highest.requests_per_s / 2)

    def _tuned(self, rate: float) -> float:
        """The mean pause of a connection at which readers ask ``rate`` times a second, in ms."""
        delay_ms = CONNECTIONS / rate * 1000
        for _ in range(TUNE_TURNS):
            seen = self.read(SLICE_S, delay_ms).requests_per_s
            outputs.say(f"half rate: {seen:,.0f} of {rate:,.0f}/s")
            if abs(seen / rate - 1) < TUNED_WITHIN:
                break
            delay_ms = max(delay_ms + CONNECTIONS * 1000 * (1 / rate - 1 / seen), 0.1)
        return delay_ms

    def read(
        self, seconds: float, delay_ms: float, until: Callable[[], bool] = lambda: False
    ) -> Reading:
        """Asking for so long, no longer than ``until`` something is so, and a second at least."""
        script = self._script + (PACED_LUA % {"delay_ms": delay_ms} if delay_ms else "")
        slices: list[tuple[float, load.Histogram]] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline and not (slices and until()):
            seen = load.wrk_histogram(self._target, script, CONNECTIONS, SLICE_S, self._folder)
            slices.append((time.perf_counter() - self.start, seen))
        return reading(slices)


def reading(slices: Sequence[tuple[float, load.Histogram]]) -> Reading:
    """Slices joined: percentiles of all requests, not means of percentiles."""
    seen = [one for _, one in slices]
    counts: dict[int, int] = {}
    for one in seen:
        for value_us, count in one.counts.items():
            counts[value_us] = counts.get(value_us, 0) + count
    requests = sum(one.load.requests for one in seen)
    return Reading(
        requests=requests,
        requests_per_s=requests / sum(one.load.seconds for one in seen),
        p50_ms=stats.percentile_of_counts(counts, 50) / 1e3,
        p99_ms=stats.percentile_of_counts(counts, 99) / 1e3,
        errors=stats.add_up(one.load.errors for one in seen),
        slices=[(at_s, one.load.p99_us / 1e3) for at_s, one in slices],
    )
