"""A simulated network: requests and answers take time, are lost, come twice, and are cut.

An exchange is one request with its answer, as HTTP/1.1 over a connection of its own has it: what
was sent to a stopped process waits there until it goes on; who dies resets its connections; a cut
swallows what is on its way.
"""

import asyncio
import dataclasses
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from divandb.cluster.messages import PREFIX
from divandb.link import LinkBroken, Reply
from tests.sim.world import Process, SimLoop

Headers = list[tuple[bytes, bytes]]
CONNECT_S = 2.0
RESET_S = 0.5
INSTANT_S = 1e-6
"""Between two parts of an answer: timers of one moment may run in any order."""
AT_ONCE = {f"{PREFIX}/{name}" for name in ("heartbeat", "commands", "reached", "hot")}
"""Nodes answer these without a task."""
CONNECTED_BEFORE = 0.5
"""The chance that a request to somebody behind a cut goes out on a connection from before it."""


@dataclasses.dataclass
class Faults:
    """How bad things are; a scenario sets these. Shares are of requests."""

    delay_s: float = 0.002
    """The longest time that a message usually takes."""
    slow: float = 0.0
    """Share of messages that take up to ``late_s``."""
    late_s: float = 3.0
    answer_s: float = 10.0
    """So long a node waits for another's answer."""
    requests_lost: float = 0.0
    """Never carried out."""
    replies_lost: float = 0.0
    """Carried out, and not answered."""
    requests_doubled: float = 0.0
    """Of those that only nodes send: once answered, carried out a second time, up to ``late_s``
    later, with nobody to take that answer.
    """
    lost_answers: float = 0.0
    """Batches that the board stores and does not acknowledge."""
    torn_batches: float = 0.0
    """Batches of which only a part is stored, and which are not acknowledged."""
    late_batches: float = 0.0
    """Batches that are given up, and stored all the same up to ``late_s`` later."""


class Broken(Exception):
    """No answer, or only half of one. ``sent``: may the request have been carried out?"""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Request(NamedTuple):
    """What is asked."""

    method: str
    path: str
    """With its query."""
    headers: Headers
    body: bytes


class Site:
    """A place on the network: a name, and the process that answers there, if one does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: Process | None = None
        self.serve: Callable[[Exchange], Awaitable[None]]
        """Answers an exchange; runs in the process."""
        self.serve_at_once: Callable[[Exchange], None]
        """The same for those ``AT_ONCE``."""


class Exchange:
    """One request and its answer."""

    def __init__(self, network: "Network", source: str, target: str, request: Request) -> None:
        self.request = request
        self._network = network
        self.source = source
        self._target = target
        self._gone: asyncio.Event | None = None
        self._is_abandoned = False
        self._parts: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        """Of the asking side."""
        self._last_at = 0.0
        self.is_mute = False
        """Does the answer go nowhere?"""
        self.is_doubled = False
        self._is_lost = False
        self._is_whole = False
        """Has the asking side all of the answer?"""

    @property
    def gone(self) -> asyncio.Event:
        """Set when nobody waits for the answer any more. Most answers are over before somebody
        asks for this.
        """
        if self._gone is None:
            self._gone = asyncio.Event()
            if self._is_abandoned:
                self._gone.set()
        return self._gone

    def send(self, part: Any) -> None:
        """The answering side: (status, headers), then pieces of the body, then ``None``."""
        if part is None and self.is_doubled:
            self._network.double(self, self._target)
        if not self.is_mute:
            loop = self._network.loop
            self._last_at = max(self._last_at + INSTANT_S, loop.now_s + self._network.delay())
            loop.call_at(self._last_at, self._arrive, part, context=loop.nobody)

    def send_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """The same for an answer that goes out in one piece, and arrives so or not at all."""
        if self.is_doubled:
            self._network.double(self, self._target)
        if not self.is_mute:
            loop = self._network.loop
            parts = [(status, headers), body, None] if body else [(status, headers), None]
            self._last_at = loop.now_s + self._network.delay()
            loop.call_at(self._last_at, self._arrive, *parts, context=loop.nobody)

    def _arrive(self, *parts: Any) -> None:
        # Where something of an answer is lost, nothing that follows it arrives.
        self._is_lost |= not self._network.arrives(self._target, self.source)
        if not self._is_lost:
            self._parts.extend(parts)
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _break(self) -> None:
        self._parts.append(Broken("reset", sent=True))
        self._wake()

    def reset(self, after_s: float = 0.0) -> None:
        """The connection breaks; what is on its way by then arrives before."""
        self.is_mute = True
        after_s = max(after_s, self._last_at + INSTANT_S - self._network.loop.now_s)
        self._network.loop.later(after_s, self._break)

    def abandon(self) -> None:
        """The asking side goes away; nobody hears of that once the answer is whole."""
        if not self._is_whole:
            self._network.loop.later(self._network.delay(), self._abandoned)

    def _abandoned(self) -> None:
        self._is_abandoned = True
        if self._gone is not None:
            self._gone.set()

    async def receive(self, silence_s: float) -> Any:
        """The asking side: the next part; raises ``Broken``."""
        if not self._parts:
            await self._arrives_within(silence_s)
        part = self._parts.popleft()
        if isinstance(part, Broken):
            raise part
        self._is_whole = part is None
        return part

    async def _arrives_within(self, silence_s: float) -> None:
        loop = self._network.loop
        self._waiting = loop.create_future()
        alarm = loop.call_later(silence_s, self._give_up)
        try:
            await self._waiting
        finally:
            alarm.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Broken("gave no answer in time", sent=True))


class Network:
    """All sites, and what lies between them."""

    def __init__(self, loop: SimLoop, rng: random.Random, faults: Faults) -> None:
        self.loop = loop
        self.faults = faults
        self.sites: dict[str, Site] = {}
        self.cuts: set[frozenset[str]] = set()
        self._rng = rng
        self._muted: set[tuple[str, str]] = set()
        self._cuts_for_now: list[set[frozenset[str]]] = []
        self._one_way: list[set[tuple[str, str]]] = []

    def add(self, name: str) -> Site:
        """A new place; its URL is ``http://NAME``."""
        return self.sites.setdefault(name, Site(name))

    def linked(self, one: str, other: str) -> bool:
        """Do messages pass between them?"""
        if not self.cuts and not self._cuts_for_now:
            return True
        pair = frozenset((one, other))
        return pair not in self.cuts and not any(pair in cut for cut in self._cuts_for_now)

    def cut_for_now(self, pairs: set[frozenset[str]]) -> Callable[[], None]:
        """Cut these, beside whatever else is cut; how this one ends."""
        self._cuts_for_now.append(pairs)
        return lambda: _remove(self._cuts_for_now, pairs)

    def cut_one_way(self, pairs: set[tuple[str, str]]) -> Callable[[], None]:
        """What the first of a pair sends does not come to the second; how this ends."""
        self._one_way.append(pairs)
        return lambda: _remove(self._one_way, pairs)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.cuts.clear()
        self._cuts_for_now.clear()
        self._one_way.clear()

    def mute(self, one: str, other: str) -> None:
        """What ``one`` answers does not come to ``other``."""
        self._muted.add((one, other))

    def unmute(self) -> None:
        """All answers arrive again."""
        self._muted.clear()

    def arrives(self, one: str, other: str) -> bool:
        """Does what ``one`` sends just now come to ``other``?"""
        return (
            self.linked(one, other)
            and (one, other) not in self._muted
            and not self._is_one_way(one, other)
        )

    def _is_one_way(self, one: str, other: str) -> bool:
        return bool(self._one_way) and any((one, other) in cut for cut in self._one_way)

    def delay(self) -> float:
        """How long a message takes."""
        faults = self.faults
        longest = faults.late_s if self._rng.random() < faults.slow else faults.delay_s
        return self._rng.random() * longest

    async def open(
        self, source: str, target: str, request: Request, connect_s: float = CONNECT_S
    ) -> Exchange:
        """Send a request; raises ``Broken`` if it cannot be sent."""
        await asyncio.sleep(self.delay())
        exchange = Exchange(self, source, target, request)
        site, faults = self.sites[target], self.faults
        if (
            not self.linked(source, target)
            or self._is_one_way(source, target)
            or (self._is_one_way(target, source) and self._rng.random() > CONNECTED_BEFORE)
        ):
            if self._rng.random() < CONNECTED_BEFORE:
                return exchange
            await asyncio.sleep(connect_s)
            raise Broken("cannot be reached", sent=False)
        if site.process is None or not site.process.is_alive:
            raise Broken("refused", sent=False)
        if self._rng.random() < faults.requests_lost:
            exchange.reset(self._rng.random() * RESET_S)
            return exchange
        if self._rng.random() < faults.replies_lost:
            exchange.reset(self._rng.random() * RESET_S)
        self.loop.later(self.delay(), self._deliver, exchange, site)
        between_nodes = request.path.startswith(PREFIX)
        exchange.is_doubled = between_nodes and self._rng.random() < faults.requests_doubled
        return exchange

    def double(self, exchange: Exchange, target: str) -> None:
        """What was answered is carried out once more, some time later."""
        second = Exchange(self, exchange.source, target, exchange.request)
        second.is_mute = True
        late_s = self._rng.random() * self.faults.late_s
        self.loop.later(late_s, self._deliver, second, self.sites[target])

    def _deliver(self, exchange: Exchange, site: Site) -> None:
        process = site.process
        if process is None or not process.is_alive:
            exchange.reset()
        elif self.linked(exchange.source, site.name) and not self._is_one_way(
            exchange.source, site.name
        ):
            process.at_death.append(exchange.reset)
            if exchange.request.path in AT_ONCE:
                self.loop.call_soon(
                    _answer_at_once, site, exchange, process, context=process.new_context()
                )
            else:
                process.start(_answer(site, exchange, process))

    async def ask(self, source: str, target: str, request: Request, within_s: float) -> Reply:
        """A whole answer; raises ``Broken``."""
        until = self.loop.now_s + within_s
        exchange = await self.open(source, target, request)
        try:
            status, headers = await exchange.receive(until - self.loop.now_s)
            body = bytearray()
            while (piece := await exchange.receive(until - self.loop.now_s)) is not None:
                body += piece
        finally:
            exchange.abandon()
        return Reply(status, headers, bytes(body))


def _remove(cuts: list[Any], pairs: Any) -> None:
    for place, cut in enumerate(cuts):
        if cut is pairs:
            del cuts[place]
            return


def _answer_at_once(site: Site, exchange: Exchange, process: Process) -> None:
    try:
        site.serve_at_once(exchange)
    except Exception:
        exchange.reset()
        raise
    finally:
        process.at_death.remove(exchange.reset)


async def _answer(site: Site, exchange: Exchange, process: Process) -> None:
    try:
        await site.serve(exchange)
    except Exception:
        exchange.reset()
        raise
    finally:
        process.at_death.remove(exchange.reset)


class SimLink:
    """What ``divandb.link.Link`` is between real nodes."""

    def __init__(self, network: Network, source: str, url: str, headers: Mapping[str, str]) -> None:
        self._network = network
        self._source = source
        self.set_headers(headers)
        self.set_url(url)

    def set_url(self, url: str) -> None:
        self._target = urlsplit(url).hostname or ""

    def set_headers(self, headers: Mapping[str, str]) -> None:
        self._headers = [(n.encode(), v.encode()) for n, v in headers.items()]

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, wait_s: float = 0.0,
        body_bytes_max: int, repeatable: bool = False,
    ) -> Reply:  # fmt: skip
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        request = Request(method, path, headers, body)
        within_s = wait_s + self._network.faults.answer_s
        try:
            return await self._network.ask(self._source, self._target, request, within_s)
        except Broken as broken:
            raise LinkBroken(f"{self._target} {broken.reason}", sent=broken.sent) from None

    async def close(self) -> None:
        return


class SimTransport(httpx.AsyncBaseTransport):
    """The network for those parts of a node that stream over httpx."""

    def __init__(self, network: Network, source: str) -> None:
        self._network = network
        self._source = source

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        asked = Request(request.method, request.url.raw_path.decode(), headers, body)
        limits = request.extensions["timeout"]
        try:
            exchange = await self._network.open(
                self._source, request.url.host, asked, limits["connect"]
            )
        except Broken as broken:
            raise httpx.ConnectError(broken.reason) from None
        try:
            status, headers = await exchange.receive(limits["read"])
        except Broken as broken:
            exchange.abandon()
            raise httpx.ReadError(broken.reason) from None
        return httpx.Response(status, headers=headers, stream=_Stream(exchange, limits["read"]))


class _Stream(httpx.AsyncByteStream):
    def __init__(self, exchange: Exchange, silence_s: float) -> None:
        self._exchange = exchange
        self._silence_s = silence_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self._exchange.receive(self._silence_s)) is not None:
                yield piece
        except Broken as broken:
            raise httpx.ReadError(broken.reason) from None

    async def aclose(self) -> None:
        self._exchange.abandon()
