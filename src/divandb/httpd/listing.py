"""``_all_docs``, ``_design_docs`` and ``_local_docs``, and their ``queries``: documents by id.

Rows are put together in SQL and sent a page at a time. Row by row go only ``keys``, and documents
with more in them than is stored. A page is one read: what is written meanwhile may show in later
pages.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from divandb.auth import policy
from divandb.auth.users import USERS_DB
from divandb.catalog import Known
from divandb.errors import BadRequest, QueryParseError, TooLarge
from divandb.httpd import elsewhere, parameters, pieces, render
from divandb.httpd.call import Call, encode_json
from divandb.httpd.parameters import LIMIT_MAX
from divandb.httpd.pieces import Pieces
from divandb.httpd.respond import JSON
from divandb.replica import BETWEEN, DELETED, Replica, Revision, Row, Span, rest_after

PAGE_ROWS = 1000
SLICE_ROWS = 250
"""Rows of a page that is made row by row."""
LEAP_ROWS = 20_000
"""Rows that are counted or skipped at a time."""
ADMIN_ONLY = frozenset({USERS_DB, "_replicator"})
"""Databases that only server admins may list or follow."""
MULTI_KEYS = "`keys` is incompatible with `key`, `start_key` and `end_key`"
LOCAL = Span("_local/", "_local0", True, False)
DESIGN = Span("_design/", "_design0", True, False)
EVERYTHING = Span()

_UNSET: Any = msgspec.UNSET


class Query(msgspec.Struct, frozen=True):
    """What is asked for; ``start`` and ``end`` are JSON values in reading order, or unset."""

    start: Any = _UNSET
    end: Any = _UNSET
    keys: Any = None
    limit: int = LIMIT_MAX
    skip: int = 0
    descending: bool = False
    inclusive_end: bool = True
    include_docs: bool = False
    update_seq: bool = False
    conflicts: bool = False
    attachments: bool = False
    att_encoding_info: bool = False

    @property
    def options(self) -> render.Options:
        """What documents carry besides what is stored."""
        return render.Options(
            conflicts=self.conflicts,
            attachments=self.attachments,
            att_encoding_info=self.att_encoding_info,
        )


# Parameters


_FLAGS = frozenset(
    name for name in Query.__struct_fields__ if isinstance(getattr(Query(), name), bool)
)
_NUMBERS = frozenset({"limit", "skip"})
_BOUNDS = {"startkey": "start", "start_key": "start", "endkey": "end", "end_key": "end"}
_TRUE, _FALSE = ("true", True), ("false", False)
# Parameters of views: here they are only checked, as CouchDB checks them.
_CHECKS: dict[str, Callable[[Any], None]] = {
    "reduce": parameters.refuse_if(*_TRUE, reason="Reduce is invalid for map-only views."),
    "group": parameters.refuse_if(*_TRUE, reason="Invalid use of grouping on a map view."),
    "stale": parameters.one_of("ok", "update_after", name="stale"),
    "stable": parameters.one_of(*_TRUE, *_FALSE, name="stable"),
    "update": parameters.one_of(*_TRUE, *_FALSE, "lazy", name="update"),
}


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
        elif name in _NUMBERS:
            found[name] = number_of(value)
        elif name in _FLAGS:
            found[name] = parameters.boolean(value)
        elif name in _CHECKS:
            _CHECKS[name](value)
        elif name == "group_level" and number_of(value) > 0:
            raise QueryParseError("Invalid use of grouping on a map view.")
        elif name == "partition":
            raise QueryParseError("`partition` parameter is not supported on this db")
    return msgspec.structs.replace(base, **found)


def _take_keys(found: dict[str, Any], keys: Any) -> None:
    if isinstance(keys, list) and len(keys) == 1:
        found["start"] = found["end"] = keys[0]
    else:
        found["keys"] = keys


def check_query(query: Query, keys_max: int) -> Query:
    """``query`` if its parameters go together; raises ``QueryParseError`` and ``TooLarge``."""
    keys = query.keys
    if keys is None:
        return query
    if not isinstance(keys, list):
        raise QueryParseError("`keys` must be an array of strings.")
    if len(keys) > keys_max:
        raise TooLarge(f"`keys` must have at most {keys_max} entries.")
    encode_json(keys)  # each is shown again
    bounds = [bound for bound in (query.start, query.end) if bound is not _UNSET]
    if keys and bounds and not (len(keys) == 1 and bounds == [keys[0], keys[0]]):
        raise QueryParseError(MULTI_KEYS)
    return query


def span_of(query: Query, within: Span) -> Span:
    """The ids asked for, of those ``within``. All JSON that is no string comes before any id."""
    lower, upper = query.start, query.end
    lower_in, upper_in = True, query.inclusive_end
    if query.descending:
        lower, upper, lower_in, upper_in = upper, lower, upper_in, lower_in
    if upper is not _UNSET and not isinstance(upper, str):
        upper, upper_in = "", False
    span = within
    if isinstance(lower, str) and lower >= span.low:
        span = msgspec.structs.replace(span, low=lower, low_in=lower_in)
    if isinstance(upper, str) and (span.high is None or upper < span.high):
        span = msgspec.structs.replace(span, high=upper, high_in=upper_in)
    return span


# Requests


async def _list(call: Call, within: Span) -> Response:
    known = _database(call)
    base, items = Query(), call.query.multi_items()
    if call.method == "POST":
        call.check_json_content_type()
        body = await call.json_object()
        keys = body.get("keys")
        if keys is not None and not isinstance(keys, list):
            raise BadRequest("`keys` body member must be an array.")
        base = read_query(base, body.items(), decoded=True)
        base = base if keys is None else _with_keys(base, keys)
    elif "keys" in call.query:
        keys = parameters.json(call.query["keys"])
        if not isinstance(keys, list):
            raise BadRequest("`keys` parameter must be an array.")
        base = _with_keys(base, keys)
    query = check_query(read_query(base, items, decoded=False), call.services.limits.bulk_docs_max)
    return await pieces.answer(_only(_Listing(call, known, query, within)), JSON, {}, live=False)


def _with_keys(query: Query, keys: list[Any]) -> Query:
    return msgspec.structs.replace(query, keys=keys)


async def _list_queries(call: Call, within: Span) -> Response:
    known = _database(call)
    queries = (await call.json_object()).get("queries")
    if queries is None:
        raise BadRequest("POST body must include `queries` parameter.")
    if not isinstance(queries, list):
        raise BadRequest("`queries` member must be an array.")
    if not all(isinstance(query, dict) for query in queries):
        raise BadRequest("Each of `queries` must be a JSON object.")
    base = read_query(Query(), call.query.multi_items(), decoded=False)
    keys_max = call.services.limits.bulk_docs_max
    asked = [read_query(base, query.items(), decoded=True) for query in queries]
    listings = [_Listing(call, known, check_query(query, keys_max), within) for query in asked]
    return await pieces.answer(_several(listings), JSON, {}, live=False)


def _database(call: Call) -> Known:
    if call.path("db") in ADMIN_ONLY:
        policy.check_server_admin(call.user)
    return call.database()


async def _only(listing: "_Listing") -> Pieces:
    async for piece in listing.pieces():
        yield piece
    yield b"\n"


async def _several(listings: list["_Listing"]) -> Pieces:
    yield b'{"results":['
    for index, listing in enumerate(listings):
        yield BETWEEN if index else b"\r\n"
        async for piece in listing.pieces():
            yield piece
    yield b"\r\n]}\n"


# Rows


class _Listing:
    """One query's answer."""

    def __init__(self, call: Call, known: Known, query: Query, within: Span) -> None:
        self._services = call.services
        self._replica: Replica = call.services.replica
        self._known = known
        self._query = query
        self._within = within
        self._span = span_of(query, within)
        self._rows = 0

    async def pieces(self) -> Pieces:
        """The answer, a page at a time."""
        yield await self._head()
        async for page in self._by_keys() if self._query.keys is not None else self._by_span():
            yield page
            # A fast client never makes the stream wait: others must get their turn all the same.
            await asyncio.sleep(0)
        yield b"\r\n]}"

    async def _by_span(self) -> Pieces:
        query = self._query
        _, span = await self._leap(self._span, query.skip, descending=query.descending)
        if self._within is LOCAL:
            pages = self._locals(span)
        elif query.include_docs and not query.options.plain:
            pages = self._rendered(span)
        else:
            pages = self._pages(span)
        async for page in pages:
            yield page

    async def _head(self) -> bytes:
        total = await self._total()
        offset = await self._offset(total)
        head = b'{"total_rows":%b,"offset":%b' % (orjson.dumps(total), orjson.dumps(offset))
        if self._query.update_seq:
            head += b',"update_seq":' + orjson.dumps(self._update_seq())
        return head + b',"rows":[\r\n'

    def _update_seq(self) -> str | None:
        if self._query.keys is not None:
            return None
        counters = self._replica.counters(self._known)
        return self._replica.sequence(self._known, counters.seq)

    async def _total(self) -> int | None:
        if self._within is LOCAL:
            return None
        if self._within is DESIGN:
            return (await self._leap(DESIGN, LIMIT_MAX, descending=False))[0]
        return self._replica.counters(self._known).docs

    async def _offset(self, total: int | None) -> int | None:
        """How many documents come before the first row, as CouchDB counts them: of any kind."""
        if total is None or self._query.keys is not None:
            return None
        span, descending = self._span, self._query.descending
        if descending:
            before = None if span.high is None else Span(span.high, None, not span.high_in)
        else:
            before = None if span.low == "" else Span("", span.low, True, not span.low_in)
        if before is None:
            return min(total, self._query.skip)
        count, _ = await self._leap(before, total, descending=descending)
        return min(total, count + self._query.skip)

    async def _leap(self, span: Span, rows: int, *, descending: bool) -> tuple[int, Span]:
        """Pass over up to ``rows`` documents: how many they were, and what of the span is left."""
        passed = 0
        while passed < rows:
            step = min(LEAP_ROWS, rows - passed)
            count, last = self._step(span, step, descending)
            if not count:
                break
            span = rest_after(span, last, descending=descending)
            passed += count
            await asyncio.sleep(0)
        return passed, span

    def _step(self, span: Span, rows: int, descending: bool) -> tuple[int, str]:
        if self._within is not LOCAL:
            return self._replica.leap(self._known, span, rows, descending=descending)
        found = self._replica.locals(self._known, span, rows, descending=descending)
        return len(found), found[-1][0] if found else ""

    def _joined(self, text: bytes, rows: int) -> bytes:
        """The next ``rows`` rows behind those before."""
        first = self._rows == 0
        self._rows += rows
        return text if first else BETWEEN + text

    @property
    def _left(self) -> int:
        return self._query.limit - self._rows

    async def _pages(self, span: Span) -> Pieces:
        query = self._query
        while self._left > 0:
            rows = min(PAGE_ROWS, self._left)
            page = self._replica.page(
                self._known, span, rows,
                descending=query.descending, include_docs=query.include_docs,
            )  # fmt: skip
            if not page.count:
                return
            yield self._joined(page.text, page.count)
            if page.count < rows and not query.include_docs:
                return
            span = rest_after(span, page.last, descending=query.descending)

    async def _rendered(self, span: Span) -> Pieces:
        """Documents with conflicts or attachments in them."""
        while self._left > 0:
            rows = min(SLICE_ROWS, self._left)
            ids = self._replica.ids(self._known, span, rows, descending=self._query.descending)
            if not ids:
                return
            await self._arrived(ids)
            for piece in pieces.batched(self._render_rows(ids)):
                yield piece
            span = rest_after(span, ids[-1], descending=self._query.descending)

    async def _arrived(self, keys: list[Any]) -> None:
        """Wait for bytes that are to be sent and are not here; raises ``Busy``."""
        if not (self._query.include_docs and self._query.attachments):
            return
        ids = [key for key in keys if isinstance(key, str)]
        for row in self._replica.rows(self._known, ids):
            if row.winner is not None and not row.flags & DELETED:
                await elsewhere.awaited(self._services, row.winner.attachments)

    def _render_rows(self, ids: list[str]) -> Iterator[bytes]:
        for doc_id in ids:
            row = self._replica.row(self._known, doc_id)
            if row.rev and not row.flags & DELETED:  # it may have gone since its id was read
                yield self._joined(_row_head(doc_id, row.rev), 1) + b',"doc":'
                yield from self._document(row)
                yield b"}"

    def _document(self, row: Row) -> Iterator[bytes]:
        attachments = row.winner.attachments if row.winner else ()
        winner = Revision(row.rev, False, row.body, attachments)
        return render.pieces(self._replica, self._known, row, winner, self._query.options)

    # By keys

    def _chosen_keys(self) -> list[Any]:
        query = self._query
        keys = query.keys[::-1] if query.descending else query.keys
        chosen: list[Any] = keys[query.skip : query.skip + query.limit]
        prefix = self._within.low
        if not prefix:
            return chosen
        return [key for key in chosen if isinstance(key, str) and key.startswith(prefix)]

    async def _by_keys(self) -> Pieces:
        keys = self._chosen_keys()
        for start in range(0, len(keys), SLICE_ROWS):
            if self._within is not LOCAL:
                await self._arrived(keys[start : start + SLICE_ROWS])
            for piece in pieces.batched(self._key_rows(keys[start : start + SLICE_ROWS])):
                yield piece

    def _key_rows(self, keys: list[Any]) -> Iterator[bytes]:
        for key in keys:
            yield self._joined(b"", 1)
            yield from self._key_row(key)

    def _key_row(self, key: Any) -> Iterator[bytes]:
        if not isinstance(key, str):
            return _not_found(key)
        if self._within is LOCAL:
            body = self._replica.local(self._known, key)
            return _not_found(key) if body is None else iter([self._local_row(key, body)])
        if self._query.include_docs and not self._query.options.plain:
            return self._key_row_rendered(key)
        winner = self._replica.winner(self._known, key)
        return _not_found(key) if winner is None else iter([self._plain_key_row(key, *winner)])

    def _plain_key_row(self, key: str, rev: str, flags: int, body: bytes) -> bytes:
        head = _row_head(key, rev, deleted=bool(flags & DELETED))
        if not self._query.include_docs:
            return head + b"}"
        return head + b',"doc":' + (b"null" if flags & DELETED else body) + b"}"

    def _key_row_rendered(self, key: str) -> Iterator[bytes]:
        row = self._replica.row(self._known, key)
        if not row.rev:
            yield from _not_found(key)
        elif row.flags & DELETED:
            yield self._plain_key_row(key, row.rev, row.flags, b"")
        else:
            yield _row_head(key, row.rev) + b',"doc":'
            yield from self._document(row)
            yield b"}"

    # `_local` documents

    async def _locals(self, span: Span) -> Pieces:
        while self._left > 0:
            rows = min(SLICE_ROWS, self._left)
            found = self._replica.locals(self._known, span, rows, descending=self._query.descending)
            if not found:
                return
            text = BETWEEN.join([self._local_row(doc_id, body) for doc_id, body in found])
            yield self._joined(text, len(found))
            span = rest_after(span, found[-1][0], descending=self._query.descending)

    def _local_row(self, doc_id: str, body: bytes) -> bytes:
        head = _row_head(doc_id, orjson.loads(body)["_rev"])
        return head + (b',"doc":' + body if self._query.include_docs else b"") + b"}"


def _row_head(doc_id: str, rev: str, *, deleted: bool = False) -> bytes:
    quoted = orjson.dumps(doc_id)
    tail = b',"deleted":true}' if deleted else b"}"
    return b'{"id":%b,"key":%b,"value":{"rev":%b%b' % (quoted, quoted, orjson.dumps(rev), tail)


def _not_found(key: Any) -> Iterator[bytes]:
    return iter([b'{"key":' + orjson.dumps(key) + b',"error":"not_found"}'])


async def all_docs(call: Call) -> Response:
    """``GET`` and ``POST /{db}/_all_docs``."""
    return await _list(call, EVERYTHING)


async def design_docs(call: Call) -> Response:
    """``GET`` and ``POST /{db}/_design_docs``."""
    return await _list(call, DESIGN)


async def local_docs(call: Call) -> Response:
    """``GET`` and ``POST /{db}/_local_docs``."""
    return await _list(call, LOCAL)


async def all_docs_queries(call: Call) -> Response:
    """``POST /{db}/_all_docs/queries``."""
    return await _list_queries(call, EVERYTHING)


async def design_docs_queries(call: Call) -> Response:
    """``POST /{db}/_design_docs/queries``."""
    return await _list_queries(call, DESIGN)


async def local_docs_queries(call: Call) -> Response:
    """``POST /{db}/_local_docs/queries``."""
    return await _list_queries(call, LOCAL)


ROUTES = [
    ("/{db}/_all_docs", {"GET": all_docs, "POST": all_docs}),
    ("/{db}/_all_docs/queries", {"POST": all_docs_queries}),
    ("/{db}/_design_docs", {"GET": design_docs, "POST": design_docs}),
    ("/{db}/_design_docs/queries", {"POST": design_docs_queries}),
    ("/{db}/_local_docs", {"GET": local_docs, "POST": local_docs}),
    ("/{db}/_local_docs/queries", {"POST": local_docs_queries}),
]
