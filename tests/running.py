"""A real `divandb up` for tests that need one."""

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_S_MAX = 60.0
STOP_S_MAX = 20.0
POLL_S = 0.02
COMMAND = [sys.executable, "-m", "divandb"]


class Running:
    """A supervisor with its node, a folder of its own and a free port."""

    def __init__(self, folder: Path, admin: str = "admin:a secret", port: int = 0) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "up.log"
        self.admin, _, self.password = admin.partition(":")
        self.credentials = admin
        self.port = port
        """The port for clients; the same after ``restart``."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The shared URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cluster(self) -> dict[str, Any]:
        """What `cluster.json` says."""
        found: dict[str, Any] = json.loads((self.data / "cluster.json").read_bytes())
        return found

    @property
    def node_pid(self) -> int:
        """The node's process id."""
        pid: int = self.cluster["nodes"][0]["pid"]
        return pid

    def start(self, *options: str) -> None:
        """Start and wait until it says that it is ready."""
        command = [*COMMAND, "up", "--data", str(self.data), "--port", str(self.port), *options]
        environment = {**os.environ, "DIVANDB_ADMIN": self.credentials}
        before = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.await_true(lambda: b"DivanDB is ready" in self._log_since(before), START_S_MAX)
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

    def restart(self) -> None:
        """Stop cleanly and start again on the same folder and port."""
        assert self.stop() == 0
        self.start()

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
    ) -> tuple[int, Any]:
        """Status and decoded body of one request; ``body`` is sent as JSON unless it is bytes."""
        status, _, content = self.exchange(method, path, body, headers, admin)
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
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and bytes of one request."""
        sent = {"accept": "application/json", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        if admin:
            sent["authorization"] = basic(self.credentials)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.headers, response.read()


def basic(credentials: str) -> str:
    """An `Authorization` header for `USER:PASSWORD`."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """A node in ``folder`` that is stopped at the end."""
    node = Running(folder)
    try:
        node.start(*options)
        yield node
    finally:
        if node.process is not None:
            node.stop()


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
