"""Selectors as trees: parsed, checked, and with their negations pushed down.

The rules are those at the head of ``selector``, which makes a predicate of a tree; ``plan`` finds
in it what an index can answer, ``sift`` makes SQL of it. Errors are ``BadRequest`` with CouchDB's
code and reason.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from divandb.errors import BadRequest

DEPTH_MAX: Final = 64
VALUES_MAX: Final = 50_000
REGEXES_MAX: Final = 50

_SHOWN_CHARS_MAX = 200


def parse(selector: object, *, depth_max: int = DEPTH_MAX, values_max: int = VALUES_MAX) -> "Node":
    """The tree of a selector; the empty selector is an ``And`` of nothing.

    ``depth_max`` bounds the levels of nesting, ``values_max`` the number of values in it;
    ``$regex`` may stand in it ``REGEXES_MAX`` times. Raises BadRequest for what is no selector,
    but does not compile its regular expressions.
    """
    _check_size(selector, depth_max, values_max)
    if not isinstance(selector, dict):
        reason = f"Selector must be a JSON object, not: {shown(selector)}"
        raise _error("invalid_selector_json", reason)
    if not selector:
        return EVERYTHING
    node = _normalize(_parse(selector, ()))
    if isinstance(node, At) and not node.path:
        raise _error("invalid_selector", "One or more conditions is missing a field name.")
    return node


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


def bad_arg(operator: str, arg: object, why: str = "") -> BadRequest:
    """The refusal of an operator's argument."""
    return _error("bad_arg", f"Bad argument for operator {operator}: {shown(arg)}{why}")


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "…"


# ---- the tree -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class And:
    """All of them; of nothing: true."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them; of nothing: true."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """What is left of a negation: of a single test, or within ``$elemMatch`` and its like."""

    node: "Node"


@dataclass(frozen=True, slots=True)
class Test:
    """One operator on a value; the argument of ``$elemMatch`` and its like is a node."""

    operator: str
    arg: Any


@dataclass(frozen=True, slots=True)
class At:
    """A condition on what stands at a path; the empty path is the value itself."""

    path: tuple[str, ...]
    condition: Test | Not


Node = And | Or | Not | Test | At

EVERYTHING: Final = And(())
"""The empty selector."""

_BOOLEAN = frozenset({"$and", "$or", "$nor"})
_NESTED = frozenset({"$elemMatch", "$allMatch", "$keyMapMatch"})
_UNSUPPORTED = frozenset(
    {"$text", "$where", "$geoWithin", "$geoIntersects", "$near", "$nearSphere"}
)
_OPPOSITE = {"$lt": "$gte", "$lte": "$gt", "$eq": "$ne", "$in": "$nin"}
_OPPOSITE.update({opposite: operator for operator, opposite in _OPPOSITE.items()})


def _parse(selector: object, path: tuple[str, ...]) -> Node:
    """The tree of a selector, or of a condition on the field at ``path``."""
    if not isinstance(selector, dict) or not selector:
        return At(path, Test("$eq", selector))
    nodes = [_parse_member(name, value, path) for name, value in selector.items()]
    return nodes[0] if len(nodes) == 1 else And(tuple(nodes))


def _parse_member(name: str, value: object, path: tuple[str, ...]) -> Node:
    if not name.startswith("$"):
        return _parse(value, path + path_of(name))
    if name in _BOOLEAN:
        return _parse_boolean(name, value, path)
    if name == "$not":
        if not isinstance(value, dict):
            raise bad_arg(name, value)
        return Not(_parse(value, path))
    if name in _NESTED:
        if not isinstance(value, dict):
            raise bad_arg(name, value)
        return At(path, Test(name, _parse(value, ())))
    return At(path, Test(name, _checked(name, value)))


def _parse_boolean(name: str, value: object, path: tuple[str, ...]) -> Node:
    if not isinstance(value, list):
        raise bad_arg(name, value)
    nodes = tuple([_parse(item, path) for item in value])
    if name == "$and":
        return And(nodes)
    # Not(Or(())) would be false, but $nor of nothing matches.
    return Or(nodes) if name == "$or" else And(tuple([Not(node) for node in nodes]))


def path_of(field: str) -> tuple[str, ...]:
    r"""The names in a dotted path; ``\.`` is a dot within a name."""
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
        raise bad_arg(operator, arg)
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


def _normalize(node: Node) -> Node:
    """The tree with its negations pushed down to the conditions (rule 3)."""
    match node:
        case And(nodes):
            return And(tuple([_normalize(child) for child in nodes]))
        case Or(nodes):
            return Or(tuple([_normalize(child) for child in nodes]))
        case Not(child):
            return _negate(child)
    return node


def _negate(node: Node) -> Node:
    match node:
        case And(nodes):
            return Or(tuple([_negate(child) for child in nodes]))
        case Or(nodes):
            return And(tuple([_negate(child) for child in nodes]))
        case Not(child):
            return _normalize(child)
        case At(path, Test(operator, arg)):
            return At(path, _negated_test(operator, arg))
    return Not(node)  # never reached from a parsed selector: conditions stand in an At


def _negated_test(operator: str, arg: object) -> Test | Not:
    if operator == "$exists":
        return Test(operator, not arg)
    opposite = _OPPOSITE.get(operator)
    return Test(opposite, arg) if opposite else Not(Test(operator, arg))


# ---- as JSON ------------------------------------------------------------------------------------


def as_json(node: Node) -> Any:
    """The normalized selector, as ``_explain`` shows it."""
    return {} if node == EVERYTHING else _as_json(node)


def _as_json(node: Node) -> Any:
    match node:
        case And(nodes):
            return {"$and": [_as_json(child) for child in nodes]}
        case Or(nodes):
            return {"$or": [_as_json(child) for child in nodes]}
        case Not(child):
            return {"$not": _as_json(child)}
        case At(path, condition):
            return {joined(path): _as_json(condition)} if path else _as_json(condition)
        case Test(operator, arg):
            return {operator: _as_json(arg) if operator in _NESTED else arg}


def joined(path: Iterable[str]) -> str:
    """A path as ``path_of`` reads it."""
    return ".".join(name.replace(".", "\\.") for name in path)


def index_of(name: str) -> int:
    """The place in an array that a name means; -1 for none."""
    return int(name) if re.fullmatch(r"[+-]?[0-9]{1,9}", name, re.ASCII) else -1
