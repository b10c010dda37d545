"""Views: kept as indexes, queried on the readers' threads, reduced as they are asked for.

    views of a design document  ──►  one index (`indexer`), whose entries a worker makes
    rows                        ──►  a page at a time, `store.rows`
    reductions                  ──►  in SQL where that is exact, else of rows, a group at a time

While a new version of a design document is being built, the one before answers: it is kept current
beside it, until the node's group switches (``switching``, ``cluster.versions``).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import orjson

from divandb.catalog import Catalog, Known
from divandb.clock import Clock
from divandb.cluster.versions import Version
from divandb.config import Limits
from divandb.designs import Design, Designs
from divandb.errors import Busy, DivanError, NotFound, TookTooLong
from divandb.indexer import Indexer, Source, Used
from divandb.readers import Readers
from divandb.reducing import Group, Groups, Reducer, reducer_of
from divandb.store import rows
from divandb.store.file import Connection
from divandb.store.indexes import Built, Entry, Recipe
from divandb.store.rows import PIECE_BYTES_MAX
from divandb.switching import Build, Verdict
from divandb.views import query as queries
from divandb.views import raw
from divandb.views.design import PART_BYTES, View, Views
from divandb.views.engine import Engine
from divandb.views.query import Query
from divandb.views.ranges import Encode, Stretch, all_of
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
    is_before: bool = False
    """Is it the version before the design document's?"""


class _Coming(msgspec.Struct):
    """A version that is to take the place of another one."""

    num: int
    design_id: str
    verdict: Verdict


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
        self.is_alone: Callable[[], bool] = lambda: True
        """Has this node nobody to switch with?"""
        self.is_last: Callable[[], bool] = lambda: False
        """Does it build a new version when others have done so?"""
        self._coming: dict[Version, _Coming] = {}
        indexer.sources.append(self.sources)

    # What is kept

    def sources(self, known: Known) -> list[Source]:
        """The indexes that a database's views should have, each once: those in use first, so that
        they are current while others are built.
        """
        found: dict[bytes, Source] = {}
        coming: list[Source] = []
        kept = [one.views for one in self._designs.of(known).values() if one.views.is_kept]
        self._indexer.disuse(known, {views.id for views in kept})
        for views in kept:
            before = self._before(known, views)
            if before is not None:
                found[before.signature] = self._source(before)
            coming.append(self._source(views, is_held=self._is_held(known, views)))
        return list({**found, **{one.signature: one for one in coming}}.values())

    def _source(self, views: Views, *, is_held: bool = False) -> Source:
        engine, program = self._building, views.program
        encoders = [one.encoded for one in views.maps]

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
            return [entries_of(answer, encoders) for answer in answers]

        recipe = Recipe(
            entries,
            designs=views.option("include_design"),
            conflicts=True,
            local_seq=views.option("local_seq"),
            part_bytes=PART_BYTES,
            about=views.about,
        )
        return Source(views.signature, recipe, views.id, is_held)

    def info(self, known: Known, design: Design) -> dict[str, Any]:
        """What `_info` tells of a design document's index."""
        views = design.views
        built = self._indexer.find(known, views.signature)
        before = self._before(known, views)
        return {
            "signature": views.signature.hex(),
            "language": views.language,
            "update_seq": built.seq if built else 0,
            "updater_running": self._indexer.is_at_work(known, views.signature),
            "ready": built is not None and built.is_complete,
            "in_use": (before.signature if before is not None else views.signature).hex(),
        }

    # Versions

    def _before(self, known: Known, views: Views) -> Views | None:
        """The version that is in use beside a new one, if there is any."""
        used = self._indexer.in_use(known, views.id)
        own = self._indexer.find(known, views.signature)
        if used is not None and used.signature == views.signature:
            if used.about != views.about and own is not None:  # names or reduce functions changed
                self._indexer.use(known, views.id, own, views.about)
            return None
        before = _views_of(used) if used is not None else None
        if own is not None and own.is_complete and (before is None or self.is_alone()):
            self._indexer.use(known, views.id, own, views.about)
            return None
        version = Version(known.name, known.generation, views.signature)
        if before is not None and version not in self._coming:
            self._coming[version] = _Coming(known.num, views.id, Verdict(not self.is_last()))
        return before

    def _is_held(self, known: Known, views: Views) -> bool:
        coming = self._coming.get(Version(known.name, known.generation, views.signature))
        return coming is not None and not coming.verdict.may_build

    def _current(self, version: Version) -> tuple[Known, Design] | None:
        """The design document that a version is of, if it is still that version."""
        coming = self._coming[version]
        known = self._catalog.find(version.database)
        if known is None or known.num != coming.num:
            return None
        design = self._designs.of(known).get(coming.design_id)
        if design is None or design.views.signature != version.signature:
            return None
        return known, design

    def coming(self) -> list[Version]:
        """Versions that are to take the place of another one here."""
        for version in list(self._coming):
            found = self._current(version)
            if found is None or self._before(found[0], found[1].views) is None:
                del self._coming[version]
        return list(self._coming)

    def build_of(self, version: Version) -> Build:
        """How far a version is on this node."""
        known = self._catalog.find(version.database)
        if known is None or known.generation != version.generation:
            return Build()
        built = self._indexer.find(known, version.signature)
        return Build() if built is None else Build(built.seq, built.is_complete)

    def judge(self, version: Version, verdict: Verdict) -> None:
        """The group's state has been looked at: build, wait, or switch."""
        coming = self._coming.get(version)
        if coming is None:
            return
        before, coming.verdict = coming.verdict, verdict
        if verdict.is_switched:
            self._switch(version)
        elif verdict.may_build != before.may_build:
            self._indexer.changed({coming.num})

    def _switch(self, version: Version) -> None:
        """All design documents of these views have them answer, once that is stored."""
        found = self._current(version)
        own = self._indexer.find(found[0], version.signature) if found is not None else None
        if found is not None and own is not None:
            for design in self._designs.of(found[0]).values():
                if design.views.signature == version.signature:
                    self._indexer.use(found[0], design.id, own, design.views.about)

    def switching(self) -> list[dict[str, object]]:
        """Versions on their way, for `divandb status`."""
        return [self._shown(version) for version in self.coming()]

    def _shown(self, version: Version) -> dict[str, object]:
        coming, found = self._coming[version], self._current(version)
        before = self._before(found[0], found[1].views) if found is not None else None
        build = self.build_of(version)
        return {
            "database": version.database,
            "design_document": coming.design_id,
            "in_use": before.signature.hex() if before is not None else None,
            "next": version.signature.hex(),
            "ready": build.is_ready,
            "held": not coming.verdict.may_build,
            "waits_for": list(coming.verdict.waits_for),
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
        insists: bool = False,
    ) -> Serving:
        """The view of that name, as far as the query wants it to be brought on. ``insists``: of the
        design document as it is now, however long that takes.

        Raises ``NotFound``, ``FunctionFailed``, ``CompilationError``, ``TookTooLong``.
        """
        views, is_before = design.views, False
        view = views.view(name)
        before = self._before(known, views)
        waits = update is True and (insists or self._may_wait(known))
        if before is not None and not waits and name in before.views:
            views, view, is_before = before, before.views[name], True
        source = self._source(views)
        if update is True:
            began = self._clock.monotonic()
            built = await self._within(began, self._indexer.current(known, source))
            return Serving(views, view, built, is_before)
        if update == "lazy":
            self._indexer.begin(known, source)
        elif stable:
            await self._last_step(known, source)
        return Serving(views, view, self._indexer.find(known, views.signature), is_before)

    def _may_wait(self, known: Known) -> bool:
        """Does a query that says nothing wait for a new version?"""
        if self.is_alone():
            return True
        counters = self._catalog.counters(known)
        return counters.docs + counters.tombstones <= self._limits.view_wait_docs_max

    async def _last_step(self, known: Known, source: Source) -> None:
        """What is all but there is waited for, for a moment."""
        reached = self._indexer.nearly(known, source)
        if reached is not None:
            with contextlib.suppress(TimeoutError, DivanError):
                async with asyncio.timeout(LAST_STEP_S_MAX):
                    await asyncio.shield(reached)

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
        reading = Groups(serving.built.num, stretches, query, reducer, serving.view.map.encoded)
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


def _views_of(used: Used) -> Views | None:
    """The views that answered before a design document was changed, if their rows are made today as
    they were then.
    """
    found = _views_by_text(used.about)
    return found if found.signature == used.signature else None


@lru_cache(maxsize=64)
def _views_by_text(about: bytes) -> Views:
    return Views(orjson.loads(about))


def entries_of(answer: str, encoders: Sequence[Encode]) -> list[Entry]:
    """The entries of one document, from what its maps emitted; each map's keys are encoded in its
    own way.
    """
    found: list[Entry] = []
    for number, (emitted, encoded) in enumerate(zip(_decode_rows(answer), encoders, strict=True)):
        part = number.to_bytes(PART_BYTES, "big")
        made = [_entry(part, encoded, bytes(key), bytes(value)) for key, value in emitted]
        if len({key for key, _, _ in made}) < len(made):
            made.sort(key=lambda entry: (entry[0], raw.encoded(orjson.loads(parts(entry[1])[1]))))
        found += made
    return found


def _entry(
    part: bytes, encoded: Encode, key: bytes, value: bytes
) -> tuple[bytes, bytes, float | None]:
    text = b'"key":%b,"value":%b' % (key, value)
    return part + encoded(orjson.loads(key)), text, _number(value)


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
