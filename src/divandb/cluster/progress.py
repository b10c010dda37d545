"""What this node contains, who waits for it, and how old its view is. Lives on the event loop.

A *watermark* says that at some moment the owner of a slot had written so far and no further, in
this run and all before. Once this node contains that much, its view of the slot is as of that
moment. Moments are on this node's own monotonic clock: an answer to a request was made after the
request was sent, so what it says held then or later, whatever other clocks show.
"""

import asyncio
from bisect import bisect
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from divandb.clock import Clock
from divandb.closings import NONE, Closings
from divandb.vector import Vector, covers, join

WATERMARKS_MAX = 64
"""Watermarks of a slot that wait to be reached; of more, every other one goes."""


class Watermark(msgspec.Struct, frozen=True, array_like=True):
    """``slot`` had written what ``wrote`` covers and no more, as of ``age_ms`` before this was
    said. All its origins are in it: what an earlier run wrote may still be on its way.
    """

    slot: str
    wrote: dict[int, int]
    age_ms: float


class _Slot:
    """What is known of one slot: moments on the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.as_of: float | None = None
        self.mark: dict[int, int] = {}
        self.heard: float | None = None
        """As of when its owner was heard of at all."""
        self.ahead: deque[tuple[float, dict[int, int]]] = deque()

    def reached(self, has: Callable[[Vector], bool]) -> None:
        """Take over the latest that is contained by now; those before it go with it."""
        place = bisect(self.ahead, False, key=lambda one: not has(one[1]))
        for _ in range(place):
            self.as_of, self.mark = self.ahead.popleft()

    def note(self, as_of: float, wrote: dict[int, int], closings: Closings) -> None:
        """A later one. Each covers those before it, so that ``reached`` need not look at all."""
        last = self.ahead[-1][1] if self.ahead else {}
        if not covers(wrote, last) and not covers(closings.expand(wrote), last):
            # What an owner has lost with its disk, and says no more that it wrote, may never come.
            self.ahead.clear()
        if len(self.ahead) >= WATERMARKS_MAX:
            # Thinned out rather than cut: the oldest is reached first, the newest says most.
            self.ahead = deque(list(self.ahead)[::2])
        self.ahead.append((as_of, wrote))


class Reach:
    """A vector that grows, and those who wait for it."""

    def __init__(self, vector: Vector) -> None:
        self._vector: Vector = vector
        self._waiting: dict[asyncio.Future[None], Vector] = {}
        self.settle: Callable[[], None] = _nothing
        """Takes over what may have come without a word since."""

    @property
    def vector(self) -> Vector:
        """How far it has grown."""
        self.settle()
        return self._vector

    @vector.setter
    def vector(self, vector: Vector) -> None:
        self._vector = vector

    @property
    def is_awaited(self) -> bool:
        """Does anybody wait? May be asked on any thread."""
        return bool(self._waiting)

    def advance(self, vector: Vector) -> None:
        """It has grown to this."""
        self._vector = vector
        for future, needs in self._waiting.items():
            if not future.done() and self._has(vector, needs):
                future.set_result(None)

    def add(self, more: Vector) -> None:
        """It contains these, too."""
        self.advance({**self.vector, **more})

    def contains(self, needs: Vector) -> bool:
        """Is all of this covered?"""
        return self._has(self.vector, needs)

    def _has(self, vector: Vector, needs: Vector) -> bool:
        return covers(vector, needs)

    async def reach(self, needs: Vector, within_s: float) -> bool:
        """Wait until all of this is covered, ``within_s`` seconds at most; is it?"""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = needs
        try:
            # Looked at when it is known that somebody waits: what comes later is told.
            if not self.contains(needs):
                await asyncio.wait_for(future, within_s)
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(future)
        return True


def _nothing() -> None:
    pass


class Progress(Reach):
    """This node's vector as of the last commit that was answered, and the age of its view."""

    def __init__(
        self, vector: Vector, slots: dict[int, str], clock: Clock, own_slot: str | None = None,
        closings: Callable[[], Closings] = lambda: NONE,
    ) -> None:  # fmt: skip
        """``own_slot`` is that of a master: of its own writes its view is never old."""
        super().__init__(vector)
        self._closings = closings
        self._met: Closings | None = None
        """Ends of which all is here, as was seen before."""
        self._compact: tuple[Vector, Closings, dict[int, int]] | None = None
        self._own: tuple[Vector, int, dict[int, int]] | None = None
        """What was told, of how many origins it was known whose they are, and the own slot's part
        of it.
        """
        self._own_slot = own_slot
        self.slots = slots
        """origin → slot, as far as it is known."""
        self._clock = clock
        self._slots: dict[str, _Slot] = {}

    def forget(self, name: str) -> None:
        """The slot has another owner, of whose writes nobody has said anything yet."""
        slot = self._slots.get(name)
        if slot is not None:
            slot.as_of, slot.mark = None, {}
            slot.ahead.clear()

    def own(self, slot: str, is_own: bool) -> None:
        """This node owns the slot from now on, or no longer."""
        self._own_slot = slot if is_own else None
        self._own = None
        self._slots.pop(slot, None)
        self.expect(slot)

    def advance(self, vector: Vector) -> None:
        """A commit has moved the vector."""
        super().advance(vector)
        for slot in self._slots.values():
            slot.reached(partial(self._has, vector))

    @property
    def closings(self) -> Closings:
        """Ends of origins that this node has heard of."""
        return self._closings()

    @property
    def told(self) -> dict[int, int]:
        """The vector as it is told to others, and shown."""
        vector, closings = self.vector, self.closings
        known = self._compact
        if known is None or known[0] is not vector or known[1] is not closings:
            known = self._compact = (vector, closings, closings.compact(vector))
        return known[2]

    def _has(self, vector: Vector, needs: Vector) -> bool:
        if not covers(vector, needs):
            return False
        closings = self.closings
        if closings is not self._met:
            # Only a file that was put back may know of an end and not have all of the origin.
            if not closings.are_met_by(vector):
                return closings.is_met(vector, needs)
            self._met = closings
        return True

    @property
    def _met_all(self) -> bool:
        """Is all here that has ended, as far as this node has heard?"""
        return self.closings is self._met

    def newest(self, written: Vector) -> Vector:
        """The writes, raised to what is here of their origins: a token for parallel answers."""
        here = {origin: self.vector.get(origin, 0) for origin in written}
        return join(written, here)

    # Age

    def now(self) -> float:
        """The node's monotonic clock, in seconds."""
        return self._clock.monotonic()

    def expect(self, slot: str) -> None:
        """There is such a slot: the view's age counts it, until it has been silent for long."""
        if slot not in self._slots and slot != self._own_slot:
            self._slots[slot] = _Slot()
            self._slots[slot].heard = self._clock.monotonic()

    def heard(self, marks: list[Watermark], sent: float) -> None:
        """Somebody said these in answer to what was sent at ``sent`` (monotonic, seconds)."""
        for mark in marks:
            if mark.slot != self._own_slot:
                self._note(mark.slot, mark.wrote, sent - mark.age_ms / 1000)

    def _note(self, name: str, wrote: dict[int, int], as_of: float) -> None:
        slot = self._slots.setdefault(name, _Slot())
        slot.heard = max(slot.heard or as_of, as_of)
        if slot.as_of is not None and as_of <= slot.as_of:
            return
        if slot.ahead and as_of <= slot.ahead[-1][0]:
            return
        if not slot.ahead and slot.as_of is not None and wrote == slot.mark and self._met_all:
            slot.as_of = as_of  # it has written nothing since: that is here
            return
        slot.note(as_of, wrote, self.closings)
        slot.reached(partial(self._has, self.vector))

    def watermarks(self) -> list[Watermark]:
        """What can be said to others."""
        self.settle()
        now = self._clock.monotonic()
        said = []
        if self._own_slot is not None:
            said.append(Watermark(self._own_slot, self._told_of_own_slot(), 0.0))
        for name, slot in self._slots.items():
            known = list(slot.ahead)[-1:]
            if not known and slot.as_of is not None:
                known = [(slot.as_of, slot.mark)]
            said += [Watermark(name, wrote, (now - as_of) * 1000) for as_of, wrote in known]
        return said

    def written(self) -> dict[int, int]:
        """What the slot that this node owns has written, in all its origins, as far as clients may
        have heard of it.
        """
        return self._of_own_slot(self.vector)

    def _told_of_own_slot(self) -> dict[int, int]:
        told, known = self.told, self._own
        # Of an origin of which it is known whose it is, that stays so.
        if known is None or known[0] is not told or known[1] != len(self.slots):
            known = self._own = (told, len(self.slots), self._of_own_slot(told))
        return known[2]

    def _of_own_slot(self, vector: Vector) -> dict[int, int]:
        slots = self.slots
        return {o: oseq for o, oseq in vector.items() if slots.get(o) == self._own_slot}

    def ages_ms(self) -> dict[str, float | None]:
        """How old the view of each slot is; ``None`` before anything was heard and reached."""
        self.settle()
        now = self._clock.monotonic()
        return {
            name: None if slot.as_of is None else (now - slot.as_of) * 1000
            for name, slot in self._slots.items()
        }

    def lag(self, silent_ms: float) -> tuple[float | None, dict[str, float]]:
        """(age of the view in ms over all slots with a live owner, age in ms of each silent slot).

        ``None``: of some live slot nothing is known yet.
        """
        self.settle()
        now = self._clock.monotonic()
        oldest: float | None = 0.0
        silent: dict[str, float] = {}
        for name, slot in self._slots.items():
            heard_ms = (now - slot.heard) * 1000 if slot.heard is not None else 0.0
            if heard_ms > silent_ms:
                silent[name] = heard_ms
            elif slot.as_of is None:
                oldest = None
            elif oldest is not None:
                oldest = max(oldest, (now - slot.as_of) * 1000)
        return oldest, silent
