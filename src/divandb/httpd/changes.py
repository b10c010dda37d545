"""``_changes``: what a request may ask for, in CouchDB's words; ``feed`` does the rest."""

import re
from collections.abc import Callable, Iterable
from hashlib import md5
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from divandb.auth import policy
from divandb.catalog import Known
from divandb.errors import BadRequest
from divandb.httpd import functions, pieces, respond
from divandb.httpd.call import Call, decode_json
from divandb.httpd.feed import FRAMES, LIMIT_MAX, Feed, Filter, Reader, Wanted
from divandb.httpd.listing import ADMIN_ONLY
from divandb.mango import selector, tree
from divandb.mango.sift import sift
from divandb.replica import Replica, Sieve

# Parameters

FEEDS = frozenset(FRAMES)


def _number(text: str, least: int, not_one: str, too_small: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,100}", text):
        raise BadRequest(not_one)
    if int(text) < least:
        raise BadRequest(too_small)
    return min(int(text), LIMIT_MAX)


def _limit(text: str) -> int:
    reason = "The limit {} should be a non-negative integer"
    return _number(text, 0, reason.format("parameter"), reason.format("value"))


def _timeout(text: str) -> int:
    reason = "The timeout {} should be a non-negative integer"
    return _number(text, 0, reason.format("parameter"), reason.format("value"))


def _heartbeat(text: str) -> int:
    if text == "true":
        return LIMIT_MAX
    return _number(
        text, 1,
        "Invalid heartbeat value. Expecting a positive integer value (in milliseconds).",
        "The heartbeat value should be a positive integer (in milliseconds).",
    )  # fmt: skip


def _seq_interval(text: str) -> int:
    return _number(text, 1, "invalid_seq_interval", "invalid_seq_interval")


def _all_leaves(text: str) -> bool:
    if text not in ("main_only", "all_docs"):
        raise BadRequest("The style must be main_only or all_docs")
    return text == "all_docs"


def _feed(text: str) -> str:
    return "continuous" if text == "live" else text


_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "feed": ("feed", _feed),
    "since": ("since", str),
    "last-event-id": ("since", str),
    "limit": ("limit", _limit),
    "style": ("all_leaves", _all_leaves),
    "heartbeat": ("heartbeat_ms", _heartbeat),
    "timeout": ("timeout_ms", _timeout),
    "filter": ("filter", str),
    "seq_interval": ("seq_interval", _seq_interval),
}
# These are on when they are `true`; any other text is passed over, as in CouchDB.
_FLAGS = frozenset({"descending", "include_docs", "conflicts", "attachments", "att_encoding_info"})


def read_wanted(items: Iterable[tuple[str, str]], last_event_id: str | None = None) -> Wanted:
    """The parameters of a query string; raises ``BadRequest`` in CouchDB's words.

    ``last_event_id`` is the header with which a browser takes up an event source again.
    """
    found: dict[str, Any] = {}
    for name, text in items:
        name = name.lower()
        if name in _READERS:
            field, read = _READERS[name]
            found[field] = read(text)
        elif name in _FLAGS and text == "true":
            found[name] = True
    wanted = Wanted(**found)
    if wanted.feed not in FEEDS:
        kinds = "normal, continuous, live, longpoll, eventsource"
        raise BadRequest(f"Supported `feed` types: {kinds}")
    if wanted.feed == "eventsource" and last_event_id is not None:
        wanted = msgspec.structs.replace(wanted, since=last_event_id)
    # An event's id is the seq as JSON.
    return msgspec.structs.replace(wanted, since=wanted.since.strip('"'))


# Filters


def read_filter(call: Call, known: Known, name: str, body: dict[str, Any]) -> Filter:
    """The filter of that name; raises ``BadRequest``, ``NotFound`` and ``NotImplementedHere``.

    ``body`` is that of a ``POST``, which filter functions are shown.
    """
    if name == "_doc_ids":
        value = body["doc_ids"] if "doc_ids" in body else call.json_parameter("doc_ids")
        return Filter(ids=_doc_ids(value))
    if name == "_selector":
        if call.method != "POST":
            raise BadRequest("Selector must be specified in POST payload")
        matches, sieve = _matches(body.get("selector"))
        return Filter(matches=matches, sieve=sieve, fields=_fields(body.get("fields")))
    if name == "_design":
        return Filter(designs=True)
    if name == "_view":
        view = call.query.get("view", "")
        if not view:
            raise BadRequest("`view` filter parameter is not provided.")
        return Filter(script=functions.view_filter_of(call, known, view))
    if name.startswith("_"):
        raise BadRequest("unknown builtin filter name")
    if name.strip("/"):
        sent = orjson.dumps(body)
        return Filter(script=functions.filter_of(call, known, name, sent))
    return Filter()


def _doc_ids(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(doc_id, str) for doc_id in value):
        raise BadRequest("`doc_ids` filter parameter is not a list of doc ids.")
    return frozenset(value)


def _matches(value: Any) -> tuple[Callable[[dict[str, Any]], bool], Sieve | None]:
    if not isinstance(value, dict):
        raise BadRequest("Selector error: expected a JSON object")
    try:
        node = tree.parse(value)
        return selector.predicate(node), sift(node)
    except BadRequest as refusal:  # here CouchDB has one code for all that may be wrong with it
        raise BadRequest(refusal.reason) from None


def _fields(value: Any) -> tuple[tuple[str, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRequest("Selector error: fields must be JSON array")
    if not all(isinstance(field, str) for field in value):
        raise BadRequest("Selector error: each of fields must be a string")
    try:
        return tuple(tree.path_of(field) for field in value)
    except BadRequest as refusal:
        raise BadRequest(f"Selector error: {refusal.reason}") from None


# Requests


async def changes(call: Call) -> Response:
    """``GET`` and ``POST /{db}/_changes``."""
    if call.path("db") in ADMIN_ONLY:
        policy.check_server_admin(call.user)
    known = call.database()
    body = await _body(call)
    wanted = read_wanted(call.query.multi_items(), call.headers.get("last-event-id"))
    chosen = read_filter(call, known, wanted.filter, body)
    replica = call.services.replica
    frame = FRAMES[wanted.feed]()
    headers = {"content-type": frame.media_type}
    if wanted.feed == "eventsource":
        headers["cache-control"] = "no-cache"
    if not wanted.live:
        tag = _tag(replica, known)
        if call.method != "POST" and tag in call.headers.get("if-none-match", ""):
            return respond.not_modified(tag)
        headers["etag"] = tag
    start = replica.start(known, "now" if wanted.descending else wanted.since)
    if call.method == "HEAD":
        return Response(headers=headers)
    reader = Reader(replica, known, wanted, chosen, start)
    feed = Feed(call.services, call.user, known, wanted, reader, frame, lambda: call.is_ending)
    return await pieces.answer(feed.pieces(), frame.media_type, headers, live=wanted.live)


async def _body(call: Call) -> dict[str, Any]:
    if call.method != "POST":
        return {}
    call.check_json_content_type()
    data = await call.body()
    body = decode_json(data) if data else {}
    if not isinstance(body, dict):
        raise BadRequest("Request body must be a JSON object")
    return body


def _tag(replica: Replica, known: Known) -> str:
    newest = replica.sequence(known, replica.counters(known).seq)
    return f'"{md5(newest.encode(), usedforsecurity=False).hexdigest()}"'


ROUTES = [("/{db}/_changes", {"GET": changes, "POST": changes})]
