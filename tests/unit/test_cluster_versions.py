"""A group whose nodes ask each other how far they are, on simulated time."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from divandb.cluster import versions as module
from divandb.cluster.versions import Version, Versions
from divandb.config import Limits
from divandb.link import LinkBroken
from divandb.switching import NOT_BEGUN, Build, Verdict
from tests.sim.world import SimClock, SimLoop
from tests.stores import Lines

LIMITS = Limits(view_switch_s_max=60)
SILENCE_S = LIMITS.lease_ms / 1000
BUILD_S = 20


class Node:
    """One of the group, whose builds take ``BUILD_S`` where nothing keeps them."""

    def __init__(self, name: str, group: dict[str, "Node"], loop: SimLoop) -> None:
        self.name = name
        self.group = group
        self.loop = loop
        self.wanted: list[Version] = []
        self.builds: dict[Version, Build] = {}
        self.verdicts: dict[Version, Verdict] = {}
        self.switched: dict[Version, float] = {}
        self.lives = self.answers = self.grows = True
        self.is_drained = False
        tenure = SimpleNamespace(is_owner=name == "m1", owns=lambda one: one.name == "m1")
        peers: Any = SimpleNamespace(
            group=lambda: [one.peer for one in group.values() if one is not self],
            is_live=lambda peer: group[peer.member.name].lives,
            tenure=tenure,
        )
        self.versions = Versions(peers, self, SimClock(loop), LIMITS, Lines())

    @property
    def peer(self) -> Any:
        member = SimpleNamespace(name=self.name)
        link = SimpleNamespace(ask=self.ask)
        return SimpleNamespace(member=member, link=link, is_drained=self.is_drained)

    async def ask(self, method: str, path: str, body: bytes, **bounds: Any) -> Any:
        await asyncio.sleep(0.001)
        if not self.answers:
            await asyncio.sleep(10)
            raise LinkBroken("gave no answer in time", sent=True)
        said = msgspec.msgpack.encode(self.versions.answer(body))
        assert len(said) <= bounds["body_bytes_max"]
        return SimpleNamespace(status=200, body=said)

    def coming(self) -> list[Version]:
        return [one for one in self.wanted if one not in self.switched]

    def build_of(self, version: Version) -> Build:
        return self.builds.get(version, Build())

    def judge(self, version: Version, verdict: Verdict) -> None:
        self.verdicts[version] = verdict
        if verdict.is_switched:
            self.switched[version] = self.loop.time()

    async def build(self) -> None:
        while True:
            for one in self.wanted:
                verdict = self.verdicts.get(one, Verdict(not self.versions.is_last()))
                if self.grows and verdict.may_build:
                    seq = min(self.build_of(one).seq + 1, BUILD_S)
                    self.builds[one] = Build(seq, seq == BUILD_S)
            await asyncio.sleep(1)


def play(body: Callable[[dict[str, Node]], Awaitable[None]], *names: str) -> None:
    loop = SimLoop()
    asyncio.set_event_loop(loop)

    async def whole() -> None:
        group: dict[str, Node] = {}
        for name in names or ("m1", "m1-r1", "m1-r2"):
            group[name] = Node(name, group, loop)
        nodes = group.values()
        works = [one for node in nodes for one in (node.versions.run(), node.build())]
        tasks = [asyncio.create_task(work) for work in works]
        await body(group)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        loop.run_until_complete(whole())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def a_version(number: int = 0) -> Version:
    return Version("x", 1, number.to_bytes(16))


def bring(group: dict[str, Node], *versions: Version) -> None:
    for node in group.values():
        node.wanted = list(versions)


def test_replicas_turn_together_when_both_are_ready_and_the_owner_builds_then() -> None:
    async def body(group: dict[str, Node]) -> None:
        one = a_version()
        bring(group, one)
        group["m1-r2"].grows = False
        await asyncio.sleep(30)
        assert group["m1-r1"].build_of(one).is_ready and not group["m1-r1"].switched
        assert group["m1"].build_of(one).seq == NOT_BEGUN
        group["m1-r2"].grows = True
        await asyncio.sleep(30)
        moments = [group[name].switched[one] for name in ("m1-r1", "m1-r2")]
        assert max(moments) - min(moments) <= 2 * module.LOOK_S
        assert group["m1"].build_of(one).seq > NOT_BEGUN and not group["m1"].switched
        await asyncio.sleep(BUILD_S)
        assert group["m1"].switched[one] > max(moments) + BUILD_S - 5

    play(body)


def test_one_that_gives_no_answer_one_that_is_gone_and_a_drained_one_hold_nobody_for_ever() -> None:
    async def body(group: dict[str, Node]) -> None:
        silent, gone, drained = group["m1-r2"], group["m1-r3"], group["m1-r4"]
        silent.answers = gone.lives = gone.answers = drained.grows = False
        drained.is_drained = True
        one = a_version()
        bring(group, one)
        await asyncio.sleep(SILENCE_S + 50)
        assert group["m1-r1"].verdicts[one].waits_for == ("m1-r2",)
        await asyncio.sleep(30)
        assert one in group["m1-r1"].switched
        await asyncio.sleep(BUILD_S + 20)
        assert one in group["m1"].switched

    play(body, "m1", "m1-r1", "m1-r2", "m1-r3", "m1-r4")


def test_those_that_never_come_to_an_end_hold_up_no_others() -> None:
    """More versions than a question takes, and the first of them stand still."""

    async def body(group: dict[str, Node]) -> None:
        stuck = [a_version(number) for number in range(module.ASKED_MAX)]
        last = a_version(module.ASKED_MAX)
        bring(group, *stuck, last)
        for node in group.values():
            node.grows = False
            node.builds[last] = Build(BUILD_S, is_ready=True)
        await asyncio.sleep(SILENCE_S + 3)
        for node in group.values():
            assert list(node.switched) == [last]
            assert len(node.verdicts) == len(stuck) + 1

    play(body)


def test_nothing_is_decided_before_all_who_live_can_have_been_heard_of() -> None:
    async def body(group: dict[str, Node]) -> None:
        one = a_version()
        bring(group, one)
        for node in group.values():
            node.builds[one] = Build(BUILD_S, is_ready=True)
        await asyncio.sleep(SILENCE_S - 0.1)
        assert not any(node.verdicts for node in group.values())
        await asyncio.sleep(3)
        assert all(one in node.switched for node in group.values())

    play(body)
