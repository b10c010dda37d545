"""Many random runs, in processes: which seeds fail, and what a minute of CPU gets through."""

import gc
import os
import random
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from divandb.supervisor import _die_with
from tests.sim.harness import MEMORY, play_out
from tests.sim.storm import storm

AHEAD = 2
"""Seeds that wait for each process."""


Shape = tuple[int, int]
"""(masters, replicas for each)."""


class Outcome(NamedTuple):
    """One run. ``fault``: the whole story, if it failed."""

    seed: int
    simulated_s: float
    cpu_s: float
    acts: int
    writes: int
    struck: dict[str, int]
    fault: str | None = None
    trace: tuple[tuple[float, str, int], ...] = ()
    shape: Shape = (0, 0)


def played(seed: int, *, traced: bool = False, fixed: Shape | None = None) -> Outcome:
    """Play a seed's run, in its own shape or in another one."""
    body, shape = storm(seed, fixed)
    dimensions = (shape["masters"], shape["replicas"])
    made: list[Any] = []
    fault: str | None = None
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        try:
            play_out(body, Path(folder), seed, made=made, **shape)
        except Exception:
            fault = traceback.format_exc()
    if not gc.isenabled():
        gc.collect()
    if not made:
        return Outcome(seed, 0.0, 0.0, 0, 0, {}, fault, shape=dimensions)
    (c,) = made
    return Outcome(
        seed, c.loop.now_s, time.process_time() - began, c.acts,
        sum(map(len, c.history.writes.values())), c.struck, fault, tuple(c.trace) if traced else (),
        dimensions,
    )  # fmt: skip


class Report:
    """What a search has seen so far."""

    def __init__(self) -> None:
        self.runs = 0
        self.simulated_s: defaultdict[Shape, float] = defaultdict(float)
        self.cpu_s: defaultdict[Shape, float] = defaultdict(float)
        self.acts = 0
        self.writes = 0
        self.struck: Counter[str] = Counter()
        self.failed: dict[int, str] = {}

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.simulated_s[outcome.shape] += outcome.simulated_s
        self.cpu_s[outcome.shape] += outcome.cpu_s
        self.acts += outcome.acts
        self.writes += outcome.writes
        self.struck.update(outcome.struck)
        if outcome.fault is not None:
            self.failed[outcome.seed] = outcome.fault

    def lines(self) -> Iterator[str]:
        """For people."""
        simulated_s, cpu_s = sum(self.simulated_s.values()), sum(self.cpu_s.values())
        yield (
            f"{self.runs} seeds, {len(self.failed)} failed; {simulated_s / 3600:.2f} simulated"
            f" hours in {cpu_s / 60:.2f} minutes of CPU:"
            f" {_hours(simulated_s, cpu_s)} hours a minute"
        )
        for masters, replicas in sorted(self.cpu_s, reverse=True):
            shape = (masters, replicas)
            per_minute = _hours(self.simulated_s[shape], self.cpu_s[shape])
            yield f"  {masters} masters with {replicas} replicas: {per_minute} hours a minute"
        yield f"{self.acts} requests, {self.writes} writes, {sum(self.struck.values())} faults:"
        yield "  " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.struck.items()))
        for seed, fault in sorted(self.failed.items()):
            yield f"python -m tests.sim --seed {seed}    # {last_line(fault)}"


def _hours(simulated_s: float, cpu_s: float) -> str:
    """Simulated hours that a minute of CPU gets through."""
    return f"{simulated_s / cpu_s / 60 if cpu_s else 0.0:.2f}"


def last_line(fault: str) -> str:
    """What it comes to, of a traceback with notes."""
    said = [line for line in fault.splitlines() if line and not line.startswith((" ", "Traceback"))]
    return " · ".join(line[:160] for line in said[-3:])


def new_seeds() -> Iterator[int]:
    """Without end, each search its own."""
    first = random.SystemRandom().randrange(10**6, 10**9)
    while True:
        yield first
        first += 1


def search(
    seeds: Iterable[int], minutes: float, jobs: int, report: Report, fixed: Shape | None = None
) -> Iterator[Outcome]:
    """Play seeds until they or the time end; each as it ends."""
    until = time.monotonic() + minutes * 60
    coming = iter(seeds)
    waiting: set[Future[Outcome]] = set()
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (os.getpid(),)) as pool:
        while True:
            while len(waiting) < jobs * AHEAD and time.monotonic() < until:
                seed = next(coming, None)
                if seed is None:
                    break
                waiting.add(pool.submit(played, seed, fixed=fixed))
            if not waiting:
                return
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in ended:
                report.add(one.result())
                yield one.result()


def _begin(parent: int) -> None:
    """In each process: it ends with its parent, and looks for garbage between runs alone."""
    _die_with(parent)
    os.nice(5)
    gc.freeze()
    gc.disable()
