"""Side by side with what users might choose instead: ``python -m bench peers``.

All servers run at once on one core, idle but for the one that is asked; the load generator has
another core. The same work goes to each in turn, A B A B.
"""

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cases, documents, load, machine, outputs, peers, plot, servers, stats, ycsb
from bench.servers import BenchError, Target

NGINX, DIVANDB, REDIS, ETCD, RQLITE, COUCHDB = (
    "nginx",
    "divandb",
    "redis",
    "etcd",
    "rqlite",
    "couchdb",
)
NAMES = (NGINX, DIVANDB, REDIS, ETCD, RQLITE, COUCHDB)
PROGRAMS = {REDIS: "redis-server", ETCD: "etcd", RQLITE: "rqlited"}
VERSION_OPTION = {REDIS: "--version", ETCD: "--version", RQLITE: "-version"}
WORKS = ("C", "B", "A", "F", "D", "E")
"""In this order: those that insert come last."""
FILE_REV = "1-" + "0" * 32
REQUESTS = {
    NGINX: "wrk; GET of a file",
    DIVANDB: "wrk; GET, PUT with `rev`",
    COUCHDB: "wrk; GET, PUT with `rev`",
    REDIS: "redis-benchmark, one for reads and one for writes; keys drawn evenly, no order in F",
    ETCD: "wrk; `/v3/kv/range` and `/v3/kv/put` through its HTTP gateway, in base64",
    RQLITE: "wrk; `/db/query` (level weak) and `/db/execute`, SQL with parameters",
}
"""What is sent, and what sends it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    docs: int
    doc_bytes: int
    rounds: int
    size: ycsb.Size
    works: tuple[str, ...]
    seed: int = 1


FULL = Plan(30_000, 1_000, 3, ycsb.Size(16, 5), WORKS)
QUICK = Plan(2_000, 1_000, 1, ycsb.Size(16, 1), WORKS)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is filled and can be asked: ``run`` makes one round of a work, given a number
    that is another one each time.
    """

    target: Target
    version: str
    run: Callable[[str, int], stats.Round]
    works: frozenset[str] = frozenset(WORKS)


@dataclass(frozen=True, slots=True)
class Data:
    """What every server is filled with."""

    ids: Sequence[str]
    bodies: Sequence[bytes]


@dataclass(slots=True)
class Outcome:
    """All that a run found."""

    about: dict[str, str]
    plan: Plan
    peers: dict[str, str]
    """Name → version."""
    results: list[stats.Result]

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        rows = [[name, version, REQUESTS[name]] for name, version in self.peers.items()]
        return "\n\n".join(
            (
                outputs.lines(self.about),
                stats.markdown_table(("server", "version", "load"), rows),
                stats.result_table(self.results, NGINX),
            )
        )

    def svg(self) -> str:
        """Rates, p99 and CPU of each work, a bar for each server."""
        return plot.bars("Work of YCSB, documents of 1 KB, one core", self._groups())

    def as_json(self) -> dict[str, Any]:
        """The report for programs, with every round."""
        return {
            "about": self.about,
            "plan": asdict(self.plan),
            "peers": self.peers,
            "results": [one.as_json() for one in self.results],
        }

    def _groups(self) -> list[plot.Group]:
        kinds: Mapping[str, Callable[[stats.Result], stats.Spread | None]] = {
            "requests/s": lambda one: one.requests_per_s,
            "p99 ms": lambda one: one.p99_ms,
            "CPU µs a request": lambda one: one.cpu_us_per_request,
        }
        return [
            plot.Group(f"{work}: {kind}", [self._bar(case_of(work), n, of) for n in self.peers])
            for work in self.plan.works
            for kind, of in kinds.items()
        ]

    def _bar(
        self, case: str, name: str, of: Callable[[stats.Result], stats.Spread | None]
    ) -> plot.Bar:
        mine = [one for one in self.results if (one.case, one.server) == (case, name)]
        seen = of(mine[0]) if mine else None
        return plot.Bar(name, seen.median, seen.low, seen.high) if seen else plot.Bar(name, None)


def main(argv: Sequence[str]) -> int:
    """0, or 1 when a request failed."""
    arguments = _arguments(argv)
    plan = _plan(arguments)
    load.require_wrk()
    with ExitStack() as stack:
        folder = stack.enter_context(outputs.working_folder(arguments))
        outcome = _measure(arguments, plan, folder, stack)
    plots = {"peers": outcome.svg()}
    outputs.keep(arguments, "peers", outcome.markdown(), plots, outcome.as_json())
    failed = [one for one in outcome.results if one.errors]
    for one in failed:
        outputs.say(f"failed requests: {one.case}, {one.server}: {one.errors}")
    return 1 if failed else 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = outputs.parser("peers", "The same work against other servers, in turn.")
    add = parser.add_argument
    add("--peers", type=_some(NAMES), default=NAMES, help=f"some of {','.join(NAMES)}")
    add("--work", type=_some(WORKS), help=f"some of {','.join(WORKS)}")
    add("--couchdb", metavar="URL", help="a CouchDB that runs: http://user:password@host:port")
    add("--couchdb-pid", type=int, action="append", default=[], help="its process, for its CPU")
    add("--docs", type=int, help=f"documents ({FULL.docs})")
    add("--rounds", type=int, help=f"rounds of each ({FULL.rounds})")
    add("--seconds", type=int, help=f"seconds of a round ({FULL.size.seconds})")
    return parser.parse_args(argv)


def _some(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        given = tuple(text.split(","))
        unknown = set(given) - set(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return given

    return names


def _plan(arguments: argparse.Namespace) -> Plan:
    base = QUICK if arguments.quick else FULL
    plan = Plan(
        arguments.docs or base.docs,
        base.doc_bytes,
        arguments.rounds or base.rounds,
        ycsb.Size(base.size.connections, arguments.seconds or base.size.seconds),
        arguments.work or base.works,
    )
    outputs.at_least_one(docs=plan.docs, rounds=plan.rounds, seconds=plan.size.seconds)
    return plan


def _measure(arguments: argparse.Namespace, plan: Plan, folder: Path, stack: ExitStack) -> Outcome:
    server_core, load_core = outputs.two_cores()
    run = f"{plan.rounds} rounds of {plan.size.seconds} s: median (least-greatest); {plan.docs:,} "
    run += f"documents of {plan.doc_bytes:,} bytes, {plan.size.connections} connections, zipfian; "
    run += f"servers on core {min(server_core)}, load on core {min(load_core)}"
    about = outputs.about(folder, run)
    if machine.filesystem(folder) == "tmpfs":
        about["note"] = "the data is on tmpfs, where fsync costs nothing"
    with outputs.pinned(load_core):
        found = Starting(plan, folder, server_core, stack).all(arguments, about)
        results = take_turns(found, plan)
    versions = {name: peer.version for name, peer in found.items()}
    return Outcome(about, plan, versions, results)


def take_turns(found: Mapping[str, Peer], plan: Plan) -> list[stats.Result]:
    """All rounds of all works: each server once, then each again."""
    rounds: dict[tuple[str, str], list[stats.Round]] = {}
    turn = 0
    for work in plan.works:
        for number in range(1, plan.rounds + 1):
            for name, peer in found.items():
                if work not in peer.works:
                    continue
                turn += 1
                outputs.say(f"{case_of(work)}, round {number}: {name}")
                rounds.setdefault((work, name), []).append(peer.run(work, turn))
    return [
        stats.Result(case_of(work), plan.size.connections, name, 0, seen)
        for (work, name), seen in rounds.items()
    ]


def case_of(work: str) -> str:
    """What a row of the table is called."""
    return f"YCSB {work} ({ycsb.WORKS[work].what})"


class Starting:
    """Starts and fills the servers of a run; they end with ``stack``."""

    def __init__(self, plan: Plan, folder: Path, core: set[int], stack: ExitStack) -> None:
        self._plan, self._folder, self._core, self._stack = plan, folder, core, stack
        rng = random.Random(plan.seed)
        numbers = range(documents.NUMBER_FIRST, documents.NUMBER_FIRST + plan.docs)
        self._data = Data(
            documents.ids(rng, plan.docs),
            [documents.body(rng, plan.doc_bytes, number) for number in numbers],
        )
        self._update = documents.body(rng, plan.doc_bytes, documents.NUMBER_FIRST)

    def all(self, arguments: argparse.Namespace, about: dict[str, str]) -> dict[str, Peer]:
        """Those that are wanted and there; what is missing is told in ``about``."""
        ways: Mapping[str, Callable[[], Peer | None]] = {
            NGINX: self._nginx,
            DIVANDB: self._divandb,
            REDIS: lambda: self._program(REDIS),
            ETCD: lambda: self._program(ETCD),
            RQLITE: lambda: self._program(RQLITE),
            COUCHDB: lambda: self._couchdb(arguments.couchdb, arguments.couchdb_pid),
        }
        found: dict[str, Peer] = {}
        for name in arguments.peers:
            (self._folder / name).mkdir()
            outputs.say(f"filling {name}")
            peer = ways[name]()
            if peer is not None:
                found[name] = peer
            elif name == COUCHDB:
                about[name] = "not asked: no `--couchdb URL`"
            else:
                about[name] = f"not here: {peers.REMEDY}"
        if not found:
            raise BenchError("none of the servers is here")
        return found

    def _nginx(self) -> Peer | None:
        path = machine.nginx_path()
        if path is None:
            return None
        folder, data = self._folder / NGINX, self._data
        served = [
            documents.with_id(i, b, FILE_REV) for i, b in zip(data.ids, data.bodies, strict=True)
        ]
        cases.write_files(folder / "root", cases.Data("db", data.ids, data.bodies, served), {})
        port = servers.free_port()
        running = servers.nginx(path, folder, port, self._core, len(data.ids))
        target = self._stack.enter_context(running)
        speech = ycsb.get_speech(target, "db", data.ids, self._update)
        return self._peer(target, peers.version(path, "-v"), speech, frozenset("C"))

    def _divandb(self) -> Peer:
        path = servers.divandb_path()
        running = servers.divandb(path, self._folder / DIVANDB, servers.free_port(), self._core)
        return self._like_couchdb(self._stack.enter_context(running))

    def _couchdb(self, url: str | None, pids: Sequence[int]) -> Peer | None:
        if url is None:
            return None
        return self._like_couchdb(self._stack.enter_context(servers.external(url, COUCHDB, pids)))

    def _like_couchdb(self, target: Target) -> Peer:
        db, data = cases.database_name("peers"), self._data
        cases.create(target, db)
        self._stack.callback(target.ask, "DELETE", f"/{db}")
        cases.store(target, db, data.ids, data.bodies)
        version = target.expect([200], "GET", "/").decode().strip()
        return self._peer(target, version, ycsb.get_speech(target, db, data.ids, self._update))

    def _program(self, name: str) -> Peer | None:
        path = peers.program(PROGRAMS[name])
        if path is None or (name == REDIS and peers.program("redis-benchmark") is None):
            return None
        start: Mapping[str, Callable[..., AbstractContextManager[Target]]] = {
            REDIS: peers.redis,
            ETCD: peers.etcd,
            RQLITE: peers.rqlite,
        }
        running = start[name](path, self._folder / name, self._core)
        target = self._stack.enter_context(running)
        version = peers.version(path, VERSION_OPTION[name])
        if name == REDIS:
            return self._redis(target, version)
        speech = self._etcd(target) if name == ETCD else self._rqlite(target)
        return self._peer(target, version, speech)

    def _redis(self, target: Target, version: str) -> Peer:
        plan = self._plan
        peers.fill_redis(target, self._data.bodies)

        def run(work: str, _turn: int) -> stats.Round:
            return ycsb.with_redis_benchmark(target, plan.docs, plan.doc_bytes, work, plan.size)

        return Peer(target, version, run, frozenset(WORKS) - {"E"})

    def _etcd(self, target: Target) -> ycsb.Speech:
        peers.fill_etcd(target, self._data.ids, self._data.bodies)
        put = ycsb.Post("/v3/kv/put", '{"key":"', f'","value":"{peers.in64(self._update)}"}}')
        return ycsb.post_speech(
            target,
            read=ycsb.Post("/v3/kv/range", '{"key":"', '"}'),
            write=put,
            insert=put,
            scan=ycsb.Post(
                "/v3/kv/range", '{"key":"', "}", between='","range_end":"AA==","limit":%3d'
            ),
            patterns=('"kvs":%[{"key":"([^"]+)"', '"raft_term":"%d+"}}'),
            keys=[peers.in64(one.encode()) for one in self._data.ids],
            new_key=(40, "AAA="),
        )

    def _rqlite(self, target: Target) -> ycsb.Speech:
        peers.fill_rqlite(target, self._data.ids, self._data.bodies)
        value = documents.as_json_string(self._update)
        query, execute = "/db/query?level=weak", "/db/execute"
        rows = '[["SELECT k, v FROM kv WHERE k >= ? ORDER BY k LIMIT ?","'
        return ycsb.post_speech(
            target,
            read=ycsb.Post(query, '[["SELECT k, v FROM kv WHERE k = ?","', '"]]'),
            write=ycsb.Post(execute, f'[["UPDATE kv SET v = ? WHERE k = ?",{value},"', '"]]'),
            insert=ycsb.Post(execute, f'[["INSERT INTO kv(v, k) VALUES(?, ?)",{value},"', '"]]'),
            scan=ycsb.Post(query, rows, "]]", between='",%3d'),
            patterns=('"values":%[%["([^"]+)"', "rows_affected"),
            keys=self._data.ids,
            new_key=(32, ""),
        )

    def _peer(
        self,
        target: Target,
        version: str,
        speech: ycsb.Speech,
        works: frozenset[str] = frozenset(WORKS),
    ) -> Peer:
        """A server that wrk asks, once a read has been seen to give the document."""
        ycsb.check(target, speech, self._data.bodies[0], works)
        folder = self._folder / target.name

        def run(work: str, turn: int) -> stats.Round:
            return ycsb.with_wrk(target, speech, work, turn, self._plan.size, folder)

        return Peer(target, version, run, works)
