"""``/{db}/_design/{ddoc}/_view/{view}`` and ``…/queries``, ``_info``, ``_view_cleanup``."""

import asyncio
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from divandb.auth import policy
from divandb.catalog import Known
from divandb.config import REPLICA
from divandb.designs import Design
from divandb.errors import BadRequest, NotFound, QueryParseError, TooLarge
from divandb.httpd import elsewhere, parameters, pieces, render, respond
from divandb.httpd.call import Call, RouteTable, encode_json, json_object
from divandb.httpd.forward import PASSED_ON
from divandb.httpd.listing import ADMIN_ONLY
from divandb.httpd.pieces import Pieces
from divandb.httpd.respond import JSON
from divandb.httpd.standing import FORWARDED
from divandb.replica import BETWEEN, DELETED, Replica, Revision, Row
from divandb.viewer import Serving, Viewer
from divandb.views import query as queries
from divandb.views.query import Query

BEFORE = "divan-view-before"
SLICE_ROWS = 250
"""Rows whose documents are put in at a time."""


# Parameters

_TRUE, _FALSE = ("true", True), ("false", False)
_BOUNDS = {"startkey": "start", "start_key": "start", "endkey": "end", "end_key": "end"}
_IDS = {
    "startkey_docid": "start_id", "start_key_doc_id": "start_id",
    "endkey_docid": "end_id", "end_key_doc_id": "end_id",
}  # fmt: skip
_NUMBERS = frozenset({"limit", "skip", "group_level"})
_FLAGS = frozenset(
    {"descending", "inclusive_end", "include_docs", "update_seq", "conflicts", "attachments",
     "att_encoding_info", "reduce", "group"}
)  # fmt: skip
_STALE: dict[Any, bool | str] = {"ok": False, "update_after": "lazy"}


def read_query(base: Query, items: Iterable[tuple[str, Any]], *, decoded: bool) -> Query:
    """``base`` with what the items say: from a query string, or ``decoded`` from JSON.

    Raises ``QueryParseError`` and ``BadRequest`` in CouchDB's words.
    """
    value_of = parameters.as_it_is if decoded else parameters.json
    number_of = parameters.whole if decoded else parameters.whole_text
    found: dict[str, Any] = {}
    for name, value in items:
        if name in _BOUNDS:
            found[_BOUNDS[name]] = value_of(value)
        elif name == "key":
            found["start"] = found["end"] = value_of(value)
        elif name == "keys":
            _take_keys(found, value_of(value))
        elif name in _IDS:
            found[_IDS[name]] = value
        elif name in _NUMBERS:
            found[name] = number_of(value)
        elif name in _FLAGS:
            found[name] = parameters.boolean(value)
        elif name == "stale":
            found["update"] = _stale(value)
            found["stable"] = True
        elif name == "stable":
            found["stable"] = _stable(value)
        elif name == "update":
            found["update"] = _update(value)
            found["insists"] = found["update"] is True
        elif name == "sorted":
            parameters.boolean(value)
        elif name == "partition":
            raise QueryParseError("`partition` parameter is not supported in this design doc")
    return msgspec.structs.replace(base, **found)


def _take_keys(found: dict[str, Any], keys: Any) -> None:
    if isinstance(keys, list) and len(keys) == 1:
        found["start"] = found["end"] = keys[0]
    else:
        found["keys"] = keys


def _stale(value: Any) -> bool | str:
    if value not in _STALE:
        raise QueryParseError("Invalid value for `stale`.")
    return _STALE[value]


def _stable(value: Any) -> bool:
    if value not in (*_TRUE, *_FALSE):
        raise QueryParseError("Invalid value for `stable`.")
    return value in _TRUE


def _update(value: Any) -> bool | str:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    if value == "lazy":
        return "lazy"
    raise QueryParseError("Invalid value for `update`.")


def _checked(call: Call, query: Query, serving: Serving) -> Query:
    if isinstance(query.keys, list):
        keys_max = call.services.limits.bulk_docs_max
        if len(query.keys) > keys_max:
            raise TooLarge(f"`keys` must have at most {keys_max} entries.")
        encode_json(query.keys)
    checked = queries.check(query, serving.view)
    queries.stretches(checked, serving.view)  # refuses a range that is reversed
    return checked


# Requests


async def view(call: Call) -> Response:
    """``GET`` and ``POST /{db}/_design/{ddoc}/_view/{view}``."""
    known, design = _design(call)
    base, items = Query(), call.query.multi_items()
    data = b""
    if call.method == "POST":
        call.check_json_content_type()
        data = await call.body()
        body = json_object(data)
        if "queries" in body:
            raise BadRequest("The `queries` parameter is no longer supported at this endpoint")
        keys = body.get("keys")
        if keys is not None and not isinstance(keys, list):
            raise BadRequest("`keys` body member must be an array.")
        base = read_query(base, body.items(), decoded=True)
    elif "keys" in call.query and not isinstance(parameters.json(call.query["keys"]), list):
        raise BadRequest("`keys` parameter must be an array.")
    query = read_query(base, items, decoded=False)
    queries.check(query, design.views.view(call.path("view")))
    if query.stable and query.update is not True:
        passed_on = await _at_its_node(call, known, design, data)
        if passed_on is not None:
            return passed_on
    serving = await _serving(call, known, design, query)
    answer = _Answer(call, known, serving, _checked(call, query, serving))
    return await pieces.answer(_only(answer), JSON, _headers([serving]), live=False)


async def view_queries(call: Call) -> Response:
    """``POST /{db}/_design/{ddoc}/_view/{view}/queries``."""
    known, design = _design(call)
    call.check_json_content_type()
    wanted = (await call.json_object()).get("queries")
    if wanted is None:
        raise BadRequest("POST body must include `queries` parameter.")
    if not isinstance(wanted, list):
        raise BadRequest("`queries` member must be an array.")
    if not all(isinstance(one, dict) for one in wanted):
        raise BadRequest("Each of `queries` must be a JSON object.")
    base = read_query(Query(), call.query.multi_items(), decoded=False)
    asked = [read_query(base, one.items(), decoded=True) for one in wanted]
    answers, servings = [], []
    for query in asked:
        queries.check(query, design.views.view(call.path("view")))
        serving = await _serving(call, known, design, query)
        servings.append(serving)
        answers.append(_Answer(call, known, serving, _checked(call, query, serving)))
    return await pieces.answer(_several(answers), JSON, _headers(servings), live=False)


def _headers(servings: list[Serving]) -> dict[str, str]:
    """Whether rows are of the version before the design document's."""
    return {BEFORE: "true"} if any(one.is_before for one in servings) else {}


def _design(call: Call) -> tuple[Known, Design]:
    if call.path("db") in ADMIN_ONLY:
        policy.check_server_admin(call.user)
    known = call.database()
    return known, call.services.designs.get(known, call.path("ddoc"))


async def _at_its_node(call: Call, known: Known, design: Design, body: bytes) -> Response | None:
    """The answer of the node that all of ``stable`` queries of a design document go to, so that who
    asks again gets no older rows; None if it is this one, or does not answer.
    """
    services = call.services
    own = services.config.member
    live = {peer.member.name: peer for peer in services.peers.live()}
    members = [own, *(peer.member for peer in live.values())]
    names = [one.name for one in members if one.role == REPLICA] or [one.name for one in members]
    what = f"{known.name}/{design.id}/"
    name = max(names, key=lambda one: blake2b(f"{what}{one}".encode(), digest_size=8).digest())
    if name == own.name or FORWARDED in call.headers:
        return None
    path = call.request.scope["path"]
    answer = await services.forwarder.attempt(call.request, path, live[name], body)
    if answer is not None:
        call.request.scope[PASSED_ON] = True
    return answer


async def _serving(call: Call, known: Known, design: Design, query: Query) -> Serving:
    return await call.services.viewer.serving(
        known, design, call.path("view"), query.update, stable=query.stable, insists=query.insists
    )


async def info(call: Call) -> Response:
    """``GET /{db}/_design/{ddoc}/_info``."""
    known, design = _design(call)
    told = call.services.viewer.info(known, design)
    return respond.json({"name": call.path("ddoc"), "view_index": told})


async def cleanup(call: Call) -> Response:
    """``POST /{db}/_view_cleanup``: what no design document names goes by itself."""
    known = call.services.catalog.get(call.path("db"))
    policy.check_compaction(known.security, call.user)
    call.check_json_content_type()
    await call.body()
    call.services.tidy(known.num)
    return respond.ok(202)


async def compact(call: Call) -> Response:
    """``POST /{db}/_compact/{ddoc}``: indexes have nothing to compact."""
    known = call.services.catalog.get(call.path("db"))
    policy.check_compaction(known.security, call.user)
    call.check_json_content_type()
    await call.body()
    call.services.designs.get(known, call.path("ddoc"))
    return respond.ok(202)


# Answers


async def _only(answer: "_Answer") -> Pieces:
    async for piece in answer.pieces():
        yield piece
    yield b"\n"


async def _several(answers: list["_Answer"]) -> Pieces:
    yield b'{"results":['
    for index, answer in enumerate(answers):
        yield BETWEEN if index else b"\r\n"
        async for piece in answer.pieces():
            yield piece
    yield b"\r\n]}\n"


class _Answer:
    """One query's answer."""

    def __init__(self, call: Call, known: Known, serving: Serving, query: Query) -> None:
        self._services = call.services
        self._viewer: Viewer = call.services.viewer
        self._replica: Replica = call.services.replica
        self._known = known
        self._serving = serving
        self._query = query
        self._is_first = True

    async def pieces(self) -> Pieces:
        """The answer, a page at a time."""
        reduced = self._query.is_reduced(self._serving.view)
        yield await self._head(reduced=reduced)
        async for page in self._reduced() if reduced else self._mapped():
            yield page
            # A fast client never makes the stream wait: others must get their turn all the same.
            await asyncio.sleep(0)
        yield b"\r\n]}"

    async def _head(self, *, reduced: bool) -> bytes:
        told = []
        if not reduced:
            head = await self._viewer.head(self._serving, self._query)
            told += [b'"total_rows":%d' % head.total, b'"offset":%d' % head.offset]
        if self._query.update_seq:
            told.append(b'"update_seq":' + orjson.dumps(self._update_seq()))
        return b"{" + b",".join([*told, b'"rows":[\r\n'])

    def _update_seq(self) -> str:
        built = self._serving.built
        return self._replica.sequence(self._known, built.seq if built is not None else 0)

    async def _reduced(self) -> Pieces:
        async for page in self._viewer.groups(self._known, self._serving, self._query):
            yield self._joined([b'{"key":%b,"value":%b}' % group for group in page])

    def _joined(self, rows: list[bytes]) -> bytes:
        """The next rows behind those before."""
        text = BETWEEN.join(rows)
        first, self._is_first = self._is_first, False
        return text if first else BETWEEN + text

    async def _mapped(self) -> Pieces:
        async for page in self._viewer.rows(self._known, self._serving, self._query):
            if not self._query.include_docs:
                quoted = respond.quoted
                yield self._joined([b'{"id":%b,%b}' % (quoted(one), text) for one, text in page])
                continue
            for start in range(0, len(page), SLICE_ROWS):
                some = page[start : start + SLICE_ROWS]
                await self._arrived(some)
                for piece in pieces.batched(self._with_docs(some)):
                    yield piece
                await asyncio.sleep(0)

    # Documents

    @property
    def _options(self) -> render.Options:
        query = self._query
        return render.Options(
            conflicts=bool(query.conflicts),
            attachments=query.attachments,
            att_encoding_info=query.att_encoding_info,
        )

    async def _arrived(self, page: list[tuple[str, bytes]]) -> None:
        """Wait for bytes that are to be sent and are not here; raises ``Busy``."""
        if not self._query.attachments:
            return
        ids = [target for doc_id, text in page for target, _ in [linked(doc_id, text)] if target]
        for row in self._replica.rows(self._known, ids):
            if row.winner is not None and not row.flags & DELETED:
                await elsewhere.awaited(self._services, row.winner.attachments)

    def _with_docs(self, page: list[tuple[str, bytes]]) -> Iterator[bytes]:
        for doc_id, text in page:
            yield self._joined([b'{"id":%b,%b,"doc":' % (respond.quoted(doc_id), text)])
            yield from self._document(*linked(doc_id, text))
            yield b"}"

    def _document(self, doc_id: str | None, rev: str | None) -> Iterator[bytes]:
        if doc_id is None:
            return iter([b"null"])
        if rev is None and self._options.plain:
            winner = self._replica.winner(self._known, doc_id)
            gone = winner is None or bool(winner[1] & DELETED)
            return iter([b"null" if gone or winner is None else winner[2]])
        row = self._replica.row(self._known, doc_id)
        revision = self._revision(row, rev)
        if revision is None:
            return iter([b"null"])
        return render.pieces(self._replica, self._known, row, revision, self._options)

    def _revision(self, row: Row, rev: str | None) -> Revision | None:
        if rev is not None:
            try:
                return self._replica.revision(self._known, row, rev)
            except (LookupError, BadRequest, NotFound):
                return None
        if row.winner is None or row.flags & DELETED:
            return None
        return Revision(row.rev, False, row.body, row.winner.attachments)


def linked(doc_id: str, text: bytes) -> tuple[str | None, str | None]:
    """(id, revision) of the document that belongs to a row: the one that its value names, or its
    own; None where the value names one that can be none.
    """
    if b'"_id"' in text:
        value = orjson.loads(b"{%b}" % text)["value"]
        if isinstance(value, dict) and "_id" in value:
            target, rev = value["_id"], value.get("_rev")
            known = isinstance(target, str)
            return target if known else None, rev if known and isinstance(rev, str) else None
    return doc_id, None


ROUTES: RouteTable = [
    ("/{db}/_design/{ddoc}/_view/{view}", {"GET": view, "POST": view}),
    ("/{db}/_design/{ddoc}/_view/{view}/queries", {"POST": view_queries}),
    ("/{db}/_design/{ddoc}/_info", {"GET": info}),
    ("/{db}/_view_cleanup", {"POST": cleanup}),
    ("/{db}/_compact/{ddoc}", {"POST": compact}),
]
