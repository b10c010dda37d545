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
    kind        "document", "register", "created", "dropped", "blob", "large", "mark", "passed"
    database    its name; "" for registers of the cluster
    generation  of the database
    payload     MessagePack of its own, by kind: see the classes below

A document's event carries its whole state, so that a later one may stand for an earlier one and the
order of arrival does not matter. A blob's event is a chunk of an attachment, sent ahead of the
document that refers to it; it is no write: its oseq is that of the document's. A mark carries no
write: it completes what the events before it in its partition brought, where a slot's new owner
publishes what the old one had not. "passed" goes on Replicas' Boards alone.

Whoever meets another version keeps the bytes and does not guess (``UnknownVersion``).

A peer's event brings nothing that a client may not send: what is opened here has passed the checks
below, so that names fit into headers and paths, values are the JSON that they are taken for,
numbers fit into the file, and bodies can be sent as they are.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import sha256
from typing import Annotated, Any

import msgspec
import orjson

from divandb import document
from divandb.auth import policy
from divandb.errors import DivanError
from divandb.merge import Document
from divandb.revtree import HASH_CHARS_MAX, POS_MAX, Attachment, Leaf

VERSION = 1
NUMBER_MAX = 2**63 - 1
STAMP_MAX = 2**62
"""Some two thousand years ahead: a clock that took over more could not go on from there."""
GENERATION_MAX = 2**53
CHUNK_BYTES = 256 * 1024
"""Pieces of an attachment have this size, but for the last."""
CHUNKS_MAX = 2**24
DOCUMENT = "document"
REGISTER = "register"
CREATED = "created"
DROPPED = "dropped"
BLOB = "blob"
LARGE = "large"
MARK = "mark"
PASSED = "passed"
_SLOT = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
# What ``entry`` lets clients name databases and revisions.
_DATABASE = re.compile(r"[a-z][a-z0-9_$()+/-]{0,237}|_users|_replicator|_global_changes")
_HASH_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte != ord('"'))
_REVS_LIMIT = re.compile(rb"[0-9]{1,18}")
_END = re.compile(r"[0-9a-f]{16}/[1-9][0-9]{0,17}/[0-9a-f]{16}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DELETED_MEMBER = b',"_deleted":true'

Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
Stamp = Annotated[int, msgspec.Meta(ge=0, le=STAMP_MAX)]
# MessagePack has no numbers below those of 64 bits.
Origin = Annotated[int, msgspec.Meta(le=NUMBER_MAX)]


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
    origin: Origin
    oseq: Number
    after: Number
    mark: Number
    stamp: Stamp
    kind: str
    database: str
    generation: Annotated[int, msgspec.Meta(ge=0, le=GENERATION_MAX)]
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
    stamp: Stamp
    origin: Origin
    oseq: Number
    seen: dict[Origin, Number]


class Creation(msgspec.Struct, frozen=True, array_like=True):
    """A database's beginning; 0 ms: it is known from its documents alone."""

    options: str
    created_ms: Annotated[int, msgspec.Meta(ge=0, le=STAMP_MAX >> 16)]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A piece of an attachment, by the SHA-256 of all its stored bytes."""

    blob: bytes
    index: Number
    length: Number
    """Of the whole attachment, in bytes."""
    data: bytes


class Large(msgspec.Struct, frozen=True, array_like=True):
    """An event whose bytes went ahead in chunks, since a board would not take them whole."""

    blob: bytes
    """SHA-256 of the event's bytes."""


class Passed(msgspec.Struct, frozen=True, array_like=True):
    """How far a slot's master has come: what its replicas need to take over."""

    places: list[tuple[str, Number, str, Number]]
    """(topic, partition, identity, offset) on the Masters' Board: everything before the offset is
    on this Replicas' Board, before this event.
    """
    boarded: dict[Origin, Number]
    """What of the slot's own writes is on the Masters' Board."""


_PAYLOADS: dict[str, type[Any]] = {
    DOCUMENT: DocumentState,
    REGISTER: RegisterValue,
    CREATED: Creation,
    DROPPED: type(None),
    BLOB: Chunk,
    LARGE: Large,
    MARK: type(None),
    PASSED: Passed,
}
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError)
"""What bytes may raise that are no message: text in them need not be UTF-8."""
_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Event).decode
_decoders = {kind: msgspec.msgpack.Decoder(payload) for kind, payload in _PAYLOADS.items()}
Payload = DocumentState | RegisterValue | Creation | Chunk | Large | Passed | None


def pack(payload: Payload) -> bytes:
    """A payload's bytes."""
    return _encode(payload)


def encode(event: Event) -> bytes:
    """The event's bytes."""
    return _encode(event)


def of_chunk(chunk: Chunk) -> bytes:
    """A chunk that was asked for: an event that is about no write, and completes none."""
    return encode(Event(VERSION, "", 0, 0, 0, 0, 0, BLOB, "", 0, pack(chunk)))


def mark(slot: str, origin: int, after: int, upto: int, stamp: int) -> bytes:
    """An event that brings nothing and completes what those before it brought."""
    nothing = pack(None)
    return encode(Event(VERSION, slot, origin, upto, after, upto, stamp, MARK, "", 0, nothing))


def passed(slot: str, stamp: int, payload: Passed) -> bytes:
    """An event for the slot's replicas, about no write."""
    return encode(Event(VERSION, slot, 0, 0, 0, 0, stamp, PASSED, "", 0, pack(payload)))


def split(data: bytes) -> Iterator[bytes]:
    """An event that is too large for a board: its bytes in chunks, then one that stands for it."""
    event = decode(data)
    name = sha256(data).digest()
    for index, start in enumerate(range(0, len(data), CHUNK_BYTES)):
        chunk = Chunk(name, index, len(data), data[start : start + CHUNK_BYTES])
        yield encode(
            msgspec.structs.replace(event, kind=BLOB, mark=event.after, payload=pack(chunk))
        )
    yield encode(msgspec.structs.replace(event, kind=LARGE, payload=pack(Large(name))))


def decode(data: bytes) -> Event:
    """The envelope; raises ``UnknownVersion`` or ``Unreadable``."""
    try:
        event = _decode_envelope(data)
    except _FAULTS as fault:
        _check_version(_version(data) or VERSION)
        raise Unreadable(f"damaged event: {fault}") from None
    if event.version != VERSION:
        _check_version(event.version)
    fits = event.after <= event.mark and _names_fit(event.slot, event.database, event.generation)
    if not fits:
        raise Unreadable("damaged event: its parts do not fit")
    return event


def open_payload(event: Event, *, checked: bool = False) -> Payload:
    """What the envelope holds; raises ``Unreadable``.

    ``checked``: whoever sent it has seen that its parts fit; only its form is looked at.
    """
    decoder = _decoders.get(event.kind)
    if decoder is None:
        raise UnknownVersion(f"event kind {event.kind!r}")
    try:
        opened: Payload = decoder.decode(event.payload)
    except _FAULTS as fault:
        raise Unreadable(f"damaged {event.kind} event: {fault}") from None
    if not (checked or _is_sound(event, opened)):
        raise Unreadable(f"damaged {event.kind} event: its parts do not fit")
    return opened


def _check_version(version: int) -> None:
    if version != VERSION:
        raise UnknownVersion(f"event version {version}, this node reads {VERSION}")


def _version(data: bytes) -> int:
    """The small number that leads the array, as it will in every version; 0 if there is none."""
    start = {0x90: 1, 0xD0: 3}.get(data[0] & 0xF0, 0) if data else 0
    first = data[start] if 0 < start < len(data) else 0
    return first if first < 0x80 else 0


# What may be applied without a second look. It must not be narrower than what masters accept: what
# they accept and others refuse is a hole for good.


def is_slot(name: str) -> bool:
    """May a slot be called so, or is it not known? It stands in headers."""
    return _SLOT.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _names_fit(slot: str, database: str, generation: int) -> bool:
    if not is_slot(slot):
        return False
    return not database or (generation > 0 and _DATABASE.fullmatch(database) is not None)


def _is_sound(event: Event, payload: Payload) -> bool:
    if isinstance(payload, DocumentState):
        return bool(event.database) and _is_sound_document(payload)
    if isinstance(payload, RegisterValue):
        return _is_sound_register(event.database, payload)
    if isinstance(payload, Chunk):
        return _is_sound_chunk(payload)
    if isinstance(payload, Large):
        return len(payload.blob) == 32
    if isinstance(payload, Passed) or event.kind == MARK:
        return True
    return bool(event.database) and (payload is None or _is_object(payload.options))


def _is_sound_document(state: DocumentState) -> bool:
    leaves, context = state.document.leaves, state.document.context
    # Nothing at all is what is left of a document whose database was dropped and freed since.
    if len(leaves) != len(state.bodies) or not _is_id(state.id) or state.id.startswith("_local/"):
        return False
    for origin, oseq in context.items():
        if not 0 < oseq <= NUMBER_MAX or origin > NUMBER_MAX:
            return False
    head = b'{"_id":%b,"_rev":' % orjson.dumps(state.id)
    for leaf, body in zip(leaves, state.bodies, strict=True):
        if not (is_sound_leaf(leaf, context) and _is_body(body, head, leaf)):
            return False
    return True


def _is_id(doc_id: str) -> bool:
    try:
        document.check_id(doc_id)
    except DivanError:
        return False
    return True


def is_sound_leaf(leaf: Leaf, context: dict[int, int]) -> bool:
    """Do its parts fit together, and the context?"""
    path, dots = leaf.ancestry, leaf.dots
    # An edit may go one beyond the greatest position; a parent that nobody knows has any.
    fits = 0 <= leaf.pos <= POS_MAX + 1 and len(path) <= leaf.pos + 1 and are_hashes(path)
    if not fits or not dots:
        return False
    for origin, oseq in dots:
        if not 0 < oseq <= context.get(origin, 0):
            return False
    return not leaf.attachments or all(_is_sound_attachment(att) for att in leaf.attachments)


def are_hashes(path: tuple[str, ...]) -> bool:
    """May revisions have these names behind their number? They stand in headers and in JSON."""
    if not path or "" in path or max(map(len, path)) > HASH_CHARS_MAX:
        return False
    return not "".join(path).encode().translate(None, _HASH_BYTES)


def _is_body(body: bytes, head: bytes, leaf: Leaf) -> bool:
    """Is it what is sent for this leaf, as far as a look at both ends shows?"""
    start = head + orjson.dumps(leaf.rev)
    if not body.startswith(start) or body[-1:] != b"}":
        return False
    return body.startswith(_DELETED_MEMBER, len(start)) == leaf.deleted


def _is_sound_attachment(att: Attachment) -> bool:
    numbers = (att.revpos, att.length, att.encoded_length)
    named = att.name[:1] not in ("", "_") and _CONTROL.search(att.content_type) is None
    summed = len(att.digest) == 16 and len(att.blob) == 32 and att.encoding in ("", "gzip")
    return named and summed and all(0 <= number <= NUMBER_MAX for number in numbers)


def _is_sound_chunk(chunk: Chunk) -> bool:
    chunks = max(-(-chunk.length // CHUNK_BYTES), 1)
    if len(chunk.blob) != 32 or not chunk.index < chunks <= CHUNKS_MAX:
        return False
    return len(chunk.data) == min(CHUNK_BYTES, chunk.length - chunk.index * CHUNK_BYTES)


def _is_sound_register(database: str, register: RegisterValue) -> bool:
    check = _REGISTERS.get(register.kind)
    if check is None or bool(database) == (register.kind in _OF_CLUSTER):
        return False
    return register.value is None or check(register.key, register.value)


def _is_security(key: str, value: bytes) -> bool:
    try:
        policy.parse_security(msgspec.json.decode(value))
    except (DivanError, msgspec.MsgspecError):
        return False
    return key == ""


def _is_option(key: str, value: bytes) -> bool:
    return key != "revs_limit" or _REVS_LIMIT.fullmatch(value) is not None


def _is_local(key: str, value: bytes) -> bool:
    head = b'{"_id":%b,"_rev":"0-' % orjson.dumps(key)
    return _is_id(key) and key.startswith("_local/") and value.startswith(head)


def _is_receipt(key: str, value: bytes) -> bool:
    return bool(key) and _is_object(value)


def _is_end(key: str, value: bytes) -> bool:
    return _END.fullmatch(key) is not None and _is_object(value)


def _is_removal(key: str, value: bytes) -> bool:
    return bool(key) and is_slot(key) and _is_object(value)


def _is_setting(key: str, value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return bool(key)


_REGISTERS: dict[str, Callable[[str, bytes], bool]] = {
    "security": _is_security,
    "option": _is_option,
    "local": _is_local,
    "setting": _is_setting,
    "receipt": _is_receipt,
    "ended": _is_end,
    "closed": _is_end,
    "removed": _is_removal,
}
_OF_CLUSTER = ("setting", "receipt", "ended", "closed", "removed")
"""All others are a database's."""


def _is_object(text: str | bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.MsgspecError:
        return False
