"""A node is removed: nobody counts on it any more, and it does not come back."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from tests.sim.client import Client, Unanswered
from tests.sim.cluster import Cluster
from tests.sim.node import Node
from tests.sim.test_closing import closed, named, restarted
from tests.sim.test_failover import owner, with_x

Play = Callable[..., Cluster]


def known(node: Node) -> set[str]:
    """The other members, as a node knows them."""
    return {peer.member.name for peer in node.peers.all()}


async def removed(c: Cluster, at: Node, gone: Node, *, force: bool = False) -> None:
    """Have a node removed, until all that run know; then it is no business of the checkers."""
    body = {"node": gone.name, "force": force}
    answer = await Client(c).post(at, "/_divan/remove", body)
    assert (answer.status, answer.json) == (200, {"ok": True, "removed": gone.name})
    left = [node for node in c.nodes if node is not gone and node.up]
    await c.until(lambda: all(gone.name not in known(node) for node in left))


def leave(c: Cluster, gone: Node) -> None:
    """The run is judged by the others."""
    c.part_with(gone)


async def refused(c: Cluster, at: Node, name: str, status: int, why: str) -> None:
    answer = await Client(c).post(at, "/_divan/remove", {"node": name})
    assert answer.status == status
    assert why in answer.json["reason"], answer.json


def test_a_removed_node_lets_closing_go_on(play: Play) -> None:
    """It is down for good. Until somebody says so, everything waits for it."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, gone = c.masters[0], c.group("m2")[2]
        gone.crash()
        await restarted(c, client, m1, 3)
        await c.passes(20)
        assert len(named(m1)) >= 3
        await removed(c, m1, gone, force=True)
        leave(c, gone)
        await closed(c)
        visible = await client.put(m1, "/x/d?concern=visible", {})
        assert visible.header("divan-concern") == "visible"

    play(body, masters=2, replicas=2)


def test_a_node_that_is_removed_stops_to_serve(play: Play) -> None:
    """It hears it like everybody; its clients are told, and other nodes refuse it."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, gone = c.masters[0], c.group("m1")[2]
        await client.put(m1, "/x/d", {})
        await c.settled()
        # The shortest way to hear of it is the board's.
        await removed(c, m1, gone)
        await c.until(lambda: gone.peers.is_removed)
        for path in ("/x/d", "/", "/_up", "/x/_changes"):
            answer = await client.get(gone, path)
            assert (answer.status, answer.json["error"]) == (410, "removed")
            assert "was removed from the cluster" in answer.json["reason"]
        assert (await client.put(gone, "/x/e", {})).status == 410
        assert (await client.get(gone, "/_divan/status")).status == 200
        leave(c, gone)

    play(body, masters=2, replicas=2)


def test_a_node_that_was_away_when_it_was_removed_is_refused(play: Play) -> None:
    """It comes back with all its credentials, and learns it from the first master that it asks."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, gone = c.masters[0], c.group("m1")[2]
        gone.crash()
        await removed(c, m1, gone, force=True)
        c.cut_from_board(gone)
        c.start(gone)
        await c.until(lambda: gone.peers.is_removed, 2)
        assert (await client.get(gone, "/x/d")).status == 410
        assert all(gone.name not in known(node) for node in c.nodes if node is not gone)
        assert not await gone.catch_up()
        leave(c, gone)

    play(body, masters=2, replicas=2)


def test_a_node_that_was_away_hears_that_another_was_removed(play: Play) -> None:
    async def body(c: Cluster) -> None:
        await with_x(c)
        m1, gone, away = c.masters[0], c.group("m2")[2], c.group("m2")[1]
        away.crash()
        await removed(c, m1, gone)
        c.start(away)
        await c.until(lambda: gone.name not in known(away), 5)
        for node in c.nodes:
            if node is not gone:
                node.restart()
        await c.passes(2)
        assert all(gone.name not in known(node) for node in c.nodes if node is not gone)
        leave(c, gone)

    play(body, masters=2, replicas=2)


def test_who_owns_a_slot_or_may_have_more_is_not_removed(play: Play) -> None:
    """Nor who nobody knows; and nobody but an admin removes anyone."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, one, other = c.group("m1")
        m2 = c.group("m2")[0]
        await refused(c, one, "m1", 412, "owns m1")
        await refused(c, m2, "m2", 412, "does not remove itself")
        await refused(c, m1, "m2", 412, "The last node of a slot")
        await refused(c, m1, "m9", 404, "no node m9")
        other.crash()
        await c.passes(3)
        await refused(c, m1, other.name, 412, "does not answer")
        assert (await client.post(m1, "/_divan/remove", {"node": 1})).status == 400
        client.user = b""
        assert (await client.post(m1, "/_divan/remove", {"node": "m1-r1"})).status == 401
        assert all(len(known(node)) == 5 for node in c.nodes if node.up)
        c.start(other)

    play(body, masters=2, replicas=2)


def test_a_former_owner_that_has_more_is_not_removed_unasked(play: Play) -> None:
    """It has come back, and what only it had is still on its way."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1 = c.masters[0]
        c.cut([m1], [n for n in c.nodes if n is not m1])
        c.cut_from_board(m1)
        await client.put(m1, "/x/b", {})
        m1.crash()
        await c.until(lambda: any(n.tenure.serves for n in c.replicas), 10)
        new = owner(c, "m1")
        await refused(c, new, "m1", 412, "does not answer")
        c.heal()
        new.peers.fetch = None  # so slow is it
        c.start(m1)
        await c.until(lambda: new.peers.speaks(new.peers.find("m1")))
        await refused(c, new, "m1", 412, "of 1 writes that it has them")
        new.peers.fetch = new.fetcher.fetch
        await c.settled()
        await removed(c, new, m1)
        assert all(node.leaves("x", "b") for node in c.nodes)
        leave(c, m1)
        assert (await client.put(new, "/x/c", {})).status == 201

    play(body, masters=1, replicas=2)


@pytest.mark.parametrize("is_forced", [True, False])
def test_a_request_to_remove_a_node_is_the_same_twice(play: Play, is_forced: bool) -> None:
    async def body(c: Cluster) -> None:
        await with_x(c)
        gone = c.group("m1")[2]
        await removed(c, c.masters[0], gone, force=is_forced)
        await removed(c, c.masters[1], gone, force=is_forced)
        leave(c, gone)

    play(body, masters=2, replicas=2)


@pytest.mark.parametrize("asked", ["m2", "m2-r1"])
@pytest.mark.parametrize("has_board", [True, False])
@pytest.mark.parametrize("after_ms", [4, 8])
def test_a_node_is_removed_that_is_just_taking_over(
    play: Play, after_ms: int, has_board: bool, asked: str
) -> None:
    """Nobody knows yet that it will be the owner, but masters that have granted it: these refuse.
    Where others remove it, all that it answered as the owner is published before it ends. One owner
    is left.
    """

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, taking = c.group("m1")[:2]
        await c.passes(5)
        c.board.up = has_board
        m1.crash()
        writing = asyncio.ensure_future(_written_meanwhile(c, taking))
        await c.until(lambda: taking.failover._one.locked(), 3, look_s=0.001)
        await asyncio.sleep(after_ms / 1000)
        taking.ends_when_removed = True
        at = next(node for node in c.nodes if node.name == asked)
        answer = await client.post(at, "/_divan/remove", {"node": taking.name})
        answered = await writing
        c.board.up = True
        if answer.status == 200:
            await c.until(lambda: not taking.up)
            await c.passes(2)
            leave(c, taking)
            assert not c.history.excused, "lost with the removed owner"
        c.mend()
        await c.settled()
        await c.passes(5)
        assert {node.tenure.owner_of("m1") for node in c.nodes} == {owner(c, "m1").name}
        for name in answered:
            assert all(node.leaves("x", name) for node in c.nodes), name

    play(body, masters=2, replicas=2)


async def _written_meanwhile(c: Cluster, at: Node) -> list[str]:
    """Write there for some time; what was answered."""
    client, answered = Client(c, "writer"), []
    for number in range(500):
        name = f"d{number}"
        with contextlib.suppress(Unanswered):
            if (await client.put(at, f"/x/{name}", {})).status == 201:
                answered.append(name)
        await asyncio.sleep(0.002)
    return answered
