"""From the writer's thread to the loop: who waits hears of it, and nobody else is woken."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ParamSpec, cast

import pytest

from divandb.clock import SystemClock
from divandb.cluster.progress import Progress, Reach
from divandb.commands import Job
from divandb.delivery import PENDING_COMMITS_MAX, Delivery
from divandb.store.ledger import Changes

WAIT_S = 10.0
P = ParamSpec("P")
OWN, OTHER = 1, 2


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Around:
    """What a delivery tells, and how often it woke the loop."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.wakes = 0
        self.watched: set[int] = set()
        self.changed = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.progress = Progress({}, {}, SystemClock())
        self.boarded = Reach({})
        self.wrote = asyncio.Event()
        inside = cast(Any, self)
        self.delivery = Delivery(
            inside, inside, inside, inside, inside, inside, self.index, inside, self.progress,
            self.boarded, self.wrote, lambda: OWN, "m1",
        )  # fmt: skip

    # As the loop, the catalog, the settings, the authenticator, the replica, the design documents
    # and the upkeep

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: Any) -> None:
        self.wakes += 1
        self.loop.call_soon_threadsafe(function, *arguments)

    def find(self, name: str) -> None:
        return None

    def refresh(self, made: object) -> None:
        self.told.append("refresh")

    def settings(self) -> dict[str, bytes]:
        return {}

    def settings_changed(self, keys: list[str]) -> None:
        self.told.append(f"settings {keys}")

    def users_changed(self) -> None:
        self.told.append("users")

    def is_watched(self, nums: set[int]) -> bool:
        return bool(self.watched & nums)

    def wake(self, nums: set[int]) -> None:
        self.told.append(f"wake {sorted(nums)}")

    def forget(self, nums: set[int]) -> None:
        if nums:
            self.told.append(f"forget {sorted(nums)}")

    def index(self, nums: set[int]) -> None:
        self.told.append(f"index {sorted(nums)}")

    # On the writer's thread

    def commit(self, oseq: int, *jobs: Job, origin: int = OTHER, **changes: set[Any]) -> None:
        made = Changes(
            changes.get("documents", {7}), changes.get("registers", set()),
            changes.get("databases", set()), {origin: oseq},
        )  # fmt: skip
        elsewhere = threading.Thread(target=self.delivery.hand_over, args=(list(jobs), made))
        elsewhere.start()
        elsewhere.join()


@on_a_loop
async def test_a_commit_that_nobody_waits_for_shows_to_who_asks_and_wakes_nobody() -> None:
    around = Around()
    around.commit(3)
    around.commit(4)
    assert (around.wakes, around.told) == (0, [])
    assert around.progress.contains({OTHER: 4})
    assert around.told == ["wake [7]", "index [7]"] * 2 and around.changed.is_set()


@on_a_loop
async def test_jobs_of_the_loop_are_answered_there_when_all_has_been_told() -> None:
    around = Around()
    seen: list[tuple[int, object]] = []
    done = asyncio.Event()

    def answered(job: Job) -> None:
        seen.append((threading.get_ident(), dict(around.progress.vector)))
        done.set()

    around.commit(1)
    around.commit(2, Job(None, 0, answered))
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    assert seen == [(threading.get_ident(), {OTHER: 2})]


@on_a_loop
async def test_jobs_of_the_thread_are_answered_there_at_once() -> None:
    around = Around()
    threads: list[int] = []
    job = Job(None, 0, lambda _: threads.append(threading.get_ident()), is_inner=True)
    around.commit(1, job)
    assert len(threads) == 1 and threads[0] != threading.get_ident()
    assert around.wakes == 0


@pytest.mark.parametrize(
    "changes", [{"databases": {3}}, {"registers": {(0, "setting", "a/b")}}, {"documents": {9}}]
)
@on_a_loop
async def test_what_others_must_know_at_once_wakes_the_loop(changes: dict[str, set[Any]]) -> None:
    around = Around()
    around.watched = {9}
    around.commit(1, **changes)
    async with asyncio.timeout(WAIT_S):
        while not around.told:
            await asyncio.sleep(0)
    assert around.wakes == 1


@on_a_loop
async def test_commits_that_nobody_asks_for_do_not_pile_up() -> None:
    around = Around()
    for oseq in range(PENDING_COMMITS_MAX + 1):
        assert around.wakes == 0
        around.commit(oseq + 1)
    assert around.wakes == 1


@on_a_loop
async def test_who_begins_to_wait_at_any_moment_is_woken() -> None:
    around = Around()
    rounds = 300

    def commits() -> Iterator[int]:
        for oseq in range(1, rounds + 1):
            around.delivery.hand_over([], Changes({7}, set(), set(), {OTHER: oseq}))
            around.delivery.published({OWN: oseq})
            yield oseq

    stepping = commits()
    for oseq in range(1, rounds + 1):
        elsewhere = threading.Thread(target=next, args=(stepping,))
        elsewhere.start()
        async with asyncio.timeout(WAIT_S):
            assert await around.progress.reach({OTHER: oseq}, WAIT_S)
            assert await around.boarded.reach({OWN: oseq}, WAIT_S)
        elsewhere.join()


@on_a_loop
async def test_the_publisher_is_woken_by_this_nodes_own_writes_alone() -> None:
    around = Around()
    around.commit(1)
    around.commit(0, origin=OWN)
    around.wrote.clear()
    around.commit(0, origin=OWN)
    assert not around.wrote.is_set()
    around.commit(1, origin=OWN)
    assert around.wrote.is_set()
    assert around.boarded.vector == {OWN: 0}
    around.delivery.published({OWN: 1})
    assert around.boarded.vector == {OWN: 1}
