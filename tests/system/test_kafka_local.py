"""`divandb up --board kafka-local`: the cluster runs its own Kafka broker."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divandb import datadir, localkafka
from divandb.board.base import Unidentified
from divandb.board.kafka import KafkaBoard
from divandb.cluster import trust
from divandb.config import BoardAccess
from divandb.localkafka import JARS, LOCAL
from tests.running import Cluster, divandb, started
from tests.system.wire import faults

BROKER = "kafka"
pytestmark = pytest.mark.timeout_s(240)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters with a replica each, and a broker; every test leaves it in order."""
    cluster = Cluster(tmp_path_factory.mktemp("kafka-local"), masters=3, replicas=1)
    cluster.options += ["--board", LOCAL]
    with started(cluster):
        yield cluster
        assert cluster.stop() == 0
        assert faults(cluster) == ""


def wrote(cluster: Cluster, db: str) -> None:
    """A document at each node."""
    assert cluster.request("PUT", f"/{db}")[0] == 201
    cluster.await_converged()
    for node in cluster.nodes:
        assert cluster.request("PUT", f"/{db}/{node}", {"at": node}, node=node)[0] == 201


def checked(cluster: Cluster) -> Any:
    """`divandb board check`, which finds the admin in the folder."""
    done = divandb("board", "check", "--data", str(cluster.data))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def log_of(cluster: Cluster) -> tuple[str, dict[str, int]]:
    """The broker's cluster, and topics with the sum of their ends."""
    ensemble = localkafka.known(cluster.data)
    assert ensemble is not None
    lines = [line.split() for line in checked(cluster).split("\n\n")[0].splitlines()[1:]]
    ends: dict[str, int] = {}
    for topic, _, _, end, _ in lines:
        ends[topic] = ends.get(topic, 0) + int(end)
    return ensemble.cluster, ends


def test_what_was_written_is_there_after_a_stop_and_so_is_the_log(own: Cluster) -> None:
    wrote(own, "before")
    contents = own.await_converged()
    cluster, ends = log_of(own)
    assert len(ends) == 5
    port = own.record(BROKER)["url"]
    own.restart()
    assert own.await_converged()["before"] == contents["before"]
    again, later = log_of(own)
    assert again == cluster
    assert all(later[topic] >= end > 0 for topic, end in ends.items() if "claims" not in topic)
    assert own.record(BROKER)["url"] == port
    wrote(own, "after")
    own.await_converged()


def test_a_broker_that_is_killed_is_started_again_and_nothing_is_lost(own: Cluster) -> None:
    killed = own.pid_of(BROKER)
    os.kill(killed, signal.SIGKILL)
    for number in range(10):
        assert own.request("PUT", f"/while-{number}")[0] == 201
    own.await_true(lambda: own.record(BROKER)["pid"] not in (None, killed))
    own.await_converged()
    own.await_true(lambda: own.status_of("m1")["board"]["failing"] is None)
    assert own.record(BROKER)["restarts"] == 1
    done = divandb("status", "--data", str(own.data))
    assert "7 of 7 processes answer" in done.stdout
    checked(own)


def test_a_supervisor_that_is_killed_leaves_no_broker_behind(own: Cluster) -> None:
    """The next one waits for its end, and goes on with its log."""
    broker, cluster = own.pid_of(BROKER), log_of(own)[0]
    own.stop(signal.SIGKILL)
    own.start()
    assert own.pid_of(BROKER) != broker
    own.await_true(lambda: not Path(f"/proc/{broker}").exists())
    own.await_converged()
    assert log_of(own)[0] == cluster


def test_a_node_that_is_added_gets_its_rights_and_one_that_is_removed_loses_them(
    own: Cluster,
) -> None:
    done = divandb("add", "replica", "--to", "m2", "--data", str(own.data))
    assert done.returncode == 0, done.stderr
    assert "m2-r2" in checked(own)
    assert logs_in(own, "m2-r2")
    # A node that has not been heard of yet is not removed unasked.
    own.await_true(
        lambda: "m2-r2" in {p["name"] for p in own.status_of("m2")["peers"] if p["live"]}
    )
    done = divandb("remove", "m2-r2", "--data", str(own.data))
    assert done.returncode == 0, done.stderr
    assert "m2-r2" not in checked(own)
    assert not logs_in(own, "m2-r2")
    assert logs_in(own, "m2-r1")


def logs_in(cluster: Cluster, principal: str) -> bool:
    """Does the broker take the secret that the cluster has for it?"""
    ensemble = localkafka.known(cluster.data)
    assert ensemble is not None
    secret = trust.board_secret(datadir.read_secret(cluster.data), principal)

    async def attempt() -> bool:
        board = KafkaBoard(BoardAccess(ensemble.url, principal, secret))
        try:
            await board.admin.brokers()
        except Unidentified:
            return False
        finally:
            await board.close()
        return True

    return asyncio.run(attempt())


def test_a_master_that_is_added_gets_a_partition_that_all_others_find(own: Cluster) -> None:
    done = divandb("add", "master", "--data", str(own.data))
    assert done.returncode == 0, done.stderr
    own.masters.append("m4")
    wrote(own, "with-m4")
    contents = own.await_converged()["with-m4"]
    assert contents["doc_count"] == 7
    rows = [line.split() for line in checked(own).split("\n\n")[0].splitlines()]
    assert [int(end) > 0 for topic, number, _, end, _ in rows[1:] if number == "3"] == [True]


def test_other_hosts_cannot_reach_it(own: Cluster) -> None:
    place = ["--print-config", "--host", "10.0.0.7", "--data", str(own.data)]
    done = divandb("add", "replica", "--to", "m1", *place)
    assert done.returncode == 1
    assert "10.0.0.7 cannot reach" in done.stderr


def test_without_jars_it_says_how_to_get_them(tmp_path: Path) -> None:
    place = ["--data", str(tmp_path / "data"), "--port", "0", "--board", LOCAL]
    done = divandb("up", *place, **{JARS: str(tmp_path)})
    assert done.returncode == 1
    assert "`.ci/setup kafka`" in done.stderr and str(tmp_path) in done.stderr
