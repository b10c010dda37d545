"""What a session wrote elsewhere and this node has not yet: waited for, then fetched."""

from collections.abc import Awaitable, Callable

from divandb.cluster.peers import Peer, Peers
from divandb.cluster.progress import Progress
from divandb.config import Limits
from divandb.vector import Vector

OF_UNKNOWN, OF_GONE = 0.5, 0.15
"""Shares of the wait for what no live node is known to have: of owners that live, and of others."""


class Needs:
    """Has sessions' writes come here."""

    def __init__(
        self,
        progress: Progress,
        peers: Peers,
        fetch: Callable[[Peer], Awaitable[object]],
        limits: Limits,
    ) -> None:
        """``fetch`` catches up from a peer."""
        self._progress = progress
        self._peers = peers
        self._fetch = fetch
        self._limits = limits

    def are_here(self, needs: Vector) -> bool:
        """Does this node contain all of it?"""
        return self._progress.contains(needs)

    def _is_of_gone(self, needs: Vector) -> bool:
        """Is what is missing of owners that say nothing just now? Little can be on its way then."""
        missing = [o for o, oseq in needs.items() if self._progress.vector.get(o, 0) < oseq]
        slots = {self._progress.slots.get(origin, "") for origin in missing}
        owners = [self._peers.master_of(slot) for slot in slots]
        return all(one is not None and not self._peers.speaks(one) for one in owners)

    async def come(self, needs: Vector) -> bool:
        """Wait, bounded, until this node contains all of it; ``False``: no live node is known to
        have it.
        """
        if self.are_here(needs):
            return True
        wait_s = self._limits.session_wait_ms / 1000
        if self._peers.having(needs) is None:
            # It may be on the board already, though its master is gone.
            wait_s *= OF_GONE if self._is_of_gone(needs) else OF_UNKNOWN
        if await self._progress.reach(needs, wait_s):
            return True
        # Some have told meanwhile what they have.
        holder = self._peers.having(needs)
        if holder is not None:
            await self._fetch(holder)
        return self.are_here(needs)
