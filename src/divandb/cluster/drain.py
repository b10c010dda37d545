"""A node is taken out of service by plan, and brought back.

    hand over   an owner has the most caught-up replica take its slot; where its group has none
                left, other masters take its writes, and what it has accepted is published
    leave       its place on the clients' port closes; connections there end with the answer that
                is under way, feeds with their last line, idle ones soon
    wait        it may be stopped once no such connection is left, and nothing that only it has

It goes on to follow, and answers at its own port. It takes no slot over, however long it stays so,
and over restarts: the mark lies in its folder.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from divandb.cluster.failover import Failover
from divandb.cluster.peers import Peers
from divandb.errors import PreconditionFailed
from divandb.telemetry import Log
from divandb.tenure import Tenure

FINISH_S_MAX = 5.0
"""For what was accepted to be published, where nobody takes the slot over."""


class Door(Protocol):
    """The node's place on the clients' port."""

    @property
    def connections(self) -> int:
        """Those that clients have there."""
        ...

    def close(self) -> None:
        """Take no more, and let go of those that there are."""
        ...

    def open(self) -> None:
        """Take clients again."""
        ...


class Finish(Protocol):
    """What the node's role knows of the boards."""

    async def finish(self, within_s: float) -> bool:
        """Publish what is here by now; is all of it on the boards?"""
        ...


@dataclasses.dataclass(frozen=True)
class Left:
    """What a drained node still has to finish."""

    connections: int
    """On the clients' port."""
    writes: int
    """That wait for a commit or a master."""
    unpublished: int
    """Writes that nobody else is known to have."""

    @property
    def is_done(self) -> bool:
        """May the node be stopped?"""
        return not (self.connections or self.writes or self.unpublished)


class Drain:
    """Is this node in service?"""

    def __init__(
        self,
        tenure: Tenure,
        failover: Failover,
        peers: Peers,
        place: Finish,
        writes: Callable[[], int],
        unpublished: Callable[[], int],
        keep: Callable[[bool], None],
        log: Log,
    ) -> None:
        """``keep`` remembers over restarts whether this node is drained."""
        self._tenure = tenure
        self._failover = failover
        self._peers = peers
        self._place = place
        self._writes = writes
        self._unpublished = unpublished
        self._keep = keep
        self._log = log
        self.door: Door | None = None

    def stands_at(self, door: Door) -> None:
        """This node has a place on a clients' port."""
        self.door = door
        self._peers.has_door = True

    async def begin(self) -> str | None:
        """Leave service; who owns the slot now, if this node did and another one does.

        Raises ``PreconditionFailed`` if nobody else would be left to serve, or to take its writes,
        ``Busy`` if the slot's replicas did not take over.
        """
        if self._tenure.is_drained:
            return None
        others = self._peers.stand_ins()
        if not any(peer.has_door or self.door is None for peer in others):
            raise PreconditionFailed("No other node lives that could serve in this one's place.")
        successor = await self._hand_over() if self._tenure.is_owner else None
        self._tenure.is_drained = True
        self._keep(True)
        if self._tenure.is_owner:
            await self._place.finish(FINISH_S_MAX)
        if self.door is not None:
            self.door.close()
        self._log.event("leaves service", successor=successor or "-")
        self._peers.tell_all()
        return successor

    async def _hand_over(self) -> str | None:
        if self._failover.can_leave():
            return await self._failover.demote()
        if not any(not peer.is_drained for peer in self._peers.masters()):
            raise PreconditionFailed("No other node lives that could take this one's writes.")
        return None

    def end(self) -> None:
        """Be in service again; a slot that was handed over stays where it is."""
        if not self._tenure.is_drained:
            return
        self._keep(False)
        self._tenure.is_drained = False
        if self.door is not None:
            self.door.open()
        self._log.event("is in service again")
        self._peers.tell_all()

    def left(self) -> Left | None:
        """What there is to finish; ``None`` while the node is in service."""
        if not self._tenure.is_drained:
            return None
        door = self.door
        return Left(door.connections if door else 0, self._writes(), self._unpublished())
