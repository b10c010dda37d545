"""A node that has just started asks another of its group which documents are read most there, and
reads them once: so its first clients find at hand what the cluster's clients want.
"""

import asyncio
from typing import Protocol

import msgspec

from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.peers import Peer, Peers
from divandb.governor import Pace
from divandb.link import LinkBroken

HOT = f"{messages.PREFIX}/hot"
NAMES_MAX = 2_000
ANSWER_BYTES_MAX = 8 * 2**20
ASK_WITHIN_S = 30.0
"""A node that has no neighbour by then starts cold."""
LOOK_S = 0.5
ASK_S_MAX = 5.0
PIECE = 50
"""Documents that are read between two rests."""

Name = tuple[str, int, str]
"""A database, its generation, and a document's id."""

_decode_names = msgspec.msgpack.Decoder(list[Name]).decode


class Shelf(Protocol):
    """Where documents are kept at hand."""

    def hottest(self, count: int) -> list[Name]:
        """Names of those that are read most."""
        ...

    def warm(self, name: Name) -> None:
        """Have it at hand, if it is here."""
        ...


class Warming:
    """Once in a process's life."""

    def __init__(self, peers: Peers, shelf: Shelf, pace: Pace, clock: Clock) -> None:
        self._peers = peers
        self._shelf = shelf
        self._pace = pace
        self._clock = clock

    def answer(self) -> list[Name]:
        """What is read most here."""
        return self._shelf.hottest(NAMES_MAX)

    async def run(self) -> None:
        """Ask until somebody answers, for ``ASK_WITHIN_S`` at most."""
        until = self._clock.monotonic() + ASK_WITHIN_S
        while self._clock.monotonic() < until:
            for peer in self._neighbours():
                names = await self._ask(peer)
                if names is not None:
                    await self._read(names)
                    return
            await asyncio.sleep(LOOK_S)

    def _neighbours(self) -> list[Peer]:
        """Live members of the group; its owner last, who has more to do."""
        tenure = self._peers.tenure
        found = [peer for peer in self._peers.group() if self._peers.is_live(peer)]
        return sorted(found, key=lambda peer: tenure.owns(peer.member))

    async def _ask(self, peer: Peer) -> list[Name] | None:
        try:
            reply = await peer.link.ask(
                "POST", HOT, b"", wait_s=ASK_S_MAX, body_bytes_max=ANSWER_BYTES_MAX, repeatable=True
            )
            return _decode_names(reply.body) if reply.status == 200 else None
        except (LinkBroken, msgspec.MsgspecError):
            return None

    async def _read(self, names: list[Name]) -> None:
        for first in range(0, min(len(names), NAMES_MAX), PIECE):
            began = self._clock.monotonic()
            for name in names[first : first + PIECE]:
                self._shelf.warm(name)
            await self._pace(self._clock.monotonic() - began)
