"""What the Python client costs: ``python -m bench client``.

``divandb.client``, with threads' calls and with asyncio, asks a cluster of one master and two
replicas: reads go to a replica, writes to the master. Time and CPU are those of this process, which
does nothing else. httpx alone, asked for the same documents at the same node, is the floor.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import cases, documents, machine, outputs, plot, servers, stats
from bench.servers import Cluster
from divandb.client import AsyncClient, Client

DB = "bench-client"
BULK_DOCS = 1_000
MANY = 16
"""Calls at a time, on one event loop."""
WARM = 20
GETS, PUTS, BULKS = "GET", "PUT", f"bulk of {BULK_DOCS:,}"
HTTPX, SYNC, ASYNC = "httpx alone", "Client", "AsyncClient"

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    docs: int
    rounds: int
    seconds: float
    doc_bytes: int = 1_000
    seed: int = 1


FULL = Plan(docs=10_000, rounds=3, seconds=3)
QUICK = Plan(docs=1_000, rounds=1, seconds=1)


@dataclass(frozen=True, slots=True)
class Round:
    """Calls of one kind: how long each took, and CPU seconds of this process."""

    took_s: Sequence[float]
    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one kind of call; ``docs`` are the documents in each."""

    what: str
    client: str
    at_a_time: int
    docs: int
    rounds: Sequence[Round]

    @property
    def calls_per_s(self) -> stats.Spread:
        return stats.spread([len(one.took_s) / one.seconds for one in self.rounds])

    @property
    def cpu_us(self) -> stats.Spread:
        return stats.spread([one.cpu_s * 1e6 / len(one.took_s) for one in self.rounds])

    def percentile_ms(self, percent: float) -> stats.Spread:
        """Of the time that a call took."""
        found = [stats.percentile(one.took_s, percent) * 1e3 for one in self.rounds]
        return stats.spread(found)


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    about: dict[str, str]
    plan: Plan
    results: list[Result]

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        head = (
            "call", "client", "at a time", "calls/s", "docs/s", "p50 ms", "p99 ms",
            "client's CPU µs/call", "µs/document",
        )  # fmt: skip
        rows: list[list[stats.Cell]] = [
            [
                one.what,
                one.client,
                one.at_a_time,
                stats.with_range(one.calls_per_s),
                stats.number(one.calls_per_s.median * one.docs),
                stats.with_range(one.percentile_ms(50)),
                stats.with_range(one.percentile_ms(99)),
                stats.with_range(one.cpu_us),
                stats.number(one.cpu_us.median / one.docs),
            ]
            for one in self.results
        ]
        return "\n\n".join((outputs.lines(self.about), stats.markdown_table(head, rows)))

    def svg(self) -> str:
        """A group of bars for each kind of call."""
        shown: list[tuple[str, Callable[[Result], stats.Spread]]] = [
            ("calls/s", lambda one: one.calls_per_s),
            ("client's CPU µs a call", lambda one: one.cpu_us),
        ]
        groups = [
            plot.Group(f"{what}: {title}", [_bar(one, of(one)) for one in rows])
            for what in (GETS, PUTS, BULKS)
            if (rows := [one for one in self.results if one.what == what])
            for title, of in shown
        ]
        return plot.bars("The Python client", groups)

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        kept = [
            {**asdict(one), "rounds": [asdict(r) | {"took_s": len(r.took_s)} for r in one.rounds]}
            for one in self.results
        ]
        return {"about": self.about, "plan": asdict(self.plan), "results": kept}


def _bar(one: Result, seen: stats.Spread) -> plot.Bar:
    return plot.Bar(f"{one.client}, {one.at_a_time}", seen.median, seen.low, seen.high)


def main(argv: Sequence[str]) -> int:
    """0; a call that fails raises what the client raises."""
    arguments = _arguments(argv)
    base = QUICK if arguments.quick else FULL
    plan = Plan(
        docs=arguments.docs or base.docs,
        rounds=arguments.rounds or base.rounds,
        seconds=arguments.seconds or base.seconds,
    )
    outputs.at_least_one(docs=plan.docs, rounds=plan.rounds)
    with outputs.working_folder(arguments) as folder:
        outcome = _measure(plan, folder)
    plots = {"client": outcome.svg()}
    outputs.keep(arguments, "client", outcome.markdown(), plots, outcome.as_json())
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = outputs.parser("client", "What the Python client costs.")
    add = parser.add_argument
    add("--docs", type=int, help=f"documents that are read ({FULL.docs})")
    add("--rounds", type=int, help=f"rounds of each ({FULL.rounds})")
    add("--seconds", type=float, help=f"seconds of a round ({FULL.seconds})")
    return parser.parse_args(argv)


def _measure(plan: Plan, folder: Path) -> Outcome:
    run = (
        f"{plan.rounds} rounds of {plan.seconds:g} s: median (least-greatest); one master and two "
    )
    run += (
        f"replicas; {plan.docs:,} documents of {plan.doc_bytes:,} bytes; both cores for everything"
    )
    about = outputs.about(folder, run)
    if machine.filesystem(folder) == "tmpfs":
        about["note"] = "the data is on tmpfs, where fsync costs nothing"
    with servers.cluster(servers.divandb_path(), folder, 1, 2, os.sched_getaffinity(0)) as cluster:
        return Outcome(about, plan, Run(plan, cluster).measure())


class Run:
    """All kinds of calls against one cluster."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._ids = documents.ids(self._rng, plan.docs)
        body = documents.body(self._rng, plan.doc_bytes, documents.NUMBER_FIRST)
        self._fields: dict[str, Any] = json.loads(body)
        self._target = cluster.target
        self._replica = next(one.target for one in cluster.nodes if one.role == servers.REPLICA)
        master = cluster.nodes[0].target
        cases.create(master, DB)
        cases.store(master, DB, self._ids, [body] * plan.docs)
        time.sleep(cases.SETTLE_S)

    def measure(self) -> list[Result]:
        """Each kind of call in turn."""
        login = base64.b64decode(self._target.authorization.partition(" ")[2]).decode()
        user, _, password = login.partition(":")
        url = f"http://{self._target.netloc}"
        with Client(url, user, password) as client:
            client.refresh()
            db = client.database(DB)
            found = [
                self._each(GETS, SYNC, lambda: db.get(self._one())),
                self._each(PUTS, SYNC, lambda: db.save(self._new())),
                self._each(BULKS, SYNC, lambda: db.save_all(self._news()), BULK_DOCS),
            ]
        return sorted([*found, *asyncio.run(self._async(url, user, password))], key=_order)

    async def _async(self, url: str, user: str, password: str) -> list[Result]:
        path = f"http://{self._replica.netloc}/{DB}/"
        found = []
        async with httpx.AsyncClient(headers=self._replica.headers, trust_env=False) as bare:
            for many in (1, MANY):
                found.append(
                    await self._all(GETS, HTTPX, lambda: bare.get(path + self._one()), many)
                )
        async with AsyncClient(url, user, password) as client:
            await client.refresh()
            db = client.database(DB)
            for many in (1, MANY):
                found += [
                    await self._all(GETS, ASYNC, lambda: db.get(self._one()), many),
                    await self._all(PUTS, ASYNC, lambda: db.save(self._new()), many),
                ]
            bulk = self._all(BULKS, ASYNC, lambda: db.save_all(self._news()), 1, BULK_DOCS)
            found.append(await bulk)
        return found

    def _one(self) -> str:
        return self._rng.choice(self._ids)

    def _new(self) -> dict[str, Any]:
        return {"_id": documents.ids(self._rng, 1)[0], **self._fields}

    def _news(self) -> list[dict[str, Any]]:
        return [{"_id": one, **self._fields} for one in documents.ids(self._rng, BULK_DOCS)]

    def _each(self, what: str, client: str, call: Call, docs: int = 1) -> Result:
        """One call after the other."""
        outputs.say(f"{what}: {client}")
        for _ in range(WARM if docs == 1 else 1):
            call()
        rounds = []
        for _ in range(self._plan.rounds):
            took_s: list[float] = []
            began, cpu_s = time.perf_counter(), time.process_time()
            while (start := time.perf_counter()) < began + self._plan.seconds:
                call()
                took_s.append(time.perf_counter() - start)
            seconds = time.perf_counter() - began
            rounds.append(Round(took_s, seconds, time.process_time() - cpu_s))
        return Result(what, client, 1, docs, rounds)

    async def _all(
        self, what: str, client: str, call: AsyncCall, many: int, docs: int = 1
    ) -> Result:
        """``many`` calls at a time."""
        outputs.say(f"{what}: {client}, {many} at a time")
        for _ in range(WARM if docs == 1 else 1):
            await call()
        rounds = []
        for _ in range(self._plan.rounds):
            took_s: list[float] = []
            began, cpu_s = time.perf_counter(), time.process_time()
            until = began + self._plan.seconds
            await asyncio.gather(*(_asking(call, until, took_s) for _ in range(many)))
            seconds = time.perf_counter() - began
            rounds.append(Round(took_s, seconds, time.process_time() - cpu_s))
        return Result(what, client, many, docs, rounds)


async def _asking(call: AsyncCall, until: float, took_s: list[float]) -> None:
    while (start := time.perf_counter()) < until:
        await call()
        took_s.append(time.perf_counter() - start)


def _order(one: Result) -> tuple[int, int, int]:
    clients = (HTTPX, SYNC, ASYNC)
    return (GETS, PUTS, BULKS).index(one.what), clients.index(one.client), one.at_a_time
