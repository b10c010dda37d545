"""A data folder whose cluster runs, in the hands of a command that changes something about it."""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from divandb import datadir
from divandb.datadir import BOARD, ClusterRecord, DataDirError, NodeRecord


@contextlib.contextmanager
def alone(data: Path) -> Iterator[None]:
    """Two that change it at once would overwrite what the other one writes."""
    try:
        folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise DataDirError(f"{data}: {problem.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def running(data: Path) -> ClusterRecord:
    """What runs, with boards."""
    cluster = datadir.read_cluster(data)
    if cluster is None:
        raise DataDirError(f"nothing runs in {data}: start it with `divandb up`")
    if not cluster.board and board_of(cluster) is None:
        raise DataDirError(
            f"{data} has a single node without a board, which cannot be added to while it runs: "
            "stop it, and start it with `divandb up --masters 1 --replicas 1` or more"
        )
    return cluster


def board_of(cluster: ClusterRecord) -> NodeRecord | None:
    """The embedded board's process."""
    return next((one for one in cluster.nodes if one.role == BOARD), None)


def tell(record: NodeRecord, number: signal.Signals) -> None:
    """A process that is down reads what is new at its next start."""
    if record.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
