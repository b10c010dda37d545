"""Session tokens: what a client sends so that every node shows it what it wrote and saw.

A token names, for each origin of writes, its slot and the last write: see docs/http-api.md. Nodes
join what a request brings with what its answer shows; answers that come side by side are joined
here. Who cannot read a token keeps the newest, so a server that changes the form loses little.
"""

import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

HEADER = "divan-session"
BEHIND = "divan-session-behind"
NOTHING = "kA"
"""The token of who never wrote or read."""

_Entry = tuple[str, int, int]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Entry]).decode


def joined(one: str, other: str) -> str:
    """Both tokens' writes; ``other`` if one of them cannot be read."""
    if one in (other, NOTHING):
        return other
    try:
        entries = _entries(one) + _entries(other)
    except (ValueError, msgspec.MsgspecError):
        return other
    last: dict[int, int] = {}
    slots: dict[int, str] = {}
    for slot, origin, oseq in entries:
        last[origin] = max(oseq, last.get(origin, 0))
        slots[origin] = slot or slots.get(origin, "")
    found = [(slots[origin], origin, oseq) for origin, oseq in sorted(last.items())]
    return urlsafe_b64encode(_encode(found)).rstrip(b"=").decode()


def _entries(token: str) -> list[_Entry]:
    return _decode(urlsafe_b64decode(token + "=" * (-len(token) % 4)))


class Session:
    """What one client, or one explicit session of it, has written and seen."""

    def __init__(self, token: str | None = None) -> None:
        """``token``: from an earlier session, wherever it ran."""
        self._lock = threading.Lock()
        self.token = token or NOTHING
        """To be sent with the next request; safe to store and to hand on."""
        self.is_behind = False
        """Was the last answer without something that the session wrote, because no node that lives
        has it?
        """

    def note(self, sent: str, token: str | None, *, is_behind: bool) -> None:
        """The answer to a request with the token ``sent`` said this.

        It has all that was sent, with fewer entries if nodes need them no more: only what came from
        other answers meanwhile is to be joined with it.
        """
        with self._lock:
            self.is_behind = is_behind
            if token:
                self.token = token if self.token == sent else joined(self.token, token)
