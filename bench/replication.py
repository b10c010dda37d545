"""A cluster of our own, 3 masters with 3 replicas each: what replication costs, and how late it is.

With boards on Apache Kafka (``--board``) what is seen is held against a bare loop through the same
broker (``bare``), and against the rate on the embedded board.

All processes and the load share the same cores. In order: start and idle; the highest rate of PUTs
at which every node keeps up; the lag at shares of that rate; bulk writes; reads; idle again.
"""

import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import bare, cases, documents, lag, load, paced, proc, stats
from bench.servers import BOARD, MASTER, REPLICA, BenchError, Cluster, Member

MASTERS, REPLICAS = 3, 3
CONNECTIONS = 16
BULK_CONNECTIONS = 4
LAG_S_MAX = 1.0
"""A rate is sustained when all nodes contain everything so long after its last answer."""
RATES_MAX = 5
"""Rates that are tried below the one that was accepted."""
STEP_DOWN = 0.9
LOADS = (0.1, 0.5, 0.9)
MARKS_PER_S_MAX = 80.0
HEAD_START_S = 0.5
"""The load runs so long before the first mark."""
CAUGHT_UP_S_MAX = 120.0
LOOK_S = 0.01
SUPERVISOR = "supervisor"
ROLES = (BOARD, MASTER, REPLICA, SUPERVISOR)


@dataclass(frozen=True, slots=True)
class Writing:
    """A run of PUTs; ``asked`` is the rate, ``None`` for as many as are answered."""

    asked: float | None
    outcome: paced.Outcome
    lag_s: float
    """From the last answer until all nodes contained everything."""
    cpu_s: dict[str, float]
    """By role, until then."""

    @property
    def per_s(self) -> float:
        """Writes a second that were answered."""
        return self.outcome.requests / self.outcome.seconds

    @property
    def is_sustained(self) -> bool:
        """Did all nodes keep up with all that was asked?"""
        kept_pace = self.asked is None or self.per_s > 0.98 * self.asked
        return self.lag_s < LAG_S_MAX and kept_pace


@dataclass(frozen=True, slots=True)
class Lateness:
    """Lags at one share of the highest rate."""

    share: float
    writing: Writing
    lags: lag.Lags
    marks_per_s: float
    beside: bare.Outcome | None = None
    """As many of the same bytes as there were marks, by a bare loop through the same broker, beside
    the load; if the boards are on Kafka.
    """
    alone: bare.Outcome | None = None
    """The whole rate of the same bytes by a bare loop, with nothing beside it."""

    @property
    def per_s(self) -> float:
        """Writes a second, the marks among them."""
        return self.writing.per_s + self.marks_per_s


@dataclass(frozen=True, slots=True)
class Bulk:
    """Documents written by ``_bulk_docs``: seconds until all were answered, and until all nodes
    contained them.
    """

    docs: int
    answered_s: float
    replicated_s: float
    cpu_s: dict[str, float]


@dataclass(slots=True)
class Outcome:
    """All that was found."""

    start_s: float
    embedded_per_s: float | None = None
    """The highest rate on the embedded board, if this one is not."""
    idles: list[stats.Idle] = field(default_factory=list)
    writings: list[Writing] = field(default_factory=list)
    lags: list[Lateness] = field(default_factory=list)
    bulks: list[Bulk] = field(default_factory=list)
    reads: list[stats.Result] = field(default_factory=list)

    def markdown(self) -> str:
        """Tables."""
        parts = [
            f"- cluster: {MASTERS} masters, {REPLICAS} replicas each, all processes and the load "
            f"on the same cores; {self.start_s:.2f} s from the command until all answered"
        ]
        parts += [stats.idle_table(self.idles)] if self.idles else []
        parts += [writing_table(self.writings)] if self.writings else []
        parts += [lag_table(self.lags)] if self.lags else []
        parts += [kafka_table(self)] if self.embedded_per_s is not None else []
        parts += [bulk_table(self.bulks)] if self.bulks else []
        parts += [stats.result_table(self.reads, "")] if self.reads else []
        return "\n\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """For programs, with every single lag."""
        return {
            "start_s": self.start_s,
            "embedded_per_s": self.embedded_per_s,
            "idle": [asdict(one) for one in self.idles],
            "writes": [asdict(one) | {"per_s": one.per_s} for one in self.writings],
            "lags": [asdict(one) for one in self.lags],
            "bulk": [asdict(one) for one in self.bulks],
            "reads": [one.as_json() for one in self.reads],
        }

    @property
    def highest_per_s(self) -> float:
        """The highest rate at which all nodes kept up."""
        sustained = [one.per_s for one in self.writings if one.is_sustained]
        return max(sustained, default=self.writings[-1].per_s)

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by kind."""
        writings = [*self.writings, *(one.writing for one in self.lags)]
        return stats.add_up(
            [*(one.outcome.errors for one in writings), *(one.errors for one in self.reads)]
        )


def measure(
    cluster: Cluster,
    settings: cases.Settings,
    folder: Path,
    say: Callable[[str], None],
    board: str | None = None,
    embedded_per_s: float | None = None,
) -> Outcome:
    """Everything, in order. ``board`` is the URL of boards on Kafka, ``embedded_per_s`` the rate
    without them. BenchError when a node does not keep what it was sent.
    """
    run = Run(cluster, settings, folder, Outcome(cluster.start_s, embedded_per_s), board)
    steps: dict[str, Callable[[], None]] = {
        "idle": lambda: run.idle("cluster after start"),
        "the highest rate": run.find_rate,
        "lag": run.find_lags,
        "bulk": run.bulk,
        "random": run.read,
        "idle again": lambda: run.idle("cluster after the load"),
    }
    for name, step in steps.items():
        say(f"cluster: {name}")
        step()
    return run.outcome


def highest_rate(cluster: Cluster, settings: cases.Settings, folder: Path) -> float:
    """The highest rate of PUTs, and nothing else."""
    run = Run(cluster, settings, folder, Outcome(cluster.start_s))
    run.find_rate()
    return run.outcome.highest_per_s


def written(cluster: Cluster, settings: cases.Settings, seconds: int, folder: Path) -> Writing:
    """As many PUTs as are answered in so many seconds, until all nodes have them, after a second of
    the same to warm up.
    """
    Run(cluster, replace(settings, cluster_s=1), folder, Outcome(cluster.start_s)).write(None)
    run = Run(cluster, replace(settings, cluster_s=seconds), folder, Outcome(cluster.start_s))
    return run.write(None)


@dataclass(slots=True)
class Run:
    """The measurements."""

    cluster: Cluster
    settings: cases.Settings
    folder: Path
    outcome: Outcome
    board: str | None = None
    turns: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def idle(self, when: str) -> None:
        """What all processes spend while nobody asks."""
        self.outcome.idles.append(cases.idle(self.cluster.target, when, self.settings.idle_s))

    def find_rate(self) -> None:
        """As many writes as are answered; if the nodes lag behind that, rates below it."""
        writing = self.write(None)
        self.outcome.writings.append(writing)
        for _ in range(RATES_MAX):
            if writing.is_sustained:
                return
            writing = self.write(next_rate(writing))
            self.outcome.writings.append(writing)

    def find_lags(self) -> None:
        """Lags while an open loop writes at shares of the highest rate."""
        highest = self.outcome.highest_per_s
        for share in LOADS:
            db = self._database("marks")
            plan = replace(self._plan(db), seed=f"marks {share}")
            with contextlib.closing(lag.Probe(self.cluster.nodes, plan)) as probe:
                probe.warm_up()
                found = self._lateness(probe, share, share * highest)
            self.outcome.lags.append(self._with_bare(found))

    def _with_bare(self, found: Lateness) -> Lateness:
        """With what the broker alone takes for the same, right behind it."""
        if self.board is None:
            return found
        return replace(found, alone=bare.measured(self._bare_plan(self.board, found.per_s)))

    def _bare_plan(self, board: str, rate: float, less_s: float = 0.0) -> bare.Plan:
        uuid = json.loads(self.cluster.target.expect([200], "GET", "/"))["uuid"]
        seconds = self.settings.cluster_s - less_s
        return bare.Plan(board, f"divandb.{uuid}.masters", rate, seconds)

    def _lateness(self, probe: lag.Probe, share: float, rate: float) -> Lateness:
        marks_per_s = min(MARKS_PER_S_MAX, rate / 2)
        seconds = self.settings.cluster_s - 2 * HEAD_START_S
        found: list[lag.Lags] = []
        loop = None
        if self.board is not None:
            loop = bare.Running(self._bare_plan(self.board, marks_per_s, 2 * HEAD_START_S))

        def look() -> None:
            time.sleep(HEAD_START_S)
            if loop is not None:
                loop.go()
            found.append(probe.run(seconds, marks_per_s))

        try:
            writing = self.write(rate - marks_per_s, look)
            beside = None if loop is None else loop.outcome()
        finally:
            if loop is not None:
                loop.kill()
        return Lateness(share, writing, found[0], marks_per_s, beside)

    def bulk(self) -> None:
        """Bulk requests of new documents over a few connections, until all nodes have them all."""
        settings, db = self.settings, self._database("bulk")
        rng = random.Random(settings.seed)
        bodies = [
            documents.body(rng, settings.doc_bytes, documents.NUMBER_FIRST + number)
            for number in range(settings.bulk_docs)
        ]
        stored = 0
        for _ in range(settings.rounds):
            done = self._bulk_round(db, bodies, stored)
            stored += done.docs
            self.outcome.bulks.append(done)

    def _bulk_round(self, db: str, bodies: Sequence[bytes], stored: int) -> Bulk:
        target, turn = self.cluster.target, next(self.turns)
        rngs = [random.Random(f"{turn} {one}") for one in range(BULK_CONNECTIONS)]
        attempts = [
            load.bulk(target, db, documents.bulk_bodies(one, bodies), len(bodies)) for one in rngs
        ]
        before, start = self._ticks(), time.perf_counter()
        done = load.in_parallel(target, attempts, self.settings.seconds)
        answered_s = time.perf_counter() - start
        if done.errors:
            raise BenchError(f"bulk requests failed: {done.errors}")
        docs = done.requests * len(bodies)
        self._caught_up(db, stored + docs)
        return Bulk(docs, answered_s, time.perf_counter() - start, self._spent(before))

    def read(self) -> None:
        """GETs of random documents through the shared port."""
        db, target = self._database("docs"), self.cluster.target
        data = cases.fill(target, db, self.settings)
        self._caught_up(db, len(data.ids))
        ids_file = self.folder / "ids"
        ids_file.write_text("\n".join(data.ids) + "\n")

        def generate(_target: Any, connections: int, turn: int) -> stats.Load:
            script = load.random_script(target, db, ids_file, turn)
            return load.wrk(target, script, connections, self.settings.seconds, self.folder)

        case = cases.Case("random", (CONNECTIONS,), 0, False, generate)
        self.outcome.reads += cases.run(case, target, None, self.settings.rounds, self.turns)

    # Writing

    def write(self, rate: float | None, meanwhile: Callable[[], None] | None = None) -> Writing:
        """PUTs into a database of their own, until all nodes have them all."""
        db = self._database("put")
        plan = replace(self._plan(db), rate=rate, seconds=float(self.settings.cluster_s))
        before = self._ticks()
        running = paced.Running(plan)
        try:
            if meanwhile is not None:
                meanwhile()
            outcome = running.outcome()
        finally:
            running.kill()
        answered = time.perf_counter()
        self._caught_up(db, outcome.requests)
        lag_s = time.perf_counter() - answered
        return Writing(rate, outcome, lag_s, self._spent(before))

    def _plan(self, db: str) -> paced.Plan:
        seed = f"{self.settings.seed} {next(self.turns)}"
        doc_bytes = self.settings.doc_bytes
        return paced.plan_for(self.cluster.target, db, seed, doc_bytes, CONNECTIONS)

    def _database(self, purpose: str) -> str:
        """A new database that all nodes know."""
        db = cases.database_name(purpose)
        cases.create(self.cluster.target, db)
        self._caught_up(db, 0)
        return db

    def _caught_up(self, db: str, docs: int) -> None:
        """Waits until every node has so many documents. BenchError when one does not get there."""
        until = time.perf_counter() + CAUGHT_UP_S_MAX
        for node in self.cluster.nodes:
            while (count := _doc_count(node, db)) < docs:
                if time.perf_counter() > until:
                    raise BenchError(f"{node.name} has {count} of {docs} documents of {db}")
                time.sleep(LOOK_S)

    # CPU

    def _ticks(self) -> proc.Ticks:
        return proc.ticks(self.cluster.target.pids)

    def _spent(self, before: proc.Ticks) -> dict[str, float]:
        """CPU seconds since then by role."""
        roles = {one.target.pids[0]: one.role for one in self.cluster.members}
        spent = dict.fromkeys(ROLES, 0.0)
        for key, now in self._ticks().items():
            ticks = now - before.get(key, 0)
            spent[roles.get(key[0], SUPERVISOR)] += ticks / proc.TICKS_PER_S
        return spent


def next_rate(writing: Writing) -> float:
    """The rate to try after one that was not sustained: what all nodes took of it in the time that
    it took, and a little less at each try.
    """
    outcome = writing.outcome
    absorbed = outcome.requests / (outcome.seconds + writing.lag_s)
    return absorbed if writing.asked is None else min(STEP_DOWN * writing.asked, absorbed)


def _doc_count(node: Member, db: str) -> int:
    """How many documents a node has; -1 when it does not know the database."""
    status, answer = node.target.ask("GET", f"/{db}")
    if status == 404:
        return -1
    if status != 200:
        raise BenchError(f"{node.name}: GET /{db}: {status} {answer[:500]!r}")
    count: int = json.loads(answer)["doc_count"]
    return count


# Tables


def _us(cpu_s: float, count: int) -> str:
    return stats.number(cpu_s * 1e6 / max(count, 1))


def writing_table(writings: Sequence[Writing]) -> str:
    """A line a rate; CPU is microseconds a write."""
    head = (
        "PUT, asked/s", "answered/s", "p50 ms", "p99 ms", "lag at the end s", "kept up",
        "CPU µs/write, all", *ROLES[:3], "load", "cores busy: cluster", "load", "errors",
    )  # fmt: skip
    return stats.markdown_table(head, [_writing_row(one) for one in writings])


def _writing_row(one: Writing) -> list[stats.Cell]:
    outcome, cpu_s = one.outcome, sum(one.cpu_s.values())
    count = outcome.requests
    return [
        "-" if one.asked is None else stats.number(one.asked),
        stats.number(one.per_s),
        stats.number(outcome.p50_ms),
        stats.number(outcome.p99_ms),
        stats.number(one.lag_s),
        "yes" if one.is_sustained else "no",
        _us(cpu_s, count),
        *(_us(one.cpu_s[role], count) for role in ROLES[:3]),
        _us(outcome.cpu_s, count),
        stats.percent(cpu_s / (outcome.seconds + one.lag_s)),
        stats.percent(outcome.cpu_s / outcome.seconds),
        sum(outcome.errors.values()),
    ]


def lag_table(lags: Sequence[Lateness]) -> str:
    """A line a load and kind of reader."""
    head = (
        "load", "PUT/s", "PUT p50 ms", "PUT p99 ms", "seen at", "marks", "lag p50 ms",
        "lag p99 ms", "greatest ms", "skipped",
    )  # fmt: skip
    rows = [_lag_row(one, kind) for one in lags for kind in lag.KINDS]
    return stats.markdown_table(head, rows)


def _lag_row(one: Lateness, kind: str) -> list[stats.Cell]:
    values, outcome = one.lags.by_kind[kind], one.writing.outcome
    return [
        stats.percent(one.share),
        stats.number(one.per_s),
        stats.number(outcome.p50_ms),
        stats.number(outcome.p99_ms),
        kind,
        len(values),
        stats.number(stats.percentile(values, 50)),
        stats.number(stats.percentile(values, 99)),
        stats.number(max(values)),
        one.lags.skipped,
    ]


P50_MS_MORE, P99_MS_MORE = 5.0, 20.0
"""What a write may take beyond twice the bare loop: it crosses two topics."""
RATE_SHARE_MIN = 0.8
"""Of the embedded board's rate."""


def kafka_table(outcome: Outcome) -> str:
    """What is seen over Kafka, and the rate, against what they may be."""
    head = ("on Kafka", "found", "bare loop", "ms", "bound", "within")
    rows = [row for one in outcome.lags for row in _bound_rows(one)]
    found, embedded = outcome.highest_per_s, outcome.embedded_per_s or 0.0
    least = RATE_SHARE_MIN * embedded
    rate = [
        "PUT/s that all nodes keep up with", stats.number(found),
        f"none; on the embedded board {stats.number(embedded)}/s", "-",
        f"at least {stats.number(least)}", _within(found >= least),
    ]  # fmt: skip
    return stats.markdown_table(head, [*rows, rate])


def _bound_rows(one: Lateness) -> list[list[stats.Cell]]:
    values = one.lags.by_kind[lag.OTHER]
    rows: list[list[stats.Cell]] = []
    for percent, more in ((50, P50_MS_MORE), (99, P99_MS_MORE)):
        found = stats.percentile(values, percent)
        what = f"seen at {lag.OTHER} with {stats.number(one.per_s)} PUT/s, p{percent} ms"
        for where, loop in (("alone", one.alone), ("beside the load", one.beside)):
            if loop is None:
                continue
            took = loop.p50_ms if percent == 50 else loop.p99_ms
            most = 2 * took + more
            how = f"{where}, {stats.number(loop.per_s)}/s"
            words = f"at most {stats.number(most)}"
            rows.append(
                [what, stats.number(found), how, stats.number(took), words, _within(found <= most)]
            )
    return rows


def _within(is_within: bool) -> str:
    return "yes" if is_within else "no"


def bulk_table(bulks: Sequence[Bulk]) -> str:
    """A line a round; CPU is microseconds a document."""
    head = (
        "bulk, docs", "answered docs/s", "on all nodes docs/s", "CPU µs/doc, all", *ROLES[:3]
    )  # fmt: skip
    rows: list[list[stats.Cell]] = [
        [
            f"{one.docs:,}",
            stats.number(one.docs / one.answered_s),
            stats.number(one.docs / one.replicated_s),
            _us(sum(one.cpu_s.values()), one.docs),
            *(_us(one.cpu_s[role], one.docs) for role in ROLES[:3]),
        ]
        for one in bulks
    ]
    return stats.markdown_table(head, rows)
