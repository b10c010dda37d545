"""Many documents at once: ``_bulk_docs`` and ``_bulk_get``."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from divandb import document, revtree
from divandb.catalog import Known
from divandb.document import Sent
from divandb.entry import Prepared
from divandb.errors import BadRequest, DivanError, IllegalDocId, NotFound
from divandb.httpd import elsewhere, related, render, respond
from divandb.httpd.call import Call, json_object
from divandb.httpd.documents import check_visible, pick
from divandb.httpd.negotiate import wants_multipart
from divandb.httpd.render import Options
from divandb.replica import Revision, Row
from divandb.revtree import Attachment

YIELD_EVERY = 64


class Found(msgspec.Struct, frozen=True):
    """One row of `_bulk_get`: what was asked for, and the revisions, or what is wrong with it."""

    id: str
    rev: str
    row: Row | None
    revisions: list[Revision | str]
    refusal: DivanError | None = None
    options: Options = Options()


async def bulk_docs(call: Call) -> Response:
    """``POST /{db}/_bulk_docs``."""
    known = call.database()
    call.check_json_content_type()
    body = await call.json_object()
    docs = _list(body, "docs", call.services.limits.bulk_docs_max)
    new_edits = body.get("new_edits", True)
    if not isinstance(new_edits, bool):
        raise BadRequest("`new_edits` parameter must be a boolean.")
    sents = await _parsed(docs)
    ids = [sent.id or call.entry.new_id() for sent in sents]
    if not new_edits:
        for sent in sents:
            document.ancestry_of(sent)
    results = await _write(call, known, ids, sents, new_edits)
    rows = [_row(doc_id, result) for doc_id, result in zip(ids, results, strict=True)]
    if not new_edits:
        rows = [row for row in rows if "error" in row]
    return respond.json(rows, 201)


async def _parsed(docs: list[Any]) -> list[Sent]:
    sents = []
    for count, doc in enumerate(docs, 1):
        sents.append(document.parse(doc))
        if count % 1000 == 0:
            await asyncio.sleep(0)
    return sents


async def _write(
    call: Call, known: Known, ids: list[str], sents: list[Sent], new_edits: bool
) -> list[str | DivanError]:
    entry = call.entry
    results: list[str | DivanError] = [NotFound("missing")] * len(ids)
    ordinary = [place for place, doc_id in enumerate(ids) if not doc_id.startswith("_local/")]
    prepared = [Prepared(ids[place], sents[place]) for place in ordinary]
    written = await entry.write(known, call.user, prepared, new_edits=new_edits)
    for place, result in zip(ordinary, written, strict=True):
        results[place] = result
    for place, doc_id in enumerate(ids):
        if doc_id.startswith("_local/"):
            results[place] = await _write_local(call, known, doc_id, sents[place])
    return results


async def _write_local(call: Call, known: Known, doc_id: str, sent: Sent) -> str | DivanError:
    try:
        return await call.entry.write_local(known, doc_id, sent)
    except DivanError as refusal:
        return refusal


def _row(doc_id: str, result: str | DivanError) -> dict[str, Any]:
    if isinstance(result, DivanError):
        return respond.row_error(doc_id, result)
    return {"ok": True, "id": doc_id, "rev": result}


def _list(body: dict[str, Any], name: str, most: int) -> list[Any]:
    value = body.get(name)
    if value is None:
        raise BadRequest(f"POST body must include `{name}` parameter.")
    if not isinstance(value, list):
        raise BadRequest(f"`{name}` parameter must be an array.")
    if len(value) > most:
        raise BadRequest(f"`{name}` must have at most {most} entries.")
    return value


async def bulk_get(call: Call) -> Response:
    """``POST /{db}/_bulk_get``."""
    known = call.database()
    call.check_json_content_type()
    sent = await call.body()
    docs = _list(json_object(sent), "docs", call.services.limits.bulk_docs_max)
    options, latest = render.options_of(call), call.flag("latest")
    is_multipart = wants_multipart(call.headers.get("accept"), "bulk_get") is not None
    if is_multipart or options.sends_attachments or b'"atts_since"' in sent:
        missing = await _missing(call, known, docs, options, latest, is_multipart)
        passed_on = await elsewhere.answer(call, missing, sent)
        if passed_on is not None:
            return passed_on
    if is_multipart:
        found = (find(call, known, wanted, options, latest) for wanted in docs)
        return await related.bulk_get_response(call, known, found)
    return respond.stream(_rows(call, known, docs, options, latest))


async def _missing(
    call: Call, known: Known, docs: list[Any], options: Options, latest: bool, is_multipart: bool
) -> list[Attachment]:
    """Attachments that are asked for and whose bytes are not here: of the first such document."""
    for count, wanted in enumerate(docs):
        found = find(call, known, wanted, options, latest)
        if found.row is not None:
            sending = related.sending(found.options, is_multipart)
            atts = render.all_sent(found.row, found.revisions, sending)
            if missing := elsewhere.lacking(call.services.replica, atts):
                return missing
        if count % YIELD_EVERY == 0:
            await asyncio.sleep(0)
    return []


async def _rows(
    call: Call, known: Known, docs: list[Any], options: Options, latest: bool
) -> AsyncIterator[bytes]:
    yield b'{"results": ['
    for count, wanted in enumerate(docs):
        found = find(call, known, wanted, options, latest)
        yield (b"," if count else b"") + b'{"id": ' + orjson.dumps(found.id) + b', "docs": ['
        for piece in _docs(call, known, found):
            yield piece
        yield b"]}"
        if count % YIELD_EVERY == 0:
            await asyncio.sleep(0)
    yield b"]}\n"


def _docs(call: Call, known: Known, found: Found) -> Any:
    for index, revision in enumerate(found.revisions):
        comma = b"," if index else b""
        if isinstance(revision, Revision):
            assert found.row is not None
            yield comma + b'{"ok":'
            yield from render.pieces(
                call.services.replica, known, found.row, revision, found.options
            )
            yield b"}"
        else:
            yield comma + b'{"error":' + error_row(found, revision) + b"}"


def error_row(found: Found, rev: str) -> bytes:
    """What `_bulk_get` says of a revision that it cannot give."""
    refusal = found.refusal or NotFound("missing")
    return orjson.dumps(
        {"id": found.id, "rev": rev, "error": refusal.error, "reason": refusal.reason}
    )


def find(call: Call, known: Known, wanted: Any, options: Options, latest: bool) -> Found:
    """What one entry of the request asks for."""
    if not isinstance(wanted, dict):
        return _refused(
            "undefined", "undefined", BadRequest("Each of `docs` must be a JSON object.")
        )
    doc_id, rev = wanted.get("id"), wanted.get("rev")
    since = wanted.get("atts_since")
    try:
        if doc_id is None:
            raise IllegalDocId("document id missed")
        document.check_id(doc_id)
        if rev is not None:
            revtree.parse_rev(rev)
        if isinstance(since, list) and all(isinstance(known_rev, str) for known_rev in since):
            options = msgspec.structs.replace(options, atts_since=tuple(since))
        return _found(call, known, doc_id, rev, options, latest)
    except DivanError as refusal:
        shown_rev = rev if isinstance(rev, str) else "undefined"
        return _refused(doc_id if isinstance(doc_id, str) else "undefined", shown_rev, refusal)


def _refused(doc_id: str, rev: str, refusal: DivanError) -> Found:
    return Found(doc_id, rev, None, [rev], refusal)


def _found(
    call: Call, known: Known, doc_id: str, rev: str | None, options: Options, latest: bool
) -> Found:
    check_visible(call, known, doc_id)
    row = call.services.replica.row(known, doc_id)
    shown = row.document.shown()
    if not shown:
        return _refused(doc_id, rev or "undefined", NotFound("missing"))
    revs = [rev] if rev else [leaf.rev for leaf in shown]
    revisions = pick(call, known, row, revs, latest=latest)
    return Found(doc_id, rev or "undefined", row, revisions, None, options)


ROUTES = [
    ("/{db}/_bulk_docs", {"POST": bulk_docs}),
    ("/{db}/_bulk_get", {"POST": bulk_get}),
]
