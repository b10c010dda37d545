"""HTTP/1.1 for the embedded board: one request at a time on a kept-alive connection, all bounded.

A request is judged when its head is there (``Routes.begin``), before a byte of its body is kept;
the body of a refused request is read and thrown away. A connection ends when it sends a second
request before the first is answered, when it is silent too long in the middle of a request or
between two, and when it does not take its answer.
"""

import asyncio
import contextlib
import dataclasses
from http import HTTPStatus
from typing import cast

import httptools

from divandb.board import records
from divandb.board.base import KIB, BadRequest, BoardError, Full, TooLarge
from divandb.board.feed import Feed
from divandb.board.log import Slice
from divandb.board.routes import Call, Head, Reply, Routes, Visitor, failure
from divandb.telemetry import Log

SWEEP_S = 0.5
REFUSED_S_MAX = 1.0
"""A connection that is sent away is given this time to hear why."""


@dataclasses.dataclass(frozen=True)
class WireLimits:
    """What connections may use."""

    connections_max: int = 512
    """Connections at a time; one more hears 503."""
    connections_per_principal_max: int = 64
    """Connections of one principal, so that none of them can take all."""
    head_bytes_max: int = 16 * KIB
    """A request's head."""
    receive_s_max: float = 30.0
    """From the first byte of a request to the last."""
    keep_alive_s: float = 75.0
    """A connection without a request is closed after this time."""
    send_s_max: float = 30.0
    """The time a client has to take an answer, or a piece of a feed."""
    feed_s: float = 5.0
    """A feed on which nothing was sent for this time is sent an empty piece: the board lives."""


class _TooLong(TooLarge):
    status = 431


class Wire:
    """All connections of one server."""

    def __init__(self, routes: Routes, limits: WireLimits, log: Log) -> None:
        self.routes = routes
        self.limits = limits
        self.log = log
        self.connections: set[Connection] = set()
        self.stopping = False

    def connection(self) -> "Connection":
        """The protocol for a new connection."""
        return Connection(self)

    async def sweep(self) -> None:
        """Close connections whose time is up, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            for connection in list(self.connections):
                connection.sweep(loop.time())

    async def close(self, grace_s_max: float) -> None:
        """Answer what is under way, for so long, and close all connections."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s_max):
                while self.connections:
                    await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._limits = wire.limits
        self._loop = asyncio.get_running_loop()
        self._visitor = Visitor(wire.routes)
        self._parser = httptools.HttpRequestParser(self)
        self._deadline: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._feed: Feed | None = None
        self._is_paused = False
        self._is_leaving = False
        """Nothing that comes is looked at any more."""
        self._clear()

    def _clear(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._call: Call | None = None
        self._refusal: BoardError | None = None
        self._body: list[bytes] = []

    @property
    def _is_busy(self) -> bool:
        return self._task is not None or self._is_paused or self._feed is not None

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        is_full = len(self._wire.connections) >= self._limits.connections_max
        self._wire.connections.add(self)
        self._wait(self._limits.keep_alive_s)
        if is_full:
            self._send_away(Full("Too many connections are open."))

    def connection_lost(self, problem: Exception | None) -> None:
        self._wire.connections.discard(self)
        self._visitor.leave()
        if self._feed is not None:
            self._feed.close()
        if self._task is not None:
            self._task.cancel()
        elif self._call is not None:
            self._call.release()

    def data_received(self, data: bytes) -> None:
        if self._is_leaving:
            return
        if self._is_busy:
            self.abort()  # one request at a time
            return
        if self._in_head:
            self._count_head(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._send_away(BadRequest("There is nothing to upgrade to."))
        except httptools.HttpParserError as problem:
            if not self._transport.is_closing():
                self._send_away(BadRequest(f"The request cannot be read: {problem}."))
        if self._in_head and self._head_bytes > self._limits.head_bytes_max:
            self._send_away(_TooLong("The request's head is too long."))

    def _count_head(self, data: bytes) -> None:
        if self._head_bytes == 0:
            self._wait(self._limits.receive_s_max)
        self._head_bytes += len(data)

    def pause_writing(self) -> None:
        self._is_paused = True
        if self._feed is not None:
            self._wait(self._limits.send_s_max)

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._feed is not None:
            self._wait(self._limits.feed_s)
            self._feed.go_on(has_room=True)
        elif self._task is None:
            self._wait(self._limits.keep_alive_s)

    # Time

    def _wait(self, wait_s: float) -> None:
        self._deadline = self._loop.time() + wait_s

    def sweep(self, now: float) -> None:
        """Close if the time is up."""
        if self._deadline is None or now <= self._deadline:
            return
        if self._feed is None or self._is_paused:
            self.abort()
        else:
            self._send_piece(self._feed.silence)

    def stop(self) -> None:
        """Close when what is under way is answered."""
        if self._feed is not None:
            self._end_feed()
        elif self._task is None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_leaving = True
        self._transport.abort()

    # The parser

    def on_message_begin(self) -> None:
        if self._is_busy:
            self.abort()  # the second request of one packet

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._is_leaving:
            return
        self._in_head = False
        try:
            self._call = self._wire.routes.begin(self._visitor, self._head())
            if self._headers.get(b"expect", b"").lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except TooLarge as error:
            self._send_away(error)
        except BoardError as error:
            self._refusal = error

    def _head(self) -> Head:
        length = self._headers.get(b"content-length", b"0")
        if b"transfer-encoding" in self._headers or not length.isdigit():
            raise BadRequest("A body needs a Content-Length.")
        return Head(
            self._parser.get_method().decode("ascii"),
            self._target.decode("latin-1"),
            self._headers.get(b"authorization", b"").decode("latin-1"),
            int(length),
        )

    def on_body(self, part: bytes) -> None:
        if self._call is not None:
            self._body.append(part)

    def on_message_complete(self) -> None:
        if self._is_leaving:
            return
        self._deadline = None
        is_last = not self._parser.should_keep_alive()
        if self._call is not None:
            body = b"".join(self._body)
            reply = self._at_once(self._call, body)
            if reply is None:
                self._task = self._loop.create_task(self._run(self._call, body, is_last))
            else:
                self._send(reply, is_last)
        elif self._refusal is not None:
            self._send(failure(self._refusal), is_last)

    # Answering

    def _at_once(self, call: Call, body: bytes) -> Reply | None:
        """The reply, if nothing has to be waited for."""
        try:
            reply = call.answer(body)
        except Exception as fault:
            reply = self._failed(fault)
        if reply is not None:
            call.release()
        return reply

    async def _run(self, call: Call, body: bytes, is_last: bool) -> None:
        try:
            reply = await call.run(body)
        except Exception as fault:
            reply = self._failed(fault)
        finally:
            call.release()
            self._task = None
        self._send(reply, is_last)

    def _failed(self, fault: Exception) -> Reply:
        if not isinstance(fault, BoardError):
            self._wire.log.fault("request failed", fault, target=self._target)
            fault = BoardError("The board failed; its log says why.")
        return failure(fault)

    def _send_away(self, error: BoardError) -> None:
        """The last answer; what the client still sends is not looked at."""
        if self._is_leaving:
            return
        self._is_leaving = True
        if self._call is not None:
            self._call.release()
            self._call = None
        self._transport.write(_packed(failure(error), is_last=True))
        # Closing now could take the answer away from a client that is still sending.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait(REFUSED_S_MAX)

    def _send(self, reply: Reply, is_last: bool) -> None:
        if self._is_leaving:
            return
        if reply.feed is not None:
            self._begin_feed(reply, reply.feed)
            return
        is_last = is_last or self._wire.stopping
        self._wait(self._limits.send_s_max)
        self._clear()
        self._transport.write(_packed(reply, is_last))
        if is_last:
            self._is_leaving = True
            self._transport.close()
        elif not self._is_paused:
            self._wait(self._limits.keep_alive_s)

    # A feed: an answer in chunks without an end, one for each piece

    def _begin_feed(self, reply: Reply, feed: Feed) -> None:
        self._feed = feed
        self._transport.write(_head(reply, "transfer-encoding: chunked", "connection: close"))
        self._transport.write(_chunk(reply.body))
        self._wait(self._limits.feed_s)
        feed.open(self._send_piece, self._end_feed, has_room=not self._is_paused)

    def _send_piece(self, found: Slice) -> bool:
        self._wait(self._limits.feed_s)
        self._transport.write(_chunk(records.pack_piece(*found)))
        return not self._is_paused

    def _end_feed(self) -> None:
        """There will be no more of it."""
        if self._feed is None or self._is_leaving:
            return
        self._feed.close()
        self._is_leaving = True
        self._transport.write(b"0\r\n\r\n")
        self._wait(self._limits.send_s_max)
        self._feed = None
        self._transport.close()


_PHRASES = {int(status): status.phrase for status in HTTPStatus}


def _packed(reply: Reply, is_last: bool) -> bytes:
    lines = [f"content-length: {len(reply.body)}"]
    if reply.status == HTTPStatus.UNAUTHORIZED:
        lines.append('www-authenticate: Basic realm="board"')
    if is_last:
        lines.append("connection: close")
    return _head(reply, *lines) + reply.body


def _head(reply: Reply, *more: str) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {_PHRASES[reply.status]}",
        f"content-type: {reply.kind}",
        *(f"{name}: {value}" for name, value in reply.headers),
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)
