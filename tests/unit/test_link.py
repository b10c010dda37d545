"""Calls to another node: connections that are kept, bounds, and what a broken call can say."""

import asyncio
import contextlib
import functools
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from divandb.link import Link, LinkBounds, LinkBroken, Reply
from tests.stores import SeededRng

ANSWER = b"HTTP/1.1 200 OK\r\nX-Name: v\r\ncontent-length: 2\r\n\r\nok"
BODY_BYTES_MAX = 1000
Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Run a test that is a coroutine, in the loop that is used in production."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


class Turn:
    """One request at the other side, to be answered or not."""

    def __init__(self, connection: int, number: int, request: bytes, writer: Any) -> None:
        self.connection = connection
        """Which connection, from 0."""
        self.number = number
        """Which request on it, from 0."""
        self.request = request
        self.writer = writer

    @property
    def path(self) -> str:
        return self.request.split(b" ")[1].decode()

    async def say(self, answer: bytes) -> None:
        self.writer.write(answer)
        await self.writer.drain()


Behaviour = Callable[[Turn], Awaitable[None]]


async def polite(turn: Turn) -> None:
    await turn.say(ANSWER)


async def silent_at_never(turn: Turn) -> None:
    """Answer everything but what is asked of `/never`."""
    if turn.path == "/never":
        await turn.writer.wait_closed()
    else:
        await turn.say(ANSWER)


class Peer:
    """Something that listens, and does with each request what a test wants."""

    def __init__(self, behave: Behaviour = polite) -> None:
        self.behave = behave
        self.turns: list[Turn] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = 0
        """Connections that have ended."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, self.connections = self.connections, self.connections + 1
        self.writers.append(writer)
        number = 0
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                turn = Turn(connection, number, head + body, writer)
                self.turns.append(turn)
                await self.behave(turn)
                if writer.is_closing():
                    break
                number += 1
        self.gone += 1
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[str]:
    """The peer's URL while it listens."""
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in peer.writers:
            writer.close()
        await until(lambda: peer.gone == peer.connections)


@contextlib.asynccontextmanager
async def linked(peer: Peer, **bounds: Any) -> AsyncIterator[Link]:
    """A link to a peer that listens."""
    async with listening(peer) as url:
        link = Link(url, {"authorization": "me"}, SeededRng(), LinkBounds(**bounds))
        try:
            yield link
        finally:
            await link.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def ask(link: Link, path: str = "/", **more: Any) -> Reply:
    return await link.ask("GET", path, **{"body_bytes_max": BODY_BYTES_MAX, **more})


async def broken(asking: Awaitable[Reply]) -> LinkBroken:
    """What a call breaks with."""
    with pytest.raises(LinkBroken) as caught:
        await asking
    assert caught.value.reason and str(caught.value) == caught.value.reason
    return caught.value


def free_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# Answers


@in_loop
async def test_a_request_and_its_answer() -> None:
    peer = Peer()
    async with linked(peer) as link:
        reply = await link.ask("POST", "/a?b=c", b"body", headers={"x-more": "1"}, body_bytes_max=2)
        host = link.url.removeprefix("http://")
    assert (reply.status, reply.body) == (200, b"ok")
    assert reply.headers == {"x-name": "v", "content-length": "2"}
    assert reply.lines[0] == (b"X-Name", b"v")
    assert peer.turns[0].request.decode() == (
        f"POST /a?b=c HTTP/1.1\r\nhost: {host}\r\nauthorization: me\r\nx-more: 1\r\n"
        "content-length: 4\r\n\r\nbody"
    )


@in_loop
async def test_a_large_body_arrives_whole() -> None:
    peer = Peer()
    body = bytes(range(256)) * 20_000
    async with linked(peer) as link:
        await link.ask("PUT", "/", body, body_bytes_max=BODY_BYTES_MAX)
    assert peer.turns[0].request.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", 404, b""),
        (b"HTTP/1.1 204 None\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER, 200, b"ok"),
        (
            b"HTTP/1.1 201 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            201,
            b"abcde",
        ),
    ],
)
@pytest.mark.parametrize("pieces", [False, True])
@in_loop
async def test_answers_of_all_kinds_keep_the_connection(
    answer: bytes, status: int, body: bytes, pieces: bool
) -> None:
    async def behave(turn: Turn) -> None:
        for at in range(len(answer) if pieces else 1):
            await turn.say(answer[at : at + 1] if pieces else answer)
            await asyncio.sleep(0)

    peer = Peer(behave)
    async with linked(peer) as link:
        for _ in range(3):
            reply = await ask(link)
            assert (reply.status, reply.body) == (status, body)
    assert peer.connections == 1


@in_loop
async def test_a_head_has_no_body_to_wait_for() -> None:
    async def behave(turn: Turn) -> None:
        await turn.say(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")

    async with linked(Peer(behave)) as link:
        for _ in range(2):
            reply = await link.ask("HEAD", "/", body_bytes_max=0)
            assert (reply.status, reply.headers["content-length"]) == (200, "500")


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + bytes(1001),
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 600_000,
        b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
    ids=["nonsense", "large", "large in chunks", "long head", "upgrade"],
)
@in_loop
async def test_an_answer_that_cannot_be_taken_breaks_the_call(answer: bytes) -> None:
    async def behave(turn: Turn) -> None:
        await turn.say(answer)

    peer = Peer(behave)
    async with linked(peer, answer_s_max=10) as link:
        assert (await broken(ask(link, repeatable=True))).sent
        await until(lambda: peer.gone == 1)
    assert len(peer.turns) == 1


def test_headers_that_came_twice_are_joined() -> None:
    assert Reply(200, [(b"A", b"1"), (b"a", b"2")], b"").headers == {"a": "1, 2"}


@in_loop
async def test_what_would_end_its_line_is_not_sent() -> None:
    with pytest.raises(ValueError):
        Link("http://x", {"a": "b\r\nc: d"}, SeededRng())
    link = Link(free_url(), {}, SeededRng())
    with pytest.raises(ValueError):
        await ask(link, "/ HTTP/1.1\r\nx: y")
    with pytest.raises(ValueError):
        await ask(link, headers={"a": "b\nc: d"})


# Connections


@in_loop
async def test_a_connection_is_kept_and_sends_without_delay() -> None:
    peer = Peer()
    async with linked(peer) as link:
        for _ in range(5):
            await ask(link)
        (connection,) = link._open
        plug = connection._transport.get_extra_info("socket")
        assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert [(turn.connection, turn.number) for turn in peer.turns] == [(0, n) for n in range(5)]


@in_loop
async def test_a_connection_that_is_to_close_is_not_used_again() -> None:
    async def behave(turn: Turn) -> None:
        await turn.say(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))

    peer = Peer(behave)
    async with linked(peer) as link:
        for _ in range(3):
            assert (await ask(link)).body == b"ok"
    assert peer.connections == 3


@in_loop
async def test_a_connection_closed_while_idle_costs_no_call() -> None:
    """Not even one that must not be done twice."""
    peer = Peer()
    async with linked(peer) as link:
        for _ in range(3):
            assert (await ask(link)).body == b"ok"
            peer.writers[-1].close()
            await until(lambda: not link._open)
    assert [(turn.connection, turn.number) for turn in peer.turns] == [(0, 0), (1, 0), (2, 0)]


@in_loop
async def test_a_connection_that_is_just_being_closed_is_not_used() -> None:
    peer = Peer()
    async with linked(peer) as link:
        await ask(link)
        link._idle[0]._transport.abort()
        assert (await ask(link)).body == b"ok"
    assert peer.connections == 2


@in_loop
async def test_a_connection_idle_for_too_long_is_not_used_again() -> None:
    peer = Peer()
    async with linked(peer, idle_s_max=0.01) as link:
        await ask(link)
        await asyncio.sleep(0.03)
        await ask(link)
        assert len(link._idle) == 1
    assert peer.connections == 2


async def _second_request_unanswered(turn: Turn) -> None:
    if turn.number == 1:
        turn.writer.close()
    else:
        await turn.say(ANSWER)


@in_loop
async def test_a_kept_connection_that_breaks_before_an_answer_is_told() -> None:
    peer = Peer(_second_request_unanswered)
    async with linked(peer) as link:
        await ask(link)
        assert (await broken(ask(link, "/once"))).sent
    assert [turn.path for turn in peer.turns] == ["/", "/once"]


@in_loop
async def test_a_repeatable_call_on_a_kept_connection_is_made_again_once() -> None:
    peer = Peer(_second_request_unanswered)
    async with linked(peer) as link:
        await ask(link)
        assert (await ask(link, "/again", repeatable=True)).body == b"ok"
        assert [turn.path for turn in peer.turns] == ["/", "/again", "/again"]

        async def silent(turn: Turn) -> None:
            turn.writer.close()

        peer.behave = silent
        assert (await broken(ask(link, "/gone", repeatable=True))).sent
    # On the kept connection, and on a new one.
    assert [turn.path for turn in peer.turns][3:] == ["/gone", "/gone"]


@in_loop
async def test_a_call_that_breaks_within_its_answer_is_not_made_again() -> None:
    async def behave(turn: Turn) -> None:
        await turn.say(ANSWER if turn.number == 0 else ANSWER[:-1])
        if turn.number:
            turn.writer.close()

    peer = Peer(behave)
    async with linked(peer) as link:
        await ask(link)
        assert (await broken(ask(link, repeatable=True))).sent
    assert len(peer.turns) == 2


@in_loop
async def test_a_new_connection_that_breaks_is_told_even_of_repeatable_calls() -> None:
    async def behave(turn: Turn) -> None:
        turn.writer.close()

    peer = Peer(behave)
    async with linked(peer) as link:
        assert (await broken(ask(link, repeatable=True))).sent
    assert len(peer.turns) == 1


@pytest.mark.parametrize("more", [b"?", ANSWER])
@in_loop
async def test_what_nobody_asked_for_ends_the_connection(more: bytes) -> None:
    async def behave(turn: Turn) -> None:
        await turn.say(ANSWER + more)

    peer = Peer(behave)
    async with linked(peer) as link:
        assert (await ask(link)).body == b"ok"
        await until(lambda: not link._open)
        peer.behave = polite
        assert (await ask(link)).body == b"ok"
        peer.writers[1].write(more)
        await until(lambda: not link._open)


# Bounds


@in_loop
async def test_where_nobody_listens_nothing_was_sent() -> None:
    link = Link(free_url(), {}, SeededRng())
    problem = await broken(ask(link))
    assert not problem.sent
    assert "cannot be reached" in problem.reason
    await link.close()


@in_loop
async def test_an_answer_that_does_not_come_in_time_may_have_been_carried_out() -> None:
    peer = Peer(silent_at_never)
    async with linked(peer, answer_s_max=0.05) as link:
        loop = asyncio.get_running_loop()
        long = asyncio.create_task(ask(link, "/never", wait_s=0.2))
        began = loop.time()
        problem = await broken(ask(link, "/never", repeatable=True))
        assert problem.sent and "in time" in problem.reason
        assert 0.04 < loop.time() - began < 0.2
        assert (await ask(link)).body == b"ok"
        assert (await broken(long)).sent
        assert 0.24 < loop.time() - began < 1
        await until(lambda: link._alarm is None)


@in_loop
async def test_calls_that_wait_do_not_stand_in_the_way_of_others() -> None:
    release = asyncio.Event()

    async def behave(turn: Turn) -> None:
        if turn.path == "/wait":
            await release.wait()
        await turn.say(ANSWER)

    peer = Peer(behave)
    async with linked(peer, waits_max=2, requests_max=1) as link:
        waits = [asyncio.create_task(ask(link, "/wait", wait_s=5)) for _ in range(4)]
        await until(lambda: len(peer.turns) == 2)
        assert (await ask(link)).body == b"ok"
        assert len(peer.turns) == 3
        release.set()
        assert [reply.body for reply in await asyncio.gather(*waits)] == [b"ok"] * 4
    assert peer.connections == 3


@in_loop
async def test_a_call_that_never_had_its_turn_was_not_sent() -> None:
    async def behave(turn: Turn) -> None:
        await turn.writer.wait_closed()

    bounds = {"requests_max": 1, "queue_calls_max": 2, "answer_s_max": 0.2}
    async with linked(Peer(behave), **bounds) as link:
        calls = [asyncio.create_task(ask(link)) for _ in range(3)]
        await asyncio.sleep(0.05)
        problem = await broken(ask(link))
        assert not problem.sent and "2 calls waiting" in problem.reason
        found = [(await broken(call)).sent for call in calls]
        assert found == [True, False, False]


@in_loop
async def test_a_cancelled_call_ends_its_connection_and_frees_its_turn() -> None:
    peer = Peer(silent_at_never)
    async with linked(peer, requests_max=1) as link:
        calls = [asyncio.create_task(ask(link, "/never")) for _ in range(2)]
        await until(lambda: len(peer.turns) == 1)
        calls[1].cancel()
        calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await ask(link)).body == b"ok"
        assert len(link._open) == 1


@in_loop
async def test_attempts_to_connect_come_less_and_less_often() -> None:
    link = Link(free_url(), {}, SeededRng(), LinkBounds(back_off_s_max=0.2))
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(5):
        began = loop.time()
        assert not (await broken(ask(link))).sent
        waits.append(loop.time() - began)
    assert waits[0] < 0.05
    assert 0.1 <= waits[4] < 0.4
    await link.close()


@in_loop
async def test_attempts_side_by_side_count_as_one() -> None:
    link = Link(free_url(), {}, SeededRng())
    await asyncio.gather(*(broken(ask(link)) for _ in range(8)))
    assert link._failures == 1
    await link.close()


@in_loop
async def test_back_off_ends_with_the_time_for_an_answer() -> None:
    bounds = LinkBounds(answer_s_max=0.05, back_off_s_max=60)
    link = Link(free_url(), {}, SeededRng(), bounds)
    await broken(ask(link))
    link._retry_at += 60
    problem = await broken(ask(link))
    assert not problem.sent and "in time" in problem.reason
    await link.close()


# Moving and closing


@in_loop
async def test_a_link_that_moved_goes_elsewhere_and_finishes_what_it_began() -> None:
    release = asyncio.Event()

    async def slow(turn: Turn) -> None:
        if turn.path == "/slow":
            await release.wait()
        await turn.say(ANSWER)

    old, new = Peer(slow), Peer()
    async with listening(new) as url, linked(old) as link:
        await asyncio.gather(ask(link), ask(link))
        under_way = asyncio.create_task(ask(link, "/slow"))
        await until(lambda: len(old.turns) == 3)
        link.set_url(url)
        assert link.url == url
        await until(lambda: old.gone == 1)
        assert (await ask(link)).body == b"ok"
        assert new.turns[0].request.split(b"\r\n")[1].decode() == f"host: {url[7:]}"
        release.set()
        assert (await under_way).body == b"ok"
        await until(lambda: old.gone == 2)
        link.set_url(url)
        await ask(link)
    assert (len(old.turns), new.connections, len(new.turns)) == (3, 1, 2)


@in_loop
async def test_who_backs_off_goes_to_the_new_address_at_once() -> None:
    peer = Peer()
    async with listening(peer) as url:
        link = Link(free_url(), {}, SeededRng())
        await broken(ask(link))
        link._retry_at += 60
        call = asyncio.create_task(ask(link))
        await asyncio.sleep(0.01)
        assert not call.done()
        link.set_url(url)
        async with asyncio.timeout(1):
            assert (await call).body == b"ok"
        await link.close()


@in_loop
async def test_a_connection_that_was_opening_when_the_link_moved_is_not_used() -> None:
    old, new = Peer(), Peer()
    async with listening(new) as url, linked(old) as link:
        call = asyncio.create_task(ask(link))
        await asyncio.sleep(0)
        link.set_url(url)
        assert (await call).body == b"ok"
        await until(lambda: old.gone == old.connections)
    assert (len(old.turns), len(new.turns)) == (0, 1)


@in_loop
async def test_an_attempt_that_fails_where_the_link_no_longer_goes_breaks_no_call() -> None:
    peer = Peer()
    async with listening(peer) as url:
        link = Link(free_url(), {}, SeededRng())
        call = asyncio.create_task(ask(link))
        await asyncio.sleep(0)
        link.set_url(url)
        assert (await call).body == b"ok"
        assert link._failures == 0
        await link.close()


@in_loop
async def test_closing_breaks_what_is_under_way() -> None:
    peer = Peer(silent_at_never)
    async with linked(peer, requests_max=1) as link:
        await ask(link)
        under_way = asyncio.create_task(ask(link, "/never", repeatable=True))
        queued = asyncio.create_task(ask(link))
        await until(lambda: len(peer.turns) == 2)
        await link.close()
        assert (await broken(under_way)).sent
        assert not (await broken(queued)).sent
        assert not (await broken(ask(link))).sent
        assert not link._open
    assert len(peer.turns) == 2


@in_loop
async def test_closing_ends_the_back_off() -> None:
    link = Link(free_url(), {}, SeededRng())
    await broken(ask(link))
    link._retry_at += 60
    call = asyncio.create_task(ask(link))
    await asyncio.sleep(0.01)
    await link.close()
    async with asyncio.timeout(1):
        assert not (await broken(call)).sent


@in_loop
async def test_many_calls_side_by_side_get_their_own_answers() -> None:
    async def behave(turn: Turn) -> None:
        name = turn.path.encode()
        await asyncio.sleep(0.001 * (len(name) % 3))
        await turn.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))

    peer = Peer(behave)
    async with linked(peer) as link:
        paths = ["/" + "x" * (number % 7) + str(number) for number in range(300)]
        replies = await asyncio.gather(*(ask(link, path) for path in paths))
        assert [reply.body.decode() for reply in replies] == paths
    assert peer.connections == LinkBounds().requests_max
