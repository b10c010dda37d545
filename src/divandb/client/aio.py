"""The client for asyncio: thin, what it decides is in ``calls``, ``sender`` and ``nodes``."""

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Self

import httpx

from divandb.client import calls, driving, wire
from divandb.client.calls import Listing, Place, Saved
from divandb.client.connections import AsyncConnections
from divandb.client.content import Fields, SecurityMembers
from divandb.client.errors import ClientError, ConflictError, NotFoundError, ServerError
from divandb.client.feed import Change, Feed, Wish
from divandb.client.nodes import Node
from divandb.client.options import Options
from divandb.client.sender import Line
from divandb.client.tokens import Session
from divandb.client.wire import Answer, Fault, Json, Rest, Send, Steps, T
from divandb.clock import Clock, Rng, SystemClock, SystemRng

DEFAULTS = Options()


class Driver:
    """Does what the core wants done."""

    def __init__(self, line: Line, transport: httpx.AsyncBaseTransport | None) -> None:
        self._sender = line.sender
        self._options = line.sender.options
        self._http = httpx.AsyncClient(
            transport=transport or AsyncConnections(self._options), **driving.settings()
        )
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False

    async def run(self, steps: Steps[T]) -> T:
        """Carry them out to their end."""
        if self._looking is None and self._sender.is_choosing:
            self._looking = asyncio.create_task(self._look())
        return await self._steps(steps)

    async def _look(self) -> None:
        while not self._is_closed:
            with contextlib.suppress(ClientError):
                await self._steps(self._sender.keep_looking())
            await asyncio.sleep(self._options.probe_every_s)

    async def _steps(self, steps: Steps[T]) -> T:
        found: Answer | Fault | None = None
        with contextlib.closing(steps):
            while True:
                try:
                    effect = steps.send(found)
                except StopIteration as done:
                    result: T = done.value
                    return result
                if isinstance(effect, Rest):
                    await asyncio.sleep(effect.s)
                    found = None
                else:
                    found = await self._send(effect)

    async def _send(self, effect: Send) -> Answer | Fault:
        if self._is_closed:
            raise ClientError("The client is closed.")
        request = self._http.build_request(
            effect.method, effect.url, headers=dict(effect.headers), content=effect.body,
            timeout=driving.timeout(self._options, effect.wait),
        )  # fmt: skip
        try:
            response = await self._http.send(request, stream=True)
            if effect.streams and response.status_code < 400:
                return Answer(response.status_code, response.headers, b"", response)
            body = driving.Collected(self._options)
            try:
                async for part in response.aiter_bytes():
                    body.add(part)
            finally:
                await response.aclose()
        except httpx.HTTPError as problem:
            return driving.fault_of(problem)
        return Answer(response.status_code, response.headers, body.whole())

    async def close(self) -> None:
        """Let go of all connections."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._http.aclose()


class AsyncClient:
    """A cluster. See docs/client.md for what is promised; ``Options`` for all arguments by name.

    Every call raises ``ClientError``.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        user: str | None = None,
        password: str | None = None,
        *,
        options: Options = DEFAULTS,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
        **changes: Any,
    ) -> None:
        """``urls``: of one node, of several, or one for all. ``changes`` go over ``options``.

        Raises ``ValueError`` for a bad URL or option.
        """
        self._line = driving.begun(
            urls, user, password, options, changes, clock or SystemClock(), rng or SystemRng()
        )
        self._driver = Driver(self._line, transport)
        self._is_whole = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. A session that was taken from a client leaves them open."""
        if self._is_whole:
            await self._driver.close()

    # How it asks

    def session(self, token: str | None = None) -> "AsyncClient":
        """The same cluster over the same connections, with a session of its own: it begins with
        nothing, or with the ``token`` of another one.
        """
        line, sender = self._line, self._line.sender
        return self._asking(Line(sender, Session(token), line.concern, line.max_staleness_ms))

    def using(
        self, *, concern: str | None = None, max_staleness_ms: int | None = None
    ) -> "AsyncClient":
        """The same session, with another write concern or bound on the age of answers."""
        line = self._line
        age_ms = line.max_staleness_ms if max_staleness_ms is None else max_staleness_ms
        return self._asking(Line(line.sender, line.session, concern or line.concern, age_ms))

    def _asking(self, line: Line) -> "AsyncClient":
        made = AsyncClient.__new__(AsyncClient)
        made._line, made._driver, made._is_whole = line, self._driver, False
        return made

    @property
    def token(self) -> str | None:
        """The session's, for another process to go on with; ``None`` without sessions."""
        return None if self._line.session is None else self._line.session.token

    @property
    def is_behind(self) -> bool:
        """Was the last answer without something that this session wrote, because no node that lives
        has it?
        """
        return self._line.session is not None and self._line.session.is_behind

    # The cluster

    async def refresh(self) -> None:
        """See now who the members are and how far each is; it happens by itself, too."""
        await self._driver.run(self._line.sender.look())

    @property
    def nodes(self) -> list[Node]:
        """The members, as this client knows them."""
        return self._line.sender.nodes.members()

    async def info(self) -> Json:
        """What ``GET /`` answers."""
        return await self._driver.run(calls.info(self._line, "/"))

    async def check_credentials(self) -> None:
        """Raises ``UnauthorizedError`` if user and password are not right."""
        await self._driver.run(calls.check_login(self._line))

    # Databases

    async def create(self, name: str, *, exists_ok: bool = False, **params: Any) -> "AsyncDatabase":
        """Make a database; ``PreconditionFailedError`` if there is one, unless that is ok."""
        db = self.database(name)
        steps = calls.create_database(self._line, db.path, params, exists_ok=exists_ok)
        await self._driver.run(steps)
        return db

    def database(self, name: str) -> "AsyncDatabase":
        """A database that is known to be there."""
        return AsyncDatabase(self._driver, self._line, name)

    def __getitem__(self, name: str) -> "_Existing":
        """``await client["recipes"]``: raises ``NotFoundError`` if there is no such database."""
        return _Existing(self.database(name))

    async def exists(self, name: str) -> bool:
        """Is there such a database?"""
        return await self._driver.run(calls.exists(self._line, self.database(name).path))

    async def keys(self) -> list[str]:
        """The names of all databases; for server admins."""
        return await self._driver.run(calls.names(self._line))

    async def drop(self, name: str) -> None:
        """Delete a database with all that is in it."""
        await self.database(name).delete()


class _Existing:
    """A database, awaited."""

    def __init__(self, db: "AsyncDatabase") -> None:
        self._db = db

    def __await__(self) -> Generator[Any, None, "AsyncDatabase"]:
        return self._looked().__await__()

    async def _looked(self) -> "AsyncDatabase":
        await self._db.info()
        return self._db


class AsyncDatabase:
    """One database."""

    def __init__(self, driver: Driver, line: Line, name: str) -> None:
        self._driver = driver
        self._line = line
        self.name = name
        self.path = f"/{wire.segment(name)}"

    @property
    def id(self) -> str:
        """The database's name."""
        return self.name

    async def info(self) -> Json:
        """What ``GET /{db}`` answers."""
        return await self._driver.run(calls.info(self._line, self.path))

    async def delete(self) -> None:
        """Delete the database with all that is in it."""
        await self._driver.run(calls.drop(self._line, self.path))

    # Documents

    async def create(
        self, id: str | None = None, *, exists_ok: bool = False, data: Json | None = None
    ) -> "AsyncDocument":
        """A new document, to be saved; with ``exists_ok`` the one that is there, if there is one.

        Without an id it gets one. Raises ``ConflictError`` if there is one and that is not ok.
        """
        doc_id = id or self._line.sender.new_id()
        if id is not None:
            with contextlib.suppress(NotFoundError):
                doc = await self.get(doc_id)
                if not exists_ok:
                    raise ConflictError(409, "conflict", f"There is a document {doc_id!r}.")
                return doc
        return AsyncDocument(self, doc_id, data)

    async def get(
        self, id: str, *, default: Json | None = None, rev: str | None = None, **params: Any
    ) -> "AsyncDocument":
        """A document; raises ``NotFoundError`` if there is none, unless there is a ``default``."""
        doc = AsyncDocument(self, id, default)
        try:
            await doc.fetch(discard_changes=True, rev=rev, **params)
        except NotFoundError:
            if default is None:
                raise
        return doc

    def __getitem__(self, id: str) -> "_Got":
        """``await db["goulash"]`` is ``await db.get("goulash")``."""
        return _Got(self, id)

    async def exists(self, id: str) -> bool:
        """Is there such a document?"""
        path = f"{self.path}/{wire.document(id)}"
        return await self._driver.run(calls.exists(self._line, path))

    async def save(self, doc: Json) -> str:
        """Store a dictionary with ``_id``, and with ``_rev`` if it replaces a revision; its new
        revision. Without ``_id`` it gets one. Raises ``ConflictError``.
        """
        doc.setdefault("_id", self._line.sender.new_id())
        rev = await self._driver.run(calls.save(self._line, self.path, doc["_id"], doc))
        doc["_rev"] = rev
        return rev

    @contextlib.asynccontextmanager
    async def open(self, id: str, *, create: bool = False) -> AsyncIterator["AsyncDocument"]:
        """Open, change, save: at the end of the block it is saved if it was changed.

        With ``create`` a new one if there is none. Raises ``ConflictError`` if somebody else was
        faster, and ``NotFoundError``.
        """
        doc = await self.get(id, default={} if create else None)
        yield doc
        await doc.save()

    async def change(
        self, id: str, function: Callable[["AsyncDocument"], object], *, create: bool = False,
        tries_max: int = 5,
    ) -> "AsyncDocument":  # fmt: skip
        """Read, have ``function`` change it, save; all over again if somebody else was faster."""
        for left in reversed(range(tries_max)):
            doc = await self.get(id, default={} if create else None)
            function(doc)
            try:
                await doc.save()
                return doc
            except ConflictError:
                if not left:
                    raise
        raise ValueError("tries_max must be greater than 0")

    async def docs(
        self, ids: Sequence[str] | None = None, *, create: bool = False, prefix: str | None = None,
        include_ddocs: bool = False, **params: Any,
    ) -> AsyncIterator["AsyncDocument"]:  # fmt: skip
        """Documents, all or those of ``ids`` or of ids that begin with ``prefix``."""
        view = self.all_docs
        async for doc in view.docs(
            ids, create=create, prefix=prefix, include_ddocs=include_ddocs, **params
        ):
            yield doc

    async def values(self, **params: Any) -> AsyncIterator["AsyncDocument"]:
        """All documents."""
        async for doc in self.docs(**params):
            yield doc

    async def akeys(self, **params: Any) -> AsyncIterator[str]:
        """The ids of all documents."""
        async for key in self.all_docs.akeys(**params):
            yield key

    # Many at once

    async def save_all(self, docs: Sequence[Json]) -> list[Saved]:
        """Store many, each accepted or refused by itself; new revisions are put into them."""
        for doc in docs:
            doc.setdefault("_id", self._line.sender.new_id())
        found = await self._driver.run(calls.save_all(self._line, self.path, docs))
        for doc, saved in zip(docs, found, strict=True):
            if saved.rev is not None:
                doc["_rev"] = saved.rev
        return found

    @contextlib.asynccontextmanager
    async def create_docs(self, ids: Sequence[str] = ()) -> AsyncIterator["AsyncBulk"]:
        """New documents, stored together at the end of the block."""
        bulk = AsyncBulk(self)
        for doc_id in ids:
            bulk.create(doc_id)
        yield bulk
        await bulk.save()

    @contextlib.asynccontextmanager
    async def update_docs(
        self, ids: Sequence[str] = (), *, create: bool = False
    ) -> AsyncIterator["AsyncBulk"]:
        """These documents, stored together at the end of the block as far as they were changed."""
        bulk = AsyncBulk(self)
        if ids:
            async for doc in self.docs(ids, create=create):
                bulk.append(doc)
        yield bulk
        await bulk.save()

    # Listings and queries

    @property
    def all_docs(self) -> "AsyncView":
        """`_all_docs`."""
        return AsyncView(self, f"{self.path}/_all_docs", "\U0010fffe", {})

    def view(self, ddoc: str, name: str, **params: Any) -> "AsyncView":
        """A view of a design document, with parameters for all that is asked of it."""
        short = wire.segment(ddoc.removeprefix("_design/"))
        path = f"{self.path}/_design/{short}/_view/{wire.segment(name)}"
        return AsyncView(self, path, "\uffff", params)

    async def find(
        self, selector: Json, *, limit: int | None = None, **params: Any
    ) -> AsyncIterator["AsyncDocument"]:
        """Documents that fit, page by page; with ``fields`` only these members of them."""
        question = {"selector": selector, **params}
        bookmark: str | None = question.pop("bookmark", None)
        left = limit
        while left is None or left > 0:
            steps = calls.find_page(self._line, self.path, question, bookmark, left)
            found, bookmark = await self._driver.run(steps)
            for members in found:
                doc = AsyncDocument(self, members.get("_id", ""))
                doc.read(members)
                yield doc
            left = None if left is None else left - len(found)
            if bookmark is None:
                return

    async def explain(self, selector: Json, **params: Any) -> Json:
        """How a query would be carried out."""
        question = {"selector": selector, **params}
        return await self._driver.run(calls.explain(self._line, self.path, question))

    async def index(self, index: Json, **params: Any) -> Json:
        """Make an index: ``{"fields": […]}``; ``name`` and ``ddoc`` as parameters."""
        return await self._driver.run(
            calls.index(self._line, self.path, {"index": index, "type": "json", **params})
        )

    async def indexes(self) -> list[Json]:
        """All indexes."""
        found = await self._driver.run(calls.info(self._line, f"{self.path}/_index"))
        listed: list[Json] = found["indexes"]
        return listed

    async def drop_index(self, ddoc: str, name: str) -> None:
        """Remove an index."""
        await self._driver.run(calls.drop(self._line, calls.index_path(self.path, ddoc, name)))

    # Changes

    async def changes(
        self, *, since: str = "0", live: bool = False, include_docs: bool = False,
        filter: str | None = None, selector: Json | None = None,
        doc_ids: Sequence[str] | None = None, **params: Any,
    ) -> AsyncIterator[Change]:  # fmt: skip
        """What has changed since then, each document at its last change, at least once; ``live``:
        and what will. It goes on at another node when one dies. ``since`` takes any ``seq``, or
        ``now``.
        """
        feed = Feed(
            self._line, self.path,
            Wish(since, live, include_docs, filter, selector, doc_ids, params),
        )  # fmt: skip
        while not feed.is_done and not live:
            for change in await self._driver.run(feed.page()):
                yield change
        while live:
            async with contextlib.aclosing(self._connected(feed)) as changes:
                async for change in changes:
                    yield change

    async def _connected(self, feed: Feed) -> AsyncGenerator[Change, None]:
        """What comes over one connection."""
        stream, node = await self._driver.run(feed.connect())
        why, is_fault = "it ended", False
        try:
            async for data in stream.aiter_bytes():
                for change in feed.take(data):
                    yield change
        except httpx.HTTPError as problem:
            why, is_fault = repr(problem), True
        finally:
            await stream.aclose()
        await asyncio.sleep(feed.broke(node, why, is_fault=is_fault))

    # Access

    async def security(self) -> "AsyncSecurity":
        """Who may do what."""
        found = await self._driver.run(calls.info(self._line, f"{self.path}/_security"))
        return AsyncSecurity(self, found)

    async def set_security(self, value: Mapping[str, Any]) -> None:
        """Say who may do what; the last one who says so wins."""
        await self._driver.run(calls.put(self._line, f"{self.path}/_security", dict(value)))


class _Got:
    """A document, awaited."""

    def __init__(self, db: AsyncDatabase, doc_id: str) -> None:
        self._db = db
        self._id = doc_id

    def __await__(self) -> Generator[Any, None, "AsyncDocument"]:
        return self._db.get(self._id).__await__()


class AsyncDocument(Fields):
    """A document of a database."""

    def __init__(self, db: AsyncDatabase, id: str, data: Json | None = None) -> None:
        super().__init__(id, data)
        self._db = db

    async def fetch(
        self, *, discard_changes: bool = False, rev: str | None = None, **params: Any
    ) -> None:
        """Read it again; raises ``ConflictError`` if it was changed here, ``NotFoundError``."""
        if self.is_dirty and not discard_changes:
            raise ConflictError(409, "conflict", f"{self.id!r} has changes that are not saved.")
        db = self._db
        self.read(
            await db._driver.run(calls.get(db._line, db.path, self.id, {"rev": rev, **params}))
        )

    async def save(self) -> str | None:
        """Store it; its revision. Nothing is sent if it was not changed. Raises
        ``ConflictError`` if somebody else was faster: fetch it and change it again.
        """
        if self.is_dirty:
            db = self._db
            self.stored(await db._driver.run(calls.save(db._line, db.path, self.id, self)))
        return self.rev

    async def delete(self) -> str:
        """Delete it as it was read; the revision of the deletion. Raises ``ConflictError``."""
        db = self._db
        members = {"_id": self.id, "_rev": self.rev, "_deleted": True}
        rev = await db._driver.run(calls.save(db._line, db.path, self.id, members))
        self.read({**members, "_rev": rev})
        return rev

    async def copy_to(self, new_id: str, new_rev: str | None = None) -> "AsyncDocument":
        """Copy it, as it is on the server, with its attachments; the copy."""
        db = self._db
        rev = await db._driver.run(calls.copy(db._line, db.path, self.id, new_id, new_rev))
        return await db.get(new_id, rev=rev)

    async def conflicts(self) -> list[str]:
        """Revisions that lost against this one and wait for somebody who merges them."""
        db = self._db
        steps = calls.get(db._line, db.path, self.id, {"conflicts": True})
        found: list[str] = (await db._driver.run(steps)).get("_conflicts", [])
        return found

    async def revs(self) -> list[str]:
        """The revisions that led to this one, the newest first."""
        db = self._db
        return await db._driver.run(calls.history(db._line, db.path, self.id, self.rev))

    def attachment(self, name: str) -> "AsyncAttachment":
        """One of its attachments, whether it is there or not."""
        return AsyncAttachment(self._db, self, name)


class AsyncAttachment:
    """One attachment of a document."""

    def __init__(self, db: AsyncDatabase, doc: AsyncDocument, name: str) -> None:
        self._db = db
        self._doc = doc
        self.name = name
        self.content_type: str | None = None
        """Once it was read or stored."""

    @property
    def _path(self) -> str:
        return calls.attachment_path(self._db.path, self._doc.id, self.name, self._doc.rev)

    async def exists(self) -> bool:
        """Is it there?"""
        return await self._db._driver.run(calls.exists(self._db._line, self._path))

    async def fetch(self) -> bytes:
        """Its bytes; raises ``NotFoundError``."""
        steps = calls.get_attachment(self._db._line, self._path)
        data, self.content_type = await self._db._driver.run(steps)
        return data

    async def stream(self) -> AsyncIterator[bytes]:
        """Its bytes, piece by piece. When the node dies meanwhile it raises ``ClientError``."""
        steps = calls.open_attachment(self._db._line, self._path)
        stream = await self._db._driver.run(steps)
        try:
            async for part in stream.aiter_bytes():
                yield part
        except httpx.HTTPError as problem:
            raise ClientError(f"{self._path} broke off: {problem!r}") from None
        finally:
            await stream.aclose()

    async def save(self, data: bytes | AsyncIterable[bytes], content_type: str) -> None:
        """Store it; the document has another revision then. A stream is sent once and not
        repeated.
        """
        steps = calls.put_attachment(self._db._line, self._path, data, content_type)
        rev = await self._db._driver.run(steps)
        self.content_type = content_type
        await self._doc.fetch(discard_changes=True, rev=rev)

    async def delete(self) -> None:
        """Remove it; the document has another revision then."""
        rev = await self._db._driver.run(calls.delete_attachment(self._db._line, self._path))
        await self._doc.fetch(discard_changes=True, rev=rev)


class AsyncSecurity(SecurityMembers):
    """A database's `_security`."""

    def __init__(self, db: AsyncDatabase, members: Json) -> None:
        super().__init__(members)
        self._db = db

    async def save(self) -> None:
        """Say so; the last one who says so wins."""
        await self._db.set_security(self)


class AsyncBulk:
    """Documents that are stored together. Each is accepted or refused by itself: see ``error``."""

    def __init__(self, db: AsyncDatabase) -> None:
        self._db = db
        self._docs: list[AsyncDocument] = []
        self.response: list[Saved] = []
        """What became of those that were sent, in their order."""
        self.ok: list[AsyncDocument] = []
        self.error: dict[str, ServerError] = {}
        """By the document's id."""

    def create(self, id: str | None = None, *, data: Json | None = None) -> AsyncDocument:
        """Another new document."""
        return self.append(AsyncDocument(self._db, id or self._db._line.sender.new_id(), data))

    def append(self, doc: AsyncDocument) -> AsyncDocument:
        """Another document."""
        self._docs.append(doc)
        return doc

    def __iter__(self) -> Generator[AsyncDocument, None, None]:
        yield from self._docs

    def __aiter__(self) -> AsyncIterator[AsyncDocument]:
        return _each(self._docs)

    async def save(self) -> None:
        """Store those that were changed."""
        due = [doc for doc in self._docs if doc.is_dirty]
        if not due:
            return
        self.response = await self._db._driver.run(
            calls.save_all(self._db._line, self._db.path, due)
        )
        for doc, saved in zip(due, self.response, strict=True):
            if saved.error is not None:
                self.error[doc.id] = saved.error
            elif saved.rev is not None:
                doc.stored(saved.rev)
                self.ok.append(doc)


async def _each(docs: Iterable[AsyncDocument]) -> AsyncIterator[AsyncDocument]:
    for doc in docs:
        yield doc


class AsyncView:
    """`_all_docs` or a view. Parameters are Python values: ``startkey=["a", 1]``."""

    def __init__(self, db: AsyncDatabase, path: str, last: str, params: Mapping[str, Any]) -> None:
        self._db = db
        self._path = path
        self._last = last
        self._params = dict(params)

    def _listing(self, params: Mapping[str, Any], keys: Sequence[Any] | None = None) -> Listing:
        return Listing(self._path, {**self._params, **params}, keys)

    async def get(self, **params: Any) -> Json:
        """The whole answer: ``rows``, ``total_rows``, ``offset``."""
        return await self._db._driver.run(calls.rows(self._db._line, self._listing(params)))

    async def post(self, keys: Sequence[Any], **params: Any) -> Json:
        """The whole answer, for these keys."""
        return await self._db._driver.run(calls.rows(self._db._line, self._listing(params, keys)))

    async def rows(self, keys: Sequence[Any] | None = None, **params: Any) -> AsyncIterator[Json]:
        """The rows, page by page; in one request with keys, grouped, or with ``limit``."""
        place: Place | None = None
        listing = self._listing(params, keys)
        while True:
            steps = calls.page(self._db._line, listing, place)
            found, place = await self._db._driver.run(steps)
            for row in found:
                yield row
            if place is None:
                return

    def __aiter__(self) -> AsyncIterator[Json]:
        return self.rows()

    async def akeys(self, **params: Any) -> AsyncIterator[Any]:
        """The keys of the rows."""
        async for row in self.rows(**params):
            if "error" not in row:
                yield row["key"]

    async def avalues(self, **params: Any) -> AsyncIterator[Any]:
        """The values of the rows."""
        async for row in self.rows(**params):
            if "error" not in row:
                yield row["value"]

    async def aitems(self, **params: Any) -> AsyncIterator[tuple[Any, Any]]:
        """(key, value) of the rows."""
        async for row in self.rows(**params):
            if "error" not in row:
                yield row["key"], row["value"]

    async def ids(
        self, ids: Sequence[Any] | None = None, *, prefix: str | None = None, **params: Any
    ) -> AsyncIterator[str]:
        """The ids of the rows' documents: all, or those of these keys, or of a prefix."""
        asked = calls.prefixed(params, prefix, self._last)
        async for row in self.rows(ids, **asked):
            if "error" not in row:
                yield row["id"]

    async def docs(
        self, ids: Sequence[Any] | None = None, *, create: bool = False, prefix: str | None = None,
        include_ddocs: bool = False, **params: Any,
    ) -> AsyncIterator[AsyncDocument]:  # fmt: skip
        """The rows' documents. With ``create`` a new one for each key that has none; without it
        such a key raises ``NotFoundError``.
        """
        if prefix is not None and (ids is not None or create):
            raise ValueError("prefix does not go with ids or create")
        asked = {**calls.prefixed(params, prefix, self._last), "include_docs": True}
        async for row in self.rows(ids, **asked):
            found = calls.doc_of(
                row, is_wanted=ids is not None, create=create, include_ddocs=include_ddocs
            )
            if found is not None:
                doc = AsyncDocument(self._db, found[0])
                if found[1]:
                    doc.read(found[1])
                yield doc
