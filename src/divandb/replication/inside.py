"""Requests to this node itself: the ASGI application called in place, answers streamed.

They come as a user whom the scope names, which nothing that comes over a network can do.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Scope

from divandb.auth.policy import UserContext

ACTING = "divan.acting"
"""In a scope: the user as whom this node itself asks."""
PIECES_MAX = 8
"""Of a body, that wait to be read."""


class Hall:
    """Where the application will be once it is made."""

    app: ASGIApp | None = None


class Inside(httpx.AsyncBaseTransport):
    """Carries requests to the application in the hall."""

    def __init__(self, hall: Hall, user: UserContext) -> None:
        self._hall = hall
        self._user = user

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Begin a request; its answer's head."""
        if self._hall.app is None:
            raise httpx.ConnectError("The node is starting.")
        exchange = _Exchange(request)
        exchange.task = asyncio.create_task(exchange.run(self._hall.app, self._scope(request)))
        try:
            head = await exchange.next()
        except BaseException:
            await exchange.aclose()
            raise
        assert head is not None
        return httpx.Response(head["status"], headers=head["headers"], stream=exchange)

    def _scope(self, request: httpx.Request) -> Scope:
        raw_path, _, query = request.url.raw_path.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.url.path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": [(name.lower(), text) for name, text in request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            ACTING: self._user,
        }


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer."""

    def __init__(self, request: httpx.Request) -> None:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self._sent = aiter(request.stream)
        self._is_sent = False
        self._gone = asyncio.Event()
        self._pieces: asyncio.Queue[Message | Exception | None] = asyncio.Queue(PIECES_MAX)
        self.task: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._pieces.put)
        except Exception as fault:
            await self._pieces.put(fault)
        else:
            await self._pieces.put(None)

    async def _receive(self) -> Message:
        if self._is_sent:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        piece = await anext(self._sent, None)
        self._is_sent = piece is None
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def next(self) -> dict[str, Any] | None:
        """The next message of the answer; ``None`` at its end."""
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise httpx.ReadError(str(piece) or repr(piece)) from piece
        return None if piece is None else dict(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.next()) is not None:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    async def aclose(self) -> None:
        self._gone.set()
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
