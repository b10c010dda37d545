"""A document as JSON: from what a client sent to the bytes that will be sent back.

Rules:

1. The stored body is the answer to a plain GET: ``{"_id":…,"_rev":…,["_deleted":true,]members…
   [,"_attachments":{stubs}]}``. It is encoded once, here, and never parsed again to be served.
2. A revision's hash is CouchDB's: MD5 over deletion, parent, members in the order sent, and
   attachments. So the same edit on two masters, or on CouchDB, is one revision.
3. Members that begin with an underscore are CouchDB's. Those that only answers carry are dropped,
   the ones below are taken, any other is refused.
"""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b, md5
from typing import Any

import msgspec
import orjson

from divandb import etf
from divandb.errors import BadRequest, DocValidation, IllegalDocId
from divandb.revtree import HASH_CHARS_MAX, POS_MAX, Attachment, hash_bytes, parse_rev

ID_BYTES_MAX = 7168
# A list of five: deleted, the parent's position, its hash, the members, the attachments.
_LIVING_TERM = b"\x83l\x00\x00\x00\x05d\x00\x05false"
_DELETED_TERM = b"\x83l\x00\x00\x00\x05d\x00\x04true"
_ANSWER_ONLY = frozenset(
    {"_conflicts", "_deleted_conflicts", "_local_seq", "_revs_info", "_removed"}
)
_KNOWN = _ANSWER_ONLY | {"_id", "_rev", "_deleted", "_attachments", "_revisions"}
_REPLICATOR_MEMBERS = frozenset(
    {
        "_replication_id",
        "_replication_state",
        "_replication_state_time",
        "_replication_state_reason",
        "_replication_stats",
        "_access",
    }
)


class Sent(msgspec.Struct, frozen=True):
    """A document as a client sent it, checked; ``members`` are its own, without underscores."""

    id: str | None
    rev: str | None
    deleted: bool
    members: dict[str, Any]
    attachments: dict[str, Any]
    revisions: tuple[int, tuple[str, ...]] | None


def check_id(doc_id: object) -> str:
    """``doc_id`` if it may name a document; raises ``IllegalDocId`` in CouchDB's words."""
    if not isinstance(doc_id, str):
        raise IllegalDocId("Document id must be a string")
    if doc_id == "":
        raise IllegalDocId("Document id must not be empty")
    if doc_id[0] == "_":
        if not doc_id.startswith(("_design/", "_local/")):
            raise IllegalDocId("Only reserved document ids may start with underscore.")
        if doc_id in ("_design/", "_local/"):
            raise IllegalDocId(f"Illegal document id `{doc_id}`")
    if len(doc_id) > ID_BYTES_MAX // 4 and len(doc_id.encode()) > ID_BYTES_MAX:
        raise IllegalDocId(f"Document id is longer than {ID_BYTES_MAX} bytes")
    return doc_id


def parse(value: object) -> Sent:
    """Check a decoded JSON document; raises ``BadRequest`` and its kin in CouchDB's words."""
    if not isinstance(value, dict):
        raise BadRequest("Document must be a JSON object")
    members = {}
    for name, member in value.items():
        if name[:1] != "_" or name in _REPLICATOR_MEMBERS:
            members[name] = member
        elif name not in _KNOWN:
            raise DocValidation(f"Bad special document member: {name}")
    if len(members) == len(value):
        return Sent(None, None, False, members, {}, None)
    doc_id = check_id(value["_id"]) if "_id" in value else None
    rev = value.get("_rev")
    if rev is not None and rev != "":
        parse_rev(rev)
    deleted = value.get("_deleted", False)
    if not isinstance(deleted, bool):
        raise DocValidation("_deleted must be a boolean")
    attachments = _attachments(value) if "_attachments" in value else {}
    revisions = _revisions(value) if "_revisions" in value else None
    return Sent(doc_id, rev or None, deleted, members, attachments, revisions)


def _attachments(value: dict[str, Any]) -> dict[str, Any]:
    attachments = value["_attachments"]
    if not isinstance(attachments, dict):
        raise DocValidation("Attachments must be a JSON object")
    for name, entry in attachments.items():
        check_attachment_name(name)
        if not isinstance(entry, dict):
            raise BadRequest("Invalid attachment: an attachment must be a JSON object")
    return attachments


def check_attachment_name(name: str) -> str:
    """``name`` if it may name an attachment; raises ``BadRequest`` in CouchDB's words."""
    if name == "":
        raise BadRequest("Attachment name must not be empty")
    if name[0] == "_":
        raise BadRequest(f"Attachment name '{name}' starts with prohibited character '_'")
    return name


def _revisions(value: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    revisions = value["_revisions"]
    if not isinstance(revisions, dict):
        raise DocValidation("_revisions must be a JSON object")
    start, ids = revisions.get("start"), revisions.get("ids")
    if not isinstance(start, int) or isinstance(start, bool):
        raise DocValidation("_revisions.start isn't an integer.")
    if not isinstance(ids, list):
        raise DocValidation("_revisions.ids isn't a array.")
    if not all(
        isinstance(rev_hash, str) and 0 < len(rev_hash) <= HASH_CHARS_MAX for rev_hash in ids
    ):
        raise DocValidation("RevId isn't a string")
    if start > POS_MAX:
        raise DocValidation("_revisions.start is too large.")
    if not ids or start < 0:
        raise DocValidation("_revisions must have ids, and a start that is not negative")
    return start, tuple(ids[: max(start, 1)])


def ancestry_of(sent: Sent) -> tuple[int, tuple[str, ...]]:
    """Position and ancestry of a document sent with ``new_edits=false``."""
    if sent.revisions is not None:
        return sent.revisions
    if sent.rev is None:
        raise BadRequest(
            "When `new_edits: false`, the document needs `_rev` or `_revisions` specified"
        )
    pos, rev_hash = parse_rev(sent.rev)
    return pos, (rev_hash,)


def dump_members(members: dict[str, Any]) -> bytes:
    """The document's own members as JSON; raises ``BadRequest`` for more than 254 levels."""
    try:
        return orjson.dumps(members)
    except orjson.JSONEncodeError:
        raise BadRequest("The document is nested too deeply.") from None


def content_digest(members: bytes, deleted: bool, attachments: Sequence[Attachment]) -> bytes:
    """16 bytes over all that makes two revisions the same content.

    Not MD5: nodes that took two bodies for one because somebody found a collision would differ.
    """
    digest = blake2b((b"\x01" if deleted else b"\x00") + members, digest_size=16)
    for att in sorted(attachments, key=lambda att: att.name) if attachments else ():
        for part in (
            att.name.encode(),
            att.content_type.encode(),
            att.encoding.encode(),
            b"%d" % att.revpos,
            att.blob,
        ):
            digest.update(b"%d:" % len(part))
            digest.update(part)
    return digest.digest()


def rev_hash(
    parent: str | None, deleted: bool, members: dict[str, Any], attachments: Sequence[Attachment]
) -> str:
    """The hash that CouchDB gives the child of ``parent`` with this content."""
    term = bytearray(_DELETED_TERM if deleted else _LIVING_TERM)
    if parent is None:
        term += b"a\x00a\x00"
    else:
        pos, parent_hash = parse_rev(parent)
        etf.append_int(term, pos)
        etf.append_binary(term, hash_bytes(parent_hash))
    etf.append_object(term, members)
    term += b"l" + len(attachments).to_bytes(4, "big") if attachments else b""
    for att in reversed(attachments):
        term += b"h\x03"
        etf.append_binary(term, att.name.encode())
        etf.append_binary(term, att.content_type.encode())
        etf.append_binary(term, att.digest)
    term += b"jj"
    return md5(term, usedforsecurity=False).hexdigest()


def body_bytes(
    doc_id: str, rev: str, deleted: bool, members: bytes, attachments: Sequence[Attachment]
) -> bytes:
    """The bytes that will be sent (rule 1)."""
    head = _head(doc_id, rev, deleted)
    tail = stubs_member(attachments)
    if members == b"{}":
        return head + tail + b"}"
    if not tail:
        return head + b"," + members[1:]
    return head + b"," + members[1:-1] + tail + b"}"


def members_in(
    body: bytes, doc_id: str, rev: str, deleted: bool, attachments: Sequence[Attachment]
) -> bytes | None:
    """The members of which ``body_bytes`` made this body; ``None`` if it made it of nothing."""
    head, tail = _head(doc_id, rev, deleted), stubs_member(attachments) + b"}"
    between = body[len(head) : len(body) - len(tail)]
    if body != head + between + tail or between[:1] not in (b"", b","):
        return None
    return b"{" + between[1:] + b"}"


def _head(doc_id: str, rev: str, deleted: bool) -> bytes:
    head = b'{"_id":%b,"_rev":%b' % (orjson.dumps(doc_id), orjson.dumps(rev))
    return head + b',"_deleted":true' if deleted else head


def stub(att: Attachment) -> dict[str, Any]:
    """One attachment as its stub."""
    return {
        "content_type": att.content_type,
        "revpos": att.revpos,
        "digest": digest_text(att),
        "length": att.length,
        "stub": True,
    }


def digest_text(att: Attachment) -> str:
    """``md5-`` and the digest in base64, as CouchDB writes it."""
    return "md5-" + b64encode(att.digest).decode()


def stubs_member(attachments: Sequence[Attachment]) -> bytes:
    """``,"_attachments":{…}`` for the end of a body, or nothing."""
    if not attachments:
        return b""
    return b',"_attachments":' + orjson.dumps({att.name: stub(att) for att in attachments})


def without_stubs(body: bytes, attachments: Sequence[Attachment]) -> bytes:
    """``body`` without its ``_attachments`` member (it is always the last one)."""
    if not attachments:
        return body
    return body[: -len(stubs_member(attachments)) - 1] + b"}"


def with_members(body: bytes, members: dict[str, Any]) -> bytes:
    """``body`` with more members at its end: ``_conflicts`` and the like."""
    if not members:
        return body
    return body[:-1] + b"," + orjson.dumps(members)[1:]
