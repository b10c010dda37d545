"""What each call asks, and how its answer is read: the part that both clients share.

Every function is a generator for ``aio`` and ``sync`` to run; see ``wire``. ``db`` is a database's
path, such as ``/recipes``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from divandb.client import errors, wire
from divandb.client.errors import NotFoundError, ServerError, UncertainError
from divandb.client.sender import Line
from divandb.client.wire import Body, Json, Kind, Repeat, Request, Steps, Wait

GROUPED = frozenset({"key", "keys", "reduce", "group", "group_level", "limit", "skip"})
"""With one of these a listing is asked for in one request."""


# The server


def names(line: Line) -> Steps[list[str]]:
    """All databases; for server admins."""
    found: list[str] = yield from line.read("/_all_dbs")
    return found


def exists(line: Line, path: str) -> Steps[bool]:
    """Is there such a database or document?"""
    answer = yield from line.ask(Request("HEAD", path), 404)
    return answer.status != 404


def create_database(
    line: Line, db: str, parameters: Mapping[str, Any], *, exists_ok: bool
) -> Steps[None]:
    """Make a database."""
    path = db + wire.query(parameters)
    try:
        answer = yield from line.write("PUT", path, None, Repeat.NEVER)
    except UncertainError:
        if exists_ok and (yield from exists(line, db)):
            return
        raise
    except ServerError as refusal:
        if exists_ok and refusal.status == 412:
            return
        raise
    assert answer.status < 400


def check_login(line: Line) -> Steps[Json]:
    """Who is logged in; raises ``UnauthorizedError`` for a wrong password or none."""
    found: Json = yield from line.read("/_session")
    if found.get("userCtx", {}).get("name") is None:
        raise errors.UnauthorizedError(401, "unauthorized", "Nobody is logged in.")
    return found


# Documents


def get(line: Line, db: str, doc_id: str, parameters: Mapping[str, Any]) -> Steps[Json]:
    """One document."""
    found: Json = yield from line.read(f"{db}/{wire.document(doc_id)}", parameters)
    return found


def save(line: Line, db: str, doc_id: str, members: Json) -> Steps[str]:
    """Write one document, with ``_rev`` if it replaces one; its new revision.

    The same for a deletion: with its parent in the body it can be told from another one.
    """
    is_local = doc_id.startswith("_local/")
    repeat = Repeat.NEVER if is_local else Repeat.MARKED
    answer = yield from line.write("PUT", f"{db}/{wire.document(doc_id)}", members, repeat)
    rev: str = answer.json()["rev"]
    return rev


def copy(line: Line, db: str, doc_id: str, new_id: str, new_rev: str | None) -> Steps[str]:
    """Copy a document with its attachments; the revision of the copy."""
    target = wire.document(new_id) + (f"?rev={quote(new_rev)}" if new_rev else "")
    request = Request(
        "COPY", f"{db}/{wire.document(doc_id)}", Kind.WRITE, Repeat.NEVER,
        headers={"destination": target}, wait=Wait.WRITE,
    )  # fmt: skip
    answer = yield from line.ask(request)
    rev: str = answer.json()["rev"]
    return rev


def history(line: Line, db: str, doc_id: str, rev: str | None) -> Steps[list[str]]:
    """The revisions that led to this one, the newest first."""
    found = yield from get(line, db, doc_id, {"rev": rev, "revs": True})
    start, ids = found["_revisions"]["start"], found["_revisions"]["ids"]
    return [f"{start - place}-{one}" for place, one in enumerate(ids)]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What became of one document of many."""

    id: str
    rev: str | None
    """``None``: it was refused."""
    error: ServerError | None = None


def save_all(line: Line, db: str, docs: Sequence[Json]) -> Steps[list[Saved]]:
    """Write many; each is accepted or refused by itself. All have an ``_id``."""
    found: list[Saved] = []
    step = line.sender.options.page_rows
    for start in range(0, len(docs), step):
        part = docs[start : start + step]
        value = {"docs": part}
        answer = yield from line.write(
            "POST", f"{db}/_bulk_docs", value, Repeat.MARKED, wait=Wait.SLOW
        )
        for doc, row in zip(part, answer.json(), strict=True):
            if "rev" in row:
                found.append(Saved(doc["_id"], row["rev"]))
            else:
                error = errors.of_row(row, is_uncertain=answer.is_uncertain)
                found.append(Saved(doc["_id"], None, error))
    return found


def info(line: Line, path: str) -> Steps[Json]:
    """What a GET of this path answers, an object."""
    found: Json = yield from line.read(path)
    return found


def put(line: Line, path: str, value: Any) -> Steps[None]:
    """Replace what has no revisions, such as `_security`: the last one wins."""
    yield from line.write("PUT", path, value, Repeat.NEVER)


def drop(line: Line, path: str) -> Steps[None]:
    """Delete what has no revisions: a database, an index."""
    yield from line.write("DELETE", path, None, Repeat.NEVER)


# Attachments


def attachment_path(db: str, doc_id: str, name: str, rev: str | None) -> str:
    """Where an attachment is."""
    return f"{db}/{wire.document(doc_id)}/{wire.segment(name)}{wire.query({'rev': rev})}"


def get_attachment(line: Line, path: str) -> Steps[tuple[bytes, str]]:
    """(bytes, content type)"""
    request = Request("GET", path, headers={"accept": "*/*"}, wait=Wait.SLOW)
    answer = yield from line.ask(request)
    return answer.body, answer.headers.get("content-type", "")


def open_attachment(line: Line, path: str) -> Steps[Any]:
    """What a driver takes the bytes from, piece by piece."""
    request = Request("GET", path, headers={"accept": "*/*"}, wait=Wait.SLOW, streams=True)
    answer = yield from line.ask(request)
    return answer.stream


def put_attachment(line: Line, path: str, data: Body, content_type: str) -> Steps[str]:
    """Store one; the document's new revision. Without ``rev`` in the path, or from a stream, it
    cannot be repeated.
    """
    is_fixed = isinstance(data, bytes) and "?rev=" in path
    repeat = Repeat.MARKED if is_fixed else Repeat.NEVER
    headers = {"content-type": content_type}
    request = Request("PUT", path, Kind.WRITE, repeat, data, headers, Wait.SLOW)
    answer = yield from line.ask(request)
    rev: str = answer.json()["rev"]
    return rev


def delete_attachment(line: Line, path: str) -> Steps[str]:
    """Remove one; the document's new revision."""
    answer = yield from line.write("DELETE", path, None, Repeat.MARKED)
    rev: str = answer.json()["rev"]
    return rev


# Listings, page by page


@dataclasses.dataclass(frozen=True)
class Listing:
    """`_all_docs` or a view, and what is asked of it."""

    path: str
    parameters: Mapping[str, Any]
    keys: Sequence[Any] | None = None
    """Only these; sent in the body."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Behind the last row of a page."""

    row: Json
    times: int
    """So many rows with its key and id were given."""


def rows(line: Line, listing: Listing) -> Steps[Json]:
    """A listing in one request, as the server answers it."""
    path = listing.path + wire.query(listing.parameters)
    if listing.keys is not None:
        value: Json = yield from line.question(path, {"keys": list(listing.keys)})
    else:
        value = yield from line.read(path, wait=Wait.SLOW)
    return value


def page(
    line: Line, listing: Listing, place: Place | None = None
) -> Steps[tuple[list[Json], Place | None]]:
    """The next rows, and where to go on; ``None``: there are no more.

    The next page begins with the last row of this one, which is left out if it is still there: so
    a row that is removed meanwhile takes none of its neighbours with it.
    """
    if listing.keys is not None or GROUPED & listing.parameters.keys():
        return (yield from rows(line, listing))["rows"], None
    limit = line.sender.options.page_rows
    asked = {**listing.parameters, "limit": limit + 1}
    if place is not None:
        asked.pop("start_key", None)
        asked["startkey"] = place.row["key"]
        asked["startkey_docid"] = place.row["id"]
        asked["limit"] = limit + 1 + place.times
    found: list[Json] = (yield from rows(line, Listing(listing.path, asked)))["rows"]
    if any("id" not in row for row in found):  # reduced: such rows have no place
        return (yield from rows(line, listing))["rows"], None
    is_last = len(found) < asked["limit"]
    fresh = found if place is None else _behind(found, place)
    if is_last:
        return fresh, None
    return fresh, _place(fresh, place)


def _behind(found: list[Json], place: Place) -> list[Json]:
    same = 0
    while same < min(len(found), place.times) and _is_same(found[same], place.row):
        same += 1
    return found[same:]


def _place(fresh: list[Json], before: Place | None) -> Place:
    last, times = fresh[-1], 0
    for row in reversed(fresh):
        if not _is_same(row, last):
            break
        times += 1
    if before is not None and times == len(fresh) and _is_same(last, before.row):
        times += before.times
    return Place(last, times)


def _is_same(one: Json, other: Json) -> bool:
    return bool(one["id"] == other["id"] and one["key"] == other["key"])


def prefixed(parameters: Mapping[str, Any], prefix: str | None, last: str) -> Json:
    """Parameters for keys that begin so; ``last`` is a character that sorts behind all others."""
    if prefix is None:
        return dict(parameters)
    return {**parameters, "startkey": prefix, "endkey": prefix + last}


def doc_of(
    row: Json, *, is_wanted: bool, create: bool, include_ddocs: bool
) -> tuple[str, Json] | None:
    """(id, document) of a row; ``None``: it is to be left out. With ``create``, an empty one where
    there is none; without it that raises ``NotFoundError`` if the key was asked for.
    """
    doc = row.get("doc")
    if doc is not None:
        is_shown = include_ddocs or not doc["_id"].startswith("_design/")
        return (doc["_id"], doc) if is_shown else None
    if create:
        return row["key"], {}
    if is_wanted:
        raise NotFoundError(404, "not_found", f"There is no document {row['key']!r}.")
    return None  # it was deleted a moment ago


# Queries


def find_page(
    line: Line, db: str, question: Json, bookmark: str | None, left: int | None
) -> Steps[tuple[list[Json], str | None]]:
    """The next documents that fit, and the bookmark behind them; ``None``: there are no more."""
    limit = line.sender.options.page_rows
    limit = limit if left is None else min(limit, left)
    value = {**question, "limit": limit, **({"bookmark": bookmark} if bookmark else {})}
    found = yield from line.question(f"{db}/_find", value)
    docs: list[Json] = found["docs"]
    behind = found.get("bookmark")
    return docs, behind if len(docs) == limit and behind not in (None, "nil") else None


def explain(line: Line, db: str, question: Json) -> Steps[Json]:
    """How a query would be carried out."""
    found: Json = yield from line.question(f"{db}/_explain", question)
    return found


def index(line: Line, db: str, value: Json) -> Steps[Json]:
    """Make an index; what the server says of it."""
    answer = yield from line.write("POST", f"{db}/_index", value, Repeat.NEVER)
    found: Json = answer.json()
    return found


def index_path(db: str, ddoc: str, name: str) -> str:
    """Where an index is."""
    short = ddoc.removeprefix("_design/")
    return f"{db}/_index/_design/{wire.segment(short)}/json/{wire.segment(name)}"
