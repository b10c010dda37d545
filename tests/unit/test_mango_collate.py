"""CouchDB's order across JSON values; the expectations on strings were checked against ICU."""

from functools import cmp_to_key
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.mango.collate import compare, comparer, is_plain, key, rank, string_key

ORDERED: list[Any] = [
    None,
    False,
    True,
    -(10**30),
    -2,
    -0.1,
    0,
    0.1,
    1,
    2,
    3.0,
    4,
    2**53,
    2**53 + 1,
    1e300,
    "",
    "a",
    "A",
    "aa",
    "b",
    "B",
    "ba",
    "bb",
    "\uffff",
    [],
    ["a"],
    ["b"],
    ["b", "c"],
    ["b", "c", "a"],
    ["b", "d"],
    ["b", "d", "e"],
    {},
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {"b": 2},
    {"b": 2, "a": 1},
    {"b": 2, "c": 2},
]

ASCII_ORDER = (
    "\t\n\x0b\x0c\r _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789"
    "aAbBcCdDeEfFgGhHiIjJkKlLmMnNoOpPqQrRsStTuUvVwWxXyYzZ"
)

# Few letters, so that values often share a beginning.
texts = st.text(alphabet="aAbB é\u0301-_1ßæ\u200bйZ中", max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 2.0]) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def test_couchdbs_list_of_values_in_order_is_in_order() -> None:
    for place, value in enumerate(ORDERED):
        for other_place, other in enumerate(ORDERED):
            expected = (place > other_place) - (place < other_place)
            assert compare(value, other) == expected, (value, other)
            assert comparer(other)(value) == expected
            assert (key(value) > key(other)) - (key(value) < key(other)) == expected


def test_ascii_stands_in_icus_order() -> None:
    visible = [chr(code) for code in range(128) if string_key(chr(code))[0]]
    assert "".join(sorted(visible, key=string_key)) == ASCII_ORDER


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("a", "A"),
        ("A", "aa"),
        ("Ab", "aC"),
        ("abc", "aBc"),
        ("aBc", "Abc"),  # the first difference of case decides
        ("e", "é"),
        ("éa", "eá\u0301b"),
        ("eá", "éa"),  # the first difference of accent decides
        ("résumé", "resumes"),  # letters count before accents
        ("aE", "aé"),  # accents count before case
        ("oz", "øz"),
        ("øa", "oz"),
        ("ss", "ß"),
        ("ß", "st"),
        ("ad", "æ"),
        ("æ", "af"),
        ("z", "þ"),
        ("и", "й"),
        ("и", "Й"),
        ("йя", "к"),
        ("г", "ґ"),
        ("ґ", "д"),
        ("z", "α"),
        ("Ω", "а"),
        ("я", "א"),
        ("~", "€"),
        ("€", "0"),
        ("9", "a"),
        ("_", "-"),
        ("-", "1"),
        ("fi", "ﬁ"),
        ("a", "Ａ"),
        ("あ", "中"),
        ("😀", "a"),
        ("zzz", "\ufff0"),
        ("\ufff0", "\uffff"),
        ("\ufffe", " "),
    ],
)
def test_strings_stand_as_in_icu(lower: str, higher: str) -> None:
    assert compare(lower, higher) == -1
    assert compare(higher, lower) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0, -0.0),
        (2**70, float(2**70)),
        ("é", "e\u0301"),
        ("a", "a\u200b"),
        ("a", "\u0000a"),
        ("", "\u00ad"),
        (["é", 1], ["e\u0301", 1.0]),
        ({"é": 1}, {"e\u0301": 1.0}),
    ],
)
def test_what_couchdb_takes_for_equal_is_equal(one: object, other: object) -> None:
    assert compare(one, other) == 0
    assert key(one) == key(other)
    assert hash(key(one)) == hash(key(other))


def test_big_numbers_are_compared_exactly() -> None:
    assert compare(2**53 + 1, float(2**53)) == 1
    assert compare(10**400, 1e308) == 1
    assert compare(-(10**400), -1e308) == -1


def test_the_order_of_members_counts() -> None:
    assert compare({"a": 1, "b": 2}, {"b": 2, "a": 1}) == -1


def test_true_is_not_one() -> None:
    assert rank(True) != rank(1)
    assert compare([True], [1]) == -1
    assert compare(False, 0) == -1


def test_values_may_be_nested_deeper_than_the_stack() -> None:
    one, other = nested(5_000, 1), nested(5_000, 2)
    assert compare(one, other) == -1 and compare(other, one) == 1 and compare(one, one) == 0
    assert comparer(other)(one) == -1
    assert key(one) < key(other) and hash(key(one)) == hash(key(nested(5_000, 1.0)))


def nested(levels: int, value: object) -> object:
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


@given(values, values, values)
def test_the_order_is_total(a: object, b: object, c: object) -> None:
    assert compare(a, a) == 0
    assert compare(a, b) == -compare(b, a)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


@given(values, values)
def test_keys_and_comparers_say_what_compare_says(a: object, b: object) -> None:
    expected = compare(a, b)
    assert (key(a) > key(b)) - (key(a) < key(b)) == expected
    assert comparer(b)(a) == expected


@given(st.lists(values, max_size=8))
def test_sorting_by_key_is_sorting_by_compare(items: list[object]) -> None:
    assert sorted(items, key=key) == sorted(items, key=cmp_to_key(compare))


@given(st.text(max_size=6), st.text(max_size=6))
def test_any_two_strings_compare(a: str, b: str) -> None:
    assert compare(a, b) == -compare(b, a)
    if is_plain(a) and is_plain(b):
        assert (compare(a, b) == 0) == (a == b)


@given(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4))
def test_strings_of_any_script_are_transitive(a: str, b: str, c: str) -> None:
    low, middle, high = sorted([a, b, c], key=string_key)
    assert compare(low, middle) <= 0 and compare(middle, high) <= 0 and compare(low, high) <= 0
