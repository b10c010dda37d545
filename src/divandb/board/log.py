"""One partition's log: durable, checksummed, in segments. Over a ``Disk``; no clock of its own.

    FOLDER/<offset of the first record, 20 digits>.log     records, one after the other

Rules:

1. What ``append`` returned for is durable, and nothing can be read before it is; unless the topic
   is not: such a log is thrown away when the machine has failed (``topics``).
2. An offset is never used twice, whatever happened to the file.
3. A record is never given out unless its checksum is right.

At start the last segment is looked through. Bytes at its end that are no sound record are either
the torn remains of an append that nobody was answered for, or damage. A record says up to where the
log was durable when it was written, so damage is known by any later sound record that says "that
was durable". Torn remains are replaced by a record that moves the offset past all that they may
have held, since the last append of all cannot be told from damage to it (rule 2). Damage is left
as it is: new records go into a new segment, readers are told the place (``Damaged``) and where the
log goes on, and fetch what is missing from peers. Older segments are looked through when they are
first read.

Retention removes whole segments from the beginning, by age and by size; never the last one.
"""

import dataclasses
import errno
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from divandb.board import records
from divandb.board.base import (
    MIB,
    BoardError,
    Damaged,
    DiskFull,
    OffsetAhead,
    OffsetGone,
)
from divandb.board.disk import Disk, File
from divandb.board.records import HEADER_BYTES, LENGTH_BYTES, Record
from divandb.telemetry import Log

INDEX_BYTES = 64 * 1024
"""One index entry for so many bytes of a segment."""
JUMP_MAX = 2**32
"""A gap between offsets is never greater: what looks like more is no record of ours."""
SUFFIX = ".log"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Pieces = Sequence[tuple[bytes, int]]
"""A batch as ``records.pieces`` cuts it: bodies, with the number of messages in each."""


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """How much a partition keeps, and in what portions."""

    segment_bytes_max: int = 16 * MIB
    """A segment above this size gets a successor; one append may exceed it."""
    retention_bytes: int = 1024 * MIB
    """Whole segments are removed while what remains without them is at least this."""
    retention_ms: int = 7 * 24 * 3600 * 1000
    """A segment goes when its last record is older than this."""
    recent_bytes_max: int = 1 * MIB
    """The latest records, kept in memory for readers that keep up."""


class Slice(NamedTuple):
    """Whole records from a log."""

    records: bytes
    """The first may begin before the offset that was asked for."""
    next: int
    """The offset behind the last record."""
    end: int
    """The log's end."""


class _Index(NamedTuple):
    """Places in a segment: sorted offsets, and the byte at which a record with each begins."""

    offsets: list[int]
    places: list[int]

    def note(self, offset: int, place: int) -> None:
        if not self.places or place - self.places[-1] >= INDEX_BYTES:
            self.add(offset, place)

    def add(self, offset: int, place: int) -> None:
        at = bisect_left(self.offsets, offset)
        if at == len(self.offsets) or self.offsets[at] != offset:
            self.offsets.insert(at, offset)
            self.places.insert(at, place)

    def find(self, offset: int) -> tuple[int, int]:
        """The last noted (offset, place) at or before ``offset``."""
        at = bisect_right(self.offsets, offset) - 1
        return self.offsets[at], self.places[at]


class _Segment:
    """One file."""

    def __init__(self, folder: str, base: int, size: int) -> None:
        self.name = segment_name(folder, base)
        self.base = base
        self.bytes = size
        self.index: _Index | None = None
        """None until the file has been looked through."""
        self.first_ms: int | None = None
        """When its first record was written."""


class PartitionLog:
    """One partition. One thread at a time may append; any may read."""

    def __init__(
        self,
        disk: Disk,
        folder: str,
        settings: LogSettings,
        log: Log,
        wall_ms: int,
        *,
        is_durable: bool = True,
    ) -> None:
        """Open the log in ``folder``, which exists; made new if no segment is there."""
        self.is_durable = is_durable
        self._disk = disk
        self._folder = folder
        self._settings = settings
        self._log = log
        # Held for moments only, never while reading, writing or sending.
        self._lock = threading.Lock()
        self._stopped: str | None = None
        # Stays set when making a segment fails: an empty file may be there, and nothing may be
        # appended to the one before it any more.
        self._must_roll = False
        self._told: tuple[str, int] | None = None
        self._recent = _Recent(settings.recent_bytes_max)
        self._segments = [_Segment(folder, base, 0) for base in bases(disk, folder)]
        if self._segments:
            for segment in self._segments:
                segment.bytes = disk.size(segment.name)
                segment.first_ms = self._first_ms(segment)
            self._file = disk.open(self._segments[-1].name)
            self._end = self._recover(wall_ms)
        else:
            self._end = 0
            self._file = self._new_segment()

    @property
    def start(self) -> int:
        """The first offset that is retained."""
        return self._segments[0].base

    @property
    def end(self) -> int:
        """The offset that the next message gets."""
        return self._end

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    # Appending

    def append(self, batches: Sequence[Pieces], wall_ms: int) -> list[int]:
        """Write batches with one sync; the offset of each one's first message.

        Raises ``DiskFull`` (nothing was kept) or, when it is not known what the disk has,
        ``BoardError`` for this and every further append until the log is opened again.
        """
        if self._stopped is not None:
            raise BoardError(self._stopped)
        firsts: list[int] = []
        written: list[tuple[int, bytes]] = []
        durable = after = self._end
        for pieces in batches:
            firsts.append(after)
            for body, count in pieces:
                written.append((after, records.pack_record(body, count, after, wall_ms, durable)))
                after += count
        self._write(b"".join([data for _, data in written]))
        self._show(written, after, wall_ms)
        return firsts

    def _write(self, data: bytes) -> None:
        try:
            size = self._segments[-1].bytes
            if size and size + len(data) > self._settings.segment_bytes_max:
                self._must_roll = True
            if self._must_roll:
                self._roll(self._end)
            self._file.write_at(self._segments[-1].bytes, data)
        except OSError as problem:
            self._undo(problem)
        try:
            if self.is_durable:
                self._file.sync()
        except OSError as problem:
            # After a failed sync nobody knows what is on the disk; a restart finds out.
            self._stop(problem)

    def _undo(self, problem: OSError) -> None:
        if problem.errno not in NO_ROOM:
            self._stop(problem)
        try:
            self._file.truncate(self._segments[-1].bytes)
        except OSError as second:
            self._stop(second)
        raise DiskFull(f"The board's disk is full: {problem.strerror}.") from problem

    def _stop(self, problem: OSError) -> None:
        self._stopped = f"{self._segments[-1].name} cannot be written: {problem.strerror}."
        self._log.event("log stopped", segment=self._segments[-1].name, reason=problem.strerror)
        raise BoardError(self._stopped) from problem

    def _show(self, written: list[tuple[int, bytes]], end: int, wall_ms: int) -> None:
        """Let readers see what is durable now."""
        with self._lock:
            segment = self._segments[-1]
            if segment.first_ms is None:
                segment.first_ms = wall_ms
            for first, data in written:
                if segment.index is not None:
                    segment.index.note(first, segment.bytes)
                segment.bytes += len(data)
                self._recent.add(first, data)
            self._end = end

    def _roll(self, base: int) -> None:
        before = self._file
        self._file = self._new_segment(base)
        self._must_roll = False
        before.close()

    def _new_segment(self, base: int = 0) -> File:
        segment = _Segment(self._folder, base, 0)
        file = self._disk.create(segment.name)
        segment.index = _Index([base], [0])
        with self._lock:
            self._segments.append(segment)
        return file

    # Reading

    def recent(self, offset: int, bytes_max: int) -> Slice | None:
        """Like ``read``, from memory alone; None if it is not there. Never waits for the disk."""
        with self._lock:
            self._check(offset)
            if offset == self._end:
                return Slice(b"", offset, self._end)
            found = self._recent.find(offset, bytes_max, self._end)
        if found is None:
            return None
        parts, after = found
        return Slice(b"".join(parts), after, self._end)

    def read(self, offset: int, bytes_max: int) -> Slice:
        """Records from the one that holds ``offset`` on: ``bytes_max`` bytes of them at most, but
        at least one unless ``offset`` is the end.

        Raises ``OffsetGone``, ``OffsetAhead``, ``Damaged``.
        """
        with self._lock:
            self._check(offset)
            end = self._end
            if offset == end:
                return Slice(b"", offset, end)
            number = bisect_right(self._segments, offset, key=lambda one: one.base) - 1
            segment = self._segments[number]
            size = segment.bytes
            is_last = number + 1 == len(self._segments)
            upto = end if is_last else self._segments[number + 1].base
        try:
            return self._read_in(segment, size, offset, upto, bytes_max, end)
        except FileNotFoundError:
            with self._lock:
                if segment not in self._segments:  # retention was faster
                    raise OffsetGone(self.start) from None
            raise Damaged(segment.name, offset, upto) from None

    def _read_in(
        self, segment: _Segment, size: int, offset: int, upto: int, bytes_max: int, end: int
    ) -> Slice:
        if segment.index is None:
            segment.index = _looked_through(self._disk.read(segment.name, 0, size), segment.base)
        with self._lock:
            after, at = segment.index.find(offset)
        window = _Window(self._disk, segment.name, size, min(bytes_max, size) + INDEX_BYTES)
        taken: list[bytes] = []
        room = bytes_max
        while at < size:
            record = window.record(at)
            if record is None or not _follows(record, after):
                break
            length = record.end - record.body_at + HEADER_BYTES
            if record.next > offset:
                if taken and length > room:
                    return Slice(b"".join(taken), after, end)
                taken.append(window.bytes(at, length))
                room -= length
            at += length
            after = record.next
        if not taken:
            raise self._damaged(segment, size, after, at, upto)
        return Slice(b"".join(taken), after, end)

    def _damaged(self, segment: _Segment, size: int, offset: int, at: int, upto: int) -> Damaged:
        """The error for a place without a sound record; makes what follows readable."""
        rest = self._disk.read(segment.name, at, size - at)
        resume = upto
        found = _next_sound(rest, 0, offset)
        if found is not None and found[0].first < upto:
            resume = found[0].first
            if segment.index is not None:
                with self._lock:
                    segment.index.add(resume, at + found[1])
        if self._told != (segment.name, offset):  # a reader may come back to it many times
            self._told = (segment.name, offset)
            self._log.event("log damaged", segment=segment.name, offset=offset, resume=resume)
        return Damaged(segment.name, offset, resume)

    def _check(self, offset: int) -> None:
        if offset < self.start:
            raise OffsetGone(self.start)
        if offset > self._end:
            raise OffsetAhead(self._end)

    # Retention

    def retain(self, wall_ms: int) -> int:
        """Remove what need not be kept at this time; the number of segments removed."""
        removed: list[_Segment] = []
        with self._lock:
            while len(self._segments) > 1 and self._is_due(wall_ms):
                removed.append(self._segments.pop(0))
        for segment in removed:
            self._disk.remove(segment.name)
        return len(removed)

    def _is_due(self, wall_ms: int) -> bool:
        following = self._segments[1].first_ms
        is_old = following is not None and following < wall_ms - self._settings.retention_ms
        rest = sum(segment.bytes for segment in self._segments[1:])
        return is_old or rest >= self._settings.retention_bytes

    # Opening

    def _first_ms(self, segment: _Segment) -> int | None:
        record = _Window(self._disk, segment.name, segment.bytes, HEADER_BYTES).record(0)
        return record.wall_ms if record is not None else None

    def _recover(self, wall_ms: int) -> int:
        """Make the last segment sound; the log's end."""
        segment = self._segments[-1]
        # What a killed process had written, but not synced, must not be shown before it is durable.
        self._file.sync()
        data = self._disk.read(segment.name, 0, segment.bytes)
        segment.index = _Index([segment.base], [0])
        at, end = _walk(data, 0, segment.base, segment.index)
        if at == len(data):
            return end
        later = [one for one in records.sound_records(data, at) if _is_near(one, end)]
        after = max([end, *(one.next for one in later)]) + (len(data) - at) // LENGTH_BYTES + 1
        if any(one.durable > end for one in later):
            self._log.event("log damaged", segment=segment.name, offset=end, resume=after)
            segment.index = None
            self._roll(after)
        else:
            self._log.event(
                "torn end cut", segment=segment.name, bytes=len(data) - at, offset=end, next=after
            )
            self._file.write_at(at, records.pack_skip(after, wall_ms, end))
            self._file.sync()
            segment.bytes = at + HEADER_BYTES
            self._file.truncate(segment.bytes)
            self._file.sync()
        return after


class _Recent:
    """The latest records, by offset, without a hole: bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._firsts: list[int] = []
        self._records: list[bytes] = []

    def add(self, first: int, record: bytes) -> None:
        self._firsts.append(first)
        self._records.append(record)
        self._bytes += len(record)
        if self._bytes > self._bytes_max:
            self._forget()

    def _forget(self) -> None:
        """Down to half, so that this is rare."""
        count = 0
        while self._bytes > self._bytes_max // 2:
            self._bytes -= len(self._records[count])
            count += 1
        del self._firsts[:count]
        del self._records[:count]

    def find(self, offset: int, bytes_max: int, end: int) -> tuple[list[bytes], int] | None:
        """Records from the one with ``offset`` on, and the offset behind them."""
        at = begin = bisect_right(self._firsts, offset) - 1
        if begin < 0:
            return None
        room = bytes_max
        while at < len(self._records) and (at == begin or len(self._records[at]) <= room):
            room -= len(self._records[at])
            at += 1
        return self._records[begin:at], self._firsts[at] if at < len(self._firsts) else end


class _Window:
    """A view on a segment's file that moves along with its reader."""

    def __init__(self, disk: Disk, name: str, size: int, chunk_bytes: int) -> None:
        self._disk = disk
        self._name = name
        self._size = size
        self._chunk_bytes = chunk_bytes
        self._begin = 0
        self._data = b""

    def record(self, at: int) -> Record | None:
        """The sound record at this byte of the file; its places are relative to the view."""
        self._hold(at, HEADER_BYTES)
        length = records.record_bytes(self._data, at - self._begin)
        if length is None or at + length > self._size:
            return None
        self._hold(at, length)
        return records.record_at(self._data, at - self._begin)

    def bytes(self, at: int, length: int) -> bytes:
        """Bytes of a record that was just looked at."""
        return self._data[at - self._begin : at - self._begin + length]

    def _hold(self, at: int, length: int) -> None:
        if not self._begin <= at <= at + length <= self._begin + len(self._data):
            wanted = min(max(length, self._chunk_bytes), self._size - at)
            self._data = self._disk.read(self._name, at, wanted)
            self._begin = at


def segment_name(folder: str, base: int) -> str:
    """The file of the segment that begins with this offset."""
    return f"{folder}/{base:020d}{SUFFIX}"


def bases(disk: Disk, folder: str) -> list[int]:
    """The first offsets of a log's segments, in order; none if there is no log."""
    names = [name.removesuffix(SUFFIX) for name in disk.names(folder) if name.endswith(SUFFIX)]
    return sorted(int(name) for name in names if name.isdecimal())


def _follows(record: Record, after: int) -> bool:
    """Can this record stand behind offset ``after``?"""
    if record.messages:
        return record.first == after
    return after <= record.first <= after + 2 * JUMP_MAX


def _is_near(record: Record, offset: int) -> bool:
    return offset <= record.first <= offset + JUMP_MAX


def _walk(data: bytes, at: int, after: int, index: _Index) -> tuple[int, int]:
    """Go from record to record, noting places; the byte and the offset where that ends."""
    while (record := records.record_at(data, at)) is not None and _follows(record, after):
        index.note(after, at)
        at, after = record.end, record.next
    return at, after


def _next_sound(data: bytes, at: int, offset: int) -> tuple[Record, int] | None:
    """The next sound record behind a damaged one for ``offset``, and where it begins."""
    for record in records.sound_records(data, at):
        if offset < record.first and _is_near(record, offset):
            return record, record.body_at - HEADER_BYTES
    return None


def _looked_through(data: bytes, base: int) -> _Index:
    """A segment's index, with an entry behind each damaged place."""
    index = _Index([base], [0])
    at, after = _walk(data, 0, base, index)
    while at < len(data) and (found := _next_sound(data, at, after)) is not None:
        record, place = found
        index.add(record.first, place)
        at, after = _walk(data, place, record.first, index)
    return index
