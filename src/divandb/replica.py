"""Reads: what a node answers from its own file.

Runs on the event loop, on one query-only connection; each call is one short read. Long answers are
made of pages, so that nobody waits long for anybody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from divandb import cursor, revtree
from divandb.catalog import NO_DATABASE, Catalog, Known
from divandb.closings import NONE, Closings
from divandb.cursor import Cursor
from divandb.errors import Busy, NotFound
from divandb.event import of_chunk
from divandb.hot import HotDocuments
from divandb.revtree import Leaf
from divandb.store import (
    blobs,
    changes,
    databases,
    digests,
    documents,
    listing,
    membership,
    registers,
)
from divandb.store.changes import BETWEEN, Lines
from divandb.store.databases import EMPTY_DIGEST, Database
from divandb.store.documents import DELETED, NOTHING_SHOWN, Revision, Row
from divandb.store.file import Connection, Disk, connect
from divandb.store.listing import Page, Span, rest_after
from divandb.store.queries import Sieve
from divandb.vector import Vector, covers

__all__ = [
    "BETWEEN", "DELETED", "Lines", "Page", "Replica", "Revision", "Row", "Sieve", "Span", "Start",
    "Summary", "rest_after",
]  # fmt: skip

Winner = tuple[str, int, bytes]
CHECK_CACHE_BYTES = 2**20
RECEIPTS_BYTES_MAX = 2**20
"""A page of receipts."""


class Start(msgspec.Struct, frozen=True):
    """Where a feed begins: behind ``seq``; ``seen`` filters when the cursor came from another
    numbering.
    """

    seq: int
    seen: dict[int, int] | None = None
    had: dict[int, int] | None = None
    """The vector of a cursor of this numbering: it goes on into the next one."""


class Summary(msgspec.Struct, frozen=True):
    """What a database held at one moment; digests are 32 hex digits (``store.digests``)."""

    docs: int
    tombstones: int
    update_seq: str
    vector: dict[int, int]
    digest: str
    recomputed: str | None = None


class Replica:
    """The reading side of a node."""

    def __init__(
        self, connection: Connection, catalog: Catalog, numbering: int, waiters_max: int,
        hot: HotDocuments, closings: Callable[[], Closings] = lambda: NONE,
    ) -> None:  # fmt: skip
        """``closings`` are all in the file, or more."""
        self.hot = hot
        """Frequently read documents."""
        self._closings = closings
        self._connection = connection
        self._catalog = catalog
        self._numbering = numbering
        self._waiters_max = waiters_max
        self._waiters: dict[int, set[asyncio.Event]] = {}
        self._checking = False

    # Documents

    def winner(self, known: Known, doc_id: str) -> Winner | None:
        """(rev, flags, body) of the winner, the body as it is sent; ``None`` if there is nothing to
        show.
        """
        key = (known.num, doc_id)
        kept = self.hot.get(key)
        if kept is not None:
            return kept
        now = self.hot.now
        found = documents.read_winner(self._connection, known.num, doc_id)
        if found is None or found[1] & NOTHING_SHOWN:
            return None
        self.hot.put(key, found, now)
        return found

    def hottest(self, count: int) -> list[tuple[str, int, str]]:
        """(database, generation, id) of the documents that are read most."""
        living = filter(None, map(self._catalog.find, self._catalog.names()))
        databases = {known.num: known for known in living}
        found = [(databases.get(num), doc_id) for num, doc_id in self.hot.hottest(count)]
        return [(known.name, known.generation, doc_id) for known, doc_id in found if known]

    def warm(self, name: tuple[str, int, str]) -> None:
        """Read a document as if clients wanted it."""
        known = self._catalog.find(name[0])
        if known is not None and known.generation == name[1]:
            self.hot.expect((known.num, name[2]))
            self.winner(known, name[2])

    def row(self, known: Known, doc_id: str) -> Row:
        """The document's whole state; its tree is empty when there is none."""
        return documents.read_row(self._connection, known.num, doc_id)

    def rows(self, known: Known, doc_ids: Iterable[str]) -> list[Row]:
        """The states of several documents, in order."""
        return [documents.read_row(self._connection, known.num, doc_id) for doc_id in doc_ids]

    def revision(self, known: Known, row: Row, rev: str) -> Revision | None:
        """One revision, if it is in the tree and its body has not been compacted away."""
        return documents.read_revision(self._connection, known.num, row, rev)

    def available(self, known: Known, row: Row, leaf: Leaf) -> list[tuple[str, str]]:
        """A leaf's ancestry, newest first: (revision, ``available``, ``missing``, ``deleted``)."""
        held = documents.bodies(self._connection, known.num, row.id)
        held.update({shown.rev: shown.deleted for shown in row.document.shown()})
        status = {None: "missing", True: "deleted", False: "available"}
        return [(rev, status[held.get(rev)]) for rev in leaf.revs()]

    def missing_revs(
        self, known: Known, doc_id: str, revs: list[str]
    ) -> tuple[list[str], list[str]]:
        """Those revisions the tree does not have, and leaves they may descend from."""
        shown = self.row(known, doc_id).document.shown()
        missing = revtree.missing_revs(shown, revs)
        return missing, revtree.possible_ancestors(shown, missing) if missing else []

    # Listings

    def page(
        self,
        known: Known,
        span: Span,
        limit: int,
        *,
        descending: bool = False,
        include_docs: bool = False,
    ) -> Page:
        """The next rows of `_all_docs`; none at the end of the span."""
        return listing.page(
            self._connection,
            known.num,
            span,
            limit,
            descending=descending,
            include_docs=include_docs,
        )

    def ids(self, known: Known, span: Span, limit: int, *, descending: bool = False) -> list[str]:
        """The next ids of living documents."""
        return listing.ids(self._connection, known.num, span, limit, descending=descending)

    def leap(
        self, known: Known, span: Span, limit: int, *, descending: bool = False
    ) -> tuple[int, str]:
        """How many the next ``limit`` living documents are, and the last one's id."""
        return listing.leap(self._connection, known.num, span, limit, descending=descending)

    def counters(self, known: Known) -> Database:
        """Sequence, counts and sizes as of the last commit."""
        return self._catalog.counters(known)

    def contained(self) -> Vector:
        """What the file contains: the loop may not have been told of all of it."""
        return changes.vector(self._connection)

    def file_bytes(self) -> int:
        """The size of the node's file."""
        pages: Any = self._connection.pragma("page_count")
        size: Any = self._connection.pragma("page_size")
        return int(pages * size)

    def summary(self, known: Known) -> Summary:
        """Counts, vector and digest, read in one snapshot; raises ``NotFound`` if it is gone."""
        with self._connection:
            found = self._summary(self._connection, _living(self._connection, known))
        return found

    async def checked(self, known: Known, pause: Callable[[], Awaitable[None]]) -> Summary:
        """The same with the digest recomputed from all rows, in one snapshot.

        ``pause`` is awaited after each piece of the work. Reads on a connection of its own, so that
        others see what is committed meanwhile. Raises ``Busy`` while another check is under way.
        """
        if self._checking:
            raise Busy("Another check is under way.")
        self._checking = True
        try:
            with closing(_another(self._connection)) as connection, connection:
                database = _living(connection, known)
                digest = EMPTY_DIGEST
                for number in digests.pieces(connection, database):
                    digest = digests.combined(digest, number)
                    await pause()
                found = self._summary(connection, database)
        finally:
            self._checking = False
        return msgspec.structs.replace(found, recomputed=digests.shown(database, digest))

    def _summary(self, connection: Connection, database: Database) -> Summary:
        contained = changes.vector(connection)
        return Summary(
            database.docs,
            database.tombstones,
            f"{database.seq}{self._suffix(database.generation, contained)}",
            self._closings().compact(contained),
            digests.shown(database, database.digest),
        )

    # Registers and attachments

    def local(self, known: Known, doc_id: str) -> bytes | None:
        """A `_local` document's body."""
        return registers.value(self._connection, known.num, registers.LOCAL, doc_id)

    def locals(
        self, known: Known, span: Span, limit: int, *, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """(id, body) of the next `_local` documents; none at the end of the span."""
        return listing.local_page(self._connection, known.num, span, limit, descending=descending)

    def settings(self) -> dict[str, bytes]:
        """The node's stored settings by key."""
        return dict(registers.scan(self._connection, registers.NODE, registers.SETTING))

    def removed(self) -> set[str]:
        """The names of nodes that were removed from the cluster."""
        return membership.removed(self._connection)

    def receipts(self, after: str) -> tuple[list[bytes], str | None]:
        """(receipts of writes that came back with former owners, each a JSON object; behind which
        the next ones are).
        """
        return registers.page(
            self._connection, registers.NODE, registers.RECEIPT, after, RECEIPTS_BYTES_MAX
        )

    def blob(self, name: bytes, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """An attachment's stored bytes, a chunk at a time; raises ``LookupError`` if they are not
        here.
        """
        return blobs.read(self._connection, name, start, end)

    def has_blob(self, name: bytes) -> bool:
        """Are these bytes here? An attachment's may come after its document."""
        return blobs.find(self._connection, name) is not None

    def blob_event(self, name: bytes, index: int) -> bytes | None:
        """A chunk of an attachment as the Write Event in which nodes take it from each other;
        ``None`` if it is not here.
        """
        chunk = blobs.chunk(self._connection, name, index)
        return None if chunk is None else of_chunk(chunk)

    # Changes

    def start(self, known: Known, since: str) -> Start:
        """Where a feed with this ``since`` begins; raises ``BadRequest`` for a malformed one."""
        if since == "now":
            return Start(self.counters(known).seq)
        number, foreign = cursor.parse(since)
        if foreign is None:
            return Start(0)
        if foreign.generation != known.generation:
            return Start(0)
        whole = self._closings().expand(foreign.vector)
        foreign = msgspec.structs.replace(foreign, vector=whole)
        if foreign.numbering == self._numbering and self._gave(known, number, foreign):
            return Start(number, None, foreign.vector)
        place = changes.place_of(self._connection, self.counters(known), foreign, self._closings)
        return Start(changes.seq_of(place), foreign.vector)

    def _gave(self, known: Known, number: int, foreign: Cursor) -> bool:
        """Did this file give that cursor? Not if it has been put back to an earlier state since."""
        seq = self.counters(known).seq
        return number <= seq and covers(changes.vector(self._connection), foreign.vector)

    def sequence(self, known: Known, seq: int, had: Vector | None = None) -> str:
        """The portable cursor behind change ``seq``, for a reader who had ``had`` before."""
        # Read before the counters: what it covers has its place by then. So the cursor behind the
        # newest change says that everything was seen, and no other node gives any of it again.
        held = changes.vector(self._connection)
        database = self.counters(known)
        # Only as far as this file goes: a cursor with more in it would not be known as given here
        # (``_gave``), and a feed that goes on from it would begin anew each time.
        had = {origin: min(oseq, held.get(origin, 0)) for origin, oseq in (had or {}).items()}
        vector = changes.vector_behind(self._connection, database, seq, held, had, self._closings)
        return f"{seq}{self._suffix(known.generation, vector)}"

    def suffix(self, known: Known, seq: int) -> str:
        """What follows the number in the cursors of the changes behind ``seq``: less exact."""
        database = self.counters(known)
        vector = changes.vector_at(self._connection, database, seq, self._closings)
        return self._suffix(known.generation, vector)

    def _suffix(self, generation: int, vector: Vector) -> str:
        few = self._closings().compact(vector)
        return cursor.suffix(Cursor(self._numbering, generation, few))

    def lines(
        self,
        known: Known,
        after: int,
        upto: int,
        limit: int,
        *,
        include_docs: bool,
        descending: bool,
        all_leaves: bool,
    ) -> Lines | None:
        """The changes in (after, upto] as feed lines; ``None`` when ``changed`` must be asked."""
        return changes.lines(
            self._connection, known.place | after, (known.place | upto) + 1, limit,
            self.suffix(known, after),
            include_docs=include_docs, descending=descending, all_leaves=all_leaves,
        )  # fmt: skip

    def changed(
        self, known: Known, after: int, upto: int, limit: int, *, descending: bool = False
    ) -> list[Row]:
        """The next documents last changed in (after, upto], in that order; none at the end."""
        low, high = known.place | after, (known.place | upto) + 1
        return changes.rows(self._connection, low, high, limit, descending=descending)

    def sifted(
        self,
        known: Known,
        after: int,
        upto: int,
        limit: int,
        sieve: Sieve,
        *,
        descending: bool = False,
        all_leaves: bool = False,
    ) -> tuple[list[Row], int | None]:
        """Those of the next ``limit`` documents last changed in (after, upto] that pass a sieve,
        and the change that this goes to; ``None``: it is the end.
        """
        low, high = known.place | after, (known.place | upto) + 1
        found, place = changes.sifted(
            self._connection, low, high, limit, sieve, descending=descending, all_leaves=all_leaves
        )
        return found, None if place is None else place - known.place

    def changed_at(self, known: Known, seq: int) -> Row | None:
        """The document whose last change is this one, if there is one."""
        return changes.row_at(self._connection, known.place | seq)

    def seqs_of(self, known: Known, doc_ids: Iterable[str]) -> list[int]:
        """The last changes of these documents, in no order; unknown ones are left out."""
        return [
            place - known.place for place in changes.places_of(self._connection, known.num, doc_ids)
        ]

    def seqs_in(self, known: Known, low: str, high: str) -> list[int]:
        """The last changes of the documents with ids from ``low`` to below ``high``, unordered."""
        return [
            place - known.place
            for place in changes.places_in(self._connection, known.num, low, high)
        ]

    def unseen(self, rows: list[Row], seen: dict[int, int]) -> list[Row]:
        """Those rows that hold a write which the reader's vector does not cover."""
        return list(changes.unseen(rows, seen))

    def pending(self, known: Known, seq: int) -> int:
        """How many changes lie behind ``seq``."""
        return changes.pending(self._connection, self.counters(known), known.place | seq)

    # Waiting for changes

    def watch(self, known: Known) -> asyncio.Event:
        """An event that each change of the database sets, until ``unwatch``; raises ``Busy``."""
        if sum(map(len, self._waiters.values())) >= self._waiters_max:
            raise Busy("Too many feeds are open.")
        event = asyncio.Event()
        self._waiters.setdefault(known.num, set()).add(event)
        return event

    def unwatch(self, known: Known, event: asyncio.Event) -> None:
        """The feed has ended."""
        waiting = self._waiters.get(known.num, set())
        waiting.discard(event)
        if not waiting:
            self._waiters.pop(known.num, None)

    def is_watched(self, nums: Iterable[int]) -> bool:
        """Does anybody watch one of these databases? May be asked on any thread."""
        return any(num in self._waiters for num in nums)

    def wake(self, nums: Iterable[int]) -> None:
        """These databases changed: their feeds go on."""
        for num in nums:
            for event in self._waiters.get(num, ()):
                event.set()

    def wake_all(self) -> None:
        """The node stops: feeds end."""
        self.wake(list(self._waiters))


def _living(connection: Connection, known: Known) -> Database:
    database = databases.load(connection, known.num)
    if database is None or database.dropped:
        raise NotFound(NO_DATABASE)
    return database


def _another(connection: Connection) -> Connection:
    """One more reading connection to the same file."""
    disk = Disk(Path(connection.filename), connection.open_vfs)
    return connect(disk, readonly=True, cache_bytes=CHECK_CACHE_BYTES)
