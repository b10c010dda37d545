"""What ``_find``, ``_explain`` and ``_index`` are asked for: bodies checked as CouchDB checks them.

Errors are ``BadRequest`` with CouchDB's codes and reasons; a value in a reason is shown as JSON.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from divandb.errors import BadRequest
from divandb.mango import tree
from divandb.mango.tree import Node, shown

LIMIT_DEFAULT: Final = 25
NUMBER_MAX: Final = 10**15
FIELDS_MAX: Final = 1000
"""Names in ``fields`` and ``sort``, and in an index."""

Sort = tuple[tuple[str, str], ...]
"""(field, ``asc`` or ``desc``) each."""


class Query(msgspec.Struct, frozen=True):
    """A query as ``_find`` takes it."""

    selector: Node
    use_index: tuple[str, ...] = ()
    """Design document and, perhaps, name."""
    bookmark: str = ""
    limit: int = LIMIT_DEFAULT
    skip: int = 0
    sort: Sort = ()
    fields: tuple[str, ...] = ()
    partition: str = ""
    r: int = 1
    conflicts: bool = False
    stale: bool = False
    update: bool | str = True
    """Does the answer wait for the index? ``lazy``: the index goes on behind the answer."""
    stable: bool = False
    execution_stats: bool = False
    allow_fallback: bool = True
    finds_nothing: bool = False
    """A selector that is ``$and`` or ``$or`` of nothing matches all, but CouchDB finds nothing."""

    @property
    def descending(self) -> bool:
        """Is the index read backwards?"""
        return bool(self.sort) and self.sort[0][1] == "desc"


class Definition(NamedTuple):
    """What an index is made of."""

    fields: Sort
    partial: Node | None


class NewIndex(msgspec.Struct, frozen=True):
    """An index as ``POST _index`` takes it."""

    given: dict[str, Any]
    """The definition as it came."""
    definition: Definition
    type: str = "json"
    name: str = ""
    ddoc: str = ""
    """Empty: named by what it is."""


def refused(code: str, reason: str) -> BadRequest:
    """A refusal with one of CouchDB's codes."""
    return BadRequest(reason, error=code)


Check = Callable[[str, Any], Any]


def _checked(body: Mapping[str, Any], checks: Mapping[str, Check], *required: str) -> Any:
    """The members of a body, each checked; raises for those that are missing or unknown."""
    for name in required:
        if name not in body:
            raise refused("missing_required_key", f"Missing required key: {name}")
    found = {name: check(name, body[name]) for name, check in checks.items() if name in body}
    for name in body:
        if name not in checks:
            raise refused("invalid_key", f"Invalid key {name} for this request.")
    return found


# ---- values -------------------------------------------------------------------------------------


def _boolean(_: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refused("invalid_boolean", f"Invalid boolean value: {shown(value)}")
    return value


def _update(name: str, value: Any) -> bool | str:
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    return "lazy" if value == "lazy" else _boolean(name, value)


def _stale(_: str, value: Any) -> bool:
    if value is not False and value not in ("ok", "false"):
        raise refused("invalid_ok_or_false_value", f"Invalid value: {shown(value)}")
    return bool(value == "ok")


def _string(_: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refused("invalid_string", f"Invalid string: {shown(value)}")
    return value


def _name(name: str, value: Any) -> str:
    if value == "":
        raise refused("invalid_empty_string", "Index name or ddoc cannot be empty string")
    return _string(name, value)


def _count(_: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        reason = f"{shown(value)} is not an integer greater than or equal to zero"
        raise refused("invalid_non_neg_integer", reason)
    return min(value, NUMBER_MAX)


def _positive(_: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        reason = f"{shown(value)} is not an integer greater than zero"
        raise refused("invalid_pos_integer", reason)
    return min(value, NUMBER_MAX)


def _selector(_: str, value: Any) -> Node:
    return tree.parse(value)


def _use_index(_: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        parts = value.split("/")
        parts = parts[1:] if parts[0] == "_design" and len(parts) > 1 else parts
        if len(parts) > 2:
            raise refused("invalid_index_name", f"Invalid index name: {shown(value)}")
        return tuple(parts)
    if value is None or value == []:
        return ()
    is_list = isinstance(value, list) and len(value) <= 2
    if not is_list or not all(isinstance(part, str) for part in value):
        raise refused("invalid_index_name", f"Invalid index name: {shown(value)}")
    return (value[0].removeprefix("_design/"), *value[1:])


def _bookmark(_: str, value: Any) -> str:
    if value is None or value == "nil":
        return ""
    if not isinstance(value, str):
        raise refused("invalid_bookmark", f"Invalid bookmark value: {shown(value)}")
    return value


def read_sort(_: str, value: Any) -> Sort:
    """A list of fields, each with its direction or without."""
    if not isinstance(value, list) or len(value) > FIELDS_MAX:
        raise refused(
            "invalid_sort_json", f"Sort must be an array of sort specs, not: {shown(value)}"
        )
    found = tuple(_sort_field(field) for field in value)
    if len({direction for _, direction in found}) > 1:
        raise refused(
            "unsupported_mixed_sort",
            "Sorts currently only support a single direction for all fields.",
        )
    return found


def _sort_field(value: Any) -> tuple[str, str]:
    if isinstance(value, str) and value:
        tree.path_of(value)
        return value, "asc"
    if isinstance(value, dict) and len(value) == 1:
        ((field, direction),) = value.items()
        if direction in ("asc", "desc") and field:
            tree.path_of(field)
            return field, direction
        if field:
            raise refused("invalid_sort_dir", f"Invalid sort direction: {shown(direction)}")
    raise refused("invalid_sort_field", f"Invalid sort field: {shown(value)}")


def _fields(_: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > FIELDS_MAX:
        reason = f"Fields must be an array of strings, not: {shown(value)}"
        raise refused("invalid_fields", reason)
    for field in value:
        if not isinstance(field, str):
            raise refused("invalid_field", f"Invalid JSON for field spec: {shown(field)}")
        tree.path_of(field)
    return tuple(value)


# ---- requests -----------------------------------------------------------------------------------

_FIND: Final[dict[str, Check]] = {
    "selector": _selector,
    "use_index": _use_index,
    "bookmark": _bookmark,
    "limit": _count,
    "skip": _count,
    "sort": read_sort,
    "fields": _fields,
    "partition": _string,
    "r": _positive,
    "conflicts": _boolean,
    "stale": _stale,
    "update": _update,
    "stable": _boolean,
    "execution_stats": _boolean,
    "allow_fallback": _boolean,
}
_INDEX: Final[dict[str, Check]] = {
    "index": lambda _, value: value,
    "type": _string,
    "name": _name,
    "ddoc": _name,
    "w": _positive,
    "partitioned": _boolean,
}
_DEFINITION: Final[dict[str, Check]] = {
    "fields": read_sort,
    "partial_filter_selector": _selector,
}


def read_query(body: Mapping[str, Any]) -> Query:
    """A body of ``_find`` or ``_explain``."""
    found = _checked(body, _FIND, "selector")
    return Query(**found, finds_nothing=body["selector"] in ({"$and": []}, {"$or": []}))


def read_index(body: Mapping[str, Any]) -> NewIndex:
    """A body of ``POST _index``."""
    found = _checked(body, _INDEX, "index")
    if found.get("partitioned"):
        reason = "`partitioned` option cannot be `true` in a non-partitioned database."
        raise BadRequest(reason)
    kind = found.get("type", "json")
    if kind not in ("json", "text", "nouveau"):
        raise refused("invalid_index", f"Invalid type for index: {kind}")
    given = found["index"]
    if not isinstance(given, dict):
        raise refused("invalid_index", f"JSON indexes must be an object, not: {shown(given)}")
    definition = Definition((), None)
    if kind == "json":
        parts = _checked(given, _DEFINITION, "fields")
        partial = parts.get("partial_filter_selector", tree.EVERYTHING)
        definition = Definition(parts["fields"], None if partial == tree.EVERYTHING else partial)
    return NewIndex(given, definition, kind, found.get("name", ""), found.get("ddoc", ""))


def read_doomed(body: Mapping[str, Any]) -> list[str]:
    """A body of ``POST _index/_bulk_delete``: ids of design documents."""
    ids = body.get("docids")
    if "docids" not in body:
        raise refused("missing_required_key", "Missing required key: docids")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        reason = f"Bulk Delete requires an array of non-null docids. Docids: {shown(ids)}"
        raise refused("invalid_bulk_docs", reason)
    _checked(body, {"docids": lambda _, value: value, "w": _positive})
    return ids
