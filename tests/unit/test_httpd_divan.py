"""What CouchDB does not have: the routes over a real node without sockets."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from divandb.config import Config
from divandb.errors import NotFound
from divandb.httpd.app import App
from divandb.server import TABLES, opened
from divandb.store import digests

ADMIN = ("admin", "a secret")
MEMBER = ("member", "b secret")
STRANGER = ("stranger", "c secret")


class Node:
    """A node with one database, asked as an admin unless it is said otherwise."""

    def __init__(self, services: Any, client: httpx.AsyncClient) -> None:
        self.services = services
        self.client = client

    async def ask(
        self, method: str, path: str, body: object = None, user: tuple[str, str] = ADMIN
    ) -> httpx.Response:
        if body is None:
            return await self.client.request(method, path, auth=user)
        return await self.client.request(method, path, json=body, auth=user)

    async def put(self, doc_id: str, rev: str = "", **members: Any) -> str:
        sent = {**members, "_rev": rev} if rev else members
        answer = await self.ask("PUT", f"/db/{doc_id}", sent)
        assert answer.status_code == 201
        made: str = answer.json()["rev"]
        return made

    async def put_many(self, count: int) -> None:
        docs = [{"_id": str(number)} for number in range(count)]
        assert (await self.ask("POST", "/db/_bulk_docs", {"docs": docs})).status_code == 201

    async def digest(self, query: str = "") -> dict[str, Any]:
        answer = await self.ask("GET", f"/db/_divan/digest{query}")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def refusal(
        self, query: str = "", user: tuple[str, str] = ADMIN, name: str = "db"
    ) -> tuple[int, str]:
        answer = await self.ask("GET", f"/{name}/_divan/digest{query}", user=user)
        return answer.status_code, answer.json()["reason"]


Run = Callable[[Callable[[Node], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def in_loop(body: Callable[[Node], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with opened(Config(tmp_path, admin=":".join(ADMIN))) as opened_node:
                services = opened_node.services
                transport = httpx.ASGITransport(App(services, TABLES))
                async with httpx.AsyncClient(transport=transport, base_url="http://n") as client:
                    node = Node(services, client)
                    assert (await node.ask("PUT", "/db")).status_code == 201
                    await body(node)

        asyncio.run(whole())

    return in_loop


def test_the_answer_is_of_one_moment(run: Run) -> None:
    async def body(node: Node) -> None:
        rev = await node.put("a")
        await node.put("b")
        await node.put("a", rev, _deleted=True)
        found = await node.digest()
        assert list(found) == [
            "db_name", "generation", "digest", "doc_count", "doc_del_count", "update_seq", "vector"
        ]  # fmt: skip
        info = (await node.ask("GET", "/db")).json()
        same = ("db_name", "doc_count", "doc_del_count", "update_seq")
        assert {key: found[key] for key in same} == {key: info[key] for key in same}
        assert (found["generation"], found["doc_count"], found["doc_del_count"]) == (1, 1, 1)
        assert len(bytes.fromhex(found["digest"])) == digests.DIGEST_BYTES
        [(origin, oseq)] = found["vector"].items()
        assert len(bytes.fromhex(origin)) == 8
        assert oseq > 3
        await node.put("c")
        after = await node.digest()
        assert after["digest"] != found["digest"]
        assert after["vector"] == {origin: oseq + 1}

    run(body)


def test_a_check_finds_the_same_while_others_write(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PIECE_ROWS_MAX", 5)

    async def body(node: Node) -> None:
        await node.put_many(100)
        paused = asyncio.Event()
        goes_on = asyncio.Event()

        async def pause() -> None:
            paused.set()
            await goes_on.wait()

        before = await node.digest()
        replica, known = node.services.replica, node.services.catalog.get("db")
        checking = asyncio.create_task(replica.checked(known, pause))
        await paused.wait()
        await node.put("late")
        after = await node.digest()
        assert await node.refusal("?check=true") == (503, "Another check is under way.")
        goes_on.set()
        found = await checking
        assert found.recomputed == found.digest == before["digest"] != after["digest"]
        assert found.docs == before["doc_count"] == after["doc_count"] - 1
        again = await node.digest("?check=true")
        assert again == {**after, "recomputed": after["digest"]}

    run(body)


def test_a_check_that_is_given_up_leaves_room_for_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "PIECE_ROWS_MAX", 1)

    async def body(node: Node) -> None:
        await node.put_many(10)
        paused = asyncio.Event()

        async def pause() -> None:
            paused.set()
            await asyncio.Event().wait()

        replica, known = node.services.replica, node.services.catalog.get("db")
        checking = asyncio.create_task(replica.checked(known, pause))
        await paused.wait()
        checking.cancel()
        await asyncio.gather(checking, return_exceptions=True)
        assert (await node.digest("?check=true"))["doc_count"] == 10
        node.services.stopping.set()
        assert await node.refusal("?check=true") == (503, "The node stops.")

    run(body)


def test_a_scan_that_differs_shows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(node: Node) -> None:
        await node.put("a")
        monkeypatch.setattr(digests, "of_document", lambda doc_id, leaves: 1)
        found = await node.digest("?check=true")
        assert found["recomputed"] != found["digest"]

    run(body)


def test_it_is_for_members_and_a_check_for_server_admins(run: Run) -> None:
    async def body(node: Node) -> None:
        await node.ask("PUT", "/_node/_local/_config/chttpd_auth/iterations", "10")
        for name, password in (MEMBER, STRANGER):
            user = {"name": name, "password": password, "roles": [], "type": "user"}
            answer = await node.ask("PUT", f"/_users/org.couchdb.user:{name}", user)
            assert answer.status_code == 201
        security = {"members": {"names": [MEMBER[0]]}}
        assert (await node.ask("PUT", "/db/_security", security)).status_code == 200
        answer = await node.ask("GET", "/db/_divan/digest", user=MEMBER)
        assert answer.json() == await node.digest()
        assert (await node.refusal(user=STRANGER))[0] == 403
        assert (await node.refusal("?check=true", MEMBER))[0] == 401
        assert (await node.refusal("?check=maybe"))[0] == 400
        assert (await node.refusal(name="nowhere"))[0] == 404

    run(body)


def test_a_database_that_is_dropped_meanwhile_is_not_found(run: Run) -> None:
    async def body(node: Node) -> None:
        replica, known = node.services.replica, node.services.catalog.get("db")
        assert (await node.ask("DELETE", "/db")).status_code == 200
        with pytest.raises(NotFound):
            replica.summary(known)

        async def pause() -> None:
            raise AssertionError("nothing is read")

        for _ in range(2):
            with pytest.raises(NotFound):
                await replica.checked(known, pause)

    run(body)
