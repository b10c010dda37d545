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
6. Conditions on ``_id`` compare code point by code point, and there all else comes before strings:
   numbers, null and booleans, objects, arrays. Sorts by ``_id`` and ``_all_docs`` have that order.
7. With an array in the document, ``$in`` and ``$nin`` look at its elements, never at the whole.

Where this differs: ``$nor`` works within ``$elemMatch`` and its like (in CouchDB it makes them
false); a ``$mod`` by 0 is refused at once; ``$text`` is refused, there are no text indexes.

``$regex`` is RE2, where CouchDB has PCRE: see ``regex``. Matching takes stack for the levels of the
selector, which are bounded, and none for those of the document.

Errors are ``BadRequest`` with CouchDB's code (``bad_arg``, ``invalid_operator``, ``not_supported``,
``invalid_field_name``, ``invalid_selector``, ``invalid_selector_json``) and reason; the argument in
a reason is shown as JSON, not as an Erlang term.
"""

import unicodedata
from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Any, Final

from divandb.mango import collate, tree
from divandb.mango.regex import compile_regex
from divandb.mango.tree import And, At, Node, Not, Or, Test, bad_arg

Predicate = Callable[[dict[str, Any]], bool]
_Match = Callable[[Any], bool]


def compile(
    selector: object, *, depth_max: int = tree.DEPTH_MAX, values_max: int = tree.VALUES_MAX
) -> Predicate:
    """A predicate over decoded documents (with ``_id`` and ``_rev`` in them) for ``selector``.

    Raises BadRequest for what is no selector, and beyond the bounds (``tree.parse``); the predicate
    raises nothing.
    """
    return predicate(tree.parse(selector, depth_max=depth_max, values_max=values_max))


def predicate(node: Node) -> Predicate:
    """The same for a parsed selector; raises BadRequest for a bad regular expression."""
    return _matcher(node)


# ---- matchers -----------------------------------------------------------------------------------


def _matcher(node: Node) -> _Match:
    match node:
        case And(nodes):
            return _all_of([_matcher(child) for child in nodes])
        case Or(nodes):
            return _any_of([_matcher(child) for child in nodes])
        case Not(child):
            return _opposite_of(_matcher(child))
        case At(path, condition):
            missing = condition == Test("$exists", False)
            return _at(path, _id_test(condition) if path == _ID else _matcher(condition), missing)
        case Test(operator, arg):
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
    steps = [(name, tree.index_of(name)) for name in path]

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


# ---- tests on one value -------------------------------------------------------------------------


def _id_test(condition: Test | Not) -> _Match:
    """A condition on an id (rule 6)."""
    make = _ID_TESTS.get(condition.operator) if isinstance(condition, Test) else None
    return make(condition.arg) if make and isinstance(condition, Test) else _matcher(condition)


def _raw(value: Any) -> tuple[int, Any]:
    """What an id is compared by; of values that are no ids, their order among each other is that of
    ``collate``.
    """
    if isinstance(value, str):
        return 4, value
    if value is None or isinstance(value, bool):
        return 1, {False: 0, None: 1, True: 2}[value]
    return {int: 0, float: 0, dict: 2, list: 3}[type(value)], collate.key(value)


def _id_ordered(holds: Callable[[Any, Any], bool]) -> Callable[[object], _Match]:
    def test(arg: object) -> _Match:
        bound = _raw(arg)
        return lambda value: holds(_raw(value), bound)

    return test


def _id_in(args: list[Any]) -> _Match:
    known = frozenset(map(_raw, args))

    def match(value: Any) -> bool:
        return any(_raw(one) in known for one in (value if isinstance(value, list) else [value]))

    return match


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


def _elem_match(node: Node) -> _Match:
    match = _matcher(node)
    return lambda value: isinstance(value, list) and any(map(match, value))


def _all_match(node: Node) -> _Match:
    match = _matcher(node)
    return lambda value: isinstance(value, list) and bool(value) and all(map(match, value))


def _key_map_match(node: Node) -> _Match:
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
        raise bad_arg("$regex", pattern, f" ({error})") from None
    return lambda value: isinstance(value, str) and search(value)


def _not(test: Callable[[Any], _Match]) -> Callable[[Any], _Match]:
    return lambda arg: _opposite_of(test(arg))


_ID: Final = ("_id",)
_ID_TESTS: Final[dict[str, Callable[[Any], _Match]]] = {
    "$lt": _id_ordered(lt),
    "$lte": _id_ordered(le),
    "$eq": _id_ordered(eq),
    "$ne": _not(_id_ordered(eq)),
    "$gte": _id_ordered(ge),
    "$gt": _id_ordered(gt),
    "$in": _id_in,
    "$nin": _not(_id_in),
}
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
