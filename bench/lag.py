"""How long after its answer a write can be seen on other nodes.

Marks are new documents in a database of their own, so that a feed of it costs the nodes next to
nothing however much is written beside. Each is written through one node; the moment its answer has
been read is compared with the moments at which its line has been read from ``_changes`` feeds
(``feed=continuous``) of other nodes: one process, one clock, one ``select``. What is seen before it
is answered has a lag of 0.

What the feed adds to the lag (waking, reading, a line, the client's turn on a core) is measured,
too: marks written through a master, seen in that master's own feed, are in its file before they are
answered.
"""

import re
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.paced import Connection, Plan, requests
from bench.servers import MASTER, REPLICA, BenchError, Member

KINDS = SAME, OTHER, ITSELF = "same group", "another group", "the same master"
SEEN_S_MAX = 10.0
"""A mark that some feed has not shown so long after the last one was written is lost."""
ID_BYTES = 32
ID_BYTES_MAX = 64
"""What is kept of a line that has not wholly come: more than an id and its name."""
_ID = re.compile(rb'"id":"([0-9a-f]{32})"')


@dataclass(frozen=True, slots=True)
class Lags:
    """Milliseconds by kind; ``skipped``: marks that were due while the one before had no answer."""

    by_kind: Mapping[str, Sequence[float]]
    skipped: int


@dataclass(slots=True)
class Mark:
    """One mark: where it is looked for, when it was answered, and when it was seen, by reader."""

    kinds: dict[str, str]
    """Name of a reading node → ``SAME``, ``OTHER`` or ``ITSELF``."""
    answered: float | None = None
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Was it answered, and seen everywhere?"""
        return self.answered is not None and len(self.seen) == len(self.kinds)

    def lags_ms(self) -> dict[str, list[float]]:
        """Milliseconds from answer to sight, by kind."""
        found: dict[str, list[float]] = {}
        if self.answered is not None:
            for name, kind in self.kinds.items():
                if name in self.seen:
                    lag_ms = max(self.seen[name] - self.answered, 0.0) * 1e3
                    found.setdefault(kind, []).append(lag_ms)
        return found


class Feed:
    """One node's ``_changes`` of the marks."""

    def __init__(self, node: Member, db: str) -> None:
        self.name = node.name
        self._buffer = b""
        self._connection = Connection(node.target.host, node.target.port)
        path = f"/{db}/_changes?feed=continuous&heartbeat=30000"
        head = "".join(f"{name}: {value}\r\n" for name, value in node.target.headers.items())
        ask = f"GET {path} HTTP/1.1\r\nHost: {node.target.netloc}\r\n{head}\r\n"
        self._connection.socket.sendall(ask.encode())

    def fileno(self) -> int:
        """For ``select``."""
        return self._connection.fileno()

    def ids(self) -> list[bytes]:
        """The marks in what has come. BenchError when the feed has ended."""
        data = self._connection.read()
        if not data:
            raise BenchError(f"{self.name} has closed its feed")
        self._buffer += data
        found = _ID.findall(self._buffer)
        end = self._buffer.rfind(found[-1]) + len(found[-1]) if found else 0
        self._buffer = self._buffer[end:][-ID_BYTES_MAX:]
        return found

    def close(self) -> None:
        """Leave it."""
        self._connection.close()


class Writer:
    """One node through which marks are written, one at a time."""

    def __init__(self, node: Member, kinds: dict[str, str], plan: Plan) -> None:
        here = replace(plan, host=node.target.host, port=node.target.port)
        self._requests = requests(replace(here, seed=f"{plan.seed} {node.name}"))
        self._before = len(f"PUT /{plan.db}/")
        self._kinds = kinds
        self._connection = Connection(here.host, here.port)
        self._mark: Mark | None = None

    @property
    def is_busy(self) -> bool:
        """Is a mark without its answer?"""
        return self._mark is not None

    def fileno(self) -> int:
        """For ``select``."""
        return self._connection.fileno()

    def write(self) -> tuple[bytes, Mark]:
        """Send the next mark; its id."""
        request = next(self._requests)
        self._mark = Mark(self._kinds)
        self._connection.send(request, 0.0)
        return request[self._before : self._before + ID_BYTES], self._mark

    def receive(self, now: float) -> None:
        """Take note of an answer. BenchError when it is not the right one."""
        status = self._connection.receive()
        if status is None:
            return
        if status != 201 or self._mark is None:
            raise BenchError(f"a mark was answered with {status}")
        self._mark.answered = now
        self._mark = None

    def close(self) -> None:
        """Leave it."""
        self._connection.close()


class Probe:
    """Marks through each group in turn and through a master; feeds at a replica of each group and
    at that master.
    """

    def __init__(self, nodes: Sequence[Member], plan: Plan) -> None:
        """``plan`` has the database and the documents; marks are written through the first replica
        of a group, and looked for at the last.
        """
        masters = [node for node in nodes if node.role == MASTER]
        groups = {
            master.slot: [n for n in nodes if n.slot == master.slot and n.role == REPLICA]
            for master in masters
        }
        readers = {slot: replicas[-1] for slot, replicas in groups.items()}
        self._writers = [Writer(masters[0], {masters[0].name: ITSELF}, plan)]
        for slot, replicas in groups.items():
            kinds = {one.name: SAME if at == slot else OTHER for at, one in readers.items()}
            self._writers.append(Writer(replicas[0], kinds, plan))
        self._feeds = [Feed(node, plan.db) for node in (masters[0], *readers.values())]
        self._marks: dict[bytes, Mark] = {}

    def close(self) -> None:
        """Leave all connections."""
        for writer in self._writers:
            writer.close()
        for feed in self._feeds:
            feed.close()

    def warm_up(self) -> None:
        """A mark through each node, seen everywhere: what a first time costs is not measured."""
        for writer in self._writers:
            self._write(writer)
        self._collect()

    def run(self, seconds: float, marks_per_s: float) -> Lags:
        """Marks at an even pace. BenchError when one is not seen in time."""
        self._marks.clear()
        start = now = time.perf_counter()
        written, skipped = 0, 0
        while now - start < seconds:
            due = start + (written + skipped) / marks_per_s
            if now >= due:
                writer = self._writers[(written + skipped) % len(self._writers)]
                if writer.is_busy:
                    skipped += 1
                else:
                    self._write(writer)
                    written += 1
            else:
                self._listen(due - now)
            now = time.perf_counter()
        self._collect()
        return self._lags(skipped)

    def _write(self, writer: Writer) -> None:
        name, mark = writer.write()
        self._marks[name] = mark

    def _collect(self) -> None:
        until = time.perf_counter() + SEEN_S_MAX
        while not all(mark.is_complete for mark in self._marks.values()):
            if time.perf_counter() > until:
                lost = sum(not mark.is_complete for mark in self._marks.values())
                raise BenchError(f"{lost} marks were not seen within {SEEN_S_MAX} s")
            self._listen(0.1)

    def _listen(self, wait_s: float) -> None:
        everybody: list[Writer | Feed] = [*self._writers, *self._feeds]
        heard = select.select(everybody, (), (), wait_s)[0]
        now = time.perf_counter()
        for one in heard:
            if isinstance(one, Writer):
                one.receive(now)
            else:
                self._see(one, now)

    def _see(self, feed: Feed, now: float) -> None:
        for name in feed.ids():
            mark = self._marks.get(name)
            if mark is not None and feed.name in mark.kinds:
                mark.seen.setdefault(feed.name, now)

    def _lags(self, skipped: int) -> Lags:
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for mark in self._marks.values():
            for kind, lags_ms in mark.lags_ms().items():
                found[kind] += lags_ms
        return Lags(found, skipped)
