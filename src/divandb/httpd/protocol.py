"""uvicorn's httptools protocol with our bounds, and the fast lane in it.

Bounds: how many connections there are (503); the size of a request's head (431) and the time it
takes; how long a client may stay silent while we wait for it, in between requests or in the middle
of a body; and how long it may take nothing of an answer.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from divandb.cluster.sessions import Token
from divandb.errors import BadRequest, Busy, DivanError, TooLarge
from divandb.httpd import respond
from divandb.httpd.door import Door
from divandb.httpd.lane import Lane, whole
from divandb.httpd.peer_lane import PREFIX, Done, Handler, PeerLane

NOT_CLIENTS = frozenset(
    {b"/_up", b"/_divan/heartbeat", b"/_divan/status", b"/_divan/topology",
     b"/_node/_local/_prometheus"}
)  # fmt: skip
"""Who asks for these watches the node. All other requests are of clients, or for clients."""
REFUSED_S_MAX = 1.0
"""A connection too many is given this time to say what it wants, so that it can hear why not."""


class _HeadTooLarge(TooLarge):
    status = 431


class _LaneWrite:
    """Stands where uvicorn keeps the request under way, while a lane carries it out."""

    def __init__(self, carry_out: Handler) -> None:
        self.carry_out = carry_out
        self.body = bytearray()
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = asyncio.Event()


def protocol_class(
    lane: Lane, peer_lane: PeerLane, header_bytes_max: int
) -> type[HttpToolsProtocol]:
    """A protocol class over these lanes, with this bound on a request's head."""

    class LaneProtocol(HttpToolsProtocol):
        """One connection."""

        laned = False
        head_bytes = 0
        in_head = False
        heard_s = 0.0
        untaken_bytes = 0
        running: Any = None
        refused = False
        token: Token | None = None
        """What was written over this connection."""

        def __init__(self, *args: Any, door: Door | None = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.door = door
            # Looked at below, once a connection.
            self.connections_max, self.limit_concurrency = self.limit_concurrency, None

        def _refuse(self, refusal: DivanError) -> None:
            """The last answer of a connection, without a look at what was asked."""
            if self.transport.is_closing():
                return
            answer = respond.error(refusal)
            headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
            headers.append((b"connection", b"close"))
            common = self.server_state.default_headers
            self.transport.write(whole(answer.status_code, headers, bytes(answer.body), common))
            self.transport.close()

        def _refuse_connection(self) -> None:
            self._refuse(Busy("Too many connections are open."))

        def send_400_response(self, msg: str) -> None:
            self._refuse(BadRequest(msg))

        # Silence

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.heard_s = self.loop.time()
            self.address = self.client[0] if self.client else ""
            if self.door is not None:
                self.door.came(self)
            if self.connections_max is not None and len(self.connections) > self.connections_max:
                self.refused = True
                self.silence = self.loop.call_later(REFUSED_S_MAX, self._refuse_connection)
            else:
                self._watch_silence(self.timeout_keep_alive)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.silence.cancel()
            if self.door is not None:
                self.door.went(self)
            # uvicorn tells the last request that came; one behind which it waits must know too.
            if self.running is not None and not self.running.response_complete:
                self.running.disconnected = True
                self.running.message_event.set()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self.running = cycle
            super()._start_asgi_task(cycle, app)

        def _watch_silence(self, after_s: float) -> None:
            self.silence = self.loop.call_later(after_s, self._on_silence)

        def _on_silence(self) -> None:
            """One timer a connection, moved on while there is traffic: cheaper than one each."""
            if self.transport.is_closing():
                return
            before, self.untaken_bytes = self.untaken_bytes, self.transport.get_write_buffer_size()
            quiet_s = self.loop.time() - self.heard_s
            waiting = self.cycle is None or self.cycle.response_complete or self.cycle.more_body
            if self.flow.read_paused:
                # It is us who are slow.
                self.heard_s = self.loop.time()
            if 0 < before == self.untaken_bytes:
                self.transport.abort()
            elif self.untaken_bytes or not waiting:
                self._watch_silence(self.timeout_keep_alive)
            elif quiet_s >= self.timeout_keep_alive:
                self.transport.close()
            else:
                self._watch_silence(max(self.timeout_keep_alive - quiet_s, 1.0))

        def _unset_keepalive_if_required(self) -> None:
            """Our own timer watches."""

        def data_received(self, data: bytes) -> None:
            if self.refused:
                self._refuse_connection()
                return
            # Within a head nothing but its end counts: it must not take for ever, drop by drop.
            if not self.in_head:
                self.heard_s = self.loop.time()
                super().data_received(data)
            else:
                super().data_received(data)
                if not self.in_head:
                    self.heard_s = self.loop.time()

        def on_response_complete(self) -> None:
            self.heard_s = self.loop.time()
            if self.url not in NOT_CLIENTS:
                self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.flow.resume_reading()
            if self.pipeline:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)

        # The clients' port

        @property
        def is_leaving(self) -> bool:
            """Is this the connection's last request?"""
            return self.door is not None and self.door.is_closed

        def leave_idle(self, idle_s: float) -> None:
            """Close if nothing was asked for so long, and nothing is under way."""
            is_free = self.cycle is None or self.cycle.response_complete
            if is_free and self.loop.time() - self.heard_s >= idle_s:
                self.transport.close()

        # The head

        def on_message_begin(self) -> None:
            self.in_head = True
            self.head_bytes = 0
            super().on_message_begin()
            self.scope["divan.connection"] = self  # type: ignore[typeddict-unknown-key]

        def on_url(self, url: bytes) -> None:
            self.url += url
            self._count(len(url))

        def on_header(self, name: bytes, value: bytes) -> None:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))
            self._count(len(name) + len(value) + 4)

        def _count(self, size: int) -> None:
            self.head_bytes += size
            if self.head_bytes > header_bytes_max:
                self._refuse(_HeadTooLarge("The head of the request is too large."))
                raise httptools.HttpParserError("request head too large")

        # The lane

        def on_headers_complete(self) -> None:
            self.in_head = False
            free = self.cycle is None or self.cycle.response_complete
            if self.flow.write_paused:
                free = False  # the client takes no answers: the normal way waits until it does
            lasting = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1"
            if free and lasting and not self.is_leaving:
                method = self.parser.get_method()
                if method in (b"GET", b"HEAD") and self._read(method == b"GET"):
                    return
                if method == b"PUT" and lane.takes_write(self.url, self.headers):
                    self.cycle = _LaneWrite(self._put)  # type: ignore[assignment]
                    return
                if method == b"POST" and self.url.startswith(PREFIX):
                    handler = peer_lane.handler(self.url, self.headers)
                    if handler is not None:
                        self.cycle = _LaneWrite(handler)  # type: ignore[assignment]
                        return
            super().on_headers_complete()
            if self.is_leaving and self.cycle is not None:
                self.cycle.keep_alive = False

        def _read(self, body: bool) -> bool:
            common = self.server_state.default_headers
            answer = lane.read(self.url, self.headers, self.address, common, self.token, body=body)
            if answer is None:
                return False
            self.laned = True
            self.transport.write(answer)
            self.server_state.total_requests += 1
            return True

        def on_body(self, body: bytes) -> None:
            if isinstance(self.cycle, _LaneWrite):
                # Bounded by the lanes: they look at the announced length.
                self.cycle.body += body
            elif not self.laned:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self.laned:
                self.laned = False
            elif isinstance(self.cycle, _LaneWrite) and self.cycle.more_body:
                self._write(self.cycle)
            else:
                super().on_message_complete()

        def _write(self, cycle: _LaneWrite) -> None:
            cycle.more_body = False
            body = bytes(cycle.body)

            def done(status: int, headers: list[tuple[bytes, bytes]], answer: bytes) -> None:
                cycle.response_complete = True
                if self.transport.is_closing():
                    return
                self.transport.write(
                    whole(status, headers, answer, self.server_state.default_headers)
                )
                if cycle.keep_alive:
                    self.on_response_complete()
                else:  # the server stops
                    self.transport.close()

            if not cycle.carry_out(body, done):
                self.cycle = None  # type: ignore[assignment]
                super().on_headers_complete()
                super().on_body(body)
                super().on_message_complete()

        def _put(self, body: bytes, done: Done) -> bool:
            scope: Any = self.scope
            return lane.write(self.url, self.headers, self.address, body, scope, done)

    return LaneProtocol
