"""The rules for documents of ``_users``: hashed on write, validated, shown to few, logged in with.

A user is the document ``org.couchdb.user:NAME`` with ``type`` "user", ``name``, ``roles`` and a
verifier (see ``passwords``). ``prepare`` runs on every write before ``validate``,
``check_visible`` on every read. Reasons match CouchDB's own validation function to the letter.

Nothing here chooses anything: the salt is given, so that a write executed twice is the same write.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from divandb.auth.passwords import (
    Settings,
    Verifier,
    decoy,
    from_document,
    hash_password,
    totp_matches,
    verify,
)
from divandb.auth.policy import ADMIN_ROLE, METRICS_ROLE, Security, UserContext, is_db_admin
from divandb.errors import BadRequest, Forbidden, NotFound, Unauthorized

USERS_DB: Final = "_users"
ID_PREFIX: Final = "org.couchdb.user:"
WRONG_LOGIN: Final = "Name or password is incorrect."

SHOWN_CHARS_MAX = 100

Document = Mapping[str, Any]

_SCHEMES = ("simple", "pbkdf2", "simple+pbkdf2")
_HIDDEN = frozenset(
    {
        "derived_key",
        "iterations",
        "password",
        "password_scheme",
        "password_sha",
        "pbkdf2_prf",
        "preserve_salt",
        "salt",
    }
)


class PasswordRule(msgspec.Struct, frozen=True):
    """Something new passwords must match: a regular expression, and what to tell who fails."""

    pattern: str
    reason: str = ""


class Account(msgspec.Struct, frozen=True):
    """What a name logs in with: an admin's line, a user's document, or both.

    ``salt`` goes into the signature of session cookies; ``totp`` is the document's, None without.
    """

    name: str
    roles: tuple[str, ...]
    salt: str
    verifier: Verifier | None
    totp: object = None


def document_name(doc_id: str) -> str | None:
    """The user that a document of ``_users`` is about; None for design documents and others."""
    return doc_id.removeprefix(ID_PREFIX) if doc_id.startswith(ID_PREFIX) else None


def account(name: str, admin: Verifier | None, doc: Document | None) -> Account | None:
    """The account called ``name``, None when there is none.

    ``admin`` is the settings' verifier and wins; ``doc`` is the live document with ``_conflicts``
    when it has any, and adds its roles. Unauthorized while a user's document is in conflict,
    since two masters may have accepted two passwords.
    """
    if admin is not None:
        return Account(name, (ADMIN_ROLE, *_granted(doc or {})), admin.salt, admin)
    if doc is None:
        return None
    if "_conflicts" in doc:
        raise Unauthorized(
            "User document conflicts must be resolved before the document"
            " is used for authentication purposes."
        )
    salt = doc.get("salt", "")
    return Account(
        name,
        _granted(doc),
        salt if isinstance(salt, str) else "",
        from_document(doc),
        doc.get("totp"),
    )


def authenticate(
    who: Account | None,
    password: str,
    *,
    settings: Settings,
    now_s: int,
    token: str | None = None,
) -> UserContext:
    """The user context after a login; Unauthorized when anything is wrong, without saying what.

    Slow by design, for unknown accounts as well: call it in a worker thread. ``token`` is the
    one-time token of a login form; None (a Basic header) never opens an account with ``totp``.
    Forbidden when the account's hash costs more than the settings allow.
    """
    verifier = who.verifier if who is not None else None
    right = verify(password, verifier or decoy(settings), settings)
    if who is None or not right or not _token_right(who, token, now_s):
        raise Unauthorized(WRONG_LOGIN)
    return UserContext(who.name, who.roles, "default")


def _token_right(who: Account, token: str | None, now_s: int) -> bool:
    return who.totp is None or (token is not None and totp_matches(who.totp, token, now_s))


def prepare(
    doc: Document,
    *,
    ctx: UserContext,
    security: Security,
    salt: str,
    settings: Settings,
    rules: tuple[PasswordRule, ...] = (),
) -> dict[str, Any]:
    """The document as it is to be stored: a ``password`` is replaced by its verifier.

    ``salt`` is used unless the document asks to keep its own (``preserve_salt``). Slow when there
    is a password. NotFound for another user's document, as if it did not exist; Forbidden when
    ``password`` is not text; BadRequest when it breaks a rule.
    """
    name = document_name(str(doc.get("_id")))
    if not is_db_admin(security, ctx) and ctx.name is not None and ctx.name != name:
        raise NotFound("missing")
    password = doc.get("password")
    if password is None:
        return dict(doc)
    verifier = hash_password(
        _checked(password, rules), salt=_kept_salt(doc, salt), settings=settings
    )
    rest = {key: value for key, value in doc.items() if key not in _HIDDEN}
    return rest | verifier.members()


def _checked(password: object, rules: tuple[PasswordRule, ...]) -> str:
    if not isinstance(password, str):
        raise Forbidden(f"Password value of '{_shown(password)}' is invalid.")
    for rule in rules:
        if re.search(rule.pattern, password) is None:
            reason = f"Password does not conform to requirements. {rule.reason}"
            raise BadRequest(reason.rstrip())
    return password


def _kept_salt(doc: Document, salt: str) -> str:
    if doc.get("preserve_salt") is not True:
        return salt
    kept = doc.get("salt", salt)
    if not isinstance(kept, str):
        raise Forbidden(f"Salt value of '{_shown(kept)}' is invalid.")
    return kept


def validate(new: Document, old: Document | None, ctx: UserContext, security: Security) -> None:
    """Let ``new`` replace ``old`` in ``_users`` or raise Forbidden with CouchDB's reason.

    ``new`` has been through ``prepare``. ``old`` is None or a tombstone when there is no live
    document. Only for ordinary documents: design documents are for admins in every database.
    """
    live = None if old is None or old.get("_deleted") is True else old
    if new.get("_deleted") is True:
        _check_delete(live, ctx)
        return
    name, roles = _check_shape(new)
    if live is not None and live.get("name") != name:
        raise Forbidden("Usernames can not be changed.")
    _check_verifier(new)
    if not is_db_admin(security, ctx):
        _check_own(name, roles, live, ctx)
    _check_names(name, roles)


def _check_delete(old: Document | None, ctx: UserContext) -> None:
    if ctx.is_admin or (old is not None and ctx.name is not None and ctx.name == old.get("name")):
        return
    raise Forbidden("Only admins may delete other user docs.")


def _check_shape(new: Document) -> tuple[str, list[str]]:
    """The name and roles of ``new``; the order of the checks is CouchDB's."""
    if new.get("type") != "user":
        raise Forbidden("doc.type must be user")
    name, roles = new.get("name"), new.get("roles")
    if _is_nothing(name):
        raise Forbidden("doc.name is required")
    if _is_nothing(roles):
        raise Forbidden("doc.roles must exist")
    if not isinstance(roles, list):
        raise Forbidden("doc.roles must be an array")
    if not all(isinstance(role, str) for role in roles):
        raise Forbidden("doc.roles can only contain strings")
    if not isinstance(name, str) or new.get("_id") != ID_PREFIX + name:
        raise Forbidden("Doc ID must be of the form org.couchdb.user:name")
    return name, roles


def _is_nothing(value: object) -> bool:
    """What the original's language takes for false: empty lists and objects are something."""
    return value is None or value in ("", 0)


def _check_verifier(new: Document) -> None:
    if not _is_nothing(new.get("password_sha")) and _is_nothing(new.get("salt")):
        raise Forbidden(
            "Users with password_sha must have a salt.See /_utils/script/couch.js for example code."
        )
    scheme = new.get("password_scheme")
    if not _is_nothing(scheme) and scheme not in _SCHEMES:
        raise Forbidden(f"Password scheme `{_shown(scheme)}` not supported.")
    if scheme == "pbkdf2" and type(new.get("iterations")) not in (int, float):
        raise Forbidden("iterations must be a number.")
    if scheme == "pbkdf2" and not isinstance(new.get("derived_key"), str):
        raise Forbidden("derived_key must be a string.")


def _check_own(name: str, roles: list[str], old: Document | None, ctx: UserContext) -> None:
    """What users may do to their own documents: everything but give themselves roles."""
    if old is None:
        if roles:
            raise Forbidden("Only _admin may set roles")
        return
    if ctx.name != name:
        raise Forbidden("You may only update your own user document.")
    if sorted(_roles(old)) != sorted(roles):
        raise Forbidden("Only _admin may edit roles")


def _check_names(name: str, roles: list[str]) -> None:
    if not all(_is_grantable(role) for role in roles):
        raise Forbidden("No system roles (starting with underscore) in users db.")
    if name.startswith("_"):
        raise Forbidden("Username may not start with underscore.")
    if ":" in name:
        raise Forbidden("Character `:` is not allowed in usernames.")


def _is_grantable(role: str) -> bool:
    return not role.startswith("_") or role == METRICS_ROLE


def _roles(doc: Document) -> tuple[str, ...]:
    values = doc.get("roles")
    listed = values if isinstance(values, list) else []
    return tuple(value for value in listed if isinstance(value, str))


def _granted(doc: Document) -> tuple[str, ...]:
    """The document's roles, without those that no document may give, however it got here."""
    return tuple(role for role in _roles(doc) if _is_grantable(role))


def _shown(value: object) -> str:
    return str(value)[:SHOWN_CHARS_MAX]


def check_visible(doc_id: str, ctx: UserContext, security: Security) -> None:
    """Let admins and the document's own user read it.

    NotFound for others, as if it were not there; Forbidden for design documents.
    """
    if is_db_admin(security, ctx):
        return
    if doc_id.startswith("_design/"):
        raise Forbidden("Only administrators can view design docs in the users database.")
    if ctx.name is None or ctx.name != document_name(doc_id):
        raise NotFound("missing")
