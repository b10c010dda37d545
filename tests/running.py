"""A real `divandb up` for tests that need one: of a single node, or of a whole cluster."""

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from deploy.kafka import broker as kafka_broker
from deploy.kafka.broker import Broker

START_S_MAX = 60.0
STOP_S_MAX = 20.0
ANSWER_S_MAX = 30.0
CONVERGE_S_MAX = 40.0
"""From the last write, or the end of the last fault, to nodes that all hold the same."""
POLL_S = 0.02
ALIKE_POLL_S = 0.1
BOARD = "board"
EMBEDDED, KAFKA = "embedded", "kafka"
CHOSEN = os.environ.get("DIVANDB_TEST_BOARD", EMBEDDED)
"""Where clusters have their boards unless a test says so."""
COMMAND = [sys.executable, "-m", "divandb"]


class Running:
    """A supervisor with its nodes, a folder of its own and a free port."""

    def __init__(
        self,
        folder: Path,
        admin: str = "admin:a secret",
        port: int = 0,
        masters: int = 1,
        replicas: int = 0,
    ) -> None:
        """``replicas`` is a number for each master."""
        self.folder = folder
        self.options = ["--masters", str(masters), "--replicas", str(replicas)]
        self.environment: dict[str, str] = {}
        """Variables for `divandb up` besides those that the tests have."""
        self.data = folder / "data"
        self.log = folder / "up.log"
        self.admin, _, self.password = admin.partition(":")
        self.credentials = admin
        self.port = port
        """The port for clients; the same after ``restart``."""
        self.process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0
        """How long the latest start took until everything answered."""

    @property
    def url(self) -> str:
        """The shared URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cluster(self) -> dict[str, Any]:
        """What `cluster.json` says."""
        found: dict[str, Any] = json.loads((self.data / "cluster.json").read_bytes())
        return found

    def record(self, name: str) -> dict[str, Any]:
        """What `cluster.json` says of the process of that name."""
        (found,) = [node for node in self.cluster["nodes"] if node["name"] == name]
        record: dict[str, Any] = found
        return record

    def port_of(self, name: str | None) -> int:
        """A node's own port; without a name, the one for clients."""
        if name is None:
            return self.port
        return urlsplit(self.record(name)["url"]).port or 0

    def address_of(self, name: str | None) -> tuple[str, int]:
        """Where a node is, or without a name who serves clients."""
        return "127.0.0.1", self.port_of(name)

    @property
    def node_pid(self) -> int:
        """The process id of the only node."""
        pid: int = self.cluster["nodes"][0]["pid"]
        return pid

    def start(self, *options: str) -> None:
        """Start and wait until it says that it is ready."""
        place = ["--data", str(self.data), "--port", str(self.port)]
        command = [*COMMAND, "up", *place, *self.options, *options]
        environment = {**os.environ, "DIVANDB_ADMIN": self.credentials, **self.environment}
        before = self.log.stat().st_size if self.log.exists() else 0
        began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.await_true(lambda: b"DivanDB is ready" in self._log_since(before), START_S_MAX)
        self.start_s = time.monotonic() - began
        self.port = urlsplit(self.cluster["url"]).port or 0

    def _log_since(self, place: int) -> bytes:
        text = self.log.read_bytes()[place:]
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"divandb up has ended: {text.decode()}")
        return text

    def await_true(self, condition: Any, wait_s_max: float = START_S_MAX) -> None:
        """Wait until ``condition()`` holds; an ``AssertionError`` with the log if it does not."""
        deadline = time.monotonic() + wait_s_max
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {wait_s_max} s; log:\n{self.log.read_text()}")
            time.sleep(POLL_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the supervisor; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def restart(self, *options: str) -> None:
        """Stop cleanly and start again on the same folder and port."""
        assert self.stop() == 0
        self.start(*options)

    def kill_node(self) -> int:
        """`kill -9` the node's process, and wait until the next one answers; its process id."""
        killed = self.node_pid
        os.kill(killed, signal.SIGKILL)
        self.await_true(lambda: self.cluster["nodes"][0]["pid"] not in (None, killed))
        self.await_true(lambda: self.request("GET", "/_up")[0] == 200)
        return self.node_pid

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        admin: bool = True,
        node: str | None = None,
        wait_s_max: float = ANSWER_S_MAX,
    ) -> tuple[int, Any]:
        """Status and decoded body of one request; ``body`` is sent as JSON unless it is bytes."""
        status, _, content = self.exchange(method, path, body, headers, admin, node, wait_s_max)
        with contextlib.suppress(ValueError):
            return status, json.loads(content)
        return status, content

    def exchange(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        admin: bool = True,
        node: str | None = None,
        wait_s_max: float = ANSWER_S_MAX,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and bytes of one request, to the clients' port or to a ``node``."""
        sent = {"accept": "application/json", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        if admin:
            sent["authorization"] = basic(self.credentials)
        connection = http.client.HTTPConnection(*self.address_of(node), timeout=wait_s_max)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()


class Cluster(Running):
    """Masters and replicas with an Event Board between them. A node is known by its name."""

    def __init__(self, folder: Path, masters: int = 3, replicas: int = 3) -> None:
        super().__init__(folder, masters=masters, replicas=replicas)
        self.broker: Broker | None = None
        """Where the boards are, if they are not embedded."""
        self.masters = [f"m{number}" for number in range(1, masters + 1)]
        self.replicas = [
            f"{m}-r{number}" for m in self.masters for number in range(1, replicas + 1)
        ]

    def use(self, broker: Broker) -> None:
        """From the next start on the boards are there."""
        self.broker = broker
        self.options += ["--board", broker.ensemble.url]
        self.environment["DIVANDB_BOARD_ADMIN_SECRET"] = broker.ensemble.secret

    @property
    def nodes(self) -> list[str]:
        """All but the board."""
        return self.masters + self.replicas

    @property
    def processes(self) -> set[str]:
        """Names of all that the supervisor runs."""
        return {*self.nodes} | ({BOARD} if self.broker is None else set())

    def beside(self, name: str | None) -> contextlib.AbstractContextManager[None]:
        """Inside, this thread is where clients of that node are."""
        return contextlib.nullcontext()

    # Faults

    def pid_of(self, name: str) -> int:
        """The process id of a node, or of the board; while it is down, of its next process."""
        if name == BOARD and self.broker is not None:
            return self.broker.pid
        self.await_true(lambda: self.record(name)["pid"] is not None)
        pid: int = self.record(name)["pid"]
        return pid

    def send(self, name: str, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.pid_of(name), number)

    def kill(self, name: str) -> None:
        """`kill -9` one process, and wait until the next one answers."""
        if name == BOARD and self.broker is not None:
            self.broker.kill()
            self.broker.start()
            self.broker.await_up()
            return
        killed = self.pid_of(name)
        os.kill(killed, signal.SIGKILL)
        self.await_true(lambda: self.record(name)["pid"] not in (None, killed))
        self.await_true(lambda: self.answers(name))

    def kill_for_good(self, name: str) -> None:
        """`kill -9` one process of a cluster that was started with ``--no-restart``."""
        os.kill(self.pid_of(name), signal.SIGKILL)
        self.await_true(lambda: self.record(name)["pid"] is None)

    @contextlib.contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """SIGSTOP these processes for as long as one is inside."""
        pids = [self.pid_of(name) for name in names]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def answers(self, name: str) -> bool:
        """Does this process say that it is up?"""
        if name == BOARD and self.broker is not None:
            return self.broker.answers()
        path = "/board/v1/_up" if name == BOARD else "/_up"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request("GET", path, node=name, wait_s_max=1.0)[0] == 200
        return False

    # Agreement

    def status_of(self, name: str) -> dict[str, Any]:
        """`GET /_divan/status` of a node."""
        status, condition = self.request("GET", "/_divan/status", node=name, wait_s_max=5.0)
        assert status == 200, condition
        found: dict[str, Any] = condition
        return found

    def contents(self, name: str) -> dict[str, Any]:
        """What a node holds: its vector, and each database's digest and counts."""
        found: dict[str, Any] = {"vector": self.status_of(name)["vector"]}
        for db in self.request("GET", "/_all_dbs", node=name)[1]:
            summary = self.request("GET", f"/{db}/_divan/digest", node=name)[1]
            found[db] = {
                key: summary.get(key, summary)
                for key in ("generation", "digest", "doc_count", "doc_del_count")
            }
        return found

    def await_converged(self, wait_s_max: float = CONVERGE_S_MAX) -> dict[str, Any]:
        """Wait until all nodes hold the same, and give what that is."""
        deadline = time.monotonic() + wait_s_max
        while True:
            found: dict[str, Any] = {}
            with contextlib.suppress(OSError, http.client.HTTPException):
                # Digests are read only when they may be equal.
                vectors = {name: self.status_of(name)["vector"] for name in self.nodes}
                found = vectors if _differ(vectors) else self._all_contents()
                if not _differ(found):
                    contents: dict[str, Any] = found[self.nodes[0]]
                    return contents
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not alike after {wait_s_max} s: {json.dumps(found, indent=1)}"
                )
            time.sleep(ALIKE_POLL_S)

    def _all_contents(self) -> dict[str, Any]:
        return {name: self.contents(name) for name in self.nodes}

    def everywhere(self, ask: Callable[[str], Any]) -> Any:
        """What ``ask(node)`` gives, the same for all nodes; an ``AssertionError`` if it differs."""
        answers = {name: ask(name) for name in self.nodes}
        assert not _differ(answers), answers
        return answers[self.nodes[0]]


def _differ(values: dict[str, Any]) -> bool:
    found = list(values.values())
    return any(value != found[0] for value in found)


def basic(credentials: str) -> str:
    """An `Authorization` header for `USER:PASSWORD`."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """A node in ``folder`` that is stopped at the end."""
    with started(Running(folder), *options) as node:
        yield node


@contextlib.contextmanager
def clustered(
    folder: Path,
    *options: str,
    masters: int = 3,
    replicas: int = 3,
    board: str | Broker = CHOSEN,
    **environment: str,
) -> Iterator[Cluster]:
    """A cluster in ``folder`` that is stopped at the end. ``board``: ``EMBEDDED``, ``KAFKA`` with a
    broker of its own, or a broker that runs already.
    """
    cluster = Cluster(folder, masters, replicas)
    cluster.environment = environment
    with contextlib.ExitStack() as stack:
        if board == KAFKA:
            ensemble = kafka_broker.planned()
            (board,) = stack.enter_context(
                kafka_broker.brokers(folder, ensemble, log_retention_check_interval_ms="500")
            )
        if isinstance(board, Broker):
            cluster.use(board)
        running = stack.enter_context(started(cluster, *options))
        # Checking the password at each of twelve nodes would take longer than most tests.
        path = "/_node/_local/_config/chttpd_auth/iterations"
        assert running.request("PUT", path, "1000")[0] == 200
        yield running


R = TypeVar("R", bound=Running)


@contextlib.contextmanager
def started(running: R, *options: str) -> Iterator[R]:
    """Start it, and stop it at the end."""
    try:
        running.start(*options)
        yield running
    finally:
        if running.process is not None:
            running.stop()


def divandb(*arguments: str, text: bytes = b"", **environment: str) -> Any:
    """Run a `divandb` command to its end; a ``CompletedProcess`` with str output."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        timeout=START_S_MAX,
        env={**os.environ, **environment},
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
