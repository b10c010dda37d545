"""Password verifiers in CouchDB's schemes, so that its users and admins keep their passwords.

    pbkdf2         derived_key = hex(PBKDF2-HMAC-prf(password, salt, iterations)); the only one made
    simple         password_sha = hex(SHA1(password + salt)); old documents, only checked
    simple+pbkdf2  a simple one hashed again without knowing the password; only checked

``salt`` is hashed as the text it is, hex digits and all; keys are as long as the prf's digest. A
verifier stands in a user's document as members, or in the admins' settings as one line:

    -pbkdf2:sha256-KEY,SALT,ITERATIONS    -pbkdf2-KEY,SALT,ITERATIONS (sha)    -hashed-SHA,SALT

How long a check takes is up to whoever wrote the document, so ``Settings`` bounds iterations.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from divandb.clock import Rng
from divandb.errors import BadRequest, Forbidden

HASHES: Final = {
    "sha": "sha1",
    "sha224": "sha224",
    "sha256": "sha256",
    "sha384": "sha384",
    "sha512": "sha512",
}
"""CouchDB's names for the hash functions of PBKDF2 and of cookies, to Python's."""

SALT_BYTES = 16
LEGACY_PRF = "sha"
LEGACY_ITERATIONS = 10_000
TOTP_STEP_S = 30
TOTP_DIGITS_MAX = 10

_ADMIN_PBKDF2 = re.compile(r"-pbkdf2(?::(sha(?:224|256|384|512)?))?-(.*)", re.DOTALL)
_ADMIN_SIMPLE = "-hashed-"


class Settings(msgspec.Struct, frozen=True):
    """How new passwords are hashed, and which old hashes are checked at all.

    Checking refuses fewer than ``iterations_min`` and more than ``iterations_max``, which is about
    half a second of one core with sha256. ValueError when they do not fit together.
    """

    prf: str = "sha256"
    iterations: int = 600_000
    iterations_min: int = 1
    iterations_max: int = 2_000_000

    def __post_init__(self) -> None:
        if self.prf not in HASHES:
            raise ValueError(f"pbkdf2_prf must be one of {', '.join(HASHES)}")
        if not 1 <= self.iterations_min <= self.iterations <= self.iterations_max:
            raise ValueError("1 <= min_iterations <= iterations <= max_iterations does not hold")


class Verifier(msgspec.Struct, frozen=True):
    """What a password is checked against; ``key`` is lower-case hex, ``salt`` any text.

    ``prf`` and ``iterations`` mean nothing for scheme "simple".
    """

    scheme: str
    salt: str
    key: str
    prf: str = LEGACY_PRF
    iterations: int = LEGACY_ITERATIONS

    def members(self) -> dict[str, object]:
        """The members of a user's document that say the same."""
        if self.scheme == "simple":
            return {"password_scheme": "simple", "salt": self.salt, "password_sha": self.key}
        return {
            "password_scheme": self.scheme,
            "pbkdf2_prf": self.prf,
            "salt": self.salt,
            "iterations": self.iterations,
            "derived_key": self.key,
        }


def new_salt(rng: Rng) -> str:
    """A salt for one new verifier: 32 hex digits."""
    return rng.token(SALT_BYTES).hex()


def hash_password(password: str, *, salt: str, settings: Settings) -> Verifier:
    """A new verifier for ``password``. Takes its time by design: call it in a worker thread."""
    key = _pbkdf2(password, salt, settings.prf, settings.iterations)
    return Verifier("pbkdf2", salt, key, settings.prf, settings.iterations)


def verify(password: str, verifier: Verifier, settings: Settings) -> bool:
    """Whether ``password`` is the right one; as slow as hashing, compared in constant time.

    Forbidden when the verifier names an unknown hash function or an iteration count out of bounds.
    """
    return hmac.compare_digest(_key_of(password, verifier, settings), verifier.key.encode())


def _key_of(password: str, verifier: Verifier, settings: Settings) -> bytes:
    if verifier.scheme != "pbkdf2":
        password = _simple(password, verifier.salt)
    if verifier.scheme == "simple":
        return password.encode()
    _check_cost(verifier, settings)
    return _pbkdf2(password, verifier.salt, verifier.prf, verifier.iterations).encode()


def _check_cost(verifier: Verifier, settings: Settings) -> None:
    if verifier.prf not in HASHES:
        raise Forbidden("PRF is invalid")
    if verifier.iterations < settings.iterations_min:
        raise Forbidden("Iteration count is too low for this server")
    if verifier.iterations > settings.iterations_max:
        raise Forbidden("Iteration count is too high for this server")


def _pbkdf2(password: str, salt: str, prf: str, iterations: int) -> str:
    return hashlib.pbkdf2_hmac(HASHES[prf], password.encode(), salt.encode(), iterations).hex()


def _simple(password: str, salt: str) -> str:
    return hashlib.sha1(password.encode() + salt.encode(), usedforsecurity=False).hexdigest()


def decoy(settings: Settings) -> Verifier:
    """A verifier that no password fits, for unknown accounts: the check must take as long."""
    return Verifier("pbkdf2", "", "", settings.prf, settings.iterations)


def outdated(verifier: Verifier, settings: Settings) -> bool:
    """Whether a user who logs in with ``verifier`` should get a new one with the same salt."""
    wanted = ("pbkdf2", settings.prf, settings.iterations)
    return (verifier.scheme, verifier.prf, verifier.iterations) != wanted


def from_document(doc: Mapping[str, object]) -> Verifier | None:
    """The verifier in a user's document; None when it has none that a password could fit."""
    scheme, salt = doc.get("password_scheme", "simple"), doc.get("salt", "")
    prf, iterations = doc.get("pbkdf2_prf", LEGACY_PRF), doc.get("iterations", LEGACY_ITERATIONS)
    key = doc.get("password_sha" if scheme == "simple" else "derived_key")
    if scheme not in ("simple", "pbkdf2", "simple+pbkdf2") or type(iterations) is not int:
        return None
    if not (isinstance(salt, str) and isinstance(prf, str) and isinstance(key, str)):
        return None
    return Verifier(str(scheme), salt, key, prf, iterations)


def parse_admin(line: str) -> Verifier | None:
    """The verifier in an admin's line; None when the line is a password that waits for hashing.

    BadRequest when the line begins like a verifier and is none.
    """
    if line.startswith(_ADMIN_SIMPLE):
        key, salt = _fields(line.removeprefix(_ADMIN_SIMPLE), 2)
        return Verifier("simple", salt, key)
    match = _ADMIN_PBKDF2.fullmatch(line)
    if match is None:
        return None
    key, salt, iterations = _fields(match[2], 3)
    if not re.fullmatch(r"[0-9]{1,12}", iterations):
        raise _malformed()
    return Verifier("pbkdf2", salt, key, match[1] or LEGACY_PRF, int(iterations))


def _fields(text: str, count: int) -> list[str]:
    fields = text.split(",")
    if len(fields) != count or not all(fields):
        raise _malformed()
    return fields


def _malformed() -> BadRequest:
    return BadRequest("The admin's password hash is malformed.")


def admin_line(verifier: Verifier) -> str:
    """The verifier as a line of the admins' settings. ValueError for "simple+pbkdf2"."""
    if verifier.scheme == "simple":
        return f"{_ADMIN_SIMPLE}{verifier.key},{verifier.salt}"
    if verifier.scheme == "pbkdf2":
        return f"-pbkdf2:{verifier.prf}-{verifier.key},{verifier.salt},{verifier.iterations}"
    raise ValueError(f"admins cannot have the password scheme {verifier.scheme}")


def totp_matches(config: object, token: str, now_s: int) -> bool:
    """Whether ``token`` is a user's one-time token now, or one step earlier or later (RFC 6238).

    ``config`` is the document's ``totp`` member: ``{"key": base32, "algorithm": "sha",
    "length": 6}``. One that makes no sense matches nothing: a second factor is never skipped.
    """
    settings = config if isinstance(config, Mapping) else {}
    key, length = _totp_key(settings.get("key")), settings.get("length", 6)
    algorithm = HASHES.get(str(settings.get("algorithm", LEGACY_PRF)))
    if key is None or algorithm is None or type(length) is not int:
        return False
    if not 1 <= length <= TOTP_DIGITS_MAX:
        return False
    step, given = now_s // TOTP_STEP_S, token.encode()
    good = [_hotp(key, max(0, step + shift), algorithm, length) for shift in (-1, 0, 1)]
    return sum(hmac.compare_digest(one.encode(), given) for one in good) > 0


def _totp_key(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        return None


def _hotp(key: bytes, counter: int, algorithm: str, length: int) -> str:
    """RFC 4226: four bytes of the digest, from where its last half-byte says."""
    digest = hmac.digest(key, counter.to_bytes(8, "big"), algorithm)
    start = digest[-1] & 15
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFFFFFF
    return str(number).zfill(length)[-length:]
