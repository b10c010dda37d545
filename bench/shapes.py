"""How cost grows with the nodes: the second half of ``python -m bench growth``.

A cluster of each shape, masters × replicas of each, is started in turn, and documents are written
one by one over 16 connections, as many as are answered, until every node contains them all.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import cases, outputs, plot, proc, replication, servers, stats
from bench.servers import BenchError, Cluster

SHAPES = ("1x0", "1x1", "1x3", "3x0", "3x3", "5x3")
QUICK_SHAPES = ("1x0", "1x1", "3x1")
SETTINGS = cases.Settings(
    docs=0, doc_bytes=1_000, bulk_docs=0, rounds=1, seconds=1, idle_s=1.0, connections=(16,),
    feed_connections=(1,), seed=1, cluster_s=8,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster of this shape cost."""

    name: str
    nodes: int
    start_s: float
    writing: replication.Writing
    rss_mib: float
    """Of the node with the most, after the load."""
    pss_mib: float
    """Of all processes together."""

    @property
    def cpu_us(self) -> float:
        """A write, all processes."""
        return sum(self.writing.cpu_s.values()) * 1e6 / max(self.writing.outcome.requests, 1)


def sizes(name: str) -> tuple[int, int]:
    """(masters, replicas of each) of "3x3". BenchError for anything else."""
    masters, cross, replicas = name.partition("x")
    if not (cross and masters.isdigit() and replicas.isdigit() and int(masters)):
        raise BenchError(f"{name!r} is no shape: 3x3")
    return int(masters), int(replicas)


def measure(names: Sequence[str], seconds: int, folder: Path) -> list[Shape]:
    """Each shape in turn, on all cores that this process may use."""
    found = []
    for name in names:
        outputs.say(f"{name} nodes")
        place = folder / name
        place.mkdir()
        size, cores = sizes(name), os.sched_getaffinity(0)
        with servers.cluster(servers.divandb_path(), place, *size, cores) as cluster:
            found.append(_one(name, seconds, place, cluster))
    return found


def _one(name: str, seconds: int, folder: Path, cluster: Cluster) -> Shape:
    writing = replication.written(cluster, SETTINGS, seconds, folder)
    rss = max(proc.rss_mib(one.target.pids[0]) for one in cluster.nodes)
    pss = proc.pss_kib(cluster.target.pids) / 1024
    return Shape(name, len(cluster.nodes), cluster.start_s, writing, rss, pss)


def table(found: Sequence[Shape]) -> str:
    """A line a shape; CPU is microseconds a write."""
    head = (
        "masters x replicas", "nodes", "start s", "PUT/s", "p50 ms", "p99 ms", "lag at the end s",
        "CPU µs/write", "of it a node", *replication.ROLES[:3], "RSS MiB, largest", "PSS MiB, all",
    )  # fmt: skip
    return stats.markdown_table(head, [_row(one) for one in found])


def _row(one: Shape) -> list[stats.Cell]:
    writing, count = one.writing, max(one.writing.outcome.requests, 1)
    roles = [writing.cpu_s[role] * 1e6 / count for role in replication.ROLES[:3]]
    numbers = [
        one.start_s, writing.per_s, writing.outcome.p50_ms, writing.outcome.p99_ms, writing.lag_s,
        one.cpu_us, one.cpu_us / one.nodes, *roles, one.rss_mib, one.pss_mib,
    ]  # fmt: skip
    return [one.name, one.nodes, *map(stats.number, numbers)]


def svg(found: Sequence[Shape]) -> str:
    """A group of bars for each kind of cost, a bar for each shape."""
    kinds: list[tuple[str, Callable[[Shape], float]]] = [
        ("CPU µs a write, all processes", lambda one: one.cpu_us),
        ("CPU µs a write and node", lambda one: one.cpu_us / one.nodes),
        ("PUT/s", lambda one: one.writing.per_s),
        ("RSS MiB of the largest node", lambda one: one.rss_mib),
    ]
    groups = [
        plot.Group(title, [plot.Bar(one.name, of(one), of(one), of(one)) for one in found])
        for title, of in kinds
    ]
    return plot.bars("Cost by masters x replicas", groups)
