"""Copying a peer's file: when it is wanted, how it is given, and how it is taken over bad links."""

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from divandb.cluster import snapshots
from divandb.cluster.snapshots import (
    NOTE_NAME,
    PART_NAME,
    Bounds,
    Offer,
    Progress,
    Shelf,
    discard,
    fetch,
    wanted,
)
from divandb.config import Limits
from divandb.errors import Busy, DivanError, NotFound, RangeNotSatisfiable, StorageFull
from divandb.httpd import snapshots as routes
from divandb.store import file, snapshot
from divandb.store.file import FORMAT, Disk, FileError, FormatError
from divandb.vector import covers
from tests.stores import Lines, SeededRng, StillClock, Store, edit

WAIT_S = 20.0
VECTORS = st.dictionaries(st.integers(1, 4), st.integers(0, 30), max_size=4)


async def offload(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


# The decision


def test_a_new_node_copies_a_peer_that_has_anything() -> None:
    assert wanted(None, {1: 1}, 0, 100)
    assert not wanted(None, {}, 0, 100)
    assert not wanted(None, {1: 0}, 0, 100)


def test_a_node_that_is_far_behind_copies() -> None:
    assert wanted({1: 10}, {1: 60, 2: 51}, 0, 100)
    assert not wanted({1: 10}, {1: 60, 2: 50}, 0, 100)


def test_a_node_with_anything_of_its_own_catches_up() -> None:
    assert not wanted({1: 10}, {1: 1000}, 1, 100)
    assert not wanted({1: 10, 2: 1}, {1: 1000}, 0, 100)


@given(VECTORS, VECTORS, st.integers(0, 1), st.integers(1, 40))
def test_nothing_is_replaced_that_the_peer_lacks(
    own: dict[int, int], peer: dict[int, int], rows: int, behind_max: int
) -> None:
    if wanted(own, peer, rows, behind_max):
        assert rows == 0
        assert covers(peer, own)
        assert sum(peer.values()) - sum(own.values()) > behind_max


# The giving side


@pytest.fixture
def peer(tmp_path: Path) -> Store:
    folder = tmp_path / "peer"
    folder.mkdir()
    made = Store(folder)
    made.create("db")
    for start in range(0, 2000, 100):
        writes = [edit(f"d{n:05}", None, {"n": "x" * 1000}) for n in range(start, start + 100)]
        made.write("db", *writes)
    return made


def shelf_of(peer: Store, *, free_bytes: int = 2**40, **limits: int) -> Shelf:
    return Shelf(
        peer.disk, peer.clock, SeededRng(5), Limits(**limits), offload, Lines(),
        lambda folder: free_bytes,
    )  # fmt: skip


def copies(peer: Store) -> list[str]:
    return sorted(path.name for path in peer.disk.path.parent.glob("snapshot-*"))


async def given(shelf: Shelf) -> Offer:
    offer = await shelf.offer(WAIT_S)
    assert offer is not None
    return offer


async def read_all(shelf: Shelf, offer: Offer, first: int = 0) -> bytes:
    with shelf.reading(offer.id) as reading:
        pieces = [piece async for piece in reading.pieces(first, offer.size_bytes - 1)]
    assert all(len(piece) <= snapshots.PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def test_a_copy_is_made_when_asked_for_and_read(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer)
        assert shelf.status() == {"making": False, "size_bytes": 0, "sent_bytes": 0}
        offer = await given(shelf)
        data = await read_all(shelf, offer)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (offer.size_bytes, offer.sha256)
        assert await read_all(shelf, offer, offer.size_bytes - 10) == data[-10:]
        assert offer.vector == dict(peer.rows("SELECT origin, contained FROM origin"))
        assert (offer.cluster, offer.format) == (peer.identity.cluster, FORMAT)
        assert shelf.status() == {
            "making": False, "size_bytes": len(data), "sent_bytes": len(data) + 10,
        }  # fmt: skip
        await shelf.close()
        assert copies(peer) == []

    asyncio.run(run())


def test_askers_share_one_copy_while_it_is_young(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, snapshot_kept_s=100)
        first, second = await asyncio.gather(given(shelf), given(shelf))
        assert first is second
        peer.clock.ms += 99_000
        assert await given(shelf) is first
        peer.clock.ms += 1_000
        third = await given(shelf)
        assert third.id != first.id
        assert copies(peer) == [f"snapshot-{third.id}.sqlite"]
        with pytest.raises(NotFound):
            shelf.find(first.id)
        await shelf.close()

    asyncio.run(run())


def test_a_copy_that_is_read_is_given_however_old(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, snapshot_kept_s=100)
        first = await given(shelf)
        with shelf.reading(first.id):
            peer.clock.ms += 1_000_000
            await shelf.tidy()
            assert await given(shelf) is first
        await shelf.close()

    asyncio.run(run())


def test_a_copy_goes_when_nobody_has_used_it_for_long(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, snapshot_kept_s=100)
        offer = await given(shelf)
        peer.clock.ms += 90_000
        await read_all(shelf, offer)
        peer.clock.ms += 99_000
        await shelf.tidy()
        assert len(copies(peer)) == 1
        peer.clock.ms += 1_000
        await shelf.tidy()
        assert copies(peer) == []
        assert shelf.status()["size_bytes"] == 0
        await shelf.close()

    asyncio.run(run())


def test_an_asker_that_does_not_wait_asks_again(
    peer: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        go_on, takes = threading.Event(), []
        take = snapshot.take

        def slow(*arguments: Any) -> Any:
            takes.append(arguments)
            assert go_on.wait(WAIT_S)
            return take(*arguments)

        monkeypatch.setattr(snapshot, "take", slow)
        shelf = shelf_of(peer)
        assert await shelf.offer(0.01) is None
        assert await shelf.offer(0.01) is None
        assert shelf.status()["making"]
        go_on.set()
        assert await given(shelf) is await given(shelf)
        assert len(takes) == 1
        assert not shelf.status()["making"]
        await shelf.close()

    asyncio.run(run())


def test_leftovers_are_removed_at_the_start(peer: Store) -> None:
    folder = peer.disk.path.parent
    for name in ("snapshot-ab.sqlite", "snapshot-cd.sqlite-journal", "snapshot-note.txt"):
        (folder / name).touch()
    shelf_of(peer)
    assert copies(peer) == ["snapshot-note.txt"]


def test_no_copy_is_begun_without_room(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, free_bytes=2**20)
        with pytest.raises(StorageFull, match="needs"):
            await shelf.offer(WAIT_S)
        assert copies(peer) == []

    asyncio.run(run())


def test_a_disk_that_fails_is_told(peer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    async def run() -> None:
        shelf = shelf_of(peer)
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "take", full)
            with pytest.raises(StorageFull):
                await shelf.offer(WAIT_S)
        assert not shelf.status()["making"]
        assert await given(shelf)
        await shelf.close()

    asyncio.run(run())


def test_a_stop_gives_up_what_is_being_made(peer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(disk: Disk, path: Path, given_up: Callable[[], bool]) -> Any:
        deadline = threading.Event()
        while not given_up():
            deadline.wait(0.001)
        raise snapshot.Abandoned

    async def run() -> None:
        monkeypatch.setattr(snapshot, "take", endless)
        shelf = shelf_of(peer)
        asking = asyncio.create_task(shelf.offer(WAIT_S))
        await until(lambda: bool(shelf.status()["making"]))
        await shelf.close()
        with pytest.raises(Busy, match="stopping"):
            await asking

    asyncio.run(run())


def test_readers_are_bounded(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, snapshot_downloads_max=2)
        offer = await given(shelf)
        with shelf.reading(offer.id), shelf.reading(offer.id):
            with pytest.raises(Busy) as refusal:
                with shelf.reading(offer.id):
                    pass
            assert refusal.value.headers["retry-after"]
        with shelf.reading(offer.id):
            pass
        await shelf.close()

    asyncio.run(run())


# The routes


def call_for(shelf: Shelf, snapshot_id: str = "", method: str = "GET", **headers: str) -> Any:
    return SimpleNamespace(
        services=SimpleNamespace(snapshots=shelf),
        method=method,
        headers=headers,
        path=lambda name: snapshot_id,
        peer=lambda: None,
    )


async def answered(response: Response, die_after: int | None = None) -> bytes:
    """What is sent; after ``die_after`` messages the client is gone."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if die_after is not None and len(sent) >= die_after:
            raise OSError("gone")
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.4"}}
    await response(scope, receive, send)
    return b"".join(sent)


def test_routes_give_the_copy_whole_and_in_parts(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer)
        offer = msgspec.json.decode((await routes.ask(call_for(shelf))).body, type=Offer)
        whole = await routes.get(call_for(shelf, offer.id))
        assert whole.status_code == 200
        data = await answered(whole)
        assert hashlib.sha256(data).hexdigest() == offer.sha256
        assert whole.headers["content-length"] == str(len(data))
        assert whole.headers["accept-ranges"] == "bytes"
        part = await routes.get(call_for(shelf, offer.id, range="bytes=1000-"))
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes 1000-{len(data) - 1}/{len(data)}"
        assert await answered(part) == data[1000:]
        few = await routes.get(call_for(shelf, offer.id, range="bytes=10-19"))
        assert await answered(few) == data[10:20]
        head = await routes.get(call_for(shelf, offer.id, "HEAD"))
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
        with pytest.raises(RangeNotSatisfiable):
            await routes.get(call_for(shelf, offer.id, range=f"bytes={len(data)}-"))
        with pytest.raises(NotFound):
            await routes.get(call_for(shelf, "0" * 32))
        await shelf.close()

    asyncio.run(run())


def test_a_download_leaves_its_place_however_it_ends(peer: Store) -> None:
    async def run() -> None:
        shelf = shelf_of(peer, snapshot_downloads_max=1)
        offer = await given(shelf)
        for messages in (0, 1, 2):
            with pytest.raises(Exception):  # noqa: B017 - the server's own of a lost client
                await answered(await routes.get(call_for(shelf, offer.id)), messages)
        with shelf.reading(offer.id), pytest.raises(Busy):
            await answered(await routes.get(call_for(shelf, offer.id)))
        assert len(await answered(await routes.get(call_for(shelf, offer.id)))) == offer.size_bytes
        await shelf.close()

    asyncio.run(run())


def test_while_it_is_made_the_answer_says_so(peer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        shelf = shelf_of(peer)

        async def not_yet(wait_s: float = 0) -> None:
            return None

        monkeypatch.setattr(shelf, "offer", not_yet)
        response = await routes.ask(call_for(shelf))
        assert (response.status_code, response.body) == (202, b'{"making":true}\n')
        assert response.headers["retry-after"] == "1"

    asyncio.run(run())


# The taking side

SWIFT = Bounds(
    connect_s_max=2.0, silence_s_max=2.0, tries_max=4, progress_bytes_min=1, begins_max=3,
    back_off_s_min=0.001, back_off_s_max=0.01,
)  # fmt: skip


class FakePeer:
    """A peer over real sockets that does what a test tells it to."""

    def __init__(self, copy: bytes, offer: Offer) -> None:
        self.copy = copy
        self.offer = offer
        self.cut_every: int | None = None
        """Each connection ends after so many bytes of the copy."""
        self.cuts_max = 10**9
        self.damaged = 0
        """So many downloads have a wrong byte."""
        self.refusals: list[tuple[int, str]] = []
        """Status and further headers of the next answers."""
        self.ignores_range = False
        self.asked: list[str] = []
        self.ranges: list[int] = []
        self.served: list[str] = []
        self.on_cut: Callable[[], None] = lambda: None
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._answer(head.decode(), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; may the connection be kept?"""
        method, path, _ = head.split(" ", 2)
        assert "authorization: Divan me" in head
        self.asked.append(f"{method} {path}")
        if self.refusals:
            status, headers = self.refusals.pop(0)
            body = b'{"making": true}' if status == 202 else b"{}"
            return await self._send(writer, status, body, headers)
        if method == "POST":
            return await self._send(writer, 200, msgspec.json.encode(self.offer))
        if path != f"/_divan/snapshot/{self.offer.id}":
            return await self._send(writer, 404, b"{}")
        return await self._copy(head, writer)

    async def _copy(self, head: str, writer: asyncio.StreamWriter) -> bool:
        found = re.search(r"range: bytes=(\d+)-", head)
        first = int(found[1]) if found and not self.ignores_range else 0
        self.ranges.append(int(found[1]) if found else 0)
        data, size = self.copy[first:], len(self.copy)
        if self.damaged:
            self.damaged -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        status = 206 if found and not self.ignores_range else 200
        ranged = f"content-range: bytes {first}-{size - 1}/{size}\r\n" if status == 206 else ""
        if self.cut_every is None or self.cuts_max <= 0 or len(data) <= self.cut_every:
            return await self._send(writer, status, data, ranged)
        self.cuts_max -= 1
        await self._send(writer, status, data, ranged, sent=self.cut_every)
        self.on_cut()
        return False

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, headers: str = "",
        sent: int | None = None,
    ) -> bool:  # fmt: skip
        head = f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:sent])
        await writer.drain()
        return True


@pytest.fixture
def made(peer: Store) -> tuple[bytes, Offer]:
    """A copy of the peer's file and its offer."""
    info = snapshot.take(peer.disk, peer.disk.path.with_name("copy"))
    offer = Offer("a1", info.size_bytes, info.sha256, info.cluster, info.format, info.vector)
    return info.path.read_bytes(), offer


class Taker:
    """A new node's folder, and what was told of the copy on its way."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.told: list[Progress] = []
        self.log = Lines()

    async def fetch(self, url: str, bounds: Bounds = SWIFT, **options: Any) -> bool:
        async with asyncio.timeout(WAIT_S):
            return await fetch(
                url, "Divan me", self.folder, StillClock(), SeededRng(), self.told.append,
                self.log, bounds=bounds, **options,
            )  # fmt: skip

    def check(self, offer: Offer) -> None:
        """The copy is the node's file, and nothing else is left."""
        path = self.folder / file.FILE_NAME
        assert hashlib.sha256(path.read_bytes()).hexdigest() == offer.sha256
        assert sorted(one.name for one in self.folder.iterdir()) == [file.FILE_NAME]
        assert self.told[-1].bytes == self.told[-1].total_bytes == offer.size_bytes
        Store(self.folder, rng=SeededRng(9)).close()


@pytest.fixture
def taker(tmp_path: Path) -> Taker:
    return Taker(tmp_path / "new")


@asynccontextmanager
async def serving(made: tuple[bytes, Offer]) -> AsyncIterator[FakePeer]:
    fake = FakePeer(*made)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


Case = Callable[[FakePeer], Any]


def against(made: tuple[bytes, Offer], case: Case) -> FakePeer:
    async def run() -> FakePeer:
        async with serving(made) as fake:
            await case(fake)
            return fake

    return asyncio.run(run())


def test_a_copy_is_fetched_and_put_in_place(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    assert fake.asked == ["POST /_divan/snapshot", "GET /_divan/snapshot/a1"]
    assert taker.told[0] == Progress(fake.url, 0, 0)
    assert [one.bytes for one in taker.told] == sorted(one.bytes for one in taker.told)


@pytest.mark.parametrize("cut_every", [1, 100_000, 1_048_576, 1_500_000])
def test_a_connection_that_is_cut_again_and_again(
    made: tuple[bytes, Offer], taker: Taker, cut_every: int
) -> None:
    """Nothing that came is asked for a second time."""

    async def case(fake: FakePeer) -> None:
        fake.cut_every, fake.cuts_max = cut_every, 40
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    cuts = min(40, (len(made[0]) - 1) // cut_every)
    assert fake.ranges == [cut_every * turn for turn in range(cuts + 1)]
    assert fake.asked.count("POST /_divan/snapshot") == 1


def test_wrong_bytes_are_never_put_in_place(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        fake.damaged = 2
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    assert fake.ranges == [0, 0, 0]


def test_a_peer_that_only_has_wrong_bytes_is_given_up(
    made: tuple[bytes, Offer], taker: Taker
) -> None:
    async def case(fake: FakePeer) -> None:
        fake.damaged = 10**9
        assert not await taker.fetch(fake.url)

    fake = against(made, case)
    assert len(fake.ranges) == SWIFT.begins_max
    assert not (taker.folder / file.FILE_NAME).exists()


@pytest.mark.parametrize("change", [-1000, 1000])
def test_a_peer_that_sends_less_or_more_than_it_said(
    made: tuple[bytes, Offer], taker: Taker, change: int
) -> None:
    async def case(fake: FakePeer) -> None:
        fake.copy = fake.copy[:change] if change < 0 else fake.copy + bytes(change)
        assert not await taker.fetch(fake.url)

    against(made, case)
    assert not (taker.folder / file.FILE_NAME).exists()


def test_a_peer_that_ends_and_comes_back(made: tuple[bytes, Offer], taker: Taker) -> None:
    """In the middle of the copy its port is closed for a while."""

    async def case(fake: FakePeer) -> None:
        cut = asyncio.Event()
        fake.cut_every, fake.cuts_max, fake.on_cut = 700_000, 1, cut.set
        bounds = Bounds(tries_max=1000, back_off_s_min=0.001, back_off_s_max=0.01)
        fetching = asyncio.create_task(taker.fetch(fake.url, bounds))
        await cut.wait()
        await fake.stop()
        await until(lambda: taker.log.events.count("snapshot interrupted") > 5)
        await fake.start()
        assert await fetching

    fake = against(made, case)
    taker.check(made[1])
    assert fake.ranges == [0, 700_000]


def test_a_peer_that_does_not_come_back(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        cut = asyncio.Event()
        fake.cut_every, fake.cuts_max, fake.on_cut = 700_000, 1, cut.set
        fetching = asyncio.create_task(taker.fetch(fake.url))
        await cut.wait()
        await fake.stop()
        assert not await fetching
        await fake.start()

    against(made, case)
    assert (taker.folder / PART_NAME).stat().st_size == 700_000


def test_a_restarted_node_goes_on_where_it_was(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        cut = asyncio.Event()
        fake.cut_every, fake.cuts_max, fake.on_cut = 700_000, 1, cut.set
        killed = asyncio.create_task(taker.fetch(fake.url, Bounds(back_off_s_min=WAIT_S)))
        await until(lambda: bool(taker.log.events))
        killed.cancel()
        await asyncio.wait({killed})
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    assert fake.ranges == [0, 700_000]
    assert fake.asked.count("POST /_divan/snapshot") == 1


def leave(taker: Taker, url: str, offer: Offer, data: bytes) -> None:
    """What an earlier process has left."""
    (taker.folder / PART_NAME).write_bytes(data)
    note = {"source": url, "offer": msgspec.to_builtins(offer, str_keys=True)}
    (taker.folder / NOTE_NAME).write_bytes(msgspec.json.encode(note))


def test_a_part_of_a_copy_that_is_gone_is_dropped(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        leave(taker, fake.url, msgspec.structs.replace(made[1], id="b2"), b"x" * 5000)
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    assert fake.asked[0] == "GET /_divan/snapshot/b2"
    assert fake.ranges == [0]


def test_a_part_of_another_peers_copy_is_dropped(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        leave(taker, "http://elsewhere", made[1], made[0][:5000])
        assert await taker.fetch(fake.url)

    fake = against(made, case)
    taker.check(made[1])
    assert fake.ranges == [0]


@pytest.mark.parametrize("note", [b"", b"{", b'{"source": 1}'])
def test_a_part_with_a_bad_note_is_dropped(
    made: tuple[bytes, Offer], taker: Taker, note: bytes
) -> None:
    async def case(fake: FakePeer) -> None:
        (taker.folder / PART_NAME).write_bytes(made[0][:5000])
        (taker.folder / NOTE_NAME).write_bytes(note)
        assert await taker.fetch(fake.url)

    assert against(made, case).ranges == [0]
    taker.check(made[1])


def test_a_part_that_lost_bytes_or_has_wrong_ones(made: tuple[bytes, Offer], taker: Taker) -> None:
    """After a power cut a file may end in zeros."""

    async def case(fake: FakePeer) -> None:
        leave(taker, fake.url, made[1], made[0][:5000] + bytes(5000))
        assert await taker.fetch(fake.url)

    assert against(made, case).ranges == [10_000, 0]
    taker.check(made[1])


def test_a_whole_part_is_not_fetched_again(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        leave(taker, fake.url, made[1], made[0])
        assert await taker.fetch(fake.url)

    assert against(made, case).asked == []
    assert (taker.folder / file.FILE_NAME).exists()
    assert not (taker.folder / NOTE_NAME).exists()


def test_a_peer_that_knows_no_ranges(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        fake.ignores_range = True
        fake.cut_every, fake.cuts_max = 700_000, 1
        assert await taker.fetch(fake.url)

    assert against(made, case).ranges == [0, 700_000]
    taker.check(made[1])


def test_a_peer_that_is_busy_or_still_making_it(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        fake.refusals = [(202, "retry-after: 0\r\n")] * 5 + [(503, "retry-after: 0\r\n")] * 3
        assert await taker.fetch(fake.url)

    assert len(against(made, case).asked) == 10
    taker.check(made[1])


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501, 507])
def test_a_peer_that_refuses_is_not_asked_again(
    made: tuple[bytes, Offer], taker: Taker, status: int
) -> None:
    async def case(fake: FakePeer) -> None:
        fake.refusals = [(status, "")]
        assert not await taker.fetch(fake.url)

    assert len(against(made, case).asked) == 1


def test_tries_are_bounded(made: tuple[bytes, Offer], taker: Taker) -> None:
    async def case(fake: FakePeer) -> None:
        fake.refusals = [(500, "retry-after: 0\r\n")] * 100
        assert not await taker.fetch(fake.url)

    assert len(against(made, case).asked) == SWIFT.tries_max


def test_a_copy_of_another_format_or_cluster_is_not_fetched(
    made: tuple[bytes, Offer], taker: Taker
) -> None:
    async def case(fake: FakePeer) -> None:
        with pytest.raises(FileError, match="another cluster"):
            await taker.fetch(fake.url, cluster="cd" * 16)
        fake.offer = msgspec.structs.replace(made[1], format=FORMAT + 1)
        with pytest.raises(FormatError):
            await taker.fetch(fake.url)

    assert against(made, case).ranges == []


def test_a_file_larger_than_the_disk_is_not_fetched(
    made: tuple[bytes, Offer], taker: Taker
) -> None:
    async def case(fake: FakePeer) -> None:
        fake.offer = msgspec.structs.replace(made[1], size_bytes=2**60)
        with pytest.raises(StorageFull):
            await taker.fetch(fake.url)

    assert against(made, case).ranges == []


def test_a_file_that_is_there_is_replaced_only_when_told(
    made: tuple[bytes, Offer], taker: Taker, peer: Store
) -> None:
    old = Store(taker.folder, rng=SeededRng(7))
    file.set_meta(old.connection, "cluster", peer.identity.cluster)
    old.crash()

    async def case(fake: FakePeer) -> None:
        with pytest.raises(FileError, match="there already"):
            await taker.fetch(fake.url)
        assert await taker.fetch(fake.url, replace=True)

    # The part that was refused is whole, and is not fetched again.
    assert against(made, case).ranges == [0]
    taker.check(made[1])


def test_nothing_is_left_of_a_copy_that_is_not_wanted_any_more(taker: Taker) -> None:
    leave(taker, "http://a", Offer("a1", 9, "", "", FORMAT, {-(2**63): 1}), b"x")
    discard(taker.folder)
    discard(taker.folder)
    assert list(taker.folder.iterdir()) == []


def test_a_shelf_and_a_taker(peer: Store, taker: Taker) -> None:
    """Both sides, over HTTP."""

    async def run() -> Offer:
        shelf = shelf_of(peer)

        def endpoint(handler: Any) -> Any:
            async def answer(request: Request) -> Response:
                path_id = request.path_params.get("id", "")
                call = call_for(shelf, path_id, request.method, **dict(request.headers))
                try:
                    response: Response = await handler(call)
                    return response
                except DivanError as refusal:
                    return Response(refusal.reason, refusal.status)

            return answer

        app = Starlette(
            routes=[
                Route(path, endpoint(handler), methods=[method])
                for path, methods in routes.ROUTES
                for method, handler in methods.items()
            ]
        )
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        async with AsyncExitStack() as stack:
            serving = asyncio.create_task(server.serve())
            stack.push_async_callback(asyncio.wait, {serving})
            stack.callback(lambda: setattr(server, "should_exit", True))
            await until(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            assert await taker.fetch(f"http://127.0.0.1:{port}")
            offer = await given(shelf)
            await shelf.close()
            return offer

    offer = asyncio.run(run())
    taker.check(offer)
