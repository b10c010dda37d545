"""A run from a seed: a cluster, what goes wrong, and what clients do meanwhile, all drawn."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from divandb.config import Limits
from tests.sim import faults, workloads
from tests.sim.checkers import LagReturns
from tests.sim.cluster import Cluster
from tests.sim.faults import Fault, Weather
from tests.sim.node import Node
from tests.sim.workloads import DATABASE, Crowd, Workload

LIMITS = Limits(
    forward_wait_ms_max=6_000, concern_wait_ms_max=3_000, verify_every_s=5, verify_rows_every_s=60
)
"""Less patience than usual: simulated time costs time, too."""
ANSWER_S = 3.0
SETTLE_S = 240.0
"""So long after all has healed, at most, until all nodes contain the same."""
SHAPES = ((3, 3), (3, 3), (3, 1), (2, 2), (2, 1), (1, 2), (3, 0))
"""(masters, replicas for each)."""
LASTS_S = (20.0, 90.0)
KINDS_MAX = 7
"""Of faults, in one run."""
CLOSED_S = 60.0
"""After so much more time vectors name one origin a slot, at most."""
Body = Callable[[Cluster], Awaitable[None]]


def storm(seed: int, fixed: tuple[int, int] | None = None) -> tuple[Body, dict[str, Any]]:
    """The run of this seed: (what happens, the cluster's shape); ``fixed`` is a shape that is not
    drawn.
    """
    rng = random.Random(seed)
    drawn = rng.choice(SHAPES)
    masters, replicas = fixed or drawn
    kinds = _drawn(rng, faults.ALL, 1, KINDS_MAX)
    works = _drawn(rng, workloads.ALL, 3, len(workloads.ALL))
    shape = {
        "masters": masters, "replicas": replicas, "revs_limit": rng.choice([3, 1000, 1000]),
        "limits": LIMITS,
    }  # fmt: skip
    return play(rng, kinds, works), shape


def play(
    rng: random.Random, kinds: tuple[type[Fault], ...], works: tuple[type[Workload], ...]
) -> Body:
    """These faults and these habits together, for a while; then all heals, and must be well."""

    async def body(c: Cluster) -> None:
        c.faults.answer_s = ANSWER_S
        await c.masters[0].create(DATABASE)
        await c.settled()
        lasts_s, pause_s = rng.uniform(*LASTS_S), rng.choice([0.3, 1.0, 3.0])
        weather, crowd = Weather(c, rng, kinds), Crowd(c, rng, works)
        end_s = c.loop.now_s + lasts_s
        while c.loop.now_s < end_s:
            await c.passes(rng.expovariate(1 / pause_s))
            crowd.act()
        weather.clear()
        c.healed()
        await crowd.finish()
        await c.until(lambda: not c.removing, 60)
        await c.settled(within_s=SETTLE_S)
        lag = next(checker for checker in c.checkers if isinstance(checker, LagReturns))
        await c.until(lambda: not lag.waits, lag.within_s + 1)
        await crowd.read_on()
        await c.until(lambda: all(names_few(node) for node in c.nodes), CLOSED_S)
        c.struck, c.acts = weather.struck, crowd.acts

    return body


def names_few(node: Node) -> bool:
    """Does its vector name one origin of each slot, at most?"""
    named = Counter(node.progress.slots.get(o) for o, n in node.progress.told.items() if n)
    return all(count == 1 for count in named.values())


def _drawn(rng: random.Random, kinds: tuple[Any, ...], least: int, most: int) -> tuple[Any, ...]:
    return tuple(rng.sample(kinds, rng.randint(least, min(most, len(kinds)))))
