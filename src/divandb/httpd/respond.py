"""Answers as CouchDB gives them."""

from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from starlette.responses import Response, StreamingResponse

from divandb.errors import DivanError

PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
JSON = "application/json"
_CACHE = "must-revalidate"


def json_bytes(
    body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer whose JSON is ready; a newline ends it, as CouchDB does."""
    return Response(body + b"\n", status, {"cache-control": _CACHE, **(headers or {})}, JSON)


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return json_bytes(orjson.dumps(value), status, headers)


def quoted(text: str) -> bytes:
    """A JSON string."""
    return orjson.dumps(text)


def ok(status: int = 200, **members: Any) -> Response:
    """``{"ok": true, …}``."""
    return json({"ok": True, **members}, status)


def location(database: str, doc_id: str) -> str:
    """A document's path; a slash stays one only behind ``_design`` and ``_local``."""
    return f"/{quote(database, safe='')}/{quote(doc_id, safe='/' if doc_id[0] == '_' else '')}"


def etag(rev: str) -> dict[str, str]:
    """The header that names a revision."""
    return {"etag": f'"{rev}"'}


def not_modified(tag: str) -> Response:
    """304: the client has it already."""
    return Response(status_code=304, headers={"cache-control": _CACHE, "etag": tag})


def stream(
    pieces: AsyncIterator[bytes], media_type: str = JSON, headers: Mapping[str, str] | None = None
) -> Response:
    """A chunked answer."""
    return StreamingResponse(pieces, 200, {"cache-control": _CACHE, **(headers or {})}, media_type)


def error(refusal: DivanError) -> Response:
    """An error in CouchDB's shape."""
    body = {"error": refusal.error, "reason": refusal.reason}
    return json(body, refusal.status, refusal.headers)


def row_error(doc_id: str, refusal: DivanError) -> dict[str, str]:
    """An error as a row of `_bulk_docs`."""
    return {"id": doc_id, "error": refusal.error, "reason": refusal.reason}
