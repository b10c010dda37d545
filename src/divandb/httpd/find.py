"""``_find``, ``_explain``, ``_index``: Mango queries, and the design documents of their indexes."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from divandb.auth import policy
from divandb.catalog import Known
from divandb.document import Sent, check_id
from divandb.entry import Prepared
from divandb.errors import BadRequest, Conflict, DivanError, NotFound, NotImplementedHere
from divandb.finder import Found
from divandb.httpd import pieces, respond
from divandb.httpd.call import Call, RouteTable
from divandb.httpd.listing import ADMIN_ONLY
from divandb.httpd.pieces import Pieces
from divandb.httpd.respond import JSON
from divandb.mango import index, options, plan
from divandb.mango.index import Index
from divandb.mango.options import Query
from divandb.mango.plan import Plan
from divandb.replica import DELETED

SAVE_TRIES_MAX = 3
_BETWEEN = b",\r\n"


# Queries


async def find(call: Call) -> Response:
    """``POST /{db}/_find``."""
    known, query = await _query(call)
    chosen = call.services.finder.plan(known, query)
    return await pieces.answer(_found(call, known, chosen), JSON, {}, live=False)


async def explain(call: Call) -> Response:
    """``POST /{db}/_explain``."""
    known, query = await _query(call)
    chosen = call.services.finder.plan(known, query, explaining=True)
    return respond.json(plan.explained(chosen, known.name))


async def _query(call: Call) -> tuple[Known, Query]:
    if call.path("db") in ADMIN_ONLY:
        policy.check_server_admin(call.user)
    known = call.database()
    call.check_json_content_type()
    body = await call.json_object()
    given = call.query.get("partition")
    query = options.read_query(body if given is None else {**body, "partition": given})
    if query.partition:
        raise BadRequest("`partition` parameter is not supported on this database.")
    return known, query


async def _found(call: Call, known: Known, chosen: Plan) -> Pieces:
    found = Found()
    text = b'{"docs":[\r\n'
    async for page in call.services.finder.find(known, chosen, found):
        yield text + _BETWEEN.join(page)
        text = _BETWEEN
    end = b"\r\n]" if text is _BETWEEN else text + b"]"
    yield (
        end
        + b"".join(
            _BETWEEN + respond.quoted(name) + b": " + orjson.dumps(value)
            for name, value in _told(chosen.query, found)
        )
        + b"}\r\n"
    )


def _told(query: Query, found: Found) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = [("bookmark", found.bookmark or "nil")]
    if query.execution_stats:
        quorum = query.r > 1
        told.append(
            (
                "execution_stats",
                {
                    "total_keys_examined": found.keys_examined,
                    "total_docs_examined": 0 if quorum else found.docs_examined,
                    "total_quorum_docs_examined": found.docs_examined if quorum else 0,
                    "results_returned": found.returned,
                    "execution_time_ms": round(found.took_ms, 3),
                },
            )
        )
    if found.warning is not None:
        told.append(("warning", found.warning))
    return told


# Indexes


async def list_indexes(call: Call) -> Response:
    """``GET /{db}/_index``."""
    known = call.database()
    found = [index.BY_ID, *call.services.finder.indexes(known)]
    limit, skip = _list_number(call, "limit", 1), _list_number(call, "skip", 0)
    shown = [one.as_json() for one in found][skip:]
    return respond.json(
        {"total_rows": len(found), "indexes": shown if limit is None else shown[:limit]}
    )


def _list_number(call: Call, name: str, least: int) -> int | None:
    text = call.query.get(name)
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15 or int(text) < least:
        reason = "Index parameter ranges: limit > 1, skip > 0"
        raise BadRequest(reason, error="invalid_list_index_params")
    return int(text)


async def create_index(call: Call) -> Response:
    """``POST /{db}/_index``."""
    known = call.database()
    call.check_json_content_type()
    wanted = options.read_index(await call.json_object())
    if wanted.type != "json":
        raise NotImplementedHere(
            f"Indexes of type {wanted.type} are not available: there is no full-text search.",
            error="index_not_implemented",
        )
    policy.check_admin(known.security, call.user)
    made = index.new(wanted)
    made.key_of  # noqa: B018 - a bad regular expression is refused here
    assert made.ddoc is not None
    check_id(made.ddoc)
    for _ in range(SAVE_TRIES_MAX):
        document = _design(call, known, made.ddoc)
        members = index.added(document, made, wanted.given)
        if members == _members(document):
            return _answer("exists", made)
        result = await _save(call, known, made.ddoc, document, members)
        if not isinstance(result, Conflict):
            return _answer("created", made)
    raise _not_saved()


def _answer(result: str, made: Index) -> Response:
    return respond.json({"result": result, "id": made.ddoc, "name": made.name})


async def delete_index(call: Call) -> Response:
    """``DELETE /{db}/_index/{ddoc}/{type}/{name}``."""
    known = call.database()
    doc_id = index.design_id(call.path("ddoc"))
    if call.path("kind") != "json":
        raise NotFound("missing")
    policy.check_admin(known.security, call.user)
    await _delete(call, known, doc_id, call.path("name"))
    return respond.ok()


async def delete_indexes(call: Call) -> Response:
    """``POST /{db}/_index/_bulk_delete``."""
    known = call.database()
    call.check_json_content_type()
    doomed = options.read_doomed(await call.json_object())
    policy.check_admin(known.security, call.user)
    success: list[dict[str, object]] = []
    fail: list[dict[str, object]] = []
    for given in doomed:
        doc_id = index.design_id(given)
        try:
            names = [one.name for one in index.of_design(_design(call, known, doc_id))]
            if not names:
                raise NotFound("missing")
            for name in names:
                await _delete(call, known, doc_id, name)
            success.append({"id": doc_id, "ok": True})
        except DivanError as refusal:
            fail.append({"id": doc_id, "error": refusal.error})
    return respond.json({"success": success[::-1], "fail": fail[::-1]})


async def _delete(call: Call, known: Known, doc_id: str, name: str) -> None:
    for _ in range(SAVE_TRIES_MAX):
        document = _design(call, known, doc_id)
        if name not in [one.name for one in index.of_design(document)]:
            raise NotFound("missing")
        members = index.removed(document, name)
        result = await _save(call, known, doc_id, document, members)
        if not isinstance(result, Conflict):
            return
    raise _not_saved()


def _design(call: Call, known: Known, doc_id: str) -> dict[str, Any]:
    """A design document as it is now; nothing if it is not there."""
    winner = call.services.replica.winner(known, doc_id)
    if winner is None or winner[1] & DELETED:
        return {}
    document: dict[str, Any] = orjson.loads(winner[2])
    return document


def _members(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name[:1] != "_"}


async def _save(
    call: Call,
    known: Known,
    doc_id: str,
    document: Mapping[str, Any],
    members: dict[str, Any] | None,
) -> object:
    """Write a design document that stood as ``document``; ``None`` as members deletes it. Seen on
    all nodes when it is answered. A conflict is given, other refusals are raised.
    """
    kept = {} if members is None else document.get("_attachments", {})
    sent = Sent(doc_id, document.get("_rev"), members is None, members or {}, kept, None)
    (result,) = await call.entry.write(known, call.user, [Prepared(doc_id, sent)])
    if isinstance(result, DivanError) and not isinstance(result, Conflict):
        raise result
    return result


def _not_saved() -> DivanError:
    reason = "Encountered a conflict while saving the design document."
    return DivanError(reason, error="error_saving_ddoc")


ROUTES: RouteTable = [
    ("/{db}/_find", {"POST": find}),
    ("/{db}/_explain", {"POST": explain}),
    ("/{db}/_index", {"GET": list_indexes, "POST": create_index}),
    ("/{db}/_index/_bulk_delete", {"POST": delete_indexes}),
    ("/{db}/_index/{ddoc}/{kind}/{name}", {"DELETE": delete_index}),
    ("/{db}/_index/_design/{ddoc}/{kind}/{name}", {"DELETE": delete_index}),
]
