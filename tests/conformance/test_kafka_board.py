"""What only the boards on Kafka have: sessions, brokers that come and go, rights, logins."""

import asyncio
import contextlib
import random
import signal
import threading
from pathlib import Path

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from deploy.kafka import broker as kafka_broker
from deploy.kafka.broker import Broker
from divandb import provision
from divandb.board.base import (
    NoTopic,
    OffsetAhead,
    OffsetGone,
    Refused,
    Right,
    TooLarge,
    Unidentified,
    Unreachable,
)
from divandb.board.kafka import KafkaBoard
from divandb.board.kafka_client import BATCH_OVERHEAD_BYTES, KafkaBounds
from divandb.cluster import topics
from divandb.config import BoardAccess, KafkaAccess, Member
from divandb.configfile import KafkaFile
from tests.boards import PATIENCE_S, check_prefixes, persist, read_all
from tests.conformance.conftest import ADMIN, LIMITS, TOPICS, Kafka, secret_of

T = "divandb.test.t"
CLUSTER = "0" * 32
BOTH = frozenset(Right)
READ = frozenset({Right.READ})
LARGE = 10**6
pytestmark = pytest.mark.kafka
HASTY = KafkaBounds(answer_s_max=1.5, fetch_wait_ms=100, verify_s=0.1)


async def made(kafka: Kafka, bounds: KafkaBounds | None = None) -> KafkaBoard:
    """A topic, and the view of one who may do everything with it."""
    admin = await kafka.connect(ADMIN)
    await admin.create_topic(T, 1, {"m1": BOTH, "m1-r1": READ})
    await kafka.connect("m1")
    return kafka.client("m1", secret_of("m1"), bounds)


async def alter(kafka: Kafka, name: str, value: str) -> None:
    """Give the topic another setting."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, T, incremental_configs=[entry])
    for done in kafka._raw.incremental_alter_configs([resource]).values():
        await asyncio.to_thread(done.result, 10)


# Sessions of writing


async def test_a_message_that_the_broker_refuses_lets_none_pass_that_comes_after_it(
    kafka: Kafka,
) -> None:
    board = await made(kafka)
    await board.publish(T, 0, [b"before"])
    await alter(kafka, "max.message.bytes", "10000")
    rng = random.Random(1)
    # Two record batches: the broker would take the second one.
    with pytest.raises(TooLarge, match="MSG_SIZE_TOO_LARGE"):
        await board.publish(T, 0, [rng.randbytes(15_000), rng.randbytes(6_000)])
    assert await read_all(board, T) == [b"before"]
    # From here on its own limit is known, and what fits is published.
    assert (await board.describe(T)).message_bytes_max == 10_000 - BATCH_OVERHEAD_BYTES
    with pytest.raises(TooLarge, match=f"above what {T} takes"):
        await board.publish(T, 0, [b"small", rng.randbytes(15_000)])
    many = [rng.randbytes(1_000) for _ in range(40)]
    assert await board.publish(T, 0, many) == 1
    assert await read_all(board, T) == [b"before", *many]


async def test_what_was_purged_comes_late_or_never_but_nothing_comes_too_early(
    kafka: Kafka,
) -> None:
    """Trace 19: the broker is stopped with publishes on their way to it."""
    board = await made(kafka, HASTY)
    for number in range(20):
        await board.publish(T, 0, [b"%d" % number])
    stopped = asyncio.create_task(_stopped_for(kafka.broker, 2.5))
    for number in range(20, 200):
        await persist(board, T, b"%d" % number)
    await stopped
    check_prefixes(await read_all(board, T), 200)


async def _stopped_for(broker: Broker, seconds: float) -> None:
    await asyncio.sleep(0.01)
    broker.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        broker.send(signal.SIGCONT)


async def test_a_broker_killed_under_load_has_all_that_it_acknowledged(kafka: Kafka) -> None:
    board = await made(kafka)
    killed = asyncio.create_task(_killed(kafka))
    number = 0
    while not killed.done() or number < 300:
        await persist(board, T, b"%d" % number)
        number += 1
    await killed
    check_prefixes(await read_all(board, T), number)


async def _killed(kafka: Kafka) -> None:
    await asyncio.sleep(0.3)
    await asyncio.to_thread(kafka.broker.kill)
    await kafka.start()


# Logs that are not what they were


async def test_a_topic_that_is_made_again_under_a_waiting_reader_is_told_apart(
    kafka: Kafka,
) -> None:
    board = await made(kafka, HASTY)
    await board.publish(T, 0, [b"old"] * 5)
    before = (await board.read(T, 0, 5, bytes_max=LARGE, wait_s=0.3)).identity
    reader = asyncio.create_task(_another_log(board, 5, before))
    await asyncio.sleep(0.2)
    await kafka.remake(T)
    for _ in range(10):
        await persist(board, T, b"new")
    async with asyncio.timeout(20):
        assert await reader == (await board.describe(T)).identity != before
    assert await read_all(board, T) == [b"new"] * 10


async def _another_log(board: KafkaBoard, offset: int, identity: str) -> str:
    """Read on until the log is another one; its identity."""
    while True:
        try:
            batch = await board.read(T, 0, offset, bytes_max=LARGE, wait_s=5)
        except (OffsetAhead, NoTopic, Unreachable):
            offset = 0
            await asyncio.sleep(0.05)
            continue
        if batch.identity != identity:
            return batch.identity
        offset = batch.next


async def test_a_topic_that_is_deleted_is_no_topic(kafka: Kafka) -> None:
    board = await made(kafka, HASTY)
    await board.publish(T, 0, [b"a"])
    waiting = asyncio.create_task(board.read(T, 0, 1, bytes_max=LARGE, wait_s=20))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(kafka._delete, [T])
    with pytest.raises((NoTopic, Unreachable)):
        await waiting
    with pytest.raises(NoTopic):
        await board.read(T, 0, 1, bytes_max=LARGE, wait_s=1)
    with pytest.raises((NoTopic, Unreachable)):  # a session that knew it looks for it in vain
        await board.publish(T, 0, [b"b"])
    with pytest.raises(NoTopic):
        await board.publish(T, 0, [b"b"])


async def test_retention_that_passes_a_reader_is_told_to_it(kafka: Kafka) -> None:
    board = await made(kafka)
    for number in range(20):
        await board.publish(T, 0, [b"%d" % number] * 100)
    first = await board.read(T, 0, 0, bytes_max=1, wait_s=0)
    await kafka.expire(T, 0, 100)
    # What a reader has fetched ahead it may still give; another one has nothing.
    other = kafka.client("m1", secret_of("m1"))
    with pytest.raises(OffsetGone) as gone:
        await other.read(T, 0, first.next, bytes_max=1, wait_s=0)
    assert gone.value.start == (await board.describe(T)).partitions[0].start
    batch = await other.read(T, 0, gone.value.start, bytes_max=1, wait_s=0)
    assert batch.first == gone.value.start


# Rights and ways to log in


async def test_a_refusal_is_the_brokers_own(kafka: Kafka) -> None:
    await made(kafka)
    replica, stranger = await kafka.connect("m1-r1"), await kafka.connect("stranger")
    with pytest.raises(Refused, match=r"stranger may not read .*TOPIC_AUTHORIZATION_FAILED"):
        await stranger.read(T, 0, 0, bytes_max=1, wait_s=0)
    with pytest.raises(Refused, match=r"m1-r1 may not write .*AUTHORIZATION_FAILED"):
        await replica.publish(T, 0, [b"x"])


async def test_the_rights_are_those_of_the_last_word_and_no_others(kafka: Kafka) -> None:
    admin = await kafka.connect(ADMIN)
    assert isinstance(admin, KafkaBoard)
    for access in ({"m1": BOTH, "m2": READ}, {"m1": READ}, {"m3": BOTH, "m1": READ}):
        await admin.create_topic(T, 1, access)
        shown = {
            (one.principal, one.operation.name, one.restype.name, one.name)
            for one in await admin.admin.bindings(T)
        }
        expected = {
            (f"User:{name}", operation, "TOPIC", T)
            for name, rights in access.items()
            for operation in ["DESCRIBE_CONFIGS", *(right.name for right in rights)]
        } | {(f"User:{name}", "DESCRIBE", "GROUP", "divandb.") for name in access}
        assert shown == expected


async def test_who_is_no_member_any_more_has_no_rights_and_cannot_log_in(kafka: Kafka) -> None:
    """Nor has a reader that was removed; members keep theirs."""
    ensemble = kafka.broker.ensemble
    admin = BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret)
    members = [Member("m1", "master", "m1", ""), Member("m1-r7", "replica", "m1", "")]

    def file(count: int, *readers: str) -> KafkaFile:
        named = tuple(members[:count])
        known = {one.name: secret_of(one.name) for one in named}
        return KafkaFile(admin, CLUSTER, named, known, TOPICS, {n: secret_of(n) for n in readers})

    topic = topics.masters(CLUSTER)
    group = topics.replicas(CLUSTER, "m1")
    await provision.init(file(2, "warehouse"))
    assert (await provision.check(file(2, "warehouse"), {})).wrong == []
    assert await kafka.client("m1-r7", secret_of("m1-r7")).describe(group)
    assert await kafka.client("warehouse", secret_of("warehouse")).describe(topic)

    report = await provision.check(file(1), {})
    assert f"{group}: m1-r7 has the right READ on {group}" in report.wrong
    assert f"{topic}: warehouse has the right READ on {topic}" in report.wrong

    await provision.init(file(1))
    assert (await provision.check(file(1), {})).wrong == []
    for name, where in (("m1-r7", group), ("warehouse", topic)):
        with pytest.raises(Unidentified):
            await kafka.client(name, secret_of(name)).describe(where)
    assert await kafka.client("m1", secret_of("m1")).describe(group)


async def test_a_member_whose_secret_is_another_one_is_told(kafka: Kafka) -> None:
    """And not as one without rights."""
    ensemble = kafka.broker.ensemble
    admin = BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret)
    member = Member("m1", "master", "m1", "")
    file = KafkaFile(admin, CLUSTER, (member,), {"m1": secret_of("m1")}, TOPICS)
    await provision.init(file)
    board = await kafka.connect(ADMIN)
    await board.set_principal("m1", "another secret of m1")
    try:
        (found,) = (await provision.check(file, {})).wrong
        assert found.startswith("m1: The broker does not take name or secret of m1")
    finally:
        await board.set_principal("m1", secret_of("m1"))


async def test_a_wrong_secret_is_told_from_a_broker_that_is_away(kafka: Kafka) -> None:
    await made(kafka)
    board = kafka.client("m1", "not the secret of m1", KafkaBounds(answer_s_max=20.0))
    for attempt in (
        lambda: board.describe(T),
        lambda: board.read(T, 0, 0, bytes_max=1, wait_s=0),
        lambda: board.publish(T, 0, [b"x"]),
    ):
        with pytest.raises(Unidentified, match="m1"):
            await attempt()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_principals_log_in_by_each_mechanism(kafka: Kafka, mechanism: str) -> None:
    await made(kafka)
    ensemble = kafka.broker.ensemble
    ways = KafkaAccess(mechanism=mechanism)
    admin = KafkaBoard(
        BoardAccess(ensemble.url, kafka_broker.ADMIN, ensemble.secret, ways), LIMITS, kafka.bounds
    )
    kafka._clients.keep(admin)
    assert await admin.publish(T, 0, [b"a"]) == 0
    await admin.set_principal("m1", "another secret of m1")
    board = KafkaBoard(
        BoardAccess(ensemble.url, "m1", "another secret of m1", ways), LIMITS, kafka.bounds
    )
    kafka._clients.keep(board)
    if mechanism == "PLAIN":
        # The brokers' configuration knows no m1: nothing was changed there.
        with pytest.raises(Unidentified):
            await board.describe(T)
    else:
        assert await read_all(board, T) == [b"a"]


# Threads


async def test_closing_lets_go_of_all_threads(kafka: Kafka) -> None:
    board = await made(kafka)
    ours = threads()
    client = kafka.client("m1", secret_of("m1"))
    await client.publish(T, 0, [b"a"])
    await client.read(T, 0, 0, bytes_max=1, wait_s=1)
    waiting = asyncio.create_task(client.read(T, 0, 1, bytes_max=1, wait_s=20))
    await asyncio.sleep(0.05)
    print(f"a client that reads and writes has {len(threads() - ours)} threads")
    assert threads() - ours
    await client.close()
    async with asyncio.timeout(PATIENCE_S):  # on a busy machine they end a little later
        while threads() - ours:
            await asyncio.sleep(0.05)
    with pytest.raises(Unreachable):
        await waiting
    await board.close()


def threads() -> set[str]:
    """librdkafka's threads, and those that wait for them."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it may end just now
            if (thread / "comm").read_text().startswith("rdk:"):
                found.add(thread.name)
    return found | {str(one.native_id) for one in threading.enumerate() if "kafka" in one.name}
