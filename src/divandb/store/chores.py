"""What the upkeep does next: chosen from facts, without I/O.

free      rows of dropped databases
discard   chunks of blobs that nobody needs
compact   bodies of old revisions, when asked for or when they are a large share
thin      old marks: the farther back, the fewer
forget    the row of a freed generation that a newer one has followed
trim      outbox rows that are published, or too many when nobody publishes
sweep     looking for blobs that nobody needs
vacuum    free pages back to the file system
"""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from divandb.config import Limits
from divandb.store.databases import Database
from divandb.store.ledger import MARK_CHANGES_MAX

DENSE_MARKS = 1000
"""Newest marks of a database that are all kept."""
THIN_EVERY_CHANGES = 10_000
VACUUM_PAGES_MIN = 256
VACUUM_START_SHARE = 0.2
VACUUM_STOP_SHARE = 0.05
"""Free pages are given back above the one share of the file, down to the other."""


class Task(enum.Enum):
    """A kind of background work."""

    FREE = "free"
    DISCARD = "discard"
    COMPACT = "compact"
    TRIM = "trim"
    THIN = "thin"
    FORGET = "forget"
    SWEEP = "sweep"
    VACUUM = "vacuum"


class Facts(msgspec.Struct, frozen=True):
    """All that the choice of the next task rests on."""

    databases: Sequence[Database]
    """Every generation in the file."""
    newest: Mapping[str, int]
    """name → highest generation."""
    asked: frozenset[int] = frozenset()
    """Databases for which compaction was asked."""
    old_bytes_left: Mapping[int, int] = {}
    """Database → bytes of old revisions that were there when its last compaction ended."""
    thinned: Mapping[int, int] = {}
    """Database → its newest mark when marks were thinned the last time."""
    discarding: bool = False
    outbox: tuple[int, int] = (0, 0)
    """Numbers of the first and the last row; (0, 0) when there is none."""
    published: int | None = None
    """The last outbox row that is on the board; ``None`` when there is no board."""
    referred_to: Mapping[int, int] = {}
    """Database → the last outbox row about it, as far as that was looked up."""
    sweep_due: bool = False
    pages: int = 0
    free_pages: int = 0


def next_task(facts: Facts, limits: Limits) -> tuple[Task, int] | None:
    """The next thing to do and the number of the database it is about (or 0); ``None`` to rest."""
    for database in facts.databases:
        if database.dropped and not database.freed:
            return Task.FREE, database.num
    if facts.discarding:
        return Task.DISCARD, 0
    for choice in (_to_compact, _to_thin, _to_forget):
        found = next((d for d in facts.databases if choice(facts, d, limits)), None)
        if found is not None:
            return _TASK_OF[choice], found.num
    if trim_upto(facts, limits) >= facts.outbox[0] > 0:
        return Task.TRIM, 0
    if facts.sweep_due:
        return Task.SWEEP, 0
    if facts.free_pages > max(VACUUM_PAGES_MIN, int(facts.pages * VACUUM_START_SHARE)):
        return Task.VACUUM, 0
    return None


def _to_compact(facts: Facts, database: Database, limits: Limits) -> bool:
    if database.dropped:
        return False
    if database.num in facts.asked:
        return True
    old = database.old_bytes
    if old - facts.old_bytes_left.get(database.num, 0) <= limits.old_revisions_bytes_min:
        return False
    return old > limits.old_revisions_share_max * (old + database.body_bytes)


def _to_thin(facts: Facts, database: Database, limits: Limits) -> bool:
    if database.dropped or database.mark_seq < DENSE_MARKS * MARK_CHANGES_MAX:
        return False
    return database.mark_seq - facts.thinned.get(database.num, 0) >= THIN_EVERY_CHANGES


def _to_forget(facts: Facts, database: Database, limits: Limits) -> bool:
    """Only behind a newer generation, which is what refuses late events and reused numbers."""
    if not database.freed or facts.newest[database.name] <= database.generation:
        return False
    first, last = facts.outbox
    referred_to = facts.referred_to.get(database.num)
    return referred_to is None or not first <= referred_to <= last


_TASK_OF = {_to_compact: Task.COMPACT, _to_thin: Task.THIN, _to_forget: Task.FORGET}


def trim_upto(facts: Facts, limits: Limits) -> int:
    """The last outbox row that may go: the last published, or what is too many with no board."""
    if facts.published is not None:
        return facts.published
    return facts.outbox[1] - limits.outbox_rows_max


def marks_to_drop(seqs: Sequence[int], newest: int) -> list[int]:
    """Those of ``seqs`` (rising) that go: of old marks one stays in each bucket.

    Buckets grow with age. The first mark of each stays, and buckets of one size tile those of the
    next, so that thinning later keeps a part of what was kept before. The first of ``seqs`` stays.
    """
    dropped = []
    kept = None
    for seq in seqs:
        age = (newest - seq) // (DENSE_MARKS * MARK_CHANGES_MAX)
        size = MARK_CHANGES_MAX << age.bit_length()
        if age and kept is not None and kept // size == seq // size:
            dropped.append(seq)
        else:
            kept = seq
    return dropped
