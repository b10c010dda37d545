"""A partition as an applier reads it: what a board refuses becomes a place to go on."""

import asyncio

import pytest

from divandb.board.base import Batch, BoardError, Damaged, OffsetAhead, OffsetGone, Refused
from divandb.board.memory import MemoryBoard, MemoryClient
from divandb.board.source import BoardSource, PlaceGone
from tests.stores import SeededRng


async def made() -> tuple[MemoryBoard, MemoryClient, BoardSource]:
    board = MemoryBoard(SeededRng())
    client = board.connect("admin", is_admin=True)
    await client.create_topic("t", 2, {})
    await client.publish("t", 1, [b"%d" % number for number in range(10)])
    return board, client, BoardSource(client, "t", 1, "board", bytes_max=3, wait_s=0.01)


def test_it_reads_its_partition_within_its_bounds() -> None:
    async def body() -> None:
        board, _, source = await made()
        assert (source.board, source.topic, source.partition) == ("board", "t", 1)
        identity = board.topic("t").identity
        assert await source.read(4) == Batch([b"4", b"5", b"6"], 4, 7, 10, identity)
        assert await source.read(10) == Batch([], 10, 10, 10, identity)

    asyncio.run(body())


@pytest.mark.parametrize(("offset", "reason"), [(2, OffsetGone), (11, OffsetAhead)])
def test_a_place_that_the_log_does_not_have_is_gone_to_where_it_begins(
    offset: int, reason: type[BoardError]
) -> None:
    """Before what is retained, and behind the end."""

    async def body() -> None:
        board, _, source = await made()
        board.forget("t", 1, 6)
        with pytest.raises(PlaceGone) as gone:
            await source.read(offset)
        assert gone.value.resume == 6
        assert isinstance(gone.value.__cause__, reason)

    asyncio.run(body())


class Odd(MemoryClient):
    """A board with one answer."""

    def __init__(self, answer: Batch | BoardError) -> None:
        self._answer = answer

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        if isinstance(self._answer, BoardError):
            raise self._answer
        return self._answer


def source_of(answer: Batch | BoardError) -> BoardSource:
    return BoardSource(Odd(answer), "t", 0, "board", bytes_max=1, wait_s=0)


def test_behind_what_is_damaged_reading_goes_on() -> None:
    with pytest.raises(PlaceGone) as gone:
        asyncio.run(source_of(Damaged("t/0", 3, 8)).read(3))
    assert gone.value.resume == 8


def test_an_empty_batch_that_moves_on_is_passed_on() -> None:
    batch = Batch([], 9, 9, 12, "A")
    assert asyncio.run(source_of(batch).read(3)) is batch


def test_other_refusals_are_the_callers() -> None:
    with pytest.raises(Refused):
        asyncio.run(source_of(Refused("no")).read(0))
