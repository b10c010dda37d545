"""What processes cost: CPU and memory of a process and all its descendants, from ``/proc``."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _UTIME, _STIME, _START = 1, 11, 12, 19
"""Places in ``/proc/PID/stat`` behind the name, which is in brackets and may hold spaces."""

Ticks = Mapping[tuple[int, int], int]
"""(pid, start time) → user and system ticks: a pid that was used again is another key."""


def tree(roots: Iterable[int]) -> list[int]:
    """``roots`` and all their living descendants, in the order of their numbers."""
    found = set(roots)
    parents = {pid: fields[_PARENT] for pid, fields in _all_stats().items()}
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        grew = bool(more)
        found |= more
    return sorted(found)


def ticks(roots: Iterable[int]) -> Ticks:
    """User and system time so far of every process in the tree."""
    stats = {pid: _stat(pid) for pid in tree(roots)}
    return {
        (pid, fields[_START]): fields[_UTIME] + fields[_STIME]
        for pid, fields in stats.items()
        if fields is not None
    }


def cpu_s_between(before: Ticks, after: Ticks) -> float:
    """CPU seconds spent between two looks. A process that ended meanwhile is not counted."""
    return sum(now - before.get(key, 0) for key, now in after.items()) / TICKS_PER_S


def thread_cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds so far of the tree's living threads, in nanosecond steps.

    ``ticks`` counts whole hundredths of a second, too coarse for a server that does nothing; this
    forgets threads that end, so it is for that alone.
    """
    spent_ns = 0
    for pid in tree(roots):
        for task in (PROC / str(pid) / "task").glob("*"):
            try:
                spent_ns += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return spent_ns / 1e9


def pss_kib(roots: Iterable[int]) -> int:
    """Memory of the tree in KiB, shared pages divided among those that share them."""
    return sum(_pss_kib(pid) for pid in tree(roots))


def rss_mib(pid: int) -> float:
    """Resident memory of one process, shared pages included."""
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _pss_kib(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(x.split()[1]) for x in lines if x.startswith("Pss:")), 0)


def _all_stats() -> dict[int, list[int]]:
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    stats = {pid: _stat(pid) for pid in pids}
    return {pid: fields for pid, fields in stats.items() if fields is not None}


def _stat(pid: int) -> list[int] | None:
    """The numbers of ``/proc/PID/stat`` behind the name, the state as 0; ``None``: it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return [0, *map(int, text.rpartition(")")[2].split()[1:])]
