"""One partition of the embedded board, sent on and on from an offset.

A tail goes one way: it begins at an offset, and gives what lies there and behind it. Who wants to
read elsewhere closes it and opens another. What has come and was not asked for is bounded: beyond
that the connection is not read, and the board keeps the rest in its log.
"""

import asyncio
import socket
from collections import deque
from typing import cast

import httptools

from divandb.board import records
from divandb.board.base import Batch
from divandb.board.records import IDENTITY_HEADER
from divandb.link import HEAD_BYTES_MAX, Link

BEGIN_S_MAX = 10.0
"""To the first piece of an answer."""
SILENT_S_MAX = 20.0
"""A board says now and then that there is nothing; one that is silent for longer is left."""


class Tail(asyncio.Protocol):
    """A feed of records, and what of it was not taken yet."""

    def __init__(self, offset: int, piece_bytes_max: int) -> None:
        """The first thing to take lies at ``offset``."""
        self.next = offset
        self._end = offset
        self.identity = ""
        """Of the log; empty before the board has answered."""
        self._pieces: deque[tuple[int, bytes]] = deque()
        """Offsets behind them, and records."""
        self._piece_bytes_max = piece_bytes_max
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._in_head = True
        self._parts: list[bytes] = []
        self._part_bytes = 0
        self._heard = self._loop.time()
        self._woken: asyncio.Future[None] | None = None
        self._is_paused = False
        self.is_over = False
        """Nothing more will come."""

    @classmethod
    async def opened(cls, link: Link, path: str, offset: int, piece_bytes_max: int) -> "Tail":
        """Ask for a feed. Raises ``LinkBroken``; who is refused finds it over."""
        tail, common = await link.dial(lambda: cls(offset, piece_bytes_max))
        tail._transport.write(f"GET {path} HTTP/1.1\r\n{common}\r\n".encode("latin-1"))
        return tail

    # Taking

    async def wait(self, wait_s: float) -> None:
        """Wait for something to take. A board that is silent for too long is left."""
        if not self._pieces and not self.is_over:
            self._listen()
            self._woken = self._loop.create_future()
            timer = self._loop.call_later(wait_s, self._wake)
            try:
                await self._woken
            finally:
                timer.cancel()
                self._woken = None
        silent_s = self._loop.time() - self._heard
        if not self._pieces and silent_s > (SILENT_S_MAX if self.identity else BEGIN_S_MAX):
            self.close()

    def take(self, bytes_max: int) -> Batch:
        """What has come, as ``EventBoard.read`` gives it. Raises ``ValueError`` if it is not sound,
        and then the tail is of no use any more.
        """
        taken: list[bytes] = []
        size = 0
        for _, data in self._pieces:
            if taken and size + len(data) > bytes_max:
                break
            taken.append(data)
            size += len(data)
        messages, first, after = records.unpack(b"".join(taken), self.next, bytes_max)
        while self._pieces and self._pieces[0][0] <= after:
            self._pieces.popleft()
        self.next = after
        return Batch(messages, first, after, max(self._end, after), self.identity)

    def close(self) -> None:
        """Let go of the connection."""
        self.is_over = True
        self._transport.abort()
        self._wake()

    def _listen(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        plug = transport.get_extra_info("socket")
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, problem: Exception | None) -> None:
        self.is_over = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        if self._in_head and len(data) > HEAD_BYTES_MAX + self._piece_bytes_max:
            self.close()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self.close()

    # The parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == IDENTITY_HEADER.encode():
            self.identity = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._parser.get_status_code() != 200 or not self.identity:
            self.close()

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)
        self._part_bytes += len(part)
        if self._part_bytes > self._piece_bytes_max:
            self.close()

    def on_chunk_complete(self) -> None:
        piece, self._parts, self._part_bytes = b"".join(self._parts), [], 0
        if not piece or self.is_over:
            return
        after, self._end, data = records.piece_at(piece)
        if not data:
            return
        self._pieces.append((after, data))
        # While its reader is busy it need not be woken by what comes.
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        self.close()
