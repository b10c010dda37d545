"""HTTP by hand, for tests that send what no client library would."""

import contextlib
import dataclasses
import http.client
import io
import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from tests.running import Running, basic

LOCALHOST = "127.0.0.1"
ELSEWHERE = "127.0.0.2"
"""Another address of this machine: to the server it is another client."""
ANSWER_S_MAX = 20.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded; a ``ValueError`` if it is not JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, error and reason of a refusal."""
        return self.status, self.json["error"], self.json["reason"]


class _Kept(io.BufferedReader):
    """What is read from a connection; a response that is complete does not close it."""

    def close(self) -> None:
        """Not before the connection itself."""

    def makefile(self, mode: str) -> "_Kept":
        """What ``http.client`` asks of a socket."""
        return self


class Wire:
    """One connection at a time: opened when needed, and again when the server has closed it."""

    def __init__(
        self,
        port: int,
        credentials: str = "",
        source: str = LOCALHOST,
        wait_s_max: float = ANSWER_S_MAX,
        host: str = LOCALHOST,
    ) -> None:
        self._place = (host, port)
        self._source = (source, 0) if host == LOCALHOST else None
        self._wait_s_max = wait_s_max
        self._socket: socket.socket | None = None
        self._file: _Kept | None = None
        self._default = [("authorization", basic(credentials))] if credentials else []

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
        if self._file is not None:
            self._file.raw.close()
        self._socket = self._file = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that neither side has closed, as far as is known."""
        return self._socket is not None

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._socket is None:
            self._socket = socket.create_connection(self._place, self._wait_s_max, self._source)
            self._file = _Kept(self._socket.makefile("rb", 0))
        self._socket.sendall(data)

    def begin(self, method: str = "GET") -> http.client.HTTPResponse:
        """The head of the next response."""
        assert self._file is not None
        response = http.client.HTTPResponse(self._file, method=method)  # type: ignore[arg-type]
        response.begin()
        return response

    def answer(self, method: str = "GET") -> Answer:
        """The next response, whole."""
        response = self.begin(method)
        body = response.read()
        if response.will_close:
            self.close()
        return Answer(response.status, response.headers, body)

    def rest(self, silence_s: float) -> bytes:
        """All that comes until the server closes the connection or falls silent; then close it."""
        assert self._socket is not None
        self._socket.settimeout(silence_s)
        received = bytearray()
        with contextlib.suppress(TimeoutError, ConnectionError):
            while data := self._socket.recv(65536):
                received += data
        self.close()
        return bytes(received)

    def is_closed_within(self, seconds: float) -> bool:
        """Whether the server closes the connection, having sent no more than it did."""
        assert self._socket is not None
        self._socket.settimeout(seconds)
        try:
            while self._socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        self.close()
        return True

    def request(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Iterable[tuple[str, str]] | dict[str, str] = (),
    ) -> bytes:
        """The bytes of one request, with this wire's credentials unless others are given."""
        return request(method, target, body, [*self._default, *_pairs(headers)])

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Iterable[tuple[str, str]] | dict[str, str] = (),
    ) -> Answer:
        """Send one request and take its answer; ``body`` is sent as JSON unless it is bytes."""
        data = self.request(method, target, body, headers)
        for attempt in (1, 2):
            fresh = self._socket is None
            try:
                self.send(data)
                return self.answer(method)
            except (ConnectionError, http.client.HTTPException):
                self.close()
                # A connection that was kept may have been closed meanwhile.
                if fresh or attempt == 2:
                    raise
        raise AssertionError("unreachable")


def request(
    method: str,
    target: str,
    body: Any = None,
    headers: Iterable[tuple[str, str]] | dict[str, str] = (),
) -> bytes:
    """One request as it goes over the wire. The last of several headers of a name counts."""
    merged: dict[str, str] = {"host": "localhost"}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        merged["content-type"] = "application/json"
    if body is not None:
        merged["content-length"] = str(len(body))
    merged.update((name.lower(), value) for name, value in _pairs(headers))
    lines = "".join(f"{name}: {value}\r\n" for name, value in merged.items())
    head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n"
    return head.encode("latin-1", "replace") + (body or b"")


def _pairs(headers: Iterable[tuple[str, str]] | dict[str, str]) -> Iterable[tuple[str, str]]:
    return headers.items() if isinstance(headers, dict) else headers


@contextlib.contextmanager
def wired(
    node: Running,
    credentials: str | None = None,
    source: str = LOCALHOST,
    wait_s_max: float = ANSWER_S_MAX,
) -> Iterator[Wire]:
    """A connection to ``node`` as its admin, or as ``credentials`` ("" for nobody)."""
    user = node.credentials if credentials is None else credentials
    wire = Wire(node.port, user, source, wait_s_max)
    try:
        yield wire
    finally:
        wire.close()


def faults(node: Running) -> str:
    """What the node's log says of bugs: nothing."""
    text = node.log.read_text(errors="replace")
    place = text.find("Traceback")
    return text[place - 500 : place + 3000] if place >= 0 else ""
