"""Revision trees as clients see them."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import revtree
from divandb.errors import BadRequest
from divandb.revtree import HASH_CHARS_MAX, POS_MAX, Leaf, parse_rev


def leaf(rev: str, *older: str, deleted: bool = False, digest: bytes = b"d", dot: int = 1) -> Leaf:
    """A leaf from its revision and its ancestors' hashes, newest first."""
    pos, head = parse_rev(rev)
    return Leaf(pos, (head, *older), deleted, digest, (), ((1, dot),))


def shown(*leaves: Leaf) -> list[str]:
    return [tip.rev for tip in revtree.shown(leaves)]


# Revisions


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("1-a", (1, "a")), ("10-b-c", (10, "b-c")), ("0-1", (0, "1")), ("007-x", (7, "x")),
     ("1-", (1, "")), (f"{POS_MAX}-{'h' * HASH_CHARS_MAX}", (POS_MAX, "h" * HASH_CHARS_MAX))],
)  # fmt: skip
def test_a_revision_is_a_number_and_a_hash(text: str, parsed: tuple[int, str]) -> None:
    assert parse_rev(text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "1", "-a", "a-1", "+1-a", "-1-a", "1.0-a", " 1-a", "²-a", "١-a", f"{POS_MAX + 1}-a",
     "9" * 5000 + "-a", "1-" + "h" * (HASH_CHARS_MAX + 1), None, 1, b"1-a", ["1-a"]],
)  # fmt: skip
def test_anything_else_is_refused_in_couchdbs_words(text: object) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_rev(text)
    assert refused.value.reason == "Invalid rev format"


@given(st.text())
def test_no_text_does_worse_than_a_refusal(text: str) -> None:
    try:
        pos, rev_hash = parse_rev(text)
    except BadRequest:
        return
    assert 0 <= pos <= POS_MAX
    assert rev_hash


# Leaves


def test_a_child_that_came_before_its_parent_has_the_parents_ancestry_once_that_is_here() -> None:
    child, parent = leaf("3-c", "b"), leaf("2-b", "a", dot=2)
    (tip,) = revtree.shown([child, parent])
    assert (tip.rev, tip.ancestry) == ("3-c", ("c", "b", "a"))
    assert revtree.shown([child]) == [child]


def test_a_leaf_knows_its_ancestry() -> None:
    tip = leaf("3-c", "b", "a")
    assert tip.rev == "3-c"
    assert tip.revs() == ["3-c", "2-b", "1-a"]
    assert tip.knows(3, "c") and tip.knows(1, "a")
    assert not tip.knows(2, "a") and not tip.knows(4, "c") and not tip.knows(0, "c")


# The winner


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (leaf("1-a"), leaf("9-z", deleted=True)),
        (leaf("2-a"), leaf("1-z")),
        (leaf("10-a"), leaf("9-z")),
        (leaf("1-b"), leaf("1-a")),
        (leaf("1-a"), leaf("1-Z")),
        (leaf("2-a", deleted=True), leaf("1-z", deleted=True)),
        (leaf("1-b", deleted=True), leaf("1-a", deleted=True)),
    ],
)
def test_not_deleted_then_highest_number_then_highest_hash(better: Leaf, worse: Leaf) -> None:
    assert shown(better, worse) == shown(worse, better) == [better.rev, worse.rev]


leaves_of = st.lists(
    st.builds(
        lambda pos, path, deleted, digest, dot: Leaf(
            # The digest is over all of the content.
            pos,
            tuple(path[:pos]),
            deleted,
            b"%d" % deleted + digest,
            (),
            ((1, dot),),
        ),
        st.integers(1, 4),
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
        st.booleans(),
        st.sampled_from([b"1", b"2"]),
        st.integers(1, 9),
    ),
    max_size=5,
)


@given(leaves_of)
def test_what_is_shown_does_not_depend_on_the_order(leaves: list[Leaf]) -> None:
    first = revtree.shown(leaves)
    for order in itertools.islice(itertools.permutations(leaves), 24):
        assert revtree.shown(order) == first
    revs = [tip.rev for tip in first]
    assert len(set(revs)) == len(revs)
    assert bool(first) == bool(leaves)
    assert not any(
        other.knows(tip.pos, tip.ancestry[0])
        for tip in first
        for other in first
        if tip.pos < other.pos
    )
    ranks = [revtree.rank(tip) for tip in first]
    assert ranks == sorted(ranks, reverse=True)
    # Nothing disappears: what is not shown is in the ancestry of something that is, or, where that
    # was cut, of something that is not shown for the same reason.
    for hidden in {found.rev for found in leaves} - set(revs):
        assert any(found.rev != hidden for found in revtree.descendants(leaves, hidden))


@given(leaves_of)
def test_a_leaf_is_shown_with_all_that_the_tree_knows_below_it(leaves: list[Leaf]) -> None:
    one_each = {found.rev: found for found in revtree._one_for_each_revision(leaves)}
    for tip in revtree.shown(leaves):
        path = one_each[tip.rev].ancestry
        assert tip.ancestry == revtree.lengthened(one_each.values(), tip.pos, path)


def test_many_leaves_are_looked_at_once_each() -> None:
    """Not each for each other one: replicators may bring thousands of conflicts of a document."""

    def took_s(count: int) -> float:
        leaves = [leaf(f"2-{number:032x}", "a") for number in range(count)]
        began = time.process_time()
        assert len(revtree.shown(leaves)) == count
        return time.process_time() - began

    few = min(took_s(500) for _ in range(3))
    assert min(took_s(5000) for _ in range(3)) < 40 * few


# What is shown


def test_a_leaf_inside_anothers_ancestry_is_hidden() -> None:
    assert shown(leaf("2-b", "a"), leaf("3-c", "b", "a")) == ["3-c"]
    assert shown(leaf("2-b", "a"), leaf("3-c", "x", "a")) == ["3-c", "2-b"]
    # Even by one that is deleted: a deletion replaces what it deletes.
    assert shown(leaf("2-b", "a"), leaf("3-c", "b", deleted=True)) == ["3-c"]


def test_of_one_revision_the_longest_ancestry_and_the_greatest_content_are_shown() -> None:
    short, long = leaf("3-c", "b", digest=b"9", dot=1), leaf("3-c", "b", "a", digest=b"1", dot=2)
    (tip,) = revtree.shown([short, long])
    assert tip.ancestry == ("c", "b", "a")
    assert tip.digest == b"9"
    assert tip.dots == ((1, 1), (1, 2))
    # The longer ancestry hides what the shorter did not know.
    assert shown(short, leaf("1-a")) == ["3-c", "1-a"]
    assert shown(short, long, leaf("1-a")) == ["3-c"]


# Questions about the tree

TREE = [leaf("3-c", "b", "a"), leaf("3-x", "b", "a"), leaf("2-q", "a", deleted=True)]


def test_leaves_and_descendants() -> None:
    assert revtree.find_leaf(TREE, "3-x") is TREE[1]
    assert revtree.find_leaf(TREE, "2-b") is None
    assert revtree.descendants(TREE, "2-b") == TREE[:2]
    assert revtree.descendants(TREE, "1-a") == TREE
    assert revtree.descendants(TREE, "9-a") == []


def test_known_and_missing_revisions() -> None:
    assert revtree.known_revs(TREE) == {"3-c", "3-x", "2-b", "2-q", "1-a"}
    asked = ["4-d", "3-c", "2-b", "4-d", "1-z"]
    assert revtree.missing_revs(TREE, asked) == ["4-d", "1-z"]
    assert revtree.missing_revs([], ["1-a"]) == ["1-a"]
    with pytest.raises(BadRequest):
        revtree.missing_revs(TREE, ["x"])


def test_possible_ancestors_are_leaves_below_the_highest_missing() -> None:
    assert revtree.possible_ancestors(TREE, ["4-d"]) == ["2-q", "3-c", "3-x"]
    assert revtree.possible_ancestors(TREE, ["3-d", "1-z"]) == ["2-q"]
    assert revtree.possible_ancestors(TREE, ["1-z"]) == []
    assert revtree.possible_ancestors(TREE, []) == []
