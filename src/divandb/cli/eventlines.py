"""What `divandb events tail` prints of what it reads: a line each, for people or as JSON.

Numbers of 64 bits are texts in JSON (``origin``, ``stamp``): many who read it have 53 bits.
"""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from divandb import revtree
from divandb.clock import stamp_ms
from divandb.event import Creation, DocumentState, Event, Payload, RegisterValue
from divandb.follow import Item, Moved, Seen, Unread
from divandb.revtree import Attachment, Leaf

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.Encoder().encode


def as_json(item: Item) -> bytes:
    """One JSON object, without a line's end in it."""
    place = {"partition": item.partition, "offset": item.offset}
    if isinstance(item, Unread):
        return _encode({**place, "unreadable": item.reason, "bytes": item.size_bytes})
    if isinstance(item, Moved):
        return _encode({**place, "resumes": item.resume, "why": item.reason})
    return _encode({**place, **_envelope(item.event), **_payload(item.payload)})


def _envelope(event: Event) -> dict[str, Any]:
    return {
        "slot": event.slot,
        "origin": str(event.origin),
        "oseq": event.oseq,
        "after": event.after,
        "mark": event.mark,
        "stamp": str(event.stamp),
        "time": _time(event.stamp),
        "kind": event.kind,
        "database": event.database,
        "generation": event.generation,
    }


def _payload(payload: Payload) -> dict[str, Any]:
    if isinstance(payload, DocumentState):
        leaves = zip(payload.document.leaves, payload.bodies, strict=True)
        winner = next(iter(revtree.shown(payload.document.leaves)), None)
        return {
            "id": payload.id,
            "winner": None if winner is None else winner.rev,
            "leaves": [_leaf(leaf, body) for leaf, body in leaves],
            "context": _vector(payload.document.context),
        }
    if isinstance(payload, RegisterValue):
        value = None if payload.value is None else payload.value.decode(errors="replace")
        return {
            "register": payload.kind,
            "key": payload.key,
            "value": value,
            "set": [str(payload.stamp), str(payload.origin), payload.oseq],
            "seen": _vector(payload.seen),
        }
    if isinstance(payload, Creation):
        return {"options": _raw(payload.options.encode()), "created_ms": payload.created_ms}
    return {}


def _leaf(leaf: Leaf, body: bytes) -> dict[str, Any]:
    return {
        "rev": leaf.rev,
        "ancestry": leaf.ancestry,
        "deleted": leaf.deleted,
        "digest": leaf.digest.hex(),
        "attachments": [_attachment(one) for one in leaf.attachments],
        "dots": [[str(origin), oseq] for origin, oseq in leaf.dots],
        "body": _raw(body),
    }


def _attachment(one: Attachment) -> dict[str, Any]:
    return {
        "name": one.name,
        "content_type": one.content_type,
        "revpos": one.revpos,
        "digest": f"md5-{base64.b64encode(one.digest).decode()}",
        "length": one.length,
        "encoding": one.encoding,
        "encoded_length": one.encoded_length,
        "blob": one.blob.hex(),
    }


def _vector(vector: Mapping[int, int]) -> dict[str, int]:
    return {str(origin): oseq for origin, oseq in vector.items()}


def _raw(text: bytes) -> msgspec.Raw | str:
    """JSON as it is, or, if it is none that fits into a line, as a text."""
    try:
        if b"\n" not in text:
            return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.MsgspecError:
        pass
    return text.decode(errors="replace")


def _time(stamp: int) -> str:
    """RFC 3339, in UTC; no stamp that an event may have lies beyond the calendar."""
    moment = _EPOCH + timedelta(milliseconds=stamp_ms(stamp))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_line(item: Item) -> str:
    """For people."""
    place = f"{item.partition}:{item.offset}"
    if isinstance(item, Unread):
        return f"{place}  unreadable, {item.size_bytes} bytes: {plain(item.reason)}"
    if isinstance(item, Moved):
        return f"{place}  goes on at {item.resume}: {plain(item.reason)}"
    return f"{place}  {_shown(item)}"


def _shown(item: Seen) -> str:
    event = item.event
    parts = [_time(event.stamp), f"{event.slot}#{event.oseq}", event.kind, plain(event.database)]
    payload = item.payload
    if isinstance(payload, DocumentState):
        parts += [plain(payload.id), *_state(payload)]
    elif isinstance(payload, RegisterValue):
        parts += [payload.kind, plain(payload.key)]
        parts += ["removed"] if payload.value is None else []
    return "  ".join(part for part in parts if part)


def _state(payload: DocumentState) -> list[str]:
    shown = revtree.shown(payload.document.leaves)
    if not shown:
        return ["purged"]
    found = [plain(shown[0].rev)]
    found += ["deleted"] if shown[0].deleted else []
    found += [f"{len(shown)} leaves"] if len(shown) > 1 else []
    return found


def plain(text: str) -> str:
    """Nothing in it moves a terminal's cursor, or ends the line."""
    return text if text.isprintable() else ascii(text)
