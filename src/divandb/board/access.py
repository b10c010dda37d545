"""Who may do what. The board refuses, not the client (Rule 3).

A principal proves who it is by name and secret (HTTP's Basic scheme). Only a keyed digest of each
secret is kept, and digests are compared in constant time. An admin may do everything; everybody
else what a topic's access list says.
"""

import base64
import binascii
import dataclasses
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from divandb.board.base import (
    PRINCIPAL_NAME,
    Access,
    BadRequest,
    Refused,
    Right,
    Unidentified,
    refusal,
)

SECRET_CHARS_MIN = 16
SECRET_CHARS_MAX = 256
SALT_BYTES = 16
PRINCIPALS_MAX = 4096


@dataclasses.dataclass(frozen=True)
class Principal:
    """Somebody who has proved who it is."""

    name: str
    is_admin: bool = False


@dataclasses.dataclass(frozen=True)
class Credential:
    """What is kept of a secret."""

    salt: bytes
    digest: bytes
    """HMAC-SHA-256 of the secret, keyed with the salt."""

    @classmethod
    def of(cls, secret: str, salt: bytes) -> "Credential":
        """Raises ``BadRequest`` for a secret that is too short, too long or not printable."""
        if not SECRET_CHARS_MIN <= len(secret) <= SECRET_CHARS_MAX or not secret.isprintable():
            raise BadRequest(
                f"A secret is {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} printable characters."
            )
        return cls(salt, _digest(salt, secret))

    def fits(self, secret: str) -> bool:
        """Is it this secret? Takes the same time whatever is wrong."""
        return hmac.compare_digest(self.digest, _digest(self.salt, secret))


def _digest(salt: bytes, secret: str) -> bytes:
    return hmac.digest(salt, secret.encode(), hashlib.sha256)


class Principals:
    """Names and credentials: ``admins`` from configuration, the rest as made known since."""

    def __init__(
        self, admins: Mapping[str, Credential], known: Mapping[str, Credential], decoy: Credential
    ) -> None:
        self._admins = dict(admins)
        self.known = dict(known)
        self._decoy = decoy

    def authenticate(self, authorization: str) -> Principal:
        """Who an `Authorization` header belongs to; raises ``Unidentified``."""
        name, secret = _basic(authorization)
        credential = self._admins.get(name) or self.known.get(name)
        # An unknown name takes as long as a wrong secret.
        if not (credential or self._decoy).fits(secret) or credential is None:
            raise Unidentified("Name or secret is wrong.")
        return Principal(name, is_admin=name in self._admins)

    def checked(self, name: str) -> str:
        """``name`` if a principal of that name may be made; raises ``BadRequest``."""
        if not PRINCIPAL_NAME.fullmatch(name):
            raise BadRequest(f"{name!r} cannot be a principal's name.")
        if name in self._admins:
            raise BadRequest(f"{name} is an admin of the board's configuration.")
        if name not in self.known and len(self.known) >= PRINCIPALS_MAX:
            raise BadRequest(f"There are {PRINCIPALS_MAX} principals already.")
        return name


def _basic(authorization: str) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise Unidentified("Send name and secret by the Basic scheme.")
    try:
        name, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise Unidentified("The Authorization header cannot be read.") from None
    if not colon:
        raise Unidentified("The Authorization header has no secret.")
    return name, secret


def basic(name: str, secret: str) -> str:
    """The `Authorization` header for a name and its secret."""
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()


def check_right(principal: Principal, access: Access, right: Right, topic: str) -> None:
    """Raises ``Refused``, saying which right is missing."""
    if not principal.is_admin and right not in access.get(principal.name, frozenset()):
        raise refusal(principal.name, right, topic)


def check_any_right(principal: Principal, access: Access, topic: str) -> None:
    """Raises ``Refused`` for those without any right on the topic."""
    if not access.get(principal.name):
        check_right(principal, access, Right.READ, topic)


def check_admin(principal: Principal, what: str) -> None:
    """Raises ``Refused`` for everybody but admins."""
    if not principal.is_admin:
        raise Refused(f"{principal.name} may not {what}: that takes an admin.")


def access_json(access: Access) -> dict[str, list[str]]:
    """An access list as JSON has it: ``{"m1": ["read", "write"]}``."""
    return {name: sorted(rights) for name, rights in access.items()}


def access_from(value: Any) -> Access:
    """The access list of a JSON value; raises ``ValueError``."""
    if not isinstance(value, dict):
        raise ValueError("access must be an object")
    return {name: frozenset(Right(right) for right in rights) for name, rights in value.items()}
