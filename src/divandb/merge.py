"""The dotted merge: how two states of one document become one.

A document is a set of leaves and a *context*: origin → highest oseq of a write to this document
that the state contains. Rules (dotted version vectors, Preguiça et al. 2010; observed-remove sets,
Bieniusa et al. 2012):

1. A leaf is an element: revision, ancestry and content together, never changed once made. Its dots
   name the writes that made it.
2. A dot survives a merge if both sides have it at that element, or if one side has it and the other
   side's context does not cover it. An element without a surviving dot is gone.
3. Contexts are joined by maximum.

So merging is commutative, associative and idempotent whatever was cut from ancestries; what clients
see (one leaf a revision, no inner leaves, the winner) is a view of the set: ``revtree.shown``.

``edited``, ``grafted`` and ``purged`` are the writes. Each shows the master all leaves that it
replaces, so each drops what is not shown any more and covers its dots by the new context.
"""

from collections.abc import Iterable

import msgspec

from divandb import revtree
from divandb.revtree import Leaf
from divandb.vector import Dot, contains, covers, join


class Document(msgspec.Struct, frozen=True, array_like=True):
    """All that merging needs to know of one document; bodies are kept beside it, by digest."""

    leaves: tuple[Leaf, ...]
    context: dict[int, int]

    def shown(self) -> list[Leaf]:
        """The leaves a client sees, the winner first."""
        return revtree.shown(self.leaves)


NOTHING = Document((), {})

_Element = tuple[int, tuple[str, ...], bytes]


def _element(leaf: Leaf) -> _Element:
    return (leaf.pos, leaf.ancestry, leaf.digest)


def _order(leaf: Leaf) -> tuple[int, tuple[str, ...], bytes]:
    return (-leaf.pos, leaf.ancestry, leaf.digest)


def merge(one: Document, other: Document) -> Document:
    """The least state that contains both."""
    if one == other:
        return one
    mine = {_element(leaf): leaf for leaf in one.leaves}
    theirs = {_element(leaf): leaf for leaf in other.leaves}
    leaves = []
    for key in {**mine, **theirs}:
        a, b = mine.get(key), theirs.get(key)
        dots = _surviving(a.dots if a else (), b.dots if b else (), one.context, other.context)
        leaf = a or b
        if dots and leaf:
            leaves.append(leaf if leaf.dots == dots else msgspec.structs.replace(leaf, dots=dots))
    return Document(tuple(sorted(leaves, key=_order)), join(one.context, other.context))


def _surviving(
    a: tuple[Dot, ...], b: tuple[Dot, ...], context_a: dict[int, int], context_b: dict[int, int]
) -> tuple[Dot, ...]:
    both = set(a) & set(b)
    only_a = {dot for dot in a if not contains(context_b, dot)}
    only_b = {dot for dot in b if not contains(context_a, dot)}
    return tuple(sorted(both | only_a | only_b))


def reconciled(one: Document, other: Document) -> Document | None:
    """The merge of two states; ``None`` if they cannot both be states of one history.

    Of two states of which one contains all writes of the other, the merge is the one that contains
    more; and a write makes one element, wherever it is. Where that does not hold, one of the two is
    damaged, nothing here says which, and a merge might drop what is right.
    """
    merged = merge(one, other)
    for more, less in ((one, other), (other, one)):
        if covers(more.context, less.context) and set(merged.leaves) != set(more.leaves):
            return None
    mine, theirs = _made(one), _made(other)
    agree = all(theirs.get(dot, element) == element for dot, element in mine.items())
    return merged if agree else None


def _made(document: Document) -> dict[Dot, _Element]:
    return {dot: _element(leaf) for leaf in document.leaves for dot in leaf.dots}


def edited(
    document: Document,
    parent: Leaf | None,
    rev_hash: str,
    content: Leaf,
    dot: Dot,
    revs_limit: int,
) -> Document:
    """``document`` with a child of ``parent`` in its place; ``content`` is all but ancestry."""
    path = (rev_hash, *(parent.ancestry if parent else ()))[:revs_limit]
    pos = parent.pos + 1 if parent else 1
    child = msgspec.structs.replace(content, pos=pos, ancestry=path, dots=(dot,))
    # By name, not by ancestry: with a `_revs_limit` of 1 the child no longer names its parent.
    others = [leaf for leaf in _present(document) if parent is None or leaf.rev != parent.rev]
    return _written(document, (*others, child), dot)


def grafted(document: Document, leaf: Leaf, dot: Dot, revs_limit: int) -> Document:
    """``document`` with ``leaf`` added as the write ``dot``, in place of its ancestors.

    A path that ends in a revision which the tree knows goes on as the tree does.
    """
    path = revtree.lengthened(document.leaves, leaf.pos, leaf.ancestry)[:revs_limit]
    born = msgspec.structs.replace(leaf, ancestry=path, dots=(dot,))
    return _written(document, (*_present(document), born), dot)


def purged(document: Document, revs: Iterable[str], dot: Dot) -> Document:
    """``document`` without the leaves of ``revs``; the context stays: nothing brings them back."""
    gone = set(revs)
    return _written(document, [leaf for leaf in _present(document) if leaf.rev not in gone], dot)


def _present(document: Document) -> list[Leaf]:
    """The elements behind what is shown: each as it was made, so that other nodes drop the rest."""
    if len(document.leaves) <= 1:
        return list(document.leaves)
    tips = {leaf.rev: leaf.digest for leaf in document.shown()}
    return [leaf for leaf in document.leaves if tips.get(leaf.rev) == leaf.digest]


def _once_each(leaves: Iterable[Leaf]) -> list[Leaf]:
    """A write may make what is there, where its parent was cut from it: one element then."""
    elements: dict[_Element, Leaf] = {}
    for leaf in leaves:
        known = elements.get(_element(leaf))
        dots = leaf.dots if known is None else tuple(sorted({*known.dots, *leaf.dots}))
        elements[_element(leaf)] = msgspec.structs.replace(leaf, dots=dots)
    return list(elements.values())


def _written(document: Document, leaves: Iterable[Leaf], dot: Dot) -> Document:
    kept = list(leaves)
    if len(kept) > 1:
        kept = _once_each(kept)
        tips = {leaf.rev for leaf in revtree.shown(kept)}
        kept = sorted((leaf for leaf in kept if leaf.rev in tips), key=_order)
    origin, oseq = dot
    return Document(tuple(kept), {**document.context, origin: oseq})
