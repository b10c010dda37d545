"""The owner of a slot sees to it that finished origins leave the vectors (``closings``).

    ended     an origin of the slot under which nobody writes any more, and all of which is on the
              board: everybody is told where it ended
    closed    once every member contains both, the origin and that word: everybody may leave it out

Members that are down hold it up, for as long as they are members. Each master answers for its
group, whose heartbeats it gets. None of this is needed for a vector to be understood: whoever has
not heard of an end takes it for less. But a cursor would then be read again from its beginning.

An owner that has written nothing in this run leaves its slot's last origin as it is: to end it, it
would have to open another.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from divandb.clock import Clock
from divandb.closings import End
from divandb.cluster import messages
from divandb.cluster.estate import Estate
from divandb.cluster.messages import Passing
from divandb.cluster.peers import MESSAGE_BYTES_MAX, Peer, Peers
from divandb.cluster.progress import Progress
from divandb.link import LinkBroken
from divandb.store import endings, registers
from divandb.store.endings import CLOSED, ENDED
from divandb.store.ledger import Ledger
from divandb.telemetry import Log, rfc3339
from divandb.trouble import Trouble
from divandb.vector import Vector, advanced

PASSED = f"{messages.PREFIX}/passed"
LOOK_S = 1.0
"""So often it is looked whether there is something to end or to close."""
QUIET_S = 3.0
"""An origin has ended when nothing more of it has come for so long."""
ENDS_MAX = 256
"""Of one transaction."""

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]


class Closer:
    """Ends and closes the origins of a slot, at its owner."""

    def __init__(
        self, slot: str, progress: Progress, peers: Peers, estate: Estate,
        own_origin: Callable[[], int | None], execute: Execute, clock: Clock, log: Log,
    ) -> None:  # fmt: skip
        self._slot = slot
        self._progress = progress
        self._peers = peers
        self._estate = estate
        self._own_origin = own_origin
        self._execute = execute
        self._clock = clock
        self._trouble = Trouble(log, "closing finished origins fails")
        self._seen: dict[int, tuple[int, float]] = {}
        """origin → (how far it was, since when); monotonic, seconds."""

    async def run(self) -> None:
        """Look after them until cancelled."""
        while True:
            with self._trouble.attempt():
                await self._round()
            await asyncio.sleep(LOOK_S)

    async def _round(self) -> None:
        finished, closings = self._quiet(), self._progress.closings
        told = {origin: closings.of(origin, n) for origin, n in finished.items()}
        pending = [ends[0] for ends in told.values() if ends and not _is_to_be_told(ends)]
        if pending and await self._have_all_passed(pending[:ENDS_MAX]):
            await self._execute(partial(self._close, pending[:ENDS_MAX]), 0)
        own = self._own_origin()
        new = [
            (origin, finished[origin])
            for origin, ends in told.items()
            if _is_to_be_told(ends) and own not in {end.by[0] for end in ends}
        ]
        if new and (own is not None or len(finished) > 1):
            await self._execute(partial(self._tell, new[:ENDS_MAX]), 0)

    def _quiet(self) -> dict[int, int]:
        """Finished origins that vectors still name, and that have not moved for a while."""
        told, now = self._progress.told, self._clock.monotonic()
        upto = self._progress.closings.upto
        finished = {
            # What has ended further on is somewhere, and still to come.
            o: n
            for o, n in self._estate.finished().items()
            if n and told.get(o) and upto.get(o, 0) <= n
        }
        self._seen = {
            o: self._seen[o] if self._seen.get(o, (0, 0.0))[0] == n else (n, now)
            for o, n in finished.items()
        }
        return {o: n for o, n in finished.items() if now - self._seen[o][1] >= QUIET_S}

    def _tell(self, ends: list[tuple[int, int]], ledger: Ledger) -> None:
        """These have ended, each with that number."""
        by = ledger.current_origin()
        for origin, upto in ends:
            if origin != by:
                self._set(ledger, ENDED, endings.key_of(origin, upto, by))

    def _close(self, ends: list[End], ledger: Ledger) -> None:
        for end in ends:
            self._set(ledger, CLOSED, endings.key_of(end.origin, end.upto, end.by[0]))

    def _set(self, ledger: Ledger, kind: str, key: str) -> None:
        at = rfc3339(self._clock.wall_ms())
        value = msgspec.json.encode({"slot": self._slot, "at": at})
        registers.write(ledger, None, kind, key, value, ledger.stamp())

    async def _have_all_passed(self, ends: list[End]) -> bool:
        """Does every member contain these origins, and know of their ends?"""
        needs = advanced({end.origin: end.upto for end in ends}, (end.by for end in ends))
        others = [p for p in self._peers.masters() if p.member.slot != self._slot]
        said = [
            self._peers.passing(needs),
            *await asyncio.gather(*(self._ask(peer, needs) for peer in others)),
        ]
        members = {peer.member.name for peer in self._peers.all()}
        passed: set[str] = set()
        for one in said:
            members.update(one.members)
            passed.update(one.passed)
        return members - self._peers.removed <= passed

    async def _ask(self, peer: Peer, needs: Vector) -> Passing:
        try:
            reply = await peer.link.ask(
                "POST", PASSED, messages.encode(dict(needs)),
                body_bytes_max=MESSAGE_BYTES_MAX, repeatable=True,
            )  # fmt: skip
            if reply.status == 200:
                return messages.decode_passing(reply.body)
        except (LinkBroken, msgspec.MsgspecError):
            pass
        return Passing([], [])


def _is_to_be_told(ends: list[End]) -> bool:
    """Has nobody told of it, or was that no use? Two owners may have ended each other's origins."""
    return not ends or any(end.is_closed for end in ends)
