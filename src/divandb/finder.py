"""Mango queries: planned on the event loop, read and matched on the readers' threads.

A query is a run of short steps. What a step finds is ready to be sent, and is sent before the next
one is taken.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
import orjson

from divandb.catalog import Catalog, Known
from divandb.clock import Clock
from divandb.config import Limits
from divandb.errors import Busy, NotFound, TookTooLong
from divandb.indexer import Indexer, Source
from divandb.mango import index, plan, selector, tree
from divandb.mango.index import Index
from divandb.mango.options import Query, refused
from divandb.mango.plan import Plan
from divandb.mango.sift import sift
from divandb.readers import Readers
from divandb.store import listing, queries
from divandb.store.documents import CONFLICTS
from divandb.store.file import Connection
from divandb.store.indexes import Built, Recipe
from divandb.store.queries import Sieve, Stretch

ROWS_MIN, ROWS_MAX = 64, 4096
"""Documents that a step looks at: more as long as steps are short."""
STEP_S = 0.03
PIECE_BYTES_MAX = 512 * 1024
"""A step ends with the document that passes this."""
DESIGNS_MAX = 10_000
"""Design documents of a database that are looked at for indexes."""
KEPT_MAX = 1000
"""Databases whose indexes are remembered."""
_TIMEOUT = "The request could not be processed in a reasonable amount of time."

Position = tuple[bytes, str]
"""(key, id) of an entry; of the index by id, the key is empty."""


class Found(msgspec.Struct):
    """What a query has come to; whoever asked reads it when all pages have been given."""

    bookmark: str = ""
    keys_examined: int = 0
    docs_examined: int = 0
    returned: int = 0
    warning: str | None = None
    took_ms: float = 0.0


class Finder:
    """Lives on the event loop."""

    def __init__(
        self,
        reading: Connection,
        readers: Readers,
        catalog: Catalog,
        indexer: Indexer,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """``reading`` is the loop's own connection, for design documents."""
        self._reading = reading
        self._readers = readers
        self._catalog = catalog
        self._indexer = indexer
        self._clock = clock
        self._limits = limits
        self._designs: dict[int, tuple[tuple[tuple[str, str], ...], list[Index]]] = {}
        self._running = 0
        indexer.sources.append(self.sources)

    # Indexes

    def indexes(self, known: Known) -> list[Index]:
        """The indexes in a database's design documents, by design document and name."""
        revs = tuple(listing.design_revs(self._reading, known.num, DESIGNS_MAX))
        kept = self._designs.get(known.num)
        if kept is not None and kept[0] == revs:
            return kept[1]
        bodies = listing.bodies(self._reading, known.num, [doc_id for doc_id, _ in revs])
        found = [one for body in bodies for one in index.of_design(orjson.loads(body))]
        found.sort(key=lambda one: (one.ddoc or "", one.name))
        if len(self._designs) >= KEPT_MAX:
            self._designs.clear()
        self._designs[known.num] = (revs, found)
        return found

    def sources(self, known: Known) -> list[Source]:
        """The same for the indexer, each once."""
        found = {one.signature: one for one in self.indexes(known)}
        return [_source(one) for one in found.values()]

    # Queries

    def plan(self, known: Known, query: Query, *, explaining: bool = False) -> Plan:
        """How a query is answered; raises ``BadRequest``."""
        selector.predicate(query.selector)
        return plan.choose(query, self.indexes(known), explaining=explaining)

    async def find(
        self, known: Known, chosen: Plan, found: Found
    ) -> AsyncGenerator[list[bytes], None]:
        """The documents of a query, as JSON, in pages; ``found`` is filled in meanwhile.

        Raises ``Busy``, ``TookTooLong``, ``BadRequest`` for a bad bookmark, ``NotFound`` when the
        database or the index goes meanwhile.
        """
        if self._running >= self._limits.finds_max:
            raise Busy("Too many queries are under way; try again shortly.")
        began = self._clock.monotonic()
        self._running += 1
        try:
            async for page in self._pages(known, chosen, found, began):
                yield page
        finally:
            self._running -= 1
            found.took_ms = (self._clock.monotonic() - began) * 1000
            found.warning = chosen.warning(found.docs_examined, found.returned)

    async def _pages(
        self, known: Known, chosen: Plan, found: Found, began: float
    ) -> AsyncGenerator[list[bytes], None]:
        built = None
        found.bookmark = chosen.query.bookmark
        behind = _behind(chosen)
        if not chosen.is_empty and not chosen.is_by_id:
            built = await self._within(began, self._built(known, chosen))
            if built is None:
                return
        search = _Search(known, chosen, built, behind, found, self._clock.monotonic)
        while not search.over:
            page = await self._within(began, self._readers.run(search.step))
            if built is not None and not self._is_there(known, chosen, built):
                raise NotFound("missing")
            if page:
                yield page
        if self._catalog.find(known.name) != known:
            self._catalog.counters(known)  # raises if it is gone

    async def _within(self, began: float, work: Any) -> Any:
        left_s = began + self._limits.find_ms_max / 1000 - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(left_s, 0)):
                return await work
        except TimeoutError:
            raise TookTooLong(_TIMEOUT) from None

    async def _built(self, known: Known, chosen: Plan) -> Built | None:
        """The index, as far as the query wants it to be."""
        assert chosen.index is not None
        source = _source(chosen.index)
        query = chosen.query
        if query.update is True and not query.stale:
            return await self._indexer.current(known, source)
        if query.update == "lazy":
            self._indexer.begin(known, source)
        return self._indexer.find(known, source.signature)

    def _is_there(self, known: Known, chosen: Plan, built: Built) -> bool:
        assert chosen.index is not None
        now = self._indexer.find(known, chosen.index.signature)
        return now is not None and now.num == built.num


def _source(one: Index) -> Source:
    key_of = one.key_of

    def entries(documents: Sequence[tuple[str, bytes]]) -> list[list[tuple[bytes, None, None]]]:
        made = [key_of(orjson.loads(body)) for _, body in documents]
        return [[] if key is None else [(key, None, None)] for key in made]

    return Source(one.signature, Recipe(entries), one.ddoc or "")


# Bookmarks


def bookmark(chosen: Plan, position: Position) -> str:
    """Where a query may go on; opaque to clients, good on any node."""
    told = msgspec.msgpack.encode((_kind(chosen), *position))
    return base64.urlsafe_b64encode(told).decode().rstrip("=")


def _behind(chosen: Plan) -> Position | None:
    """What a bookmark says; raises ``BadRequest`` for one that is not of this index."""
    text = chosen.query.bookmark
    if not text or chosen.index is None:
        return None
    try:
        told = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        kind, key, doc_id = msgspec.msgpack.decode(told, type=tuple[bytes, bytes, str])
    except (ValueError, msgspec.MsgspecError):
        kind = key = b""
        doc_id = ""
    if kind != _kind(chosen):
        raise refused("invalid_bookmark", f"Invalid bookmark value: {tree.shown(text)}")
    return key, doc_id


def _kind(chosen: Plan) -> bytes:
    assert chosen.index is not None
    way = b"-" if chosen.query.descending else b"+"
    return way if chosen.is_by_id else way + chosen.index.signature[:8]


# On the threads


class _Search:
    """One query on its way: what it has come to, and what is left."""

    def __init__(
        self,
        known: Known,
        chosen: Plan,
        built: Built | None,
        behind: Position | None,
        found: Found,
        monotonic: Callable[[], float],
    ) -> None:
        query = chosen.query
        self._known = known
        self._chosen = chosen
        self._built = built
        self._found = found
        self._monotonic = monotonic
        self._matches = selector.predicate(query.selector)
        self._sieve: Sieve | None = sift(query.selector)
        self._paths = tuple(tree.path_of(field) for field in query.fields)
        self._conflicts = query.conflicts
        self._skip = query.skip
        self._left = query.limit
        self._rows = ROWS_MIN
        self._behind = behind
        low, high = chosen.ids if chosen.is_by_id else ("", None)
        self._stretch: Stretch | None = Stretch(
            low, high, query.descending, behind[1] if behind else None
        )
        self.over = chosen.is_empty or not query.limit

    def step(self, connection: Connection) -> list[bytes]:
        """The next documents, as JSON."""
        began = self._monotonic()
        page = self._by_id(connection) if self._built is None else self._by_key(connection)
        took_s = self._monotonic() - began
        if took_s < STEP_S / 2:
            self._rows = min(self._rows * 2, ROWS_MAX)
        elif took_s > STEP_S:
            self._rows = max(self._rows // 2, ROWS_MIN)
        return page

    def _by_id(self, connection: Connection) -> list[bytes]:
        stretch = self._stretch
        assert stretch is not None
        rows, rest, count = queries.by_id(
            connection, self._known.num, stretch, self._rows, self._sieve
        )
        page: list[bytes] = []
        size = 0
        for doc_id, flags, body in rows:
            made = self._made(connection, doc_id, flags, body)
            if made is None:
                continue
            self._come_to((b"", doc_id))
            if made:
                page.append(made)
                size += len(made)
            if not self._left or size >= PIECE_BYTES_MAX:
                if doc_id is not rows[-1][0] or rest is None:
                    rest = msgspec.structs.replace(stretch, behind=doc_id)
                    count = queries.count_ids(connection, self._known.num, stretch, doc_id)
                break
        self._stretch = rest
        self._examined(count)
        self.over = rest is None or not self._left
        return page

    def _by_key(self, connection: Connection) -> list[bytes]:
        assert self._built is not None
        rows, is_more = queries.by_key(
            connection, self._known.num, self._built.num, self._chosen.span, self._behind,
            self._rows, descending=self._chosen.query.descending,
        )  # fmt: skip
        page: list[bytes] = []
        size = 0
        for key, doc_id, flags, body in rows:
            self._examined(1)
            self._behind = (key, doc_id)
            made = None if flags is None else self._made(connection, doc_id, flags, body)
            if made is None:
                continue
            self._come_to((key, doc_id))
            if made:
                page.append(made)
                size += len(made)
            if not self._left:
                is_more = False
                break
            if size >= PIECE_BYTES_MAX:
                is_more = True
                break
        self.over = not is_more
        return page

    def _examined(self, count: int) -> None:
        self._found.keys_examined += count
        self._found.docs_examined += count

    def _come_to(self, position: Position) -> None:
        self._found.bookmark = bookmark(self._chosen, position)

    def _made(self, connection: Connection, doc_id: str, flags: int, body: bytes) -> bytes | None:
        """A document as it is sent; empty if it is skipped, None if it does not match."""
        document = orjson.loads(body)
        if self._conflicts and flags & CONFLICTS:
            losers = queries.conflicts(connection, self._known.num, doc_id)
            if losers:
                document["_conflicts"] = losers
                body = b""
        if not self._matches(document):
            return None
        if self._skip:
            self._skip -= 1
            return b""
        self._left -= 1
        self._found.returned += 1
        if self._paths:
            return orjson.dumps(index.picked(document, self._paths))
        return body or orjson.dumps(document)
