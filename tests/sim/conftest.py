"""Fixtures for simulated clusters."""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import Cluster
from tests.sim.harness import MEMORY, play_out

Body = Callable[[Cluster], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for files, in memory where the machine has one."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.fixture
def play(folder: Path) -> Callable[..., Cluster]:
    """Run a scenario; in the end all nodes must hold the same, and every checker agree."""

    def start(
        body: Body, *, seed: int = 1, masters: int = 3, replicas: int = 1, **shape: Any
    ) -> Cluster:
        return play_out(body, folder, seed, masters=masters, replicas=replicas, **shape)

    return start
