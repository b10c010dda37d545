"""What both drivers make of httpx: its settings, its faults, and where a client begins."""

import dataclasses
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from divandb.client.errors import BadAnswerError
from divandb.client.nodes import Nodes
from divandb.client.options import Options
from divandb.client.sender import Line, Sender
from divandb.client.tokens import Session
from divandb.client.wire import Fault, Wait
from divandb.clock import Clock, Rng

_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)
SILENT_BEATS_MAX = 3
"""Heartbeats of a feed that may be missing."""


def begun(
    urls: str | Iterable[str], user: str | None, password: str | None, options: Options,
    changes: dict[str, Any], clock: Clock, rng: Rng,
) -> Line:  # fmt: skip
    """How a client asks, as its arguments say; raises ``ValueError`` for bad ones."""
    given = [urls] if isinstance(urls, str) else list(urls)
    if not given:
        raise ValueError("There must be a URL.")
    own = dataclasses.replace(options, **changes)
    places = []
    for url in given:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT")
        if user is None and parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
        place = parts.netloc.rpartition("@")[2]
        places.append(urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", "")))
    sender = Sender(Nodes(places, own, clock), own, user, password, clock, rng)
    session = Session() if own.sessions else None
    return Line(sender, session, own.concern, own.max_staleness_ms)


def settings() -> dict[str, Any]:
    """For an httpx client, but for its transport."""
    return {
        # Sessions go by header: cookies would carry one session's writes into another.
        "cookies": CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        "trust_env": False,
        "headers": {"user-agent": "divandb-client"},
    }


def timeout(options: Options, wait: Wait) -> httpx.Timeout:
    """How long each part of a request may take."""
    silence_s = {
        Wait.READ: options.read_s_max,
        Wait.WRITE: options.write_s_max,
        Wait.SLOW: options.slow_s_max,
        Wait.PROBE: options.probe_s_max,
        Wait.FEED: options.heartbeat_s * SILENT_BEATS_MAX,
    }[wait]
    connect_s = min(options.connect_s_max, silence_s)
    return httpx.Timeout(silence_s, connect=connect_s, pool=options.pool_s_max)


def fault_of(problem: Exception) -> Fault:
    """Why there is no answer."""
    why = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
    if isinstance(problem, httpx.PoolTimeout):
        return Fault(why, is_sent=False, is_ours=True)
    return Fault(why, is_sent=not isinstance(problem, _NO_CONNECTION))


class Collected:
    """The bytes of one answer, bounded."""

    def __init__(self, options: Options) -> None:
        self._bytes_max = options.answer_bytes_max
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """Another piece; raises ``BadAnswerError`` if that is too much."""
        self._size += len(part)
        if self._size > self._bytes_max:
            raise BadAnswerError(f"An answer of more than {self._bytes_max} bytes.")
        self._parts.append(part)

    def whole(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)
