"""Frequently read documents."""

import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from divandb.catalog import Catalog
from divandb.hot import ENTRY_BYTES, NAMES_MIN, HotDocuments, Key, Value
from divandb.replica import Replica
from tests.stores import Store, edit

ROOM = 10 * (ENTRY_BYTES + 10)

keys = st.tuples(st.just(1), st.sampled_from([f"d{n}" for n in range(20)]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), keys), st.tuples(st.just("write"), keys)
    ),
    max_size=300,
)  # fmt: skip


def of(version: int, size: int = 10) -> Value:
    return (f"{version}-x", 0, b"x" * size)


def read(hot: HotDocuments, key: Key, value: Value) -> Value:
    """As a replica does, from a file that has ``value``."""
    kept = hot.get(key)
    if kept is not None:
        return kept
    now = hot.now
    hot.put(key, value, now)
    return value


@given(steps, st.integers(0, ROOM))
def test_it_gives_what_is_there_within_its_bound(
    done: list[tuple[str, Key]], bytes_max: int
) -> None:
    hot, file = HotDocuments(bytes_max), dict[Key, int]()
    for what, key in done:
        if what == "write":
            with hot.replacing([key]):
                file[key] = file.get(key, 1) + 1
        else:
            version = file.setdefault(key, 1)
            assert read(hot, key, of(version)) == of(version)
        assert hot.bytes <= bytes_max
        assert hot.bytes == hot.status()["documents"] * (ENTRY_BYTES + 10)


def test_what_is_asked_for_again_is_kept() -> None:
    hot = HotDocuments(ROOM)
    for _ in range(3):
        read(hot, (1, "a"), of(1))
    assert (hot.hits, hot.misses) == (1, 2)


def test_a_scan_leaves_what_is_hot() -> None:
    hot = HotDocuments(ROOM)
    for _ in range(4):
        for n in range(5):
            read(hot, (1, f"hot{n}"), of(1))
    for n in range(10 * NAMES_MIN):
        read(hot, (1, f"scan{n}"), of(1))
    assert {key[1] for key in hot.hottest(99)} == {f"hot{n}" for n in range(5)}


def test_what_was_read_since_its_turn_gets_another_one() -> None:
    hot = HotDocuments(ROOM)
    for n in range(10):
        for _ in range(2):
            read(hot, (1, f"d{n}"), of(1))
    read(hot, (1, "d0"), of(1))
    for _ in range(2):
        read(hot, (1, "new"), of(1))
    found = {key[1] for key in hot.hottest(99)}
    assert {"d0", "new"} <= found
    assert "d1" not in found


def test_what_was_read_before_a_commit_is_not_kept_after_it() -> None:
    hot = HotDocuments(ROOM)
    hot.expect((1, "a"))
    now = hot.now
    with hot.replacing([(1, "b")]):
        hot.put((1, "a"), of(1), hot.now)
        assert hot.get((1, "a")) is None
    hot.put((1, "a"), of(1), now)
    assert hot.get((1, "a")) is None
    hot.put((1, "a"), of(2), hot.now)
    assert hot.get((1, "a")) == of(2)


def test_one_that_is_larger_than_all_room_is_not_kept() -> None:
    hot = HotDocuments(ROOM)
    for _ in range(3):
        read(hot, (1, "a"), of(1, ROOM))
    assert hot.bytes == 0


def test_a_reader_beside_a_writer_never_goes_back(tmp_path: Path) -> None:
    """Two threads and a real file: what was committed is what is read from then on."""
    store = Store(tmp_path)
    store.create("x")
    catalog = Catalog(store.reader, 1000)
    hot = HotDocuments(2**20)
    store.ledger.replacing = hot.replacing
    replica = Replica(store.reader, catalog, 1, 1, hot)
    known = catalog.get("x")
    store.write("x", edit("a", None, {"n": 0}))
    committed, wrong, over = [0], list[tuple[int, int]](), threading.Event()

    def look() -> None:
        while not over.is_set():
            least = committed[0]
            found = replica.winner(known, "a")
            assert found is not None
            seen = int(found[0].split("-")[0]) - 1
            if seen < least:
                wrong.append((least, seen))

    rev = replica.row(known, "a").rev
    reader = threading.Thread(target=look)
    reader.start()
    for n in range(1, 400):
        (result,) = store.write("x", edit("a", rev, {"n": n}))
        assert isinstance(result, str)
        rev, committed[0] = result, n
    over.set()
    reader.join()
    assert wrong == []
    assert hot.hits > 0
    store.close()


def test_a_neighbour_learns_what_is_hot(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("x")
    store.write("x", edit("a", None, {}), edit("b", None, {}))
    catalog = Catalog(store.reader, 1000)
    one, other = (Replica(store.reader, catalog, 1, 1, HotDocuments(2**20)) for _ in range(2))
    for _ in range(3):
        one.winner(catalog.get("x"), "a")
    one.winner(catalog.get("x"), "b")
    assert one.hottest(9) == [("x", 1, "a")]
    for name in [*one.hottest(9), ("x", 2, "b"), ("y", 1, "b"), ("x", 1, "nothing")]:
        other.warm(name)
    assert other.hottest(9) == [("x", 1, "a")]
    store.close()
