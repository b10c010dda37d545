"""What clients feel of catching up: ``python -m bench comfort``.

One master, one replica. Readers ask the replica at half of the highest rate, first while it has
nothing else to do (A), then while it catches up with a backlog that was written while it was
stopped (B). Then they leave, and the rest is caught up at free speed, which is held against an
equal backlog that no reader disturbed. Rounds are A B A B.
"""

import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cases, documents, load, machine, outputs, plot, servers, stats
from bench.readers import CONNECTIONS, Readers, Reading
from bench.servers import BenchError, Member, Target

DB = "bench-comfort"
SAMPLE_S = 0.25
WRITE_DOCS = 1_000
WAIT_S_MAX = 900.0
P99_AIM, FREE_AIM = 1.2, 0.9


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    docs: int
    backlog: int
    rounds: int
    seconds: int
    doc_bytes: int = 200
    seed: int = 1


FULL = Plan(docs=30_000, backlog=200_000, rounds=2, seconds=6)
QUICK = Plan(docs=3_000, backlog=20_000, rounds=1, seconds=2)


@dataclass(frozen=True, slots=True)
class Sample:
    """The replica at one time of the run, in seconds."""

    at_s: float
    share: float
    used: float
    wait_ms: float
    usual_ms: float | None
    reason: str
    hurts: bool
    lag_ms: float | None
    behind: int
    """Writes that the master has and the replica has not."""


@dataclass(frozen=True, slots=True)
class Round:
    """Readers alone, beside catching up, and the speeds of catching up in documents a second."""

    alone: Reading
    beside: Reading
    beside_per_s: float
    left_per_s: float | None
    """With the readers gone; ``None`` when nothing was left then."""
    free_per_s: float

    @property
    def p99_times(self) -> float:
        return self.beside.p99_ms / self.alone.p99_ms

    @property
    def left_share(self) -> float:
        """The speed with the readers gone, of the free speed; NaN when nothing was left."""
        return math.nan if self.left_per_s is None else self.left_per_s / self.free_per_s


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    about: dict[str, str]
    plan: Plan
    highest: Reading
    rounds: list[Round]
    samples: list[Sample]
    spans: list[plot.Span]

    @property
    def errors(self) -> dict[str, int]:
        readings = [one for r in self.rounds for one in (r.alone, r.beside)]
        return stats.add_up(one.errors for one in [self.highest, *readings])

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        highest = self.highest
        said = (
            f"Highest rate at the replica: {stats.number(highest.requests_per_s)} GET/s, "
            f"p99 {stats.number(highest.p99_ms)} ms. Half of it is asked below."
        )
        parts = [outputs.lines(self.about), said, _table(self.rounds), _verdict(self.rounds)]
        return "\n\n".join(parts)

    def svg(self) -> str:
        """Budget, backlog, lag and p99 over the time of the run."""
        return plot.over_time("Readers and catching up", self._panels(), self.spans)

    def as_json(self) -> dict[str, Any]:
        """The report for programs, with every sample."""
        return {
            "about": self.about,
            "plan": asdict(self.plan),
            "highest": asdict(self.highest),
            "rounds": [asdict(one) for one in self.rounds],
            "samples": [asdict(one) for one in self.samples],
            "spans": [asdict(one) for one in self.spans],
        }

    def _panels(self) -> list[plot.Panel]:
        def line(name: str, of: str) -> plot.Line:
            seen = [(one.at_s, getattr(one, of)) for one in self.samples]
            return plot.Line(name, [(at_s, math.nan if y is None else y) for at_s, y in seen])

        alone = stats.spread([one.alone.p99_ms for one in self.rounds]).median
        return [
            plot.Panel("p99 of readers, ms", [self._p99()], (alone * P99_AIM, "1.2 × alone")),
            plot.Panel("share of time", [line("budget", "share"), line("used", "used")]),
            plot.Panel("backlog, documents", [line("", "behind")]),
            plot.Panel("lag, ms", [line("", "lag_ms")]),
            plot.Panel("event loop, ms", [line("wait", "wait_ms"), line("usual", "usual_ms")]),
        ]

    def _p99(self) -> plot.Line:
        """The slices of all readers, a gap between two groups of them."""
        points: list[plot.Point] = []
        for one in (one for r in self.rounds for one in (r.alone, r.beside)):
            points += [*one.slices, (one.slices[-1][0], math.nan)]
        return plot.Line("", points)


def main(argv: Sequence[str]) -> int:
    """0, or 1 when a request failed."""
    arguments = _arguments(argv)
    base = QUICK if arguments.quick else FULL
    plan = Plan(
        docs=arguments.docs or base.docs,
        backlog=arguments.backlog or base.backlog,
        rounds=arguments.rounds or base.rounds,
        seconds=arguments.seconds or base.seconds,
    )
    outputs.at_least_one(docs=plan.docs, backlog=plan.backlog, rounds=plan.rounds)
    load.require_wrk()
    with outputs.working_folder(arguments) as folder:
        outcome = _measure(plan, folder)
    plots = {"comfort": outcome.svg()}
    outputs.keep(arguments, "comfort", outcome.markdown(), plots, outcome.as_json())
    if outcome.errors:
        outputs.say(f"failed requests: {outcome.errors}")
    return 1 if outcome.errors else 0


def _arguments(argv: Sequence[str]) -> Any:
    parser = outputs.parser("comfort", "How much readers feel of a replica that catches up.")
    add = parser.add_argument
    add("--docs", type=int, help=f"documents that are read ({FULL.docs})")
    add("--backlog", type=int, help=f"documents to catch up with ({FULL.backlog})")
    add("--rounds", type=int, help=f"rounds of A and B ({FULL.rounds})")
    add("--seconds", type=int, help=f"seconds of each load ({FULL.seconds})")
    return parser.parse_args(argv)


def _measure(plan: Plan, folder: Path) -> Outcome:
    run = f"{plan.rounds} rounds; {plan.docs:,} documents of {plan.doc_bytes} bytes are read, "
    run += f"a backlog of {plan.backlog:,}; {CONNECTIONS} connections, both cores for everything"
    about = outputs.about(folder, run)
    if machine.filesystem(folder) == "tmpfs":
        about["note"] = "the data is on tmpfs, where fsync costs nothing"
    with servers.cluster(servers.divandb_path(), folder, 1, 1, os.sched_getaffinity(0)) as cluster:
        return Comfort(plan, folder, cluster).measure(about)


class Comfort:
    """The run against one cluster."""

    def __init__(self, plan: Plan, folder: Path, cluster: servers.Cluster) -> None:
        self._plan = plan
        self._folder = folder
        self._rng = random.Random(plan.seed)
        self._master = _of_role(cluster, servers.MASTER)
        self._replica = _of_role(cluster, servers.REPLICA)
        self._bodies = [
            documents.body(self._rng, plan.doc_bytes, documents.NUMBER_FIRST + n)
            for n in range(WRITE_DOCS)
        ]
        self._start = time.perf_counter()
        self._spans: list[plot.Span] = []

    def measure(self, about: dict[str, str]) -> Outcome:
        """All rounds."""
        plan = self._plan
        self._fill()
        highest, delay_ms = self._readers.half(plan.seconds)
        self._start = self._readers.start = time.perf_counter()
        watch = Watch(self._master.target, self._replica.target, self._start)
        with watch.running():
            rounds = [self._round(number, delay_ms) for number in range(1, plan.rounds + 1)]
        return Outcome(about, plan, highest, rounds, watch.samples, self._spans)

    def _round(self, number: int, delay_ms: float) -> Round:
        plan = self._plan
        outputs.say(f"round {number}: readers alone")
        alone = self._readers.read(plan.seconds, delay_ms)
        outputs.say(f"round {number}: readers beside {plan.backlog:,} documents to catch up with")
        self._fall_behind()
        before, began = self._held(), time.perf_counter()
        beside = self._readers.read(plan.seconds, delay_ms, until=self._is_equal)
        held, left_at = self._held(), time.perf_counter()
        self._shade("readers", began, left_at)
        missing = self._master_has() - held
        ended = self._catch_up()
        outputs.say(f"round {number}: the same without readers")
        self._fall_behind()
        free_began = time.perf_counter()
        free_ended = self._catch_up()
        return Round(
            alone,
            beside,
            beside_per_s=(held - before) / (left_at - began),
            left_per_s=missing / (ended - left_at) if missing >= plan.backlog * 0.1 else None,
            free_per_s=plan.backlog / (free_ended - free_began),
        )

    def _fill(self) -> None:
        plan = self._plan
        outputs.say(f"{plan.docs:,} documents")
        self._master.target.expect([201, 202], "PUT", f"/{DB}")
        ids = self._write(plan.docs)
        self._catch_up()
        path = self._folder / "ids"
        path.write_text("\n".join(ids) + "\n")
        self._readers = Readers(self._replica.target, DB, path, plan.seed)
        time.sleep(cases.SETTLE_S)

    def _write(self, count: int) -> list[str]:
        """New documents by ``_bulk_docs``."""
        ids = documents.ids(self._rng, count)
        for at in range(0, count, WRITE_DOCS):
            part = zip(ids[at : at + WRITE_DOCS], self._bodies, strict=False)
            docs = b",".join(documents.with_id(one, body) for one, body in part)
            body = b'{"docs":[' + docs + b"]}"
            self._master.target.expect([201], "POST", f"/{DB}/_bulk_docs", body)
        return ids

    def _fall_behind(self) -> None:
        """A backlog comes up while the replica is stopped; it goes on when all is written."""
        pid = self._replica.target.pids[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            self._write(self._plan.backlog)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _catch_up(self) -> float:
        """Waits until the replica has what the master has; when that was."""
        want, deadline = self._master_has(), time.perf_counter() + WAIT_S_MAX
        while self._held() < want:
            if time.perf_counter() > deadline:
                raise BenchError(f"the replica did not catch up within {WAIT_S_MAX:.0f} s")
            time.sleep(0.05)
        return time.perf_counter()

    def _master_has(self) -> int:
        return held(status(self._master.target))

    def _is_equal(self) -> bool:
        return self._held() >= self._master_has()

    def _held(self) -> int:
        return held(status(self._replica.target))

    def _shade(self, name: str, start: float, end: float) -> None:
        self._spans.append(plot.Span(name, start - self._start, end - self._start))


class Watch:
    """Looks at both nodes again and again, on a thread of its own. These looks are no client's
    requests: the governor does not count them.
    """

    def __init__(self, master: Target, replica: Target, start: float) -> None:
        self.samples: list[Sample] = []
        self._master, self._replica, self._start = master, replica, start
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the block is left."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        has = 0
        while not self._ended.wait(SAMPLE_S):
            try:
                has = held(status(self._master))
                seen = status(self._replica, timeout_s=1.0)
            except (OSError, BenchError):
                continue  # stopped: there is nothing to see
            self.samples.append(sample(time.perf_counter() - self._start, seen, has))


def sample(at_s: float, seen: dict[str, Any], master_has: int) -> Sample:
    """The sample in a node's status."""
    budget = seen["budget"]
    return Sample(
        at_s=at_s,
        share=budget["share"],
        used=budget["use"]["replication"],
        wait_ms=budget["wait_ms"],
        usual_ms=budget["usual_ms"],
        reason=budget["reason"],
        hurts=budget["hurts"],
        lag_ms=seen["lag_ms"],
        behind=max(master_has - held(seen), 0),
    )


def status(target: Target, timeout_s: float = 60.0) -> dict[str, Any]:
    """``GET /_divan/status``."""
    connection = target.connect()
    connection.timeout = timeout_s
    try:
        connection.request("GET", "/_divan/status", headers=target.headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise BenchError(f"{target.name}: /_divan/status: {answer.status} {body[:500]!r}")
    found: dict[str, Any] = json.loads(body)
    return found


def held(seen: dict[str, Any]) -> int:
    """How many writes a node has, by its vector."""
    return sum(seen["vector"].values())


def _of_role(cluster: servers.Cluster, role: str) -> Member:
    return next(one for one in cluster.members if one.role == role)


def _table(rounds: Sequence[Round]) -> str:
    head = (
        "round",
        "GET/s alone",
        "GET/s beside",
        "p50 ms alone",
        "p50 ms beside",
        "p99 ms alone",
        "p99 ms beside",
        "p99 times",
        "docs/s beside",
        "docs/s readers gone",
        "docs/s free",
        "of free",
    )
    rows: list[list[stats.Cell]] = [
        [
            number,
            stats.number(one.alone.requests_per_s),
            stats.number(one.beside.requests_per_s),
            stats.number(one.alone.p50_ms),
            stats.number(one.beside.p50_ms),
            stats.number(one.alone.p99_ms),
            stats.number(one.beside.p99_ms),
            f"{one.p99_times:.2f}",
            stats.number(one.beside_per_s),
            "-" if one.left_per_s is None else stats.number(one.left_per_s),
            stats.number(one.free_per_s),
            "-" if one.left_per_s is None else stats.percent(one.left_share),
        ]
        for number, one in enumerate(rounds, 1)
    ]
    return stats.markdown_table(head, rows)


def _verdict(rounds: Sequence[Round]) -> str:
    times = stats.spread([one.p99_times for one in rounds])
    said = [f"- p99 beside catching up: {stats.with_range(times)} times; aim at most {P99_AIM}."]
    shares = [one.left_share for one in rounds if one.left_per_s is not None]
    if shares:
        gone = stats.percent(stats.spread(shares).median)
        said.append(f"- Readers gone: {gone} of free speed; aim at least {FREE_AIM:.0%}.")
    else:
        said.append("- Readers gone: nothing was left; take a larger `--backlog`.")
    return "\n".join(said)
