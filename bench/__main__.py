"""``python -m bench``: arguments, order, printing. ``--help`` says what there is."""

import argparse
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import (
    beside,
    cases,
    comfort,
    compare,
    documents,
    growth,
    load,
    machine,
    replication,
    servers,
    stats,
)
from bench.servers import BenchError, Target

CEILING = "nginx"
NO_CEILING = (
    "No nginx was found, so there is no ceiling in the table: `apt-get install nginx-light`."
)
ON_TMPFS = (
    "The server's data is on tmpfs, where fsync costs nothing: writes look faster than they are. "
    "Use --folder."
)
ONE_CORE = "Server and load generator share a core: absolute numbers mean little."

UNREACHABLE = (BenchError, OSError, http.client.HTTPException, subprocess.TimeoutExpired)
"""What a run meets when a server refuses, dies, hangs, or cannot be asked."""


def counters_of_requests(argv: Sequence[str]) -> int:
    """Needs divandb itself, which a run against another server does not."""
    from bench import counters

    return counters.main(argv)


def python_client(argv: Sequence[str]) -> int:
    """Needs divandb itself, too."""
    from bench import client

    return client.main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "beside": beside.main,
    "client": python_client,
    "comfort": comfort.main,
    "counters": counters_of_requests,
    "growth": growth.main,
    "peers": compare.main,
}
"""Commands with options of their own, in modules of their own."""

FULL = cases.Settings(
    docs=30_000,
    doc_bytes=200,
    bulk_docs=1_000,
    rounds=3,
    seconds=3,
    idle_s=10.0,
    connections=(1, 16),
    feed_connections=(1, 4),
    seed=1,
    cluster_s=12,
)
QUICK = replace(
    FULL, docs=3_000, rounds=1, seconds=1, idle_s=1.5, feed_connections=(1,), cluster_s=2
)


@dataclass(slots=True)
class Report:
    """All that a run found."""

    about: dict[str, str]
    settings: cases.Settings
    notes: list[str]
    results: list[stats.Result]
    idles: list[stats.Idle]
    cluster: replication.Outcome | None = None

    def markdown(self) -> str:
        """The report as it can be pasted into a page."""
        parts = [f"- {name}: {value}" for name, value in self.about.items()]
        parts += [f"- note: {note}" for note in self.notes]
        text = "\n".join(parts)
        if self.results:
            text += "\n\n" + stats.result_table(self.results, CEILING)
        if self.idles:
            text += "\n\n" + stats.idle_table(self.idles)
        if self.cluster:
            text += "\n\n" + self.cluster.markdown()
        return text

    def as_json(self) -> dict[str, Any]:
        """The report for programs, with every single round."""
        return {
            "about": self.about,
            "settings": asdict(self.settings),
            "notes": self.notes,
            "results": [result.as_json() for result in self.results],
            "idle": [asdict(one) for one in self.idles],
            "cluster": self.cluster.as_json() if self.cluster else None,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 when a request failed, 2 when the run could not be made."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given and given[0] in COMMANDS:
        return _command(given[0], given[1:])
    arguments = _parser().parse_args(given)
    if arguments.what:
        arguments.only = (arguments.what,)
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = _settings(arguments)
        if arguments.board is not None and cases.REPLICATION not in arguments.only:
            raise BenchError("--board is for the cluster: `replication`")
        report = _run(arguments, settings)
    except UNREACHABLE as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(report.markdown())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return _verdict(report)


def _command(name: str, argv: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, _leave)
    try:
        return COMMANDS[name](argv)
    except UNREACHABLE as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, settings: cases.Settings) -> Report:
    """Starts, measures and stops one node, then a cluster."""
    if cases.WITH_WRK & set(arguments.only):
        load.require_wrk()
    cores = _cores(arguments.cores)
    report = Report({}, settings, [], [], [])
    if set(arguments.only) & set(cases.NODE_NAMES):
        with ExitStack() as stack:
            _measure_node(arguments, report, stack, *cores)
    if cases.REPLICATION in arguments.only and arguments.url is None:
        with ExitStack() as stack:
            _measure_cluster(arguments, report, stack, set.union(*cores))
    return report


def _measure_node(
    arguments: argparse.Namespace,
    report: Report,
    stack: ExitStack,
    server_core: set[int],
    load_core: set[int],
) -> None:
    os.sched_setaffinity(0, load_core)
    folder = _folder(arguments, stack)
    for name in ("node", "load", CEILING):
        (folder / name).mkdir()
    target = stack.enter_context(_server(arguments, folder / "node", server_core))
    report.about |= _about(arguments, report.settings, target, folder)
    if server_core == load_core:
        report.notes.append(ONE_CORE)
    _note_tmpfs(arguments, report, folder)
    names, settings = arguments.only, report.settings
    Run(names, settings, target, folder, server_core, stack, report).measure()


def _measure_cluster(
    arguments: argparse.Namespace, report: Report, stack: ExitStack, cores: set[int]
) -> None:
    os.sched_setaffinity(0, cores)
    folder = _folder(arguments, stack)
    program = arguments.divandb or servers.divandb_path()
    size = (replication.MASTERS, replication.REPLICAS)
    embedded_per_s = None
    if arguments.board is not None:
        (folder / "embedded").mkdir()
        with servers.cluster(program, folder / "embedded", *size, cores) as other:
            _say("cluster on the embedded board: the highest rate")
            embedded_per_s = replication.highest_rate(other, report.settings, folder)
    started = servers.cluster(program, folder, *size, cores, arguments.board)
    cluster = stack.enter_context(started)
    if not report.about:
        report.about |= _about(arguments, report.settings, cluster.target, folder)
        _note_tmpfs(arguments, report, folder)
    if arguments.board is not None:
        report.about["board"] = f"{arguments.board}; its brokers are counted nowhere"
    report.cluster = replication.measure(
        cluster, report.settings, folder, _say, arguments.board, embedded_per_s
    )


def _folder(arguments: argparse.Namespace, stack: ExitStack) -> Path:
    made = tempfile.TemporaryDirectory("-bench", dir=arguments.folder)
    return Path(stack.enter_context(made))


def _note_tmpfs(arguments: argparse.Namespace, report: Report, folder: Path) -> None:
    if arguments.url is None and machine.filesystem(folder) == "tmpfs":
        report.notes.append(ON_TMPFS)


@dataclass(frozen=True, slots=True)
class Run:
    """The order of a run: idle, reads, writes, so that writing disturbs no reading, and idle."""

    names: Sequence[str]
    settings: cases.Settings
    target: Target
    folder: Path
    core: set[int]
    stack: ExitStack
    report: Report

    def measure(self) -> None:
        """Fills the report."""
        self._idle("after start")
        if set(self.names) & set(cases.NODE_NAMES) - {"idle"}:
            self._load()
        self._idle("after the load")

    def _load(self) -> None:
        target, settings = self.target, self.settings
        _say(f"{settings.docs:,} documents of {settings.doc_bytes} bytes")
        db, put_db, bulk_db = (self._database(purpose) for purpose in ("docs", "put", "bulk"))
        data = cases.fill(target, db, settings)
        feeds = cases.check(target, data)
        reads = cases.reading(data, feeds, settings, self.folder / "load")
        writes = cases.writing(data, put_db, bulk_db, settings, self.folder / "load")
        ceiling = self._ceiling(data, feeds) if self._chosen(reads) else None
        turns = itertools.count(1)
        for case in self._chosen([*reads, *writes]):
            _say(case.name)
            if case.name == "find_index":
                began = time.perf_counter()
                cases.make_index(target, db)
                took_s = time.perf_counter() - began
                self.report.notes.append(f"the index of find_index was built in {took_s:.2f} s")
            self.report.results += cases.run(case, target, ceiling, settings.rounds, turns)
        for name, written, docs in (("put", put_db, 1), ("bulk", bulk_db, settings.bulk_docs)):
            mine = [result for result in self.report.results if result.case == name]
            cases.check_stored(target, written, mine, docs)

    def _chosen(self, all_of_them: Sequence[cases.Case]) -> list[cases.Case]:
        return [case for case in all_of_them if case.name in self.names]

    def _ceiling(self, data: cases.Data, feeds: dict[str, bytes]) -> Target | None:
        """nginx with the same answers as files, or a note that there is none."""
        program = machine.nginx_path()
        if program is None:
            self.report.notes.append(NO_CEILING)
            return None
        folder, files = self.folder / CEILING, len(data.ids) + len(feeds)
        cases.write_files(folder / "root", data, feeds)
        running = servers.nginx(program, folder, servers.free_port(), self.core, files)
        ceiling = self.stack.enter_context(running)
        cases.check(ceiling, data)
        return ceiling

    def _database(self, purpose: str) -> str:
        """A new database, dropped at the end of the run, when dropping disturbs nobody."""
        db = cases.database_name(purpose)
        cases.create(self.target, db)
        self.stack.callback(_drop, self.target, db)
        return db

    def _idle(self, when: str) -> None:
        if "idle" in self.names and self.target.pids:
            _say(f"idle {when}")
            self.report.idles.append(cases.idle(self.target, when, self.settings.idle_s))


def _drop(target: Target, db: str) -> None:
    """Drops ``db``; a failure is told, not raised, so that it hides no earlier one."""
    try:
        target.expect([200, 202], "DELETE", f"/{db}")
    except UNREACHABLE as error:
        _say(f"could not drop {db}: {error}")


def _server(
    arguments: argparse.Namespace, folder: Path, core: set[int]
) -> AbstractContextManager[Target]:
    if arguments.url is not None:
        return servers.external(arguments.url, arguments.name, arguments.pid)
    program = arguments.divandb or servers.divandb_path()
    return servers.divandb(program, folder, servers.free_port(), core)


def _about(
    arguments: argparse.Namespace, settings: cases.Settings, target: Target, folder: Path
) -> dict[str, str]:
    ours = folder if arguments.url is None else None
    about = machine.describe(ours)
    about["server"] = target.expect([200], "GET", "/").decode().strip()
    about["cores"] = f"load generator {_affinity(0)}"
    if target.pids:
        about["cores"] = f"server {_affinity(target.pids[0])}, {about['cores']}"
    about["run"] = (
        f"{settings.rounds} rounds of {settings.seconds} s: median (least-greatest); "
        f"{settings.docs:,} documents of {settings.doc_bytes} bytes, "
        f"{settings.bulk_docs:,} in a bulk request; Basic auth, keep-alive"
    )
    return about


def _affinity(pid: int) -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(pid))))


def _cores(given: Sequence[int] | None) -> tuple[set[int], set[int]]:
    """The core of the server and that of the load: as given, or the first two of ours."""
    ours = sorted(os.sched_getaffinity(0))
    if given is None:
        return {ours[0]}, {ours[1 % len(ours)]}
    if len(given) != 2 or not set(given) <= set(ours):
        raise BenchError(f"--cores takes two of {ours}")
    return {given[0]}, {given[1]}


def _verdict(report: Report) -> int:
    failed = [result for result in report.results if result.errors]
    for result in failed:
        where = f"{result.case} at {result.connections} connections, {result.server}"
        print(f"bench: failed requests: {where}: {result.errors}", file=sys.stderr)
    cluster_errors = report.cluster.errors if report.cluster else {}
    if cluster_errors:
        print(f"bench: failed requests: the cluster: {cluster_errors}", file=sys.stderr)
    return 1 if failed or cluster_errors else 0


def _settings(arguments: argparse.Namespace) -> cases.Settings:
    base = QUICK if arguments.quick else FULL
    given = {
        name: getattr(arguments, name)
        for name in ("docs", "doc_bytes", "bulk_docs", "rounds", "seconds", "seed")
        if getattr(arguments, name) is not None
    }
    settings = replace(base, **given)
    if min(settings.docs, settings.bulk_docs, settings.rounds, settings.seconds) < 1:
        raise BenchError("--docs, --bulk-docs, --rounds and --seconds are at least 1")
    if settings.doc_bytes < documents.DOC_BYTES_MIN:
        raise BenchError(f"--doc-bytes is at least {documents.DOC_BYTES_MIN}")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Requests/s, latency and CPU of one node, with nginx as the ceiling, and of a "
        "cluster.",
        epilog=f"Commands with options of their own: {', '.join(COMMANDS)} (--help after one).",
    )
    add = parser.add_argument
    add("what", nargs="?", choices=[cases.REPLICATION], help="the cluster alone")
    add("--quick", action="store_true", help="a smoke run: 3,000 documents, 1 round of 1 s")
    add("--only", type=_names, default=cases.NAMES, help=f"some of {','.join(cases.NAMES)}")
    add("--json", type=Path, metavar="FILE", help="write everything, every round, to FILE too")
    add("--url", help="measure a server that runs: http://user:password@host:port")
    add("--pid", type=int, action="append", default=[], help="its process (with children); repeat")
    add("--name", default="server", help="what to call it in the table")
    add("--divandb", type=Path, metavar="PROGRAM", help="the divandb command of a node to start")
    add("--board", type=_board, metavar="URL", help="the cluster's boards: kafka://HOST:PORT")
    add("--folder", type=Path, help="where to make the temporary folder (the disk matters)")
    add("--cores", type=_numbers, metavar="A,B", help="core of the server, core of the load")
    add("--docs", type=int, help=f"documents in the database ({FULL.docs})")
    add("--doc-bytes", type=int, help=f"bytes of a document ({FULL.doc_bytes})")
    add("--bulk-docs", type=int, help=f"documents in a bulk request ({FULL.bulk_docs})")
    add("--rounds", type=int, help=f"rounds of each measurement ({FULL.rounds})")
    add("--seconds", type=int, help=f"seconds of a round ({FULL.seconds})")
    add("--seed", type=int, help=f"seed of the documents ({FULL.seed})")
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = set(names) - set(cases.NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


def _board(text: str) -> str:
    if not text.startswith("kafka://"):
        raise argparse.ArgumentTypeError("it must be kafka://HOST:PORT")
    return text


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds the stack, so that nothing that was started stays behind."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
