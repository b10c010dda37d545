"""A small HTTP client for commands that talk to a running node."""

import base64
import contextlib
import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

from divandb import datadir

ANSWER_S_MAX = 300.0
CHUNK_BYTES = 64 * 1024
ATTEMPTS_MAX = 6
PAUSE_S = 0.1
RETRY_AFTER_S_MAX = 5.0
JSON = {"content-type": "application/json", "accept": "application/json"}


class RemoteError(Exception):
    """The node cannot be reached, or refused; the text is one line for the operator."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class AnswerTooLarge(Exception):
    """An answer exceeds what the caller was ready to hold."""


class Remote:
    """One keep-alive connection to a node.

    A request that meets a closed connection or a 503 is sent again, ``ATTEMPTS_MAX`` times in all:
    callers send only what may be executed twice.
    """

    def __init__(self, url: str, credentials: str | None) -> None:
        address = _split(url)
        if address.username and credentials is None:
            credentials = f"{unquote(address.username)}:{unquote(address.password or '')}"
        https = address.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        self._connection = kind(address.hostname or "", address.port, timeout=ANSWER_S_MAX)
        self._path = address.path.rstrip("/")
        self._place = f"{address.hostname}:{self._connection.port}"
        self._headers = dict(JSON)
        if credentials is not None:
            encoded = base64.b64encode(credentials.encode()).decode()
            self._headers["authorization"] = f"Basic {encoded}"

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def call(
        self, method: str, path: str, body: bytes | None = None, answer_bytes_max: int = 2**30
    ) -> bytes:
        """The body of a 2xx answer; a ``RemoteError`` with its status for any other."""
        with self._errors():
            response = self._send(method, path, body)
            content = response.read(answer_bytes_max + 1)
        if len(content) > answer_bytes_max:
            self._connection.close()
            raise AnswerTooLarge
        return content

    def chunks(self, path: str) -> Iterator[bytes]:
        """The body of a 2xx answer to GET, piece by piece; errors as for ``call``."""
        with self._errors():
            response = self._send("GET", path, None)
        while chunk := self._read(response):
            yield chunk

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        with self._errors():
            return response.read(CHUNK_BYTES)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as problem:
            self._connection.close()
            raise RemoteError(f"lost {self._place}: {problem or type(problem).__name__}") from None

    def _send(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        for attempt in range(1, ATTEMPTS_MAX):
            try:
                response = self._send_once(method, path, body)
            except (ConnectionError, http.client.BadStatusLine):
                # A node that was just started again, or an idle connection that it had closed.
                self._connection.close()
                time.sleep(PAUSE_S * attempt)
                continue
            if response.status != 503:
                return _accepted(method, path, response)
            response.read()
            time.sleep(_retry_after_s(response))
        return _accepted(method, path, self._send_once(method, path, body))

    def _send_once(self, method: str, path: str, body: bytes | None) -> http.client.HTTPResponse:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, self._path + path, body, self._headers)
        # A node that refuses a body answers before it has read all: look for the answer.
        return self._connection.getresponse()


def _split(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_one = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # from a bad address or port
        is_one = False
    if not is_one:
        raise RemoteError(f"{url} is not an http:// or https:// URL")
    return address


def _retry_after_s(response: http.client.HTTPResponse) -> float:
    text = response.getheader("retry-after", "1")
    return min(float(text), RETRY_AFTER_S_MAX) if text.isdigit() else 1.0


def _accepted(
    method: str, path: str, response: http.client.HTTPResponse
) -> http.client.HTTPResponse:
    if 200 <= response.status < 300:
        return response
    content = response.read(CHUNK_BYTES)
    response.close()
    try:
        answer = msgspec.json.decode(content, type=dict[str, Any])
        reason = f"{answer.get('error')}: {answer.get('reason')}"
    except msgspec.DecodeError:
        reason = response.reason
    text = f"{method} {path.partition('?')[0]} was answered {response.status}, {reason}"
    raise RemoteError(text, response.status)


def segment(name: str) -> str:
    """``name`` as one segment of a path."""
    return quote(name, safe="")


def connect(url: str | None, user: str | None, data: Path) -> Remote:
    """A connection to ``url`` or to what runs in the folder ``data``.

    Without ``user``, the folder's own credentials (`DIVANDB_ADMIN`, then `DATA/admin`) are sent to
    the folder's own node, and nowhere else.
    """
    if url is not None:
        return Remote(url, user)
    cluster = datadir.read_cluster(data)
    if cluster is None:
        raise RemoteError(f"nothing runs in {data}: give --url, or --data with the right folder")
    return Remote(cluster.url, user or os.environ.get("DIVANDB_ADMIN") or datadir.read_admin(data))
