"""Functions of design documents in a real worker: what CouchDB's query server does with them, and
what becomes of those that do not come to an end.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divandb.clock import SystemClock
from divandb.errors import CompilationError, FunctionFailed
from divandb.views.engine import Engine, Program

FUNCTION_MS_MAX = 300
MEMORY_BYTES_MAX = 16 * 2**20


class Noted:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append(str(values.get("text", what)))

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise AssertionError(what) from fault


LOG = Noted()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(MEMORY_BYTES_MAX, FUNCTION_MS_MAX, 60.0, SystemClock(), LOG)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    LOG.lines.clear()


def program(*maps: str, **design: Any) -> Program:
    named = [[f"v{number}", source] for number, source in enumerate(maps)]
    text = json.dumps({"design": design, "maps": named})
    return Program(text.encode(), text, "_design/d")


def mapped(engine: Engine, made: Program, *docs: dict[str, Any]) -> list[Any]:
    calls = [[json.dumps(doc)] for doc in docs]
    answers: list[str] = []
    while len(answers) < len(docs):
        left = docs[len(answers) :]
        answers += engine.ask(made, "map", calls[len(answers) :], [doc["_id"] for doc in left])
    return [json.loads(answer) for answer in answers]


def rows(engine: Engine, source: str, **members: Any) -> Any:
    """What one map function gives for one document."""
    ((found,),) = mapped(engine, program(source), {"_id": "a", **members})
    return found


@pytest.mark.parametrize(
    "source",
    [
        "function(doc) { emit(doc._id, 1) }",
        "function (doc) { emit(doc._id, 1) };;\n",
        "// first\nfunction(doc) { emit(doc._id, 1); } // last",
        "/* first */ function(doc) {\n emit(doc._id, 1)\n}; // last\n",
        "(function(doc) { emit(doc._id, 1) })",
        "(doc) => emit(doc._id, 1)",
        "function named(doc) { emit(doc._id, 1) }",
        "function named(doc) { help(doc) }\nfunction help(doc) { emit(doc._id, 1) }",
        "var one = 1; (function(doc) { emit(doc._id, one) })",
        "function(doc) { var text = '})'; emit(doc._id, text.length - 1) }",
    ],
)
def test_functions_are_taken_as_they_stand_in_design_documents(engine: Engine, source: str) -> None:
    assert rows(engine, source) == [["a", 1]]


@pytest.mark.parametrize("source", ["function(doc) {", "42", "", "function(doc) { emit( }"])
def test_what_is_no_function_is_refused_with_its_name(engine: Engine, source: str) -> None:
    with pytest.raises(CompilationError, match=r"function v0 in _design/d failed: SyntaxError"):
        rows(engine, source)


def test_what_is_emitted_becomes_json_as_javascript_has_it(engine: Engine) -> None:
    found = rows(
        engine,
        """function(doc) {
            emit();
            emit(undefined, NaN);
            emit([undefined, -0, 1.0, 0.1], {u: undefined, d: new Date(0)});
            emit(new Error("no"), new TypeError("bad"));
            emit(9007199254740993, "\\u0000\\ud83d\\ude00");
        }""",
    )
    assert found == [
        [None, None],
        [None, None],
        [[None, 0, 1, 0.1], {"d": "1970-01-01T00:00:00.000Z"}],
        [{}, {"error": "TypeError", "message": "bad"}],
        [9007199254740992, "\0\U0001f600"],
    ]


def test_many_rows_and_long_texts_come_whole(engine: Engine) -> None:
    found = rows(engine, "function(doc) { for (var n = 0; n < 5000; n++) emit(n, doc._id + n) }")
    assert found == [[number, f"a{number}"] for number in range(5000)]
    sums = "var t = ''; for (var n = 0; n < 20000; n++) t += 'x' + n; emit(t.length, t)"
    ((length, text),) = rows(engine, f"function(doc) {{ {sums} }}")
    assert text == "".join(f"x{number}" for number in range(20000)) and length == len(text)


def test_half_a_character_is_replaced_and_an_escape_that_is_text_is_kept(engine: Engine) -> None:
    found = rows(engine, r"function(doc) { emit('a\ud83d', '\\ud83d\ud83d\ud83d') }")
    assert found == [["a\ufffd", "\\ud83d\ufffd\ufffd"]]


def test_a_document_stays_what_it_is_for_the_next_function(engine: Engine) -> None:
    first = "function(doc) { doc.n = 2; delete doc.list; doc.inner.x = 2; emit(doc.n) }"
    second = "function(doc) { emit([doc.n, doc.list, doc.inner.x]) }"
    doc = {"_id": "a", "n": 1, "list": [1], "inner": {"x": 1}}
    assert mapped(engine, program(first, second), doc) == [[[[1, None]], [[[1, [1], 1], None]]]]


def test_what_throws_gives_nothing_and_is_logged_with_function_and_document(
    engine: Engine,
) -> None:
    made = program(
        "function(doc) { emit(1); if (doc.bad) throw new Error('no ' + doc.bad); emit(2) }",
        "function(doc) { emit(doc._id) }",
        "function(doc) { if (doc.bad) emit(doc.bad, 1n) }",
    )
    found = mapped(engine, made, {"_id": "a"}, {"_id": "b", "bad": "way"}, {"_id": "c"})
    ones = [[1, None], [2, None]]
    assert found == [[ones, [["a", None]], []], [[], [["b", None]], []], [ones, [["c", None]], []]]
    assert LOG.lines[0] == "the map function of view v0 raised Error: no way on document b"
    assert LOG.lines[1].startswith("the map function of view v2 raised TypeError: BigInt")


def test_log_sum_is_array_and_to_json(engine: Engine) -> None:
    found = rows(
        engine,
        "function(doc) { log('x'); log({y: [1]}); emit(sum([1, 2.5]), [isArray([]), isArray({})]);"
        " emit(toJSON({a: 1})) }",
    )
    assert found == [[3.5, [True, False]], ['{"a":1}', None]]
    assert LOG.lines == ["x", '{"y":[1]}']


def test_modules_are_found_by_path_once_and_may_need_each_other(engine: Engine) -> None:
    lib = {
        "a": "exports.name = 'a'; exports.b = require('./b').name; exports.id = module.id",
        "b": "exports.name = 'b'; exports.up = require('../other/c').twice",
        "count": "exports.n = 0",
    }
    made = program(
        """function(doc) {
            var a = require('views/lib/a'), n = ++require('views/lib/count').n;
            emit([a.name, a.b, a.id], [n, require('views/lib/b').up(4)]);
        }""",
        views={"lib": lib, "other": {"c": "exports.twice = function (n) { return 2 * n }"}},
    )
    first, second = mapped(engine, made, {"_id": "a"}, {"_id": "b"})
    assert first == [[[["a", "b", "views/lib/a"], [1, 8]]]]
    assert second == [[[["a", "b", "views/lib/a"], [2, 8]]]]


@pytest.mark.parametrize("path", ["views/none", "views", "../x", "views/lib/bad"])
def test_a_module_that_cannot_be_had_is_an_error_of_the_document(engine: Engine, path: str) -> None:
    made = program(
        f"function(doc) {{ emit(require({json.dumps(path)})) }}",
        views={"lib": {"bad": "exports.x("}},
    )
    assert mapped(engine, made, {"_id": "a"}) == [[[]]]
    assert "on document a" in LOG.lines[0]


LOOP = "function(doc) { if (doc.bad) try { for (;;); } catch (e) { for (;;); } emit(doc._id) }"
MORE = "function(doc) { var all = []; while (doc.bad) all.push(new Array(1000).fill(7)); emit(1) }"


def test_what_never_ends_is_ended_and_names_function_and_document(engine: Engine) -> None:
    made = program(LOOP)
    assert mapped(engine, made, {"_id": "a"}) == [[[["a", None]]]]
    calls = [['{"_id": "a"}'], ['{"_id": "b", "bad": 1}'], ['{"_id": "c"}']]
    assert len(engine.ask(made, "map", calls, ["a", "b", "c"])) == 1
    with pytest.raises(
        FunctionFailed, match="v0 in _design/d ran longer than 300 ms on document b"
    ):
        engine.ask(made, "map", calls[1:], ["b", "c"])
    assert mapped(engine, made, {"_id": "c"}) == [[[["c", None]]]]


def test_a_slow_pattern_is_ended_too(engine: Engine) -> None:
    slow = "function(doc) { /^(a+)+$/.test('a'.repeat(60) + 'b') }"
    with pytest.raises(FunctionFailed, match="ran longer"):
        rows(engine, slow)


@pytest.mark.parametrize(
    "source", [MORE, "function(doc) { var t = 'x'; while (doc.bad) t = t + t; emit(1) }"]
)
def test_what_allocates_without_end_is_ended(engine: Engine, source: str) -> None:
    with pytest.raises(FunctionFailed, match="needed more than 16 MiB of memory on document a"):
        rows(engine, source, bad=1)
    assert rows(engine, source) == [[1, None]]


def test_endless_recursion_is_an_error_of_the_document(engine: Engine) -> None:
    assert rows(engine, "function(doc) { function f() { return f() + 1 } f(); emit(1) }") == []
    assert "on document a" in LOG.lines[0]


def test_a_function_may_ask_for_the_end(engine: Engine) -> None:
    with pytest.raises(FunctionFailed, match="raised fatal_error on document a"):
        rows(engine, "function(doc) { throw 'fatal_error' }")


def test_nothing_is_within_reach(engine: Engine) -> None:
    names = ["std", "os", "process", "fetch", "XMLHttpRequest", "setTimeout", "print", "console"]
    listed = ", ".join(f"typeof {name}" for name in names)
    assert rows(engine, f"function(doc) {{ emit([{listed}]) }}") == [[["undefined"] * 8, None]]
    with pytest.raises(FunctionFailed):  # modules of an engine are files
        rows(engine, "function(doc) { throw ['fatal', import('os')] }")
    pid = engine.pid
    assert pid is not None
    fds = Path(f"/proc/{pid}/fd")
    assert sorted(fd.name for fd in fds.iterdir()) == ["0", "1", "2"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert all(f"Max {what}" in limits for what in ("open files", "processes", "file size"))
    assert [line.split()[3] for line in limits.splitlines() if line.startswith("Max open")] == ["0"]


def test_design_documents_do_not_see_each_other(engine: Engine) -> None:
    assert rows(engine, "function(doc) { globalThis.seen = 1; emit(1) }") == [[1, None]]
    assert rows(engine, "function(doc) { emit(typeof seen) }") == [["undefined", None]]


def test_more_programs_than_are_kept_take_turns(engine: Engine) -> None:
    made = [program(f"function(doc) {{ emit({number}) }}") for number in range(20)]
    for _ in range(2):
        found = [mapped(engine, one, {"_id": "a"})[0][0][0][0] for one in made]
        assert found == list(range(20))


def test_a_worker_that_was_killed_is_replaced_and_nobody_hears_of_it(engine: Engine) -> None:
    made = program("function(doc) { emit(doc._id) }")
    mapped(engine, made, {"_id": "a"})
    before = engine.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert mapped(engine, made, {"_id": "b"}) == [[[["b", None]]]]
    assert engine.pid != before


def test_a_long_request_is_answered_in_slices(engine: Engine) -> None:
    slow = program("function(doc) { for (var i = 0; i < 6e6; i++); emit(1) }")
    calls = [[json.dumps({"_id": str(number)})] for number in range(60)]
    answers = engine.ask(slow, "map", calls, [str(number) for number in range(60)])
    assert 1 <= len(answers) < 60


def test_a_large_answer_ends_a_slice(engine: Engine) -> None:
    large = program("function(doc) { emit('x'.repeat(1500000)) }")
    calls = [[json.dumps({"_id": str(number)})] for number in range(10)]
    assert len(engine.ask(large, "map", calls, [])) == 3


def test_an_idle_worker_ends_and_another_begins_when_it_is_needed() -> None:
    engine = Engine(MEMORY_BYTES_MAX, FUNCTION_MS_MAX, 0.0, SystemClock(), LOG)
    made = program("function(doc) { emit(doc._id) }")
    mapped(engine, made, {"_id": "a"})
    pid = engine.pid
    assert pid is not None
    engine.rest()
    assert engine.pid is None and not Path(f"/proc/{pid}").exists()
    assert mapped(engine, made, {"_id": "b"}) == [[[["b", None]]]]
    engine.close()
    assert engine.pid is None


def test_reduce_and_rereduce(engine: Engine) -> None:
    made = program()
    source = "function(keys, values, rereduce) { return [rereduce, keys && keys[0], sum(values)] }"
    calls = [[source, '[["k","a"],["k","b"]]', "[1,2]"]]
    assert engine.ask(made, "reduce", calls, [""]) == ['[[false,["k","a"],3]]']
    assert engine.ask(made, "rereduce", [[source, "[3,4]"]], [""]) == ["[[true,null,7]]"]
    bad = "function(keys, values) { return values.none.x }"
    assert engine.ask(made, "reduce", [[bad, "[]", "[1]"]], [""]) == ["[null]"]
    assert "the reduce function raised TypeError" in LOG.lines[0]


def test_filters_and_validation_and_updates(engine: Engine) -> None:
    made = program(
        filters={"f": "function(doc, req) { return doc.n > req.query.min && this.limit }"},
        limit=1,
        views={"v": {"map": "function(doc) { if (doc.n > 3) emit(1) }"}},
        validate_doc_update="function(n, o, u, s) { if (n.bad) throw({forbidden: u.name + s.x}) }",
        updates={"u": "function(doc, req) { return [{_id: req.id, n: 1}, 'done'] }"},
    )
    req = '{"query": {"min": 2}}'
    calls = [['["filters","f"]', json.dumps({"n": n}), req] for n in (1, 2, 3)]
    assert engine.ask(made, "filter", calls, ["a", "b", "c"]) == ["false", "false", "true"]
    calls = [['["views","v","map"]', json.dumps({"n": n})] for n in (3, 4)]
    assert engine.ask(made, "filterByView", calls, ["a", "b"]) == ["false", "true"]
    path = '["validate_doc_update"]'
    calls = [[path, f'[{{"bad":{bad}}},null,{{"name":"me"}},{{"x":"!"}}]'] for bad in (0, 1)]
    assert engine.ask(made, "validate", calls, ["a", "b"]) == ["[null]", '[{"forbidden":"me!"}]']
    answers = engine.ask(made, "update", [['["updates","u"]', "null", '{"id":"x"}']], [""])
    assert json.loads(answers[0]) == [{"_id": "x", "n": 1}, {"body": "done"}]
    with pytest.raises(FunctionFailed, match="updates/u in _design/d raised TypeError"):
        broken = program(updates={"u": "function(doc, req) { return doc.x.y }"})
        engine.ask(broken, "update", [['["updates","u"]', '{"_id":"q"}', "{}"]], ["q"])
