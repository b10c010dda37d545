"""Scenarios as sentences: each is a trace that loses data, or promises, in a careless version."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from divandb import event as events
from divandb.commands import DropDatabase
from divandb.errors import Conflict, NotFound
from divandb.event import Event
from divandb.store import blobs, registers
from tests.sim.cluster import Cluster

Body = Callable[[Cluster], Awaitable[None]]
CHECKPOINT = b'{"_id":"_local/c","_rev":"0-1"}'


def test_a_write_at_one_master_is_read_at_the_others(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        rev = await m1.put("x", "d", 1)
        await c.settled()
        assert m2.leaves("x", "d") == m3.leaves("x", "d") == [rev]

    play(body)


def test_concurrent_edits_both_stay_and_all_agree_on_the_winner(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        first = await m1.put("x", "d", 0)
        await c.settled()
        mine = await m1.put("x", "d", 1, parent=first)
        theirs = await m2.put("x", "d", 2, parent=first)
        await c.settled()
        assert m1.leaves("x", "d") == m2.leaves("x", "d") == m3.leaves("x", "d")
        assert set(m3.leaves("x", "d")) == {mine, theirs}

    play(body)


def test_the_same_edit_at_two_masters_is_one_revision(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        assert await m1.put("x", "d", 1) == await m2.put("x", "d", 1)
        await c.settled()
        assert len(m3.leaves("x", "d")) == 1

    play(body)


def test_trace_2_a_snapshot_is_of_one_moment(play: Callable[..., None]) -> None:
    """Catch-up reads while the peer goes on: what it says it contains is what it gave."""

    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        c.board.up = False
        for number in range(60):
            await m1.put("x", f"d{number}", number)
        catching = asyncio.ensure_future(m2.catch_up())
        for number in range(60, 90):
            await asyncio.sleep(0.001)
            await m1.put("x", f"d{number % 70}b", number)
        await catching
        c.board.up = True

    play(body)


def test_trace_3_a_drop_that_comes_late_spares_the_database_made_since(
    play: Callable[..., None],
) -> None:
    """A DELETE was sent to a master that was stopped and repeated at another; then the database is
    made again and written, and the first master wakes.
    """

    async def body(c: Cluster) -> None:
        m1, m2, _ = await c.with_database("x")
        late = DropDatabase("x", m1.ledger.register["x"].generation)
        await m2.execute(DropDatabase("x", late.generation, repeat=True))
        await m2.create("x")
        rev = await m2.put("x", "d", 1)
        await c.settled()
        with pytest.raises(NotFound):
            await m1.execute(late)
        assert all(n.leaves("x", "d") == [rev] for n in c.nodes)

    play(body)


def test_trace_4_a_put_that_comes_late_does_not_undo_a_deletion(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, _ = await c.with_database("x")
        late = m1.edit("d", 1)
        await m2.write("x", late, repeat=True)
        rev = f"1-{late.rev_hash}"
        gone = await m2.put("x", "d", 1, parent=rev, deleted=True)
        await c.settled()
        with pytest.raises(Conflict):
            await m1.write("x", late)
        assert all(n.leaves("x", "d") == [gone] for n in c.nodes)

    play(body)


def test_trace_6_a_repeat_is_answered_as_the_first_time(play: Callable[..., None]) -> None:
    """The first attempt's event has arrived where the second is made: no 409, and no new write."""

    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        first = await m1.put("x", "d", 0)
        edit = m1.edit("d", 1, parent=first)
        rev = await m1.write("x", edit)
        await c.settled()
        assert await m2.write("x", edit, repeat=True) == rev
        with pytest.raises(Conflict):
            await m2.write("x", edit)

    play(body)


def test_trace_7_drop_meets_create_and_writes_in_any_order(play: Callable[..., None]) -> None:
    """Higher generation wins, dropped wins within one; late events of an old one are ignored."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        await m2.create("x")  # concurrently: the same database
        await m1.put("x", "a", 1)
        await c.settled()
        await m3.drop("x")
        await m1.put("x", "b", 1)  # m1 has not heard of the drop
        await c.settled()
        await m2.create("x")
        await m2.put("x", "c", 1)
        await c.settled()
        assert not any(n.leaves("x", "a") for n in c.nodes)
        assert all(n.leaves("x", "c") for n in c.nodes)

    play(body)


def test_trace_8_ancestries_that_were_cut_still_merge_the_same(play: Callable[..., None]) -> None:
    """`_revs_limit` 3: one node is cut off at revision 5, the others go on to 20."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        rev = await m1.put("x", "d", 0)
        for number in range(1, 5):
            rev = await m1.put("x", "d", number, parent=rev)
        await c.settled()
        c.board.up = False
        await m3.put("x", "d", "aside", parent=rev)
        for number in range(5, 20):
            rev = await m1.put("x", "d", number, parent=rev)
        c.board.up = True
        await c.settled()
        assert m1.leaves("x", "d") == m2.leaves("x", "d") == m3.leaves("x", "d")

    play(body, revs_limit=3)


def test_trace_8_who_was_away_for_longer_has_no_leaf_more(play: Callable[..., None]) -> None:
    """It has revision 5 and is given 20, whose ancestry, cut to 3, does not name 5 any more."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        rev = await m1.put("x", "d", 0)
        for number in range(1, 5):
            rev = await m1.put("x", "d", number, parent=rev)
        await c.settled()
        c.board.up = False
        c.cut([m3], [node for node in c.nodes if node is not m3])
        for number in range(5, 20):
            rev = await m1.put("x", "d", number, parent=rev)
        c.board.up = True
        c.heal()
        await c.settled()
        assert m1.leaves("x", "d") == m2.leaves("x", "d") == m3.leaves("x", "d") == [rev]

    play(body, revs_limit=3)


def test_trace_9_a_purge_does_not_come_back_with_the_next_event(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        rev = await m1.graft("x", "d", "1-a", "gone")
        await m1.graft("x", "d", "1-b", "stays")
        await c.settled()
        await m1.purge("x", "d", rev)
        await m2.put("x", "d", "on", parent="1-b")  # has not heard of the purge
        await c.settled()
        assert all(rev not in n.leaves("x", "d") for n in c.nodes)

    play(body)


def test_trace_10_no_number_is_used_twice_after_a_crash(play: Callable[..., None]) -> None:
    """Each run opens an origin of its own."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        first = m1.ledger.origin
        m1.crash()
        await c.passes(1)
        c.start(m1)
        await m1.put("x", "d", 1)
        assert m1.ledger.origin != first

    play(body)


def test_trace_10_no_number_is_used_twice_when_a_folder_is_put_back(
    play: Callable[..., None],
) -> None:
    """It is that of an earlier day. What was written since has left it, and stays; what it writes
    from now on has another origin.
    """

    async def body(c: Cluster) -> None:
        m1, m2, _ = await c.with_database("x")
        await m1.put("x", "before", 1)
        earlier = m1.platter.image()
        revs = [await m1.put("x", f"d{number}", number) for number in range(5)]
        await c.settled()
        origin = m1.ledger.origin
        m1.crash()
        m1.platter.put_back(earlier)
        c.losses.disk_lost(m1)
        c.start(m1)
        rev = await m1.put("x", "after", 1)
        assert m1.ledger.origin != origin
        await c.settled()
        assert not c.history.excused
        assert all(m2.leaves("x", f"d{number}") == [revs[number]] for number in range(5))
        assert m2.leaves("x", "after") == [rev]

    play(body)


def test_trace_11_coalesced_events_complete_no_more_than_they_hold(
    play: Callable[..., None],
) -> None:
    """d@1, e@2, d@3 leave as e@2, d@3: after the first of them, write 1 is not contained."""

    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        await m1.create("x")
        await c.settled()
        c.board.up = False
        for number in range(10):
            rev = await m1.put("x", f"d{number}", 1)
            rev = await m1.put("x", f"d{number}", 2, parent=rev)
        c.board.up = True

    play(body)


def test_a_message_vouches_only_for_what_it_carries(play: Callable[..., None]) -> None:
    """A@2, B@3, A@4 lie on the board, and the one with B is gone: who reads A must not think that
    it has B, though both of A's writes are in it.
    """

    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m2.crash()
        m3.crash()
        c.board.up = False
        first = await m1.put("x", "a", 1)
        await m1.put("x", "b", 1)
        await m1.put("x", "a", 2, parent=first)
        c.board.up = True
        await c.passes(5)
        c.cut(m1, [m2, m3])
        c.board.truncate(keep=1)
        c.start(m2)
        c.start(m3)
        await c.until(lambda: bool(m2.leaves("x", "a")))
        await c.passes(5)
        c.heal()
        await c.settled()

    play(body, replicas=0)


def test_trace_13_an_event_of_another_version_is_kept_and_not_passed(
    play: Callable[..., None],
) -> None:
    """It is a hole in the vector; what comes after it is applied all the same."""

    async def body(c: Cluster) -> None:
        m1, m2, _ = await c.with_database("x")
        stranger = Event(2, "m1", 7, 1, 0, 1, 0, events.DOCUMENT, "x", 1, b"")
        c.board.inject(0, events.encode(stranger))
        c.board.inject(0, b"\x93damaged")
        rev = await m1.put("x", "d", 1)
        await c.until(lambda: m2.leaves("x", "d") == [rev])
        await c.settled()
        m2.crash()
        c.start(m2)  # tries again what it kept
        await c.settled()
        for node in c.nodes:
            assert 7 not in node.ledger.vector
            if node.member.slot == "m1":
                continue  # a master does not read its own partition
            reasons = node.connection.execute("SELECT reason FROM hole ORDER BY n").fetchall()
            assert "event version 2" in reasons[0][0]
            assert len(reasons) == 2

    play(body)


def test_trace_14_a_write_whose_database_was_dropped_leaves_no_gap(
    play: Callable[..., None],
) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        await m1.create("y")
        await c.settled()
        c.board.up = False
        await m1.put("x", "d", 1)
        await m1.drop("x")
        rev = await m1.put("y", "e", 1)
        c.board.up = True
        await c.settled()
        assert m2.leaves("y", "e") == [rev]

    play(body)


def test_trace_16_one_revision_with_two_contents_is_the_same_everywhere(
    play: Callable[..., None],
) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        await m1.graft("x", "d", "1-a", "one content")
        await m2.graft("x", "d", "1-a", "another")
        await c.settled()
        assert m1.row("x", "d").body == m2.row("x", "d").body == m3.row("x", "d").body

    play(body)


def test_trace_15_a_checkpoint_shows_only_where_its_documents_are(
    play: Callable[..., None],
) -> None:
    """A `_local` event carries its writer's vector, and waits where that much is not contained."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m3.crash()
        c.cut(m3, [node for node in c.nodes if node is not m3])
        await m1.put("x", "d", 1)  # m3 will not find this on the board
        await c.until(lambda: bool(m2.leaves("x", "d")))
        c.board.forget()
        await m2.set_register("x", registers.LOCAL, "_local/c", CHECKPOINT)
        c.start(m3)
        await c.until(lambda: bool(m3.connection.execute("SELECT 1 FROM waiting").fetchall()))
        assert m3.register("x", registers.LOCAL, "_local/c") is None
        c.heal()
        await c.settled()
        assert m3.register("x", registers.LOCAL, "_local/c") == CHECKPOINT

    play(body, replicas=0)


def test_trace_18_a_board_that_forgot_sends_nobody_past_anything(
    play: Callable[..., None],
) -> None:
    """The topic is made again: offsets that fit the new log mean nothing; peers fill in."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m3.crash()
        for number in range(30):
            await m1.put("x", f"d{number}", number)
        await c.until(lambda: bool(m2.leaves("x", "d29")))
        c.board.forget()
        for number in range(30, 80):
            await m1.put("x", f"d{number}", number)
        await c.passes(1)
        c.start(m3)
        await c.settled()
        assert all(m3.leaves("x", f"d{number}") for number in range(80))

    play(body)


def test_a_gap_that_no_peer_can_fill_yet_is_not_passed(play: Callable[..., None]) -> None:
    """The board forgot what only m1 has, and m1 cannot be asked: what follows is applied, but the
    vector waits until it can.
    """

    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m2.crash()
        m3.crash()
        c.cut(m1, [m2, m3])
        for number in range(10):
            rev = await m1.put("x", f"lost{number}", number)
        await c.passes(5)
        c.board.forget()
        c.start(m2)
        c.start(m3)
        rev = await m1.put("x", "after", 1)
        await c.until(lambda: m2.leaves("x", "after") == m3.leaves("x", "after") == [rev])
        await c.passes(20)
        assert not m2.leaves("x", "lost0")
        assert m1.ledger.origin is not None
        assert m2.ledger.vector[m1.ledger.origin] == 1
        c.heal()
        await c.settled()

    play(body, replicas=0)


def test_a_reader_that_retention_has_passed_catches_up_from_a_peer(
    play: Callable[..., None],
) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m3.crash()
        for number in range(50):
            await m1.put("x", f"d{number}", number)
        await c.until(lambda: bool(m2.leaves("x", "d49")))
        c.board.truncate(keep=5)
        c.start(m3)
        await c.settled()
        assert all(m3.leaves("x", f"d{number}") for number in range(50))

    play(body)


def test_trace_19_half_a_batch_is_sent_again_from_its_beginning(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1 = c.masters[0]
        c.faults.torn_batches = 0.5
        await m1.create("x")
        for number in range(40):
            await m1.put("x", f"d{number % 7}{number}", number)
            await asyncio.sleep(0.01)
        c.faults.torn_batches = 0.0

    play(body)


def test_trace_29_a_clock_that_steps_back_loses_no_setting(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        await m1.set_register("x", registers.SECURITY, "", b'{"first":1}')
        await c.settled()
        m2.clock.offset_ms = -3_600_000
        await m2.set_register("x", registers.SECURITY, "", b'{"second":2}')
        await c.settled()
        assert all(n.register("x", registers.SECURITY, "") == b'{"second":2}' for n in c.nodes)

    play(body)


def test_concurrent_settings_end_alike(play: Callable[..., None]) -> None:
    """Of two the later stamp wins, everywhere; the other is gone without a word."""

    async def body(c: Cluster) -> None:
        await c.masters[0].create("x")
        await c.settled()
        for node in c.masters:
            await node.set_register(
                "x", registers.SECURITY, "", b'{"by":"%b"}' % node.name.encode()
            )
        await c.settled()
        assert len({n.register("x", registers.SECURITY, "") for n in c.nodes}) == 1

    play(body)


def test_an_attachment_travels_ahead_of_its_document(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, m3 = c.masters
        await m1.create("x")
        data = bytes(range(256)) * 4096
        await m1.put_attachment("x", "d", data)
        await c.settled()
        m3.crash()
        c.board.truncate(keep=0)
        c.start(m3)
        await c.settled()
        for node in (m2, m3):
            (att,) = node.row("x", "d").document.shown()[0].attachments
            assert b"".join(blobs.read(node.connection, att.blob)) == data

    play(body)


def test_an_empty_attachment_travels_too(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        m1, m2, _ = c.masters
        await m1.create("x")
        await m1.put_attachment("x", "d", b"")
        await c.settled()
        (att,) = m2.row("x", "d").document.shown()[0].attachments
        assert blobs.find(m2.connection, att.blob) is not None

    play(body)


def test_a_checkpoint_that_came_by_catch_up_shows(play: Callable[..., None]) -> None:
    """An answer's `_local` documents vouch for its own end: they show when it has been taken."""

    async def body(c: Cluster) -> None:
        m1, m2, m3 = await c.with_database("x")
        m3.crash()
        await m1.put("x", "d", 1)
        await m1.set_register("x", registers.LOCAL, "_local/c", CHECKPOINT)
        await c.until(lambda: m2.register("x", registers.LOCAL, "_local/c") is not None)
        c.board.truncate(keep=0)
        c.start(m3)
        await c.settled()
        assert m3.register("x", registers.LOCAL, "_local/c") == CHECKPOINT

    play(body)


def test_a_board_that_is_away_for_long_stops_no_writes(play: Callable[..., None]) -> None:
    async def body(c: Cluster) -> None:
        c.board.up = False
        await c.masters[0].create("x")
        for number in range(300):
            await c.masters[0].put("x", f"d{number}", number)
        await c.passes(30)
        c.board.up = True

    play(body)
