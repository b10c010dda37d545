"""Functions of design documents that requests call: `_update`, and filters of `_changes`.

`_show`, `_list` and `_rewrite` are not run: what they make of documents is the client's business.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import orjson
from starlette.responses import Response

from divandb import document
from divandb.catalog import Known
from divandb.designs import Design
from divandb.document import Sent
from divandb.entry import Prepared
from divandb.errors import BadRequest, DivanError, Gone, NotImplementedHere
from divandb.httpd import render, respond
from divandb.httpd.call import Call, Methods, RouteTable
from divandb.httpd.documents import check_visible
from divandb.httpd.info import database_info
from divandb.replica import DELETED, Revision
from divandb.views import design as designs
from divandb.views.engine import Program

FORM = "application/x-www-form-urlencoded"
SCRUBBED = frozenset({"authorization", "cookie", "x-auth-couchdb-token"})
"""Headers that functions are not shown."""
_DECODED = frozenset({"startkey", "endkey", "key", "descending"})
"""Parameters that functions get as JSON values."""


# What a function is told of a request


def request_object(call: Call, known: Known, doc_id: str | None, body: bytes | None) -> bytes:
    """The ``req`` of CouchDB's functions, as JSON."""
    path = call.request.scope["path"]
    query = call.request.url.query
    parts = [unquote(part) for part in path.strip("/").split("/")]
    text = body.decode("utf-8", errors="replace") if body is not None else "undefined"
    told = {
        "info": database_info(call, known),
        "uuid": call.services.rng.token(16).hex(),
        "id": doc_id,
        "method": call.method,
        "requested_path": parts,
        "path": parts,
        "raw_path": f"{path}?{query}" if query else path,
        "query": {name: _parameter(name, value) for name, value in call.query.items()},
        "headers": {
            name.title(): value for name, value in call.headers.items() if name not in SCRUBBED
        },
        "body": text,
        "peer": call.address,
        "form": _form(call, text),
        "cookie": {},
        "userCtx": {"db": known.name, "name": call.user.name, "roles": call.user.roles},
    }
    return b'%b,"secObj":%b}' % (orjson.dumps(told)[:-1], known.security_json)


def _parameter(name: str, value: str) -> Any:
    if name not in _DECODED:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadRequest("invalid UTF-8 JSON") from None


def _form(call: Call, body: str) -> dict[str, str]:
    content_type = call.headers.get("content-type", "").lower()
    return dict(parse_qsl(body)) if content_type.startswith(FORM) else {}


# Filters


class Script:
    """A filter function, or the map function of a view as one."""

    def __init__(self, call: Call, design: Design, path: str, req: str | None) -> None:
        self._functions = call.services.functions
        self._program: Program = design.program
        self._path = path
        self._req = req
        """Of a filter function, as JSON."""

    async def takes(self, documents: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Which of the documents, (id, JSON), the filter lets pass. Raises ``FunctionFailed``."""
        function = "filterByView" if self._req is None else "filter"
        more = [] if self._req is None else [self._req]
        found: list[bool] = []
        while len(found) < len(documents):
            left = documents[len(found) :]
            calls = [[self._path, body.decode(), *more] for _, body in left]
            answers = await self._functions(
                self._program, function, calls, [doc_id for doc_id, _ in left]
            )
            found += [answer == "true" for answer in answers]
        return found


def filter_of(call: Call, known: Known, name: str, body: bytes) -> Script:
    """The filter function ``design/name``; raises ``NotFound``, ``BadRequest``."""
    ddoc, function = _two("filter", name)
    design = call.services.designs.get(known, ddoc)
    path = designs.function_path(design.document, "filters", function)
    req = request_object(call, known, None, body if call.method == "POST" else None)
    return Script(call, design, path, req.decode())


def view_filter_of(call: Call, known: Known, name: str) -> Script:
    """The view ``design/name`` as a filter: it lets pass what it emits something for."""
    ddoc, view = _two("view", name)
    design = call.services.designs.get(known, ddoc)
    path = designs.function_path(design.document, "views", view, "map")
    return Script(call, design, path, None)


def _two(kind: str, name: str) -> tuple[str, str]:
    parts = [unquote(part) for part in name.split("/") if part]
    if len(parts) != 2:
        raise BadRequest(f"`{kind}` must be of the form `designname/{kind}name`")
    return parts[0], parts[1]


# Update handlers


async def update(call: Call) -> Response:
    """``POST`` and ``PUT /{db}/_design/{ddoc}/_update/{name}[/{doc}]``."""
    known = call.database()
    design = call.services.designs.get(known, call.path("ddoc"))
    path = designs.function_path(design.document, "updates", call.path("name"))
    doc_id = call.path("doc") if "doc" in call.request.path_params else None
    body = await call.body()
    if doc_id is not None:
        document.check_id(doc_id)
        check_visible(call, known, doc_id)
    shown = _winner(call, known, doc_id) if doc_id is not None else b"null"
    req = request_object(call, known, doc_id, body)
    (answer,) = await call.services.functions(
        design.program, "update", [[path, shown.decode(), req.decode()]], [doc_id or "null"]
    )
    changed, said = orjson.loads(answer)
    headers: dict[str, str] = {}
    status = 200
    if changed is not None:
        written, rev = await _written(call, known, changed)
        headers = {"x-couch-update-newrev": rev, "x-couch-id": quote(written, safe="")}
        status = 201
    return external(said, status, headers)


def _winner(call: Call, known: Known, doc_id: str) -> bytes:
    replica = call.services.replica
    row = replica.row(known, doc_id)
    if row.winner is None or row.flags & DELETED:
        return b"null"
    revision = Revision(row.rev, False, row.body, row.winner.attachments)
    return render.whole(replica, known, row, revision, render.Options(conflicts=True))


async def _written(call: Call, known: Known, changed: Any) -> tuple[str, str]:
    if not isinstance(changed, dict):
        raise BadRequest("Document must be a JSON object")
    kept = {
        name: value
        for name, value in changed.items()
        if name not in ("_conflicts", "_revisions", "_revs_info")
    }
    sent: Sent = document.parse(kept)
    if sent.id is None:
        raise BadRequest("Document must have an _id")
    (result,) = await call.entry.write(known, call.user, [Prepared(sent.id, sent)])
    if isinstance(result, DivanError):
        raise result
    return sent.id, result


def external(said: Any, status: int, more: Mapping[str, str]) -> Response:
    """The answer that a function wants: ``code``, ``headers``, and ``body``, ``base64`` or
    ``json``. Raises ``DivanError`` for what is none.
    """
    if not isinstance(said, dict):
        raise _bad_answer("it is not an object")
    code, headers = said.get("code", status), said.get("headers", {})
    if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code < 600:
        raise _bad_answer("its code is not one of HTTP")
    if not isinstance(headers, dict) or not all(map(_is_header, headers.items())):
        raise _bad_answer("its headers are not texts of one line")
    data, kind = _content(said)
    named = {name.lower(): value for name, value in headers.items()}
    named.pop("content-length", None)
    return Response(data, code, {"content-type": kind, **named, **more})


def _is_header(pair: tuple[str, Any]) -> bool:
    name, value = pair
    if not isinstance(value, str) or not name or not (name + value).isascii():
        return False
    return (name + value).isprintable() and ":" not in name and " " not in name


def _content(said: dict[str, Any]) -> tuple[bytes, str]:
    if "json" in said:
        return orjson.dumps(said["json"]) + b"\n", respond.JSON
    if "base64" in said:
        try:
            return base64.b64decode(str(said["base64"]), validate=True), "application/binary"
        except binascii.Error:
            raise _bad_answer("its base64 is none") from None
    body = said.get("body", "")
    if not isinstance(body, str):
        raise _bad_answer("its body is not a text")
    return body.encode(), "text/html; charset=utf-8"


def _bad_answer(why: str) -> DivanError:
    return DivanError(f"Invalid data from the function: {why}.", error="external_response_error")


# Not here


async def not_run(call: Call, *, what: str, instead: str) -> Response:
    """``_show``, ``_list``, ``_rewrite``."""
    known = call.database()
    call.services.designs.get(known, call.path("ddoc"))
    raise NotImplementedHere(f"{what} functions are not run here: {instead}")


async def temporary(call: Call) -> Response:
    """``POST /{db}/_temp_view``."""
    call.database()
    raise Gone("Temporary views are not supported in CouchDB")


def _nothing(what: str, instead: str) -> Methods:
    handler = partial(not_run, what=what, instead=instead)
    return dict.fromkeys(("GET", "POST", "PUT", "DELETE"), handler)


_SHOW = _nothing("Show", "read the document and render it in the client.")
_LIST = _nothing("List", "query the view and render its rows in the client.")
_REWRITE = _nothing("Rewrite", "let a proxy before the database rewrite paths.")
_UPDATE: Methods = dict.fromkeys(("POST", "PUT"), update)

ROUTES: RouteTable = [
    ("/{db}/_temp_view", {"POST": temporary}),
    ("/{db}/_design/{ddoc}/_update/{name}", _UPDATE),
    ("/{db}/_design/{ddoc}/_update/{name}/{doc:path}", _UPDATE),
    ("/{db}/_design/{ddoc}/_show/{rest:path}", _SHOW),
    ("/{db}/_design/{ddoc}/_list/{rest:path}", _LIST),
    ("/{db}/_design/{ddoc}/_rewrite/{rest:path}", _REWRITE),
]
