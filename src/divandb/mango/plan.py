"""Which index answers a query, which part of it is read, and why: as CouchDB chooses.

An index can serve a selector that makes all its fields exist, and a sort by its first fields
(those that the selector sets to one value may be left out). The one by id serves all but sorts, and
is taken only if no other can. Of several, that which leaves fewest of the selector's conditions
over is taken, then the one with fewer fields, then the first by name.

A span is what of an index is read: keys from ``start`` to before ``end`` (``keys``). It holds all
that can match; whoever reads asks the selector's predicate again. Conditions on ``_id`` compare
by code point (``selector``), which is how the index by id is ordered; in others only ``$eq`` on it
narrows what is read.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from divandb.mango import keys, tree
from divandb.mango.index import BY_ID, DESIGN, Index
from divandb.mango.options import Query, refused
from divandb.mango.tree import And, At, Node, Or, Test

NO_INDEX = "No matching index found, create an index to optimize query time."
MANY_EXAMINED = (
    "The number of documents examined is high in proportion to the number of results returned."
    " Consider adding a more specific index to improve this."
)
EXAMINED_A_RESULT_MAX = 10
NO_SORT_INDEX = "No index exists for this sort, try indexing by the sort fields."

Path = tuple[str, ...]
LAST: Final = "\U0010ffff"
_ID: Final[Path] = ("_id",)
_ALWAYS_THERE: Final = frozenset({_ID, ("_rev",)})
_COMPARISONS: Final = frozenset({"$lt", "$lte", "$eq", "$gte", "$gt", "$beginsWith"})
_INDEXABLE: Final = _COMPARISONS | {"$exists"}


# ---- what a selector says of a field ------------------------------------------------------------


class Range(msgspec.Struct, frozen=True):
    """What conditions on one field leave: keys from ``start`` to before ``end``.

    ``low`` and ``high`` are these as JSON, as far as there are any, in lists of one.
    """

    start: bytes = b""
    end: bytes = keys.ABOVE
    low: tuple[Any, ...] = ()
    high: tuple[Any, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Can nothing be in it?"""
        return self.start >= self.end

    @property
    def is_one_value(self) -> bool:
        """Is all in it the same value?"""
        return bool(self.low) and self.end == keys.encoded(self.low[0]) + keys.ABOVE > self.start

    def narrowed(self, other: "Range") -> "Range":
        """What is in both."""
        low = (other.start, other.low) if other.start > self.start else (self.start, self.low)
        high = (other.end, other.high) if other.end < self.end else (self.end, self.high)
        return Range(low[0], high[0], low[1], high[1])


def _range(operator: str, arg: Any) -> Range:
    if operator == "$beginsWith":
        start = keys.beginning(arg)
        return Range(start, start + keys.ABOVE, (arg,), (arg + LAST,))
    if operator not in _COMPARISONS:
        return Range()
    key = keys.encoded(arg)
    return {
        "$eq": Range(key, key + keys.ABOVE, (arg,), (arg,)),
        "$gte": Range(start=key, low=(arg,)),
        "$gt": Range(start=key + keys.ABOVE, low=(arg,)),
        "$lte": Range(end=key + keys.ABOVE, high=(arg,)),
        "$lt": Range(end=key, high=(arg,)),
    }[operator]


def ranges(node: Node) -> dict[Path, Range]:
    """What must hold of each field that an index can narrow, by ``$and`` alone."""
    found: dict[Path, Range] = {}
    for path, test in _conditions(node):
        if test.operator in _INDEXABLE and path:
            narrow = path != _ID or test.operator == "$eq"
            range_ = _range(test.operator, test.arg) if narrow else Range()
            found[path] = found.get(path, Range()).narrowed(range_)
    return found


def _conditions(node: Node) -> Iterable[tuple[Path, Test]]:
    match node:
        case And(nodes):
            for child in nodes:
                yield from _conditions(child)
        case At(path, Test() as test):
            yield path, test


def lacking(node: Node, wanted: frozenset[Path]) -> frozenset[Path]:
    """Those fields that a matching document may be without."""
    match node:
        case And(nodes):
            for child in nodes:
                wanted = lacking(child, wanted)
        case Or(nodes) if nodes:
            wanted = frozenset().union(*(lacking(child, wanted) for child in nodes))
        case At(path, condition) if condition != Test("$exists", False):
            wanted -= {path}
    return wanted


def is_constant(node: Node, path: Path) -> bool:
    """Does the selector set this field to one value?"""
    return any(at == path and test.operator == "$eq" for at, test in _conditions(node))


def mentioned(node: Node) -> set[Path]:
    """All fields that a selector names."""
    match node:
        case And(nodes) | Or(nodes):
            return set().union(*map(mentioned, nodes))
        case At(path, _):
            return {path}
    return set()


# ---- choosing -----------------------------------------------------------------------------------


class Candidate(msgspec.Struct, frozen=True):
    """An index that was looked at, and why it was not taken (``reason``, CouchDB's words)."""

    index: Index
    usable: bool
    reason: str
    ranking: int


class Plan(msgspec.Struct, frozen=True):
    """How a query is answered; ``index`` is None where nothing can."""

    query: Query
    index: Index | None
    ranges: tuple[Range, ...]
    """Of the first fields of the index."""
    rejected: tuple[Candidate, ...]
    is_empty: bool
    """Can nothing match?"""

    @property
    def is_by_id(self) -> bool:
        """Are all documents gone through?"""
        return self.index is not None and self.index.is_special

    @property
    def span(self) -> tuple[bytes, bytes]:
        """The keys to read: fields with one value, then a range of the next one."""
        prefix = b""
        for each in self.ranges:
            if not each.is_one_value:
                return prefix + each.start, prefix + each.end
            prefix += each.start
        return prefix, prefix + keys.ABOVE

    @property
    def ids(self) -> tuple[str, str | None]:
        """The first and the last id to read, of the index by id; None: to the end."""
        low, high = "", None
        for path, test in _conditions(self.query.selector):
            if path != _ID or not isinstance(test.arg, str):
                continue
            if test.operator in ("$eq", "$gt", "$gte", "$beginsWith"):
                low = max(low, test.arg)
            if test.operator in ("$eq", "$lt", "$lte", "$beginsWith"):
                end = test.arg + LAST if test.operator == "$beginsWith" else test.arg
                high = end if high is None else min(high, end)
        return low, high

    @property
    def start_key(self) -> Any:
        """As ``_explain`` shows it."""
        if self.is_empty or self.index is None:
            return None
        if self.is_by_id:
            return self.ids[0]
        return [low for each in _while(self.ranges, "low") for low in each.low]

    @property
    def end_key(self) -> Any:
        """The same."""
        if self.is_empty or self.index is None:
            return None
        if self.is_by_id:
            high = self.ids[1]
            return "<MAX>" if high is None else high
        return [*(high for each in _while(self.ranges, "high") for high in each.high), "<MAX>"]

    @property
    def covering(self) -> bool:
        """Are all fields asked for in the index?"""
        if self.index is None or self.is_by_id or not self.query.fields:
            return False
        wanted = {tree.path_of(field) for field in self.query.fields}
        return (wanted | mentioned(self.query.selector)) <= {_ID, *self.index.paths}

    def warning(self, examined: int, returned: int) -> str | None:
        """What to tell whoever asked."""
        told = []
        hint = self.query.use_index
        if hint and (self.index is None or not _is_hinted(self.index, hint)):
            told.append(_unused(hint))
        if self.is_by_id:
            told.append(NO_INDEX)
        if examined > EXAMINED_A_RESULT_MAX * max(returned, 1):
            told.append(MANY_EXAMINED)
        return "\n".join(told) or None


def _while(found: Sequence[Range], side: str) -> Iterable[Range]:
    for each in found:
        if not getattr(each, side):
            return
        yield each


def _unused(hint: tuple[str, ...]) -> str:
    name = f"_design/{hint[0].removeprefix(DESIGN)}"
    if len(hint) == 1:
        return f"{name} was not used because it does not contain a valid index for this query."
    return f"{name}, {hint[1]} was not used because it is not a valid index for this query."


def _is_hinted(index: Index, hint: tuple[str, ...]) -> bool:
    if index.ddoc != DESIGN + hint[0].removeprefix(DESIGN):
        return False
    return len(hint) == 1 or index.name == hint[1]


def _misfit(index: Index, query: Query) -> str | None:
    """Why an index cannot serve a query; None if it can."""
    sort = tuple(tree.path_of(field) for field, _ in query.sort)
    if index.is_special:
        if not sort:
            return None
        fits = _ID in ranges(query.selector)
        return "field_mismatch" if not fits else None if sort == (_ID,) else "sort_order_mismatch"
    wanted = frozenset(index.paths) - set(sort) - _ALWAYS_THERE
    if lacking(query.selector, wanted):
        return "field_mismatch"
    return None if _serves_sort(index.paths, sort, query.selector) else "sort_order_mismatch"


def _serves_sort(paths: tuple[Path, ...], sort: tuple[Path, ...], node: Node) -> bool:
    while sort and paths:
        if paths[0] == sort[0]:
            return paths[: len(sort)] == sort
        if not is_constant(node, paths[0]):
            return False
        paths = paths[1:]
    return not sort


def _prefix(index: Index, found: dict[Path, Range]) -> tuple[Range, ...]:
    taken = []
    for path in index.paths:
        if path not in found:
            break
        taken.append(found[path])
    return tuple(taken)


def choose(query: Query, indexes: Sequence[Index], *, explaining: bool = False) -> Plan:
    """The plan for a query; raises ``BadRequest`` where CouchDB has no index for it.

    ``indexes`` are all of the database but the one by id.
    """
    everything = [BY_ID, *indexes]
    hinted = [one for one in everything if query.use_index and _is_hinted(one, query.use_index)]
    considered = [one for one in everything if one.partial is None or one in hinted]
    misfits = {id(one): _misfit(one, query) for one in considered}
    usable = [one for one in considered if misfits[id(one)] is None]
    if not usable and not explaining:
        raise refused("no_usable_index", NO_SORT_INDEX)
    filtered = [one for one in usable if one in hinted] or _fallback(query, usable)
    found = ranges(query.selector)
    ranked = _ranked([one for one in filtered if not one.is_special] or filtered, found)
    winner = ranked[0] if ranked else None
    rejected = _rejected(everything, considered, misfits, filtered, ranked, found)
    taken = _prefix(winner, found) if winner is not None else ()
    is_empty = query.finds_nothing or any(one.is_empty for one in found.values())
    return Plan(query, winner, taken, tuple(rejected), is_empty)


def _fallback(query: Query, usable: list[Index]) -> list[Index]:
    hint = query.use_index
    if query.allow_fallback or (not hint and len(usable) > 1):
        return usable
    if not hint:
        reason = "You must specify an index with the `use_index` parameter."
    else:
        name = ", ".join([DESIGN + hint[0].removeprefix(DESIGN), *hint[1:]])
        reason = f"{name} specified by `use_index` could not be found or it is not suitable."
    raise refused("invalid_index", reason)


def _ranked(found: list[Index], by_path: dict[Path, Range]) -> list[Index]:
    def rank(index: Index) -> tuple[int, int, str, str]:
        return (-len(_prefix(index, by_path)), len(index.paths), index.ddoc or "", index.name)

    return sorted(found, key=rank)


def _rejected(
    everything: list[Index],
    considered: list[Index],
    misfits: dict[int, str | None],
    filtered: list[Index],
    ranked: list[Index],
    by_path: dict[Path, Range],
) -> Iterable[Candidate]:
    """All but the winner, with the reasons and the ranking that CouchDB gives."""
    stages: list[list[tuple[Index, bool, str]]] = [
        [(one, True, "unfavored_type") for one in filtered if one not in ranked],
        [
            (one, True, "excluded_by_user")
            for one in considered
            if misfits[id(one)] is None and one not in filtered
        ],
        [(one, False, why) for one in considered if (why := misfits[id(one)]) is not None],
        [(one, False, "is_partial") for one in everything if one not in considered],
    ]
    for place, one in enumerate(ranked[1:], 1):
        yield Candidate(one, True, _lost(one, ranked[0], by_path), place)
    place = max(1, len(ranked))
    for stage in stages:
        for index, usable, reason in stage:
            yield Candidate(index, usable, reason, place)
        place += bool(stage)


def _lost(index: Index, winner: Index, by_path: dict[Path, Range]) -> str:
    if len(_prefix(index, by_path)) < len(by_path):
        return "less_overlap"
    is_wide = len(index.paths) > len(winner.paths)
    return "too_many_fields" if is_wide else "alphabetically_comes_after"


# ---- explaining ---------------------------------------------------------------------------------


def explained(plan: Plan, database: str) -> dict[str, Any]:
    """The plan as ``_explain`` answers it."""
    query = plan.query
    by_path, named = ranges(query.selector), mentioned(query.selector)
    return {
        "dbname": database,
        "index": None if plan.index is None else plan.index.as_json(),
        "partitioned": False,
        "selector": tree.as_json(query.selector),
        "opts": _options(query),
        "limit": query.limit,
        "skip": query.skip,
        "fields": list(query.fields),
        "index_candidates": [
            {
                "index": one.index.as_json(),
                "analysis": {
                    "usable": one.usable,
                    "reasons": [{"name": one.reason}],
                    "ranking": one.ranking,
                    "covering": None
                    if one.index.is_special
                    else Plan(query, one.index, (), (), False).covering,
                },
            }
            for one in plan.rejected
        ],
        "selector_hints": [
            {
                "type": "json",
                "indexable_fields": sorted(map(tree.joined, by_path)),
                "unindexable_fields": sorted(map(tree.joined, named - set(by_path))),
            }
        ],
        **({} if plan.index is None else _reading(plan)),
    }


def _options(query: Query) -> dict[str, Any]:
    return {
        "use_index": list(query.use_index),
        "bookmark": query.bookmark or "nil",
        "limit": query.limit,
        "skip": query.skip,
        "sort": dict(query.sort),
        "fields": list(query.fields),
        "partition": query.partition,
        "r": query.r,
        "conflicts": query.conflicts,
        "stale": "ok" if query.stale else False,
        "update": query.update,
        "stable": query.stable,
        "execution_stats": query.execution_stats,
        "allow_fallback": query.allow_fallback,
    }


def _reading(plan: Plan) -> dict[str, Any]:
    query, keys_shown = plan.query, (plan.start_key, plan.end_key)
    start, end = keys_shown[::-1] if query.descending else keys_shown
    return {
        "mrargs": {
            "include_docs": not plan.covering,
            "view_type": "map",
            "reduce": False,
            "partition": None,
            "start_key": start,
            "end_key": end,
            "direction": "rev" if query.descending else "fwd",
            "stable": query.stable or query.stale,
            "update": False if query.stale else query.update,
            "conflicts": query.conflicts or None,
        },
        "covering": plan.covering,
    }
