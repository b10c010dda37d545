"""Write Events: one accepted change as it travels, encoded once at its origin.

An event is a MessagePack array, so that any language can read it:

    [version, slot, origin, oseq, after, mark, stamp, kind, database, generation, payload]

    version     1
    slot        the place of the master that accepted the write, for people
    origin      64-bit signed number: who numbered it (``vector.Origin``)
    oseq        the write's number there
    after, mark whoever contains this origin's writes up to ``after``, and applies this message,
                contains them up to ``mark`` (Rule 4); equal if it completes nothing
    stamp       hybrid-logical-clock time: milliseconds << 16 | counter
    kind        "document", "register", "created", "dropped", "blob"
    database    its name; "" for registers of the cluster
    generation  of the database
    payload     MessagePack of its own, by kind: see the classes below

A document's event carries its whole state, so that a later one may stand for an earlier one and the
order of arrival does not matter. A blob's event is a chunk of an attachment, sent ahead of the
document that refers to it; it is no write: its oseq is that of the document's.

Whoever meets another version keeps the bytes and does not guess (``UnknownVersion``).
"""

from typing import Any

import msgspec

from divandb.merge import Document

VERSION = 1
NUMBER_MAX = 2**63 - 1
CHUNK_BYTES = 256 * 1024
"""Pieces of an attachment have this size, but for the last."""
CHUNKS_MAX = 2**24
DOCUMENT = "document"
REGISTER = "register"
CREATED = "created"
DROPPED = "dropped"
BLOB = "blob"


class Unreadable(Exception):
    """The bytes are no event that this version can apply; ``reason`` is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownVersion(Unreadable):
    """An event of another version: to be kept until an upgrade can read it."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """The envelope."""

    version: int
    slot: str
    origin: int
    oseq: int
    after: int
    mark: int
    stamp: int
    kind: str
    database: str
    generation: int
    payload: bytes


class DocumentState(msgspec.Struct, frozen=True, array_like=True):
    """A document: its leaves and context, and the bodies of the leaves, in their order."""

    id: str
    document: Document
    bodies: tuple[bytes, ...]


class RegisterValue(msgspec.Struct, frozen=True, array_like=True):
    """A last-writer-wins value; ``None`` is a deletion. Its dot is that of the write that set it.

    ``seen`` is what the writer's node contained: a `_local` document shows only where that much is.
    """

    kind: str
    key: str
    value: bytes | None
    stamp: int
    origin: int
    oseq: int
    seen: dict[int, int]


class Creation(msgspec.Struct, frozen=True, array_like=True):
    """A database's beginning."""

    options: str
    created_ms: int


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A piece of an attachment, by the SHA-256 of all its stored bytes."""

    blob: bytes
    index: int
    length: int
    """Of the whole attachment, in bytes."""
    data: bytes


_PAYLOADS: dict[str, type[Any]] = {
    DOCUMENT: DocumentState,
    REGISTER: RegisterValue,
    CREATED: Creation,
    DROPPED: type(None),
    BLOB: Chunk,
}
_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Event).decode
_decoders = {kind: msgspec.msgpack.Decoder(payload) for kind, payload in _PAYLOADS.items()}
Payload = DocumentState | RegisterValue | Creation | Chunk | None


def pack(payload: Payload) -> bytes:
    """A payload's bytes."""
    return _encode(payload)


def encode(event: Event) -> bytes:
    """The event's bytes."""
    return _encode(event)


def decode(data: bytes) -> Event:
    """The envelope; raises ``UnknownVersion`` or ``Unreadable``."""
    version = _version(data)
    if version not in (0, VERSION):
        raise UnknownVersion(f"event version {version}, this node reads {VERSION}")
    try:
        return _decode_envelope(data)
    except msgspec.MsgspecError as fault:
        raise Unreadable(f"damaged event: {fault}") from None


def open_payload(event: Event) -> Payload:
    """What the envelope holds; raises ``Unreadable``."""
    decoder = _decoders.get(event.kind)
    if decoder is None:
        raise UnknownVersion(f"event kind {event.kind!r}")
    try:
        opened: Payload = decoder.decode(event.payload)
    except msgspec.MsgspecError as fault:
        raise Unreadable(f"damaged {event.kind} event: {fault}") from None
    if not _is_sound(opened):
        raise Unreadable(f"damaged {event.kind} event: its parts do not fit")
    return opened


def _is_sound(payload: Payload) -> bool:
    """May it be applied without a second look?"""
    if isinstance(payload, DocumentState):
        leaves = payload.document.leaves
        whole = len(leaves) == len(payload.bodies) and all(leaf.ancestry for leaf in leaves)
        numbers = [*payload.document.context.values(), *(leaf.pos for leaf in leaves)]
        return whole and all(0 <= number <= NUMBER_MAX for number in numbers)
    if isinstance(payload, Chunk):
        chunks = max(-(-payload.length // CHUNK_BYTES), 1)
        return 0 <= payload.index < chunks <= CHUNKS_MAX and len(payload.data) <= CHUNK_BYTES
    return True


def _version(data: bytes) -> int:
    """The small number that leads the array, as it will in every version; 0 if there is none."""
    start = {0x90: 1, 0xD0: 3}.get(data[0] & 0xF0, 0) if data else 0
    first = data[start] if 0 < start < len(data) else 0
    return first if first < 0x80 else 0
