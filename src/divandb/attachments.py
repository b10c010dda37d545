"""Attachments on their way in: from JSON, multipart or a plain body to what a leaf records.

Data in JSON is small by the body's bound and travels with its document; a streamed attachment above
``inline_attachment_bytes_max`` goes ahead of it, chunk by chunk, and is never whole in memory.
"""

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from hashlib import md5, sha256
from typing import Any

import msgspec

from divandb.commands import Blob, Command, DiscardBlob, PutChunk, SealBlob
from divandb.config import Limits
from divandb.errors import BadRequest, MissingStub, TooLarge
from divandb.event import CHUNK_BYTES
from divandb.packing import Gunzip, GzipStream, compressible, gzip_bytes
from divandb.revtree import Attachment

GZIP = "gzip"
DEFAULT_TYPE = "application/octet-stream"

Execute = Callable[[Command, int], Awaitable[Any]]
Offload = Callable[..., Awaitable[Any]]


class Received(msgspec.Struct, frozen=True):
    """Bytes that arrived: stored ahead, or small and still in ``data``."""

    digest: bytes
    blob: bytes
    length: int
    encoding: str
    encoded_length: int
    data: bytes | None

    def attachment(self, name: str, content_type: str, revpos: int) -> Attachment:
        """As a leaf records it."""
        return Attachment(
            name, content_type, revpos, self.digest, self.length, self.encoding,
            self.encoded_length, self.blob,
        )  # fmt: skip


def pack(data: bytes, content_type: str) -> Received:
    """Plain bytes in memory, packed when their type is worth it."""
    if compressible(content_type):
        return _held(gzip_bytes(data), len(data), GZIP)
    return _held(data, len(data), "")


def take_packed(data: bytes, limits: Limits) -> Received:
    """Bytes that the client packed; raises ``BadRequest`` when they are not gzip."""
    return _held(data, unpacked_length(data, limits), GZIP)


def unpacked_length(data: bytes, limits: Limits) -> int:
    """How long gzipped bytes are when unpacked; bounded by ``attachment_bytes_max``."""
    gunzip = Gunzip(limits.attachment_bytes_max)
    length = sum(len(piece) for piece in gunzip.feed(data))
    gunzip.flush()
    return length


def _held(stored: bytes, length: int, encoding: str) -> Received:
    digest = md5(stored, usedforsecurity=False).digest()
    return Received(digest, sha256(stored).digest(), length, encoding, len(stored), stored)


def resolve(
    doc_id: str,
    entries: Mapping[str, Any],
    parent: Mapping[str, Attachment],
    received: Mapping[str, Received],
    pos: int,
    limits: Limits,
    *,
    keep_revpos: bool,
) -> tuple[tuple[Attachment, ...], tuple[Blob, ...]]:
    """What the new leaf records of its ``_attachments``, and the bytes that travel with it.

    ``parent`` has what stubs may refer to, ``received`` what followed in multipart. With
    ``keep_revpos`` (``new_edits=false``) a given revpos stands, otherwise new data gets ``pos``.
    """
    if len(entries) > limits.attachments_max:
        raise TooLarge(f"A document has at most {limits.attachments_max} attachments.")
    attachments, blobs = [], []
    for name, entry in entries.items():
        if entry.get("stub") is True:
            attachments.append(_from_stub(doc_id, name, parent))
            continue
        content_type = _content_type(entry)
        if entry.get("follows") is True:
            arrived = received.get(name)
            if arrived is None:
                raise BadRequest(f"Attachment {name} does not follow.")
        else:
            arrived = _inline(name, entry, content_type, limits)
        revpos = entry.get("revpos") if keep_revpos else None
        good = isinstance(revpos, int) and not isinstance(revpos, bool) and 0 < revpos <= pos
        attachments.append(arrived.attachment(name, content_type, int(revpos) if good else pos))  # type: ignore[arg-type]
        if arrived.data is not None:
            blobs.append((arrived.blob, arrived.data))
    return tuple(attachments), tuple(blobs)


def _from_stub(doc_id: str, name: str, parent: Mapping[str, Attachment]) -> Attachment:
    known = parent.get(name)
    if known is None:
        raise MissingStub(f'Invalid attachment stub in "{doc_id}" for "{name}"')
    return known


def _content_type(entry: Mapping[str, Any]) -> str:
    content_type = entry.get("content_type", DEFAULT_TYPE)
    if not isinstance(content_type, str) or not content_type.isprintable():
        raise BadRequest("Invalid attachment: content_type must be a string")
    return content_type


def _inline(name: str, entry: Mapping[str, Any], content_type: str, limits: Limits) -> Received:
    text = entry.get("data")
    if not isinstance(text, str):
        raise BadRequest(f"Invalid attachment data for {name}")
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"Invalid attachment data for {name}") from None
    if len(data) > limits.attachment_bytes_max:
        raise TooLarge(f"Attachment {name} is larger than {limits.attachment_bytes_max} bytes.")
    if entry.get("encoding") == GZIP:
        return take_packed(data, limits)
    return pack(data, content_type)


class Upload:
    """Receives one attachment's bytes: ``feed`` as they come, then ``finish`` or ``abort``.

    ``execute`` carries out commands; its wait is the back-pressure. ``offload`` runs slow work
    elsewhere. ``upload`` names what is being received: 16 random bytes.
    """

    def __init__(
        self,
        execute: Execute,
        offload: Offload,
        limits: Limits,
        content_type: str,
        upload: bytes,
        *,
        packed: bool = False,
    ) -> None:
        self._upload = upload
        self._execute = execute
        self._offload = offload
        self._limits = limits
        self._packer = GzipStream() if compressible(content_type) and not packed else None
        self._unpacker = Gunzip(limits.attachment_bytes_max) if packed else None
        self.md5_received = md5(usedforsecurity=False)
        self._md5 = md5(usedforsecurity=False)
        self._sha = sha256()
        self._buffer = bytearray()
        self._length = 0
        self._stored = 0
        self._index = 0

    async def feed(self, data: bytes) -> None:
        """Take the next bytes; raises ``TooLarge`` past ``attachment_bytes_max``."""
        self.md5_received.update(data)
        if self._unpacker is not None:
            self._length += sum(len(piece) for piece in self._unpacker.feed(data))
        else:
            self._length += len(data)
        if self._length > self._limits.attachment_bytes_max:
            raise TooLarge(f"An attachment is at most {self._limits.attachment_bytes_max} bytes.")
        await self._take(await self._offload(self._packer.feed, data) if self._packer else data)

    async def _take(self, stored: bytes) -> None:
        self._md5.update(stored)
        self._sha.update(stored)
        self._stored += len(stored)
        self._buffer += stored
        if not self._index and self._stored <= self._limits.inline_attachment_bytes_max:
            return
        while len(self._buffer) >= CHUNK_BYTES:
            await self._send(bytes(self._buffer[:CHUNK_BYTES]))
            del self._buffer[:CHUNK_BYTES]

    async def _send(self, chunk: bytes) -> None:
        await self._execute(PutChunk(self._upload, self._index, chunk), len(chunk))
        self._index += 1

    async def finish(self) -> Received:
        """All bytes came: what a leaf will record of them."""
        if self._packer is not None:
            await self._take(self._packer.flush())
        if self._unpacker is not None:
            self._unpacker.flush()
        encoding = GZIP if self._packer or self._unpacker else ""
        name = self._sha.digest()
        data = bytes(self._buffer) if not self._index else None
        if self._index:
            if self._buffer:
                await self._send(bytes(self._buffer))
            await self._execute(SealBlob(self._upload, name, self._stored, self._index), 0)
        return Received(self._md5.digest(), name, self._length, encoding, self._stored, data)

    async def abort(self) -> None:
        """The rest will not come: forget what did."""
        if self._index:
            await self._execute(DiscardBlob(self._upload), 0)
