"""The load: wrk for small requests, a client of our own for large answers and bulk writes.

Every request is authenticated, connections are kept alive, and an answer that is not the expected
one is an error, which fails the run.
"""

import http.client
import itertools
import json
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from bench import documents, proc, stats
from bench.servers import BenchError, Target

Parsed = TypeVar("Parsed")

WRK_TIMEOUT_S = 10
WRK_ENDS_S_MAX = 30
READ_BYTES = 1 << 18
REQUESTS_MIN = 2
"""A round of slow requests lasts until each connection has made so many."""
ERRORS_MAX = 3
"""After so many failures in a row a connection gives up its round."""

DONE_LUA = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'bench {"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "errors": '
      .. '{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""

HISTOGRAM_LUA = """
local done_before = done
function done(summary, latency, requests)
  done_before(summary, latency, requests)
  local parts = {}
  for i = 1, #latency do
    local value, count = latency(i)
    parts[i] = string.format('"%d":%d', value, count)
  end
  io.write('histogram {', table.concat(parts, ','), '}\\n')
end
"""

RANDOM_LUA = """
local requests = {}
function init(args)
  math.randomseed(%(seed)d)
  for id in io.lines(%(ids)s) do
    requests[#requests + 1] = %(before)s .. id .. %(after)s
  end
end
function request()
  return requests[math.random(#requests)]
end
"""

PUT_LUA = """
local count, format, random = 0, string.format, math.random
function init(args)
  math.randomseed(%(seed)d)
end
function request()
  count = count + 1
  return %(before)s
    .. format("%%04x%%04x%%04x%%04x%%08x%%08x", random(0, 65535), random(0, 65535),
              random(0, 65535), random(0, 65535), %(seed)d, count)
    .. %(middle)s .. (%(number)d + count) .. %(after)s
end
"""


class Attempt(Protocol):
    """One request of our own client: sends it, reads all of the answer."""

    def __call__(self, connection: http.client.HTTPConnection) -> str | None:
        """``None`` when the answer was right, else the kind of error."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """What one connection did in a round."""

    latencies_s: Sequence[float]
    seconds: float
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Histogram:
    """A run of wrk with all its latencies: microseconds → requests."""

    load: stats.Load
    counts: Mapping[int, int]


def measured(target: Target, generate: Callable[[], stats.Load]) -> stats.Round:
    """One round with the CPU that both sides spent on it."""
    ours, theirs = _own_cpu_s(), proc.ticks(target.pids)
    load = generate()
    spent = proc.cpu_s_between(theirs, proc.ticks(target.pids)) if target.pids else None
    return stats.Round(load, spent, _own_cpu_s() - ours)


def wrk(target: Target, script: str, connections: int, seconds: int, folder: Path) -> stats.Load:
    """One run of wrk with one thread, which is one core. BenchError when it does not run."""
    ran = _ran_wrk(target, script + DONE_LUA, connections, seconds, folder)
    return _parsed(ran, stats.parse_wrk)


def wrk_histogram(
    target: Target, script: str, connections: int, seconds: int, folder: Path
) -> Histogram:
    """The same, with all latencies, so that runs can be joined."""
    lua = script + DONE_LUA + HISTOGRAM_LUA
    ran = _ran_wrk(target, lua, connections, seconds, folder)
    return Histogram(_parsed(ran, stats.parse_wrk), _parsed(ran, stats.parse_histogram))


def _ran_wrk(
    target: Target, script: str, connections: int, seconds: int, folder: Path
) -> subprocess.CompletedProcess[str]:
    path = folder / "load.lua"
    path.write_text(script)
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--duration", f"{seconds}s", "--timeout", f"{WRK_TIMEOUT_S}s"]
    command += ["--script", str(path), f"http://{target.netloc}/"]
    wait_s = seconds + WRK_ENDS_S_MAX
    return subprocess.run(command, capture_output=True, text=True, timeout=wait_s)


def _parsed(ran: subprocess.CompletedProcess[str], parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(ran.stdout)
    except ValueError as error:
        raise BenchError(f"{error}{ran.stderr}") from error


def require_wrk() -> None:
    """BenchError with a remedy when wrk is missing."""
    if shutil.which("wrk") is None:
        raise BenchError("wrk is missing: apt-get install wrk")


def get_script(target: Target, path: str) -> str:
    """The same GET again and again: a ready request."""
    ready = lua(head(target, "GET ", path))
    return f"local ready = {ready}\nfunction request() return ready end\n"


def random_script(target: Target, db: str, ids_file: Path, seed: int) -> str:
    """GETs of documents drawn from the ids in ``ids_file``, a line each."""
    before, after = f"GET /{db}/", head(target, "", "")
    names = {"before": lua(before), "after": lua(after), "ids": lua(str(ids_file))}
    return RANDOM_LUA % {**names, "seed": seed}


def put_script(target: Target, db: str, body: tuple[bytes, bytes], seed: int) -> str:
    """PUTs of new documents: 16 random hex digits, ``seed``, and a count, so none comes twice."""
    before, after = (part.decode() for part in body)
    sent = {
        "Content-Type": "application/json",
        "Content-Length": str(len(before) + 8 + len(after)),
    }
    return PUT_LUA % {
        "before": lua(f"PUT /{db}/"),
        "middle": lua(head(target, "", "", sent) + before),
        "after": lua(after),
        "number": documents.NUMBER_FIRST,
        "seed": seed,
    }


def feed(target: Target, path: str, bytes_min: int) -> Attempt:
    """GETs of a large answer: counted by its bytes and thrown away unparsed."""
    buffer = memoryview(bytearray(READ_BYTES))

    def attempt(connection: http.client.HTTPConnection) -> str | None:
        connection.request("GET", path, headers=target.headers)
        answer = connection.getresponse()
        received = 0
        while count := answer.readinto(buffer):
            received += count
        if answer.status != 200:
            return "status"
        return None if received >= bytes_min else "short"

    return attempt


def bulk(target: Target, db: str, bodies: Iterator[bytes], docs: int) -> Attempt:
    """``_bulk_docs`` with the next of ``bodies``; each must be accepted in all its documents."""
    headers = target.headers | {"Content-Type": "application/json"}

    def attempt(connection: http.client.HTTPConnection) -> str | None:
        connection.request("POST", f"/{db}/_bulk_docs", next(bodies), headers)
        answer = connection.getresponse()
        received = answer.read()
        if answer.status != 201:
            return "status"
        return None if received.count(b'"rev":') == docs else "refused"

    return attempt


def question(target: Target, path: str, bodies: Iterator[bytes], member: str) -> Attempt:
    """POSTs of the next of ``bodies``, answered with a list under ``member``, in which something
    must be.
    """
    headers = target.headers | {"Content-Type": "application/json"}

    def attempt(connection: http.client.HTTPConnection) -> str | None:
        connection.request("POST", path, next(bodies), headers)
        answer = connection.getresponse()
        received = answer.read()
        if answer.status != 200:
            return "status"
        return None if json.loads(received)[member] else "nothing"

    return attempt


def in_parallel(target: Target, attempts: Sequence[Attempt], seconds: float) -> stats.Load:
    """A connection for each of ``attempts``, each asking again as soon as it has its answer."""
    with ThreadPoolExecutor(len(attempts)) as pool:
        shares = list(pool.map(lambda attempt: _share(target, attempt, seconds), attempts))
    return joined(shares)


def joined(shares: Sequence[Share]) -> stats.Load:
    """Connections end at different times, so their rates are added, not their counts."""
    errors = stats.add_up(share.errors for share in shares)
    latencies_s = list(itertools.chain.from_iterable(share.latencies_s for share in shares))
    if not latencies_s:
        raise BenchError(f"no request succeeded: {errors}")
    rate = sum(len(share.latencies_s) / share.seconds for share in shares)
    return stats.Load(
        requests=len(latencies_s),
        seconds=len(latencies_s) / rate,
        p50_us=stats.percentile(latencies_s, 50) * 1e6,
        p99_us=stats.percentile(latencies_s, 99) * 1e6,
        errors=errors,
    )


def _share(target: Target, attempt: Attempt, seconds: float) -> Share:
    latencies_s: list[float] = []
    errors: list[str] = []
    connection = target.connect()
    start = time.perf_counter()
    now = start
    try:
        while now - start < seconds or len(latencies_s) + len(errors) < REQUESTS_MIN:
            error = _tried(attempt, connection)
            before, now = now, time.perf_counter()
            if error is None:
                latencies_s.append(now - before)
                continue
            errors.append(error)
            if len(errors) >= ERRORS_MAX:
                break
    finally:
        connection.close()
    return Share(latencies_s, now - start, stats.add_up({kind: 1} for kind in errors))


def _tried(attempt: Attempt, connection: http.client.HTTPConnection) -> str | None:
    try:
        return attempt(connection)
    except (OSError, http.client.HTTPException) as error:
        # The next request opens a new connection.
        connection.close()
        return type(error).__name__


def raw(target: Target, request: str) -> bytes:
    """The whole answer to one request as a script sends it, on a connection of its own."""
    connection = socket.create_connection((target.host, target.port), WRK_TIMEOUT_S)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(request.encode())
        parts = []
        while (line := answer.readline()) not in (b"\r\n", b""):
            parts.append(line)
        lengths = [x.partition(b":")[2] for x in parts if x.lower().startswith(b"content-length:")]
        body = answer.read(int(lengths[0])) if lengths else answer.readline() + answer.readline()
        return b"".join(parts) + b"\r\n" + body


def head(target: Target, method: str, path: str, more: Mapping[str, str] | None = None) -> str:
    """A request from ``path`` to the empty line."""
    headers = {"Host": target.netloc} | target.headers | dict(more or {})
    lines = [f"{method}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""])


def lua(text: str) -> str:
    """A string literal: JSON's, which is Lua's too as long as the text is ASCII and printable."""
    return json.dumps(text)


def _own_cpu_s() -> float:
    """CPU seconds of this process and of the wrks that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)
