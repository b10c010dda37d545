"""The Python client with a real cluster: closest nodes, dead nodes, sessions, changes."""

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from divandb.client import (
    AsyncClient,
    AsyncDatabase,
    Client,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PreconditionFailedError,
    UnauthorizedError,
)
from tests.running import Cluster, clustered
from tests.system.delay import Detour, FarNode, far

WAIT_S_MAX = 30.0
BUSY_S = 2.0
"""Of writes on either side of a fault."""
WRITERS = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two masters with a replica each; tests leave it in order."""
    folder = tmp_path_factory.mktemp("cluster")
    with clustered(folder, masters=2, replicas=1, DIVANDB_ZONE="here") as own:
        yield own


def connected(cluster: Cluster, **changes: Any) -> AsyncClient:
    changes = {"probe_every_s": 0.2, **changes}
    url = changes.pop("url", cluster.url)
    return AsyncClient(url, cluster.admin, cluster.password, **changes)


@contextlib.asynccontextmanager
async def opened(cluster: Cluster, **changes: Any) -> AsyncIterator[AsyncDatabase]:
    """A database of its own, over a client that has measured all nodes."""
    async with connected(cluster, **changes) as client:
        db = await client.create(f"db-{uuid4().hex[:12]}")
        await client.refresh()
        yield db


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


# --- Calls


def test_what_users_of_a_client_expect(cluster: Cluster) -> None:
    async def body() -> None:
        async with opened(cluster) as db:
            client = connected(cluster)
            await client.check_credentials()
            assert db.name in await client.keys() and await client.exists(db.name)
            with pytest.raises(PreconditionFailedError):
                await client.create(db.name)
            await client.create(db.name, exists_ok=True)
            with pytest.raises(NotFoundError):
                await client["no-such-database"]
            assert (await (await client[db.name]).info())["db_name"] == db.name
            await client.close()

            doc = await db.create("goulash", data={"serves": 4})
            first = await doc.save()
            async with db.open("goulash") as same:
                same["serves"] = 6
            assert (await db["goulash"])["serves"] == 6
            assert (await db.get("goulash", rev=first))["serves"] == 4
            with pytest.raises(ConflictError) as caught:
                await db.save({"_id": "goulash", "_rev": first})
            assert caught.value.reason == "Document update conflict."
            await doc.fetch(discard_changes=True)
            assert await doc.revs() == [doc.rev, first] and await doc.conflicts() == []

            async with db.create_docs([f"soup-{n}" for n in range(5)]) as bulk:
                for one in bulk:
                    one["kind"] = "soup"
                bulk.create("goulash")
            assert len(bulk.ok) == 5 and list(bulk.error) == ["goulash"]
            async with db.update_docs(["soup-0", "new"], create=True) as bulk:
                async for one in bulk:
                    one["hot"] = True
            assert {one.id for one in bulk.ok} == {"soup-0", "new"}

            ids = [doc_id async for doc_id in db.akeys()]
            assert ids == ["goulash", "new", *(f"soup-{n}" for n in range(5))]
            soups = [one.id async for one in db.docs(prefix="soup-")]
            assert soups == ids[2:]
            assert (await db.all_docs.get(limit=1))["total_rows"] == 7
            await db.index({"fields": ["kind"]}, name="kinds", ddoc="kinds")
            assert [one["name"] for one in await db.indexes()] == ["_all_docs", "kinds"]
            found = [one.id async for one in db.find({"kind": "soup"}, sort=["kind"])]
            assert sorted(found) == soups
            assert "index" in await db.explain({"kind": "soup"})
            await db.drop_index("kinds", "kinds")

            photo = doc.attachment("photo/1.png")
            await photo.save(b"\x89PNG" * 1000, "image/png")

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(3):
                    yield b"12345"

            await doc.attachment("stream").save(pieces(), "text/plain")
            assert await photo.fetch() == b"\x89PNG" * 1000 and photo.content_type == "image/png"
            parts = [part async for part in doc.attachment("stream").stream()]
            assert b"".join(parts) == b"12345" * 3
            copy = await doc.copy_to("gulyás")
            assert await copy.attachment("photo/1.png").exists()
            await photo.delete()
            assert not await photo.exists()
            await doc.delete()
            assert not await db.exists("goulash") and await db.exists("gulyás")

            security = await db.security()
            security.members.append("someone")
            await security.save()
            assert (await db.security()).members == ["someone"]
            changed = {change.id: change async for change in db.changes(include_docs=True)}
            assert changed["goulash"].deleted and changed["gulyás"].doc is not None
            only = [change.id async for change in db.changes(doc_ids=["new"])]
            assert only == ["new"]
            await db.delete()
            with pytest.raises(NotFoundError):
                await db.info()

    asyncio.run(body())


def test_the_quickstart_runs_as_it_stands(cluster: Cluster) -> None:
    """Only the URL and the password are put in."""
    text = (Path(__file__).parent.parent.parent / "docs" / "client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    said = []
    for block in blocks:
        code = block.replace("http://127.0.0.1:5984", cluster.url)
        code = code.replace("PASSWORD", cluster.password)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines())
    assert len(blocks) == 2
    assert said[0][:3] == ["['soup', 'salad'] {}", "['goulash']", "['salad', 'soup']"]
    assert sorted(line.split()[0] for line in said[1]) == ["borscht", "salad", "soup"]


def test_the_same_from_threads(cluster: Cluster) -> None:
    url, name = cluster.url, f"db-{uuid4().hex[:12]}"
    with Client(url, cluster.admin, cluster.password, probe_every_s=0.2) as client:
        db = client.create(name)

        def work(number: int) -> None:
            for n in range(10):
                with db.open(f"{number}-{n}", create=True) as doc:
                    doc["n"] = n
                assert db[f"{number}-{n}"]["n"] == n
                db.change("shared", lambda doc: doc.update(n=doc.get("n", 0) + 1), create=True,
                          tries_max=100)  # fmt: skip

        threads = [threading.Thread(target=work, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S_MAX)
        assert not any(thread.is_alive() for thread in threads)
        cluster.await_converged()
        leaves = [db["shared"], *(db.get("shared", rev=r) for r in db["shared"].conflicts())]
        # Two masters may have accepted an edit of the same revision: none of them is lost.
        assert 1 <= max(doc["n"] for doc in leaves) <= 10 * WRITERS
        seen = set()
        for change in db.changes(live=True):
            seen.add(change.id)
            if len(seen) == 10 * WRITERS + 1:
                break
        assert len(list(db.docs())) == len(list(db.keys())) == 10 * WRITERS + 1


def test_who_is_logged_in_may_know_the_topology_and_nobody_else(cluster: Cluster) -> None:
    status, told = cluster.request("GET", "/_divan/topology", node="m1-r1")
    assert status == 200 and told["name"] == "m1-r1"
    found = {one["name"]: one for one in told["members"]}
    assert found.keys() == set(cluster.nodes)
    for name, one in found.items():
        assert one["role"] == ("master" if name in cluster.masters else "replica")
        assert one["url"] == cluster.record(name)["url"] and one["live"] and one["zone"] == "here"
    peers = cluster.status_of("m2")["peers"]
    assert {peer["zone"] for peer in peers} == {"here"}
    assert cluster.request("GET", "/_divan/topology", admin=False)[0] == 401
    user = {"_id": "org.couchdb.user:cook", "name": "cook", "password": "x", "roles": [],
            "type": "user"}  # fmt: skip
    assert cluster.request("PUT", "/_users/org.couchdb.user:cook", user)[0] == 201

    async def body() -> None:
        async with AsyncClient(cluster.url, "cook", "x") as client:
            await client.refresh()
            assert {node.name for node in client.nodes} == set(cluster.nodes)
            assert all(node.rtt_s is not None for node in client.nodes)
            with pytest.raises(ForbiddenError):
                await client.database("_replicator").info()
        async with AsyncClient(cluster.url, "cook", "wrong") as client:
            with pytest.raises(UnauthorizedError):
                await client.check_credentials()

    asyncio.run(body())


# --- Repeats


def test_a_write_that_is_sent_again_is_answered_as_the_first_time(cluster: Cluster) -> None:
    """Rule 5 reaches as far as the client: at whichever node, and whatever happened since."""
    db = f"db-{uuid4().hex[:12]}"
    assert cluster.request("PUT", f"/{db}")[0] == 201
    again = {"divan-repeat": "true"}
    status, made = cluster.request("PUT", f"/{db}/d", {"n": 1}, node="m1")
    assert status == 201
    cluster.await_converged()
    for node in cluster.nodes:
        status, told = cluster.request("PUT", f"/{db}/d", {"n": 1}, again, node=node)
        assert (status, told) == (201, made), node
        assert cluster.request("PUT", f"/{db}/d", {"n": 1}, node=node)[0] == 409
        assert cluster.request("PUT", f"/{db}/d", {"n": 2}, again, node=node)[0] == 409
    docs = {"docs": [{"_id": "d", "n": 1}, {"_id": "e", "n": 1}]}
    status, rows = cluster.request("POST", f"/{db}/_bulk_docs", docs, again, node="m2-r1")
    assert [row.get("rev") for row in rows] == [made["rev"]] * 2
    # Deleted since: the repeat makes nothing anew.
    gone = {"_id": "d", "_rev": made["rev"], "_deleted": True}
    assert cluster.request("PUT", f"/{db}/d", gone, node="m1")[0] == 201
    status, told = cluster.request("PUT", f"/{db}/d", gone, again, node="m1")
    assert status == 201, told
    cluster.await_converged()
    for node in cluster.nodes:
        status, told = cluster.request("PUT", f"/{db}/d", {"n": 1}, again, node=node)
        assert (status, told["rev"]) == (201, made["rev"])
        status, told = cluster.request("PUT", f"/{db}/d", {"n": 3}, again, node=node)
        assert status == 409, told
        assert cluster.request("GET", f"/{db}/d", node=node)[0] == 404


class Forgetful(httpx.AsyncBaseTransport):
    """Loses every third answer to a write, once the node has carried it out."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._writes = 0
        self.lost = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.method != "GET":
            self._writes += 1
            if self._writes % 3 == 0:
                await response.aread()
                self.lost += 1
                raise httpx.ReadError("lost")
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def test_writes_whose_answers_are_lost_are_done_once_and_never_refused(cluster: Cluster) -> None:
    async def body() -> None:
        transport = Forgetful()
        async with opened(cluster, transport=transport, down_s_min=0.01) as db:
            doc: dict[str, Any] = {"_id": "d"}
            for n in range(30):
                doc["n"] = n
                assert (await db.save(doc)).startswith(f"{n + 1}-")
            for n in range(10):
                made = await db.create(data={"n": n})
                await made.save()
                assert [one.error for one in await db.save_all([{"m": n}, {"m": -n}])] == [None] * 2
                if n % 2:
                    await made.delete()
            assert transport.lost > 15
            assert (await db.info())["doc_count"] == 1 + 5 + 20
            kept = await db["d"]
            assert kept["n"] == 29 and await kept.conflicts() == []

    asyncio.run(body())


# --- The closest node


async def busiest(detour: Detour, work: Callable[[], Awaitable[object]]) -> str:
    """Who is asked now."""
    detour.asked.clear()
    for _ in range(5):
        await work()
    return detour.asked.most_common(1)[0][0]


def test_the_closest_is_asked_and_another_one_when_the_delay_moves(cluster: Cluster) -> None:
    def place(nodes: dict[str, FarNode], *near: str) -> None:
        for name, node in nodes.items():
            node.delay_s = 0.0 if name in near else 0.06

    async def body() -> None:
        async with far(cluster, cluster.nodes) as (nodes, detour):
            place(nodes, "m2", "m2-r1")
            given = f"http://127.0.0.1:{cluster.port_of('m1')}"
            async with opened(cluster, url=given, transport=detour, probe_every_s=0.05) as db:
                numbers = iter(range(10_000))

                async def write() -> None:
                    await db.save({"_id": f"{next(numbers)}"})

                async def read() -> None:
                    await db.get("0")

                await write()
                for near in (("m2", "m2-r1"), ("m1", "m1-r1"), ("m1", "m2-r1")):
                    place(nodes, *near)

                    async def is_there(near: tuple[str, ...] = near) -> bool:
                        return (await busiest(detour, write), await busiest(detour, read)) == near

                    await until(is_there)
                # And it stays there: nothing is asked elsewhere.
                detour.asked.clear()
                for _ in range(20):
                    await read()
                    await write()
                assert detour.asked["m1"] >= 18 and detour.asked["m2-r1"] >= 18, detour.asked

    asyncio.run(body())


# --- Sessions


def test_what_was_written_is_read_at_whatever_node(cluster: Cluster) -> None:
    """One session over four clients, each of which knows one node alone."""

    async def body() -> None:
        chance = random.Random(7)
        async with contextlib.AsyncExitStack() as stack, opened(cluster) as own:
            clients = []
            for name in cluster.nodes:
                url = f"http://127.0.0.1:{cluster.port_of(name)}"
                client = connected(cluster, url=url, direct=False)
                clients.append(await stack.enter_async_context(client))
            token, rev = own._line.session.token if own._line.session else None, None
            for n in range(100):
                writing = chance.choice(clients).session(token)
                doc = {"_id": "d", "n": n, **({"_rev": rev} if rev else {})}
                rev = await writing.database(own.name).save(doc)
                reading = chance.choice(clients).session(writing.token)
                found = await reading.database(own.name).get("d")
                assert (found["n"], found.rev) == (n, rev)
                assert not reading.is_behind
                token = reading.token

    asyncio.run(body())


def test_concern_and_staleness_go_along(cluster: Cluster) -> None:
    async def body() -> None:
        async with opened(cluster) as own, connected(cluster) as client:
            await client.refresh()
            sure = client.using(concern="visible").database(own.name)
            await sure.save({"_id": "d"})
            # On every node, for those who carry no token, too.
            for name in cluster.nodes:
                assert cluster.request("GET", f"/{own.name}/d", node=name)[0] == 200
            other = client.session().using(max_staleness_ms=0).database(own.name)
            assert (await other.get("d")).exists
            # A replica passes it on to a master, which has it at once or is asked again.
            await own.save({"_id": "e"})
            await until(lambda: other.exists("e"))

    asyncio.run(body())


# --- Nodes that die


class Kept:
    """Documents that were acknowledged."""

    def __init__(self) -> None:
        self.revs: dict[str, str] = {}
        self.is_over = False

    async def write(self, db: AsyncDatabase, number: int) -> None:
        """Make documents, and change each once, until it is over. Nothing may be refused."""
        n = 0
        while not self.is_over:
            doc: dict[str, Any] = {"_id": f"{number}-{n}", "n": n}
            await db.save(doc)
            doc["again"] = True
            self.revs[doc["_id"]] = await db.save(doc)
            n += 1
            await asyncio.sleep(0.01)


async def follow(db: AsyncDatabase, seen: dict[str, set[str]]) -> None:
    async for change in db.changes(live=True):
        seen.setdefault(change.id, set()).add(change.rev)


def test_a_master_is_killed_while_many_write_and_a_reader_misses_nothing(tmp_path: Path) -> None:
    """Each node in turn is killed; the client's calls never fail, and all that they were answered
    is on every node.
    """

    async def body(own: Cluster) -> tuple[str, Kept]:
        kept, seen = Kept(), dict[str, set[str]]()
        options = {"heartbeat_s": 0.5, "write_s_max": 5.0, "read_s_max": 5.0}
        async with opened(own, **options) as db:
            following = asyncio.create_task(follow(db, seen))
            writing = [asyncio.create_task(kept.write(db, number)) for number in range(WRITERS)]
            for name in ("m1", "m1-r1", "m2", "m2-r1"):
                before = len(kept.revs)
                await asyncio.sleep(BUSY_S / 4)
                await asyncio.to_thread(own.send, name, signal.SIGKILL)

                async def goes_on(before: int = before) -> bool:
                    for task in (*writing, following):
                        if task.done():
                            task.result()
                    return len(kept.revs) > before + 20

                await until(goes_on)
                await asyncio.to_thread(own.await_true, lambda name=name: own.answers(name))
            kept.is_over = True
            await asyncio.gather(*writing)

            async def has_all() -> bool:
                if following.done():
                    following.result()
                return all(rev in seen.get(doc_id, ()) for doc_id, rev in kept.revs.items())

            await until(has_all)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            return db.name, kept

    with clustered(tmp_path, masters=2, replicas=1) as own:
        name, kept = asyncio.run(body(own))
        own.await_converged()
        rows = own.request("GET", f"/{name}/_all_docs", node="m2-r1")[1]["rows"]
        assert {row["id"]: row["value"]["rev"] for row in rows} == kept.revs
        assert len(kept.revs) > 40


def test_a_node_that_is_stopped_is_left(cluster: Cluster) -> None:
    """It takes connections and answers nothing: reads go elsewhere, and so does a feed."""

    async def body() -> None:
        options = {"read_s_max": 1.0, "probe_s_max": 0.5, "heartbeat_s": 0.3}
        async with opened(cluster, **options) as db:
            await db.save({"_id": "a"})
            changes = db.changes(live=True)
            assert (await anext(changes)).id == "a"
            pids = [cluster.pid_of(name) for name in ("m1-r1", "m2-r1")]
            try:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                assert (await db.get("a")).exists
                await db.save({"_id": "b"})
                async with asyncio.timeout(WAIT_S_MAX):
                    while (await anext(changes)).id != "b":
                        pass
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await changes.aclose()

    asyncio.run(body())
    cluster.await_converged()
