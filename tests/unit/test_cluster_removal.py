"""A node that was removed takes leave."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from divandb.cluster import removal
from tests.stores import Lines


class Leaving:
    """A node with two writes that are on no board."""

    def __init__(self, *, has_board: bool) -> None:
        self.has_board = has_board
        self.tenure: Any = SimpleNamespace(is_leaving=False)
        self.outbox: dict[int, int] = {7: 2}
        self.steps: list[str] = []
        self.log = Lines()

    async def finish(self, within_s: float) -> bool:
        assert self.tenure.is_leaving
        assert within_s == removal.PUBLISH_S_MAX
        self.steps.append("publishes")
        if self.has_board:
            self.outbox.clear()
        return self.has_board

    async def execute(self, step: Any, size_bytes: int) -> None:
        self.steps.append("executes")

    def leave(self) -> None:
        asyncio.run(removal.leave(self.tenure, self, self.execute, lambda: self.outbox, self.log))


@pytest.mark.parametrize("has_board", [True, False])
def test_what_it_has_answered_is_published_before_it_is_noted_that_it_never_starts_again(
    has_board: bool,
) -> None:
    node = Leaving(has_board=has_board)
    node.leave()
    assert node.steps == ["executes", "publishes", "executes"]
    assert bool(node.log.events) != has_board


def test_who_has_published_all_does_not_wait_for_a_board() -> None:
    node = Leaving(has_board=False)
    node.outbox.clear()
    node.leave()
    assert node.steps == ["executes", "executes"]
    assert not node.log.events
