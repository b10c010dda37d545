"""What a view is asked for, checked as CouchDB checks it."""

from typing import Any, Final, Literal

import msgspec

from divandb.errors import QueryParseError
from divandb.views.design import View
from divandb.views.ranges import Stretch, all_of, between, of_key

UNSET: Any = msgspec.UNSET
LIMIT_MAX: Final = 10**15
MULTI_KEYS: Final = "`keys` is incompatible with `key`, `start_key` and `end_key`"


class Query(msgspec.Struct, frozen=True):
    """A query of a view; ``start`` and ``end`` are JSON values in reading order, or ``UNSET``."""

    start: Any = UNSET
    end: Any = UNSET
    keys: Any = None
    start_id: Any = None
    end_id: Any = None
    limit: int = LIMIT_MAX
    skip: int = 0
    descending: bool = False
    inclusive_end: bool = True
    include_docs: bool = False
    update_seq: bool = False
    conflicts: bool | None = None
    attachments: bool = False
    att_encoding_info: bool = False
    reduce: bool | None = None
    group: bool | None = None
    group_level: int | None = None
    update: bool | Literal["lazy"] = True
    insists: bool = False
    """Is no other version of the design document wanted, however long the new one takes?"""
    stable: bool = False
    """Is the same node to answer each time?"""

    def is_reduced(self, view: View) -> bool:
        """Are rows reduced?"""
        return view.reduce is not None and self.reduce is not False

    @property
    def level(self) -> int | None:
        """How many of a key's items make a group: 0 is all rows together, None the whole key."""
        if self.group_level is not None:
            return self.group_level
        return None if self.group else 0


def check(query: Query, view: View) -> Query:
    """``query`` if its parameters go together for this view; raises ``QueryParseError``."""
    if query.group is False and (query.group_level or 0) > 0:
        raise QueryParseError("Can't specify group=false and group_level>0 at the same time")
    reduced = query.is_reduced(view)
    if query.reduce and not reduced:
        raise QueryParseError("Reduce is invalid for map-only views.")
    if reduced:
        _check_reduced(query)
    elif query.level != 0:
        raise QueryParseError("Invalid use of grouping on a map view.")
    _check_keys(query)
    for name, value in (("start", query.start_id), ("end", query.end_id)):
        if value is not None and not isinstance(value, str):
            raise QueryParseError(f"`{name}_key_docid` must be a string.")
    return query


def _check_reduced(query: Query) -> None:
    if isinstance(query.keys, list) and query.level is not None:
        raise QueryParseError("Multi-key fetches for reduce views must use `group=true`")
    if query.include_docs:
        raise QueryParseError("`include_docs` is invalid for reduce")
    if query.conflicts is not None:
        raise QueryParseError("`conflicts` is invalid for reduce views.")


def _check_keys(query: Query) -> None:
    keys = query.keys
    if keys is None:
        return
    if not isinstance(keys, list):
        raise QueryParseError("`keys` must be an array of strings.")
    bounds = [bound for bound in (query.start, query.end) if bound is not UNSET]
    if keys and bounds and not (len(keys) == 1 and bounds == [keys[0], keys[0]]):
        raise QueryParseError(MULTI_KEYS)


def stretches(query: Query, view: View) -> list[Stretch]:
    """The parts of the view that are read, in order; raises ``QueryParseError``."""
    if query.keys is not None:
        keys = query.keys[::-1] if query.descending else query.keys
        encoded = view.map.encoded
        return [of_key(view.part, encoded(key), descending=query.descending) for key in keys]
    if query.start is UNSET and query.end is UNSET:
        return [all_of(view.part, descending=query.descending)]
    found = between(
        view.part, _encoded(query.start, view), _encoded(query.end, view),
        query.start_id, query.end_id,
        descending=query.descending, inclusive_end=query.inclusive_end,
    )  # fmt: skip
    return [found]


def _encoded(key: Any, view: View) -> bytes | None:
    return None if key is UNSET else view.map.encoded(key)
