"""Background work on the file: in small steps on the writer's thread, between clients' writes.

``chores`` chooses what to do; ``Upkeep.step`` works at it until its time is over, inside a
transaction that clients' writes may share; ``tend`` is the loop that asks for steps and rests while
nothing is committed. Nothing that a crash could lose is kept outside the file: what was not done is
found again.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import apsw
import msgspec

from divandb.clock import Clock
from divandb.config import MIB, Limits
from divandb.errors import Busy
from divandb.event import CHUNK_BYTES
from divandb.governor import Pace
from divandb.store import blobs, chores, documents
from divandb.store.checkpoints import Checkpointer, WalGauge, rewind
from divandb.store.chores import DENSE_MARKS, VACUUM_STOP_SHARE, Facts, Task
from divandb.store.databases import Database
from divandb.store.file import Connection
from divandb.store.ledger import MARK_CHANGES_MAX, Ledger
from divandb.telemetry import Log

LOOK_EVERY_S = 1.0
"""While clients write, upkeep looks for work this often."""
FAULT_PAUSE_S = 5.0
"""After a fault (a full disk), upkeep rests this long."""
CHUNK_ROWS_MAX = 64
CHUNK_BYTES_MAX = MIB
"""A chunk of work, between two looks at the clock, ends at either."""
CHUNKS_A_STEP_MAX = 256
"""Bounds a step where the clock stands still, as it does in a simulation."""
SMALL_ROWS_MAX = 512
"""Rows a chunk where rows are small."""
VACUUM_PAGES_A_CHUNK = 32


class Progress(msgspec.Struct, frozen=True):
    """Work on one database, as `_active_tasks` shows it; times are wall-clock milliseconds."""

    task: Task
    num: int
    name: str
    total: int
    started_ms: int
    done: int = 0
    updated_ms: int = 0


class Totals(msgspec.Struct):
    """What upkeep has done since the start."""

    steps: int = 0
    freed_rows: int = 0
    dropped_bodies: int = 0
    dropped_body_bytes: int = 0
    collected_blobs: int = 0
    trimmed_outbox_rows: int = 0
    thinned_marks: int = 0
    returned_pages: int = 0
    step_us_max: int = 0


class _Receiving(msgspec.Struct, frozen=True):
    """A blob that is being received: it is given up when this has not changed for long."""

    touched_ms: int
    last_chunk: int


class _Memory(msgspec.Struct):
    """What upkeep knows besides the file; a step's changes count once they are durable."""

    discarding: list[int]
    answered: dict[int, int] = {}
    old_bytes_left: dict[int, int] = {}
    thinned: dict[int, int] = {}
    referred_to: dict[int, int] = {}
    receiving: dict[int, tuple[_Receiving, int]] = {}
    sweep_due_ms: int = 0
    sweep_waits: bool = True
    """May a blob be due at ``sweep_due_ms`` even if nothing is committed until then?"""
    swept_commits: int = -1
    rested_commits: int = -1

    def copied(self) -> "_Memory":
        return _Memory(*(copy.copy(value) for value in msgspec.structs.astuple(self)))


def no_board() -> int | None:
    """Nothing is published."""
    return None


def all_kept() -> int | None:
    """There is a board, and the publisher sees to what is on it."""
    return 0


class Upkeep:
    """Chooses and does background work; ``step`` is what the writer carries out, one at a time.

    Made before the writer starts to take jobs: what is unsealed then, a crash has left.
    """

    def __init__(
        self,
        ledger: Ledger,
        gauge: WalGauge,
        clock: Clock,
        limits: Limits,
        published: Callable[[], int | None] = no_board,
    ) -> None:
        self._gauge = gauge
        self._clock = clock
        self._limits = limits
        self._published = published
        rows: Any = ledger.connection.execute(
            "SELECT num FROM blob WHERE name IS NULL AND arriving IS NULL"
        )
        self._memory = _Memory([num for (num,) in rows])
        self._durable = self._memory.copied()
        self._settled = True
        self._work: Iterator[None] | None = None
        self._asked: dict[int, int] = {}
        self._progress: Progress | None = None
        self._free_pages = 0
        self._file_pages = 0
        self.totals = Totals()
        self.changed = asyncio.Event()
        """Set when something was committed."""
        self.urgent = asyncio.Event()
        """Set when somebody waits for what was asked."""

    # On the event loop

    def request(self, num: int) -> None:
        """Have a database compacted now."""
        self._asked[num] = self._asked.get(num, 0) + 1
        self.urgent.set()
        self.changed.set()

    def compacting(self, num: int) -> bool:
        """Is the database being compacted, or about to be?"""
        progress = self._progress
        if progress is not None and progress.task is Task.COMPACT and progress.num == num:
            return True
        return self._asked.get(num, 0) > self._durable.answered.get(num, 0)

    def tasks(self) -> list[dict[str, object]]:
        """What is under way, as `_active_tasks` has it."""
        progress = self._progress
        if progress is None:
            return []
        share = min(progress.done, progress.total) / max(progress.total, 1)
        return [
            {
                "type": f"database_{'compaction' if progress.task is Task.COMPACT else 'removal'}",
                "database": progress.name,
                "progress": int(100 * share),
                "changes_done": progress.done,
                "total_changes": max(progress.total, progress.done),
                "started_on": progress.started_ms // 1000,
                "updated_on": progress.updated_ms // 1000,
            }
        ]

    def status(self) -> dict[str, float]:
        """Upkeep's numbers by name, with the unit in the name."""
        numbers: dict[str, float] = {
            f"upkeep_{name}": value for name, value in msgspec.structs.asdict(self.totals).items()
        }
        numbers["file_pages"] = self._file_pages
        numbers["file_free_pages"] = self._free_pages
        numbers["wal_bytes"] = self._gauge.bytes_since(0)
        return numbers

    def resting(self) -> bool:
        """Has nothing changed since a step found nothing to do?"""
        return self._gauge.commits == self._durable.rested_commits and not self.urgent.is_set()

    def due_in_s(self) -> float | None:
        """When there may be work although nothing changes: only blobs grow old by themselves."""
        if not self._durable.sweep_waits:
            return None
        return max(0.0, (self._durable.sweep_due_ms - self._clock.wall_ms()) / 1000)

    # On the writer's thread

    def step(self, ledger: Ledger) -> float | None:
        """Work for ``compact_step_ms_max``; seconds it took, or ``None`` if nothing is to do."""
        started = self._clock.monotonic()
        if not self._settled:  # the last step's transaction was undone
            self._memory = self._durable.copied()
            self._work = None
        self._settled = False
        ledger.after_commit.append(self._settle)
        self.totals.steps += 1
        for _ in range(CHUNKS_A_STEP_MAX):
            if not self._chunk(ledger):
                self._memory.rested_commits = self._gauge.commits
                return None
            if (self._clock.monotonic() - started) * 1000 >= self._limits.compact_step_ms_max:
                break
        took_s = self._clock.monotonic() - started
        self.totals.step_us_max = max(self.totals.step_us_max, int(took_s * 1e6))
        return took_s

    def _settle(self) -> None:
        self._settled = True
        self._durable = self._memory.copied()

    def _chunk(self, ledger: Ledger) -> bool:
        """Do a little; ``False`` if there is nothing to do."""
        if self._work is None:
            task = chores.next_task(self._facts(ledger), self._limits)
            if task is None:
                self._progress = None
                return False
            self._work = self._start(ledger, *task)
        if next(self._work, self) is self:
            self._work = None
            self._progress = None
        return True

    def _facts(self, ledger: Ledger) -> Facts:
        connection, memory = ledger.connection, self._memory
        first, last = _one(
            connection, "SELECT coalesce(min(n), 0), coalesce(max(n), 0) FROM outbox"
        )
        (self._free_pages,) = _one(connection, "PRAGMA freelist_count")
        (self._file_pages,) = _one(connection, "PRAGMA page_count")
        return Facts(
            databases=tuple(ledger.databases.values()),
            newest={name: database.generation for name, database in ledger.register.items()},
            asked=frozenset(
                num
                for num, asked in self._asked.copy().items()
                if asked > memory.answered.get(num, 0)
            ),
            old_bytes_left=memory.old_bytes_left,
            thinned=memory.thinned,
            discarding=bool(memory.discarding),
            outbox=(first, last),
            published=self._published(),
            referred_to=memory.referred_to,
            sweep_due=self._sweep_is_due(),
            pages=self._file_pages,
            free_pages=self._free_pages,
        )

    def _start(self, ledger: Ledger, task: Task, num: int) -> Iterator[None]:
        if task is Task.FREE:
            return self._free(ledger, num)
        if task is Task.COMPACT:
            return self._compact(ledger, num)
        if task is Task.THIN:
            return self._thin(ledger, num)
        if task is Task.FORGET:
            return self._forget(ledger, num)
        return {
            Task.DISCARD: self._discard,
            Task.TRIM: self._trim,
            Task.SWEEP: self._sweep,
            Task.VACUUM: self._vacuum,
        }[task](ledger)

    def _begin(self, task: Task, database: Database, total: int) -> None:
        now_ms = self._clock.wall_ms()
        self._progress = Progress(
            task, database.num, database.name, total, now_ms, updated_ms=now_ms
        )

    def _advance(self, done: int) -> None:
        if self._progress is not None:
            now_ms = self._clock.wall_ms()
            self._progress = msgspec.structs.replace(
                self._progress, done=self._progress.done + done, updated_ms=now_ms
            )

    # Dropped databases

    def _free(self, ledger: Ledger, num: int) -> Iterator[None]:
        database = ledger.databases[num]
        self._begin(Task.FREE, database, database.docs + database.tombstones)
        for delete in (
            _free_documents,
            _free_bodies,
            _free_registers,
            _free_marks,
            self._free_uses,
        ):
            while freed := delete(ledger.connection, database):
                self.totals.freed_rows += freed
                self._advance(freed if delete is _free_documents else 0)
                yield
        database.freed = True
        database.docs = database.tombstones = database.body_bytes = database.old_bytes = 0
        ledger.touch(database)
        for known in (self._memory.old_bytes_left, self._memory.thinned, self._memory.answered):
            known.pop(num, None)
        self._asked.pop(num, None)

    def _free_uses(self, connection: Connection, database: Database) -> int:
        rows: Any = connection.execute(
            "SELECT db, id, rev, blob FROM blob_use WHERE db = ? LIMIT ?",
            (database.num, CHUNK_ROWS_MAX),
        ).fetchall()
        connection.executemany(
            "DELETE FROM blob_use WHERE db = ? AND id = ? AND rev = ? AND blob = ?", rows
        )
        now_ms = self._clock.wall_ms()
        for name in {row[3] for row in rows}:
            blobs.touch(connection, name, now_ms)
        return len(rows)

    def _forget(self, ledger: Ledger, num: int) -> Iterator[None]:
        (last,) = _one(
            ledger.connection, "SELECT coalesce(max(n), 0) FROM outbox WHERE db = ?", (num,)
        )
        if last:
            self._memory.referred_to[num] = last
        else:
            self._memory.referred_to.pop(num, None)
            ledger.forget_database(num)
        return iter(())

    # Old revisions

    def _compact(self, ledger: Ledger, num: int) -> Iterator[None]:
        asked = self._asked.get(num, 0)
        database = ledger.databases[num]
        self._begin(Task.COMPACT, database, database.old_bytes)
        position: tuple[str, str, bytes] | None = ("", "", b"")
        while position is not None and not ledger.databases[num].dropped:
            position, dropped = documents.drop_old_after(
                ledger, ledger.databases[num], position, CHUNK_ROWS_MAX, CHUNK_BYTES_MAX
            )
            self.totals.dropped_bodies += len(dropped)
            self.totals.dropped_body_bytes += sum(dropped)
            self._advance(sum(dropped))
            yield
        self._memory.old_bytes_left[num] = ledger.databases[num].old_bytes
        self._memory.answered[num] = asked

    # Marks and outbox

    def _thin(self, ledger: Ledger, num: int) -> Iterator[None]:
        newest = ledger.databases[num].mark_seq
        after = -1
        while True:
            rows: Any = ledger.connection.execute(
                "SELECT seq FROM mark WHERE db = ? AND seq >= ? ORDER BY seq LIMIT ?",
                (num, after, SMALL_ROWS_MAX),
            ).fetchall()
            seqs = [seq for (seq,) in rows] or [after]
            gone = set(chores.marks_to_drop(seqs, newest))
            ledger.connection.executemany(
                "DELETE FROM mark WHERE db = ? AND seq = ?", [(num, seq) for seq in gone]
            )
            self.totals.thinned_marks += len(gone)
            # The next batch begins with the last mark kept, whose bucket may go on.
            after = max(seq for seq in seqs if seq not in gone)
            if len(seqs) < SMALL_ROWS_MAX or newest - after < DENSE_MARKS * MARK_CHANGES_MAX:
                break
            yield
        self._memory.thinned[num] = newest

    def _trim(self, ledger: Ledger) -> Iterator[None]:
        facts = self._facts(ledger)
        upto = chores.trim_upto(facts, self._limits)
        first = facts.outbox[0]
        while first <= upto:
            first += SMALL_ROWS_MAX
            ledger.connection.execute("DELETE FROM outbox WHERE n < ? AND n <= ?", (first, upto))
            self.totals.trimmed_outbox_rows += ledger.connection.changes()
            yield

    # Blobs

    def _discard(self, ledger: Ledger) -> Iterator[None]:
        num = self._memory.discarding[-1]
        if not blobs.is_nameless(ledger.connection, num):  # it was sealed after all
            self._memory.discarding.pop()
            return
        while blobs.discard_chunks(ledger.connection, num, CHUNK_BYTES_MAX // CHUNK_BYTES):
            yield
        blobs.discard(ledger.connection, num)
        self._memory.discarding.pop()
        self.totals.collected_blobs += 1

    def _sweep_is_due(self) -> bool:
        memory = self._memory
        if self._clock.wall_ms() < memory.sweep_due_ms:
            return False
        return memory.sweep_waits or self._gauge.commits != memory.swept_commits

    def _sweep(self, ledger: Ledger) -> Iterator[None]:
        """Look at every blob once; those that are due lose their name, to be discarded after it."""
        memory, age_ms = self._memory, self._limits.unused_blob_age_s * 1000
        now_ms, commits, after = self._clock.wall_ms(), self._gauge.commits, 0
        due_ms: list[int] = []
        receiving: dict[int, tuple[_Receiving, int]] = {}
        while rows := blobs.usage(ledger.connection, after, SMALL_ROWS_MAX):
            after = rows[-1].num
            for blob in rows:
                if blob.used or blob.num in memory.discarding:
                    continue
                since_ms = blob.touched_ms
                if blob.name is None:
                    receiving[blob.num] = self._heard_of(ledger.connection, blob, now_ms)
                    since_ms = receiving[blob.num][1]
                if since_ms + age_ms > now_ms:
                    due_ms.append(since_ms + age_ms)
                else:
                    blobs.give_up(ledger.connection, blob.num)
                    memory.discarding.append(blob.num)
                    receiving.pop(blob.num, None)
            yield
        memory.receiving = receiving
        memory.sweep_waits = bool(due_ms)
        memory.sweep_due_ms = min([now_ms + age_ms, *due_ms])
        memory.swept_commits = commits

    def _heard_of(
        self, connection: Connection, blob: blobs.Usage, now_ms: int
    ) -> tuple[_Receiving, int]:
        state = _Receiving(blob.touched_ms, blobs.last_chunk(connection, blob.num))
        known = self._memory.receiving.get(blob.num)
        return known if known is not None and known[0] == state else (state, now_ms)

    # Free pages

    def _vacuum(self, ledger: Ledger) -> Iterator[None]:
        while True:
            (free,) = _one(ledger.connection, "PRAGMA freelist_count")
            (pages,) = _one(ledger.connection, "PRAGMA page_count")
            spare = free - int(pages * VACUUM_STOP_SHARE)
            if spare <= 0:
                return
            count = min(spare, VACUUM_PAGES_A_CHUNK)
            ledger.connection.execute(f"PRAGMA incremental_vacuum({count})").fetchall()
            self.totals.returned_pages += count
            yield


def _one(connection: Connection, sql: str, values: tuple[int, ...] = ()) -> tuple[int, ...]:
    row: Any = connection.execute(sql, values).fetchone()
    numbers: tuple[int, ...] = row
    return numbers


def _within_bytes(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows without their last column, a size in bytes, up to ``CHUNK_BYTES_MAX``; at least one."""
    taken: list[tuple[Any, ...]] = []
    size = 0
    for *key, length in rows:
        taken.append(tuple(key))
        size += length
        if size >= CHUNK_BYTES_MAX:
            break
    return taken


def _free_documents(connection: Connection, database: Database) -> int:
    rows: Any = connection.execute(
        "SELECT place, length(body) + length(tree) FROM doc WHERE place > ? AND place < ? LIMIT ?",
        (database.place, database.place_end, CHUNK_ROWS_MAX),
    ).fetchall()
    keys = _within_bytes(rows)
    connection.executemany("DELETE FROM doc WHERE place = ?", keys)
    return len(keys)


def _free_bodies(connection: Connection, database: Database) -> int:
    rows: Any = connection.execute(
        "SELECT db, id, rev, digest, length(body) FROM body WHERE db = ? LIMIT ?",
        (database.num, CHUNK_ROWS_MAX),
    ).fetchall()
    keys = _within_bytes(rows)
    connection.executemany(
        "DELETE FROM body WHERE db = ? AND id = ? AND rev = ? AND digest = ?", keys
    )
    return len(keys)


def _free_registers(connection: Connection, database: Database) -> int:
    rows: Any = connection.execute(
        "SELECT db, kind, key, coalesce(length(value), 0) FROM register WHERE db = ? LIMIT ?",
        (database.num, CHUNK_ROWS_MAX),
    ).fetchall()
    keys = _within_bytes(rows)
    connection.executemany("DELETE FROM register WHERE db = ? AND kind = ? AND key = ?", keys)
    return len(keys)


def _free_marks(connection: Connection, database: Database) -> int:
    rows: Any = connection.execute(
        "SELECT db, seq FROM mark WHERE db = ? LIMIT ?", (database.num, SMALL_ROWS_MAX)
    ).fetchall()
    connection.executemany("DELETE FROM mark WHERE db = ? AND seq = ?", rows)
    return len(rows)


# The loop

Execute = Callable[[Callable[[Ledger], Any], int], Awaitable[Any]]
Offload = Callable[..., Awaitable[Any]]


async def tend(
    upkeep: Upkeep, checkpointer: Checkpointer, execute: Execute, offload: Offload, pace: Pace,
    log: Log,
) -> None:  # fmt: skip
    """Work when something has changed, until cancelled; each commit sets ``upkeep.changed``.
    ``pace`` is awaited after each step.
    """
    while True:
        try:
            await _round(upkeep, checkpointer, execute, offload, pace)
            pause_s = LOOK_EVERY_S
        except (Busy, apsw.FullError) as refusal:
            log.event("upkeep waits", why=str(refusal))
            pause_s = FAULT_PAUSE_S
        except Exception as fault:  # what cannot be done now is found again; the node goes on
            log.fault("upkeep failed", fault)
            pause_s = FAULT_PAUSE_S
        await _wait(upkeep.urgent, pause_s)
        upkeep.changed.clear()
        if upkeep.resting():
            await _wait(upkeep.changed, upkeep.due_in_s())
            await _wait(upkeep.urgent, LOOK_EVERY_S)


async def _round(
    upkeep: Upkeep, checkpointer: Checkpointer, execute: Execute, offload: Offload, pace: Pace
) -> None:
    """Steps until there is nothing to do."""
    returned_pages = upkeep.totals.returned_pages
    upkeep.urgent.clear()
    while (took_s := await execute(upkeep.step, 0)) is not None:
        await pace(took_s)
        if checkpointer.due():
            await offload(checkpointer.run)
            await execute(rewind, 0)
    # The file is cut to its size when the log is copied.
    if checkpointer.due() or upkeep.totals.returned_pages > returned_pages:
        await offload(checkpointer.run)
        await execute(rewind, 0)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
