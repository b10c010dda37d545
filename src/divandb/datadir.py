"""The data folder, as the supervisor and the command line see it.

    DATA/lock          held by a supervisor and its nodes for as long as one of them lives
    DATA/admin         `USER:PASSWORD`, mode 0600, made on the first start
    DATA/secret        what all credentials between nodes come from, mode 0600
    DATA/members.json  the nodes of the cluster: ``PlannedNode``
    DATA/removed.json  names of nodes that are members no more
    DATA/ports.json    ports that stay the same at every start, because other hosts know them
    DATA/readers.json  name → secret of those who may read the Masters' Event Board, mode 0600
    DATA/cluster.json  what runs now: a ``ClusterRecord``
    DATA/kafka         a broker of its own: ``divandb.localkafka``

A node's folder has ``drained`` in it while an operator has taken it out of service.

What the nodes themselves keep there belongs to ``divandb.store``.
"""

import base64
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from divandb.clock import Clock, Rng

SECRET_BYTES = 32
BOARD = "board"
"""Name and role of the embedded board's process."""
ADMIN_USER = "admin"
BROKER = "kafka"
"""Name and role of the process of an Apache Kafka broker."""
BOARDS = frozenset({BOARD, BROKER})
"""Roles of processes that are no nodes."""
PASSWORD_BYTES = 18
LOCK_POLL_S = 0.05
DRAINED = "drained"


class DataDirError(Exception):
    """The data folder cannot be used; the text is one line for the operator."""


class NodeRecord(msgspec.Struct):
    """One node of a running cluster."""

    name: str
    role: str
    """`board`, `kafka`, `master` or `replica`."""
    master: str | None
    """The master that a replica follows."""
    url: str
    """The node's own URL, not the shared one."""
    pid: int | None
    """None while the node is down."""
    restarts: int
    """How often the supervisor has started it again."""
    started_at: str | None
    """When this process was started, RFC 3339 in UTC; None while it is down."""


class PlannedNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node that belongs to the cluster of a folder."""

    name: str
    role: str
    slot: str
    url: str = ""
    """Where it is when another host runs it; empty for one that this folder's supervisor runs."""


class ClusterRecord(msgspec.Struct):
    """What a supervisor runs."""

    url: str
    """The shared URL, for clients."""
    pid: int
    """The supervisor's."""
    nodes: list[NodeRecord]
    board: str = ""
    """The URL of boards that the supervisor does not run; empty if there are none."""


def make(data: Path) -> None:
    """Make the folder if it is missing, readable by its owner only."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise DataDirError(f"cannot make the data folder {data}: {problem.strerror}") from None
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        raise DataDirError(f"the data folder {data} is not writable")


@contextlib.contextmanager
def locked(data: Path, clock: Clock, orphan_s_max: float) -> Iterator[None]:
    """Hold the folder for this supervisor and the nodes that it forks.

    The file carries two locks. A record lock (fcntl) belongs to this process alone: another living
    supervisor is a ``DataDirError`` at once. A flock is inherited by forked nodes: those that a
    killed supervisor left behind are just ending and are waited for, ``orphan_s_max`` seconds.
    """
    path = data / "lock"
    try:
        file = open(path, "a+b")  # noqa: SIM115 - closed by the "with" below
    except OSError as problem:
        raise DataDirError(f"cannot open {path}: {problem.strerror}") from None
    with file:
        if not _held(fcntl.lockf, file):
            file.seek(0)
            owner = file.read(32).decode("ascii", "replace")
            raise DataDirError(f"the data folder {data} is in use by divandb, process {owner}")
        _await_orphans(file, data, clock, orphan_s_max)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _await_orphans(file: BinaryIO, data: Path, clock: Clock, wait_s_max: float) -> None:
    deadline = clock.monotonic() + wait_s_max
    while not _held(fcntl.flock, file):
        if clock.monotonic() > deadline:
            raise DataDirError(f"a node of a killed supervisor is still running in {data}")
        time.sleep(LOCK_POLL_S)


def _held(lock: Callable[[BinaryIO, int], object], file: BinaryIO) -> bool:
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


def is_drained(folder: Path) -> bool:
    """Has an operator taken the node of this folder out of service?"""
    return (folder / DRAINED).exists()


def set_drained(folder: Path, drained: bool) -> None:
    """Remember that it is, or is no more."""
    if drained:
        (folder / DRAINED).touch()
    else:
        (folder / DRAINED).unlink(missing_ok=True)


def make_admin(data: Path, rng: Rng) -> str:
    """`USER:PASSWORD` of the folder's admin, made at random and kept if there is none yet."""
    known = read_admin(data)
    if known is not None:
        return known
    password = base64.urlsafe_b64encode(rng.token(PASSWORD_BYTES)).decode()
    admin = f"{ADMIN_USER}:{password}"
    write_private(data / "admin", f"{admin}\n")
    return admin


def read_admin(data: Path) -> str | None:
    """`USER:PASSWORD` from the folder's `admin` file; None if there is no such file."""
    path = data / "admin"
    try:
        admin = path.read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None
    if not is_admin(admin):
        raise DataDirError(f"{path} does not hold USER:PASSWORD; remove it to get a new password")
    return admin


def is_admin(text: str) -> bool:
    """Whether ``text`` is `USER:PASSWORD`, both present and without control characters."""
    user, _, password = text.partition(":")
    return bool(user and password) and text.isprintable()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is there whole, and durable, or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_secret(data: Path, rng: Rng) -> bytes:
    """The secret of the folder's cluster, made at random and kept if there is none yet."""
    if not (data / "secret").exists():
        write_private(data / "secret", f"{rng.token(SECRET_BYTES).hex()}\n")
    return read_secret(data)


def read_secret(data: Path) -> bytes:
    """The secret of the folder's cluster."""
    try:
        return bytes.fromhex((data / "secret").read_text("ascii").strip())
    except (OSError, ValueError) as problem:
        raise DataDirError(f"cannot read {data / 'secret'}: {problem}") from None


def read_members(data: Path) -> list[PlannedNode]:
    """The nodes of the folder's cluster; none before the first start."""
    path = data / "members.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[PlannedNode])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None


def write_members(data: Path, nodes: Sequence[PlannedNode]) -> None:
    """Remember the nodes."""
    text = msgspec.json.format(msgspec.json.encode(nodes), indent=2).decode()
    write_private(data / "members.json", f"{text}\n")


def read_removed(data: Path) -> list[str]:
    """Names of nodes that were removed: they are not given again."""
    path = data / "removed.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None


def write_removed(data: Path, names: Sequence[str]) -> None:
    """Remember them."""
    write_private(data / "removed.json", f"{msgspec.json.encode(names).decode()}\n")


def read_ports(data: Path) -> dict[str, int]:
    """Name → port of the processes that have the same at every start."""
    path = data / "ports.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None


def write_ports(data: Path, ports: Mapping[str, int]) -> None:
    """From the next start on these processes have these ports."""
    text = msgspec.json.format(msgspec.json.encode(ports), indent=2).decode()
    write_private(data / "ports.json", f"{text}\n")


def read_readers(data: Path) -> dict[str, str]:
    """Name → secret of the readers of the Masters' Event Board."""
    path = data / "readers.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None


def write_readers(data: Path, readers: Mapping[str, str]) -> None:
    """Remember them."""
    text = msgspec.json.format(msgspec.json.encode(readers), indent=2).decode()
    write_private(data / "readers.json", f"{text}\n")


def write_cluster(data: Path, cluster: ClusterRecord) -> None:
    """Put ``cluster`` in the place of what `cluster.json` said; readers see the old or the new."""
    unfinished = data / "cluster.json.tmp"
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(cluster), indent=2) + b"\n")
    unfinished.rename(data / "cluster.json")


def read_cluster(data: Path) -> ClusterRecord | None:
    """What runs in this folder, as last written; None when nothing does or its owner was killed."""
    path = data / "cluster.json"
    try:
        cluster = msgspec.json.decode(path.read_bytes(), type=ClusterRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as problem:
        raise DataDirError(f"cannot read {path}: {problem}") from None
    return cluster if is_alive(cluster.pid) else None


def remove_cluster(data: Path) -> None:
    """Say that nothing runs here."""
    (data / "cluster.json").unlink(missing_ok=True)
