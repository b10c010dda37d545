"""A peer's file, copied by a node that is new or was away for long; it goes on from the vector.

``wanted`` decides. ``Shelf`` is the giving side: it makes a copy when one is asked for, keeps it
for a while and hands out its bytes. ``fetch`` is the taking side, before the node opens its file:
it goes on where it was after a broken connection, and after a restart of its own process, as long
as the peer still has that copy.

    POST URL/_divan/snapshot         200 an ``Offer``, or 202 while the copy is being made
    GET  URL/_divan/snapshot/ID      its bytes, from any place on (Range)
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import shutil
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import httpx
import msgspec

from divandb import streams
from divandb.clock import Clock, Rng
from divandb.config import MIB, Limits
from divandb.errors import Busy, NotFound, StorageFull
from divandb.store import snapshot
from divandb.store.file import FORMAT, Disk, FileError, FormatError
from divandb.store.snapshot import Abandoned, Info
from divandb.store.writer import as_refusal
from divandb.telemetry import Log
from divandb.vector import Vector, covers

PATH = "/_divan/snapshot"
ID_BYTES = 16
PIECE_BYTES = 256 * 1024
SPARE_BYTES = 64 * MIB
"""What stays free on the disk besides a copy."""
MAKING_WAIT_S = 15.0
"""An asker is answered after this time at the latest, and asks again."""
LOOK_EVERY_S = 5.0
"""How often a copy's age is looked at."""
_GIVEN_PATTERN = "snapshot-*.sqlite*"

Offload = Callable[..., Awaitable[Any]]
"""Call a function on a thread: ``offload(function, *arguments)``."""


def wanted(
    own_vector: Vector | None, peer_vector: Vector, outbox_rows: int, behind_max: int
) -> bool:
    """Is a peer's copy better than catching up?

    ``own_vector`` is ``None`` for a new node, else all that is in its file (``store.snapshot``'s
    ``Standing``), as ``outbox_rows`` are what perhaps nobody else has. A node is replaced only if
    the peer has every write that it has (Rule 1), and if it lacks more than ``behind_max`` writes.
    """
    if own_vector is None:
        return any(peer_vector.values())
    if outbox_rows or not covers(peer_vector, own_vector):
        return False
    behind = sum(oseq - own_vector.get(origin, 0) for origin, oseq in peer_vector.items())
    return behind > behind_max


class Offer(msgspec.Struct, frozen=True):
    """A finished copy, as the two sides speak of it; JSON, with origins as strings."""

    id: str
    size_bytes: Annotated[int, msgspec.Meta(ge=1)]
    sha256: str
    cluster: str
    format: int
    vector: dict[int, int]


_decode_offer = msgspec.json.Decoder(Offer).decode


# The giving side


@dataclasses.dataclass
class _Kept:
    """The copy on the shelf; times are monotonic seconds."""

    offer: Offer
    path: Path
    made_s: float
    used_s: float
    readers: int = 0
    sent_bytes: int = 0


class Shelf:
    """One copy of this node's file for others, made when asked for; on the event loop."""

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        rng: Rng,
        limits: Limits,
        offload: Offload,
        log: Log,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        """Removes what an earlier run has left."""
        self._disk = disk
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._offload = offload
        self._log = log
        self._free_bytes = free_bytes
        self._kept: _Kept | None = None
        self._making: asyncio.Task[Offer] | None = None
        self._given_up = threading.Event()
        for path in disk.path.parent.glob(_GIVEN_PATTERN):
            path.unlink()

    async def offer(self, wait_s: float = MAKING_WAIT_S) -> Offer | None:
        """The copy that there is, or a new one; ``None`` if it is not finished after ``wait_s``.

        Raises ``StorageFull`` if there is no room for one, or the disk fails.
        """
        kept = self._kept
        if kept is not None and self._is_good(kept):
            kept.used_s = self._clock.monotonic()
            return kept.offer
        if self._making is None:
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(self._made)
        making = self._making
        await asyncio.wait({making}, timeout=wait_s)
        return making.result() if making.done() else None

    def _is_good(self, kept: _Kept) -> bool:
        """Young, or being read: while it is read, there is room for no other."""
        age_s = self._clock.monotonic() - kept.made_s
        return kept.readers > 0 or age_s < self._limits.snapshot_kept_s

    def _made(self, task: asyncio.Task[Offer]) -> None:
        self._making = None
        if not task.cancelled() and task.exception() is not None:
            self._log.event("no snapshot was made", why=str(task.exception()))

    async def _make(self) -> Offer:
        await self._drop()
        self._check_space()
        started_s = self._clock.monotonic()
        snapshot_id = self._rng.token(ID_BYTES).hex()
        path = self._disk.path.with_name(f"snapshot-{snapshot_id}.sqlite")
        try:
            info: Info = await self._offload(snapshot.take, self._disk, path, self._given_up.is_set)
        except Abandoned:
            raise Busy("The node is stopping.") from None
        except OSError:
            raise StorageFull("The disk is full or failing: no snapshot was made.") from None
        except Exception as fault:
            raise as_refusal(fault) from fault
        now_s = self._clock.monotonic()
        offer = Offer(
            snapshot_id, info.size_bytes, info.sha256, info.cluster, info.format, info.vector
        )
        self._kept = _Kept(offer, path, now_s, now_s)
        self._log.event(
            "snapshot made", size_bytes=info.size_bytes, took_s=round(now_s - started_s, 1)
        )
        return offer

    def _check_space(self) -> None:
        """A copy is never larger than the file with its log."""
        log = self._disk.path.with_name(f"{self._disk.path.name}-wal")
        needed = SPARE_BYTES + sum(_size(path) for path in (self._disk.path, log))
        free = self._free_bytes(self._disk.path.parent)
        if free < needed:
            raise StorageFull(f"A snapshot needs {needed} bytes of disk, {free} are free.")

    def find(self, snapshot_id: str) -> Offer:
        """The copy of this id; raises ``NotFound`` if it is not there (any more)."""
        return self._find(snapshot_id).offer

    def _find(self, snapshot_id: str) -> _Kept:
        if self._kept is None or self._kept.offer.id != snapshot_id:
            raise NotFound("missing")
        return self._kept

    @contextlib.contextmanager
    def reading(self, snapshot_id: str) -> Iterator["Reading"]:
        """Bytes of the copy, for one reader; raises ``NotFound``, and ``Busy`` for one too many."""
        kept = self._find(snapshot_id)
        if kept.readers >= self._limits.snapshot_downloads_max:
            raise Busy("Too many snapshots are being sent; try again shortly.", retry_after_s=5)
        kept.readers += 1
        try:
            with open(kept.path, "rb") as copy:
                yield Reading(copy, self._offload, lambda count: self._sent(kept, count))
        finally:
            kept.readers -= 1
            kept.used_s = self._clock.monotonic()

    def _sent(self, kept: _Kept, count: int) -> None:
        kept.sent_bytes += count
        kept.used_s = self._clock.monotonic()

    def status(self) -> dict[str, object]:
        """``making``; ``size_bytes`` of the copy that is kept (0: none), ``sent_bytes`` of it."""
        kept = self._kept
        return {
            "making": self._making is not None,
            "size_bytes": kept.offer.size_bytes if kept else 0,
            "sent_bytes": kept.sent_bytes if kept else 0,
        }

    async def tend(self) -> None:
        """Remove the copy when nobody has used it for long; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.tidy()

    async def tidy(self) -> None:
        """Remove the copy if its time is over."""
        kept = self._kept
        if kept is None or kept.readers:
            return
        if self._clock.monotonic() - kept.used_s >= self._limits.snapshot_kept_s:
            await self._drop()

    async def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await self._offload(_unlink, kept.path)

    async def close(self) -> None:
        """Give up what is being made, and remove the copy."""
        self._given_up.set()
        if self._making is not None:
            await asyncio.wait({self._making})
        await self._drop()


class Reading:
    """A reader's hold on the copy."""

    def __init__(self, copy: BinaryIO, offload: Offload, sent: Callable[[int], None]) -> None:
        self._copy = copy
        self._offload = offload
        self._sent = sent

    async def pieces(self, first: int, last: int) -> AsyncIterator[bytes]:
        """The bytes from ``first`` to ``last``, inclusive, read off the loop."""
        position = first
        while position <= last:
            count = min(PIECE_BYTES, last + 1 - position)
            piece: bytes = await self._offload(os.pread, self._copy.fileno(), count, position)
            if not piece:
                raise OSError("the snapshot is shorter than it was")
            position += len(piece)
            yield piece
            self._sent(len(piece))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


# The taking side

PART_NAME = "incoming.sqlite.part"
NOTE_NAME = "incoming.json"
WRITE_BYTES = MIB
"""What is received is hashed and written in parts of this size, on a thread."""
ANSWER_BYTES_MAX = 16 * MIB
RETRY_AFTER_S_MAX = 60.0


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How long a node waits for a copy, and how often it tries."""

    connect_s_max: float = 5.0
    silence_s_max: float = 30.0
    """Without a byte."""
    making_s_max: float = 3600.0
    """While the peer makes the copy."""
    download_s_max: float = 3600.0
    """One connection; the next goes on from there."""
    tries_max: int = 8
    """In a row that bring less than ``progress_bytes_min``."""
    progress_bytes_min: int = MIB
    begins_max: int = 4
    """Copies that are begun: one may be gone in the middle, or arrive damaged."""
    back_off_s_min: float = 0.1
    back_off_s_max: float = 10.0


class Progress(msgspec.Struct, frozen=True):
    """How far a copy has come."""

    source: str
    """The peer's URL."""
    bytes: int
    total_bytes: int
    """0 while the peer is making it."""


class _Note(msgspec.Struct, frozen=True):
    """What the part of a copy is a part of, for the next start."""

    source: str
    offer: Offer


_decode_note = msgspec.json.Decoder(_Note).decode


class _Refused(Exception):
    """The peer will not give a copy: asking again does not help."""


class _Gone(Exception):
    """What was received is of no use: begin anew."""


class _Later(Exception):
    """The peer cannot now."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


async def fetch(
    url: str,
    authorization: str,
    folder: Path,
    clock: Clock,
    rng: Rng,
    progress: Callable[[Progress], None],
    log: Log,
    *,
    cluster: str = "",
    replace: bool = False,
    bounds: Bounds | None = None,
    tls: ssl.SSLContext | None = None,
) -> bool:
    """Copy the file of the peer at ``url`` to the data folder; no process may have it open.

    ``cluster`` is the one that the copy must be of; empty takes any. Returns ``False`` if this peer
    gives none within the bounds; what was received stays for the next try. Raises ``FormatError``
    if the peer's version is another, ``FileError`` if it is of another cluster or there is a file
    that is not to be replaced, ``StorageFull`` if there is no room.
    """
    bounds = bounds or Bounds()
    async with streams.client(
        url,
        httpx.Timeout(bounds.silence_s_max, connect=bounds.connect_s_max),
        headers={"authorization": authorization, "accept-encoding": "identity"},
        tls=tls,
    ) as client:
        client.base_url = url.rstrip("/")
        taking = _Taking(client, url, folder, clock, progress, cluster, bounds)
        try:
            await taking.open()
            if not await _persist(taking, rng, log, bounds):
                return False
        finally:
            taking.close()
    await asyncio.to_thread(snapshot.adopt, folder / PART_NAME, replace=replace)
    (folder / NOTE_NAME).unlink(missing_ok=True)
    return True


def discard(folder: Path) -> None:
    """Remove what a copy that nobody goes on with has left in the data folder."""
    for name in (PART_NAME, NOTE_NAME):
        _unlink(folder / name)


async def _persist(taking: "_Taking", rng: Rng, log: Log, bounds: Bounds) -> bool:
    """Try until it is whole, or the bounds are reached."""
    failures = 0
    while failures < bounds.tries_max:
        before = taking.size
        wait_s = 0.0
        try:
            await taking.go_on()
            return True
        except _Refused as refusal:
            log.event("no snapshot", source=taking.url, why=str(refusal))
            return False
        except _Gone as reason:
            taking.forget()
            if taking.begins >= bounds.begins_max:
                log.event("no snapshot", source=taking.url, why=str(reason))
                return False
            why = str(reason)
        except _Later as reason:
            wait_s, why = reason.retry_after_s, str(reason)
        except (httpx.HTTPError, TimeoutError) as fault:
            why = repr(fault)
        failures = 0 if taking.size - before >= bounds.progress_bytes_min else failures + 1
        log.event("snapshot interrupted", source=taking.url, bytes=taking.size, why=why)
        await asyncio.sleep(max(wait_s, _back_off_s(failures, rng, bounds)))
    return False


def _back_off_s(failures: int, rng: Rng, bounds: Bounds) -> float:
    ceiling = min(bounds.back_off_s_min * 2.0 ** min(failures, 16), bounds.back_off_s_max)
    return ceiling * (0.5 + rng.uniform() / 2)


class _Taking:
    """One copy on its way, over as many connections as it takes."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        folder: Path,
        clock: Clock,
        progress: Callable[[Progress], None],
        cluster: str,
        bounds: Bounds,
    ) -> None:
        self.url = url
        self.begins = 0
        self._client = client
        self._folder = folder
        self._clock = clock
        self._progress = progress
        self._cluster = cluster
        self._bounds = bounds
        self._offer: Offer | None = None
        self._part = _Part(folder / PART_NAME)

    @property
    def size(self) -> int:
        """Bytes received."""
        return self._part.size

    async def open(self) -> None:
        """Take up what an earlier run has left of this peer's copy."""
        note = _read_note(self._folder / NOTE_NAME)
        if note is not None and note.source == self.url and self._is_ours(note.offer):
            self._offer = note.offer
            self.begins = 1
            await asyncio.to_thread(self._part.resume)

    def _is_ours(self, offer: Offer) -> bool:
        return offer.format == FORMAT and self._cluster in ("", offer.cluster)

    def close(self) -> None:
        """Leave the part as it is."""
        self._part.close()

    def forget(self) -> None:
        """Begin with another copy next time."""
        self._offer = None
        (self._folder / NOTE_NAME).unlink(missing_ok=True)

    async def go_on(self) -> None:
        """Get the rest, and return when all of it is here and right; raises if it is not."""
        if self._offer is None:
            self._offer = await self._begin()
        if self.size < self._offer.size_bytes:
            async with asyncio.timeout(self._bounds.download_s_max):
                await self._download(self._offer)
        if self._part.sha256 != self._offer.sha256:
            raise _Gone("the bytes are not those that the peer has")
        await asyncio.to_thread(self._part.sync)

    # Asking for it

    async def _begin(self) -> Offer:
        offer = await self._asked()
        self._check(offer)
        self.begins += 1
        # In this order: a note never speaks of bytes that are of another copy.
        self._part.empty()
        _write_note(self._folder / NOTE_NAME, _Note(self.url, offer))
        return offer

    async def _asked(self) -> Offer:
        deadline_s = self._clock.monotonic() + self._bounds.making_s_max
        while True:
            self._progress(Progress(self.url, 0, 0))
            async with self._client.stream("POST", PATH) as response:
                _check_status(response)
                body = await _bounded(response)
            if response.status_code != 202:
                return _offer_in(body)
            if self._clock.monotonic() >= deadline_s:
                raise _Later("the peer is still making it")
            await asyncio.sleep(max(_retry_after_s(response), self._bounds.back_off_s_min))

    def _check(self, offer: Offer) -> None:
        if offer.format != FORMAT:
            raise FormatError(
                f"the file of {self.url} has format {offer.format}, this version reads {FORMAT}"
            )
        if not self._is_ours(offer):
            raise FileError(f"{self.url} belongs to another cluster")
        needed = offer.size_bytes + SPARE_BYTES
        free = shutil.disk_usage(self._folder).free + _size(self._folder / PART_NAME)
        if free < needed:
            raise StorageFull(f"The peer's file needs {needed} bytes of disk, {free} are free.")

    # Its bytes

    async def _download(self, offer: Offer) -> None:
        have = self.size
        headers = {"range": f"bytes={have}-"} if have else {}
        path = f"{PATH}/{quote(offer.id, safe='')}"
        async with self._client.stream("GET", path, headers=headers) as response:
            if response.status_code in (404, 416):
                raise _Gone("the peer has that copy no more")
            _check_status(response)
            if response.status_code == 200:
                self._part.empty()
            elif not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise _Gone("the peer sent other bytes than were asked for")
            await self._receive(response, offer)
        if self.size < offer.size_bytes:
            raise _Later("the peer ended before the end")

    async def _receive(self, response: httpx.Response, offer: Offer) -> None:
        gathered = bytearray()
        try:
            async for data in response.aiter_raw():
                gathered += data
                if self.size + len(gathered) > offer.size_bytes:
                    raise _Gone("the peer sent more than there is")
                if len(gathered) >= WRITE_BYTES:
                    await self._keep(gathered, offer)
        finally:
            # What came before the connection broke counts.
            await self._keep(gathered, offer)

    async def _keep(self, gathered: bytearray, offer: Offer) -> None:
        if not gathered:
            return
        data = bytes(gathered)
        gathered.clear()
        try:
            await asyncio.to_thread(self._part.write, data)
        except OSError as fault:
            raise StorageFull(f"A snapshot cannot be written: {fault.strerror}.") from fault
        self._progress(Progress(self.url, self.size, offer.size_bytes))


class _Part:
    """The bytes of a copy that have come, in order, and their hash."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "a+b")  # noqa: SIM115 - closed by ``close``
        self._digest = hashlib.sha256()
        self._flushed = 0
        self.size = 0

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()

    def resume(self) -> None:
        """Count what is there."""
        self._file.seek(0)
        while piece := self._file.read(WRITE_BYTES):
            self._digest.update(piece)
            self.size += len(piece)
        self._flushed = self.size

    def empty(self) -> None:
        """Drop everything."""
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.size = self._flushed = 0

    def write(self, data: bytes) -> None:
        """Add bytes. They go to the disk as they come: one large fsync would hold up others'."""
        self._file.write(data)
        self._file.flush()
        self._digest.update(data)
        self.size += len(data)
        if self.size - self._flushed >= snapshot.FLUSH_BYTES:
            os.fdatasync(self._file.fileno())
            self._flushed = self.size

    def sync(self) -> None:
        """Make it durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _check_status(response: httpx.Response) -> None:
    """Raises ``_Later`` for what may pass, ``_Refused`` for what will not."""
    status = response.status_code
    if status in (200, 202, 206):
        return
    what = f"{response.request.method} was answered {status}"
    if status in (408, 429) or (status >= 500 and status not in (501, StorageFull.status)):
        raise _Later(what, _retry_after_s(response))
    raise _Refused(what)


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_S_MAX) if text.isascii() and text.isdigit() else 1.0


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for data in response.aiter_raw():
        body += data
        if len(body) > ANSWER_BYTES_MAX:
            raise _Refused("the peer's answer is too long")
    return bytes(body)


def _offer_in(body: bytes) -> Offer:
    try:
        return _decode_offer(body)
    except msgspec.DecodeError as fault:
        raise _Refused(f"the peer's answer is not an offer: {fault}") from None


def _read_note(path: Path) -> _Note | None:
    try:
        return _decode_note(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write_note(path: Path, note: _Note) -> None:
    """All of it or nothing."""
    written = path.with_name(f"{path.name}.part")
    written.write_bytes(msgspec.json.encode(note))
    os.replace(written, path)
