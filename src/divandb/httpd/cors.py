"""Cross-origin requests, as CouchDB answers them. Off until ``chttpd/enable_cors`` is ``true``."""

from starlette.datastructures import Headers
from starlette.responses import Response

from divandb.settings import Settings

METHODS = "GET, HEAD, POST, PUT, DELETE, TRACE, CONNECT, COPY, OPTIONS"
SIMPLE_HEADERS = frozenset(
    {"accept", "accept-language", "content-type", "expires", "last-modified", "pragma", "origin",
     "content-length", "if-match", "destination", "x-requested-with", "x-http-method-override",
     "content-range", "authorization"}
)  # fmt: skip
EXPOSED = (
    "content-type, accept-ranges, etag, server, x-couch-request-id, x-couch-update-newrev, "
    "x-couchdb-body-time"
)


def is_on(settings: Settings) -> bool:
    """Are cross-origin requests answered at all?"""
    return settings.is_on("chttpd", "enable_cors") or settings.is_on("httpd", "enable_cors")


def headers_for(settings: Settings, origin: str | None) -> dict[str, str]:
    """What an answer to a request of this origin carries; nothing when it may not read it."""
    if origin is None or not is_on(settings):
        return {}
    origins = settings.words("cors", "origins")
    credentials = settings.is_on("cors", "credentials")
    if "*" not in origins and origin not in origins:
        return {}
    shown = "*" if "*" in origins and not credentials else origin
    headers = {
        "access-control-allow-origin": shown,
        "access-control-expose-headers": EXPOSED,
        "vary": "Origin",
    }
    if credentials:
        headers["access-control-allow-credentials"] = "true"
    return headers


def preflight(settings: Settings, request: Headers) -> Response | None:
    """The answer to a preflight, or ``None`` if it is not one that may be answered."""
    origin, method = request.get("origin"), request.get("access-control-request-method")
    allowed = headers_for(settings, origin)
    if method is None or not allowed:
        return None
    methods = settings.find("cors", "methods") or METHODS
    if method.upper() not in {known.strip().upper() for known in methods.split(",")}:
        return None
    wanted = request.get("access-control-request-headers", "")
    names = {name.strip().lower() for name in wanted.split(",") if name.strip()}
    known = SIMPLE_HEADERS | {name.lower() for name in settings.words("cors", "headers")}
    if not names <= known and "*" not in known:
        return None
    allowed.update(
        {
            "access-control-allow-methods": methods,
            "access-control-allow-headers": wanted or ", ".join(sorted(SIMPLE_HEADERS)),
            "access-control-max-age": settings.find("cors", "max_age"),
        }
    )
    return Response(status_code=204, headers=allowed)
