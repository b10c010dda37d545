"""Catch-up between nodes: the giving and the taking side of "what lies beyond this vector".

The giver reads in one snapshot, on a connection and in a thread of its own; the taker applies page
by page, and believes the giver's vector only after the last (Rule 4).
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx

from divandb import streams
from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.messages import Frames
from divandb.cluster.peers import Peer, Peers
from divandb.cluster.progress import Progress
from divandb.cluster.trust import SCHEME
from divandb.config import Limits
from divandb.errors import Busy
from divandb.governor import Pace
from divandb.store import arrivals, catchup
from divandb.store.catchup import End
from divandb.store.file import Connection
from divandb.store.ledger import Ledger
from divandb.store.spares import Spares
from divandb.telemetry import Log
from divandb.vector import Vector

BEYOND = f"{messages.PREFIX}/beyond"
PAGE_EVENTS_MAX = 256
PAGE_BYTES_MAX = 4 * 2**20
PIECE_BYTES = 256 * 1024
FRAME_BYTES_MAX = 1024 * 2**20
CONNECT_S_MAX = 2.0
SILENCE_S_MAX = 10.0

Offload = Callable[..., Awaitable[Any]]
Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]


class Giver:
    """Answers other nodes."""

    def __init__(
        self, spares: Spares, offload: Offload, pace: Pace, clock: Clock, limits: Limits
    ) -> None:
        """``pace`` is awaited after each piece that was read."""
        self._pace = pace
        self._clock = clock
        self._spares = spares
        self._offload = offload
        self._limits = limits
        self.under_way = 0

    def give(self, vector: Vector) -> AsyncIterator[bytes]:
        """The stream of frames; raises ``Busy`` while too many are given."""
        if self.under_way >= self._limits.catch_ups_max:
            raise Busy("Too many nodes are catching up here.")
        self.under_way += 1
        return self._pieces(vector)

    async def _pieces(self, vector: Vector) -> AsyncIterator[bytes]:
        try:
            connection = await self._offload(self._spares.take)
            answer = catchup.beyond(connection, vector)
            try:
                while piece := await self._read(answer):
                    yield piece
            finally:
                await self._offload(self._close, answer, connection)
        finally:
            self.under_way -= 1

    async def _read(self, answer: Iterator[bytes | End]) -> bytes:
        began = self._clock.monotonic()
        piece: bytes = await self._offload(_piece, answer)
        await self._pace(self._clock.monotonic() - began)
        return piece

    def _close(self, answer: Any, connection: Connection) -> None:
        answer.close()
        self._spares.give_back(connection)


def _piece(answer: Iterator[bytes | End]) -> bytes:
    """The next frames, together about ``PIECE_BYTES``; none at the end."""
    piece = bytearray()
    for item in answer:
        if isinstance(item, End):
            piece += messages.frame(messages.encode(item), last=True)
        else:
            piece += messages.frame(item)
        if len(piece) >= PIECE_BYTES:
            break
    return bytes(piece)


class Fetcher:
    """Catches this node up, one answer at a time."""

    def __init__(
        self,
        peers: Peers,
        progress: Progress,
        execute: Execute,
        token: str,
        clock: Clock,
        limits: Limits,
        log: Log,
        transport: httpx.AsyncBaseTransport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``transport`` carries the requests; ``None``: the machine's network. ``tls`` is for
        https URLs.
        """
        self._peers = peers
        self._progress = progress
        self._execute = execute
        self._headers = {"authorization": SCHEME + token}
        self._clock = clock
        self._log = log
        self._transport = transport
        self._tls = tls
        self._one = asyncio.Lock()
        self._taken_at = -1.0
        self.events = 0
        """Events taken from peers since the start."""
        self.caught_up: Callable[[], None] = lambda: None
        """Called when a peer has answered whole."""

    async def catch_up(self) -> bool:
        """Take what live peers have beyond our vector; did one answer whole?

        Those who asked while an answer was on its way share the next one.
        """
        asked_at = self._clock.monotonic()
        async with self._one:
            if self._taken_at >= asked_at:
                return True
            for peer in self._peers.live():
                if await self._from(peer):
                    return True
        return False

    async def fetch(self, peer: Peer) -> bool:
        """Take what this peer has beyond our vector; did it answer whole?"""
        async with self._one:
            return await self._from(peer)

    async def _from(self, peer: Peer) -> bool:
        began = self._clock.monotonic()
        try:
            end, holes = await self._take_all(peer)
        except (httpx.HTTPError, ValueError, asyncio.IncompleteReadError) as fault:
            self._log.event("catch-up broke off", peer=peer.member.name, fault=repr(fault))
            return False
        if end is None or holes:
            return False  # what could not be applied is not contained
        await self._execute(lambda ledger: catchup.finish(ledger, end), 0)
        self._taken_at = began
        self.caught_up()
        return True

    async def _take_all(self, peer: Peer) -> tuple[End | None, int]:
        frames, size, holes = Frames(FRAME_BYTES_MAX), 0, 0
        page: list[bytes] = []
        timeout = httpx.Timeout(SILENCE_S_MAX, connect=CONNECT_S_MAX)
        body = messages.encode(dict(self._progress.vector))
        async with (
            streams.client(
                peer.member.url,
                timeout,
                headers=self._headers,
                transport=self._transport,
                tls=self._tls,
            ) as client,
            client.stream("POST", f"{peer.member.url}{BEYOND}", content=body) as answer,
        ):
            answer.raise_for_status()
            async for data in answer.aiter_raw():
                for item, is_last in frames.feed(data):
                    if is_last:
                        holes += await self._apply(page)
                        return messages.decode_end(item), holes
                    page.append(item)
                    size += len(item)
                    if len(page) >= PAGE_EVENTS_MAX or size >= PAGE_BYTES_MAX:
                        holes += await self._apply(page)
                        page, size = [], 0
        return None, holes

    async def _apply(self, page: list[bytes]) -> int:
        self.events += len(page)
        now_ms = self._clock.wall_ms()
        holes: int = await self._execute(
            lambda ledger: arrivals.take(ledger, page, now_ms), sum(map(len, page))
        )
        return holes
