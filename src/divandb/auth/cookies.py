"""The ``AuthSession`` cookie, as CouchDB makes it.

    base64url(NAME ":" SECONDS ":" HMAC(secret + salt, NAME ":" SECONDS)), without padding

SECONDS is the wall clock at the login in upper-case hex, the HMAC raw bytes. The salt is the
user's: a new password makes old cookies void. The secret is the cluster's, so that every node reads
every node's cookies; several may be valid while one replaces another. Nothing is stored.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from divandb.auth.passwords import HASHES
from divandb.errors import BadRequest

NAME: Final = "AuthSession"
RENEW_SHARE = 0.9
"""A cookie with less than this share of its time left is replaced by a new one."""

TIMEOUT_S_MAX = 10 * 365 * 86400

_DIGEST_BYTES = {name: hashlib.new(real).digest_size for name, real in HASHES.items()}
_SECONDS = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LONG_AGO = "Thu, 01 Jan 1970 00:00:00 GMT"


class Settings(msgspec.Struct, frozen=True):
    """How session cookies are made; ``hashes[0]`` signs, all of them are accepted.

    ``persistent`` cookies outlive the browser's window. ``same_site`` and ``domain`` are left out
    when empty. ValueError for an unknown hash, or a timeout beyond ``TIMEOUT_S_MAX``.
    """

    timeout_s: int = 600
    persistent: bool = True
    same_site: Literal["", "None", "Lax", "Strict"] = ""
    domain: str = ""
    hashes: tuple[str, ...] = ("sha256", "sha")

    def __post_init__(self) -> None:
        if not self.hashes or any(name not in HASHES for name in self.hashes):
            raise ValueError(f"hash_algorithms must be some of {', '.join(HASHES)}")
        if not 1 <= self.timeout_s <= TIMEOUT_S_MAX:
            raise ValueError(f"the session timeout must be 1 to {TIMEOUT_S_MAX} seconds")


def pairs(line: str) -> list[tuple[str, str]]:
    """(name, value) of every cookie that a request's header names."""
    parts = (part.strip().partition("=") for part in line.split(";"))
    return [(name, value) for name, _, value in parts]


class Session(msgspec.Struct, frozen=True):
    """A cookie taken apart and not believed yet: ``signed`` is what ``mac`` must prove."""

    name: str
    issued_s: int
    signed: bytes
    mac: bytes


class Login(msgspec.Struct, frozen=True):
    """A cookie that holds: whose it is, and for how many seconds yet."""

    name: str
    left_s: int


def make(name: str, *, salt: str, secret: str, settings: Settings, now_s: int) -> str:
    """The cookie's value for ``name``, who logged in at ``now_s`` (wall clock, seconds)."""
    signed = f"{name}:{now_s:X}".encode()
    mac = hmac.digest(_key(secret, salt), signed, HASHES[settings.hashes[0]])
    return base64.urlsafe_b64encode(signed + b":" + mac).rstrip(b"=").decode()


def _key(secret: str, salt: str) -> bytes:
    return secret.encode() + salt.encode()


def parse(value: str) -> Session:
    """The parts of a cookie's value. BadRequest when it is not one of ours at all."""
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        whole = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        name, seconds, mac = whole.split(b":", 2)
        issued_s = int(seconds, 16) if _SECONDS.fullmatch(seconds) else 0
        return Session(name.decode(), issued_s, name + b":" + seconds, mac)
    except ValueError as error:
        reason = "Malformed AuthSession cookie. Please clear your cookies."
        raise BadRequest(reason) from error


def verify(
    session: Session, *, salt: str, secrets: tuple[str, ...], settings: Settings, now_s: int
) -> Login | None:
    """The login that ``session`` stands for; None when it is too old or not signed by us."""
    left_s = session.issued_s + settings.timeout_s - now_s
    if left_s <= 0:
        return None
    fitting = [name for name in settings.hashes if _DIGEST_BYTES[name] == len(session.mac)]
    for secret in secrets:
        for name in fitting:
            mac = hmac.digest(_key(secret, salt), session.signed, HASHES[name])
            if hmac.compare_digest(mac, session.mac):
                return Login(session.name, left_s)
    return None


def read(
    value: str,
    *,
    salt_of: Callable[[str], str | None],
    secrets: tuple[str, ...],
    settings: Settings,
    now_s: int,
) -> Login | None:
    """``parse`` and ``verify`` in one; ``salt_of`` gives a user's salt, None for unknown users.

    An empty value, which clients keep after a logout, is no login.
    """
    if not value:
        return None
    session = parse(value)
    salt = salt_of(session.name)
    if salt is None:
        return None
    return verify(session, salt=salt, secrets=secrets, settings=settings, now_s=now_s)


def needs_renewal(login: Login, settings: Settings) -> bool:
    """Whether the answer should carry a new cookie, so that whoever keeps asking stays in."""
    return login.left_s < settings.timeout_s * RENEW_SHARE


def set_cookie(value: str, *, settings: Settings, secure: bool, now_s: int) -> str:
    """The ``Set-Cookie`` header that hands out ``value``; ``secure`` when the client uses TLS."""
    expires = ""
    if settings.persistent:
        date = datetime.fromtimestamp(now_s + settings.timeout_s, UTC)
        expires = f"; Expires={_http_date(date)}; Max-Age={settings.timeout_s}"
    return f"{NAME}={value}; Version=1{expires}{_attributes(settings, secure)}"


def clear_cookie(*, settings: Settings, secure: bool) -> str:
    """The ``Set-Cookie`` header that makes a client forget its session."""
    expires = f"; Expires={_LONG_AGO}; Max-Age=0"
    return f"{NAME}=; Version=1{expires}{_attributes(settings, secure)}"


def _attributes(settings: Settings, secure: bool) -> str:
    parts = ["; Secure" if secure else ""]
    parts.append(f"; Domain={settings.domain}" if settings.domain else "")
    parts.append("; Path=/; HttpOnly")
    parts.append(f"; SameSite={settings.same_site}" if settings.same_site else "")
    return "".join(parts)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _http_date(date: datetime) -> str:
    """RFC 9110's date; not by strftime, whose names depend on the locale."""
    day, month = _DAYS[date.weekday()], _MONTHS[date.month - 1]
    return f"{day}, {date.day:02} {month} {date:%Y %H:%M:%S} GMT"
