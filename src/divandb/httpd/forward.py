"""Requests that another node answers better: passed on whole, and the answer passed back.

For reads whose session wrote what has not come here yet, for those that ask for a younger view than
this node has, and for attachments whose bytes are still on their way. The client's own credentials
go with the request: the other node decides.
"""

from collections.abc import AsyncIterator

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from divandb.cluster.peers import Peer
from divandb.errors import BadRequest, Busy
from divandb.httpd.standing import FORWARDED

CONNECT_S_MAX = 2.0
SILENCE_S_MAX = 75.0
CONNECTIONS_MAX = 64
_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host",
     "content-length", "expect"}
)  # fmt: skip
_NOT_PASSED_BACK = _HOP | {"date", "server"}


class Forwarder:
    """Passes requests on."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """``transport`` carries the requests; ``None``: the machine's network."""
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def send(self, request: Request, path: str, peer: Peer) -> Response:
        """The other node's answer, as it comes; raises ``Busy`` when there is none."""
        client = self._client = self._client or _client(peer.member.url, self._transport)
        query = request.scope.get("query_string", b"").decode("latin-1")
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        headers.append((FORWARDED, "1"))
        length = request.headers.get("content-length")
        has_body = length is not None or "transfer-encoding" in request.headers
        if length is not None:
            headers.append(("content-length", length))
        sending = client.build_request(
            request.method, f"{peer.member.url}{path}{'?' if query else ''}{query}",
            headers=headers, content=_body(request) if has_body else None,
        )  # fmt: skip
        try:
            answer = await client.send(sending, stream=True)
        except httpx.HTTPError as fault:
            raise Busy(f"The node that has this cannot be reached: {fault!r}") from None
        kept = [(n, v) for n, v in answer.headers.multi_items() if n not in _NOT_PASSED_BACK]
        response = StreamingResponse(_pieces(answer), answer.status_code)
        response.raw_headers = [(n.encode(), v.encode("latin-1")) for n, v in kept]
        if request.method == "HEAD" and "content-length" in answer.headers:
            length_line = answer.headers["content-length"].encode()
            response.raw_headers.append((b"content-length", length_line))
        return response

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.aclose()


def _client(url: str, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(SILENCE_S_MAX, connect=CONNECT_S_MAX),
        limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
        trust_env=False,
        verify=url.startswith("https"),  # reading the system's certificates takes memory and time
        follow_redirects=False,
    )


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for data in request.stream():
            yield data
    except ClientDisconnect:
        raise BadRequest("The request ended before its body did.") from None


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for data in answer.aiter_raw():
            yield data
    finally:
        await answer.aclose()
