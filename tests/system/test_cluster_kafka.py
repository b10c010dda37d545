"""A cluster whose Event Boards are on a real Kafka broker.

All tests of clusters run on Kafka with DIVANDB_TEST_BOARD=kafka; here are those that always do, and
the misfortunes that only Kafka has.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from deploy.kafka import broker as kafka_broker
from divandb import datadir
from divandb.board.base import Refused, TopicInfo
from divandb.board.kafka import KafkaBoard
from divandb.board.kafka_client import KafkaBounds, common
from divandb.cli.boards import POOR, SILENT, WRONG
from divandb.cluster import topics, trust
from divandb.config import BoardAccess, Member
from tests.running import BOARD, KAFKA, Cluster, clustered, divandb
from tests.system.load import load
from tests.system.rights import id_of, secret_of
from tests.system.test_cluster_documents import (  # noqa: F401 - run here, too
    test_three_thousand_movies_are_complete_and_identical_on_all_nodes,
)
from tests.system.test_cluster_faults import (  # noqa: F401 - run here, too
    OUTAGE_S,
    test_every_process_is_killed_in_turn_in_the_middle_of_writes,
    test_writes_go_on_while_the_board_is_stopped,
)
from tests.system.wire import faults

SEEN_S_MAX = 30.0
"""From a misfortune until `status` says so."""
KIB = 2**10
pytestmark = pytest.mark.timeout_s(240 + 3 * OUTAGE_S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters with three replicas each."""
    with clustered(tmp_path_factory.mktemp("kafka-cluster"), board=KAFKA) as started:
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with two replicas each; every test leaves it in order."""
    folder = tmp_path_factory.mktemp("kafka-own")
    with clustered(folder, masters=2, replicas=2, board=KAFKA) as started:
        yield started
        assert started.stop() == 0
        assert faults(started) == ""


@pytest.fixture
def db(request: pytest.FixtureRequest) -> str:
    """A new database, which is there on all nodes of the test's cluster."""
    where: Cluster = request.getfixturevalue("own" if "own" in request.fixturenames else "cluster")
    name = f"db-{uuid4().hex}"
    assert where.request("PUT", f"/{name}")[0] == 201
    where.await_converged()
    return name


# The boards, from outside


def access(cluster: Cluster, principal: str) -> BoardAccess:
    """How a principal opens the boards."""
    assert cluster.broker is not None
    ensemble = cluster.broker.ensemble
    if principal == kafka_broker.ADMIN:
        return BoardAccess(ensemble.url, principal, ensemble.secret)
    return BoardAccess(ensemble.url, principal, trust.board_secret(secret_of(cluster), principal))


def with_board(
    cluster: Cluster, principal: str, body: Callable[[KafkaBoard], Coroutine[Any, Any, Any]]
) -> Any:
    """What ``body`` gives, with the boards as this principal sees them."""

    async def run() -> Any:
        board = KafkaBoard(access(cluster, principal))
        try:
            return await body(board)
        finally:
            await board.close()

    return asyncio.run(run())


def described(cluster: Cluster, topic: str) -> TopicInfo:
    found: TopicInfo = with_board(cluster, kafka_broker.ADMIN, lambda board: board.describe(topic))
    return found


def admin_of(cluster: Cluster) -> AdminClient:
    return AdminClient(common(access(cluster, kafka_broker.ADMIN), KafkaBounds()))


def alter(cluster: Cluster, topic: str, **settings: object) -> None:
    """Give a topic other settings; ``_`` stands for ``.``."""
    entries = [
        ConfigEntry(name.replace("_", "."), str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    admin = admin_of(cluster)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(10)


def boards(cluster: Cluster, command: str) -> Any:
    """`divandb board init` or `check`."""
    return divandb("board", command, "--data", str(cluster.data), **cluster.environment)


def write_at_all(cluster: Cluster, db: str, text: str = "x") -> None:
    """A document at each node."""
    for node in cluster.nodes:
        path = f"/{db}/{uuid4().hex}"
        status, answer = cluster.request("PUT", path, {"text": text}, node=node)
        assert status == 201, answer


# The board killed


def test_a_broker_killed_under_load_costs_nothing(cluster: Cluster, db: str) -> None:
    assert cluster.broker is not None
    with load(cluster, db, ["m1", "m2", "m3-r1", "m1-r2", None]) as busy:
        time.sleep(1.0)
        cluster.kill(BOARD)
        time.sleep(1.0)
        cluster.broker.kill()
        for name in ("m1", "m2-r1"):
            cluster.await_true(lambda at=name: bool(failures(cluster, at)), SEEN_S_MAX)
        cluster.broker.start()
        cluster.broker.await_up()
        time.sleep(1.0)
    cluster.await_converged()
    busy.check()
    cluster.await_true(lambda: all_well(cluster), SEEN_S_MAX)
    assert boards(cluster, "check").returncode == 0


# Rule 3: the broker refuses


def test_the_broker_itself_refuses_a_replica_on_others_boards(own: Cluster) -> None:
    masters = topics.masters(id_of(own))
    mine, others = topics.replicas(id_of(own), "m1"), topics.replicas(id_of(own), "m2")
    settings = common(access(own, "m1-r1"), KafkaBounds())
    for topic in (masters, others):
        assert produced(settings, topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED
        assert consumed(settings, topic) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert produced(settings, mine) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert consumed(settings, mine) is None


def test_the_broker_itself_refuses_a_master_on_another_groups_board(own: Cluster) -> None:
    settings = common(access(own, "m1"), KafkaBounds())
    others = topics.replicas(id_of(own), "m2")
    assert produced(settings, others) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert consumed(settings, others) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert consumed(settings, topics.masters(id_of(own))) is None


def produced(settings: dict[str, Any], topic: str) -> int | None:
    """The code of the broker's error for a message from a plain producer."""
    producer = Producer(settings)
    codes: list[int | None] = []
    producer.produce(
        topic,
        b"x",
        partition=0,
        on_delivery=lambda problem, _: codes.append(problem and problem.code()),
    )
    producer.flush(20)
    (code,) = codes
    return code


def consumed(settings: dict[str, Any], topic: str) -> int | None:
    """The code of the broker's error for a plain consumer; ``None``: a message, or the end."""
    own = {"group.id": "divandb.test", "enable.auto.commit": False, "enable.partition.eof": True}
    consumer = Consumer(settings | own)
    try:
        problem = consumer.list_topics(topic, timeout=20).topics[topic].error
        if problem is None:
            consumer.assign([TopicPartition(topic, 0, 0)])
            (message,) = consumer.consume(1, 20)
            problem = message.error()
        is_end = problem is not None and problem.code() == KafkaError._PARTITION_EOF
        return None if problem is None or is_end else problem.code()
    finally:
        consumer.close()


def test_a_client_says_the_brokers_words(own: Cluster) -> None:
    topic = topics.masters(id_of(own))
    for attempt in (
        lambda board: board.read(topic, 0, 0, bytes_max=1, wait_s=0),
        lambda board: board.publish(topic, 0, [b"x"]),
    ):
        with pytest.raises(Refused, match="TOPIC_AUTHORIZATION_FAILED"):
            with_board(own, "m1-r1", attempt)


# Logs that are not what they were


def test_topics_that_are_deleted_and_made_again_lose_nothing(own: Cluster, db: str) -> None:
    """Trace 18: each has another identity; what it lacks, nodes fetch from each other."""
    write_at_all(own, db)
    names = list(topics.layout(id_of(own), members(own)))
    before = {topic: described(own, topic).identity for topic in names}
    with load(own, db, ["m1", "m2-r1"]) as busy:
        admin = admin_of(own)
        for done in admin.delete_topics(names).values():
            done.result(10)
        own.await_true(lambda: says(own, "m1", "UNKNOWN_TOPIC"), SEEN_S_MAX)
        done = boards(own, "check")
        assert done.returncode == WRONG
        assert f"{names[0]}: " in done.stderr
        done = boards(own, "init")
        assert done.returncode == 0, done.stderr
        own.await_true(lambda: all_well(own), SEEN_S_MAX)
    write_at_all(own, db)
    own.await_converged()
    busy.check()
    assert all(described(own, topic).identity != before[topic] for topic in names)
    for node in own.nodes:
        for reading in own.status_of(node)["board"]["reading"].values():
            assert reading["next"] == reading["end"]


def members(cluster: Cluster) -> list[Member]:
    return [Member(one.name, one.role, one.slot, "") for one in datadir.read_members(cluster.data)]


def failures(cluster: Cluster, node: str) -> list[str]:
    """What a node says of the boards that fails just now."""
    board = cluster.status_of(node)["board"]
    found = [board["failing"], board["relay_failing"]]
    found += [one["failing"] for one in board["reading"].values()]
    return [one for one in found if one]


def says(cluster: Cluster, node: str, words: str) -> bool:
    return any(words in one for one in failures(cluster, node))


def all_well(cluster: Cluster) -> bool:
    return not any(failures(cluster, node) for node in cluster.nodes)


def test_retention_that_passes_a_reader_costs_it_nothing(own: Cluster, db: str) -> None:
    topic = topics.replicas(id_of(own), "m1")
    alter(own, topic, segment_bytes=1024 * KIB, retention_bytes=1024 * KIB)
    write_at_all(own, db)
    own.await_converged()
    place = own.status_of("m1-r1")["board"]["reading"]["replicas"]["next"]
    with own.frozen("m1-r1"):
        await_passed(own, db, topic, place)
    own.await_converged()
    own.await_true(lambda: all_well(own), SEEN_S_MAX)
    alter(own, topic, segment_bytes=1024 * 1024 * KIB, retention_bytes=1024 * 1024 * KIB)


def await_passed(cluster: Cluster, db: str, topic: str, place: int) -> None:
    """Write to m1 until retention has taken what lies at ``place`` in this topic."""
    text = os.urandom(200 * KIB).hex()
    for number in range(20):
        status, answer = cluster.request("PUT", f"/{db}/{uuid4().hex}", {"text": text}, node="m1")
        assert status == 201, (number, answer)
    cluster.await_true(lambda: described(cluster, topic).partitions[0].start > place, 60)


def test_retention_that_passes_a_reader_again_in_the_middle_of_its_catch_up_costs_it_nothing(
    own: Cluster, db: str
) -> None:
    """It is stopped as soon as it has begun to get what it lacks, and the log goes on."""
    topic = topics.replicas(id_of(own), "m1")
    alter(own, topic, segment_bytes=1024 * KIB, retention_bytes=1024 * KIB)
    write_at_all(own, db)
    own.await_converged()
    before = own.status_of("m1-r1")["vector"]
    with own.frozen("m1-r1"):
        place = described(own, topic).partitions[0].end
        await_passed(own, db, topic, place)
    for _ in range(2):
        # Not alike yet: it has just begun.
        own.await_true(lambda: own.answers("m1-r1"))
        with own.frozen("m1-r1"):
            place = described(own, topic).partitions[0].end
            await_passed(own, db, topic, place)
    own.await_converged()
    assert own.status_of("m1-r1")["vector"] != before
    own.await_true(lambda: all_well(own), SEEN_S_MAX)
    alter(own, topic, segment_bytes=1024 * 1024 * KIB, retention_bytes=1024 * 1024 * KIB)


def test_logs_that_have_lost_their_ends_lose_nothing(own: Cluster, db: str) -> None:
    """The same topics, cut off behind their first message: who has read further does not wait for
    them to grow to where it is.
    """
    assert own.broker is not None
    for _ in range(5):
        write_at_all(own, db)
    own.await_converged()
    names = [name for name in topics.layout(id_of(own), members(own)) if "claims" not in name]
    before = {topic: described(own, topic) for topic in names}
    own.broker.stop()
    lost = {
        folder.name: cut_short(folder)
        for topic in names
        for folder in (own.broker.folder / "data").glob(f"{topic}-[0-9]*")
    }
    assert all(size > 0 for size in lost.values()), lost
    write_at_all(own, db)
    own.broker.start()
    own.broker.await_up()
    own.await_true(lambda: all_well(own), SEEN_S_MAX)
    write_at_all(own, db)
    own.await_converged()
    after = {topic: described(own, topic) for topic in names}
    assert all(after[topic].identity == before[topic].identity for topic in names)
    for node in own.nodes:
        for reading in own.status_of(node)["board"]["reading"].values():
            assert reading["next"] == reading["end"]


def cut_short(folder: Path) -> int:
    """Leave of a stopped broker's partition its first record batch alone; how many bytes go."""
    size_before = sum(path.stat().st_size for path in folder.glob("*.log"))
    segments = sorted(folder.glob("*.log"))
    with open(segments[0], "r+b") as log:
        log.seek(8)
        size = int.from_bytes(log.read(4), "big")
        log.truncate(12 + size)
    for path in folder.iterdir():
        if path != segments[0] and path.name != "partition.metadata":
            path.unlink()
    # Without these it looks at what is there, instead of believing what it wrote down.
    for name in (".kafka_cleanshutdown", "recovery-point-offset-checkpoint"):
        (folder.parent / name).unlink(missing_ok=True)
    return size_before - 12 - size


def test_a_smaller_limit_is_told_and_larger_documents_go_in_pieces(own: Cluster, db: str) -> None:
    names = [topics.masters(id_of(own)), topics.replicas(id_of(own), "m1")]
    for topic in names:
        alter(own, topic, max_message_bytes=400 * KIB)
    text = os.urandom(350 * KIB).hex()
    assert own.request("PUT", f"/{db}/large", {"text": text}, node="m1")[0] == 201
    write_at_all(own, db)
    own.await_true(lambda: set(own.status_of("m1")["board"]["small"]) == set(names), SEEN_S_MAX)
    own.await_converged()
    assert own.everywhere(lambda at: own.request("GET", f"/{db}/large", node=at)[1]["text"]) == text
    assert "m1 small messages only topic=" in own.log.read_text()
    done = boards(own, "check")
    assert done.returncode == POOR
    assert f"{names[0]}: takes messages of {399 * KIB} bytes, not {1024 * KIB}" in done.stderr
    for topic in names:
        alter(own, topic, max_message_bytes=1025 * KIB)
    own.await_true(lambda: own.status_of("m1")["board"]["small"] == {}, SEEN_S_MAX)


def test_a_smaller_limit_is_told_at_the_start_before_there_is_a_large_document(
    own: Cluster,
) -> None:
    """By `divandb up`, which looks at the boards first, and by the nodes themselves."""
    names = [topics.masters(id_of(own)), topics.replicas(id_of(own), "m1")]
    for topic in names:
        alter(own, topic, max_message_bytes=400 * KIB)
    before = len(own.log.read_text())
    own.restart()
    own.await_true(lambda: set(own.status_of("m1")["board"]["small"]) == set(names), SEEN_S_MAX)
    said = own.log.read_text()[before:]
    for topic in names:
        assert f"divandb: {topic}: takes messages of {399 * KIB} bytes, not {1024 * KIB}" in said
        assert f"m1 small messages only topic={topic} limit={399 * KIB}" in said
    for topic in names:  # which nodes notice in the next ten seconds
        alter(own, topic, max_message_bytes=1025 * KIB)


def test_refused_credentials_are_told_and_cost_nothing(own: Cluster, db: str) -> None:
    """The secret of a master and of a replica are changed behind their backs."""

    async def change(board: KafkaBoard) -> None:
        for name in ("m1", "m2-r1"):
            await board.set_principal(name, "another secret, by mistake")

    with load(own, db, ["m1", "m2", "m2-r1"]) as busy:
        with_board(own, kafka_broker.ADMIN, change)
        own.kill(BOARD)  # who is logged in stays so
        for name in ("m1", "m2-r1"):
            own.await_true(lambda name=name: says(own, name, "Authentication failed"), SEEN_S_MAX)
        assert boards(own, "init").returncode == 0
        own.await_true(lambda: all_well(own), SEEN_S_MAX)
    own.await_converged()
    busy.check()


# Commands


def test_check_shows_offsets_lag_and_rights(own: Cluster, tmp_path: Path) -> None:
    own.await_converged()
    done = boards(own, "check")
    assert (done.returncode, done.stderr) == (0, "")
    cluster = id_of(own)
    lines = [line.split() for line in done.stdout.splitlines()]
    masters, group = topics.masters(cluster), topics.replicas(cluster, "m1")
    end = str(described(own, masters).partitions[1].end)
    assert [masters, "1", "0", end, str(1024 * KIB)] in lines
    end = str(described(own, group).partitions[0].end)
    assert ["m1-r1", group, "0", end, "0"] in lines
    assert ["m1-r1", masters, "-"] in lines
    assert ["m1-r1", group, "read"] in lines
    assert ["m2", topics.claims(cluster), "read", "write"] in lines


def test_without_an_admin_boards_that_are_not_set_up_are_not_started_on(
    own: Cluster, tmp_path: Path
) -> None:
    assert own.broker is not None
    place = ["--data", str(tmp_path / "data"), "--port", "0", "--masters", "2", "--replicas", "0"]
    done = divandb("up", *place, "--board", own.broker.ensemble.url)
    assert done.returncode == 1
    assert "m1" in done.stderr and "with DIVANDB_BOARD_ADMIN_SECRET they are set up" in done.stderr


def test_without_an_admin_nobody_is_removed_who_would_keep_its_rights(own: Cluster) -> None:
    done = divandb("remove", "m2-r2", "--data", str(own.data))
    assert done.returncode == 1
    assert "it takes an admin: set DIVANDB_BOARD_ADMIN_SECRET" in done.stderr
    assert own.status_of("m2-r2")["removed"] is False


def test_a_cluster_starts_again_while_no_broker_answers(own: Cluster, db: str) -> None:
    assert own.broker is not None
    own.broker.stop()
    assert boards(own, "check").returncode == SILENT
    own.restart()
    write_at_all(own, db)
    own.await_true(lambda: bool(failures(own, "m1")), SEEN_S_MAX)
    own.broker.start()
    own.broker.await_up()
    own.await_true(lambda: all_well(own), SEEN_S_MAX)
    own.await_converged()


def test_files_for_several_hosts_set_the_boards_up_and_let_a_node_check_them(
    own: Cluster, tmp_path: Path
) -> None:
    assert own.broker is not None
    out = tmp_path / "files"
    url = own.broker.ensemble.url
    place = ["--hosts", "127.0.0.1", "--masters", "2", "--replicas", "1", "--out", str(out)]
    done = divandb("up", "--print-config", *place, "--board", url, **own.environment)
    assert done.returncode == 0, done.stderr
    assert divandb("board", "--config", str(out / "board.toml")).returncode == 1
    node = ["board", "check", "--config", str(out / "m1-r1.toml")]
    assert divandb(*node).returncode == 1
    done = divandb("board", "init", "--config", str(out / "board.toml"))
    assert done.returncode == 0, done.stderr
    assert ".masters" in done.stdout
    done = divandb(*node)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[0] for line in done.stdout.splitlines() if "read" in line} == {"m1-r1"}
