"""Commits on their way from the writer's thread to everybody on the event loop.

What was committed shows everywhere before any client hears of it. A commit that nobody waits for,
as most are that bring others' writes, does not wake the loop: it is taken over when the loop next
wants to know what the node contains (``settle``), at the latest at the next heartbeat.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from divandb.auth import users
from divandb.catalog import Catalog
from divandb.cluster.progress import Progress, Reach
from divandb.commands import Job
from divandb.designs import Designs
from divandb.httpd.authenticator import Authenticator
from divandb.replica import Replica
from divandb.settings import Settings
from divandb.store import registers
from divandb.store.ledger import Changes
from divandb.store.upkeep import Upkeep
from divandb.vector import Vector

PENDING_COMMITS_MAX = 64
"""So many may wait for the loop to ask; with one more it is woken."""


class Delivery:
    """One node's. ``hand_over`` and ``published`` are called on the writer's thread, all else on
    the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        catalog: Catalog,
        settings: Settings,
        authenticator: Authenticator,
        replica: Replica,
        designs: Designs,
        index: Callable[[set[int]], None],
        upkeep: Upkeep,
        progress: Progress,
        boarded: Reach,
        wrote: asyncio.Event,
        own_origin: Callable[[], int | None],
        slot: str,
    ) -> None:
        """``index`` is told of the databases that have changed. ``wrote`` lives on the writer's
        thread, and is set when this node has written.
        """
        self._loop = loop
        self._catalog = catalog
        self._settings = settings
        self._authenticator = authenticator
        self._replica = replica
        self._designs = designs
        self._index = index
        self._upkeep = upkeep
        self._progress = progress
        self._boarded = boarded
        self._wrote = wrote
        self._own_origin = own_origin
        self._slot = slot
        self._pending: deque[Changes] = deque()
        self._published: deque[Vector] = deque()
        self._is_settling = False
        self.removed: Callable[[], None] = lambda: None
        """Called when nodes were removed from the cluster."""
        self._newest: tuple[int | None, int] = (None, 0)
        progress.settle = boarded.settle = self.settle

    # On the writer's thread

    def hand_over(self, jobs: list[Job], made: Changes | None) -> None:
        """Jobs that were carried out, and what their commit changed."""
        outer = [job for job in jobs if not job.is_inner]
        if made is not None:
            # Before anybody is looked for who waits: who begins to wait looks here afterwards.
            self._pending.append(made)
        if outer or (made is not None and self._is_awaited(made)):
            self._loop.call_soon_threadsafe(self._answer, outer)
        if made is not None:
            self._look_for_own(made)
        for job in jobs:
            if job.is_inner:
                job.done(job)

    def published(self, vector: Vector) -> None:
        """So much of this node's own writes is on the Masters' Board."""
        self._published.append(vector)
        if self._boarded.is_awaited or len(self._published) > PENDING_COMMITS_MAX:
            self._loop.call_soon_threadsafe(self.settle)

    def _is_awaited(self, made: Changes) -> bool:
        return bool(
            made.databases
            or made.registers
            or made.designs
            or self._progress.is_awaited
            or self._replica.is_watched(made.documents)
            or len(self._pending) > PENDING_COMMITS_MAX
            or self._has_users(made)
        )

    def _look_for_own(self, made: Changes) -> None:
        origin = self._own_origin()
        if origin is not None and made.vector is not None:
            newest = (origin, made.vector.get(origin, 0))
            if newest != self._newest:
                self._newest = newest
                self._wrote.set()

    # On the loop

    def _answer(self, jobs: list[Job]) -> None:
        self.settle()
        for job in jobs:
            job.done(job)

    def settle(self) -> None:
        """Take over what was committed since."""
        if self._is_settling or not (self._pending or self._published):
            return
        self._is_settling = True
        try:
            while self._pending:
                self._spread(self._pending.popleft())
            while self._published:
                self._boarded.add(self._published.popleft())
        finally:
            self._is_settling = False

    def _spread(self, made: Changes) -> None:
        if made.databases or made.registers:
            self._catalog.refresh(made)
        settings = [key for _, kind, key in made.registers if kind == registers.SETTING]
        if settings:
            self._settings.refresh(self._replica.settings())
            self._authenticator.settings_changed(settings)
        if any(kind == registers.REMOVED for _, kind, _ in made.registers):
            self.removed()
        if made.databases or self._has_users(made):
            self._authenticator.users_changed()
        # Heartbeats tell them only now and then; an owner must not speak of a part of what it has.
        self._progress.slots.update(made.slots)
        if made.vector is not None:
            self._move_on(made.vector)
        self._replica.wake(made.documents | made.databases)
        self._designs.forget(made.designs | made.databases)
        self._index(made.documents | made.databases)
        self._upkeep.changed.set()

    def _has_users(self, made: Changes) -> bool:
        known = self._catalog.find(users.USERS_DB)
        return known is not None and known.num in made.documents

    def _move_on(self, vector: Vector) -> None:
        origin = self._own_origin()
        if origin is not None:
            self._progress.slots.setdefault(origin, self._slot)
            if origin not in self._boarded.vector:
                self._boarded.vector = {**self._boarded.vector, origin: 0}
        self._progress.advance(vector)
