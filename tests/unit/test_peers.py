"""Heartbeats: who counts as heard of, and until when a lease holds."""

import asyncio
import dataclasses
from pathlib import Path

import msgspec

from divandb.cluster import messages
from divandb.cluster.messages import Heartbeat, Reached, Seen
from divandb.cluster.peers import (
    FAULTS_MAX,
    FED_PATIENCES,
    LEASE_LOOK_S,
    MEASURE_EVERY,
    REACHED,
    Peer,
    Peers,
)
from divandb.cluster.progress import Progress
from divandb.config import MASTER, REPLICA, Config, Limits, Member
from divandb.link import LinkBroken, Reply
from divandb.tenure import Tenure
from tests.sim.world import SimLoop
from tests.stores import StillClock

LEASE_MS = Limits().lease_ms
M1 = Member("m1", MASTER, "m1", "http://m1")
M2 = Member("m2", MASTER, "m2", "http://m2")
REPLICA_1 = Member("m1-r1", REPLICA, "m1", "http://m1-r1")


def heartbeat(member: Member, vector: dict[int, int] | None = None) -> Heartbeat:
    me = Seen(member.name, member.role, member.slot, member.url, 1, 0.0, member.zone)
    return Heartbeat(vector or {}, {}, 0.0, None, [], [me])


class SlowLink:
    """Another node whose answer is there at once, and read ``takes_ms`` later."""

    def __init__(self, clock: StillClock, member: Member) -> None:
        self._clock = clock
        self._member = member
        self.takes_ms = 0
        self.is_down = False
        self.why = "down"

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, wait_s: float = 0.0,
        body_bytes_max: int, repeatable: bool = False,
    ) -> Reply:  # fmt: skip
        self._clock.ms += self.takes_ms
        if self.is_down:
            raise LinkBroken(self.why, sent=False)
        if path == REACHED:
            return Reply(200, [], messages.encode(Reached(True)))
        return Reply(200, [], messages.encode(heartbeat(self._member)))

    def set_url(self, url: str) -> None:
        return

    async def close(self) -> None:
        return


class Lines:
    """A log that is kept."""

    def __init__(self) -> None:
        self.faults: list[object] = []

    def event(self, what: str, **details: object) -> None:
        self.faults.append(details["fault"])

    def fault(self, what: str, problem: BaseException) -> None:
        raise problem


class Group:
    """The peers of one node, with a clock that stands still."""

    def __init__(self, me: Member, *others: Member) -> None:
        self.clock = StillClock()
        self.log = Lines()
        self.links = {other.url: SlowLink(self.clock, other) for other in others}
        config = Config(
            Path("unused"), me.name, me.role, me.slot, me.url, me.zone,
            seeds=others, limits=Limits(),
        )  # fmt: skip
        progress = Progress({}, {}, self.clock, me.slot if me.role == MASTER else None)
        self.tenure = Tenure(config, {})
        self.peers = Peers(
            config, self.tenure, progress, lambda url: self.links[url], self.clock, self.log
        )

    def beat(self) -> None:
        """One round of heartbeats."""

        async def once() -> None:
            running = asyncio.ensure_future(self.peers.run())
            await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        loop = SimLoop()
        try:
            loop.run_until_complete(once())
        finally:
            loop.close()


def test_an_answer_renews_the_lease_from_when_it_was_asked_for() -> None:
    group = Group(REPLICA_1, M1)
    group.clock.ms += LEASE_MS + 1
    assert not group.peers.lease_holds()
    group.links[M1.url].takes_ms = 100
    group.beat()
    assert group.peers.lease_holds()
    group.clock.ms += LEASE_MS - 101
    assert group.peers.lease_holds()
    group.clock.ms += 2
    assert not group.peers.lease_holds()


def test_a_node_that_was_stopped_does_not_believe_an_old_answer() -> None:
    """The answer came at once, and was read when the node was let go on."""
    group = Group(REPLICA_1, M1)
    group.links[M1.url].takes_ms = LEASE_MS + 1
    group.beat()
    assert not group.peers.lease_holds()


def test_a_request_that_lay_unread_renews_nothing() -> None:
    """It came while the node was stopped, and was read when it was let go on."""
    group = Group(M2, M1)
    group.links[M1.url].is_down = True
    group.beat()
    group.clock.ms += LEASE_MS + 1
    group.peers.answer(heartbeat(M1))
    assert not group.peers.lease_holds()
    group.beat()  # the first thing that happens when it goes on, or the second
    group.peers.answer(heartbeat(M1))
    assert not group.peers.lease_holds()


def test_a_request_renews_the_lease_of_who_runs() -> None:
    """A master whose only other master is silent, and whose replicas are not."""
    group = Group(M2, M1, REPLICA_1)
    group.links[M1.url].is_down = True
    for _ in range(3 * LEASE_MS // 250):
        group.clock.ms += 250
        group.beat()
        group.peers.answer(heartbeat(REPLICA_1))
        assert group.peers.lease_holds()


def test_who_has_nobody_to_ask_needs_no_lease() -> None:
    """Nobody else writes: its view is never old."""
    group = Group(M1)
    group.clock.ms += LEASE_MS + 1
    assert group.peers.lease_holds()


def test_the_only_master_may_have_been_replaced_by_a_replica_that_is_silent() -> None:
    group = Group(M1, REPLICA_1)
    assert not group.peers.lease_holds()
    group.peers.answer(heartbeat(REPLICA_1))
    assert group.peers.lease_holds()
    group.clock.ms += LEASE_MS + 1
    assert not group.peers.lease_holds()


def test_who_does_not_ask_for_the_others_is_told_of_the_sender_alone() -> None:
    """The others are most of what a heartbeat costs."""
    group = Group(M2, M1, REPLICA_1)
    group.peers.answer(heartbeat(M1))
    asked = msgspec.structs.replace(heartbeat(REPLICA_1), asks=True)
    assert [one.name for one in group.peers.answer(asked).members] == ["m2", "m1", "m1-r1"]
    assert [one.name for one in group.peers.answer(heartbeat(REPLICA_1)).members] == ["m2"]


def test_each_reason_why_a_node_cannot_be_reached_is_logged_once_until_it_answers() -> None:
    group = Group(M2, M1)
    link = group.links[M1.url]
    for link.is_down, link.why in (
        (True, "refused"), (True, "not trusted"), (True, "refused"),
        (False, ""), (True, "refused"),
    ):  # fmt: skip
        group.beat()
    assert group.log.faults == ["refused", "not trusted", "refused"]
    for number in range(20):
        link.why = f"why {number}"
        group.beat()
    assert len(group.log.faults) == 2 + FAULTS_MAX


def test_a_node_that_comes_back_while_a_write_waits_to_be_visible_is_asked_again() -> None:
    group = Group(M2, M1)
    group.peers.answer(heartbeat(M1))
    (peer,) = group.peers.all()
    peer.refuses = True

    async def come_back() -> tuple[int, int]:
        waiting = asyncio.ensure_future(group.peers.visible({1: 1}, 10.0))
        await asyncio.sleep(5 * LEASE_LOOK_S)
        assert not waiting.done()
        peer.refuses = False
        return await asyncio.wait_for(waiting, 2 * LEASE_LOOK_S)

    loop = SimLoop()
    try:
        assert loop.run_until_complete(come_back()) == (1, 1)
    finally:
        loop.close()


def fetches(group: Group, ms: int) -> list[str]:
    """Who is asked for what is missing when a node has said more than is here for ``ms``."""
    asked: list[str] = []

    async def fetch(peer: Peer) -> None:
        asked.append(peer.member.name)

    async def listen() -> None:
        group.peers.fetch = fetch
        group.peers.answer(heartbeat(REPLICA_1, {7: 5}))
        group.clock.ms += ms
        group.peers.answer(heartbeat(REPLICA_1, {7: 5}))
        await asyncio.sleep(0.01)

    loop = SimLoop()
    try:
        loop.run_until_complete(listen())
    finally:
        loop.close()
    return asked


def test_what_the_board_does_not_bring_is_fetched() -> None:
    patience_ms = Limits().gap_patience_ms
    assert fetches(Group(M1, REPLICA_1), patience_ms - 1) == []
    assert fetches(Group(M1, REPLICA_1), patience_ms + 1) == ["m1-r1"]


def test_what_is_on_its_way_from_the_board_is_not_fetched_as_well() -> None:
    patience_ms = Limits().gap_patience_ms
    for ms, asked in ((patience_ms + 1, []), (FED_PATIENCES * patience_ms + 1, ["m1-r1"])):
        group = Group(M1, REPLICA_1)
        group.peers.is_fed = lambda: True
        assert fetches(group, ms) == asked


def names(peers: list[Peer]) -> list[str]:
    return [peer.member.name for peer in peers]


def test_the_closest_master_comes_first_and_stays_first_for_a_while() -> None:
    m3 = Member("m3", MASTER, "m3", "http://m3")
    group = Group(M1, M2, m3)
    group.links[M2.url].takes_ms, group.links[m3.url].takes_ms = 20, 5
    group.beat()
    assert names(group.peers.masters()) == ["m3", "m2"]
    # m2 is a little closer now: nobody moves for that.
    group.links[M2.url].takes_ms, group.links[m3.url].takes_ms = 4, 5
    for _ in range(30):
        group.beat()
    assert names(group.peers.masters()) == ["m3", "m2"]
    group.links[m3.url].takes_ms = 50
    for _ in range(3):
        group.beat()
    assert names(group.peers.masters()) == ["m2", "m3"]


def test_a_master_of_the_own_zone_comes_before_one_that_answers_faster() -> None:
    own, m3 = dataclasses.replace(M1, zone="eu"), Member("m3", MASTER, "m3", "http://m3", "us")
    m2 = dataclasses.replace(M2, zone="eu")
    group = Group(own, m2, m3)
    group.links[m2.url].takes_ms = 20
    group.beat()
    assert names(group.peers.masters()) == ["m2", "m3"]


def test_a_zone_is_learned_from_heartbeats() -> None:
    group = Group(M1, M2)
    group.peers.answer(heartbeat(dataclasses.replace(M2, zone="us")))
    (peer,) = group.peers.all()
    assert peer.member.zone == "us"
    me, other = group.peers.said().members
    assert (me.zone, other.zone) == ("", "us")


def test_a_replica_measures_other_masters_now_and_then() -> None:
    m3 = Member("m3", MASTER, "m3", "http://m3")
    group = Group(REPLICA_1, M1, M2, m3)
    for member in (M1, M2, m3):
        group.peers.answer(heartbeat(member))
    group.beat()
    found = {peer.member.name: peer for peer in group.peers.all()}
    assert found["m1"].rtt_s is not None and found["m2"].rtt_s is None
    for _ in range(2 * MEASURE_EVERY):
        group.beat()
    assert found["m2"].rtt_s is not None and found["m3"].rtt_s is not None
