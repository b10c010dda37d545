"""Rows that are not what was written, and how that shows without any other node."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divandb import document, merge
from divandb.attachments import pack
from divandb.merge import Document
from divandb.store import digests, documents, soundness
from tests.stores import Store, edit
from tests.unit.test_digests import graft

NAME = "x"


def filled(folder: Path) -> Store:
    """A document of each kind."""
    store = Store(folder)
    store.create(NAME)
    att = pack(b"bytes", "text/plain").attachment("a.txt", "text/plain", 1)
    blobs = ((att.blob, b"bytes"),)
    store.write(
        NAME, edit("plain", None, {"v": 1}), edit("empty", None, {}),
        edit("stub", None, {"v": 1}, attachments=(att,), blobs=blobs),
        edit("only stub", None, {}, attachments=(att,), blobs=blobs),
        edit("two", None, {"v": 1}), graft("two", 2, ("x", "y"), 3), edit("gone", None, {}),
    )  # fmt: skip
    rev = store.rows("SELECT rev FROM doc WHERE id = 'gone'")[0][0]
    store.write(NAME, edit("gone", rev, {}, deleted=True))
    return store


IDS = ["plain", "empty", "stub", "only stub", "two", "gone"]


def fault(store: Store, doc_id: str) -> str | None:
    return soundness.examined(store.reader, 1, doc_id)[1]


def test_what_was_written_is_sound(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert [fault(store, doc_id) for doc_id in [*IDS, "nobody"]] == [None] * 7
    assert soundness.examined(store.reader, 1, "nobody")[0].place == 0
    for doc_id in IDS:
        assert soundness.fault_of_state(documents.read_state(store.reader, 1, doc_id)) is None
    store.close()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("UPDATE doc SET tree = x'00'", soundness.UNREADABLE),
        ("UPDATE doc SET tree = x'92c080'", soundness.UNREADABLE),
        ("UPDATE doc SET tree = (SELECT tree FROM doc WHERE id = 'plain')", soundness.MISFIT_ROW),
        ("UPDATE doc SET flags = 2", soundness.MISFIT_ROW),
        ("UPDATE doc SET rev = '9-a'", soundness.MISFIT_ROW),
        ("DELETE FROM body WHERE leaf = 1", soundness.NO_BODY),
        ("UPDATE body SET body = x'7b7d'", soundness.WRONG_BODY),
        ("UPDATE doc SET body = x'7b7d'", soundness.WRONG_BODY),
    ],
)
def test_what_is_not_shows(tmp_path: Path, sql: str, expected: str) -> None:
    store = filled(tmp_path)
    where = " WHERE id = 'two'" if "WHERE leaf" not in sql else ""
    store.connection.execute(sql + where)
    assert fault(store, "two") == expected
    assert fault(store, "plain") is None
    store.close()


def test_a_tree_that_does_not_fit_itself(tmp_path: Path) -> None:
    store = filled(tmp_path)
    found = documents.read_row(store.reader, 1, "plain").document
    for wrong in (
        Document(found.leaves, {}),
        Document((msgspec.structs.replace(found.leaves[0], dots=()),), found.context),
        Document((msgspec.structs.replace(found.leaves[0], pos=-1),), found.context),
    ):
        packed = msgspec.msgpack.encode(wrong)
        store.connection.execute("UPDATE doc SET tree = ? WHERE id = 'plain'", (packed,))
        assert fault(store, "plain") == soundness.MISFIT_TREE
    empty = Document((msgspec.structs.replace(found.leaves[0], ancestry=()),), found.context)
    packed = msgspec.msgpack.encode(empty)
    store.connection.execute("UPDATE doc SET tree = ? WHERE id = 'plain'", (packed,))
    assert fault(store, "plain") == soundness.UNREADABLE
    store.close()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = filled(tmp_path_factory.mktemp("rows"))
    found = store.rows("SELECT place, id, flags, rev, body, tree FROM doc")
    store.close()
    return {columns[1]: columns for columns in found}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([one for one in IDS if one != "two"]), st.data())
def test_a_bit_that_flips_shows_or_changes_nothing_that_counts(
    rows: dict[str, Any], doc_id: str, data: st.DataObject
) -> None:
    """Of the context, of dots and of old ancestry not all does; no client sees any of these."""
    columns = list(rows[doc_id])
    at = data.draw(st.sampled_from([2, 3, 4, 5]))
    before, _ = soundness.row_of(columns)
    held = columns[at]
    raw = bytearray(held.encode() if at == 3 else held if at > 3 else held.to_bytes(8, "big"))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = bytes(raw)
    columns[at] = (
        changed.decode(errors="replace") if at == 3
        else changed if at > 3 else int.from_bytes(changed, "big", signed=True)
    )  # fmt: skip
    row, found = soundness.row_of(columns)
    found = found or soundness.fault_of_bodies(None, 1, row)  # type: ignore[arg-type]
    if found is None:
        same = digests.of_document(doc_id, before.document.leaves)
        assert at == 5
        assert digests.of_document(doc_id, row.document.leaves) == same


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 9), max_size=3),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_a_bodys_members_are_those_that_it_was_made_of(
    members: dict[str, int], deleted: bool, attached: bool
) -> None:
    packed = document.dump_members(members)
    att = pack(b"bytes", "text/plain").attachment("a.txt", "text/plain", 1)
    held = (att,) if attached else ()
    body = document.body_bytes("d", "1-a", deleted, packed, held)
    assert document.members_in(body, "d", "1-a", deleted, held) == packed
    assert document.members_in(body, "e", "1-a", deleted, held) is None
    assert document.members_in(body, "d", "1-b", deleted, held) is None
    assert document.members_in(body[:-1], "d", "1-a", deleted, held) is None
    if not attached:
        assert document.members_in(body, "d", "1-a", deleted, (att,)) is None


def test_a_state_that_came_damaged_is_seen(tmp_path: Path) -> None:
    store = filled(tmp_path)
    state = documents.read_state(store.reader, 1, "two")
    wrong = msgspec.structs.replace(state, bodies=(state.bodies[0], b"{}"))
    assert soundness.fault_of_state(wrong) == soundness.WRONG_BODY
    assert merge.reconciled(state.document, state.document) == state.document
    store.close()
