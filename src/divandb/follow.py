"""Write Events as they come: a topic of the Event Boards, read by one who is no node.

Each partition is read by a task of its own, from a place and on. What is found is shown at once:

    Seen     an event; one that travelled in chunks is whole again
    Unread   a message that this version cannot read; reading goes on behind it
    Moved    what lies at the place is not there any more, or it is another log: where it goes on

Nothing is stored, so whoever comes again begins where he says. Memory is bounded: an answer of the
board for each partition, and ``PIECES_BYTES_MAX`` of chunks.
"""

import asyncio
import dataclasses
import ssl
from collections.abc import Callable
from hashlib import sha256

from divandb import event as events
from divandb.board.base import BoardError, BoardLimits, EventBoard, Refused, TopicInfo
from divandb.board.embedded import EmbeddedBoard
from divandb.board.source import BoardSource, PlaceGone
from divandb.clock import Rng
from divandb.config import BoardAccess
from divandb.event import Chunk, Event, Large, Payload, Unreadable
from divandb.link import LinkBounds

START, END = "START", "END"
READ_BYTES_MAX = 256 * 1024
READ_WAIT_S = 5.0
LOOK_FOR_PARTITIONS_S = 2.0
"""So often it is looked whether there are new partitions."""
RETRY_S_MIN = 0.05
RETRY_S_MAX = 2.0
PARTITIONS_MAX = 64
"""Readers that wait at the embedded board at a time."""
PIECES_BYTES_MAX = 64 * 2**20
"""Chunks that are kept; a larger event cannot be put together."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """An event, and where it stands; of one in chunks the last message."""

    partition: int
    offset: int
    event: Event
    payload: Payload


@dataclasses.dataclass(frozen=True)
class Unread:
    """A message that cannot be read."""

    partition: int
    offset: int
    size_bytes: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Moved:
    """Reading goes on elsewhere."""

    partition: int
    offset: int
    """Where it would have gone on."""
    resume: int
    reason: str


Item = Seen | Unread | Moved


def open_board(access: BoardAccess, rng: Rng, tls: ssl.SSLContext | None) -> EventBoard:
    """The boards as this principal sees them. ``tls`` is the embedded board's."""
    if access.is_kafka:
        # Costs memory and time that nobody else should pay.
        from divandb.board.kafka import KafkaBoard

        return KafkaBoard(access)
    bounds = LinkBounds(waits_max=PARTITIONS_MAX)
    return EmbeddedBoard(
        access.url, access.principal, access.secret, rng, BoardLimits(), bounds, tls
    )


class Pieces:
    """Chunks on their way to the event that stands for them. What is oldest is given up first."""

    def __init__(self, bytes_max: int = PIECES_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._blobs: dict[bytes, _Blob] = {}

    def add(self, event: Event, chunk: Chunk) -> None:
        """Keep a chunk, unless all of its blob is more than may be kept."""
        if chunk.length > self._bytes_max:
            return
        blob = self._blobs.get(chunk.blob)
        if blob is None or blob.length != chunk.length:
            self._forget(chunk.blob)
            blob = self._blobs[chunk.blob] = _Blob(chunk.length)
        blob.origin, blob.oseq = event.origin, event.oseq
        if chunk.index in blob.parts:
            return
        blob.parts[chunk.index] = chunk.data
        self._bytes += len(chunk.data)
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._blobs)))

    def join(self, name: bytes) -> bytes:
        """The bytes that go by this SHA-256; raises ``Unreadable`` if they are not all here."""
        blob = self._blobs.get(name)
        if blob is None:
            raise Unreadable("large event: its chunks are not here")
        data = b"".join(blob.parts[index] for index in sorted(blob.parts))
        if len(data) != blob.length:
            raise Unreadable("large event: some of its chunks are not here")
        if sha256(data).digest() != name:
            raise Unreadable("damaged large event: its chunks are not what they are called")
        return data

    def settle(self, event: Event) -> None:
        """Chunks go ahead of the event whose number they have: it is here."""
        done = [name for name, blob in self._blobs.items() if blob.is_ahead_of(event)]
        for name in done:
            self._forget(name)

    def _forget(self, name: bytes) -> None:
        blob = self._blobs.pop(name, None)
        if blob is not None:
            self._bytes -= sum(map(len, blob.parts.values()))


@dataclasses.dataclass
class _Blob:
    """Some chunks of one blob, and the latest event that one of them went ahead of."""

    length: int
    origin: int = 0
    oseq: int = 0
    parts: dict[int, bytes] = dataclasses.field(default_factory=dict)

    def is_ahead_of(self, event: Event) -> bool:
        return self.origin == event.origin and self.oseq <= event.oseq


class Follower:
    """A topic, read from a place on."""

    def __init__(
        self,
        board: EventBoard,
        topic: str,
        show: Callable[[Item], None],
        tell: Callable[[str], None],
        *,
        database: str | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        """``show`` is given what is found, ``tell`` a line when reading fails for a while.
        ``database``: events of no other are shown.
        """
        self._board = board
        self._topic = topic
        self._show = show
        self._tell = tell
        self._database = database
        self._pieces = pieces or Pieces()

    async def run(self, start: str | int, partition: int | None, *, follow: bool) -> None:
        """Read all partitions or one of them, from ``START``, ``END`` or an offset. Without
        ``follow``, up to the end as it is now; with it, until cancelled, partitions that are new
        from their beginning.

        Raises ``BoardError`` if the topic cannot be described, or may not be read any more.
        """
        info = await self._board.describe(self._topic)
        known = range(len(info.partitions))
        if partition is not None and partition not in known:
            raise BoardError(f"{self._topic} has {len(known)} partitions, from 0; not {partition}.")
        chosen = known if partition is None else [partition]
        tasks = {asyncio.create_task(self._read(info, one, start, follow=follow)) for one in chosen}
        count = len(known) if follow and partition is None else None
        try:
            while tasks:
                done, tasks = await asyncio.wait(
                    tasks, timeout=LOOK_FOR_PARTITIONS_S, return_when=asyncio.FIRST_EXCEPTION
                )
                # Each is asked, also behind one that failed: else Python complains at the end.
                for fault in [task.exception() for task in done]:
                    if fault is not None:
                        raise fault
                if count is not None:
                    new = await self._new(count)
                    count += len(new)
                    tasks |= new
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _new(self, known: int) -> set[asyncio.Task[None]]:
        """Read partitions that have come since there were so many."""
        try:
            info = await self._board.describe(self._topic)
        except Refused:
            raise
        except BoardError:
            return set()  # who reads says so
        numbers = range(known, len(info.partitions))
        return {asyncio.create_task(self._read(info, one, START, follow=True)) for one in numbers}

    async def _read(
        self, info: TopicInfo, partition: int, start: str | int, *, follow: bool
    ) -> None:
        place = info.partitions[partition]
        offset = start if isinstance(start, int) else place.start if start == START else place.end
        reader = _Reader(self, info, partition, offset, None if follow else place.end)
        pause_s = RETRY_S_MIN
        while not reader.is_done:
            try:
                await reader.step()
                if pause_s > RETRY_S_MIN:
                    self._tell(f"{self._topic}/{partition}: reading goes on")
                pause_s = RETRY_S_MIN
            except Refused:
                raise
            except BoardError as problem:
                if pause_s == RETRY_S_MIN:
                    self._tell(f"{self._topic}/{partition}: {problem.reason} Trying again.")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_S_MAX)

    def source(self, partition: int) -> BoardSource:
        """A partition as it is read."""
        return BoardSource(
            self._board, self._topic, partition, "board", READ_BYTES_MAX, READ_WAIT_S
        )

    def moved(self, item: Moved) -> None:
        """Show it, whatever database is asked for."""
        self._show(item)

    def take(self, partition: int, offset: int, message: bytes) -> None:
        """Show a message, unless it is a piece of something, or about another database."""
        try:
            event = events.decode(message)
            is_wanted = self._database in (None, event.database)
            payload = events.open_payload(event)
            if isinstance(payload, Chunk):
                self._pieces.add(event, payload)
                return
            if isinstance(payload, Large) and is_wanted:
                event, payload = self._whole(payload)
        except Unreadable as fault:
            self._show(Unread(partition, offset, len(message), fault.reason))
            return
        self._pieces.settle(event)
        if is_wanted:
            self._show(Seen(partition, offset, event, payload))

    def _whole(self, large: Large) -> tuple[Event, Payload]:
        event = events.decode(self._pieces.join(large.blob))
        payload = events.open_payload(event)
        if isinstance(payload, Large | Chunk):
            raise Unreadable("damaged large event: it holds no event")
        return event, payload


class _Reader:
    """One partition's place."""

    def __init__(
        self, follower: Follower, info: TopicInfo, partition: int, offset: int, until: int | None
    ) -> None:
        """``until``: where to end, ``None`` for never."""
        self._follower = follower
        self._source = follower.source(partition)
        self._partition = partition
        self._identity = info.identity
        self._offset = offset
        self._until = until

    @property
    def is_done(self) -> bool:
        """Was everything read that is to be?"""
        return self._until is not None and self._offset >= self._until

    async def step(self) -> None:
        """Read and show what comes next, if it comes soon. Raises ``BoardError``."""
        try:
            batch = await self._source.read(self._offset)
        except PlaceGone as gone:
            self._move(gone.resume, str(gone.__cause__))
            return
        if self._until is not None:
            self._until = min(self._until, batch.end)  # it may be another log, or a shorter one
        if batch.identity != self._identity:
            self._identity = batch.identity
            self._move(0, "It is another log.")
            return
        for offset, message in enumerate(batch.messages, batch.first):
            if self._until is not None and offset >= self._until:
                break
            self._follower.take(self._partition, offset, message)
        self._offset = batch.next

    def _move(self, resume: int, reason: str) -> None:
        if resume != self._offset:
            self._follower.moved(Moved(self._partition, self._offset, resume, reason))
        self._offset = resume
