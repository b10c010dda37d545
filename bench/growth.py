"""How cost grows with the documents and with the nodes (``shapes``): ``python -m bench growth``.

One node is filled step by step, from a thousand documents to a million. At each step documents
are read that are drawn evenly from all, and what the node costs is noted. The last step is held
against ten thousand documents.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import cases, documents, load, machine, outputs, plot, proc, servers, shapes, stats
from bench.servers import BenchError

STEPS = (1_000, 10_000, 100_000, 1_000_000)
BASE = 10_000
P50_AIM, RSS_AIM_MIB = 1.3, 200
WRITE_DOCS = 1_000
BODIES = 1_000
"""Different bodies; the documents of a large database share them."""
IMPORT_POINTS_MAX = 200
IDS_READ_MAX = 200_000
"""wrk's memory is not the subject: of more documents so many are read, drawn evenly."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    steps: tuple[int, ...]
    rounds: int
    seconds: int
    doc_bytes: int = 1_000
    connections: int = 16
    seed: int = 1
    shapes: tuple[str, ...] = shapes.SHAPES
    shape_s: int = 8
    """Seconds of writing to each shape."""


FULL = Plan(STEPS, rounds=3, seconds=3)
QUICK = Plan((1_000, 10_000), rounds=1, seconds=1, shapes=shapes.QUICK_SHAPES, shape_s=2)
DOCUMENTS, NODES = "documents", "nodes"


@dataclass(frozen=True, slots=True)
class Step:
    """What a number of documents cost. ``alone`` is over one connection, ``many`` over several."""

    docs: int
    import_per_s: float
    import_cpu_us: float
    alone: stats.Result
    many: stats.Result
    rss_mib: float
    """Of the master's process, which holds the documents."""
    file_mib: float


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    about: dict[str, str]
    plan: Plan
    steps: list[Step]
    imports: list[plot.Point]
    """Seconds of importing, documents a second."""
    clusters: list[shapes.Shape] = field(default_factory=list)

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        parts = [outputs.lines(self.about)]
        parts += [_table(self.steps), verdict(self.steps)] if self.steps else []
        parts += [shapes.table(self.clusters)] if self.clusters else []
        return "\n\n".join(parts)

    def plots(self) -> dict[str, str]:
        """SVGs by name."""
        made: dict[str, str] = {}
        if self.steps:
            made |= {"growth": self.svg(), "growth-import": self.imports_svg()}
        if self.clusters:
            made["growth-nodes"] = shapes.svg(self.clusters)
        return made

    def svg(self) -> str:
        """A group of bars for each kind of cost, a bar for each step."""
        kinds: list[tuple[str, Callable[[Step], stats.Spread | float | None]]] = [
            ("GET p50 ms, one connection", lambda step: step.alone.p50_ms),
            ("CPU µs a GET", lambda step: step.many.cpu_us_per_request),
            ("GET/s", lambda step: step.many.requests_per_s),
            ("import, documents/s", lambda step: step.import_per_s),
            ("RSS MiB of the master", lambda step: step.rss_mib),
        ]
        groups = [
            plot.Group(title, [_bar(step, of(step)) for step in self.steps]) for title, of in kinds
        ]
        return plot.bars("Cost by documents", groups)

    def imports_svg(self) -> str:
        """How steady importing is."""
        line = plot.Line("", self.imports)
        return plot.over_time("Importing", [plot.Panel("documents/s", [line])])

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        results = [
            {**asdict(one), "alone": one.alone.as_json(), "many": one.many.as_json()}
            for one in self.steps
        ]
        return {
            "about": self.about,
            "plan": asdict(self.plan),
            "steps": results,
            "imports": self.imports,
            "clusters": [asdict(one) for one in self.clusters],
        }


def main(argv: Sequence[str]) -> int:
    """0, or 1 when a request failed."""
    arguments = _arguments(argv)
    base = QUICK if arguments.quick else FULL
    names = ("steps", "rounds", "seconds", "shapes")
    given = {name: value for name in names if (value := getattr(arguments, name))}
    plan = replace(base, **given)
    if list(plan.steps) != sorted(set(plan.steps)) or plan.steps[0] < 1:
        raise BenchError("--steps must rise")
    outputs.at_least_one(rounds=plan.rounds, seconds=plan.seconds)
    load.require_wrk()
    with outputs.working_folder(arguments) as folder:
        outcome = _measure(arguments.only, plan, folder)
    outputs.keep(arguments, "growth", outcome.markdown(), outcome.plots(), outcome.as_json())
    readings = [one.errors for step in outcome.steps for one in (step.alone, step.many)]
    errors = stats.add_up([*readings, *(one.writing.outcome.errors for one in outcome.clusters)])
    if errors:
        outputs.say(f"failed requests: {errors}")
    return 1 if errors else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = outputs.parser("growth", "What requests cost in larger databases and clusters.")
    add = parser.add_argument
    both = (DOCUMENTS, NODES)
    add("--only", nargs="+", choices=both, default=both, help="one half of it")
    add("--steps", type=_numbers, help=f"documents at each step ({','.join(map(str, STEPS))})")
    add("--rounds", type=int, help=f"rounds of each ({FULL.rounds})")
    add("--seconds", type=int, help=f"seconds of a round ({FULL.seconds})")
    add("--shapes", type=_shapes, help=f"masters x replicas ({','.join(shapes.SHAPES)})")
    return parser.parse_args(argv)


def _shapes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        shapes.sizes(name)
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _measure(only: Sequence[str], plan: Plan, folder: Path) -> Outcome:
    server_core, load_core = outputs.two_cores()
    run = f"{plan.rounds} rounds of {plan.seconds} s at each step; documents of "
    run += f"{plan.doc_bytes:,} bytes, {WRITE_DOCS:,} in a bulk request; "
    run += f"server on core {min(server_core)}, load on core {min(load_core)}; "
    run += f"clusters on all cores with their load, {plan.shape_s} s of PUTs each"
    outcome = Outcome(outputs.about(folder, run), plan, [], [])
    if machine.filesystem(folder) == "tmpfs":
        outcome.about["note"] = "the data is on tmpfs, where fsync costs nothing"
    if DOCUMENTS in only:
        with outputs.pinned(load_core):
            with servers.cluster(servers.divandb_path(), folder, 1, 0, server_core) as cluster:
                growing = Growing(plan, folder, cluster)
                outcome.steps = [growing.step(docs) for docs in plan.steps]
        outcome.imports = smoothed(growing.imports, IMPORT_POINTS_MAX)
    if NODES in only:
        outcome.clusters = shapes.measure(plan.shapes, plan.shape_s, folder)
    return outcome


class Growing:
    """A node that gets more and more documents."""

    def __init__(self, plan: Plan, folder: Path, cluster: servers.Cluster) -> None:
        self.imports: list[plot.Point] = []
        self._plan, self._folder = plan, folder
        self._node = next(one.target for one in cluster.members if one.role == servers.MASTER)
        self._db = cases.database_name("growth")
        cases.create(self._node, self._db)
        self._rng = random.Random(plan.seed)
        numbers = range(documents.NUMBER_FIRST, documents.NUMBER_FIRST + BODIES)
        bodies = [documents.body(self._rng, plan.doc_bytes, number) for number in numbers]
        self._bodies = [bodies[n % BODIES] for n in range(WRITE_DOCS)]
        self._ids: list[str] = []
        self._imported_s = 0.0

    def step(self, docs: int) -> Step:
        """Imports until there are so many, and reads."""
        outputs.say(f"{docs:,} documents")
        before, ticks = len(self._ids), proc.ticks(self._node.pids)
        seconds = self._import(docs)
        cpu_s = proc.cpu_s_between(ticks, proc.ticks(self._node.pids))
        self._draw()
        time.sleep(cases.SETTLE_S)
        alone, many = (self._read(docs, count) for count in (1, self._plan.connections))
        count = docs - before
        rss, size = proc.rss_mib(self._node.pids[0]), _file_mib(self._folder)
        return Step(docs, count / seconds, cpu_s * 1e6 / count, alone, many, rss, size)

    def _import(self, docs: int) -> float:
        """Seconds spent waiting for answers: making requests is not the node's cost."""
        spent_s = 0.0
        while len(self._ids) < docs:
            ids = documents.ids(self._rng, min(WRITE_DOCS, docs - len(self._ids)))
            began = time.perf_counter()
            cases.store(self._node, self._db, ids, self._bodies[: len(ids)])
            took_s = time.perf_counter() - began
            spent_s += took_s
            self._imported_s += took_s
            self._ids += ids
            self.imports.append((self._imported_s, len(ids) / took_s))
        return spent_s

    def _draw(self) -> None:
        read = self._ids
        if len(read) > IDS_READ_MAX:
            read = self._rng.sample(read, IDS_READ_MAX)
        (self._folder / "ids").write_text("\n".join(read) + "\n")

    def _read(self, docs: int, connections: int) -> stats.Result:
        plan, node, folder = self._plan, self._node, self._folder
        rounds = []
        for turn in range(1, plan.rounds + 1):
            script = load.random_script(node, self._db, folder / "ids", turn)
            asking = partial(load.wrk, node, script, connections, plan.seconds, folder)
            rounds.append(load.measured(node, asking))
        return stats.Result(f"{docs:,}", connections, "divandb", 0, rounds)


def _file_mib(folder: Path) -> float:
    return sum(one.stat().st_size for one in (folder / "data").rglob("*") if one.is_file()) / 2**20


def smoothed(points: Sequence[plot.Point], count: int) -> list[plot.Point]:
    """At most ``count`` points, each the mean of its neighbours."""
    each = -(-len(points) // count) if points else 1
    parts = [points[at : at + each] for at in range(0, len(points), each)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _bar(step: Step, value: stats.Spread | float | None) -> plot.Bar:
    name = f"{step.docs:,}"
    if isinstance(value, stats.Spread):
        return plot.Bar(name, value.median, value.low, value.high)
    return plot.Bar(name, value)


def _table(steps: Sequence[Step]) -> str:
    head = (
        "documents",
        "import/s",
        "import CPU µs/document",
        "GET p50 ms, 1 connection",
        "GET p99 ms, 1 connection",
        "GET/s",
        "CPU µs/GET",
        "core busy: server",
        "core busy: load",
        "RSS MiB",
        "data MiB",
    )
    rows = [
        [
            f"{step.docs:,}",
            stats.number(step.import_per_s),
            stats.number(step.import_cpu_us),
            stats.with_range(step.alone.p50_ms),
            stats.with_range(step.alone.p99_ms),
            stats.with_range(step.many.requests_per_s),
            stats.with_range(step.many.cpu_us_per_request),
            "-" if step.many.server_busy is None else stats.percent(step.many.server_busy.median),
            stats.percent(step.many.generator_busy.median),
            stats.number(step.rss_mib),
            stats.number(step.file_mib),
        ]
        for step in steps
    ]
    return stats.markdown_table(head, rows)


def verdict(steps: Sequence[Step]) -> str:
    """The last step against ten thousand documents, or the first step if that was left out."""
    base = next((step for step in steps if step.docs == BASE), steps[0])
    last = steps[-1]
    times = last.alone.p50_ms.median / base.alone.p50_ms.median
    return (
        f"- GET p50 at {last.docs:,} documents: {times:.2f} times that at {base.docs:,}; "
        f"aim at most {P50_AIM}.\n"
        f"- RSS of the master: {stats.number(last.rss_mib)} MiB; aim at most {RSS_AIM_MIB}."
    )
