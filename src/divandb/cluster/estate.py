"""What former owners of a slot left: writes that are here and not on the Masters' Board.

A slot's new owner publishes what its group holds of its predecessor's writes and the board lacks,
and later what a former owner brings that returns, which published nothing itself. All of it goes
out under the old origins: documents as they are here, then a mark that says what they complete
together. What comes back in this way is written down in a *receipt*, which every node has.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from divandb import event as events
from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.messages import Frames
from divandb.cluster.progress import Progress
from divandb.event import DocumentState, Event
from divandb.merge import Document
from divandb.publisher import batches, fitting
from divandb.store import registers, succession
from divandb.store.ledger import Ledger
from divandb.telemetry import Log, rfc3339
from divandb.trouble import Trouble
from divandb.vector import Vector

LOOK_S = 0.25
FRAME_BYTES_MAX = 1024 * 2**20
PART_BYTES_MAX = 128 * 1024
"""A receipt that names more documents than fit into this is written in parts."""
FOUND_BYTES = 100
"""What a document takes in a receipt besides its names."""

Give = Callable[[Vector], AsyncIterator[bytes]]
Send = Callable[[Sequence[bytes]], Awaitable[None]]
Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]


class Found(msgspec.Struct, frozen=True):
    """A document of a receipt."""

    db: str
    id: str
    revs: list[str]
    """Its revisions that came back; none if all of them have been replaced since."""
    conflict: bool
    """Has it more than one leaf since that is not deleted?"""


class Receipt(msgspec.Struct, frozen=True):
    """Writes of a former owner that came back."""

    slot: str
    origin: str
    """16 hex digits."""
    first: int
    last: int
    """The writes' numbers."""
    owner: str
    """Who found and published them."""
    at: str
    """When; RFC 3339."""
    documents: list[Found]
    part: int = 1
    """Of a receipt that names many documents. ``last`` is in its last part what it was in the end.
    """


class Estate:
    """Keeps the Masters' Board complete for origins that nobody writes under any more."""

    def __init__(
        self,
        slot: str,
        name: str,
        progress: Progress,
        unpublished: Callable[[], Vector],
        own_origin: Callable[[], int | None],
        give: Give,
        send: Send,
        execute: Execute,
        clock: Clock,
        log: Log,
        *,
        batch_bytes_max: int,
    ) -> None:
        """``unpublished`` are origins that the outbox takes care of; ``give`` reads what lies
        beyond a vector.
        """
        self._slot = slot
        self._name = name
        self._progress = progress
        self._unpublished = unpublished
        self._own_origin = own_origin
        self._give = give
        self._send = send
        self._execute = execute
        self._clock = clock
        self._trouble = Trouble(log, "publishing what a former owner left fails")
        self._batch_bytes_max = batch_bytes_max
        self.message_bytes_max = batch_bytes_max
        self.boarded: dict[int, int] = {}
        """How far each finished origin of the slot is on the Masters' Board."""
        self.settled = asyncio.Event()
        """Has all been published that was here at the beginning?"""

    def begin(self, left: Vector | None) -> None:
        """This node owns the slot now. ``left``: finished origins of which more is here than on
        the board, and how far they are on it, without those that are closed; ``None``: there are
        none. What has ended was on the board before.
        """
        finished = self._finished()
        self.boarded = dict(finished)
        for origin in finished if left is not None else ():
            ended = self._progress.closings.upto.get(origin, 0)
            self.boarded[origin] = min(finished[origin], (left or {}).get(origin, ended))
        # What is still in the outbox goes out from there.
        written = self._progress.written()
        self.boarded |= {origin: written.get(origin, 0) for origin in self._unpublished()}

    def note(self, messages: Sequence[bytes]) -> None:
        """These lie on the Masters' Board in the slot's partition."""
        for data in messages:
            try:
                event = events.decode(data)
            except events.Unreadable:
                continue
            if event.origin in self.boarded and event.after <= self.boarded[event.origin]:
                self.boarded[event.origin] = max(self.boarded[event.origin], event.mark)

    def told(self) -> dict[int, int]:
        """``boarded``, without what is closed."""
        closings = self._progress.closings
        return {o: n for o, n in self.boarded.items() if not closings.is_closed(o, n)}

    def finished(self) -> dict[int, int]:
        """Origins of the slot under which this node writes no more, all of whose writes are on the
        board; none before it is known what is.
        """
        if not self.settled.is_set():
            return {}
        return {o: n for o, n in self._finished().items() if self.boarded.get(o) == n}

    def _finished(self) -> dict[int, int]:
        current, queued = self._own_origin(), self._unpublished()
        written = self._progress.written()
        return {o: n for o, n in written.items() if o != current and o not in queued}

    async def run(self) -> None:
        """Publish until cancelled; what fails is tried again."""
        while True:
            with self._trouble.attempt():
                await self._round()
            await asyncio.sleep(LOOK_S)

    async def _round(self) -> None:
        for origin, contained in self._finished().items():
            base = self.boarded.get(origin, 0)
            if contained > base:
                await self._publish(origin, base)
        if not self.settled.is_set():
            await self._execute(lambda ledger: succession.set_estate(ledger.connection, None), 0)
            self.settled.set()

    async def _publish(self, origin: int, base: int) -> None:
        if self.settled.is_set():
            # Until it is published, a crash must not forget that it is to be.
            left = dict(self.boarded)
            await self._execute(lambda ledger: succession.set_estate(ledger.connection, left), 0)
        receipt = _Draft(self._slot, origin, base, self._name, rfc3339(self._clock.wall_ms()))
        batch: list[bytes] = []
        size, upto = 0, base
        vector = {**self._progress.vector, origin: base}
        async for item, end in _items(self._give(vector)):
            if end is not None:
                upto = end.vector.get(origin, base)
                batch.append(events.mark(self._slot, origin, base, upto, self._stamp()))
                break
            assert item is not None
            receipt.found(_came_back(item, origin, base))
            batch += fitting(item, self.message_bytes_max)
            size += len(item)
            if size >= self._batch_bytes_max:
                await self._ship(batch)
                batch, size = [], 0
            if receipt.size >= PART_BYTES_MAX:
                await self._write(receipt, self._progress.vector.get(origin, base), is_end=False)
        await self._ship(batch)
        await self._write(receipt, upto, is_end=True)
        self.boarded[origin] = upto

    async def _ship(self, batch: list[bytes]) -> None:
        for part in batches(batch, self._batch_bytes_max):
            await self._send(part)

    def _stamp(self) -> int:
        return self._clock.wall_ms() << 16

    async def _write(self, receipt: "_Draft", last: int, *, is_end: bool) -> None:
        """Write the next part, for all nodes; nothing of what a new owner found at its group."""
        key, value = receipt.next_part(last)

        def step(ledger: Ledger) -> None:
            registers.write(ledger, None, registers.RECEIPT, key, value, ledger.stamp())
            if is_end:
                succession.set_estate(ledger.connection, None)

        if self.settled.is_set():
            await self._execute(step, len(value))


class _Draft:
    """A receipt while it is written. If that is begun again, its parts take the place of the ones
    that there are.
    """

    def __init__(self, slot: str, origin: int, base: int, owner: str, at: str) -> None:
        self._receipt = Receipt(slot, f"{origin % 2**64:016x}", base + 1, base, owner, at, [], 0)
        self._found: list[Found] = []
        self.size = 0
        """Of the next part, in bytes, about."""

    def found(self, documents: list[Found]) -> None:
        """These came back."""
        self._found += documents
        self.size += sum(
            len(one.db) + len(one.id) + sum(map(len, one.revs)) + FOUND_BYTES for one in documents
        )

    def next_part(self, last: int) -> tuple[str, bytes]:
        """(key, value) of the register that holds the next part."""
        one = self._receipt = msgspec.structs.replace(
            self._receipt, last=last, documents=self._found, part=self._receipt.part + 1
        )
        self._found, self.size = [], 0
        key = f"{one.slot}/{one.origin}/{one.first:016}/{one.part:08}"
        return key, msgspec.json.encode(one)


async def _items(
    pieces: AsyncIterator[bytes],
) -> AsyncIterator[tuple[bytes | None, Any]]:
    """The events of an answer, then its end."""
    frames = Frames(FRAME_BYTES_MAX)
    async for piece in pieces:
        for item, is_last in frames.feed(piece):
            yield (None, messages.decode_end(item)) if is_last else (item, None)


def _came_back(data: bytes, origin: int, base: int) -> list[Found]:
    """The document of this event, if the origin wrote it beyond ``base``."""
    event: Event = events.decode(data)
    if event.kind != events.DOCUMENT:
        return []
    state = events.open_payload(event, checked=True)
    assert isinstance(state, DocumentState)
    document = state.document
    if document.context.get(origin, 0) <= base:
        return []
    leaves = document.leaves
    revs = [leaf.rev for leaf in leaves if any(o == origin and n > base for o, n in leaf.dots)]
    return [Found(event.database, state.id, revs, _is_conflict(document))]


def _is_conflict(document: Document) -> bool:
    return sum(not leaf.deleted for leaf in document.shown()) > 1
