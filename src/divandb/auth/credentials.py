"""The ``Authorization: Basic`` header, and which of them were found right before.

Checking a password takes a tenth of a second by design, and clients send it with each request. So a
header that was found right is remembered, whole and only as a keyed digest: the key is random for
each process, so neither a dump of the memory nor the timing of a look-up says anything about
passwords. Entries hold until the user or the admins change, never for a time: whoever commits
such a change calls ``forget`` or ``clear`` in the same step.

Whoever asks the cache must ask ``throttle.LoginThrottle.locked`` as well, or the cache would answer
guesses at full speed.
"""

import binascii
import hashlib
from base64 import b64encode
from collections import OrderedDict

from divandb.auth.policy import UserContext

DIGEST_BYTES = 16
KEY_BYTES = 32
FORGOTTEN_MAX = 1024
"""So many changed users are told apart; checks that are older count as overtaken."""


def parse_basic(header: bytes) -> tuple[str, str] | None:
    """Name and password in the value of an ``Authorization`` header.

    None when it is not Basic or malformed: the request is anonymous then, not a failed login. The
    pair ``_:_`` is how a browser is made to forget a login, and also means nobody.
    """
    if header[:6].lower() != b"basic ":
        return None
    try:
        text = binascii.a2b_base64(header[6:].strip(), strict_mode=True).decode()
    except ValueError:
        return None
    name, colon, password = text.partition(":")
    if not colon or (name == "_" and password == "_"):
        return None
    return name, password


def basic_header(name: str, password: str) -> bytes:
    """The header that says ``name`` and ``password``: login forms use it to ask the same cache."""
    return b"Basic " + b64encode(f"{name}:{password}".encode())


class VerifiedCache:
    """Headers known to be right, and the user context each gives.

    Bounded, least recently used out first. One thread (the event loop) uses it. ``key`` is
    ``KEY_BYTES`` random bytes.
    """

    def __init__(self, key: bytes, *, entries_max: int = 4096) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=DIGEST_BYTES)
        self._entries: OrderedDict[bytes, UserContext] = OrderedDict()
        self._by_name: dict[str | None, set[bytes]] = {}
        self._entries_max = entries_max
        self._forgotten: OrderedDict[str | None, int] = OrderedDict()
        self._forgotten_all = 0
        self.generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, header: bytes) -> UserContext | None:
        """The user that ``header`` was found to be right for; None when it must be checked."""
        digest = self._digest(header)
        ctx = self._entries.get(digest)
        if ctx is not None:
            self._entries.move_to_end(digest)
        return ctx

    def put(self, header: bytes, ctx: UserContext, generation: int) -> None:
        """Remember that ``header`` is right.

        ``generation`` is the cache's at the time the account was read. If the user was forgotten
        since, the check may have used a password that is no longer the right one: not remembered.
        """
        if generation < max(self._forgotten_all, self._forgotten.get(ctx.name, 0)):
            return
        digest = self._digest(header)
        self._drop(digest)
        self._entries[digest] = ctx
        self._by_name.setdefault(ctx.name, set()).add(digest)
        if len(self._entries) > self._entries_max:
            self._drop(next(iter(self._entries)))

    def forget(self, name: str) -> None:
        """The user ``name`` was changed or deleted: all headers of that user must be checked."""
        self.generation += 1
        self._forgotten[name] = self.generation
        self._forgotten.move_to_end(name)
        if len(self._forgotten) > FORGOTTEN_MAX:
            self._forgotten_all = self._forgotten.popitem(last=False)[1]
        for digest in self._by_name.pop(name, ()):
            del self._entries[digest]

    def clear(self) -> None:
        """All headers must be checked: the admins changed, or nobody knows what did."""
        self.generation += 1
        self._forgotten_all = self.generation
        self._forgotten.clear()
        self._entries.clear()
        self._by_name.clear()

    def _digest(self, header: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(header)
        return keyed.digest()

    def _drop(self, digest: bytes) -> None:
        ctx = self._entries.pop(digest, None)
        if ctx is None:
            return
        digests = self._by_name[ctx.name]
        digests.discard(digest)
        if not digests:
            del self._by_name[ctx.name]
