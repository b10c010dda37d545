"""What was found to differ or to be damaged, and what became of it: counted, kept, logged once."""

from collections import deque
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import msgspec

from divandb.clock import Clock
from divandb.store.mending import Outcome
from divandb.store.proofs import DOCUMENT
from divandb.telemetry import Log, rfc3339
from divandb.vector import Vector

OPEN_MAX = 1000
"""Damaged and disputed documents that are known at a time; more are found when these are mended."""
LINES_MAX = 100
LINES_S = 3600.0
"""So many lines are logged in such a time; all are counted."""
MENDED_MAX = 1000
"""Documents that are remembered as mended, for who has read their rows before."""
FINDINGS_MAX = 1000
"""Findings that a report can name, the latest."""

Key = tuple[str, int, str]
"""(database, generation, key as ``store.proofs`` makes it)."""


class Totals(msgspec.Struct):
    """Since the start of the process."""

    comparisons: int = 0
    """Whole comparisons with another node."""
    checked_rows: int = 0
    divergent_documents: int = 0
    """Documents and registers that were not here what they should be, and databases that were
    missing.
    """
    mended_documents: int = 0
    corrected_digests: int = 0
    """Databases whose rows had another digest than the one kept for them."""


class Damaged(msgspec.Struct, frozen=True):
    """A document whose row is not what was written; ``needs`` covers all that may be in it."""

    fault: str
    needs: Vector


class Finding(msgspec.Struct, frozen=True):
    """One, as a report shows it."""

    at: str
    database: str
    id: str
    what: str
    peer: str


class Findings:
    """Kept on the event loop."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._log = log
        self.totals = Totals()
        self.damaged: dict[Key, Damaged] = {}
        self.disputed: dict[Key, str] = {}
        """What differs and could not be mended → from whom it differs."""
        self._mended: dict[Key, float] = {}
        """The last that were mended, and when, on the monotonic clock."""
        self.count = 0
        """Of all findings ever."""
        self._lines = 0
        self._lines_since = clock.monotonic()
        self._latest: deque[Finding] = deque(maxlen=FINDINGS_MAX)

    @property
    def open(self) -> int:
        """Documents and registers that are known not to be what they should be."""
        return len(self.damaged.keys() | self.disputed.keys())

    def since(self, count: int) -> list[Finding]:
        """Those after the first ``count``, as far as they are kept."""
        return list(self._latest)[-(self.count - count) :] if self.count > count else []

    def note_damaged(self, key: Key, fault: str, needs: Vector, began: float) -> None:
        """A row is not what was written, or was not when ``began`` (monotonic, seconds) was: one
        that was mended since is not damaged again.
        """
        if key in self.damaged or self.open >= OPEN_MAX or self._mended.get(key, -inf) >= began:
            return
        self.totals.divergent_documents += 1
        self.damaged[key] = Damaged(fault, needs)
        self._tell(key, fault, "")

    def note_sound(self, name: str, generation: int, damaged: Iterable[str]) -> None:
        """A database was read to its end, and these of its documents are damaged: no others."""
        found = set(damaged)
        for key in list(self.damaged):
            if key[:2] == (name, generation) and key[2] not in found:
                del self.damaged[key]

    def note_digest(self, name: str) -> None:
        """The rows had another digest than the one that was kept."""
        self.totals.corrected_digests += 1
        self._log.event("rows are not what was written", db=name)

    def note_outcomes(
        self, name: str, generation: int, outcomes: Mapping[str, Outcome], peer: str
    ) -> None:
        """What became of documents that another node was asked for."""
        for part, outcome in outcomes.items():
            key = (name, generation, part)
            if outcome in (Outcome.MENDED, Outcome.SAME):
                known = key in self.damaged or key in self.disputed
                self.damaged.pop(key, None)
                self.disputed.pop(key, None)
                if outcome is Outcome.MENDED:
                    self.totals.divergent_documents += not known
                    self.totals.mended_documents += 1
                    self._note_mended(key)
                    self._tell(key, outcome, peer)
            elif outcome is Outcome.DISPUTED and key not in self.disputed:
                self.totals.divergent_documents += 1
                if self.open < OPEN_MAX:
                    self.disputed[key] = peer
                self._tell(key, outcome, peer)

    def _note_mended(self, key: Key) -> None:
        self._mended.pop(key, None)
        self._mended[key] = self._clock.monotonic()
        if len(self._mended) > MENDED_MAX:
            del self._mended[next(iter(self._mended))]

    def note_same(self, name: str, peer: str) -> None:
        """A database is the same here and there."""
        for key, other in list(self.disputed.items()):
            if (key[0], other) == (name, peer):
                del self.disputed[key]

    def note_elsewhere(self, name: str, key: str, peer: str) -> None:
        """Another node differs, and what is here contains what it has, as far as can be seen."""
        self._keep((name, 0, key), "differs there", peer)

    def note_database(self, name: str, peer: str) -> None:
        """A whole database was not here, and is taken from there."""
        self.totals.divergent_documents += 1
        self.totals.mended_documents += 1
        self._tell((name, 0, ""), "the database was missing", peer)

    def names_open(self, most: int) -> list[dict[str, str]]:
        """What is open, so many of it."""
        found = [(key, one.fault) for key, one in self.damaged.items()]
        found += [(key, f"differs from {peer}") for key, peer in self.disputed.items()]
        return [
            {"database": key[0], "id": shown(key[2]), "what": what} for key, what in found[:most]
        ]

    def _tell(self, key: Key, what: str, peer: str) -> None:
        self._keep(key, what, peer)
        now = self._clock.monotonic()
        if now - self._lines_since >= LINES_S:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines > LINES_MAX:
            if self._lines == LINES_MAX + 1:
                self._log.event("more is not what it should be", after=LINES_MAX)
            return
        values: dict[str, Any] = {"peer": peer} if peer else {}
        self._log.event("not what it should be", db=key[0], id=shown(key[2]), why=what, **values)

    def _keep(self, key: Key, what: str, peer: str) -> None:
        self.count += 1
        at = rfc3339(self._clock.wall_ms())
        self._latest.append(Finding(at, key[0], shown(key[2]), what, peer))


def shown(key: str) -> str:
    """A document's id, or the kind and key of a register: `_local/x`, `security/`."""
    if key.startswith(DOCUMENT):
        return key[1:]
    return key[1:].removeprefix("local/")
