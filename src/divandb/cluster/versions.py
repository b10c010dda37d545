"""Asks the others of the group how far they are with new versions of design documents.

    POST /_divan/versions   [Version, …] → [Build, …], in their order

Nothing is asked while no version is on its way: what the rules make of the answers is decided in
``switching``. Only a slot's group is asked, and by each of its nodes: all of them know the same.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.peers import Peer, Peers
from divandb.config import Limits
from divandb.link import LinkBroken
from divandb.switching import Build, Switch, Verdict
from divandb.telemetry import Log
from divandb.trouble import Trouble

VERSIONS = f"{messages.PREFIX}/versions"
LOOK_S = 0.5
ASKED_MAX = 500
"""Versions in a question; of more of them several are asked."""
ANSWER_BYTES_MAX = 2**20


class Version(msgspec.Struct, frozen=True, array_like=True):
    """A version of a design document's views, on any node."""

    database: str
    generation: int
    signature: bytes


class Views(Protocol):
    """The views of this node."""

    def coming(self) -> list[Version]:
        """Versions that are to take the place of another one here."""
        ...

    def build_of(self, version: Version) -> Build:
        """How far one is here."""
        ...

    def judge(self, version: Version, verdict: Verdict) -> None:
        """What is to be done about it from now on."""
        ...


_encode = msgspec.msgpack.Encoder().encode
_decode_asked = msgspec.msgpack.Decoder(list[Version]).decode
_decode_said = msgspec.msgpack.Decoder(list[Build]).decode


class Versions:
    """Lives on the event loop."""

    def __init__(self, peers: Peers, views: Views, clock: Clock, limits: Limits, log: Log) -> None:
        self._peers = peers
        self._views = views
        self._clock = clock
        self._patience_s = float(limits.view_switch_s_max)
        self._trouble = Trouble(log, "versions of views are not looked after")
        self._silence_s = limits.lease_ms / 1000
        self._began = clock.monotonic()
        self._switches: dict[Version, Switch] = {}

    def is_alone(self) -> bool:
        """Is there no other member of the group? Where there are other nodes, this is not said
        before all who live can have been heard of.
        """
        return not self._peers.group() and (not self._peers.all() or self._has_listened())

    def _has_listened(self) -> bool:
        return self._clock.monotonic() - self._began >= self._silence_s

    def is_last(self) -> bool:
        """Do others of the group build before this node does?"""
        return self._peers.tenure.is_owner and not self.is_alone()

    def _replicas(self) -> list[Peer]:
        peers = self._peers
        return [
            peer
            for peer in peers.group()
            if peers.is_live(peer) and not peer.is_drained and not peers.tenure.owns(peer.member)
        ]

    def answer(self, body: bytes) -> list[Build]:
        """How far this node is with what another one asks for; raises ``msgspec.MsgspecError``."""
        return [self._views.build_of(one) for one in _decode_asked(body)[:ASKED_MAX]]

    async def run(self) -> None:
        """Look after versions on their way until cancelled."""
        while True:
            with self._trouble.attempt():
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask once, and decide; not before all who live can have been heard of."""
        if not self._has_listened():
            return
        coming = self._views.coming()
        self._switches = {one: self._switches.get(one) or Switch() for one in coming}
        for start in range(0, len(coming), ASKED_MAX):
            await self._decide(coming[start : start + ASKED_MAX])

    async def _decide(self, coming: Sequence[Version]) -> None:
        replicas = self._replicas()
        said = await asyncio.gather(*(self._ask(peer, coming) for peer in replicas))
        now, is_owner = self._clock.monotonic(), self._peers.tenure.is_owner
        for place, version in enumerate(coming):
            others = {
                peer.member.name: builds[place] if builds is not None else None
                for peer, builds in zip(replicas, said, strict=True)
            }
            own = self._views.build_of(version)
            verdict = self._switches[version].look(
                own, others, now, self._patience_s, is_owner=is_owner
            )
            self._views.judge(version, verdict)

    async def _ask(self, peer: Peer, versions: Sequence[Version]) -> list[Build] | None:
        try:
            reply = await peer.link.ask(
                "POST", VERSIONS, _encode(versions),
                body_bytes_max=ANSWER_BYTES_MAX, repeatable=True,
            )  # fmt: skip
            said = _decode_said(reply.body) if reply.status == 200 else []
        except (LinkBroken, msgspec.MsgspecError):
            return None
        return said if len(said) == len(versions) else None
