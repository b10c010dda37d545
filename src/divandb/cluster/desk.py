"""A master's desk: what a write waits for before the writer takes it, and after.

Before: what its session wrote elsewhere (bounded; if no live node has that, a child is taken
without its parent, trace 23). After: the write concern. A `_local` write vouches for what its
session wrote, so it is answered only when that is on the Masters' Board, or at another master while
the board is away (trace 15).
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from divandb.clock import Clock
from divandb.cluster.needs import Needs
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress, Reach
from divandb.commands import Concern, Confirm, Job, SetRegister, WriteDocuments
from divandb.config import Limits
from divandb.errors import Busy, DivanError
from divandb.store import registers
from divandb.vector import Vector, covers, join

SAFE_POLL_S = 0.25


class Judges(Protocol):
    """Says which writes are refused before they are carried out."""

    def is_asked(self, command: WriteDocuments) -> bool:
        """Has it anything to say?"""
        ...

    async def refusals(self, command: WriteDocuments) -> dict[int, DivanError]:
        """Why which of the writes are refused, by their place."""
        ...


class Desk:
    """Takes jobs, hands them to the writer, and gives them back when what they wait for holds."""

    def __init__(
        self,
        submit: Callable[[Job], None],
        slot: str,
        progress: Progress,
        boarded: Reach | None,
        peers: Peers,
        needs: Needs,
        clock: Clock,
        limits: Limits,
        judge: Judges,
    ) -> None:
        """``boarded`` is what is on the Masters' Board of this node's own writes; ``None``: there
        is no board.
        """
        self.elsewhere: Callable[[Job], None] = submit
        """Where jobs go that come when the slot has just changed hands."""
        self._submit = submit
        self._slot = slot
        self._progress = progress
        self._boarded = boarded
        self._peers = peers
        self._needs = needs
        self._clock = clock
        self._limits = limits
        self._judge = judge
        self._waiting: set[asyncio.Task[None]] = set()

    def submit(self, job: Job) -> None:
        """Take a job; raises ``Busy`` when too many wait."""
        job.slot = self._slot
        if _vouches(job):
            job.concern = max(job.concern, Concern.BOARD, key=list(Concern).index)
        judged = isinstance(job.command, WriteDocuments) and self._judge.is_asked(job.command)
        plain = job.concern is Concern.LOCAL and not judged
        if plain and self._progress.contains(job.needs):
            self._submit(job)
            return
        if len(self._waiting) >= self._limits.write_queue_jobs_max:
            raise Busy("Too many writes are waiting; try again shortly.")
        task = asyncio.ensure_future(self._carefully(job))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _carefully(self, job: Job) -> None:
        try:
            await self._await_session(job)
            if not self._peers.tenure.serves:
                self.elsewhere(job)
                return
            await self._carry_out(job)
            if not isinstance(job.result, Exception):
                await self._await_concern(job)
        except Exception as fault:
            job.result = fault
        job.done(job)

    async def _await_session(self, job: Job) -> None:
        if not await self._needs.come(job.needs) and isinstance(job.command, WriteDocuments):
            job.command = msgspec.structs.replace(job.command, orphans=True)

    async def _carry_out(self, job: Job) -> None:
        """Have the writes carried out that are not refused."""
        command = job.command
        refused: dict[int, DivanError] = {}
        if isinstance(command, WriteDocuments) and self._judge.is_asked(command):
            refused = await self._judge.refusals(command)
        if not refused:
            await self._carry_out_all(job)
            return
        assert isinstance(command, WriteDocuments)
        writes = [one for place, one in enumerate(command.writes) if place not in refused]
        job.result = []
        if writes:
            job.command = msgspec.structs.replace(command, writes=writes)
            await self._carry_out_all(job)
        if isinstance(job.result, list):
            done = iter(job.result)
            places = range(len(command.writes))
            job.result = [refused.get(place) or next(done) for place in places]

    async def _carry_out_all(self, job: Job) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inner = Job(job.command, job.size_bytes, lambda _: done.set_result(None))
        self._submit(inner)
        await done
        job.result, job.written = inner.result, inner.written

    async def _await_concern(self, job: Job) -> None:
        if job.concern is Concern.LOCAL:
            return
        until = self._clock.monotonic() + self._limits.concern_wait_ms_max / 1000
        if not await self.safe(join(job.written, job.needs), until):
            if _vouches(job):
                raise Busy("What this session wrote is not yet safe; try again shortly.")
            return
        job.reached = Concern.BOARD
        if job.concern is Concern.VISIBLE:
            left_s = max(until - self._clock.monotonic(), 0.0)
            on, of = await self._peers.visible(job.written, left_s)
            job.visible = (on + 1, of + 1)
            if on == of:
                job.reached = Concern.VISIBLE

    async def safe(self, vector: Vector, until: float) -> bool:
        """Wait until this is on the Masters' Board, or with the board away at another master."""
        boarded = self._boarded
        if boarded is None:
            return True
        own = {origin: oseq for origin, oseq in vector.items() if origin in boarded.vector}
        others = {origin: oseq for origin, oseq in vector.items() if origin not in own}
        while True:
            left_s = until - self._clock.monotonic()
            elsewhere = any(covers(peer.vector, own) for peer in self._peers.masters())
            if (elsewhere or boarded.contains(own)) and self._progress.contains(others):
                return True
            if left_s <= 0:
                return False
            wait_s = min(SAFE_POLL_S, left_s)
            if self._progress.contains(others):
                await boarded.reach(own, wait_s)
            else:
                await self._progress.reach(others, wait_s)


def _vouches(job: Job) -> bool:
    command = job.command
    is_local = isinstance(command, SetRegister) and command.kind == registers.LOCAL
    return is_local or isinstance(command, Confirm)
