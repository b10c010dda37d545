"""Attachments whose bytes are not here: found, and fetched from whoever has them."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from divandb import event as events
from divandb.attachments import pack
from divandb.cluster.blobs import LOOK_S_MAX, LOOK_S_MIN, PEERS_MAX, Gatherer, scan
from divandb.config import REPLICA, Member
from divandb.event import CHUNK_BYTES, Chunk
from divandb.link import LinkBroken, Reply
from divandb.store import arrivals, blobs, documents, outbox
from tests.sim.world import SimClock, SimLoop
from tests.stores import SeededRng, Store, edit

NAME = "a"
DATA = SeededRng(5).token(4 * CHUNK_BYTES + 7)
HASH = sha256(DATA).digest()


class Kept:
    """A log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append((what, values))

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise fault


class FakePeer:
    """Another node: its file, and what goes wrong with it."""

    def __init__(self, name: str, store: Store) -> None:
        self.member = Member(name, REPLICA, "m1", f"http://{name}")
        self.link = self
        self._store = store
        self.asked: list[str] = []
        self.breaks_after = 10**9
        """So many questions are answered."""
        self.says: Callable[[bytes, int], bytes | None] = self._chunk

    def _chunk(self, name: bytes, index: int) -> bytes | None:
        chunk = blobs.chunk(self._store.reader, name, index)
        return None if chunk is None else events.of_chunk(chunk)

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, wait_s: float = 0.0,
        body_bytes_max: int, repeatable: bool = False,
    ) -> Reply:  # fmt: skip
        assert (method, repeatable) == ("GET", True)
        await asyncio.sleep(0.001)
        self.asked.append(path)
        if len(self.asked) > self.breaks_after:
            raise LinkBroken("gone", sent=True)
        _, _, _, hex_name, index = path.split("/")
        said = self.says(bytes.fromhex(hex_name), int(index))
        if said is None:
            return Reply(404, [], b"{}")
        assert len(said) <= body_bytes_max
        return Reply(200, [], said)

    def chunks_asked(self) -> list[int]:
        return [int(path.rpartition("/")[2]) for path in self.asked]


class World:
    """A node that lacks bytes, and others that may have them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.node = self._store("node", 1)
        self.source = self._store("source", 2)
        self.peers = [FakePeer("source", self.source)]
        self.log = Kept()
        self.looks = 0
        self.gatherer: Gatherer

    def _store(self, name: str, seed: int) -> Store:
        (self._folder / name).mkdir()
        made = Store(self._folder / name, rng=SeededRng(seed))
        self._stack.callback(made.close)
        return made

    def another(self, name: str) -> FakePeer:
        """One more peer, which has nothing."""
        self.peers.append(FakePeer(name, self._store(name, len(name) + 10)))
        return self.peers[-1]

    def write(self, *datas: bytes, name: str = NAME) -> None:
        """The source writes documents with an attachment each."""
        if name not in self.source.ledger.register:
            self.source.create(name)
        for data in datas:
            att = pack(data, "application/x-data").attachment("a", "application/x-data", 1)
            self.source.write(
                name,
                edit(f"d{len(data)}", None, {}, attachments=(att,), blobs=((att.blob, data),)),
            )

    def take_documents(self) -> None:
        """They come to the node without their bytes."""
        page = outbox.page(self.source.reader, 0, 10_000)
        sent = [one for one in page.messages if isinstance(one, bytes)]
        self.node.do(lambda ledger: arrivals.take(ledger, sent, 0))

    def take_chunks(self, *indexes: int) -> None:
        for index in indexes:
            chunk = blobs.chunk(self.source.reader, HASH, index)
            assert chunk is not None
            self.node.do(lambda ledger, c=chunk: arrivals.take(ledger, [events.of_chunk(c)], 0))

    def holds(self, data: bytes) -> bool:
        name = sha256(data).digest()
        if blobs.find(self.node.reader, name) is None:
            return False
        return b"".join(blobs.read(self.node.reader, name)) == data

    # Running

    def nearest(self) -> list[FakePeer]:
        return self.peers

    async def _look(self) -> list[bytes]:
        self.looks += 1
        await asyncio.sleep(0.001)
        return scan(self.node.disk)

    async def _execute(self, step: Any, size_bytes: int) -> Any:
        await asyncio.sleep(0.001)
        return self.node.do(step)

    def play(self, body: Callable[[], Awaitable[None]]) -> None:
        """Have it gather while ``body`` runs."""
        loop = SimLoop()

        async def whole() -> None:
            self.gatherer = Gatherer(
                self, self._look, lambda: self.node.ledger.unmet_blobs, self._execute,
                SimClock(loop), self.log,
            )  # fmt: skip
            running = asyncio.ensure_future(self.gatherer.run())
            await body()
            assert not running.done()

        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(whole())

    async def until(self, condition: Callable[[], bool], within_s: float = 1.0) -> None:
        until = asyncio.get_running_loop().time() + within_s
        while not condition():
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.01)


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp())
    try:
        with ExitStack() as stack:
            yield World(folder, stack)
    finally:
        shutil.rmtree(folder)


# What is in the file


def test_what_is_missing_is_found(world: World) -> None:
    world.write(b"", b"x", DATA)
    world.take_documents()
    hashes = {sha256(data).digest() for data in (b"", b"x", DATA)}
    assert set(blobs.missing(world.node.reader, 10)) == hashes
    assert world.node.ledger.unmet_blobs == 3
    assert len(blobs.missing(world.node.reader, 2)) == 2
    assert blobs.missing(world.source.reader, 10) == []
    assert world.source.ledger.unmet_blobs == 0


def test_a_dropped_database_misses_nothing(world: World) -> None:
    world.write(b"x")
    world.take_documents()
    world.node.do(lambda ledger: ledger.drop_database(ledger.register[NAME]))
    assert blobs.missing(world.node.reader, 10) == []


def test_a_chunk_is_of_its_own_blob(world: World) -> None:
    world.write(DATA, b"", b"next")
    reader = world.source.reader
    pieces = [blobs.chunk(reader, HASH, index) for index in range(5)]
    assert b"".join(piece.data for piece in pieces if piece) == DATA
    for index in (5, 2**24, 2**24 + 1, 10**17):
        assert blobs.chunk(reader, HASH, index) is None
    empty = sha256(b"").digest()
    assert blobs.chunk(reader, empty, 0) == Chunk(empty, 0, 0, b"")
    assert blobs.chunk(reader, empty, 1) is None
    assert blobs.chunk(reader, bytes(32), 0) is None


def test_what_has_come_of_a_blob_is_known(world: World) -> None:
    world.write(DATA)
    assert blobs.copies(world.node.reader, HASH) == {}
    world.take_chunks(3, 1)
    assert blobs.copies(world.node.reader, HASH) == {len(DATA): {1, 3}}


# Fetching


@pytest.mark.parametrize("data", [b"", b"x", DATA[:CHUNK_BYTES], DATA])
def test_what_is_missing_at_the_start_is_fetched(world: World, data: bytes) -> None:
    world.write(data)
    world.take_documents()
    world.play(lambda: world.until(lambda: world.holds(data)))
    assert (world.gatherer.missing, world.gatherer.fetched) == (0, 1)
    assert world.log.lines == [("attachments missing", {"fetched": 1, "missing": 0, "fault": ""})]


def test_where_nothing_is_missing_it_is_looked_once(world: World) -> None:
    world.write(b"x")

    async def body() -> None:
        for _ in range(20):
            world.gatherer.notice()
            await asyncio.sleep(LOOK_S_MAX / 4)

    world.play(body)
    assert (world.looks, world.log.lines) == (1, [])


def test_what_comes_later_without_its_bytes_is_fetched(world: World) -> None:
    async def body() -> None:
        await asyncio.sleep(10.0)
        world.write(DATA, b"x")
        world.take_documents()
        world.gatherer.notice()
        await world.until(lambda: world.holds(DATA) and world.holds(b"x"))
        await asyncio.sleep(LOOK_S_MAX * 3)

    world.play(body)
    assert world.looks <= 3


def test_without_a_word_it_is_fetched_at_the_next_look(world: World) -> None:
    async def body() -> None:
        await asyncio.sleep(10.0)
        world.write(b"x")
        world.take_documents()
        await world.until(lambda: world.holds(b"x"), LOOK_S_MAX + 1)

    world.play(body)


def test_chunks_that_are_here_are_not_asked_for_again(world: World) -> None:
    world.write(DATA)
    world.take_documents()
    world.take_chunks(0, 1, 3)
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.peers[0].chunks_asked() == [0, 2, 4]  # the first says how long it is


def test_what_broke_off_goes_on_from_the_next_peer(world: World) -> None:
    world.write(DATA)
    world.take_documents()
    world.peers[0].breaks_after = 3
    world.peers.append(FakePeer("other", world.source))
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.peers[0].chunks_asked() == [0, 1, 2, 3]
    assert world.peers[1].chunks_asked() == [0, 3, 4]


def test_who_has_it_not_is_passed_over(world: World) -> None:
    world.write(DATA)
    world.take_documents()
    nobody = world.another("nobody")
    world.peers.reverse()
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert nobody.chunks_asked() == [0]


def test_what_nobody_has_is_asked_for_less_and_less_often(world: World) -> None:
    world.write(b"x")
    world.take_documents()
    world.peers.clear()

    async def body() -> None:
        await asyncio.sleep(30 * LOOK_S_MAX)
        assert (world.gatherer.missing, world.gatherer.fetched) == (1, 0)
        assert 30 <= world.looks <= 40
        world.peers.append(FakePeer("late", world.source))
        await world.until(lambda: world.holds(b"x"), LOOK_S_MAX + 1)

    world.play(body)
    assert world.gatherer.missing == 0


def test_only_so_many_peers_are_asked(world: World) -> None:
    world.write(b"x")
    world.take_documents()
    world.peers.clear()
    for number in range(PEERS_MAX + 4):
        world.another(f"peer-{number}")
    world.play(lambda: asyncio.sleep(LOOK_S_MIN / 2))
    assert sum(bool(peer.asked) for peer in world.peers) == PEERS_MAX


def test_what_a_read_wants_comes_first(world: World) -> None:
    many = [bytes(count) for count in range(50, 60)]
    world.write(*many)
    world.take_documents()
    last = max(sha256(data).digest() for data in many)

    async def body() -> None:
        await asyncio.sleep(0.015)
        world.gatherer.want([last])
        await world.until(lambda: world.gatherer.fetched == len(many))

    world.play(body)
    asked = [path.split("/")[3] for path in world.peers[0].asked]
    assert asked.index(last.hex()) < len(many) // 2
    assert len(asked) == len(many)


def test_what_nobody_has_is_not_asked_for_at_every_read(world: World) -> None:
    world.write(b"x")
    world.take_documents()
    nobody = world.another("nobody")
    del world.peers[0]

    async def body() -> None:
        for _ in range(100):
            world.gatherer.want([sha256(b"x").digest()])
            await asyncio.sleep(LOOK_S_MIN / 20)

    world.play(body)
    assert len(nobody.asked) < 15


# Peers that lie


def lie(world: World, says: Callable[[bytes, int], bytes | None]) -> None:
    """The first peer says something else; the second is good."""
    world.peers[0].says = says
    world.peers.append(FakePeer("good", world.source))


def test_bytes_that_are_not_what_their_name_says_are_dropped(world: World) -> None:
    world.write(DATA)
    world.take_documents()

    def other_bytes(name: bytes, index: int) -> bytes | None:
        good = blobs.chunk(world.source.reader, name, index)
        if good is None:
            return None
        return events.of_chunk(Chunk(name, index, good.length, bytes(len(good.data))))

    lie(world, other_bytes)
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.node.ledger.alarms.damaged_blobs == 1


@pytest.mark.parametrize("length", [0, 1, len(DATA) - 1, len(DATA) + 1, 2**40])
def test_a_copy_of_another_length_than_the_document_says_is_not_taken(
    world: World, length: int
) -> None:
    """Not one byte of it: what is asked of a peer is bounded before it is asked."""
    world.write(DATA)
    world.take_documents()

    def another_length(name: bytes, index: int) -> bytes | None:
        return events.of_chunk(Chunk(name, index, length, bytes(min(length, CHUNK_BYTES))))

    lie(world, another_length)
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.peers[0].chunks_asked() == [0]
    assert world.node.ledger.alarms.damaged_blobs == 0


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_chunk_that_is_longer_or_shorter_is_not_taken(world: World, extra: int) -> None:
    world.write(DATA)
    world.take_documents()

    def another_chunk(name: bytes, index: int) -> bytes | None:
        return events.of_chunk(Chunk(name, index, len(DATA), bytes(CHUNK_BYTES + extra)))

    lie(world, another_chunk)
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.peers[0].chunks_asked() == [0]


def test_a_copy_that_changes_its_length_is_left(world: World) -> None:
    world.write(DATA)
    world.take_documents()

    def another_length(name: bytes, index: int) -> bytes | None:
        good = blobs.chunk(world.source.reader, name, index)
        assert good is not None
        return events.of_chunk(Chunk(name, index, len(DATA) + index * CHUNK_BYTES, good.data))

    lie(world, another_length)
    world.play(lambda: world.until(lambda: world.holds(DATA)))
    assert world.peers[0].chunks_asked() == [0, 1]


def test_what_no_revision_needs_any_more_is_not_fetched(world: World) -> None:
    world.write(DATA)
    world.take_documents()

    async def body() -> None:
        world.gatherer.want([sha256(b"nobody's").digest()])
        await asyncio.sleep(LOOK_S_MIN)

    assert documents.blob_lengths(world.node.reader, HASH, 10) == {len(DATA)}
    world.write(b"nobody's", name="b")
    world.play(body)
    assert not world.holds(b"nobody's")


def test_nobody_slips_in_a_write(world: World) -> None:
    """Rule 3: whoever is asked for bytes gives bytes."""
    world.write(DATA)
    world.take_documents()
    world.write(b"slipped", name="b")
    page = outbox.page(world.source.reader, 0, 10_000)
    written = [one for one in page.messages if isinstance(one, bytes)]
    good = blobs.chunk(world.source.reader, HASH, 0)
    assert good is not None
    plain = events.decode(events.of_chunk(good))
    marked = events.encode(events.Event(1, "m9", 99, 5, 0, 5, 0, plain.kind, "", 0, plain.payload))
    other = blobs.chunk(world.source.reader, HASH, 1)
    assert other is not None
    for said in (written[-1], marked, events.of_chunk(other), b"\x00nonsense", b""):
        world.peers = [FakePeer("liar", world.source)]
        world.peers[0].says = lambda name, index, said=said: said
        world.play(lambda: asyncio.sleep(LOOK_S_MIN / 2))
        assert world.peers[0].chunks_asked() == [0]
        assert "b" not in world.node.ledger.register
        assert 99 not in world.node.ledger.vector
        assert blobs.copies(world.node.reader, HASH) == {}
