"""The one thread that writes: groups, refusals, faults, bounds."""

import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from divandb.commands import CreateDatabase, Job, Purge, SetRegister, WriteDocuments
from divandb.config import Limits
from divandb.errors import Busy, Conflict, DivanError, FileExists, NotFound, StorageFull
from divandb.store import registers
from divandb.store.ledger import Changes, Ledger, no_changes
from divandb.store.writer import Writer
from tests.stores import Store, edit

WAIT_S = 10.0


def nothing(result: Any) -> None:
    """Nobody waits for this job."""


def fatal(fault: BaseException) -> None:
    """Nothing is to end the writer's thread."""
    raise fault


def jobs(*commands: Any) -> list[Job]:
    return [Job(command, 0, nothing) for command in commands]


class Script:
    """Work that does what its commands say, and keeps a diary."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.fail_commit: list[Exception] = []

    def begin(self) -> None:
        self.diary.append("begin")

    def execute(self, command: Any) -> Any:
        self.diary.append(str(command))
        if isinstance(command, Exception):
            raise command
        return f"did {command}"

    def written(self) -> dict[int, int]:
        return {1: len(self.diary)}

    def commit(self) -> Changes:
        if self.fail_commit:
            raise self.fail_commit.pop()
        self.diary.append("commit")
        return no_changes()

    def rollback(self) -> None:
        self.diary.append("rollback")


def scripted(work: Script, **limits: int) -> Writer:
    return Writer(work, Limits(**limits), lambda done, changes: None, fatal)


# One batch


def test_jobs_that_wait_share_a_transaction() -> None:
    work = Script()
    batch, changes = scripted(work).run(jobs("a", "b", "c"))
    assert [job.result for job in batch] == ["did a", "did b", "did c"]
    assert work.diary == ["begin", "a", "b", "c", "commit"]
    assert changes == no_changes()


def test_a_refusal_is_one_jobs_result() -> None:
    work = Script()
    refusal = Conflict()
    batch, _ = scripted(work).run(jobs("a", refusal, "c"))
    assert [job.result for job in batch] == ["did a", refusal, "did c"]
    assert work.diary[-1] == "commit"


def test_a_fault_in_one_job_fails_only_that_job() -> None:
    work = Script()
    fault = RuntimeError("x")
    batch, _ = scripted(work).run(jobs("a", fault, "c"))
    assert [job.result for job in batch] == ["did a", fault, "did c"]
    assert work.diary == [
        "begin", "a", "x", "rollback",
        "begin", "a", "commit", "begin", "x", "rollback", "begin", "c", "commit",
    ]  # fmt: skip


def test_a_commit_that_fails_is_tried_for_each_job_alone() -> None:
    work = Script()
    work.fail_commit = [apsw.FullError("disk full")]
    batch, _ = scripted(work).run(jobs("a", "b"))
    assert [job.result for job in batch] == ["did a", "did b"]
    work.fail_commit = [apsw.IOError("x"), apsw.IOError("x"), apsw.IOError("x")]
    batch, changes = scripted(work).run(jobs("a", "b"))
    assert all(isinstance(job.result, StorageFull) for job in batch)
    assert changes is None


def test_changes_of_jobs_tried_alone_are_told_together(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fault(ledger: Ledger) -> None:
        raise RuntimeError("x")

    commands = (CreateDatabase("a", 1, "{}"), fault, CreateDatabase("b", 1, "{}"))
    batch, changes = store.writer.run(jobs(*commands))
    assert [job.result.name for job in (batch[0], batch[2])] == ["a", "b"]
    assert isinstance(batch[1].result, RuntimeError)
    assert changes is not None
    assert changes.databases == {1, 2}
    store.close()


# With a real store


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("db")
    (rev,) = store.write("db", edit("d", None, {"v": 1}))
    before = everything(store)
    refused = [
        (CreateDatabase("db", 1, "{}"), FileExists),
        (WriteDocuments("none", 1, [edit("d", None, {})]), NotFound),
        (WriteDocuments("db", 2, [edit("d", None, {})]), NotFound),
        (Purge("none", 1, {"d": [rev]}), NotFound),
        (SetRegister("db", 9, registers.LOCAL, "x", b"1", 1), NotFound),
    ]
    for command, kind in refused:
        with pytest.raises(kind):
            store.do(command)
    conflicts = store.write(
        "db", edit("d", None, {"v": 2}), edit("d", "1-nothere", {}), edit("e", "1-nothere", {})
    )
    assert all(isinstance(result, Conflict) for result in conflicts)
    assert store.do(Purge("db", 1, {"d": ["1-nothere"], "none": [rev]})) == {"d": [], "none": []}
    assert everything(store) == before
    store.close()


def everything(store: Store) -> dict[str, list[Any]]:
    tables = store.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return {name: store.rows(f"SELECT * FROM {name}") for (name,) in tables}


def test_a_fault_undoes_what_memory_knows_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("db")
    (rev,) = store.write("db", edit("d", None, {"v": 1}))
    before = everything(store)

    def write_and_fail(ledger: Ledger) -> None:
        store.master.execute(WriteDocuments("db", 1, [edit("d", rev, {"v": 2})]))
        store.master.execute(CreateDatabase("other", 1, "{}"))
        raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        store.do(write_and_fail)
    assert everything(store) == before
    # The next write takes the next number, and the next place, as if nothing had been.
    (second,) = store.write("db", edit("d", rev, {"v": 2}))
    assert second.startswith("2-")
    assert [row[0] for row in store.rows("SELECT oseq FROM outbox ORDER BY n")] == [1, 2, 3]
    assert store.rows("SELECT seq, docs, old_bytes > 0 FROM database") == [(2, 1, 1)]
    store.create("other")
    store.close()


def test_a_full_disk_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("db")
    store.write("db", edit("d", None, {"v": 1}))
    before = everything(store)
    pages = store.connection.pragma("page_count")
    store.connection.execute(f"PRAGMA max_page_count = {pages}")
    big = edit("e", None, {"v": "x" * 100_000})
    small = edit("f", None, {"v": 1})
    batch, _ = store.writer.run(
        jobs(WriteDocuments("db", 1, [small, big]), CreateDatabase("other", 1, "{}"))
    )
    assert isinstance(batch[0].result, StorageFull)
    assert batch[0].result.headers["retry-after"]
    assert batch[1].result.name == "other"
    assert [row for row in everything(store)["doc"] if row[2] != "d"] == []
    assert everything(store)["doc"] == before["doc"]
    # Reads go on, and so do writes when there is room again.
    store.connection.execute("PRAGMA max_page_count = 1000000")
    results = store.write("db", small, big)
    assert [result[:2] for result in results] == ["1-", "1-"]
    assert [row[0] for row in store.rows("SELECT oseq FROM outbox ORDER BY n")] == [1, 2, 3, 4, 5]
    store.close()


# Bounds


def test_a_full_queue_is_busy() -> None:
    writer = scripted(Script(), write_queue_jobs_max=2, write_queue_bytes_max=100)
    writer.submit(Job("a", 90, nothing))
    with pytest.raises(Busy) as refused:
        writer.submit(Job("b", 11, nothing))
    assert refused.value.headers["retry-after"]
    writer.submit(Job("c", 10, nothing))
    with pytest.raises(Busy):
        writer.submit(Job("d", 0, nothing))
    assert writer.waiting_jobs == 2


@pytest.mark.parametrize(
    ("limits", "sizes", "batches"),
    [
        ({}, [0] * 5, [5]),
        ({"group_commit_jobs_max": 2}, [0] * 5, [2, 2, 1]),
        ({"group_commit_bytes_max": 10}, [6, 6, 6, 1], [2, 2]),
        ({"group_commit_bytes_max": 10}, [50, 1, 50, 1], [1, 2, 1]),
    ],
)
def test_a_group_commit_has_bounds(
    limits: dict[str, int], sizes: list[int], batches: list[int]
) -> None:
    delivered: list[int] = []
    writer = Writer(
        Script(), Limits(**limits), lambda done, changes: delivered.append(len(done)), fatal
    )
    for size in sizes:
        writer.submit(Job("x", size, nothing))
    writer.start()
    writer.stop()
    assert delivered == batches
    assert writer.waiting_jobs == 0


def test_room_comes_back_when_jobs_are_taken() -> None:
    writer = scripted(Script(), write_queue_bytes_max=10)
    writer.submit(Job("a", 10, nothing))
    writer.start()
    writer.stop()
    writer.submit(Job("b", 10, nothing))


# Threads


def test_many_threads_are_answered_in_the_order_of_their_jobs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("db")
    delivered: list[Job] = []
    all_there = threading.Event()
    threads_of, jobs_of = 4, 50

    def deliver(done: list[Job], changes: Changes | None) -> None:
        delivered.extend(done)
        if len(delivered) == threads_of * jobs_of:
            all_there.set()

    writer = Writer(store.master, store.limits, deliver, fatal)
    writer.start()
    before = threading.active_count()

    def client(name: str) -> None:
        for number in range(jobs_of):
            write = edit(f"{name}-{number}", None, {"n": number})
            writer.submit(Job(WriteDocuments("db", 1, [write]), 0, nothing))

    clients = [threading.Thread(target=client, args=(f"c{index}",)) for index in range(threads_of)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(WAIT_S)
    assert all_there.wait(WAIT_S)
    writer.stop()
    assert threading.active_count() == before - 1
    assert not any(isinstance(job.result, DivanError) for job in delivered)
    order = [job.command.writes[0].id for job in delivered]
    for index in range(threads_of):
        mine = [doc_id for doc_id in order if doc_id.startswith(f"c{index}-")]
        assert mine == [f"c{index}-{number}" for number in range(jobs_of)]
    stored = [doc_id for (doc_id,) in store.rows("SELECT id FROM doc ORDER BY place")]
    assert stored == order
    store.close()


def test_stop_carries_out_what_waits() -> None:
    work = Script()
    answered: list[Any] = []
    writer = Writer(
        work, Limits(), lambda done, changes: answered.extend(j.result for j in done), fatal
    )
    for number in range(5):
        writer.submit(Job(number, 0, nothing))
    writer.start()
    writer.stop()
    assert answered == [f"did {number}" for number in range(5)]


def test_when_not_even_undoing_works_the_node_hears_of_it() -> None:
    class Broken(Script):
        def rollback(self) -> None:
            raise apsw.IOError("the disk is gone")

    faults: list[BaseException] = []
    writer = Writer(Broken(), Limits(), lambda done, changes: None, faults.append)
    writer.submit(Job(RuntimeError("x"), 0, nothing))
    writer.start()
    writer.stop()
    assert [type(fault) for fault in faults] == [apsw.IOError]
