"""All replications that this node runs: those asked for by `_replicate`, and those of documents.

    initializing → running → completed
                   running → crashing → running, after a wait that doubles with each failure
    pending: as many run as may run at a time

A one-shot replication of `_replicate` is tried once: whoever asked hears why it failed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from divandb.auth.policy import UserContext
from divandb.clock import Clock, Rng
from divandb.config import Limits
from divandb.errors import Busy, DivanError, NotFound, Unauthorized
from divandb.governor import Pace
from divandb.replication.backoff import Backoff
from divandb.replication.end import End
from divandb.replication.request import Replication, Side
from divandb.replication.run import Run
from divandb.telemetry import Log, rfc3339

HISTORY_MAX = 20
"""Events of a job that are remembered."""
DATABASE = "_replicator"

EndOf = Callable[[Side, UserContext], End]
"""Opens one side, as this user if it is here."""
Ended = Callable[[str, dict[str, Any]], Awaitable[None]]
"""Told (document, log) of a document's replication that has come to its end."""


class Job:
    """One replication."""

    def __init__(self, what: Replication, cluster: str, doc_id: str | None, limits: Limits) -> None:
        self.what = what
        self.name = what.id(cluster)
        self.id = what.job_id(cluster)
        self.doc_id = doc_id
        self.state = "initializing"
        self.backoff = Backoff(limits.replication_backoff_ms, limits.replication_backoff_ms_max)
        self.reason: str | None = None
        """Why it failed last, while it is crashing."""
        self.history: deque[dict[str, str]] = deque(maxlen=HISTORY_MAX)
        self.run: Run | None = None
        self.started_ms = self.updated_ms = 0
        self.task: asyncio.Task[None] | None = None
        self.result: asyncio.Future[dict[str, Any]] | None = None
        """Of a one-shot replication that somebody waits for."""
        self.answer: dict[str, Any] | None = None
        """The log of one that is through."""

    def note(self, state: str, event: str, wall_ms: int, reason: str | None = None) -> None:
        """It has come to another state."""
        self.state, self.reason, self.updated_ms = state, reason, wall_ms
        told = {"timestamp": rfc3339(wall_ms), "type": event}
        self.history.appendleft(told | ({"reason": reason} if reason else {}))

    def info(self) -> dict[str, object] | None:
        """What it did, or why it crashed."""
        if self.reason is not None:
            return {"error": self.reason}
        if self.run is None:
            return None
        run = self.run
        return {
            "revisions_checked": run.counts.missing_checked,
            "missing_revisions_found": run.counts.missing_found,
            "docs_read": run.counts.docs_read,
            "docs_written": run.counts.docs_written,
            "doc_write_failures": run.counts.doc_write_failures,
            "changes_pending": run.pending,
            "checkpointed_source_seq": run.stored,
            "source_seq": run.through,
            "through_seq": run.through,
        }


class Jobs:
    """Lives on the event loop."""

    def __init__(
        self,
        node: str,
        cluster: str,
        end_of: EndOf,
        clock: Clock,
        rng: Rng,
        limits: Limits,
        pace: Pace,
        log: Log,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._end_of = end_of
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._pace = pace
        self._log = log
        self._asked: dict[str, Job] = {}
        """By `_replicate`; by id."""
        self._kept: dict[str, Job] = {}
        """Of documents; by document."""
        self._room = asyncio.Semaphore(limits.replication_jobs_max)
        self.ended: Ended = _nobody

    @property
    def all(self) -> list[Job]:
        return [*self._asked.values(), *self._kept.values()]

    # `_replicate`

    def begin(self, what: Replication) -> Job:
        """Begin a replication, or find it under way; raises ``Busy`` without room."""
        job = Job(what, self._cluster, None, self._limits)
        found = self._asked.get(job.id)
        if found is not None:
            _check_user(found, what.user)
            return found
        if len(self._asked) >= self._limits.replication_jobs_max or self._room.locked():
            raise Busy("Too many replications are running.")
        if not what.continuous:
            job.result = asyncio.get_running_loop().create_future()
            job.result.add_done_callback(_heard)
        self._asked[job.id] = job
        self._start(job)
        return job

    async def result(self, job: Job) -> dict[str, Any]:
        """What a one-shot replication came to; raises ``DivanError``. It goes on without askers."""
        assert job.result is not None
        return await asyncio.shield(job.result)

    def find(self, job_id: str) -> Job | None:
        """The job of that id."""
        return next((job for job in self.all if job_id == job.id), None)

    async def cancel(self, job_id: str, user: UserContext) -> bool:
        """End a replication of `_replicate`; was there one? Raises ``Unauthorized``."""
        job = self._asked.get(job_id)
        if job is None:
            return False
        _check_user(job, user)
        del self._asked[job_id]
        await self._stop(job)
        return True

    # Documents

    def kept(self) -> dict[str, Job]:
        """Of documents, by document."""
        return dict(self._kept)

    def keep(self, doc_id: str, what: Replication) -> None:
        """Run what a document says until it is dropped."""
        job = Job(what, self._cluster, doc_id, self._limits)
        self._kept[doc_id] = job
        self._start(job)

    async def drop(self, doc_id: str) -> None:
        """It is another node's now, or nobody's."""
        job = self._kept.pop(doc_id, None)
        if job is not None:
            await self._stop(job)

    async def close(self) -> None:
        """Run nothing more."""
        for job in self.all:
            await self._stop(job)

    # What runs

    def _start(self, job: Job) -> None:
        job.note("pending" if self._room.locked() else "initializing", "added", self._now_ms())
        job.started_ms = self._now_ms()
        job.task = asyncio.create_task(self._work(job))

    async def _stop(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)
        if job.result is not None and not job.result.done():
            job.result.set_exception(NotFound("The replication was cancelled."))

    async def _work(self, job: Job) -> None:
        try:
            while True:
                try:
                    answer = await self._attempt(job)
                except DivanError as fault:
                    failed: DivanError = fault
                except Exception as fault:
                    self._log.fault("a replication failed", fault, id=job.id)
                    failed = DivanError("The server met an unexpected condition.")
                else:
                    job.note("completed", "completed", self._now_ms())
                    await self._tell(job, answer)
                    return
                job.note("crashing", "crashed", self._now_ms(), failed.reason)
                if job.result is not None:
                    job.result.set_exception(failed)
                    return
                wait_s = job.backoff.failed(self._rng.uniform())
                self._log.event(
                    "a replication failed", id=job.id, doc=job.doc_id or "", reason=failed.reason,
                    again_in_s=round(wait_s, 1),
                )  # fmt: skip
                await asyncio.sleep(wait_s)
        finally:
            if self._asked.get(job.id) is job:
                del self._asked[job.id]

    async def _attempt(self, job: Job) -> dict[str, Any]:
        async with self._room:
            what = job.what
            ends = self._end_of(what.source, what.user), self._end_of(what.target, what.user)
            job.run = Run(
                what, job.name, ends, self._clock, self._rng, self._limits, self._pace,
                job.backoff.went_well,
            )  # fmt: skip
            job.note("running", "started", self._now_ms())
            try:
                return await job.run.go()
            finally:
                for end in ends:
                    await end.close()

    async def _tell(self, job: Job, answer: dict[str, Any]) -> None:
        job.answer = answer
        if job.result is not None:
            job.result.set_result(answer)
        if job.doc_id is not None:
            with suppress(DivanError):
                await self.ended(job.doc_id, answer)

    # What is shown

    def shown(self) -> list[dict[str, object]]:
        """Rows of `_scheduler/jobs`, and what `_scheduler/docs` adds, without credentials."""
        return [self._row(job) for job in self.all]

    def _row(self, job: Job) -> dict[str, object]:
        return {
            "id": job.id,
            "database": DATABASE if job.doc_id is not None else None,
            "doc_id": job.doc_id,
            "user": job.what.user.name,
            "source": job.what.source.shown,
            "target": job.what.target.shown,
            "node": self._node,
            "pid": None,
            "start_time": rfc3339(job.started_ms),
            "last_updated": rfc3339(job.updated_ms),
            "state": job.state,
            "error_count": job.backoff.failures,
            "info": job.info(),
            "history": list(job.history),
        }

    def tasks(self) -> list[dict[str, object]]:
        """Those that run, as `_active_tasks` shows them."""
        return [
            {
                "type": "replication",
                "node": self._node,
                "replication_id": job.id,
                "doc_id": job.doc_id,
                "user": job.what.user.name,
                "source": job.what.source.shown,
                "target": job.what.target.shown,
                "continuous": job.what.continuous,
                "checkpoint_interval": job.what.checkpoint_interval_ms,
                "started_on": job.started_ms // 1000,
                "updated_on": self._now_ms() // 1000,
                **(job.info() or {}),
            }
            for job in self.all
            if job.state == "running"
        ]

    def _now_ms(self) -> int:
        return self._clock.wall_ms()


async def _nobody(doc_id: str, answer: dict[str, Any]) -> None:
    """Nobody has asked to be told."""


def _heard(result: asyncio.Future[dict[str, Any]]) -> None:
    """Whoever asked may have gone: a failure that nobody hears of is none of asyncio's."""
    if not result.cancelled():
        result.exception()


def _check_user(job: Job, user: UserContext) -> None:
    if not user.is_admin and user.name != job.what.user.name:
        raise Unauthorized("This replication is another user's.")
