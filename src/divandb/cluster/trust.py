"""Who is a node of this cluster: credentials for peer links, derived from one secret.

A cluster has one secret; from it come two keys. Every node knows the *members' key*, only masters
know the *masters' key*. A node's token says its name, role and slot, and carries a mark (an
HMAC-SHA-256) made with each key. A replica can check that a caller belongs to the cluster, and a
master which role it has: whoever holds the members' key alone cannot make a token that a master
takes (Rule 3).

A slot's owner may change (``cluster.failover``). Whoever takes it over needs what its owner shows:
a token with that role, the masters' key, and the secret of the slot's principal on the boards,
which comes from the masters' key. Any live master can give that. For the case that none lives, each
replica has a copy (``Config.spare``) that it uses for nothing else; who can read a replica's
configuration can read it, and an operator who does not want that leaves it out.
"""

import hashlib
import hmac
from collections.abc import Iterable

from divandb.cluster import topics
from divandb.config import MASTER, REPLICA, Keys, Member, Spare

SCHEME = "Divan "
SECRET_BYTES = 32


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of its own for one purpose."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)


def board_secret(secret: bytes, principal: str) -> str:
    """The secret of one of the Event Boards' principals."""
    if topics.is_slot(principal):
        return _slot_secret(derived(secret, "masters"), principal)
    return derived(secret, f"board {principal}").hex()


def _slot_secret(masters: bytes, slot: str) -> str:
    return derived(masters, f"board {slot}").hex()


def board_secrets(secret: bytes, members: Iterable[Member]) -> dict[str, str]:
    """Principal → secret, of all that these members may ever be on the boards."""
    principals = {one for member in members for one in topics.principals_of(member)}
    return {principal: board_secret(secret, principal) for principal in sorted(principals)}


def spare_of(secret: bytes, member: Member) -> Spare:
    """What a member shows in the role that it has not at first."""
    members, masters = derived(secret, "members"), derived(secret, "masters")
    if member.role == REPLICA:
        return _owners(members, masters, member.name, member.slot)
    principal = topics.principal_as_replica(member)
    made = token(members, masters, member.name, REPLICA, member.slot)
    return Spare(made, b"", principal, board_secret(secret, principal))


def grant(keys: Keys, name: str, slot: str) -> Spare:
    """What the node of this name shows as the slot's owner; made by a master."""
    return _owners(keys.members, keys.masters, name, slot)


def _owners(members: bytes, masters: bytes, name: str, slot: str) -> Spare:
    made = token(members, masters, name, MASTER, slot)
    return Spare(made, masters, slot, _slot_secret(masters, slot))


def keys_of(secret: bytes, name: str, role: str, slot: str, *, is_master: bool) -> Keys:
    """What a node of this name is given."""
    members, masters = derived(secret, "members"), derived(secret, "masters")
    return Keys(
        cluster=derived(secret, "cluster")[:16].hex(),
        cookies=derived(secret, "cookies")[:16].hex(),
        token=token(members, masters, name, role, slot),
        members=members,
        masters=masters if is_master else b"",
    )


def token(members: bytes, masters: bytes, name: str, role: str, slot: str) -> str:
    """The credential of the node of this name."""
    who = f"{name},{role},{slot}"
    return f"{who},{_mark(members, who)},{_mark(masters, who)}"


def holder(keys: Keys, authorization: str) -> tuple[str, str, str] | None:
    """(name, role, slot) of a node by its ``Authorization`` header; ``None`` if it is no member.

    A replica cannot check the role, and gives nobody a right that depends on it.
    """
    if not keys.members or not authorization.startswith(SCHEME):
        return None
    parts = authorization.removeprefix(SCHEME).split(",")
    if len(parts) != 5:
        return None
    name, role, slot, mark, masters_mark = parts
    who = f"{name},{role},{slot}"
    is_member = hmac.compare_digest(_mark(keys.members, who), mark)
    if keys.masters:
        is_member &= hmac.compare_digest(_mark(keys.masters, who), masters_mark)
    return (name, role, slot) if is_member else None


def _mark(key: bytes, who: str) -> str:
    return hmac.digest(key, who.encode(), hashlib.sha256).hex()
