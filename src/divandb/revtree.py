"""Revision trees as CouchDB's clients see them, over a set of leaves.

Rules:

1. A revision is ``N-hash``. New hashes are 32 lower-case hex digits; any string that a client
   brings with ``new_edits=false`` is kept as it is.
2. A leaf carries its ancestry, newest first, its own hash at the head, cut when it was made.
3. Of several leaves of one revision, one is shown: the greatest content digest; and that
   revision's ancestry is the longest (then greatest) among them. One that ends at a revision of
   which another leaf knows more goes on as that does: its parent was not here when it was taken.
4. A leaf that stands in another leaf's ancestry is not shown.
5. The winner is the shown leaf that is not deleted, then has the highest N, then the highest
   hash (as bytes where it is hex).

Everything here is a view: what is stored and merged is the set of leaves (``merge``).
"""

from collections.abc import Iterable, Sequence

import msgspec

from divandb.errors import BadRequest
from divandb.vector import Dot

HASH_CHARS_MAX = 256
POS_MAX = 2**40


class Attachment(msgspec.Struct, frozen=True, array_like=True):
    """What a leaf knows of one attachment; the bytes are the blob named ``blob``."""

    name: str
    content_type: str
    revpos: int
    digest: bytes
    """MD5 of the stored bytes, as CouchDB shows it."""
    length: int
    """Bytes before encoding."""
    encoding: str
    """``gzip`` or empty."""
    encoded_length: int
    blob: bytes
    """SHA-256 of the stored bytes: the blob's name."""


class Leaf(msgspec.Struct, frozen=True, array_like=True):
    """One leaf revision: immutable but for the dots, which name the writes that made it."""

    pos: int
    ancestry: tuple[str, ...]
    deleted: bool
    digest: bytes
    """Over the content: body, deletion, attachments (``document.content_digest``)."""
    attachments: tuple[Attachment, ...]
    dots: tuple[Dot, ...]

    @property
    def rev(self) -> str:
        return f"{self.pos}-{self.ancestry[0]}"

    def revs(self) -> list[str]:
        """All revisions of the ancestry, newest first, as ``N-hash``."""
        pos = self.pos
        return [f"{pos - depth}-{rev_hash}" for depth, rev_hash in enumerate(self.ancestry)]

    def knows(self, pos: int, rev_hash: str) -> bool:
        """Is that revision this leaf or one of its ancestors?"""
        depth = self.pos - pos
        return 0 <= depth < len(self.ancestry) and self.ancestry[depth] == rev_hash


def parse_rev(rev: object) -> tuple[int, str]:
    """``"3-abc"`` → ``(3, "abc")``; raises ``BadRequest`` in CouchDB's words. As there, nothing may
    stand behind the dash: no revision is of that name.
    """
    if not isinstance(rev, str):
        raise BadRequest("Invalid rev format")
    number, dash, rev_hash = rev.partition("-")
    if not dash or not number.isascii() or not number.isdigit():
        raise BadRequest("Invalid rev format")
    if len(rev_hash) > HASH_CHARS_MAX or len(number) > 13 or int(number) > POS_MAX:
        raise BadRequest("Invalid rev format")
    return int(number), rev_hash


def hash_bytes(rev_hash: str) -> bytes:
    """A revision's hash as CouchDB keeps and compares it: 32 hex digits are 16 bytes."""
    if len(rev_hash) == 32:
        try:
            return bytes.fromhex(rev_hash)
        except ValueError:
            pass
    return rev_hash.encode()


def rank(leaf: Leaf) -> tuple[bool, int, bytes]:
    """The order in which leaves win: the greatest is the winner."""
    return (not leaf.deleted, leaf.pos, hash_bytes(leaf.ancestry[0]))


def shown(leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves a client sees, the winner first (rules 3 to 5)."""
    if len(leaves) <= 1:
        return list(leaves)
    alone = _one_for_each_revision(leaves)
    inner = _inner_heads(alone)
    tips = [leaf for leaf in alone if (leaf.pos, leaf.ancestry[0]) not in inner]
    return sorted(_whole(tips, alone), key=rank, reverse=True)


def _whole(tips: Sequence[Leaf], leaves: Sequence[Leaf]) -> list[Leaf]:
    """The tips with all of their ancestry that is known: one that was taken without its parent goes
    on where that one does, once it is here.
    """
    roots = {_root(tip.pos, tip.ancestry) for tip in tips}
    places = {pos for pos, _ in roots}
    below: dict[tuple[int, str], tuple[str, ...]] = {}
    for leaf in leaves:  # a document may have thousands: each is looked at once, not by each tip
        for pos in places:
            depth = leaf.pos - pos
            if 0 <= depth < len(leaf.ancestry) - 1 and (pos, leaf.ancestry[depth]) in roots:
                root, rest = (pos, leaf.ancestry[depth]), leaf.ancestry[depth + 1 :]
                below[root] = max(below.get(root, ()), rest, key=_by_length)
    found = [(tip, below.get(_root(tip.pos, tip.ancestry))) for tip in tips]
    return [
        tip if rest is None else msgspec.structs.replace(tip, ancestry=tip.ancestry + rest)
        for tip, rest in found
    ]


def _root(pos: int, path: tuple[str, ...]) -> tuple[int, str]:
    """Where a path from ``pos`` down ends."""
    return pos - len(path) + 1, path[-1]


def _by_length(path: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    return len(path), path


def _one_for_each_revision(leaves: Sequence[Leaf]) -> list[Leaf]:
    chosen: dict[str, Leaf] = {}
    for leaf in leaves:
        other = chosen.get(leaf.rev)
        chosen[leaf.rev] = leaf if other is None else _same_revision(leaf, other)
    return list(chosen.values())


def _same_revision(one: Leaf, other: Leaf) -> Leaf:
    content = max(one, other, key=lambda leaf: leaf.digest)
    longest = max(one.ancestry, other.ancestry, key=_by_length)
    dots = tuple(sorted({*one.dots, *other.dots}))
    return msgspec.structs.replace(content, ancestry=longest, dots=dots)


def _inner_heads(leaves: Sequence[Leaf]) -> set[tuple[int, str]]:
    """What stands in the ancestries just where other leaves have their heads."""
    heads = {leaf.pos for leaf in leaves}
    return {
        (pos, leaf.ancestry[leaf.pos - pos])
        for leaf in leaves
        for pos in heads
        if 0 < leaf.pos - pos < len(leaf.ancestry)
    }


def lengthened(leaves: Iterable[Leaf], pos: int, path: tuple[str, ...]) -> tuple[str, ...]:
    """``path`` from ``pos`` down, and what the tree knows below its last revision."""
    root, last = _root(pos, path)
    below = [leaf.ancestry[leaf.pos - root + 1 :] for leaf in leaves if leaf.knows(root, last)]
    return path + max(below, key=_by_length, default=())


def find_leaf(leaves: Iterable[Leaf], rev: str) -> Leaf | None:
    """The leaf of exactly this revision."""
    return next((leaf for leaf in leaves if leaf.rev == rev), None)


def descendants(leaves: Iterable[Leaf], rev: str) -> list[Leaf]:
    """The leaves that are this revision or have it as an ancestor."""
    pos, rev_hash = parse_rev(rev)
    return [leaf for leaf in leaves if leaf.knows(pos, rev_hash)]


def known_revs(leaves: Iterable[Leaf]) -> set[str]:
    """Every revision that the tree has, leaves and ancestors."""
    return {rev for leaf in leaves for rev in leaf.revs()}


def missing_revs(leaves: Sequence[Leaf], revs: Iterable[str]) -> list[str]:
    """Those of ``revs`` that the tree does not have, in the order given, once each."""
    missing = []
    for rev in dict.fromkeys(revs):
        pos, rev_hash = parse_rev(rev)
        if not any(leaf.knows(pos, rev_hash) for leaf in leaves):
            missing.append(rev)
    return missing


def possible_ancestors(leaves: Iterable[Leaf], missing: Iterable[str]) -> list[str]:
    """Leaves below the highest missing revision: a replicator may build on them."""
    highest = max((parse_rev(rev)[0] for rev in missing), default=0)
    return sorted({leaf.rev for leaf in leaves if leaf.pos < highest})
