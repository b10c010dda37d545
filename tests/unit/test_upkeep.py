"""Background work: what is chosen, what it leaves, and that a crash costs nothing."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.closings import NONE
from divandb.commands import (
    DiscardBlob,
    Graft,
    Purge,
    PutChunk,
    SealBlob,
    SetRegister,
    WriteDocuments,
)
from divandb.config import Limits
from divandb.cursor import Cursor
from divandb.errors import Busy
from divandb.event import CHUNK_BYTES
from divandb.governor import Governor, Work
from divandb.revtree import Attachment, parse_rev
from divandb.store import blobs, changes, checkpoints, documents, file, registers, upkeep
from divandb.store.checkpoints import Checkpointer, WalGauge
from divandb.store.chores import (
    DENSE_MARKS,
    THIN_EVERY_CHANGES,
    VACUUM_PAGES_MIN,
    Facts,
    Task,
    marks_to_drop,
    next_task,
    trim_upto,
)
from divandb.store.databases import Database
from divandb.store.ledger import MARK_CHANGES_MAX, Kind, Ledger
from divandb.store.upkeep import Upkeep, tend
from tests.stores import StillClock, Store, edit, run_steps

WAIT_S = 10.0


class Kept(Store):
    """A store with its upkeep."""

    published: int | None = None

    def open(self) -> None:
        super().open()
        self.gauge = WalGauge(self.connection)
        self.upkeep = Upkeep(
            self.ledger, self.gauge, self.clock, self.limits, lambda: self.published
        )

    def settle(self) -> int:
        """Upkeep's steps until there is nothing to do; how many it took."""
        return run_steps(self, self.upkeep.step)

    def compact(self, num: int) -> None:
        self.upkeep.request(num)
        self.settle()

    def checkpoint(self) -> None:
        checkpointer = Checkpointer(self.disk, self.gauge, self.limits)
        checkpointer.run()
        checkpointer.close()

    def wait_ms(self, ms: int) -> None:
        self.clock.ms += ms

    def check(self) -> None:
        """The file is whole, and its counters are what its rows say."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        counters = "num, docs, tombstones, body_bytes, old_bytes"
        for row in self.rows(f"SELECT {counters} FROM database WHERE dropped = freed"):
            num = row[0]
            ((docs, tombstones, body_bytes),) = self.rows(
                "SELECT coalesce(sum(flags & 3 = 0), 0), coalesce(sum(flags & 3 = 1), 0), "
                "coalesce(sum(length(body)), 0) FROM doc WHERE db = ?",
                num,
            )
            old_bytes = self.rows(
                "SELECT coalesce(sum(length(body)), 0) FROM body WHERE db = ? AND leaf = 0", num
            )[0][0]
            assert row == (num, docs, tombstones, body_bytes, old_bytes)


@pytest.fixture
def store(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def fill(store: Kept, name: str, count: int, size: int = 1000, generation: int = 1) -> list[str]:
    """``count`` new documents; their revisions."""
    writes = [
        edit(f"{name}-{number:06}", None, {"n": number, "s": "x" * size}) for number in range(count)
    ]
    revs = []
    for start in range(0, count, 500):
        revs += store.write(name, *writes[start : start + 500], generation=generation)
    return revs


def attached(name: str, data: bytes, revpos: int = 1) -> tuple[Attachment, tuple[bytes, bytes]]:
    """An attachment and its bytes, as they travel with a document."""
    blob = hashlib.sha256(data).digest()
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    att = Attachment(name, "x/y", revpos, digest, len(data), "", len(data), blob)
    return att, (blob, data)


# What to do next


def database(num: int, name: str = "", **values: Any) -> Database:
    row = Database(num, name or f"db{num}", 1, False, False, 0, 0, 0, 0, 0, 0, 0, 0, "{}")
    return msgspec.structs.replace(row, **values)


def facts(*databases: Database, **values: Any) -> Facts:
    newest: dict[str, int] = {}
    for row in databases:
        newest[row.name] = max(row.generation, newest.get(row.name, 0))
    return Facts(databases, newest, **values)


LIMITS = Limits(old_revisions_bytes_min=100, old_revisions_share_max=0.5, outbox_rows_max=10)


@pytest.mark.parametrize(
    ("known", "task"),
    [
        (facts(), None),
        (facts(database(1)), None),
        (facts(database(1), database(2, dropped=True)), (Task.FREE, 2)),
        (facts(database(1, dropped=True, freed=True)), None),
        (facts(discarding=True), (Task.DISCARD, 0)),
        # Old revisions: when asked for, or when they are many and a large share
        (facts(database(1), database(2), asked=frozenset({2})), (Task.COMPACT, 2)),
        (facts(database(1, dropped=True, freed=True), asked=frozenset({1})), None),
        (facts(database(1, old_bytes=100)), None),
        (facts(database(1, old_bytes=101)), (Task.COMPACT, 1)),
        (facts(database(1, old_bytes=101, body_bytes=100)), (Task.COMPACT, 1)),
        (facts(database(1, old_bytes=101, body_bytes=101)), None),
        (facts(database(1, old_bytes=151), old_bytes_left={1: 51}), None),
        (facts(database(1, old_bytes=152), old_bytes_left={1: 51}), (Task.COMPACT, 1)),
        # Marks
        (facts(database(1, mark_seq=99_999)), None),
        (facts(database(1, mark_seq=100_000)), (Task.THIN, 1)),
        (facts(database(1, mark_seq=100_000), thinned={1: 100_000 - THIN_EVERY_CHANGES + 1}), None),
        # Generations
        (facts(database(1, "a", dropped=True, freed=True), database(2, "a", generation=2)),
         (Task.FORGET, 1)),
        (facts(database(1, "a", dropped=True, freed=True), database(2, "a", generation=2),
               outbox=(5, 9), referred_to={1: 5}), None),
        (facts(database(1, "a", dropped=True, freed=True), database(2, "a", generation=2),
               outbox=(6, 9), referred_to={1: 5}), (Task.FORGET, 1)),
        # The outbox
        (facts(outbox=(1, 10)), None),
        (facts(outbox=(1, 11)), (Task.TRIM, 0)),
        (facts(outbox=(1, 99), published=0), None),
        (facts(outbox=(5, 99), published=4), None),
        (facts(outbox=(5, 6), published=5), (Task.TRIM, 0)),
        # The rest
        (facts(sweep_due=True), (Task.SWEEP, 0)),
        (facts(pages=10_000, free_pages=2000), None),
        (facts(pages=10_000, free_pages=2001), (Task.VACUUM, 0)),
        (facts(pages=300, free_pages=VACUUM_PAGES_MIN), None),
    ],
)  # fmt: skip
def test_the_choice(known: Facts, task: tuple[Task, int] | None) -> None:
    assert next_task(known, LIMITS) == task


def test_what_may_leave_the_outbox() -> None:
    assert trim_upto(facts(outbox=(1, 25)), LIMITS) == 15
    assert trim_upto(facts(outbox=(1, 25), published=7), LIMITS) == 7


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 40))
def test_marks_thin_out_with_age(gaps: list[int], scale: int) -> None:
    newest, seqs = 0, [0]
    for gap in gaps:
        newest += gap * MARK_CHANGES_MAX * scale
        seqs.append(newest)
    gone = set(marks_to_drop(seqs, newest))
    kept = [seq for seq in seqs if seq not in gone]
    assert kept[0] == 0
    dense_from = newest - DENSE_MARKS * MARK_CHANGES_MAX
    assert not [seq for seq in gone if seq > dense_from]
    # No reader goes back by more than a share of its cursor's age.
    for seq in gone:
        before = max(other for other in kept if other < seq)
        assert seq - before < (newest - seq) / DENSE_MARKS * 4
    assert marks_to_drop(kept, newest) == []


def test_a_billion_changes_keep_few_marks() -> None:
    newest = 0
    kept: list[int] = []
    every = 100 * THIN_EVERY_CHANGES
    while newest < 100_000_000:
        kept += range(newest, newest + every, MARK_CHANGES_MAX)
        newest += every
        gone = set(marks_to_drop(kept, newest))
        kept = [seq for seq in kept if seq not in gone]
    assert len(kept) < 20 * DENSE_MARKS


# Dropped databases


def test_a_dropped_database_gives_its_room_back(store: Kept) -> None:
    keep = store.create("keep")
    gone = store.create("gone")
    att, blob = attached("a", os.urandom(600_000))
    kept_revs = fill(store, "keep", 200)
    fill(store, "gone", 3000)
    (rev,) = store.write("gone", edit("with", None, {}, attachments=(att,), blobs=(blob,)))
    store.write("gone", edit("with", rev, {"v": 2}))
    store.do(SetRegister("gone", 1, registers.LOCAL, "c", b"x" * 5000, 1))
    store.do(SetRegister("keep", 1, registers.LOCAL, "c", b"kept", 1))
    kept_rows = store.rows("SELECT * FROM doc WHERE db = ?", keep.num)
    store.settle()
    store.checkpoint()
    size = store.disk.path.stat().st_size
    store.drop("gone")
    store.settle()
    store.wait_ms(store.limits.unused_blob_age_s * 1000)
    store.settle()
    store.checkpoint()
    for table in ("doc", "body", "register", "mark", "blob_use"):
        assert store.count(table, f"db = {gone.num}") == 0, table
    assert store.count("blob") == store.count("blob_chunk") == 0
    assert store.disk.path.stat().st_size < size / 4
    assert store.rows("SELECT * FROM doc WHERE db = ?", keep.num) == kept_rows
    assert [row[4] for row in kept_rows] == kept_revs
    assert registers.value(store.reader, keep.num, registers.LOCAL, "c") == b"kept"
    assert [(row.freed, row.docs) for row in store.ledger.databases.values()] == [
        (False, 200), (True, 0)
    ]  # fmt: skip
    store.check()
    store.close()


def test_clients_write_between_the_steps_of_freeing(store: Kept) -> None:
    store.create("keep")
    gone = store.create("gone")
    fill(store, "gone", 20_000, size=10)
    store.drop("gone")
    written = []
    steps = 0
    while store.do(store.upkeep.step) is not None:
        steps += 1
        written += store.write("keep", edit(f"d{steps}", None, {}))
    # The clock stands still here, so that rows are what bounds a step.
    left = store.count("doc", f"db = {gone.num}")
    assert left == 0
    assert steps >= 1
    assert store.count("doc") == len(written) == steps
    store.check()
    store.close()


class Ticking(StillClock):
    """A clock on which each look takes five milliseconds."""

    def monotonic(self) -> float:
        self.ms += 5
        return super().monotonic()


def test_a_step_ends_when_its_time_is_over(tmp_path: Path) -> None:
    store = Kept(tmp_path, clock=Ticking())
    store.create("gone")
    fill(store, "gone", 2000, size=10)
    store.drop("gone")
    before = store.count("doc")
    assert store.do(store.upkeep.step) is not None
    freed = before - store.count("doc")
    assert 0 < freed <= 5 * upkeep.CHUNK_ROWS_MAX
    assert store.settle() > 5
    store.close()


def test_a_crash_in_the_middle_of_freeing_costs_nothing(tmp_path: Path) -> None:
    store = Kept(tmp_path, clock=Ticking())
    store.create("keep")
    gone = store.create("gone")
    kept_revs = fill(store, "keep", 50)
    fill(store, "gone", 2000, size=10)
    store.drop("gone")
    for _ in range(5):
        store.do(store.upkeep.step)
        left = store.count("doc", f"db = {gone.num}")
        assert 0 < left < 2000
        store.crash()
        store.open()
        assert store.count("doc", f"db = {gone.num}") == left
        assert not store.ledger.databases[gone.num].freed
    store.settle()
    assert store.count("doc", f"db = {gone.num}") == 0
    assert store.ledger.databases[gone.num].freed
    assert [rev for (rev,) in store.rows("SELECT rev FROM doc ORDER BY place")] == kept_revs
    store.check()
    store.close()


def test_a_generation_is_forgotten_when_a_newer_one_follows_and_nobody_refers_to_it(
    tmp_path: Path,
) -> None:
    store = Kept(tmp_path, limits=Limits(outbox_rows_max=3))
    first = store.create("a")
    store.drop("a")
    store.settle()
    assert list(store.ledger.databases) == [first.num]
    second = store.create("a", 2)
    store.settle()
    # The event of the drop names the generation: its row stays until that is trimmed.
    assert list(store.ledger.databases) == [first.num, second.num]
    for number in range(3):
        store.write("a", edit(f"d{number}", None, {}), generation=2)
    store.settle()
    assert list(store.ledger.databases) == [second.num]
    assert store.rows("SELECT num FROM database") == [(second.num,)]
    assert store.ledger.register["a"].generation == 2
    store.close()
    store.open()
    assert store.create("b").num == second.num + 1
    store.close()


# Old revisions


def test_compaction_drops_old_bodies_and_nothing_else(store: Kept) -> None:
    db = store.create("db")
    other = store.create("other")
    for name in ("db", "other"):
        (rev,) = store.write(name, edit("d", None, {"v": 1}))
        (second,) = store.write(name, edit("d", rev, {"v": 2}))
        (third,) = store.write(name, edit("d", second, {"v": 3}))
    store.write("db", edit("e", None, {"v": 1}))
    shown = store.rows("SELECT * FROM doc WHERE db = ?", db.num)
    store.settle()
    assert store.count("body", f"db = {db.num}") == 2
    assert not store.upkeep.compacting(db.num)
    store.upkeep.request(db.num)
    assert store.upkeep.compacting(db.num)
    assert store.upkeep.urgent.is_set() and store.upkeep.changed.is_set()
    store.settle()
    assert not store.upkeep.compacting(db.num)
    assert store.count("body", f"db = {db.num}") == 0
    assert store.count("body", f"db = {other.num}") == 2
    assert store.ledger.databases[db.num].old_bytes == 0
    assert store.rows("SELECT * FROM doc WHERE db = ?", db.num) == shown
    row = documents.read_row(store.reader, db.num, "d")
    assert documents.read_revision(store.reader, db.num, row, rev) is None
    newest = documents.read_revision(store.reader, db.num, row, third)
    assert newest is not None and b'"v":3' in newest.body
    store.check()
    store.close()


def test_compaction_keeps_leaves_that_lose(store: Kept) -> None:
    db = store.create("db")
    (rev,) = store.write("db", edit("d", None, {"v": 1}))
    # Two children of one parent, as after a write on two masters.
    branch = graft_of(edit("d", rev, {"v": "b"}), rev)
    store.write("db", edit("d", rev, {"v": "a"}), branch)
    store.compact(db.num)
    row = documents.read_row(store.reader, db.num, "d")
    assert len(row.document.shown()) == 2
    for leaf in row.document.shown():
        assert documents.read_revision(store.reader, db.num, row, leaf.rev) is not None
    assert store.count("body") == 1
    store.check()
    store.close()


def graft_of(write: Any, parent: str) -> Any:
    """The same revision, as replication brings it."""
    pos, head = parse_rev(parent)
    return Graft(
        write.id, pos + 1, (write.rev_hash, head), write.deleted, write.digest, write.body,
        write.attachments, write.blobs,
    )  # fmt: skip


def test_old_revisions_go_by_themselves_when_they_are_a_large_share(tmp_path: Path) -> None:
    store = Kept(tmp_path, limits=Limits(old_revisions_bytes_min=50_000))
    db = store.create("db")
    revs = fill(store, "db", 100)
    size = store.ledger.databases[db.num].body_bytes
    old_bytes = []
    for turn in range(5):
        writes = [
            edit(f"db-{number:06}", rev, {"n": number, "s": f"{turn}" * 1000})
            for number, rev in enumerate(revs)
        ]
        revs = store.write("db", *writes)
        store.settle()
        old_bytes.append(store.ledger.databases[db.num].old_bytes)
    # At twice the size of what is shown they are above half of all.
    assert old_bytes == [size, 0, size, 0, size]
    store.check()
    store.close()


def test_a_request_that_comes_during_compaction_runs_it_again(tmp_path: Path) -> None:
    store = Kept(tmp_path, clock=Ticking())
    db = store.create("db")
    revs = fill(store, "db", 600, size=10)
    revs = store.write("db", *(edit(f"db-{n:06}", rev, {"v": 2}) for n, rev in enumerate(revs)))
    store.upkeep.request(db.num)
    store.do(store.upkeep.step)
    assert store.upkeep.compacting(db.num)
    (task,) = store.upkeep.tasks()
    assert task["type"] == "database_compaction"
    assert task["database"] == "db"
    assert 0 < int(str(task["progress"])) < 100
    assert 0 < int(str(task["changes_done"])) < int(str(task["total_changes"]))
    assert int(str(task["started_on"])) <= int(str(task["updated_on"]))
    # This one lies behind what was looked at already.
    store.write("db", edit("db-000000", revs[0], {"v": 3}))
    store.upkeep.request(db.num)
    store.settle()
    assert store.count("body") == 0
    assert not store.upkeep.compacting(db.num)
    assert store.upkeep.tasks() == []
    store.check()
    store.close()


def test_a_step_that_is_undone_is_done_again(tmp_path: Path) -> None:
    store = Kept(tmp_path, clock=Ticking())
    db = store.create("db")
    gone = store.create("gone")
    revs = fill(store, "db", 300, size=10)
    store.write("db", *(edit(f"db-{n:06}", rev, {"v": 2}) for n, rev in enumerate(revs)))
    fill(store, "gone", 300, size=10)
    store.drop("gone")
    store.upkeep.request(db.num)
    undone = 0

    def step_and_fail(ledger: Ledger) -> None:
        store.upkeep.step(ledger)
        raise RuntimeError("something else in the batch")

    for _ in range(100):
        with pytest.raises(RuntimeError):
            store.do(step_and_fail)
        undone += 1
        assert store.upkeep.compacting(db.num)
        store.check()
        if store.do(store.upkeep.step) is None:
            break
        if not store.upkeep.compacting(db.num):
            break
    assert undone > 2
    store.settle()
    assert store.count("body") == 0
    assert store.count("doc", f"db = {gone.num}") == 0
    store.check()
    store.close()


# Marks


def test_foreign_cursors_miss_nothing_when_marks_are_thinned(
    store: Kept,
) -> None:
    db = store.create("db")
    # As if the database had a long history: a document every 100 changes.
    count = 3000

    def history(ledger: Ledger) -> None:
        for number in range(count):
            row = ledger.databases[db.num]
            row.seq += MARK_CHANGES_MAX - 1
            store.master.execute(
                WriteDocuments("db", 1, [edit(f"d{number:05}", None, {"n": number})])
            )

    store.do(history)
    assert store.count("mark") == count + 1
    vectors = [
        (seq, changes.vector_at(store.reader, store.ledger.databases[db.num], seq, lambda: NONE))
        for seq in range(0, count * MARK_CHANGES_MAX, 31_111)
    ]
    store.settle()
    left = store.count("mark")
    assert DENSE_MARKS <= left < 0.8 * count
    assert left == count + 1 - store.upkeep.totals.thinned_marks
    for seq, vector in vectors:
        cursor = Cursor(999, 1, dict(vector))
        place = changes.place_of(store.reader, store.ledger.databases[db.num], cursor, lambda: NONE)
        assert changes.seq_of(place) <= seq
        rows = changes.rows(store.reader, place, db.place_end, count)
        unseen = list(changes.unseen(rows, vector))
        everything = changes.rows(store.reader, db.place, db.place_end, count)
        assert unseen == list(changes.unseen(everything, vector))
    assert store.settle() == 0
    store.close()


# Outbox


@pytest.mark.parametrize(("published", "left"), [(None, 1000), (0, 3001), (2500, 501), (3001, 0)])
def test_the_outbox_is_trimmed(tmp_path: Path, published: int | None, left: int) -> None:
    store = Kept(tmp_path, limits=Limits(outbox_rows_max=1000))
    store.published = published
    store.create("db")
    fill(store, "db", 3000, size=1)
    store.settle()
    assert store.count("outbox") == left
    # Those that stay are the last ones, and the numbers go on.
    assert [row[0] for row in store.rows("SELECT oseq FROM outbox ORDER BY n")] == list(
        range(3002 - left, 3002)
    )
    store.write("db", edit("more", None, {}))
    assert store.rows("SELECT max(oseq), kind FROM outbox") == [(3002, Kind.DOCUMENT)]
    store.close()


# Blobs


def test_what_a_crash_left_unsealed_is_collected_at_the_start(store: Kept) -> None:
    store.create("db")
    store.settle()
    for index in range(9):
        store.do(PutChunk(b"left", index, bytes(CHUNK_BYTES)))
    store.settle()
    assert store.count("blob_chunk") == 9
    store.crash()
    store.open()
    store.do(PutChunk(b"new", 0, b"new"))
    store.settle()
    ((new, upload),) = store.rows("SELECT num, upload FROM blob")
    assert upload == b"new"
    assert store.rows("SELECT data FROM blob_chunk") == [(b"new",)]
    # A number that is used again is not taken for the one that was left.
    store.do(DiscardBlob(b"new"))
    store.do(PutChunk(b"newer", 0, b"newer"))
    assert store.rows("SELECT num FROM blob") > [(new,)]  # numbers are never used twice
    store.settle()
    assert store.count("blob") == 1
    store.close()


def test_an_upload_that_is_slow_is_not_one_that_was_given_up(store: Kept) -> None:
    age_ms = store.limits.unused_blob_age_s * 1000
    store.do(PutChunk(b"dead", 0, b"x"))
    store.settle()
    for index in range(4):
        store.wait_ms(age_ms // 2)
        store.do(PutChunk(b"slow", index, b"x"))
        store.settle()
    assert store.rows("SELECT upload FROM blob") == [(b"slow",)]
    assert store.count("blob_chunk") == 4
    assert store.upkeep.totals.collected_blobs == 1
    store.close()


def test_a_blob_that_nobody_refers_to_is_kept_for_its_age(store: Kept) -> None:
    age_ms = store.limits.unused_blob_age_s * 1000
    store.create("db")
    att, blob = attached("a", b"used" * 1000)
    store.write("db", edit("d", None, {}, attachments=(att,), blobs=(blob,)))
    store.do(PutChunk(b"upload", 0, b"waits"))
    store.do(SealBlob(b"upload", b"n" * 32, 5, 1))
    store.settle()
    assert store.upkeep.due_in_s() == age_ms / 1000
    store.wait_ms(age_ms - 1)
    store.settle()
    assert store.count("blob") == 2
    store.wait_ms(1)
    assert store.upkeep.due_in_s() == 0
    store.settle()
    assert store.rows("SELECT name FROM blob") == [(blob[0],)]
    assert b"".join(blobs.read(store.reader, blob[0])) == blob[1]
    # Nothing grows old any more: there is nothing to wake up for.
    assert store.upkeep.due_in_s() is None
    store.close()


def test_a_blob_stays_while_any_revision_has_it(store: Kept) -> None:
    age_ms = store.limits.unused_blob_age_s * 1000
    db = store.create("db")
    att, blob = attached("a", b"data" * 1000)

    def turn() -> int:
        store.wait_ms(2 * age_ms)
        store.settle()
        return store.count("blob")

    (first,) = store.write("db", edit("d", None, {}, attachments=(att,), blobs=(blob,)))
    (other,) = store.write("db", edit("e", None, {}, attachments=(att,)))
    (second,) = store.write("db", edit("d", first, {"v": 2}, attachments=(att,)))
    store.compact(db.num)
    assert turn() == 1
    # Without it in the newest revision, the old one still has it, until compaction.
    store.write("db", edit("d", second, {"v": 3}))
    store.do(Purge("db", 1, {"e": [other]}))
    assert turn() == 1
    store.compact(db.num)
    # It may just be being read: its age counts from now.
    assert store.count("blob") == 1
    assert store.count("blob_use") == 0
    assert turn() == 0
    store.close()


def test_a_revision_that_was_cut_from_the_tree_and_came_back_keeps_its_blob(
    tmp_path: Path,
) -> None:
    """With a revs limit of 1, an old revision may be brought again while its old body is here."""
    store = Kept(tmp_path, revs_limit=1)
    db = store.create("db")
    att, blob = attached("a", b"data" * 1000)
    made = edit("d", None, {"v": 1}, attachments=(att,), blobs=(blob,))
    (first,) = store.write("db", made)
    store.write("db", edit("d", first, {}, deleted=True))
    store.check()
    again = Graft("d", 1, (made.rev_hash,), False, made.digest, made.body, (att,), (blob,))
    assert store.write("db", again) == [first]
    store.check()
    store.compact(db.num)
    store.check()
    store.wait_ms(3 * store.limits.unused_blob_age_s * 1000)
    store.settle()
    assert b"".join(blobs.read(store.reader, blob[0])) == blob[1]
    store.write("db", edit("d", first, {"v": 2}))
    store.check()
    store.compact(db.num)
    assert store.count("blob_use") == 0
    assert store.count("body", "leaf = 0") == 0
    store.check()
    store.close()


def test_a_revision_that_is_replaced_twice_counts_once(tmp_path: Path) -> None:
    """Its old body is still here when it is brought again, and again is replaced."""
    store = Kept(tmp_path, revs_limit=1)
    db = store.create("db")
    made = edit("d", None, {"v": 1})
    (first,) = store.write("db", made)
    store.write("db", edit("d", first, {}, deleted=True))
    store.write("db", Graft("d", 1, (made.rev_hash,), False, made.digest, made.body))
    store.write("db", edit("d", first, {"v": 2}))
    store.check()
    assert store.ledger.databases[db.num].old_bytes == len(made.body)
    store.close()


# Free pages and the write-ahead log


def test_documents_that_go_give_their_room_back(store: Kept) -> None:
    db = store.create("db")
    revs = fill(store, "db", 3000)
    survivors = dict(enumerate(revs[:100]))
    store.checkpoint()
    size = store.disk.path.stat().st_size
    for start in range(100, 3000, 500):
        purge = {f"db-{n:06}": [revs[n]] for n in range(start, min(start + 500, 3000))}
        store.do(Purge("db", 1, purge))
    store.settle()
    store.checkpoint()
    assert store.upkeep.totals.returned_pages > 100
    assert store.disk.path.stat().st_size < size / 2
    for number, rev in survivors.items():
        row = documents.read_row(store.reader, db.num, f"db-{number:06}")
        assert row.rev == rev and b'"n":%d' % number in row.body
    store.check()
    assert store.settle() == 0
    store.close()


def test_the_gauge_hears_of_commits_that_write(store: Kept) -> None:
    before = store.gauge.commits
    store.do(lambda ledger: None)
    assert store.gauge.commits == before
    store.create("db")
    assert store.gauge.commits == before + 1
    assert store.gauge.bytes_since(0) == store.gauge.pages * file.PAGE_BYTES > 0
    store.close()


def test_a_checkpoint_is_due_when_the_log_has_grown(store: Kept) -> None:
    checkpointer = Checkpointer(store.disk, store.gauge, store.limits)
    store.create("db")
    assert not checkpointer.due()
    rounds = 0
    while checkpointer.runs < 3 and rounds < 100:
        store.create(f"r{rounds}")
        fill(store, f"r{rounds}", 1000)
        rounds += 1
        if checkpointer.due():
            checkpointer.run()
            assert not checkpointer.due()
    assert checkpointer.runs == 3
    wal = store.disk.path.with_name("node.sqlite-wal")
    # Copied in time, the log begins again: it does not grow with what was written.
    assert wal.stat().st_size < 3 * checkpoints.CHECKPOINT_BYTES
    assert store.disk.path.stat().st_size > 2 * checkpoints.CHECKPOINT_BYTES
    checkpointer.close()
    checkpointer.run()
    assert checkpointer.runs == 3
    store.check()
    store.close()


def test_a_log_that_is_too_long_is_emptied_once_no_reader_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "TRUNCATE_WAIT_MS", 1)
    store = Kept(tmp_path, limits=Limits(wal_bytes_max=2**20))
    checkpointer = Checkpointer(store.disk, store.gauge, store.limits)
    store.create("db")
    store.reader.execute("BEGIN")
    store.rows("SELECT count(*) FROM doc")
    fill(store, "db", 2000)
    wal = store.disk.path.with_name("node.sqlite-wal")
    checkpointer.run()
    assert wal.stat().st_size > 2**20
    store.reader.execute("COMMIT")
    checkpointer.run()
    assert wal.stat().st_size == 0
    assert store.count("doc") == 2000
    checkpointer.close()
    store.check()
    store.close()


# The loop


class Diary:
    """A log that keeps faults."""

    def __init__(self) -> None:
        self.faults: list[BaseException] = []

    def event(self, what: str, **values: object) -> None:
        return

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        self.faults.append(fault)


class Loop:
    """``tend`` on this thread: the writer's work is done where it is asked for."""

    def __init__(self, store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.001)
        monkeypatch.setattr(upkeep, "FAULT_PAUSE_S", 0.001)
        self.store = store
        self.log = Diary()
        self.steps = 0
        self.refusals: list[Exception] = []
        self.checkpointer = Checkpointer(store.disk, store.gauge, store.limits)

    async def execute(self, step: Callable[[Ledger], Any], size_bytes: int) -> Any:
        self.steps += 1
        if self.refusals:
            raise self.refusals.pop()
        result = self.store.do(step)
        self.store.upkeep.changed.set()
        return result

    async def offload(self, call: Callable[[], Any]) -> Any:
        return call()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not done():
                await asyncio.sleep(0.001)

    def run(self, scenario: Callable[["Loop"], Any]) -> None:
        async def both() -> None:
            tending = asyncio.create_task(
                tend(
                    self.store.upkeep,
                    self.checkpointer,
                    self.execute,
                    self.offload,
                    Governor(Limits()).pace(Work.UPKEEP),
                    self.log,
                )
            )
            try:
                await scenario(self)
            finally:
                tending.cancel()
                await asyncio.wait([tending])

        asyncio.run(both())
        self.checkpointer.close()
        self.store.close()


def test_the_loop_rests_until_something_changes(
    store: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(loop: Loop) -> None:
        db = store.create("db")
        (rev,) = store.write("db", edit("d", None, {}))
        store.write("db", edit("d", rev, {"v": 2}))
        await loop.until(store.upkeep.resting)
        steps, commits = loop.steps, store.gauge.commits
        await asyncio.sleep(0.05)
        assert (loop.steps, store.gauge.commits) == (steps, commits)
        # A commit that nobody tells it of does not wake it; the next one that is told of does.
        store.write("db", edit("e", None, {}))
        store.upkeep.changed.set()
        await loop.until(lambda: loop.steps > steps)
        await loop.until(store.upkeep.resting)
        store.upkeep.request(db.num)
        await loop.until(lambda: not store.upkeep.compacting(db.num))
        assert store.count("body") == 0

    Loop(store, monkeypatch).run(scenario)


def test_the_loop_wakes_when_a_blob_has_grown_old(
    store: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(loop: Loop) -> None:
        store.do(PutChunk(b"upload", 0, b"x"))
        store.do(SealBlob(b"upload", b"n" * 32, 1, 1))
        await loop.until(store.upkeep.resting)
        store.wait_ms(store.limits.unused_blob_age_s * 1000 - 20)
        # As a timer would, had it been set a moment before it was due.
        store.upkeep.changed.set()
        await loop.until(lambda: loop.steps > 2)
        store.wait_ms(20)
        await loop.until(lambda: store.count("blob") == 0)

    Loop(store, monkeypatch).run(scenario)


def test_the_loop_cuts_the_file_and_copies_the_log(
    store: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(loop: Loop) -> None:
        store.create("gone")
        fill(store, "gone", 8000)
        store.upkeep.changed.set()
        await loop.until(lambda: loop.checkpointer.runs > 0)
        size = store.disk.path.stat().st_size
        store.drop("gone")
        store.upkeep.changed.set()
        await loop.until(lambda: store.disk.path.stat().st_size < size / 4)

    Loop(store, monkeypatch).run(scenario)


def test_the_loop_outlives_faults(store: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(loop: Loop) -> None:
        loop.refusals = [Busy("full"), apsw.FullError("disk full"), OSError("a bug")]
        await loop.until(lambda: len(loop.log.faults) == 1)
        db = store.create("db")
        (rev,) = store.write("db", edit("d", None, {}))
        store.write("db", edit("d", rev, {"v": 2}))
        store.upkeep.request(db.num)
        await loop.until(lambda: store.count("body") == 0)

    Loop(store, monkeypatch).run(scenario)


def test_numbers_have_their_units_in_their_names(store: Kept) -> None:
    store.create("db")
    store.settle()
    status = store.upkeep.status()
    assert status["file_pages"] > 0
    assert status["wal_bytes"] > 0
    assert status["upkeep_steps"] >= 1
    assert all(isinstance(value, int | float) for value in status.values())
    store.close()
