"""aiocouch against a node and a cluster, used as its own documentation uses it."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiocouch import (
    BadRequestError,
    ConflictError,
    CouchDB,
    Database,
    ForbiddenError,
    NotFoundError,
    PreconditionFailedError,
    UnauthorizedError,
)
from aiocouch.document import Document, SecurityDocument
from aiocouch.event import BaseChangeEvent, ChangedEvent, DeletedEvent

from tests.running import Running

# aiocouch logs in by a way that aiohttp wants to drop one day.
pytestmark = [
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning"),
]

WAIT_S_MAX = 30.0
Scenario = Callable[[CouchDB, Database], Awaitable[None]]


def run(node: Running, name: str, scenario: Scenario) -> None:
    """Run ``scenario`` as the administrator with a database of its own, which is dropped."""

    async def with_database() -> None:
        async with connect(node) as server:
            database = await server.create(name)
            try:
                await asyncio.wait_for(scenario(server, database), WAIT_S_MAX)
            finally:
                await database.delete()

    asyncio.run(with_database())


@contextlib.asynccontextmanager
async def connect(
    node: Running, user: str | None = None, password: str | None = None
) -> AsyncIterator[CouchDB]:
    """A session of ``user``, or of the administrator."""
    name, secret = (node.admin, node.password) if user is None else (user, password)
    async with CouchDB(node.url, user=name, password=secret) as server:
        yield server


def test_databases_are_made_listed_and_deleted(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        assert (await server.info())["couchdb"] == "Welcome"
        await server.check_credentials()
        assert "aio-databases" in await server.keys()
        with pytest.raises(PreconditionFailedError):
            await server.create("aio-databases")
        again = await server.create("aio-databases", exists_ok=True)
        assert (await again.info())["db_name"] == "aio-databases"
        with pytest.raises(BadRequestError):
            await server.create("Not-A-Name")
        with pytest.raises(NotFoundError):
            await server["aio-not-there"]
        other = await server.create("aio-other/one")
        assert (await (await server["aio-other/one"]).info())["doc_count"] == 0
        await other.delete()
        assert "aio-other/one" not in await server.keys()
        with pytest.raises(NotFoundError):
            await other.delete()

    run(couch, "aio-databases", scenario)


def test_documents_are_saved_read_changed_and_deleted(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        doc = await database.create("a/doc žluť", data={"words": ["příliš", "žluťoučký"]})
        assert doc.rev is None
        await doc.save()
        assert doc.rev is not None and doc.rev.startswith("1-")
        read = await database["a/doc žluť"]
        assert read.json == {"words": ["příliš", "žluťoučký"]}
        assert read.rev == doc.rev

        read["more"] = {"n": 1.5, "none": None, "big": 2**53}
        await read.save()
        assert (await database.get("a/doc žluť", rev=doc.rev)).json == doc.json
        assert (await database["a/doc žluť"])["more"] == {"n": 1.5, "none": None, "big": 2**53}
        info = await read.info()
        assert (info["ok"], info["rev"]) == (True, read.rev)
        assert await read.revs() == [read.rev, doc.rev]

        copied = await read.copy("a copy")
        assert copied.etag is not None
        assert (await database.get("a copy", rev=copied.etag)).json == read.json
        await read.delete()
        assert not read.exists
        with pytest.raises(NotFoundError):
            await database["a/doc žluť"]
        assert [key async for key in database.akeys()] == ["a copy"]
        default = await database.get("a/doc žluť", default={"fresh": True})
        await default.save()
        assert (await database["a/doc žluť"]).rev == default.rev
        with pytest.raises(BadRequestError):
            await database.get("a copy", rev="not-a-revision")

    run(couch, "aio-documents", scenario)


def test_a_stale_save_raises_a_conflict_and_loses_nothing(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        first = await database.create("doc", data={"v": 1})
        await first.save()
        mine, theirs = await database["doc"], await database["doc"]
        theirs["v"] = "theirs"
        await theirs.save()
        mine["v"] = "mine"
        with pytest.raises(ConflictError):
            await mine.save()
        with pytest.raises(ConflictError):
            await mine.fetch()
        assert (await database["doc"])["v"] == "theirs"
        with pytest.raises(ConflictError):
            await database.create("doc")
        unaware = Document(database, "doc", data={"v": "unaware"})
        with pytest.raises(ConflictError):
            await unaware.save()
        with pytest.raises(ConflictError):
            await first.delete()

        await mine.fetch(discard_changes=True)
        mine["v"] = "merged"
        await mine.save()
        assert (await database["doc"]).json == {"v": "merged"}
        assert await mine.conflicts() == []

    run(couch, "aio-conflicts", scenario)


def test_conflicts_from_replication_are_listed_and_resolved(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        forged = f"1-{'a' * 32}"
        docs = [{"_id": "doc", "_rev": forged, "side": "forged"}]
        couch.request("POST", "/aio-forged/_bulk_docs", {"docs": docs, "new_edits": False})
        other = f"1-{'b' * 32}"
        docs = [{"_id": "doc", "_rev": other, "side": "other"}]
        couch.request("POST", "/aio-forged/_bulk_docs", {"docs": docs, "new_edits": False})
        doc = await database["doc"]
        assert doc.rev == other
        assert await doc.conflicts() == [forged]
        loser = await database.get("doc", rev=forged)
        assert loser["side"] == "forged"
        await loser.delete()
        assert await doc.conflicts() == []
        assert (await database["doc"]).rev == other

    run(couch, "aio-forged", scenario)


def test_bulk_operations_report_each_document(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        async with database.create_docs() as bulk:
            for number in range(500):
                bulk.create(f"doc{number:03}", data={"n": number})
        assert bulk.ok is not None and len(bulk.ok) == 500
        assert bulk.error == []
        assert all(doc.rev is not None and doc.rev.startswith("1-") for doc in bulk.ok)
        assert len([key async for key in database.akeys()]) == 500
        values = [doc["n"] async for doc in database.values()]
        assert values == list(range(500))

        stale = await database["doc001"]
        async with database.update_docs(["doc000", "doc001", "new"], create=True) as update:
            stale["n"] = "meanwhile"
            await stale.save()
            async for doc in update:
                doc["n"] = "bulk"
        assert update.ok is not None and [doc.id for doc in update.ok] == ["doc000", "new"]
        assert update.error is not None and [doc.id for doc in update.error] == ["doc001"]
        assert (await database["doc001"])["n"] == "meanwhile"
        assert (await database["new"])["n"] == "bulk"

        wanted = ["doc499", "doc002"]
        assert [doc.id async for doc in database.docs(wanted)] == wanted
        prefixed = [key async for key in database.all_docs.ids(prefix="doc01")]
        assert prefixed == [f"doc01{digit}" for digit in range(10)]
        with pytest.raises(NotFoundError):
            [doc async for doc in database.docs(["not-there"])]

    run(couch, "aio-bulk", scenario)


def test_attachments_are_saved_read_and_deleted(couch: Running) -> None:
    text = "žluťoučký kůň\n".encode() * 1000
    # aiohttp warns above 1 MiB of bytes
    binary = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(30_000))

    async def scenario(server: CouchDB, database: Database) -> None:
        doc = await database.create("doc", data={"v": 1})
        await doc.save()
        await doc.attachment("letter.txt").save(text, "text/plain; charset=utf-8")
        await doc.attachment("in/a folder.bin").save(binary, "application/octet-stream")
        read = await database["doc"]
        assert sorted(read["_attachments"]) == ["in/a folder.bin", "letter.txt"]
        for name, data, kind in [
            ("letter.txt", text, "text/plain; charset=utf-8"),
            ("in/a folder.bin", binary, "application/octet-stream"),
        ]:
            attachment = read.attachment(name)
            assert await attachment.exists()
            assert await attachment.fetch() == data
            assert attachment.content_type == kind
        assert not await read.attachment("none").exists()
        with pytest.raises(NotFoundError):
            await read.attachment("none").fetch()

        read["v"] = 2
        await read.save()
        with pytest.raises(ConflictError):
            await doc.attachment("late").save(b"stale", "text/plain")
        assert await read.attachment("letter.txt").fetch() == text
        await read.attachment("letter.txt").delete()
        assert sorted((await database["doc"])["_attachments"]) == ["in/a folder.bin"]

    run(couch, "aio-attachments", scenario)


async def user(server: CouchDB, name: str, roles: list[str]) -> Document:
    """A user whose password is their name; anew if one is left over."""
    users = await server.create("_users", exists_ok=True)
    data = {"name": name, "password": name, "roles": roles, "type": "user"}
    doc = await users.create(f"org.couchdb.user:{name}", exists_ok=True)
    doc.update(data)
    await doc.save()
    return doc


def test_security_decides_who_reads_and_who_writes(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        accounts = [await user(server, "aio-member", []), await user(server, "aio-role", ["staff"])]
        accounts.append(await user(server, "aio-stranger", []))
        fresh = await database.security()
        assert fresh.member_roles == ["_admin"]
        async with SecurityDocument(database) as security:
            security.remove_member_role("_admin")
            security.add_member("aio-member")
            security.add_member_role("staff")
        kept = await database.security()
        assert (kept.members, kept.member_roles) == (["aio-member"], ["staff"])

        for name in ("aio-member", "aio-role"):
            async with connect(couch, name, name) as session:
                await session.check_credentials()
                theirs = await session["aio-security"]
                doc = await theirs.create(f"by-{name}", data={"by": name})
                await doc.save()
                assert (await theirs[f"by-{name}"])["by"] == name
                with pytest.raises(ForbiddenError):
                    await (await theirs.design_doc("app")).save()
                with pytest.raises(ForbiddenError):
                    async with SecurityDocument(theirs) as security:
                        security.add_admin(name)
                with pytest.raises(UnauthorizedError):
                    await session.create("aio-not-theirs")
        async with connect(couch, "aio-stranger", "aio-stranger") as session:
            with pytest.raises(ForbiddenError):
                await Database(session, "aio-security").get("by-aio-member")
            with pytest.raises(ForbiddenError):
                await (await Database(session, "aio-security").create("x", exists_ok=True)).save()
        async with connect(couch, "aio-member", "wrong") as session:
            with pytest.raises(UnauthorizedError):
                await session.check_credentials()
        assert len([key async for key in database.akeys()]) == 2
        for account in accounts:
            await account.delete()

    run(couch, "aio-security", scenario)


def test_changes_are_told_once_each_in_order(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        for number in range(3):
            await (await database.create(f"old{number}")).save()
        old = [event async for event in database.changes()]
        assert sorted(event.id for event in old) == ["old0", "old1", "old2"]

        waiting = asyncio.create_task(first_changes(database, 3, old[-1].sequence))
        await asyncio.sleep(0.2)
        doc = await database.create("live", data={"v": 1})
        await doc.save()
        await (await database["old1"]).delete()
        doc["v"] = 2
        await doc.save()
        seen = await asyncio.wait_for(waiting, 10)
        # "live" may be told in both of its states, or, if the reader is late, in the last alone
        assert isinstance(seen["old1"], DeletedEvent)
        changed = seen["live"]
        assert isinstance(changed, ChangedEvent)
        assert changed.rev == doc.rev
        assert (await changed.doc())["v"] == 2

        rest = [event async for event in database.changes(last_event_id=changed.sequence)]
        # Another node may tell a change twice, but not an old state of it.
        is_alone = len(couch.cluster["nodes"]) == 1
        assert rest == [] or not is_alone
        assert all(event.rev == seen[event.id].rev for event in rest if event.id in seen)
        some = [event async for event in database.changes(include_docs=True, limit=2)]
        assert len(some) == 2

    run(couch, "aio-changes", scenario)


async def first_changes(
    database: Database, revision: int, since: str
) -> dict[str, BaseChangeEvent]:
    """The last event of each document, read until "live" has its second revision."""
    seen: dict[str, BaseChangeEvent] = {}
    async for event in database.changes(feed="continuous", since=since, heartbeat=500):
        seen[event.id] = event
        if event.id == "live" and event.rev.startswith("2-"):
            break
    return seen


def test_queries_by_an_index_of_its_own(couch: Running) -> None:
    async def scenario(server: CouchDB, database: Database) -> None:
        for number in range(30):
            document = await database.create(f"d{number:02}")
            document.update({"n": number, "kind": "even" if number % 2 == 0 else "odd"})
            await document.save()
        made = await database.index({"fields": ["n"]}, name="by-n", ddoc="numbers")
        assert (made["result"], made["id"]) == ("created", "_design/numbers")
        selector = {"n": {"$gt": 3}, "kind": "odd"}
        for limit, last in ((4, 21), (None, 3)):
            found = database.find(selector, limit=limit, sort=[{"n": "desc"}])
            assert [document["n"] async for document in found] == list(range(29, last, -2))
        with pytest.raises(BadRequestError):
            async for _ in database.find({"n": {"$foo": 1}}):
                pass

    run(couch, "aio-find", scenario)
