"""What is judged before a master writes, and against what."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from divandb.catalog import Catalog
from divandb.commands import Edit, Graft, WriteDocuments
from divandb.designs import Designs
from divandb.errors import (
    CompilationError,
    Conflict,
    DivanError,
    Forbidden,
    FunctionEnded,
    FunctionFailed,
    Unauthorized,
)
from divandb.hot import HotDocuments
from divandb.judge import Judge, refusal_of
from divandb.replica import Replica
from divandb.views.engine import Program
from tests.stores import Store, edit

VALIDATE = {"validate_doc_update": "function() {}"}


class Bench:
    """A judge over a store; in the place of a worker stands what a test says of new documents."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.store.create("x")
        self.asked: list[list[Any]] = []
        self.says: dict[str, Any] = {}
        catalog = Catalog(self.store.reader, 1000)
        replica = Replica(self.store.reader, catalog, 1, 1, HotDocuments(0))
        self.designs = Designs(self.store.reader)
        engine: Any = self
        self.judge = Judge(self.designs, catalog, replica, engine, self.offload)

    async def offload(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def ask(self, program: Program, function: str, *arguments: Any) -> list[str]:
        """As an engine: only to compile."""
        assert function == "notes"
        if "(((" in program.text:
            raise CompilationError("no function")
        return [""]

    def attempt(
        self, program: Program, function: str, calls: Sequence[list[str]], labels: Sequence[str]
    ) -> tuple[list[str], DivanError | None]:
        """As an engine: two answers at most."""
        answers: list[str] = []
        for _, arguments in calls[:2]:
            given = json.loads(arguments)
            self.asked.append(given)
            said = self.says.get(given[0]["_id"])
            if isinstance(said, DivanError):
                return answers, said
            answers.append(json.dumps([said]))
        return answers, None

    def design(self, name: str = "v", **members: Any) -> None:
        self.store.write("x", edit(f"_design/{name}", None, members))
        self.designs.forget({1})

    def refusals(self, *writes: Edit | Graft, **more: Any) -> dict[int, DivanError]:
        command = WriteDocuments("x", 1, list(writes), user=("ann", ("writer",)), **more)
        if not self.judge.is_asked(command):
            return {}
        return asyncio.run(self.judge.refusals(command))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_without_a_function_nobody_is_asked(bench: Bench) -> None:
    command = WriteDocuments("x", 1, [edit("a", None, {})])
    assert not bench.judge.is_asked(command)
    assert not bench.judge.is_asked(WriteDocuments("none", 1, [edit("a", None, {})]))
    bench.design(**VALIDATE)
    assert bench.judge.is_asked(command)
    bench.design("other", language="query", **VALIDATE)
    assert len(bench.designs.validators(bench.judge._catalog.get("x"))) == 1


def test_a_new_document_is_shown_with_who_writes_it(bench: Bench) -> None:
    bench.design(**VALIDATE)
    assert bench.refusals(edit("a", None, {"n": 1})) == {}
    ((new, old, user, security),) = bench.asked
    assert new == {"_id": "a", "n": 1, "_revisions": {"start": 0, "ids": []}}
    assert old is None
    assert user == {"db": "x", "name": "ann", "roles": ["writer"]}
    assert set(security) == {"members", "admins"}


def test_an_edit_is_judged_against_its_parent(bench: Bench) -> None:
    bench.design(**VALIDATE)
    (rev,) = bench.store.write("x", edit("a", None, {"n": 1}))
    assert bench.refusals(edit("a", rev, {"n": 2}, deleted=True)) == {}
    ((new, old, *_),) = bench.asked
    assert (new["_rev"], new["_deleted"], new["n"]) == (rev, True, 2)
    assert (old["_rev"], old["n"], old["_revisions"]["start"]) == (rev, 1, 1)


def test_an_edit_of_what_is_no_leaf_is_a_conflict_and_not_judged(bench: Bench) -> None:
    bench.design(**VALIDATE)
    refused = bench.refusals(edit("a", "1-" + "0" * 32, {}), edit("b", None, {}))
    assert list(refused) == [0] and isinstance(refused[0], Conflict)
    assert [new["_id"] for new, *_ in bench.asked] == ["b"]


def test_a_repeat_of_what_was_done_is_not_judged_again(bench: Bench) -> None:
    bench.design(**VALIDATE)
    (first,) = bench.store.write("x", edit("a", None, {"n": 1}))
    second = edit("a", first, {"n": 2})
    bench.store.write("x", second)
    assert bench.refusals(second, repeat=True) == {} and bench.asked == []
    refused = bench.refusals(second)
    assert isinstance(refused[0], Conflict)


def test_a_child_whose_parent_is_elsewhere_is_judged_as_a_new_document(bench: Bench) -> None:
    bench.design(**VALIDATE)
    assert bench.refusals(edit("a", "1-" + "0" * 32, {"n": 2}), orphans=True) == {}
    ((new, old, *_),) = bench.asked
    assert (new["_rev"], old) == ("1-" + "0" * 32, None)


def test_what_a_replicator_sends_is_judged_against_its_nearest_ancestor(bench: Bench) -> None:
    bench.design(**VALIDATE)
    (first,) = bench.store.write("x", edit("a", None, {"n": 1}))
    made = edit("a", None, {"n": 3})
    path = ("c" * 32, "b" * 32, first[2:])
    graft = Graft("a", 3, path, False, made.digest, made.body.replace(b'"_rev":"1-', b'"_rev":"3-'))
    assert bench.refusals(graft) == {}
    ((new, old, *_),) = bench.asked
    assert new["_revisions"] == {"start": 3, "ids": list(path)} and old["n"] == 1


def test_each_function_is_asked_until_one_refuses(bench: Bench) -> None:
    bench.design("v", **VALIDATE)
    bench.design("w", **VALIDATE)
    bench.says = {"b": {"forbidden": "no"}, "d": FunctionFailed("raised")}
    refused = bench.refusals(*[edit(name, None, {}) for name in "abcde"])
    assert {place: type(one) for place, one in refused.items()} == {1: Forbidden, 3: FunctionFailed}
    assert [new["_id"] for new, *_ in bench.asked] == list("abcdeace")


def test_a_function_that_was_ended_refuses_the_rest(bench: Bench) -> None:
    bench.design(**VALIDATE)
    bench.says = {"b": FunctionEnded("too long")}
    refused = bench.refusals(*[edit(name, None, {}) for name in "abcd"])
    assert sorted(refused) == [1, 2, 3] and set(refused.values()) == {bench.says["b"]}
    assert [new["_id"] for new, *_ in bench.asked] == ["a", "b"]


def test_design_documents_are_compiled_and_not_judged(bench: Bench) -> None:
    bench.design(**VALIDATE)
    views = {"v": {"map": "((("}}
    refused = bench.refusals(
        edit("_design/a", None, {"views": views}),
        edit("_design/b", None, {"views": {"v": {"map": "f", "reduce": "_none"}}}),
        edit("_design/c", None, {"views": {"v": {"map": "f", "reduce": "_sum"}}}),
        edit("_design/d", None, {"views": views, "language": "erlang"}),
        edit("_design/e", None, {"views": views}, deleted=True),
        edit("_design/f", None, {"views": "nothing"}),
    )
    assert {place: one.error for place, one in refused.items()} == {
        0: "compilation_error", 1: "invalid_design_doc", 5: "invalid_design_doc",
    }  # fmt: skip
    assert bench.asked == []


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        ({"forbidden": "no"}, Forbidden, "no"),
        ({"forbidden": {"a": 1}}, Forbidden, '{"a":1}'),
        ({"unauthorized": "who"}, Unauthorized, "who"),
        ({"other": "why"}, DivanError, "why"),
        ("text", DivanError, "text"),
        ([1], DivanError, "[1]"),
        ({"a": 1, "b": 2}, DivanError, '{"a":1,"b":2}'),
    ],
)
def test_what_is_thrown_becomes_an_error(said: Any, kind: type, reason: str) -> None:
    error = refusal_of(said)
    assert type(error) is kind and error.reason == reason
    assert kind is not DivanError or (error.status, error.error) == (500, "unknown_error")
