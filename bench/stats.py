"""Numbers in, numbers and Markdown out: pure, no clock and no I/O."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

WRK_LINE = "bench "
"""wrk's ``done`` script prints one line of JSON behind this word (see ``load``)."""

HISTOGRAM_LINE = "histogram "

Cell = str | int


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator saw in one round; ``errors`` holds only kinds that happened."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the load, and CPU seconds of both sides (``None``: the server is elsewhere)."""

    load: Load
    server_cpu_s: float | None
    generator_cpu_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over rounds with the least and the greatest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one case at one server; ``docs`` is documents per request (0: not a feed)."""

    case: str
    connections: int
    server: str
    docs: int
    rounds: Sequence[Round]

    def over(self, value: Callable[[Round], float]) -> Spread:
        """The spread of one number over the rounds."""
        return spread([value(one) for one in self.rounds])

    @property
    def requests_per_s(self) -> Spread:
        return self.over(lambda one: one.load.requests / one.load.seconds)

    @property
    def p50_ms(self) -> Spread:
        return self.over(lambda one: one.load.p50_us / 1e3)

    @property
    def p99_ms(self) -> Spread:
        return self.over(lambda one: one.load.p99_us / 1e3)

    @property
    def cpu_us_per_request(self) -> Spread | None:
        """Server CPU, user and system, all its processes; ``None`` when it cannot be seen."""
        return self._over_server_cpu(lambda cpu_s, load: cpu_s * 1e6 / max(1, load.requests))

    @property
    def server_busy(self) -> Spread | None:
        """The server's share of one core."""
        return self._over_server_cpu(lambda cpu_s, load: cpu_s / load.seconds)

    @property
    def generator_busy(self) -> Spread:
        """The load generator's share of one core: near 1 it is the limit, not the server."""
        return self.over(lambda one: one.generator_cpu_s / one.load.seconds)

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by kind, over all rounds."""
        return add_up(one.load.errors for one in self.rounds)

    def _over_server_cpu(self, value: Callable[[float, Load], float]) -> Spread | None:
        seen = [(one.server_cpu_s, one.load) for one in self.rounds]
        values = [value(cpu_s, load) for cpu_s, load in seen if cpu_s is not None]
        return spread(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Everything, with the single rounds."""
        cpu, busy = self.cpu_us_per_request, self.server_busy
        return {
            "case": self.case,
            "connections": self.connections,
            "server": self.server,
            "docs_per_request": self.docs,
            "requests_per_s": asdict(self.requests_per_s),
            "p50_ms": asdict(self.p50_ms),
            "p99_ms": asdict(self.p99_ms),
            "server_cpu_us_per_request": asdict(cpu) if cpu else None,
            "server_busy": asdict(busy) if busy else None,
            "generator_busy": asdict(self.generator_busy),
            "errors": self.errors,
            "rounds": [asdict(one) for one in self.rounds],
        }


@dataclass(frozen=True, slots=True)
class Idle:
    """A server left alone for ``seconds``."""

    when: str
    processes: int
    seconds: float
    cpu_s: float
    pss_kib: int


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counters joined by addition, zeros left out."""
    total: dict[str, int] = {}
    for one in counts:
        for kind, count in one.items():
            if count:
                total[kind] = total.get(kind, 0) + count
    return total


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of ``values``, which is not empty."""
    return Spread(median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the least value that ``percent`` of them do not exceed."""
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(rank, 1) - 1]


def parse_wrk(output: str) -> Load:
    """The ``Load`` in what wrk printed. ValueError, with the output, when it holds none."""
    line = next((x for x in output.splitlines() if x.startswith(WRK_LINE)), None)
    if line is None:
        raise ValueError(f"wrk gave no result:\n{output}")
    seen = json.loads(line.removeprefix(WRK_LINE))
    return Load(
        requests=seen["requests"],
        seconds=seen["duration_us"] / 1e6,
        p50_us=seen["p50_us"],
        p99_us=seen["p99_us"],
        errors=add_up([seen["errors"]]),
    )


def parse_histogram(output: str) -> dict[int, int]:
    """Microseconds → requests, as ``load``'s script printed them. ValueError without them."""
    line = next((x for x in output.splitlines() if x.startswith(HISTOGRAM_LINE)), None)
    if line is None:
        raise ValueError(f"wrk gave no histogram:\n{output}")
    seen = json.loads(line.removeprefix(HISTOGRAM_LINE))
    return {int(value_us): count for value_us, count in seen.items()}


def percentile_of_counts(counts: Mapping[int, int], percent: float) -> int:
    """The nearest-rank percentile of values that came so often; 0 when there are none."""
    rank = max(math.ceil(sum(counts.values()) * percent / 100), 1)
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return value
    return 0


def number(value: float) -> str:
    """Three significant digits and no more noise than that: 12,345 · 123 · 12.3 · 1.23 · 0.123."""
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value:.{min(digits, 3)}f}"


def with_range(value: Spread | None) -> str:
    """``median (least-greatest)``; the median alone when they are the same, "-" for nothing."""
    if value is None:
        return "-"
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)}-{number(value.high)})"


def percent(value: float) -> str:
    """A share as whole per cents."""
    return f"{100 * value:.0f}%"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that reads well unrendered, too; columns of numbers stand on the right."""
    text = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*text, strict=True)) or [()] * len(head)
    widths = [max(map(len, (name, *column))) for name, column in zip(head, columns, strict=True)]
    right = [all(x[:1].isdigit() or x == "-" for x in column) for column in columns]
    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    return "\n".join(_line(cells, widths, right) for cells in (head, rule, *text))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


RESULT_HEAD = (
    "case",
    "connections",
    "server",
    "requests/s",
    "of nginx",
    "docs/s",
    "p50 ms",
    "p99 ms",
    "server CPU µs/request",
    "core busy: server",
    "core busy: load",
    "errors",
)


def result_table(results: Sequence[Result], ceiling: str) -> str:
    """One line a result; ``ceiling`` is the name of the server that the others are held against."""
    highest = {
        (x.case, x.connections): x.requests_per_s.median for x in results if x.server == ceiling
    }
    rows = [_result_row(x, highest.get((x.case, x.connections)), ceiling) for x in results]
    return markdown_table(RESULT_HEAD, rows)


def _result_row(result: Result, highest: float | None, ceiling: str) -> list[Cell]:
    rate = result.requests_per_s
    held = highest is not None and result.server != ceiling
    busy = result.server_busy
    return [
        result.case,
        result.connections,
        result.server,
        with_range(rate),
        percent(rate.median / highest) if held and highest else "-",
        number(rate.median * result.docs) if result.docs else "-",
        with_range(result.p50_ms),
        with_range(result.p99_ms),
        with_range(result.cpu_us_per_request),
        percent(busy.median) if busy else "-",
        percent(result.generator_busy.median),
        sum(result.errors.values()),
    ]


def idle_table(idles: Sequence[Idle]) -> str:
    """What the server costs when nobody asks."""
    rows: list[list[Cell]] = [
        [
            idle.when,
            idle.processes,
            f"{idle.seconds:.1f}",
            f"{100 * idle.cpu_s / idle.seconds:.2f}%",
            f"{idle.pss_kib / 1024:.1f}",
        ]
        for idle in idles
    ]
    return markdown_table(("idle", "processes", "seconds", "CPU of a core", "PSS MiB"), rows)
