"""How old an answer says that its view was."""

from typing import Any, cast

from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress, Watermark
from divandb.config import Limits
from divandb.httpd.standing import Standing
from divandb.settings import Settings
from tests.stores import StillClock

SILENT_MS = Limits().silent_slot_ms


class _Peers:
    def all(self) -> list[str]:
        return ["m1"]

    def lease_holds(self) -> bool:
        return True


class Node:
    """A node that follows m1; nothing was written."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.progress = Progress({}, {7: "m1"}, self.clock)
        self.progress.expect("m1")
        peers: Any = _Peers()
        self.standing = Standing(
            cast(Peers, peers), self.progress, dict, Settings("k"), Limits(), "c"
        )

    def hear(self) -> None:
        self.progress.heard([Watermark("m1", {}, 0.0)], self.clock.monotonic())


def test_an_answer_grows_old_while_it_is_made() -> None:
    """Whatever the node has heard meanwhile."""
    node = Node()
    node.hear()
    node.clock.ms += 100
    view = node.standing.view()
    node.clock.ms += 1_000
    node.hear()
    assert node.standing.age_of(view) == [("divan-lag", "1100")]
    assert node.standing.age_of(node.standing.view()) == [("divan-lag", "0")]


def test_what_was_not_known_when_it_was_read_is_not_known() -> None:
    node = Node()
    view = node.standing.view()
    node.hear()
    assert node.standing.age_of(view) == [("divan-lag", "unknown")]


def test_a_slot_that_was_silent_when_it_was_read_is_named() -> None:
    """Though it is heard of again: the view's age did not count it."""
    node = Node()
    node.hear()
    node.clock.ms += SILENT_MS + 1
    view = node.standing.view()
    node.clock.ms += 10
    node.hear()
    said = dict(node.standing.age_of(view))
    name, _, age = said["divan-silent"].partition("=")
    assert (said["divan-lag"], name) == ("10", "m1")
    assert SILENT_MS + 10 <= int(age) <= SILENT_MS + 11
