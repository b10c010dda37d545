"""Fixtures for simulated clusters."""

import gc
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cluster import Cluster
from tests.sim.harness import MEMORY, play_out

Body = Callable[[Cluster], Awaitable[None]]


HERE = Path(__file__).parent
DEAD_DISKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""What a killed process had open is closed when memory is cleared, on a disk that is gone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(DEAD_DISKS)


@pytest.fixture(scope="package", autouse=True)
def nothing_left() -> Iterator[None]:
    """Other tests do not meet what these have left."""
    yield
    gc.collect()


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
