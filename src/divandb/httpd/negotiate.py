"""What a client accepts.

CouchDB 3.5 negotiates little: JSON is always answered as ``application/json`` whatever
``Accept`` says; only document reads choose between JSON and multipart, and only
attachments stored gzipped are answered gzipped.
"""

import re
from typing import Literal

JSON_CONTENT_TYPE = "application/json"

_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
MultipartKind = Literal["open_revs", "attachments", "bulk_get"]


def accepts(header: str | None, media_type: str) -> bool:
    """Whether an ``Accept`` header takes ``media_type`` (lower case); no header takes all.

    A type or its ``type/*`` with q=0 refuses even beside ``*/*``; a listed type with
    parameters other than q matches nothing, as in CouchDB. A malformed q counts as 1.
    """
    listed = _qualities("*/*" if header is None else header)
    family = media_type.partition("/")[0] + "/*"
    if any(name in (media_type, family) and q == 0 for name, q in listed):
        return False
    return any(name in (media_type, family, "*/*") and q > 0 for name, q in listed)


def wants_multipart(header: str | None, kind: MultipartKind) -> str | None:
    """The multipart type to answer a document read with, or None for JSON.

    ``open_revs`` and GET with ``attachments=true`` are multipart unless the client leaves
    the type out of its ``Accept`` (so ``*/*`` and no header get multipart); ``_bulk_get``
    is JSON whenever the client takes JSON.
    """
    if kind == "bulk_get" and accepts(header, JSON_CONTENT_TYPE):
        return None
    candidates = {
        "open_revs": ("multipart/mixed",),
        "attachments": ("multipart/related",),
        "bulk_get": ("multipart/mixed", "multipart/related"),
    }[kind]
    return next((name for name in candidates if accepts(header, name)), None)


def accepts_gzip(header: str | None) -> bool:
    """Whether an ``Accept-Encoding`` header takes gzip, by name or by ``*``; no header does not."""
    listed = _qualities(header or "")
    named = [q for name, q in listed if name == "gzip"]
    return all(q > 0 for q in named) if named else any(n == "*" and q > 0 for n, q in listed)


def is_json_content_type(value: str | None) -> bool:
    """Whether a request's ``Content-Type`` is application/json, with or without parameters."""
    return value is not None and value.partition(";")[0].strip().lower() == JSON_CONTENT_TYPE


def _qualities(header: str) -> list[tuple[str, float]]:
    """Each listed name, lower case and with its parameters other than q, and its q."""
    return [_quality(item) for item in header.lower().split(",") if item.strip()]


def _quality(item: str) -> tuple[str, float]:
    name, *params = (part.strip() for part in item.split(";"))
    q = 1.0
    for param in filter(None, params):
        key, _, value = (part.strip() for part in param.partition("="))
        if key != "q":
            name += f";{param}"
        elif _QUALITY.fullmatch(value):
            q = float(value)
    return name, q
