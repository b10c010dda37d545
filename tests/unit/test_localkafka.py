"""A Kafka broker of a data folder: what it is started with, and what is kept of it."""

import random
import socket
from pathlib import Path

import pytest

from divandb import localkafka
from divandb.datadir import DataDirError
from divandb.localkafka import HOST, BrokerError, Ensemble, Place


class Chance:
    """Chance from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self) -> float:
        return self._random.random()


def test_the_next_start_finds_the_same_cluster(tmp_path: Path) -> None:
    first = localkafka.kept(tmp_path, Chance(1))
    assert localkafka.kept(tmp_path, Chance(2)) == first
    assert localkafka.known(tmp_path) == first
    assert (tmp_path / "kafka" / "broker.json").stat().st_mode & 0o077 == 0


def test_a_port_that_somebody_has_taken_is_left_to_them(tmp_path: Path) -> None:
    first = localkafka.kept(tmp_path, Chance(1))
    with socket.create_server((HOST, first.places[0].port)):
        second = localkafka.kept(tmp_path, Chance(2))
    assert (second.cluster, second.secret) == (first.cluster, first.secret)
    assert second.places[0].port != first.places[0].port
    assert localkafka.known(tmp_path) == second


def test_a_file_that_cannot_be_read_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kafka" / "broker.json"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(DataDirError, match=r"broker\.json"):
        localkafka.kept(tmp_path, Chance(1))
    assert path.read_text() == "{"


def test_a_clusters_id_is_one_that_kafka_takes() -> None:
    """22 characters of base64; one that begins with "-" would be an option."""
    for seed in range(200):
        made = localkafka.planned(Chance(seed)).cluster
        assert len(made) == 22 and made[0] == "k"
        assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_commands_find_the_admin_of_the_folders_own_broker_and_of_no_other(tmp_path: Path) -> None:
    given = {"DIVANDB_BOARD_ADMIN_SECRET": "theirs", "HOME": "/h"}
    assert localkafka.around(tmp_path, "kafka://h:1", given) == given
    own = localkafka.kept(tmp_path, Chance(1))
    assert localkafka.around(tmp_path, "kafka://h:1", given) == given
    found = localkafka.around(tmp_path, own.url, given)
    assert found["DIVANDB_BOARD_ADMIN_SECRET"] == own.secret
    assert found["HOME"] == "/h"


def test_without_jars_or_java_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"DIVANDB_KAFKA_JARS": str(tmp_path)}
    with pytest.raises(BrokerError, match=r"\.ci/setup kafka"):
        localkafka.jars_of(given)
    (tmp_path / "kafka_2.13-4.1.0.jar").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match="no `java`"):
        localkafka.jars_of(given)
    (tmp_path / "java").touch(0o700)
    assert localkafka.jars_of(given) == tmp_path


def test_an_archive_of_classes_is_used_if_there_is_one(tmp_path: Path) -> None:
    archive = tmp_path / localkafka.ARCHIVE
    option = f"-XX:SharedArchiveFile={archive}"
    assert option not in localkafka.java(tmp_path, "kafka.Kafka")
    archive.touch()
    command = localkafka.java(tmp_path, "kafka.Kafka", "x")
    assert command.index(option) < command.index("kafka.Kafka") < command.index("x")


def test_a_broker_refuses_by_default_and_listens_on_loopback_alone(tmp_path: Path) -> None:
    ensemble = Ensemble("k" * 22, "s", (Place(1, 9092, 9093),))
    text = localkafka.properties(tmp_path, ensemble, ensemble.places[0], {"log.dirs": "/d"})
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert lines["allow.everyone.if.no.acl.found"] == "false"
    assert lines["listeners"] == "CLIENTS://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert lines["log.dirs"] == "/d"
