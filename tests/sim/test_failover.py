"""A slot changes hands, and nothing that was acknowledged is lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from divandb import replica
from divandb.cluster import estate, topics
from divandb.config import Limits
from tests.sim.client import Client
from tests.sim.cluster import Cluster
from tests.sim.node import Node

Play = Callable[..., Cluster]
TAKEN_OVER_S = 3.0


def owner(c: Cluster, slot: str) -> Node:
    """The one that accepts the slot's writes; there must be one, and no more."""
    found = [n for n in c.group(slot) if n.up and n.process.is_running and n.tenure.serves]
    assert len(found) == 1, [node.name for node in found]
    return found[0]


async def taken_over(c: Cluster, slot: str, former: Node) -> Node:
    """The new owner, once there is one."""

    def is_there() -> bool:
        return any(n.up and n.tenure.serves for n in c.group(slot) if n is not former)

    await c.until(is_there, TAKEN_OVER_S)
    return next(n for n in c.group(slot) if n is not former and n.up and n.tenure.serves)


async def with_x(c: Cluster) -> Client:
    """A client, and a database that all nodes know."""
    client = Client(c)
    await client.put(c.masters[0], "/x", {})
    await c.settled()
    return client


def test_a_replica_takes_over_from_a_master_that_died(play: Play) -> None:
    """Within two seconds, and everybody knows; who was dead comes back as a replica."""

    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.crash()
        new = await taken_over(c, "m1", m1)
        written = await client.put(new, "/x/d", {"v": 1})
        assert written.status == 201
        c.start(m1)
        await c.settled()
        await c.passes(2)
        assert owner(c, "m1") is new
        assert not m1.tenure.is_owner
        assert {n.tenure.owner_of("m1") for n in c.nodes} == {new.name}
        # It takes writes as any replica does, and gets what others write from its group's board.
        assert (await client.put(m1, "/x/e", {"v": 1})).status == 201
        assert new.ledger.origin in new.row("x", "e").document.context

    play(body, masters=2, replicas=2)


def test_a_new_owner_is_compared_with_its_group_at_once(play: Play) -> None:
    """What silently differs is found when it begins to matter, not when it is its turn."""

    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.crash()
        new = await taken_over(c, "m1", m1)
        began, before = c.loop.time(), new.verifier.numbers()["verify_comparisons_total"]
        others = [n for n in c.group("m1") if n not in (new, m1)]
        await c.until(
            lambda: new.verifier.numbers()["verify_comparisons_total"] >= before + len(others), 6
        )
        assert c.loop.time() - began < new.config.limits.verify_every_s / 4
        assert (await client.put(new, "/x/d", {})).status == 201
        c.start(m1)

    play(body, masters=2, replicas=3)


def test_a_session_waits_little_for_what_only_a_lost_owner_has(play: Play) -> None:
    """Nothing of it can be on its way any more; the client's next write is taken all the same."""

    async def body(c: Cluster) -> None:
        await with_x(c)
        client, (m1, m2) = Client(c, "session", carries="header"), c.masters
        await c.passes(5)
        c.cut_from_board(m1)
        c.cut([m1], [n for n in c.nodes if n is not m1])
        assert (await client.put(m1, "/x/d", {})).status == 201
        assert client.token
        peer = m2.peers.find("m1")
        assert peer is not None
        await c.until(lambda: not m2.peers.speaks(peer), 2)
        began = c.loop.time()
        assert (await client.put(m2, "/x/e", {})).status == 201
        assert c.loop.time() - began < 0.3
        c.mend()

    play(body, masters=2, replicas=0)


def test_writers_do_not_notice_that_a_master_died(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        replica = c.group("m1")[1]
        longest_s = 0.0
        for number in range(200):
            if number == 50:
                m1.crash()
            began = c.loop.time()
            assert (await client.put(replica, f"/x/d{number}", {})).status == 201
            longest_s = max(longest_s, c.loop.time() - began)
            await asyncio.sleep(0.02)
        assert longest_s < 0.5
        assert owner(c, "m1") is not m1
        c.start(m1)

    play(body, masters=2, replicas=2)


def test_the_writers_of_the_only_master_wait_until_a_replica_has_taken_over(play: Play) -> None:
    """A pause, and no error."""

    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.crash()
        began = c.loop.time()
        assert (await client.put(c.group("m1")[1], "/x/d", {})).status == 201
        assert c.loop.time() - began < TAKEN_OVER_S
        c.start(m1)

    play(body, masters=1, replicas=3)


def test_all_masters_die_at_once(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client = await with_x(c)
        for node in c.masters:
            node.crash()
        await c.until(lambda: sum(n.tenure.serves for n in c.replicas) == 3, TAKEN_OVER_S)
        for node in c.replicas:
            assert (await client.put(node, f"/x/{node.name}", {})).status == 201
        for node in c.masters:
            c.start(node)

    play(body, masters=3, replicas=2)


def test_all_nodes_but_one_replica_die(play: Play) -> None:
    """It goes on, whether the board lives or not."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        last = c.group("m2")[1]
        c.board.up = False
        for node in c.nodes:
            if node is not last:
                node.crash()
        await c.until(lambda: last.tenure.serves, TAKEN_OVER_S)
        assert (await client.put(last, "/x/d", {"v": 1})).status == 201
        assert (await client.get(last, "/x/d")).json["v"] == 1
        c.mend()
        await c.settled()
        await c.passes(3)
        own = last.tenure.own
        assert own is not None and own.is_confirmed

    play(body, masters=3, replicas=1)


def test_trace_17_a_promotion_is_not_one_event_short(play: Play) -> None:
    """The dead master had published to the masters what its replicas have not; nobody else lives
    who has read it, so that it is on the Masters' Board alone, in the slot's own partition.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        await with_x(c)
        c.cut_from_board(*c.group("m1")[1:], m2)
        c.cut([m1], [n for n in c.nodes if n is not m1])
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: m1.count("outbox") == 0)
        m1.crash()
        for node in c.group("m2"):
            node.crash()
        c.heal()
        new = await taken_over(c, "m1", m1)
        await c.until(lambda: new.leaves("x", "d") == [rev], 5)
        await c.until(lambda: all(n.leaves("x", "d") == [rev] for n in c.group("m1")[1:]), 5)
        c.mend()

    play(body, masters=2, replicas=2)


def test_what_the_group_holds_and_the_board_lacks_is_published(play: Play) -> None:
    """The dead master had told its replicas and nobody else."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        await with_x(c)
        await c.passes(2)
        c.board.refuses = c.board.masters
        c.cut([m1], [m2])
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: all(n.leaves("x", "d") == [rev] for n in c.group("m1")))
        before = len(c.board.messages(c.board.masters, topics.partition_of("m1")))
        # Nobody may fetch it from a node: it has to come by the board.
        c.cut(c.group("m1"), c.group("m2"))
        m1.crash()
        c.board.refuses = ""
        await taken_over(c, "m1", m1)
        await c.until(lambda: m2.leaves("x", "d") == [rev], 10)
        assert len(c.board.messages(c.board.masters, topics.partition_of("m1"))) > before
        c.mend()

    play(body, masters=2, replicas=2)


def test_trace_10_two_replicas_that_claim_a_slot_at_once_use_no_number_twice(play: Play) -> None:
    """The board is away and they cannot hear each other: both own the slot, and nothing is lost. In
    the end there is one owner, whom the log confirms.
    """

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, one, other = c.group("m1")
        c.board.up = False
        m1.crash()
        c.cut([one], [other])
        await c.until(lambda: one.tenure.serves and other.tenure.serves, 10)
        assert (await client.put(one, "/x/a", {"v": 1})).status == 201
        assert (await client.put(other, "/x/a", {"v": 2})).status == 201
        assert one.ledger.origin != other.ledger.origin
        c.mend()
        await c.settled()
        await c.passes(3)
        new = owner(c, "m1")
        assert new.tenure.own is not None and new.tenure.own.is_confirmed
        assert {len(n.leaves("x", "a")) for n in c.nodes} == {2}

    play(body, masters=1, replicas=2)


def test_an_old_master_returns_with_writes_that_nobody_had(play: Play) -> None:
    """Cut from the board and all peers it accepts writes, and dies. It comes back as a replica, the
    slot's owner publishes what it had, and every node has the receipt, conflicts included.
    """

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1 = c.masters[0]
        base = (await client.put(m1, "/x/both", {"v": 0})).json["rev"]
        await c.settled()
        c.cut([m1], [n for n in c.nodes if n is not m1])
        c.cut_from_board(m1)
        revs = {f"d{k}": (await client.put(m1, f"/x/d{k}", {})).json["rev"] for k in range(30)}
        revs["both"] = (await client.put(m1, "/x/both", {"_rev": base, "v": 1})).json["rev"]
        old = m1.ledger.origin
        m1.crash()
        new = await taken_over(c, "m1", m1)
        assert (await client.put(new, "/x/both", {"_rev": base, "v": 2})).status == 201
        c.heal()
        c.start(m1)
        await c.settled()
        assert m1.count("outbox") == 0
        assert all(rev in n.leaves("x", key) for n in c.nodes for key, rev in revs.items())
        await c.passes(1)
        await c.settled()
        receipts = [(await client.get(n, "/_divan/receipts")).json["receipts"] for n in c.nodes]
        assert all(one == receipts[0] for one in receipts)
        (receipt,) = receipts[0]
        assert (receipt["slot"], receipt["owner"]) == ("m1", new.name)
        assert receipt["origin"] == f"{(old or 0) % 2**64:016x}"
        found = {one["id"]: one for one in receipt["documents"]}
        assert {key: [rev] for key, rev in revs.items()} == {
            key: one["revs"] for key, one in found.items()
        }
        assert [key for key, one in found.items() if one["conflict"]] == ["both"]

    play(body, masters=2, replicas=2)


def test_a_receipt_names_every_document_however_many(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, and readers get them in pages."""
    monkeypatch.setattr(estate, "PART_BYTES_MAX", 1_000)
    monkeypatch.setattr(replica, "RECEIPTS_BYTES_MAX", 2_000)

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1 = c.masters[0]
        c.cut([m1], [n for n in c.nodes if n is not m1])
        c.cut_from_board(m1)
        made = {f"d{k}": await client.put(m1, f"/x/d{k}", {}) for k in range(60)}
        await taken_over(c, "m1", m1)
        c.heal()
        await c.settled()
        await c.passes(2)
        await c.settled()
        parts: list[Any] = []
        after, pages = "", 0
        while after is not None:
            page = (await client.get(m1, f"/_divan/receipts?after={after}")).json
            parts, after, pages = parts + page["receipts"], page["next"], pages + 1
        assert [one["part"] for one in parts] == list(range(1, len(parts) + 1))
        assert (len(parts) > 3, 1 < pages < len(parts)) == (True, True)
        named = {one["id"]: one["revs"] for part in parts for one in part["documents"]}
        assert named == {key: [one.json["rev"]] for key, one in made.items()}
        assert parts[-1]["last"] - parts[0]["first"] + 1 >= len(made)

    play(body, masters=2, replicas=2)


def test_a_master_that_was_only_stopped_steps_down(play: Play) -> None:
    """A false alarm costs a hand-over; the next one takes longer to raise."""

    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.stop()
        new = await taken_over(c, "m1", m1)
        m1.go_on()
        await c.until(lambda: not m1.tenure.serves, 2)
        assert (await client.put(m1, "/x/d", {})).status == 201
        await c.settled()
        assert any("false alarm" in line for line in new.log.lines)

    play(body, masters=2, replicas=1)


def test_a_replica_that_is_cut_off_takes_nothing_over(play: Play) -> None:
    """Masters that hear of the owner refuse."""

    async def body(c: Cluster) -> None:
        await with_x(c)
        m1, lonely = c.group("m1")[:2]
        c.cut([lonely], [m1])
        await c.passes(10)
        assert m1.tenure.serves and not lonely.tenure.serves

    play(body, masters=2, replicas=2)


def test_an_owner_that_lost_its_disk_hears_that_it_is_one(play: Play) -> None:
    """It takes its predecessor for the owner, which knows better; nobody else would be one."""

    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.crash()
        new = await taken_over(c, "m1", m1)
        c.start(m1)
        await c.until(lambda: not m1.tenure.is_owner)
        await c.settled()
        new.crash()
        new.lose_file()
        c.start(new)
        await c.until(lambda: any(n.tenure.serves for n in c.nodes), 10)
        await c.settled()
        assert (await client.put(m1, "/x/d", {})).status == 201
        await c.settled()
        owner(c, "m1")

    play(body, masters=1, replicas=1)


def test_a_slot_changes_hands_by_request(play: Play) -> None:
    """Writers do not notice: nothing is lost, nothing comes back as a receipt."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, replica, last = c.group("m1")
        longest_s, epochs = 0.0, []
        for number in range(100):
            if number in (20, 60):
                node = replica if number == 20 else last
                epochs.append(asyncio.ensure_future(client.post(node, "/_divan/promote", {})))
            began = c.loop.time()
            assert (await client.put(last, f"/x/d{number}", {})).status == 201
            longest_s = max(longest_s, c.loop.time() - began)
            await asyncio.sleep(0.02)
        assert [(await one).json["epoch"] for one in epochs] == [1, 2]
        assert longest_s < 0.4
        assert owner(c, "m1") is last
        assert (await client.post(last, "/_divan/demote", {})).status == 200
        await c.settled()
        await c.passes(2)
        assert owner(c, "m1") is not last
        assert all(len(n.leaves("x", f"d{k}")) == 1 for n in c.nodes for k in range(100))
        assert (await client.get(m1, "/_divan/receipts")).json == {"receipts": [], "next": None}

    play(body, masters=1, replicas=2)


def test_who_is_no_admin_changes_no_owner(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client, replica = await with_x(c), c.group("m1")[1]
        client.user = b""
        for path in ("promote", "demote", "drain", "grant", "leave"):
            assert (await client.post(replica, f"/_divan/{path}", {})).status == 401
        assert (await client.get(replica, "/_divan/receipts")).status == 401
        assert owner(c, "m1") is c.masters[0]

    play(body, masters=1, replicas=1)


def test_an_owner_that_dies_while_it_takes_over_finishes_when_it_is_back(play: Play) -> None:
    """What its predecessor left is published all the same."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        await with_x(c)
        await c.passes(2)
        c.board.refuses = c.board.masters
        c.cut([m1], [m2])
        rev = await m1.put("x", "d", 1)
        new = c.group("m1")[1]
        await c.until(lambda: new.leaves("x", "d") == [rev])
        c.cut(c.group("m1"), c.group("m2"))
        m1.crash()
        await c.until(lambda: new.tenure.is_owner, TAKEN_OVER_S)
        new.restart()
        c.board.refuses = ""
        await c.until(lambda: m2.leaves("x", "d") == [rev], 15)
        c.mend()

    play(body, masters=2, replicas=1)


def test_a_cluster_that_starts_again_keeps_its_owners(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client, m1 = await with_x(c), c.masters[0]
        m1.crash()
        new = await taken_over(c, "m1", m1)
        for node in c.nodes:
            if node.up:
                node.crash()
        for node in c.nodes:
            c.start(node)
        await c.settled()
        await c.passes(3)
        assert owner(c, "m1") is new
        assert (await client.put(m1, "/x/d", {})).status == 201

    play(body, masters=2, replicas=2, limits=Limits(failover_ms=1_500))


def test_a_master_without_replicas_is_drained_to_the_others(play: Play) -> None:
    """What it has accepted is published, its writers go to another master, and it comes back."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, m2 = c.masters
        c.board.refuses = c.board.masters
        before = await client.put(m1, "/x/before", {})
        draining = asyncio.ensure_future(client.post(m1, "/_divan/drain", {"drained": True}))
        await asyncio.sleep(0.5)
        c.board.refuses = ""
        assert (await draining).json == {"ok": True, "owner": None}
        drain = m1.services.drain
        await c.until(lambda: bool(drain.left()) and drain.left().is_done, 10)
        assert (await client.put(m1, "/x/d", {})).status == 201
        assert m2.ledger.origin in m2.row("x", "d").document.context
        assert m2.leaves("x", "before") == [before.json["rev"]]
        refused = await client.post(m2, "/_divan/drain", {"drained": True})
        assert (refused.status, refused.json["error"]) == (412, "precondition_failed")
        m1.restart()
        await c.until(lambda: m1.up and m1.tenure.is_ready, 10)
        assert not m1.tenure.serves
        assert (await client.post(m1, "/_divan/drain", {"drained": False})).status == 200
        await c.until(lambda: m1.tenure.serves, 2)
        assert (await client.post(m1, "/_divan/drain", {"drained": 1})).status == 400

    play(body, masters=2, replicas=0)


def test_a_drained_replica_takes_nothing_over(play: Play) -> None:
    """And keeps nobody waiting who does, though its name comes first."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, drained, other = c.group("m1")
        assert (await client.post(drained, "/_divan/drain", {"drained": True})).status == 200
        await c.passes(1)
        m1.crash()
        began = c.loop.time()
        await c.until(lambda: other.tenure.serves, TAKEN_OVER_S)
        assert c.loop.time() - began < 2.0
        assert not drained.tenure.is_owner
        assert (await client.put(drained, "/x/d", {})).status == 201
        assert (await client.post(drained, "/_divan/promote", {})).status == 412
        assert (await client.post(drained, "/_divan/drain", {"drained": False})).status == 200
        assert (await client.post(drained, "/_divan/promote", {})).status == 200
        c.start(m1)

    play(body, masters=2, replicas=2)
