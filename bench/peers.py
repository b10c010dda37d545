"""Other servers that are started beside ours for ``python -m bench peers``: redis, etcd, rqlite.

Each on one node, with every write on its disk before it is answered, as a node of ours does it.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import servers
from bench.servers import HOST, BenchError, Target

BUILT = Path(__file__).parents[1] / ".tools" / "peers" / "bin"
"""Where ``.ci/setup bench`` puts what it builds itself."""
FILL_DOCS = 100
"""Documents in one filling request; etcd takes 128 operations in a transaction."""
REDIS_KEY = "key:%012d"
"""redis-benchmark's own form: it draws the number."""
REMEDY = "`.ci/setup bench` installs it"


def program(name: str) -> str | None:
    """Where a peer's program is; ``None`` when the machine has none."""
    return shutil.which(name, path=os.pathsep.join([str(BUILT), os.environ["PATH"], "/usr/sbin"]))


def version(path: str, option: str) -> str:
    """The first line of what the program says of itself."""
    said = subprocess.run([path, option], capture_output=True, text=True, timeout=30)
    return (said.stdout or said.stderr).strip().partition("\n")[0]


@contextmanager
def redis(path: str, folder: Path, core: set[int]) -> Iterator[Target]:
    """redis with an append-only file that is synced before each answer."""
    port = servers.free_port()
    command = [path, "--port", str(port), "--bind", HOST, "--dir", str(folder), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"]
    with servers.running(command, core, folder / "redis.log") as process:
        target = Target("redis", HOST, port, "", (process.pid,))
        _wait_for_redis(target, folder / "redis.log")
        yield target


@contextmanager
def etcd(path: str, folder: Path, core: set[int]) -> Iterator[Target]:
    """etcd, one member, asked through its HTTP gateway."""
    port = servers.free_port()
    client, peer = f"http://{HOST}:{port}", f"http://{HOST}:{servers.free_port()}"
    command = [path, "--data-dir", str(folder / "data"), "--log-level", "error"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}", "--quota-backend-bytes", str(8 << 30)]
    with servers.running(command, core, folder / "etcd.log") as process:
        target = Target("etcd", HOST, port, "", (process.pid,))
        servers.wait_until_up(target, process, folder / "etcd.log", "/health")
        yield target


@contextmanager
def rqlite(path: str, folder: Path, core: set[int]) -> Iterator[Target]:
    """rqlite, one node."""
    port = servers.free_port()
    command = [path, "-http-addr", f"{HOST}:{port}"]
    command += ["-raft-addr", f"{HOST}:{servers.free_port()}", str(folder / "data")]
    with servers.running(command, core, folder / "rqlite.log") as process:
        target = Target("rqlite", HOST, port, "", (process.pid,))
        servers.wait_until_up(target, process, folder / "rqlite.log", "/readyz")
        yield target


def fill_redis(target: Target, bodies: Sequence[bytes]) -> None:
    """``bodies`` under the keys that redis-benchmark draws from 0 to their number."""
    for at in range(0, len(bodies), FILL_DOCS):
        part = bodies[at : at + FILL_DOCS]
        named = [((REDIS_KEY % (at + n)).encode(), body) for n, body in enumerate(part)]
        commands = [resp(b"SET", key, body) for key, body in named]
        if redis_said(target, b"".join(commands), 5 * len(part)).count(b"+OK") != len(part):
            raise BenchError("redis refused documents")


def fill_etcd(target: Target, ids: Sequence[str], bodies: Sequence[bytes]) -> None:
    """``bodies`` under ``ids``."""
    for at in range(0, len(ids), FILL_DOCS):
        pairs = zip(ids[at : at + FILL_DOCS], bodies[at : at + FILL_DOCS], strict=True)
        puts = [{"requestPut": {"key": in64(i.encode()), "value": in64(b)}} for i, b in pairs]
        body = json.dumps({"success": puts}).encode()
        answer = target.expect([200], "POST", "/v3/kv/txn", body)
        if json.loads(answer).get("succeeded") is not True:
            raise BenchError(f"etcd refused documents: {answer[:500]!r}")


def fill_rqlite(target: Target, ids: Sequence[str], bodies: Sequence[bytes]) -> None:
    """``bodies`` under ``ids`` in a table of its own."""
    _execute(target, [["CREATE TABLE kv (k TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID"]])
    insert = "INSERT INTO kv(k, v) VALUES(?, ?)"
    for at in range(0, len(ids), FILL_DOCS):
        pairs = zip(ids[at : at + FILL_DOCS], bodies[at : at + FILL_DOCS], strict=True)
        _execute(target, [[insert, one, body.decode()] for one, body in pairs])


def in64(data: bytes) -> str:
    """As etcd's gateway takes keys and values."""
    return base64.b64encode(data).decode()


def resp(*words: bytes) -> bytes:
    """A command in redis' protocol."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n" % len(words) + b"".join(parts)


def redis_said(target: Target, command: bytes, bytes_min: int) -> bytes:
    """So many bytes of redis' answers, or all until it closed the connection."""
    with socket.create_connection((target.host, target.port), servers.REQUEST_S_MAX) as connection:
        connection.sendall(command)
        received = b""
        while len(received) < bytes_min:
            data = connection.recv(1 << 16)
            if not data:
                break
            received += data
    return received


def _execute(target: Target, statements: Sequence[Sequence[str]]) -> None:
    body = json.dumps(statements).encode()
    answer = target.expect([200], "POST", "/db/execute?transaction", body)
    if b'"error"' in answer:
        raise BenchError(f"rqlite refused: {answer[:500]!r}")


def _wait_for_redis(target: Target, log: Path) -> None:
    deadline = time.perf_counter() + servers.START_S_MAX
    while time.perf_counter() < deadline:
        try:
            if redis_said(target, resp(b"PING"), 7) == b"+PONG\r\n":
                return
        except OSError:
            pass
        time.sleep(servers.POLL_S)
    raise BenchError(f"redis did not answer:\n{servers.end_of(log)}")
