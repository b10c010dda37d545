"""Multipart bodies, both ways: a push parser, and the framing of CouchDB's answers.

Pure: the parser is fed bytes and returns events; the writers return the bytes that go
before, between and after attachment bodies, which the caller streams from wherever they
are. Framing follows CouchDB 3.5, except that boundaries are always quoted and that file
names, types and ids are made safe: whatever they hold, they cannot end a header.

Parsing is as tolerant as CouchDB (preamble and epilogue are ignored, a delimiter needs
CRLF before it) and a little more: padding after a delimiter, and LF alone to end it and
to end part headers. A line that begins like a delimiter and is none is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from divandb.errors import BadRequest, TooLarge

BOUNDARY_BYTES_MAX = 200
PADDING_BYTES_MAX = 256

_PARAMETER = re.compile(r';\s*([^=;\s]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_HEADERS_END = re.compile(rb"\n\r?\n")
_HEADER_NAME = re.compile(r"[!#-'*+\-.^-z|~0-9A-Z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


# --- header values


def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """The type and the parameters of a ``Content-Type`` or ``Content-Disposition`` value.

    Type and parameter names come in lower case, quoted values without quotes and escapes.
    The first of repeated parameters counts; one without a name or "=" is skipped.
    """
    kind, separator, rest = value.partition(";")
    params: dict[str, str] = {}
    for name, raw in _PARAMETER.findall(separator + rest):
        params.setdefault(name.lower(), _unquoted(raw.strip()))
    return kind.strip().lower(), params


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart ``Content-Type``. Raises BadRequest when there is none."""
    kind, params = parse_content_type(content_type)
    boundary = params.get("boundary", "").rstrip(" ")
    if not kind.startswith("multipart/") or not boundary:
        raise BadRequest("Content-Type must be multipart with a boundary")
    if not boundary.isascii() or _UNSAFE.search(boundary) or len(boundary) > BOUNDARY_BYTES_MAX:
        raise BadRequest("bad multipart boundary")
    return boundary.encode("ascii")


def filename_of(content_disposition: str) -> str | None:
    """The file name of a ``Content-Disposition``; ``filename*`` (RFC 8187) goes first."""
    params = parse_content_type(content_disposition)[1]
    charset, _, rest = params.get("filename*", "").partition("'")
    if charset.lower() == "utf-8":
        return unquote_to_bytes(rest.partition("'")[2]).decode("utf-8", "replace")
    return params.get("filename")


def attachment_disposition(name: str) -> str:
    """``attachment; filename="…"`` for any name.

    Quotes and backslashes are escaped, UTF-8 stands as it is. A name with control
    characters has them percent-encoded there and comes exactly in ``filename*`` beside it.
    """
    escaped = re.sub(r'(["\\])', r"\\\1", name)
    if not _UNSAFE.search(name):
        return f'attachment; filename="{escaped}"'
    exact = quote(name, safe="", errors="replace")
    return f"attachment; filename=\"{_percent_encoded(escaped)}\"; filename*=UTF-8''{exact}"


def _unquoted(raw: str) -> str:
    if not raw.startswith('"'):
        return raw
    inner = raw[1:-1] if len(raw) > 1 and raw.endswith('"') else raw[1:]
    return _QUOTED_PAIR.sub(r"\1", inner)


def _percent_encoded(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text)


# --- parser


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins; header names in lower case, the last of repeated ones counts."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """The next bytes of the part, a view into what was fed."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


@dataclass(frozen=True, slots=True)
class End:
    """The closing delimiter was seen; whatever else is fed is ignored."""


Event = PartBegin | PartData | PartEnd | End


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()  # behind the boundary, its line not yet complete
    HEADERS = auto()
    BODY = auto()
    DONE = auto()


class MultipartParser:
    """Cuts a multipart body into events as its bytes come.

    Holds back less than a delimiter of a part's data and at most ``header_bytes_max`` of
    its headers. A part that is multipart itself is data here: ``nested`` gives the
    parser for it, ``depth_max`` levels in all.
    """

    def __init__(
        self,
        boundary: bytes,
        *,
        header_bytes_max: int = 16_384,
        parts_max: int = 1000,
        depth_max: int = 2,
    ) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._header_bytes_max = header_bytes_max
        self._parts_max = parts_max
        self._depth_max = depth_max
        self._parts_left = parts_max
        self._state = _State.PREAMBLE
        self._held = b""
        self._scanned_bytes = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes.

        Raises BadRequest on a bad delimiter line or header, TooLarge past a bound; the
        parser is of no use after that.
        """
        buffer = self._held + data if self._held else data
        # Of held headers, the last two bytes could still begin the empty line that ends them.
        self._scanned_bytes = max(len(self._held) - 2, 0)
        self._held = b""
        events: list[Event] = []
        position: int | None = 0
        while position is not None:
            position = self._step(buffer, position, events)
        return events

    def close(self) -> None:
        """The end of the body. Raises BadRequest if the closing delimiter is missing."""
        if self._state is not _State.DONE:
            raise BadRequest("multipart body ends before its closing boundary")

    def nested(self, content_type: str) -> "MultipartParser":
        """A parser for the data of a part with this multipart ``Content-Type``.

        Raises BadRequest when that is a level too deep or has no boundary.
        """
        if self._depth_max <= 1:
            raise BadRequest("multipart body is nested too deeply")
        return MultipartParser(
            boundary_of(content_type),
            header_bytes_max=self._header_bytes_max,
            parts_max=self._parts_max,
            depth_max=self._depth_max - 1,
        )

    def _step(self, buffer: bytes, position: int, events: list[Event]) -> int | None:
        """One step from ``position``: where the next begins, None when more bytes are needed."""
        match self._state:
            case _State.PREAMBLE:
                return self._preamble(buffer, position)
            case _State.DELIMITER:
                return self._delimiter_line(buffer, position, events)
            case _State.HEADERS:
                return self._headers(buffer, position, events)
            case _State.BODY:
                return self._body(buffer, position, events)
            case _State.DONE:
                return None

    def _preamble(self, buffer: bytes, position: int) -> int | None:
        # The first delimiter may open the body: no line needs to end before it.
        opening = self._delimiter[2:]
        found = buffer.find(opening, position)
        if found < 0:
            self._held = buffer[max(position, len(buffer) - len(opening) + 1) :]
            return None
        self._state = _State.DELIMITER
        return found + len(opening)

    def _delimiter_line(self, buffer: bytes, position: int, events: list[Event]) -> int | None:
        line = buffer[position : position + PADDING_BYTES_MAX]
        if line.startswith(b"--"):
            events.append(End())
            self._state = _State.DONE
            return None
        padding, newline, _ = line.partition(b"\n")
        # A lone "-" at the end may become the "--" that closes.
        if line != b"-" and (padding.strip(b" \t\r") or len(padding) == PADDING_BYTES_MAX):
            raise BadRequest("bad multipart boundary line")
        if not newline:
            self._held = line
            return None
        self._parts_left -= 1
        if self._parts_left < 0:
            raise TooLarge(f"multipart body has more than {self._parts_max} parts")
        self._state = _State.HEADERS
        # The newline stays: an empty line right behind it is a part without headers.
        return position + len(padding)

    def _headers(self, buffer: bytes, position: int, events: list[Event]) -> int | None:
        stop = position + self._header_bytes_max + 3
        end = _HEADERS_END.search(buffer, max(position, self._scanned_bytes), stop)
        size = (end.start() if end else _headers_so_far(buffer)) - position
        if size > self._header_bytes_max:
            raise TooLarge(f"multipart headers are larger than {self._header_bytes_max} bytes")
        if end is None:
            self._held = buffer[position:]
            return None
        events.append(PartBegin(_parsed_headers(buffer[position : end.start()])))
        self._state = _State.BODY
        return end.end()

    def _body(self, buffer: bytes, position: int, events: list[Event]) -> int | None:
        found = buffer.find(self._delimiter, position)
        end = found if found >= 0 else self._safe_end(buffer, position)
        if end > position:
            events.append(PartData(memoryview(buffer)[position:end]))
        if found < 0:
            self._held = buffer[end:]
            return None
        events.append(PartEnd())
        self._state = _State.DELIMITER
        return found + len(self._delimiter)

    def _safe_end(self, buffer: bytes, position: int) -> int:
        """Where a delimiter that is not yet complete may begin; the end if nowhere."""
        candidate = buffer.find(b"\r", max(position, len(buffer) - len(self._delimiter) + 1))
        while candidate >= 0:
            if self._delimiter.startswith(buffer[candidate:]):
                return candidate
            candidate = buffer.find(b"\r", candidate + 1)
        return len(buffer)


def _headers_so_far(buffer: bytes) -> int:
    """Where the headers in ``buffer`` end if the empty line behind them has begun."""
    return next((len(buffer) - len(t) for t in (b"\n\r", b"\n") if buffer.endswith(t)), len(buffer))


def _parsed_headers(block: bytes) -> dict[str, str]:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("multipart headers are not UTF-8") from None
    headers: dict[str, str] = {}
    unfolded = re.sub(r"\r?\n[ \t]+", " ", text)
    for line in filter(None, (line.rstrip("\r") for line in unfolded.split("\n"))):
        name, colon, value = line.partition(":")
        name = name.strip(" \t").lower()
        if not colon or not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value):
            raise BadRequest("bad part header")
        headers[name] = value.strip(" \t")
    return headers


# --- writers


@dataclass(frozen=True, slots=True)
class AttPart:
    """An attachment to be sent: ``length`` in bytes as sent, so of the gzipped form if it is."""

    name: str
    content_type: str
    length: int
    encoding: Literal["gzip"] | None = None


@dataclass(frozen=True, slots=True)
class Framing:
    """A body around attachments: for each of them its head, then its bytes; at the end the tail.

    ``length`` counts everything, the attachments' own bytes included. ``content_type`` is
    of this document alone when the framing stands inside another.
    """

    content_type: str
    heads: tuple[bytes, ...]
    tail: bytes
    length: int


def related(doc_json: bytes, parts: Sequence[AttPart], boundary: str) -> Framing:
    """A document and its attachments, in the order of ``parts``, as multipart/related.

    Without attachments it is the document alone, as application/json.
    """
    if not parts:
        return Framing("application/json", (), doc_json, len(doc_json))
    delimiter = b"\r\n--" + boundary.encode("ascii")
    first = delimiter[2:] + b"\r\nContent-Type: application/json\r\n\r\n" + doc_json
    heads = [delimiter + _attachment_headers(part) for part in parts]
    heads[0] = first + heads[0]
    tail = delimiter + b"--"
    return Framing(
        f'multipart/related; boundary="{boundary}"',
        tuple(heads),
        tail,
        sum(map(len, heads)) + sum(part.length for part in parts) + len(tail),
    )


def mixed_open(boundary: str) -> bytes:
    """The beginning of an ``open_revs`` answer, a multipart/mixed body."""
    return b"--" + boundary.encode("ascii")


def mixed_document(document: Framing, boundary: str) -> Framing:
    """One revision in an ``open_revs`` answer; ``document`` as ``related`` gave it."""
    head = _header("Content-Type", document.content_type) + b"\r\n\r\n"
    return _wrapped(document, head, b"\r\n--" + boundary.encode("ascii"))


def mixed_missing(error_json: bytes, boundary: str) -> bytes:
    """A missing revision in an ``open_revs`` answer; the JSON is ``{"missing": rev}``."""
    return _ERROR_HEAD + error_json + b"\r\n--" + boundary.encode("ascii")


def mixed_close() -> bytes:
    """The end of an ``open_revs`` answer, behind the last revision."""
    return b"--"


def bulk_get_document(document: Framing, boundary: str, doc_id: str, rev: str) -> Framing:
    """One document in a multipart ``_bulk_get`` answer; ``document`` as ``related`` gave it."""
    head = b"\r\n--" + boundary.encode("ascii")
    if document.heads:
        head += _header("X-Doc-Id", _percent_encoded(doc_id)) + _header("X-Rev-Id", rev)
    head += _header("Content-Type", document.content_type) + b"\r\n\r\n"
    return _wrapped(document, head, b"")


def bulk_get_error(error_json: bytes, boundary: str) -> bytes:
    """A document that cannot be given, in a multipart ``_bulk_get`` answer."""
    return b"\r\n--" + boundary.encode("ascii") + _ERROR_HEAD + error_json


def bulk_get_close(boundary: str) -> bytes:
    """The end of a multipart ``_bulk_get`` answer; CouchDB leaves it out when nothing was asked."""
    return b"\r\n--" + boundary.encode("ascii") + b"--\r\n"


def byteranges(
    content_type: str, ranges: Sequence[tuple[int, int]], size: int, boundary: str
) -> Framing:
    """Several ranges, (first, last) inclusive, of an attachment of ``size`` bytes."""
    delimiter = b"\r\n--" + boundary.encode("ascii")
    heads = [
        delimiter
        + _header("Content-Type", content_type)
        + _header("Content-Range", f"bytes {first}-{last}/{size}")
        + b"\r\n\r\n"
        for first, last in ranges
    ]
    heads[0] = heads[0][2:]
    tail = delimiter + b"--"
    bodies = sum(last - first + 1 for first, last in ranges)
    return Framing(
        f'multipart/byteranges; boundary="{boundary}"',
        tuple(heads),
        tail,
        sum(map(len, heads)) + bodies + len(tail),
    )


_ERROR_HEAD = b'\r\nContent-Type: application/json; error="true"\r\n\r\n'


def _header(name: str, value: str) -> bytes:
    """A header line behind the line before it; control characters in the value become spaces."""
    return f"\r\n{name}: {_UNSAFE.sub(' ', value)}".encode("utf-8", "replace")


def _attachment_headers(part: AttPart) -> bytes:
    lines = _header("Content-Disposition", attachment_disposition(part.name))
    lines += _header("Content-Type", part.content_type)
    lines += _header("Content-Length", str(part.length))
    if part.encoding is not None:
        lines += _header("Content-Encoding", part.encoding)
    return lines + b"\r\n\r\n"


def _wrapped(inner: Framing, before: bytes, after: bytes) -> Framing:
    heads, tail = inner.heads, inner.tail
    if heads:
        heads = (before + heads[0], *heads[1:])
    else:
        tail = before + tail
    return Framing(inner.content_type, heads, tail + after, len(before) + inner.length + len(after))
