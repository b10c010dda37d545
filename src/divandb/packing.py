"""Gzip: packing that gives the same bytes everywhere, unpacking that is bounded.

Attachments of compressible types are stored packed, as CouchDB stores them.
"""

import zlib
from collections.abc import Iterator, Sequence

from divandb.errors import BadRequest, TooLarge

COMPRESSIBLE_TYPES = ("text/*", "application/javascript", "application/json", "application/xml")

_NOT_GZIP = "Request body is not properly gzipped."
_GZIP_WBITS = 16 + zlib.MAX_WBITS
# zlib writes the operating system's number into byte 9 and depends on how it was built;
# attachments are known by the digest of these bytes, so the header is written here:
# no name, no time, XFL 0 and system 3 (Unix), as CouchDB on Linux has it.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"


def compressible(content_type: str, types: Sequence[str] = COMPRESSIBLE_TYPES) -> bool:
    """Whether attachments of this type are stored gzipped; ``types`` may end in ``*``."""
    plain = content_type.partition(";")[0].strip().lower()
    return any(
        plain.startswith(pattern[:-1]) if pattern.endswith("*") else plain == pattern
        for pattern in types
    )


class Gunzip:
    """Unpacks a gzipped body as it comes, in pieces, up to ``output_bytes_max`` in all.

    At most ``piece_bytes_max`` are unpacked at a time, so that a small body which unpacks
    to a huge one never stands in memory. Members one after another are one stream.
    """

    def __init__(self, output_bytes_max: int, *, piece_bytes_max: int = 262_144) -> None:
        self._left_bytes = output_bytes_max
        self._piece_bytes_max = piece_bytes_max
        self._member = zlib.decompressobj(_GZIP_WBITS)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The pieces that ``data`` unpacks to; to be used up before the next call.

        Raises BadRequest on data that is not gzip, TooLarge past the bound.
        """
        view = memoryview(data)
        # zlib copies the tail that it did not get to: short slices keep that cheap.
        for start in range(0, len(view), self._piece_bytes_max):
            packed = bytes(view[start : start + self._piece_bytes_max])
            while packed:
                piece, packed = self._step(packed)
                if piece:
                    yield piece

    def flush(self) -> None:
        """The end of the body. Raises BadRequest if it was cut short."""
        if not self._member.eof:
            raise BadRequest(_NOT_GZIP)

    def _step(self, packed: bytes) -> tuple[bytes, bytes]:
        """One piece, and the packed bytes that are still to do."""
        if self._member.eof:
            self._member = zlib.decompressobj(_GZIP_WBITS)
        try:
            piece = self._member.decompress(
                packed, min(self._piece_bytes_max, self._left_bytes + 1)
            )
        except zlib.error:
            raise BadRequest(_NOT_GZIP) from None
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise TooLarge("the request entity is too large")
        return piece, self._member.unconsumed_tail or self._member.unused_data


class GzipStream:
    """Packs data as it comes: how it is cut into chunks does not change the packed bytes."""

    def __init__(self, level: int = 8) -> None:
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._pending_header = _GZIP_HEADER
        self._crc = 0
        self._size = 0

    def feed(self, data: bytes | memoryview) -> bytes:
        """The packed bytes that are ready, often none."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        return self._take_header() + self._deflate.compress(data)

    def flush(self) -> bytes:
        """The rest of the stream; nothing may be fed after it."""
        trailer = self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")
        return self._take_header() + self._deflate.flush() + trailer

    def _take_header(self) -> bytes:
        header, self._pending_header = self._pending_header, b""
        return header


def gzip_bytes(data: bytes, level: int = 8) -> bytes:
    """``data`` gzipped; the same bytes as a GzipStream gives."""
    stream = GzipStream(level)
    return stream.feed(data) + stream.flush()
