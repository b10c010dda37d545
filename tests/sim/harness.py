"""One run, from the first node's start to the last checker's word."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

from divandb.cluster import fetching
from divandb.store import checkpoints, ledger
from tests.sim.cluster import Cluster
from tests.sim.world import SimLoop, run

_SHARED_MEMORY = Path("/dev/shm")
MEMORY = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
"""Where files cost least; ``None``: wherever files usually are."""
PIECE_BYTES = 2_000
PAGE_EVENTS_MAX = 10
MARK_CHANGES_MAX = 7
CHECKPOINT_BYTES = 256 * 1024


def play_out(
    body: Callable[[Cluster], Awaitable[None]], folder: Path, seed: int,
    mark_changes_max: int = MARK_CHANGES_MAX, made: list[Cluster] | None = None, **shape: Any,
) -> Cluster:  # fmt: skip
    """Run a scenario on a new cluster of this shape; raises what any checker has found. The cluster
    is put into ``made``, for who wants to look at it whatever comes of it.
    """
    loop = SimLoop()
    made = made if made is not None else []

    async def whole() -> None:
        cluster = Cluster(loop, folder, seed, **shape)
        made.append(cluster)
        await cluster.open()
        await body(cluster)
        await cluster.settled()
        cluster.finished()

    with (
        # Small, so that an answer has several pieces and pages, and a database several marks.
        mock.patch.object(fetching, "PIECE_BYTES", PIECE_BYTES),
        mock.patch.object(fetching, "PAGE_EVENTS_MAX", PAGE_EVENTS_MAX),
        mock.patch.object(ledger, "MARK_CHANGES_MAX", mark_changes_max),
        mock.patch.object(checkpoints, "CHECKPOINT_BYTES", CHECKPOINT_BYTES),
    ):
        processes: list[Any] = []
        try:
            run(_with(whole(), made, processes), loop, processes)
        except BaseException as fault:
            shown = {name: value for name, value in shape.items() if name != "limits"}
            fault.add_note(f"simulation seed {seed}, {shown}")
            raise
    return made[0]


async def _with(work: Any, made: list[Cluster], processes: list[Any]) -> None:
    """Do the work, and in any case say which processes there were."""
    try:
        await work
    finally:
        for cluster in made:
            processes += cluster.processes
            for node in cluster.nodes:
                node.platter.forget()
