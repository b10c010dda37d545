"""`_changes`: parameters, frames, and feeds over a real node without sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from divandb import cursor, document
from divandb.auth.policy import ADMIN_ROLE, UserContext
from divandb.catalog import Known
from divandb.config import Config, Limits
from divandb.cursor import Cursor
from divandb.entry import Prepared
from divandb.errors import BadRequest, Busy
from divandb.httpd import feed as feeds
from divandb.httpd.app import Services
from divandb.httpd.changes import read_wanted
from divandb.httpd.feed import (
    FRAMES,
    Continuous,
    Events,
    Feed,
    Filter,
    Joined,
    Reader,
    Wanted,
)
from divandb.server import opened

ADMIN = UserContext("admin", (ADMIN_ROLE,))

ADMIN = UserContext("admin", ("_admin",))


def wanted(text: str, last_event_id: str | None = None) -> Wanted:
    return read_wanted(parse_qsl(text, keep_blank_values=True), last_event_id)


# Parameters


def test_defaults() -> None:
    assert wanted("") == Wanted()
    assert not Wanted().live


def test_names_take_any_case_and_strangers_are_passed_over() -> None:
    assert wanted("LIMIT=3&Feed=longpoll&include_docs=yes&a=b") == Wanted(limit=3, feed="longpoll")


def test_live_is_continuous() -> None:
    assert wanted("feed=live").feed == "continuous"


def test_an_event_source_goes_on_from_the_last_event() -> None:
    assert wanted("feed=eventsource&since=1-a", '"2-b"').since == "2-b"
    assert wanted("feed=continuous&since=1-a", '"2-b"').since == "1-a"
    assert wanted("last-event-id=3-c").since == "3-c"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("feed=x", "Supported `feed` types: normal, continuous, live, longpoll, eventsource"),
        ("limit=x", "The limit parameter should be a non-negative integer"),
        ("limit=-1", "The limit value should be a non-negative integer"),
        ("timeout=x", "The timeout parameter should be a non-negative integer"),
        ("timeout=-1", "The timeout value should be a non-negative integer"),
        (
            "heartbeat=x",
            "Invalid heartbeat value. Expecting a positive integer value (in milliseconds).",
        ),
        ("heartbeat=0", "The heartbeat value should be a positive integer (in milliseconds)."),
        ("seq_interval=0", "invalid_seq_interval"),
        ("seq_interval=x", "invalid_seq_interval"),
        ("style=x", "The style must be main_only or all_docs"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(BadRequest) as refused:
        wanted(text)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("feed=longpoll", 60),
        ("feed=longpoll&timeout=500", 0.5),
        ("feed=longpoll&timeout=999999999", 60),
        ("feed=longpoll&heartbeat=true", 60),
        ("feed=longpoll&heartbeat=5000&timeout=1", 5),
        ("feed=longpoll&heartbeat=1", 0.1),
        ("feed=normal", feeds.NORMAL_BEAT_S),
    ],
)
def test_how_long_a_feed_is_silent(text: str, seconds: float) -> None:
    assert wanted(text).silence_s(Limits()) == seconds


# Frames

TWO = b'{"seq":"1-a","id":"x"},\r\n{"seq":null,"id":"y"}'


def test_lines_of_one_object() -> None:
    frame = Joined()
    text = frame.head + frame.page(TWO) + frame.before() + b'{"id":"z"}' + frame.after(b"null")
    text += frame.beat + frame.end("3-c", 4)
    assert text == (
        b'{"results":[\n{"seq":"1-a","id":"x"},\r\n{"seq":null,"id":"y"},\r\n{"id":"z"}'
        b'\n\n],\n"last_seq":"3-c","pending":4}\n'
    )
    assert json.loads(text)["pending"] == 4


def test_objects_by_line() -> None:
    frame = Continuous()
    text = frame.page(TWO) + frame.before() + b'{"id":"z"}' + frame.after(b"null")
    assert text + frame.end("3-c", 4) == (
        b'{"seq":"1-a","id":"x"}\n{"seq":null,"id":"y"}\n{"id":"z"}\n'
        b'{"last_seq":"3-c","pending":4}\n'
    )


def test_events() -> None:
    frame = Events()
    assert frame.page(TWO) + frame.beat == (
        b'data: {"seq":"1-a","id":"x"}\nid: "1-a"\n\n'
        b'data: {"seq":null,"id":"y"}\nid: null\n\n'
        b"event: heartbeat\ndata: \n\n"
    )
    assert frame.before() + b"{}" + frame.after(b'"1-a"') == b'data: {}\nid: "1-a"\n\n'


# Feeds


class Node:
    """A node with one database."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.replica = services.replica

    @property
    def known(self) -> Known:
        return self.services.catalog.get("db")

    async def put(self, *docs: dict[str, Any], new_edits: bool = True) -> list[Any]:
        sent = [Prepared(doc["_id"], document.parse(doc)) for doc in docs]
        return await self.services.entry.write(self.known, ADMIN, sent, new_edits=new_edits)

    def feed(self, text: str, chosen: Filter = Filter()) -> Feed:  # noqa: B008
        asked = wanted(text)
        known = self.known
        start = self.replica.start(known, "now" if asked.descending else asked.since)
        reader = Reader(self.replica, known, asked, chosen, start)
        return Feed(
            self.services,
            ADMIN,
            known,
            asked,
            reader,
            FRAMES[asked.feed](),
            self.services.stopping.is_set,
        )

    async def read(self, text: str = "", chosen: Filter = Filter()) -> dict[str, Any]:  # noqa: B008
        answer = b"".join([piece async for piece in self.feed(text, chosen).pieces()])
        found: dict[str, Any] = json.loads(answer)
        return found

    async def ids(self, text: str = "", chosen: Filter = Filter()) -> list[str]:  # noqa: B008
        return [row["id"] for row in (await self.read(text, chosen))["results"]]


@contextlib.asynccontextmanager
async def node_in(folder: Path, limits: Limits) -> AsyncIterator[Node]:
    async with opened(Config(folder, limits=limits)) as node:
        services = node.services
        await services.entry.create_database("db", {})
        yield Node(services)


Run = Callable[[Callable[[Node], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def in_loop(body: Callable[[Node], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with node_in(tmp_path, Limits(feeds_max=2)) as node:
                await body(node)

        asyncio.run(whole())

    return in_loop


def some(count: int, prefix: str = "") -> list[dict[str, Any]]:
    return [{"_id": f"{prefix}{number:04}", "n": number} for number in range(count)]


def test_pages_follow_one_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "PAGE_ROWS", 7)
    monkeypatch.setattr(feeds, "SLICE_ROWS", 3)

    async def body(node: Node) -> None:
        await node.put(*some(50))
        expected = [doc["_id"] for doc in some(50)]
        matching = Filter(matches=lambda doc: True)
        for text, chosen in (("", Filter()), ("include_docs=true", Filter()), ("", matching)):
            answer = await node.read(text, chosen)
            assert [row["id"] for row in answer["results"]] == expected
            assert answer["pending"] == 0
            assert await node.ids(f"{text}&descending=true", chosen) == expected[::-1]
            assert await node.ids(f"since={answer['last_seq']}", chosen) == []
            limited = await node.read(f"{text}&limit=10", chosen)
            assert [row["id"] for row in limited["results"]] == expected[:10]
            assert limited["pending"] == 40
            assert limited["last_seq"].startswith("10-")
            rest = await node.ids(f"{text}&since={limited['last_seq']}", chosen)
            assert rest == expected[10:]

    run(body)


def test_large_documents_come_in_smaller_pages(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put(*[{"_id": str(number), "text": "x" * 300_000} for number in range(8)])
        feed = node.feed("include_docs=true")
        parts = [piece async for piece in feed.pieces()]
        assert max(map(len, parts)) < 1_000_000
        assert len(json.loads(b"".join(parts))["results"]) == 8

    run(body)


def test_seqs_are_left_out_between_intervals(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put(*some(10))
        for chosen in (Filter(), Filter(matches=lambda doc: True)):
            rows = (await node.read("seq_interval=4&limit=10", chosen))["results"]
            given = [index for index, row in enumerate(rows) if row["seq"] is not None]
            assert given == [2, 6]

    run(body)


def test_limit_0_shows_nothing_and_what_is_pending(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put(*some(5))
        answer = await node.read("limit=0")
        assert (answer["results"], answer["pending"]) == ([], 5)
        assert answer["last_seq"].startswith("0-")
        answer = await node.read("limit=0&descending=true")
        assert (answer["results"], answer["pending"]) == ([], 5)

    run(body)


def test_conflicts_show_in_style_all_docs(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put({"_id": "a"}, {"_id": "b"}, {"_id": "c"})
        other = {"_id": "b", "_rev": "1-0", "old": True}
        await node.put(other, new_edits=False)
        rows = (await node.read("style=all_docs"))["results"]
        assert [(row["id"], len(row["changes"])) for row in rows] == [("a", 1), ("c", 1), ("b", 2)]
        assert rows[2]["changes"][1] == {"rev": "1-0"}
        row = (await node.read("include_docs=true&conflicts=true"))["results"][2]
        assert row["doc"]["_conflicts"] == ["1-0"]
        assert len(row["changes"]) == 1
        found = await node.read("style=all_docs", Filter(matches=lambda doc: "old" in doc))
        assert [row["changes"] for row in found["results"]] == [[{"rev": "1-0"}]]
        assert await node.ids("", Filter(matches=lambda doc: "old" in doc)) == []

    run(body)


def test_a_deleted_document_shows_its_tombstone(run: Run) -> None:
    async def body(node: Node) -> None:
        [rev] = await node.put({"_id": "a", "n": 1})
        await node.put({"_id": "a", "_rev": rev, "_deleted": True, "why": "old"})
        for chosen in (Filter(), Filter(matches=lambda doc: doc.get("_deleted") is True)):
            [row] = (await node.read("include_docs=true", chosen))["results"]
            assert row["deleted"] is True
            assert row["doc"]["_deleted"] is True
            assert row["doc"]["why"] == "old"

    run(body)


def test_filters_by_id_look_documents_up_or_go_through_the_changes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(node: Node) -> None:
        await node.put(*some(20), {"_id": "_design/x"}, {"_id": "_design/y"}, *some(9, "z"))
        ids = Filter(ids=frozenset({"0003", "0001", "none", "z0005"}))
        for look_up, slice_rows in ((1000, 2), (0, 1000)):
            monkeypatch.setattr(feeds, "LOOKUP_IDS_MAX", look_up)
            monkeypatch.setattr(feeds, "SLICE_ROWS", slice_rows)
            assert await node.ids("", ids) == ["0001", "0003", "z0005"]
            assert await node.ids("descending=true", ids) == ["z0005", "0003", "0001"]
            assert await node.ids("", Filter(designs=True)) == ["_design/x", "_design/y"]
            assert await node.ids("", Filter(ids=frozenset())) == []
            answer = await node.read("limit=2", ids)
            assert answer["last_seq"].startswith("4-")
            assert answer["pending"] == 27
            answer = await node.read("", Filter(designs=True))
            assert answer["last_seq"].startswith("31-")

    run(body)


def test_a_filter_that_shows_nothing_lets_others_work_and_moves_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "SLICE_ROWS", 10)

    async def body(node: Node) -> None:
        await node.put(*some(100))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        answer = await node.read("", Filter(matches=lambda doc: False))
        task.cancel()
        assert turns >= 10
        assert answer["results"] == []
        assert answer["last_seq"].startswith("100-")

    run(body)


def test_a_cursor_from_elsewhere_hides_what_was_seen_and_is_joined(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put(*some(3))
        mine = cursor.parse((await node.read())["last_seq"])[1]
        assert mine is not None
        row = node.replica.row(node.known, "0002")
        [(origin, oseq)] = row.document.context.items()
        await node.put({"_id": "new"})
        vector = {origin: oseq, 77: 7}
        foreign = "9" + cursor.suffix(Cursor(mine.numbering + 1, mine.generation, vector))
        answer = await node.read(f"since={foreign}")
        assert [row["id"] for row in answer["results"]] == ["new"]
        for seq in (answer["last_seq"], answer["results"][0]["seq"]):
            joined = cursor.parse(seq)[1]
            assert joined is not None
            assert joined.numbering == mine.numbering
            assert joined.vector[origin] >= oseq
        # Although the reader had seen writes of 77 that never came here.
        assert await node.ids(f"since={answer['last_seq']}") == []

    run(body)


def test_a_cursor_of_another_generation_begins_anew(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put(*some(3))
        old = (await node.read())["last_seq"]
        await node.services.entry.drop_database("db")
        await node.services.entry.create_database("db", {})
        await node.put({"_id": "new"})
        assert await node.ids(f"since={old}") == ["new"]

    run(body)


def test_a_number_from_nowhere_does_not_reach_into_other_databases(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.services.entry.create_database("next", {})
        following = node.services.catalog.get("next")
        sent = [Prepared("other", document.parse({}))]
        await node.services.entry.write(following, ADMIN, sent)
        await node.put(*some(3))
        suffix = node.replica.suffix(node.known, 0)
        answer = await node.read(f"since={2**40 - 1}{suffix}")
        assert [row["id"] for row in answer["results"]] == ["0000", "0001", "0002"]
        for number in (2**40, 2**41 + 1, 10**30):
            with pytest.raises(BadRequest):
                await node.read(f"since={number}{suffix}")

    run(body)


# Live feeds


async def until(feed: AsyncIterator[bytes], needle: bytes) -> bytes:
    text = b""
    while needle not in text:
        text += await asyncio.wait_for(anext(feed), 10)
    return text


def test_longpoll_answers_at_once_or_waits(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put({"_id": "a"})
        answer = await node.read("feed=longpoll")
        assert [row["id"] for row in answer["results"]] == ["a"]
        waiting = asyncio.create_task(node.read(f"feed=longpoll&since={answer['last_seq']}"))
        await asyncio.sleep(0)
        await node.put({"_id": "b"})
        assert [row["id"] for row in (await waiting)["results"]] == ["b"]

    run(body)


def test_longpoll_waits_for_what_its_filter_shows(run: Run) -> None:
    async def body(node: Node) -> None:
        chosen = Filter(ids=frozenset({"b"}))
        waiting = asyncio.create_task(node.read("feed=longpoll", chosen))
        for doc_id in ("a", "c", "b"):
            await node.put({"_id": doc_id})
            await asyncio.sleep(0)
        answer = await waiting
        assert [row["id"] for row in answer["results"]] == ["b"]
        assert answer["last_seq"].startswith("3-")

    run(body)


def test_a_silent_feed_ends_with_its_last_seq(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put({"_id": "a"})
        answer = await node.read("feed=longpoll&since=now&timeout=1")
        assert (answer["results"], answer["pending"]) == ([], 0)
        assert answer["last_seq"].startswith("1-")
        lines = b"".join([piece async for piece in node.feed("feed=live&timeout=1").pieces()])
        first, last = lines.splitlines()
        assert json.loads(first)["id"] == "a"
        assert json.loads(last).keys() == {"last_seq", "pending"}

    run(body)


def test_hidden_changes_do_not_put_off_the_end(run: Run) -> None:
    async def body(node: Node) -> None:
        chosen = Filter(matches=lambda doc: False)
        ending = asyncio.create_task(node.read("feed=longpoll&timeout=30", chosen))
        number = 0
        while not ending.done():
            number += 1
            assert number < 10_000
            await node.put({"_id": str(number)})
        assert ending.result()["results"] == []

    run(body)


def test_a_continuous_feed_goes_on_up_to_its_limit(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put({"_id": "a"})
        feed = node.feed("feed=continuous&limit=3").pieces()
        assert b'"id":"a"' in await until(feed, b'"id":"a"')
        await node.put({"_id": "b"})
        await until(feed, b'"id":"b"')
        await node.put({"_id": "c"}, {"_id": "d"})
        text = await until(feed, b'"last_seq"')
        assert b'"id":"c"' in text and b'"id":"d"' not in text
        assert b'"pending":1' in text
        with pytest.raises(StopAsyncIteration):
            await anext(feed)

    run(body)


def test_heartbeats(run: Run) -> None:
    async def body(node: Node) -> None:
        feed = node.feed("feed=continuous&heartbeat=1&timeout=1").pieces()
        assert (await until(feed, b"\n\n\n")).strip() == b""
        await feed.aclose()
        feed = node.feed("feed=eventsource&heartbeat=1").pieces()
        assert await until(feed, b"event: heartbeat\ndata: \n\n")
        await feed.aclose()

    run(body)


def test_a_feed_ends_when_its_database_is_dropped(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.put({"_id": "a"})
        feed = node.feed("feed=continuous&heartbeat=true").pieces()
        await until(feed, b'"id":"a"')
        await node.services.entry.drop_database("db")
        last = json.loads(await until(feed, b"last_seq"))
        assert last["last_seq"].startswith("1-")
        assert last["pending"] == 0

    run(body)


def test_a_feed_ends_when_the_node_stops(run: Run) -> None:
    async def body(node: Node) -> None:
        feed = node.feed("feed=longpoll&heartbeat=true").pieces()
        await until(feed, b"results")
        waiting = asyncio.create_task(until(feed, b"last_seq"))
        await asyncio.sleep(0)
        node.services.stopping.set()
        node.replica.wake_all()
        assert b'"pending":0' in await waiting

    run(body)


def test_feeds_that_wait_are_counted_and_given_back(run: Run) -> None:
    async def body(node: Node) -> None:
        feeds = [node.feed("feed=longpoll&heartbeat=true").pieces() for _ in range(2)]
        for feed in feeds:
            await anext(feed)
        with pytest.raises(Busy):
            await anext(node.feed("feed=longpoll").pieces())
        assert await node.ids() == []
        await feeds[0].aclose()
        last = node.feed("feed=longpoll").pieces()
        await anext(last)
        await last.aclose()
        await feeds[1].aclose()

    run(body)


def test_no_change_is_missed_while_many_write(run: Run) -> None:
    async def body(node: Node) -> None:
        seen: list[str] = []

        async def follow() -> None:
            text = b""
            async for piece in node.feed("feed=continuous&limit=200").pieces():
                text += piece
            seen.extend(json.loads(line).get("id") for line in text.splitlines() if line)

        following = asyncio.create_task(follow())
        writers = [asyncio.create_task(node.put({"_id": f"{number:03}"})) for number in range(200)]
        await asyncio.gather(*writers)
        await following
        assert sorted(filter(None, seen)) == [f"{number:03}" for number in range(200)]

    run(body)
