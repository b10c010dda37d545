"""Session tokens: where a client's writes are, so that any node can tell whether it has them.

A token names, for each origin, the slot that it writes for and the last write. Clients carry it in
the ``Divan-Session`` header, or, without knowing, in one cookie a slot: parallel answers of
different masters do not overwrite each other (trace 24).
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from itertools import islice

import msgspec

from divandb.commands import Concern, Job
from divandb.errors import BadRequest
from divandb.vector import Vector, join

HEADER = "divan-session"
COOKIE_PREFIX = "DivanSession-"
CLUSTER_CHARS = 8
TOKEN_CHARS_MAX = 16_384
ORIGINS_MAX = 1024
COOKIES_MAX = 64
"""Cookies of a request that are read, one a slot; those behind them say nothing."""

Entry = tuple[str, int, int]
"""(slot, origin, oseq)."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


class Token(msgspec.Struct, frozen=True):
    """Writes, and whose slots they are."""

    vector: dict[int, int] = {}
    slots: dict[int, str] = {}

    def joined(self, other: "Token") -> "Token":
        """Both sessions' writes."""
        vector = dict(self.vector)
        for origin, oseq in other.vector.items():
            if vector.get(origin, 0) < oseq:
                vector[origin] = oseq
        return Token(vector, {**self.slots, **other.slots})


NOTHING = Token()


def text(vector: Vector, slots: dict[int, str]) -> str:
    """The token as clients carry it: safe in headers, cookies and URLs."""
    entries = [(slots.get(origin, ""), origin, oseq) for origin, oseq in sorted(vector.items())]
    return urlsafe_b64encode(_encode(entries)).rstrip(b"=").decode()


def parse(token: str) -> Token:
    """The token of a header, empty for who never wrote; raises ``BadRequest``."""
    if not token:
        return NOTHING
    try:
        if len(token) > TOKEN_CHARS_MAX:
            raise ValueError(token)
        entries = _decode(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if len(entries) > ORIGINS_MAX or any(oseq < 0 for _, _, oseq in entries):
            raise ValueError(token)
    except (ValueError, msgspec.MsgspecError):
        raise BadRequest("Malformed Divan-Session header.") from None
    vector: dict[int, int] = {}
    for _, origin, oseq in entries:
        vector[origin] = max(oseq, vector.get(origin, 0))
    return Token(vector, {origin: slot for slot, origin, _ in entries})


def prefix_of(cluster: str) -> str:
    """How the names of a cluster's cookies begin. Another one at the same address, such as the one
    before it on a developer's machine, would wait for writes that it never had.
    """
    return f"{COOKIE_PREFIX}{cluster[:CLUSTER_CHARS]}-"


def of_cookies(cookies: Iterable[tuple[str, str]], prefix: str) -> Token:
    """What a browser's cookies say; those that are not ours, or broken, say nothing."""
    found = NOTHING
    ours = (value for name, value in cookies if name.startswith(prefix))
    for value in islice(ours, COOKIES_MAX):
        try:
            found = found.joined(parse(value.strip('"')))
        except BadRequest:
            continue
    return found


def cookie(prefix: str, slot: str, token: str) -> str:
    """The ``Set-Cookie`` value by which a client brings the token back."""
    return f"{prefix}{slot}={token}; Path=/; HttpOnly"


class Session:
    """One request's part in its client's session: what it needs, and what it has written."""

    __slots__ = ("concern", "is_repeat", "needs", "reached", "slot", "visible", "written")

    def __init__(
        self, needs: Token = NOTHING, concern: Concern = Concern.LOCAL, *, is_repeat: bool = False
    ) -> None:
        """``is_repeat``: the client has sent this before, and nobody knows what became of it."""
        self.is_repeat = is_repeat
        self.needs = needs
        self.concern = concern
        self.written: Vector = {}
        self.slot = ""
        """Whose master wrote last."""
        self.reached: Concern | None = None
        """What every write of the request has reached; ``None`` before there is one."""
        self.visible = (0, 0)

    def took_part(self, job: Job) -> None:
        """A command of this request was carried out."""
        if not job.slot:
            return
        self.slot = job.slot
        self.written = join(self.written, job.written) if self.written else job.written
        lowest = self.reached is None or _ORDER.index(job.reached) < _ORDER.index(self.reached)
        if lowest:
            self.reached, self.visible = job.reached, job.visible


_ORDER = list(Concern)
