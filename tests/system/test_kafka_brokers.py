"""Brokers that are set up otherwise: with TLS, and three of them."""

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.kafka import broker as kafka_broker
from deploy.kafka.broker import Broker
from divandb import provision
from divandb.board.base import Refused, Unreachable
from divandb.board.kafka import KafkaBoard
from divandb.board.kafka_client import KafkaBounds
from divandb.cli.boards import SILENT
from divandb.cluster import topics
from divandb.config import BoardAccess, KafkaAccess, Member, TlsFiles, TopicSettings
from divandb.configfile import KafkaFile, read_node
from tests.authority import Authority
from tests.boards import check_prefixes, persist, read_all
from tests.running import COMMAND, POLL_S, STOP_S_MAX, Cluster, basic, clustered, divandb
from tests.system.js_clients import install
from tests.system.load import load
from tests.system.rights import id_of
from tests.system.test_cluster_documents import MOVIES
from tests.system.test_cluster_faults import check_went_on
from tests.system.test_tls import free_port
from tests.system.wire import faults

ADMIN = "admin:a secret"
T = "divandb.test.t"
SEEN_S_MAX = 30.0
SAFE = TopicSettings(replication_factor=3, min_insync_replicas=2)
WITH_LOSS_S = 1.5
"""So long a cluster has one broker less."""


# With TLS


class Trust:
    """An authority, a broker's file that it has signed, and what makes brokers ask for a client's
    certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.broker = folder / "broker.pem"
        files = self.issue(kafka_broker.ADMIN)
        key, certificate = files.certificate_key, files.certificate
        assert key is not None and certificate is not None
        self.broker.write_bytes(key.read_bytes() + certificate.read_bytes())
        self.asking = {
            "listener_name_clients_ssl_client_auth": "required",
            "listener_name_clients_ssl_truststore_location": str(self.authority.certificate),
        }

    def issue(self, name: str) -> TlsFiles:
        """A certificate in this name."""
        return self.authority.issue(self.folder / name, name=name)

    def ways(self, security: str, files: TlsFiles | None = None) -> KafkaAccess:
        """How a client comes that trusts this authority, with a certificate or without."""
        found = files or TlsFiles()
        return KafkaAccess(
            security,
            ca=self.authority.certificate,
            certificate=found.certificate,
            certificate_key=found.certificate_key,
        )


async def opened(access: BoardAccess, body: Callable[[KafkaBoard], Awaitable[Any]]) -> Any:
    """What ``body`` gives, with the boards as they are for this access."""
    board = KafkaBoard(access)
    try:
        return await body(board)
    finally:
        await board.close()


def test_tls_with_a_certificate_that_is_trusted_and_with_another(tmp_path: Path) -> None:
    ours, theirs = Trust(tmp_path), Authority(tmp_path / "theirs")
    ensemble = kafka_broker.planned(certificate=ours.broker)

    async def written(board: KafkaBoard) -> list[bytes]:
        await board.create_topic(T, 1, {})
        await board.publish(T, 0, [b"a"])
        return await read_all(board, T)

    def attempt(ca: Path) -> Any:
        ways = KafkaAccess("sasl_ssl", ca=ca)
        access = BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret, ways)
        return asyncio.run(opened(access, written))

    with kafka_broker.brokers(
        tmp_path,
        ensemble,
        listener_name_clients_ssl_truststore_location=str(ours.authority.certificate),
    ):
        assert attempt(ours.authority.certificate) == [b"a"]
        with pytest.raises(Unreachable, match="certificate verify failed"):
            attempt(theirs.certificate)


def test_brokers_that_ask_for_a_certificate_let_nodes_in_that_have_one(tmp_path: Path) -> None:
    """Those without are told why, and lose nothing."""
    trust = Trust(tmp_path)
    ensemble = kafka_broker.planned(certificate=trust.broker)
    given = {
        "DIVANDB_BOARD_SECURITY": "sasl_ssl",
        "DIVANDB_BOARD_CA": str(trust.authority.certificate),
    }
    files = trust.issue("nodes")
    shown = {
        "DIVANDB_BOARD_CERTIFICATE": str(files.certificate),
        "DIVANDB_BOARD_CERTIFICATE_KEY": str(files.certificate_key),
    }
    with (
        kafka_broker.brokers(tmp_path, ensemble, **trust.asking) as (broker,),
        clustered(tmp_path, masters=1, replicas=1, board=broker, **given, **shown) as cluster,
    ):
        assert cluster.request("PUT", "/db")[0] == 201
        cluster.await_converged()
        cluster.await_true(lambda: reads_all(cluster), SEEN_S_MAX)
        done = check(cluster)
        assert (done.returncode, done.stderr) == (0, "")

        for name in shown:
            del cluster.environment[name]
        done = check(cluster)
        assert done.returncode == SILENT
        assert "certificate" in done.stderr and "no certificate is configured" in done.stderr
        cluster.restart()
        assert cluster.request("PUT", "/db/kept", {"n": 1})[0] == 201
        for node in cluster.nodes:
            cluster.await_true(lambda at=node: all_say(cluster, at, "no certificate"), SEEN_S_MAX)
        assert cluster.status_of("m1")["outbox_rows"] > 0

        cluster.environment |= shown
        cluster.restart()
        cluster.await_true(lambda: reads_all(cluster), SEEN_S_MAX)
        cluster.await_true(lambda: cluster.status_of("m1")["outbox_rows"] == 0, SEEN_S_MAX)
        cluster.await_converged()
        assert cluster.everywhere(lambda at: cluster.request("GET", "/db/kept", node=at)[0]) == 200
        assert faults(cluster) == ""


def check(cluster: Cluster) -> Any:
    """`divandb board check`."""
    return divandb("board", "check", "--data", str(cluster.data), **cluster.environment)


def reads_all(cluster: Cluster) -> bool:
    """Has each node read its boards to their ends, without a fault?"""
    found = [one for at in cluster.nodes for one in status_of_reading(cluster, at)]
    return bool(found) and all(
        one["failing"] is None and one["next"] == one["end"] for one in found
    )


def status_of_reading(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    return list(cluster.status_of(node)["board"]["reading"].values())


def all_say(cluster: Cluster, node: str, words: str) -> bool:
    """Does the node say so of all that it does with the boards?"""
    board = cluster.status_of(node)["board"]
    found = [one["failing"] for one in board["reading"].values()]
    if node in cluster.masters:
        found.append(board["failing"])
    return bool(found) and all(one is not None and words in one for one in found)


@pytest.fixture(scope="module")
def by_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trust, str]]:
    """A broker to whom a certificate says who somebody is, and its URL."""
    folder = tmp_path_factory.mktemp("by-certificate")
    trust = Trust(folder)
    ensemble = kafka_broker.planned(certificate=trust.broker)
    settings = {
        **trust.asking,
        "listener_security_protocol_map": "CLIENTS:SSL,CONTROLLER:SASL_PLAINTEXT",
        "listener_name_clients_ssl_principal_mapping_rules": "RULE:^CN=(.*?)$/$1/",
    }
    with kafka_broker.brokers(folder, ensemble, **settings):
        yield trust, ensemble.url


def test_a_certificate_is_a_principal_where_there_are_no_secrets(
    by_certificate: tuple[Trust, str],
) -> None:
    """Rights are those of its name, and the broker refuses all else."""
    trust, url = by_certificate
    members = (Member("m1", "master", "m1", ""), Member("m1-r1", "replica", "m1", ""))
    cluster = "0" * 32
    own, others = topics.replicas(cluster, "m1"), topics.masters(cluster)

    def access(name: str) -> BoardAccess:
        return BoardAccess(url, name, "", trust.ways("ssl", trust.issue(name)))

    async def as_master(board: KafkaBoard) -> None:
        assert await board.publish(others, 0, [b"a"]) == 0
        assert await board.publish(own, 0, [b"b"]) == 0

    async def as_replica(board: KafkaBoard) -> None:
        assert await read_all(board, own) == [b"b"]
        with pytest.raises(Refused, match="TOPIC_AUTHORIZATION_FAILED"):
            await read_all(board, others)
        with pytest.raises(Refused, match="TOPIC_AUTHORIZATION_FAILED"):
            await board.publish(own, 0, [b"x"])

    async def body() -> None:
        file = KafkaFile(access(kafka_broker.ADMIN), cluster, members, {}, TopicSettings())
        await provision.init(file)
        assert (await provision.check(file, {})).wrong == []
        await opened(access("m1"), as_master)
        await opened(access("m1-r1"), as_replica)

    asyncio.run(body())


def test_who_takes_a_slot_over_goes_on_with_the_certificate_of_its_owner(
    by_certificate: tuple[Trust, str], tmp_path: Path
) -> None:
    trust, url = by_certificate

    def shown(name: str, prefix: str = "BOARD") -> dict[str, str]:
        files = trust.issue(name)
        return {
            f"DIVANDB_{prefix}_CERTIFICATE": str(files.certificate),
            f"DIVANDB_{prefix}_CERTIFICATE_KEY": str(files.certificate_key),
        }

    files, admin = tmp_path / "files", shown(kafka_broker.ADMIN)
    given = {"DIVANDB_BOARD_SECURITY": "ssl", "DIVANDB_BOARD_CA": str(trust.authority.certificate)}
    done = divandb(
        "up", "--print-config", "--hosts", "127.0.0.1", "--masters", "1", "--replicas", "1",
        "--port", str(free_port()), "--data", str(tmp_path / "data"), "--admin", ADMIN,
        "--board", url, "--out", str(files), **given,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = divandb("board", "init", "--config", str(files / "board.toml"), **admin)
    assert done.returncode == 0, done.stderr
    with contextlib.ExitStack() as stack:
        m1 = stack.enter_context(Node(files, "m1", shown("m1")))
        replica = stack.enter_context(
            Node(files, "m1-r1", {**shown("m1-r1"), **shown("m1", "SPARE")})
        )
        for node in (m1, replica):
            node.await_true(lambda at=node: at.request("GET", "/_up")[0] == 200)
        assert replica.request("PUT", "/db")[0] == 201
        replica.await_true(lambda: replica.request("GET", "/db")[0] == 200)
        m1.process.kill()
        replica.await_true(lambda: replica.request("PUT", "/db/later", {"n": 1})[0] == 201)
        replica.await_true(lambda: replica.status["outbox_rows"] == 0)
        replica.await_true(lambda: replica.status["board"]["failing"] is None)
        replica.await_true(lambda: replica.status["board"]["relay_failing"] is None)


class Node:
    """One process, run from its file."""

    def __init__(self, files: Path, name: str, environment: dict[str, str]) -> None:
        path = files / f"{name}.toml"
        self.url = read_node(path, environment).config.url
        self.log = files / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "node", "--config", str(path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **environment},
            )  # fmt: skip

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S_MAX)
        finally:
            self.process.kill()
            self.process.wait()

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON; 0 if nobody answers."""
        host, port = urlsplit(self.url).hostname or "", urlsplit(self.url).port
        connection = http.client.HTTPConnection(host, port, timeout=10)
        headers = {"authorization": basic(ADMIN), "content-type": "application/json"}
        text = None if body is None else json.dumps(body)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        return 0, None

    @property
    def status(self) -> dict[str, Any]:
        """`GET /_divan/status`."""
        found: dict[str, Any] = self.request("GET", "/_divan/status")[1]
        return found

    def await_true(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` holds; an ``AssertionError`` with the log if it does not."""
        deadline = time.monotonic() + SEEN_S_MAX
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(POLL_S)


# Three of them


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Broker]]:
    """Three brokers; every test leaves all of them running."""
    with kafka_broker.brokers(tmp_path_factory.mktemp("three"), kafka_broker.planned(3)) as started:
        yield started
        for one in started:
            one.kill()  # what they hold is not needed any more


def admin_of(brokers: list[Broker]) -> BoardAccess:
    ensemble = brokers[0].ensemble
    return BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret)


async def leader_of(board: KafkaBoard, topic: str) -> int:
    """Which of the brokers leads partition 0, counted from 0."""
    return int((await board.admin._described(topic)).partitions[0].leader.id) - 1


@pytest.mark.timeout_s(240)
def test_a_cluster_on_three_brokers_goes_on_when_one_is_killed(
    three: list[Broker], tmp_path: Path
) -> None:
    """Events go on by the other two, and nothing that was acknowledged is lost."""
    problem = install()
    assert problem is None, problem
    settings = {"REPLICATION_FACTOR": 3, "MIN_INSYNC_REPLICAS": 2}
    given = {f"DIVANDB_BOARD_{key}": str(value) for key, value in settings.items()}
    with clustered(tmp_path, masters=2, replicas=1, board=three[0], **given) as cluster:
        topic = topics.masters(id_of(cluster))
        place = ["--url", cluster.url, "--user", cluster.credentials]
        leader = asyncio.run(opened(admin_of(three), lambda board: leader_of(board, topic)))
        with load(cluster, "db", ["m1", "m2-r1", None]) as busy:
            done = divandb("import", "movies", str(MOVIES), *place)
            assert done.returncode == 0, done.stderr
            three[leader].kill()
            since = time.monotonic()
            before = reached(cluster)
            # What is acknowledged from here on comes to the others by two brokers.
            cluster.await_true(lambda: has_gone_on(cluster, before), SEEN_S_MAX)
            time.sleep(max(since + WITH_LOSS_S - time.monotonic(), 0))
            until = time.monotonic()
            three[leader].start()
            three[leader].await_up()
        check_went_on(busy, since, until)
        found = cluster.await_converged()
        busy.check()
        assert found["movies"]["doc_count"] > 3000
        cluster.await_true(lambda: reads_all(cluster), SEEN_S_MAX)
        done = check(cluster)
        assert (done.returncode, done.stderr) == (0, "")
        assert cluster.stop() == 0
        assert faults(cluster) == ""


def reached(cluster: Cluster) -> dict[str, list[int]]:
    """How far each node has read each of its boards."""
    return {at: [one["next"] for one in status_of_reading(cluster, at)] for at in cluster.nodes}


def has_gone_on(cluster: Cluster, before: dict[str, list[int]]) -> bool:
    """Has each node read something more from each of its boards?"""
    after = reached(cluster)
    return all(new > old for at in before for old, new in zip(before[at], after[at], strict=True))


@pytest.mark.timeout_s(240)
def test_with_two_of_three_brokers_dead_nothing_counts_as_published(three: list[Broker]) -> None:
    """Until one of them is back; and what did count before is there."""

    async def body() -> None:
        board = KafkaBoard(admin_of(three), topics=SAFE)
        await board.create_topic(T, 1, {})
        assert await board.admin.copies(T) == 3
        for number in range(100):
            await persist(board, T, b"%d" % number)
        leader = await leader_of(board, T)
        dead = [one for number, one in enumerate(three) if number != leader]
        for one in dead:
            await asyncio.to_thread(one.kill)
        hasty = KafkaBoard(admin_of(three), bounds=KafkaBounds(answer_s_max=2.0))
        with pytest.raises(Unreachable):
            await hasty.publish(T, 0, [b"100"])
        await hasty.close()
        for one in dead:
            one.start()
        for one in dead:
            await asyncio.to_thread(one.await_up)
        await persist(board, T, b"100")
        check_prefixes(await read_all(board, T), 101)
        await board.close()

    asyncio.run(body())
