"""Writes on their way from a replica to a master.

What comes in while requests are under way shares the next one. A master that cannot be reached is
passed over at once, one that is silent soon: when a request takes long it is asked whether it is
there. The closest live one stands in until the slot's own is heard of again. With none alive they
wait, bounded, for one that takes over, which may be this node itself. An attempt that may have been
carried out is repeated as a repeat (Rule 5), so that it does what once would have done.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from divandb.clock import Clock
from divandb.cluster import messages
from divandb.cluster.messages import Order
from divandb.cluster.peers import Peer, Peers
from divandb.commands import CreateDatabase, DropDatabase, Job, Purge, WriteDocuments
from divandb.config import Limits
from divandb.errors import Busy, DivanError
from divandb.link import LinkBroken, Reply
from divandb.vector import Origin, Vector, join

COMMANDS = f"{messages.PREFIX}/commands"
ORDERS_MAX = 256
BATCH_BYTES_MAX = 4 * 2**20
LOOK_S = 0.05
LONG_S = 0.1
"""A request that takes longer makes its master suspect: it is sent a heartbeat."""
RETRY_S = 0.05
MISDIRECTED = 421
ANSWER_BYTES_MAX = 64 * 2**20
_MARKED = WriteDocuments | CreateDatabase | DropDatabase


class _Attempt(NamedTuple):
    """A request that is under way; moments are monotonic, in seconds."""

    peer: Peer
    sent: float
    until: float


class _Silent(LinkBroken):
    """It was given up, and may only be slow."""


class Courier:
    """Takes jobs as the writer does; a master carries them out."""

    def __init__(
        self, peers: Peers, here: Callable[[Job], None], clock: Clock, limits: Limits
    ) -> None:
        """``here`` carries jobs out at this node, while it accepts writes."""
        self._peers = peers
        self._here = here
        self._clock = clock
        self._limits = limits
        self._jobs: deque[Job] = deque()
        self._bytes = 0
        self._trips: set[asyncio.Task[None]] = set()
        self._is_due = False
        self._under_way: dict[asyncio.Task[None], _Attempt] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._met: dict[str, dict[Origin, int]] = {}
        """node → what it has answered that it wrote, and has not said in a heartbeat yet."""

    @property
    def waiting_jobs(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Send a job on; raises ``Busy`` when too many wait."""
        full = len(self._jobs) >= self._limits.write_queue_jobs_max
        if full or self._bytes + job.size_bytes > self._limits.write_queue_bytes_max:
            raise Busy("Too many writes are waiting; try again shortly.")
        self._jobs.append(job)
        self._bytes += job.size_bytes
        if not self._is_due:
            # What comes in during this turn of the loop goes together.
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._depart)

    def _depart(self) -> None:
        self._is_due = False
        while self._jobs and len(self._trips) < self._limits.forward_requests_max:
            trip = asyncio.ensure_future(self._travel(self._load()))
            self._trips.add(trip)
            trip.add_done_callback(self._back)

    def _back(self, trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        self._depart()

    def _load(self) -> list[Job]:
        """The jobs of the next request: those that wait for something travel alone."""
        load: list[Job] = []
        size = 0
        while self._jobs and len(load) < ORDERS_MAX and (not load or size < BATCH_BYTES_MAX):
            if load and self._lingers(self._jobs[0]):
                break
            job = self._jobs.popleft()
            size += job.size_bytes
            load.append(job)
            if self._lingers(job):
                break
        self._bytes -= size
        return load

    def _lingers(self, job: Job) -> bool:
        """Can it not be repeated, or may its answer take longer than a commit? It goes alone."""
        if job.concern != "local" or isinstance(job.command, Purge):
            return True
        return bool(job.needs) and not self._is_there(job.needs)

    def _is_there(self, needs: Vector) -> bool:
        """Does the master that is asked next contain this for certain, as what it wrote itself?"""
        peer = next(self._peers.writers(), None)
        if peer is None:
            return False
        met = self._met.get(peer.member.name, {})
        return all(n <= max(met.get(o, 0), peer.vector.get(o, 0)) for o, n in needs.items())

    def _note(self, peer: Peer, jobs: list[Job]) -> None:
        written = join(self._met.get(peer.member.name, {}), *(job.written for job in jobs))
        said = peer.vector
        self._met[peer.member.name] = {o: n for o, n in written.items() if n > said.get(o, 0)}

    async def _travel(self, jobs: list[Job]) -> None:
        try:
            await self._deliver(jobs)
        except Exception as fault:
            for job in jobs:
                job.result = fault
        for job in jobs:
            job.done(job)

    async def _deliver(self, jobs: list[Job]) -> None:
        until = self._clock.monotonic() + self._limits.forward_wait_ms_max / 1000
        passed: set[str] = set()
        while True:
            if self._peers.tenure.serves:
                await self._carry_out_here(jobs)
                return
            peer = next((p for p in self._peers.writers() if p.member.name not in passed), None)
            if peer is None:
                if self._clock.monotonic() > until:
                    raise Busy("No master can be reached; try again shortly.")
                passed.clear()
                await asyncio.sleep(RETRY_S)
                continue
            try:
                reply = await self._ask(peer, jobs, until)
            except LinkBroken as broken:
                passed.add(peer.member.name)
                if broken.sent:
                    _mark_repeats(jobs)
                if not isinstance(broken, _Silent):
                    # Until it answers a heartbeat: a dead process's port may still take calls.
                    peer.refuses = True
                continue
            if reply.status == MISDIRECTED:
                passed.add(peer.member.name)  # it is no master any more
                continue
            _settle(jobs, reply)
            self._note(peer, jobs)
            return

    async def _carry_out_here(self, jobs: list[Job]) -> None:
        left = len(jobs)
        all_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(job: Job, made: Job) -> None:
            nonlocal left
            job.result, job.written, job.slot = made.result, made.written, made.slot
            job.reached, job.visible = made.reached, made.visible
            left -= 1
            if not left and not all_done.done():
                all_done.set_result(None)

        for job in jobs:
            settle = functools.partial(done, job)
            self._here(Job(job.command, job.size_bytes, settle, None, job.needs, job.concern))
        await all_done

    async def _ask(self, peer: Peer, jobs: list[Job], until: float) -> Reply:
        orders = [Order(job.command, dict(job.needs), job.concern) for job in jobs]
        trip = asyncio.current_task()
        assert trip is not None
        self._under_way[trip] = _Attempt(peer, self._clock.monotonic(), until)
        if self._looking is None:
            self._look_later()
        try:
            return await peer.link.ask(
                "POST", COMMANDS, messages.encode(orders),
                wait_s=self._limits.forward_wait_ms_max / 1000, body_bytes_max=ANSWER_BYTES_MAX,
            )  # fmt: skip
        except asyncio.CancelledError:
            if trip in self._under_way:
                raise
            trip.uncancel()
            raise _Silent(f"{peer.member.name} is silent", sent=True) from None
        finally:
            self._under_way.pop(trip, None)

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """Give up requests to masters that have fallen silent: others can be asked."""
        now = self._clock.monotonic()
        for trip, attempt in list(self._under_way.items()):
            if now - attempt.sent >= LONG_S:
                self._peers.probe(attempt.peer)
            if now > attempt.until or self._is_lost(attempt.peer):
                del self._under_way[trip]
                trip.cancel()
        self._looking = None
        if self._under_way:
            self._look_later()

    def _is_lost(self, peer: Peer) -> bool:
        if not self._peers.is_live(peer):
            return True
        others = (other for other in self._peers.masters() if other is not peer)
        return self._peers.is_silent(peer) and not all(map(self._peers.is_silent, others))

    async def close(self) -> None:
        """What is still on its way is not waited for."""
        if self._looking is not None:
            self._looking.cancel()
        for trip in self._trips:
            trip.cancel()
        await asyncio.gather(*self._trips, return_exceptions=True)


def _mark_repeats(jobs: list[Job]) -> None:
    """Nobody knows whether these were carried out."""
    for job in jobs:
        job.doubtful = True
        if isinstance(job.command, _MARKED):
            job.command = msgspec.structs.replace(job.command, repeat=True)
        elif isinstance(job.command, Purge):
            # Its answer says what was removed, which a second purge cannot know.
            raise Busy("The master did not answer: look whether the purge was done.")


def _settle(jobs: list[Job], reply: Reply) -> None:
    if reply.status != 200:
        raise Busy(f"The master answered {reply.status}; try again shortly.")
    try:
        answers = messages.decode_answers(reply.body)
    except msgspec.MsgspecError as fault:
        raise DivanError(f"The master's answer cannot be read: {fault}") from None
    for job, answer in zip(jobs, answers, strict=True):
        job.result = messages.result_of(answer)
        job.written = answer.written
        job.slot, job.reached, job.visible = answer.slot, answer.reached, answer.visible
