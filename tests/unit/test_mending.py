"""What one node takes from another that differs: nothing is guessed, nothing is lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb import document, merge
from divandb.commands import SetRegister
from divandb.merge import Document
from divandb.store import (
    arrivals,
    catchup,
    changes,
    databases,
    digests,
    documents,
    proofs,
    soundness,
)
from divandb.store.mending import Outcome, might_hold, settle, settle_database
from divandb.store.registers import Register
from divandb.vector import Vector, covers
from tests.stores import SeededRng, Store, edit
from tests.unit.test_digests import graft

NAME = "x"
Pair = tuple[Store, Store]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two nodes that hold the same: some documents, one of two leaves, a register."""
    made = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        made.append(Store(tmp_path / str(number), rng=SeededRng(number)))
    one, other = made
    one.create(NAME)
    one.write(NAME, *(edit(f"d{number}", None, {"v": number}) for number in range(3)))
    one.write(NAME, edit("two", None, {"v": 1}), graft("two", 2, ("x", "y"), 3))
    one.do(SetRegister(NAME, 1, "local", "_local/k", b'{"_id":"_local/k","_rev":"0-1"}', 1))
    caught_up(other, one)
    yield one, other
    one.close()
    other.close()


def caught_up(one: Store, other: Store) -> None:
    *messages, end = catchup.beyond(other.reader, changes.vector(one.reader))
    one.do(lambda ledger: arrivals.take(ledger, messages, 0))
    one.do(lambda ledger: catchup.finish(ledger, end))


def mended(
    one: Store, other: Store, *keys: str, needs: Vector | None = None, theirs: Vector | None = None
) -> list[Outcome | None]:
    """What becomes of these when ``one`` takes ``other``'s word."""
    vector = changes.vector(other.reader)
    row = other.ledger.register[NAME]
    messages = [proofs.state_event(other.reader, row, key, vector) for key in keys]
    found = one.do(
        lambda ledger: settle(
            ledger, NAME, 1, [data for data in messages if data is not None],
            vector if theirs is None else theirs,
            dict.fromkeys(keys, needs) if needs is not None else {},
        )
    )  # fmt: skip
    check(one)
    return [found.get(key) for key in keys]


def check(one: Store) -> None:
    """The kept digest is that of the rows."""
    database = one.ledger.register[NAME]
    assert digests.recomputed(one.reader, database) == database.digest


def lost(one: Store, doc_id: str) -> None:
    """A row goes, and the digest knows of it, as after a scan."""
    database = one.ledger.register[NAME]
    row = documents.read_row(one.connection, 1, doc_id)
    one.do(lambda ledger: documents.discard(ledger, database, row))
    check(one)


def states(one: Store) -> list[Any]:
    ids = [doc_id for (doc_id,) in one.rows("SELECT id FROM doc ORDER BY id")]
    return [documents.read_state(one.reader, 1, doc_id) for doc_id in ids]


def test_what_is_lost_comes_back_whole(pair: Pair) -> None:
    one, other = pair
    for doc_id in ("d1", "two"):
        lost(other, doc_id)
    assert other.ledger.register[NAME].docs == 2
    assert mended(other, one, "dd1", "dtwo") == [Outcome.MENDED, Outcome.MENDED]
    assert states(other) == states(one)
    assert other.ledger.register[NAME].docs == one.ledger.register[NAME].docs
    assert other.ledger.register[NAME].digest == one.ledger.register[NAME].digest
    assert mended(other, one, "dd1", "dtwo") == [Outcome.SAME, Outcome.SAME]


def test_what_only_we_have_stays(pair: Pair) -> None:
    one, other = pair
    lost(one, "d1")
    before = states(other)
    assert mended(other, one, "dd1") == [None]
    assert states(other) == before
    assert mended(one, other, "dd1") == [Outcome.MENDED]


def test_an_earlier_state_does_not_replace_a_later_one(pair: Pair) -> None:
    one, other = pair
    rev = one.rows("SELECT rev FROM doc WHERE id = 'd1'")[0][0]
    one.write(NAME, edit("d1", rev, {"v": "later"}))
    assert mended(one, other, "dd1") == [Outcome.SAME]
    assert mended(other, one, "dd1") == [Outcome.MENDED]
    assert states(other) == states(one)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE doc SET body = x'7b7d' WHERE id = 'two'",
        "UPDATE doc SET tree = x'00' WHERE id = 'two'",
        "UPDATE doc SET flags = 2 WHERE id = 'two'",
        "DELETE FROM body WHERE leaf = 1",
        "UPDATE body SET body = x'7b7d'",
    ],
)
def test_a_damaged_row_is_replaced(pair: Pair, sql: str) -> None:
    one, other = pair
    other.connection.execute(sql)
    database = other.ledger.register[NAME]
    row, fault = soundness.examined(other.connection, 1, "two")
    assert fault is not None
    number = digests.of_document("two", row.document.leaves)
    right = digests.of_document("two", documents.read_row(one.reader, 1, "two").document.leaves)
    # As a scan leaves it: the digest is that of the rows.
    database.digest = digests.combined(database.digest, number, right)
    before = states_or_none(other, "d0")
    assert other.do(lambda ledger: might_hold(ledger)) == dict(other.ledger.reached)
    needs = might_hold(other.ledger)
    assert mended_damaged(other, one, needs) == Outcome.MENDED
    assert soundness.examined(other.reader, 1, "two")[1] is None
    assert documents.read_state(other.reader, 1, "two") == documents.read_state(
        one.reader, 1, "two"
    )
    assert database.digest == one.ledger.register[NAME].digest
    assert states_or_none(other, "d0") == before


def states_or_none(one: Store, doc_id: str) -> Any:
    return documents.read_state(one.reader, 1, doc_id)


def mended_damaged(one: Store, other: Store, needs: Vector) -> Outcome | None:
    (found,) = mended(one, other, "dtwo", needs=needs)
    return found


def test_a_damaged_row_waits_for_who_surely_has_all_that_was_in_it(pair: Pair) -> None:
    """It may hold a write that nobody else has yet."""
    one, other = pair
    other.write(NAME, edit("mine", None, {}))
    other.connection.execute("UPDATE doc SET flags = 2 WHERE id = 'two'")
    needs = might_hold(other.ledger)
    assert not covers(changes.vector(one.reader), needs)
    before = other.rows("SELECT * FROM doc WHERE id = 'two'")
    assert mended_damaged(other, one, needs) == Outcome.LATER
    assert other.rows("SELECT * FROM doc WHERE id = 'two'") == before
    assert mended(other, one, "dtwo") == [Outcome.LATER]  # nobody has asked what it needs
    caught_up(one, other)
    assert mended_damaged(other, one, needs) == Outcome.MENDED


def forged(one: Store, doc_id: str, change: Callable[[Document], Document], body: bytes) -> None:
    """A row that is sound, and was never written."""
    row = documents.read_row(one.reader, 1, doc_id)
    tree = msgspec.msgpack.encode(change(row.document))
    one.connection.execute("UPDATE doc SET tree = ?, body = ? WHERE id = ?", (tree, body, doc_id))
    database = one.ledger.register[NAME]
    database.digest = digests.recomputed(one.connection, database)
    assert soundness.examined(one.connection, 1, doc_id)[1] is None


def test_what_nothing_can_decide_stays_as_it_is_on_both_sides(pair: Pair) -> None:
    one, other = pair
    leaf = documents.read_row(one.reader, 1, "d1").document.leaves[0]
    packed = document.dump_members({"v": "forged"})
    wrong = msgspec.structs.replace(leaf, digest=document.content_digest(packed, False, ()))
    body = document.body_bytes("d1", leaf.rev, False, packed, ())
    forged(other, "d1", lambda found: Document((wrong,), found.context), body)
    before = states(one), states(other)
    assert merge.merge(before[0][1].document, before[1][1].document).leaves == ()
    assert mended(other, one, "dd1") == [Outcome.DISPUTED]
    assert mended(one, other, "dd1") == [Outcome.DISPUTED]
    assert (states(one), states(other)) == before


def test_what_comes_damaged_is_nobodys_word_against_ours(pair: Pair) -> None:
    one, other = pair
    state = documents.read_state(one.reader, 1, "d1")
    wrong = msgspec.structs.replace(state, bodies=(state.bodies[0].replace(b"1}", b"2}"),))
    row = one.ledger.register[NAME]
    data = proofs._event(row, "document", wrong)
    before = states(other)
    found = other.do(lambda ledger: settle(ledger, NAME, 1, [data, b"\x00"], {}, {}))
    assert found == {"dd1": Outcome.SAME}
    assert states(other) == before


def test_only_what_was_asked_about_is_taken(pair: Pair) -> None:
    """Events of another database or generation, and such as complete a write, are left out."""
    one, other = pair
    row = one.ledger.register[NAME]
    data = proofs.state_event(one.reader, row, "dd1", {})
    assert data is not None
    lost(other, "d1")
    event = arrivals.events.decode(data)
    for wrong in ({"database": "y"}, {"generation": 2}, {"mark": 9, "oseq": 9}):
        changed = arrivals.events.encode(msgspec.structs.replace(event, **wrong))
        assert other.do(lambda ledger, d=changed: settle(ledger, NAME, 1, [d], {}, {})) == {}
    assert other.do(lambda ledger: settle(ledger, NAME, 2, [data], {}, {})) == {}
    assert other.do(lambda ledger: settle(ledger, "nobody", 1, [data], {}, {})) == {}
    assert other.rows("SELECT 1 FROM doc WHERE id = 'd1'") == []


# Registers


def held(one: Store) -> Register | None:
    return proofs.registers.read(one.reader, 1, "local", "_local/k")


KEY = "rlocal/_local/k"


def test_a_register_is_taken_if_its_stamp_is_later(pair: Pair) -> None:
    one, other = pair
    right = held(one)
    other.connection.execute("UPDATE register SET stamp = stamp - 1, value = NULL")
    database = other.ledger.register[NAME]
    database.digest = digests.recomputed(other.connection, database)
    assert mended(one, other, KEY) == [Outcome.SAME]
    assert mended(other, one, KEY) == [Outcome.MENDED]
    assert held(other) == right
    assert mended(other, one, KEY) == [Outcome.SAME]


def test_a_register_of_one_stamp_and_two_values_stays(pair: Pair) -> None:
    one, other = pair
    other.connection.execute("UPDATE register SET value = ?", (b'{"_id":"_local/k","_rev":"0-2"}',))
    database = other.ledger.register[NAME]
    database.digest = digests.recomputed(other.connection, database)
    before = held(one), held(other)
    assert mended(other, one, KEY) == mended(one, other, KEY) == [Outcome.DISPUTED]
    assert (held(one), held(other)) == before


def test_a_checkpoint_waits_for_what_it_vouches_for(pair: Pair) -> None:
    one, other = pair
    other.connection.execute("DELETE FROM register")
    database = other.ledger.register[NAME]
    database.digest = digests.recomputed(other.connection, database)
    one.write(NAME, edit("new", None, {}))
    assert mended(other, one, KEY) == [Outcome.LATER]
    assert held(other) is None
    caught_up(other, one)
    assert held(other) == held(one)


# Databases


def test_a_database_is_made_or_dropped_as_it_is_elsewhere(pair: Pair) -> None:
    one, other = pair
    one.create("y")
    for dropped in (False, True):
        made = proofs.register_events(one.reader, "y")
        other.do(lambda ledger, made=made: settle_database(ledger, made, 0))
        found = databases.find(other.reader, "y")
        assert found is not None
        assert (found.generation, found.dropped) == (1, dropped)
        if not dropped:
            one.drop("y")
    one.create("y", 2)
    other.do(lambda ledger: settle_database(ledger, proofs.register_events(one.reader, "y"), 0))
    assert databases.find(other.reader, "y").generation == 2  # type: ignore[union-attr]
