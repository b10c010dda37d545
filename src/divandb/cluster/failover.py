"""A replica takes its slot over when the owner is gone, or is asked to.

    suspect    nobody has heard of the owner for long, and it is hardly slow (``Peers.is_gone``)
    rank       who of the group that lives contains most: its slot's writes first, then all, then
               by name; the first goes ahead, the next one when nothing has come of that
    ask        a live master that hears of the owner refuses; else it gives what an owner shows
    read       the Replicas' Board to its end
    claim      on the claims log, which the first one of an epoch holds; with the board away later
    own        from here on ``node`` runs as master: see ``node.as_master``

The owner that returns hears of the later epoch and becomes a replica. A false alarm costs a
hand-over and nothing else; after one, owners are given twice the time for a while. Only what more
patience would have avoided is one: an owner that was away for longer had to be replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from divandb.board.base import BoardError, EventBoard
from divandb.clock import Clock
from divandb.cluster import claims, messages, trust
from divandb.cluster.messages import Candidacy, Grant, Left
from divandb.cluster.peers import MESSAGE_BYTES_MAX, Peer, Peers
from divandb.cluster.progress import Progress
from divandb.config import Config
from divandb.errors import Busy, PreconditionFailed
from divandb.link import LinkBroken
from divandb.store import succession
from divandb.store.ledger import Ledger
from divandb.telemetry import Log
from divandb.tenure import Owner, Tenure
from divandb.vector import Vector

GRANT, LEAVE, PROMOTE = "grant", "leave", "promote"
LOOK_S = 0.1
READY_POLL_S = 0.01
CONFIRM_S = 1.0
"""So often an owner whom the log has not confirmed tries to claim."""
READ_S_MAX = 1.0
"""For the Replicas' Board to be read to its end."""
ANSWER_S_MAX = 0.5
"""For other masters to agree."""
LEAVE_S_MAX = 3.0
"""For the owner to publish what it has accepted, and for this node to contain it."""
PATIENCE = 2
"""Times as long an owner is waited for after a false alarm."""
GRANT_S = 5.0
"""So long a node that was told that it may take its slot over may be at it, without a word."""
CALM_S = 300.0
"""After so long without another one, a false alarm is forgotten."""

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]
T = TypeVar("T")


class Place(Protocol):
    """What the node's role knows of the boards."""

    board: EventBoard | None

    async def read_to_end(self, within_s: float) -> bool:
        """Apply what is on the Replicas' Board by now; was there an end?"""
        ...

    async def finish(self, within_s: float) -> bool:
        """Publish what is here by now; is all of it on the boards?"""
        ...


def ranked(candidates: Mapping[str, Vector], slot_of: Mapping[int, str], slot: str) -> list[str]:
    """The candidates, who contains most of the slot's writes first, then who contains most of all;
    of equals the one with the smaller name.
    """

    def content(name: str) -> tuple[int, int]:
        vector = candidates[name]
        own = sum(oseq for origin, oseq in vector.items() if slot_of.get(origin) == slot)
        return -own, -sum(vector.values())

    return sorted(candidates, key=lambda name: (*content(name), name))


class Failover:
    """One node's part in who owns its slot."""

    def __init__(
        self,
        config: Config,
        tenure: Tenure,
        peers: Peers,
        progress: Progress,
        place: Place,
        fetch: Callable[[Peer], Awaitable[bool]],
        execute: Execute,
        clock: Clock,
        log: Log,
    ) -> None:
        self._config = config
        self._tenure = tenure
        self._peers = peers
        self._progress = progress
        self._place = place
        self._fetch = fetch
        self._execute = execute
        self._clock = clock
        self._log = log
        self._gone_since: float | None = None
        self._alarmed_at: float | None = None
        """When a false alarm was last noticed."""
        self._replaced: tuple[str, int, float] | None = None
        """Whom this node has replaced because it was silent, when that one was started, and the
        moment.
        """
        self._claimed_at = -CONFIRM_S
        self._has_looked = False
        """Has the claims log been read since this node was started?"""
        self._stays: asyncio.TimerHandle | None = None
        """When this node serves again if nobody took over from it."""
        self.succeeded: Callable[[], None] = lambda: None
        """Told when this node has taken the slot over."""
        self._one = asyncio.Lock()
        self._granted: dict[str, float] = {}
        """When other nodes were last told that they may take their slot over."""
        self._written: dict[str, Owner] = {}

    # In the background

    async def run(self) -> None:
        """Look after the slot until cancelled."""
        while True:
            try:
                await self._look()
            except Exception as fault:
                self._log.event("taking over fails", fault=repr(fault))
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        if self._tenure.owners != self._written:
            await self._remember()
        if self._tenure.is_owner:
            self._gone_since = None
            self._note_return()
            await self._confirm()
        elif self._is_due():
            await self._take_over()

    async def _remember(self) -> None:
        """The file knows the owners, so that a restart does not go back to former ones."""
        known = dict(self._tenure.owners)
        await self._execute(lambda ledger: succession.set_owners(ledger.connection, known), 0)
        self._written = known

    def _note_return(self) -> None:
        """Was the one that was replaced only slow? Then be more patient with the next."""
        if self._replaced is None:
            return
        name, started_ms, moment = self._replaced
        peer = self._peers.find(name)
        if peer is not None and peer.heard is not None and peer.heard > moment:
            self._replaced = None
            away_s = peer.heard - moment
            short_s = (PATIENCE - 1) * self._config.limits.failover_ms / 1000
            if peer.started_ms == started_ms and away_s < short_s:
                self._alarmed_at = self._clock.monotonic()
                self._log.event("false alarm", replaced=name, back_after_s=round(away_s, 3))

    @property
    def _silence_s(self) -> float:
        alarmed = self._alarmed_at
        is_wary = alarmed is not None and self._clock.monotonic() - alarmed <= CALM_S
        return self._config.limits.failover_ms / 1000 * (PATIENCE if is_wary else 1)

    def _is_due(self) -> bool:
        """Is the owner gone, and is it this node's turn? Never that of one that was drained."""
        if self._peers.is_removed or self._tenure.is_drained:
            self._gone_since = None
            return False
        owner = self._peers.master_of(self._config.slot)
        own = self._tenure.own
        # It may have become the owner while it was removed.
        is_removed = own is not None and own.name in self._peers.removed
        is_here = is_removed or (own is not None and own.name == self._config.name)
        if not is_here and (owner is None or not self._peers.is_gone(owner, self._silence_s)):
            self._gone_since = None
            return False
        now = self._clock.monotonic()
        if self._gone_since is None:
            self._gone_since = now
        waits = self._rank() * self._config.limits.failover_ms / 1000
        return now - self._gone_since >= waits

    def _rank(self) -> int:
        """How many of the group that live contain more, or as much and have a smaller name."""
        owner = self._tenure.owner_of(self._config.slot)
        live = {
            peer.member.name: peer.vector
            for peer in self._stand_ins()
            if peer.member.name != owner and peer.missed == 0
        }
        candidates = {**live, self._config.name: self._progress.vector}
        names = ranked(candidates, self._progress.slots, self._config.slot)
        return names.index(self._config.name)

    def _stand_ins(self) -> list[Peer]:
        """The others of the group that could take the slot over."""
        return [p for p in self._peers.stand_ins() if p.member.slot == self._config.slot]

    async def _confirm(self) -> None:
        """With the board away the slot was taken over without a claim: claim it now. And somebody
        may have taken it over while this node was down, and be gone without having told.
        """
        own, board = self._tenure.own, self._place.board
        now = self._clock.monotonic()
        is_known = own is not None and own.is_confirmed and self._has_looked
        if own is None or is_known or board is None or self._peers.is_removed:
            return
        if now - self._claimed_at < CONFIRM_S:
            return
        self._claimed_at = now
        slot = self._config.slot
        try:
            later = await claims.newest(board, self._config.keys.cluster, slot)
            if later is None or later.epoch <= own.epoch:
                later = None if own.is_confirmed else await self._claimed(board, own)
        except BoardError:
            return
        self._has_looked = True
        if later is not None:
            self._tenure.learn({slot: later})

    async def _claimed(self, board: EventBoard, owner: Owner) -> Owner:
        return await claims.claim(
            board, self._config.keys.cluster, self._config.slot, owner, self._clock.wall_ms()
        )

    # Taking over

    async def _take_over(self) -> None:
        """The owner is gone."""
        own = self._tenure.own
        async with self._one:
            epoch = own.epoch + 1 if own is not None else 1
            if not await self._may(epoch):
                return
            peer = self._peers.master_of(self._config.slot)
            await self._succeed(epoch)
            if peer is not None:
                now = self._clock.monotonic()
                self._replaced = (peer.member.name, peer.started_ms, now)

    async def _succeed(self, epoch: int) -> None:
        """Claim the epoch and own the slot."""
        await self._place.read_to_end(READ_S_MAX)
        mine = Owner(epoch, self._config.name)
        board = self._place.board
        if board is not None:
            try:
                mine = await self._claimed(board, mine)
            except BoardError as fault:
                self._log.event("no claim yet", slot=self._config.slot, fault=str(fault))
        if self._peers.is_removed:
            return
        if mine.name != self._config.name:
            self._log.event("another was first", slot=self._config.slot, owner=mine.name)
            self._tenure.learn({self._config.slot: mine})
            return
        owners = {**self._tenure.owners, self._config.slot: mine}

        def step(ledger: Ledger) -> None:
            succession.set_owners(ledger.connection, owners)
            left = succession.estate(ledger.connection)
            if left is None:
                succession.set_estate(ledger.connection, succession.boarded(ledger.connection))

        await self._execute(step, 0)
        self._log.event("takes over", slot=self._config.slot, epoch=epoch)
        self._tenure.learn({self._config.slot: mine})
        self._peers.tell_all()
        self.succeeded()

    async def _may(self, epoch: int) -> bool:
        """Do the other masters that live agree? With none alive there is nobody to ask."""
        asked = messages.encode(Candidacy(epoch))
        answers = await asyncio.gather(
            *(
                self._ask(peer, GRANT, asked, messages.decode_grant, ANSWER_S_MAX)
                for peer in self._peers.masters()
                if peer.member.slot != self._config.slot
            )
        )
        if self._peers.is_removed:
            return False
        said = [grant for grant in answers if grant is not None]
        refusals = [grant.refusal for grant in said if grant.refusal]
        if refusals:
            self._log.event("stays a replica", why=refusals[0])
            return False
        given = next((grant.spare for grant in said if grant.spare is not None), None)
        if given is not None:
            self._tenure.admit(given)
        return self._tenure.has_credentials

    async def _ask(
        self, peer: Peer, what: str, body: bytes, read: Callable[[bytes], T], within_s: float
    ) -> T | None:
        """Another node's answer; ``None``: it refuses, or gives none in time."""
        is_question = what == GRANT
        try:
            async with asyncio.timeout(within_s):
                reply = await peer.link.ask(
                    "POST", f"{messages.PREFIX}/{what}", body,
                    wait_s=0.0 if is_question else within_s,
                    body_bytes_max=MESSAGE_BYTES_MAX, repeatable=is_question,
                )  # fmt: skip
            self._peers.note_refusal(peer, reply)
            return read(reply.body) if reply.status == 200 else None
        except (LinkBroken, TimeoutError, msgspec.MsgspecError) as fault:
            self._log.event("no answer", peer=peer.member.name, asked=what, fault=repr(fault))
            return None

    # By hand

    async def promote(self) -> int:
        """Take the slot over from an owner that lives, or that is gone for certain; the epoch.

        Raises ``Busy`` when the owner does not let go of it, ``PreconditionFailed`` when this node
        was drained.
        """
        if self._tenure.is_drained:
            raise PreconditionFailed("This node was drained: bring it back into service first.")
        async with self._one:
            own = self._tenure.own
            epoch = own.epoch if own is not None else 0
            if self._tenure.is_owner:
                return epoch
            owner = self._peers.master_of(self._config.slot)
            if owner is not None and self._peers.is_live(owner):
                await self._relieve(owner, epoch + 1)
            elif not await self._may(epoch + 1):
                raise Busy("Another master still hears of the slot's owner, or none grants it.")
            if not self._tenure.has_credentials:
                raise Busy("This node was not given what the slot's owner shows.")
            await self._succeed(epoch + 1)
            until = self._clock.monotonic() + LEAVE_S_MAX
            while self._tenure.is_owner and not self._tenure.serves:
                if self._clock.monotonic() > until:
                    raise Busy("This node owns the slot and is not ready yet.")
                await asyncio.sleep(READY_POLL_S)
            if not self._tenure.is_owner:
                raise Busy("Another node was first.")
            return epoch + 1

    async def _relieve(self, owner: Peer, epoch: int) -> None:
        """Have the owner stop, and contain what it has accepted."""
        asked = messages.encode(Candidacy(epoch))
        left = await self._ask(owner, LEAVE, asked, messages.decode_left, LEAVE_S_MAX)
        if left is None:
            raise Busy("The slot's owner does not let go of it, or gives no answer.")
        if left.spare is not None:
            self._tenure.admit(left.spare)
        if not await self._progress.reach(left.vector, READ_S_MAX):
            await self._fetch(owner)

    # For others

    def grant(self, candidate: tuple[str, str, str], epoch: int) -> Grant:
        """May this node take over its slot? Asked of masters."""
        name, _, slot = candidate
        owner = self._tenure.owners.get(slot)
        if owner is not None and owner.epoch >= epoch:
            return Grant(f"{owner.name} owns {slot} since epoch {owner.epoch}")
        peer = self._peers.master_of(slot)
        if peer is not None and peer.member.name != name and self._hears(peer):
            return Grant(f"{self._config.name} hears of {peer.member.name}")
        self._note_granted(name)
        keys = self._tenure.keys
        return Grant("", trust.grant(keys, name, slot) if keys.masters else None)

    def _note_granted(self, name: str) -> None:
        now = self._clock.monotonic()
        recent = {other: at for other, at in self._granted.items() if now - at < GRANT_S}
        self._granted = {**recent, name: now}

    def has_granted(self, name: str) -> bool:
        """Was this node told a moment ago that it may take its slot over?"""
        at = self._granted.get(name)
        return at is not None and self._clock.monotonic() - at < GRANT_S

    def _hears(self, peer: Peer) -> bool:
        """Was it heard of within half of the time after which it is taken for gone?"""
        age_s = self._clock.monotonic() - (peer.heard or 0.0)
        return peer.heard is not None and age_s < self._config.limits.failover_ms / 2000

    async def leave(self, candidate: tuple[str, str, str]) -> Left:
        """Accept no more writes, so that this node may go on; if it does not, serve again.

        Raises ``PreconditionFailed`` for who is not of the group, or when this is not the owner.
        """
        name, _, slot = candidate
        tenure = self._tenure
        if slot != self._config.slot or not tenure.serves:
            raise PreconditionFailed("This node does not own the slot.")
        tenure.is_leaving = True
        self._note_granted(name)
        self._log.event("leaves", slot=slot, to=name)
        if self._stays is not None:
            self._stays.cancel()
        self._stays = asyncio.get_running_loop().call_later(LEAVE_S_MAX, self._stay)
        await self._place.finish(READ_S_MAX)
        spare = trust.grant(tenure.keys, name, slot)
        return Left(dict(self._progress.vector), spare)

    def _stay(self) -> None:
        self._tenure.is_leaving = False

    def can_leave(self) -> bool:
        """Is there a replica of the group that could take over?"""
        return bool(self._stand_ins())

    async def demote(self) -> str:
        """Have the most caught-up live replica take over; its name.

        Raises ``PreconditionFailed`` if this is not the owner, or nobody could take over, ``Busy``
        if nobody did.
        """
        if not self._tenure.is_owner:
            raise PreconditionFailed("This node does not own the slot.")
        live = {peer.member.name: peer.vector for peer in self._stand_ins()}
        if not live:
            raise PreconditionFailed("No replica of the group lives that could take over.")
        for name in ranked(live, self._progress.slots, self._config.slot):
            peer = self._peers.find(name)
            if peer is not None and await self._ask(peer, PROMOTE, b"", bool, 2 * LEAVE_S_MAX):
                return name
        raise Busy("No replica of the group took over.")
