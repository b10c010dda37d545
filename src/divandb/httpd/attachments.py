"""``/{db}/{doc}/{attachment}``: one attachment, streamed both ways.

An attachment stored gzipped is sent as it is to who takes gzip, and unpacked on the way to others;
ranges are of those stored plain. Writing one makes a new revision of its document that keeps all
the rest.
"""

from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import msgspec
import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from divandb import document
from divandb.attachments import DEFAULT_TYPE, Received
from divandb.catalog import Known
from divandb.document import Sent
from divandb.entry import Prepared
from divandb.errors import BadRequest, Conflict, DivanError, NotFound, TooLarge
from divandb.httpd import documents, elsewhere, multipart, respond
from divandb.httpd.call import Call
from divandb.httpd.documents import check_visible, given_rev
from divandb.httpd.multipart import Framing
from divandb.httpd.negotiate import accepts_gzip
from divandb.httpd.ranges import content_range, parse_range
from divandb.httpd.related import abort, check_md5, in_turns, is_gzip, too_large
from divandb.httpd.render import unpacked
from divandb.replica import DELETED, Replica, Revision
from divandb.revtree import Attachment

WHOLE_BYTES_MAX = 256 * 1024
"""An answer up to this size is sent in one piece."""
MISSING = "Document is missing attachment"
NEW = Sent(None, None, False, {}, {}, None)
"""The document of an attachment that is written without a revision."""


def _doc_id(call: Call) -> str:
    doc_id = documents.doc_id_of(call)
    if doc_id.startswith("_local/"):
        raise BadRequest("_local documents do not accept attachments.")
    return doc_id


async def refuse_local(call: Call) -> Response:
    """``/{db}/_local/{doc}/{attachment}``: there are none."""
    call.database()
    raise BadRequest("_local documents do not accept attachments.")


# --- reading


async def get(call: Call) -> Response:
    """``GET`` and ``HEAD /{db}/{doc}/{attachment}``."""
    known, doc_id = call.database(), _doc_id(call)
    revision = _opened(call, known, doc_id)
    att = _find(revision, call.path("att"))
    tag = f'"{b64encode(att.digest).decode()}"'
    if _has(call.headers.get("if-none-match", ""), tag):
        return respond.not_modified(tag)
    if call.method != "HEAD" and (passed_on := await elsewhere.answer(call, [att])) is not None:
        return passed_on
    headers = _headers(att, tag)
    return _packed(call, att, headers) if att.encoding else _plain(call, att, headers)


def _opened(call: Call, known: Known, doc_id: str) -> Revision:
    """The revision asked for, or the winner; raises ``NotFound`` in CouchDB's words."""
    row = call.services.replica.row(known, doc_id)
    rev = call.query.get("rev")
    if rev is None:
        if row.winner is None:
            raise NotFound(documents.MISSING)
        if row.winner.deleted:
            raise NotFound(documents.DELETED_REASON)
        rev = row.winner.rev
    found = documents.pick(call, known, row, [rev], latest=call.flag("latest"))[0]
    if isinstance(found, str):
        raise NotFound(documents.MISSING)
    check_visible(call, known, row.id)
    return found


def _find(revision: Revision, name: str) -> Attachment:
    for att in revision.attachments:
        if att.name == name:
            return att
    raise NotFound(MISSING)


def _has(tags: str, tag: str) -> bool:
    return tag in [each.strip().removeprefix("W/") for each in tags.split(",")]


def _headers(att: Attachment, tag: str) -> dict[str, str]:
    return {
        "content-type": _header_text(att.content_type),
        "etag": tag,
        "cache-control": "must-revalidate",
        "accept-ranges": "none" if att.encoding else "bytes",
        # What a client uploaded must not run as a script of this server's.
        "content-security-policy": "sandbox",
    }


def _header_text(value: str) -> str:
    """A stored text as a header can carry it: UTF-8, byte by byte, without control characters."""
    clean = "".join(char if char.isprintable() else " " for char in value)
    return clean.encode("utf-8", "replace").decode("latin-1")


def _packed(call: Call, att: Attachment, headers: dict[str, str]) -> Response:
    """An attachment stored gzipped, as the client takes it."""
    stored = call.services.replica.blob(att.blob)
    headers["vary"] = "accept-encoding"
    if accepts_gzip(call.headers.get("accept-encoding")):
        headers["content-encoding"] = att.encoding
        return _answer(call, stored, att.encoded_length, headers)
    return _answer(call, unpacked(stored, att.length), att.length, headers)


def _plain(call: Call, att: Attachment, headers: dict[str, str]) -> Response:
    """An attachment stored as it was sent: all of it, or the ranges asked for."""
    replica = call.services.replica
    wanted = call.headers.get("range")
    if call.headers.get("if-range", headers["etag"]) != headers["etag"]:
        wanted = None
    ranges = parse_range(wanted, att.length)
    if ranges is None:
        return _answer(call, replica.blob(att.blob), att.length, headers)
    if len(ranges) > 1:
        return _several(call, att, ranges, headers)
    first, last = ranges[0]
    headers["content-range"] = content_range(first, last, att.length)
    return _answer(call, replica.blob(att.blob, first, last + 1), last + 1 - first, headers, 206)


def _several(
    call: Call, att: Attachment, ranges: list[tuple[int, int]], headers: dict[str, str]
) -> Response:
    boundary = call.services.rng.token(16).hex()
    framing = multipart.byteranges(att.content_type, ranges, att.length, boundary)
    headers["content-type"] = framing.content_type
    chunks = _framed(call.services.replica, att, ranges, framing)
    return _answer(call, chunks, framing.length, headers, 206)


def _framed(
    replica: Replica, att: Attachment, ranges: list[tuple[int, int]], framing: Framing
) -> Iterator[bytes]:
    for head, (first, last) in zip(framing.heads, ranges, strict=True):
        yield head
        yield from replica.blob(att.blob, first, last + 1)
    yield framing.tail


def _answer(
    call: Call, chunks: Iterator[bytes], size_bytes: int, headers: dict[str, str], status: int = 200
) -> Response:
    headers["content-length"] = str(size_bytes)
    if call.method == "HEAD":
        return Response(None, status, headers)
    if size_bytes <= WHOLE_BYTES_MAX:
        return Response(b"".join(chunks), status, headers)
    return StreamingResponse(in_turns(chunks), status, headers)


# --- writing


async def put(call: Call) -> Response:
    """``PUT /{db}/{doc}/{attachment}``."""
    known, doc_id = call.database(), _doc_id(call)
    name = document.check_attachment_name(call.path("att"))
    # What can be refused now is refused before the bytes come.
    base = _base(call, known, doc_id)
    content_type = _content_type(call)
    received = await _receive(call, name, content_type)
    entries = {**base.attachments, name: {"follows": True, "content_type": content_type}}
    sent = msgspec.structs.replace(base, attachments=entries)
    rev = await _write(call, known, Prepared(doc_id, sent, {name: received}))
    path = "/".join(quote(part, safe="") for part in (known.name, *_id_parts(doc_id), name))
    headers = {**respond.etag(rev), "location": call.own_url(path)}
    return respond.json({"ok": True, "id": doc_id, "rev": rev}, 201, headers)


async def delete(call: Call) -> Response:
    """``DELETE /{db}/{doc}/{attachment}``."""
    known, doc_id, name = call.database(), _doc_id(call), call.path("att")
    if given_rev(call) is None:
        _find(_opened(call, known, doc_id), name)
        raise Conflict
    base = _base(call, known, doc_id)
    if name not in base.attachments:
        raise NotFound(MISSING)
    entries = {other: entry for other, entry in base.attachments.items() if other != name}
    sent = msgspec.structs.replace(base, attachments=entries)
    rev = await _write(call, known, Prepared(doc_id, sent))
    return respond.ok(id=doc_id, rev=rev)


def _base(call: Call, known: Known, doc_id: str) -> Sent:
    """The document that gets another attachment, its others as stubs; raises ``Conflict``."""
    check_visible(call, known, doc_id)
    rev = given_rev(call)
    replica = call.services.replica
    if rev is None:
        winner = replica.winner(known, doc_id)
        if winner is not None and not winner[1] & DELETED:
            raise Conflict
        return NEW
    revision = replica.revision(known, replica.row(known, doc_id), rev)
    if revision is None:
        raise _missing_rev()
    return document.parse(orjson.loads(revision.body))


def _missing_rev() -> Conflict:
    """CouchDB's answer here to a revision that it does not have."""
    refusal = Conflict("missing_rev")
    refusal.error = NotFound.error
    return refusal


async def _write(call: Call, known: Known, prepared: Prepared) -> str:
    results = await call.entry.write(known, call.user, [prepared])
    if isinstance(results[0], DivanError):
        raise results[0]
    return results[0]


def _id_parts(doc_id: str) -> list[str]:
    """An id as it stands in a path: only the slash of ``_design/`` separates."""
    return doc_id.split("/", 1) if doc_id.startswith("_design/") else [doc_id]


def _content_type(call: Call) -> str:
    """The type to store: header bytes as text, without control characters."""
    raw = call.headers.get("content-type", DEFAULT_TYPE).encode("latin-1")
    return "".join(char if char.isprintable() else " " for char in raw.decode("utf-8", "replace"))


async def _receive(call: Call, name: str, content_type: str) -> Received:
    """The request's body as an attachment; nothing of it is kept when it is refused."""
    packed = is_gzip(call.headers.get("content-encoding", "identity"))
    announced = call.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > call.services.limits.attachment_bytes_max:
        raise too_large(name)
    upload = call.entry.upload(content_type, packed=packed)
    try:
        async for data in _body(call):
            await upload.feed(data)
        digest = call.headers.get("content-md5")
        if digest is not None:
            check_md5(upload, digest)
        return await upload.finish()
    except TooLarge:
        await abort(upload)
        raise too_large(name) from None
    except DivanError:
        await abort(upload)
        raise


async def _body(call: Call) -> AsyncIterator[bytes]:
    """The body as it was sent, which for a packed attachment is as it will be stored."""
    try:
        async for data in call.request.stream():
            if data:
                yield data
    except ClientDisconnect:
        raise BadRequest("The request ended before its body did.") from None


_METHODS = {"GET": get, "PUT": put, "DELETE": delete}

ROUTES = [
    ("/{db}/_local/{local}/{att:path}", dict.fromkeys(_METHODS, refuse_local)),
    ("/{db}/_design/{ddoc}/{att:path}", _METHODS),
    ("/{db}/{doc}/{att:path}", _METHODS),
]
