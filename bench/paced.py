"""PUTs of new documents at a rate, in a process of their own: ``python -m bench.paced``.

An open loop over few connections: a write is due at its time whether or not earlier ones were
answered, waits for a free connection if none is, and its latency counts from when it was due.
Without a rate it is a closed loop: each connection writes again as soon as it has its answer.

The plan comes as JSON on stdin, the outcome goes as JSON to stdout. Plain sockets and ``select``,
which waits with microseconds where ``epoll`` waits with milliseconds, because the client's CPU is
taken from the servers.
"""

import json
import math
import random
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from bench import documents, stats
from bench.apart import Apart
from bench.servers import BenchError, Target

ANSWER_S_MAX = 30.0
READ_BYTES = 1 << 16
ENDS_S_MAX = 60.0
"""So long after its time a process may still wait for answers, and start and end."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send; ``rate`` is writes a second, ``None`` as many as are answered."""

    host: str
    port: int
    authorization: str
    db: str
    connections: int
    seconds: float
    rate: float | None
    doc_bytes: int
    seed: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan. Latencies are milliseconds from when a write was due."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float
    """The CPU of the process, its start included."""
    unsent: int
    """Writes that were due and never found a free connection."""
    errors: dict[str, int] = field(default_factory=dict)


def plan_for(target: Target, db: str, seed: str, doc_bytes: int, connections: int) -> Plan:
    """A closed loop of one second: ``dataclasses.replace`` makes others of it."""
    return Plan(
        target.host, target.port, target.authorization, db, connections, 1.0, None, doc_bytes, seed
    )


class Running:
    """A process that carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._wait_s_max = plan.seconds + ENDS_S_MAX
        self._apart = Apart("bench.paced", "load generator", asdict(plan))

    def outcome(self) -> Outcome:
        """Waits for the end. BenchError when it has no outcome."""
        return Outcome(**self._apart.outcome(self._wait_s_max))

    def kill(self) -> None:
        """Ends the process if it has not ended."""
        self._apart.kill()


class Connection:
    """One kept-alive connection with at most one request under way."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._received = b""
        self.due = self.sent = 0.0
        """When the request under way was due, and when it was sent."""
        self._open()

    def _open(self) -> None:
        self.socket = socket.create_connection(self._address, ANSWER_S_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def fileno(self) -> int:
        """For ``select``."""
        return self.socket.fileno()

    def send(self, request: bytes, due: float) -> None:
        """Sends a request that was due at that time."""
        self.due, self.sent = due, time.perf_counter()
        self.socket.sendall(request)

    def close(self) -> None:
        """Leave it."""
        self.socket.close()

    def read(self) -> bytes:
        """What has come; nothing once the connection is closed."""
        try:
            return self.socket.recv(READ_BYTES)
        except ConnectionError:
            return b""

    def receive(self) -> int | None:
        """The status once the whole answer is there, 0 when the connection was closed instead and
        is open again.
        """
        data = self.read()
        if not data:
            self.socket.close()
            self._open()
            return 0
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return None
        self._received = b""
        return int(head[9:12])


def requests(plan: Plan) -> Iterator[bytes]:
    """PUTs of new documents without end, ids as evenly spread as random uuids."""
    rng = random.Random(plan.seed)
    head, tail = documents.body_around_number(rng, plan.doc_bytes)
    before = f"PUT /{plan.db}/".encode()
    after = (
        f" HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nAuthorization: {plan.authorization}\r\n"
        "Accept: application/json\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(head) + 8 + len(tail)}\r\n\r\n"
    ).encode() + head
    number = documents.NUMBER_FIRST
    while True:
        yield b"%b%b%b%d%b" % (before, rng.randbytes(16).hex().encode(), after, number, tail)
        number += 1


class Sender:
    """The loop over all connections of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = requests(plan)
        self._idle = deque(Connection(plan.host, plan.port) for _ in range(plan.connections))
        self._busy: set[Connection] = set()
        self._sent = 0
        self._latencies_s: list[float] = []
        self._errors: list[str] = []

    def run(self) -> Outcome:
        """Sends what the plan says, and waits for every answer."""
        start = now = time.perf_counter()
        end = start + self._plan.seconds
        while now < end or self._busy:
            due = self._send(start, now) if now < end else math.inf
            self._listen(min(due, end) if self._idle and now < end else now + ANSWER_S_MAX)
            now = time.perf_counter()
        return self._outcome(now - start)

    def _send(self, start: float, now: float) -> float:
        """Sends what is due, as far as connections are free; when the next is due."""
        due = self._due(start, now)
        while self._idle and due <= now:
            one = self._idle.popleft()
            one.send(next(self._requests), due)
            self._busy.add(one)
            self._sent += 1
            due = self._due(start, now)
        return due

    def _due(self, start: float, now: float) -> float:
        rate = self._plan.rate
        return now if rate is None else start + self._sent / rate

    def _listen(self, until: float) -> None:
        wait_s = max(until - time.perf_counter(), 0.0)
        heard = select.select(self._busy, (), (), wait_s)[0]
        now = time.perf_counter()
        if any(now - one.sent > ANSWER_S_MAX for one in self._busy):
            raise BenchError(f"no answer in {ANSWER_S_MAX} s")
        for one in heard:
            status = one.receive()
            if status is None:
                continue
            self._busy.remove(one)
            self._idle.append(one)
            if status == 201:
                self._latencies_s.append(now - one.due)
            else:
                self._errors.append(str(status or "closed"))

    def _outcome(self, seconds: float) -> Outcome:
        errors = stats.add_up({kind: 1} for kind in self._errors)
        if not self._latencies_s:
            raise BenchError(f"no write succeeded: {errors}")
        asked = int((self._plan.rate or 0.0) * self._plan.seconds)
        return Outcome(
            requests=len(self._latencies_s),
            seconds=seconds,
            p50_ms=stats.percentile(self._latencies_s, 50) * 1e3,
            p99_ms=stats.percentile(self._latencies_s, 99) * 1e3,
            cpu_s=time.process_time(),
            unsent=max(asked - self._sent, 0),
            errors=errors,
        )


if __name__ == "__main__":
    print(json.dumps(asdict(Sender(Plan(**json.loads(sys.stdin.readline()))).run())))
