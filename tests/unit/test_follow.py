"""Following a topic: every message is shown once, or said why not, and nothing ends it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from divandb import document, event, follow
from divandb.board.base import BoardError, Refused, Right
from divandb.board.memory import MemoryBoard, MemoryClient
from divandb.event import Chunk, Creation, DocumentState, Event
from divandb.follow import END, START, Follower, Item, Moved, Pieces, Seen, Unread
from divandb.merge import Document
from divandb.revtree import Leaf
from tests.stores import SeededRng

TOPIC = "divandb.c.masters"
PATIENCE_S = 10.0


def message(
    oseq: int, doc_id: str = "a", size: int = 10, database: str = "db", origin: int = 7
) -> bytes:
    leaf = Leaf(1, ("abc",), False, b"d" * 16, (), ((origin, oseq),))
    body = document.body_bytes(doc_id, leaf.rev, False, b'{"v":"%b"}' % (b"x" * size), ())
    state = DocumentState(doc_id, Document((leaf,), {origin: oseq}), (body,))
    return event.encode(
        Event(
            1, "m1", origin, oseq, oseq - 1, oseq, 5, event.DOCUMENT, database, 1,
            event.pack(state),
        )
    )  # fmt: skip


class Watched:
    """A follower of a board in memory, and what it has shown."""

    def __init__(self) -> None:
        self.board = MemoryBoard(SeededRng())
        self.admin = self.board.connect("admin", is_admin=True)
        self.items: list[Item] = []
        self.lines: list[str] = []
        self.client: MemoryClient = self.admin
        self.database: str | None = None
        self.pieces = Pieces()

    async def read(
        self, start: str | int = START, partition: int | None = None, *, follow: bool = False
    ) -> list[Item]:
        """What it shows until it ends."""
        found = self.items.append
        follower = Follower(
            self.client, TOPIC, found, self.lines.append,
            database=self.database, pieces=self.pieces,
        )  # fmt: skip
        await follower.run(start, partition, follow=follow)
        return self.items

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0.001)

    async def has(self, count: int) -> None:
        """Wait until it has shown so much."""
        await self.until(lambda: len(self.items) >= count)

    async def waits(self) -> None:
        """Wait until it waits for more in partition 0."""
        await self.until(lambda: bool(self.board.partition(TOPIC, 0).readers))

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(item.partition, item.offset) for item in self.items]


def over_a_board(body: Callable[[Watched], Coroutine[Any, Any, None]], partitions: int = 1) -> None:
    async def run() -> None:
        watched = Watched()
        await watched.admin.create_topic(TOPIC, partitions, {"reader": frozenset({Right.READ})})
        await body(watched)

    asyncio.run(run())


def test_up_to_the_end_as_it_was_all_partitions_are_shown_in_their_order() -> None:
    async def body(watched: Watched) -> None:
        for partition in range(3):
            await watched.admin.publish(
                TOPIC, partition, [message(oseq) for oseq in range(1, 2 + partition)]
            )
        await watched.read()
        assert sorted(watched.places) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
        assert all(isinstance(item, Seen) for item in watched.items)

    over_a_board(body, 3)


def test_one_partition_is_read_from_an_offset() -> None:
    async def body(watched: Watched) -> None:
        for partition in range(2):
            await watched.admin.publish(TOPIC, partition, [message(n) for n in range(1, 6)])
        await watched.read(3, 1)
        assert watched.places == [(1, 3), (1, 4)]
        with pytest.raises(BoardError, match="has 2 partitions"):
            await watched.read(0, 2)

    over_a_board(body, 2)


def test_from_the_end_only_what_comes_is_shown_and_it_goes_on() -> None:
    async def body(watched: Watched) -> None:
        await watched.admin.publish(TOPIC, 0, [message(1)])
        reading = asyncio.create_task(watched.read(END, follow=True))
        await asyncio.sleep(0)
        for number in range(3):
            await watched.waits()
            await watched.admin.publish(TOPIC, 0, [message(2 + number)])
            await watched.has(number + 1)
        assert watched.places == [(0, 1), (0, 2), (0, 3)]
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    over_a_board(body)


def test_a_partition_that_is_new_is_read_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "LOOK_FOR_PARTITIONS_S", 0.01)

    async def body(watched: Watched) -> None:
        reading = asyncio.create_task(watched.read(END, follow=True))
        await watched.waits()
        await watched.admin.create_topic(TOPIC, 2, {})
        await watched.admin.publish(TOPIC, 1, [message(1), message(2)])
        await watched.has(2)
        assert watched.places == [(1, 0), (1, 1)]
        reading.cancel()

    over_a_board(body)


def test_a_large_event_is_shown_whole_at_its_last_message() -> None:
    async def body(watched: Watched) -> None:
        whole = message(1, size=700_000)
        pieces = list(event.split(whole))
        await watched.admin.publish(TOPIC, 0, [*pieces, message(2, "b")])
        await watched.read()
        large, after = watched.items
        assert isinstance(large, Seen) and event.encode(large.event) == whole
        assert isinstance(large.payload, DocumentState) and large.payload.id == "a"
        assert (large.offset, after.offset) == (len(pieces) - 1, len(pieces))
        assert watched.pieces._bytes == 0, "nothing is left of it"

    over_a_board(body)


def test_a_large_event_whose_chunks_lie_before_the_beginning_is_said_to_be_one() -> None:
    async def body(watched: Watched) -> None:
        pieces = list(event.split(message(1, size=700_000)))
        await watched.admin.publish(TOPIC, 0, [*pieces, message(2, "b")])
        await watched.read(1, 0)
        lost, after = watched.items
        assert isinstance(lost, Unread) and "some of its chunks are not here" in lost.reason
        assert isinstance(after, Seen)

    over_a_board(body)


def test_a_repeated_beginning_of_chunks_does_no_harm() -> None:
    async def body(watched: Watched) -> None:
        pieces = list(event.split(message(1, size=700_000)))
        await watched.admin.publish(TOPIC, 0, [*pieces[:2], *pieces, *pieces])
        await watched.read()
        assert [type(item) for item in watched.items] == [Seen, Seen]

    over_a_board(body)


def test_chunks_are_bounded_and_the_oldest_go_first() -> None:
    async def body(watched: Watched) -> None:
        watched.pieces = Pieces(bytes_max=2 * 2**20)
        attachment = [
            event.encode(
                Event(
                    1, "m1", 8, 5, 4, 4, 5, event.BLOB, "", 0,
                    event.pack(Chunk(b"s" * 32, index, 2**21, b"z" * event.CHUNK_BYTES)),
                )
            )
            for index in range(8)
        ]  # fmt: skip
        large = list(event.split(message(1, size=700_000)))
        too_large = list(event.split(message(2, size=2**21)))
        for batch in (attachment[:4], attachment[4:], large, too_large[:4], too_large[4:]):
            await watched.admin.publish(TOPIC, 0, batch)
        await watched.read()
        seen, unread = watched.items
        assert isinstance(seen, Seen)
        assert isinstance(unread, Unread) and "its chunks are not here" in unread.reason
        assert watched.pieces._bytes == 0

    over_a_board(body)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (b"\x92\x02\x01", "event version 2"),
        (b"nothing", "damaged event"),
        (message(1)[:-3], "damaged"),
        (
            event.encode(Event(1, "m1", 7, 1, 0, 1, 5, "later", "db", 1, b"\xc0")),
            "event kind 'later'",
        ),
    ],
)
def test_what_cannot_be_read_is_said_and_ends_nothing(odd: bytes, reason: str) -> None:
    async def body(watched: Watched) -> None:
        await watched.admin.publish(TOPIC, 0, [message(1), odd, message(2)])
        watched.database = "another"  # what it is about cannot be known
        await watched.read()
        (unread,) = watched.items
        assert isinstance(unread, Unread)
        assert reason in unread.reason and (unread.offset, unread.size_bytes) == (1, len(odd))

    over_a_board(body)


def test_an_event_in_chunks_that_holds_another_such_is_no_event() -> None:
    async def body(watched: Watched) -> None:
        inner = list(event.split(message(1, size=700_000)))[-1]
        outer = list(event.split(inner))
        await watched.admin.publish(TOPIC, 0, outer)
        await watched.read()
        (unread,) = watched.items
        assert isinstance(unread, Unread) and "it holds no event" in unread.reason

    over_a_board(body)


def test_only_the_database_that_is_asked_for_is_shown() -> None:
    async def body(watched: Watched) -> None:
        watched.database = "shop"
        made = event.encode(
            Event(1, "m1", 7, 3, 2, 3, 5, event.CREATED, "shop", 1, event.pack(Creation("{}", 1)))
        )
        others = list(event.split(message(1, size=700_000)))
        await watched.admin.publish(TOPIC, 0, [*others, message(2, database="shop"), made])
        await watched.read()
        kinds = [item.event.kind for item in watched.items if isinstance(item, Seen)]
        assert kinds == ["document", "created"] and len(watched.items) == 2
        assert watched.pieces._bytes == 0

    over_a_board(body)


def test_what_retention_has_removed_is_said_and_reading_goes_on_behind_it() -> None:
    async def body(watched: Watched) -> None:
        await watched.admin.publish(TOPIC, 0, [message(n) for n in range(1, 6)])
        watched.board.forget(TOPIC, 0, 3)
        await watched.read(1, 0)
        moved = watched.items[0]
        assert isinstance(moved, Moved) and (moved.offset, moved.resume) == (1, 3)
        assert watched.places[1:] == [(0, 3), (0, 4)]

    over_a_board(body)


def test_a_log_that_was_made_again_is_read_from_its_beginning() -> None:
    async def body(watched: Watched) -> None:
        await watched.admin.publish(TOPIC, 0, [message(n) for n in range(1, 4)])
        reading = asyncio.create_task(watched.read(START, follow=True))
        await watched.has(3)
        watched.board.lose(TOPIC)
        await watched.admin.publish(TOPIC, 0, [message(n) for n in range(4, 10)])
        await watched.has(10)
        moved = watched.items[3]
        assert isinstance(moved, Moved) and moved.resume == 0
        assert [item.offset for item in watched.items[4:]] == list(range(6))
        reading.cancel()

    over_a_board(body)


def test_a_log_that_became_shorter_ends_a_reader_that_was_to_read_more() -> None:
    async def body(watched: Watched) -> None:
        await watched.admin.publish(TOPIC, 0, [message(n) for n in range(1, 4)])
        info = await watched.admin.describe(TOPIC)
        watched.board.cut(TOPIC, 0, 2)
        follower = Follower(watched.admin, TOPIC, watched.items.append, watched.lines.append)
        async with asyncio.timeout(PATIENCE_S):
            await follower._read(info, 0, START, follow=False)
        assert watched.places == [(0, 0), (0, 1)]

    over_a_board(body)


def test_a_board_that_is_away_is_told_of_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(watched: Watched) -> None:
        read, tries = watched.client.read, []

        async def counted(*place: Any, **how: Any) -> Any:
            tries.append(place)
            return await read(*place, **how)

        monkeypatch.setattr(watched.client, "read", counted)
        reading = asyncio.create_task(watched.read(START, follow=True))
        await watched.waits()
        watched.board.is_up = False
        await watched.until(lambda: len(tries) >= 4)
        watched.board.is_up = True
        await watched.admin.publish(TOPIC, 0, [message(1)])
        await watched.has(1)
        assert len(watched.lines) == 2 and "Trying again." in watched.lines[0]
        assert "goes on" in watched.lines[1]
        reading.cancel()

    over_a_board(body)


def test_a_right_that_is_taken_away_ends_it() -> None:
    async def body(watched: Watched) -> None:
        watched.client = watched.board.connect("reader")
        reading = asyncio.create_task(watched.read(START, follow=True))
        await watched.waits()
        await watched.admin.create_topic(TOPIC, 1, {})
        with pytest.raises(Refused, match="reader may not read"):
            await asyncio.wait_for(reading, PATIENCE_S)

    over_a_board(body)


def test_who_takes_no_more_ends_it() -> None:
    async def body(watched: Watched) -> None:
        def show(item: Item) -> None:
            raise BrokenPipeError

        await watched.admin.publish(TOPIC, 0, [message(1)])
        follower = Follower(watched.admin, TOPIC, show, watched.lines.append)
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(follower.run(START, None, follow=True), PATIENCE_S)

    over_a_board(body)


def test_a_chunk_with_another_length_begins_anew() -> None:
    pieces = Pieces()
    envelope = event.decode(message(1))
    data = b"q" * 10
    pieces.add(envelope, Chunk(b"n" * 32, 0, 20, b"p" * 20))
    pieces.add(envelope, Chunk(b"n" * 32, 0, 10, data))
    assert pieces._bytes == 10
    with pytest.raises(event.Unreadable, match="not what they are called"):
        pieces.join(b"n" * 32)
    pieces.settle(msgspec.structs.replace(envelope, oseq=0))
    assert pieces._bytes == 10, "they go ahead of a later event"
    pieces.settle(envelope)
    assert pieces._bytes == 0
