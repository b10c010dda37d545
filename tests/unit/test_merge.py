"""The dotted merge: whatever was written where, and however states travelled, all sites agree."""

import itertools
import random
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import document, merge, revtree
from divandb.merge import NOTHING, Document
from divandb.revtree import Leaf
from divandb.vector import Dot, contains, covers

HISTORIES = 3000


def hash_of(parent: str | None, digest: bytes) -> str:
    """A revision's hash that depends on the parent and the content, as real ones do."""
    return document.rev_hash(parent, False, {"content": digest.hex()}, ())


class Site:
    """One master: its state of the one document, and its own count of writes."""

    def __init__(self, origin: int, merging: Callable[[Document, Document], Document]) -> None:
        self.origin = origin
        self.oseq = 0
        self.state = NOTHING
        self._merging = merging

    def next_dot(self) -> Dot:
        self.oseq += 1
        return (self.origin, self.oseq)

    def receive(self, state: Document) -> None:
        self.state = self._merging(self.state, state)


def leaf_of(members: int, deleted: bool = False) -> Leaf:
    """Content; what it descends from is filled in by who writes it."""
    digest = document.content_digest(b'{"v":%d}' % members, deleted, ())
    return Leaf(1, ("",), deleted, digest, (), ())


class History:
    """Sites, what travels between them, and what was seen by whom when it wrote."""

    def __init__(
        self,
        rng: random.Random,
        *,
        merging: Callable[[Document, Document], Document] = merge.merge,
        purging: bool = True,
    ) -> None:
        self.rng = rng
        self.sites = [Site(origin, merging) for origin in range(1, rng.randint(3, 4) + 1)]
        self.revs_limit = rng.randint(1, 4)
        self.travelling: list[Document] = []
        self.states: list[Document] = [NOTHING]
        self.seen: dict[Dot, Document] = {}
        self._actions = [self.edit] * 4 + [self.edit_twice, self.graft, self.delete]
        self._actions += [self.receive] * 4 + ([self.purge] if purging else [])

    def run(self, steps: int) -> "History":
        for _ in range(steps):
            self.rng.choice(self._actions)()
        return self

    # Writes

    def _store(self, site: Site, state: Document, dot: Dot) -> None:
        self.seen[dot] = site.state
        site.state = state
        self.states.append(state)
        self.travelling.append(state)

    def _parent(self, site: Site) -> Leaf | None:
        shown = site.state.shown()
        return self.rng.choice(shown) if shown else None

    def _edit(self, site: Site, parent: Leaf | None, content: Leaf) -> None:
        dot = site.next_dot()
        rev_hash = hash_of(parent.rev if parent else None, content.digest)[:4]
        self._store(
            site, merge.edited(site.state, parent, rev_hash, content, dot, self.revs_limit), dot
        )

    def edit(self) -> None:
        site = self.rng.choice(self.sites)
        self._edit(site, self._parent(site), leaf_of(self.rng.randint(0, 3)))

    def delete(self) -> None:
        site = self.rng.choice(self.sites)
        parent = self._parent(site)
        if parent is not None:
            self._edit(site, parent, leaf_of(0, deleted=True))

    def edit_twice(self) -> None:
        """The same edit at two sites that both show the parent: one revision, two writes."""
        one, other = self.rng.sample(self.sites, 2)
        parent = self._parent(one)
        content = leaf_of(self.rng.randint(0, 3))
        for site in (one, other):
            shown = site.state.shown()
            mine = revtree.find_leaf(shown, parent.rev) if parent else None
            if mine is not None or (parent is None and not shown):
                self._edit(site, mine, content)

    def graft(self) -> None:
        """A revision made elsewhere, on a path through what some site knows."""
        site, other = self.rng.choices(self.sites, k=2)
        parent = self._parent(other)
        known = list(parent.ancestry) if parent else []
        known = known[self.rng.randint(0, len(known)) :]
        pos = (parent.pos - len(parent.ancestry) if parent else 0) + len(known) + 1
        path = (self.rng.choice("xyz"), *known)[: self.revs_limit]
        content = leaf_of(self.rng.randint(0, 3))
        leaf = msgspec.structs.replace(content, pos=pos, ancestry=path)
        if not revtree.descendants(site.state.leaves, leaf.rev):
            dot = site.next_dot()
            self._store(site, merge.grafted(site.state, leaf, dot, self.revs_limit), dot)

    def purge(self) -> None:
        site = self.rng.choice(self.sites)
        parent = self._parent(site)
        if parent is not None:
            dot = site.next_dot()
            self._store(site, merge.purged(site.state, [parent.rev], dot), dot)

    # Exchange

    def receive(self) -> None:
        """Some state that was sent, maybe long ago, maybe not for the first time."""
        if self.travelling:
            site = self.rng.choice(self.sites)
            site.receive(self.rng.choice(self.travelling))
            self.states.append(site.state)

    def settle(self) -> list[Document]:
        """Everybody hears everything, each in an order of its own; the sites' states."""
        for site in self.sites:
            sent = (
                self.travelling + self.rng.choices(self.travelling, k=3) if self.travelling else []
            )
            self.rng.shuffle(sent)
            for state in sent:
                site.receive(state)
        return [site.state for site in self.sites]


def diverged(states: Iterable[Document]) -> bool:
    first, *others = states
    return any(other != first or other.shown() != first.shown() for other in others)


def lost(history: History, settled: Document) -> list[Dot]:
    """Writes that are no leaf's and that no other write had seen."""
    held = {dot for leaf in settled.leaves for dot in leaf.dots}
    return [
        dot
        for dot in history.seen
        if dot not in held
        and not any(contains(before.context, dot) for before in history.seen.values())
        # A purge is a write that makes no leaf.
        and not _was_purge(history, dot)
    ]


def _was_purge(history: History, dot: Dot) -> bool:
    return not any(dot in leaf.dots for state in history.states for leaf in state.leaves)


# Convergence


def test_three_thousand_histories_and_none_diverges() -> None:
    rng_of = random.Random
    for seed in range(HISTORIES):
        history = History(rng_of(seed)).run(14)
        settled = history.settle()
        assert not diverged(settled), f"seed {seed}"
        assert not lost(history, settled[0]), f"seed {seed}"
        assert covers(settled[0].context, {site.origin: site.oseq for site in history.sites})


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(5, 30))
def test_all_sites_agree_after_talking(rng: random.Random, steps: int) -> None:
    history = History(rng).run(steps)
    settled = history.settle()
    assert not diverged(settled)
    assert not lost(history, settled[0])


def by_union(one: Document, other: Document) -> Document:
    """What merging would be without dots: the union of both trees."""
    leaves = {(leaf.pos, leaf.ancestry, leaf.digest): leaf for leaf in (*one.leaves, *other.leaves)}
    tips = {tip.rev for tip in revtree.shown(list(leaves.values()))}
    kept = [msgspec.structs.replace(leaf, dots=()) for leaf in leaves.values() if leaf.rev in tips]
    return Document(
        tuple(sorted(kept, key=lambda leaf: (leaf.rev, leaf.ancestry, leaf.digest))), {}
    )


def test_the_union_of_trees_does_diverge() -> None:
    """An old leaf that comes late looks like a conflict where ancestry is cut: tests can fail."""
    runs = 200
    failed = sum(
        diverged(History(random.Random(seed), merging=by_union, purging=False).run(14).settle())
        for seed in range(runs)
    )
    assert failed > runs // 4


# The laws


def reachable(seed: int) -> list[Document]:
    history = History(random.Random(seed)).run(20)
    return history.states + history.settle()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_merging_is_commutative_associative_and_idempotent(seed: int, data: st.DataObject) -> None:
    states = st.sampled_from(reachable(seed))
    a, b, c = data.draw(states), data.draw(states), data.draw(states)
    assert merge.merge(a, b) == merge.merge(b, a)
    assert merge.merge(a, merge.merge(b, c)) == merge.merge(merge.merge(a, b), c)
    assert merge.merge(a, a) == a
    both = merge.merge(a, b)
    assert merge.merge(both, a) == both
    assert merge.merge(a, NOTHING) == merge.merge(NOTHING, a) == a


def test_the_laws_hold_for_every_three_states_of_some_histories() -> None:
    for seed in range(10):
        states = list({repr(state): state for state in reachable(seed)}.values())[:12]
        for a, b, c in itertools.product(states, repeat=3):
            assert merge.merge(a, merge.merge(b, c)) == merge.merge(merge.merge(a, b), c)


# Single steps


def written(*edits: tuple[int, int], limit: int = 10) -> Document:
    """A chain of edits (origin, content), each on the winner."""
    state = NOTHING
    for oseq, (origin, content) in enumerate(edits, 1):
        state = edited(state, (origin, oseq), content, limit=limit)
    return state


def edited(
    state: Document, dot: Dot, content: int, *, limit: int = 10, deleted: bool = False
) -> Document:
    shown = state.shown()
    parent = shown[0] if shown else None
    leaf = leaf_of(content, deleted)
    rev_hash = hash_of(parent.rev if parent else None, leaf.digest)
    return merge.edited(state, parent, rev_hash, leaf, dot, limit)


def test_concurrent_edits_both_stay_and_the_next_edit_replaces_one() -> None:
    base = written((1, 0))
    left, right = edited(base, (1, 2), 1), edited(base, (2, 1), 2)
    both = merge.merge(left, right)
    assert len(both.shown()) == 2
    loser = both.shown()[1]
    on = edited(both, (1, 3), 3)
    assert [leaf.pos for leaf in on.shown()] == [3, 2]
    assert on.shown()[1].rev == loser.rev
    assert merge.merge(on, left) == merge.merge(on, right) == on


def test_an_identical_edit_at_two_sites_is_one_revision_with_two_dots() -> None:
    base = written((1, 0))
    both = merge.merge(edited(base, (1, 2), 1), edited(base, (2, 1), 1))
    (leaf,) = both.leaves
    assert leaf.dots == ((1, 2), (2, 1))
    # A site that saw only one of the writes replaces that one: the other still stands.
    child = edited(edited(base, (1, 2), 1), (1, 3), 5)
    merged = merge.merge(child, both)
    assert {leaf.pos for leaf in merged.leaves} == {2, 3}
    assert [leaf.pos for leaf in merged.shown()] == [3]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_an_old_state_that_arrives_late_brings_nothing_back(limit: int) -> None:
    states = [NOTHING]
    for oseq in range(1, 8):
        states.append(edited(states[-1], (1, oseq), oseq, limit=limit))
    newest = states[-1]
    assert len(newest.shown()[0].ancestry) == limit
    for old in states:
        assert merge.merge(newest, old) == merge.merge(old, newest) == newest


def test_a_purge_is_not_undone_by_a_site_that_has_not_heard() -> None:
    state = written((1, 0), (1, 1))
    purged = merge.purged(state, [state.shown()[0].rev], (2, 1))
    assert purged.leaves == ()
    assert merge.merge(purged, state) == merge.merge(state, purged) == purged
    # What was written beside the purge stays.
    beside = edited(state, (1, 3), 9)
    assert merge.merge(purged, beside).leaves == beside.leaves


def test_a_purge_takes_only_the_leaves_it_names() -> None:
    base = written((1, 0))
    both = merge.merge(edited(base, (1, 2), 1), edited(base, (2, 1), 2))
    winner, loser = both.shown()
    assert [leaf.rev for leaf in merge.purged(both, [loser.rev], (1, 3)).shown()] == [winner.rev]
    assert merge.purged(both, ["9-x"], (1, 3)).leaves == both.leaves


def test_a_graft_replaces_the_leaves_that_it_descends_from() -> None:
    state = written((1, 0))
    (tip,) = state.shown()
    child = msgspec.structs.replace(leaf_of(1), pos=3, ancestry=("c", "b", tip.ancestry[0]))
    assert [leaf.rev for leaf in merge.grafted(state, child, (1, 2), 1000).leaves] == ["3-c"]
    stranger = msgspec.structs.replace(leaf_of(1), pos=3, ancestry=("c", "b"))
    assert len(merge.grafted(state, stranger, (1, 2), 1000).leaves) == 2


def test_a_deleted_leaf_stays_a_leaf() -> None:
    state = edited(written((1, 0)), (1, 2), 0, deleted=True)
    (tip,) = state.shown()
    assert tip.deleted
    again = edited(state, (1, 3), 1)
    assert [leaf.deleted for leaf in again.shown()] == [False]
    assert again.shown()[0].ancestry[1] == tip.ancestry[0]


def test_a_revs_limit_of_one_keeps_no_parent() -> None:
    state = written((1, 0), (1, 1), limit=1)
    (tip,) = state.leaves
    assert tip.pos == 2
    assert len(tip.ancestry) == 1


def test_an_edit_may_make_a_leaf_that_is_there_already() -> None:
    """With a revs limit of 1, a child does not name its parent, so that both may be leaves."""
    child = leaf_of(5)
    rev_hash = hash_of("1-a", child.digest)
    state = merge.grafted(
        NOTHING, msgspec.structs.replace(child, pos=2, ancestry=(rev_hash,)), (1, 1), 1
    )
    parent = msgspec.structs.replace(leaf_of(1), pos=1, ancestry=("a",))
    state = merge.grafted(state, parent, (1, 2), 1000)
    again = merge.edited(state, state.leaves[1], rev_hash, child, (1, 3), 1)
    (leaf,) = again.leaves
    assert leaf.dots == ((1, 1), (1, 3))
    assert merge.merge(again, NOTHING) == merge.merge(NOTHING, again) == again
    assert merge.merge(state, again) == merge.merge(again, state) == again


def test_a_short_path_goes_on_as_the_tree_does() -> None:
    """Clients send a path of two revisions; what is known below its last one belongs to it."""
    grand = msgspec.structs.replace(leaf_of(1), pos=3, ancestry=("c", "b", "a"))
    state = merge.grafted(NOTHING, grand, (1, 1), 1000)
    child = msgspec.structs.replace(leaf_of(2), pos=4, ancestry=("d", "c"))
    (leaf,) = merge.grafted(state, child, (1, 2), 1000).leaves
    assert leaf.ancestry == ("d", "c", "b", "a")
    (cut,) = merge.grafted(state, child, (1, 2), 3).leaves
    assert cut.ancestry == ("d", "c", "b")


# States that cannot both be of one history


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_states_of_one_history_are_merged(seed: int, data: st.DataObject) -> None:
    states = st.sampled_from(reachable(seed))
    a, b = data.draw(states), data.draw(states)
    assert merge.reconciled(a, b) == merge.merge(a, b)


def with_another_content(document: Document) -> Document:
    leaves = tuple(msgspec.structs.replace(leaf, digest=b"other") for leaf in document.leaves)
    return Document(leaves, document.context)


def test_a_leaf_that_is_gone_while_the_context_stayed_is_no_purge() -> None:
    """The plain merge would take it for one, and take the leaf from the sound side as well."""
    sound = written((1, 1))
    damaged = Document((), sound.context)
    assert merge.merge(sound, damaged).leaves == ()
    assert merge.reconciled(sound, damaged) is None
    assert merge.reconciled(damaged, sound) is None


def test_one_write_with_two_contents_is_left_alone() -> None:
    one = written((1, 1))
    assert merge.reconciled(one, with_another_content(one)) is None
    # Neither contains all of the other, and one write of both has two contents.
    later = Document(one.leaves, {**one.context, 2: 1})
    other = with_another_content(Document(one.leaves, {**one.context, 3: 1}))
    assert merge.reconciled(later, other) is None


def test_an_earlier_state_is_followed_by_the_later_one() -> None:
    earlier, later = written((1, 1)), written((1, 1), (1, 2))
    assert merge.reconciled(earlier, later) == later
    assert merge.reconciled(NOTHING, later) == later
