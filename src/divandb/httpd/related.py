"""Documents with their attachments as multipart: a PUT's body read, and the answers written.

    PUT /{db}/{doc}                        multipart/related   read_related
    GET /{db}/{doc}?attachments=true       multipart/related   related_response
    GET /{db}/{doc}?open_revs=…            multipart/mixed     open_revs_response
    POST /{db}/_bulk_get                   multipart/mixed     bulk_get_response

Both ways an attachment passes through in pieces: what is in memory is a chunk, and parts small
enough to travel with their document.
"""

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import orjson
from starlette.responses import Response, StreamingResponse

from divandb import document
from divandb.attachments import DEFAULT_TYPE, GZIP, Received, Upload
from divandb.catalog import Known
from divandb.config import Limits
from divandb.entry import Entry
from divandb.errors import BadRequest, DivanError, NotFound, TooLarge, UnsupportedMediaType
from divandb.httpd import multipart, render, respond
from divandb.httpd.call import Call, decode_json
from divandb.httpd.multipart import AttPart, End, Framing, MultipartParser, PartBegin, PartData
from divandb.httpd.negotiate import is_json_content_type, wants_multipart
from divandb.httpd.render import Options
from divandb.replica import Replica, Revision, Row
from divandb.revtree import Attachment

# --- reading


async def read_related(call: Call) -> tuple[dict[str, Any], dict[str, Received]]:
    """The document of a multipart/related body, and by name the attachments that followed it.

    Raises ``BadRequest`` and its kin for a bad document, and for parts that are missing, too many,
    or not what the document says of them; ``TooLarge`` past a bound. Nothing refers to what came.
    """
    services = call.services
    boundary = multipart.boundary_of(call.headers.get("content-type", ""))
    parser = MultipartParser(boundary, parts_max=services.limits.attachments_max + 1)
    reader = _Reader(call.entry, services.limits)
    try:
        async for data in call.stream():
            for event in parser.feed(data):
                await reader.take(event)
        parser.close()
        return reader.result()
    except DivanError:
        await reader.abort()
        raise


class _Reader:
    """Takes the events of one body: the document first, then its attachments."""

    def __init__(self, entry: Entry, limits: Limits) -> None:
        self._entry = entry
        self._limits = limits
        self._json: bytearray | None = None
        self._value: dict[str, Any] | None = None
        self._entries: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._part: _Part | None = None
        self._received: dict[str, Received] = {}
        self._held_bytes = 0

    async def take(self, event: multipart.Event) -> None:
        """The next event."""
        if isinstance(event, End):
            return
        if self._value is None:
            self._take_document(event)
        elif isinstance(event, PartBegin):
            self._part = self._begin_part(event.headers)
        elif self._part is not None:
            await self._take_part(self._part, event)

    def result(self) -> tuple[dict[str, Any], dict[str, Received]]:
        """All parts came; raises ``BadRequest`` if one did not."""
        if self._value is None:
            raise BadRequest("multipart body has no document")
        for name in self._waiting:
            raise BadRequest(f"Attachment {name} does not follow.")
        return self._value, self._received

    async def abort(self) -> None:
        """The rest will not come."""
        if self._part is not None:
            await self._part.abort()

    def _take_document(self, event: PartBegin | PartData | multipart.PartEnd) -> None:
        if isinstance(event, PartBegin):
            if not is_json_content_type(event.headers.get("content-type")):
                raise UnsupportedMediaType("Content-Type must be application/json")
            self._json = bytearray()
            return
        assert self._json is not None
        if isinstance(event, PartData):
            self._json += event.data
            if len(self._json) > self._limits.body_bytes_max:
                raise TooLarge("the request entity is too large")
            return
        value = decode_json(bytes(self._json))
        # A document that will be refused is better refused before its attachments are read.
        self._entries = document.parse(value).attachments
        self._waiting = {
            name: entry for name, entry in self._entries.items() if entry.get("follows") is True
        }
        self._value, self._json = value, None

    def _begin_part(self, headers: dict[str, str]) -> "_Part":
        name = self._name_of(headers)
        return _Part(self._entry, name, self._waiting.pop(name), headers)

    def _name_of(self, headers: dict[str, str]) -> str:
        """The attachment a part belongs to: by its file name, else the next that is waited for."""
        named = multipart.filename_of(headers.get("content-disposition", ""))
        if named in self._waiting:
            return named
        if named in self._entries:
            raise BadRequest(f"Attachment {named} must not follow, or not twice.")
        for name in self._waiting:
            return name
        raise BadRequest("multipart body has more parts than attachments that follow")

    async def _take_part(self, part: "_Part", event: PartData | multipart.PartEnd) -> None:
        if isinstance(event, PartData):
            await part.feed(bytes(event.data))
            return
        received = await part.finish()
        self._part = None
        if received.data is not None:
            self._held_bytes += len(received.data)
            if self._held_bytes > self._limits.body_bytes_max:
                raise TooLarge("the request entity is too large")
        self._received[part.name] = received


class _Part:
    """One attachment on its way in, held against what the document says of it."""

    def __init__(
        self, entry: Entry, name: str, declared: dict[str, Any], headers: dict[str, str]
    ) -> None:
        self.name = name
        self._declared = declared
        self._packed = _is_packed(declared.get("encoding") or headers.get("content-encoding"))
        content_type = declared.get("content_type", DEFAULT_TYPE)
        if not isinstance(content_type, str):
            raise BadRequest("Invalid attachment: content_type must be a string")
        self._upload: Upload = entry.upload(content_type, packed=self._packed)
        self._arrived_bytes = 0
        self._expected_bytes = _length(declared, "encoded_length" if self._packed else "length")

    async def feed(self, data: bytes) -> None:
        self._arrived_bytes += len(data)
        if self._expected_bytes is not None and self._arrived_bytes > self._expected_bytes:
            raise BadRequest("attachment longer than expected")
        try:
            await self._upload.feed(data)
        except TooLarge:
            raise too_large(self.name) from None

    async def finish(self) -> Received:
        if self._expected_bytes is not None and self._arrived_bytes < self._expected_bytes:
            raise BadRequest("attachment shorter than expected")
        digest = self._declared.get("digest")
        if isinstance(digest, str) and digest.startswith("md5-"):
            check_md5(self._upload, digest.removeprefix("md5-"))
        received = await self._upload.finish()
        self._check_unpacked(received)
        return received

    def _check_unpacked(self, received: Received) -> None:
        declared, encoded = _length(self._declared, "length"), self._expected_bytes
        if not self._packed or declared is None or encoded is None:
            return
        # CouchDB gives the packed length for both when an attachment was uploaded packed.
        if declared not in (received.length, encoded):
            raise BadRequest("attachment unpacks to another length than expected")

    async def abort(self) -> None:
        await abort(self._upload)


def _is_packed(encoding: object) -> bool:
    if encoding in (None, "", "identity"):
        return False
    return is_gzip(encoding)


def is_gzip(encoding: object) -> bool:
    """Whether it is gzip or identity; raises ``UnsupportedMediaType`` for anything else."""
    text = encoding.strip().lower() if isinstance(encoding, str) else encoding
    if text not in (GZIP, "identity"):
        raise UnsupportedMediaType("Only gzip and identity content-encodings are supported")
    return text == GZIP


def _length(declared: dict[str, Any], member: str) -> int | None:
    value = declared.get(member)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest(f"Invalid attachment: {member} must be a whole number")
    return value


def check_md5(upload: Upload, digest: str) -> None:
    """Raises ``BadRequest`` if the bytes that came are not those of the base64 ``digest``."""
    if b64encode(upload.md5_received.digest()).decode() != digest.strip():
        raise BadRequest("Possible message corruption.", error="content_md5_mismatch")


def too_large(name: str) -> TooLarge:
    """The refusal of an attachment above ``attachment_bytes_max``."""
    return TooLarge(name, error="attachment_too_large")


async def abort(upload: Upload) -> None:
    """Forget what came of a refused upload; if that fails too, the upkeep does it later."""
    with contextlib.suppress(DivanError):
        await upload.abort()


# --- writing


class BulkRow(Protocol):
    """One entry of a `_bulk_get`: what was asked for, and what was found."""

    @property
    def id(self) -> str:
        """The document."""
        ...

    @property
    def row(self) -> Row | None:
        """Its state; ``None`` when refused."""
        ...

    @property
    def revisions(self) -> Sequence[Revision | str]:
        """The revisions; those that cannot be given as their names."""
        ...

    @property
    def refusal(self) -> DivanError | None:
        """Why they cannot be given, when it is not that they are missing."""
        ...

    @property
    def options(self) -> Options:
        """What to show of them."""
        ...


def sending(options: Options, is_multipart: bool) -> Options:
    """What is asked for in an answer of this form: one of several revisions as multipart always has
    attachments' bytes.
    """
    return msgspec.structs.replace(options, attachments=True) if is_multipart else options


async def related_response(
    call: Call, known: Known, row: Row, revision: Revision, options: Options
) -> Response:
    """One revision with the attachments asked for, as multipart/related; JSON if there are none."""
    replica = call.services.replica
    framing, atts = _framed(replica, known, row, revision, options, _boundary(call))
    headers = {
        **respond.etag(revision.rev),
        "content-type": framing.content_type,
        "content-length": str(framing.length),
    }
    if call.method == "HEAD":
        return Response(headers=headers)
    return StreamingResponse(_filled(replica, framing, atts), headers=headers)


async def open_revs_response(
    call: Call, known: Known, row: Row, found: Sequence[Revision | str], options: Options
) -> Response:
    """Several revisions of a document, their attachments included, as multipart/mixed."""
    outer, inner = _boundary(call), _boundary(call)
    options = sending(options, is_multipart=True)

    async def pieces() -> AsyncIterator[bytes]:
        replica = call.services.replica
        yield multipart.mixed_open(outer)
        for revision in found:
            if isinstance(revision, str):
                yield multipart.mixed_missing(orjson.dumps({"missing": revision}), outer)
                continue
            framing, atts = _framed(replica, known, row, revision, options, inner)
            async for piece in _filled(replica, multipart.mixed_document(framing, outer), atts):
                yield piece
        yield multipart.mixed_close()

    return respond.stream(pieces(), f'multipart/mixed; boundary="{outer}"')


async def bulk_get_response(call: Call, known: Known, found: Iterable[BulkRow]) -> Response:
    """The rows of a `_bulk_get`, attachments included, in the multipart type that is accepted."""
    kind = wants_multipart(call.headers.get("accept"), "bulk_get") or "multipart/mixed"
    outer, inner = _boundary(call), _boundary(call)

    async def pieces() -> AsyncIterator[bytes]:
        closing = b""
        for entry in found:
            closing = multipart.bulk_get_close(outer)
            async for piece in _bulk_entry(call.services.replica, known, entry, outer, inner):
                yield piece
        if closing:
            yield closing

    return respond.stream(pieces(), f'{kind}; boundary="{outer}"')


async def _bulk_entry(
    replica: Replica, known: Known, entry: BulkRow, outer: str, inner: str
) -> AsyncIterator[bytes]:
    options = sending(entry.options, is_multipart=True)
    for revision in entry.revisions:
        if isinstance(revision, str) or entry.row is None:
            yield multipart.bulk_get_error(_bulk_error(entry, revision), outer)
            continue
        framing, atts = _framed(replica, known, entry.row, revision, options, inner)
        framed = multipart.bulk_get_document(framing, outer, entry.id, revision.rev)
        async for piece in _filled(replica, framed, atts):
            yield piece


def _bulk_error(entry: BulkRow, revision: Revision | str) -> bytes:
    rev = revision if isinstance(revision, str) else revision.rev
    refusal = entry.refusal or NotFound("missing")
    about = {"id": entry.id} if entry.refusal else {}
    return orjson.dumps({**about, "rev": rev, "error": refusal.error, "reason": refusal.reason})


def _boundary(call: Call) -> str:
    return call.services.rng.token(16).hex()


def _framed(
    replica: Replica, known: Known, row: Row, revision: Revision, options: Options, boundary: str
) -> tuple[Framing, list[Attachment]]:
    """The frame of a revision, and the attachments that fill it."""
    atts = render.sent_attachments(row, revision, options)
    doc_json = render.with_following(replica, known, row, revision, options)
    parts = [
        AttPart(att.name, att.content_type, att.encoded_length, "gzip" if att.encoding else None)
        for att in atts
    ]
    return multipart.related(doc_json, parts, boundary), atts


async def _filled(
    replica: Replica, framing: Framing, atts: Sequence[Attachment]
) -> AsyncIterator[bytes]:
    """A frame with the attachments' bytes, as they are stored, between its heads."""
    for head, att in zip(framing.heads, atts, strict=True):
        yield head
        async for chunk in in_turns(replica.blob(att.blob)):
            yield chunk
    yield framing.tail


async def in_turns(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks; others have their turn between them, however fast the client takes them."""
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)
