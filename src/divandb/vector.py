"""Dots and vectors: which writes a state contains.

A *dot* names one write: ``(origin, oseq)``. A *vector* maps an origin to the highest oseq for
which every write of that origin up to there is contained. A document's *context* has the same
shape, over the writes to that document alone. Both only ever grow, by ``join``.
"""

from collections.abc import Iterable, Mapping

Origin = int
Dot = tuple[Origin, int]
Vector = Mapping[Origin, int]


def contains(vector: Vector, dot: Dot) -> bool:
    """Is this write among those that the vector covers?"""
    return vector.get(dot[0], 0) >= dot[1]


def covers(vector: Vector, other: Vector) -> bool:
    """Does ``vector`` contain every write that ``other`` contains?"""
    get = vector.get
    # Not ``all``: each heartbeat asks this several times, and a generator costs as much again.
    for origin, oseq in other.items():  # noqa: SIM110
        if get(origin, 0) < oseq:
            return False
    return True


def join(*vectors: Vector) -> dict[Origin, int]:
    """The least vector that covers all of them."""
    joined: dict[Origin, int] = {}
    for vector in vectors:
        for origin, oseq in vector.items():
            if joined.get(origin, 0) < oseq:
                joined[origin] = oseq
    return joined


def in_hex(vector: Vector) -> dict[str, int]:
    """A vector as people and programs read it: origins as 16 hex digits."""
    return {f"{origin % 2**64:016x}": oseq for origin, oseq in sorted(vector.items())}


def advanced(vector: Vector, dots: Iterable[Dot]) -> dict[Origin, int]:
    """``vector`` raised to cover ``dots``."""
    raised = dict(vector)
    for origin, oseq in dots:
        if raised.get(origin, 0) < oseq:
            raised[origin] = oseq
    return raised


def short_of(vector: Vector, base: Vector, contexts: Iterable[Vector]) -> dict[Origin, int]:
    """``vector`` lowered, nowhere below ``base``, so that it covers none of the contexts.

    Those that ``base`` covers are left out of account. Little is lost: a context is kept from being
    covered by that origin of which the least has to be given up, those with the fewest to choose
    from first.
    """
    lowered = dict(vector)
    ahead = [
        [(origin, oseq) for origin, oseq in context.items() if oseq > base.get(origin, 0)]
        for context in contexts
    ]
    for dots in sorted(filter(None, ahead), key=len):
        spare, origin, oseq = min(
            (lowered.get(origin, 0) - oseq, origin, oseq) for origin, oseq in dots
        )
        if spare >= 0:
            lowered[origin] = oseq - 1
    return lowered
