"""What every Event Board does. One suite, over all of them."""

import asyncio
import contextlib

import pytest

from divandb.board.base import (
    Access,
    BadRequest,
    EventBoard,
    NoTopic,
    OffsetAhead,
    OffsetGone,
    Refused,
    Right,
    TooLarge,
    Unreachable,
)
from tests.conformance.conftest import ADMIN, Backend

READ = frozenset({Right.READ})
WRITE = frozenset({Right.WRITE})
BOTH = frozenset(Right)
MASTERS = "divandb.test.masters"
GROUP_1 = "divandb.test.replicas.m1"
GROUP_2 = "divandb.test.replicas.m2"
TOPICS: dict[str, tuple[int, Access]] = {
    MASTERS: (2, {"m1": BOTH, "m2": BOTH}),
    GROUP_1: (1, {"m1": BOTH, "m1.replicas": READ}),
    GROUP_2: (1, {"m2": BOTH, "m2.replicas": READ}),
}
LARGE = 10**6


async def made(backend: Backend) -> EventBoard:
    """The topics of two groups, and the first master's view."""
    admin = await backend.connect(ADMIN)
    for topic, (partitions, access) in TOPICS.items():
        await admin.create_topic(topic, partitions, access)
    return await backend.connect("m1")


async def read_all(board: EventBoard, topic: str, partition: int, offset: int = 0) -> list[bytes]:
    """All messages from ``offset`` to the end as it is now."""
    found: list[bytes] = []
    while True:
        batch = await board.read(topic, partition, offset, bytes_max=LARGE, wait_s=0)
        found += batch.messages
        offset = batch.next
        if offset == batch.end:
            return found


# Publishing and reading


async def test_messages_are_read_back_in_order_and_unchanged(backend: Backend) -> None:
    board = await made(backend)
    sent = [b"", b"\0\r\n\xff", b"dvR1", *(b"%d" % number * number for number in range(60))]
    assert await board.publish(MASTERS, 0, sent[:3]) == 0
    assert await board.publish(MASTERS, 0, sent[3:]) == 3
    batch = await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=0)
    assert batch.messages == sent[: len(batch.messages)]
    assert (batch.first, batch.next, batch.end) == (0, len(batch.messages), len(sent))
    assert await read_all(board, MASTERS, 0) == sent


async def test_reading_begins_at_any_offset(backend: Backend) -> None:
    board = await made(backend)
    sent = [b"%d" % number for number in range(20)]
    await board.publish(MASTERS, 0, sent[:15])
    await board.publish(MASTERS, 0, sent[15:])
    for offset in range(20):
        batch = await board.read(MASTERS, 0, offset, bytes_max=LARGE, wait_s=0)
        assert batch.first == offset
        assert batch.messages and sent[offset : batch.next] == batch.messages


async def test_partitions_and_topics_are_apart(backend: Backend) -> None:
    board = await made(backend)
    assert await board.publish(MASTERS, 0, [b"a"]) == 0
    assert await board.publish(MASTERS, 1, [b"b"]) == 0
    assert await board.publish(GROUP_1, 0, [b"c"]) == 0
    assert await read_all(board, MASTERS, 0) == [b"a"]
    assert await read_all(board, MASTERS, 1) == [b"b"]
    assert await read_all(board, GROUP_1, 0) == [b"c"]


async def test_an_answer_is_bounded_but_has_a_message(backend: Backend) -> None:
    board = await made(backend)
    for _ in range(4):
        await board.publish(MASTERS, 0, [b"x" * 1_000] * 10)
    batch = await board.read(MASTERS, 0, 5, bytes_max=3_500, wait_s=0)
    assert (len(batch.messages), batch.first, batch.next) == (3, 5, 8)
    batch = await board.read(MASTERS, 0, 39, bytes_max=1, wait_s=0)
    assert len(batch.messages) == 1
    batch = await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=0)
    assert sum(map(len, batch.messages)) <= backend.limits.answer_bytes_max


async def test_batches_of_many_publishers_are_contiguous_and_in_their_order(
    backend: Backend,
) -> None:
    board = await made(backend)

    async def publish(who: int) -> None:
        for number in range(8):
            first = await board.publish(
                MASTERS, 0, [b"%d %d %d" % (who, number, i) for i in (0, 1, 2)]
            )
            firsts[who, number] = first

    firsts: dict[tuple[int, int], int] = {}
    await asyncio.gather(*(publish(who) for who in range(6)))
    found = await read_all(board, MASTERS, 0)
    assert len(found) == 6 * 8 * 3
    for (who, number), first in firsts.items():
        expected = [b"%d %d %d" % (who, number, i) for i in (0, 1, 2)]
        assert found[first : first + 3] == expected
    for who in range(6):
        assert [firsts[who, number] for number in range(8)] == sorted(
            firsts[who, number] for number in range(8)
        )


async def test_a_message_or_batch_above_its_limit_is_refused_whole(backend: Backend) -> None:
    board = await made(backend)
    limit = backend.limits.message_bytes_max
    assert (await board.describe(MASTERS)).message_bytes_max == limit
    with pytest.raises(TooLarge):
        await board.publish(MASTERS, 0, [b"small", b"x" * (limit + 1)])
    with pytest.raises(TooLarge):
        await board.publish(
            MASTERS, 0, [b"x" * limit] * (backend.limits.batch_bytes_max // limit + 1)
        )
    with pytest.raises(BadRequest):
        await board.publish(MASTERS, 0, [])
    assert await board.publish(MASTERS, 0, [b"x" * limit]) == 0
    assert await read_all(board, MASTERS, 0) == [b"x" * limit]


async def test_what_does_not_exist_is_said(backend: Backend) -> None:
    board = await made(backend)
    for topic, partition in (("nothing", 0), (MASTERS, 2)):
        with pytest.raises(NoTopic):
            await board.publish(topic, partition, [b"x"])
        with pytest.raises(NoTopic):
            await board.read(topic, partition, 0, bytes_max=1, wait_s=0)
    with pytest.raises(NoTopic):
        await board.describe("nothing")
    with pytest.raises(BadRequest):
        await board.describe("../masters")


# Waiting


async def test_a_reader_at_the_end_is_woken_by_the_next_message(backend: Backend) -> None:
    board = await made(backend)
    await board.publish(MASTERS, 0, [b"old"])
    other = await backend.connect("m2")
    waiting = [
        asyncio.create_task(other.read(MASTERS, 0, 1, bytes_max=LARGE, wait_s=20)) for _ in range(5)
    ]
    await asyncio.sleep(0.05)
    await board.publish(MASTERS, 1, [b"elsewhere"])
    assert not any(one.done() for one in waiting)
    await board.publish(MASTERS, 0, [b"new"])
    async with asyncio.timeout(10):
        found = await asyncio.gather(*waiting)
    assert all(one.messages == [b"new"] and one.next == 2 for one in found)


async def test_a_wait_ends_empty_handed(backend: Backend) -> None:
    board = await made(backend)
    batch = await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=0.02)
    assert (batch.messages, batch.first, batch.next, batch.end) == ([], 0, 0, 0)
    assert batch.identity == (await board.describe(MASTERS)).identity


async def test_who_gives_up_waiting_disturbs_nobody(backend: Backend) -> None:
    board = await made(backend)
    for _ in range(40):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002):
                await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=20)
    assert await board.publish(MASTERS, 0, [b"a"]) == 0
    assert await read_all(board, MASTERS, 0) == [b"a"]


async def test_closing_a_view_ends_its_waits_and_no_others(backend: Backend) -> None:
    board = await made(backend)
    other = await backend.connect("m2")
    waits = [
        asyncio.create_task(one.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=20))
        for one in (board, other)
    ]
    await asyncio.sleep(0.05)
    await board.close()
    with pytest.raises(Unreachable):
        await waits[0]
    with pytest.raises(Unreachable):
        await board.publish(MASTERS, 0, [b"a"])
    await other.publish(MASTERS, 0, [b"b"])
    assert (await waits[1]).messages == [b"b"]


# Places that are not there


async def test_behind_the_end_is_an_error_and_never_the_latest(backend: Backend) -> None:
    board = await made(backend)
    await board.publish(MASTERS, 0, [b"a"])
    with pytest.raises(OffsetAhead) as ahead:
        await board.read(MASTERS, 0, 2, bytes_max=LARGE, wait_s=5)
    assert ahead.value.end == 1


async def test_before_what_is_retained_is_an_error_that_says_where_to_begin(
    backend: Backend,
) -> None:
    board = await made(backend)
    await board.publish(MASTERS, 0, [b"a"])
    await board.publish(MASTERS, 0, [b"b"])
    await backend.expire(MASTERS, 0)
    with pytest.raises(OffsetGone) as gone:
        await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=5)
    start = gone.value.start
    info = await board.describe(MASTERS)
    assert start == info.partitions[0].start > 0
    assert info.partitions[1].start == 0
    batch = await board.read(MASTERS, 0, start, bytes_max=LARGE, wait_s=0)
    assert batch.first == start and batch.messages


async def test_a_log_made_again_has_another_identity_and_each_answer_says_so(
    backend: Backend,
) -> None:
    """Trace 18: a stored offset must not become valid again in another log."""
    board = await made(backend)
    await board.publish(MASTERS, 0, [b"a"] * 5)
    before = (await board.read(MASTERS, 0, 5, bytes_max=LARGE, wait_s=0)).identity
    other = (await board.describe(GROUP_1)).identity
    await backend.remake(MASTERS)
    with pytest.raises(OffsetAhead):
        await board.read(MASTERS, 0, 5, bytes_max=LARGE, wait_s=0)
    await board.publish(MASTERS, 0, [b"b"] * 6)
    batch = await board.read(MASTERS, 0, 5, bytes_max=LARGE, wait_s=0)
    assert batch.messages == [b"b"]
    assert batch.identity == (await board.describe(MASTERS)).identity != before
    assert (await board.describe(GROUP_1)).identity == other


# Topics


async def test_a_topic_grows_and_never_shrinks(backend: Backend) -> None:
    board = await made(backend)
    admin = await backend.connect(ADMIN)
    await board.publish(MASTERS, 1, [b"a"])
    before = await board.describe(MASTERS)
    after = await admin.create_topic(MASTERS, 3, TOPICS[MASTERS][1])
    assert after.identity == before.identity
    assert after.partitions[:2] == before.partitions
    assert await board.publish(MASTERS, 2, [b"b"]) == 0
    assert await read_all(board, MASTERS, 1) == [b"a"]
    with pytest.raises(BadRequest):
        await admin.create_topic(MASTERS, 2, TOPICS[MASTERS][1])
    with pytest.raises(BadRequest):
        await admin.create_topic("empty", 0, {})
    assert len((await board.describe(MASTERS)).partitions) == 3


# Rule 3


@pytest.mark.parametrize(
    ("who", "topic"),
    [
        ("m1.replicas", MASTERS),
        ("m1.replicas", GROUP_2),
        ("m2.replicas", GROUP_1),
        ("m2", GROUP_1),
        ("stranger", MASTERS),
    ],
)
async def test_the_board_refuses_who_has_no_right(backend: Backend, who: str, topic: str) -> None:
    await made(backend)
    board = await backend.connect(who)
    with pytest.raises(Refused, match=f"{who} may not read {topic}"):
        await board.read(topic, 0, 0, bytes_max=LARGE, wait_s=0)
    with pytest.raises(Refused, match=f"{who} may not write {topic}"):
        await board.publish(topic, 0, [b"x"])
    with pytest.raises(Refused):
        await board.describe(topic)
    admin = await backend.connect(ADMIN)
    assert (await admin.describe(topic)).partitions[0].end == 0


async def test_a_replica_reads_its_group_and_writes_nothing(backend: Backend) -> None:
    master = await made(backend)
    replica = await backend.connect("m1.replicas")
    await master.publish(GROUP_1, 0, [b"a"])
    assert await read_all(replica, GROUP_1, 0) == [b"a"]
    assert (await replica.describe(GROUP_1)).partitions[0].end == 1
    with pytest.raises(Refused, match="may not write"):
        await replica.publish(GROUP_1, 0, [b"x"])


async def test_only_admins_make_topics_and_principals(backend: Backend) -> None:
    master = await made(backend)
    with pytest.raises(Refused, match="admin"):
        await master.create_topic(MASTERS, 2, {"m1.replicas": BOTH})
    with pytest.raises(Refused, match="admin"):
        await master.create_topic("mine", 1, {"m1": BOTH})
    with pytest.raises(Refused, match="admin"):
        await master.set_principal("m2", "another secret of m2")


async def test_a_right_taken_away_is_gone_at_once_for_those_who_wait_too(
    backend: Backend,
) -> None:
    master = await made(backend)
    admin = await backend.connect(ADMIN)
    replica = await backend.connect("m1.replicas")
    waiting = asyncio.create_task(replica.read(GROUP_1, 0, 0, bytes_max=LARGE, wait_s=20))
    await asyncio.sleep(0.05)
    await admin.create_topic(GROUP_1, 1, {"m1": BOTH})
    await master.publish(GROUP_1, 0, [b"not for you"])
    with pytest.raises(Refused):
        await waiting
    with pytest.raises(Refused):
        await replica.read(GROUP_1, 0, 0, bytes_max=LARGE, wait_s=0)


# Outages


async def test_what_was_published_outlives_the_board(backend: Backend) -> None:
    board = await made(backend)
    sent = [b"%d" % number for number in range(50)]
    for message in sent[:30]:
        await board.publish(MASTERS, 0, [message])
    before = await board.describe(MASTERS)
    await backend.stop()
    await backend.start()
    assert await board.describe(MASTERS) == before
    assert await board.publish(MASTERS, 0, sent[30:]) == 30
    assert await read_all(board, MASTERS, 0) == sent
    with pytest.raises(Refused):
        await (await backend.connect("m1.replicas")).read(MASTERS, 0, 0, bytes_max=1, wait_s=0)


async def test_a_board_that_is_away_is_unreachable_and_not_refusing(backend: Backend) -> None:
    board = await made(backend)
    waiting = asyncio.create_task(board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=20))
    await asyncio.sleep(0.05)
    await backend.stop()
    # Whoever waited is let go: with nothing, or told that the board is gone.
    with contextlib.suppress(Unreachable):
        assert (await waiting).messages == []
    with pytest.raises(Unreachable):
        await board.publish(MASTERS, 0, [b"x"])
    with pytest.raises(Unreachable):
        await board.read(MASTERS, 0, 0, bytes_max=LARGE, wait_s=0)
    with pytest.raises(Unreachable):
        await board.describe(MASTERS)
    await backend.start()
    assert await board.publish(MASTERS, 0, [b"back"]) == 0
