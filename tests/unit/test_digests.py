"""Digests: the same wherever the same is held, whatever way it came, and never out of step."""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import document
from divandb.commands import Graft, Purge, SetRegister, WriteDocuments
from divandb.revtree import Leaf
from divandb.store import arrivals, catchup, changes, digests, documents, outbox, registers
from divandb.store.catchup import End
from divandb.store.checkpoints import WalGauge
from divandb.store.databases import EMPTY_DIGEST, Database
from divandb.store.ledger import Ledger
from divandb.store.upkeep import Upkeep
from divandb.vector import covers
from tests.stores import SeededRng, Store, edit, run_steps

NAME = "a"
IDS = ["d", "é\x00", "_design/x"]
LOCALS = [b'{"_id":"_local/k","_rev":"0-1"}', b'{"_id":"_local/k","_rev":"0-2"}']


def leaf(
    pos: int, *ancestry: str, deleted: bool = False, digest: bytes = b"c", dot: int = 1
) -> Leaf:
    return Leaf(pos, ancestry, deleted, digest, (), ((7, dot),))


# Numbers


def test_a_document_counts_with_its_leaves_in_any_order() -> None:
    one, other = leaf(2, "b", "a"), leaf(2, "c", "a", deleted=True)
    number = digests.of_document("d", [one, other])
    assert number == digests.of_document("d", [other, one])
    different = [
        digests.of_document("e", [one, other]),
        digests.of_document("d", [one]),
        digests.of_document("d", [one, leaf(2, "c", "a")]),
        digests.of_document("d", [one, leaf(2, "c", "a", deleted=True, digest=b"x")]),
        digests.of_document("d", [one, leaf(3, "c", "a", deleted=True)]),
    ]
    assert len({number, *different}) == len(different) + 1


def test_ancestry_and_dots_do_not_count() -> None:
    assert digests.of_document("d", [leaf(2, "b", "a")]) == digests.of_document(
        "d", [leaf(2, "b", dot=9)]
    )


def test_a_document_without_leaves_is_as_none() -> None:
    assert digests.of_document("d", []) == 0


def test_a_register_counts_with_its_stamp_even_when_it_is_deleted() -> None:
    numbers = {
        digests.of_register("local", "k", value, stamp)
        for value in (None, b"", b"v")
        for stamp in (1, 2)
    }
    numbers |= {
        digests.of_register("option", "k", b"v", 1),
        digests.of_register("local", "", b"v", 1),
    }
    assert len(numbers) == 8
    assert 0 not in numbers


@given(st.lists(st.integers(0, 2**128 - 1), max_size=5), st.randoms(use_true_random=False))
def test_numbers_go_in_and_out_in_any_order(numbers: list[int], rng: random.Random) -> None:
    digest = digests.combined(EMPTY_DIGEST, *numbers)
    assert len(digest) == digests.DIGEST_BYTES
    shuffled = rng.sample(numbers, len(numbers))
    assert digest == digests.combined(EMPTY_DIGEST, *shuffled)
    for number in shuffled:
        digest = digests.combined(digest, number)
    assert digest == EMPTY_DIGEST


def test_what_is_shown_names_the_database() -> None:
    row = Database(1, "a", 1, False, False, 0, 0, 0, 0, 0, 0, 0, 0, "{}")
    changed = [{"name": "b"}, {"generation": 2}, {"dropped": True}]
    rows = [row, *(msgspec.structs.replace(row, **change) for change in changed)]
    found = {digests.shown(one, one.digest) for one in rows}
    found.add(digests.shown(row, digests.combined(row.digest, 1)))
    assert len(found) == 5
    assert all(len(text) == 32 for text in found)
    again = msgspec.structs.replace(row, num=9, seq=5, created_ms=3, docs=1, options="[]")
    assert digests.shown(again, again.digest) in found


# One store


@contextmanager
def store(seed: int = 1, revs_limit: int = 1000) -> Iterator[Store]:
    folder = Path(tempfile.mkdtemp())
    opened = Store(folder, rng=SeededRng(seed), revs_limit=revs_limit)
    try:
        yield opened
        opened.close()
    finally:
        shutil.rmtree(folder)


def row_of(one: Store) -> Database:
    return one.ledger.register[NAME]


def check(one: Store) -> None:
    """In memory, in the file and by a scan: one digest for each generation."""
    stored = dict(one.rows("SELECT num, digest FROM database"))
    assert set(stored) == set(one.ledger.databases)
    for num, database in one.ledger.databases.items():
        assert stored[num] == database.digest
        assert digests.recomputed(one.reader, database) == database.digest


def put_register(
    one: Store, kind: str, key: str, value: bytes | None, stamp: int = 1
) -> registers.Register:
    command = SetRegister(NAME, row_of(one).generation, kind, key, value, stamp)
    made: registers.Register = one.do(command)
    return made


def test_an_empty_database_has_the_empty_digest() -> None:
    with store() as one:
        one.create(NAME)
        assert row_of(one).digest == EMPTY_DIGEST
        check(one)


def test_each_write_changes_it_and_a_purge_of_all_takes_it_back() -> None:
    with store() as one:
        one.create(NAME)
        found = [row_of(one).digest]
        parent: str | None = None
        for number in range(3):
            (parent,) = one.write(NAME, edit("d", parent, {"n": number}))
            found.append(row_of(one).digest)
            check(one)
        (parent,) = one.write(NAME, edit("d", parent, {}, deleted=True))
        found.append(row_of(one).digest)
        assert len(set(found)) == 5
        one.do(Purge(NAME, 1, {"d": [parent]}))
        assert row_of(one).digest == EMPTY_DIGEST
        check(one)


def test_births_count_in_one_go_and_beside_edits() -> None:
    with store() as one:
        one.create(NAME)
        some = [edit(str(number), None, {"n": number}) for number in range(20)]
        again = edit("3", None, {"n": 4})
        one.write(NAME, *some[:10], again, *some[10:])
        check(one)
        whole = row_of(one).digest
    with store() as other:
        other.create(NAME)
        for write in reversed(some):
            other.write(NAME, write)
        assert row_of(other).digest == whole


def test_registers_count_and_a_deleted_one_stays() -> None:
    with store() as one:
        one.create(NAME)
        put_register(one, registers.LOCAL, "k", b"v")
        first = row_of(one).digest
        check(one)
        gone = put_register(one, registers.LOCAL, "k", None)
        check(one)
        assert row_of(one).digest == digests.combined(
            EMPTY_DIGEST, digests.of_register(registers.LOCAL, "k", None, gone.stamp)
        )
        assert row_of(one).digest not in (first, EMPTY_DIGEST)


def test_the_nodes_own_registers_are_in_no_digest() -> None:
    with store() as one:
        one.create(NAME)
        one.do(SetRegister(None, 0, registers.SETTING, "a/b", b"v", 1))
        assert row_of(one).digest == EMPTY_DIGEST


def test_a_dropped_generation_is_empty_and_the_next_begins_anew() -> None:
    with store() as one:
        one.create(NAME)
        one.write(NAME, edit("d", None, {}))
        dropped = row_of(one)
        one.drop(NAME)
        assert dropped.digest == EMPTY_DIGEST
        check(one)
        one.create(NAME, 2)
        one.write(NAME, edit("d", None, {}), generation=2)
        check(one)
        run_steps(one, upkeep_of(one).step)
        check(one)


def test_a_transaction_that_is_undone_leaves_it() -> None:
    with store() as one:
        one.create(NAME)
        one.write(NAME, edit("d", None, {}))
        before = row_of(one).digest

        def work(ledger: Ledger) -> None:
            one.master.execute(WriteDocuments(NAME, 1, [edit("e", None, {})]))
            one.master.execute(SetRegister(NAME, 1, registers.LOCAL, "k", b"v", 1))
            assert row_of(one).digest != before
            raise RuntimeError("fault")

        with pytest.raises(RuntimeError):
            one.do(work)
        assert row_of(one).digest == before
        check(one)


def test_it_is_there_after_a_crash_and_a_start() -> None:
    with store() as one:
        one.create(NAME)
        one.write(NAME, edit("d", None, {}))
        put_register(one, registers.SECURITY, "", b"{}")
        before = row_of(one).digest
        one.crash()
        one.open()
        assert row_of(one).digest == before
        check(one)


def test_compaction_does_not_change_it() -> None:
    with store() as one:
        one.create(NAME)
        (first,) = one.write(NAME, edit("d", None, {"n": 1}))
        one.write(NAME, edit("d", first, {"n": 2}), graft("d", 2, ("x", "y"), 3))
        before = row_of(one).digest
        upkeep = upkeep_of(one)
        upkeep.request(row_of(one).num)
        run_steps(one, upkeep.step)
        assert upkeep.totals.dropped_bodies
        assert row_of(one).digest == before
        check(one)


def test_pieces_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PIECE_ROWS_MAX", 3)
    with store() as one:
        one.create(NAME)
        one.write(NAME, *[edit(str(number), None, {}) for number in range(7)])
        put_register(one, registers.LOCAL, "k", b"v")
        assert len(list(digests.pieces(one.reader, row_of(one)))) == 3
        check(one)
        monkeypatch.setattr(digests, "PIECE_BYTES_MAX", 1)
        assert len(list(digests.pieces(one.reader, row_of(one)))) == 9
        check(one)


def test_a_scan_finds_what_is_wrong() -> None:
    with store() as one:
        one.create(NAME)
        one.write(NAME, edit("d", None, {}), edit("e", None, {}))
        one.connection.execute("DELETE FROM doc WHERE id = 'e'")
        assert digests.recomputed(one.reader, row_of(one)) != row_of(one).digest


# Two stores


def graft(doc_id: str, pos: int, path: tuple[str, ...], value: int, deleted: bool = False) -> Graft:
    packed = document.dump_members({"v": value})
    body = document.body_bytes(doc_id, f"{pos}-{path[0]}", deleted, packed, ())
    return Graft(doc_id, pos, path, deleted, document.content_digest(packed, deleted, ()), body)


def upkeep_of(one: Store) -> Upkeep:
    return Upkeep(one.ledger, WalGauge(one.connection), one.clock, one.limits)


class Exchange:
    """Two masters that write to the same database, and the messages between them."""

    def __init__(self, rng: random.Random, stores: list[Store]) -> None:
        self.rng = rng
        self.stores = stores
        self.published = [0, 0]
        self.inboxes: list[list[bytes]] = [[], []]
        self._actions: list[Callable[[int], None]] = [
            self.edit, self.edit, self.edit, self.delete, self.graft, self.purge, self.register,
            self.register, self.publish, self.publish, self.receive, self.receive, self.receive,
            self.bulk, self.undo, self.drop, self.keep_up, self.catch_up,
        ]  # fmt: skip
        for at in (0, 1):
            self.create(at)

    def run(self, steps: int) -> "Exchange":
        for _ in range(steps):
            self.rng.choice(self._actions)(self.rng.randrange(2))
            self.check()
        return self

    def check(self) -> None:
        for one in self.stores:
            check(one)
        one, other = self.stores
        if vector(one) == vector(other) and quiet(one) and quiet(other):
            assert held(one) == held(other)

    # Writes

    def create(self, at: int) -> None:
        known = self.stores[at].ledger.register.get(NAME)
        if known is None or known.dropped:
            self.stores[at].create(NAME, known.generation + 1 if known else 1)

    def drop(self, at: int) -> None:
        if self.rng.random() < 0.3:
            row = row_of(self.stores[at])
            if not row.dropped:
                self.stores[at].drop(NAME, row.generation)
            if self.rng.random() < 0.8:
                self.create(at)

    def _write(self, at: int, *writes: Any) -> None:
        row = row_of(self.stores[at])
        if not row.dropped:
            self.stores[at].write(NAME, *writes, generation=row.generation)

    def _leaf(self, at: int, doc_id: str) -> Leaf | None:
        one = self.stores[at]
        shown = documents.read_row(one.reader, row_of(one).num, doc_id).document.shown()
        return self.rng.choice(shown) if shown else None

    def edit(self, at: int, *, deleted: bool = False) -> None:
        doc_id = self.rng.choice(IDS)
        parent = self._leaf(at, doc_id)
        members = {"v": self.rng.randrange(3)}
        if parent is not None or not deleted:
            made = edit(doc_id, parent.rev if parent else None, members, deleted=deleted)
            self._write(at, made)

    def delete(self, at: int) -> None:
        self.edit(at, deleted=True)

    def graft(self, at: int) -> None:
        doc_id = self.rng.choice(IDS)
        parent = self._leaf(self.rng.randrange(2), doc_id)
        known = parent.ancestry[: self.rng.randrange(3)] if parent else ()
        pos = (parent.pos if parent else self.rng.randrange(2)) + 1
        path = (self.rng.choice("xyz"), *known)[:pos]
        self._write(at, graft(doc_id, pos, path, self.rng.randrange(3), self.rng.random() < 0.2))

    def purge(self, at: int) -> None:
        doc_id, row = self.rng.choice(IDS), row_of(self.stores[at])
        found = self._leaf(at, doc_id)
        if found is not None and not row.dropped:
            self.stores[at].do(Purge(NAME, row.generation, {doc_id: [found.rev]}))

    def register(self, at: int) -> None:
        kind, key, values = self.rng.choice(
            [
                (registers.SECURITY, "", [b"{}", b'{"v":1}']),
                (registers.LOCAL, "_local/k", [*LOCALS, None]),
                (registers.OPTION, "revs_limit", [b"1", b"3"]),
            ]
        )
        row = row_of(self.stores[at])
        if not row.dropped:
            stamp = self.rng.randrange(1, 4)
            put_register(self.stores[at], kind, key, self.rng.choice(values), stamp)

    def bulk(self, at: int) -> None:
        some = [edit(f"b{number}", None, {"v": number}) for number in range(self.rng.randrange(6))]
        self._write(at, *some)

    def undo(self, at: int) -> None:
        def work(ledger: Ledger) -> None:
            self.edit_in(at, ledger)
            raise RuntimeError("fault")

        before = held(self.stores[at])
        with pytest.raises(RuntimeError):
            self.stores[at].do(work)
        assert held(self.stores[at]) == before

    def edit_in(self, at: int, ledger: Ledger) -> None:
        row = ledger.register[NAME]
        if not row.dropped:
            wrong = graft("d", 9, ("fault",), 0)
            self.stores[at].master.execute(WriteDocuments(NAME, row.generation, [wrong]))

    def keep_up(self, at: int) -> None:
        one = self.stores[at]
        upkeep = upkeep_of(one)
        upkeep.request(row_of(one).num)
        run_steps(one, upkeep.step)

    # Exchange

    def publish(self, at: int) -> None:
        """Put a page of the outbox on its way, perhaps not for the first time."""
        one = self.stores[at]
        after = self.published[at] if self.rng.random() < 0.8 else 0
        page = outbox.page(one.reader, after, self.rng.randrange(1, 5))
        self.published[at] = max(self.published[at], page.upto)
        self.inboxes[1 - at] += page.messages

    def receive(self, at: int) -> None:
        """Take a few messages in whatever order."""
        inbox = self.inboxes[at]
        if inbox:
            self.take(at, self.rng.choices(inbox, k=self.rng.randrange(1, 4)))

    def take(self, at: int, messages: list[bytes]) -> None:
        self.stores[at].do(lambda ledger: arrivals.take(ledger, messages, 0))

    def catch_up(self, at: int) -> None:
        one, other = self.stores[at], self.stores[1 - at]
        *messages, end = catchup.beyond(other.reader, vector(one))
        assert isinstance(end, End)
        self.rng.shuffle(messages)
        self.take(at, [message for message in messages if isinstance(message, bytes)])
        one.do(lambda ledger: catchup.finish(ledger, end))

    def settle(self) -> None:
        """Everybody hears everything, each in an order of its own."""
        for at in (0, 1):
            page = outbox.page(self.stores[at].reader, 0, 1000)
            self.inboxes[1 - at] += page.messages
        for at in (0, 1):
            inbox = self.rng.sample(self.inboxes[at], len(self.inboxes[at]))
            cut = self.rng.randint(0, len(inbox))
            for messages in (inbox[:cut], inbox[cut:]):
                self.take(at, messages)
                self.check()


def vector(one: Store) -> dict[int, int]:
    return {origin: oseq for origin, oseq in changes.vector(one.reader).items() if oseq}


def held(one: Store) -> tuple[int, bool, str]:
    row = row_of(one)
    return row.generation, row.dropped, digests.shown(row, row.digest)


def quiet(one: Store) -> bool:
    """Does the vector cover all that is there?"""
    contained = one.ledger.vector
    dots = one.rows("SELECT origin, oseq FROM register")
    return (
        covers(contained, one.ledger.reached)
        and all(contained.get(origin, 0) >= oseq for origin, oseq in dots)
        and not one.count("ahead")
        and not one.count("waiting")
    )


def exchanged(rng: random.Random, steps: int) -> None:
    revs_limit = rng.randint(1, 4)
    with store(1, revs_limit) as one, store(2, revs_limit) as other:
        exchange = Exchange(rng, [one, other]).run(steps)
        exchange.settle()
        assert vector(one) == vector(other)
        assert quiet(one)
        assert quiet(other)
        assert held(one) == held(other)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(5, 40))
def test_stores_with_equal_vectors_have_equal_digests(rng: random.Random, steps: int) -> None:
    exchanged(rng, steps)
