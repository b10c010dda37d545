"""Scenarios of readers: sessions, the age of a view, cursors that move between nodes."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from divandb.cluster.peers import Peers
from divandb.config import Limits
from divandb.httpd import listing
from tests.sim.checkers import LagReturns
from tests.sim.client import Client, Follower, Notebook
from tests.sim.cluster import STEADY, Cluster
from tests.sim.node import Node

Play = Callable[..., Any]


def _left_behind(c: Cluster, node: Node) -> None:
    """Neither its board nor its peers bring it anything; it has what it asks for itself."""
    c.cut_from_board(node)
    node.peers.fetch = None


def test_trace_21_a_cursor_from_a_page_says_no_more_than_the_page_has_shown(play: Play) -> None:
    """25 of 300 changes at one node, the rest at another, whose places are others."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        here, there = c.group("m1")[1], c.group("m2")[1]
        await m1.create("x")
        await c.settled()
        for number in range(150):
            await m1.put("x", f"a{number}", 1)
            await m2.put("x", f"b{number}", 1)
        await c.settled()
        for first, second in ((here, there), (there, here), (m1, there)):
            follower = Follower(Client(c), "x")
            assert await follower.poll(first, 25) == 25
            await follower.poll(second, 1000)
            follower.check_all()

    play(body, masters=2, mark_changes_max=100)


def test_what_two_nodes_have_shown_is_less_than_both_their_marks_say(play: Play) -> None:
    """One has shown `a` as m1 wrote it. The other has a mark that covers what m2 wrote of it, but
    since `a` moved behind the page: nobody has shown that. A third node must.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = await c.with_database("x")
        c.cut(c.group("m1"), c.group("m2"))
        c.cut_from_board(m1, m2)
        for master in (m1, m2):
            for name in ("a", *(f"{master.name}-{number}" for number in range(8))):
                await master.put("x", name, master.name)
        follower = Follower(Client(c), "x")
        await follower.poll(m1, 100)
        c.heal()
        await c.settled()
        await follower.poll(m2, 8)
        await follower.poll(m1, 100)
        follower.check_all()

    play(body, masters=2)


def test_a_reader_that_moves_at_each_poll_misses_nothing_while_all_write(play: Play) -> None:
    async def body(c: Cluster) -> None:
        for node in c.masters:
            await node.create("x")
        await c.settled()
        follower = Follower(Client(c), "x")
        done = False

        async def write() -> None:
            for number in range(100):
                node = c.masters[number % 2]
                shown = node.row("x", f"d{number % 30}").document.shown()
                parent = shown[0].rev if shown else None
                await node.put("x", f"d{number % 30}", number, parent=parent)

        writing = asyncio.ensure_future(write())
        while not done:
            done = writing.done()
            await follower.poll(c.rng.choice(c.nodes), c.rng.choice([1, 10, 50]))
        await c.settled()
        await follower.poll(c.nodes[-1], 1000)
        follower.check_all()

    play(body, masters=2, replicas=2)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_reader_of_short_pages_that_moves_at_each_poll_comes_to_the_end(
    play: Play, by_rows: bool
) -> None:
    """Between two marks, 100 changes apart, its cursors must move on, too."""

    async def body(c: Cluster) -> None:
        await c.masters[0].create("x")
        await c.settled()
        for number in range(300):
            await c.masters[number % 2].put("x", f"d{number}", 1)
        await c.settled()
        for number in range(0, 300, 3):
            revs = c.masters[0].row("x", f"d{number}").document.shown()
            await c.masters[(number + 1) % 2].put("x", f"d{number}", 2, parent=revs[0].rev)
        await c.settled()
        follower = Follower(Client(c), "x", by_rows=by_rows)
        while await follower.poll(c.rng.choice(c.nodes), 7):
            assert follower.polls < 80  # 43 without a repetition
        follower.check_all()

    play(body, masters=2, mark_changes_max=100)


def test_trace_22_a_cursor_outlives_the_file_that_gave_it(play: Play) -> None:
    """A node's file is lost and filled again, in another order: N means another place there."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica = c.group("m1")[1]
        await m1.create("x")
        await c.settled()
        for number in range(60):
            await c.masters[number % 2].put("x", f"d{number}", 1)
        await c.settled()
        follower = Follower(Client(c), "x")
        await follower.poll(replica, 30)
        replica.crash()
        replica.lose_file()
        c.board.truncate(keep=0)
        # What comes first now is what came last.
        for number in range(20):
            (leaf,) = m2.leaves("x", f"d{number}")
            await m2.put("x", f"d{number}", 2, parent=leaf)
        c.start(replica)
        await c.settled()
        await follower.poll(replica, 1000)
        follower.check_all()

    play(body, masters=2)


def test_trace_22_a_cursor_of_a_database_that_was_made_again_begins_anew(play: Play) -> None:
    """Its N lies beyond the new one's end, or worse, within it."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        await m1.create("x")
        for number in range(30):
            await m1.put("x", f"d{number}", 1)
        await c.settled()
        followers = [Follower(Client(c, f"f{n}"), "x") for n in range(2)]
        for follower in followers:
            await follower.poll(m1, 10)
        await m2.drop("x")
        await m2.create("x")
        await m2.put("x", "few", 1)
        await c.settled()
        await followers[0].poll(m1, 1000)
        followers[0].check_all()
        for number in range(30):
            await m2.put("x", f"many{number}", 1)
        await c.settled()
        await followers[1].poll(m2, 1000)
        followers[1].check_all()

    play(body, masters=2)


def test_a_cursor_outlives_a_restart_of_its_node(play: Play) -> None:
    """After a crash the node has another numbering; nothing is missed, nor shown from the start."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        replica = c.group("m1")[1]
        await m1.create("x")
        for number in range(40):
            await m1.put("x", f"d{number}", 1)
        await c.settled()
        follower = Follower(Client(c), "x")
        await follower.poll(replica, 30)
        replica.restart()
        assert await follower.poll(replica, 1000) < 30
        follower.check_all()

    play(body, masters=2)


def test_trace_23_a_session_goes_on_after_its_master_died(play: Play) -> None:
    """It holds 1-a from a dead master and puts 2-b elsewhere: with its token that is taken on the
    unknown parent, which takes its place when it comes; without, it is a conflict.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        client, stranger = Client(c, carries="header"), Client(c, "stranger")
        await client.put(m2, "/x", {})
        await c.settled()
        c.cut(c.group("m1"), c.group("m2"))
        c.cut_from_board(m1)
        first = (await client.put(m1, "/x/d", {"v": 1})).json["rev"]
        m1.crash()
        await c.passes(3)
        second = {"v": 2, "_rev": first}
        assert (await stranger.put(m2, "/x/d", second)).status == 409
        answer = await client.put(c.group("m2")[1], "/x/d", second)
        assert answer.status == 201
        c.heal()
        c.start(m1)
        await c.settled()
        assert all(n.leaves("x", "d") == [answer.json["rev"]] for n in c.nodes)

    play(body, masters=2)


def test_a_write_does_not_wait_for_what_its_master_has(play: Play) -> None:
    """The replica that is asked has not what the session wrote; the revision that it names is
    enough. Nor does it wait for the pieces of an attachment that nothing refers to yet.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = c.group("m2")[1], Client(c, carries="header")
        await client.put(m2, "/x", {})
        await c.settled()
        _left_behind(c, replica)
        first = (await client.put(m1, "/x/d", {"v": 1})).json["rev"]
        await c.until(lambda: m2.leaves("x", "d") == [first])
        for path, body in (
            ("/x/d", {"v": 2, "_rev": first}),
            ("/x/e", {"v": 1}),
            ("/x/f", {"_attachments": {"a": {"data": "YQ=="}}}),
        ):
            began = c.loop.time()
            assert (await client.put(replica, path, body)).status == 201
            assert c.loop.time() - began < 0.1
        began = c.loop.time()
        many = [{"_id": f"g{number}"} for number in range(5)]
        assert (await client.post(replica, "/x/_bulk_docs", {"docs": many})).status == 201
        assert (await client.post(replica, "/x", {})).status == 201
        assert c.loop.time() - began < 0.1
        assert replica.leaves("x", "d") == []
        replica.restart()
        c.heal()

    play(body, masters=2)


def test_a_write_waits_where_its_parent_is_chosen_by_what_is_shown(play: Play) -> None:
    """A document made again after the session deleted it elsewhere, and a stub of an attachment
    that it wrote elsewhere: the replica fetches what it lacks, and neither is refused.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = c.group("m2")[1], Client(c, carries="header")
        await client.put(m2, "/x", {})
        first = (await client.put(m2, "/x/d", {"v": 1})).json["rev"]
        await c.settled()
        _left_behind(c, replica)
        gone = (await client.delete(m1, f"/x/d?rev={first}")).json["rev"]
        await c.until(lambda: m2.leaves("x", "d") == [gone])
        again = await client.put(replica, "/x/d", {"v": 2})
        assert (again.status, again.json["rev"][:2]) == (201, "3-")
        body = {"_attachments": {"a": {"data": "YQ=="}}}
        first = (await client.put(m1, "/x/e", body)).json["rev"]
        await c.until(lambda: m2.leaves("x", "e") == [first])
        assert replica.leaves("x", "e") == []
        body = {"_rev": first, "_attachments": {"a": {"stub": True}}}
        assert (await client.put(replica, "/x/e", body)).status == 201
        replica.restart()
        c.heal()

    play(body, masters=2)


def test_a_write_into_a_database_that_its_session_made_anew_elsewhere(play: Play) -> None:
    """The replica knows another one of that name, and learns better: nothing goes into that."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        replica, client = c.group("m2")[1], Client(c, carries="header")
        await client.put(m2, "/x", {})
        await c.settled()
        _left_behind(c, replica)
        assert (await client.delete(m1, "/x")).status == 200
        assert (await client.put(m1, "/x", {})).status == 201
        await c.until(lambda: m2.ledger.register["x"].generation == 2)
        assert replica.ledger.register["x"].generation == 1
        assert (await client.put(replica, "/x/d", {"v": 1})).status == 201
        assert (await client.delete(m1, "/x")).status == 200
        assert (await client.put(replica, "/x/e", {"v": 1})).status == 404
        replica.restart()
        c.heal()

    play(body, masters=2)


def test_trace_24_cookies_of_two_slots_do_not_overwrite_each_other(play: Play) -> None:
    """Two writes at once, through two masters; then a read where neither has arrived."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        third = c.group("m3")[1]
        client = Client(c, carries="cookies")
        await client.put(m1, "/x", {})
        await c.settled()
        answers = await asyncio.gather(
            client.put(c.group("m1")[1], "/x/a", {"v": 1}),
            client.put(c.group("m2")[1], "/x/b", {"v": 1}),
        )
        assert [answer.status for answer in answers] == [201, 201]
        ours = third.standing.cookie_prefix
        assert {ours + "m1", ours + "m2"} <= client.cookies.keys()
        assert not third.leaves("x", "a") or not third.leaves("x", "b")
        found = await asyncio.gather(client.get(third, "/x/a"), client.get(third, "/x/b"))
        assert [answer.status for answer in found] == [200, 200]

    play(body, masters=3)


def test_trace_27_the_age_of_a_view_stays_small_when_an_owner_dies(play: Play) -> None:
    """The slot is silent and named, with its age; the lag counts those that live."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        client = Client(c)
        await client.put(m1, "/x", {})
        await client.put(m1, "/x/d", {"v": 1})
        await c.settled()
        m1.crash()
        await c.passes(10)
        for node in (m2, m3, *c.replicas):
            answer = await client.get(node, "/x/d", divan_max_staleness="2000")
            assert answer.status == 200
            assert int(answer.header("divan-lag") or "") < 2000
            silent = answer.header("divan-silent") or ""
            assert silent.startswith("m1=")
            assert int(silent.removeprefix("m1=")) > 5000
        c.start(m1)
        await c.settled()
        await c.passes(2)
        assert all("divan-silent" not in dict(node.standing.age()) for node in c.nodes)

    play(body, limits=STEADY, masters=3)


def test_what_an_owner_wrote_before_it_was_started_again_counts(play: Play) -> None:
    """It is in its outbox, and nowhere else: views without it are as old as it is."""

    async def body(c: Cluster) -> None:
        m1, m2 = await c.with_database("x")
        c.cut_from_board(m1)
        await c.passes(1)
        await m1.put("x", "d", 1)
        m1.restart()
        await c.passes(1)
        assert not m2.leaves("x", "d")
        assert int(dict(m2.standing.age())["divan-lag"]) > 900
        c.heal()

    play(body, masters=2)


def test_a_view_that_is_too_old_is_not_shown_to_who_asks_for_a_young_one(play: Play) -> None:
    """A replica that gets nothing any more passes the request on to its master."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        replica = c.group("m1")[1]
        client = Client(c)
        await client.put(m1, "/x", {})
        await c.settled()
        _left_behind(c, replica)
        await client.put(m1, "/x/d", {"v": 1})
        await c.passes(4)
        assert (await client.get(replica, "/x/d")).status == 404
        young = await client.get(replica, "/x/d", divan_max_staleness="2000")
        assert young.status == 200
        replica.restart()
        c.heal()

    play(body, masters=2)


def test_a_session_reads_its_writes_wherever_it_goes(play: Play) -> None:
    """On slow links, with all three ways to carry the token; with the header nothing goes back."""

    async def body(c: Cluster) -> None:
        client = Client(c)
        await client.put(c.masters[0], "/x", {})
        await c.settled()
        c.faults.delay_s = 0.3
        books = [Notebook(Client(c, name, name), "x") for name in ("header", "cookies")]
        for number in range(20):
            for book in books:
                assert await book.write(c.nodes[number % len(c.nodes)])
                await book.read(c.rng.choice(c.nodes))
                await book.read(c.rng.choice(c.nodes))
        assert all(book.reads == 40 for book in books)

    play(body, masters=2, replicas=2)


def test_who_is_behind_asks_its_own_master_before_that_has_told_what_it_has(play: Play) -> None:
    """Heartbeats may be late; that the slot's master has what was written through it is certain."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        replica, client = c.group("m1")[1], Client(c, carries="header")
        await client.put(m1, "/x", {})
        await c.settled()
        _left_behind(c, replica)
        for number in range(5):
            assert (await client.put(m1, f"/x/d{number}", {})).status == 201
            assert (await client.get(replica, f"/x/d{number}")).status == 200
        replica.restart()
        c.heal()

    play(body, masters=2, limits=Limits(heartbeat_ms=1_500))


def test_a_session_whose_writes_nobody_has_is_answered_and_told(play: Play) -> None:
    """The freshest answers at once and says so."""

    async def body(c: Cluster) -> None:
        m1, m2 = c.masters
        client = Client(c, carries="header")
        await client.put(m2, "/x", {})
        await c.settled()
        c.cut(c.group("m1"), c.group("m2"))
        c.cut_from_board(m1)
        assert (await client.put(m1, "/x/d", {"v": 1})).status == 201
        m1.crash()
        await c.passes(3)
        answer = await client.get(c.group("m2")[1], "/x/d")
        assert answer.status == 404
        assert answer.header("divan-session-behind") == "true"
        c.heal()
        c.start(m1)
        await c.settled()
        answer = await client.get(c.group("m2")[1], "/x/d")
        assert answer.status == 200
        assert answer.header("divan-session-behind") is None

    play(body, masters=2)


def test_who_is_asked_instead_says_when_it_is_behind_too(play: Play) -> None:
    """The session wrote at m3 and at m1, which died; m3 is asked, and has only half of it."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        client = Client(c, carries="header")
        await client.put(m3, "/x", {})
        await client.put(m3, "/x/mine", {})
        await c.settled()
        c.cut([m1], [node for node in c.nodes if node is not m1])
        c.cut_from_board(m1)
        assert (await client.put(m1, "/x/d", {"v": 1})).status == 201
        m1.crash()
        await c.passes(4)
        for node in (*c.group("m1")[1:], m2, m3):
            answer = await client.get(node, "/x/d")
            assert answer.status == 404
            assert answer.header("divan-session-behind") == "true"
        c.heal()
        c.start(m1)

    play(body, masters=3)


def test_a_view_is_young_again_though_its_owner_has_lost_what_it_wrote(play: Play) -> None:
    """Its disk was put back to a time before writes that it has told of, and nobody has: they do
    not come, and what it says since counts.
    """

    async def body(c: Cluster) -> None:
        m1, m2 = await c.with_database("x")
        earlier = m1.platter.image()
        # It tells m2 of a write that nobody gets.
        c.cut_from_board(m1)
        m2.peers.fetch = None
        await m1.put("x", "lost", 1)
        await c.passes(1)
        assert int(dict(m2.standing.age())["divan-lag"]) > 500
        c.cut(m1, m2)
        m1.crash()
        m1.platter.put_back(earlier)
        c.losses.disk_lost(m1)
        c.start(m1)
        m2.peers.fetch = m2.fetcher.fetch
        c.heal()
        c.healed()
        await c.passes(LagReturns.within_s + 1)
        for node in (m1, m2):
            assert int(dict(node.standing.age())["divan-lag"]) < 1000
        assert not m2.leaves("x", "lost")

    play(body, masters=2, replicas=0)


def test_an_answer_is_as_old_as_what_it_was_made_from(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node catches up after the first page was read, and before anything was sent."""
    slow = SimpleNamespace(sleep=lambda _: asyncio.sleep(0.5))
    monkeypatch.setattr(listing, "asyncio", slow)

    async def body(c: Cluster) -> None:
        await c.with_database("x")
        m1, replica = c.group("m1")
        await m1.put("x", "a", 1)
        await c.settled()
        _left_behind(c, replica)
        await m1.put("x", "d", 1)
        await c.passes(3)
        asking = asyncio.ensure_future(Client(c).get(replica, "/x/_all_docs"))
        await c.passes(0.2)
        assert await replica.catch_up()
        answer = await asking
        assert [row["id"] for row in answer.json["rows"]] == ["a"]
        assert int(answer.header("divan-lag") or 0) >= 3_000
        again = await Client(c).get(replica, "/x/d")
        assert int(again.header("divan-lag") or 10**6) < 1_000
        c.mend()

    play(body, masters=2, replicas=1)


def test_an_owner_that_lost_its_folder_speaks_of_all_that_it_has_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote before comes back from its replica; who lacks it is not young, though nobody
    has told the owner yet whose that origin is.
    """
    said = Peers.said
    monkeypatch.setattr(
        Peers, "said", lambda *args, **names: structs.replace(said(*args, **names), slots={})
    )

    async def body(c: Cluster) -> None:
        m1, m2 = await c.with_database("x")
        replica = c.group("m1")[1]
        m1.restart()  # from here on it writes under another origin
        await c.settled()
        _left_behind(c, m2)
        await m1.put("x", "d", 1)
        await c.until(lambda: bool(replica.leaves("x", "d")))
        m1.crash()
        m1.lose_file()
        c.losses.disk_lost(m1)
        c.start(m1)
        await c.until(lambda: bool(m1.leaves("x", "d")))
        await c.passes(2)
        assert int(dict(m2.standing.age())["divan-lag"]) >= 2_000
        c.mend()

    play(body, masters=2, replicas=1, limits=STEADY)
