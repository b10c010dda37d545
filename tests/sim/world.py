"""Simulated time: an event loop that jumps to the next timer instead of waiting for it."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class Stuck(Exception):
    """Nothing is left that could happen."""


class _Jumping(selectors.SelectSelector):
    loop: "SimLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.loop.now_s += max(timeout, 0.0)
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """asyncio with its own time; the same seed gives the same order of everything."""

    def __init__(self) -> None:
        selector = _Jumping()
        selector.loop = self
        self.now_s = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s


class SimClock:
    """The loop's time as a ``Clock``; ``offset_ms`` is how wrong a node's wall clock is."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.offset_ms = 0

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.now_s * 1000) + self.offset_ms

    def monotonic(self) -> float:
        return self._loop.now_s


def run(body: Coroutine[Any, Any, None], loop: SimLoop) -> None:
    """Run to the end, then end what is left running."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(body)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
