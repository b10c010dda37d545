"""``/_divan/snapshot``: a copy of this node's file. For nodes."""

from collections.abc import AsyncIterator
from contextlib import ExitStack

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from divandb.cluster.snapshots import Offer, Shelf
from divandb.httpd import respond
from divandb.httpd.call import Call, RouteTable
from divandb.httpd.ranges import content_range, parse_range

RETRY_AFTER_S = 1
MEDIA_TYPE = "application/vnd.sqlite3"


async def ask(call: Call) -> Response:
    """``POST /_divan/snapshot``: the copy that there is, or one that is made now."""
    call.peer()
    offer = await call.services.snapshots.offer()
    if offer is None:
        return respond.json({"making": True}, 202, {"retry-after": str(RETRY_AFTER_S)})
    return respond.json_bytes(msgspec.json.encode(offer))


async def get(call: Call) -> Response:
    """``GET`` and ``HEAD /_divan/snapshot/{id}``: all of its bytes, or one range of them."""
    call.peer()
    shelf = call.services.snapshots
    offer = shelf.find(call.path("id"))
    headers = {
        "etag": f'"{offer.sha256}"',
        "cache-control": "must-revalidate",
        "accept-ranges": "bytes",
    }
    status, first, last = 200, 0, offer.size_bytes - 1
    ranges = parse_range(call.headers.get("range"), offer.size_bytes)
    if ranges is not None and len(ranges) == 1:
        status, (first, last) = 206, ranges[0]
        headers["content-range"] = content_range(first, last, offer.size_bytes)
    headers["content-length"] = str(last + 1 - first)
    if call.method == "HEAD":
        return Response(None, status, headers, MEDIA_TYPE)
    return _Download(shelf, offer, first, last, status, headers)


class _Download(StreamingResponse):
    """Takes its place among the readers when it is sent, and leaves it however that ends."""

    def __init__(
        self, shelf: Shelf, offer: Offer, first: int, last: int, status: int,
        headers: dict[str, str],
    ) -> None:  # fmt: skip
        self._shelf = shelf
        self._offer = offer
        self._range = (first, last)
        super().__init__(_nothing(), status, headers, MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; raises ``Busy`` before anything is sent if there are too many readers."""
        with ExitStack() as stack:
            reading = stack.enter_context(self._shelf.reading(self._offer.id))
            self.body_iterator = reading.pieces(*self._range)
            await super().__call__(scope, receive, send)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


ROUTES: RouteTable = [
    ("/_divan/snapshot", {"POST": ask}),
    ("/_divan/snapshot/{id}", {"GET": get}),
]
