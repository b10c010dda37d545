"""What really happened: every write that any master has committed, by its dot.

Known to checkers alone. It is told of each commit in the step that makes it, and looks into the
outbox for the names of the writes in it.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from divandb.commands import Edit, Graft, Purge, WriteDocuments
from divandb.revtree import parse_rev
from divandb.store.ledger import Kind

if TYPE_CHECKING:
    from tests.sim.node import Node

Place = tuple[str, int, str]
"""(database, generation, document)."""


class Write(NamedTuple):
    """One committed write."""

    slot: str
    at_s: float
    kind: int
    name: str
    generation: int
    key: str
    """Document id, or ``kind/key`` of a register."""
    rev: str | None
    """The revision that was made; a purge makes none."""
    parent: str | None
    stamp: int

    @property
    def place(self) -> Place:
        return (self.name, self.generation, self.key)


class History:
    """All writes of a run."""

    def __init__(self) -> None:
        self.writes: dict[int, list[Write]] = {}
        """By origin, in the order of their numbers."""
        self.slots: dict[int, str] = {}
        """Whose the origins are."""
        self.parents: dict[Place, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.dots: dict[tuple[Place, str], set[tuple[int, int]]] = defaultdict(set)
        """The writes that made a revision."""
        self.purged: dict[Place, set[str]] = defaultdict(set)
        self.deletions: dict[Place, set[str]] = defaultdict(set)
        self.excused: set[tuple[int, int]] = set()
        """Writes that may be gone, with the disks that held them: see ``losses``."""

    def committed(self, node: "Node", command: Any, result: Any, before: Any, after: Any) -> None:
        """A command's writes are durable: those behind ``before``, up to ``after``."""
        origin, last = after
        known = self.writes.setdefault(origin, [])
        self.slots[origin] = node.member.slot
        first = before[1] if before and before[0] == origin else 0
        rows: Any = node.connection.execute(
            "SELECT oseq, kind, db, key, stamp FROM outbox WHERE origin = ? AND oseq > ?"
            " AND oseq <= ? ORDER BY oseq", (origin, first, last),
        ).fetchall()  # fmt: skip
        made = self._made(command, result)
        for oseq, kind, db, key, stamp in rows:
            database = node.ledger.databases.get(db)
            name, generation = (database.name, database.generation) if database else ("", 0)
            rev, parent = made[key].pop(0) if made.get(key) else (None, None)
            at_s = node.cluster.loop.time()
            write = Write(node.member.slot, at_s, kind, name, generation, key, rev, parent, stamp)
            if len(known) != oseq - 1:
                continue  # whom that belongs to is the business of ``OneOwner``
            known.append(write)
            if rev is not None:
                self.dots[write.place, rev].add((origin, oseq))
        self._note(command, result)

    def _made(self, command: Any, result: Any) -> dict[str, list[tuple[str, str | None]]]:
        made: dict[str, list[tuple[str, str | None]]] = {}
        if isinstance(command, WriteDocuments):
            for write, rev in zip(command.writes, result, strict=True):
                if isinstance(rev, str):
                    parent = write.parent if isinstance(write, Edit) else None
                    made.setdefault(write.id, []).append((rev, parent))
        return made

    def _note(self, command: Any, result: Any) -> None:
        """Who descends from whom, and what was purged."""
        if isinstance(command, Purge):
            for doc_id, revs in result.items():
                self.purged[command.database, command.generation, doc_id].update(revs)
        elif isinstance(command, WriteDocuments):
            for write, rev in zip(command.writes, result, strict=True):
                place = (command.database, command.generation, write.id)
                if isinstance(rev, str):
                    if write.deleted:
                        self.deletions[place].add(rev)
                    path = _path(write)
                    for child, parent in pairwise(path):
                        self.parents[place][child].add(parent)

    def behind(self, old: dict[int, int], new: dict[int, int]) -> Iterator[tuple[int, int, Write]]:
        """(origin, oseq, write) of all that ``new`` covers and ``old`` does not."""
        for origin, upto in new.items():
            known = self.writes.get(origin, [])
            for oseq in range(old.get(origin, 0) + 1, min(upto, len(known)) + 1):
                yield origin, oseq, known[oseq - 1]

    def covered(self, vector: dict[int, int]) -> Iterator[tuple[int, int, Write]]:
        """All that a vector covers."""
        return self.behind({}, vector)

    def all(self) -> Iterator[tuple[int, int, Write]]:
        """Everything."""
        return self.behind({}, {origin: len(known) for origin, known in self.writes.items()})

    def ancestors(self, place: Place, revs: set[str]) -> set[str]:
        """These revisions and all that they descend from."""
        found, todo = set(revs), list(revs)
        parents = self.parents[place]
        while todo:
            for parent in parents.get(todo.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return found

    def has_uncovered(self, place: Place, vector: dict[int, int]) -> bool:
        """Is there a write to the document that a vector does not cover?"""
        return any(
            write.place == place
            for origin, known in self.writes.items()
            for write in known[vector.get(origin, 0) :]
        )

    def has(self, doc_id: str) -> bool:
        """Has any master committed a revision of a document of this name?"""
        return any(place[2] == doc_id for place, _ in self.dots)

    def is_known(self, name: str, doc_id: str, rev: str) -> bool:
        """Has any master committed this revision of the document?"""
        return any(
            known == rev and place[0] == name and place[2] == doc_id for place, known in self.dots
        )


def _path(write: Edit | Graft) -> list[str]:
    """The revision and its ancestry as far as the write says, newest first."""
    if isinstance(write, Graft):
        return [f"{write.pos - index}-{name}" for index, name in enumerate(write.ancestry)]
    if write.parent is None:
        return [f"1-{write.rev_hash}"]
    return [f"{parse_rev(write.parent)[0] + 1}-{write.rev_hash}", write.parent]


DOCUMENT, REGISTER, CREATED, DROPPED = Kind.DOCUMENT, Kind.REGISTER, Kind.CREATED, Kind.DROPPED
