"""Views: kept as indexes, queried on the readers' threads, reduced as they are asked for.

    views of a design document  ──►  one index (`indexer`), whose entries a worker makes
    rows                        ──►  a page at a time, `store.rows`
    reductions                  ──►  in SQL where that is exact, else of rows, a group at a time

While a new version of a design document is being built, queries that do not wait for it are
answered by the one before, which stays until the new one has come as far as the database was.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import orjson

from divandb.catalog import Catalog, Known
from divandb.clock import Clock
from divandb.config import Limits
from divandb.designs import Design, Designs
from divandb.errors import Busy, DivanError, NotFound, TookTooLong
from divandb.indexer import Indexer, Source
from divandb.mango import keys
from divandb.readers import Readers
from divandb.reducing import Group, Groups, Reducer, reducer_of
from divandb.store import rows
from divandb.store.file import Connection
from divandb.store.indexes import Built, Entry, Recipe
from divandb.store.rows import PIECE_BYTES_MAX
from divandb.views import query as queries
from divandb.views import raw
from divandb.views.design import PART_BYTES, View, Views
from divandb.views.engine import Engine
from divandb.views.query import Query
from divandb.views.ranges import Stretch, all_of
from divandb.views.reduce import parts

ROWS_MIN, ROWS_MAX = 128, 4096
"""Rows of a step: more as long as steps are short."""
STEP_S = 0.03
LAST_STEP_S_MAX = 0.25
"""Who asks for a ``stable`` answer waits so long for the last step of an index."""
LEAP_ROWS_MAX = 20_000
"""Rows that a step passes over."""
_TIMEOUT = "The request could not be processed in a reasonable amount of time."

_decode_rows = msgspec.json.Decoder(list[list[tuple[msgspec.Raw, msgspec.Raw]]]).decode


class Serving(msgspec.Struct, frozen=True):
    """What answers a query: the views, and their index as far as it is."""

    views: Views
    view: View
    built: Built | None


class Head(msgspec.Struct, frozen=True):
    """What stands before the rows of a query that is not reduced."""

    total: int
    offset: int


class Viewer:
    """Lives on the event loop."""

    def __init__(
        self,
        designs: Designs,
        readers: Readers,
        catalog: Catalog,
        indexer: Indexer,
        building: Engine,
        asking: Engine,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """``building`` maps documents on the indexer's thread, ``asking`` reduces for queries."""
        self._designs = designs
        self._readers = readers
        self._catalog = catalog
        self._indexer = indexer
        self._building = building
        self._asking = asking
        self._clock = clock
        self._limits = limits
        self._running = 0
        self._failed: dict[bytes, tuple[tuple[str, bytes], DivanError]] = {}
        """signature → the document that is next, if it is known to fail, and how; the next step
        does not try it again."""
        indexer.sources.append(self.sources)

    # What is kept

    def sources(self, known: Known) -> list[Source]:
        """The indexes that a database's views should have, each once."""
        found = [one.views for one in self._designs.of(known).values() if one.views.is_kept]
        return list({views.signature: self._source(views) for views in found}.values())

    def _source(self, views: Views) -> Source:
        engine, program = self._building, views.program

        def entries(documents: Sequence[tuple[str, bytes]]) -> list[list[Entry]]:
            failed = self._failed.pop(views.signature, None)
            if failed is not None and failed[0] == documents[0]:
                raise failed[1]
            calls = [[body.decode()] for _, body in documents]
            ids = [doc_id for doc_id, _ in documents]
            answers, failure = engine.attempt(program, "map", calls, ids)
            if failure is not None:
                if not answers:
                    raise failure
                self._failed[views.signature] = (documents[len(answers)], failure)
            return [entries_of(answer) for answer in answers]

        recipe = Recipe(
            entries,
            designs=views.option("include_design"),
            conflicts=True,
            local_seq=views.option("local_seq"),
            part_bytes=PART_BYTES,
            about=views.about,
        )
        return Source(views.signature, recipe, views.id)

    def info(self, known: Known, design: Design) -> dict[str, Any]:
        """What `_info` tells of a design document's index."""
        views = design.views
        built = self._indexer.find(known, views.signature)
        is_ready = built is not None and is_complete(built)
        old = [one for one in self._indexer.under(known, views.id) if one is not built]
        return {
            "signature": views.signature.hex(),
            "language": views.language,
            "update_seq": built.seq if built else 0,
            "updater_running": self._indexer.is_at_work(known, views.signature),
            "ready": is_ready,
            "in_use": (views.signature if is_ready or not old else old[-1].signature).hex(),
        }

    # Queries

    async def serving(
        self,
        known: Known,
        design: Design,
        name: str,
        update: bool | str,
        *,
        stable: bool = False,
    ) -> Serving:
        """The view of that name, as far as the query wants it to be brought on.

        Raises ``NotFound``, ``FunctionFailed``, ``CompilationError``, ``TookTooLong``.
        """
        views = design.views
        view = views.view(name)
        source = self._source(views)
        if update is True:
            began = self._clock.monotonic()
            built = await self._within(began, self._indexer.current(known, source))
            return Serving(views, view, built)
        if update == "lazy":
            self._indexer.begin(known, source)
        elif stable:
            await self._last_step(known, source)
        found = self._indexer.find(known, views.signature)
        if found is None or not is_complete(found):
            for older in reversed(self._indexer.under(known, views.id)):
                before = self._before(older, views.signature, name)
                if before is not None:
                    return before
        return Serving(views, view, found)

    async def _last_step(self, known: Known, source: Source) -> None:
        """What is all but there is waited for, for a moment."""
        reached = self._indexer.nearly(known, source)
        if reached is not None:
            with contextlib.suppress(TimeoutError, DivanError):
                async with asyncio.timeout(LAST_STEP_S_MAX):
                    await asyncio.shield(reached)

    def _before(self, older: Built, now: bytes, name: str) -> Serving | None:
        """The view of an earlier version, if that can answer."""
        if older.signature == now or older.about is None or not is_complete(older):
            return None
        views = Views(orjson.loads(older.about))
        view = views.views.get(name)
        return None if view is None else Serving(views, view, older)

    async def _within(self, began: float, work: Any) -> Any:
        left_s = began + self._limits.find_ms_max / 1000 - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(left_s, 0)):
                return await work
        except TimeoutError:
            raise TookTooLong(_TIMEOUT) from None

    async def head(self, serving: Serving, query: Query) -> Head:
        """How many rows there are, and how many come before the first one."""
        built = serving.built
        if built is None:
            return Head(0, 0)
        whole = all_of(serving.view.part, descending=query.descending)
        stretches = queries.stretches(query, serving.view)
        before = stretches[0].before(whole) if stretches else None
        total: int
        offset: int
        total, offset = await self._readers.run(
            lambda connection: _counts(connection, built.num, serving.view.part, whole, before)
        )
        return Head(total, min(offset + query.skip, total))

    async def rows(
        self, known: Known, serving: Serving, query: Query
    ) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        """(id, ``"key":…,"value":…``) of each row, in pages."""
        if serving.built is None or not query.limit:
            return
        stretches = queries.stretches(query, serving.view)
        reading = _Reading(serving.built.num, stretches, query, self._clock)
        async for page in self._steps(known, serving, reading):
            if page:
                yield page

    async def groups(
        self, known: Known, serving: Serving, query: Query
    ) -> AsyncGenerator[list[Group], None]:
        """(key, value), both as JSON, of each group of rows, in pages."""
        if serving.built is None or not query.limit:
            return
        source = serving.view.reduce
        assert source is not None
        reducer = self._reducer(known, serving, source)
        stretches = queries.stretches(query, serving.view)
        reading = Groups(serving.built.num, stretches, query, reducer)
        async for _ in self._steps(known, serving, reading):
            page = await self._readers.work(reading.reduced)
            if page:
                yield page

    def _reducer(self, known: Known, serving: Serving, source: str) -> Reducer:
        context = f"{known.name}/{serving.views.id}/_view/{serving.view.name}"
        return reducer_of(source, serving.views.program, self._asking, context)

    async def _steps(
        self, known: Known, serving: Serving, reading: Any
    ) -> AsyncGenerator[Any, None]:
        if self._running >= self._limits.finds_max:
            raise Busy("Too many queries are under way; try again shortly.")
        began = self._clock.monotonic()
        self._running += 1
        try:
            while not reading.over:
                found = await self._within(began, self._readers.run(reading.step))
                if not self._is_there(known, serving):
                    raise NotFound("missing")
                yield found
            if self._catalog.find(known.name) != known:
                self._catalog.counters(known)  # raises if it is gone
        finally:
            self._running -= 1

    def _is_there(self, known: Known, serving: Serving) -> bool:
        assert serving.built is not None
        now = self._indexer.find(known, serving.built.signature)
        return now is not None and now.num == serving.built.num


def is_complete(built: Built) -> bool:
    """Has it ever come as far as its database was when it was begun?"""
    return built.seq >= built.fresh


def entries_of(answer: str) -> list[Entry]:
    """The entries of one document, from what its maps emitted."""
    found: list[Entry] = []
    for number, emitted in enumerate(_decode_rows(answer)):
        part = number.to_bytes(PART_BYTES, "big")
        made = [_entry(part, bytes(key), bytes(value)) for key, value in emitted]
        if len({key for key, _, _ in made}) < len(made):
            made.sort(key=lambda entry: (entry[0], raw.order(orjson.loads(parts(entry[1])[1]))))
        found += made
    return found


def _entry(part: bytes, key: bytes, value: bytes) -> tuple[bytes, bytes, float | None]:
    text = b'"key":%b,"value":%b' % (key, value)
    return part + keys.encoded(orjson.loads(key)), text, _number(value)


def _number(value: bytes) -> float | None:
    """The value as SQLite keeps it, if it is a number."""
    if value[0] not in b"-0123456789":
        return None
    number: float = orjson.loads(value)
    return number if isinstance(number, float) or -(2**63) <= number < 2**63 else float(number)


def _counts(
    connection: Connection, built: int, part: bytes, whole: Stretch, before: Stretch | None
) -> tuple[int, int]:
    total = rows.held(connection, built, part)
    if before is None or before.low == before.high:
        return total, 0
    return total, rows.count(connection, built, before.low, before.high)


class _Reading:
    """One query's rows on their way."""

    def __init__(self, built: int, parts: list[Stretch], query: Query, clock: Clock) -> None:
        self._built = built
        self._parts = parts[::-1]
        self._skip = query.skip
        self._left = query.limit
        self._clock = clock
        self._limit = ROWS_MIN

    @property
    def over(self) -> bool:
        return not self._parts or not self._left

    def step(self, connection: Connection) -> list[tuple[str, bytes]]:
        """The next rows."""
        began = self._clock.monotonic()
        page: list[tuple[str, bytes]] = []
        size = 0
        while not self.over and len(page) < self._limit and size < PIECE_BYTES_MAX:
            if self._skip:
                self._pass_over(connection)
            else:
                size += self._read(connection, page)
            if self._clock.monotonic() - began > STEP_S:
                break
        took_s = self._clock.monotonic() - began
        if took_s < STEP_S / 2:
            self._limit = min(self._limit * 2, ROWS_MAX)
        elif took_s > STEP_S:
            self._limit = max(self._limit // 2, ROWS_MIN)
        return page

    def _read(self, connection: Connection, page: list[tuple[str, bytes]]) -> int:
        part = self._parts[-1]
        limit = min(self._limit - len(page), self._left)
        found, is_more = rows.page(
            connection, self._built, part.low, part.high, limit, descending=part.descending
        )
        page += [(doc_id, text) for _, doc_id, _, _, text in found]
        self._left -= len(found)
        if is_more:
            self._parts[-1] = part.behind(found[-1][:3])
        else:
            self._parts.pop()
        return sum([len(text) for *_, text in found])

    def _pass_over(self, connection: Connection) -> None:
        part = self._parts[-1]
        count = min(self._skip, LEAP_ROWS_MAX)
        place = rows.leap(
            connection, self._built, part.low, part.high, count, descending=part.descending
        )
        if place is not None:
            self._skip -= count
            self._parts[-1] = part.behind(place)
            return
        passed = rows.count(connection, self._built, part.low, part.high)
        self._skip = max(self._skip - passed, 0)
        self._parts.pop()
