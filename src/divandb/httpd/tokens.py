"""Session tokens on the fast lane: what requests bring is read once, and what answers say is made
once.

What a node contains only grows while it runs, so a token whose writes were here once needs no
second look. What an answer may have shown (``Standing.shown``) stays the same until the file
changes, and clients send back what they were told: of many requests few bring anything new.
"""

from collections.abc import Callable
from typing import NamedTuple

from divandb.auth import cookies
from divandb.cluster import sessions
from divandb.cluster.sessions import NOTHING, Token
from divandb.errors import BadRequest
from divandb.httpd.standing import Standing
from divandb.vector import Vector, covers

HEADER = sessions.HEADER.encode()
COOKIE = b"cookie"
KEPT_MAX = 64
"""Headers that are kept in mind, of at most ``sessions.TOKEN_CHARS_MAX`` bytes each. With one more
all are forgotten: to read them again is cheap.
"""
_LOGIN = cookies.NAME.encode()


class _Said(NamedTuple):
    needs: Token
    shown: Token
    line: bytes


class Tokens:
    """Those of one node's clients. Lives on the event loop."""

    def __init__(
        self,
        standing: Standing,
        contains: Callable[[Vector], bool],
        stamp: Callable[[], int | None],
    ) -> None:
        """``stamp`` stays the same until the file changes (``HotDocuments.stamp``)."""
        self._standing = standing
        self._contains = contains
        self._stamp = stamp
        self._met: dict[bytes, Token] = {}
        self._said: dict[bytes, _Said] = {}
        self._said_as_of: tuple[int, int] | None = None

    def met(self, header: bytes | None, cookie: bytes | None) -> Token | None:
        """The writes that a request needs, if all of them are here; ``None``: they are not, or the
        normal way has to look. ``header`` and ``cookie`` are as they came.
        """
        ours = NOTHING if cookie is None else self._known(cookie, self._of_cookies)
        if ours is None or header is None:
            return ours
        theirs = self._known(header, of_header)
        if theirs is None or ours is NOTHING:
            return theirs
        return ours.joined(theirs)

    def _of_cookies(self, value: bytes) -> Token | None:
        """What cookies say; ``None`` where one of them may be a login."""
        if _LOGIN in value:
            return None
        pairs = cookies.pairs(value.decode("latin-1"))
        return sessions.of_cookies(pairs, self._standing.cookie_prefix)

    def _known(self, brought: bytes, read: Callable[[bytes], Token | None]) -> Token | None:
        known = self._met.get(brought)
        if known is not None:
            return known
        token = read(brought)
        if token is None or not self._contains(token.vector):
            return None
        if len(brought) <= sessions.TOKEN_CHARS_MAX:
            _make_room(self._met)
            self._met[brought] = token
        return token

    def line(self, header: bytes, needs: Token, written: Token | None) -> bytes:
        """The line of the answer to a request with this ``header``, which ``needs`` these writes,
        with these ``written`` over its connection. To be asked after everything was read.
        """
        if self._standing.is_alone:
            return b""
        if written is not None:
            needs = needs.joined(written)
        stamp = self._stamp()
        if stamp is None:
            return self._made(needs).line
        as_of = (stamp, self._standing.slots_known)
        if as_of != self._said_as_of:
            self._said.clear()
            self._said_as_of = as_of
        said = self._said.get(header)
        if said is None:
            _make_room(self._said)
            said = self._said[header] = self._made(needs)
        elif said.needs is not needs and not covers(said.shown.vector, needs.vector):
            return self._made(needs).line
        return said.line

    def _made(self, needs: Token) -> _Said:
        shown = self._standing.shown(needs)
        text = sessions.text(shown.vector, shown.slots)
        return _Said(needs, shown, b"%b: %b\r\n" % (HEADER, text.encode()))


def of_header(value: bytes) -> Token | None:
    """The token of a header; ``None``: it is malformed."""
    try:
        return sessions.parse(value.decode("latin-1"))
    except BadRequest:
        return None


def _make_room(kept: dict[bytes, Token] | dict[bytes, _Said]) -> None:
    if len(kept) >= KEPT_MAX:
        kept.clear()
