"""Who is there, and what they contain: heartbeats on peer links.

Masters exchange heartbeats with each other, a replica with its master (with all masters and its
group, while its own is silent). A heartbeat carries the sender's vector, load, lag and watermarks,
who owns which slot, and whom it has heard of: so nodes learn of new members, of their addresses
after a restart, and of those that are gone.

What a heartbeat takes there and back says how far a peer is. Whoever has a choice takes the
closest (``closest``); masters to whom a replica sends no heartbeats otherwise are sent one now and
then, so that it is known which is close when its own master dies.

``Missing`` decides when to ask a peer for what the board does not bring (anti-entropy).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from divandb.clock import Clock
from divandb.closest import Candidate, Closest, averaged, is_away
from divandb.closings import Closings
from divandb.cluster import messages
from divandb.cluster.messages import Heartbeat, Passing, Seen
from divandb.cluster.progress import Progress, Watermark
from divandb.cluster.suspicion import LEVEL, Suspicion
from divandb.cluster.trust import SCHEME
from divandb.config import MASTER, REPLICA, Config, Member
from divandb.errors import Expelled, Removed
from divandb.link import LinkBroken, Reply
from divandb.telemetry import Log
from divandb.tenure import Tenure, is_same
from divandb.vector import Vector, covers

MESSAGE_BYTES_MAX = 4 * 2**20
MEMBERS_MAX = 4096
LEASE_LOOK_S = 0.1
"""So often it is looked whether a node that says nothing has lost its lease."""
FED_PATIENCES = 20
"""So many times as long is waited for what a peer has while the board brings other things."""
REACHED = f"{messages.PREFIX}/reached"
HEARTBEAT = f"{messages.PREFIX}/heartbeat"
MISSED_MAX = 2
"""After so many beats without an answer of its master, a replica asks its group, too."""
FAULTS_MAX = 8
"""Different ones that are logged until a node answers again."""
MEASURE_EVERY = 40
"""At one in so many beats, one of the masters that get no heartbeats is sent one."""
NAMES_EVERY = 4
"""One in so many heartbeats speaks of others, too: that is most of what one costs."""


class Link(Protocol):
    """Calls to one node."""

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        wait_s: float = 0.0,
        body_bytes_max: int,
        repeatable: bool = False,
    ) -> Reply:
        """The answer; raises ``LinkBroken``. ``wait_s`` is what the node may take to wait."""
        ...

    def set_url(self, url: str) -> None:
        """The node is elsewhere now."""
        ...

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """What goes with every request from now on."""
        ...

    async def close(self) -> None:
        """Call no more."""
        ...


class Missing:
    """What a peer has and we have not, and since when it has not moved here."""

    def __init__(self) -> None:
        self._stuck: dict[int, tuple[int, float]] = {}

    def look(self, own: Vector, peer: Vector, now: float, patience_s: float) -> bool:
        """Has something stood still for longer than the patience?"""
        if own == peer:  # as nearly always: all is here
            self._stuck.clear()
            return False
        overdue = False
        for origin, oseq in peer.items():
            here = own.get(origin, 0)
            if here >= oseq:
                self._stuck.pop(origin, None)
                continue
            seen, since = self._stuck.get(origin, (-1, now))
            if seen != here:
                self._stuck[origin] = (here, now)
            elif now - since >= patience_s:
                overdue = True
        return overdue

    def forget(self) -> None:
        """It was asked for: wait anew."""
        self._stuck.clear()


class Peer:
    """Another node, as this one knows it."""

    def __init__(self, member: Member, link: Link, suspicion: Suspicion) -> None:
        self.member = member
        self.suspicion = suspicion
        self.missed = 0
        """Beats since the last answer at which one was still awaited, or had failed."""
        self.link = link
        self.started_ms = 0
        self.heard: float | None = None
        """When it was last heard of, by us or by somebody else; monotonic, seconds."""
        self.refuses = False
        """Did the last attempt to reach it fail?"""
        self.asked: float | None = None
        """Since when a heartbeat is without an answer; monotonic, seconds."""
        self.faults: set[str] = set()
        """Why its heartbeats failed since the last answer: each is logged once."""
        self.vector: dict[int, int] = {}
        self._told: tuple[dict[int, int], Closings] | None = None
        """What its last heartbeat said of its vector, and by which ends that was understood."""
        self.load_ms = 0.0
        self.lag_ms: float | None = None
        self.is_drained = False
        """Has an operator taken it out of service?"""
        self.has_door = False
        """Has it a place on a clients' port?"""
        self.rtt_s: float | None = None
        """Average of what heartbeats took; ``None``: there was none yet."""
        self.missing = Missing()
        self.beating: asyncio.Task[None] | None = None
        self.beats = -1
        """Heartbeats sent."""

    def note_heard(self, moment: float) -> None:
        """It lived then; monotonic, seconds."""
        if self.heard is None or moment > self.heard:
            self.heard = moment
            self.suspicion.heard(moment)

    def note_vector(self, told: dict[int, int], closings: Closings) -> None:
        """It contains this, as it says; most heartbeats say what the last one said."""
        if self._told is None or self._told[1] is not closings or self._told[0] != told:
            self._told = (told, closings)
            self.vector = closings.expand(told)

    def note_answer(self) -> None:
        """The heartbeat under way has its answer, or never will."""
        self.asked = None


class Peers:
    """The other members."""

    def __init__(
        self,
        config: Config,
        tenure: Tenure,
        progress: Progress,
        make_link: Callable[[str], Link],
        clock: Clock,
        log: Log,
    ) -> None:
        self._config = config
        self.tenure = tenure
        self._progress = progress
        self._make_link = make_link
        self._shown = tenure.keys.token
        tenure.changed = self._owner_changed
        self._clock = clock
        self._log = log
        self._started_ms = clock.wall_ms()
        self._known: dict[str, Peer] = {}
        self.load_ms = 0.0
        """How late the event loop is."""
        self.has_door = False
        """Has this node a place on a clients' port?"""
        self.is_hasty: Callable[[], bool] = lambda: False
        """Is the board known to bring nothing just now?"""
        self.is_fed: Callable[[], bool] = lambda: False
        """Is more on its way from the board than was applied here?"""
        self.fetch: Callable[[Peer], Awaitable[object]] | None = None
        """Catches up from a peer."""
        self.renewed = -math.inf
        """As of when some other node is known to have answered, or asked."""
        self._awake = (clock.monotonic(), clock.monotonic())
        """The last two moments at which heartbeats were due and this process ran."""
        self._fetching: asyncio.Task[None] | None = None
        self.removed: set[str] = set()
        """Names of nodes that are members no more."""
        self.is_removed = False
        """Is this node one of them?"""
        self.expelled: Callable[[], None] = lambda: None
        """Called once this node hears that it was removed."""
        self._parting: set[asyncio.Task[None]] = set()
        self._began = clock.monotonic()
        self._closest_master = Closest()
        self._closest = Closest()
        self._measured = 0
        """Masters that were measured, in turn."""
        self._beats = 0
        for member in config.seeds:
            self._take(member, 0, None)

    # Who is there

    def all(self) -> list[Peer]:
        """Every other member that was ever heard of."""
        return list(self._known.values())

    def is_live(self, peer: Peer) -> bool:
        """Was it heard of within the lease, and does it take connections?"""
        return self.is_known(peer) and not peer.refuses

    def masters(self) -> list[Peer]:
        """The other masters that live, the closest first."""
        found = [p for p in self.all() if self.tenure.owns(p.member) and self.is_live(p)]
        return self._ordered(self._closest_master, found)

    def nearest(self) -> list[Peer]:
        """All that live, the closest first, whatever their role; last those that are silent."""
        found = self._ordered(self._closest, [peer for peer in self.all() if self.is_live(peer)])
        return sorted(found, key=self.is_silent)

    def _ordered(self, closest: Closest, peers: list[Peer]) -> list[Peer]:
        own = self._config.zone
        names = closest.order(
            Candidate(peer.member.name, is_away(own, peer.member.zone), peer.rtt_s)
            for peer in peers
        )
        return [self._known[name] for name in names]

    def stand_ins(self) -> list[Peer]:
        """Others that live and serve."""
        return [peer for peer in self.all() if self.is_live(peer) and not peer.is_drained]

    def is_silent(self, peer: Peer) -> bool:
        """Does it keep us waiting for an answer to a heartbeat? It may be slow or stopped."""
        silence_s = self._config.limits.forward_silence_ms / 1000
        return peer.asked is not None and self._clock.monotonic() - peer.asked >= silence_s

    def speaks(self, peer: Peer) -> bool:
        """Does it live, and answer?"""
        return self.is_live(peer) and not self.is_silent(peer)

    def writers(self) -> Iterator[Peer]:
        """Masters that a write can be sent to: that of our slot first, then the closest, and last
        those that are silent.
        """
        own = self.master_of(self._config.slot)
        if own is not None and (own.refuses or own.is_drained):
            own = None
        if own is not None and not self.is_silent(own):
            yield own
        others = [p for p in self.masters() if p is not own and not p.is_drained]
        yield from (peer for peer in others if not self.is_silent(peer))
        if own is not None and self.is_silent(own):
            yield own
        yield from (peer for peer in others if self.is_silent(peer))

    def live(self) -> list[Peer]:
        """All that live: masters first, of these that of our slot; the others the closest first."""
        masters = [peer for peer in self.writers() if self.is_live(peer)]
        return masters + [peer for peer in self.nearest() if peer not in masters]

    def master_of(self, slot: str) -> Peer | None:
        """The slot's master, whether it lives or not; ``None`` also if that is this node."""
        return self._known.get(self.tenure.owner_of(slot) or "")

    def find(self, name: str) -> Peer | None:
        """The other member of this name, if it was ever heard of."""
        return self._known.get(name)

    def group(self) -> list[Peer]:
        """The other members of this node's slot."""
        return [peer for peer in self.all() if peer.member.slot == self._config.slot]

    @property
    def closings(self) -> Closings:
        """Ends of origins that this node has heard of."""
        return self._progress.closings

    def passing(self, needs: Vector) -> Passing:
        """Who of this node's group contains this, as far as this node has heard."""
        group = {peer.member.name: peer.vector for peer in self.group()}
        group[self._config.name] = dict(self._progress.vector)
        return Passing(list(group), [name for name, one in group.items() if covers(one, needs)])

    def is_gone(self, peer: Peer, silence_s: float) -> bool:
        """Has nobody heard of it for so long, and can that hardly be because it is slow?

        A process that was stopped itself has missed few beats, however much time has passed.
        """
        now = self._clock.monotonic()
        age_s = now - peer.heard if peer.heard is not None else now - self._began
        beats = silence_s * 1000 / self._config.limits.heartbeat_ms
        if age_s < silence_s or peer.missed < beats / 2:
            return False
        return peer.refuses or peer.heard is None or peer.suspicion.level(now) >= LEVEL

    def having(self, needs: Vector, slots: Iterable[str] = ()) -> Peer | None:
        """The closest live node that contains this, as far as is known; else a live owner of the
        slots.
        """
        for peer in self.nearest():
            if peer.vector and covers(peer.vector, needs):
                return peer
        owners = [self.master_of(slot) for slot in slots]
        known = [peer for peer in owners if peer is not None and self.is_live(peer)]
        return known[0] if known else None

    def lease_holds(self) -> bool:
        """Has anybody answered us lately? True for who has nobody to ask: it is the only master."""
        limits, age_s = self._config.limits, self._clock.monotonic() - self.renewed
        # A slot is not taken over before its owner has been silent for so long.
        owner_ms = limits.failover_ms if self.tenure.is_owner else limits.lease_ms
        if age_s < min(limits.lease_ms, owner_ms) / 1000:
            return True
        return not self.is_removed and not self._targets()

    def part_with(self, names: Iterable[str]) -> None:
        """These are members no more: nothing is asked of them, or counts on them."""
        self.removed.update(names)
        for name in self.removed & self._known.keys():
            peer = self._known.pop(name)
            if peer.beating is not None:
                peer.beating.cancel()
            task = asyncio.ensure_future(peer.link.close())
            self._parting.add(task)
            task.add_done_callback(self._parting.discard)
            self._log.event("a node was removed", node=name)
        if self._config.name in self.removed:
            self._leave()

    def _leave(self) -> None:
        """This node was removed."""
        if not self.is_removed:
            self.is_removed = True
            self._log.event("this node was removed from the cluster and serves no more")
            self.expelled()

    def note_refusal(self, peer: Peer, reply: Reply) -> None:
        """A master says that this node was removed. One that was itself says that, which is nothing
        of us.
        """
        if reply.status != Expelled.status or not self.tenure.owns(peer.member):
            return
        if messages.error_of(reply.body) == Expelled.error:
            self._leave()

    def check_member(self, name: str) -> None:
        """Raises ``Expelled`` for a node that is no member any more."""
        if name in self.removed:
            raise Expelled(f"{name} was removed from the cluster.")

    def check_removed(self) -> None:
        """Raises ``Removed`` if this node is no member any more."""
        if self.is_removed:
            raise Removed(f"{self._config.name} was removed from the cluster; ask another node.")

    def _take(self, member: Member, started_ms: int, heard: float | None) -> Peer | None:
        if member.name == self._config.name or member.name in self.removed:
            return None
        peer = self._known.get(member.name)
        if peer is None:
            if len(self._known) >= MEMBERS_MAX:
                return None
            limits = self._config.limits
            suspicion = Suspicion(limits.heartbeat_ms / 1000, limits.failover_ms / 1000)
            peer = Peer(member, self._make_link(member.url), suspicion)
            self._known[member.name] = peer
            self.tenure.expect(member)
            if member.role == MASTER:
                self._progress.expect(member.slot)
        elif started_ms > peer.started_ms and member != peer.member:
            if member.url != peer.member.url:
                peer.link.set_url(member.url)
            peer.member = member
            peer.refuses = False
        peer.started_ms = max(peer.started_ms, started_ms)
        if heard is not None:
            peer.note_heard(heard)
        return peer

    def _take_seen(self, seen: Seen, heard: float) -> Peer | None:
        peer = self._known.get(seen.name)
        if (
            peer is not None and seen.started_ms <= peer.started_ms
        ):  # nothing new but a sign of life
            peer.note_heard(heard)
            return peer
        member = Member(seen.name, seen.role, seen.slot, seen.url, seen.zone)
        return self._take(member, seen.started_ms, heard)

    # Heartbeats

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        interval_s = self._config.limits.heartbeat_ms / 1000
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while True:
                self._awake = (self._awake[1], self._clock.monotonic())
                targets = self._targets()
                for peer in self.all():
                    if (peer.missed or peer.refuses) and peer not in targets:
                        # Nobody asks it any more: what is known of it is what others say.
                        peer.refuses, peer.missed = False, 0
                for peer in targets:
                    peer.missed += peer.asked is not None or peer.refuses
                    self.probe(peer)
                self._measure(targets)
                due = max(due + interval_s, loop.time())
                await asyncio.sleep(due - loop.time())
                self.load_ms = max((loop.time() - due) * 1000, self.load_ms * 0.7)
        finally:
            for peer in self.all():
                if peer.beating is not None:
                    peer.beating.cancel()

    def _measure(self, targets: list[Peer]) -> None:
        """Now and then, see how far one of the masters is that get no heartbeats."""
        self._beats += 1
        if self._beats % MEASURE_EVERY:
            return
        found = [peer for peer in self.masters() if peer not in targets]
        if found:
            found.sort(key=lambda peer: peer.member.name)
            self.probe(found[self._measured % len(found)])
            self._measured += 1

    def probe(self, peer: Peer) -> None:
        """Send a heartbeat now, unless one is under way."""
        if peer.beating is None or peer.beating.done():
            peer.asked = self._clock.monotonic()
            peer.beating = asyncio.create_task(self._beat(peer))
            peer.beating.add_done_callback(lambda _: peer.note_answer())

    def tell_all(self) -> None:
        """All that live hear at once of what has changed here."""
        for peer in self.all():
            if self.is_known(peer):
                self.probe(peer)

    def _targets(self) -> list[Peer]:
        if self.is_removed:
            return []
        own = self.master_of(self._config.slot)
        if own is not None and self.is_live(own) and own.missed < MISSED_MAX:
            return [own]
        return [peer for peer in self.all() if self._concerns(peer)]

    def _concerns(self, peer: Peer) -> bool:
        """Is it a master, or may it become one, or take itself for one?"""
        owner = self.master_of(peer.member.slot)
        if peer is owner:
            return True
        if owner is None:  # this node owns their slot: who is silent may not know it
            return not self.is_known(peer)
        return not self.is_known(owner) or owner.missed >= MISSED_MAX

    async def _beat(self, peer: Peer, *, names_all: bool = False) -> None:
        sent = self._clock.monotonic()
        peer.beats += 1
        try:
            self._show_credential()
            own = self.master_of(self._config.slot)
            names_all = names_all or peer.beats % NAMES_EVERY == 0
            names_all = names_all or (own is not None and own.missed >= MISSED_MAX)
            saying = messages.encode(self.said(names_all=names_all))
            # What hangs on a link that was cut must not keep the next one from going out.
            async with asyncio.timeout(self._config.limits.lease_ms / 1000):
                reply = await peer.link.ask(
                    "POST", HEARTBEAT, saying,
                    wait_s=0.0, body_bytes_max=MESSAGE_BYTES_MAX, repeatable=True,
                )  # fmt: skip
            self.note_refusal(peer, reply)
            if reply.status != 200:
                raise LinkBroken(f"answered {reply.status}", sent=True)
            told = messages.decode_heartbeat(reply.body)
        except (LinkBroken, TimeoutError, msgspec.MsgspecError) as fault:
            self._tell(peer, str(fault) or "gave no answer in time")
            peer.refuses = True
            return
        now = self._clock.monotonic()
        # No later: an answer may have lain unread for long, while this process was stopped.
        self.renewed = max(self.renewed, sent)
        peer.refuses = False
        peer.missed = 0
        peer.faults.clear()
        peer.rtt_s = averaged(peer.rtt_s, now - sent)
        self._learn(told, sent)
        self._progress.heard([one for one in told.marks if self._is_of_owner(one, told)], sent)
        self._look_for_gaps(peer, now)

    def _is_of_owner(self, mark: Watermark, told: Heartbeat) -> bool:
        """Do both nodes take the same one for the slot's owner? Another's word says nothing of what
        this one has written.
        """
        here, there = self.tenure.owners.get(mark.slot), told.owners.get(mark.slot)
        return here is not None and there is not None and is_same(here, there)

    def _tell(self, peer: Peer, fault: str) -> None:
        if fault not in peer.faults and len(peer.faults) < FAULTS_MAX:
            peer.faults.add(fault)
            self._log.event("no heartbeat", peer=peer.member.name, fault=fault)

    def said(self, *, names_all: bool = True) -> Heartbeat:
        """What this node says of itself and, with ``names_all``, of others."""
        now = self._clock.monotonic()
        me = self.tenure.member
        seen = [Seen(me.name, me.role, me.slot, me.url, self._started_ms, 0.0, me.zone)]
        for peer in self.all() if names_all else ():
            if peer.heard is not None:
                m, age_ms = peer.member, (now - peer.heard) * 1000
                role = MASTER if self.tenure.owns(m) else REPLICA
                seen.append(Seen(m.name, role, m.slot, m.url, peer.started_ms, age_ms, m.zone))
        marks = self._progress.watermarks()
        lag_ms, _ = self._progress.lag(self._config.limits.silent_slot_ms)
        vector = self._progress.told
        known = self._progress.slots if names_all else {}
        slots = {origin: known[origin] for origin in vector if origin in known}
        owners = self.tenure.owners
        return Heartbeat(
            vector, slots, self.load_ms, lag_ms, marks, seen, names_all, owners,
            self.tenure.is_drained, self.has_door,
        )  # fmt: skip

    def answer(self, told: Heartbeat) -> Heartbeat:
        """Another node's heartbeat: take note of it, and say ours; of others only if it asks.

        Nobody knows when it was sent. What came while this process was stopped is read at once when
        it goes on: so it counts as of a moment at which this process ran, and read what there was.
        """
        now = self._clock.monotonic()
        self.renewed = max(self.renewed, self._awake[0])
        peer = self._learn(told, now)
        if peer is not None and peer.member.slot == self._config.slot and self.tenure.is_owner:
            # An owner that has returned may hold writes that nobody else has; an owner whose
            # disk was replaced finds at its group what it wrote before.
            self._look_for_gaps(peer, now)
        return self.said(names_all=told.asks)

    def _learn(self, told: Heartbeat, as_of: float) -> Peer | None:
        """Believe what was told; the node that told it."""
        self._progress.slots.update(told.slots)
        # A replica speaks for itself alone.
        said = told.members[:MEMBERS_MAX]
        is_master = bool(said) and said[0].role == MASTER
        if is_master:
            self.tenure.learn(told.owners)
        elif said:
            self._learn_successor(said[0], told)
        teller = None
        for index, seen in enumerate(said if is_master else said[:1]):
            peer = self._take_seen(seen, as_of - seen.age_ms / 1000)
            if index == 0 and peer is not None:
                peer.note_vector(told.vector, self._progress.closings)
                peer.load_ms, peer.lag_ms = told.load_ms, told.lag_ms
                peer.is_drained, peer.has_door = told.is_drained, told.has_door
                teller = peer
        return teller

    def _owner_changed(self, slot: str) -> None:
        """What was said of a former owner's writes says nothing of the new one's. Who was the owner
        itself must not speak for the slot from this moment on.
        """
        if slot == self._config.slot and not self.tenure.is_owner:
            self._progress.own(slot, is_own=False)
        else:
            self._progress.forget(slot)

    def _learn_successor(self, said: Seen, told: Heartbeat) -> None:
        """Who was taken for a slot's owner says that it is a replica: it may name who owns the slot
        since. That may be this node itself, if it lost its disk.
        """
        successor = told.owners.get(said.slot)
        if successor is not None and self.tenure.owner_of(said.slot) == said.name:
            self.tenure.learn({said.slot: successor})

    def _show_credential(self) -> None:
        """Other nodes see the role that this one has now."""
        token = self.tenure.keys.token
        if token != self._shown:
            self._shown = token
            for peer in self.all():
                peer.link.set_headers({"authorization": SCHEME + token})

    # Anti-entropy

    def _look_for_gaps(self, peer: Peer, now: float) -> None:
        patience_s = self._config.limits.gap_patience_ms / 1000
        if self.is_hasty():
            patience_s = min(patience_s, self._config.limits.heartbeat_ms / 1000)
        elif self.is_fed():
            # It will most likely come, and to fetch it as well would make it come later.
            patience_s *= FED_PATIENCES
        if not peer.missing.look(self._progress.vector, peer.vector, now, patience_s):
            return
        if self.fetch is not None and (self._fetching is None or self._fetching.done()):
            peer.missing.forget()
            self._fetching = asyncio.create_task(self._mend(self.fetch, peer))

    async def _mend(self, fetch: Callable[[Peer], Awaitable[object]], peer: Peer) -> None:
        try:
            await fetch(peer)
        except Exception as fault:
            self._log.event("catching up fails", peer=peer.member.name, fault=repr(fault))

    async def close(self) -> None:
        """Let go of all links."""
        if self._fetching is not None:
            self._fetching.cancel()
        for peer in self.all():
            await peer.link.close()

    # Visibility

    async def visible(self, written: Vector, within_s: float) -> tuple[int, int]:
        """(on how many other nodes it has been applied, of how many that clients may be reading)"""
        shows: dict[str, bool] = {}
        while fresh := [p for p in self.all() if self.is_known(p) and p.member.name not in shows]:
            found = await asyncio.gather(*(self._shows(peer, written, within_s) for peer in fresh))
            shows |= {peer.member.name: said for peer, said in zip(fresh, found, strict=True)}
            if not all(self.is_known(peer) for peer in self.all()):
                await self._ask_around()
        shown = {name for name, said in shows.items() if said}
        hidden = [p for p in self.all() if p.member.name not in shown and self._may_serve(p)]
        return len(shown), len(shown) + len(hidden)

    async def _ask_around(self) -> None:
        """Hear from the masters that live whom they have heard of: they seldom say so unasked."""
        beats = [asyncio.ensure_future(self._beat(peer, names_all=True)) for peer in self.masters()]
        if beats:
            _, late = await asyncio.wait(beats, timeout=self._config.limits.lease_ms / 1000)
            for beat in late:
                beat.cancel()

    def _may_serve(self, peer: Peer) -> bool:
        """May its lease be running? Unheard of, it may be cut off together with others: masters
        renew each other's leases and their replicas', and these their master's.
        """
        if self.is_known(peer):
            return True
        apart = [other for other in self.all() if other is not peer and not self.is_known(other)]
        owns = self.tenure.owns
        return any(owns(peer.member) or owns(other.member) for other in apart)

    async def _shows(self, peer: Peer, written: Vector, within_s: float) -> bool:
        """Is it seen to have been applied there, before the node's lease has run out?"""
        until = self._clock.monotonic() + within_s
        while self.is_known(peer) and (left_s := until - self._clock.monotonic()) > 0:
            if self.is_live(peer) and await self._says_reached(peer, written, left_s):
                return True
            # It refuses, or is silent: clients may still read there until its lease has run out,
            # or it may come back.
            await asyncio.sleep(LEASE_LOOK_S)
        return False

    async def _says_reached(self, peer: Peer, written: Vector, within_s: float) -> bool:
        """Ask it, for as long as it lives."""
        asking = asyncio.ensure_future(self._ask_reached(peer, written, within_s))
        until = self._clock.monotonic() + within_s
        try:
            while not asking.done() and self.is_live(peer) and self._clock.monotonic() < until:
                await asyncio.wait({asking}, timeout=LEASE_LOOK_S)
            return asking.done() and asking.result()
        finally:
            asking.cancel()

    def is_known(self, peer: Peer) -> bool:
        """Was it heard of within the lease?"""
        lease_s = self._config.limits.lease_ms / 1000
        return peer.heard is not None and self._clock.monotonic() - peer.heard < lease_s

    async def _ask_reached(self, peer: Peer, written: Vector, within_s: float) -> bool:
        question = messages.Question(dict(written), int(within_s * 1000))
        try:
            reply = await peer.link.ask(
                "POST", REACHED, messages.encode(question),
                wait_s=within_s, body_bytes_max=MESSAGE_BYTES_MAX, repeatable=True,
            )  # fmt: skip
            return reply.status == 200 and messages.decode_reached(reply.body).yes
        except (LinkBroken, msgspec.MsgspecError):
            return False
