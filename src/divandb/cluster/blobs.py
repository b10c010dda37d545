"""Attachments whose bytes are not here: fetched from other nodes, in the background.

A document is applied whether its attachments' bytes are here or not. Nearly always they are: they
go ahead of it. When they are not, because a board or a peer had lost them, they are looked for here
and fetched from whoever has them, chunk by chunk, one attachment at a time. What is interrupted
goes on from the chunks that have come; the last one makes the whole, if its SHA-256 is right. No
more is taken of anybody than the document says that the attachment has.

    GET /_divan/blob/HEX/CHUNK      one chunk, as a Write Event; 404 if it is not there
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from divandb import event as events
from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.peers import Peer, Peers
from divandb.event import CHUNK_BYTES, Chunk, Unreadable
from divandb.link import LinkBroken
from divandb.store import arrivals, blobs, documents, file
from divandb.store.file import Disk
from divandb.store.ledger import Ledger
from divandb.telemetry import Log
from divandb.trouble import Trouble

BLOB = f"{messages.PREFIX}/blob"
LOOK_S_MIN = 1.0
"""Between two looks: each reads every use of an attachment. What nobody has is looked for again
after this time, and less and less often.
"""
LOOK_S_MAX = 60.0
MISSING_MAX = 100_000
"""Attachments that one look finds; there may be more."""
WANTED_MAX = 256
"""Attachments that reads wait for; of more, the oldest wish is forgotten."""
PEERS_MAX = 16
"""Nodes that are asked for one attachment, one after the other."""
USES_MAX = 16
"""Revisions that are asked how long one attachment is."""
ANSWER_BYTES_MAX = CHUNK_BYTES + 4096
CACHE_BYTES = 2 * 2**20

Scan = Callable[[], Awaitable[list[bytes]]]
Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]


def scan(disk: Disk) -> list[bytes]:
    """The attachments that revisions in this file refer to and whose bytes are not in it."""
    connection = file.connect(disk, readonly=True, cache_bytes=CACHE_BYTES)
    try:
        return blobs.missing(connection, MISSING_MAX)
    finally:
        connection.close()


class Gatherer:
    """Finds what is missing, and fetches it; on the event loop."""

    def __init__(
        self,
        peers: Peers,
        look: Scan,
        unmet: Callable[[], int],
        execute: Execute,
        clock: Clock,
        log: Log,
    ) -> None:
        """``look`` finds what is missing, and takes its time for it; ``unmet`` counts revisions
        that came before the bytes of their attachments: only then there is anything to find.
        """
        self._peers = peers
        self._look = look
        self._unmet = unmet
        self._execute = execute
        self._clock = clock
        self._log = log
        self._due = asyncio.Event()
        self._wanted: deque[bytes] = deque(maxlen=WANTED_MAX)
        self._in_vain: dict[bytes, float] = {}
        """What nobody had when a read wanted it, and when that was."""
        self._missing: set[bytes] = set()
        self._looked: float | None = None
        self._pause_s = LOOK_S_MIN
        self._unmet_then = 0
        self._fault = ""
        """What the last peer said that could not give one, in this round."""
        self._told = (0, "")
        self.fetched = 0
        """Attachments fetched since the start."""

    @property
    def missing(self) -> int:
        """Attachments that were missing when it was last looked, and have not come since."""
        return len(self._missing)

    def want(self, names: Iterable[bytes]) -> None:
        """A read has found that these are missing: they come first."""
        since = self._clock.monotonic() - LOOK_S_MIN
        for name in names:
            if name not in self._wanted and self._in_vain.get(name, since) <= since:
                self._wanted.append(name)
                self._due.set()

    def notice(self) -> None:
        """Documents have come by another way than the board: see whether anything is missing."""
        self._due.set()

    async def run(self) -> None:
        """Look and fetch until cancelled."""
        trouble = Trouble(self._log, "fetching attachments fails")
        while True:
            self._due.clear()
            with trouble.attempt():
                await self._round()
            if trouble.failing is not None:
                await asyncio.sleep(LOOK_S_MIN)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._wait_s())

    def _wait_s(self) -> float:
        """Until the next look, if nothing is heard before."""
        if self._unmet() != self._unmet_then:
            return LOOK_S_MIN
        return self._pause_s if self._missing else LOOK_S_MAX

    async def _round(self) -> None:
        await self._get_wanted()
        if not self._is_due():
            return
        self._unmet_then, self._looked = self._unmet(), self._clock.monotonic()
        self._missing = set(await self._look())
        before, self._fault = self.fetched, ""
        for name in list(self._missing):
            await self._get_wanted()
            await self._get(name)
        came = self.fetched - before
        self._pause_s = LOOK_S_MIN if came else min(self._pause_s * 2, LOOK_S_MAX)
        told = (self.missing, self._fault)
        if came or told != self._told:
            self._told = told
            self._log.event(
                "attachments missing", fetched=came, missing=self.missing, fault=self._fault
            )

    def _is_due(self) -> bool:
        if self._looked is None:
            return True
        age_s = self._clock.monotonic() - self._looked
        if self._unmet() != self._unmet_then:
            return age_s >= LOOK_S_MIN
        return bool(self._missing) and age_s >= self._pause_s

    async def _get_wanted(self) -> None:
        while self._wanted:
            name = self._wanted.popleft()
            self._in_vain.pop(name, None)
            if not await self._get(name):
                while len(self._in_vain) >= WANTED_MAX:
                    self._in_vain.pop(next(iter(self._in_vain)))
                self._in_vain[name] = self._clock.monotonic()

    async def _get(self, name: bytes) -> bool:
        """Have it here, whoever gives it; is it?"""
        if await self._is_here(name) or await self._fetched(name):
            self._missing.discard(name)
            return True
        return False

    async def _fetched(self, name: bytes) -> bool:
        lengths: set[int] = await self._execute(
            lambda ledger: documents.blob_lengths(ledger.connection, name, USES_MAX), 0
        )
        for peer in self._peers.nearest()[:PEERS_MAX]:
            try:
                if await self._from(peer, name, lengths):
                    self.fetched += 1
                    return True
            except (LinkBroken, Unreadable) as fault:
                self._fault = f"{peer.member.name}: {fault}"
        return False

    async def _is_here(self, name: bytes) -> bool:
        found = await self._execute(lambda ledger: blobs.find(ledger.connection, name), 0)
        return found is not None

    async def _from(self, peer: Peer, name: bytes, lengths: set[int]) -> bool:
        """Take from this peer what has not come yet; is it all here then? Raises ``LinkBroken``,
        and ``Unreadable`` for an answer that is not what was asked for.
        """
        first = await self._ask(peer, name, 0)  # it says how long the peer's copy is
        if first is None:
            return False
        data, length = first
        if length not in lengths:
            raise Unreadable(f"{length} bytes of an attachment that has {sorted(lengths)}")
        copies = await self._execute(lambda ledger: blobs.copies(ledger.connection, name), 0)
        held: set[int] = copies.get(length, set())
        for index in range(max(-(-length // CHUNK_BYTES), 1)):
            if index in held:
                continue
            if index:
                answer = await self._ask(peer, name, index)
                if answer is None or answer[1] != length:
                    return False
                data = answer[0]
            await self._take(data)
        return await self._is_here(name)

    async def _ask(self, peer: Peer, name: bytes, index: int) -> tuple[bytes, int] | None:
        """(a chunk's event, the length of the whole); ``None`` if the peer has it not."""
        reply = await peer.link.ask(
            "GET", f"{BLOB}/{name.hex()}/{index}", body_bytes_max=ANSWER_BYTES_MAX, repeatable=True
        )
        if reply.status != 200:
            return None
        return reply.body, _checked(reply.body, name, index).length

    async def _take(self, data: bytes) -> None:
        now_ms = self._clock.wall_ms()
        await self._execute(lambda ledger: arrivals.take(ledger, [data], now_ms), len(data))


def _checked(data: bytes, name: bytes, index: int) -> Chunk:
    """The chunk, if it is the one that was asked for; else raises ``Unreadable``: whoever is asked
    for a chunk may not slip in a write.
    """
    event = events.decode(data)
    chunk = events.open_payload(event)
    if not isinstance(chunk, Chunk) or event.mark > event.after:
        raise Unreadable("not the event of a chunk")
    if (chunk.blob, chunk.index) != (name, index):
        raise Unreadable("another chunk than was asked for")
    if len(chunk.data) != min(CHUNK_BYTES, chunk.length - index * CHUNK_BYTES):
        raise Unreadable("a chunk that is not as long as it has to be")
    return chunk
