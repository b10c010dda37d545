"""Finished origins leave the vectors, and nothing that was said before is misunderstood."""

from collections.abc import Callable

from divandb import cursor
from divandb.cluster import sessions
from tests.sim.checkers import VectorsAreUnderstood
from tests.sim.client import Client, Follower
from tests.sim.cluster import STEADY, Cluster
from tests.sim.node import Node
from tests.sim.test_failover import owner, taken_over, with_x

Play = Callable[..., Cluster]
CLOSED_S = 30.0
"""After so long of quiet nothing is left that could be closed."""


def live(c: Cluster) -> set[int]:
    """The origins under which somebody may still write."""
    return {n.ledger.origin for n in c.nodes if n.tenure.serves and n.ledger.origin is not None}


def named(node: Node) -> set[int]:
    """The origins that its vector names to others."""
    return {origin for origin, oseq in node.progress.told.items() if oseq}


async def closed(c: Cluster) -> None:
    """Until all vectors name live origins only."""
    await c.until(lambda: all(named(node) <= live(c) for node in c.nodes), CLOSED_S)


async def restarted(c: Cluster, client: Client, node: Node, times: int) -> None:
    """A master opens an origin in each of so many runs."""
    for _ in range(times):
        node.restart()
        await c.until(lambda: node.tenure.serves)
        path = f"/x/{node.name}-{c.loop.time():.6f}"
        assert (await client.put(node, path, {})).status == 201


def test_a_cluster_that_was_started_often_has_vectors_of_its_live_origins(play: Play) -> None:
    """Heartbeats, cursors, tokens and marks as well; in memory nothing is forgotten."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        for node in c.masters:
            await restarted(c, client, node, 12)
        await closed(c)
        await c.settled()
        token = Client(c, "reader", "header")
        for node in c.nodes:
            assert len(node.vector) > 24
            assert len(node.peers.said().vector) <= 2
            assert all(len(mark.wrote) <= 1 for mark in node.peers.said().marks)
            assert set(node.peers.said().slots) <= live(c)
            found = await token.get(node, "/x/_changes")
            _, place = cursor.parse(found.json["last_seq"])
            assert place is not None and set(place.vector) <= live(c)
            assert set(sessions.parse(token.token).vector) <= live(c)
            digest = (await client.get(node, "/x/_divan/digest")).json
            assert len(digest["vector"]) <= 2
        # What is stored from now on names them alone, too.
        for number in range(20):
            await client.put(c.masters[0], f"/x/later{number}", {})
        await c.settled()
        for node in c.nodes:
            marks = node.connection.execute("SELECT vector FROM mark ORDER BY db, seq").fetchall()
            assert len(bytes(marks[-1][0])) < 60

    play(body, masters=2, replicas=2)


def test_nothing_is_opened_or_ended_where_nothing_is_written(play: Play) -> None:
    """A cluster that starts again and again and is only read keeps the origins that it has."""

    async def body(c: Cluster) -> None:
        await with_x(c)
        await closed(c)
        before = c.nodes[0].vector
        for _ in range(3):
            for node in c.nodes:
                node.restart()
            await c.passes(8)
        assert all(node.vector == before for node in c.nodes)

    play(body, masters=2, replicas=1)


def test_cursors_and_tokens_from_before_are_good_on_every_node(play: Play) -> None:
    """They name origins that nobody speaks of any more; and nothing is read twice for it."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, m2 = c.masters
        writer = Client(c, "writer", "header")
        browser = Client(c, "browser", "cookies")
        for number in range(30):
            await client.put(m1, f"/x/a{number}", {})
        assert (await writer.put(m1, "/x/mine", {"v": 1})).status == 201
        assert (await browser.put(m2, "/x/his", {"v": 1})).status == 201
        old = writer.token
        await c.settled()
        followers = [Follower(Client(c, f"f{n}"), "x", by_rows=n == 1) for n in range(2)]
        for follower in followers:
            await follower.poll(c.nodes[-1], 1000)
        taken = [follower.since for follower in followers]
        await restarted(c, client, m1, 3)
        await restarted(c, client, m2, 3)
        await closed(c)
        await c.settled()
        for node in c.nodes:
            for follower, since in zip(followers, taken, strict=True):
                follower.since = since
                assert await follower.poll(node, 1000) == 6
                assert await follower.poll(c.nodes[0], 1000) == 0
            writer.token = old
            for reader, path in ((writer, "/x/mine"), (browser, "/x/his")):
                found = await reader.get(node, path)
                assert found.json["v"] == 1 and found.header("divan-session-behind") is None
            assert set(sessions.parse(writer.token).vector) <= live(c)

    play(body, masters=2, replicas=1)


def test_a_reader_that_hops_while_origins_are_closed_reads_nothing_twice(play: Play) -> None:
    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1 = c.masters[0]
        for number in range(40):
            await client.put(m1, f"/x/a{number}", {})
        await c.settled()
        follower = Follower(Client(c, "follower"), "x")
        seen = await follower.poll(c.nodes[0], 1000)
        await restarted(c, client, m1, 4)
        await c.settled()
        seen += await follower.poll(c.nodes[1], 1000)
        assert seen == 44
        again = 0
        for number in range(200):
            again += await follower.poll(c.nodes[number % len(c.nodes)], 1000)
            await c.passes(0.1)
        assert again == 0
        await closed(c)

    play(body, masters=2, replicas=1)


def test_a_member_that_is_away_holds_closing_up(play: Play) -> None:
    """Until it has caught up, by little: what was closed before is not sent again."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, away = c.masters[0], c.group("m2")[1]
        for number in range(50):
            await client.put(m1, f"/x/a{number}", {})
        await restarted(c, client, m1, 2)
        await closed(c)
        await c.settled()
        away.crash()
        await restarted(c, client, m1, 3)
        await c.passes(CLOSED_S)
        assert len(named(m1)) >= 3
        c.board.forget()  # so that it has to ask a node
        c.start(away)
        await closed(c)
        await c.settled()
        assert 0 < away.fetcher.events < 60

    play(body, masters=2, replicas=1)


def test_a_member_that_is_away_comes_back_among_nodes_that_name_less(play: Play) -> None:
    """It understands them: they leave out nothing of which it has not heard."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        away = c.group("m2")[1]
        away.crash()
        await restarted(c, client, c.masters[0], 3)
        await c.passes(10)
        # It hears what its master says, and has nothing of what it missed yet.
        c.cut_from_board(away)
        c.board.forget()
        c.start(away)
        await c.passes(2)
        c.heal()

    play(body, masters=2, replicas=1)


def test_a_disk_that_was_put_back_to_before_takes_what_it_lacks(play: Play) -> None:
    """Others speak no more of origins that it has never heard of, or heard only the beginning of;
    it answers no session with less than it wrote.
    """

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, replica = c.masters[0], c.group("m2")[1]
        writer = Client(c, "writer", "header")
        assert (await writer.put(m1, "/x/a", {"v": 1})).status == 201
        await c.settled()
        earlier = replica.platter.image()
        for number in range(20):
            await client.put(m1, f"/x/a{number}", {})
        assert (await writer.put(m1, "/x/b", {"v": 1})).status == 201
        old = writer.token
        await restarted(c, client, m1, 3)
        await closed(c)
        await c.settled()
        replica.crash()
        replica.platter.put_back(earlier)
        c.losses.disk_lost(replica)
        c.board.forget()
        c.start(replica)
        for token in (old, writer.token):
            writer.token = token
            assert (await writer.get(replica, "/x/b")).json["v"] == 1
        await c.settled()
        await closed(c)

    play(body, masters=2, replicas=1)


def test_who_has_heard_of_an_end_and_lacks_a_part_says_so(play: Play) -> None:
    """Its disk was put back, the board has only the last run's events, and it reaches nobody else.
    Its vector names what it lacks, a session is told that it is behind, and its view is not young.
    """

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, replica = c.masters[0], c.group("m1")[1]
        await client.put(m1, "/x/a", {"v": 1})
        await c.settled()
        earlier = replica.platter.image()
        writer = Client(c, "writer", "header")
        assert (await writer.put(m1, "/x/b", {"v": 1})).status == 201
        old = m1.ledger.origin
        await c.settled()
        c.board.truncate(keep=0)
        await restarted(c, client, m1, 1)
        await closed(c)
        await c.settled()
        assert (await writer.get(m1, "/x/b")).status == 200
        assert old not in sessions.parse(writer.token).vector
        replica.crash()
        replica.platter.put_back(earlier)
        c.losses.disk_lost(replica)
        c.cut([replica], [n for n in c.nodes if n is not replica])
        c.start(replica)
        await c.until(lambda: replica.ledger.closings.closed == 1)
        await c.passes(2)
        assert named(replica) == {old, *live(c)}
        assert (await writer.get(replica, "/x/b")).header("divan-session-behind") == "true"
        c.heal()
        await c.settled()
        await closed(c)

    play(body, masters=1, replicas=1, limits=STEADY)


def test_what_an_owner_left_that_was_replaced_is_closed_when_it_is_back(play: Play) -> None:
    """It may have more than its successor knows: then that is where its origin ends."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1 = c.masters[0]
        await client.put(m1, "/x/a", {})
        await c.settled()
        c.cut([m1], [n for n in c.nodes if n is not m1])
        c.cut_from_board(m1)
        await client.put(m1, "/x/b", {})
        old = m1.ledger.origin
        assert old is not None
        upto = m1.vector[old]
        m1.crash()
        new = await taken_over(c, "m1", m1)
        await client.put(new, "/x/c", {})
        await c.passes(CLOSED_S)
        assert old in named(new)
        c.heal()
        c.start(m1)
        await closed(c)
        assert owner(c, "m1") is new
        assert all(n.vector[old] == upto for n in c.nodes)
        assert all(n.leaves("x", "b") for n in c.nodes)

    play(body, masters=2, replicas=2)


def test_who_joins_understands_what_the_others_say(play: Play) -> None:
    """With nothing but what nodes and boards tell it."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        await restarted(c, client, c.masters[0], 4)
        await closed(c)
        replica = await c.add_replica("m2")
        c.start(replica)
        await c.settled()
        assert named(replica) <= live(c)
        master = await c.add_master()
        c.start(master)
        await c.settled()
        await client.put(master, "/x/new", {})
        await c.settled()
        await closed(c)
        assert len(named(master)) <= 3

    play(body, masters=2, replicas=1)


def test_two_owners_of_a_slot_end_each_others_origins(play: Play) -> None:
    """Cut from each other and from the board; in the end one origin is left."""

    async def body(c: Cluster) -> None:
        client = await with_x(c)
        m1, one, other = c.group("m1")
        c.board.up = False
        m1.crash()
        c.cut([one], [other])
        await c.until(lambda: one.tenure.serves and other.tenure.serves, 10)
        assert (await client.put(one, "/x/a", {"v": 1})).status == 201
        assert (await client.put(other, "/x/a", {"v": 2})).status == 201
        c.mend()
        await c.settled()
        await c.passes(3)
        await client.put(owner(c, "m1"), "/x/b", {})
        await closed(c)
        checker = next(one for one in c.checkers if isinstance(one, VectorsAreUnderstood))
        await c.passes(2 * checker.every_s)
        assert checker.short

    play(body, masters=1, replicas=2)
