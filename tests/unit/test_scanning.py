"""Counting rows while they change: exact in the end, whatever was written meanwhile."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.commands import Purge, SetRegister
from divandb.store import digests, scanning
from divandb.store.databases import Database
from divandb.store.scanning import Piece
from divandb.store.tally import Scan, Tally
from tests.stores import Store, edit
from tests.unit.test_digests import NAME, Exchange
from tests.unit.test_proofs import two_stores


class Counter:
    """A scan of one store, a step at a time."""

    def __init__(self, store: Store, num: int) -> None:
        self.store = store
        self.num = num
        self.more: bool | None = True
        self.piece: Piece | None = None
        self.faults: list[tuple[str, str]] = []
        self.reached: tuple[int, int] | None = store.do(lambda ledger: scanning.begin(ledger, num))

    def step(self) -> bool | None:
        """Was the digest another, once it has ended? ``None`` before; and if it is undone."""
        if self.reached is None:
            return None
        if self.more:
            self.more = self.store.do(lambda ledger: scanning.take_registers(ledger, self.num))
        elif self.more is None:
            self.reached = None
        elif self.reached[0] < self.reached[1] and self.piece is None:
            self.piece = scanning.read(self.store.reader, self.num, *self.reached)
        elif self.piece is not None:
            piece, self.piece = self.piece, None
            self.faults += piece.faults
            self.reached = self.store.do(lambda ledger: scanning.take(ledger, self.num, piece))
        else:
            done: bool | None = self.store.do(lambda ledger: scanning.finish(ledger, self.num))
            self.reached = None
            return done
        return None

    def run(self) -> bool | None:
        while self.reached is not None:
            done = self.step()
            if done is not None:
                return done
        return None


def counted(store: Store, database: Database) -> tuple[int, int, int]:
    """(documents, tombstones, bytes) by a scan of its rows."""
    rows = store.rows("SELECT flags, length(body) FROM doc WHERE db = ?", database.num)
    shown = [(flags, size) for flags, size in rows if not flags & 2]
    gone = sum(flags & 1 for flags, _ in shown)
    return len(shown) - gone, gone, sum(size for _, size in shown)


class Counting(Exchange):
    """Each store is being counted while it is written to; nothing may ever be found wrong."""

    def __init__(self, rng: random.Random, stores: list[Store]) -> None:
        self.ended = 0
        self.counters: list[Counter | None] = [None, None]
        super().__init__(rng, stores)

    def check(self) -> None:
        super().check()
        for at, store in enumerate(self.stores):
            counter = self.counters[at]
            if counter is None or counter.reached is None:
                self.counters[at] = Counter(store, store.ledger.register[NAME].num)
                continue
            wrong = counter.step()
            assert not wrong
            assert not counter.faults
            if wrong is not None:
                self.ended += 1
                database = store.ledger.register[NAME]
                kept = (database.docs, database.tombstones, database.body_bytes)
                assert kept == counted(store, database)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_is_written_meanwhile_is_counted_once(rng: random.Random) -> None:
    with pytest.MonkeyPatch.context() as patch, two_stores() as stores:
        patch.setattr(scanning, "PIECE_ROWS_MAX", 1)
        patch.setattr(scanning, "REGISTERS_MAX", 1)
        Counting(rng, stores).run(60).settle()


def test_counts_do_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above looks at something."""
    monkeypatch.setattr(scanning, "PIECE_ROWS_MAX", 1)
    ended = 0
    for seed in range(3):
        with two_stores() as stores:
            exchange = Counting(random.Random(seed), stores)
            exchange.run(60)
            ended += exchange.ended
    assert ended > 10


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("rwdn"), st.integers(0, 7)), max_size=60),
    st.integers(0, 6),
)
def test_a_tally_is_that_of_the_rows(steps: list[tuple[str, int]], first: int) -> None:
    """Rows in a list of places, read one by one while others are rewritten, lost and made."""
    rows = {place: (1 << place, 10 + place) for place in range(1, first + 1)}
    last = first
    scan = Scan(1, 0, last)
    for what, at in steps:
        if what == "r":
            place = min((p for p in rows if scan.place < p <= scan.goal), default=scan.goal)
            if place in rows and scan.place < place:
                number, size = rows[place]
                scan.tally.join(Tally(number, 1, 0, size))
            scan.place = place
        elif what in "wd" and rows:
            place = sorted(rows)[at % len(rows)]
            number, size = rows.pop(place)
            scan.leave(place, (1, 0, size), number)
            if what == "w":
                last += 1
                rows[last] = (number ^ (1 << (last + 200)), size + 1)
                scan.enter((1, 0, size + 1), rows[last][0])
        elif what == "n":
            last += 1
            rows[last] = (1 << (last + 400), at)
            scan.enter((1, 0, at), rows[last][0])
    for place in sorted(p for p in rows if scan.place < p <= scan.goal):
        number, size = rows[place]
        scan.tally.join(Tally(number, 1, 0, size))
    expected = Tally(0, len(rows), 0, sum(size for _, size in rows.values()))
    for number, _ in rows.values():
        expected.digest ^= number
    assert scan.tally == expected


def filled(folder: Path) -> Store:
    store = Store(folder)
    store.create(NAME)
    store.write(NAME, *(edit(f"d{number}", None, {"v": number}) for number in range(9)))
    store.do(SetRegister(NAME, 1, "local", "_local/k", b"v", 1))
    return store


def test_what_was_changed_behind_the_writer_shows_in_the_digest(tmp_path: Path) -> None:
    store = filled(tmp_path)
    database = store.ledger.register[NAME]
    before = database.digest
    assert Counter(store, database.num).run() is False
    store.connection.execute("DELETE FROM doc WHERE id = 'd3'")
    store.connection.execute("UPDATE register SET value = x'00'")
    assert Counter(store, database.num).run() is True
    assert database.digest != before
    assert database.docs == 8
    assert store.rows("SELECT digest, docs FROM database") == [(database.digest, 8)]
    assert digests.recomputed(store.reader, database) == database.digest
    assert Counter(store, database.num).run() is False
    store.close()


def test_a_counter_that_was_put_back_is_set_behind_the_rows(tmp_path: Path) -> None:
    """Otherwise the next write would want a place that is taken."""
    store = filled(tmp_path)
    store.crash()
    store.open()
    database = store.ledger.register[NAME]
    database.seq = 4
    assert Counter(store, database.num).run() is False
    assert database.seq == 9
    (rev,) = store.write(NAME, edit("new", None, {}))
    assert rev.startswith("1-")
    store.close()


def test_a_count_begins_again_when_a_transaction_is_undone(tmp_path: Path) -> None:
    store = filled(tmp_path)
    counter = Counter(store, 1)

    def fail(ledger: object) -> None:
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError):
        store.do(fail)
    assert counter.run() is None
    assert Counter(store, 1).run() is False
    store.close()


def test_what_is_not_there_is_not_counted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.do(scanning.living) == [(1, NAME, 1)]
    counter = Counter(store, 1)
    store.drop(NAME)
    assert counter.run() is None
    assert store.do(lambda ledger: scanning.begin(ledger, 1)) is None
    assert store.do(lambda ledger: scanning.begin(ledger, 7)) is None
    assert store.do(scanning.living) == []
    store.close()


def test_a_piece_is_bounded_and_read_again_if_a_row_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    monkeypatch.setattr(scanning, "PIECE_ROWS_MAX", 4)
    counter = Counter(store, 1)
    while counter.piece is None:
        counter.step()
    assert counter.piece.rows == 4
    before = counter.reached
    rev = store.rows("SELECT rev FROM doc WHERE id = 'd2'")[0][0]
    store.do(Purge(NAME, 1, {"d2": [rev]}))
    counter.step()
    assert counter.reached == before
    assert counter.run() is False
    monkeypatch.setattr(scanning, "PIECE_BYTES_MAX", 1)
    counter = Counter(store, 1)
    while counter.piece is None:
        counter.step()
    assert counter.piece.rows == 1
    store.close()
