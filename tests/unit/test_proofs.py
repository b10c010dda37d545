"""Comparing two nodes at whatever vectors: no false alarm ever, and nothing that is lost unseen."""

import random
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.cluster import proving, witness
from divandb.cluster.proving import Everything, Owed, States, Stretch, Whole
from divandb.commands import SetRegister
from divandb.store import arrivals, catchup, changes, digests, ledger, proofs
from divandb.store.proofs import Claim, Held
from tests.stores import SeededRng, Store, edit
from tests.unit.test_digests import NAME, Exchange, vector


def answer(one: Store, question: Any) -> Any:
    with one.reader:
        found = witness.answer_to(one.reader, question)
    return found


def compared(one: Store, other: Store, heard: dict[int, int]) -> tuple[bool, list[str]]:
    """(are the digests apart, the keys that differ), as ``one`` finds them, who knows that
    ``other`` contained ``heard`` some time ago.
    """
    row = one.ledger.register[NAME]
    if proofs.living(other.reader, NAME, row.generation) is None or row.dropped:
        return False, []
    mine = changes.vector(one.reader)
    changed = proofs.changed(one.reader, row, heard)
    assert changed is not None
    keys = [held.key for held in changed]
    told = answer(other, Whole(NAME, row.generation, mine, keys))
    own = {held.key: held.number for held in changed}
    missing = [entry.key for entry in told.changed if entry.key not in own]
    own |= {held.key: held.number for held in proofs.held(one.reader, row, missing)}
    apart = proving.apart(row.digest, own, told) is not None
    return apart, walked(one, other, mine)


def walked(one: Store, other: Store, mine: dict[int, int]) -> list[str]:
    row = one.ledger.register[NAME]
    found: list[str] = []
    after = ""
    while True:
        held, upto = proofs.stretch(one.reader, row, after, None)
        total = proving.total_held(held)
        told = answer(other, Stretch(NAME, row.generation, mine, after, upto, total))
        if not told.same:
            found += proving.differing(held, mine, told)
        if told.upto is None:
            return found
        assert told.upto > after
        after = told.upto


class Doubting(Exchange):
    """Both compare themselves after every step, with what they heard of each other before."""

    def __init__(self, rng: random.Random, stores: list[Store]) -> None:
        self.heard: list[dict[int, int]] = [{}, {}]
        super().__init__(rng, stores)

    def check(self) -> None:
        super().check()
        one, other = self.stores
        if NAME not in one.ledger.register or NAME not in other.ledger.register:
            return
        assert compared(one, other, self.heard[1]) == (False, [])
        assert compared(other, one, self.heard[0]) == (False, [])
        if self.rng.random() < 0.5:
            self.heard = [changes.vector(one.reader), changes.vector(other.reader)]


@contextmanager
def two_stores() -> Any:
    folder = Path(tempfile.mkdtemp())
    try:
        stores = []
        for number in (1, 2):
            (folder / str(number)).mkdir()
            stores.append(Store(folder / str(number), rng=SeededRng(number)))
        yield stores
        for one in stores:
            one.close()
    finally:
        shutil.rmtree(folder)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_nodes_that_are_apart_are_not_taken_for_divergent(rng: random.Random) -> None:
    """Events come in any order, twice and ahead of the vector; databases are dropped and made."""
    with pytest.MonkeyPatch.context() as patch, two_stores() as stores:
        patch.setattr(proofs, "RANGE_ROWS_MAX", 2)
        Doubting(rng, stores).run(25).settle()


def test_without_leaving_out_what_is_later_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(proofs, "changed", lambda *_: [])
    failed = 0
    for seed in range(5):
        rng = random.Random(seed)
        with two_stores() as stores:
            try:
                Doubting(rng, stores).run(25).settle()
            except AssertionError:
                failed += 1
    assert failed


# What is damaged


def exchanged(stores: list[Store]) -> None:
    """Both hear all that the other has."""
    for one, other in (stores, stores[::-1]):
        *messages, end = catchup.beyond(other.reader, vector(one))
        one.do(lambda ledger, messages=messages: arrivals.take(ledger, messages, 0))
        one.do(lambda ledger, end=end: catchup.finish(ledger, end))


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_row_is_lost_is_found_in_the_midst_of_writes(rng: random.Random) -> None:
    with two_stores() as stores:
        one, other = stores
        one.create(NAME)
        one.write(NAME, *(edit(f"d{number}", None, {"v": number}) for number in range(12)))
        exchanged(stores)
        lost = sorted(rng.sample([f"d{number}" for number in range(12)], 2))
        row = other.ledger.register[NAME]
        for doc_id in lost:
            (gone,) = proofs.held(other.reader, row, ["d" + doc_id])
            other.connection.execute("DELETE FROM doc WHERE id = ?", (doc_id,))
            row.digest = digests.combined(row.digest, gone.number)
        heard = changes.vector(one.reader)
        one.write(NAME, edit("new", None, {}))
        other.write(NAME, edit("other", None, {}))
        other.do(lambda ledger: ledger.touch(ledger.register[NAME]))
        assert compared(other, one, heard) == (True, [f"d{doc_id}" for doc_id in lost])
        assert compared(one, other, heard) == (True, [f"d{doc_id}" for doc_id in lost])


# The parts


def test_ranges_come_one_after_the_other_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.create(NAME)
    ids = ["a", "b/c", "é", "\U0001f600", "local", "r", "z"]
    store.write(NAME, *(edit(doc_id, None, {}) for doc_id in ids))
    for kind, key in (("local", "_local/a"), ("local", "_local/b"), ("option", "revs_limit")):
        store.do(SetRegister(NAME, 1, kind, key, b"1", 1))
    store.do(
        lambda ledger: ledger.connection.execute(
            "INSERT INTO waiting VALUES (1,'_local/aa',1,1,'')"
        )
    )
    row = store.ledger.register[NAME]
    whole, upto = proofs.stretch(store.reader, row, "", None)
    assert upto is None
    keys = sorted(one.key for one in whole)
    assert keys == sorted(
        [f"d{doc_id}" for doc_id in ids]
        + ["rlocal/_local/a", "rlocal/_local/aa", "rlocal/_local/b", "roption/revs_limit"]
    )
    for rows_max in (1, 2, 3, 7, 9):
        monkeypatch.setattr(proofs, "RANGE_ROWS_MAX", rows_max)
        found: list[Held] = []
        after: str = ""
        end: str | None = ""
        while end is not None:
            some, end = proofs.stretch(store.reader, row, after, None)
            bounded, same_end = proofs.stretch(store.reader, row, after, end)
            assert [one.key for one in bounded] == [one.key for one in some]
            assert same_end == end
            assert all(one.key > after and (end is None or one.key <= end) for one in some)
            found += some
            after = end or after
        assert sorted(one.key for one in found) == keys
        assert {one.key: one.number for one in found} == {one.key: one.number for one in whole}
    assert [one.key for one in whole if one.waits] == ["rlocal/_local/aa"]
    store.close()


def test_nodes_that_are_too_far_apart_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.create(NAME)
    monkeypatch.setattr(proofs, "CHANGED_MAX", 3)
    monkeypatch.setattr(ledger, "MARK_CHANGES_MAX", 1)
    store.write(NAME, *(edit(f"d{number}", None, {}) for number in range(4)))
    assert proofs.changed(store.reader, store.ledger.register[NAME], {}) is None
    assert answer(store, Whole(NAME, 1, {}, [])).digest is None
    assert proofs.changed(store.reader, store.ledger.register[NAME], vector(store)) == []
    store.close()


def test_all_databases_have_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for name in ("c", "a", "b"):
        store.create(name)
    store.drop("b")
    claims = proofs.claims(store.reader)
    assert [(one.name, one.generation, one.dropped) for one in claims] == [
        ("a", 1, False), ("b", 1, True), ("c", 1, False),
    ]  # fmt: skip
    said = answer(store, Everything(proving.total_of(claims)))
    assert (said.same, said.claims, said.vector) == (True, [], vector(store))
    monkeypatch.setattr(witness, "CLAIMS_MAX", 2)
    said = answer(store, Everything(b""))
    assert (said.same, said.claims, said.more) == (False, claims[:2], True)
    said = answer(store, Everything(b"", "b"))
    assert (said.claims, said.more) == (claims[2:], False)
    store.close()


def test_states_are_bounded_and_those_that_are_not_there_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.create(NAME)
    store.write(NAME, *(edit(f"d{number}", None, {"v": "x" * 100}) for number in range(5)))
    store.connection.execute("UPDATE doc SET body = x'00' WHERE id = 'd1'")
    keys = [f"dd{number}" for number in range(7)]
    said = answer(store, States(NAME, 1, keys))
    assert (said.looked, len(said.events), len(said.database)) == (7, 4, 1)
    monkeypatch.setattr(witness, "STATES_BYTES_MAX", 1)
    assert answer(store, States(NAME, 1, keys)).looked == 1
    said = answer(store, States(NAME, 2, keys))
    assert (said.looked, said.events, len(said.database)) == (7, [], 1)
    assert answer(store, States("nobody", 1, keys)).database == []
    store.drop(NAME)
    assert len(answer(store, States(NAME, 1, keys)).database) == 2
    store.close()


def test_a_database_is_owed_only_by_who_contains_as_much() -> None:
    mine, theirs = Claim("x", 1, True, b""), Claim("x", 2, False, b"")
    owed = Owed({1: 5}, theirs.generation, theirs.dropped)
    assert not owed.is_overdue({1: 4, 2: 9}, mine)
    assert owed.is_overdue({1: 5}, mine)
    assert owed.is_overdue({1: 5}, None)
    assert not owed.is_overdue({1: 5}, theirs)
    assert not owed.is_overdue({1: 5}, Claim("x", 2, True, b""))


def test_claims_say_how_two_nodes_stand() -> None:
    def claims(*of: tuple[str, int, bool, bytes]) -> list[Claim]:
        return [Claim(*one) for one in of]

    mine = claims(
        ("a", 1, False, b"1"), ("b", 1, False, b"1"), ("c", 1, True, b""), ("e", 1, False, b""),
    )  # fmt: skip
    theirs = claims(
        ("a", 1, False, b"1"), ("b", 1, False, b"2"), ("c", 2, False, b""), ("d", 1, False, b""),
    )  # fmt: skip
    found = proving.standing(mine, theirs)
    assert (found.same, found.differ, found.owed, found.ahead) == (["a"], ["b"], ["c", "d"], ["e"])


def test_what_two_contain_is_what_both_do() -> None:
    assert proving.common({1: 5, 2: 1, 4: 1}, {1: 3, 2: 7, 3: 1}) == {1: 3, 2: 1}
