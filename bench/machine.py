"""Where and with what a run was made: the lines above the table."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median

PACKAGES = ("divandb", "apsw", "uvicorn", "uvloop", "httptools", "starlette", "orjson", "msgspec")
SYNCS = 50


def describe(data: Path | None) -> dict[str, str]:
    """Machine, date and versions, by name; ``data`` is the folder where a node of ours writes."""
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{_memory_mib():,} MiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "tools": ", ".join(filter(None, (_wrk_version(), _nginx_version()))),
    }
    if data is not None:
        written = f"write of 4 KiB with fdatasync {sync_ms(data):.2f} ms"
        about["disk"] = f"{filesystem(data)}, {written}"
        about["python"] = platform.python_version()
        about["packages"] = ", ".join(_packages())
    return about


def filesystem(path: Path) -> str:
    """The type of the file system that holds ``path``. On ``tmpfs`` an fsync costs nothing."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(m[1], m[2]) for m in mounts if path.resolve().is_relative_to(m[1])]
    return max(holding, key=lambda mount: len(mount[0]), default=("/", "unknown"))[1]


def sync_ms(folder: Path) -> float:
    """The median of writing 4 KiB and making it durable, in milliseconds."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return median(_sync_ms(file.fileno()) for _ in range(SYNCS))


def nginx_path() -> str | None:
    """nginx on PATH, or where Debian puts it, which a user's PATH often lacks."""
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


def _sync_ms(fd: int) -> float:
    start = time.perf_counter()
    os.write(fd, bytes(4096))
    os.fdatasync(fd)
    return (time.perf_counter() - start) * 1e3


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _packages() -> list[str]:
    names = {dist.name.lower() for dist in metadata.distributions()}
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES if name in names]
    return [*found, f"SQLite {_sqlite_version()}"]


def _sqlite_version() -> str:
    """Asked of a process of its own, because this package needs nothing installed."""
    try_apsw = "import apsw; print(apsw.sqlite_lib_version())"
    asked = subprocess.run([sys.executable, "-c", try_apsw], capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def _wrk_version() -> str:
    path = shutil.which("wrk")
    return " ".join(_said(path, "--version").split()[:2]) if path else ""


def _nginx_version() -> str:
    path = nginx_path()
    return _said(path, "-v").removeprefix("nginx version: ").strip() if path else ""


def _said(*command: str) -> str:
    """What a command printed, on either stream: wrk leaves with 1 after its version."""
    asked = subprocess.run(command, capture_output=True, text=True)
    return asked.stdout + asked.stderr
