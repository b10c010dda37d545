"""Feeds of changes: read a page at a time, framed for the wire, and followed as they happen.

    Wanted, Filter    what a request asks for
    Reader            goes through the changes, a bounded read at a time
    Joined, Continuous, Events        the frames: one JSON object, one a line, server-sent events
    Feed              reads, sends, and waits if it is live

A change keeps its place until its document changes again, so a reader that goes on from any ``seq``
misses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import msgspec
import orjson

from divandb.auth import policy
from divandb.auth.policy import UserContext
from divandb.catalog import Known
from divandb.config import Limits
from divandb.errors import NotFound
from divandb.httpd import elsewhere, pieces, render, respond
from divandb.httpd.pieces import Pieces
from divandb.httpd.services import Services
from divandb.mango.index import picked
from divandb.replica import BETWEEN, DELETED, Lines, Replica, Revision, Row, Sieve, Start
from divandb.revtree import Attachment, Leaf

PAGE_ROWS = 1000
SLICE_ROWS = 250
"""Rows of a slice that is looked at row by row."""
SIFTED_ROWS = 1000
"""Rows of a slice that SQL has looked at before."""
LOOKUP_IDS_MAX = 1000
"""More ids than this are not looked up one by one: the changes are gone through."""
NORMAL_BEAT_S = 5.0
"""A normal feed whose filter shows nothing sends a newline after this time."""
LIMIT_MAX = 10**15
_SEQ_AT = len(b'{"seq":')


class Wanted(msgspec.Struct, frozen=True):
    """What a request asks for."""

    feed: str = "normal"
    since: str = "0"
    limit: int = LIMIT_MAX
    descending: bool = False
    all_leaves: bool = False
    include_docs: bool = False
    conflicts: bool = False
    attachments: bool = False
    att_encoding_info: bool = False
    heartbeat_ms: int | None = None
    timeout_ms: int | None = None
    seq_interval: int = 1
    filter: str = ""

    @property
    def live(self) -> bool:
        """Does the feed wait for changes?"""
        return self.feed != "normal"

    @property
    def options(self) -> render.Options:
        """What documents carry besides what is stored."""
        return render.Options(
            conflicts=self.conflicts,
            attachments=self.attachments,
            att_encoding_info=self.att_encoding_info,
        )

    @property
    def beats(self) -> bool:
        """Does silence end with a heartbeat? Otherwise it is the feed's end."""
        return self.heartbeat_ms is not None or not self.live

    def silence_s(self, limits: Limits) -> float:
        """The longest time without a byte: then comes a heartbeat, or the end."""
        most = limits.feed_timeout_ms_max
        if not self.live:
            return NORMAL_BEAT_S
        if self.heartbeat_ms is not None:
            return min(max(self.heartbeat_ms, limits.feed_heartbeat_ms_min), most) / 1000
        return (most if self.timeout_ms is None else min(self.timeout_ms, most)) / 1000


class Script(Protocol):
    """A filter that is asked about many documents at once."""

    async def takes(self, documents: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Which of these documents, (id, JSON), are shown."""
        ...


class Filter(msgspec.Struct, frozen=True):
    """Which changes a feed shows: those of ``ids``, of design documents, of what ``matches``, of
    what a ``script`` takes.
    """

    ids: frozenset[str] | None = None
    designs: bool = False
    matches: Callable[[dict[str, Any]], bool] | None = None
    sieve: Sieve | None = None
    """What ``matches`` may be true for, in SQL (`mango.sift`)."""
    script: Script | None = None
    fields: tuple[tuple[str, ...], ...] = ()
    """The paths of what is left of each document that is shown; nothing stands for all of it."""

    def takes(self, doc_id: str) -> bool:
        """May changes of this document be shown?"""
        if self.ids is not None:
            return doc_id in self.ids
        return not self.designs or doc_id.startswith("_design/")

    @property
    def everything(self) -> bool:
        """Is nothing left out?"""
        unfiltered = self.matches is None and self.script is None
        return self.ids is None and not self.designs and unfiltered


# Reading


class Reader:
    """Goes through the changes of one database, a slice at a time, and knows how far it is.

    ``seq`` is the change that it has come to, ``left`` how many more rows it may show.
    """

    def __init__(
        self, replica: Replica, known: Known, wanted: Wanted, chosen: Filter, start: Start
    ) -> None:
        self._replica = replica
        self._known = known
        self._wanted = wanted
        self._chosen = chosen
        self._seen = start.seen
        self._had = start.seen or start.had
        self._low = start.seq
        self._high = start.seq
        self._order: list[int] | None = None
        self._suffix = replica.suffix(known, start.seq)
        self.seq = start.seq
        self.left = wanted.limit
        self._judged: tuple[int | None, list[tuple[Row, list[str]]]] | None = None

    def extend(self) -> None:
        """Take in what has changed since; raises ``NotFound`` when the database is gone."""
        newest = self._replica.counters(self._known).seq
        if self._wanted.descending:
            self._low, self.seq = 0, newest
        self._high = newest
        self._order = self._looked_up()

    def slice(self, frame: "Frame") -> Iterator[bytes] | None:
        """The next changes, framed; empty if none is shown, ``None`` at the end.

        One bounded read; raises ``NotFound`` when the database is gone.
        """
        if not self.left or self._low >= self._high:
            return None
        page = self._page()
        return self._rows(frame) if page is None else self._framed(page, frame)

    async def judge(self) -> None:
        """Ask the script about the next slice; raises what it raises, and ``NotFound``."""
        script = self._chosen.script
        if script is None or not self.left or self._low >= self._high:
            return
        end, candidates = self._candidates()
        rows = [(row, self._shown_revs(row)) for row in candidates]
        asked = [(row, rev) for row, revs in rows for rev in revs]
        bodies = [(row.id, self._body(row, rev)) for row, rev in asked]
        taken = await script.takes([(doc_id, body) for doc_id, body in bodies if body])
        verdicts = iter(taken)
        passed = {
            (row.seq, rev)
            for (row, rev), (_, body) in zip(asked, bodies, strict=True)
            if body and next(verdicts)
        }
        shown = [(row, [rev for rev in revs if (row.seq, rev) in passed]) for row, revs in rows]
        self._judged = (end, shown)

    # Pages of lines

    def _page(self) -> Lines | None:
        """A page of lines made in SQL; ``None`` where row by row is the only way."""
        wanted = self._wanted
        if not self._chosen.everything or self._seen is not None:
            return None
        if wanted.include_docs and (wanted.attachments or wanted.att_encoding_info):
            return None
        return self._replica.lines(
            self._known, self._low, self._high, min(PAGE_ROWS, self.left),
            include_docs=wanted.include_docs,
            descending=wanted.descending,
            all_leaves=wanted.all_leaves or (wanted.include_docs and wanted.conflicts),
        )  # fmt: skip

    def _framed(self, page: Lines, frame: "Frame") -> Iterator[bytes]:
        if not page.count:
            self._end_range()
            return
        self._come_to(page.place - self._known.place)
        text = page.text if self._wanted.descending else self._ended(page.text)
        text = text if self._wanted.seq_interval == 1 else self._spaced(text)
        self.left -= page.count
        yield frame.page(text)

    def _ended(self, text: bytes) -> bytes:
        """The lines, with the whole cursor in the last: some clients go on from there."""
        at = text.rfind(BETWEEN)
        begin = (at + len(BETWEEN) if at >= 0 else 0) + _SEQ_AT
        return text[:begin] + self._whole_seq(self.seq) + text[text.index(b",", begin) :]

    def _whole_seq(self, seq: int) -> bytes:
        return orjson.dumps(self._replica.sequence(self._known, seq, self._had))

    def _spaced(self, text: bytes) -> bytes:
        """The lines with a seq only in each ``seq_interval``-th."""
        lines = text.split(BETWEEN)
        for index, line in enumerate(lines):
            if (self.left - index) % self._wanted.seq_interval:
                lines[index] = b'{"seq":null' + line[line.index(b",", _SEQ_AT) :]
        return BETWEEN.join(lines)

    def _come_to(self, seq: int) -> None:
        self.seq = seq
        if self._wanted.descending:
            self._high = seq - 1
        else:
            self._low = seq

    def _end_range(self) -> None:
        if self._wanted.descending:
            self._high = self._low
        else:
            self._low = self.seq = self._high

    # Row by row

    def _looked_up(self) -> list[int] | None:
        """The changes that a filter by id can show, in reading order, if that is less work."""
        changes = self._high - self._low
        ids = self._chosen.ids
        if ids is not None and len(ids) < min(changes, LOOKUP_IDS_MAX):
            seqs = self._replica.seqs_of(self._known, ids)
        elif self._chosen.designs and changes > SLICE_ROWS:
            seqs = self._replica.seqs_in(self._known, "_design/", "_design0")
        else:
            return None
        inside = (seq for seq in seqs if self._low < seq <= self._high)
        return sorted(inside, reverse=self._wanted.descending)

    def _batch(self) -> Iterator[Row]:
        """The next rows, still to be gone through."""
        if self._order is not None:
            batch = self._order[:SLICE_ROWS]
            rows = (self._replica.changed_at(self._known, seq) for seq in batch)
            return (row for row in rows if row is not None)
        return iter(
            self._replica.changed(
                self._known, self._low, self._high, SLICE_ROWS, descending=self._wanted.descending
            )
        )

    def upcoming(self) -> list[Attachment]:
        """The attachments of the documents in the next slice."""
        if not self.left or self._low >= self._high:
            return []
        sieve = self._chosen.sieve
        rows = self._batch() if sieve is None else self._sifted(sieve)[1]
        shown = (row for row in rows if self._shown_revs(row))
        winners = (row.winner for row in islice(shown, self.left))
        return [att for leaf in winners if leaf is not None for att in leaf.attachments]

    def _sifted(self, sieve: Sieve) -> tuple[int | None, list[Row]]:
        wanted = self._wanted
        rows, reached = self._replica.sifted(
            self._known, self._low, self._high, SIFTED_ROWS, sieve,
            descending=wanted.descending, all_leaves=wanted.all_leaves,
        )  # fmt: skip
        if reached is None and not wanted.descending:
            reached = self._high
        return reached, rows

    def _candidates(self) -> tuple[int | None, Iterable[Row]]:
        """(the change that they go to, where that is not the last of them; the next rows)"""
        sieve = self._chosen.sieve
        if sieve is None:
            return None, self._unsifted()
        reached, rows = self._sifted(sieve)
        if reached is None and not rows:
            self._end_range()
        return reached, rows

    def _unsifted(self) -> Iterator[Row]:
        found = self._batch()
        if self._order is not None:
            is_end = not self._order
            self._order = self._order[SLICE_ROWS:]
            if is_end:
                self._end_range()
            return found
        rows = list(found)
        if not rows:
            self._end_range()
        return iter(rows)

    def _rows(self, frame: "Frame") -> Iterator[bytes]:
        self._suffix = self._replica.suffix(self._known, self._low)
        return pieces.batched(self._row_pieces(frame))

    def _row_pieces(self, frame: "Frame") -> Iterator[bytes]:
        reached, shown = self._shown()
        for row, revs in shown:
            self._come_to(row.seq)
            is_last = row is shown[-1][0] and not self._wanted.descending
            seq = self._seq_json(row.seq, is_last)
            self.left -= 1
            yield frame.before()
            yield from self._line(row, seq, revs)
            yield frame.after(seq)
        if self.left and reached is not None:
            self._come_to(reached)

    def _shown(self) -> tuple[int | None, list[tuple[Row, list[str]]]]:
        """(how far the slice goes, those of its rows that are shown, with their revisions)"""
        end, rows = self._found()
        reached: int | None = None
        shown: list[tuple[Row, list[str]]] = []
        for row, revs in rows:
            reached = row.seq
            if revs:
                shown.append((row, revs))
            if len(shown) == self.left:
                return reached, shown
        return end if end is not None else reached, shown

    def _found(self) -> tuple[int | None, Iterable[tuple[Row, list[str]]]]:
        if self._judged is not None:
            judged, self._judged = self._judged, None
            return judged
        end, rows = self._candidates()
        return end, ((row, self._shown_revs(row)) for row in rows)

    def _shown_revs(self, row: Row) -> list[str]:
        if not self._chosen.takes(row.id):
            return []
        if self._seen is not None and not self._replica.unseen([row], self._seen):
            return []
        shown = row.document.shown()
        leaves = shown if self._wanted.all_leaves else shown[:1]
        return [leaf.rev for leaf in leaves if self._is_match(row, leaf)]

    def _is_match(self, row: Row, leaf: Leaf) -> bool:
        if self._chosen.matches is None:
            return True
        body = self._body(row, leaf.rev)
        return bool(body) and self._chosen.matches(orjson.loads(body))

    def _body(self, row: Row, rev: str) -> bytes:
        """A revision as filters see it; nothing if it is gone."""
        try:
            revision = self._replica.revision(self._known, row, rev)
        except LookupError:
            return b""  # written and compacted meanwhile: the document has a newer change
        if revision is None:
            return b""
        conflicts = self._wanted.conflicts and rev == row.rev
        options = render.Options(conflicts=conflicts)
        return render.whole(self._replica, self._known, row, revision, options)

    def _seq_json(self, seq: int, is_last: bool) -> bytes:
        if self.left % self._wanted.seq_interval:
            return b"null"
        if is_last:
            return self._whole_seq(seq)
        return b'"%d%b"' % (seq, self._suffix.encode())

    def _line(self, row: Row, seq: bytes, revs: list[str]) -> Iterator[bytes]:
        changes = orjson.dumps([{"rev": rev} for rev in revs])
        deleted = b',"deleted":true' if row.flags & DELETED else b""
        head = b'{"seq":%b,"id":%b,"changes":%b%b'
        yield head % (seq, orjson.dumps(row.id), changes, deleted)
        if self._wanted.include_docs:
            yield b',"doc":'
            yield from self._document(row)
        yield b"}"

    def _document(self, row: Row) -> Iterator[bytes]:
        attachments = row.winner.attachments if row.winner else ()
        winner = Revision(row.rev, bool(row.flags & DELETED), row.body, attachments)
        made = render.pieces(self._replica, self._known, row, winner, self._wanted.options)
        if not self._chosen.fields:
            return made
        whole = orjson.loads(b"".join(made))
        return iter([orjson.dumps(picked(whole, self._chosen.fields))])

    # The end

    def last_seq(self) -> str:
        """The cursor with which the reader may go on: joined with what it had seen before."""
        try:
            return self._replica.sequence(self._known, self.seq, self._had)
        except NotFound:
            return f"{self.seq}{self._suffix}"

    def pending(self) -> int:
        """How many changes lie behind, shown or not."""
        try:
            if not self._wanted.descending:
                return self._replica.pending(self._known, self.seq)
            everything = self._replica.pending(self._known, 0)
            return max(0, everything - self._replica.pending(self._known, self._high))
        except NotFound:
            return 0


# Frames


class Frame(Protocol):
    """How changes are put on the wire. ``page`` takes lines joined by ``BETWEEN``."""

    media_type: str
    head: bytes
    beat: bytes

    def page(self, text: bytes) -> bytes:
        """A page of changes."""
        ...

    def before(self) -> bytes:
        """What comes before a single change."""
        ...

    def after(self, seq: bytes) -> bytes:
        """What comes after a single change with this seq."""
        ...

    def end(self, last_seq: str, pending: int) -> bytes:
        """The end of the feed."""
        ...


class Joined:
    """One JSON object with a change a line: normal and longpoll."""

    media_type = respond.JSON
    head = b'{"results":[\n'
    beat = b"\n"

    def __init__(self) -> None:
        self._begun = False

    def before(self) -> bytes:
        """A comma behind the change before."""
        begun, self._begun = self._begun, True
        return BETWEEN if begun else b""

    def page(self, text: bytes) -> bytes:
        """The lines as they are."""
        return self.before() + text

    def after(self, seq: bytes) -> bytes:
        """Nothing."""
        return b""

    def end(self, last_seq: str, pending: int) -> bytes:
        """The array's end, and a line for the rest."""
        return b'\n],\n"last_seq":%b,"pending":%d}\n' % (orjson.dumps(last_seq), pending)


class Continuous:
    """A JSON object a line."""

    media_type = respond.JSON
    head = b""
    beat = b"\n"

    def before(self) -> bytes:
        """Nothing."""
        return b""

    def page(self, text: bytes) -> bytes:
        """The lines without commas."""
        return text.replace(BETWEEN, b"\n") + b"\n"

    def after(self, seq: bytes) -> bytes:
        """The line's end."""
        return b"\n"

    def end(self, last_seq: str, pending: int) -> bytes:
        """The last line."""
        return b'{"last_seq":%b,"pending":%d}\n' % (orjson.dumps(last_seq), pending)


class Events:
    """Server-sent events: a browser takes them up again with the id of the last."""

    media_type = "text/event-stream"
    head = b""
    beat = b"event: heartbeat\ndata: \n\n"

    def before(self) -> bytes:
        """The event's beginning."""
        return b"data: "

    def page(self, text: bytes) -> bytes:
        """An event for each line."""
        lines = text.split(BETWEEN)
        seqs = [line[_SEQ_AT : line.index(b",", _SEQ_AT)] for line in lines]
        events = [b"data: " + line + self.after(seq) for line, seq in zip(lines, seqs, strict=True)]
        return b"".join(events)

    def after(self, seq: bytes) -> bytes:
        """The event's id."""
        return b"\nid: " + seq + b"\n\n"

    def end(self, last_seq: str, pending: int) -> bytes:
        """Nothing: the browser comes back by itself."""
        return b""


FRAMES: dict[str, Callable[[], Frame]] = {
    "normal": Joined,
    "longpoll": Joined,
    "continuous": Continuous,
    "eventsource": Events,
}


# Feeds


class Feed:
    """One request's feed: reads, sends, and waits if it is live."""

    def __init__(
        self,
        services: Services,
        user: UserContext,
        known: Known,
        wanted: Wanted,
        reader: Reader,
        frame: Frame,
        is_to_end: Callable[[], bool],
    ) -> None:
        """``is_to_end``: does the node stop, or the connection?"""
        self._services = services
        self._is_to_end = is_to_end
        self._user = user
        self._replica: Replica = services.replica
        self._known = known
        self._wanted = wanted
        self._reader = reader
        self._frame = frame
        self._silence_s = wanted.silence_s(services.limits)
        self._silent_until = 0.0
        self._over = False

    async def pieces(self) -> Pieces:
        """The whole answer; raises ``Busy`` before its first piece if too many feeds wait."""
        changed = self._replica.watch(self._known) if self._wanted.live else None
        try:
            yield self._sent(self._frame.head)
            async for piece in self._read():
                yield piece
            if changed is not None:
                async for piece in self._follow(changed):
                    yield piece
            yield self._frame.end(self._reader.last_seq(), self._reader.pending())
        finally:
            if changed is not None:
                self._replica.unwatch(self._known, changed)

    def _may_read(self) -> bool:
        """Is the user still a member? Who is put out while a feed is open learns no more."""
        now = self._services.catalog.find(self._known.name)
        return now is None or policy.is_member(now.security, self._user)

    async def _read(self) -> AsyncIterator[bytes]:
        """All changes that there are now."""
        if not self._may_read():
            self._over = True
            return
        try:
            self._reader.extend()
            while (framed := await self._next()) is not None:
                for piece in framed:
                    yield self._sent(piece)
                if self._wanted.beats and self._now() >= self._silent_until:
                    yield self._sent(self._frame.beat)
                # Neither a fast client nor a filter that shows nothing makes this wait: others
                # must get their turn all the same.
                await asyncio.sleep(0)
        except NotFound:
            self._over = True

    async def _next(self) -> Iterator[bytes] | None:
        """The next slice, once its script has spoken, and the bytes that it sends are here; raises
        ``Busy``, ``NotFound``.
        """
        await self._reader.judge()
        if self._wanted.include_docs and self._wanted.attachments:
            await elsewhere.awaited(self._services, self._reader.upcoming())
        return self._reader.slice(self._frame)

    async def _follow(self, changed: asyncio.Event) -> AsyncIterator[bytes]:
        """What changes from now on."""
        if not self._is_finished() and self._reader.left == self._wanted.limit:
            # Nothing was sent yet: some clients take an answer for begun with its first byte.
            yield b"\n"
        while not self._is_finished():
            if not await _is_set_within(changed, self._silent_until - self._now()):
                if not self._wanted.beats:
                    return
                yield self._sent(self._frame.beat)
                continue
            # Cleared before reading, so that what comes meanwhile is read the next time.
            changed.clear()
            async for piece in self._read():
                yield piece

    def _is_finished(self) -> bool:
        wanted, left = self._wanted, self._reader.left
        if self._over or wanted.descending or self._is_to_end():
            return True
        return left < wanted.limit if wanted.feed == "longpoll" else left == 0

    def _now(self) -> float:
        return self._services.clock.monotonic()

    def _sent(self, piece: bytes) -> bytes:
        self._silent_until = self._now() + self._silence_s
        return piece


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    # Also when it is set: changes that a filter hides must not put off the end.
    if seconds <= 0:
        return False
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
