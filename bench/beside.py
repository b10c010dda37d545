"""What clients feel of work that is not theirs: ``python -m bench beside``.

Readers ask at half of the highest rate, alone (A) and beside the work (B), in rounds A B A B:

    bootstrap   a new replica copies all documents from the one that is asked
    view        the node that is asked builds a JavaScript view over all documents

The work is also done with no reader beside it: how much longer it takes beside readers is what the
node spares them.
"""

import argparse
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cases, documents, machine, outputs, plot, servers, stats
from bench.comfort import held, status
from bench.readers import CONNECTIONS, Readers, Reading
from bench.servers import BenchError, Cluster, Target

BOOTSTRAP, VIEW = "bootstrap", "view"
NAMES = (BOOTSTRAP, VIEW)
DB = "bench-beside"
P99_AIM = 1.3
WORK_S_MAX = 3_600.0
"""Longer than that no work may take; nor do readers stay."""
IDS_READ_MAX = 20_000
"""wrk reads the ids anew for each slice: with more of them nobody would ask for seconds, and the
node would give all of its time to the work. Of more documents so many are read, drawn evenly.
"""
BODIES = 1_000
SAMPLE_S = 0.25
POLL_S = 0.1
START_S = 1.0
"""A view that is not ready though nothing is built has not been begun: soon it is."""
MAP = "function (doc) { emit([doc.type, doc.number], doc.total); }"
USES = {BOOTSTRAP: "copies", VIEW: "indexes"}
"""What the governor of the node that is asked calls the work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    docs: int
    rounds: int
    seconds: int
    doc_bytes: int = 1_000
    seed: int = 1


FULL = Plan(docs=1_000_000, rounds=2, seconds=6)
QUICK = Plan(docs=200_000, rounds=1, seconds=3)


@dataclass(frozen=True, slots=True)
class Round:
    """Readers alone and beside the work, and the seconds of the work beside them."""

    alone: Reading
    beside: Reading
    took_s: float

    @property
    def p99_times(self) -> float:
        return self.beside.p99_ms / self.alone.p99_ms


@dataclass(frozen=True, slots=True)
class Sample:
    """The node that is asked, at one time in seconds: the governor's budget, what the work uses of
    it, and how long work waits for the event loop.
    """

    at_s: float
    share: float
    used: float
    wait_ms: float


@dataclass(slots=True)
class Found:
    """What was seen of one kind of work; ``free_s`` is what it took without readers."""

    name: str
    highest: Reading
    free_s: float
    rounds: list[Round]
    samples: list[Sample]
    spans: list[plot.Span]

    @property
    def errors(self) -> dict[str, int]:
        readings = [one for r in self.rounds for one in (r.alone, r.beside)]
        return stats.add_up(one.errors for one in [self.highest, *readings])

    def svg(self) -> str:
        """p99, budget and the event loop over the time of the rounds."""
        alone = stats.spread([one.alone.p99_ms for one in self.rounds]).median
        p99: list[plot.Point] = []
        for one in (one for r in self.rounds for one in (r.alone, r.beside)):
            p99 += [*one.slices, (one.slices[-1][0], float("nan"))]
        panels = [
            plot.Panel(
                "p99 of readers, ms", [plot.Line("", p99)], (alone * P99_AIM, f"{P99_AIM} × alone")
            ),
            plot.Panel(
                "share of time", [self._line("budget", "share"), self._line("used", "used")]
            ),
            plot.Panel("event loop, ms", [self._line("wait", "wait_ms")]),
        ]
        return plot.over_time(f"Readers beside {self.name}", panels, self.spans)

    def _line(self, name: str, of: str) -> plot.Line:
        return plot.Line(name, [(one.at_s, getattr(one, of)) for one in self.samples])


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    about: dict[str, str]
    plan: Plan
    found: list[Found]

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        said = [verdict(one) for one in self.found]
        return "\n\n".join((outputs.lines(self.about), _table(self.found), "\n".join(said)))

    def as_json(self) -> dict[str, Any]:
        """The report for programs, with every sample."""
        found = [asdict(one) for one in self.found]
        return {"about": self.about, "plan": asdict(self.plan), "found": found}


def main(argv: Sequence[str]) -> int:
    """0, or 1 when a request failed."""
    arguments = _arguments(argv)
    base = QUICK if arguments.quick else FULL
    plan = Plan(
        docs=arguments.documents or base.docs,
        rounds=arguments.rounds or base.rounds,
        seconds=arguments.seconds or base.seconds,
    )
    outputs.at_least_one(documents=plan.docs, rounds=plan.rounds, seconds=plan.seconds)
    with outputs.working_folder(arguments) as folder:
        outcome = _measure(arguments.only, plan, folder)
    plots = {f"beside-{one.name}": one.svg() for one in outcome.found}
    outputs.keep(arguments, "beside", outcome.markdown(), plots, outcome.as_json())
    errors = stats.add_up(one.errors for one in outcome.found)
    if errors:
        outputs.say(f"failed requests: {errors}")
    return 1 if errors else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = outputs.parser(
        "beside", "What readers feel of a bootstrap, and of a view being built."
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=NAMES, default=NAMES, help="one of them")
    add("--documents", type=int, help=f"documents ({FULL.docs}; --quick: {QUICK.docs})")
    add("--rounds", type=int, help=f"rounds of A and B ({FULL.rounds})")
    add("--seconds", type=int, help=f"seconds of readers alone ({FULL.seconds})")
    return parser.parse_args(argv)


def _measure(names: Sequence[str], plan: Plan, folder: Path) -> Outcome:
    run = (
        f"{plan.rounds} rounds; {plan.docs:,} documents of {plan.doc_bytes:,} bytes, GETs at half "
    )
    run += f"of the highest rate over {CONNECTIONS} connections, both cores for everything"
    about = outputs.about(folder, run)
    if machine.filesystem(folder) == "tmpfs":
        about["note"] = "the data is on tmpfs, where fsync costs nothing"
    return Outcome(about, plan, [_one(name, plan, folder / name) for name in names])


def _one(name: str, plan: Plan, folder: Path) -> Found:
    folder.mkdir()
    replicas = 1 if name == BOOTSTRAP else 0
    program, cores = servers.divandb_path(), os.sched_getaffinity(0)
    with servers.cluster(program, folder, 1, replicas, cores) as cluster:
        run = Bootstraps if name == BOOTSTRAP else Builds
        return run(plan, folder, cluster, program).measure(name)


class Beside:
    """The rounds of one kind of work, against one cluster."""

    asked = servers.MASTER
    """The role of the node that readers ask."""

    def __init__(self, plan: Plan, folder: Path, cluster: Cluster, program: Path) -> None:
        self._plan, self._folder, self._program = plan, folder, program
        self._cluster = cluster
        self._target = next(one.target for one in cluster.nodes if one.role == self.asked)
        self._spans: list[plot.Span] = []

    def measure(self, name: str) -> Found:
        """The work alone, then all rounds."""
        plan, readers = self._plan, self._filled()
        outputs.say(f"{name} without readers")
        began = time.perf_counter()
        self._do(0)
        free_s = time.perf_counter() - began
        highest, delay_ms = readers.half(plan.seconds)
        readers.start = time.perf_counter()
        with watching(self._target, USES[name], readers.start) as samples:
            rounds = [self._round(name, n, readers, delay_ms) for n in range(1, plan.rounds + 1)]
        return Found(name, highest, free_s, rounds, samples, self._spans)

    def _do(self, number: int) -> None:
        """The work, another one for each number; until it is done."""
        raise NotImplementedError

    def _round(self, name: str, number: int, readers: Readers, delay_ms: float) -> Round:
        outputs.say(f"round {number}: readers alone")
        alone = readers.read(self._plan.seconds, delay_ms)
        outputs.say(f"round {number}: readers beside {name}")
        working, began = Working(lambda: self._do(number)), time.perf_counter()
        beside = readers.read(WORK_S_MAX, delay_ms, until=lambda: working.is_over)
        took_s = working.ended() - began
        start = began - readers.start
        self._spans.append(plot.Span(name, start, start + took_s))
        return Round(alone, beside, took_s)

    def _filled(self) -> Readers:
        plan, master = self._plan, self._cluster.nodes[0].target
        outputs.say(f"{plan.docs:,} documents")
        rng = random.Random(plan.seed)
        numbers = range(documents.NUMBER_FIRST, documents.NUMBER_FIRST + BODIES)
        bodies = [documents.body(rng, plan.doc_bytes, number) for number in numbers]
        ids = documents.ids(rng, plan.docs)
        cases.create(master, DB)
        for at in range(0, plan.docs, BODIES):
            part = ids[at : at + BODIES]
            cases.store(master, DB, part, bodies[: len(part)])
        for one in self._cluster.nodes:
            wait_until_equal(one.target, master)
        path = self._folder / "ids"
        read = rng.sample(ids, min(plan.docs, IDS_READ_MAX))
        path.write_text("\n".join(read) + "\n")
        time.sleep(cases.SETTLE_S)
        return Readers(self._target, DB, path, plan.seed)


class Bootstraps(Beside):
    """Each is that of a further replica, which stays."""

    asked = servers.REPLICA

    def _do(self, number: int) -> None:
        command = [str(self._program), "add", "replica", "--to", self._cluster.nodes[0].name]
        command += ["--data", str(self._folder / "data"), "--timeout", str(WORK_S_MAX)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WORK_S_MAX)
        if done.returncode:
            raise BenchError(f"no replica {number}: {done.stdout}{done.stderr}")
        name, _, url = done.stdout.strip().partition("  ")
        asked = self._target
        port = int(url.rpartition(":")[2].strip("/"))
        made = Target(name, asked.host, port, asked.authorization, ())
        wait_until_equal(made, self._cluster.nodes[0].target)


class Builds(Beside):
    """Each of a view of its own."""

    def _do(self, number: int) -> None:
        path = f"/{DB}/_design/d{number}"
        source = f"{MAP} // {number}"
        body = json.dumps({"language": "javascript", "views": {"v": {"map": source}}}).encode()
        self._target.expect([201], "PUT", path, body)
        deadline = time.perf_counter() + WORK_S_MAX
        while time.perf_counter() < deadline:
            # Asked for seldom: the node must not take the bench for a client.
            indexes = status(self._target)["indexes"]
            if indexes["kept"] > number and not indexes["building"]:
                info = json.loads(self._target.expect([200], "GET", f"{path}/_info"))
                if info["view_index"]["ready"]:
                    return
                time.sleep(START_S)
            time.sleep(POLL_S)
        raise BenchError(f"view {number} was not built within {WORK_S_MAX:.0f} s")


class Working:
    """Work on a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._fault: BaseException | None = None
        self._ended_at = 0.0
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as fault:
            self._fault = fault
        self._ended_at = time.perf_counter()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def ended(self) -> float:
        """Waits for the end; when it was. Raises what the work raised."""
        self._thread.join()
        if self._fault is not None:
            raise self._fault
        return self._ended_at


@contextmanager
def watching(target: Target, use: str, start: float) -> Iterator[list[Sample]]:
    """Looks at a node's budget again and again; the governor counts that as no client's request."""
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_S):
            try:
                budget = status(target)["budget"]
            except (OSError, BenchError):
                continue  # the cluster ends
            at_s = time.perf_counter() - start
            samples.append(Sample(at_s, budget["share"], budget["use"][use], budget["wait_ms"]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def wait_until_equal(target: Target, master: Target) -> None:
    """Until a node has what the master has. BenchError if it does not get there."""
    want, deadline = held(status(master)), time.perf_counter() + WORK_S_MAX
    while held(status(target)) < want:
        if time.perf_counter() > deadline:
            raise BenchError(f"{target.name} has not all within {WORK_S_MAX:.0f} s")
        time.sleep(POLL_S)


def verdict(found: Found) -> str:
    """What was aimed at, and what came of it."""
    times = stats.spread([one.p99_times for one in found.rounds])
    took = stats.spread([one.took_s for one in found.rounds])
    return (
        f"- p99 beside {found.name}: {stats.with_range(times)} times; aim at most {P99_AIM}. "
        f"It took {stats.with_range(took)} s beside readers, {stats.number(found.free_s)} s "
        "without."
    )


def _table(found: Sequence[Found]) -> str:
    head = (
        "work", "round", "highest GET/s", "GET/s alone", "GET/s beside", "p50 ms alone",
        "p50 ms beside", "p99 ms alone", "p99 ms beside", "p99 times", "took s",
        "without readers s",
    )  # fmt: skip
    rows: list[list[stats.Cell]] = [
        [
            one.name,
            number,
            stats.number(one.highest.requests_per_s),
            stats.number(seen.alone.requests_per_s),
            stats.number(seen.beside.requests_per_s),
            stats.number(seen.alone.p50_ms),
            stats.number(seen.beside.p50_ms),
            stats.number(seen.alone.p99_ms),
            stats.number(seen.beside.p99_ms),
            f"{seen.p99_times:.2f}",
            stats.number(seen.took_s),
            stats.number(one.free_s),
        ]
        for one in found
        for number, seen in enumerate(one.rounds, 1)
    ]
    return stats.markdown_table(head, rows)
