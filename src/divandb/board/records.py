"""The bytes of messages and records, as server and client exchange them. Pure.

Messages travel and are kept as ``length: u32, payload``, one after the other. A record wraps those
that were published together and is what the log keeps and an answer carries, so that the server
never touches single messages:

    magic    4 bytes  "dvR1"
    crc      u32      CRC-32 of all that follows
    length   u32      bytes of the body
    count    u32      messages in the body; 0 for a record that only moves the offset
    first    u64      offset of the first message
    wall_ms  u64      when it was written
    since    u32      ``first`` less the offset up to which the log was durable by then
    body     length bytes

All integers are little-endian. ``since`` tells a torn tail from damage: whatever lies below
``first - since`` of any sound record had been acknowledged.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PREFIX = "/board/v1/"
"""All the embedded board's endpoints."""
END_HEADER = "board-end"
"""Beside the records of an answer: the log's end."""
IDENTITY_HEADER = "board-identity"
"""Beside the records of an answer: the topic's identity."""
MAGIC = b"dvR1"
_HEADER = struct.Struct("<4sIIIQQI")
_CRC = struct.Struct("<I")
_SUMMED = struct.Struct("<IIQQI")
_LENGTH = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
LENGTH_BYTES = _LENGTH.size
_PIECE = struct.Struct("<QQ")
SUMMED_AT = len(MAGIC) + _CRC.size

Buffer = bytes | memoryview


class Record(NamedTuple):
    """A sound record in a buffer."""

    first: int
    messages: int
    """How many; 0 in a record that only moves the offset."""
    wall_ms: int
    durable: int
    """Offsets below this were durable when the record was written."""
    body_at: int
    end: int
    """Where the next record begins in the buffer."""

    @property
    def next(self) -> int:
        """The offset behind it."""
        return self.first + self.messages


def pack_messages(messages: Sequence[bytes]) -> bytes:
    """Messages as one body."""
    parts: list[bytes] = []
    for message in messages:
        parts.append(_LENGTH.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def split_messages(body: Buffer, at: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The messages of a body; raises ``ValueError`` when lengths do not add up."""
    end = len(body) if end is None else end
    while at < end:
        at, begin = _next_message(body, at, end)
        yield bytes(body[begin:at])


def _next_message(body: Buffer, at: int, end: int) -> tuple[int, int]:
    """Where the message at ``at`` ends, and where its payload begins."""
    begin = at + LENGTH_BYTES
    if begin > end:
        raise ValueError("a message's length is cut off")
    stop: int = begin + _LENGTH.unpack_from(body, at)[0]
    if stop > end:
        raise ValueError("a message is cut off")
    return stop, begin


def pieces(body: bytes, bytes_max: int) -> tuple[list[tuple[bytes, int]], int]:
    """A body cut between messages into pieces of at most ``bytes_max`` bytes each (more only for a
    single message), with the number of messages in each; and the largest message's size.

    Raises ``ValueError`` when lengths do not add up.
    """
    found: list[tuple[bytes, int]] = []
    begin = at = count = largest = 0
    end = len(body)
    while at < end:
        stop, payload_at = _next_message(body, at, end)
        if count and stop - begin > bytes_max:
            found.append((body[begin:at], count))
            begin, count = at, 0
        largest = max(largest, stop - payload_at)
        count += 1
        at = stop
    if count:
        found.append((body if begin == 0 else body[begin:], count))
    return found, largest


def pack_record(body: bytes, count: int, first: int, wall_ms: int, durable: int) -> bytes:
    """One record."""
    summed = _SUMMED.pack(len(body), count, first, wall_ms, first - durable)
    crc = zlib.crc32(body, zlib.crc32(summed))
    return b"".join((MAGIC, _CRC.pack(crc), summed, body))


def pack_skip(next_offset: int, wall_ms: int, durable: int) -> bytes:
    """A record without messages: the log goes on at ``next_offset``."""
    since = min(next_offset - durable, 2**32 - 1)
    return pack_record(b"", 0, next_offset, wall_ms, next_offset - since)


def pack_piece(data: bytes, after: int, end: int) -> bytes:
    """A piece of a feed: records, the offset behind them, and the log's end."""
    return _PIECE.pack(after, end) + data


def piece_at(data: bytes) -> tuple[int, int, bytes]:
    """(the offset behind it, the log's end, its records); raises ``ValueError``."""
    if len(data) < _PIECE.size:
        raise ValueError("a piece of a feed is cut off")
    after, end = _PIECE.unpack_from(data)
    return after, end, data[_PIECE.size :]


def record_bytes(data: Buffer, at: int) -> int | None:
    """The size that the record at ``at`` claims to have; None if no record begins there or its
    header is cut off.
    """
    if len(data) - at < HEADER_BYTES or data[at : at + len(MAGIC)] != MAGIC:
        return None
    length: int = _LENGTH.unpack_from(data, at + SUMMED_AT)[0]
    return HEADER_BYTES + length


def record_at(data: Buffer, at: int) -> Record | None:
    """The record at ``at``; None unless it is whole and its checksum is right."""
    if len(data) - at < HEADER_BYTES:
        return None
    magic, crc, length, count, first, wall_ms, since = _HEADER.unpack_from(data, at)
    body_at = at + HEADER_BYTES
    end = body_at + length
    if magic != MAGIC or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[at + SUMMED_AT : end]) != crc:
        return None
    return Record(first, count, wall_ms, first - since, body_at, end)


def sound_records(data: bytes, at: int) -> Iterator[Record]:
    """Every sound record from ``at`` on, whatever lies between them."""
    while (at := data.find(MAGIC, at)) >= 0:
        record = record_at(data, at)
        if record is None:
            at += 1
        else:
            yield record
            at = record.end


def unpack(data: bytes, offset: int, bytes_max: int) -> tuple[list[bytes], int, int]:
    """The messages of an answer's records from ``offset`` on: at most ``bytes_max`` bytes of them,
    but at least one; the offset of the first and the one behind the last.

    Without messages both are the offset behind the records. Raises ``ValueError`` when the records
    are not sound.
    """
    messages: list[bytes] = []
    at, begin, after, taken = 0, offset, offset, 0
    while at < len(data):
        record = record_at(data, at)
        if record is None:
            raise ValueError(f"no sound record at byte {at} of the answer")
        at = record.end
        if messages and record.first != after:
            break  # a batch has no gap within
        number = record.first
        for message in split_messages(data, record.body_at, record.end):
            if number >= offset:
                taken += len(message)
                if messages and taken > bytes_max:
                    return messages, begin, number
                if not messages:
                    begin = number
                messages.append(message)
            number += 1
        after = max(after, record.next)
    return messages, begin if messages else after, after
