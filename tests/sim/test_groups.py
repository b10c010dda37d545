"""Scenarios with whole groups: writes that are forwarded, repeated and late, boards and relays."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import orjson
import pytest

from divandb.board.base import Refused
from divandb.cluster import messages, peers, topics
from divandb.cluster.courier import COMMANDS
from divandb.config import Limits
from divandb.store import registers, snapshot
from tests.sim.client import Answer, Client
from tests.sim.cluster import STEADY, Cluster
from tests.sim.node import Node
from tests.sim.world import Gone

Play = Callable[..., Any]
RANGE_BYTES = 16_384


def _docs(answer: Answer) -> list[str]:
    return [row["id"] for row in answer.json["rows"]]


async def _replica_with_x(c: Cluster) -> tuple[Node, Client]:
    """The first master's replica, and a client who made database `x` there; all nodes know it."""
    replica, client = c.group("m1")[1], Client(c)
    await client.put(replica, "/x", {})
    await c.settled()
    return replica, client


def test_a_write_at_any_replica_is_read_at_every_node(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client = Client(c)
        await client.put(c.replicas[0], "/x", {})
        written = await client.put(c.replicas[-1], "/x/d", {"v": 1})
        assert written.status == 201
        await c.settled()
        for node in c.nodes:
            assert (await client.get(node, "/x/d")).json["_rev"] == written.json["rev"]

    play(body, masters=2, replicas=2)


def test_trace_1_a_crash_between_any_two_steps_uses_no_number_twice(play: Play) -> None:
    """Document, number and outbox row are in one file: killed before any statement of a commit, a
    master goes on with what is there, whole or not at all.
    """

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        statement = 0
        while True:
            await m1.put("x", f"before{statement}", 1)
            m1.die_at_statement(statement)
            try:
                await m1.put("x", f"d{statement}", 1)
            except Gone:
                c.start(m1)
                assert bool(m1.leaves("x", f"d{statement}")) == c.history.has(f"d{statement}")
                statement += 1
            else:
                m1.connection.exec_trace = None
                break
        assert statement > 5

    play(body, masters=2)


def test_trace_1_a_crash_after_the_commit_loses_nothing(play: Play) -> None:
    """Nobody was told: the client asks again, and its write is there once."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        client = Client(c)
        await client.put(m1, "/x", {})
        await c.settled()
        m1.dies_after_commit = True
        written = await client.put(c.group("m1")[1], "/x/d", {"v": 1})
        assert written.status == 201
        assert not m1.up
        c.start(m1)
        await c.settled()
        assert all(n.leaves("x", "d") == [written.json["rev"]] for n in c.nodes)

    play(body, masters=2)


def test_trace_3_a_drop_that_was_sent_to_a_stopped_master_comes_late(play: Play) -> None:
    """It is repeated at the other; the database is made again and written; then the first wakes."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = await _replica_with_x(c)
        m1.stop()
        assert (await client.delete(replica, "/x")).status == 200
        assert (await client.put(m2, "/x", {})).status == 201
        rev = (await client.put(m2, "/x/d", {"v": 1})).json["rev"]
        m1.go_on()
        await c.settled()
        assert all(n.leaves("x", "d") == [rev] for n in c.nodes)

    play(body, masters=2)


def test_trace_4_a_put_that_was_sent_to_a_stopped_master_undoes_no_deletion(play: Play) -> None:
    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = await _replica_with_x(c)
        m1.stop()
        rev = (await client.put(replica, "/x/d", {"v": 1})).json["rev"]
        gone = await client.delete(m2, f"/x/d?rev={rev}")
        assert gone.status == 200
        m1.go_on()
        await c.settled()
        assert all(n.leaves("x", "d") == [gone.json["rev"]] for n in c.nodes)

    play(body, masters=2)


def test_a_master_that_falls_silent_keeps_nobody_waiting(play: Play) -> None:
    """One stopped in the middle of a stream of writes: the longest wait is well below its lease,
    and when it goes on it is asked again.
    """

    async def body(c: Cluster) -> None:
        m1, _ = c.masters
        replica, client = c.group("m1")[1], Client(c)
        await client.put(replica, "/x", {})
        await c.settled()
        longest_s = 0.0
        for number in range(40):
            if number == 10:
                m1.stop()
            began = c.loop.time()
            written = await client.put(replica, f"/x/d{number}", {})
            longest_s = max(longest_s, c.loop.time() - began)
            assert written.status == 201
            await asyncio.sleep(0.02)
        assert longest_s < 0.75
        m1.go_on()
        await c.settled()
        await client.put(replica, "/x/last", {})
        assert m1.ledger.origin in m1.row("x", "last").document.context
        assert all(len(n.leaves("x", f"d{k}")) == 1 for n in c.nodes for k in range(40))

    play(body, masters=2, limits=STEADY)


def test_the_only_master_is_waited_for(play: Play) -> None:
    """Nobody else could take the write."""

    async def body(c: Cluster) -> None:
        m1, replica = c.masters[0], c.group("m1")[1]
        client = Client(c)
        await client.put(replica, "/x", {})
        m1.stop()
        writing = asyncio.ensure_future(client.put(replica, "/x/d", {}))
        await asyncio.sleep(1)
        m1.go_on()
        assert (await writing).status == 201
        await c.settled()
        assert all(len(n.leaves("x", "d")) == 1 for n in c.nodes)

    play(body, masters=1)


def test_trace_5_what_is_sent_twice_is_done_once(play: Play) -> None:
    """Every request reaches its node twice, and the master that was asked first wakes only when
    another has carried everything out: ids, salts and stamps were chosen where it came in.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = c.group("m1")[1], Client(c)
        for name in ("/x", "/_users"):
            await client.put(replica, name, {})
        await c.settled()
        m1.stop()
        posted = await client.post(replica, "/x", {"v": 1})
        assert posted.status == 201
        user = {"name": "joe", "password": "secret", "roles": [], "type": "user"}
        path = "/_users/org.couchdb.user:joe"
        made = await client.put(replica, path, user)
        assert made.status == 201
        await client.put(replica, "/x/_security", {"members": {"names": ["joe"]}})
        await client.put(m2, "/x/_security", {"members": {"names": ["eve"]}})
        m1.go_on()
        await c.settled()
        for node in c.nodes:
            assert _docs(await client.get(node, "/x/_all_docs")) == [posted.json["id"]]
            assert node.leaves("_users", "org.couchdb.user:joe") == [made.json["rev"]]
            found = await client.get(node, "/x/_security")
            assert found.json["members"]["names"] == ["eve"]

    play(body, masters=2)


def test_trace_5_a_request_that_the_network_doubles_is_done_once(play: Play) -> None:
    """Between the nodes: what a replica has fixed, a master gets twice, now and later."""

    async def body(c: Cluster) -> None:
        client = Client(c)
        await client.put(c.replicas[0], "/x", {})
        await c.settled()
        c.faults.requests_doubled = 1.0
        for node in c.replicas:
            for _ in range(5):
                assert (await client.post(node, "/x", {"v": node.name})).status == 201
        c.faults.requests_doubled = 0.0
        await c.passes(5)
        await c.settled()
        for node in c.nodes:
            assert len(_docs(await client.get(node, "/x/_all_docs"))) == 10

    play(body, masters=2)


def test_trace_6_an_update_that_a_dead_master_has_made_is_answered_by_another(
    play: Play,
) -> None:
    """m1 commits, publishes, and dies before it answers; its replica asks m2, which has the event
    by then: the client gets its revision, and no 409.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = c.group("m1")[1], Client(c)
        await client.put(replica, "/x", {})
        first = (await client.put(replica, "/x/d", {"v": 1})).json["rev"]
        await c.settled()
        c.network.mute(m1.name, replica.name)
        asking = asyncio.ensure_future(client.put(replica, "/x/d", {"v": 2, "_rev": first}))
        await c.until(lambda: m2.leaves("x", "d")[0] != first)
        m1.crash()
        c.network.unmute()
        answer = await asking
        assert answer.status == 201
        assert m2.leaves("x", "d") == [answer.json["rev"]]
        c.start(m1)

    play(body, masters=2)


def test_writes_of_sessions_share_requests_to_a_master_that_has_what_they_need(play: Play) -> None:
    """Which is so when it wrote that itself a moment ago; else nobody waits for their sake."""

    async def body(c: Cluster) -> None:
        replica = c.group("m1")[1]
        sessions = [Client(c, f"s{n}", carries="header") for n in range(8)]
        await sessions[0].put(replica, "/x", {})
        orders: list[int] = []
        ask = replica.peers.find("m1").link.ask

        async def counted(method: str, path: str, message: bytes, **how: Any) -> Any:
            if path == COMMANDS:
                orders.append(len(messages.decode_orders(message)))
            return await ask(method, path, message, **how)

        async def put(client: Client, key: str) -> None:
            assert (await client.put(replica, f"/x/{client.name}-{key}", {})).status == 201

        replica.peers.find("m1").link.ask = counted
        for key in "ab":
            del orders[:]
            await asyncio.gather(*(put(client, key) for client in sessions))
            assert sum(orders) == len(sessions)
            assert len(orders) <= len(sessions) // 2, orders
        # What another master wrote the slot's own may not have yet.
        del orders[:]
        for client in sessions:
            await client.put(c.masters[1], f"/x/{client.name}-c", {})
        await asyncio.gather(*(put(client, "d") for client in sessions))
        assert sum(orders) == len(sessions)

    play(body, masters=2, replicas=1)


def test_a_dead_master_stops_nobody(play: Play) -> None:
    """Its replicas forward to the closest live one at once, and get the others' writes from
    peers.
    """

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        replica, client = await _replica_with_x(c)
        m1.crash()
        written = await client.put(replica, "/x/d", {"v": 1})
        assert written.status == 201
        await c.until(lambda: replica.leaves("x", "d") == [written.json["rev"]], 15)
        c.start(m1)

    play(body, masters=3)


def test_a_stopped_replica_goes_on_where_it_was(play: Play) -> None:
    """For 30 seconds; meanwhile writes are accepted and other replicas show them."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        stopped, other = c.group("m1")[1:]
        await m1.create("x")
        await c.settled()
        stopped.stop()
        for number in range(60):
            await m1.put("x", f"d{number}", number)
            await c.passes(0.5)
        assert other.leaves("x", "d59")
        assert not stopped.leaves("x", "d0")
        stopped.go_on()

    play(body, masters=2, replicas=2)


def test_a_replica_without_its_board_follows_all_the_same(play: Play) -> None:
    """What the board does not bring, its master is asked for."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        replica = c.group("m1")[1]
        await m1.create("x")
        await c.settled()
        c.cut_from_board(replica)
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: replica.leaves("x", "d") == [rev], 20)

    play(body, masters=2)


def test_masters_fetch_from_each_other_while_the_board_is_away(play: Play) -> None:
    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        await c.settled()
        c.board.up = False
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: all(n.leaves("x", "d") == [rev] for n in c.nodes), 30)
        assert m1.count("outbox") == 1
        c.board.up = True

    play(body, masters=2, replicas=2)


def test_a_lone_master_whose_file_is_gone_finds_it_all_at_its_replicas(play: Play) -> None:
    """There is no other master whom it would ask, and replicas push nothing: it asks them."""

    async def body(c: Cluster) -> None:
        (m1,) = await c.with_database("x")
        revs = [await m1.put("x", f"d{number}", number) for number in range(20)]
        await c.settled()
        m1.crash()
        m1.lose_file()
        c.losses.disk_lost(m1)
        c.board.truncate(keep=0)
        c.start(m1)
        await c.until(lambda: m1.leaves("x", "d19") == [revs[19]], 10)
        await m1.put("x", "d0", "again", parent=revs[0])

    play(body, masters=1, replicas=2)


def test_what_a_master_has_applied_and_not_passed_on_it_passes_on_later(play: Play) -> None:
    """It dies in between: it reads the Masters' Board again from what its own board has."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica = c.group("m2")[1]
        await m1.create("x")
        await c.settled()
        c.board.refuses = topics.replicas(m2.config.keys.cluster, "m2")
        # Only its board can tell it: no node may.
        c.cut([replica], [node for node in c.nodes if node is not replica])
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: m2.leaves("x", "d") == [rev])
        await c.passes(2)
        m2.restart()
        c.board.refuses = ""
        await c.until(lambda: replica.leaves("x", "d") == [rev], 10)
        c.heal()

    play(body, masters=2, limits=STEADY)


def test_a_write_that_is_visible_is_seen_on_every_live_node(play: Play) -> None:
    """One that is cut off is waited for until its lease has run out, and not after."""

    async def body(c: Cluster) -> None:
        client = Client(c)
        replica, last = c.group("m1")[1:]
        await client.put(replica, "/x", {})
        await c.settled()
        c.faults.delay_s = 0.1
        for number in range(5):
            answer = await client.put(replica, f"/x/d{number}", {}, divan_concern="visible")
            assert answer.header("divan-concern") == "visible"
            assert all(node.leaves("x", f"d{number}") for node in c.nodes)
        c.faults.delay_s = 0.002
        c.cut([last], [node for node in c.nodes if node is not last])
        c.cut_from_board(last)
        answer = await client.put(replica, "/x/cut", {}, divan_concern="visible")
        assert answer.header("divan-concern") == "visible"
        assert not last.peers.lease_holds()
        assert dict(last.standing.age())["divan-lag"] == "unknown"
        c.heal()

    play(body, masters=2, replicas=2)


def test_a_group_that_is_cut_off_may_be_read_and_is_counted(play: Play) -> None:
    """Its nodes renew each other's leases, and nobody hears of them: a write that they may not have
    is not called visible. It is not waited for either: nobody knows how long that takes.
    """

    async def body(c: Cluster) -> None:
        replica, client = c.group("m2")[1], Client(c)
        await client.put(replica, "/x", {})
        await c.settled()
        c.cut(c.group("m1"), c.group("m2"))
        c.cut_from_board(*c.group("m1"))
        await c.passes(5)
        assert all(node.peers.lease_holds() for node in c.group("m1"))
        began = c.loop.time()
        answer = await client.put(replica, "/x/d", {}, divan_concern="visible")
        assert answer.header("divan-concern") == "board"
        assert answer.header("divan-visible") == "2/4"
        assert c.loop.time() - began < 1
        assert not c.group("m1")[1].leaves("x", "d")
        # Those who read there are told that they may lack what m2 wrote.
        found = await client.get(c.group("m1")[1], "/x/d")
        assert (found.header("divan-silent") or "").startswith("m2=")
        c.heal()
        await c.settled()
        await c.passes(3)  # what hung on the cut links is given up
        answer = await client.put(replica, "/x/e", {}, divan_concern="visible")
        assert answer.header("divan-concern") == "visible"

    play(body, masters=2)


def test_a_node_that_only_another_master_hears_of_is_counted(play: Play) -> None:
    """It is cut off from the master that is asked, for which its own heartbeats speak no more."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        client, replica = Client(c), c.group("m1")[1]
        await client.put(m1, "/x", {})
        await c.settled()
        c.cut([m1], [replica])
        c.cut_from_board(replica)
        replica.peers.fetch = None
        await c.until(lambda: replica.name in {p.member.name for p in m2.peers.live()})
        # What m2 says of others unasked does not come any more.
        m2.peers._known[m1.name].beats = m1.peers._known[m2.name].beats = 1
        with mock.patch.object(peers, "NAMES_EVERY", 10**9):
            await c.passes(4)
            assert not m1.peers.is_known(m1.peers._known[replica.name])
            answer = await client.put(m1, "/x/d", {}, divan_concern="visible")
        assert replica.peers.lease_holds()
        assert answer.header("divan-visible") == "3/4"
        replica.restart()
        c.heal()

    play(body, masters=2)


def test_nodes_that_are_dead_are_not_counted(play: Play) -> None:
    """A master alone, or replicas without any master, have nobody who renews their leases."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        client = Client(c)
        await client.put(m1, "/x", {})
        await c.settled()
        for number, dead in enumerate(([m1], c.group("m1")[1:], [*c.group("m1")[1:], m1])):
            for node in dead:
                node.crash()
            await c.passes(5)
            answer = await client.put(m2, f"/x/d{number}", {}, divan_concern="visible")
            reached = "visible" if len(dead) < 3 else "board"
            assert answer.header("divan-concern") == reached, number
            for node in dead:
                c.start(node)
            await c.settled()

    play(body, masters=2, replicas=2)


def test_concern_board_outlives_its_master(play: Play) -> None:
    """Approved with ``board``, a write is read elsewhere though its master never comes back."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        client = Client(c)
        await client.put(m1, "/x", {})
        await c.settled()
        c.faults.lost_answers = 0.5
        answer = await client.put(c.group("m1")[1], "/x/d", {}, divan_concern="board")
        assert answer.header("divan-concern") == "board"
        m1.crash()
        await c.until(lambda: bool(m2.leaves("x", "d")), 10)
        c.start(m1)

    play(body, masters=2)


def test_trace_15_a_checkpoint_is_not_answered_before_its_documents_are_safe(
    play: Play,
) -> None:
    """A session writes through m1, which reaches nobody, and its checkpoint through m2."""

    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        client = Client(c, carries="header")
        await client.put(m2, "/x", {})
        await c.settled()
        c.cut([m1], [node for node in c.nodes if node is not m1])
        c.cut_from_board(m1)
        assert (await client.put(m1, "/x/d", {"v": 1})).status == 201
        await c.passes(3)
        assert (await client.put(m2, "/x/_local/c", {"v": 1})).status == 503
        assert (await client.post(m2, "/x/_ensure_full_commit", {})).status == 503
        c.heal()
        await c.settled()
        assert (await client.put(m2, "/x/_local/c", {"v": 1})).status == 201

    play(body, masters=3)


def test_a_master_goes_on_as_before_with_nobody_else_to_tell(play: Play) -> None:
    """Alone behind cuts, without a board, it takes writes and answers; its lag is unknown."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        client = Client(c)
        await client.put(m1, "/x", {})
        await c.settled()
        c.cut([m1], [node for node in c.nodes if node is not m1])
        c.cut_from_board(m1)
        await c.passes(5)
        assert (await client.put(m1, "/x/d", {"v": 1})).status == 201
        found = await client.get(m1, "/x/d")
        assert found.json["v"] == 1
        assert found.header("divan-lag") == "unknown"
        c.heal()

    play(body, masters=2)


def test_rule_3_the_board_refuses_who_has_no_business_there(play: Play) -> None:
    """A replica has none at the Masters' Board, nobody at another group's; nobody makes topics."""

    async def body(c: Cluster) -> None:
        cluster = c.masters[0].config.keys.cluster
        own, other = topics.replicas(cluster, "m1"), topics.replicas(cluster, "m2")
        for name, topic, writes in (
            ("m1-r1", topics.masters(cluster), False),
            ("m1-r1", topics.masters(cluster), True),
            ("m1-r1", own, True),
            ("m1-r1", other, False),
            ("m1", other, False),
            ("m1", other, True),
        ):
            board = c.board.connect(name)
            with pytest.raises(Refused):
                if writes:
                    await board.publish(topic, 0, [b"m"])
                else:
                    await board.read(topic, 0, 0, bytes_max=1, wait_s=0)
        assert c.board.messages(topics.masters(cluster)) == []

    play(body, masters=2)


def test_a_large_document_and_its_attachment_reach_every_replica(play: Play) -> None:
    """They travel in pieces, over both boards."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        await c.settled()
        await m1.put("x", "large", "x" * 600_000)
        await m1.put_attachment("x", "d", bytes(range(256)) * 2048)
        await c.until(lambda: all(n.leaves("x", "d") for n in c.nodes), 20)

    play(body, masters=2)


def test_trace_12_a_page_moves_while_an_answer_is_read_and_the_responder_dies(
    play: Play,
) -> None:
    """Half an answer counts for nothing: what was read of it is there, the vector is not."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        revs = [await m1.put("x", f"d{number:02}", number) for number in range(80)]
        await c.settled()
        m3.crash()

        async def edit(number: int, value: object) -> None:
            revs[number] = await m1.put("x", f"d{number:02}", value, parent=revs[number])

        async def move() -> None:
            with contextlib.suppress(Gone):
                for number in range(40, 60):  # behind what is being read
                    await edit(number, "moved")

        for number in range(80):
            await edit(number, "x" * 1000)
        await c.settled([m1, m2])
        c.board.truncate(keep=0)
        c.cut_from_board(m3)
        c.cut(m3, [node for node in c.nodes if node not in (m1, m3)])
        before = dict(m3.ledger.vector)
        c.start(m3)
        moving = asyncio.ensure_future(move())
        await c.until(lambda: m3.leaves("x", "d20") == [revs[20]], look_s=0.001)
        m1.crash()
        await moving
        await c.passes(5)
        assert m3.leaves("x", "d20") == [revs[20]]
        assert m3.leaves("x", "d79") != [revs[79]]
        assert m3.ledger.vector == before
        c.heal()
        c.start(m1)
        await c.settled()
        assert all(m3.leaves("x", f"d{number:02}") == [revs[number]] for number in range(80))

    play(body, masters=3)


def test_trace_28_a_copy_of_the_file_ends_while_writes_go_on(play: Play) -> None:
    """A new replica gets it in ranges, and follows from its vector: also what was written since."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        for number in range(50):
            await m1.put("x", f"d{number}", number)
        await c.settled()
        done = False

        async def write_on() -> None:
            number = 0
            while not done:
                await m1.put("x", f"e{number}", number)
                await asyncio.sleep(0.005)
                number += 1

        writing = asyncio.ensure_future(write_on())
        await c.passes(0.1)
        new = await c.add_replica("m1")
        copier = Client(c, "copier")
        copier.user = new.credential
        offer = (await copier.post(m1, "/_divan/snapshot", {})).json
        part = new.folder / "part"
        with part.open("wb") as copy:
            for start in range(0, offer["size_bytes"], RANGE_BYTES):
                end = start + RANGE_BYTES - 1
                piece = await copier.bytes(m1, f"/_divan/snapshot/{offer['id']}", start, end)
                copy.write(piece)
        snapshot.adopt(part)
        c.board.truncate(keep=0)
        c.start(new)
        assert new.leaves("x", "d49")
        await c.passes(0.2)
        done = True
        await writing
        await c.settled()
        assert new.leaves("x", "e0")

    play(body, masters=2)


def test_trace_30_documents_are_not_read_before_the_security_that_protects_them(
    play: Play,
) -> None:
    """It was given with the create, and comes to others later: until then the database is for
    admins alone, everywhere.
    """

    async def body(c: Cluster) -> None:
        admin, eve, joe = Client(c, "admin"), Client(c, "eve"), Client(c, "joe")
        m1 = c.masters[0]
        await admin.put(m1, "/_users", {})
        for one in (eve, joe):
            user = {"name": one.name, "password": "pw", "roles": [], "type": "user"}
            await admin.put(m1, f"/_users/org.couchdb.user:{one.name}", user)
            one.log_in(one.name, "pw")
        await c.settled()
        c.faults.delay_s = 0.3
        security = orjson.dumps({"members": {"names": ["joe"]}})
        making = m1.process.do(m1.entry.create_database("x", {}, security))
        await making
        await admin.put(m1, "/x/secret", {"v": 1})
        seen: set[str] = set()
        while len(seen) < len(c.nodes):
            for node in c.nodes:
                assert (await eve.get(node, "/x/secret")).status in (403, 404)
                if (await joe.get(node, "/x/secret")).status == 200:
                    seen.add(node.name)
            await c.passes(0.05)

    play(body, masters=2, replicas=2)


def test_registers_set_at_replicas_end_alike(play: Play) -> None:
    """`_security` through all entry nodes at once, one of them with a clock an hour behind."""

    async def body(c: Cluster) -> None:
        client = Client(c)
        await client.put(c.replicas[0], "/x", {})
        await c.settled()
        c.replicas[0].clock.offset_ms = -3_600_000
        await asyncio.gather(
            *(
                client.put(node, "/x/_security", {"members": {"names": [node.name]}})
                for node in c.replicas
            )
        )
        await c.settled()
        assert len({n.register("x", registers.SECURITY, "") for n in c.nodes}) == 1
        # A later one wins, whatever its node's clock says.
        await client.put(c.replicas[0], "/x/_security", {"members": {"names": ["last"]}})
        await c.settled()
        assert b"last" in (c.masters[-1].register("x", registers.SECURITY, "") or b"")

    play(body, masters=2, replicas=2)


def test_trace_26_what_is_visible_is_seen_by_all_who_know_how_old_their_view_is(play: Play) -> None:
    """A replica is cut off and goes on answering. Once a write is called visible, it either shows
    it or says that it does not know how old its view is.
    """

    async def body(c: Cluster) -> None:
        m1, replica = c.group("m1")[:2]
        client, reader = Client(c), Client(c, "reader")
        await client.put(m1, "/x", {})
        await c.settled()
        c.cut([replica], [node for node in c.nodes if node is not replica])
        c.cut_from_board(replica)
        visible: list[float] = []

        async def write() -> None:
            answer = await client.put(m1, "/x/d", {"v": 1}, divan_concern="visible")
            assert answer.header("divan-concern") == "visible"
            visible.append(c.loop.now_s)

        writing = asyncio.ensure_future(write())
        knew, since = 0, 0
        while not visible or c.loop.now_s < visible[0] + 2:
            asked_s = c.loop.now_s
            answer = await reader.get(replica, "/x/d")
            assert answer.status == 404
            if visible and asked_s > visible[0]:
                assert answer.header("divan-lag") == "unknown"
                since += 1
            else:
                knew += answer.header("divan-lag") != "unknown"
            await c.passes(0.01)
        await writing
        assert knew and since
        c.heal()

    play(body, masters=2, replicas=2)


def test_trace_20_an_attachment_that_was_collected_comes_back_with_who_still_uses_it(
    play: Play,
) -> None:
    """m1 has written a second document with it, which nobody has, and goes away. The first is
    deleted, its bytes are unused for long, and collected. Then m1 returns.
    """
    data = bytes(range(200)) * 40

    async def body(c: Cluster) -> None:
        m1, m2 = await c.with_database("x")
        client = Client(c)
        first = await m1.put_attachment("x", "a", data)
        await c.settled()
        c.cut(c.group("m1"), c.group("m2"))
        c.cut_from_board(m1)
        second = await m1.put_attachment("x", "b", data)
        m1.crash()
        await m2.put("x", "a", 0, parent=first, deleted=True)
        await c.settled(c.group("m2"))
        for node in c.group("m2"):
            assert (await client.post(node, "/x/_compact", {})).status == 202
        await c.until(lambda: all(not node.count("blob") for node in c.group("m2")), 60)
        c.heal()
        c.start(m1)
        await c.settled()
        assert all(node.leaves("x", "b") == [second] for node in c.nodes)
        for node in c.nodes:
            assert await client.bytes(node, "/x/b/a", 0, len(data) - 1) == data

    play(body, masters=2, replicas=1, limits=Limits(unused_blob_age_s=5))
