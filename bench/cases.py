"""What is measured: the data, the cases, and the order in which servers take turns."""

import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import documents, load, proc, stats
from bench.servers import BenchError, Target

QUERIES = ("find", "find_regex", "find_index", "changes_1pc")
NODE_NAMES = ("idle", "get", "random", "all_docs", "changes", *QUERIES, "put", "bulk")
REPLICATION = "replication"
"""Not a case of one node: a cluster, measured by ``replication``."""
NAMES = (*NODE_NAMES, REPLICATION)
WITH_WRK = frozenset(("get", "random", "put", REPLICATION))
FILL_DOCS_PER_REQUEST = 1_000
SETTLE_S = 1.0
"""Time for a server to finish what a filling or a start has left behind."""
FEEDS = {"_all_docs": "rows", "_changes": "results"}
"""Feeds, and the member of the answer that holds a document an entry."""
SHORT_OF = 0.9
"""A feed shorter than this share of the first one is an error (sequences vary in length)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The sizes of a run."""

    docs: int
    doc_bytes: int
    bulk_docs: int
    rounds: int
    seconds: int
    idle_s: float
    connections: tuple[int, ...]
    feed_connections: tuple[int, ...]
    seed: int
    cluster_s: int
    """Seconds of each measurement of replicated PUTs."""


@dataclass(frozen=True, slots=True)
class Data:
    """A filled database; ``bodies`` are as sent, ``served`` as the server answers them."""

    db: str
    ids: Sequence[str]
    bodies: Sequence[bytes]
    served: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request. ``docs`` per request; ``ceiling``: nginx can serve the same bytes.

    ``generate`` is given a server, connections, and a number that is another one each time.
    """

    name: str
    connections: tuple[int, ...]
    docs: int
    ceiling: bool
    generate: Callable[[Target, int, int], stats.Load]


def fill(target: Target, db: str, settings: Settings) -> Data:
    """Puts the run's documents into the empty database ``db``. BenchError when one is refused."""
    rng = random.Random(settings.seed)
    ids = documents.ids(rng, settings.docs)
    bodies = [
        documents.body(rng, settings.doc_bytes, documents.NUMBER_FIRST + number)
        for number in range(settings.docs)
    ]
    return Data(db, ids, bodies, store(target, db, ids, bodies))


def store(target: Target, db: str, ids: Sequence[str], bodies: Sequence[bytes]) -> list[bytes]:
    """Puts new documents into ``db``; they, as the server answers them. BenchError when one is
    refused.
    """
    served: list[bytes] = []
    for at in range(0, len(ids), FILL_DOCS_PER_REQUEST):
        part = slice(at, at + FILL_DOCS_PER_REQUEST)
        revs = _send(target, db, ids[part], bodies[part])
        served += map(documents.with_id, ids[part], bodies[part], revs)
    return served


def create(target: Target, db: str) -> None:
    """A new database."""
    target.expect([201, 202], "PUT", f"/{db}")


def check(target: Target, data: Data) -> dict[str, bytes]:
    """The bodies of the feeds, when every read of the run gives what it should, else BenchError."""
    answer = target.expect([200], "GET", f"/{data.db}/{data.ids[0]}")
    if json.loads(answer) != json.loads(data.served[0]):
        raise BenchError(f"{target.name} answers another document: {answer[:500]!r}")
    feeds = {name: target.expect([200], "GET", f"/{data.db}/{name}") for name in FEEDS}
    for name, member in FEEDS.items():
        ids = [row["id"] for row in json.loads(feeds[name])[member]]
        if sorted(ids) != sorted(data.ids):
            raise BenchError(f"{target.name} lists {len(ids)} of {len(data.ids)} in {name}")
    return feeds


def write_files(root: Path, data: Data, feeds: dict[str, bytes]) -> None:
    """The server's answers as files, under the server's paths."""
    folder = root / data.db
    folder.mkdir(parents=True)
    for doc_id, served in zip(data.ids, data.served, strict=True):
        (folder / doc_id).write_bytes(served)
    for name, served in feeds.items():
        (folder / name).write_bytes(served)


def reading(data: Data, feeds: dict[str, bytes], settings: Settings, folder: Path) -> list[Case]:
    """The cases that leave the database as it is."""
    ids_file = folder / "ids"
    ids_file.write_text("\n".join(data.ids) + "\n")

    def get(target: Target, connections: int, _turn: int) -> stats.Load:
        script = load.get_script(target, f"/{data.db}/{data.ids[0]}")
        return load.wrk(target, script, connections, settings.seconds, folder)

    def get_random(target: Target, connections: int, turn: int) -> stats.Load:
        script = load.random_script(target, data.db, ids_file, turn)
        return load.wrk(target, script, connections, settings.seconds, folder)

    return [
        Case("get", settings.connections, 0, True, get),
        Case("random", settings.connections, 0, True, get_random),
        _feed_case("all_docs", data, feeds, settings),
        _feed_case("changes", data, feeds, settings),
        *_query_cases(data, settings),
    ]


def _query_cases(data: Data, settings: Settings) -> list[Case]:
    """Queries for one document without an index and with one, and a feed that shows 1%."""
    docs = [json.loads(body) for body in data.bodies]
    totals = sorted(doc["total"] for doc in docs)
    find, feed = f"/{data.db}/_find", f"/{data.db}/_changes?filter=_selector"
    wanted: dict[str, tuple[str, str, list[dict[str, object]]]] = {
        "find": (find, "docs", [{"number": doc["number"]} for doc in docs]),
        "find_regex": (find, "docs", [{"customer": {"$regex": f"{docs[0]['customer'][:-1]}.$"}}]),
        "find_index": (find, "docs", [{"customer": doc["customer"]} for doc in docs]),
        "changes_1pc": (feed, "results", [{"total": {"$lt": totals[len(totals) // 100]}}]),
    }

    def case(name: str, path: str, member: str, selectors: list[dict[str, object]]) -> Case:
        def generate(target: Target, connections: int, turn: int) -> stats.Load:
            rngs = [random.Random(f"{turn} {one}") for one in range(connections)]
            attempts = [
                load.question(target, path, _questions(rng, selectors), member) for rng in rngs
            ]
            return load.in_parallel(target, attempts, settings.seconds)

        return Case(name, settings.feed_connections, 0, False, generate)

    return [case(name, *what) for name, what in wanted.items()]


def _questions(rng: random.Random, selectors: Sequence[dict[str, object]]) -> Iterator[bytes]:
    while True:
        yield json.dumps({"selector": rng.choice(selectors)}).encode()


def make_index(target: Target, db: str) -> None:
    """The index of `find_index`, built when this returns."""
    index = {"index": {"fields": ["customer"]}, "ddoc": "bench"}
    target.expect([200], "POST", f"/{db}/_index", json.dumps(index).encode())
    first = {"selector": {"customer": "nobody"}}
    target.expect([200], "POST", f"/{db}/_find", json.dumps(first).encode())


def writing(data: Data, put_db: str, bulk_db: str, settings: Settings, folder: Path) -> list[Case]:
    """The cases that add documents, each to a database of its own, made by the caller."""

    def put(target: Target, connections: int, turn: int) -> stats.Load:
        body = documents.body_around_number(random.Random(turn), settings.doc_bytes)
        script = load.put_script(target, put_db, body, turn)
        return load.wrk(target, script, connections, settings.seconds, folder)

    def bulk(target: Target, connections: int, turn: int) -> stats.Load:
        bodies = list(itertools.islice(itertools.cycle(data.bodies), settings.bulk_docs))
        rngs = [random.Random(f"{settings.seed} {turn} {one}") for one in range(connections)]
        requests = [documents.bulk_bodies(rng, bodies) for rng in rngs]
        attempts = [load.bulk(target, bulk_db, one, settings.bulk_docs) for one in requests]
        return load.in_parallel(target, attempts, settings.seconds)

    return [
        Case("put", settings.connections, 0, False, put),
        Case("bulk", settings.feed_connections, settings.bulk_docs, False, bulk),
    ]


def run(
    case: Case, target: Target, ceiling: Target | None, rounds: int, turns: Iterator[int]
) -> list[stats.Result]:
    """All rounds of a case, the ceiling and the server in turn, so that both see the same noise.

    ``turns`` gives the numbers for ``generate``; both servers of a round get the same one.
    """
    both = [ceiling, target] if ceiling and case.ceiling else [target]
    results = []
    for connections in case.connections:
        seen: dict[str, list[stats.Round]] = {one.name: [] for one in both}
        for _ in range(rounds):
            turn = next(turns)
            for one in both:
                seen[one.name].append(_round(case, one, connections, turn))
        results += [
            stats.Result(case.name, connections, name, case.docs, done)
            for name, done in seen.items()
        ]
    return results


def check_stored(target: Target, db: str, results: Sequence[stats.Result], docs: int) -> None:
    """BenchError when ``db`` holds fewer documents than were acknowledged."""
    acknowledged = sum(one.load.requests for result in results for one in result.rounds) * docs
    stored = json.loads(target.expect([200], "GET", f"/{db}"))["doc_count"]
    if stored < acknowledged - sum(sum(result.errors.values()) for result in results) * docs:
        raise BenchError(f"{target.name} acknowledged {acknowledged} documents and has {stored}")


def idle(target: Target, when: str, seconds: float) -> stats.Idle:
    """What the server spends while nobody asks."""
    time.sleep(SETTLE_S)
    cpu_s, start = proc.thread_cpu_s(target.pids), time.perf_counter()
    time.sleep(seconds)
    spent_s, passed_s = proc.thread_cpu_s(target.pids) - cpu_s, time.perf_counter() - start
    processes = len(proc.tree(target.pids))
    return stats.Idle(when, processes, passed_s, spent_s, proc.pss_kib(target.pids))


def database_name(purpose: str) -> str:
    """A name that no earlier run has used."""
    return f"bench-{purpose}-{os.urandom(4).hex()}"


def _feed_case(name: str, data: Data, feeds: dict[str, bytes], settings: Settings) -> Case:
    path, bytes_min = f"/{data.db}/_{name}", int(SHORT_OF * len(feeds[f"_{name}"]))

    def generate(target: Target, connections: int, _turn: int) -> stats.Load:
        attempts = [load.feed(target, path, bytes_min) for _ in range(connections)]
        return load.in_parallel(target, attempts, settings.seconds)

    return Case(name, settings.feed_connections, len(data.ids), True, generate)


def _round(case: Case, target: Target, connections: int, turn: int) -> stats.Round:
    return load.measured(target, lambda: case.generate(target, connections, turn))


def _send(target: Target, db: str, ids: Sequence[str], bodies: Sequence[bytes]) -> list[str]:
    """One ``_bulk_docs`` of new documents; their revisions."""
    docs = b",".join(map(documents.with_id, ids, bodies))
    answer = target.expect([201], "POST", f"/{db}/_bulk_docs", b'{"docs":[' + docs + b"]}")
    rows = json.loads(answer)
    refused = [row for row in rows if "rev" not in row]
    if refused or [row["id"] for row in rows] != list(ids):
        raise BenchError(f"{target.name} refused documents: {refused[:3]}")
    return [row["rev"] for row in rows]
