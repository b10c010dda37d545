"""Requests that another node answers better: passed on whole, and the answer passed back.

For reads whose session wrote what has not come here yet, for those that ask for a younger view than
this node has, and for attachments whose bytes are still on their way. The client's own credentials
go with the request: the other node decides.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from divandb import streams
from divandb.cluster.peers import Peer
from divandb.errors import BadRequest, Busy
from divandb.httpd.standing import FORWARDED

CONNECT_S_MAX = 2.0
SILENCE_S_MAX = 75.0
HEAD_S_MAX = 10.0
"""For the beginning of an answer."""
CONNECTIONS_MAX = 64
PASSED_ON = "divan.passed_on"
"""In a request's scope: its answer is another node's, which has said what there is to say."""
BEHIND = "divan-session-behind"
"""On an answer without what the session wrote."""
RANGE_IS_WRONG = 416
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)
_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host",
     "content-length", "expect"}
)  # fmt: skip
_NOT_PASSED_BACK = (_HOP - {"content-length"}) | {"date", "server"}


class Forwarder:
    """Passes requests on."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``transport`` carries the requests; ``None``: the machine's network. ``tls`` is for
        https URLs.
        """
        self._transport = transport
        self._tls = tls
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def send(self, request: Request, path: str, peer: Peer) -> Response | None:
        """The other node's answer, as it comes; raises ``Busy`` when there is none.

        ``None``: it takes no connection, and nothing of the request is gone.
        """
        length = request.headers.get("content-length")
        has_body = length is not None or "transfer-encoding" in request.headers
        sized = [("content-length", length)] if length is not None else []
        body = _body(request) if has_body else None
        try:
            return _passed_back(await self._ask(request, path, peer, body, sized))
        except _NO_CONNECTION:
            peer.refuses = True
            return None

    async def attempt(
        self, request: Request, path: str, peer: Peer, body: bytes
    ) -> Response | None:
        """The other node's answer if it is a good one; ``None``: somebody else may do better.

        ``body`` is the request's, which was read, and unpacked.
        """
        try:
            answer = await self._ask(request, path, peer, body or None)
        except (Busy, *_NO_CONNECTION):
            return None
        is_good = answer.status_code < 400 or answer.status_code == RANGE_IS_WRONG
        if is_good and BEHIND not in answer.headers:
            return _passed_back(answer)
        await answer.aclose()
        return None

    async def _ask(
        self,
        request: Request,
        path: str,
        peer: Peer,
        body: AsyncIterator[bytes] | bytes | None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> httpx.Response:
        client = self._client_for(peer.member.url)
        query = request.scope.get("query_string", b"").decode("latin-1")
        dropped = _HOP | {"content-encoding"} if isinstance(body, bytes) else _HOP
        kept = [(name, value) for name, value in request.headers.items() if name not in dropped]
        if "accept-encoding" not in request.headers:
            # The client of this library would ask for gzip, which who asked cannot read.
            kept.append(("accept-encoding", "identity"))
        sending = client.build_request(
            request.method, f"{peer.member.url}{path}{'?' if query else ''}{query}",
            headers=[*kept, (FORWARDED, "1"), *headers], content=body,
        )  # fmt: skip
        try:
            # Sending a large body takes its time; a stopped node would take for ever.
            async with asyncio.timeout(HEAD_S_MAX if body is None else None):
                return await client.send(sending, stream=True)
        except _NO_CONNECTION:
            raise
        except (httpx.HTTPError, TimeoutError) as fault:
            raise Busy(f"The node that has this cannot be reached: {fault!r}") from None

    def _client_for(self, url: str) -> httpx.AsyncClient:
        """One for each scheme."""
        scheme = url.partition(":")[0]
        if scheme not in self._clients:
            self._clients[scheme] = streams.client(
                url,
                httpx.Timeout(SILENCE_S_MAX, connect=CONNECT_S_MAX),
                connections_max=CONNECTIONS_MAX,
                transport=self._transport,
                tls=self._tls,
            )
        return self._clients[scheme]

    async def close(self) -> None:
        """Let go of connections."""
        for client in self._clients.values():
            await client.aclose()


def _passed_back(answer: httpx.Response) -> Response:
    kept = [(n, v) for n, v in answer.headers.multi_items() if n not in _NOT_PASSED_BACK]
    response = StreamingResponse(_pieces(answer), answer.status_code)
    response.raw_headers = [(n.encode(), v.encode("latin-1")) for n, v in kept]
    return response


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
