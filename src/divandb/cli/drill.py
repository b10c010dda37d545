"""`divandb drill`: break a cluster of one's own on purpose, and see what its clients notice.

A writer sends a document every 20 ms through a replica of the group whose owner is killed, stopped
or cut off, a reader asks at the clients' port, and in the end every node is asked for every
document that was acknowledged.

Processes that `divandb up` runs share the machine's network: nothing can be cut between them. So a
partition is tried with a cluster that is made for it, each process in a network of its own
(``divandb.cli.lab``). There a second writer sits beside the owner that is cut off.
"""

import base64
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from divandb import datadir
from divandb.cli import options
from divandb.cli.folder import running
from divandb.cli.lab import Lab, lab
from divandb.cli.netns import NetnsError
from divandb.cli.status import collected
from divandb.cli.tables import table
from divandb.clock import SystemClock, SystemRng
from divandb.config import MASTER, REPLICA, limits_from
from divandb.datadir import BOARDS, DataDirError

CLOCK = SystemClock()
KILL, PAUSE, BOARD, PARTITION = "kill", "pause", "board", "partition"
LAB_MASTERS, LAB_REPLICAS = 3, 1
BEAT_S = 0.02
"""Between two writes, and between two reads."""
BEFORE_S = 1.0
"""The writer is at work for so long before something happens."""
ANSWER_S_MAX = 30.0
LOOK_S = 0.02
CALM_S_MAX = 60.0
"""For all nodes to be there again and to hold everything."""
HEAD = ("ROUND", "NODE", "GAP MS", "NEW OWNER", "AFTER MS", "REFUSED", "READS", "FAILED")


@dataclasses.dataclass
class Round:
    """What one misfortune did."""

    node: str
    gap_ms: float
    """The longest time between two writes that were acknowledged."""
    owner: str | None
    """Who owns the slot since, if that is another node; ``None`` for a board."""
    owner_after_ms: float | None
    """When that was known to a master of another group, or to the owner itself."""
    refused: int
    reads: int
    failed_reads: int
    cut_off_writes: int = 0
    """That the owner took while it was cut off."""


Place = Callable[[], contextlib.AbstractContextManager[None]]


class Http:
    """A client that connects anew after any trouble."""

    def __init__(self, url: str, admin: str) -> None:
        parts = urlsplit(url)
        self._place = (parts.hostname or "", parts.port or 80)
        code = base64.b64encode(admin.encode()).decode()
        self._headers = {"authorization": f"Basic {code}", "content-type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        """(status, body); raises ``OSError`` or ``HTTPException``."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._place, timeout=ANSWER_S_MAX)
        try:
            self._connection.request(method, path, body, self._headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            raise


class Beat(threading.Thread):
    """Asks one thing after another, and notes when it was answered well."""

    def __init__(self, ask: Callable[[int], bool], place: Place = contextlib.nullcontext) -> None:
        """``place``: on which host?"""
        super().__init__(daemon=True)
        self._ask = ask
        self._place = place
        self._ends = threading.Event()
        self.good_at: list[float] = []
        self.bad = 0

    def run(self) -> None:
        """Until ``end``."""
        with self._place():
            self._beat()

    def _beat(self) -> None:
        number, due = 0, CLOCK.monotonic()
        while not self._ends.is_set():
            try:
                is_good = self._ask(number)
            except (OSError, http.client.HTTPException):
                is_good = False
            if is_good:
                self.good_at.append(CLOCK.monotonic())
            self.bad += not is_good
            number, due = number + 1, max(due + BEAT_S, CLOCK.monotonic() - BEAT_S)
            self._ends.wait(max(due - CLOCK.monotonic(), 0))

    def end(self) -> None:
        """Ask no more."""
        self._ends.set()
        self.join()

    def longest_s(self, since: float) -> float:
        """Between two good answers, of which the second came after ``since``."""
        pairs = itertools.pairwise(self.good_at)
        return max((after - before for before, after in pairs if after > since), default=0.0)


class Drill:
    """One kind of misfortune, again and again."""

    def __init__(
        self, data: Path, what: str, slot: str, pause_s: float, lab: Lab | None = None
    ) -> None:
        """``lab`` is the cluster that can be cut apart."""
        self._data = data
        self._lab = lab
        self._what = what
        self._slot = slot
        self._pause_s = pause_s
        admin = os.environ.get("DIVANDB_ADMIN") or datadir.read_admin(data)
        if admin is None:
            raise DataDirError(f"{data / 'admin'} is missing, and DIVANDB_ADMIN is not set")
        self._admin = admin
        self._cluster = running(data)
        self._db = f"drill-{SystemRng().token(4).hex()}"
        self.acknowledged: set[str] = set()

    def begin(self) -> None:
        """Make the database."""
        status, body = self._shared().ask("PUT", f"/{self._db}")
        if status != 201:
            raise DataDirError(f"cannot make {self._db}: {status} {body.decode(errors='replace')}")

    def finish(self) -> None:
        """Drop it."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._shared().ask("DELETE", f"/{self._db}")

    def round(self, number: int) -> Round:
        """Let it happen once."""
        nodes = self._nodes()
        owner = self._owner(nodes)
        group = [n["name"] for n in nodes if n["role"] == REPLICA and n["master"] == owner]
        if not group:
            raise DataDirError(f"{self._slot} has no replica that is up")
        via, shared = self._node(group[-1]), self._shared()
        writer = Beat(lambda n: self._write(via, f"{number}-{n}"))
        reader = Beat(lambda _: shared.ask("GET", f"/{self._db}")[0] == 200)
        beside = self._beside(owner, number)
        with _all(writer, reader, *beside):
            time.sleep(BEFORE_S)
            struck = self._board() if self._what == BOARD else owner
            since, epoch = CLOCK.monotonic(), self._epoch(owner)
            with self._struck(struck):
                new, after_s = self._await_owner(owner, epoch, since)
            time.sleep(BEFORE_S)
        self._await_calm()
        return Round(
            struck, round(writer.longest_s(since) * 1000, 1), new,
            None if after_s is None else round(after_s * 1000), writer.bad,
            len(reader.good_at), reader.bad,
            sum(at > since for one in beside for at in one.good_at),
        )  # fmt: skip

    def _beside(self, owner: str, number: int) -> list[Beat]:
        """A writer on the owner's host, which goes on there while that is cut off."""
        lab, own = self._lab, self._node(owner)
        if lab is None:
            return []
        return [
            Beat(lambda n: self._write(own, f"{number}-beside-{n}"), lambda: lab.hosts.on(owner))
        ]

    def missing(self) -> dict[str, int]:
        """Node → how many acknowledged documents it has not, once it has had time for that."""
        until = CLOCK.monotonic() + CALM_S_MAX
        while True:
            found = {name: self._missing_at(name) for name in self._names()}
            if not any(found.values()) or CLOCK.monotonic() > until:
                return found
            time.sleep(BEFORE_S)

    def _missing_at(self, name: str) -> int:
        _, body = self._node(name).ask("GET", f"/{self._db}/_all_docs")
        return len(self.acknowledged - {row["id"] for row in json.loads(body)["rows"]})

    def _write(self, via: Http, doc_id: str) -> bool:
        is_good = via.ask("PUT", f"/{self._db}/{doc_id}", "{}")[0] in (201, 202)
        if is_good:
            self.acknowledged.add(doc_id)
        return is_good

    @contextlib.contextmanager
    def _struck(self, name: str) -> Iterator[None]:
        """Kill it; or stop it or cut it off for as long as one is inside, and for the time that was
        asked for.
        """
        if self._what not in (PAUSE, PARTITION):
            os.kill(self._pid(name), signal.SIGKILL)
            yield
            return
        until = CLOCK.monotonic() + self._pause_s
        with self._stopped(name) if self._lab is None else self._lab.cut_off(name):
            yield
            time.sleep(max(until - CLOCK.monotonic(), 0))

    @contextlib.contextmanager
    def _stopped(self, name: str) -> Iterator[None]:
        pid = self._pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _await_owner(self, owner: str, epoch: int, since: float) -> tuple[str | None, float | None]:
        """Who owns the slot now, and after how long; the same one, if it is back before another."""
        if self._what == BOARD:
            return None, None
        deadline = since + max(self._pause_s, BEFORE_S * 10)
        while CLOCK.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException, DataDirError):
                asked = next(n for n in self._names() if not n.startswith(self._slot))
                own = self._status(asked)["owners"][self._slot]
                if own["epoch"] > epoch:
                    return own["name"], CLOCK.monotonic() - since
                if self._what == KILL and self._status(owner)["serves"]:
                    return owner, CLOCK.monotonic() - since
            time.sleep(LOOK_S)
        return None, None

    def _await_calm(self) -> None:
        until = CLOCK.monotonic() + CALM_S_MAX
        while CLOCK.monotonic() < until:
            found = collected(self._data, None)
            if all(node["up"] for node in found["nodes"]):
                return
            time.sleep(BEFORE_S)
        raise DataDirError(f"not all nodes came back within {CALM_S_MAX:g} s")

    # Who is there

    def _nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = collected(self._data, None)["nodes"]
        return [node for node in nodes if node["up"]]

    def _owner(self, nodes: list[dict[str, Any]]) -> str:
        slots = {n["slot"]: n["name"] for n in nodes if n["role"] == MASTER and "slot" in n}
        if self._slot not in slots:
            raise DataDirError(f"there is no slot {self._slot} with a master that is up")
        return str(slots[self._slot])

    def _epoch(self, owner: str) -> int:
        epoch: int = self._status(owner)["owners"][self._slot]["epoch"]
        return epoch

    def _status(self, name: str) -> dict[str, Any]:
        status, body = self._node(name).ask("GET", "/_divan/status")
        if status != 200:
            raise DataDirError(f"{name} answers {status}")
        found: dict[str, Any] = json.loads(body)
        return found

    def _board(self) -> str:
        """The process with the boards."""
        for one in self._cluster.nodes:
            if one.role in BOARDS:
                return one.name
        raise DataDirError("the boards are not run here")

    def _names(self) -> list[str]:
        return [one.name for one in self._cluster.nodes if one.role not in BOARDS]

    def _pid(self, name: str) -> int:
        for one in running(self._data).nodes:
            if one.name == name and one.pid is not None:
                return one.pid
        raise DataDirError(f"{name} does not run here")

    def _node(self, name: str) -> Http:
        url = next(one.url for one in self._cluster.nodes if one.name == name)
        return Http(url, self._admin)

    def _shared(self) -> Http:
        return Http(self._cluster.url, self._admin)


@contextlib.contextmanager
def _all(*beats: Beat) -> Iterator[None]:
    for beat in beats:
        beat.start()
    try:
        yield
    finally:
        for beat in beats:
            beat.end()


@click.command()
@click.argument("what", type=click.Choice([KILL, PAUSE, BOARD, PARTITION]))
@options.data
@options.as_json
@click.option("--slot", default="m1", show_default=True, help="Whose owner is struck.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option(
    "--pause",
    "pause_s",
    type=click.FloatRange(0.1, 3600),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="With `pause` and `partition`: how long it is stopped or cut off.",
)
def drill(what: str, data: Path, as_json: bool, slot: str, rounds: int, pause_s: float) -> None:
    """Kill, pause or cut off the owner of a slot, or kill the board: what do clients notice?

    For a cluster that `divandb up` runs on this machine; it writes to a database of its own.
    `partition` starts a cluster for itself, in network namespaces, and needs root.
    """
    try:
        with _ready(data, what, slot, pause_s) as ready:
            found, missing = _carried_out(ready, rounds, quiet=as_json)
    except (DataDirError, NetnsError, OSError, http.client.HTTPException) as problem:
        raise click.ClickException(str(problem)) from None
    lost = {name: count for name, count in missing.items() if count}
    if as_json:
        rows = [dataclasses.asdict(one) for one in found]
        click.echo(json.dumps({"rounds": rows, "missing": lost}, indent=2))
    else:
        click.echo(_summary(found, lost))
    if lost:
        sys.exit(1)


@contextlib.contextmanager
def _ready(data: Path, what: str, slot: str, pause_s: float) -> Iterator[Drill]:
    if what != PARTITION:
        yield Drill(data, what, slot, pause_s)
        return
    with tempfile.TemporaryDirectory(prefix="divandb-drill-") as folder:
        with lab(Path(folder), LAB_MASTERS, LAB_REPLICAS, limits_from(os.environ)) as made:
            yield Drill(made.folder, what, slot, pause_s, made)


def _carried_out(one: Drill, rounds: int, *, quiet: bool) -> tuple[list[Round], dict[str, int]]:
    one.begin()
    try:
        found = []
        for number in range(1, rounds + 1):
            found.append(one.round(number))
            if not quiet:
                click.echo(f"round {number} of {rounds}: gap {found[-1].gap_ms:g} ms", err=True)
        return found, one.missing()
    finally:
        one.finish()


def _summary(found: list[Round], lost: dict[str, int]) -> str:
    rows = [
        (
            str(number), one.node, f"{one.gap_ms:g}", one.owner or "-",
            "-" if one.owner_after_ms is None else f"{one.owner_after_ms:g}",
            str(one.refused), str(one.reads), str(one.failed_reads),
        )
        for number, one in enumerate(found, 1)
    ]  # fmt: skip
    gaps = sorted(one.gap_ms for one in found)
    middle, high = gaps[len(gaps) // 2], gaps[min(int(len(gaps) * 0.95), len(gaps) - 1)]
    beside = sum(one.cut_off_writes for one in found)
    parts = [
        table([HEAD, *rows]),
        *([f"writes that owners took while they were cut off: {beside}"] if beside else []),
        f"gap between acknowledged writes: p50 {middle:g} ms, p95 {high:g} ms, max {gaps[-1]:g} ms",
        *(f"{name} lacks {count} acknowledged documents" for name, count in lost.items()),
        *([] if lost else ["every node has every document that was acknowledged"]),
    ]
    return "\n".join(parts)
