"""The comfort zone: how much of its time a node may spend on other things than clients.

Replication, copies for other nodes, indexes, upkeep and proofs share one budget: a share of the
time. With nobody asking it is all of the machine. While clients ask it moves by additive increase
and multiplicative decrease: a little more after each look at which clients fare as usual, a third
less when they wait longer than is usual here, or memory or the disk is short. It is never zero.
When this node's view grows older than the operator allows, a floor under the budget rises, and with
it what clients feel: readers of stale answers are hurt, too. Writes of clients are never slowed.

The core only decides: ``senses`` looks, and those who work ask how long to rest.
"""

import asyncio
import enum
import functools
from collections.abc import Awaitable, Callable

import msgspec

from divandb.config import Limits

LOOK_S = 0.5
"""Between two looks."""
QUIET_LOOKS = 2
"""After so many without a request nobody asks."""
START_SHARE = 0.2
INCREASE = 0.02
DECREASE = 0.7
LITTLE = 0.05
"""Who uses no more than this share of the time hurts nobody: to do less would help nobody."""
USUAL_FACTOR = 1.25
USUAL_SLACK_MS = 1.0
"""Clients wait longer than usual above ``usual * USUAL_FACTOR + USUAL_SLACK_MS``."""
USUAL_LEARNED = 0.2
"""So much of the difference is learned at a look at which next to nothing was done beside them."""
MEMORY_FREE_MIN = 0.05
"""Of the machine's memory."""
PRESSURE_MAX = 0.4
"""The share of the time in which all tasks waited for the disk, or some for memory."""
CPU_FULL = 0.95
REST_S_MAX = 1.0
"""However little is allowed: what somebody waits for stands still no longer after one piece."""
UPKEEP_SHARE_MAX = 0.5
"""Its steps are taken on the writer's thread: even with nobody asking, others come in between."""
LARGE_EVENTS = 128
"""A batch of so many is not made cheaper by waiting."""
GATHER_RESTS = 4.0
"""After a smaller batch an applier rests so many times what it took, whoever asks: what comes
meanwhile makes the next one larger, and cheaper by the write."""
GATHER_S_MAX = 0.05
EVENTS_MAX = 256
EVENTS_MIN = 64
SMALL_SHARE = 0.25
"""Events in one transaction, at most, and where the budget is smaller than this share: so that a
rest comes soon."""


class Work(enum.IntEnum):
    """Who is paid from the budget; those further down get what those further up leave."""

    REPLICATION = 0
    COPIES = 1
    INDEXES = 2
    UPKEEP = 3
    PROOFS = 4


class Shortages(msgspec.Struct, frozen=True):
    """What the machine is short of. Shares are between 0 and 1."""

    cpu: float = 0.0
    """How busy its cores were."""
    memory_free: float = 1.0
    memory_pressure: float = 0.0
    """The share of the time in which some tasks waited for memory."""
    disk_pressure: float = 0.0
    """The share of the time in which all tasks waited for the disk."""


class Look(msgspec.Struct, frozen=True):
    """What there was to see since the last look."""

    requests: int
    """Of clients, answered meanwhile."""
    wait_ms: float
    """How long work waited for the event loop, at the 99th percentile."""
    lag_ms: float | None = None
    """How old this node's view is; ``None``: not known."""
    machine: Shortages = Shortages()


Pace = Callable[[float], Awaitable[None]]
"""Awaited after a piece of work, with the seconds that it took."""


class Governor:
    """Decides. ``look`` is called every ``LOOK_S``."""

    def __init__(self, limits: Limits) -> None:
        self._fixed = limits.background_share
        self._least = limits.background_share_min
        self._lag_max_ms = limits.lag_max_ms
        self._ceilings = {Work.INDEXES: limits.index_share_max}
        self._always = {Work.UPKEEP: UPKEEP_SHARE_MAX, Work.PROOFS: limits.verify_share_max}
        self._asked_share = max(START_SHARE, self._least)
        self._quiet_looks = 0
        self._busy_s = dict.fromkeys(Work, 0.0)
        self.use = dict.fromkeys(Work, 0.0)
        """The share of the time that each used between the last two looks."""
        self.floor = self._least
        self.share = self._fixed or self._asked_share
        """The budget."""
        self.reason = "fixed by the operator" if self._fixed else "start"
        """Why the budget last changed."""
        self.usual_ms: float | None = None
        """How long work usually waits for the event loop while clients ask."""
        self.wait_ms = 0.0
        self.is_cut = False
        """Was the budget made smaller at the last look?"""
        self.hurts = False
        """Is the floor above what clients would be left in peace with?"""

    @property
    def is_asked(self) -> bool:
        """Do clients ask just now?"""
        return self._quiet_looks < QUIET_LOOKS

    def look(self, seen: Look, since_s: float = LOOK_S) -> None:
        """Decide anew; ``since_s`` is the time since the last look."""
        for work, busy_s in self._busy_s.items():
            self.use[work] = min(busy_s / since_s, 1.0)
        self._busy_s = dict.fromkeys(Work, 0.0)
        self.wait_ms = seen.wait_ms
        self._quiet_looks = 0 if seen.requests else self._quiet_looks + 1
        if self._fixed:
            return
        self._raise_floor(seen.lag_ms)
        if not self.is_asked:
            self.is_cut = self.hurts = False
            self._set(1.0, "nobody asks")
            return
        used = sum(self.use.values())
        reason = self._adapt(seen, used)
        self._learn_usual(seen.wait_ms, used)
        self.hurts = self.floor > self._asked_share
        if self.hurts:
            reason = f"the view is older than {self._lag_max_ms} ms: clients are hurt to catch up"
        self._set(max(self._asked_share, self.floor), reason)

    def _adapt(self, seen: Look, used: float) -> str:
        why = self._trouble(seen)
        self.is_cut = why is not None and used > LITTLE
        if why is None and seen.machine.cpu < CPU_FULL:
            self._asked_share = min(self._asked_share + INCREASE, 1.0)
            return "clients fare as usual"
        if why is not None and self.is_cut:
            self._asked_share = max(self._asked_share * DECREASE, self._least)
            return why
        return self.reason

    def _trouble(self, seen: Look) -> str | None:
        machine = seen.machine
        if machine.memory_free < MEMORY_FREE_MIN or machine.memory_pressure > PRESSURE_MAX:
            return "memory is short"
        if machine.disk_pressure > PRESSURE_MAX:
            return "the disk is behind"
        usual_ms = self.usual_ms
        if usual_ms is not None and seen.wait_ms > usual_ms * USUAL_FACTOR + USUAL_SLACK_MS:
            return "clients wait longer than usual"
        return None

    def _learn_usual(self, wait_ms: float, used: float) -> None:
        """What is usual is seen when next to nothing else is done, and when clients fare better."""
        if self.usual_ms is None or wait_ms < self.usual_ms:
            self.usual_ms = wait_ms
        elif used <= max(self._least, LITTLE):
            self.usual_ms += (wait_ms - self.usual_ms) * USUAL_LEARNED

    def _raise_floor(self, lag_ms: float | None) -> None:
        if lag_ms is None:
            return
        if lag_ms > self._lag_max_ms:
            self.floor = min(self.floor + INCREASE, 1.0)
        elif lag_ms < self._lag_max_ms / 2:
            self.floor = max(self.floor - INCREASE, self._least)

    def _set(self, share: float, reason: str) -> None:
        if abs(share - self.share) > 1e-9:
            self.share, self.reason = share, reason

    def status(self) -> dict[str, object]:
        """For JSON: shares of the time; how long work waits for the event loop, in milliseconds."""
        return {
            "share": round(self.share, 3),
            "use": {work.name.lower(): round(share, 3) for work, share in self.use.items()},
            "reason": self.reason,
            "hurts": self.hurts,
            "wait_ms": round(self.wait_ms, 1),
            "usual_ms": None if self.usual_ms is None else round(self.usual_ms, 1),
        }

    def numbers(self) -> dict[str, float]:
        """For metrics."""
        used = {f"background_{w.name.lower()}_use": round(u, 4) for w, u in self.use.items()}
        return used | {
            "background_share": round(self.share, 4),
            "background_hurts": int(self.hurts),
            "loop_wait_ms": round(self.wait_ms, 2),
        }

    # Those who work

    def allowed(self, work: Work) -> float:
        """The share of the time that this may use: what more urgent work leaves of the budget."""
        if not self.is_asked:
            return self._always.get(work, 1.0)
        spent = sum(self.use[other] for other in Work if other < work)
        ceiling = self._always.get(work, self._ceilings.get(work, 1.0))
        return min(max(self.share - spent, LITTLE), self.share, ceiling)

    def rest_s(self, work: Work, busy_s: float) -> float:
        """It has worked for so long: how long to rest."""
        self._busy_s[work] += busy_s
        rest_s = busy_s * (1 / self.allowed(work) - 1)
        return min(rest_s, REST_S_MAX) if work <= Work.INDEXES else rest_s

    def applier_rest_s(self, busy_s: float, events: int) -> float:
        """The same for a batch of events: small ones are worth waiting for more."""
        rest_s = self.rest_s(Work.REPLICATION, busy_s)
        if events < LARGE_EVENTS:
            rest_s = max(rest_s, min(busy_s * GATHER_RESTS, GATHER_S_MAX))
        return rest_s

    def pace(self, work: Work) -> Pace:
        """What rests after each piece of such work."""
        return functools.partial(self._pace, work)

    async def _pace(self, work: Work, busy_s: float) -> None:
        await asyncio.sleep(self.rest_s(work, busy_s))

    async def pace_applier(self, busy_s: float, events: int) -> None:
        """Rest."""
        await asyncio.sleep(self.applier_rest_s(busy_s, events))

    def batch_events(self) -> int:
        """How many events to apply in one transaction."""
        return EVENTS_MIN if self.share < SMALL_SHARE else EVENTS_MAX
