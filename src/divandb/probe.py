"""Ask many servers of this machine at once whether they answer.

Each is sent one ``GET`` as soon as its socket listens, and its loop answers when it turns: nobody
waits for a poll. An answer that does not do, or none in time, is asked for again. There are no
threads and no loop in this, so that a process that uses it can fork.
"""

import contextlib
import dataclasses
import selectors
import socket
from collections.abc import Iterable

from divandb.clock import Clock

RETRY_S = 0.02
"""Before a server is asked again."""
CONNECT_S_MAX = 0.1
"""The kernel connects at once to a socket that listens, whatever its process does."""
ANSWER_S_MAX = 1.0
"""For one answer."""
STATUS_LINE_BYTES = len("HTTP/1.1 200")


@dataclasses.dataclass(frozen=True)
class Question:
    """Whom to ask, and what counts as an answer."""

    name: str
    host: str
    port: int
    path: str
    status: int | None
    """The HTTP status that is expected; None: any."""
    request: bytes = b""
    """What is sent if it does not speak HTTP; whatever it answers is an answer."""


@dataclasses.dataclass
class _Try:
    """One question on its way."""

    question: Question
    until: float = 0.0
    """When it is asked again."""
    connection: socket.socket | None = None
    heard: bytes = b""


class Probe:
    """Asks all questions until each has its answer; to be closed."""

    def __init__(self, questions: Iterable[Question], clock: Clock) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._tries = {question.name: _Try(question) for question in questions}

    @property
    def silent(self) -> list[str]:
        """Who has not answered yet."""
        return list(self._tries)

    def wait(self, wait_s_max: float) -> None:
        """Go on asking; returns after the next answers, or after ``wait_s_max`` seconds."""
        now = self._clock.monotonic()
        for one in self._tries.values():
            if one.until <= now:
                self._ask(one)
        for key, _ in self._selector.select(wait_s_max):
            self._hear(key.data)

    def close(self) -> None:
        """Drop what is under way."""
        for one in self._tries.values():
            self._drop(one)
        self._selector.close()

    def _ask(self, one: _Try) -> None:
        self._drop(one)
        asked, one.heard = one.question, b""
        try:
            one.connection = socket.create_connection((asked.host, asked.port), CONNECT_S_MAX)
            self._selector.register(one.connection, selectors.EVENT_READ, one)
            one.connection.sendall(asked.request or _request(asked))
            one.connection.setblocking(False)
        except OSError:
            self._put_off(one)
        else:
            one.until = self._clock.monotonic() + ANSWER_S_MAX

    def _hear(self, one: _Try) -> None:
        assert one.connection is not None
        try:
            more = one.connection.recv(STATUS_LINE_BYTES - len(one.heard))
        except OSError:
            more = b""
        one.heard += more
        if one.question.request and more:
            self._answered(one)
        elif len(one.heard) < STATUS_LINE_BYTES and more:
            return
        elif is_answer(one.heard, one.question.status):
            self._answered(one)
        else:
            self._put_off(one)

    def _answered(self, one: _Try) -> None:
        self._drop(one)
        del self._tries[one.question.name]

    def _put_off(self, one: _Try) -> None:
        self._drop(one)
        one.until = self._clock.monotonic() + RETRY_S

    def _drop(self, one: _Try) -> None:
        if one.connection is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(one.connection)
            one.connection.close()
            one.connection = None


def is_answer(begin: bytes, status: int | None) -> bool:
    """Whether the first bytes of an answer are HTTP, with this status."""
    if len(begin) < STATUS_LINE_BYTES or not begin.startswith(b"HTTP/1."):
        return False
    return status is None or begin[-3:] == b"%d" % status


def _request(asked: Question) -> bytes:
    host = f"[{asked.host}]" if ":" in asked.host else asked.host
    head = f"GET {asked.path} HTTP/1.1\r\nHost: {host}:{asked.port}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii")
