"""CouchDB's order across JSON values.

Rules:

1. null < false < true < numbers < strings < arrays < objects.
2. Numbers compare by value: ``1`` equals ``1.0``, and no digit of a big integer is lost.
3. Arrays and objects compare item by item; what is a prefix of the other comes first. An object's
   items are its (name, value) pairs in the order in which they stand, so ``{"a":1,"b":2}`` and
   ``{"b":2,"a":1}`` are different values, as they are in CouchDB.
4. Strings compare as ICU's root collation does, on three levels: letters without accent and case;
   then accents; then lower before upper case. ``"a" < "A" < "aa" < "b"``.

CouchDB asks the ICU library; two nodes with two versions of it may disagree. Here the order is
computed from the standard library, the same on every node of one Python version:

* **As in ICU**: all of ASCII; white space, punctuation, symbols, currency, digits and letters as
  groups, in that order; Latin letters to U+017F, Greek without its archaic letters, Cyrillic to
  U+045F, Hebrew and Hangul, with accents composed or not; lower before upper case in every script;
  what is invisible (control characters, U+200B and its like) does not count, so that strings which
  differ only there are equal; U+FFFF above everything.
* **Otherwise by code point** within its group, after the ASCII members of that group. So other
  scripts keep apart and in their Unicode order, but the order of scripts, of letters that ICU
  places away from their code point (Arabic, Indic, small kana, some Han, Latin from U+0180), of
  non-ASCII signs and digits within their group, of rare accents, and of compatibility forms
  (``Ａ``, ``ﬁ``) among each other is not ICU's.

The order is total over what it tells apart: reflexive, transitive, and any two values compare.
``compare`` answers 0 for two different strings only if they are canonically equivalent or differ
in invisible characters. Nothing here recurses, so that values may be nested to any depth.

Source of the order: CouchDB ``couch_ejson_compare``; Unicode Technical Standard 10, CLDR root.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

StringKey = tuple[str, str, str]
"""The three levels of a string: primary (letters), secondary (accents), tertiary (case)."""

Key = tuple[Any, ...]
"""A sort key: flat, hashable, and compares with other keys as the values do."""

RANK_NULL: Final = 0
RANK_FALSE: Final = 1
RANK_TRUE: Final = 2
RANK_NUMBER: Final = 3
RANK_STRING: Final = 4
RANK_ARRAY: Final = 5
RANK_OBJECT: Final = 6

_RANKS: Final[dict[type, int]] = {
    int: RANK_NUMBER,
    float: RANK_NUMBER,
    str: RANK_STRING,
    list: RANK_ARRAY,
    dict: RANK_OBJECT,
}

# ---- strings: the tables ------------------------------------------------------------------------

# The CLDR root order of ASCII, by group; what is not listed (control characters) is ignored.
_WHITE_SPACE = "\t\n\x0b\x0c\r "
_PUNCTUATION = "_-,;:!?.'\"()[]{}@*/\\&#%"
_SYMBOLS = "`^+<=>|~"
_CURRENCY = "$"
_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# A primary weight is one character below 0x80, so that an ASCII string's key stays ASCII, which
# str.translate does ten times as fast. A group's last weight is the lead of its other members.
_GROUPS: Final = (_WHITE_SPACE, _PUNCTUATION, _SYMBOLS, _CURRENCY, _DIGITS, _LETTERS)
_WEIGHT_OF: Final[dict[str, str]] = {}
_LEADS: Final[list[str]] = []
for _group in _GROUPS:
    for _char in _group:
        _WEIGHT_OF[_char] = chr(len(_WEIGHT_OF) + len(_LEADS) + 2)
    _LEADS.append(chr(len(_WEIGHT_OF) + len(_LEADS) + 2))
_LEAD_SPACE, _LEAD_PUNCTUATION, _LEAD_SYMBOL, _LEAD_CURRENCY, _LEAD_NUMBER, _LEAD_LETTER = _LEADS
_LEAD_UNASSIGNED: Final = chr(ord(_LEAD_LETTER) + 1)
_HIGHEST: Final = "\x7e"
_AFTER: Final = "\x7f"  # after another letter's weight: a letter of its own just behind that one
_LOWEST: Final = "\x01"  # U+FFFE, below everything

_COMMON: Final = "\x01"  # secondary and tertiary weight of a plain lower-case letter
_UPPER: Final = "\x02"
_VARIANT: Final = "\x03"  # tertiary lead of other forms of a letter; the character follows

_ASCII_PRIMARY: Final[dict[int, str | None]] = dict.fromkeys(range(128))
_ASCII_PRIMARY.update({ord(char): weight for char, weight in _WEIGHT_OF.items()})
_ASCII_PRIMARY.update({ord(char.upper()): _WEIGHT_OF[char] for char in _LETTERS})
_ASCII_TERTIARY: Final[dict[int, str | None]] = {
    code: weight and (_UPPER if chr(code).isupper() else _COMMON)
    for code, weight in _ASCII_PRIMARY.items()
}

_LEAD_BY_CATEGORY: Final = {
    "Z": _LEAD_SPACE,
    "P": _LEAD_PUNCTUATION,
    "S": _LEAD_SYMBOL,
    "N": _LEAD_NUMBER,
    "L": _LEAD_LETTER,
    "M": _LEAD_LETTER,
    "C": _LEAD_UNASSIGNED,
}

# The usual accents in ICU's order; the others follow by code point.
_ACCENTS: Final = (
    "\u0313\u0314\u0301\u0300\u0306\u0302\u030c\u030a\u0342\u0308\u030b\u0303\u0307\u0338"
    "\u0327\u0328\u0304\u030d\u030e\u0312\u0315\u031a\u033d\u033e\u033f\u0346\u034a"
)
_ACCENT_WEIGHT: Final = {mark: chr(number + 2) for number, mark in enumerate(_ACCENTS)}
_ACCENT_LEAD: Final = chr(len(_ACCENTS) + 2)

# Letters without a decomposition that ICU takes for another form of others …
_FORM_OF: Final = {
    "ß": "ss",
    "æ": "a\u0338e",
    "ð": "d\u0335",
    "ø": "o\u0338",
    "đ": "d\u0335",
    "ħ": "h\u0335",
    "ł": "l\u0335",
    "œ": "o\u0338e",
    "ς": "σ",
    "ך": "כ",
    "ם": "מ",
    "ן": "נ",
    "ף": "פ",
    "ץ": "צ",
}
# … and those with a place of their own just behind another letter.
_BEHIND: Final = {"ı": "i", "ĸ": "q", "ŋ": "n", "ŧ": "t", "þ": "z"}
_BEHIND.update(zip("ґђєѕіјљњћџ", "гдезийлнтч", strict=True))


# ---- strings ------------------------------------------------------------------------------------


def string_key(text: str) -> StringKey:
    """The key of a string: keys compare as CouchDB compares the strings."""
    if text.isascii():
        primary = text.translate(_ASCII_PRIMARY)
        return primary, "", text.translate(_ASCII_TERTIARY).rstrip(_COMMON)
    primary, secondary, tertiary = _levels(text)
    # Each primary weight has one weight on the lower levels, so that a common one at their end
    # compares as a missing one does: cutting them keeps the keys of plain strings short.
    return primary, secondary.rstrip(_COMMON), tertiary.rstrip(_COMMON)


def _levels(text: str) -> StringKey:
    """The levels of a string, nothing cut."""
    # Normal form D makes "й" of two characters, but it is a letter of its own.
    canonical = unicodedata.normalize("NFD", text).replace("и\u0306", "й").replace("И\u0306", "Й")
    weights = [_weights(char) for char in canonical]
    return (
        "".join([weight[0] for weight in weights]),
        "".join([weight[1] for weight in weights]),
        "".join([weight[2] for weight in weights]),
    )


def is_plain(text: str) -> bool:
    """True if no other plain string is equal to this one under the collation (fast, ASCII)."""
    return text.isascii() and text.isprintable()


@lru_cache(maxsize=4096)
def _weights(char: str) -> StringKey:
    """The three weights of one character of a string in normal form D."""
    if char.isascii():
        return (
            char.translate(_ASCII_PRIMARY),
            char.translate(_ASCII_TERTIARY) and _COMMON,
            char.translate(_ASCII_TERTIARY),
        )
    if unicodedata.combining(char):
        return "", _ACCENT_WEIGHT.get(char, _ACCENT_LEAD + char), ""
    if _is_ignored(char):
        return "", "", ""
    return _letter_weights(char)


def _is_ignored(char: str) -> bool:
    if char == "\x85":
        return False  # a line break
    return char == "\u034f" or unicodedata.category(char) in ("Cc", "Cf")


def _letter_weights(char: str) -> StringKey:
    lower = char.lower()
    case = _COMMON if lower == char else _UPPER
    if lower in _BEHIND:
        return _weights(_BEHIND[lower])[0] + _AFTER + lower, _COMMON, case
    plain = _FORM_OF.get(lower) or _compatible(char)
    if plain is not None:
        primary, secondary, tertiary = _levels(plain)
        # The character itself makes sure that it is equal to no other form.
        return primary, secondary, _VARIANT + case + char + tertiary[1:]
    if len(lower) == 1 and lower != char:
        return _primary(lower), _COMMON, _UPPER
    return _primary(char), _COMMON, _COMMON


def _compatible(char: str) -> str | None:
    """What a compatibility form (``ﬁ``, ``Ａ``) stands for; None if it stands for itself."""
    plain = unicodedata.normalize("NFKD", char)
    # "´" and its like are signs of their own, although Unicode makes them of a space.
    if plain == unicodedata.normalize("NFD", char) or (plain[0] == " " and len(plain) > 1):
        return None
    return plain


def _primary(char: str) -> str:
    category = unicodedata.category(char)
    if char == "\uffff":
        return _HIGHEST
    if char == "\ufffe":
        return _LOWEST
    if char == "\x85":
        return _LEAD_SPACE + char
    return (_LEAD_CURRENCY if category == "Sc" else _LEAD_BY_CATEGORY[category[0]]) + char


# ---- values -------------------------------------------------------------------------------------


def rank(value: object) -> int:
    """The place of the value's type in rule 1."""
    if value is None:
        return RANK_NULL
    if value is True:
        return RANK_TRUE
    if value is False:
        return RANK_FALSE
    return _RANKS[type(value)]


# What follows the last item of an array or object. It stands where the next item would begin (an
# array's with a rank, an object's with the key of a name) and before all of those.
_ARRAY_END: Final = -1
_OBJECT_END: Final = ()


def key(value: object) -> Key:
    """A sort key of a JSON value: ``compare(a, b) < 0`` exactly if ``key(a) < key(b)``."""
    place = rank(value)
    if isinstance(value, str):
        return place, string_key(value)
    if place == RANK_NUMBER:
        return place, value
    return tuple(parts(value)) if place > RANK_NUMBER else (place,)


def parts(value: object) -> Iterator[Any]:
    """The parts of a value's key in the order in which they count, made as they are asked for.

    As long as two values agree, their parts are of the same kind at each place.
    """
    # The containers around the place: what is left of each, and the end to give.
    around: list[tuple[Iterator[Any], Any]] = [(iter((value,)), _ARRAY_END)]
    while around:
        items, end = around[-1]
        for item in items:
            if end is _OBJECT_END:
                name, item = item
                yield string_key(name)
            place = rank(item)
            yield place
            if place >= RANK_ARRAY:
                inner = (item, _ARRAY_END) if place == RANK_ARRAY else (item.items(), _OBJECT_END)
                around.append((iter(inner[0]), inner[1]))
                break
            if place >= RANK_NUMBER:
                yield item if place == RANK_NUMBER else string_key(item)
        else:
            around.pop()
            if around:
                yield end


def compare(a: Any, b: Any) -> int:
    """-1, 0 or 1: whether ``a`` stands before, beside or behind ``b``."""
    place = rank(a)
    difference = place - rank(b)
    if difference or place < RANK_NUMBER:
        return _sign(difference, 0)
    if place == RANK_NUMBER:
        return _sign(a, b)
    return compare_strings(a, b) if place == RANK_STRING else _compare_parts(parts(a), parts(b))


def compare_strings(a: str, b: str) -> int:
    return 0 if a == b else _sign(string_key(a), string_key(b))


def _sign(a: Any, b: Any) -> int:
    return 1 if a > b else -1 if a < b else 0


def _compare_parts(a: Iterable[Any], b: Iterable[Any]) -> int:
    for left, right in zip(a, b, strict=False):  # they end together or differ before
        if left != right:
            return 1 if left > right else -1
    return 0


def comparer(arg: object) -> Callable[[object], int]:
    """``compare(value, arg)`` as a function of ``value``, with the work on ``arg`` done once."""
    if isinstance(arg, str):
        return _string_comparer(arg)
    if rank(arg) == RANK_NUMBER:
        return _number_comparer(arg)
    return _other_comparer(arg)


def _string_comparer(arg: str) -> Callable[[object], int]:
    arg_key = string_key(arg)

    def order(value: object) -> int:
        if not isinstance(value, str):
            return -1 if rank(value) < RANK_STRING else 1
        if value == arg:
            return 0
        return _sign(string_key(value), arg_key)

    return order


def _number_comparer(arg: Any) -> Callable[[object], int]:
    def order(value: object) -> int:
        if type(value) is int or type(value) is float:
            return 1 if value > arg else -1 if value < arg else 0
        return -1 if rank(value) < RANK_NUMBER else 1

    return order


def _other_comparer(arg: object) -> Callable[[object], int]:
    place, arg_parts = rank(arg), key(arg)

    def order(value: object) -> int:
        difference = rank(value) - place
        if difference or place < RANK_NUMBER:
            return _sign(difference, 0)
        return _compare_parts(parts(value), arg_parts)

    return order
