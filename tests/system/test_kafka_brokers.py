"""Brokers that are set up otherwise: with TLS, and three of them."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from deploy.kafka import broker as kafka_broker
from divandb.board.base import Unreachable
from divandb.board.kafka import KafkaBoard
from divandb.config import BoardAccess, KafkaAccess, TopicSettings
from tests.boards import check_prefixes, persist, read_all

T = "divandb.test.t"


def test_tls_with_a_certificate_that_is_trusted_and_with_another(tmp_path: Path) -> None:
    for name in ("broker", "other"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    both = tmp_path / "broker.pem"
    both.write_text((tmp_path / "broker.key").read_text() + (tmp_path / "broker.crt").read_text())
    ensemble = kafka_broker.planned(certificate=both)

    async def attempt(name: str) -> list[bytes]:
        ways = KafkaAccess(security="sasl_ssl", ca=tmp_path / f"{name}.crt")
        access = BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret, ways)
        board = KafkaBoard(access)
        try:
            await board.create_topic(T, 1, {})
            await board.publish(T, 0, [b"a"])
            return await read_all(board, T)
        finally:
            await board.close()

    with kafka_broker.brokers(tmp_path, ensemble):
        assert asyncio.run(attempt("broker")) == [b"a"]
        with pytest.raises(Unreachable, match="certificate verify failed"):
            asyncio.run(attempt("other"))


@pytest.mark.timeout_s(400)
def test_of_three_brokers_one_may_die(tmp_path: Path) -> None:
    """Three copies of each partition, two of which must have a message."""
    ensemble = kafka_broker.planned(3)
    settings = TopicSettings(replication_factor=3, min_insync_replicas=2)
    access = BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret)

    async def body(brokers: list[kafka_broker.Broker]) -> None:
        board = KafkaBoard(access, None, None, settings)
        await board.create_topic(T, 1, {})
        assert await board.admin.copies(T) == 3
        leader = (await board.admin._described(T)).partitions[0].leader.id - 1
        for number in range(200):
            if number == 100:
                await asyncio.to_thread(brokers[leader].kill)
            await persist(board, T, b"%d" % number)
        check_prefixes(await read_all(board, T), 200)

        # With two of three dead nothing counts as published, until one is back.
        await asyncio.to_thread(brokers[(leader + 1) % 3].kill)
        with pytest.raises(Unreachable):
            await board.publish(T, 0, [b"200"])
        brokers[leader].start()
        await asyncio.to_thread(brokers[leader].await_up)
        await persist(board, T, b"200")
        check_prefixes(await read_all(board, T), 201)
        await board.close()

    with kafka_broker.brokers(tmp_path, ensemble) as brokers:
        asyncio.run(body(brokers))
