"""May a member be removed for good? Data in, an error or nothing out.

A removed node comes back only as a new one, with a copy of a file. What it has accepted as its
slot's owner and nobody else has is lost with it: so one that is not heard of, or is known to have
more than others, goes only if whoever asks says that he knows (``is_forced``).

A node may be taking its slot over at the very moment. Masters know to whom they have granted that,
and do not remove it; whom another one removes all the same publishes first what it has answered
(``leave``).
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from divandb.cluster.peers import Peer, Peers
from divandb.errors import NotFound, PreconditionFailed
from divandb.store import membership
from divandb.store.ledger import Ledger
from divandb.telemetry import Log
from divandb.tenure import Tenure
from divandb.vector import Vector

PUBLISH_S_MAX = 60.0
"""So long a node that was removed tries to publish what it has answered as its slot's owner."""


class Place(Protocol):
    """What the node's role knows of the boards."""

    async def finish(self, within_s: float) -> bool:
        """Publish what is here by now; is all of it on the boards?"""
        ...


async def leave(
    tenure: Tenure, place: Place, execute: Callable[[Callable[[Ledger], Any], int], Awaitable[Any]],
    unpublished: Callable[[], Vector], log: Log,
) -> None:  # fmt: skip
    """This node was removed: let nothing be lost with it, and remember that it does not start
    again. Nobody asks it for anything any more.
    """
    tenure.is_leaving = True
    await execute(lambda ledger: None, 0)  # behind what is being written
    if unpublished() and not await place.finish(PUBLISH_S_MAX):
        log.event("removed with writes that nobody else may have", unpublished=unpublished())
    await execute(lambda ledger: membership.note_expelled(ledger.connection), 0)


def check(
    peers: Peers, own: Vector, name: str, now: float, *, is_forced: bool, is_to_own: bool
) -> None:
    """Raises ``NotFound`` or ``PreconditionFailed`` that says why not. ``own`` is what the node
    contains that is asked, ``now`` its monotonic clock; ``is_to_own``: was the other one told a
    moment ago that it may take its slot over?
    """
    peer = peers.find(name)
    if name == peers.tenure.member.name:
        raise PreconditionFailed("A node does not remove itself: ask another one.")
    if peer is None:
        raise NotFound(f"There is no node {name}.")
    slot = peer.member.slot
    owner = peers.tenure.owner_of(slot)
    if owner is None or owner == name:
        raise PreconditionFailed(
            f"{name} owns {slot}: have another node of its group take it over first, "
            f"with `divandb demote {name}`. The last node of a slot cannot be removed."
        )
    if is_to_own:
        raise PreconditionFailed(f"{name} may be taking {slot} over just now: ask again shortly.")
    if not is_forced:
        _check_lost(peers, own, peer, now)


def _check_lost(peers: Peers, own: Vector, peer: Peer, now: float) -> None:
    name = peer.member.name
    ahead = sum(max(n - own.get(origin, 0), 0) for origin, n in peer.vector.items())
    if ahead:
        raise PreconditionFailed(
            f"{name} has said of {ahead} writes that it has them, which are not here yet: they may "
            "be lost with it. Wait, or remove it by force."
        )
    if not peers.speaks(peer):
        heard = "never" if peer.heard is None else f"{now - peer.heard:.0f} s ago"
        raise PreconditionFailed(
            f"{name} does not answer (last heard of: {heard}). If it has owned its slot, it may "
            "hold writes that nobody else has. Start it first, or remove it by force."
        )
