"""Questions to Kafka's brokers: asked again by another client when one waits in vain."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from confluent_kafka import KafkaError, KafkaException

from divandb.board import kafka_admin
from divandb.board.base import Unreachable
from divandb.board.kafka_admin import Admin
from divandb.board.kafka_client import KafkaBounds

NODES = SimpleNamespace(nodes=[1, 2, 3], cluster_id="c")


class Client:
    """One of librdkafka's, whose answers are given by ``answer``."""

    made: ClassVar[list["Client"]] = []
    answer: ClassVar[Callable[["Client"], Any]]

    def __init__(self, settings: dict[str, Any]) -> None:
        self.number = len(self.made)
        self.made.append(self)

    def poll(self, timeout: float) -> int:
        return 0

    def describe_cluster(self, request_timeout: float) -> "concurrent.futures.Future[Any]":
        assert 0 < request_timeout <= kafka_admin.ATTEMPT_S
        answered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        found = type(self).answer(self)
        if isinstance(found, Exception):
            answered.set_exception(found)
        elif found is not None:
            answered.set_result(found)
        return answered

    def list_offsets(self, asked: dict[Any, Any], request_timeout: float) -> dict[Any, Any]:
        answered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        answered.set_result(SimpleNamespace(offset=-1001))
        return dict.fromkeys(asked, answered)


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Client]]:
    """Those that were made."""
    monkeypatch.setattr(kafka_admin, "AdminClient", Client)
    monkeypatch.setattr(kafka_admin, "ATTEMPT_S", 0.1)
    Client.made = []
    yield Client.made


def asked(answer: Callable[[Client], Any], answer_s_max: float = 5.0) -> int:
    """How many brokers there are, if clients answer like that."""
    Client.answer = answer

    async def run() -> int:
        admin = Admin({}, KafkaBounds(answer_s_max=answer_s_max), "me")
        try:
            return await admin.brokers()
        finally:
            await admin.close()

    return asyncio.run(run())


def test_a_client_that_waits_for_a_dead_broker_is_replaced(clients: list[Client]) -> None:
    assert asked(lambda client: NODES if client.number == 2 else None) == 3
    assert len(clients) == 3


def test_so_is_one_that_has_given_up(clients: list[Client]) -> None:
    gone = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    assert asked(lambda client: NODES if client.number == 1 else gone) == 3
    assert len(clients) == 2


def test_without_an_answer_it_ends_in_time(clients: list[Client]) -> None:
    with pytest.raises(Unreachable, match=r"no answer in 0\.5 s"):
        asked(lambda client: None, answer_s_max=0.5)
    assert 2 <= len(clients) <= 6


def test_an_answer_that_says_no_is_one(clients: list[Client]) -> None:
    no = KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
    with pytest.raises(Unreachable, match="LEADER_NOT_AVAILABLE"):
        asked(lambda client: no)
    assert len(clients) == 1


def test_who_is_closed_asks_nobody_any_more(clients: list[Client]) -> None:
    Client.answer = lambda client: None

    async def run() -> None:
        admin = Admin({}, KafkaBounds(), "me")
        asking = asyncio.create_task(admin.brokers())
        await asyncio.sleep(0)
        await admin.close()
        with pytest.raises(Unreachable):
            await asking

    asyncio.run(run())
    assert len(clients) == 1


def test_offsets_that_nobody_knows_are_no_end_of_a_log() -> None:
    """A reader that took one for the end would begin anew."""

    async def run() -> None:
        admin = Admin({}, KafkaBounds(), "me")
        place = kafka_admin.TopicPartition("t", 0)
        with pytest.raises(Unreachable, match="nobody knows"):
            await admin._offsets([place], kafka_admin.OffsetSpec.latest())
        await admin.close()

    asyncio.run(run())
