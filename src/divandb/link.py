"""HTTP/1.1 calls to one address, over connections that are kept alive. All is bounded.

After a failed connect, calls wait before the next one, longer each time and never all at the same
moment; so callers may try again at once. A call that breaks says whether the other side may have
carried it out (``LinkBroken.sent``); whether it is made again is the caller's choice.

A connection carries one request at a time, and serves again when its answer was complete. What the
other side closes while nobody waits is noticed at once and costs no call. It may still close a
connection at the very moment at which a request goes out: then nobody knows, and only a call that
is ``repeatable`` is made again by itself, on a new connection.
"""

import asyncio
import contextlib
import dataclasses
import math
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import httptools

from divandb import tls as tls_of
from divandb.clock import Rng

HEAD_BYTES_MAX = 16 * 2**10
"""An answer's head; it may exceed this by what one read brings."""
BACK_OFF_S_MIN = 0.05
CLOSE_S_MAX = 1.0
_WAKE_S_MIN = 0.001
_JOINED_BYTES_MAX = 64 * 2**10
"""Head and body go out in one write up to this size: two writes cost more than a copy."""
_LATE = "gave no answer in time"
Dialed = TypeVar("Dialed", bound=asyncio.Protocol)


@dataclasses.dataclass(frozen=True)
class LinkBounds:
    """What one link uses and how long it waits."""

    waits_max: int = 16
    """Calls with ``wait_s`` at a time, each on a connection; others wait."""
    requests_max: int = 8
    """All other calls at a time, so that waiting ones never stand in their way."""
    queue_calls_max: int = 1024
    """Calls that wait for their turn; one more is broken at once."""
    connect_s_max: float = 2.0
    """To open a connection."""
    answer_s_max: float = 10.0
    """For an answer, in addition to the call's ``wait_s``; queue and back-off are included."""
    back_off_s_max: float = 2.0
    """Between attempts to connect."""
    idle_s_max: float = 30.0
    """A connection unused for longer is not used again: the other side may be about to close it."""


class LinkBroken(Exception):
    """No answer came. ``sent`` False: the request surely never reached the other side; True: it may
    have been carried out. ``reason`` is a text.
    """

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class _Unheard(LinkBroken):
    """The connection ended after the request and before the first byte of an answer."""


class Reply(NamedTuple):
    """An answer, whatever its status."""

    status: int
    lines: list[tuple[bytes, bytes]]
    """Names and values of the headers, as they came."""
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """The headers with names in lower case; the values of one that came twice are joined."""
        found: dict[str, str] = {}
        for raw_name, raw_value in self.lines:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found


class _Address:
    """Where a link goes, and what each request there begins with."""

    def __init__(self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.host = parts.hostname or ""
        self.tls = (tls or tls_of.of_system()) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.common = _lines({"host": parts.netloc, **headers})


class Link:
    """Calls to one address. Safe for any number of tasks of one event loop."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        rng: Rng,
        bounds: LinkBounds | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``url`` is ``http[s]://host[:port]``; ``headers`` go with every request.

        Nothing is opened before the first call. An ``https`` URL needs ``tls`` unless the system's
        certificates will do.
        """
        self._headers = dict(headers)
        self._tls = tls
        self._rng = rng
        self._bounds = bounds or LinkBounds()
        self._address = _Address(url, self._headers, tls)
        self._waits = asyncio.Semaphore(self._bounds.waits_max)
        self._requests = asyncio.Semaphore(self._bounds.requests_max)
        self._queued = 0
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._failures = 0
        self._retry_at = 0.0
        self._moved = asyncio.Event()
        self._closed: asyncio.Event | None = None
        # One timer for all calls, set to the earliest end: one for each would be a tenth of a call.
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf

    @property
    def url(self) -> str:
        """Where calls go now."""
        return self._address.url

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        wait_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        body_bytes_max: int,
        repeatable: bool = False,
    ) -> Reply:
        """The answer to a request; raises ``LinkBroken``.

        ``wait_s`` is the time that the other side may take of its own accord. ``path`` is sent as
        it is, with its query. ``repeatable``: doing it twice is as good as once. Cancelling it
        closes its connection; the request may have been carried out. Raises ``ValueError`` for a
        path or header that would end its line.
        """
        if "\n" in path:
            raise ValueError("a path has a line break")
        until = asyncio.get_running_loop().time() + wait_s + self._bounds.answer_s_max
        first = f"{method} {path} HTTP/1.1\r\n"
        rest = f"{_lines(headers) if headers else ''}content-length: {len(body)}\r\n\r\n"
        slots = self._waits if wait_s else self._requests
        await (self._queue(slots, until) if slots.locked() else slots.acquire())
        try:
            connection = self._unused()
            is_reused = connection is not None
            while True:
                if connection is None:
                    _, connection = await self._connected(until, self._connection)
                head = f"{first}{connection.address.common}{rest}".encode("latin-1")
                try:
                    reply = await connection.ask(head, body, body_bytes_max, until)
                    break
                except _Unheard:
                    if not (repeatable and is_reused):
                        raise
                is_reused, connection = False, None
            self._put_back(connection)
            return reply
        finally:
            slots.release()

    async def dial(self, make: Callable[[], Dialed]) -> tuple[Dialed, str]:
        """A connection for the caller alone, which its protocol has to close, and the header lines
        with which each request on it begins. Raises ``LinkBroken``.
        """
        until = asyncio.get_running_loop().time() + self._bounds.answer_s_max
        address, made = await self._connected(until, lambda _: make())
        return made, address.common

    def set_url(self, url: str) -> None:
        """Go to another address from now on. What is under way is finished where it was sent; what
        was not sent yet goes to the new one.
        """
        if url == self._address.url:
            return
        self._address = _Address(url, self._headers, self._tls)
        self._failures, self._retry_at = 0, 0.0
        self._drop_idle()
        self._wake()

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Send these from now on with every request."""
        self._headers = dict(headers)
        self._address = _Address(self._address.url, self._headers, self._tls)
        self._drop_idle()
        self._wake()

    async def close(self) -> None:
        """Close all connections; calls under way are broken, and so is every later one."""
        self._closed = asyncio.Event()
        if self._alarm is not None:
            self._alarm.cancel()
        self._wake()
        self._drop_idle()
        for connection in list(self._open):
            connection.close("was left: the link is closed")
        if not self._open:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._closed.wait()
        for connection in list(self._open):
            connection.abort()

    # Time

    def watch(self, until: float) -> None:
        """A call is under way that ends at this time."""
        if until < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = until
            self._alarm = asyncio.get_running_loop().call_at(until, self._sweep)

    def _sweep(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.check(now)
        self.watch(min((one.until for one in self._open), default=math.inf))

    # Turns

    async def _queue(self, slots: asyncio.Semaphore, until: float) -> None:
        if self._queued >= self._bounds.queue_calls_max:
            raise self._never(f"has {self._queued} calls waiting")
        self._queued += 1
        try:
            async with asyncio.timeout_at(until):
                await slots.acquire()
        except TimeoutError:
            raise self._never(_LATE) from None
        finally:
            self._queued -= 1

    def _never(self, what: str) -> LinkBroken:
        """A request that was not sent."""
        return LinkBroken(f"{self.url} {what}", sent=False)

    # Connections

    def _unused(self) -> "_Connection | None":
        since = asyncio.get_running_loop().time() - self._bounds.idle_s_max
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since >= since:
                return connection
            connection.close()
        return None

    def _put_back(self, connection: "_Connection") -> None:
        is_good = connection.is_reusable and connection.is_open
        if is_good and connection.address is self._address and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def _drop_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def made(self, connection: "_Connection") -> None:
        """A connection is open."""
        self._open.add(connection)

    def lost(self, connection: "_Connection") -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._closed and not self._open:
            self._closed.set()

    # Connecting

    def _connection(self, address: _Address) -> "_Connection":
        return _Connection(self, address)

    async def _connected(
        self, until: float, make: Callable[[_Address], Dialed]
    ) -> tuple[_Address, Dialed]:
        try:
            async with asyncio.timeout_at(until):
                while True:
                    await self._back_off()
                    if self._closed:
                        raise self._never("is not asked: the link is closed")
                    address = self._address
                    made = await self._connect(address, make)
                    if made is not None:
                        return address, made
        except TimeoutError:
            raise self._never(_LATE) from None

    async def _connect(
        self, address: _Address, make: Callable[[_Address], Dialed]
    ) -> Dialed | None:
        """A new connection; ``None`` if the link was moved or closed meanwhile."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._bounds.connect_s_max):
                transport, made = await loop.create_connection(
                    lambda: make(address), address.host, address.port, ssl=address.tls
                )
        except (OSError, ValueError) as problem:  # TimeoutError is an OSError
            if address is not self._address:
                return None
            self._failed(began)
            raise self._never(_why_not(problem)) from None
        if address is not self._address or self._closed:
            transport.close()
            return None
        self._failures = 0
        return made

    def _failed(self, began: float) -> None:
        # Attempts that were made side by side count as one.
        if began < self._retry_at:
            return
        self._failures += 1
        ceiling = min(BACK_OFF_S_MIN * 2 ** min(self._failures, 16), self._bounds.back_off_s_max)
        now = asyncio.get_running_loop().time()
        self._retry_at = now + ceiling * (0.5 + self._rng.uniform() / 2)

    async def _back_off(self) -> None:
        loop = asyncio.get_running_loop()
        while (rest_s := self._retry_at - loop.time()) > 0 and not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(rest_s, _WAKE_S_MIN)):
                    await self._moved.wait()

    def _wake(self) -> None:
        """Let those who back off look again."""
        self._moved.set()
        self._moved = asyncio.Event()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, link: Link, address: _Address) -> None:
        self.address = address
        self.until = math.inf
        """When the call under way ends."""
        self.idle_since = 0.0
        self.is_reusable = False
        """Once there was an answer: can another request follow it?"""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None

    @property
    def is_open(self) -> bool:
        """False once either side has closed it."""
        return not self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes, body_bytes_max: int, until: float) -> Reply:
        """Send a request; its answer, until ``until`` on the loop's clock. Raises ``LinkBroken``,
        and then the connection is closed.
        """
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        self._is_head = head.startswith(b"HEAD ")
        self._has_heard = False
        self._body_bytes_max = body_bytes_max
        self._clear()
        self.until = until
        self._link.watch(until)
        if len(body) <= _JOINED_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        try:
            return await answer
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self.until = math.inf

    def check(self, now: float) -> None:
        """Give the call up if its time is over."""
        if self.until <= now:
            self._fail(_LATE)

    def _clear(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._lines: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0

    def close(self, why: str = "") -> None:
        """Close it; at once, for this reason, if a request is under way."""
        if self._answer is None:
            self._transport.close()
        else:
            self._fail(why)

    def abort(self) -> None:
        """Close it at once."""
        self._answer = None
        self._transport.abort()

    def _fail(self, why: str) -> None:
        self._break(LinkBroken(f"{self.address.url} {why}", sent=True))
        self._transport.abort()

    def _break(self, problem: LinkBroken) -> None:
        answer, self._answer = self._answer, None
        self.until = math.inf
        if answer is not None and not answer.done():
            answer.set_exception(problem)

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        plug = transport.get_extra_info("socket")
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._link.made(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self._link.lost(self)
        if self._answer is not None:
            kind = LinkBroken if self._has_heard else _Unheard
            why = f"closed the connection{f': {problem}' if problem else ''}"
            self._break(kind(f"{self.address.url} {why}", sent=True))

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._transport.abort()  # nobody asked
            return
        self._has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._fail(f"gave an answer that cannot be read: {problem}")
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._fail("gave an answer whose head is too long")

    # The parser

    def on_message_begin(self) -> None:
        if self._answer is None:
            self._transport.abort()  # a second answer

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_head:
            # The parser would wait for the body that the head speaks of.
            self._settle(is_reusable=False)

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._answer is None:
            return
        if self._body_bytes > self._body_bytes_max:
            self._fail(f"gave an answer of more than {self._body_bytes_max} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._clear()  # the answer itself is still to come
        else:
            self._settle(is_reusable=self._parser.should_keep_alive())

    def _settle(self, *, is_reusable: bool) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        self.is_reusable = is_reusable and self.is_open
        self.idle_since = self._loop.time()
        status = self._parser.get_status_code()
        answer.set_result(Reply(status, self._lines, b"".join(self._body)))


def _why_not(problem: OSError | ValueError) -> str:
    """Why there is no connection."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not trusted: {problem.verify_message}"
    return f"cannot be reached: {problem or 'no connection in time'}"


def _lines(headers: Mapping[str, str]) -> str:
    """Header lines. Raises ``ValueError`` for a name or value that would end its line."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\n") != len(headers):
        raise ValueError("a header has a line break")
    return lines
