"""Outbox → board: this node's own writes as Write Events, in their order, at least once.

A page of the outbox is published whole before the next is read, and its rows go some time after the
board has acknowledged it: a crash in between publishes it again, which changes nothing anywhere.
While the board is away the outbox grows, writes go on, and the publisher tries again with back-off.

A page goes out in batches that the board takes: attachments are read chunk by chunk on the way, and
an event above the board's limit travels in chunks, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from divandb import event as events
from divandb.clock import Rng
from divandb.store.outbox import Attached, Page
from divandb.telemetry import Log
from divandb.trouble import Trouble

ROWS_MAX = 256
"""Writes of a page."""
LINGER_S_MIN = 0.004
LINGER_S_MAX = 0.025
LINGERS_PER_PAGE = 3.0
"""From the beginning of one page to that of the next it takes so many times what the page took: the
busier the machine, the larger the pages, and the cheaper each write in them.
"""
TRIM_ROWS_MAX = 1024
"""So many published rows may stay in the outbox: after a crash they go out once more."""
TRIM_S = 0.5

ReadPage = Callable[[int, int], Page]
Send = Callable[[Sequence[bytes]], Awaitable[None]]
Trim = Callable[[int], Awaitable[None]]
ReadChunks = Callable[[Attached], Iterable[bytes]]


class Publisher:
    """One loop: read, send, trim. ``wake`` is to be set when something was written."""

    def __init__(
        self,
        read: ReadPage,
        chunks: ReadChunks,
        send: Send,
        trim: Trim,
        wake: asyncio.Event,
        rng: Rng,
        log: Log,
        *,
        published: Callable[[int, int], None] = lambda origin, oseq: None,
        message_bytes_max: int,
        batch_bytes_max: int,
    ) -> None:
        """``published`` is told how far an origin's writes are on the board."""
        self._read = read
        self._chunks = chunks
        self._send = send
        self._trim = trim
        self._wake = wake
        self._rng = rng
        self._trouble = Trouble(log, "publishing fails")
        self._tell = published
        self.message_bytes_max = message_bytes_max
        """The largest message that goes out whole; less where a board takes less."""
        self._batch_bytes_max = batch_bytes_max
        self.published = 0
        """The last outbox row that is on the board."""
        self._trimmed = 0
        self._began = 0.0
        self._took_s = 0.0

    @property
    def failing(self) -> str | None:
        """The last fault, while publishing fails."""
        return self._trouble.failing

    async def flush(self) -> None:
        """Wait until what was written by now is on the board."""
        self._wake.set()
        while self._read(self.published, 1).upto != self.published:
            await asyncio.sleep(LINGER_S_MIN)

    async def run(self) -> None:
        """Publish until cancelled. After any fault the same page is tried again: the next write
        must not pass this one.
        """
        while True:
            with self._trouble.attempt():
                await self._round()
            await self._trouble.back_off(self._rng)

    async def _round(self) -> None:
        await self._linger()
        self._wake.clear()
        page = self._read(self.published, ROWS_MAX)
        if page.upto == self.published:
            await self._rest()
            return
        for batch in batches(self._messages(page), self._batch_bytes_max):
            await self._send(batch)
        self._took_s = asyncio.get_running_loop().time() - self._began
        self.published = page.upto
        self._tell(page.origin, page.oseq)
        if self.published - self._trimmed >= TRIM_ROWS_MAX:
            await self._tidy()

    async def _linger(self) -> None:
        """Let some writes gather when the last page has just gone: a page costs every node much
        more than a write in it.
        """
        loop = asyncio.get_running_loop()
        linger_s = min(max(self._took_s * LINGERS_PER_PAGE, LINGER_S_MIN), LINGER_S_MAX)
        await asyncio.sleep(max(self._began + linger_s - loop.time(), 0.0))
        self._began = loop.time()

    async def _rest(self) -> None:
        """Wait for something new. Rows that are on the board go in the quiet, since each time they
        do costs a commit.
        """
        try:
            await asyncio.wait_for(self._wake.wait(), TRIM_S if self._is_untidy else None)
        except TimeoutError:
            await self._tidy()

    @property
    def _is_untidy(self) -> bool:
        return self.published > self._trimmed

    async def _tidy(self) -> None:
        upto = self.published
        await self._trim(upto)
        self._trimmed = upto

    def _messages(self, page: Page) -> Iterator[bytes]:
        """Everything that goes out, each piece such that the board takes it."""
        for item in page.messages:
            if isinstance(item, Attached):
                yield from self._chunks(item)
            else:
                yield from fitting(item, self.message_bytes_max)


def fitting(message: bytes, bytes_max: int) -> Iterator[bytes]:
    """The message, in chunks if it is larger than ``bytes_max``."""
    if len(message) > bytes_max:
        yield from events.split(message)
    else:
        yield message


def batches(messages: Iterable[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    """The messages in lists of at most ``bytes_max`` bytes, four more counted for each."""
    batch: list[bytes] = []
    size = 0
    for message in messages:
        if batch and size + len(message) + 4 > bytes_max:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message) + 4
    if batch:
        yield batch
