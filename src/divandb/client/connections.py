"""Connections to nodes, kept open between requests: what httpx sends by, in the place of its pool.

httpcore's pool looks at every connection several times for each request, and for each idle one at
all of them again: with 30 of them open that is most of what a request costs. Here a request takes
the connection to its node that was used last, and gives it back when its answer was read. The
connections themselves are httpcore's.
"""

import asyncio
import ssl
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import httpcore
import httpx

from divandb.client.options import Options


class _Kept(Protocol):
    def has_expired(self) -> bool: ...

    def is_idle(self) -> bool: ...

    def is_closed(self) -> bool: ...


C = TypeVar("C", bound=_Kept)
Place = tuple[bytes, bytes, int]
"""Scheme, host and port of a node."""


class Shelf(Generic[C]):
    """Idle connections, and how many are in use. Pure."""

    def __init__(self, connections_max: int) -> None:
        self._connections_max = connections_max
        self._idle: dict[Place, list[C]] = {}
        self._order: OrderedDict[C, Place] = OrderedDict()
        """The one that was used longest ago is the first."""
        self.in_use = 0

    @property
    def idle(self) -> int:
        return len(self._order)

    def take(self, place: Place) -> tuple[C | None, list[C]]:
        """(a connection to this place, ``None`` if one must be made; those that are to be closed).

        One is in use from now on, until it is ``back``.
        """
        over: list[C] = []
        while self._order and next(iter(self._order)).has_expired():
            over.append(self._oldest())
        found = None
        same = self._idle.get(place)
        while same and found is None:
            one = same.pop()
            del self._order[one]
            if one.has_expired():
                over.append(one)
            else:
                found = one
        self.in_use += 1
        while self._order and self.idle + self.in_use > self._connections_max:
            over.append(self._oldest())
        return found, over

    def back(self, place: Place, one: C | None) -> bool:
        """It is in use no longer; is it kept, or is it to be closed?"""
        self.in_use -= 1
        if one is None or not one.is_idle() or one.is_closed():
            return False
        self._idle.setdefault(place, []).append(one)
        self._order[one] = place
        return True

    def all(self) -> list[C]:
        """All idle ones; they leave."""
        return [self._oldest() for _ in range(self.idle)]

    def _oldest(self) -> C:
        one, place = self._order.popitem(last=False)
        same = self._idle[place]
        same.remove(one)
        if not same:
            del self._idle[place]
        return one


class _Settings:
    """What both kinds of connections have in common."""

    def __init__(self, options: Options) -> None:
        self._options = options

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """Made when it is needed: reading the system's certificates takes a while."""
        verify = self._options.verify
        return verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify)

    def to(self, place: Place) -> dict[str, Any]:
        """Arguments of a connection."""
        return {
            "origin": httpcore.Origin(*place),
            "ssl_context": self.trust if place[0] == b"https" else None,
            "keepalive_expiry": self._options.keep_alive_s,
        }


class AsyncConnections(httpx.AsyncBaseTransport):
    """For asyncio."""

    def __init__(self, options: Options) -> None:
        self._settings = _Settings(options)
        self._free = asyncio.Semaphore(options.connections_max)
        self._shelf: Shelf[httpcore.AsyncHTTPConnection] = Shelf(options.connections_max)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; the answer's body is still to be read."""
        try:
            async with asyncio.timeout(request.extensions["timeout"]["pool"]):
                await self._free.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("all connections are in use", request=request) from None
        place = _place(request.url)
        one, over = self._shelf.take(place)
        try:
            if over:
                await asyncio.shield(asyncio.gather(*(each.aclose() for each in over)))
            if one is None:
                one = httpcore.AsyncHTTPConnection(**self._settings.to(place))
            with _as_httpx(request):
                answer = await one.handle_async_request(_sent(request))
        except BaseException:
            await self._back(place, one)
            raise
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_AsyncBody(request, answer, lambda: self._back(place, one)),
            extensions=answer.extensions,
        )

    async def _back(self, place: Place, one: httpcore.AsyncHTTPConnection | None) -> None:
        is_kept = self._shelf.back(place, one)
        self._free.release()
        if one is not None and not is_kept:  # if it was cancelled, it may not have closed itself
            await one.aclose()

    async def aclose(self) -> None:
        """Close those that are idle."""
        for one in self._shelf.all():
            await one.aclose()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, request: httpx.Request, answer: httpcore.Response, back: Any) -> None:
        self._request = request
        self._answer = answer
        self._back = back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for part in self._answer.aiter_stream():
                yield part

    async def aclose(self) -> None:
        back, self._back = self._back, None
        if back is not None:
            try:
                await self._answer.aclose()
            finally:
                await back()


class Connections(httpx.BaseTransport):
    """The same for threads."""

    def __init__(self, options: Options) -> None:
        self._settings = _Settings(options)
        self._free = threading.Semaphore(options.connections_max)
        self._lock = threading.Lock()
        self._shelf: Shelf[httpcore.HTTPConnection] = Shelf(options.connections_max)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; the answer's body is still to be read."""
        if not self._free.acquire(timeout=request.extensions["timeout"]["pool"]):
            raise httpx.PoolTimeout("all connections are in use", request=request)
        place = _place(request.url)
        with self._lock:
            one, over = self._shelf.take(place)
        try:
            for each in over:
                each.close()
            if one is None:
                one = httpcore.HTTPConnection(**self._settings.to(place))
            with _as_httpx(request):
                answer = one.handle_request(_sent(request))
        except BaseException:
            self._back(place, one)
            raise
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(request, answer, lambda: self._back(place, one)),
            extensions=answer.extensions,
        )

    def _back(self, place: Place, one: httpcore.HTTPConnection | None) -> None:
        with self._lock:
            is_kept = self._shelf.back(place, one)
        self._free.release()
        if one is not None and not is_kept:
            one.close()

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            idle = self._shelf.all()
        for one in idle:
            one.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, request: httpx.Request, answer: httpcore.Response, back: Any) -> None:
        self._request = request
        self._answer = answer
        self._back = back

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx(self._request):
            yield from self._answer.iter_stream()

    def close(self) -> None:
        back, self._back = self._back, None
        if back is not None:
            try:
                self._answer.close()
            finally:
                back()


def _place(url: httpx.URL) -> Place:
    scheme = url.raw_scheme
    return scheme, url.raw_host, url.port or (443 if scheme == b"https" else 80)


def _sent(request: httpx.Request) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


_FAULTS: dict[type[Exception], type[httpx.RequestError]] = {
    getattr(httpcore, name): getattr(httpx, name)
    for name in (
        "ConnectTimeout", "ReadTimeout", "WriteTimeout", "TimeoutException", "ConnectError",
        "ReadError", "WriteError", "NetworkError", "UnsupportedProtocol", "LocalProtocolError",
        "RemoteProtocolError", "ProtocolError",
    )
}  # fmt: skip


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """httpcore's faults as those of httpx, which have the same names."""
    try:
        yield
    except Exception as fault:
        made = _FAULTS.get(type(fault))
        if made is None:
            raise
        raise made(str(fault), request=request) from fault
