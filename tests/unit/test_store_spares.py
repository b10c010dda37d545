"""Connections that are kept for who reads next."""

from pathlib import Path

import apsw
import pytest

from divandb.store.spares import IDLE_MAX, Spares
from tests.stores import Store


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    store = Store(tmp_path)
    store.create("x")
    return Spares(store.disk)


def test_one_that_was_given_back_is_taken_again(spares: Spares) -> None:
    one = spares.take()
    other = spares.take()
    assert one is not other
    spares.give_back(one)
    assert spares.take() is one


def test_what_was_left_in_a_transaction_is_not_kept(spares: Spares) -> None:
    """Nobody reads on in what another one saw."""
    one = spares.take()
    one.execute("BEGIN")
    spares.give_back(one)
    with pytest.raises(apsw.ConnectionClosedError):
        one.execute("SELECT 1")
    assert spares.take() is not one


def test_few_are_kept(spares: Spares) -> None:
    taken = [spares.take() for _ in range(IDLE_MAX + 1)]
    for one in taken:
        spares.give_back(one)
    with pytest.raises(apsw.ConnectionClosedError):
        taken[-1].execute("SELECT 1")
    assert [spares.take() for _ in range(IDLE_MAX)] == taken[IDLE_MAX - 1 :: -1]


def test_none_outlives_its_node(spares: Spares) -> None:
    """Nor one that somebody is still at when it stops."""
    idle, used = spares.take(), spares.take()
    spares.give_back(idle)
    spares.close()
    used.execute("SELECT 1")
    spares.give_back(used)
    for one in (idle, used):
        with pytest.raises(apsw.ConnectionClosedError):
            one.execute("SELECT 1")


def test_it_sees_what_was_committed_since(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spares = Spares(store.disk)
    one = spares.take()
    assert one.execute("SELECT count(*) FROM database").fetchall() == [(0,)]
    spares.give_back(one)
    store.create("x")
    assert spares.take().execute("SELECT count(*) FROM database").fetchall() == [(1,)]
