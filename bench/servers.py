"""The servers of a run, each a context manager: a node of our own, a cluster of our own, a node
that runs already, nginx.

What we start runs in a session of its own, on the cores it is given, and is stopped in any case.
"""

import base64
import http.client
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

START_S_MAX = 60
STOP_S_MAX = 20
POLL_S = 0.05
START_POLL_S = 0.01
REQUEST_S_MAX = 120
LOG_CHARS_SHOWN = 4000
FILES_OPEN_MORE = 2000
"""Descriptors beside those of the files: connections, and as many again to spare."""

HOST = "127.0.0.1"
BOARD, MASTER, REPLICA = "board", "master", "replica"
BOARD_UP = "/board/v1/_up"

NGINX_CONF = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {files_open};
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    open_file_cache max={files_cached} inactive=600s;
    open_file_cache_valid 600s;
    types {{ }}
    default_type application/json;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} backlog=1024;
        root {folder}/root;
    }}
}}
"""


class BenchError(Exception):
    """The run cannot go on; the text is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask. ``pids``: the processes whose trees are measured, none when it is far;
    ``authorization`` is empty where nobody is asked who they are.
    """

    name: str
    host: str
    port: int
    authorization: str
    pids: tuple[int, ...]

    @property
    def netloc(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request of a run carries."""
        named = {"Authorization": self.authorization} if self.authorization else {}
        return named | {"Accept": "application/json"}

    def connect(self) -> http.client.HTTPConnection:
        """A new keep-alive connection; it opens with its first request."""
        return http.client.HTTPConnection(self.host, self.port, timeout=REQUEST_S_MAX)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body."""
        connection = self.connect()
        try:
            headers = self.headers | ({"Content-Type": "application/json"} if body else {})
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def expect(self, statuses: Sequence[int], method: str, path: str, body: bytes = b"") -> bytes:
        """The body of an answer that must have one of ``statuses``. BenchError otherwise."""
        status, answer = self.ask(method, path, body or None)
        if status not in statuses:
            raise BenchError(f"{self.name}: {method} {path}: {status} {answer[:500]!r}")
        return answer


@contextmanager
def divandb(program: Path, folder: Path, port: int, core: set[int]) -> Iterator[Target]:
    """A node of our own: one master, no replicas, data below ``folder``."""
    user, password = "bench", secrets.token_hex(16)
    command = [str(program), "up", "--masters", "1", "--replicas", "0"]
    command += ["--port", str(port), "--data", str(folder / "data")]
    command += ["--admin", f"{user}:{password}"]
    with running(command, core, folder / "divandb.log") as process:
        target = Target("divandb", HOST, port, basic(user, password), (process.pid,))
        wait_until_up(target, process, folder / "divandb.log")
        yield target


@dataclass(frozen=True, slots=True)
class Member:
    """A process of a cluster; ``target`` is its own port, ``slot`` the master of its group."""

    name: str
    role: str
    slot: str
    target: Target


@dataclass(frozen=True, slots=True)
class Cluster:
    """``target`` is the shared port, and all processes; ``start_s`` from the command until all
    answered.
    """

    target: Target
    members: Sequence[Member]
    start_s: float

    @property
    def nodes(self) -> list[Member]:
        """Those that hold documents."""
        return [one for one in self.members if one.role != BOARD]


@contextmanager
def cluster(
    program: Path,
    folder: Path,
    masters: int,
    replicas: int,
    cores: set[int],
    board: str | None = None,
) -> Iterator[Cluster]:
    """A cluster of our own on free ports, data below ``folder``; on its own board, or on those of
    this URL.
    """
    user, password = "bench", secrets.token_hex(16)
    data, log = folder / "data", folder / "divandb.log"
    command = [str(program), "up", "--masters", str(masters), "--replicas", str(replicas)]
    command += ["--port", "0", "--data", str(data), "--admin", f"{user}:{password}"]
    command += [] if board is None else ["--board", board]
    nodes = masters * (1 + replicas)
    count = nodes + (board is None and nodes > 1)  # a node alone has no board
    start = time.perf_counter()
    with running(command, cores, log) as process:
        authorization = basic(user, password)
        members = _started_members(data, authorization, process, log, count)
        for one in members:
            path = BOARD_UP if one.role == BOARD else "/_up"
            # Without a name: to check a password for the first time takes each node a while.
            anybody = replace(one.target, authorization="")
            wait_until_up(anybody, process, log, path, START_POLL_S)
        start_s = time.perf_counter() - start
        port = urlsplit(_record(data)["url"]).port or 0
        yield Cluster(
            Target("divandb", HOST, port, authorization, (process.pid,)), members, start_s
        )


def _started_members(
    data: Path, authorization: str, process: subprocess.Popen[bytes], log: Path, count: int
) -> list[Member]:
    """The processes once all have been started."""
    deadline = time.perf_counter() + START_S_MAX
    while time.perf_counter() < deadline and process.poll() is None:
        nodes = _record(data)["nodes"]
        if len(nodes) == count and all(node["pid"] for node in nodes):
            return [_member(node, authorization) for node in nodes]
        time.sleep(START_POLL_S)
    raise BenchError(f"the cluster did not start:\n{end_of(log)}")


def _record(data: Path) -> dict[str, Any]:
    """What the supervisor has written down of its processes."""
    try:
        record: dict[str, Any] = json.loads((data / "cluster.json").read_bytes())
    except FileNotFoundError:
        return {"url": "", "nodes": []}
    return record


def _member(node: dict[str, Any], authorization: str) -> Member:
    name = node["name"]
    port = urlsplit(node["url"]).port or 0
    target = Target(name, HOST, port, authorization, (node["pid"],))
    return Member(name, node["role"], node["master"] or name, target)


@contextmanager
def external(url: str, name: str, pids: Sequence[int]) -> Iterator[Target]:
    """A server that runs already. BenchError when it cannot be asked with this ``url``."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None or parts.username is None:
        raise BenchError("--url needs the form http://user:password@host:port")
    gone = [pid for pid in pids if not Path(f"/proc/{pid}").exists()]
    if gone:
        raise BenchError(f"no such process here: {', '.join(map(str, gone))}")
    authorization = basic(unquote(parts.username), unquote(parts.password or ""))
    target = Target(name, parts.hostname, parts.port or 5984, authorization, tuple(pids))
    try:
        target.expect([200], "GET", "/_session")
    except OSError as error:
        raise BenchError(f"nobody answers at {target.netloc}: {error}") from error
    yield target


@contextmanager
def nginx(program: str, folder: Path, port: int, core: set[int], files: int) -> Iterator[Target]:
    """nginx with one worker, serving the files below ``folder/root``."""
    config = folder / "nginx.conf"
    # Started by root, the worker would become a user who cannot reach a private folder.
    user = "user root;" if os.geteuid() == 0 else ""
    names = {"user": user, "folder": folder, "host": HOST, "port": port}
    # The cache holds each file open: with too few descriptors it would answer 500 and stall.
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = files + FILES_OPEN_MORE
    files_open = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    files_cached = max(1, files_open - FILES_OPEN_MORE // 2)
    config.write_text(NGINX_CONF.format(**names, files_open=files_open, files_cached=files_cached))
    (folder / "root" / "_up").write_text("{}")
    command = [program, "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")]
    with running(command, core, folder / "nginx.log") as process:
        target = Target("nginx", HOST, port, basic("bench", "bench"), (process.pid,))
        wait_until_up(target, process, folder / "nginx.log")
        yield target


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def divandb_path() -> Path:
    """``divandb`` beside the running Python, or else on PATH. BenchError when there is none."""
    beside = Path(sys.executable).with_name("divandb")
    found = str(beside) if beside.exists() else shutil.which("divandb")
    if found is None:
        raise BenchError("no divandb command beside this Python; install it or give --divandb")
    return Path(found)


@contextmanager
def running(command: Sequence[str], core: set[int], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on these cores, its output in ``log``, stopped when the block is left."""
    ours = os.sched_getaffinity(0)
    # A child inherits its cores, and so do all that it starts.
    os.sched_setaffinity(0, core)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        os.sched_setaffinity(0, ours)
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and makes its whole session end when it does not."""
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(
    target: Target,
    process: subprocess.Popen[bytes],
    log: Path,
    path: str = "/_up",
    poll_s: float = POLL_S,
) -> None:
    """Until ``path`` is answered with 200. BenchError when the process ends, or is too slow."""
    deadline = time.perf_counter() + START_S_MAX
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{target.name} ended at once:\n{end_of(log)}")
        try:
            if target.ask("GET", path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(poll_s)
    raise BenchError(f"{target.name} did not answer within {START_S_MAX} s:\n{end_of(log)}")


def end_of(log: Path) -> str:
    """The last of what a process wrote."""
    return log.read_text(errors="replace")[-LOG_CHARS_SHOWN:]


def basic(user: str, password: str) -> str:
    """The value of an ``Authorization`` header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
