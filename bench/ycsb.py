"""The work of YCSB, as load for wrk and redis-benchmark.

Keys are drawn by a zipfian law beforehand and read from a file: drawing costs the generator
nothing. A writer of a server with revisions keeps them from the answers, and writes no document
whose last write has no answer yet: the work has no conflicts.
"""

import base64
import csv
import json
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from bench import load, stats
from bench.servers import BenchError, Target

ZIPF = 0.99
"""YCSB's constant."""
DRAWS = 200_000
READ_SHARES: Mapping[str, float] = {"A": 0.5, "B": 0.95, "C": 1.0}
"""YCSB's core workloads whose requests stand alone: the rest are updates of whole documents."""
TRIAL_REQUESTS = 4_000
REDIS_WAIT_S = 60

MIXED_LUA = """
local keys, reads, at, read_share = {}, {}, 0, %(read_share)f
local random = math.random
function init(args)
  math.randomseed(%(seed)d)
  for key in io.lines(%(draws)s) do
    keys[#keys + 1] = key
    reads[key] = %(read_before)s .. key .. %(read_after)s
  end
  at = random(#keys)
  if start then start() end
end
function draw()
  at = at %% #keys + 1
  return keys[at]
end
function request()
  if read_share == 1 or random() < read_share then return reads[draw()] end
  return write()
end
"""

PLAIN_LUA = """
function write()
  return %(write_before)s .. draw() .. %(write_after)s
end
"""

REVISED_LUA = """
local revs, busy = {}, {}
function start()
  for line in io.lines(%(revs)s) do
    local id, rev = line:match('(%%S+) (%%S+)')
    revs[id] = rev
  end
end
function write()
  local key = draw()
  while busy[key] do key = draw() end
  busy[key] = true
  return %(write_before)s .. key .. '?rev=' .. revs[key] .. %(write_after)s
end
function response(status, headers, body)
  local id, rev = body:match('^{"ok":true,"id":"([^"]+)","rev":"([^"]+)"')
  if id then revs[id] = rev; busy[id] = nil end
end
"""


@dataclass(frozen=True, slots=True)
class Speech:
    """How a server is asked: what stands before and after a key in a read and in a write. ``name``
    gives the form of a key; ``db``: it wants revisions, of the documents in this database.
    """

    read: tuple[str, str]
    write: tuple[str, str]
    keys: Sequence[str]
    db: str | None = None


def draws(rng: random.Random, keys: Sequence[str], count: int = DRAWS) -> list[str]:
    """``count`` keys, the first of ``keys`` most often."""
    weights = list(accumulate(1 / rank**ZIPF for rank in range(1, len(keys) + 1)))
    return rng.choices(keys, cum_weights=weights, k=count)


def get_speech(target: Target, db: str, keys: Sequence[str], body: bytes) -> Speech:
    """CouchDB's way, and that of a web server for its files."""
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Speech(
        (f"GET /{db}/", load.head(target, "", "")),
        (f"PUT /{db}/", load.head(target, "", "", sent) + body.decode()),
        keys,
        db,
    )


def post_speech(
    target: Target, read: tuple[str, str, str], write: tuple[str, str, str], keys: Sequence[str]
) -> Speech:
    """A path, and what stands in the body before and after the key, for each kind of request. All
    keys are of one length.
    """
    return Speech(_post(target, *read, len(keys[0])), _post(target, *write, len(keys[0])), keys)


def check(target: Target, speech: Speech, body: bytes) -> None:
    """BenchError unless a read of the first key answers with that document, and a write is taken
    where it needs no revision.
    """
    seen = load.raw(target, speech.read[0] + speech.keys[0] + speech.read[1])
    wanted = (body[1:], base64.b64encode(body), json.dumps(body.decode())[1:-1].encode())
    if not any(form in seen for form in wanted):
        raise BenchError(f"{target.name} answers another document: {seen[:500]!r}")
    if speech.db is None:
        done = load.raw(target, speech.write[0] + speech.keys[0] + speech.write[1])
        if b" 200 OK" not in done[:20] or b'"error"' in done:
            raise BenchError(f"{target.name} refuses a write: {done[:500]!r}")


def _post(target: Target, path: str, before: str, after: str, key_bytes: int) -> tuple[str, str]:
    length = len(before.encode()) + key_bytes + len(after.encode())
    sent = {"Content-Type": "application/json", "Content-Length": str(length)}
    return load.head(target, "POST ", path, sent) + before, after


def with_wrk(
    target: Target, speech: Speech, work: str, turn: int, size: "Size", folder: Path
) -> stats.Round:
    """One round. The revisions are asked for before it begins."""
    share = READ_SHARES[work]
    names = {"draws": load.lua(str(folder / "draws")), "seed": turn, "read_share": share}
    names |= {f"read_{k}": load.lua(v) for k, v in _around(speech.read)}
    names |= {f"write_{k}": load.lua(v) for k, v in _around(speech.write)}
    rng = random.Random(f"{work} {turn}")
    (folder / "draws").write_text("\n".join(draws(rng, speech.keys)) + "\n")
    script = MIXED_LUA % names
    if share < 1 and speech.db is not None:
        (folder / "revs").write_text(_revisions(target, speech.db))
        script += REVISED_LUA % {**names, "revs": load.lua(str(folder / "revs"))}
    elif share < 1:
        script += PLAIN_LUA % names
    return load.measured(
        target, lambda: load.wrk(target, script, size.connections, size.seconds, folder)
    )


@dataclass(frozen=True, slots=True)
class Size:
    """Of one round."""

    connections: int
    seconds: int


def with_redis_benchmark(
    target: Target, docs: int, doc_bytes: int, work: str, size: Size
) -> stats.Round:
    """One round: a redis-benchmark for reads and one for writes side by side, which share the
    connections; a short trial says how many requests fill the time.
    """
    parts = redis_parts(READ_SHARES[work], size.connections)
    trial = _redis_load(target, docs, doc_bytes, parts, TRIAL_REQUESTS)
    count = max(int(trial.requests / trial.seconds * size.seconds), TRIAL_REQUESTS)
    return load.measured(target, lambda: _redis_load(target, docs, doc_bytes, parts, count))


def redis_parts(read_share: float, connections: int) -> list[tuple[str, int]]:
    """Command and connections of each redis-benchmark; one connection each is the least."""
    writing = 0 if read_share == 1 else max(round(connections * (1 - read_share)), 1)
    parts = [("GET", connections - writing), ("SET", writing)]
    return [part for part in parts if part[1]]


def _redis_load(
    target: Target, docs: int, doc_bytes: int, parts: Sequence[tuple[str, int]], count: int
) -> stats.Load:
    total = sum(share for _, share in parts)

    def one(part: tuple[str, int]) -> stats.Load:
        command, connections = part
        requests = max(count * connections // total, 1)
        options = ["-h", target.host, "-p", str(target.port), "-r", str(docs), "--csv"]
        options += ["-c", str(connections), "-n", str(requests)]
        options += ["-t", command.lower(), "-d", str(doc_bytes)]
        ran = subprocess.run(
            ["redis-benchmark", *options],
            capture_output=True,
            text=True,
            timeout=REDIS_WAIT_S,
        )
        return parse_redis(ran.stdout, requests)

    with ThreadPoolExecutor(len(parts)) as pool:
        return together(list(pool.map(one, parts)))


def parse_redis(output: str, requests: int) -> stats.Load:
    """What ``redis-benchmark --csv`` printed. BenchError when it holds no result."""
    rows = list(csv.DictReader(output.splitlines()))
    if not rows or not rows[-1].get("rps"):
        raise BenchError(f"redis-benchmark gave no result:\n{output}")
    row = rows[-1]
    p50_us, p99_us = (float(row[f"p{p}_latency_ms"]) * 1e3 for p in (50, 99))
    return stats.Load(requests, requests / float(row["rps"]), p50_us, p99_us, {})


def together(loads: Sequence[stats.Load]) -> stats.Load:
    """Loads that ran side by side: rates are added; of latencies, the worst p99, and the p50
    weighed by requests.
    """
    requests = sum(one.requests for one in loads)
    rate = sum(one.requests / one.seconds for one in loads)
    p50_us = sum(one.p50_us * one.requests for one in loads) / requests
    errors = stats.add_up(one.errors for one in loads)
    return stats.Load(requests, requests / rate, p50_us, max(one.p99_us for one in loads), errors)


def _revisions(target: Target, db: str) -> str:
    """A line of id and revision for each document, once the last round's writes are through."""
    time.sleep(0.3)
    rows = json.loads(target.expect([200], "GET", f"/{db}/_all_docs"))["rows"]
    return "".join(f"{row['id']} {row['value']['rev']}\n" for row in rows)


def _around(parts: tuple[str, str]) -> list[tuple[str, str]]:
    return list(zip(("before", "after"), parts, strict=True))
