"""Work on another thread's loop: what it gives, what it raises, and that nothing of it stays."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from divandb.across import across

WAIT_S = 10.0


@pytest.fixture
def elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert not asyncio.all_tasks(loop)
    loop.close()


async def thread_of() -> int:
    await asyncio.sleep(0)
    return threading.get_ident()


async def failing() -> None:
    raise ValueError("so it is")


def test_it_is_done_there_and_its_result_is_here(elsewhere: asyncio.AbstractEventLoop) -> None:
    assert asyncio.run(across(elsewhere, thread_of())) != threading.get_ident()


def test_on_its_own_loop_it_is_simply_done() -> None:
    async def here() -> int:
        return await across(asyncio.get_running_loop(), thread_of())

    assert asyncio.run(here()) == threading.get_ident()


def test_what_it_raises_is_raised_here(elsewhere: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(ValueError, match="so it is"):
        asyncio.run(across(elsewhere, failing()))


@pytest.mark.parametrize("turns", [1, 50])
def test_who_cancels_it_waits_until_it_has_ended(
    elsewhere: asyncio.AbstractEventLoop, turns: int
) -> None:
    said: list[str] = []

    async def slow() -> None:
        try:
            said.append("begun")
            await asyncio.sleep(WAIT_S)
        finally:
            await asyncio.sleep(0.05)
            said.append("ended")

    async def cancel() -> None:
        task = asyncio.create_task(across(elsewhere, slow()))
        await turn(turns, lambda: "begun" in said)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert said in ([], ["begun", "ended"])

    asyncio.run(asyncio.wait_for(cancel(), WAIT_S / 2))


async def turn(turns: int, until: Callable[[], bool]) -> None:
    """So many turns of the loop; of many the last when it is so far."""
    for _ in range(turns):
        await asyncio.sleep(0)
    while turns > 1 and not until():
        await asyncio.sleep(0.001)


def test_work_that_is_cancelled_there_is_cancelled_here(
    elsewhere: asyncio.AbstractEventLoop,
) -> None:
    async def gives_up() -> None:
        raise asyncio.CancelledError

    async def ask() -> None:
        with pytest.raises(asyncio.CancelledError):
            await across(elsewhere, gives_up())

    asyncio.run(ask())
