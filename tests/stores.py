"""A store opened by hand, on one thread and a clock that stands still until it is told to go; and
what stands for time, chance and a log.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from divandb import document
from divandb.clock import HybridClock
from divandb.commands import Blob, CreateDatabase, DropDatabase, Edit, Job, WriteDocuments
from divandb.config import Limits
from divandb.master import Master
from divandb.revtree import Attachment, parse_rev
from divandb.store import file
from divandb.store.databases import Database
from divandb.store.file import Connection, Disk
from divandb.store.ledger import Ledger
from divandb.store.writer import Writer


class StillClock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


@dataclasses.dataclass
class Time:
    """A clock in seconds, which a test moves; small numbers, so that sums are exact."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(self.now * 1000)


class Lines:
    """A log: what was said, and no fault that goes unseen."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, what: str, **values: object) -> None:
        self.events.append(what)

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise fault


class SeededRng:
    """Chance from a seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def uniform(self) -> float:
        return self._random.random()


class Store:
    """A node's file with its master: ``do`` carries out a command in a transaction of its own."""

    def __init__(
        self, folder: Path, *, limits: Limits | None = None, clock: StillClock | None = None,
        rng: SeededRng | None = None, revs_limit: int = 1000,
    ) -> None:  # fmt: skip
        self.limits = limits or Limits()
        self.clock = clock or StillClock()
        self.rng = rng or SeededRng()
        self.revs_limit = revs_limit
        # The tests are about what is in the file, not about the disk's cache.
        self.disk = Disk(folder / file.FILE_NAME, synchronous="OFF")
        self.open()

    def open(self) -> None:
        """Open the file, as a start of the node does."""
        self.connection: Connection = file.open_for_writing(self.disk, cache_bytes=2**20)
        self.identity = file.take_identity(self.connection, self.rng)
        self.reader: Connection = file.connect(self.disk, readonly=True, cache_bytes=2**20)
        self.ledger = Ledger(self.connection, "m1", HybridClock(self.clock), self.rng)
        self.master = Master(self.ledger, self.clock, self.revs_limit)
        self.writer = Writer(self.master, self.limits, lambda jobs, changes: None, _fail)

    def close(self) -> None:
        """Close it in order."""
        self.reader.close()
        file.release(self.connection)

    def crash(self) -> None:
        """Leave the file as a process that was killed does."""
        self.reader.close()
        self.connection.close()

    def do(self, command: Any) -> Any:
        """The command's result; its refusal or fault is raised."""
        (job,), _ = self.writer.run([Job(command, 0, lambda result: None)])
        if isinstance(job.result, Exception):
            raise job.result
        return job.result

    def create(self, name: str, generation: int = 1) -> Database:
        """Make a database."""
        made: Database = self.do(CreateDatabase(name, generation, "{}"))
        return made

    def drop(self, name: str, generation: int = 1) -> None:
        """Drop it."""
        self.do(DropDatabase(name, generation))

    def write(self, name: str, *writes: Any, generation: int = 1) -> list[Any]:
        """Write documents; a revision or an error for each."""
        results: list[Any] = self.do(WriteDocuments(name, generation, list(writes)))
        return results

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """What a query finds, on the reader's connection."""
        found: list[Any] = self.reader.execute(sql, values).fetchall()
        return found

    def count(self, table: str, where: str = "1") -> int:
        """How many rows a table has."""
        number: int = self.rows(f"SELECT count(*) FROM {table} WHERE {where}")[0][0]
        return number


def _fail(fault: BaseException) -> None:
    raise fault


def edit(
    doc_id: str, parent: str | None, members: Mapping[str, Any], *, deleted: bool = False,
    attachments: tuple[Attachment, ...] = (), blobs: tuple[Blob, ...] = (),
) -> Edit:  # fmt: skip
    """An edit as an entry node fixes it."""
    packed = document.dump_members(dict(members))
    digest = document.content_digest(packed, deleted, attachments)
    rev_hash = document.rev_hash(parent, deleted, dict(members), attachments)
    pos = parse_rev(parent)[0] + 1 if parent else 1
    body = document.body_bytes(doc_id, f"{pos}-{rev_hash}", deleted, packed, attachments)
    return Edit(doc_id, parent, rev_hash, deleted, digest, body, attachments, blobs)


def run_steps(store: Store, step: Callable[[Ledger], float | None], steps_max: int = 10_000) -> int:
    """Background steps until there is nothing to do; how many it took."""
    for count in range(steps_max):
        if store.do(step) is None:
            return count
    raise AssertionError("there is always something to do")
