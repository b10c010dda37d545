"""``/{db}/{doc}``: reading, writing, copying and deleting one document; ``_local`` and ``_design``
ones too.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response

from divandb import document, revtree
from divandb.attachments import Received
from divandb.auth import users
from divandb.catalog import Known
from divandb.document import Sent
from divandb.entry import Prepared
from divandb.errors import BadRequest, Conflict, DivanError, NotFound
from divandb.httpd import elsewhere, pieces, related, render, respond
from divandb.httpd.call import Call
from divandb.httpd.negotiate import wants_multipart
from divandb.httpd.render import Options
from divandb.replica import DELETED, Replica, Revision, Row
from divandb.revtree import Attachment

MISSING = "missing"
LOCAL = "_local/"
DELETED_REASON = "deleted"


def doc_id_of(call: Call) -> str:
    """The document's id in the path."""
    if "ddoc" in call.request.path_params:
        return "_design/" + call.path("ddoc")
    if "local" in call.request.path_params:
        return "_local/" + call.path("local")
    return document.check_id(call.path("doc"))


def given_rev(call: Call, body: dict[str, Any] | None = None) -> str | None:
    """The revision that a request names: ``rev``, ``If-Match`` or the body's ``_rev``, which must
    agree.
    """
    tag = call.headers.get("if-match")
    given = (call.query.get("rev"), tag.strip('"') if tag else None, (body or {}).get("_rev"))
    named = [rev for rev in given if rev]
    for rev in named:
        revtree.parse_rev(rev)
    if len(set(named)) > 1:
        raise BadRequest("Document rev from request body and query string have different values")
    return named[0] if named else None


# Reading


async def get(call: Call) -> Response:
    """``GET /{db}/{doc}``."""
    known, doc_id = call.database(), doc_id_of(call)
    if doc_id.startswith(LOCAL):
        return await get_local(call)
    options = render.options_of(call)
    check_visible(call, known, doc_id)
    row = call.services.replica.row(known, doc_id)
    open_revs = call.query.get("open_revs")
    if open_revs is not None:
        return await _open_revs(call, known, row, open_revs, options)
    revision = _one_revision(call, known, row)
    tag = f'"{revision.rev}"'
    same = not (options.varies or options.sends_attachments or "rev" in call.query)
    if same and _has(call.headers, tag):
        return respond.not_modified(tag)
    return await _answer(call, known, row, revision, options)


def _one_revision(call: Call, known: Known, row: Row) -> Revision:
    """The winner, or the revision asked for; raises ``NotFound`` in CouchDB's words."""
    replica = call.services.replica
    rev = call.query.get("rev")
    shown = row.document.shown()
    if rev is None:
        if not shown:
            raise NotFound(MISSING)
        if row.flags & DELETED:
            raise NotFound(DELETED_REASON)
        return Revision(row.rev, False, row.body, shown[0].attachments)
    revtree.parse_rev(rev)
    if call.flag("latest"):
        below = revtree.descendants(shown, rev)
        rev = max(below, key=revtree.rank).rev if below else rev
    found = replica.revision(known, row, rev)
    if found is None:
        raise NotFound(MISSING)
    return found


async def _answer(
    call: Call, known: Known, row: Row, revision: Revision, options: Options
) -> Response:
    headers = {} if options.varies else respond.etag(revision.rev)
    replica = call.services.replica
    if options.sends_attachments and revision.attachments:
        passed_on = await _passed_on(call, row, [revision], options)
        if passed_on is not None:
            return passed_on
        if wants_multipart(call.headers.get("accept"), "attachments"):
            return await related.related_response(call, known, row, revision, options)
        return respond.stream(
            render.streamed(replica, known, row, revision, options), headers=headers
        )
    body = render.whole(replica, known, row, revision, options)
    return respond.json_bytes(body, headers=headers)


async def _open_revs(call: Call, known: Known, row: Row, wanted: str, options: Options) -> Response:
    found = open_revisions(call, known, row, wanted, latest=call.flag("latest"))
    is_multipart = wants_multipart(call.headers.get("accept"), "open_revs") is not None
    passed_on = await _passed_on(call, row, found, related.sending(options, is_multipart))
    if passed_on is not None:
        return passed_on
    if is_multipart:
        return await related.open_revs_response(call, known, row, found, options)
    made = _open_rows(call.services.replica, known, row, found, options)
    return await pieces.answer(made, respond.JSON, {}, live=False)


async def _passed_on(
    call: Call, row: Row, found: Iterable[Revision | str], options: Options
) -> Response | None:
    """Another node's answer, if bytes that are asked for are not here."""
    if call.method == "HEAD":
        return None
    return await elsewhere.answer(call, render.all_sent(row, found, options))


async def _open_rows(
    replica: Replica, known: Known, row: Row, found: list[Revision | str], options: Options
) -> pieces.Pieces:
    yield b"["
    for index, revision in enumerate(found):
        comma = b"," if index else b""
        if isinstance(revision, str):
            yield comma + b'{"missing":' + orjson.dumps(revision) + b"}"
            continue
        yield comma + b'{"ok":'
        for piece in render.pieces(replica, known, row, revision, options):
            yield piece
        yield b"}"
    yield b"]\n"


def open_revisions(
    call: Call, known: Known, row: Row, wanted: str, *, latest: bool
) -> list[Revision | str]:
    """The revisions that ``open_revs`` names; those that are not here as their names."""
    shown = row.document.shown()
    if wanted == "all":
        if not shown:
            raise NotFound(MISSING)
        revs = [leaf.rev for leaf in shown]
    else:
        revs = _rev_list(wanted)
    return pick(call, known, row, revs, latest=latest)


def pick(
    call: Call, known: Known, row: Row, revs: list[str], *, latest: bool
) -> list[Revision | str]:
    """These revisions, or with ``latest`` the leaves below them; a missing one as its name."""
    shown = row.document.shown()
    found: dict[str, Revision | str] = {}
    for rev in revs:
        below = [leaf.rev for leaf in revtree.descendants(shown, rev)] if latest else []
        for name in below or [rev]:
            if name not in found:
                found[name] = call.services.replica.revision(known, row, name) or name
    return list(found.values())


def _rev_list(text: str) -> list[str]:
    try:
        revs = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRequest("open_revs must be `all` or a JSON array of revisions") from None
    if not isinstance(revs, list):
        raise BadRequest("open_revs must be `all` or a JSON array of revisions")
    for rev in revs:
        revtree.parse_rev(rev)
    return revs


def check_visible(call: Call, known: Known, doc_id: str) -> None:
    """In `_users`, raises ``NotFound`` for what this user may not see."""
    if known.name == users.USERS_DB:
        users.check_visible(doc_id, call.user, known.security)


def _has(headers: Headers, tag: str) -> bool:
    sent = headers.get("if-none-match")
    return sent is not None and (sent == "*" or tag in [part.strip() for part in sent.split(",")])


# Writing


async def put(call: Call) -> Response:
    """``PUT /{db}/{doc}``."""
    known, doc_id = call.database(), doc_id_of(call)
    if doc_id.startswith(LOCAL):
        return await put_local(call)
    content_type = call.headers.get("content-type", "")
    received: dict[str, Received] = {}
    if content_type.lower().startswith("multipart/related"):
        value, received = await related.read_related(call)
    else:
        value = await call.json()
        if not isinstance(value, dict):
            raise BadRequest("Document must be a JSON object")
    rev = given_rev(call, value)
    sent = document.parse(value | {"_rev": rev} if rev else value)
    new_edits = call.flag("new_edits", True)
    return await _write(call, known, Prepared(doc_id, sent, received), new_edits=new_edits)


async def post(call: Call) -> Response:
    """``POST /{db}``: a document whose id may be chosen here."""
    known = call.database()
    call.check_json_content_type()
    value = await call.json_object()
    sent = document.parse(value)
    doc_id = sent.id or call.entry.new_id()
    if doc_id.startswith("_local/"):
        return _written(call, known, doc_id, await call.entry.write_local(known, doc_id, sent))
    new_edits = call.flag("new_edits", True)
    return await _write(call, known, Prepared(doc_id, sent), new_edits=new_edits)


async def _write(call: Call, known: Known, prepared: Prepared, *, new_edits: bool) -> Response:
    results = await call.entry.write(known, call.user, [prepared], new_edits=new_edits)
    return _written(call, known, prepared.id, results[0])


def _written(
    call: Call, known: Known, doc_id: str, result: str | DivanError, status: int = 201
) -> Response:
    if isinstance(result, DivanError):
        raise result
    if status == 201 and call.query.get("batch") == "ok":
        # It is durable all the same; the status says what the client expects of `batch=ok`.
        return respond.json({"ok": True, "id": doc_id}, 202)
    answer = respond.json({"ok": True, "id": doc_id, "rev": result}, status, respond.etag(result))
    answer.headers["location"] = respond.location(known.name, doc_id)
    return answer


async def delete(call: Call) -> Response:
    """``DELETE /{db}/{doc}``."""
    known, doc_id = call.database(), doc_id_of(call)
    if doc_id.startswith(LOCAL):
        return await delete_local(call)
    check_visible(call, known, doc_id)
    await call.body()
    rev = given_rev(call)
    winner = call.services.replica.winner(known, doc_id)
    if winner is None:
        raise NotFound(MISSING)
    if rev is None:
        raise NotFound(DELETED_REASON) if winner[1] & DELETED else Conflict()
    sent = Sent(None, rev, True, {}, {}, None)
    results = await call.entry.write(known, call.user, [Prepared(doc_id, sent)])
    return _written(call, known, doc_id, results[0], 200)


async def copy(call: Call) -> Response:
    """``COPY /{db}/{doc}`` to ``Destination``, attachments included."""
    known, doc_id = call.database(), doc_id_of(call)
    target, target_rev = _destination(call)
    body, kept = _source(call, known, doc_id)
    members = {name: value for name, value in orjson.loads(body).items() if name[0] != "_"}
    sent = Sent(None, target_rev, False, members, {}, None)
    if target.startswith(LOCAL):
        rev = await call.entry.write_local(known, target, sent)
        return _written(call, known, target, rev)
    return await _write(call, known, Prepared(target, sent, kept=kept), new_edits=True)


def _source(call: Call, known: Known, doc_id: str) -> tuple[bytes, tuple[Attachment, ...]]:
    """What is copied: the body, and the attachments that go with it."""
    if doc_id.startswith(LOCAL):
        body = call.services.replica.local(known, doc_id)
        if body is None:
            raise NotFound(MISSING)
        return body, ()
    check_visible(call, known, doc_id)
    revision = _one_revision(call, known, call.services.replica.row(known, doc_id))
    return revision.body, revision.attachments


def _destination(call: Call) -> tuple[str, str | None]:
    header = call.headers.get("destination")
    if header is None:
        raise BadRequest("Destination header is mandatory for COPY.")
    path, _, query = header.partition("?")
    if "://" in path:
        raise BadRequest("Destination URL must be relative.")
    rev = unquote(query.removeprefix("rev=")) if query.startswith("rev=") else None
    if rev is not None:
        revtree.parse_rev(rev)
    try:
        return document.check_id(unquote(path.lstrip("/"), errors="strict")), rev
    except UnicodeDecodeError:
        raise BadRequest("The Destination is not valid UTF-8.") from None


# _local documents


async def get_local(call: Call) -> Response:
    """``GET /{db}/_local/{doc}``."""
    known = call.database()
    body = call.services.replica.local(known, doc_id_of(call))
    if body is None:
        raise NotFound(MISSING)
    return respond.json_bytes(body)


async def put_local(call: Call) -> Response:
    """``PUT /{db}/_local/{doc}``."""
    known, doc_id = call.database(), doc_id_of(call)
    value = await call.json_object()
    rev = call.query.get("rev")
    sent = document.parse(value | {"_rev": rev} if rev else value)
    return _written(call, known, doc_id, await call.entry.write_local(known, doc_id, sent))


async def delete_local(call: Call) -> Response:
    """``DELETE /{db}/_local/{doc}``."""
    known, doc_id = call.database(), doc_id_of(call)
    rev = await call.entry.delete_local(known, doc_id)
    return _written(call, known, doc_id, rev, 200)


_METHODS = {"GET": get, "PUT": put, "DELETE": delete, "COPY": copy}
_LOCAL_METHODS = {"GET": get_local, "PUT": put_local, "DELETE": delete_local, "COPY": copy}

ROUTES = [
    ("/{db}", {"POST": post}),
    ("/{db}/_local/{local}", _LOCAL_METHODS),
    ("/{db}/_design/{ddoc}", _METHODS),
    ("/{db}/{doc}", _METHODS),
]
