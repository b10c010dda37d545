import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from divandb.clock import SystemClock
from divandb.probe import Probe, Question, is_answer

WAIT_S_MAX = 5.0


@pytest.mark.parametrize(
    ("begin", "status", "does"),
    [
        (b"HTTP/1.1 200", 200, True),
        (b"HTTP/1.0 200", 200, True),
        (b"HTTP/1.1 404", 200, False),
        (b"HTTP/1.1 401", None, True),
        (b"HTTP/1.1 20", None, False),
        (b"SSH-2.0-Open", None, False),
        (b"", None, False),
    ],
)
def test_what_counts_as_an_answer(begin: bytes, status: int | None, does: bool) -> None:
    assert is_answer(begin, status) is does


def question(listener: socket.socket, name: str = "a", status: int | None = 200) -> Question:
    host, port = listener.getsockname()
    return Question(name, host, port, "/_up", status)


@contextlib.contextmanager
def asking(*questions: Question) -> Iterator[Probe]:
    with contextlib.closing(Probe(questions, SystemClock())) as probe:
        probe.wait(0)
        yield probe


def await_silent(probe: Probe, *names: str) -> None:
    deadline = SystemClock().monotonic() + WAIT_S_MAX
    while probe.silent != list(names):
        assert SystemClock().monotonic() < deadline
        probe.wait(0.05)


def await_caller(probe: Probe, listener: socket.socket) -> None:
    deadline = SystemClock().monotonic() + WAIT_S_MAX
    while not select.select([listener], [], [], 0)[0]:
        assert SystemClock().monotonic() < deadline
        probe.wait(0.01)


def answer(listener: socket.socket, *parts: bytes) -> bytes:
    """Take one connection and answer it, in parts; what it asked."""
    listener.settimeout(WAIT_S_MAX)
    connection, _ = listener.accept()
    with connection:
        asked = connection.recv(4096)
        for part in parts:
            connection.sendall(part)
    return asked


def test_each_is_asked_before_anyone_answers() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        asking(question(one, "a"), question(two, "b")) as probe,
    ):
        assert answer(two, b"HTTP/1.1 200 OK\r\n").startswith(b"GET /_up HTTP/1.1\r\nHost: 127.")
        await_silent(probe, "a")
        answer(one, b"HTTP/1", b".1 200 OK\r\n")
        await_silent(probe)


def test_an_answer_that_does_not_do_is_asked_for_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, asking(question(one)) as probe:
        for begin in (b"HTTP/1.1 503 Not Yet\r\n", b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n"):
            await_caller(probe, one)
            answer(one, begin)
        await_silent(probe)


def test_one_that_does_not_speak_http_is_sent_what_it_understands() -> None:
    """And is up once it says anything at all."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        host, port = one.getsockname()
        with asking(Question("a", host, port, "", None, b"hello")) as probe:
            await_caller(probe, one)
            assert probe.silent == ["a"]
            assert answer(one, b"\0") == b"hello"
            await_silent(probe)


def test_one_that_does_not_listen_yet_is_asked_until_it_does() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        with asking(question(one, status=None)) as probe:
            probe.wait(0.05)
            assert probe.silent == ["a"]
            one.listen()
            await_caller(probe, one)
            answer(one, b"HTTP/1.1 401 Unauthorized\r\n")
            await_silent(probe)
