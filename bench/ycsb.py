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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from bench import load, stats
from bench.servers import BenchError, Target

ZIPF = 0.99
"""YCSB's constant."""
DRAWS = 200_000
SCAN_ROWS_MAX = 100
TRIAL_REQUESTS = 4_000
REDIS_WAIT_S = 60
NEW_KEYS = 10**12
"""redis-benchmark draws keys below this where they are to be new ones."""


@dataclass(frozen=True, slots=True)
class Work:
    """One of YCSB's core workloads. Shares of requests; the rest are updates of whole documents.

    ``latest``: what was inserted last is read most. ``modify``: a read whose answer is followed by
    an update of what was read; they count as two requests.
    """

    what: str
    read: float = 0.0
    insert: float = 0.0
    scan: float = 0.0
    modify: float = 0.0
    latest: bool = False

    @property
    def reads_of_all(self) -> float:
        """The share of requests that only read, for a generator that knows no order."""
        return (self.read + self.scan + self.modify) / (1 + self.modify)


WORKS: Mapping[str, Work] = {
    "A": Work("50% reads", read=0.5),
    "B": Work("95% reads", read=0.95),
    "C": Work("100% reads", read=1.0),
    "D": Work("95% reads of the latest", read=0.95, insert=0.05, latest=True),
    "E": Work("95% scans", scan=0.95, insert=0.05),
    "F": Work("50% read-modify-write", read=0.5, modify=0.5),
}

MIXED_LUA = """
local keys, ranks, reads, busy, revs = {}, {}, {}, {}, {}
local due, due_first, due_last = {}, 1, 0
local sent, sent_first, sent_last = {}, 1, 0
local at = 0
local random, format = math.random, string.format
local read, insert, scan, modify = %(read)f, %(insert)f, %(scan)f, %(modify)f
local latest, revised = %(latest)s, %(revised)s
function init(args)
  math.randomseed(%(seed)d)
  for key in io.lines(%(keys)s) do keys[#keys + 1] = key end
  for rank in io.lines(%(draws)s) do ranks[#ranks + 1] = tonumber(rank) end
  at = random(#ranks)
  for line in io.lines(%(revs)s) do
    local id, rev = line:match('(%%S+) (%%S+)')
    revs[id] = rev
  end
end
local function draw()
  at = at %% #ranks + 1
  if latest then return keys[#keys - ranks[at]] end
  return keys[ranks[at] + 1]
end
local function take()
  local key = draw()
  while busy[key] do key = draw() end
  busy[key] = 'asked'
  return key
end
local function get(key)
  local made = reads[key]
  if not made then
    made = %(read_before)s .. key .. %(read_after)s
    reads[key] = made
  end
  return made
end
local function put(key)
  local rev = revs[key]
  return %(write_before)s .. key .. (rev and '?rev=' .. rev or '') .. %(write_after)s
end
local function new_key()
  local key = ''
  for _ = 1, %(new_digits)d / 4 do key = key .. format('%%04x', random(0, 65535)) end
  return key .. %(new_after)s
end
function request()
  if due_first <= due_last then
    local key = due[due_first]
    due[due_first] = nil
    due_first = due_first + 1
    if not revised then busy[key] = nil end
    return put(key)
  end
  local what = random()
  if what < read then return get(draw()) end
  if what < read + scan then
    return %(scan_before)s .. draw() .. format(%(scan_between)s, random(%(rows)d)) .. %(scan_after)s
  end
  if what < read + scan + modify then return get(take()) end
  if what < read + scan + modify + insert then
    local key = new_key()
    sent_last = sent_last + 1
    sent[sent_last] = key
    return %(insert_before)s .. key .. %(insert_after)s
  end
  return put(revised and take() or draw())
end
"""

REVISED_LUA = """
function response(status, headers, body)
  local key, rev = body:match(%(done)s)
  if key then revs[key] = rev; busy[key] = nil end
end
"""
"""For updates of a server with revisions, which are known beforehand."""

MODIFY_LUA = """
function response(status, headers, body)
  local key, rev = body:match(%(seen)s)
  if key then
    if busy[key] == 'asked' then
      busy[key] = 'due'
      revs[key] = rev
      due_last = due_last + 1
      due[due_last] = key
    end
  elseif revised then
    key = body:match(%(done)s)
    if key then busy[key] = nil end
  end
end
"""
"""What was read is updated next."""

LATEST_LUA = """
function response(status, headers, body)
  local key = body:match(%(done)s)
  if key and sent_first <= sent_last then
    keys[#keys + 1] = revised and key or sent[sent_first]
    sent[sent_first] = nil
    sent_first = sent_first + 1
  end
end
"""
"""Where an answer names no key, the oldest insert without one is taken for the one answered."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of one round."""

    connections: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Speech:
    """How a server is asked: what stands before and after a key in each kind of request, and in a
    scan before the key, between it and the end (a form for the number of rows), and at the end.
    """

    read: tuple[str, str]
    write: tuple[str, str]
    insert: tuple[str, str]
    scan: tuple[str, str, str]
    seen: str
    """Lua's pattern of an answer to a read: the key, and the revision where there is one."""
    done: str
    """Of an answer to a write, and of no other; the same."""
    keys: Sequence[str]
    new_key: tuple[int, str]
    """Random hex digits of a new key, and what follows them."""
    db: str | None = None
    """It wants revisions, of the documents in this database."""


def ranks(rng: random.Random, keys: int, count: int = DRAWS) -> list[int]:
    """``count`` numbers below ``keys``, 0 most often."""
    weights = list(accumulate(1 / rank**ZIPF for rank in range(1, keys + 1)))
    return rng.choices(range(keys), cum_weights=weights, k=count)


def get_speech(target: Target, db: str, keys: Sequence[str], body: bytes) -> Speech:
    """CouchDB's way, and that of a web server for its files."""
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    write = (f"PUT /{db}/", load.head(target, "", "", sent) + body.decode())
    rows = f"GET /{db}/_all_docs?include_docs=true&startkey=%22"
    return Speech(
        read=(f"GET /{db}/", load.head(target, "", "")),
        write=write,
        insert=write,
        scan=(rows, "%%22&limit=%d", load.head(target, "", "")),
        seen='^{"_id":"([^"]+)","_rev":"([^"]+)"',
        done='^{"ok":true,"id":"([^"]+)","rev":"([^"]+)"',
        keys=keys,
        new_key=(32, ""),
        db=db,
    )


@dataclass(frozen=True, slots=True)
class Post:
    """A kind of request that is a POST: its path, and what stands in the body around the key.
    ``between`` is a form of constant width for a number of rows; empty where there is none.
    """

    path: str
    before: str
    after: str
    between: str = ""


def post_speech(
    target: Target, read: Post, write: Post, insert: Post, scan: Post, patterns: tuple[str, str],
    keys: Sequence[str], new_key: tuple[int, str],
) -> Speech:  # fmt: skip
    """``patterns`` are ``seen`` and ``done``. All keys are of one length."""
    reads, writes, inserts, scans = (
        _post(target, one, len(keys[0])) for one in (read, write, insert, scan)
    )
    seen, done = patterns
    scanned = (scans[0], scan.between, scans[1])
    return Speech(reads, writes, inserts, scanned, seen, done, keys, new_key)


def check(target: Target, speech: Speech, body: bytes, works: Iterable[str]) -> None:
    """BenchError unless a read of the first key answers with that document, a write is taken where
    it needs no revision, and rows are given where ``works`` scan.
    """
    first = speech.keys[0]
    seen = load.raw(target, first.join(speech.read))
    wanted = (body[1:], base64.b64encode(body), json.dumps(body.decode())[1:-1].encode())
    if not any(form in seen for form in wanted):
        raise BenchError(f"{target.name} answers another document: {seen[:500]!r}")
    if speech.db is None:
        done = load.raw(target, first.join(speech.write))
        if b" 200 OK" not in done[:20] or b'"error"' in done:
            raise BenchError(f"{target.name} refuses a write: {done[:500]!r}")
    if any(WORKS[work].scan for work in works):
        before, between, after = speech.scan
        rows = load.raw(target, before + first + between % 2 + after)
        if b" 200 OK" not in rows[:20] or rows.partition(b"\r\n\r\n")[2].count(first.encode()) < 1:
            raise BenchError(f"{target.name} gives no rows: {rows[:500]!r}")


def _post(target: Target, kind: Post, key_bytes: int) -> tuple[str, str]:
    between = kind.between % 1 if kind.between else ""
    length = len((kind.before + between + kind.after).encode()) + key_bytes
    sent = {"Content-Type": "application/json", "Content-Length": str(length)}
    return load.head(target, "POST ", kind.path, sent) + kind.before, kind.after


def with_wrk(
    target: Target, speech: Speech, work: str, turn: int, size: Size, folder: Path
) -> stats.Round:
    """One round. The revisions are asked for before it begins."""
    rng = random.Random(f"{work} {turn}")
    files = {
        "keys": "".join(f"{key}\n" for key in speech.keys),
        "draws": "".join(f"{rank}\n" for rank in ranks(rng, len(speech.keys))),
        "revs": _revisions(target, speech.db) if speech.db and updates(WORKS[work]) else "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    script = script_of(speech, WORKS[work], turn, {n: str(folder / n) for n in files})
    return load.measured(
        target, lambda: load.wrk(target, script, size.connections, size.seconds, folder)
    )


def updates(work: Work) -> bool:
    """Are there updates of documents that were not read before?"""
    return work.read + work.insert + work.scan + work.modify < 1


def script_of(speech: Speech, work: Work, turn: int, files: Mapping[str, str]) -> str:
    """wrk's script for one round; ``files`` are the paths of keys, draws and revisions."""
    texts = {f"{kind}_before": pair[0] for kind, pair in _pairs(speech)}
    texts |= {f"{kind}_after": pair[1] for kind, pair in _pairs(speech)}
    before, between, after = speech.scan
    texts |= {"scan_before": before, "scan_between": between, "scan_after": after}
    texts |= {"seen": speech.seen, "done": speech.done, "new_after": speech.new_key[1], **files}
    values = {name: load.lua(text) for name, text in texts.items()}
    values |= {name: json.dumps(value) for name, value in asdict(work).items() if name != "what"}
    values |= {"revised": json.dumps(speech.db is not None)}
    numbers = {"seed": turn, "rows": SCAN_ROWS_MAX, "new_digits": speech.new_key[0]}
    shares = {name: getattr(work, name) for name in ("read", "insert", "scan", "modify")}
    script = MIXED_LUA
    if work.modify:
        script += MODIFY_LUA
    elif work.latest:
        script += LATEST_LUA
    elif speech.db is not None and updates(work):
        script += REVISED_LUA
    return script % {**values, **numbers, **shares}


def _pairs(speech: Speech) -> list[tuple[str, tuple[str, str]]]:
    return [("read", speech.read), ("write", speech.write), ("insert", speech.insert)]


def with_redis_benchmark(
    target: Target, docs: int, doc_bytes: int, work: str, size: Size
) -> stats.Round:
    """One round: a redis-benchmark for reads and one for writes side by side, which share the
    connections; a short trial says how many requests fill the time.
    """
    keys = {"GET": docs, "SET": NEW_KEYS if WORKS[work].insert else docs}
    parts = redis_parts(WORKS[work].reads_of_all, size.connections)
    trial = _redis_load(target, keys, doc_bytes, parts, TRIAL_REQUESTS)
    count = max(int(trial.requests / trial.seconds * size.seconds), TRIAL_REQUESTS)
    return load.measured(target, lambda: _redis_load(target, keys, doc_bytes, parts, count))


def redis_parts(read_share: float, connections: int) -> list[tuple[str, int]]:
    """Command and connections of each redis-benchmark; one connection each is the least."""
    writing = 0 if read_share == 1 else max(round(connections * (1 - read_share)), 1)
    parts = [("GET", connections - writing), ("SET", writing)]
    return [part for part in parts if part[1]]


def _redis_load(
    target: Target,
    keys: Mapping[str, int],
    doc_bytes: int,
    parts: Sequence[tuple[str, int]],
    count: int,
) -> stats.Load:
    total = sum(share for _, share in parts)

    def one(part: tuple[str, int]) -> stats.Load:
        command, connections = part
        requests = max(count * connections // total, 1)
        options = ["-h", target.host, "-p", str(target.port), "--csv"]
        options += ["-c", str(connections), "-n", str(requests)]
        options += ["-t", command.lower(), "-r", str(keys[command]), "-d", str(doc_bytes)]
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
