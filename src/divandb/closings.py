"""Finished origins leave vectors: what an entry that is missing in a vector means.

Every run that accepts writes opens an origin, so vectors would grow by one entry each for ever. The
owner of a slot says of a finished origin that it *ended* with a number, which is a write of its own
with a dot of its own; and once all members contain both, that the origin is *closed*. From then on
whoever contains all of the origin up to that number may leave it out where a vector is written down
or sent (``compact``), and whoever reads one puts it back (``expand``):

    a vector that covers the dot of "o ended at n" and has no entry for o contains o up to n

That is no guess. Whoever covers the dot knows of the end (Rule 4), and has an entry for o if it
contains less, be it 0. So nobody has to know what the other has heard of: a vector says it itself,
and who has not heard of an end takes from a vector less than is in it, never more.

Only what is sent or stored is compact; what a node compares with is whole.
"""

from collections.abc import Iterable
from typing import NamedTuple

from divandb.vector import Dot, Origin, Vector, contains, covers


class End(NamedTuple):
    """An origin ended with a number: who said so, with what write, and when."""

    origin: Origin
    upto: int
    by: Dot
    stamp: int
    """Of that write. What ends its origin has a later one."""
    is_closed: bool
    """Do all members know of it?"""


class Closings:
    """All ends that a node has heard of. Never changes: threads share it."""

    def __init__(self, ends: Iterable[End] = ()) -> None:
        self._ends = sorted(ends, key=lambda end: (-end.stamp, end.origin, end.upto, end.by))
        """The latest first: when one is looked at, it is known how much of its origin there is."""
        self._of: dict[Origin, list[End]] = {}
        for end in reversed(self._ends):
            self._of.setdefault(end.origin, []).append(end)
        self.upto = {origin: max(end.upto for end in ends) for origin, ends in self._of.items()}
        """origin → where it ended, as far as that is known."""
        self._closed = {
            origin: n
            for origin, n in self.upto.items()
            if any(end.is_closed and end.upto == n for end in self._of[origin])
        }
        self._dots: dict[Origin, int] = {}
        """A vector that covers these and names none that has ended means all ends."""
        for end in self._ends:
            origin, oseq = end.by
            if origin not in self.upto:
                self._dots[origin] = max(oseq, self._dots.get(origin, 0))
        self._last: dict[End, Dot] = {}
        """The write that tells of an end; if its origin was closed since, the one that tells of
        that, and so on.
        """
        for end in self._ends:
            closing = self._closing(*end.by, end.stamp)
            self._last[end] = end.by if closing is None else self._last[closing]
        self._are_chained = self._expanded(self._dots) == {**self.upto, **self._dots}

    def __bool__(self) -> bool:
        return bool(self._ends)

    @property
    def closed(self) -> int:
        """How many origins may be left out."""
        return len(self._closed)

    def is_closed(self, origin: Origin, upto: int) -> bool:
        """May this entry be left out of a vector?"""
        return self._closed.get(origin) == upto

    def of(self, origin: Origin, upto: int) -> list[End]:
        """What was told of this origin's end at this number."""
        return [end for end in self._of.get(origin, ()) if end.upto == upto]

    # Vectors that say how much is contained

    def expand(self, vector: Vector) -> dict[Origin, int]:
        """All that is contained by whoever has written this down."""
        if self._means_all(vector):
            return {**self.upto, **vector}
        return self._expanded(vector)

    def compact(self, vector: Vector) -> dict[Origin, int]:
        """The same without what it means anyway; ``vector`` is whole, and of this node."""
        closed = self._closed
        few = {origin: n for origin, n in vector.items() if closed.get(origin) != n}
        if len(vector) - len(few) == len(self.upto) and self._means_all(few):
            return few
        for end in self._ends:
            if vector.get(end.origin, 0) < end.upto and contains(vector, end.by):
                few[end.origin] = vector.get(end.origin, 0)
        # Where two owners of a slot have ended each other's origins, one of them has to be named.
        while missing := vector.items() - self._expanded(few).items() - few.items():
            few.update(missing)
        return few

    def _means_all(self, vector: Vector) -> bool:
        return (
            self._are_chained and self.upto.keys().isdisjoint(vector) and covers(vector, self._dots)
        )

    def _expanded(self, vector: Vector) -> dict[Origin, int]:
        whole = dict(vector)
        for end in self._ends:
            is_open = end.origin not in vector and whole.get(end.origin, 0) < end.upto
            if is_open and contains(whole, end.by):
                whole[end.origin] = end.upto
        return whole

    # Vectors that say what somebody needs

    def fewer(self, needs: Vector) -> dict[Origin, int]:
        """These needs, with the write that closed an origin in the place of that origin: whoever
        contains it contains all of the origin, or knows that it does not (``is_met``).
        """
        found: dict[Origin, int] = {}
        for origin, oseq in needs.items():
            end = self._closing(origin, oseq, -1) if origin in self._closed else None
            origin, oseq = (origin, oseq) if end is None else self._last[end]
            found[origin] = max(oseq, found.get(origin, 0))
        return found

    def _closing(self, origin: Origin, oseq: int, after: int) -> End | None:
        """What closed an origin at this number or above, with a stamp behind ``after``."""
        for end in self._of.get(origin, ()):
            if end.is_closed and end.upto >= oseq and end.stamp > after:
                return end
        return None

    def are_met_by(self, vector: Vector) -> bool:
        """Does a whole vector contain all that has ended? A file that was put back may not."""
        return covers(vector, self.upto)

    def is_met(self, vector: Vector, needs: Vector) -> bool:
        """Does a whole vector contain what these needs mean?"""
        return covers(vector, needs) and covers(vector, self.expand(needs))


NONE = Closings()
