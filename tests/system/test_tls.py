"""A cluster as several hosts would run it, with TLS on every connection."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from divandb.configfile import read_node
from divandb.tls import HANDSHAKE_S_MAX
from tests.authority import Authority
from tests.running import COMMAND, CONVERGE_S_MAX, POLL_S, START_S_MAX, STOP_S_MAX, divandb

ADMIN = "admin:a secret"
HOST = "127.0.0.1"
NODES = ["m1", "m2", "m1-r1", "m2-r1"]
BOARD = "board"


def free_port() -> int:
    """For clients; those that `--print-config` takes for the board and nodes are free as well."""
    for port in range(20_000, 30_000, 10):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in (port, *range(port + 1000, port + 1001 + len(NODES))):
                stack.enter_context(socket.create_server((HOST, number)))
            return port
    raise AssertionError("no port is free")


class Secured:
    """Two masters with a replica each and a board; each process is run from its file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours, self.theirs = Authority(folder / "ours"), Authority(folder / "theirs")
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        tls = folder / "tls"
        self.ours.issue(tls)
        done = divandb(
            "up", "--print-config", "--hosts", HOST, "--masters", "2", "--replicas", "1",
            "--port", str(self.port), "--data", str(folder / "data"), "--tls", str(tls),
            "--out", str(folder / "files"), "--admin", ADMIN,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def tls_of(self, name: str) -> Path:
        """The folder with a process's certificate."""
        return self.folder / f"tls-{name}"

    def start(self, name: str, *, is_plain: bool = False) -> None:
        """Run a process; each has a certificate of its own."""
        if not self.tls_of(name).exists():
            self.ours.issue(self.tls_of(name))
        prefix = "DIVANDB_BOARD_" if name == BOARD else "DIVANDB_"
        own = {
            f"{prefix}CERTIFICATE": str(self.tls_of(name) / "tls.crt"),
            f"{prefix}CERTIFICATE_KEY": str(self.tls_of(name) / "tls.key"),
        }
        # Who is distrusted here is to stay who it is.
        variables = {"DIVANDB_FAILOVER_MS": "600000"} if name != BOARD else {}
        variables |= {} if is_plain else own
        command = [*COMMAND, "board" if name == BOARD else "node"]
        with open(self.log(name), "ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--config", str(self.folder / "files" / f"{name}.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **variables},
            )  # fmt: skip

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        try:
            assert process.wait(STOP_S_MAX) == 0, self.said(name)
        finally:
            process.kill()
            process.wait()

    def hang_up(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGHUP)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text()

    def url(self, name: str | None = None) -> str:
        """A node's own; without a name, the clients'."""
        if name is None:
            return f"https://{HOST}:{self.port}"
        return read_node(self.folder / "files" / f"{name}.toml", {}).config.url

    def curl(self, url: str, *options: str, ca: Path | None = None) -> Any:
        """curl's ``CompletedProcess``."""
        trusted = str(ca or self.ours.certificate)
        command = ["curl", "-sS", "--max-time", "10", "--cacert", trusted, "-u", ADMIN, *options]
        return subprocess.run([*command, url], capture_output=True, text=True, check=False)

    def ask(self, path: str, *options: str, node: str | None = None) -> Any:
        """The JSON of an answer."""
        done = self.curl(self.url(node) + path, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def await_true(self, condition: Callable[[], object], wait_s: float = CONVERGE_S_MAX) -> None:
        deadline = time.monotonic() + wait_s
        while not condition():
            logs = "\n".join(self.said(name)[-2000:] for name in (*NODES, BOARD))
            assert time.monotonic() < deadline, logs
            time.sleep(POLL_S)

    def is_up(self, name: str) -> bool:
        done = self.curl(f"{self.url(name)}/_up", "-f")
        return bool(done.returncode == 0)

    def contents(self, db: str, name: str) -> Any:
        found = self.ask(f"/{db}/_divan/digest", node=name)
        return [found.get(key) for key in ("digest", "doc_count", "vector")]

    def await_converged(self, db: str, docs: int) -> None:
        def alike() -> bool:
            found = [self.contents(db, name) for name in NODES]
            return found[0][1] == docs and all(one == found[0] for one in found)

        self.await_true(alike)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    cluster = Secured(tmp_path_factory.mktemp("tls"))
    try:
        for name in (BOARD, *NODES):
            cluster.start(name)
        for name in NODES:
            cluster.await_true(lambda name=name: cluster.is_up(name), START_S_MAX)
        path = "/_node/_local/_config/chttpd_auth/iterations"
        cluster.ask(path, "-X", "PUT", "-d", '"1000"', node="m1")
        yield cluster
        for name in (*NODES, BOARD):
            assert "Traceback" not in cluster.said(name)
            cluster.stop(name)
    finally:
        for process in cluster.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def silent(secured: Secured) -> Iterator[tuple[socket.socket, float]]:
    """A connection that says nothing, and when it was opened."""
    with socket.create_connection((HOST, secured.port), HANDSHAKE_S_MAX + 10) as connection:
        yield connection, time.monotonic()


def test_what_is_written_by_curl_comes_to_all_nodes(
    secured: Secured, silent: tuple[socket.socket, float]
) -> None:
    """Over the boards, the links between nodes and, while the board is away, catch-up."""
    assert secured.ask("/all", "-X", "PUT", node="m1") == {"ok": True}
    for name in NODES:
        document = secured.ask(f"/all/of-{name}", "-X", "PUT", "-d", '{"a": 1}', node=name)
        assert document["ok"]
    secured.await_converged("all", len(NODES))

    large = secured.folder / "large"
    large.write_bytes(os.urandom(3_000_000))
    put = ["-X", "PUT", "-H", "content-type: x/y", "--data-binary", f"@{large}"]
    assert secured.ask("/all/file/bytes", *put)["ok"]
    secured.await_converged("all", len(NODES) + 1)
    got = secured.folder / "got"
    for name in NODES:
        url = f"{secured.url(name)}/all/file/bytes"
        assert secured.curl(url, "-o", str(got)).returncode == 0
        assert got.read_bytes() == large.read_bytes()

    secured.stop(BOARD)
    before = secured.ask("/_divan/status", node="m2-r1")["caught_up_events"]
    assert secured.ask("/all/without", "-X", "PUT", "-d", "{}", node="m1")["ok"]
    secured.await_converged("all", len(NODES) + 2)
    assert secured.ask("/_divan/status", node="m2-r1")["caught_up_events"] > before
    # What this session wrote is not there in time: another node is asked.
    with_session = ["-H", "divan-max-staleness: 0"]
    assert secured.ask("/all/without", *with_session, node="m2-r1")["_id"] == "without"
    secured.start(BOARD)

    connection, opened = silent
    assert connection.recv(1) == b""
    assert time.monotonic() - opened < HANDSHAKE_S_MAX + 5


def test_a_node_that_has_lost_its_file_copies_a_peers(secured: Secured) -> None:
    assert secured.ask("/lost", "-X", "PUT", node="m2") == {"ok": True}
    secured.await_converged("lost", 0)
    secured.stop("m2-r1")
    shutil.rmtree(secured.folder / "data" / "m2-r1")
    secured.start("m2-r1")
    secured.await_true(lambda: secured.is_up("m2-r1"))
    assert "snapshot taken over" in secured.said("m2-r1")
    secured.await_converged("lost", 0)


def test_only_tls_is_spoken(secured: Secured) -> None:
    for url in (secured.url(), secured.url("m1"), f"https://{HOST}:{secured.port + 1000}"):
        path = "/board/v1/_up" if url.endswith(str(secured.port + 1000)) else "/_up"
        assert secured.curl(url + path, "-f").returncode == 0
        assert secured.curl(url.replace("https", "http") + path).returncode != 0
        refused = secured.curl(url + path, ca=secured.theirs.certificate)
        assert refused.returncode == 60, refused.stderr  # curl: the certificate is not trusted
        old = secured.curl(url + path, "--tls-max", "1.1")
        assert old.returncode != 0


def test_cookies_are_marked_secure(secured: Secured) -> None:
    login = ["-X", "POST", "-d", "name=admin&password=a+secret", "-i", "-o", "-"]
    answer = secured.curl(f"{secured.url()}/_session", *login).stdout.lower()
    (cookie,) = [line for line in answer.splitlines() if line.startswith("set-cookie: authsession")]
    assert "; secure" in cookie


def test_status_asks_the_nodes_with_the_authority_that_it_is_given(secured: Secured) -> None:
    options = ["status", "--url", secured.url("m1"), "--json"]
    trusting = {"SSL_CERT_FILE": str(secured.ours.certificate), "DIVANDB_ADMIN": ADMIN}
    found = divandb(*options, **trusting)
    assert found.returncode == 0, found.stderr
    nodes = json.loads(found.stdout)["nodes"]
    assert sorted(node["name"] for node in nodes if node["up"]) == sorted(NODES)
    wary = divandb(*options, DIVANDB_ADMIN=ADMIN)
    assert wary.returncode == 1


def test_a_peer_of_another_authority_is_refused_until_it_has_a_good_certificate(
    secured: Secured,
) -> None:
    """And the good one is taken at SIGHUP, without a restart."""
    assert secured.ask("/peer", "-X", "PUT", node="m1") == {"ok": True}
    secured.await_converged("peer", 0)
    tls, refusal = (
        secured.tls_of("m2"),
        f"{secured.url('m2')} shows a certificate that is not trusted",
    )
    secured.stop("m2")
    secured.theirs.issue(tls)
    secured.start("m2")
    secured.await_true(lambda: refusal in secured.said("m1") and refusal in secured.said("m2-r1"))
    (line,) = [one for one in secured.said("m1").splitlines() if refusal in one]
    assert "no heartbeat peer=m2 " in line
    (peer,) = [
        one for one in secured.ask("/_divan/status", node="m1")["peers"] if one["name"] == "m2"
    ]
    assert not peer["live"]

    good = secured.folder / "good"
    secured.ours.issue(good)
    shutil.copy(good / "tls.key", tls)  # half of a pair is not taken
    secured.hang_up("m2")
    secured.await_true(lambda: "certificates stay as they were" in secured.said("m2"))
    shutil.copy(good / "tls.crt", tls)
    secured.hang_up("m2")
    secured.await_true(lambda: "certificates are read again" in secured.said("m2"))
    assert secured.ask("/peer/late", "-X", "PUT", "-d", "{}", node="m2")["ok"]
    secured.await_converged("peer", 1)


def test_a_node_moves_from_plain_to_tls_while_the_others_go_on(secured: Secured) -> None:
    """Its peers go where its heartbeats say that it is."""
    assert secured.ask("/moved", "-X", "PUT", node="m1") == {"ok": True}
    file = secured.folder / "files" / "m2.toml"
    with_tls = file.read_text()
    plain = re.sub(r"^certificate.*\n", "", with_tls, flags=re.M)
    for number, text in enumerate((plain.replace('"https://', '"http://', 1), with_tls), 1):
        secured.stop("m2")
        file.write_text(text)
        secured.start("m2", is_plain=text != with_tls)
        secured.await_true(lambda: secured.is_up("m2"))
        for name in ("m1", "m2", "m2-r1"):
            assert secured.ask(f"/moved/{name}-{number}", "-X", "PUT", "-d", "{}", node=name)["ok"]
        secured.await_converged("moved", 3 * number)


def test_the_board_takes_a_new_certificate_at_a_hangup(secured: Secured) -> None:
    secured.theirs.issue(secured.tls_of(BOARD))
    secured.hang_up(BOARD)
    secured.await_true(lambda: "certificates are read again" in secured.said(BOARD))
    board = f"https://{HOST}:{secured.port + 1000}/board/v1/_up"
    assert secured.curl(board, ca=secured.theirs.certificate).returncode == 0
    secured.ours.issue(secured.tls_of(BOARD))
    secured.hang_up(BOARD)
    secured.await_true(lambda: secured.curl(board, "-f").returncode == 0)


def test_a_certificate_that_cannot_be_read_ends_the_start_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "m1.toml"
    file.write_text(
        'name = "m1"\nrole = "master"\nslot = "m1"\ndata = "d"\nnode_port = 6985\n'
        'certificate = "none.pem"\n'
    )
    done = divandb("node", "--config", str(file), DIVANDB_NODE_PORT=str(free_port()))
    assert done.returncode == 1
    assert done.stderr == f"divandb: {tmp_path}/none.pem: No such file or directory\n"
