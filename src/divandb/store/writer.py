"""The one thread that writes, and the group commit.

Jobs that wait are taken together, share a transaction and one fsync, and are answered together
after it: one wake-up of the event loop a batch. ``run`` is the batch itself, with no thread in it,
so that a simulation can call it on its own clock.

The thread has an event loop of its own: replication lives on it, so that what comes from a board is
applied where it was read. Jobs from there are ``is_inner``.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

import apsw

from divandb.commands import Job
from divandb.config import Limits
from divandb.errors import Busy, DivanError, StorageFull
from divandb.store.ledger import Changes
from divandb.vector import Vector


class Work(Protocol):
    """What the writer asks of whoever carries out commands."""

    def begin(self) -> None:
        """Start a transaction."""
        ...

    def execute(self, command: Any) -> Any:
        """Carry out one command within it; a ``DivanError`` refuses, and has changed nothing."""
        ...

    def written(self) -> Vector:
        """What holds the writes of the command just carried out: all that it changed, or found."""
        ...

    def commit(self) -> Changes:
        """Make it durable."""
        ...

    def rollback(self) -> None:
        """Undo all of it."""
        ...


Deliver = Callable[[list[Job], Changes | None], None]


class Writer:
    """A bounded queue of jobs and the thread that carries them out."""

    def __init__(
        self,
        work: Work,
        limits: Limits,
        deliver: Deliver,
        fatal: Callable[[BaseException], None],
        make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._work = work
        self._fatal = fatal
        self._limits = limits
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._is_due = False
        self._is_broken = False
        self._make_loop = make_loop
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to take jobs."""
        self._loop = self._make_loop()
        self._loop.call_soon(self._turn)
        self._thread = threading.Thread(
            target=self._run, args=(self._loop,), name="writer", daemon=True
        )
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The thread's own, once it was started: what runs there has the file between jobs."""
        assert self._loop is not None
        return self._loop

    def stop(self) -> None:
        """Carry out what waits, then end the thread."""
        loop, self._loop = self.loop, None
        loop.call_soon_threadsafe(self._end, loop)
        self._thread.join()
        loop.close()

    @property
    def waiting_jobs(self) -> int:
        return self._queue.qsize()

    def submit(self, job: Job) -> None:
        """Queue a job; raises ``Busy`` when the queue is full."""
        self._check_room(job)
        with self._lock:
            self._waiting_bytes += job.size_bytes
        self._queue.put(job)
        if not self._is_due:
            self._is_due = True
            self._call(job.is_inner)

    def _check_room(self, job: Job) -> None:
        full = self._queue.qsize() >= self._limits.write_queue_jobs_max
        if full or self._waiting_bytes + job.size_bytes > self._limits.write_queue_bytes_max:
            raise Busy("Too many writes are waiting; try again shortly.")

    def _call(self, is_inner: bool) -> None:
        """Have the thread take its turn, for itself or for another."""
        if self._loop is not None:
            call = self._loop.call_soon if is_inner else self._loop.call_soon_threadsafe
            call(self._turn)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._is_broken and not self._queue.empty():
            self._turn()
        loop.stop()

    def _turn(self) -> None:
        # Before anything is taken: what comes in behind it is due again.
        self._is_due = False
        if self._is_broken or self._queue.empty():
            return
        try:
            self._deliver(*self.run(self._take()))
        except BaseException as fault:
            # Not even undoing worked: what the file holds is not known, so nothing more is written.
            self._is_broken = True
            self._fatal(fault)
        if not self._queue.empty() and not self._is_due:
            self._is_due = True
            self._call(True)

    def _take(self) -> list[Job]:
        """All that waits, up to a group commit's bounds."""
        batch: list[Job] = []
        size = 0
        while not self._queue.empty():
            job = self._queue.get()
            batch.append(job)
            size += job.size_bytes
            full = len(batch) >= self._limits.group_commit_jobs_max
            if full or size >= self._limits.group_commit_bytes_max:
                break
        with self._lock:
            self._waiting_bytes -= size
        return batch

    def run(self, batch: list[Job]) -> tuple[list[Job], Changes | None]:
        """Carry out a batch in one transaction; afterwards each job has its result or error.

        A fault that is not a refusal undoes the batch, and each job is tried alone, so that one
        cannot fail the others.
        """
        try:
            return batch, self._transact(batch)
        except Exception as fault:
            self._work.rollback()
            if len(batch) == 1:
                batch[0].result = as_refusal(fault)
                return batch, None
        changes: Changes | None = None
        for job in batch:
            changes = joined(changes, self.run([job])[1])
        return batch, changes

    def _transact(self, batch: list[Job]) -> Changes:
        self._work.begin()
        for job in batch:
            try:
                job.result = self._work.execute(job.command)
                job.written = self._work.written()
            except DivanError as refusal:
                job.result = refusal
        return self._work.commit()


def as_refusal(fault: Exception) -> Exception:
    """A full disk is the client's to know of; any other fault stays what it is."""
    if isinstance(fault, apsw.FullError | apsw.IOError):
        return StorageFull("The disk is full or failing: nothing was stored.")
    return fault


def joined(one: Changes | None, other: Changes | None) -> Changes | None:
    """Both commits' changes as one."""
    if one is None or other is None:
        return one or other
    return Changes(
        one.documents | other.documents,
        one.registers | other.registers,
        one.databases | other.databases,
        other.vector or one.vector,
        one.designs | other.designs,
        one.slots | other.slots,
    )
