"""Mango selectors: a JSON object becomes a predicate over documents.

Rules, as CouchDB's ``mango_selector`` has them:

1. A selector is an object. Several members are an implicit ``$and``, a bare value an implicit
   ``$eq``, a nested object a longer path: ``{"a": {"b": 1}}`` is ``{"a.b": {"$eq": 1}}``, and
   ``\\.`` is a dot within a name. The empty selector matches every document.
2. A path steps through objects by name and through arrays by index. A missing field matches
   nothing but ``{"$exists": false}``, so neither ``$ne`` nor ``$nin`` matches it; and where the
   path does not lead on (through a string, or past the end of an array) nothing matches at all.
3. ``$not`` and ``$nor`` are pushed down to the conditions before anything is matched (De Morgan),
   so ``{"$not": {"a": 1}}`` means ``{"a": {"$ne": 1}}`` and does not match a document without
   ``a``. Within ``$elemMatch``, ``$allMatch`` and ``$keyMapMatch`` they are plain negations.
4. ``$lt $lte $eq $ne $gte $gt $in $nin`` compare in the order of ``collate``, across types.
   ``$all`` compares exactly: ``1`` is not ``1.0`` there.
5. ``$and``, ``$or`` and ``$nor`` of nothing match, ``$nin`` of nothing matches, ``$in`` and
   ``$all`` of nothing do not; ``$allMatch`` does not match an empty array.
6. With an array in the document, ``$in`` and ``$nin`` look at its elements, never at the whole.

Where this differs: ``$nor`` works within ``$elemMatch`` and its like (in CouchDB it makes them
false); a ``$mod`` by 0 is refused at once; ``$text`` is refused, there are no text indexes.

``$regex`` is RE2, where CouchDB has PCRE: see ``regex``. Matching takes stack for the levels of the
selector, which are bounded, and none for those of the document.

Errors are ``BadRequest`` with CouchDB's code (``bad_arg``, ``invalid_operator``, ``not_supported``,
``invalid_field_name``, ``invalid_selector``, ``invalid_selector_json``) and reason; the argument in
a reason is shown as JSON, not as an Erlang term.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any, Final

from divandb.errors import BadRequest
from divandb.mango import collate
from divandb.mango.regex import compile_regex

DEPTH_MAX: Final = 64
VALUES_MAX: Final = 50_000
REGEXES_MAX: Final = 50

Predicate = Callable[[dict[str, Any]], bool]
_Match = Callable[[Any], bool]

_SHOWN_CHARS_MAX = 200


def compile(
    selector: object, *, depth_max: int = DEPTH_MAX, values_max: int = VALUES_MAX
) -> Predicate:
    """A predicate over decoded documents (with ``_id`` and ``_rev`` in them) for ``selector``.

    ``depth_max`` bounds the levels of nesting, ``values_max`` the number of values in it;
    ``$regex`` may stand in it ``REGEXES_MAX`` times, since each takes memory while it is used.
    Raises BadRequest for what is no selector; the predicate raises nothing.
    """
    _check_size(selector, depth_max, values_max)
    if not isinstance(selector, dict):
        reason = f"Selector must be a JSON object, not: {_show(selector)}"
        raise _error("invalid_selector_json", reason)
    if not selector:
        return lambda document: True
    node = _normalize(_parse(selector, ()))
    if isinstance(node, _At) and not node.path:
        raise _error("invalid_selector", "One or more conditions is missing a field name.")
    return _matcher(node)


def _check_size(selector: object, depth_max: int, values_max: int) -> None:
    values = regexes = 0
    level: list[object] = [selector]
    for _ in range(depth_max):
        values += len(level)
        regexes += sum([isinstance(value, dict) and "$regex" in value for value in level])
        if values > values_max:
            raise _error("invalid_selector", f"Selector has more than {values_max} values.")
        if regexes > REGEXES_MAX:
            raise _error("invalid_selector", f"Selector has more than {REGEXES_MAX} $regex.")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise _error("invalid_selector", f"Selector is nested deeper than {depth_max} levels.")


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _error(code: str, reason: str) -> BadRequest:
    return BadRequest(reason, error=code)


def _bad_arg(operator: str, arg: object, why: str = "") -> BadRequest:
    return _error("bad_arg", f"Bad argument for operator {operator}: {_show(arg)}{why}")


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "…"


# ---- the tree -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _And:
    nodes: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Or:
    nodes: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Not:
    node: "_Node"


@dataclass(frozen=True, slots=True)
class _Test:
    """One operator on a value; the argument of ``$elemMatch`` and its like is a node."""

    operator: str
    arg: Any


@dataclass(frozen=True, slots=True)
class _At:
    """A condition on what stands at a path; the empty path is the value itself."""

    path: tuple[str, ...]
    condition: _Test | _Not


_Node = _And | _Or | _Not | _Test | _At

_BOOLEAN = frozenset({"$and", "$or", "$nor"})
_NESTED = frozenset({"$elemMatch", "$allMatch", "$keyMapMatch"})
_UNSUPPORTED = frozenset(
    {"$text", "$where", "$geoWithin", "$geoIntersects", "$near", "$nearSphere"}
)
_OPPOSITE = {"$lt": "$gte", "$lte": "$gt", "$eq": "$ne", "$in": "$nin"}
_OPPOSITE.update({opposite: operator for operator, opposite in _OPPOSITE.items()})


def _parse(selector: object, path: tuple[str, ...]) -> _Node:
    """The tree of a selector, or of a condition on the field at ``path``."""
    if not isinstance(selector, dict) or not selector:
        return _At(path, _Test("$eq", selector))
    nodes = [_parse_member(name, value, path) for name, value in selector.items()]
    return nodes[0] if len(nodes) == 1 else _And(tuple(nodes))


def _parse_member(name: str, value: object, path: tuple[str, ...]) -> _Node:
    if not name.startswith("$"):
        return _parse(value, path + _parse_path(name))
    if name in _BOOLEAN:
        return _parse_boolean(name, value, path)
    if name == "$not":
        if not isinstance(value, dict):
            raise _bad_arg(name, value)
        return _Not(_parse(value, path))
    if name in _NESTED:
        if not isinstance(value, dict):
            raise _bad_arg(name, value)
        return _At(path, _Test(name, _parse(value, ())))
    return _At(path, _Test(name, _checked(name, value)))


def _parse_boolean(name: str, value: object, path: tuple[str, ...]) -> _Node:
    if not isinstance(value, list):
        raise _bad_arg(name, value)
    nodes = tuple([_parse(item, path) for item in value])
    if name == "$and":
        return _And(nodes)
    # Not(Or(())) would be false, but $nor of nothing matches.
    return _Or(nodes) if name == "$or" else _And(tuple([_Not(node) for node in nodes]))


def _parse_path(field: str) -> tuple[str, ...]:
    parts = re.split(r"(?<!\\)\.", field)
    if "" in parts:
        raise _error("invalid_field_name", f"Invalid field name: {field}")
    return tuple([part.replace("\\", "") for part in parts])


def _checked(operator: str, arg: object) -> object:
    """The argument of an operator, or CouchDB's error for it."""
    if operator in _UNSUPPORTED:
        raise _error("not_supported", f"Unsupported operator: {operator}")
    check = _CHECKS.get(operator)
    # CouchDB has no "bad argument" for these two.
    string_missing = operator in ("$regex", "$beginsWith") and not isinstance(arg, str)
    if check is None or string_missing:
        raise _error("invalid_operator", f"Invalid operator: {operator}")
    if not check(arg):
        raise _bad_arg(operator, arg)
    return arg


def _is_any(arg: object) -> bool:
    return True


def _is_list(arg: object) -> bool:
    return isinstance(arg, list)


def _is_mod(arg: object) -> bool:
    if not isinstance(arg, list) or len(arg) != 2:
        return False
    return type(arg[0]) is int and type(arg[1]) is int and arg[0] != 0


_CHECKS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("$lt", "$lte", "$eq", "$ne", "$gte", "$gt"), _is_any),
    **dict.fromkeys(("$in", "$nin", "$all"), _is_list),
    "$exists": lambda arg: isinstance(arg, bool),
    "$type": lambda arg: isinstance(arg, str),
    "$size": lambda arg: type(arg) is int and arg >= 0,
    "$mod": _is_mod,
    "$regex": lambda arg: isinstance(arg, str),
    "$beginsWith": lambda arg: isinstance(arg, str),
}


# ---- negations ----------------------------------------------------------------------------------


def _normalize(node: _Node) -> _Node:
    """The tree with its negations pushed down to the conditions (rule 3)."""
    match node:
        case _And(nodes):
            return _And(tuple([_normalize(child) for child in nodes]))
        case _Or(nodes):
            return _Or(tuple([_normalize(child) for child in nodes]))
        case _Not(child):
            return _negate(child)
    return node


def _negate(node: _Node) -> _Node:
    match node:
        case _And(nodes):
            return _Or(tuple([_negate(child) for child in nodes]))
        case _Or(nodes):
            return _And(tuple([_negate(child) for child in nodes]))
        case _Not(child):
            return _normalize(child)
        case _At(path, _Test(operator, arg)):
            return _At(path, _negated_test(operator, arg))
    return _Not(node)  # never reached from a parsed selector: conditions stand in an _At


def _negated_test(operator: str, arg: object) -> _Test | _Not:
    if operator == "$exists":
        return _Test(operator, not arg)
    opposite = _OPPOSITE.get(operator)
    return _Test(opposite, arg) if opposite else _Not(_Test(operator, arg))


# ---- matchers -----------------------------------------------------------------------------------


def _matcher(node: _Node) -> _Match:
    match node:
        case _And(nodes):
            return _all_of([_matcher(child) for child in nodes])
        case _Or(nodes):
            return _any_of([_matcher(child) for child in nodes])
        case _Not(child):
            return _opposite_of(_matcher(child))
        case _At(path, condition):
            missing = condition == _Test("$exists", False)
            return _at(path, _matcher(condition), missing)
        case _Test(operator, arg):
            return _TESTS[operator](arg)


def _all_of(matches: list[_Match]) -> _Match:
    def match(value: Any) -> bool:
        for each in matches:  # noqa: SIM110 - a generator costs more than the loop
            if not each(value):
                return False
        return True

    return match


def _any_of(matches: list[_Match]) -> _Match:
    def match(value: Any) -> bool:
        for each in matches:
            if each(value):
                return True
        return not matches

    return match


def _opposite_of(match: _Match) -> _Match:
    return lambda value: not match(value)


def _at(path: tuple[str, ...], match: _Match, missing: bool) -> _Match:
    """``match`` on what stands at the path; ``missing`` is the answer if the field is not there."""
    steps = [(name, _index(name)) for name in path]

    def match_at(value: Any) -> bool:
        for name, index in steps:
            if isinstance(value, dict):
                if name not in value:
                    return missing
                value = value[name]
            elif isinstance(value, list) and 0 <= index < len(value):
                value = value[index]
            else:
                return False
        return match(value)

    return match_at if steps else match


def _index(name: str) -> int:
    """The place in an array that a name means; -1 for none."""
    return int(name) if re.fullmatch(r"[+-]?[0-9]{1,9}", name, re.ASCII) else -1


# ---- tests on one value -------------------------------------------------------------------------


def _ordered(holds: Callable[[int, int], bool]) -> Callable[[object], _Match]:
    def test(arg: object) -> _Match:
        order = collate.comparer(arg)
        return lambda value: holds(order(value), 0)

    return test


def _eq(arg: object) -> _Match:
    return _one_of([arg])


def _one_of(args: list[Any]) -> _Match:
    """Equality under the collation with one of ``args``, by look-up wherever possible."""
    strings = frozenset([arg for arg in args if isinstance(arg, str)])
    keys = frozenset([collate.string_key(arg) for arg in strings])
    plain = all(map(collate.is_plain, strings))
    scalars = frozenset([collate.key(arg) for arg in args if _is_scalar(arg)])
    containers = [arg for arg in args if isinstance(arg, list | dict)]

    def match(value: Any) -> bool:
        if isinstance(value, str):
            if plain and collate.is_plain(value):
                return value in strings
            return bool(keys) and collate.string_key(value) in keys
        if isinstance(value, list | dict):
            return any(collate.compare(value, arg) == 0 for arg in containers)
        return bool(scalars) and collate.key(value) in scalars

    return match


def _is_scalar(value: object) -> bool:
    return not isinstance(value, str | list | dict)


def _in(args: list[Any]) -> _Match:
    is_one = _one_of(args)
    return lambda value: any(map(is_one, value)) if isinstance(value, list) else is_one(value)


def _all(args: list[Any]) -> _Match:
    whole = args[0] if len(args) == 1 and isinstance(args[0], list) else None

    def match(value: Any) -> bool:
        if not isinstance(value, list) or not args:
            return False
        if all(any(_same(item, arg) for item in value) for arg in args):
            return True
        return whole is not None and _same(value, whole, by_value=True)

    return match


def _same(a: Any, b: Any, *, by_value: bool = False) -> bool:
    """Whether two values are the same term; ``by_value`` takes 1 and 1.0 for the same."""
    if type(a) is not type(b):
        return by_value and {type(a), type(b)} == {int, float} and bool(a == b)
    if isinstance(a, list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_same(x, y, by_value=by_value) for x, y in pairs)
    if isinstance(a, dict):
        # The order of members counts, and list(a) == list(b) compares the names.
        values = [list(a.values()), list(b.values())]
        return list(a) == list(b) and _same(*values, by_value=by_value)
    return bool(a == b)


def _elem_match(node: _Node) -> _Match:
    match = _matcher(node)
    return lambda value: isinstance(value, list) and any(map(match, value))


def _all_match(node: _Node) -> _Match:
    match = _matcher(node)
    return lambda value: isinstance(value, list) and bool(value) and all(map(match, value))


def _key_map_match(node: _Node) -> _Match:
    match = _matcher(node)
    return lambda value: isinstance(value, dict) and any(map(match, value))


_TYPES: Final = ("null", "boolean", "boolean", "number", "string", "array", "object")


def _type(arg: str) -> _Match:
    return lambda value: _TYPES[collate.rank(value)] == arg


def _size(arg: int) -> _Match:
    return lambda value: isinstance(value, list) and len(value) == arg


def _mod(args: list[int]) -> _Match:
    divisor, remainder = abs(args[0]), args[1]

    def match(value: Any) -> bool:
        # The remainder has the sign of the value, as in Erlang, not of the divisor.
        if type(value) is not int:
            return False
        return (value % divisor if value >= 0 else -(-value % divisor)) == remainder

    return match


def _begins_with(prefix: str) -> _Match:
    def match(value: Any) -> bool:
        return isinstance(value, str) and value.startswith(prefix) and _ends_at(value, len(prefix))

    return match


def _ends_at(text: str, length: int) -> bool:
    """Whether a character as the reader sees it ends there: "e" does not begin "e\u0301"."""
    if length == 0 or length == len(text):
        return True
    following = text[length]
    if following.isascii():
        return not (following == "\n" and text[length - 1] == "\r")
    return following != "\u200d" and not unicodedata.category(following).startswith("M")


def _regex(pattern: str) -> _Match:
    try:
        search = compile_regex(pattern)
    except ValueError as error:
        raise _bad_arg("$regex", pattern, f" ({error})") from None
    return lambda value: isinstance(value, str) and search(value)


def _not(test: Callable[[Any], _Match]) -> Callable[[Any], _Match]:
    return lambda arg: _opposite_of(test(arg))


_TESTS: Final[dict[str, Callable[[Any], _Match]]] = {
    "$lt": _ordered(lt),
    "$lte": _ordered(le),
    "$eq": _eq,
    "$ne": _not(_eq),
    "$gte": _ordered(ge),
    "$gt": _ordered(gt),
    "$in": _in,
    "$nin": _not(_in),
    "$all": _all,
    "$elemMatch": _elem_match,
    "$allMatch": _all_match,
    "$keyMapMatch": _key_map_match,
    # A field that is not there never comes this far.
    "$exists": lambda arg: lambda value: bool(arg),
    "$type": _type,
    "$size": _size,
    "$mod": _mod,
    "$regex": _regex,
    "$beginsWith": _begins_with,
}
