"""What a session wrote elsewhere and this node has not yet: waited for, then fetched."""

from collections.abc import Awaitable, Callable

from divandb.cluster.peers import Peer, Peers
from divandb.cluster.progress import Progress
from divandb.config import Limits
from divandb.vector import Vector


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

    async def come(self, needs: Vector) -> bool:
        """Wait, bounded, until this node contains all of it; ``False``: no live node is known to
        have it.
        """
        if self.are_here(needs):
            return True
        wait_s = self._limits.session_wait_ms / 1000
        if self._peers.having(needs) is None:
            # It may be on the board already, though its master is gone.
            wait_s /= 2
        if await self._progress.reach(needs, wait_s):
            return True
        # Some have told meanwhile what they have.
        holder = self._peers.having(needs)
        if holder is not None:
            await self._fetch(holder)
        return self.are_here(needs)
