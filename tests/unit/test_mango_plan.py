"""Keys, sieve and planner against the reference: the collation and the selector's predicate."""

from typing import Any

import apsw
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import BadRequest
from divandb.mango import collate, keys, plan, selector, tree
from divandb.mango import index as indexes
from divandb.mango import options as bodies
from divandb.mango.index import Index
from divandb.mango.sift import SQL_CHARS_MAX, VALUES_MAX, sift

WORDS = [
    "", "a", "A", "ab", "aB", "abc", "b", "é", "e\u0301", "a\0", "a\x01", "\u200ba", "[x]", "{",
    "1", "1-2", "1 2", "1.2", "1/2", "A-1", "a_1", "a:1", "ab\0c", "~", "it's", "\uffff",
    "\U0001f600", "z", "þ",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 7, 7.0, -0.0, 0.1, 0.30000000000000004, 7.000000000000001, 5e-324, 1e300, -1e300,
    2**53, 2**53 + 1, 2**63, 2**64 - 1, 2**64 - 2, -(2**63), 5.5,
]  # fmt: skip
texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
numbers = (
    st.sampled_from(NUMBERS)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
scalars = st.none() | st.booleans() | numbers | texts
PATTERNS = ["a", "^A", "b$", "ab", "^ab*", "^ab?c", "^ab{0}", "^a+b", "^b|a", "^1-2", "1 2", "^a$"]
NAMES = ["a", "b", "c", "0", "it's", 'q"']
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    ),
    max_leaves=6,
)
documents = st.builds(
    lambda members, doc_id: {"_id": doc_id, "_rev": "1-0", **members},
    st.dictionaries(st.sampled_from(NAMES), values, max_size=4),
    texts,
)
comparisons = st.tuples(st.sampled_from(["$lt", "$lte", "$eq", "$gte", "$gt"]), values)
conditions = st.recursive(
    comparisons.map(lambda pair: {pair[0]: pair[1]})
    | st.fixed_dictionaries({"$ne": values})
    | st.tuples(st.sampled_from(["$in", "$nin", "$all"]), st.lists(values, max_size=3)).map(
        lambda pair: {pair[0]: pair[1]}
    )
    | st.fixed_dictionaries({"$exists": st.booleans()})
    | st.fixed_dictionaries(
        {"$type": st.sampled_from(["null", "boolean", "number", "string", "array", "object", "x"])}
    )
    | st.fixed_dictionaries({"$size": st.integers(0, 3)})
    | st.sampled_from([{"$mod": [2, 1]}, {"$mod": [-3, 0]}, {"$mod": [2, -1]}])
    | st.fixed_dictionaries({"$regex": st.sampled_from(PATTERNS)})
    | st.fixed_dictionaries({"$beginsWith": texts}),
    lambda inner: st.tuples(
        st.sampled_from(["$elemMatch", "$allMatch", "$keyMapMatch", "$not"]), inner
    ).map(lambda pair: {pair[0]: pair[1]}),
    max_leaves=2,
)  # fmt: skip
FIELDS = ["a", "b", "c", "a.b", "a.0", "b.it's", 'q"', "_id"]
selectors = st.recursive(
    st.dictionaries(st.sampled_from(FIELDS), conditions, min_size=1, max_size=2),
    lambda inner: (
        st.tuples(st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, max_size=3)).map(
            lambda pair: {pair[0]: pair[1]}
        )
        | inner.map(lambda one: {"$not": one})
    ),
    max_leaves=4,
)


# Keys


@given(values, values)
def test_keys_have_the_order_of_the_values(a: Any, b: Any) -> None:
    one, other = keys.encoded(a), keys.encoded(b)
    assert (one > other) - (one < other) == collate.compare(a, b)


@pytest.mark.parametrize("a", [*NUMBERS, *WORDS, None, True, [], [1], {}, {"a": 1}, {"a": [{}]}])
def test_keys_of_what_is_near_to_each_other(a: Any) -> None:
    for b in [*NUMBERS, *WORDS, None, False, [], [[]], [1, 2], {}, {"a": 1, "b": 2}, {"": 0}]:
        one, other = keys.encoded(a), keys.encoded(b)
        assert (one > other) - (one < other) == collate.compare(a, b), b


@given(st.lists(values, min_size=2, max_size=2), st.lists(values, min_size=2, max_size=2))
def test_keys_of_several_values_compare_as_lists_do(a: list[Any], b: list[Any]) -> None:
    one, other = keys.row(a), keys.row(b)
    assert (one > other) - (one < other) == collate.compare(a, b)


@given(values, values, values)
def test_above_stands_between_a_value_and_the_next(a: Any, b: Any, behind: Any) -> None:
    bound = keys.encoded(a) + keys.ABOVE
    assert keys.row([a, behind]) < bound
    if collate.compare(a, b) < 0:
        assert bound < keys.encoded(b)


@given(texts, texts)
def test_strings_that_begin_so_have_keys_that_begin_so(prefix: str, rest: str) -> None:
    if selector.compile({"a": {"$beginsWith": prefix}})({"a": prefix + rest}):
        assert keys.encoded(prefix + rest).startswith(keys.beginning(prefix))


# The sieve

database = apsw.Connection(":memory:")


def passes(found: Any, document: dict[str, Any]) -> bool:
    sql, bound = found
    query = f"WITH doc(body) AS (VALUES (?)) SELECT count(*) FROM doc WHERE {sql}"
    row: Any = database.execute(query, [orjson.dumps(document), *bound]).fetchone()
    return bool(row[0])


@given(selectors, documents)
def test_the_sieve_lets_everything_through_that_matches(
    given_selector: dict[str, Any], document: dict[str, Any]
) -> None:
    node = tree.parse(given_selector)
    found = sift(node)
    if found is not None and selector.predicate(node)(document):
        assert passes(found, document)


@pytest.mark.parametrize(
    ("selector", "document"),
    [
        ({"a": 7}, {"a": 8}),
        ({"a": "x"}, {"a": "y"}),
        ({"a": "x"}, {}),
        ({"a": {"$in": [1, "x"]}}, {"a": 2}),
        ({"a": {"$gt": 5}}, {"a": 4}),
        ({"a": {"$lt": 5}}, {"a": "x"}),
        ({"a": {"$exists": True}}, {"b": 1}),
        ({"a": {"$exists": False}}, {"a": 1}),
        ({"a": {"$type": "string"}}, {"a": 1}),
        ({"a": {"$size": 2}}, {"a": [1]}),
        ({"a": {"$beginsWith": "ab"}}, {"a": "ba"}),
        ({"a": {"$regex": "x"}}, {"a": 1}),
        ({"a": {"$elemMatch": {"$eq": 1}}}, {"a": 1}),
        ({"a.b": 1, "c": 2}, {"a": {"b": 1}, "c": 3}),
        ({"$or": [{"a": 1}, {"b": 1}]}, {"a": 2, "b": 2}),
        ({"_id": "x"}, {"_id": "y"}),
        ({"a": {"$gt": "2024-05-01T10:00"}}, {"a": "2024-04-30T11:00"}),
        ({"a": {"$regex": "^ab*c"}}, {"a": "bab"}),
        ({"a": {"$regex": "pika"}}, {"a": "raichu"}),
        ({"a": {"$gte": "m"}}, {"a": "Lima"}),
        ({"a": {"$lt": "m"}}, {"a": "Oslo"}),
    ],
)
def test_the_sieve_holds_back_what_it_can(selector: Any, document: dict[str, Any]) -> None:
    found = sift(tree.parse(selector))
    assert found is not None and not passes(found, document)


def test_a_sieve_that_would_be_too_large_is_none() -> None:
    wide = tree.parse({"$or": [{"a": number} for number in range(VALUES_MAX)]})
    long = tree.parse({"$or": [{"a" * 80: {"$exists": True}}] * (SQL_CHARS_MAX // 80)})
    assert sift(wide) is None and sift(long) is None


# The planner


def index(*fields: str, name: str = "x", partial: dict[str, Any] | None = None) -> Index:
    given: dict[str, Any] = {"fields": list(fields)}
    if partial is not None:
        given["partial_filter_selector"] = partial
    return indexes.new(bodies.read_index({"index": given, "name": name, "ddoc": name}))


def query(selector: Any, **members: Any) -> bodies.Query:
    return bodies.read_query({"selector": selector, **members})


def chosen(made: plan.Plan) -> str:
    assert made.index is not None
    return made.index.name


some_fields = st.lists(st.sampled_from(["a", "b", "a.b", "_id", "it's"]), max_size=3, unique=True)


@given(selectors, documents, some_fields)
def test_what_matches_is_in_the_span_of_every_index_that_may_be_chosen(
    given_selector: dict[str, Any], document: dict[str, Any], fields: list[str]
) -> None:
    one = index(*fields)
    made = plan.choose(query(given_selector), [one])
    if made.query.finds_nothing or not selector.compile(given_selector)(document):
        return
    assert not made.is_empty
    if made.is_by_id:
        low, high = made.ids
        assert low <= document["_id"] and (high is None or document["_id"] <= high)
    else:
        key, (start, end) = one.key_of(document), made.span
        assert key is not None and start <= key < end


@given(selectors, documents)
def test_what_a_selector_demands_is_there_in_all_that_match(
    given_selector: dict[str, Any], document: dict[str, Any]
) -> None:
    node = tree.parse(given_selector)
    fields = frozenset(map(tree.path_of, FIELDS))
    if selector.predicate(node)(document):
        for path in fields - plan.lacking(node, fields):
            assert indexes.found_at(document, path) is not indexes.MISSING


@given(selectors, documents)
def test_a_normalized_selector_means_the_same(
    given_selector: dict[str, Any], document: dict[str, Any]
) -> None:
    shown = tree.as_json(tree.parse(given_selector))
    assert selector.compile(shown)(document) == selector.compile(given_selector)(document)


CHOICES: list[tuple[Any, dict[str, Any], str]] = [
    # selector, other members, index
    ({"a": 1}, {}, "a"),
    ({"a": 1, "b": 2}, {}, "a-b"),
    ({"b": 2}, {}, "_all_docs"),
    ({"a": {"$exists": False}}, {}, "_all_docs"),
    ({"a": {"$exists": True}}, {}, "a"),
    ({"a": {"$ne": 1}}, {}, "a"),
    ({"$or": [{"a": 1}, {"a": 2}]}, {}, "a"),
    ({"$or": [{"a": 1}, {"b": 2}]}, {}, "_all_docs"),
    ({"$not": {"a": 1}}, {}, "a"),
    ({}, {}, "_all_docs"),
    ({"b": 1}, {"sort": ["a"]}, "a"),
    ({"a": 1}, {"sort": ["b"]}, "a-b"),
    ({"a": 1}, {"sort": ["a", "b"]}, "a-b"),
    ({"a": 1}, {"use_index": "a-b"}, "a"),
    ({"a": 1, "b": 2}, {"use_index": "a"}, "a"),
    ({"a": 1, "b": 2}, {"use_index": ["_design/a", "a"]}, "a"),
    ({"a": 1}, {"use_index": "part"}, "part"),
    ({"a": 1, "z": 1}, {}, "a"),
    ({"_id": "x"}, {"sort": ["_id"]}, "_all_docs"),
]


@pytest.mark.parametrize(("selector", "members", "name"), CHOICES)
def test_the_index_that_is_chosen(selector: Any, members: dict[str, Any], name: str) -> None:
    found = [
        index("a", "b", name="a-b"),
        index("a", name="a"),
        index("a", name="a2"),
        index("a", name="part", partial={"z": 1}),
    ]
    assert chosen(plan.choose(query(selector, **members), found)) == name


@pytest.mark.parametrize(
    ("selector", "members", "code"),
    [
        ({"a": 1}, {"sort": ["z"]}, "no_usable_index"),
        ({"a": {"$gt": 1}}, {"sort": ["b"]}, "no_usable_index"),
        ({"a": 1}, {"sort": ["_id"]}, "no_usable_index"),
        ({"b": 1}, {"use_index": "a", "allow_fallback": False}, "invalid_index"),
        ({"b": 1}, {"allow_fallback": False}, "invalid_index"),
    ],
)
def test_queries_without_an_index(selector: Any, members: dict[str, Any], code: str) -> None:
    asked = query(selector, **members)
    with pytest.raises(BadRequest) as raised:
        plan.choose(asked, [index("a", "b", name="a")])
    assert raised.value.error == code


def test_warnings_are_couchdbs() -> None:
    found = [index("a", name="a")]
    made = plan.choose(query({"b": 1}, use_index="a"), found)
    assert made.warning(100, 1) == "\n".join(
        [
            "_design/a was not used because it does not contain a valid index for this query.",
            "No matching index found, create an index to optimize query time.",
            plan.MANY_EXAMINED,
        ]
    )
    named = plan.choose(query({"a": 1}, use_index=["a", "z"]), found).warning(5, 1)
    assert named == "_design/a, z was not used because it is not a valid index for this query."
    assert plan.choose(query({"a": 1}), found).warning(10, 1) is None
    assert plan.choose(query({"a": 1}), found).warning(11, 0) == plan.MANY_EXAMINED


def test_a_plan_explains_itself() -> None:
    found = [
        index("a", "b", name="a-b"),
        index("c", name="c"),
        index("a", name="p", partial={"z": 1}),
    ]
    asked = query(
        {"a": 1, "b": {"$gt": 5}, "z": {"$regex": "x"}}, sort=[{"a": "desc"}], fields=["a"]
    )
    told = plan.explained(plan.choose(asked, found), "movies")
    assert told["dbname"] == "movies"
    assert told["index"]["def"] == {"fields": [{"a": "asc"}, {"b": "asc"}]}
    assert told["selector"] == {
        "$and": [{"a": {"$eq": 1}}, {"b": {"$gt": 5}}, {"z": {"$regex": "x"}}]
    }
    assert told["mrargs"]["direction"] == "rev"
    assert (told["mrargs"]["end_key"], told["mrargs"]["start_key"]) == ([1, 5], [1, "<MAX>"])
    assert told["opts"]["sort"] == {"a": "desc"} and told["fields"] == ["a"]
    assert told["selector_hints"] == [
        {"type": "json", "indexable_fields": ["a", "b"], "unindexable_fields": ["z"]}
    ]
    reasons = {
        one["index"]["name"]: (one["analysis"]["reasons"][0]["name"], one["analysis"]["ranking"])
        for one in told["index_candidates"]
    }
    assert reasons == {
        "_all_docs": ("field_mismatch", 1), "c": ("field_mismatch", 1), "p": ("is_partial", 2),
    }  # fmt: skip
    covered = plan.choose(query({"a": 1, "b": 2}, fields=["_id", "b"]), found)
    assert covered.covering and not plan.choose(query({"a": 1, "b": 2}), found).covering


def test_explaining_needs_no_index() -> None:
    told = plan.explained(plan.choose(query({"a": 1}, sort=["z"]), [], explaining=True), "x")
    assert told["index"] is None and "mrargs" not in told


@pytest.mark.parametrize(
    "selector",
    [
        {"a": {"$gt": 5, "$lt": 3}},
        {"$and": [{"a": 1}, {"a": 2}]},
        {"a": {"$lt": None}},
        {"$or": []},
        {"$and": []},
    ],
)
def test_what_nothing_can_match_is_known(selector: Any) -> None:
    made = plan.choose(query(selector), [index("a")])
    assert made.is_empty or made.span[0] >= made.span[1] or made.span[1] <= keys.encoded(None)


# Bodies and design documents


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_key"),
        ({"selector": 1}, "invalid_selector_json"),
        ({"selector": {}, "foo": 1}, "invalid_key"),
        ({"selector": {}, "limit": -1}, "invalid_non_neg_integer"),
        ({"selector": {}, "limit": True}, "invalid_non_neg_integer"),
        ({"selector": {}, "skip": "1"}, "invalid_non_neg_integer"),
        ({"selector": {}, "r": 0}, "invalid_pos_integer"),
        ({"selector": {}, "sort": {"a": "asc"}}, "invalid_sort_json"),
        ({"selector": {}, "sort": [""]}, "invalid_sort_field"),
        ({"selector": {}, "sort": [1]}, "invalid_sort_field"),
        ({"selector": {}, "sort": [{"a": "up"}]}, "invalid_sort_dir"),
        ({"selector": {}, "sort": ["a", {"b": "desc"}]}, "unsupported_mixed_sort"),
        ({"selector": {}, "sort": ["a..b"]}, "invalid_field_name"),
        ({"selector": {}, "fields": "a"}, "invalid_fields"),
        ({"selector": {}, "fields": [1]}, "invalid_field"),
        ({"selector": {}, "bookmark": 1}, "invalid_bookmark"),
        ({"selector": {}, "use_index": 1}, "invalid_index_name"),
        ({"selector": {}, "use_index": ["a", "b", "c"]}, "invalid_index_name"),
        ({"selector": {}, "use_index": "a/b/c"}, "invalid_index_name"),
        ({"selector": {}, "conflicts": 1}, "invalid_boolean"),
        ({"selector": {}, "update": 0}, "invalid_boolean"),
        ({"selector": {}, "stale": "yes"}, "invalid_ok_or_false_value"),
        ({"selector": {}, "stale": 0}, "invalid_ok_or_false_value"),
        ({"selector": {}, "partition": 1}, "invalid_string"),
    ],
)
def test_a_query_that_is_refused(body: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRequest) as raised:
        bodies.read_query(body)
    assert raised.value.error == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_key"),
        ({"index": 1}, "invalid_index"),
        ({"index": {}}, "missing_required_key"),
        ({"index": {"fields": ["a"], "foo": 1}}, "invalid_key"),
        ({"index": {"fields": ["a", {"b": "desc"}]}}, "unsupported_mixed_sort"),
        ({"index": {"fields": "a"}}, "invalid_sort_json"),
        ({"index": {"fields": ["a"]}, "name": ""}, "invalid_empty_string"),
        ({"index": {"fields": ["a"]}, "ddoc": 1}, "invalid_string"),
        ({"index": {"fields": ["a"]}, "type": "geo"}, "invalid_index"),
        ({"index": {"fields": ["a"], "partial_filter_selector": 1}}, "invalid_selector_json"),
    ],
)
def test_an_index_that_is_refused(body: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRequest) as raised:
        bodies.read_index(body)
    assert raised.value.error == code


def test_use_index_in_all_its_forms() -> None:
    forms: dict[Any, tuple[str, ...]] = {
        None: (), "x": ("x",), "_design/x": ("x",), "x/n": ("x", "n"), "_design/x/n": ("x", "n"),
    }  # fmt: skip
    for given_form, read in forms.items():
        assert query({}, use_index=given_form).use_index == read
    assert query({}, use_index=["_design/x", "n"]).use_index == ("x", "n")


def test_indexes_go_into_design_documents_and_out_of_them() -> None:
    wanted = bodies.read_index(
        {"index": {"fields": ["a.b", "c"], "partial_filter_selector": {"x\\.y": {"$gt": 1}}},
         "ddoc": "d", "name": "n"}
    )  # fmt: skip
    made = indexes.new(wanted)
    members = indexes.added({}, made, wanted.given)
    assert members["language"] == "query"
    assert members["views"]["n"]["map"]["fields"] == {"a.b": "asc", "c": "asc"}
    assert members["views"]["n"]["reduce"] == "_count"
    (read,) = indexes.of_design({"_id": "_design/d", **members})
    assert (read.ddoc, read.name, read.paths) == ("_design/d", "n", (("a", "b"), ("c",)))
    assert read.signature == made.signature and read.as_json() == made.as_json()
    assert read.key_of({"a": {"b": 1}, "c": 2, "x.y": 2}) == keys.row([1, 2])
    assert read.key_of({"a": {"b": 1}, "c": 2, "x.y": 1}) is None
    assert read.key_of({"a": {"b": 1}, "x.y": 2}) is None
    other = index("z", name="o")
    both = indexes.added({"_id": "_design/d", **members}, other, {"fields": ["z"]})
    assert [one.name for one in indexes.of_design({"_id": "_design/d", **both})] == ["n", "o"]
    assert indexes.removed(both, "o") == members and indexes.removed(members, "n") is None


def test_a_signature_is_of_what_gives_the_entries() -> None:
    one = index("a", "b", name="x")
    assert one.signature == index("a", "b", name="y").signature
    others = [index("b", "a"), index("a"), index("a", "b", partial={"z": 1}), index("a.b")]
    assert len({one.signature, *(other.signature for other in others)}) == 5


@pytest.mark.parametrize(
    "document",
    [
        {"views": {"x": {"map": {"fields": {"a": "asc"}}}}},
        {"language": "javascript", "views": {"x": {"map": {"fields": {"a": "asc"}}}}},
        {"language": "query", "views": 1},
        {"language": "query", "views": {"x": 1, "y": {"map": "f"}, "z": {"map": {"fields": []}}}},
        {"language": "query", "views": {"x": {"map": {"fields": {"a": "up"}}}}},
        {"language": "query", "views": {"x": {"map": {"fields": {"a": "asc"},
         "partial_filter_selector": {"a": {"$regex": "("}}}}}},
    ],
)  # fmt: skip
def test_what_is_no_index_is_passed_over(document: dict[str, Any]) -> None:
    assert indexes.of_design({"_id": "_design/d", **document}) == []


def test_an_index_does_not_go_into_a_design_document_of_another_language() -> None:
    for other in (
        {"_id": "_design/x", "views": {}},
        {"_id": "_design/x", "language": "javascript"},
    ):
        with pytest.raises(BadRequest) as raised:
            indexes.added(other, index("a"), {})
        assert raised.value.error == "invalid_ddoc_lang"


def test_fields_are_picked_along_their_paths() -> None:
    document = {"a": {"b": 1, "c": [5, {"d": 6}]}, "x.y": 2, "n": None}
    paths = tuple(map(tree.path_of, ["a.b", "a.c.1.d", "x\\.y", "n", "gone", "a.gone.b"]))
    picked = indexes.picked(document, paths)
    assert picked == {"a": {"b": 1, "c": {"1": {"d": 6}}}, "x.y": 2, "n": None}
    inner = indexes.picked(document, (("a", "c"), ("a", "c", "1")))
    assert inner == {"a": {"c": [5, {"d": 6}]}}, "what is there whole stays whole"
    assert document["a"] == {"b": 1, "c": [5, {"d": 6}]}


def test_paths() -> None:
    assert tree.path_of("a.b") == ("a", "b")
    assert tree.path_of(r"a\.b.c") == ("a.b", "c")
    assert tree.path_of(tree.joined(("a.b", "c"))) == ("a.b", "c")
