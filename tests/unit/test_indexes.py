"""The indexes' file: entries against documents, whatever comes between two steps."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import indexer
from divandb.catalog import Catalog, Known
from divandb.commands import Graft, Purge
from divandb.config import Limits
from divandb.errors import Busy, FunctionFailed, NotFound, StorageFull, TookTooLong
from divandb.finder import Finder, Found
from divandb.indexer import Indexer, Source, Used
from divandb.mango import options
from divandb.readers import Readers
from divandb.store import indexes, queries
from divandb.store.indexes import FILE_NAME, Built, Entry, IndexFile, Recipe
from divandb.store.ledger import Changes
from divandb.store.queries import Stretch
from tests.stores import Lines, StillClock, Store, Time, edit

SIGNATURE = bytes(16)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    opened.create("x")
    yield opened
    opened.close()


def by_value(documents: Sequence[tuple[str, bytes]]) -> list[list[Entry]]:
    """An entry for each of a document's numbers."""
    values = [orjson.loads(body).get("v", []) for _, body in documents]
    return [[(bytes([value]), b"%d" % value, value) for value in some] for some in values]


def opened(store: Store) -> IndexFile:
    found = IndexFile(store.disk.path.with_name(FILE_NAME), store.disk, 2**20)
    found.settle(store.identity)
    return found


def seq_of(store: Store, name: str = "x") -> int:
    return store.ledger.register[name].seq


def put(store: Store, doc_id: str, *values: int, deleted: bool = False) -> None:
    """Write a document's next revision."""
    num = store.ledger.register["x"].num
    row = store.rows("SELECT rev, flags FROM doc WHERE db = ? AND id = ?", num, doc_id)
    parent = row[0][0] if row and row[0][0] else None
    (result,) = store.write("x", edit(doc_id, parent, {"v": list(values)}, deleted=deleted))
    assert isinstance(result, str), result


def some_by_value(documents: Sequence[tuple[str, bytes]]) -> list[list[Entry]]:
    """The same of the first of them, as a worker whose time is up gives it."""
    return by_value(documents[: len(documents) // 2 + 1])


COUNTED = Recipe(some_by_value, part_bytes=1)


def brought_on(file: IndexFile, built: Built, goal: int, recipe: Recipe | None = None) -> Built:
    while built.seq < goal:
        built = file.step(built, goal, recipe or Recipe(by_value))
    return built


def held(file: IndexFile, built: Built) -> dict[bytes, int]:
    """How many entries each part has, as the file says."""
    connection: Any = file._writing
    found = connection.execute("SELECT part, entries FROM held WHERE built = ?", (built.num,))
    return {part: count for part, count in found if count}


def entries(file: IndexFile, built: Built) -> list[tuple[bytes, str, bytes | None]]:
    connection: Any = file._writing
    return [
        (key, doc_id, value)
        for key, doc_id, value in connection.execute(
            "SELECT key, id, value FROM entry WHERE built = ? ORDER BY key, id, n", (built.num,)
        )
    ]


def expected(store: Store) -> list[tuple[bytes, str, bytes | None]]:
    rows = store.rows("SELECT id, body FROM doc WHERE flags & 3 = 0 AND id < '_design/'")
    rows += store.rows("SELECT id, body FROM doc WHERE flags & 3 = 0 AND id >= '_design0'")
    given = zip(rows, by_value(rows), strict=True)
    return sorted((key, row[0], value) for row, some in given for key, value, _ in some)


def test_an_index_has_what_the_documents_give(store: Store) -> None:
    put(store, "a", 3, 1)
    put(store, "b", 2)
    put(store, "_design/d", 9)
    file = opened(store)
    built = brought_on(file, file.begin(1, SIGNATURE, seq_of(store)), seq_of(store))
    assert entries(file, built) == [(b"\1", "a", b"1"), (b"\2", "b", b"2"), (b"\3", "a", b"3")]
    put(store, "a", 2)
    put(store, "b", deleted=True)
    built = brought_on(file, built, seq_of(store))
    assert entries(file, built) == [(b"\2", "a", b"2")] == expected(store)
    file.close()


documents = st.sampled_from(["a", "b", "c", "_design/d"])
happenings = st.one_of(
    st.tuples(st.just("put"), documents, st.lists(st.integers(0, 9), max_size=3)),
    st.tuples(st.just("delete"), documents),
    st.tuples(st.just("purge"), documents),
    st.tuples(st.just("step")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("crash")),
)


@settings(deadline=None, max_examples=40)
@given(happened=st.lists(happenings, max_size=30), rows_max=st.integers(1, 3))
def test_whatever_happens_between_steps_the_entries_come_out_right(
    happened: list[tuple[Any, ...]], rows_max: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("indexes"))
    num = store.create("x").num
    before, indexes.STEP_ROWS_MAX = indexes.STEP_ROWS_MAX, rows_max
    file = opened(store)
    built = file.begin(num, SIGNATURE, seq_of(store))
    counted = file.begin(num, b"2" * 16, seq_of(store), "_design/d")
    try:
        for what, *rest in happened:
            if what == "put":
                put(store, rest[0], *rest[1])
            elif what == "delete" and store.count("doc", f"id = '{rest[0]}' AND flags = 0"):
                put(store, rest[0], deleted=True)
            elif what == "purge":
                rows = store.rows("SELECT rev FROM doc WHERE id = ? AND flags & 2 = 0", rest[0])
                store.do(Purge("x", 1, {rest[0]: [rev for (rev,) in rows]}))
            elif what == "step":
                built = file.step(built, seq_of(store), Recipe(by_value))
                counted = file.step(counted, seq_of(store), COUNTED)
            elif what in ("restart", "crash"):
                file.close()
                store.close() if what == "restart" else store.crash()
                store.open()
                file = opened(store)
                assert {built.num, counted.num} == {one.num for one in file.built()}
                assert built in file.built() and counted in file.built(), "nothing was lost"
        built = brought_on(file, built, seq_of(store))
        assert entries(file, built) == expected(store)
        counted = brought_on(file, counted, seq_of(store), COUNTED)
        assert entries(file, counted) == expected(store)
        assert held(file, counted) == Counter(key[:1] for key, _, _ in expected(store))
    finally:
        indexes.STEP_ROWS_MAX = before
        file.close()
        store.close()


def test_an_index_of_a_file_that_was_put_back_goes(store: Store, tmp_path: Path) -> None:
    put(store, "a", 1)
    store.close()
    copy = store.disk.path.read_bytes()
    store.open()
    file = opened(store)
    built = brought_on(file, file.begin(1, SIGNATURE, seq_of(store)), seq_of(store))
    old = file.begin(1, b"1" * 16, seq_of(store))
    old = brought_on(file, old, seq_of(store))
    put(store, "b", 2)
    built = brought_on(file, built, seq_of(store))
    file.close()
    store.close()
    store.disk.path.write_bytes(copy)
    store.open()
    file = opened(store)
    assert file.built() == [old], "one of them had seen more than the file has"
    put(store, "c", 3)
    assert entries(file, brought_on(file, old, seq_of(store))) == expected(store)
    while file.sweep():
        pass
    assert entries(file, built) == []
    file.close()


def test_an_index_of_another_file_goes(store: Store) -> None:
    put(store, "a", 1)
    file = opened(store)
    brought_on(file, file.begin(1, SIGNATURE, seq_of(store)), seq_of(store))
    file.close()
    store.do(
        lambda ledger: ledger.connection.execute(
            "UPDATE meta SET value = 5 WHERE key = 'numbering'"
        )
    )
    store.close()
    store.open()
    file = opened(store)
    assert file.built() == []
    file.close()


def test_an_index_of_a_dropped_database_goes(store: Store) -> None:
    put(store, "a", 1)
    file = opened(store)
    brought_on(file, file.begin(1, SIGNATURE, seq_of(store)), seq_of(store))
    store.drop("x")
    assert file.settle(store.identity) == []
    while file.sweep():
        pass
    assert not file._writing.execute("SELECT * FROM entry").fetchall()
    file.close()


def test_a_damaged_file_is_made_again(store: Store) -> None:
    path = store.disk.path.with_name(FILE_NAME)
    for content in (b"no database at all" * 300, b""):
        path.write_bytes(content)
        file = opened(store)
        assert file.built() == []
        file.begin(1, SIGNATURE, 0)
        file.close()
    other = IndexFile(path, store.disk, 2**20)
    other._writing.execute("PRAGMA user_version = 99")
    other.close()
    file = opened(store)
    assert file.built() == []
    file.close()


# Reading


def test_documents_by_id_in_pieces(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for doc_id in ("a", "b", "c", "_design/d", "Z", "é"):
        put(store, doc_id, 1)
    put(store, "b", deleted=True)
    opened(store).close()
    connection = queries.connect(store.disk, store.disk.path.with_name(FILE_NAME), 2**20)

    def read(stretch: Stretch | None, rows: int, sieve: Any = None) -> tuple[list[str], int]:
        found, passed = [], 0
        while stretch is not None:
            page, stretch, count = queries.by_id(connection, 1, stretch, rows, sieve)
            found += [doc_id for doc_id, _, _ in page]
            passed += count
        return found, passed

    everything = ["Z", "a", "c", "é"]
    for rows in (1, 2, 3, 100):
        assert read(Stretch("", None), rows) == (everything, 4)
        assert read(Stretch("", None, True), rows) == (everything[::-1], 4)
        assert read(Stretch("a", "c"), rows) == (["a", "c"], 2)
        assert read(Stretch("", "c", True, behind="c"), rows) == (["a", "Z"], 2)
        assert read(Stretch("", None), rows, ("body IS NULL", ())) == ([], 4)
    monkeypatch.setattr(queries, "PIECE_BYTES_MAX", 1)
    assert read(Stretch("", None), 100) == (everything, 4)
    connection.close()


# The indexer and queries on it


class Told(Lines):
    """A log that keeps faults."""

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        self.events.append(what)


class Bench:
    """An indexer and a finder over a store, on the test's own loop."""

    def __init__(self, store: Store, limits: Limits | None = None) -> None:
        self.store = store
        self.file = opened(store)
        self.catalog = Catalog(store.reader, 1000)
        self.time, self.log = Time(), Told()
        self.rests: list[float] = []
        self.indexer = Indexer(
            self.file, self.catalog, self.offload, self.pace, self.time,
            self.log,
        )  # fmt: skip
        self.clock = StillClock()
        self.readers = Readers(store.disk, self.file.path, 2**20)
        self.finder = Finder(
            store.reader, self.readers, self.catalog, self.indexer, self.clock,
            limits or store.limits,
        )  # fmt: skip
        self.fault: Exception | None = None

    async def pace(self, took_s: float) -> None:
        self.rests.append(took_s)

    async def offload(self, function: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return function(*arguments)

    def close(self) -> None:
        self.readers.close()
        self.file.close()

    async def find(self, selector: Any, **members: Any) -> tuple[list[Any], Found]:
        known = self.catalog.get("x")
        query = options.read_query({"selector": selector, **members})
        found = Found()
        plan = self.finder.plan(known, query)
        pages = [page async for page in self.finder.find(known, plan, found)]
        return [orjson.loads(document) for page in pages for document in page], found


@pytest.fixture
def bench(store: Store) -> Iterator[Bench]:
    made = Bench(store)
    yield made
    made.close()


def test_who_waits_for_an_index_gets_it_with_all_changes(bench: Bench) -> None:
    for number in range(300):
        put(bench.store, f"d{number}", number % 7)
    source = Source(SIGNATURE, Recipe(by_value), "_design/d")

    async def story() -> None:
        known = bench.catalog.get("x")
        assert bench.indexer.find(known, SIGNATURE) is None
        both = await asyncio.gather(*(bench.indexer.current(known, source) for _ in range(2)))
        assert both[0] == both[1] and both[0].seq == seq_of(bench.store)
        assert entries(bench.file, both[0]) == expected(bench.store)
        bench.indexer.begin(known, source)

    asyncio.run(story())


def test_a_fault_is_told_to_those_who_wait_and_tried_again(bench: Bench) -> None:
    put(bench.store, "a", 1)
    source = Source(SIGNATURE, Recipe(by_value), "_design/d")

    async def story() -> None:
        known = bench.catalog.get("x")
        bench.fault = StorageFull("full")
        with pytest.raises(StorageFull):
            await bench.indexer.current(known, source)
        bench.fault = None
        assert (await bench.indexer.current(known, source)).seq == 1

    asyncio.run(story())


def test_what_a_recipe_wants_is_in_the_documents(store: Store) -> None:
    seen: list[dict[str, Any]] = []

    def looks(documents: Sequence[tuple[str, bytes]]) -> list[list[Entry]]:
        seen.extend(orjson.loads(body) for _, body in documents)
        return [[] for _ in documents]

    put(store, "a", 1)
    low, gone = edit("a", None, {"v": [], "n": 0}), edit("a", None, {"v": []}, deleted=True)
    for other in (low, gone):
        store.write("x", Graft("a", 1, (other.rev_hash,), other.deleted, other.digest, other.body))
    put(store, "_design/d")
    file = opened(store)
    recipe = Recipe(looks, designs=True, conflicts=True, local_seq=True)
    brought_on(file, file.begin(1, SIGNATURE, seq_of(store)), seq_of(store), recipe)
    document, design = sorted(seen, key=lambda one: one["_id"], reverse=True)
    assert document["_local_seq"] == 3 and design["_local_seq"] == 4
    revs = {document["_rev"], *document["_conflicts"]}
    assert len(revs) == 2 and document["_deleted_conflicts"] == [f"1-{gone.rev_hash}"]
    assert "_conflicts" not in design
    file.close()


def test_a_function_that_fails_is_not_tried_again_at_once(bench: Bench) -> None:
    put(bench.store, "a", 1)
    tries: list[int] = []

    def fails(documents: Sequence[tuple[str, bytes]]) -> list[list[Entry]]:
        tries.append(len(documents))
        if len(tries) < 4:
            raise FunctionFailed("It ran too long.")
        return by_value(documents)

    source = Source(SIGNATURE, Recipe(fails), "_design/d")

    async def story() -> None:
        known = bench.catalog.get("x")

        async def fault() -> str:
            with pytest.raises(FunctionFailed) as raised:
                await bench.indexer.current(known, source)
            return raised.value.reason

        for pause_s in (5.0, 10.0, 20.0):
            before = len(tries)
            assert await fault() == "It ran too long."
            (told,) = bench.indexer.status()["failing"]  # type: ignore[misc, index]
            assert told == {"reason": "It ran too long.", "again_s": round(pause_s)}
            assert await fault() == "It ran too long." and len(tries) == before + 1
            bench.time.now += pause_s
        assert (await bench.indexer.current(known, source)).seq == 1
        assert bench.indexer.status() == {"kept": 1, "building": [], "failing": []}

    asyncio.run(story())


def test_a_full_disk_is_told_of_once_and_tried_with_growing_pauses(bench: Bench) -> None:
    for number in range(2 * indexes.STEP_ROWS_MAX):
        put(bench.store, f"d{number}", 1)
    source = Source(SIGNATURE, Recipe(by_value), "_design/d")
    bench.indexer.sources.append(lambda known: [source])
    tries: list[float] = []

    async def offload(function: Any, *arguments: Any) -> Any:
        if bench.fault is not None and function != bench.file.sweep:
            tries.append(bench.time.now)
            raise bench.fault
        return function(*arguments)

    bench.indexer._offload = offload
    bench.fault = StorageFull("full")

    async def story() -> None:
        known = bench.catalog.get("x")
        for second in range(200):
            bench.time.now = 1000.0 + second
            await bench.indexer._keep_up({known.num})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gaps = [later - tried for tried, later in itertools.pairwise(tries)]
        assert gaps == [5, 10, 20, 40, 60, 60]
        assert bench.log.events == ["an index waits: it cannot be stored"]
        (told,) = bench.indexer.status()["failing"]  # type: ignore[misc, index]
        assert told["reason"] == "full"
        bench.fault = None
        assert (await bench.indexer.current(known, source)).seq == seq_of(bench.store)
        assert bench.indexer.status()["failing"] == []

    asyncio.run(story())


def test_what_answers_is_stored_for_each_design_document_and_goes_with_it(bench: Bench) -> None:
    put(bench.store, "a", 1)
    recipe = Recipe(by_value, about=b"{}")

    async def until(used: list[tuple[str, bytes]]) -> None:
        async with asyncio.timeout(20):
            while [(name, sign) for _, name, sign, _ in bench.file.used()] != used:
                await asyncio.sleep(0.01)

    async def story() -> None:
        known = bench.catalog.get("x")
        first = await bench.indexer.current(known, Source(SIGNATURE, recipe, "d"))
        await until([("d", SIGNATURE)])  # the first one answers by itself
        bench.indexer.use(known, "e", first, b"{}")  # and may do so for another one, too
        await until([("d", SIGNATURE), ("e", SIGNATURE)])
        second = await bench.indexer.current(known, Source(b"2" * 16, recipe, "d"))
        assert bench.indexer.in_use(known, "d") == Used(SIGNATURE, b"{}")
        bench.indexer.use(known, "d", second, b"[]")
        await until([("d", b"2" * 16), ("e", SIGNATURE)])
        again = Indexer(
            bench.file, bench.catalog, bench.offload, bench.pace, bench.time, bench.log
        )  # fmt: skip
        assert again.in_use(known, "d") == Used(b"2" * 16, b"[]")
        assert again.in_use(known, "e") == Used(SIGNATURE, b"{}")
        again.disuse(known, {"e"})
        await until([("e", SIGNATURE)])
        bench.file.retire([first.num])
        assert bench.file.used() == []

    asyncio.run(story())


def test_a_switch_that_cannot_be_stored_does_not_show(bench: Bench) -> None:
    put(bench.store, "a", 1)
    recipe = Recipe(by_value, about=b"{}")

    async def story() -> None:
        known = bench.catalog.get("x")
        built = await bench.indexer.current(known, Source(SIGNATURE, recipe, "d"))
        async with asyncio.timeout(20):
            while bench.indexer.in_use(known, "d") is None:
                await asyncio.sleep(0.01)
        bench.fault = StorageFull("full")
        bench.indexer.use(known, "d", msgspec.structs.replace(built, signature=b"2" * 16), b"{}")
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.indexer.in_use(known, "d") == Used(SIGNATURE, b"{}")

    asyncio.run(story())


def test_an_index_that_is_held_waits_and_what_there_is_of_it_is_kept(bench: Bench) -> None:
    put(bench.store, "a", 1)
    recipe = Recipe(by_value)
    named = [Source(SIGNATURE, recipe, "d", is_held=True), Source(b"2" * 16, recipe, "e")]
    bench.indexer.sources.append(lambda known: named)

    async def until(signatures: list[bytes]) -> None:
        async with asyncio.timeout(20):
            while sorted(one.signature[:1] for one in bench.file.built()) != signatures:
                await asyncio.sleep(0.01)

    async def story() -> None:
        running = asyncio.create_task(bench.indexer.run())
        await until([b"2"])
        assert bench.indexer.find(bench.catalog.get("x"), SIGNATURE) is None
        await bench.indexer.current(bench.catalog.get("x"), named[0])
        named[1] = Source(b"3" * 16, recipe, "e")
        bench.indexer.changed({1})
        await until([b"\0", b"3"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())


def test_a_large_index_holds_up_no_small_one(bench: Bench) -> None:
    """A build is under way, and stands still; what another database needs is done meanwhile."""
    for number in range(2 * indexes.STEP_ROWS_MAX):
        put(bench.store, f"d{number}", 1)
    goes_on = asyncio.Event()

    async def pace(took_s: float) -> None:
        await goes_on.wait()

    bench.indexer._pace = pace
    bench.store.create("y")
    bench.catalog.refresh(Changes(set(), set(), {2}))
    bench.indexer.sources.append(lambda known: [Source(SIGNATURE, Recipe(by_value), "d")])

    async def story() -> None:
        running = asyncio.create_task(bench.indexer.run())
        async with asyncio.timeout(20):
            while bench.indexer.find(bench.catalog.get("y"), SIGNATURE) is None:
                await asyncio.sleep(0.01)
            large = bench.catalog.get("x")
            built = bench.indexer.find(large, SIGNATURE)
            assert built is not None and built.seq < seq_of(bench.store)
            goes_on.set()
            while built.seq < seq_of(bench.store):
                await asyncio.sleep(0.01)
                built = bench.indexer.find(large, SIGNATURE) or built
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())


def test_one_database_that_fails_keeps_no_other_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "FAULT_PAUSE_S", 0.01)
    broken = [True]

    def sources(known: Known) -> list[Source]:
        if known.name == "x" and broken:
            raise ValueError("a bug of ours")
        return [Source(SIGNATURE, Recipe(by_value), "d")]

    bench.store.create("y")
    bench.catalog.refresh(Changes(set(), set(), {2}))
    bench.indexer.sources.append(sources)

    async def story() -> None:
        running = asyncio.create_task(bench.indexer.run())
        async with asyncio.timeout(20):
            while bench.indexer.find(bench.catalog.get("y"), SIGNATURE) is None:
                await asyncio.sleep(0.01)
            assert bench.indexer.find(bench.catalog.get("x"), SIGNATURE) is None
            assert "indexes cannot be kept current" in bench.log.events
            broken.clear()
            while bench.indexer.find(bench.catalog.get("x"), SIGNATURE) is None:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())


def test_a_build_that_takes_time_is_an_active_task(bench: Bench) -> None:
    for number in range(2 * indexes.STEP_ROWS_MAX):
        put(bench.store, f"d{number}", 1)
    shown: list[Any] = []

    def slow(documents: Sequence[tuple[str, bytes]]) -> Any:
        bench.time.now += 0.5
        shown.extend(bench.indexer.tasks())
        return by_value(documents)

    async def story() -> None:
        known = bench.catalog.get("x")
        await bench.indexer.current(known, Source(SIGNATURE, Recipe(slow), "_design/d"))
        assert bench.indexer.tasks() == []

    asyncio.run(story())
    assert [(one["type"], one["database"], one["design_document"]) for one in shown] == [
        ("indexer", "x", "_design/d")
    ] * 2
    assert [one["progress"] for one in shown] == [0, 50]
    assert shown[1]["changes_done"] == indexes.STEP_ROWS_MAX


def test_indexes_that_no_design_document_names_go(bench: Bench) -> None:
    put(bench.store, "a", 1)
    named = [Source(SIGNATURE, Recipe(by_value), "d"), Source(b"2" * 16, Recipe(by_value), "d")]
    bench.indexer.sources.append(lambda known: named)

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while len(bench.file.built()) != count:
                await asyncio.sleep(0.01)

    async def story() -> None:
        running = asyncio.create_task(bench.indexer.run())
        await until(2)
        del named[0]
        bench.indexer.changed({1})
        await until(1)
        bench.store.drop("x")
        bench.catalog.refresh(_dropped())
        bench.indexer.changed({1})
        await until(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())


def _dropped() -> Changes:
    return Changes(set(), set(), {1})


def test_pages_by_bookmark_give_each_document_once_while_others_change(bench: Bench) -> None:
    design = {
        "language": "query",
        "views": {"n": {"map": {"fields": {"v": "asc"}}, "options": {}}},
    }
    bench.store.write("x", edit("_design/d", None, design))
    for number in range(20):
        put(bench.store, f"d{number:02}", number // 2)

    async def story(**members: Any) -> list[str]:
        seen: list[str] = []
        mark = None
        for turn in range(30):
            found, told = await bench.find(
                {"v": {"$exists": True}}, limit=3, bookmark=mark, **members
            )
            seen += [one["_id"] for one in found if one["_id"] < "e"]
            if not found:
                return seen
            mark = told.bookmark
            put(bench.store, found[-1]["_id"], deleted=True)
            put(bench.store, f"e{turn}", 99)
        raise AssertionError("there was no end")

    ids = [f"d{number:02}" for number in range(20)]
    assert asyncio.run(story(sort=[{"v": "desc"}])) == ids[::-1]


def test_queries_have_bounds(store: Store) -> None:
    for number in range(200):
        put(store, f"d{number}", 1)
    bench = Bench(store, Limits(finds_max=1))

    async def story() -> None:
        known = bench.catalog.get("x")
        plan = bench.finder.plan(known, options.read_query({"selector": {}, "limit": 200}))
        slow = bench.finder.find(known, plan, Found())
        await anext(slow)
        bench.clock.ms += store.limits.find_ms_max
        with pytest.raises(TookTooLong):
            await anext(slow)
        first = bench.finder.find(known, plan, Found())
        assert len(await anext(first)) == 64
        with pytest.raises(Busy):
            await anext(bench.finder.find(known, plan, Found()))
        bench.store.drop("x")
        bench.catalog.refresh(_dropped())
        with pytest.raises(NotFound):
            async for _ in first:
                pass

    asyncio.run(story())
    bench.close()
