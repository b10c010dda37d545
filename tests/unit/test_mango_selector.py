"""Selectors as CouchDB's mango_selector matches them: its own expectations, as tables, and laws."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import BadRequest
from divandb.mango import collate
from divandb.mango import regex as regex_module
from divandb.mango.regex import REGEX_CHARS_MAX
from divandb.mango.selector import compile
from divandb.mango.tree import REGEXES_MAX

NESTED = {"a": {"b": {"c": 7}}}
LIST = [1, [2, 3, 4], 5]
CHOICES = [42, False, "bar", [["nested"], "list"], {"b": 2}]


def matches(selector: object, document: dict[str, Any]) -> bool:
    return compile(selector)(document)


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        ({"$lt": 5}, [4], [5, 6]),
        ({"$lt": "hello"}, ["held"], ["hello", "help"]),
        ({"$lt": [1, 2, 3]}, [[1, 2, 2], [1, 2]], [[1, 2, 3], [1, 2, 4], [1, 3]]),
        ({"$lte": 5}, [4, 5], [6]),
        ({"$lte": "hello"}, ["held", "hello"], ["help"]),
        ({"$lte": [1, 2, 3]}, [[1, 2, 2], [1, 2], [1, 2, 3]], [[1, 2, 4], [1, 3]]),
        ({"$gt": 5}, [6], [4, 5]),
        ({"$gt": "hello"}, ["help"], ["held", "hello"]),
        ({"$gt": [1, 2, 3]}, [[1, 2, 4], [1, 3]], [[1, 2, 2], [1, 2], [1, 2, 3]]),
        ({"$gte": 5}, [5, 6], [4]),
        ({"$gte": "hello"}, ["hello", "help"], ["held"]),
        ({"$gte": [1, 2, 3]}, [[1, 2, 3], [1, 2, 4], [1, 3]], [[1, 2, 2], [1, 2]]),
        # Types stand in an order too.
        ({"$lt": 1}, [None, False, True, 0], ["", [], {}]),
        ({"$gt": "z"}, [[], {}, ["a"]], [None, 99, "a"]),
        ({"$lte": None}, [None], [False, 0]),
        ({"$gte": None}, [None, 0, "x", {}], []),
        ({"$lte": "a"}, [None, False, True, 9, 10000, "a"], ["A", "aa"]),
        ({"$gte": "a"}, ["a", "A", "aa"], [None, False, True, 9, 10000]),
        ({"$eq": 5}, [5, 5.0], [6, "5"]),
        ({"$eq": "hello"}, ["hello"], ["help", "Hello"]),
        ({"$eq": "é"}, ["é", "e\u0301"], ["e", "É"]),
        ({"$eq": LIST}, [LIST], [[1, [2, 3, 4]], [1, [2, 3, 4], 5, 6], [1, [2, 7, 4], 5]]),
        ({"$eq": NESTED}, [NESTED], [{"a": {"b": {"c": 8}}}, {"a": {"d": {"c": 7}}}, {}]),
        ({"$eq": True}, [True], [1, "true", False]),
        ({"$ne": 5}, [6, None, "5"], [5, 5.0]),
        ({"$ne": "hello"}, ["help"], ["hello"]),
        ({"$ne": LIST}, [[1, [2, 3, 4]], [1, [2, 7, 4], 5]], [LIST]),
        ({"$ne": NESTED}, [{"a": {"b": {"d": 7}}}], [NESTED]),
        ({"$in": []}, [], [0, True, "foo", []]),
        (
            {"$in": CHOICES},
            [42, 42.0, False, "bar", {"b": 2}],
            [43, True, 0, "bars", {"b": 2, "c": 3}],
        ),
        # Of an array, $in sees the elements, and never the whole.
        ({"$in": CHOICES}, [[0, 42], [0, "bar"], [0, {"b": 2}], [0, [["nested"], "list"]]], []),
        ({"$in": CHOICES}, [], [[["nested"], "list"], [], [0]]),
        ({"$in": ["a\u200b"]}, ["a", "a\u200b"], ["b"]),
        ({"$nin": []}, [0, True, "foo", []], []),
        ({"$nin": CHOICES}, [43, True, "bars", {"b": 2, "c": 3}], [42, False, "bar", {"b": 2}]),
        ({"$nin": CHOICES}, [[["nested"], "list"]], [[0, 42], [0, {"b": 2}]]),
        ({"$all": []}, [], [[], [42], {}, "foo"]),
        ({"$all": [1, 2, 3, 4]}, [[3, 2, 4, 1], [0, 4, 3, 5, 2, 1, 6]], [[3, 2, 4], [], 1]),
        ({"$all": [[1, 2]]}, [[1, 2], [5, [1, 2], 6]], [[2, 1], [1], [], [5, [2, 1]]]),
        ({"$all": ["hello"]}, [["hello"], [0, "hello", 1]], ["hello", []]),
        ({"$all": [{"a": 1}]}, [[{"a": 1}]], [[{"a": 1, "b": 2}], [{"a": 1.0}]]),
        ({"$all": [{"a": 1, "b": 2}]}, [[{"a": 1, "b": 2}]], [[{"b": 2, "a": 1}]]),
        ({"$all": [1]}, [[1]], [[1.0], [True]]),
        ({"$all": [[1]]}, [[1], [1.0], [[1]]], [[[1.0]], [True]]),
        ({"$not": {"$all": [1, 2]}}, [[1], [], "x"], [[2, 1]]),
        ({"$exists": True}, [0, None, False, {}], []),
        ({"$exists": False}, [], [0, None]),
        ({"$type": "null"}, [None], [False, {}]),
        ({"$type": "boolean"}, [True, False], [0]),
        ({"$type": "number"}, [42, 3.14, 0], [True, [1], "1"]),
        ({"$type": "string"}, ["", "hello"], [[]]),
        ({"$type": "array"}, [[], [1, 2]], [{}, "hi"]),
        ({"$type": "object"}, [{}, {"a": 1}], [[{"a": 1}], None]),
        ({"$type": "integer"}, [], [1, 1.0]),
        ({"$regex": "^[0-9a-f]+$"}, ["3a0df5e"], ["", "3a0gf5e", 42]),
        ({"$regex": "(?i)new.*"}, ["New York", "renewed"], ["Nevada", None]),
        ({"$beginsWith": "foo"}, ["foo", "food", "fool me once"], ["more food", "fo", "Foo", 42]),
        ({"$beginsWith": '"New '}, ['"New x'], ["New "]),
        ({"$beginsWith": ""}, ["", "a", "\u0301"], [None, []]),
        ({"$beginsWith": "e"}, ["e", "ex", "eé"], ["e\u0301", "é"]),
        ({"$beginsWith": "a\r"}, ["a\rb"], ["a\r\n"]),
        ({"$mod": [28, 1]}, [1, 29, 57], [58, "57", 1.0, True]),
        ({"$mod": [3, -1]}, [-1, -4], [1, 2, 5]),
        ({"$mod": [-3, 1]}, [1, 4], [-1, -2]),
        ({"$mod": [10**20, 7]}, [10**40 + 7], [7.0]),
        ({"$size": 3}, [[0, 0, 0]], [3, "fun", [0, 0], [0, 0, 0, 0], {"a": 1}]),
        ({"$size": 0}, [[]], [{}, ""]),
        ({"$allMatch": {"$eq": 0}}, [[0], [0, 0.0]], [[], [1], [0, 1], 0, {}]),
        ({"$elemMatch": {"$eq": 0}}, [[0], [0, 1]], [[], [1], 0, {"a": 0}]),
        ({"$elemMatch": {"$ne": 0}}, [[1], [0, 1]], [[], [0]]),
        ({"$elemMatch": {"$gte": 80, "$lt": 85}}, [[1, 82]], [[79, 85], 82]),
        (
            {"$elemMatch": {"foo": {"$gte": 1}, "bam": True}},
            [[{"foo": 2, "bam": True}]],
            [[{"foo": 1}]],
        ),
        ({"$elemMatch": {"$not": {"a": 1}}}, [[{}], [{"a": 2}], [3]], [[{"a": 1}], []]),
        ({"$elemMatch": {"$nor": [{"$eq": 1}, {"$eq": 2}]}}, [[1, 3]], [[1, 2], []]),
        ({"$elemMatch": {"$or": [{"$eq": 1}, {"$eq": 2}]}}, [[2]], [[3]]),
        ({"$elemMatch": {}}, [[{}]], [[], [1]]),
        ({"$keyMapMatch": {"$eq": "aa"}}, [{"aa": 1, "bb": 2}], [{"cc": 1}, {}, ["aa"], "aa"]),
        ({"$keyMapMatch": {"$regex": "^a"}}, [{"ab": 1}], [{"ba": 1}]),
        ({"$and": [{"$gt": 1}, {"$lt": 5}]}, [2], [1, 5]),
        ({"$or": [{"$lt": 1}, {"$gt": 5}]}, [0, 6], [1, 5]),
        ({"$gt": 1, "$lt": 5}, [2, 4.5], [1, 5]),
    ],
)
def test_conditions(condition: object, yes: list[Any], no: list[Any]) -> None:
    match, negation = compile({"x": condition}), compile({"x": {"$not": condition}})
    for value in yes:
        assert match({"x": value}) and not negation({"x": value}), value
    for value in no:
        assert not match({"x": value}) and negation({"x": value}), value


@pytest.mark.parametrize(
    ("selector", "document", "expected"),
    [
        ({}, {}, True),
        ({}, {"a": 1}, True),
        ({"user_id": 11}, {"_id": "foo", "user_id": 11}, True),
        ({"user_id": "11"}, {"user_id": 11}, False),
        ({"_id": "foo", "_rev": "bar"}, {"_id": "foo", "_rev": "bar"}, True),
        ({"_id": "foo", "_rev": "quux"}, {"_id": "foo", "_rev": "bar"}, False),
        # A missing field matches $exists: false and nothing else.
        ({"x": {"$exists": False}}, {}, True),
        ({"x": {"$exists": True}}, {}, False),
        ({"x": {"$not": {"$exists": True}}}, {}, True),
        ({"x": {"$ne": 5}}, {}, False),
        ({"x": {"$nin": [5]}}, {}, False),
        ({"x": {"$nin": []}}, {}, False),
        ({"x": None}, {}, False),
        ({"x": {"$lte": None}}, {}, False),
        ({"$not": {"x": 5}}, {}, False),
        ({"x": {"$not": {"$type": "string"}}}, {}, False),
        ({"x": {"$not": {"$exists": True, "$eq": 0}}}, {}, True),
        ({"x": {"$not": {"$exists": True, "$eq": 0}}}, {"x": 0}, False),
        ({"x": {"$not": {"$exists": True, "$eq": 0}}}, {"x": 1}, True),
        ({"$nor": [{"x": 1}, {"y": 1}]}, {"x": 2, "y": 2}, True),
        ({"$nor": [{"x": 1}, {"y": 1}]}, {"x": 2}, False),
        # Nothing to combine.
        ({"$and": []}, {}, True),
        ({"$or": []}, {}, True),
        ({"$nor": []}, {}, True),
        ({"a": 22, "$or": []}, {"a": 22}, True),
        ({"a": 22, "$or": []}, {"a": 23}, False),
        ({"$not": {"$nor": []}}, {}, True),
        ({"a": {"$and": []}}, {}, True),
        # Paths.
        ({"a.b": 1}, {"a": {"b": 1}}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ({"a": {"b": 1}}, {"a.b": 1}, False),
        ({"a": {"$eq": {"b": 1}}}, {"a": {"b": 1, "c": 2}}, False),
        ({"a\\.b": 1}, {"a.b": 1}, True),
        ({"a\\.b": 1}, {"a": {"b": 1}}, False),
        ({"a\\.b.c": 1}, {"a.b": {"c": 1}}, True),
        ({"a.1": "y"}, {"a": ["x", "y"]}, True),
        ({"a.1": "y"}, {"a": {"1": "y"}}, True),
        ({"a.+1.b": 2}, {"a": [0, {"b": 2}]}, True),
        ({"a.-1": "y"}, {"a": ["x", "y"]}, False),
        ({"a.b": {"$exists": False}}, {"a": {}}, True),
        ({"a.b": {"$exists": False}}, {}, True),
        ({"a.b": {"$exists": False}}, {"a": 1}, False),
        ({"a.b": {"$exists": False}}, {"a": ["b"]}, False),
        ({"a.7": {"$exists": False}}, {"a": [1]}, False),
        ({"a.1": "y", "a.0": "x"}, {"a": ["x", "y"]}, True),
        ({"a": {"$or": [{"b": 1}, {"c": 1}]}}, {"a": {"c": 1}}, True),
        ({"a": {"$not": {"b": 1}}}, {"a": {"b": 2}}, True),
        ({"a": {}}, {"a": {}}, True),
        ({"a": {}}, {"a": {"b": 1}}, False),
        ({"a": []}, {"a": []}, True),
        ({"a": {"b": {"$allMatch": {"c": 2}}}}, {"a": {"b": []}}, False),
        ({"$and": [{}]}, {"a": 1}, False),
        ({"$or": [{"a": 1, "b": 2}, {"a": 2}]}, {"a": 1, "b": 2}, True),
        ({"$or": [{"a": 1, "b": 2}, {"a": 2}]}, {"a": 1, "b": 3}, False),
        ({"$not": {"$and": [{"a": 1}, {"b": 1}]}}, {"a": 1, "b": 2}, True),
        ({"$not": {"$not": {"a": 1}}}, {"a": 1}, True),
    ],
)
def test_documents(selector: object, document: dict[str, Any], expected: bool) -> None:
    assert matches(selector, document) is expected


@pytest.mark.parametrize(
    ("selector", "error", "reason"),
    [
        (None, "invalid_selector_json", "Selector must be a JSON object, not: null"),
        (True, "invalid_selector_json", "Selector must be a JSON object, not: true"),
        (1.0, "invalid_selector_json", "Selector must be a JSON object, not: 1.0"),
        ("foo", "invalid_selector_json", 'Selector must be a JSON object, not: "foo"'),
        ([None, "x"], "invalid_selector_json", 'Selector must be a JSON object, not: [null,"x"]'),
        ({"foo": {"$not_an_op": 2}}, "invalid_operator", "Invalid operator: $not_an_op"),
        ({"$foo": 2}, "invalid_operator", "Invalid operator: $foo"),
        ({"$default": 2}, "invalid_operator", "Invalid operator: $default"),
        ({"a": {"$beginsWith": 1}}, "invalid_operator", "Invalid operator: $beginsWith"),
        ({"a": {"$regex": 1}}, "invalid_operator", "Invalid operator: $regex"),
        ({"$gt": 2}, "invalid_selector", "One or more conditions is missing a field name."),
        ({"$not": {}}, "invalid_selector", "One or more conditions is missing a field name."),
        ({"_id": {"": None}}, "invalid_field_name", "Invalid field name: "),
        ({"a..b": 1}, "invalid_field_name", "Invalid field name: a..b"),
        ({"a\\.b.": 1}, "invalid_field_name", "Invalid field name: a\\.b."),
        ({"$and": 1}, "bad_arg", "Bad argument for operator $and: 1"),
        ({"$or": {}}, "bad_arg", "Bad argument for operator $or: {}"),
        ({"$nor": "x"}, "bad_arg", 'Bad argument for operator $nor: "x"'),
        ({"$not": []}, "bad_arg", "Bad argument for operator $not: []"),
        ({"a": {"$in": 1}}, "bad_arg", "Bad argument for operator $in: 1"),
        ({"a": {"$nin": None}}, "bad_arg", "Bad argument for operator $nin: null"),
        ({"a": {"$all": "x"}}, "bad_arg", 'Bad argument for operator $all: "x"'),
        ({"a": {"$exists": 1}}, "bad_arg", "Bad argument for operator $exists: 1"),
        ({"a": {"$type": 1}}, "bad_arg", "Bad argument for operator $type: 1"),
        ({"a": {"$mod": [2]}}, "bad_arg", "Bad argument for operator $mod: [2]"),
        ({"a": {"$mod": [2.0, 1]}}, "bad_arg", "Bad argument for operator $mod: [2.0,1]"),
        ({"a": {"$mod": [True, 1]}}, "bad_arg", "Bad argument for operator $mod: [true,1]"),
        ({"a": {"$mod": [0, 1]}}, "bad_arg", "Bad argument for operator $mod: [0,1]"),
        ({"a": {"$size": -1}}, "bad_arg", "Bad argument for operator $size: -1"),
        ({"a": {"$size": True}}, "bad_arg", "Bad argument for operator $size: true"),
        ({"a": {"$elemMatch": 1}}, "bad_arg", "Bad argument for operator $elemMatch: 1"),
        ({"a": {"$allMatch": []}}, "bad_arg", "Bad argument for operator $allMatch: []"),
        ({"a": {"$keyMapMatch": "x"}}, "bad_arg", 'Bad argument for operator $keyMapMatch: "x"'),
        ({"a": {"$in": "x" * 999}}, "bad_arg", f'Bad argument for operator $in: "{"x" * 199}…'),
        ({"$text": "x"}, "not_supported", "Unsupported operator: $text"),
        ({"$where": "x"}, "not_supported", "Unsupported operator: $where"),
        ({"a": {"$near": 1}}, "not_supported", "Unsupported operator: $near"),
    ],
)
def test_bad_selectors_are_refused_as_couchdb_does(
    selector: object, error: str, reason: str
) -> None:
    with pytest.raises(BadRequest) as raised:
        compile(selector)
    assert (raised.value.status, raised.value.error) == (400, error)
    assert raised.value.reason == reason


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = {"a": 1}
    for _ in range(3000):
        deep = {"$and": [deep]}
    with pytest.raises(BadRequest, match="nested deeper than 64 levels"):
        compile(deep)
    with pytest.raises(BadRequest, match="nested deeper than 2 levels"):
        compile({"a": {"b": 1}}, depth_max=2)
    with pytest.raises(BadRequest, match="more than 10 values"):
        compile({"a": {"$in": list(range(10))}}, values_max=10)
    assert compile({"a": {"b": 1}}, depth_max=3)({"a": {"b": 1}})


def test_the_number_of_patterns_is_bounded() -> None:
    patterns = [{"x": {"$regex": f"a{number}"}} for number in range(REGEXES_MAX)]
    assert matches({"$or": patterns}, {"x": "a7"})
    with pytest.raises(BadRequest, match=f"more than {REGEXES_MAX} \\$regex"):
        compile({"$or": [*patterns, {"x": {"$regex": "b"}}]})


def test_the_deepest_selector_meets_the_deepest_document() -> None:
    selector: dict[str, Any] = {"$elemMatch": {"$eq": 1}}
    value: Any = [1]
    for _ in range(30):
        selector, value = {"$elemMatch": selector}, [value]
    assert matches({"x": selector}, {"x": value})
    for _ in range(300):
        value = [value]
    assert not matches({"x": {"$in": [[[1]]]}}, {"x": value})


@pytest.mark.parametrize("levels", [254, 5_000])
def test_a_document_may_be_nested_deeper_than_the_stack(levels: int) -> None:
    document: dict[str, Any] = {"leaf": 1}
    for _ in range(levels // 2):
        document = {"a": [document]}
    arg = document_of_levels(25)
    for condition in ("$lt", "$lte", "$eq", "$gte", "$gt"):
        matches({"a": {condition: arg["a"]}}, document)
    assert matches({"a": {"$ne": arg["a"]}}, document)
    for condition in ("$in", "$nin", "$all"):
        matches({"a": {condition: [arg, arg["a"]]}}, document)
    assert matches({"a": {"$elemMatch": {"a": {"$size": 1}}}}, document)
    path = ".".join(["a.0"] * (levels // 2))
    assert matches({path + ".leaf": 1}, document)
    assert matches({path + ".none": {"$exists": False}}, document)
    assert not matches({".".join(["a"] * 100_000): 1}, document)


def document_of_levels(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels):
        document = {"a": [document]}
    return document


# ---- regular expressions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", ["", "x"], []),
        ("b", ["abc"], ["ac"]),
        ("^a.c$", ["abc", "aéc"], ["abc\n", "xabc", "a\nc"]),
        ("^é$", ["é"], ["e"]),
        ("^.\\x{1F600}$", ["é😀"], ["é"]),
        ("a\\.b", ["a.b"], ["axb"]),
        ("^(foo|bar)+$", ["foobar"], ["", "fooba"]),
        ("^(?:a|b){2,3}$", ["ab", "aba"], ["a", "abab"]),
        ("^a{,2}$", ["a{,2}"], ["aa"]),
        ("^x*?y+?z??$", ["y", "xxyz"], ["xx"]),
        ("\\bcat\\b", ["a cat.", "cat"], ["concat", "cats"]),
        ("\\Bcat", ["concat"], ["cat"]),
        ("(?i)ÉCOLE", ["école"], ["ecole"]),
        ("a(?i)b|c", ["aB", "C"], ["Ab"]),
        ("(?i:a)b", ["Ab"], ["aB"]),
        ("(?m)^b$", ["a\nb\nc"], ["ab"]),
        ("(?s)a.b", ["a\nb"], ["ab"]),
        ("\\Aab\\z", ["ab"], ["ab\n"]),
        ("^[]a-c-]+$", ["]ab-"], ["d"]),
        ("^[[:alpha:]_]+$", ["ab_"], ["a1"]),
        ("^\\pL+$", ["Größe"], ["a1"]),
        ("^\\w\\d\\s$", ["a1 "], ["é1 ", "a1\u00a0"]),
        ("^\\Qa.(b\\E+$", ["a.(b", "a.(bb"], ["axb"]),
        ("^(?<name>a)(?P<more>b)$", ["ab"], ["a"]),
        ("^(a?)*$", ["", "aaa"], ["b"]),
        ("\0", ["a\0b"], ["0"]),
    ],
)
def test_regular_expressions_are_those_of_re2(pattern: str, yes: list[str], no: list[str]) -> None:
    match = compile({"x": {"$regex": pattern}})
    assert [text for text in yes + no if match({"x": text})] == yes


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", "missing ): (a"),
        ("a)", "unexpected ): a)"),
        ("[a", "missing ]: [a"),
        ("[b-a]", "invalid character class range: b-a"),
        ("*", "no argument for repetition operator: *"),
        ("a{2,1}", "invalid repetition size: {2,1}"),
        ("\\", "trailing \\"),
        ("(?=a)", "invalid perl operator: (?="),
        ("(?!a)", "invalid perl operator: (?!"),
        ("(?<=a)b", "invalid perl operator: (?<="),
        ("(?<!a)b", "invalid perl operator: (?<!"),
        ("(?>a)", "invalid perl operator: (?>"),
        ("(?R)", "invalid perl operator: (?R"),
        ("(?x)a", "invalid perl operator: (?x"),
        ("(?#a)", "invalid perl operator: (?#"),
        ("(?|a)", "invalid perl operator: (?|"),
        ("a++", "bad repetition operator: ++"),
        ("(a)\\1", "invalid escape sequence: \\1"),
        *[(f"\\{char}", f"invalid escape sequence: \\{char}") for char in "ZhRKNXec"],
        ("\\é", "invalid escape sequence: \\é"),
        ("(*UTF8)a", "no argument for repetition operator: *"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("((a{99}){99}){99}", "invalid repetition size: {99}"),
        ("\\pL{20}", "pattern too large: 23924 instructions"),
        ("\\pL{1000}", "pattern too large - compile failed"),
        ("(?:" * 200, ("missing ): " + "(?:" * 200)[:100]),
        ("a" * (REGEX_CHARS_MAX + 1), "longer than 2000 characters"),
    ],
)
def test_patterns_that_are_wrong_or_beyond_re2_are_refused(
    pattern: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadRequest, match=r"Bad argument for operator \$regex") as raised:
        compile({"x": {"$regex": pattern}})
    assert raised.value.error == "bad_arg"
    assert raised.value.reason.endswith(f" ({why})")
    assert capfd.readouterr() == ("", "")  # RE2 would write to the log


@pytest.mark.timeout_s(20)
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 1_000_000 + "b"),
        ("(a|aa)+$", "a" * 1_000_000 + "b"),
        ("(.*)(.*)(.*)(.*)x$", "ab" * 500_000),
        ("a?" * 300 + "b" * 300, "a" * 10_000),
        ("(x+x+)+y", "x" * 1_000_000),
        ("a[ab]{300}c", "ab" * 3_000),  # more states than RE2 may remember
    ],
)
def test_patterns_that_stop_a_backtracking_matcher_do_not_stop_this_one(
    pattern: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not matches({"x": {"$regex": pattern}}, {"x": text})
    assert capfd.readouterr() == ("", "")


def test_a_string_too_long_for_the_steps_of_a_match_does_not_match(monkeypatch: Any) -> None:
    monkeypatch.setattr(regex_module, "REGEX_STEPS_MAX", 1_000)
    match = compile({"x": {"$regex": "b"}})
    assert match({"x": "a" * 100 + "b"})
    assert not match({"x": "a" * 1_000 + "b"})


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert matches({"x": {"$regex": "a$"}}, {"x": "\ud800a"})
    assert not matches({"x": {"$regex": "\ud800"}}, {"x": "a"})


@given(st.text(alphabet="ab.\n", max_size=8), st.text(alphabet="ab.\n", max_size=3))
def test_a_quoted_pattern_finds_what_a_string_search_finds(text: str, part: str) -> None:
    assert matches({"x": {"$regex": f"(?:\\Q{part}\\E)+"}}, {"x": text}) == (part in text)


# ---- laws ---------------------------------------------------------------------------------------

scalars = st.sampled_from([None, False, True, 0, 1, 1.0, 2, "", "a", "A", "b", "é", "e\u0301"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    ),
    max_leaves=5,
)
documents = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)
conditions = st.one_of(
    st.tuples(st.sampled_from(["$lt", "$lte", "$eq", "$ne", "$gte", "$gt"]), values),
    st.tuples(st.sampled_from(["$in", "$nin", "$all"]), st.lists(values, max_size=3)),
    st.tuples(st.just("$exists"), st.booleans()),
    st.tuples(st.just("$type"), st.sampled_from(["null", "string", "array"])),
    st.tuples(st.just("$size"), st.integers(0, 3)),
).map(lambda pair: {pair[0]: pair[1]})
leaves = st.tuples(st.sampled_from(["a", "b", "a.b", "a.0"]), conditions).map(
    lambda pair: {pair[0]: pair[1]}
)
selectors = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, max_size=3)),
        st.tuples(st.just("$not"), inner),
    ).map(lambda pair: {pair[0]: pair[1]}),
    max_leaves=5,
)
some_selectors = st.lists(selectors, min_size=1, max_size=3)


@given(some_selectors, documents)
def test_de_morgan(parts: list[Any], document: dict[str, Any]) -> None:
    negations = [{"$not": part} for part in parts]
    assert matches({"$not": {"$and": parts}}, document) == matches({"$or": negations}, document)
    assert matches({"$not": {"$or": parts}}, document) == matches({"$and": negations}, document)


@given(some_selectors, documents)
def test_nor_is_not_or(parts: list[Any], document: dict[str, Any]) -> None:
    assert matches({"$nor": parts}, document) == matches({"$not": {"$or": parts}}, document)


@given(some_selectors, documents)
def test_and_is_all_and_or_is_any(parts: list[Any], document: dict[str, Any]) -> None:
    answers = [matches(part, document) for part in parts]
    assert matches({"$and": parts}, document) == all(answers)
    assert matches({"$or": parts}, document) == any(answers)


@given(selectors, documents)
def test_two_negations_are_none(selector: Any, document: dict[str, Any]) -> None:
    assert matches({"$not": {"$not": selector}}, document) == matches(selector, document)


@given(conditions, values)
def test_a_condition_or_its_negation_holds_on_a_present_field(condition: Any, value: Any) -> None:
    document = {"x": value}
    negated = matches({"x": {"$not": condition}}, document)
    assert negated is not matches({"x": condition}, document)


@given(st.lists(values, max_size=4), values)
def test_in_is_an_or_of_eq_over_the_value_or_its_elements(args: list[Any], value: Any) -> None:
    candidates = value if isinstance(value, list) else [value]
    expected = any(
        matches({"x": {"$eq": arg}}, {"x": candidate}) for arg in args for candidate in candidates
    )
    assert matches({"x": {"$in": args}}, {"x": value}) == expected
    assert matches({"x": {"$nin": args}}, {"x": value}) != expected


@given(values, values)
def test_comparisons_follow_the_collation(value: Any, arg: Any) -> None:
    order = collate.compare(value, arg)
    document = {"x": value}
    assert matches({"x": {"$lt": arg}}, document) == (order < 0)
    assert matches({"x": {"$lte": arg}}, document) == (order <= 0)
    assert matches({"x": {"$eq": arg}}, document) == (order == 0)
    assert matches({"x": {"$ne": arg}}, document) == (order != 0)
    assert matches({"x": {"$gte": arg}}, document) == (order >= 0)
    assert matches({"x": {"$gt": arg}}, document) == (order > 0)


names = st.sampled_from(
    ["a", "a.b", "\\", "", "$and", "$or", "$not", "$nor", "$in", "$all", "$regex", "$mod", "$size"]
) | st.sampled_from(["$elemMatch", "$allMatch", "$keyMapMatch", "$beginsWith", "$text", "$x"])
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(anything, documents)
def test_any_json_is_a_selector_or_a_bad_request(selector: Any, document: dict[str, Any]) -> None:
    try:
        match = compile(selector)
    except BadRequest as error:
        assert error.reason
    else:
        assert match(document) in (True, False)


@given(
    st.text(alphabet="ab(|)*+?{1,2}[^-]\\dQE$.:=!i<x", max_size=12), st.text("ab1\n", max_size=6)
)
def test_any_pattern_is_an_expression_or_a_bad_request(pattern: str, text: str) -> None:
    try:
        match = compile({"x": {"$regex": pattern}})
    except BadRequest as error:
        assert error.error == "bad_arg"
    else:
        assert match({"x": text}) in (True, False)
