"""A batch of changes: what to ask the target, what to fetch, and bodies of bounded size. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

BODY_BYTES_MAX = 4 * 2**20
"""Of one `_bulk_docs`; a larger document goes alone."""
FETCH_REVS_MAX = 100
"""Of one `_bulk_get`."""


class Wanted(msgspec.Struct, frozen=True):
    """A revision that the target has not."""

    id: str
    rev: str
    ancestors: tuple[str, ...] = ()
    """Revisions which the target has that may be before it."""


def revs_of(results: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """id → leaves, of the rows of `_changes`."""
    revs: dict[str, list[str]] = {}
    for row in results:
        known = revs.setdefault(row["id"], [])
        known += [one["rev"] for one in row["changes"] if one["rev"] not in known]
    return revs


def wanted_of(diff: Mapping[str, Mapping[str, Any]]) -> list[Wanted]:
    """What `_revs_diff` answered."""
    return [
        Wanted(doc_id, rev, tuple(said.get("possible_ancestors", ())))
        for doc_id, said in diff.items()
        for rev in said.get("missing", ())
    ]


def portions(wanted: Sequence[Wanted], most: int = FETCH_REVS_MAX) -> Iterator[Sequence[Wanted]]:
    """In the same order, at most so many at a time."""
    for begin in range(0, len(wanted), most):
        yield wanted[begin : begin + most]


def bodies(docs: Iterable[bytes], bytes_max: int = BODY_BYTES_MAX) -> Iterator[list[bytes]]:
    """Documents in the same order, in groups of at most ``bytes_max``; a larger one is alone."""
    group: list[bytes] = []
    size = 0
    for doc in docs:
        if group and size + len(doc) > bytes_max:
            yield group
            group, size = [], 0
        group.append(doc)
        size += len(doc)
    if group:
        yield group


def bulk_body(docs: Sequence[bytes]) -> bytes:
    """The body of a `_bulk_docs` that stores these as they are."""
    return b'{"new_edits":false,"docs":[' + b",".join(docs) + b"]}"
