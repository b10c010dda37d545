"""Before a node opens its file: whom it asks, whose file it takes, and when it does without."""

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb.clock import SystemClock
from divandb.cluster import messages, trust
from divandb.cluster.messages import Heartbeat, Seen
from divandb.cluster.snapshots import NOTE_NAME, PART_NAME, Offer, Progress
from divandb.config import Config, Limits, Member
from divandb.joining import Found, arriving, join, ranked, survey
from divandb.store import file, snapshot
from divandb.store.file import FILE_NAME, DamagedError, Disk
from divandb.store.snapshot import NEXT_NAME, Standing
from tests.stores import Lines, SeededRng, Store, edit

SECRET = b"s" * 32
WAIT_S = 20.0


def keys(name: str, role: str, slot: str) -> Any:
    return trust.keys_of(SECRET, name, role, slot, is_master=role == "master")


class FakePeer:
    """A node that answers heartbeats, and gives a copy of a file if it has one."""

    def __init__(
        self, name: str, role: str, slot: str, vector: dict[int, int], copy: bytes = b"",
        offer: Offer | None = None,
    ) -> None:  # fmt: skip
        self.member = Member(name, role, slot, "")
        self.vector = vector
        self.copy = copy
        self.offer = offer
        self.others: list[Member] = []
        self.asked: list[str] = []
        self.told: list[Heartbeat] = []
        self.is_silent = False
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.member = dataclasses.replace(self.member, url=f"http://127.0.0.1:{port}")

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")[:-2]
                headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append(" ".join(first.split()[:2]))
                if self.is_silent:
                    await asyncio.sleep(3600)
                status, answer = self._answer(self.asked[-1], headers, body)
                start = f"HTTP/1.1 {status} -\r\ncontent-length: {len(answer)}\r\n\r\n"
                writer.write(start.encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _answer(self, request: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        own = keys(self.member.name, self.member.role, self.member.slot)
        holder = trust.holder(own, headers["authorization"])
        if holder is None:
            return 401, b"{}"
        if request == "POST /_divan/heartbeat":
            told = messages.decode_heartbeat(body)
            assert told.members[0].name == holder[0]
            self.told.append(told)
            return 200, messages.encode(self._said())
        if self.offer is None:
            return 403, b"{}"
        if request == "POST /_divan/snapshot":
            return 200, msgspec.json.encode(self.offer)
        return 200, self.copy

    def _said(self) -> Heartbeat:
        seen = [
            Seen(one.name, one.role, one.slot, one.url, 0, 0.0)
            for one in (self.member, *self.others)
        ]
        return Heartbeat(self.vector, {}, 0.0, 0.0, [], seen)


@asynccontextmanager
async def serving(*peers: FakePeer) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for peer in peers:
            await peer.start()
            stack.push_async_callback(peer.stop)
        async with asyncio.timeout(WAIT_S):
            yield


def config(data: Path, *seeds: Member, **changes: Any) -> Config:
    limits = Limits(**{"join_wait_ms": 5000, "snapshot_behind_max": 10, **changes})
    return Config(
        data=data / "node", name="m2-r1", role="replica", slot="m2", url="http://127.0.0.1:9",
        keys=keys("m2-r1", "replica", "m2"), seeds=seeds, limits=limits,
    )  # fmt: skip


async def joined(made: Config, log: Lines | None = None) -> list[Progress]:
    told: list[Progress] = []
    await join(made, SystemClock(), SeededRng(3), log or Lines(), told.append)
    return told


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Offer]:
    """A file with some documents, of the cluster of ``SECRET``."""
    folder = tmp_path_factory.mktemp("given")
    store = Store(folder)
    with store.connection:
        file.set_meta(store.connection, "cluster", keys("m1", "master", "m1").cluster)
    store.create("db")
    store.write("db", *(edit(f"d{n}", None, {"n": n}) for n in range(50)))
    info = snapshot.take(store.disk, folder / "copy.sqlite")
    store.close()
    offer = Offer("a1", info.size_bytes, info.sha256, info.cluster, info.format, info.vector)
    return info.path.read_bytes(), offer


def vector_in(folder: Path) -> dict[int, int]:
    held = snapshot.standing(Disk(folder / FILE_NAME))
    assert held is not None
    return held.vector


# Whose file


def found(
    name: str, role: str, slot: str, took_s: float = 0.1, upto: int = 5, zone: str = ""
) -> Found:
    return Found(Member(name, role, slot, "", zone), {1: upto}, took_s)


def test_masters_are_spared_and_the_own_slot_comes_first(tmp_path: Path) -> None:
    answers = [
        found("m1", "master", "m1", 0.01),
        found("m2", "master", "m2", 0.02),
        found("m1-r1", "replica", "m1", 0.01),
        found("m2-r2", "replica", "m2", 0.5),
        found("m2-r3", "replica", "m2", 0.4),
    ]
    names = [one.member.name for one in ranked(config(tmp_path), None, answers)]
    assert names == ["m2-r3", "m2-r2", "m2", "m1-r1", "m1"]


def test_a_file_comes_from_the_own_zone_if_there_is_one(tmp_path: Path) -> None:
    """Then masters are spared, as they are where nobody names a zone."""
    here, there = "eu-1", "us-1"
    own = dataclasses.replace(config(tmp_path), zone=here)
    answers = [
        found("m2-r1", "replica", "m2", zone=there),
        found("m1", "master", "m1", zone=here),
        found("m2", "master", "m2"),
        found("m2-r2", "replica", "m2"),
    ]
    names = [one.member.name for one in ranked(own, None, answers)]
    assert names == ["m2-r2", "m2", "m1", "m2-r1"]


def test_who_has_nothing_gives_nothing(tmp_path: Path) -> None:
    assert ranked(config(tmp_path), None, [found("m2", "master", "m2", upto=0)]) == []


def test_a_file_is_replaced_only_by_one_that_is_far_ahead_and_has_all_of_it(
    tmp_path: Path,
) -> None:
    held = Standing("c", {1: 100}, 0)
    near, far = found("m1", "master", "m1", upto=110), found("m2", "master", "m2", upto=111)
    assert ranked(config(tmp_path), held, [near, far]) == [far]
    assert ranked(config(tmp_path), Standing("c", {1: 100, 2: 1}, 0), [far]) == []
    assert ranked(config(tmp_path), Standing("c", {1: 100}, 1), [far]) == []


# Asking


def test_all_members_are_asked_whoever_names_them(tmp_path: Path) -> None:
    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {})
        m2 = FakePeer("m2", "master", "m2", {1: 2})
        async with serving(m1, m2):
            m1.others = [m2.member, Member("m2-r1", "replica", "m2", "http://127.0.0.1:9")]
            made = config(tmp_path, m1.member)
            answers = await survey(made, SystemClock(), SeededRng(3))
        assert {one.member.name: one.vector for one in answers} == {"m1": {}, "m2": {1: 2}}
        assert (len(m1.told), len(m2.told)) == (1, 1)

    asyncio.run(run())


def test_a_replica_names_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        other = FakePeer("m1", "master", "m1", {1: 2})
        replica = FakePeer("m2-r2", "replica", "m2", {})
        async with serving(replica, other):
            replica.others = [other.member]
            await survey(config(tmp_path, replica.member), SystemClock(), SeededRng(3))
        assert not other.asked

    asyncio.run(run())


def test_a_node_that_joins_is_not_counted_on_yet(tmp_path: Path) -> None:
    """It must not look alive to others before it serves."""

    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {})
        async with serving(m1):
            await survey(config(tmp_path, m1.member), SystemClock(), SeededRng(3))
        (told,) = m1.told
        assert told.members[0].age_ms > 100 * Limits().lease_ms
        assert told.vector == {}

    asyncio.run(run())


def test_a_silent_member_holds_nobody_up_once_another_has_answered(tmp_path: Path) -> None:
    async def run() -> None:
        silent, m2 = FakePeer("m1", "master", "m1", {}), FakePeer("m2", "master", "m2", {1: 2})
        silent.is_silent = True
        async with serving(silent, m2):
            made = config(tmp_path, silent.member, m2.member, join_wait_ms=60_000)
            began = time.monotonic()
            answers = await survey(made, SystemClock(), SeededRng(3))
        assert [one.member.name for one in answers] == ["m2"]
        assert time.monotonic() - began < WAIT_S

    asyncio.run(run())


def test_the_wait_for_those_who_are_silent_is_bounded(tmp_path: Path) -> None:
    async def run() -> None:
        silent, empty = FakePeer("m1", "master", "m1", {}), FakePeer("m2", "master", "m2", {})
        silent.is_silent = True
        async with serving(silent, empty):
            made = config(tmp_path, silent.member, empty.member, join_wait_ms=200)
            began = time.monotonic()
            answers = await survey(made, SystemClock(), SeededRng(3))
        assert [one.member.name for one in answers] == ["m2"]
        assert 0.15 < time.monotonic() - began < WAIT_S

    asyncio.run(run())


def test_somebody_else_at_an_address_is_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {1: 2})
        async with serving(m1):
            other = Member("m3", "master", "m3", m1.member.url)
            assert await survey(config(tmp_path, other), SystemClock(), SeededRng(3)) == []

    asyncio.run(run())


# Joining


def test_a_new_node_takes_over_a_peers_file(tmp_path: Path, given: tuple[bytes, Offer]) -> None:
    copy, offer = given

    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", offer.vector, copy, offer)
        replica = FakePeer("m2-r2", "replica", "m2", offer.vector, copy, offer)
        async with serving(m1, replica):
            told = await joined(config(tmp_path, m1.member, replica.member))
        assert told[-1] == Progress(replica.member.url, len(copy), len(copy))
        assert "POST /_divan/snapshot" not in m1.asked

    asyncio.run(run())
    assert vector_in(tmp_path / "node") == offer.vector


def test_when_one_gives_nothing_the_next_is_asked(
    tmp_path: Path, given: tuple[bytes, Offer]
) -> None:
    copy, offer = given
    log = Lines()

    async def run() -> None:
        refusing = FakePeer("m2-r2", "replica", "m2", offer.vector)
        other = msgspec.structs.replace(offer, cluster="f" * 32)
        stranger = FakePeer("m2-r3", "replica", "m2", offer.vector, copy, other)
        m1 = FakePeer("m1", "master", "m1", offer.vector, copy, offer)
        async with serving(refusing, stranger, m1):
            await joined(config(tmp_path, refusing.member, stranger.member, m1.member), log)

    asyncio.run(run())
    assert vector_in(tmp_path / "node") == offer.vector
    assert log.events.count("no snapshot") == 2


def test_when_nobody_gives_the_node_starts_empty(tmp_path: Path) -> None:
    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {1: 5})
        async with serving(m1):
            await joined(config(tmp_path, m1.member))

    asyncio.run(run())
    assert list((tmp_path / "node").iterdir()) == []


def test_when_nobody_is_there_the_node_starts_empty_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    seed = Member("m1", "master", "m1", f"http://127.0.0.1:{port}")
    assert asyncio.run(joined(config(tmp_path, seed, join_wait_ms=600_000))) == []
    assert list((tmp_path / "node").iterdir()) == []


def test_a_file_that_is_near_enough_stays(tmp_path: Path, given: tuple[bytes, Offer]) -> None:
    copy, offer = given
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / FILE_NAME).write_bytes(copy)
    (tmp_path / "node" / PART_NAME).write_bytes(b"left behind")

    async def run() -> None:
        ahead = {origin: oseq + 9 for origin, oseq in offer.vector.items()}
        m1 = FakePeer("m1", "master", "m1", ahead, copy, offer)
        async with serving(m1):
            await joined(config(tmp_path, m1.member))
        assert m1.asked == ["POST /_divan/heartbeat"]

    asyncio.run(run())
    assert not (tmp_path / "node" / PART_NAME).exists()


def test_a_founder_asks_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {1: 5})
        async with serving(m1):
            await joined(dataclasses.replace(config(tmp_path, m1.member), founding=True))
        assert m1.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("founding", [False, True])
def test_a_damaged_file_is_set_aside_when_others_have_one(
    tmp_path: Path, given: tuple[bytes, Offer], founding: bool
) -> None:
    copy, offer = given
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / FILE_NAME).write_bytes(b"torn" * 2000)
    log = Lines()

    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", offer.vector, copy, offer)
        async with serving(m1):
            asked = dataclasses.replace(config(tmp_path, m1.member), founding=founding)
            await joined(asked, log)

    asyncio.run(run())
    assert vector_in(tmp_path / "node") == offer.vector
    (aside,) = (tmp_path / "node").glob(f"damaged-*/{FILE_NAME}")
    assert aside.read_bytes() == b"torn" * 2000
    assert "the file is damaged and set aside" in log.events


def test_a_damaged_file_stays_when_nobody_has_another(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / FILE_NAME).write_bytes(b"torn" * 2000)

    async def run() -> None:
        m1 = FakePeer("m1", "master", "m1", {})
        async with serving(m1):
            with pytest.raises(DamagedError):
                await joined(config(tmp_path, m1.member))

    asyncio.run(run())
    assert [path.name for path in (tmp_path / "node").iterdir()] == [FILE_NAME]


def test_what_an_interrupted_start_has_begun_is_ended(
    tmp_path: Path, given: tuple[bytes, Offer]
) -> None:
    copy, offer = given
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / NEXT_NAME).write_bytes(copy)
    asyncio.run(joined(dataclasses.replace(config(tmp_path), founding=True)))
    assert vector_in(tmp_path / "node") == offer.vector


# Progress


def test_how_far_a_copy_is_can_be_read_from_outside(tmp_path: Path) -> None:
    assert arriving(tmp_path) is None
    (tmp_path / PART_NAME).write_bytes(b"x" * 30)
    offer = Offer("a1", 120, "0", "c", 1, {1: 2})
    note = msgspec.json.encode({"source": "http://m1", "offer": offer})
    (tmp_path / NOTE_NAME).write_bytes(note)
    assert arriving(tmp_path) == Progress("http://m1", 30, 120)
    (tmp_path / NOTE_NAME).write_bytes(b"{")
    assert arriving(tmp_path) is None
