"""How this node stands: what its answers say of the session and of the age of its view.

    Divan-Session   where this client's writes are; sent back, it makes every node wait for them
    Divan-Lag       how old the node's view may be, ms; "unknown" while no other node answers
    Divan-Silent    slots without a live owner, with their age: "m2=5300"
    Divan-Concern   the write concern that was reached
    Divan-Visible   on how many nodes of how many, when "visible" was asked for and not reached

A single node, which has nobody to differ from, says nothing of the kind.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from starlette.datastructures import Headers, QueryParams
from starlette.types import Scope

from divandb.cluster import sessions
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress
from divandb.cluster.sessions import NOTHING, Session, Token
from divandb.commands import Concern
from divandb.config import Limits
from divandb.errors import BadRequest
from divandb.settings import Settings
from divandb.vector import Vector

AGE_KEPT_S = 0.002
FORWARDED = "divan-forwarded"
"""On a request that another node passed on: it goes no further."""
REPEAT = "divan-repeat"
"""On a write that its client has sent before, and has no answer to."""


class View(NamedTuple):
    """How old the view was from which an answer began to be made."""

    as_of: float | None
    """Monotonic, seconds: all that was written before was there. ``None``: nobody knows."""
    silent: dict[str, float]
    """Slots of which that was not said: when their owners were last heard of, likewise."""


class Standing:
    """What is true of every answer that this node gives just now."""

    def __init__(
        self,
        peers: Peers,
        progress: Progress,
        contained: Callable[[], Vector],
        settings: Settings,
        limits: Limits,
        cluster: str,
    ) -> None:
        """``contained`` is what the file holds: a read may show it before the loop is told."""
        self.cookie_prefix = sessions.prefix_of(cluster)
        self._contained = contained
        self._peers = peers
        self._progress = progress
        self._settings = settings
        self._limits = limits
        self._age: list[tuple[str, str]] = []
        self._age_lines = b""
        self._age_until = -1.0

    @property
    def is_alone(self) -> bool:
        """Is there no other member?"""
        return not self._peers.all()

    @property
    def slots_known(self) -> int:
        """Of how many origins it is known whose writes they are; of one that is, it stays so."""
        return len(self._progress.slots)

    def lag_ms(self) -> float | None:
        """How old the view may be; ``None``: nobody knows."""
        if not self._peers.lease_holds():
            return None
        return self._progress.lag(self._limits.silent_slot_ms)[0]

    def age(self) -> list[tuple[str, str]]:
        """The headers that say how old the view is; made anew only every ``AGE_KEPT_S``."""
        now = self._progress.now()
        if now >= self._age_until:
            self._age = self._make_age()
            self._age_lines = b"".join(
                b"%b: %b\r\n" % (n.encode(), v.encode()) for n, v in self._age
            )
            self._age_until = now + AGE_KEPT_S
        return self._age

    def _make_age(self) -> list[tuple[str, str]]:
        return self.age_of(self.view(), AGE_KEPT_S)

    def view(self) -> View:
        """What is read from now on is no older than this."""
        now = self._progress.now()
        lag_ms, silent = self._progress.lag(self._limits.silent_slot_ms)
        known = lag_ms is not None and self._peers.lease_holds()
        as_of = now - lag_ms / 1000 if known and lag_ms is not None else None
        return View(as_of, {slot: now - age_ms / 1000 for slot, age_ms in silent.items()})

    def age_of(self, view: View, kept_s: float = 0.0) -> list[tuple[str, str]]:
        """The headers that say how old this view is now, and will be for ``kept_s``. The node may
        have come further while an answer was made, and the answer may have nothing of that.
        """
        if self.is_alone:
            return []
        now, as_of = self._progress.now(), view.as_of
        lag = str(ceil((now - as_of + kept_s) * 1000)) if as_of is not None else "unknown"
        found = [("divan-lag", lag)]
        silent = {slot: (now - heard) * 1000 for slot, heard in view.silent.items()}
        if silent:
            named = ", ".join(f"{slot}={int(age)}" for slot, age in sorted(silent.items()))
            found.append(("divan-silent", named))
        return found

    def age_lines(self) -> bytes:
        """The same as they go over the wire."""
        self.age()
        return self._age_lines

    def is_young(self, headers: Headers) -> bool:
        """Does the view meet the request's ``Divan-Max-Staleness``? Raises ``BadRequest``."""
        asked = headers.get("divan-max-staleness")
        if asked is None or self.is_alone:
            return True
        if not asked.isascii() or not asked.isdigit() or len(asked) > 12:
            raise BadRequest("Divan-Max-Staleness must be a number of milliseconds.")
        lag_ms = self.lag_ms()
        return lag_ms is not None and lag_ms <= int(asked)

    def session(self, scope: Scope, headers: Headers, cookies: list[tuple[str, str]]) -> Session:
        """The request's session; raises ``BadRequest`` for a header that cannot be read."""
        token = sessions.of_cookies(cookies, self.cookie_prefix)
        header = headers.get(sessions.HEADER)
        if header is not None:
            token = token.joined(sessions.parse(header))
        connection = scope.get("divan.connection")
        if connection is not None and connection.token is not None:
            token = token.joined(connection.token)
        return Session(token, self._concern(scope, headers), is_repeat=REPEAT in headers)

    def _concern(self, scope: Scope, headers: Headers) -> Concern:
        asked = headers.get("divan-concern")
        if asked is None and b"concern=" in scope.get("query_string", b""):
            asked = QueryParams(scope["query_string"]).get("concern")
        if asked is None:
            return self.usual_concern()
        try:
            return Concern(asked)
        except ValueError:
            raise BadRequest("The concern must be local, board or visible.") from None

    def usual_concern(self) -> Concern:
        """What the operator has set for writes that do not say."""
        name = self._settings.find("divan", "write_concern")
        return Concern(name) if name in list(Concern) else Concern.LOCAL

    def said(self, session: Session, *, wants_token: bool) -> list[tuple[str, str]]:
        """The headers that carry the session on: with what it wrote, or if ``wants_token`` with
        all that its answer may have shown.
        """
        found: list[tuple[str, str]] = []
        if session.reached is not None and session.concern is not Concern.LOCAL:
            found.append(("divan-concern", session.reached.value))
            if session.concern is Concern.VISIBLE and session.reached is not Concern.VISIBLE:
                found.append(("divan-visible", "{}/{}".format(*session.visible)))
        if self.is_alone:
            return found
        if session.written:
            token = self.token_of(session)
            text = sessions.text(token.vector, token.slots)
            found.append(("set-cookie", sessions.cookie(self.cookie_prefix, session.slot, text)))
            if not wants_token:
                found.append(("divan-session", text))
        if wants_token:
            shown = self.shown(session.needs.joined(self.token_of(session)))
            found.append(("divan-session", sessions.text(shown.vector, shown.slots)))
        return found

    def shown(self, needs: Token) -> Token:
        """All that an answer may have shown to who needed and wrote this."""
        contained = self._contained()  # before ends are looked at, which may be more by then
        contained = self._progress.closings.compact(contained)
        return self._fewer(needs.joined(Token(contained, self._progress.slots)))

    def token_of(self, session: Session) -> Token:
        """What the request wrote."""
        if not session.written:
            return NOTHING
        vector = self._progress.closings.fewer(self._progress.newest(session.written))
        slots = self._progress.slots
        return Token(vector, {origin: slots.get(origin, session.slot) for origin in vector})

    def _fewer(self, token: Token) -> Token:
        """The same with no more entries than it needs: some origins have been closed since."""
        vector = self._progress.closings.fewer(token.vector)
        slots = {**token.slots, **self._progress.slots}
        return Token(vector, {origin: slots.get(origin, "") for origin in vector})

    def note(self, scope: Scope, session: Session) -> None:
        """The connection's next requests see what this one wrote, token or not."""
        connection = scope.get("divan.connection")
        if connection is not None and session.written and not self.is_alone:
            token = (connection.token or NOTHING).joined(self.token_of(session))
            connection.token = self._fewer(token)
