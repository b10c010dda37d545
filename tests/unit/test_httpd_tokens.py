"""Session tokens on the fast lane."""

from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.closings import NONE, Closings, End
from divandb.cluster import sessions
from divandb.cluster.peers import Peers
from divandb.cluster.progress import Progress
from divandb.cluster.sessions import NOTHING, Session, Token
from divandb.config import Limits
from divandb.hot import HotDocuments
from divandb.httpd.standing import Standing
from divandb.httpd.tokens import KEPT_MAX, Tokens
from divandb.settings import Settings
from divandb.vector import join
from tests.stores import StillClock
from tests.unit.test_closings import ENDS, VECTORS, known_to

CLUSTER = "0123456789abcdef"
OURS = "DivanSession-01234567-"
SLOTS = {7: "m1", 8: "m2", 9: "m1"}


class _Peers:
    def __init__(self) -> None:
        self.others = ["m2"]

    def all(self) -> list[str]:
        return self.others


class Node:
    """What the lane asks of a node; ``file`` is what the file contains, before anybody is told."""

    def __init__(self, vector: dict[int, int]) -> None:
        self.file = vector
        self.closings = NONE
        self.peers = _Peers()
        self.hot = HotDocuments(0)
        self.reads = 0
        self.progress = Progress(vector, dict(SLOTS), StillClock(), closings=lambda: self.closings)
        self.standing = Standing(
            cast(Peers, self.peers), self.progress, self.contained, Settings("k"), Limits(), CLUSTER
        )
        self.tokens = Tokens(self.standing, self.progress.contains, self.hot.stamp)

    def contained(self) -> dict[int, int]:
        self.reads += 1
        return self.file

    def commit(self, vector: dict[int, int], *, told: bool = True) -> None:
        with self.hot.replacing([]):
            self.file = vector
        if told:
            self.progress.advance(vector)

    def met(self, header: str) -> Token | None:
        return self.tokens.met(header.encode("latin-1"), None)

    def said(self, header: str, written: Token | None = None) -> Token:
        """What an answer says was shown, which must be what the normal way says."""
        needs = self.met(header)
        assert needs is not None
        line = self.tokens.line(header.encode(), needs, written)
        name, _, text = line.decode().strip().partition(": ")
        assert name == "divan-session"
        session = Session(needs if written is None else needs.joined(written))
        assert dict(self.standing.said(session, wants_token=True)) == {"divan-session": text}
        return sessions.parse(text)


def token(vector: dict[int, int]) -> str:
    return sessions.text(vector, SLOTS)


def test_what_is_here_is_met_and_what_is_not_goes_the_normal_way_until_it_comes() -> None:
    node = Node({7: 5})
    for vector in ({}, {7: 5}, {7: 1}, {8: 0}):
        assert node.met(token(vector)) == Token(vector, {o: SLOTS[o] for o in vector})
    for vector in ({7: 6}, {8: 1}, {7: 5, 8: 1}):
        assert node.met(token(vector)) is None
        assert node.met(token(vector)) is None
    node.commit({7: 6, 8: 1})
    assert node.met(token({7: 6})) is not None
    assert node.met(token({7: 5, 8: 1})) is not None


@pytest.mark.parametrize("text", ["nonsense", "A", "kQ", "x" * 20_000, "\xe9"])
def test_what_is_no_token_goes_the_normal_way(text: str) -> None:
    node = Node({7: 5})
    assert node.met(text) is None
    assert node.tokens.met(text.encode("latin-1"), b"a=b") is None


def test_cookies_count_as_the_normal_way_counts_them() -> None:
    node = Node({7: 5, 8: 2})
    one, other = f"{OURS}m1={token({7: 5})}", f'{OURS}m2="{token({8: 2})}"'
    beyond = f"{OURS}m2={token({8: 3})}"
    seven, both = Token({7: 5}, {7: "m1"}), Token({7: 5, 8: 2}, {7: "m1", 8: "m2"})
    assert node.tokens.met(None, None) == NOTHING
    assert node.tokens.met(None, f"theme=dark; {OURS}m1=nonsense".encode()) == NOTHING
    assert node.tokens.met(None, one.encode()) == seven
    # Of another cluster at the same address.
    assert node.tokens.met(None, f"DivanSession-76543210-m1={token({9: 9})}".encode()) == NOTHING
    assert node.tokens.met(None, f"{one};{other}".encode()) == both
    assert node.tokens.met(token({8: 2}).encode(), one.encode()) == both
    assert node.tokens.met(None, f"{one}; {beyond}".encode()) is None
    assert node.tokens.met(token({8: 3}).encode(), one.encode()) is None


def test_a_login_by_cookie_goes_the_normal_way() -> None:
    node = Node({7: 5})
    assert node.tokens.met(token({7: 5}).encode(), b"x=y; AuthSession=abc") is None


def test_a_closed_origin_is_met_through_the_write_that_closed_it() -> None:
    """Who has that write contains the origin to its end, and leaves it out of what it says."""
    node = Node({7: 5, 8: 1})
    node.closings = Closings([End(7, 5, (8, 1), 100, True)])
    assert node.met(token({7: 5})) is not None
    assert node.met(token({7: 6})) is None
    assert node.met(token({8: 1})) is not None
    assert node.said(token({7: 5})).vector == {8: 1}
    # From elsewhere, where it has not been closed yet.
    assert node.said(token({7: 5, 8: 1})).vector == {8: 1}


@given(VECTORS, ENDS, st.lists(st.tuples(VECTORS, st.booleans()), max_size=5), VECTORS)
@settings(max_examples=300)
def test_what_was_met_once_is_met_from_then_on(
    vector: dict[int, int],
    ends: list[End],
    steps: list[tuple[dict[int, int], bool]],
    needs: dict[int, int],
) -> None:
    """Whatever comes, and whichever ends of origins the node hears of."""
    node, brought = Node({}), token(needs)
    was_met = False
    for more, hears in [(vector, False), *steps]:
        vector = join(vector, more)
        node.closings = Closings(ends if hears else known_to(vector, ends))
        node.commit(vector)
        assert node.progress.contains(needs) or not was_met
        was_met = node.progress.contains(needs)
        assert (node.met(brought) is not None) == was_met


def test_an_answer_says_all_that_it_may_have_shown() -> None:
    node = Node({7: 5})
    assert node.said(token({})).vector == {7: 5}
    node.commit({7: 6, 8: 1}, told=False)
    assert node.said(token({})).vector == {7: 6, 8: 1}
    with node.hot.replacing([]):
        node.file = {7: 7, 8: 1}
        assert node.said(token({})).vector == {7: 7, 8: 1}
        node.file = {7: 8, 8: 1}
        assert node.said(token({})).vector == {7: 8, 8: 1}
    assert node.said(token({})).vector == {7: 8, 8: 1}


def test_it_is_made_once_until_the_file_changes() -> None:
    node = Node({7: 5})
    brought = token({7: 3})
    needs = node.met(brought)
    assert needs is not None
    lines = {node.tokens.line(brought.encode(), needs, None) for _ in range(10)}
    assert (len(lines), node.reads) == (1, 1)
    node.commit({7: 6})
    assert node.tokens.line(brought.encode(), needs, None) not in lines
    assert node.reads == 2


def test_what_the_connection_and_cookies_brought_is_in_it_too() -> None:
    """Also where the same header came without them before, and they are not in the file's vector:
    an origin of which nothing is kept.
    """
    node = Node({7: 5})
    assert node.said(token({7: 1})).vector == {7: 5}
    written = Token({9: 0}, {9: "m1"})
    assert node.said(token({7: 1}), written).vector == {7: 5}
    node.commit({7: 5, 9: 2})
    assert node.said(token({7: 1}), Token({9: 2}, {9: "m1"})).vector == {7: 5, 9: 2}
    needs = node.tokens.met(token({7: 1}).encode(), f"{OURS}m1={token({9: 1})}".encode())
    assert needs is not None
    assert node.tokens.line(token({7: 1}).encode(), needs, None).strip().decode() == (
        f"divan-session: {token({7: 5, 9: 2})}"
    )


def test_a_slot_that_becomes_known_is_named() -> None:
    node = Node({7: 5, 10: 1})
    assert node.said(token({})).slots == {7: "m1", 10: ""}
    node.progress.slots[10] = "m3"
    assert node.said(token({})).slots == {7: "m1", 10: "m3"}


def test_a_single_node_says_nothing() -> None:
    node = Node({7: 5})
    node.peers.others = []
    assert node.tokens.line(token({}).encode(), NOTHING, None) == b""


def test_few_are_kept_in_mind() -> None:
    node = Node({7: 10_000})
    for oseq in range(3 * KEPT_MAX):
        node.said(token({7: oseq}))
    kept = vars(node.tokens)
    assert 0 < len(kept["_met"]) <= KEPT_MAX
    assert 0 < len(kept["_said"]) <= KEPT_MAX
