"""Documents out of a file: JSON lines, or one JSON array; never more than one row in memory.

A row that cannot be used is given as such, with the reason, and the rows after it still come.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from divandb.clock import Rng

ROW_BYTES_MAX = 64 * 2**20
CHUNK_BYTES = 256 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WHITESPACE = b" \t\r\n"

_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["{}\[\],]')
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_scalar = msgspec.json.Decoder(str | int)
_encode = msgspec.json.Encoder().encode


class BadRow(Exception):
    """A row is not a document that can be imported; the text says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One document of a file as it stands there."""

    number: int
    """Line, or place in the array, from 1."""
    text: bytes
    problem: str | None = None
    """Why there is no text to use."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A row that is ready to be sent."""

    number: int
    id: str
    text: bytes
    """A JSON object with `_id`."""
    has_rev: bool

    def without_rev(self) -> "Document":
        """The same as a new document."""
        members = _members.decode(self.text)
        del members["_rev"]
        return dataclasses.replace(self, text=_encode(members), has_rev=False)


def rows(file: BinaryIO, row_bytes_max: int = ROW_BYTES_MAX) -> Iterator[Row]:
    """The rows of a file of JSON lines, or of one that starts with `[`; without empty lines."""
    lines, first = _beginning(file)
    if first == b"[":
        return _array_rows(file, first, row_bytes_max)
    return _line_rows(file, first, lines, row_bytes_max)


def _beginning(file: BinaryIO) -> tuple[int, bytes]:
    """The line breaks before the first row, and the row's first byte; empty at the end."""
    lines = 0
    while (byte := file.read(1)) and (byte in WHITESPACE or byte in BYTE_ORDER_MARK):
        lines += byte == b"\n"
    return lines, byte


def _line_rows(file: BinaryIO, first: bytes, lines: int, row_bytes_max: int) -> Iterator[Row]:
    while line := first + file.readline(row_bytes_max + 1 - len(first)):
        first = b""
        lines += 1
        if len(line) > row_bytes_max:
            _skip_line(file, line)
            yield _too_large(lines, row_bytes_max)
        elif text := line.strip(WHITESPACE):
            yield Row(lines, text)


def _skip_line(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(CHUNK_BYTES)


def _array_rows(file: BinaryIO, head: bytes, row_bytes_max: int) -> Iterator[Row]:
    splitter = ArraySplitter(row_bytes_max)
    chunk, number = head, 0
    while chunk and not splitter.is_done:
        for text in splitter.feed(chunk):
            number += 1
            yield _too_large(number, row_bytes_max) if text is None else Row(number, text)
        chunk = file.read(CHUNK_BYTES)
    if not splitter.is_done:
        yield Row(number + 1, b"", "the array ends in the middle")


def _too_large(number: int, row_bytes_max: int) -> Row:
    return Row(number, b"", f"larger than {row_bytes_max / 2**20:g} MiB")


class ArraySplitter:
    """Cut the text of a JSON array into the texts of its elements, without understanding them."""

    def __init__(self, element_bytes_max: int) -> None:
        self.is_done = False
        """Whether the closing bracket was seen."""
        self._element_bytes_max = element_bytes_max
        self._element = bytearray()
        self._is_too_large = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """The elements that end in ``chunk``; None for one that is too large."""
        start = place = 0
        while not self.is_done and (found := self._next_mark(chunk, place)):
            place = found.end()
            mark = found.group()
            if mark in b"{[":
                self._depth += 1
                if self._depth == 1:
                    start = place
                continue
            is_end = mark == b"," and self._depth == 1
            if mark in b"}]":
                self._depth -= 1
                is_end = self.is_done = self._depth == 0
            if is_end:
                self._keep(chunk[start : found.start()])
                start = place
                yield from self._take()
        self._keep(chunk[start:])

    def _next_mark(self, chunk: bytes, place: int) -> re.Match[bytes] | None:
        """The next bracket or comma that is not inside a string."""
        while place < len(chunk):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(chunk, place)
            if found is None:
                return None
            place = found.end()
            if found.group() == b'"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._escaped = True
            else:
                return found
        return None

    def _keep(self, piece: bytes) -> None:
        if len(self._element) + len(piece) > self._element_bytes_max:
            self._is_too_large = True
            self._element.clear()
        if not self._is_too_large:
            self._element += piece

    def _take(self) -> Iterator[bytes | None]:
        text = bytes(self._element.strip(WHITESPACE))
        if text or self._is_too_large:
            yield None if self._is_too_large else text
        self._element.clear()
        self._is_too_large = False


def document(row: Row, id_field: str | None, rng: Rng) -> Document:
    """The document in ``row``; its id is taken from ``id_field``, from `_id`, or made at random.

    Raises ``BadRow``.
    """
    if row.problem is not None:
        raise BadRow(row.problem)
    try:
        members = _members.decode(row.text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BadRow(f"not a JSON object: {problem}") from None
    given = members.get("_id") if id_field is None else members.get(id_field)
    if given is None and id_field is not None:
        raise BadRow(f"has no member {id_field!r} to take the id from")
    name = rng.token(16).hex() if given is None else _as_id(bytes(given), id_field or "_id")
    if given is not None and id_field is None:
        return Document(row.number, name, row.text, "_rev" in members)
    members["_id"] = msgspec.Raw(_encode(name))
    return Document(row.number, name, _encode(members), "_rev" in members)


def _as_id(text: bytes, field: str) -> str:
    try:
        return str(_scalar.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRow(f"its {field!r} is neither a string nor a whole number") from None
