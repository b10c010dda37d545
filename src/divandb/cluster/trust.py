"""Who is a node of this cluster: credentials for peer links, derived from one secret.

A cluster has one secret; from it come two keys. Every node knows the *members' key*, only masters
know the *masters' key*. A node's token says its name, role and slot, and carries a mark (an
HMAC-SHA-256) made with each key. A replica can check that a caller belongs to the cluster, and a
master which role it has: whoever holds the members' key alone cannot make a token that a master
takes (Rule 3).
"""

import hashlib
import hmac

from divandb.config import Keys

SCHEME = "Divan "
SECRET_BYTES = 32


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of its own for one purpose."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)


def board_secret(secret: bytes, principal: str) -> str:
    """The secret of one of the Event Boards' principals."""
    return derived(secret, f"board {principal}").hex()


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
