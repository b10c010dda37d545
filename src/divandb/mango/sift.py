"""Selectors as SQL: a coarse sieve that SQLite shakes where the rows are.

``sift`` makes an expression over a document's stored body that is true for every document that the
selector matches, and for as few others as SQLite can tell. Whoever reads the rows asks the
predicate (``selector``) again: what a query gives never depends on this.

Why it cannot be exact, condition by condition:

* ``json_extract`` gives true and false as 1 and 0, arrays and objects as text, and null for what is
  not there. So numbers let booleans through, and texts let containers through.
* SQLite may read a decimal otherwise by its last digit. Bounds are widened by a part in 10^12, and
  numbers beyond 2^53 are left to the predicate.
* Strings are in another order here than in ``collate``. Equality is asked for of plain strings
  (``collate.is_plain``); others may be equal to them, so all of these pass. Order is asked for as
  far as a string begins with characters that both orders have in one order, whatever their case:
  space, ``-``, ``.``, ``/``, digits, letters. All that begin with others pass.
* Names that are no plain words, array indexes, and what is not in the body (``_conflicts``) are
  left to the predicate, and so is everything negated.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from divandb.mango import collate
from divandb.mango.tree import And, At, Node, Or, Test

Value = str | int | float
Found = tuple[str, list[Value]] | None
"""An expression and what is bound to it; ``None`` is true for every document."""

BODY: Final = "body"
"""The column that holds the stored body, JSON as bytes."""
VALUES_MAX: Final = 500
SQL_CHARS_MAX: Final = 20_000
"""An expression with more than either is none: SQLite has bounds of its own."""
DEPTH_MAX: Final = 50
_EXACT_MAX: Final = 2**53
_WIDER: Final = 1e-12
_LEAST: Final = 1e-300
_PLAIN_NAME: Final = re.compile(r"(?![+-]?[0-9]+\Z)[^\"\\\x00-\x1f\x7f]+")
_IN_BODY: Final = frozenset({"_id", "_rev", "_deleted"})
_ID: Final = ("_id",)
_ID_LEFT_OVER: Final = frozenset({"$lt", "$lte", "$gt", "$gte"})
_TEXT: Final = "{0} >= ''"
_ARRAY: Final = "({0} >= '[' AND {0} < '\\')"
_STRANGE: Final = "octet_length({0}) <> length({0}) OR {0} GLOB '*[^ -~]*'"
"""Is it no plain string? ``length`` ends at a NUL character."""
_ALIKE: Final = re.compile(r"[ ./0-9A-Za-z-]*")
_WORD: Final = re.compile(r"[0-9A-Za-z _-]+")
_BEGINS_WITH_WORD: Final = re.compile(r"\^([0-9A-Za-z _-]+)(.?)", re.DOTALL)
_BEGIN: Final = "substr(lower({0}), 1, {1})"
_ODD: Final = "{1} GLOB '*[^ ./0-9a-z-]*' OR octet_length({0}) <> length({0})"
_BEGIN_CHARS_MAX: Final = 40
_TYPES: Final = {
    "null": "'null'",
    "boolean": "'true', 'false'",
    "number": "'integer', 'real'",
    "string": "'text'",
    "array": "'array'",
    "object": "'object'",
}


def sift(node: Node) -> Found:
    """The sieve for a parsed selector."""
    found = _of(node, 0)
    if found is None or len(found[0]) > SQL_CHARS_MAX or len(found[1]) > VALUES_MAX:
        return None
    return found


def _of(node: Node, depth: int) -> Found:
    if depth >= DEPTH_MAX:
        return None
    match node:
        case And(nodes):
            return _joined(" AND ", [one for child in nodes if (one := _of(child, depth + 1))])
        case Or(nodes):
            found = [_of(child, depth + 1) for child in nodes]
            return None if None in found else _joined(" OR ", [one for one in found if one])
        case At(path, Test(operator, arg)) if _is_plain_path(path):
            if path == _ID and operator in _ID_LEFT_OVER:
                return None  # other values than strings come before ids
            make = _TESTS.get(operator)
            return make(_place(path), arg) if make is not None else None
    return None


def _joined(word: str, parts: list[tuple[str, list[Value]]]) -> Found:
    if not parts:
        return None
    return f"({word.join(sql for sql, _ in parts)})", [value for _, some in parts for value in some]


def _is_plain_path(path: tuple[str, ...]) -> bool:
    if not path or (path[0].startswith("_") and path[0] not in _IN_BODY):
        return False
    return all(_PLAIN_NAME.fullmatch(name) for name in path)


def _place(path: tuple[str, ...]) -> str:
    """Where the value is, as an SQL string; names are plain but for the apostrophe."""
    names = "".join(f'."{name}"' for name in path).replace("'", "''")
    return f"CAST({BODY} AS TEXT), '${names}'"


def _value(place: str) -> str:
    return f"json_extract({place})"


# ---- conditions ---------------------------------------------------------------------------------


def _number(arg: Any) -> tuple[float, float] | None:
    """Bounds of what may be read as this number; ``None`` if it is none, or too large."""
    if isinstance(arg, bool) or not isinstance(arg, int | float) or abs(arg) > _EXACT_MAX:
        return None
    margin = abs(arg) * _WIDER + _LEAST
    return arg - margin, arg + margin


def _eq(place: str, arg: Any) -> Found:
    return _one_of(place, [arg])


def _in(place: str, args: list[Any]) -> Found:
    found = _one_of(place, args)
    if found is None or not args:
        return found
    # Of an array each element is looked at.
    return f"({found[0]} OR {_ARRAY.format(_value(place))})", found[1]


def _one_of(place: str, args: list[Any]) -> Found:
    value = _value(place)
    parts: list[str] = []
    bound: list[Value] = []
    texts = [arg for arg in args if isinstance(arg, str)]
    if not all(map(collate.is_plain, texts)):
        return None
    if texts:
        parts.append(f"{value} IN ({', '.join('?' * len(texts))}) OR {_STRANGE.format(value)}")
        bound += texts
    for arg in args:
        if arg is None:
            parts.append(f"{value} IS NULL")
        elif isinstance(arg, bool):
            parts.append(f"{value} = {int(arg)}")
        elif isinstance(arg, list | dict):
            parts.append(_TEXT.format(value))
        elif not isinstance(arg, str):
            bounds = _number(arg)
            if bounds is None:
                return None
            parts.append(f"{value} BETWEEN ? AND ?")
            bound += bounds
    return (f"({' OR '.join(parts)})", bound) if parts else ("0", [])


def _above(place: str, arg: Any) -> Found:
    """``$gt`` and ``$gte``: numbers from there on, and all that comes behind numbers."""
    bounds = _number(arg)
    if bounds is not None:
        return f"{_value(place)} >= ?", [bounds[0]]
    if isinstance(arg, str):
        return _text_above(_value(place), arg)
    if isinstance(arg, list | dict):
        return _TEXT.format(_value(place)), []
    return None


def _text_above(value: str, arg: str) -> Found:
    """Texts that begin so or higher; containers begin oddly."""
    known = _alike(arg)
    if not known:
        return _TEXT.format(value), []
    begin = _BEGIN.format(value, len(known))
    return f"({_TEXT.format(value)} AND ({begin} >= ? OR {_ODD.format(value, begin)}))", [known]


def _alike(arg: str) -> str:
    """What ``arg`` begins with of the characters that have one order, in lower case."""
    found = _ALIKE.match(arg)
    return found[0][:_BEGIN_CHARS_MAX].lower() if found else ""


def _below(place: str, arg: Any) -> Found:
    """``$lt`` and ``$lte``: what is up to there, and all that comes before its type."""
    bounds, value = _number(arg), _value(place)
    if bounds is not None:
        return f"({value} <= ? OR {value} IN (0, 1) OR {value} IS NULL)", [bounds[1]]
    known = _alike(arg) if isinstance(arg, str) else ""
    if not known:
        return None
    begin = _BEGIN.format(value, len(known))
    odd = _ODD.format(value, begin)
    return f"({value} IS NULL OR NOT {_TEXT.format(value)} OR {begin} <= ? OR {odd})", [known]


def _exists(place: str, arg: bool) -> Found:
    return f"json_type({place}) IS {'NOT ' if arg else ''}NULL", []


def _type(place: str, arg: str) -> Found:
    return (f"json_type({place}) IN ({_TYPES[arg]})" if arg in _TYPES else "0"), []


def _size(place: str, arg: int) -> Found:
    return (f"json_array_length({place}) = ?", [arg]) if arg <= _EXACT_MAX else None


def _mod(place: str, args: list[int]) -> Found:
    if max(map(abs, args)) > _EXACT_MAX:
        return None
    value = _value(place)
    # Whole numbers beyond 63 bits are real here.
    return f"({value} % ? = ? OR typeof({value}) = 'real')", [*args]


def _begins(place: str, prefix: str) -> Found:
    if "\0" in prefix:
        return None
    return f"substr({_value(place)}, 1, ?) = ?", [len(prefix), prefix]


def _regex(place: str, pattern: str) -> Found:
    """A pattern that is a plain word, or begins with one; all others are left over."""
    value = _value(place)
    if _WORD.fullmatch(pattern):
        return f"instr({value}, ?)", [pattern]
    found = _BEGINS_WITH_WORD.match(pattern)
    if found is None or "|" in pattern:
        return _TEXT.format(value), []
    word = found[1][:-1] if found[2] and found[2] in "*?{" else found[1]
    return f"substr({value}, 1, ?) = ?", [len(word), word]


def _array(place: str, _: Any) -> Found:
    return _ARRAY.format(_value(place)), []


def _object(place: str, _: Any) -> Found:
    return f"{_value(place)} >= '{{'", []


_TESTS: Final[dict[str, Callable[[str, Any], Found]]] = {
    "$eq": _eq,
    "$in": _in,
    "$gt": _above,
    "$gte": _above,
    "$lt": _below,
    "$lte": _below,
    "$exists": _exists,
    "$type": _type,
    "$size": _size,
    "$mod": _mod,
    "$regex": _regex,
    "$beginsWith": _begins,
    "$all": _array,
    "$elemMatch": _array,
    "$allMatch": _array,
    "$keyMapMatch": _object,
}
