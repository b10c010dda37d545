"""Random runs from seeds: whatever goes wrong, nothing is lost and no promise is broken."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sim import chaos
from tests.sim.cluster import Cluster

SEEDS = int(os.environ.get("DIVANDB_SIM_SEEDS", "60"))
FIRST_SEED = int(os.environ.get("DIVANDB_SIM_FIRST_SEED", "0"))
seeds = pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))


Body = Callable[[Cluster], Awaitable[None]]


def masters_alone(seed: int) -> tuple[Body, dict[str, Any]]:
    """Writers at every master, crashes, a board that goes away, tears batches, loses answers."""
    rng = random.Random(seed)
    numbers = itertools.count()
    value = (lambda: rng.randrange(5)) if seed % 2 else (lambda: next(numbers))

    async def body(c: Cluster) -> None:
        works = []
        for node in c.masters:
            await node.create("x")
        chaos.worsen(c, rng)
        for _ in range(rng.randrange(40, 120)):
            await c.passes(rng.random() * 0.1)
            if rng.random() < 0.1:
                chaos.misfortune(c, rng)
            else:
                works.append(asyncio.ensure_future(chaos.at_a_master(c, rng, value)))
        c.mend()
        await asyncio.gather(*works)

    return body, {"masters": 3, "replicas": 0, "revs_limit": rng.choice([1, 3, 1000])}


def whole_groups(seed: int) -> tuple[Body, dict[str, Any]]:
    """Clients at all nodes: sessions, readers of changes that hop, writers of the same documents;
    nodes crash and stop, links are cut, requests and answers are lost, doubled and late.
    """
    rng = random.Random(seed)
    masters, replicas = rng.choice([(2, 2), (3, 1), (2, 1)])

    async def body(c: Cluster) -> None:
        await c.masters[0].create("x")
        await c.settled()
        crowd = chaos.Crowd(c, rng)
        chaos.worsen(c, rng)
        for _ in range(rng.randrange(40, 120)):
            await c.passes(rng.random() * 0.1)
            if rng.random() < 0.1:
                chaos.misfortune(c, rng)
            else:
                crowd.act()
        c.mend()
        await crowd.finish()
        await c.settled()
        await crowd.read_on()

    return body, {"masters": masters, "replicas": replicas}


@seeds
def test_masters_under_random_faults_lose_nothing(play: Callable[..., Any], seed: int) -> None:
    body, shape = masters_alone(seed)
    play(body, seed=seed, limits=chaos.LIMITS, **shape)


@seeds
def test_groups_under_random_faults_keep_every_promise(play: Callable[..., Any], seed: int) -> None:
    body, shape = whole_groups(seed)
    play(body, seed=seed, limits=chaos.LIMITS, **shape)


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    """In other processes, whose sets and dicts have other orders."""
    command = [sys.executable, "-m", "tests.sim.trace", "1"]
    found = [
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": order}, check=True,
            capture_output=True, text=True,
        ).stdout
        for order in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] != ""
