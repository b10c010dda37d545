"""Connections that a client keeps open."""

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.client.connections import AsyncConnections, Connections, Place, Shelf
from divandb.client.options import Options

A: Place = (b"http", b"a", 1)
B: Place = (b"http", b"b", 1)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TIMES = httpx.Timeout(10, pool=0.05)


class Kept:
    """A connection."""

    def __init__(self) -> None:
        self.is_old = False
        self.is_whole = True

    def has_expired(self) -> bool:
        return self.is_old

    def is_idle(self) -> bool:
        return self.is_whole

    def is_closed(self) -> bool:
        return not self.is_whole


def test_the_one_that_was_used_last_is_used_again_for_its_place_alone() -> None:
    shelf: Shelf[Kept] = Shelf(8)
    one, other = Kept(), Kept()
    for place, kept in ((A, one), (A, other), (B, Kept())):
        assert shelf.take(place) == (None, [])
        shelf.back(place, kept)
        if kept is one:
            assert shelf.take(A) == (one, [])
    shelf.back(A, one)
    assert [shelf.take(A)[0] for _ in range(3)] == [one, other, None]


def test_what_has_expired_or_is_broken_is_not_used_again() -> None:
    shelf: Shelf[Kept] = Shelf(8)
    old, broken = Kept(), Kept()
    broken.is_whole = False
    for _ in range(2):
        shelf.take(A)
    for kept in (old, broken):
        shelf.back(A, kept)
    old.is_old = True
    assert shelf.take(B) == (None, [old])
    assert shelf.take(A) == (None, [])


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([A, B])), max_size=60), st.integers(1, 5))
def test_there_are_never_more_than_may_be(steps: list[tuple[bool, Place]], most: int) -> None:
    shelf: Shelf[Kept] = Shelf(most)
    used: list[tuple[Place, Kept]] = []
    closed: list[Kept] = []
    for takes, place in steps:
        if takes and shelf.in_use < most:
            found, over = shelf.take(place)
            closed += over
            assert found not in [kept for _, kept in used]
            assert found not in closed or found is None
            used.append((place, found or Kept()))
        elif not takes and used:
            shelf.back(*used.pop(0))
        assert shelf.in_use == len(used)
        assert shelf.in_use + shelf.idle <= most
    idle = shelf.all()
    assert (len(set(idle)), shelf.idle) == (len(idle), 0)


class Server:
    """Answers requests on as many connections as come."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        received = b""
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                received += data
                if b"/break" in received:
                    connection.sendall(ANSWER[:-1])
                    return
                while received.partition(b"\r\n\r\n")[1]:
                    received = received.partition(b"\r\n\r\n")[2]
                    connection.sendall(ANSWER)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_connection_is_used_again_and_one_that_broke_is_not(server: Server) -> None:
    with httpx.Client(transport=Connections(Options(connections_max=2)), timeout=TIMES) as client:
        for _ in range(5):
            assert client.get(server.url).text == "ok"
        assert server.connections == 1
        for _ in range(5):
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(server.url + "break")
        assert client.get(server.url).text == "ok"


def test_who_finds_all_connections_in_use_waits_and_is_told(server: Server) -> None:
    with httpx.Client(transport=Connections(Options(connections_max=1)), timeout=TIMES) as client:
        with client.stream("GET", server.url), pytest.raises(httpx.PoolTimeout):
            client.get(server.url)
        assert client.get(server.url).text == "ok"


def test_a_node_that_is_not_there_is_told_as_httpx_tells_it(server: Server) -> None:
    server.close()
    with httpx.Client(transport=Connections(Options(connections_max=1)), timeout=TIMES) as client:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                client.get("http://127.0.0.1:1/")


def test_the_same_with_asyncio(server: Server) -> None:
    async def main() -> None:
        transport = AsyncConnections(Options(connections_max=2))
        async with httpx.AsyncClient(transport=transport, timeout=TIMES) as client:
            for _ in range(3):
                answers = await asyncio.gather(*(client.get(server.url) for _ in range(2)))
                assert [one.text for one in answers] == ["ok", "ok"]
            assert server.connections == 2
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url + "break")
            with pytest.raises(httpx.ConnectError):
                await client.get("http://127.0.0.1:1/")
            async with client.stream("GET", server.url), client.stream("GET", server.url):
                with pytest.raises(httpx.PoolTimeout):
                    await client.get(server.url)
            assert (await client.get(server.url)).text == "ok"

    asyncio.run(main())


def test_who_is_cancelled_gives_its_connection_back(server: Server) -> None:
    async def main() -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        transport = AsyncConnections(Options(connections_max=1))
        async with httpx.AsyncClient(transport=transport, timeout=TIMES) as client:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.get(url)
            assert (await client.get(server.url)).text == "ok"
        silent.close()

    asyncio.run(main())


def test_a_connection_is_closed_however_early_its_request_is_cancelled(server: Server) -> None:
    """What is left open would be told when it is collected, and fail here."""

    async def main(steps: int, *, kept: bool) -> None:
        transport = AsyncConnections(Options(connections_max=1))
        async with httpx.AsyncClient(transport=transport, timeout=TIMES) as client:
            if kept:
                await client.get(server.url)
            asking = asyncio.create_task(client.get(server.url))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    for steps in range(25):
        asyncio.run(main(steps, kept=True))
        asyncio.run(main(steps, kept=False))
    gc.collect()
