"""What only the embedded board has: its connections and their bounds, its files, its process."""

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from divandb.board import records
from divandb.board.access import basic
from divandb.board.base import (
    BoardLimits,
    Damaged,
    EventBoard,
    Full,
    Refused,
    Right,
    Unreachable,
)
from divandb.board.broker import BrokerLimits
from divandb.board.embedded import EmbeddedBoard
from divandb.board.embedded_server import InUse
from divandb.board.embedded_tail import Tail
from divandb.board.log import LogSettings
from divandb.board.wire import Wire, WireLimits
from divandb.clock import SystemRng
from divandb.link import Link, LinkBounds
from divandb.tls import Tls
from tests.authority import Authority
from tests.conformance.conftest import ADMIN, Embedded, secret_of

LARGE = 10**6
AUTHORIZED = f"host: x\r\nauthorization: {basic(ADMIN, secret_of(ADMIN))}\r\n"


async def with_topic(embedded: Embedded) -> EventBoard:
    admin = await embedded.connect(ADMIN)
    await admin.create_topic("t", 1, {"m1": frozenset(Right)})
    return admin


@contextlib.asynccontextmanager
async def by_hand(
    embedded: Embedded,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answer_to(embedded: Embedded, request: bytes) -> bytes:
    """All that is answered to these bytes until the board closes the connection."""
    async with by_hand(embedded) as (reader, writer):
        writer.write(request)
        found = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while part := await reader.read(65536):
                    found += part
        return found


def changed(embedded: Embedded, **changes: object) -> Embedded:
    """The same, not yet started, with another configuration."""
    embedded.config = dataclasses.replace(embedded.config, **changes)  # type: ignore[arg-type]
    return embedded


# Bounds of connections


async def test_what_cannot_be_read_is_refused(embedded: Embedded) -> None:
    await with_topic(embedded)
    post = f"POST /board/v1/topics/t/0 HTTP/1.1\r\n{AUTHORIZED}"
    for request, status in [
        ("nonsense\r\n\r\n", b"400"),
        (f"GET /elsewhere HTTP/1.1\r\n{AUTHORIZED}connection: close\r\n\r\n", b"400"),
        (f"PATCH /board/v1/topics/t HTTP/1.1\r\n{AUTHORIZED}connection: close\r\n\r\n", b"400"),
        (f"GET /board/v1/_up HTTP/1.1\r\nx: {'y' * 20_000}", b"431"),
        (f"{post}transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n", b"400"),
        (f"{post}content-length: 60001\r\n\r\nfirst bytes", b"413"),
        (f"{post}content-length: 5\r\nconnection: close\r\n\r\n\2\0\0\0x", b"400"),
        (f"{post}content-length: 0\r\nconnection: close\r\n\r\n", b"400"),
        (f"{post}upgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"400"),
    ]:
        answer = await answer_to(embedded, request.encode())
        assert answer.split(b" ")[1] == status, (request, answer)
        assert b'"error"' in answer and b'"reason"' in answer


@pytest.mark.parametrize("query", ["", "offset=", "offset=-1", "offset=x", "offset=" + "9" * 30])
async def test_an_offset_must_be_a_number(embedded: Embedded, query: str) -> None:
    await with_topic(embedded)
    request = f"GET /board/v1/topics/t/0?{query} HTTP/1.1\r\n{AUTHORIZED}connection: close\r\n\r\n"
    assert (await answer_to(embedded, request.encode())).startswith(b"HTTP/1.1 400")


async def test_the_body_of_a_refused_request_is_skipped_and_the_connection_goes_on(
    embedded: Embedded,
) -> None:
    await with_topic(embedded)
    missing = f"POST /board/v1/topics/none/0 HTTP/1.1\r\n{AUTHORIZED}content-length: 50000\r\n\r\n"
    up = "GET /board/v1/_up HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with by_hand(embedded) as (reader, writer):
        writer.write(missing.encode() + bytes(50_000))
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(up.encode())
        assert b" 200 " in await reader.read()


async def test_one_request_at_a_time(embedded: Embedded) -> None:
    await with_topic(embedded)
    read = f"GET /board/v1/topics/t/0?offset=0&wait_ms=9000 HTTP/1.1\r\n{AUTHORIZED}\r\n"
    assert await answer_to(embedded, read.encode() * 2) == b""


async def test_a_client_may_ask_before_it_sends_its_body(embedded: Embedded) -> None:
    await with_topic(embedded)
    head = (
        f"POST /board/v1/topics/t/0 HTTP/1.1\r\n{AUTHORIZED}content-length: 5\r\n"
        "expect: 100-continue\r\nconnection: close\r\n\r\n"
    )
    async with by_hand(embedded) as (reader, writer):
        writer.write(head.encode())
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\1\0\0\0x")
        assert b'{"offset": 0}' in await reader.read()


@pytest.mark.parametrize("sent", ["", "GET /board/v1/_up HTTP/1.1\r\n"], ids=["none", "half"])
async def test_a_silent_connection_is_closed(tmp_path: Path, sent: str) -> None:
    silent = changed(Embedded(tmp_path), wire=WireLimits(receive_s_max=0.1, keep_alive_s=0.1))
    async with silent as embedded:
        assert await answer_to(embedded, sent.encode()) == b""


async def test_connections_are_bounded_and_no_principal_takes_all(tmp_path: Path) -> None:
    wire = WireLimits(connections_max=12, connections_per_principal_max=3)
    async with changed(Embedded(tmp_path), wire=wire) as embedded:
        await with_topic(embedded)
        greedy = await embedded.connect("m1")
        waits = [
            asyncio.create_task(greedy.read("t", 0, 0, bytes_max=1, wait_s=20)) for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        with pytest.raises(Full, match="m1 has 3 connections"):
            await greedy.describe("t")
        assert (await (await embedded.connect(ADMIN)).describe("t")).topic == "t"
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(12):
                await stack.enter_async_context(by_hand(embedded))
            await asyncio.sleep(0.1)
            assert b" 503 " in await answer_to(embedded, b"")


async def test_publishes_under_way_are_bounded(tmp_path: Path) -> None:
    limits = BrokerLimits(publish_bytes_max=1_000)
    async with changed(Embedded(tmp_path), broker=limits) as embedded:
        admin = await with_topic(embedded)
        post = f"POST /board/v1/topics/t/0 HTTP/1.1\r\n{AUTHORIZED}content-length: 900\r\n\r\n"
        async with by_hand(embedded) as (_, writer):
            writer.write(post.encode() + b"not all of it")
            await asyncio.sleep(0.1)
            with pytest.raises(Full):
                await admin.publish("t", 0, [b"x" * 500])
            assert await admin.publish("t", 0, [b"x" * 50]) == 0
        await asyncio.sleep(0.1)
        assert await admin.publish("t", 0, [b"x" * 900]) == 1
        assert embedded.broker.publish_bytes == 0


# A slow reader


async def test_a_reader_who_takes_nothing_slows_nobody(tmp_path: Path) -> None:
    """Twenty connections ask for answers of 8 MB and never read them; another reader follows a
    publisher all the while.
    """
    limits = BoardLimits(batch_bytes_max=9 * LARGE, answer_bytes_max=9 * LARGE)
    async with changed(Embedded(tmp_path), limits=limits) as embedded:
        url = f"http://127.0.0.1:{embedded.port}"
        admin = EmbeddedBoard(url, ADMIN, secret_of(ADMIN), SystemRng(), limits)
        await admin.create_topic("t", 1, {})
        await admin.publish("t", 0, [bytes(LARGE)] * 8)
        read = f"GET /board/v1/topics/t/0?offset=0 HTTP/1.1\r\n{AUTHORIZED}\r\n".encode()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                slow = stack.enter_context(socket.socket())
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
                slow.connect(("127.0.0.1", embedded.port))
                slow.sendall(read)
            offset = 8
            async with asyncio.timeout(10):
                for number in range(100):
                    await admin.publish("t", 0, [b"%d" % number])
                    batch = await admin.read("t", 0, offset, bytes_max=LARGE, wait_s=5)
                    assert batch.messages == [b"%d" % number]
                    offset = batch.next
        await admin.close()


async def test_an_answer_not_taken_ends_the_connection(tmp_path: Path) -> None:
    limits = BoardLimits(message_bytes_max=8 * LARGE, batch_bytes_max=9 * LARGE)
    async with changed(
        Embedded(tmp_path), wire=WireLimits(send_s_max=0.1), limits=limits
    ) as embedded:
        admin = EmbeddedBoard(
            f"http://127.0.0.1:{embedded.port}", ADMIN, secret_of(ADMIN), SystemRng(), limits
        )
        await admin.create_topic("t", 1, {})
        await admin.publish("t", 0, [bytes(8 * LARGE)])
        await admin.close()
        async with by_hand(embedded) as (reader, writer):
            writer.write(f"GET /board/v1/topics/t/0?offset=0 HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            await asyncio.sleep(1.5)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(8 * LARGE)


# Feeds


def feeds_of(embedded: Embedded) -> int:
    return len(embedded.broker._partitions["t"][0].feeds)


async def reading_on(embedded: Embedded, principal: str = ADMIN) -> EventBoard:
    """A reader that has read to 1, and is sent what comes."""
    admin = await with_topic(embedded)
    await admin.publish("t", 0, [b"0"])
    reader = await embedded.connect(principal)
    assert (await reader.read("t", 0, 0, bytes_max=LARGE, wait_s=5)).next == 1
    assert (await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=0.05)).messages == []
    assert feeds_of(embedded) == 1
    return reader


async def test_a_reader_who_reads_on_is_sent_what_comes(embedded: Embedded) -> None:
    reader = await reading_on(embedded)
    offset = 1
    for number in range(1, 50):
        await reader.publish("t", 0, [b"%d" % number])
        batch = await reader.read("t", 0, offset, bytes_max=LARGE, wait_s=5)
        assert (batch.messages, batch.first, batch.end) == ([b"%d" % number], number, number + 1)
        offset = batch.next
    assert feeds_of(embedded) == 1
    assert (await reader.read("t", 0, 7, bytes_max=1, wait_s=5)).messages == [b"7"]


async def test_what_a_feed_has_brought_is_given_in_batches_of_the_size_asked_for(
    embedded: Embedded,
) -> None:
    reader = await reading_on(embedded)
    for number in range(1, 30):
        await reader.publish("t", 0, [b"%05d" % number] * 2)
    found: list[bytes] = []
    offset = 1
    while len(found) < 58:
        batch = await reader.read("t", 0, offset, bytes_max=25, wait_s=5)
        assert 0 < sum(map(len, batch.messages)) <= 25 and batch.first == offset
        found += batch.messages
        offset = batch.next
    assert found == [b"%05d" % (number // 2) for number in range(2, 60)]


async def test_a_feed_that_begins_far_back_is_read_from_the_disk(embedded: Embedded) -> None:
    admin = await with_topic(embedded)
    for number in range(40):
        await admin.publish("t", 0, [b"%02d" % number + bytes(3_000)])
    offset = (await admin.describe("t")).partitions[0].start
    while offset < 40:
        batch = await admin.read("t", 0, offset, bytes_max=7_000, wait_s=5)
        assert [message[:2] for message in batch.messages] == [
            b"%02d" % number for number in range(batch.first, batch.next)
        ]
        offset = batch.next
    assert feeds_of(embedded) == 1


async def test_by_hand_a_feed_is_chunks_and_lives_when_nothing_comes(tmp_path: Path) -> None:
    async with changed(Embedded(tmp_path), wire=WireLimits(feed_s=0.05)) as embedded:
        admin = await with_topic(embedded)
        request = f"GET /board/v1/topics/t/0/feed?offset=0 HTTP/1.1\r\n{AUTHORIZED}\r\n"
        async with by_hand(embedded) as (reader, writer), asyncio.timeout(10):
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head and b"board-identity: " in head
            assert await next_piece(reader) == (0, 0, b"")
            assert await next_piece(reader) == (0, 0, b"")
            await admin.publish("t", 0, [b"hello"])
            piece = await next_piece(reader)
            while not piece[2]:
                piece = await next_piece(reader)
            assert piece[:2] == (1, 1) and piece[2].endswith(b"hello")
            await embedded.stop()
            assert (await reader.read()).endswith(b"0\r\n\r\n")


async def next_piece(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    size = int(await reader.readline(), 16)
    return records.piece_at((await reader.readexactly(size + 2))[:-2])


async def test_a_feed_that_is_not_taken_holds_little_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    limits = BoardLimits(batch_bytes_max=9 * LARGE)
    async with changed(Embedded(tmp_path), limits=limits, log=LogSettings()) as embedded:
        admin = EmbeddedBoard(
            f"http://127.0.0.1:{embedded.port}", ADMIN, secret_of(ADMIN), SystemRng(), limits
        )
        await admin.create_topic("t", 1, {})
        request = f"GET /board/v1/topics/t/0/feed?offset=0 HTTP/1.1\r\n{AUTHORIZED}\r\n"
        async with by_hand(embedded) as (reader, writer), asyncio.timeout(20):
            writer.write(request.encode())
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(6):
                await admin.publish("t", 0, [bytes(100_000)] * 40)
            [feed] = embedded.broker._partitions["t"][0].feeds
            assert feed.next < 240
            assert held_by() < 2 * LARGE
            offset, size = 0, 0
            while offset < 240:
                after, _, data = await next_piece(reader)
                assert after >= offset
                offset, size = after, size + len(data)
            assert size > 240 * 100_000
        await admin.close()


def held_by() -> int:
    """Bytes that wait in the board to be sent."""
    wires = [one for one in gc.get_objects() if isinstance(one, Wire)]
    held = [one._transport for wire in wires for one in wire.connections]
    return sum(transport.get_write_buffer_size() for transport in held)


@pytest.mark.parametrize("change", ["rights", "secret"])
async def test_a_feed_ends_when_its_reader_has_lost_its_right(
    embedded: Embedded, change: str
) -> None:
    reader = await reading_on(embedded, "m1")
    admin = await embedded.connect(ADMIN)
    if change == "rights":
        await admin.create_topic("t", 1, {"m2": frozenset(Right)})
    else:
        await admin.set_principal("m1", "another secret of m1")
    await admin.publish("t", 0, [b"not for m1"])
    with pytest.raises(Refused):
        await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=5)
    assert feeds_of(embedded) == 0


async def test_a_feed_of_a_log_that_was_made_again_is_of_the_new_one(embedded: Embedded) -> None:
    reader = await reading_on(embedded)
    before = (await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=0.05)).identity
    await embedded.remake("t")
    await reader.publish("t", 0, [b"new", b"newer"])
    batch = await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=5)
    assert (batch.messages, batch.identity != before) == ([b"newer"], True)


async def test_a_feed_of_a_board_that_was_away_begins_again(embedded: Embedded) -> None:
    reader = await reading_on(embedded)
    await embedded.stop()
    with pytest.raises(Unreachable):
        await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=1)
    await embedded.start()
    await reader.publish("t", 0, [b"1"])
    assert (await reader.read("t", 0, 1, bytes_max=LARGE, wait_s=5)).messages == [b"1"]


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nboard-identity: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nboard-identity: x\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n"
        + bytes(2_000),
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 3_000_000,
        b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=range(6),
)
async def test_a_feed_that_makes_no_sense_is_left(answer: bytes) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    asked: list[bytes] = []
    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(f"http://127.0.0.1:{port}", {}, SystemRng())
    tail = await Tail.opened(link, "/feed", 0, 1000)
    async with asyncio.timeout(10):
        while not tail.is_over:
            await tail.wait(1)
    assert asked[0].startswith(b"GET /feed HTTP/1.1\r\n")
    await link.close()
    server.close()


# The client


async def test_the_client_waits_longer_before_each_new_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    bounds = LinkBounds(answer_s_max=5, back_off_s_max=0.4)
    client = EmbeddedBoard(f"http://127.0.0.1:{port}", "m1", "s" * 16, SystemRng(), bounds=bounds)
    loop = asyncio.get_running_loop()
    times = [loop.time()]
    for _ in range(5):
        with pytest.raises(Unreachable):
            await client.describe("t")
        times.append(loop.time())
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[0] < 0.05
    assert 0.2 <= waits[4] < 0.5
    await client.close()


@contextlib.asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[EmbeddedBoard]:
    """A client of something that answers with these bytes, or not at all."""
    ended = asyncio.Event()

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read()
        else:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    bounds = LinkBounds(answer_s_max=0.1 if answer is None else 5.0)
    client = EmbeddedBoard(url, "m1", "s" * 16, SystemRng(), bounds=bounds)
    yield client
    await client.close()
    async with asyncio.timeout(5):
        await ended.wait()
    server.close()


async def test_a_board_that_says_nothing_is_unreachable() -> None:
    async with answering(None) as client:
        with pytest.raises(Unreachable, match="in time"):
            await client.publish("t", 0, [b"x"])


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nboard-end: 9\r\nboard-identity: x\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 600_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut off",
    ],
    ids=range(7),
)
async def test_an_answer_that_makes_no_sense_is_no_answer(answer: bytes) -> None:
    async with answering(answer) as client:
        with pytest.raises(Unreachable):
            await client.read("t", 0, 0, bytes_max=1, wait_s=0)


# TLS


async def test_over_tls_with_a_certificate_that_the_client_trusts(tmp_path: Path) -> None:
    tls = Tls(Authority(tmp_path / "ca").issue(tmp_path / "tls"))
    board = changed(Embedded(tmp_path), limits=BoardLimits())
    board.secure = tls.served
    await board.start()
    url = f"https://127.0.0.1:{board.port}"
    client = EmbeddedBoard(url, ADMIN, secret_of(ADMIN), SystemRng(), tls=tls.trusted)
    await client.create_topic("t", 1, {})
    assert await client.publish("t", 0, [b"x" * 200_000]) == 0
    batch = await client.read("t", 0, 0, bytes_max=LARGE, wait_s=1)
    assert batch.messages == [b"x" * 200_000]
    wary = EmbeddedBoard(url, ADMIN, secret_of(ADMIN), SystemRng())
    with pytest.raises(Unreachable, match="certificate"):
        await wary.describe("t")
    await wary.close()
    await client.close()
    await board.stop()


# Files


async def test_damage_is_refused_by_name_and_other_partitions_go_on(embedded: Embedded) -> None:
    admin = await with_topic(embedded)
    await admin.create_topic("other", 1, {})
    for number in range(9):
        await admin.publish("t", 0, [b"%d" % number])
    await embedded.stop()
    file = embedded.config.data / "topics" / "t" / "0" / f"{0:020d}.log"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    await embedded.start()
    with pytest.raises(Damaged) as damage:
        await admin.read("t", 0, 4, bytes_max=LARGE, wait_s=0)
    name = f"topics/t/0/{0:020d}.log"
    assert (damage.value.segment, damage.value.offset, damage.value.resume) == (name, 4, 5)
    before = await admin.read("t", 0, 0, bytes_max=LARGE, wait_s=0)
    after = await admin.read("t", 0, 5, bytes_max=LARGE, wait_s=0)
    assert before.messages + after.messages == [
        b"%d" % number for number in (0, 1, 2, 3, 5, 6, 7, 8)
    ]
    assert await admin.publish("t", 0, [b"new"]) >= 9
    assert await admin.publish("other", 0, [b"new"]) == 0


async def test_two_boards_do_not_share_a_folder(embedded: Embedded) -> None:
    second = Embedded(embedded.config.data.parent)
    with pytest.raises(InUse):
        await second.start()


# The process

PROCESS = """
import socket, sys
from pathlib import Path
from divandb.board.embedded_server import BoardConfig, serve
data, name, secret, descriptor = sys.argv[1:]
serve(BoardConfig(Path(data), {name: secret}), [socket.socket(fileno=int(descriptor))])
"""


def started(data: Path, port: int) -> tuple[subprocess.Popen[bytes], int]:
    """A board's process, and its port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROCESS,
                str(data),
                ADMIN,
                secret_of(ADMIN),
                str(listener.fileno()),
            ],
            pass_fds=[listener.fileno()],
        )
        return process, int(listener.getsockname()[1])


@pytest.mark.parametrize("durable", [True, False])
async def test_a_board_killed_under_load_has_all_that_it_acknowledged(
    tmp_path: Path, durable: bool
) -> None:
    """Four writers publish to two partitions, again whenever there was no answer; the board is
    killed three times with -9. At the end each partition holds every acknowledged message at its
    offset, and each writer's in its order.
    """
    acknowledged: dict[tuple[int, int], bytes] = {}
    process, port = started(tmp_path / "data", 0)
    bounds = LinkBounds(back_off_s_max=0.1)
    url = f"http://127.0.0.1:{port}"
    board = EmbeddedBoard(url, ADMIN, secret_of(ADMIN), SystemRng(), bounds=bounds)
    await board.create_topic("t", 2, {}, durable=durable)
    is_over = False

    async def write(who: int) -> int:
        number = 0
        while not is_over:
            batch = [b"%d %d %s" % (who, number + i, b"x" * 300) for i in range(5)]
            with contextlib.suppress(Unreachable):
                first = await board.publish("t", who % 2, batch)
                for offset, message in enumerate(batch, first):
                    assert (who % 2, offset) not in acknowledged
                    acknowledged[who % 2, offset] = message
                number += 5
        return number

    writers = [asyncio.create_task(write(who)) for who in range(4)]
    try:
        for _ in range(3):
            before = len(acknowledged)
            async with asyncio.timeout(20):
                while len(acknowledged) < before + 500:
                    await asyncio.sleep(0.01)
            process.kill()
            process.wait()
            process, _ = started(tmp_path / "data", port)
        is_over = True
        numbers = await asyncio.gather(*writers)
        found: dict[tuple[int, int], bytes] = {}
        for partition in range(2):
            offset, end = 0, 1
            while offset < end:
                batch = await board.read("t", partition, offset, bytes_max=LARGE, wait_s=0)
                found |= {(partition, at): m for at, m in enumerate(batch.messages, batch.first)}
                offset, end = batch.next, batch.end
        assert found.items() >= acknowledged.items()
        for who in range(4):
            own = [
                int(m.split()[1]) for _, m in sorted(found.items()) if m.startswith(b"%d " % who)
            ]
            firsts = list(dict.fromkeys(own))
            assert firsts[: numbers[who]] == list(range(numbers[who]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        await board.close()
