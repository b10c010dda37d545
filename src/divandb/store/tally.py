"""A database's rows counted anew while it is written to: what the writer has to tell the count.

A scan reads rows in the order of their places. A row that is written leaves its place and enters
behind all others. So a scan that began when the last place was ``goal`` reads places up to there
and no further: what enters is counted as it enters, and what leaves is taken out again if it was
counted, be it read already (up to ``place``) or entered since (behind ``goal``). Registers stay
where they are: one that is set counts anew if the scan has passed it.

In the end the tally is that of the rows as they are, exactly, and no reader had to hold a snapshot
for as long as a whole file takes to read.
"""

import msgspec

Weight = tuple[int, int, int]
"""(documents, tombstones, bytes of bodies) that a row counts."""


class Tally(msgspec.Struct):
    """What a database's row says of its content; ``digest`` as a number (``digests``)."""

    digest: int = 0
    docs: int = 0
    tombstones: int = 0
    body_bytes: int = 0

    def count(self, weight: Weight, number: int, step: int = 1) -> None:
        """A row more, or with -1 a row less."""
        docs, tombstones, size = weight
        self.digest ^= number
        self.docs += step * docs
        self.tombstones += step * tombstones
        self.body_bytes += step * size

    def join(self, other: "Tally") -> None:
        """All that another one has counted."""
        self.count((other.docs, other.tombstones, other.body_bytes), other.digest)


class Scan:
    """A scan under way, as far as it has come; on the writer's thread."""

    def __init__(self, num: int, place: int, goal: int) -> None:
        self.num = num
        self.place = place
        """Rows up to this place were counted."""
        self.goal = goal
        self.register: tuple[str, str] = ("", "")
        """Registers up to this (kind, key) were counted."""
        self.tally = Tally()

    def leave(self, place: int, weight: Weight, number: int) -> None:
        """A row leaves its place."""
        if place <= self.place or place > self.goal:
            self.tally.count(weight, number, -1)

    def enter(self, weight: Weight, number: int) -> None:
        """A row enters, behind all others."""
        self.tally.count(weight, number)

    def set(self, kind: str, key: str, gone: int, put: int) -> None:
        """A register is set: from one number to another."""
        if (kind, key) <= self.register:
            self.tally.digest ^= gone ^ put
