"""The proxy of `deploy/compose`, before a real node and others that are down."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import POLL_S, Running

CONFIG = Path(__file__).parents[2] / "deploy" / "compose" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or "haproxy"
START_S_MAX = 20.0
LOGINS_MAX = 30


@contextlib.contextmanager
def proxied(folder: Path, alive: str, port: int) -> Iterator[int]:
    """The proxy's port, while it runs with one of its nodes at ``port`` and the others down."""
    with socket.socket() as down, socket.socket() as free:
        down.bind(("127.0.0.1", 0))  # bound, so that nobody listens there
        free.bind(("127.0.0.1", 0))
        own, refusing = free.getsockname()[1], down.getsockname()[1]
        free.close()
        text = CONFIG.read_text().replace("bind :5984", f"bind 127.0.0.1:{own}")
        text = text.replace(" resolvers docker init-addr none", "")
        text = re.sub(r"^(    server (\S+)) \S+", rf"\1 127.0.0.1:{refusing}", text, flags=re.M)
        text = text.replace(
            f"server {alive} 127.0.0.1:{refusing}", f"server {alive} 127.0.0.1:{port}"
        )
        file = folder / "haproxy.cfg"
        file.write_text(text)
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([HAPROXY, "-db", "-f", str(file)], stdout=log, stderr=log)
        try:
            yield own
        finally:
            process.terminate()
            process.wait()


def status(port: int, method: str = "GET", path: str = "/", body: str = "") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        form = {"content-type": "application/x-www-form-urlencoded"} if body else {}
        connection.request(method, path, body, form)
        return connection.getresponse().status


def await_answers(port: int) -> None:
    """Until the checks have told the node that is up from the others."""
    deadline = time.monotonic() + START_S_MAX
    while True:
        with contextlib.suppress(OSError):
            if [status(port) for _ in range(24)] == [200] * 24:
                return
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def test_haproxy_takes_the_configuration_without_a_warning() -> None:
    done = subprocess.run(
        [HAPROXY, "-c", "-f", CONFIG], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout


@pytest.mark.parametrize("alive", ["m2-r3", "m3"])
def test_clients_are_sent_to_the_node_that_answers(
    tmp_path: Path, node: Running, alive: str
) -> None:
    """A replica, or a master when there is no other."""
    with proxied(tmp_path, alive, node.port) as port:
        await_answers(port)
        assert status(port, "GET", "/_all_dbs") == 401


def test_who_guesses_passwords_is_stopped_by_the_proxy(tmp_path: Path, node: Running) -> None:
    """Nodes see one address for all."""
    with proxied(tmp_path, "m1-r1", node.port) as port:
        await_answers(port)
        guesses = [
            status(port, "POST", "/_session", f"name=nobody&password={number}")
            for number in range(LOGINS_MAX + 5)
        ]
        assert 429 not in guesses[:LOGINS_MAX]
        assert guesses[LOGINS_MAX + 1 :] == [429] * 4
        assert status(port) == 200
