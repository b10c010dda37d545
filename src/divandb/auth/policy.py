"""Who may do what: user contexts, ``_security`` objects and the checks made of them.

    unknown asker (name None)  401     known asker  403

with CouchDB's exceptions: what only server admins may do, compaction and metrics answer 401 to
everybody. Reasons match CouchDB to the letter.

A ``_security`` object is ``{"admins": {"names": [...], "roles": [...]}, "members": {...}}``; every
part may be missing. A server admin (role ``_admin``) passes every check, a database admin is a
member, and a database without any member names and roles is open to everybody, which means to
everybody who is logged in as long as ``check_valid_user`` guards the server.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from divandb.errors import BadRequest, DivanError, Forbidden, Unauthorized

ADMIN_ROLE: Final = "_admin"
METRICS_ROLE: Final = "_metrics"

DEFAULT_SECURITY: Final[dict[str, object]] = {
    "members": {"roles": [ADMIN_ROLE]},
    "admins": {"roles": [ADMIN_ROLE]},
}
"""What a database has until somebody sets another: only server admins get in."""

PUBLIC_SEGMENTS: Final = frozenset({"", "_up", "_session", "_utils"})
"""First path segments that are answered without a login."""

_NOT_A_GROUP = "admins or members must be a JSON list of strings"


class UserContext(msgspec.Struct, frozen=True):
    """Who is asking: ``name`` (None: nobody known), roles, and how they showed it.

    ``handler`` is what ``GET /_session`` calls ``authenticated``: "cookie" or "default" (Basic).
    """

    name: str | None = None
    roles: tuple[str, ...] = ()
    handler: str | None = None

    @property
    def is_admin(self) -> bool:
        """Whether this is a server admin."""
        return ADMIN_ROLE in self.roles


ANONYMOUS: Final = UserContext()


class Group(msgspec.Struct, frozen=True):
    """One half of a ``_security`` object: users by name, and users by role."""

    names: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()

    def has(self, ctx: UserContext) -> bool:
        """Whether ``ctx`` is in the group, by role or by name."""
        return ctx.name in self.names or not self.roles.isdisjoint(ctx.roles)


class Security(msgspec.Struct, frozen=True):
    """A checked ``_security`` object in the form that checks are fast on."""

    admins: Group = Group()
    members: Group = Group()

    @property
    def is_public(self) -> bool:
        """Whether no member is named, so that everybody is one."""
        return not self.members.names and not self.members.roles


def parse_security(obj: object) -> Security:
    """The rules in a ``_security`` object; keys it does not know are left to the client.

    ``readers`` stands in for missing ``members``, as in old databases. BadRequest when a part
    has the wrong type.
    """
    if not isinstance(obj, Mapping):
        raise BadRequest("The security object must be a JSON object.")
    members = obj["members"] if "members" in obj else obj.get("readers", {})
    return Security(_group(obj.get("admins", {})), _group(members))


def _group(part: object) -> Group:
    if not isinstance(part, Mapping):
        raise BadRequest(_NOT_A_GROUP)
    return Group(_strings(part, "names"), _strings(part, "roles"))


def _strings(part: Mapping[str, object], key: str) -> frozenset[str]:
    values = part.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRequest(f"{key} must be a JSON list of strings")
    return frozenset(values)


def is_db_admin(security: Security, ctx: UserContext) -> bool:
    """Whether ``ctx`` is a server admin or an admin of this database."""
    return ctx.is_admin or security.admins.has(ctx)


def is_member(security: Security, ctx: UserContext) -> bool:
    """Whether ``ctx`` may read this database and write ordinary documents."""
    return is_db_admin(security, ctx) or security.is_public or security.members.has(ctx)


def check_member(security: Security, ctx: UserContext) -> None:
    """Let members of the database pass: reading, and writing ordinary documents."""
    if is_member(security, ctx):
        return
    if ctx.name is None:
        raise Unauthorized("You are not authorized to access this db.")
    raise Forbidden("You are not allowed to access this db.")


def check_admin(security: Security, ctx: UserContext) -> None:
    """Let admins of the database pass: ``_security``, limits, design documents."""
    if is_db_admin(security, ctx):
        return
    raise _refusal(ctx)("You are not a db or server admin.")


def _refusal(ctx: UserContext) -> type[DivanError]:
    return Unauthorized if ctx.name is None else Forbidden


def check_compaction(security: Security, ctx: UserContext) -> None:
    """Let admins of the database compact it and clean its views; 401 to others, as CouchDB."""
    if not is_db_admin(security, ctx):
        raise Unauthorized("You are not a server or db admin.")


def check_server_admin(ctx: UserContext) -> None:
    """Let server admins pass; 401 to others, known or not, as CouchDB."""
    if not ctx.is_admin:
        raise Unauthorized("You are not a server admin.")


def check_metrics(ctx: UserContext) -> None:
    """Let server admins and the role ``_metrics`` read the node's numbers."""
    if not ctx.is_admin and METRICS_ROLE not in ctx.roles:
        raise Unauthorized("You are not a server admin or read-only metrics user")


def check_known(ctx: UserContext) -> None:
    """Let everybody pass who is logged in: starting a replication."""
    if ctx.name is None:
        raise Unauthorized("You are not an authenticated user")


def check_valid_user(ctx: UserContext, segment: str) -> None:
    """The guard before all routes while the setting ``require_valid_user`` is on.

    ``segment`` is the first part of the path without its slash ("" for ``/``); a few are public,
    so that one can log in and load balancers can ask.
    """
    if ctx.name is None and segment not in PUBLIC_SEGMENTS:
        raise Unauthorized("Authentication required.")
