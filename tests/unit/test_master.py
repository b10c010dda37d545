"""What a master does with writes that look alike and are not, and with a commit that stands."""

from pathlib import Path

import apsw
import pytest

from divandb.attachments import pack
from divandb.commands import Graft, WriteDocuments
from divandb.errors import Conflict, PreconditionFailed
from divandb.store import checkpoints, documents
from divandb.store.ledger import Kind, Ledger
from tests.stores import Store, edit


def test_an_edit_whose_revision_stands_there_with_another_content(tmp_path: Path) -> None:
    """The name of the next revision can be known beforehand, and taken by ``new_edits=false``."""
    for digest in (bytes(16), b"\xff" * 16):
        folder = tmp_path / digest.hex()
        folder.mkdir()
        store = Store(folder)
        store.create("db")
        (first,) = store.write("db", edit("d", None, {"v": 1}))
        following = edit("d", first, {"v": 2})
        body = b'{"_id":"d","_rev":"2-%b","v":"other"}' % following.rev_hash.encode()
        store.write("db", Graft("d", 2, (following.rev_hash,), False, digest, body))
        (rev,) = store.write("db", following)
        assert rev == f"2-{following.rev_hash}"
        num = store.ledger.register["db"].num
        state = documents.read_state(store.reader, num, "d")
        assert {following.body, body} == set(state.bodies)
        store.close()


def test_a_losing_revision_that_is_made_again_and_wins_leaves_one_body(tmp_path: Path) -> None:
    """A deletion that has forgotten its parent loses against it, and is then made once more."""
    store = Store(tmp_path, revs_limit=1)
    store.create("db")
    birth = edit("d", None, {"v": 1})
    (first,) = store.write("db", birth)
    deletion = edit("d", first, {}, deleted=True)
    (gone,) = store.write("db", deletion)
    store.write("db", Graft("d", 1, (birth.rev_hash,), False, birth.digest, birth.body))
    assert store.count("body", "leaf = 1") == 1
    assert store.write("db", deletion) == [gone]
    assert store.count("body", "leaf = 1") == 0
    store.close()


def test_an_attachment_may_be_on_its_way_here(tmp_path: Path) -> None:
    """Its bytes may come after its document: whoever keeps it is not refused for that."""
    store = Store(tmp_path)
    store.create("db")
    att = pack(b"bytes", "application/x-data").attachment("a", "application/x-data", 1)
    (refused,) = store.write("db", edit("d", None, {}, attachments=(att,)))
    assert isinstance(refused, PreconditionFailed)
    (first,) = store.write(
        "db", edit("d", None, {}, attachments=(att,), blobs=((att.blob, b"bytes"),))
    )
    store.do(lambda ledger: ledger.connection.execute("DELETE FROM blob"))
    (second,) = store.write("db", edit("d", first, {"v": 2}, attachments=(att,)))
    assert second.startswith("2-")
    assert store.ledger.unmet_blobs == 1
    store.close()


def test_a_commit_stands_though_the_disk_refuses_what_comes_after(tmp_path: Path) -> None:
    """Copying the log is no part of the commit: nothing of it may be undone or done twice."""
    store = Store(tmp_path)
    store.create("db")

    class Refusing:
        def wal_checkpoint(self, mode: int) -> None:
            raise apsw.FullError("no room")

    store.do(lambda ledger: ledger.after_commit.append(
        lambda: checkpoints._copy_rest(Refusing())  # type: ignore[arg-type]
    ))  # fmt: skip
    command = WriteDocuments("db", 1, [edit("d", None, {})])
    (rev,) = store.do(command)
    assert rev.startswith("1-")
    store.close()


@pytest.mark.parametrize("parent", ['1-a"b', "1-a\r\nb", "1-é"])
def test_an_unknown_parent_has_a_name_that_a_revision_can_have(tmp_path: Path, parent: str) -> None:
    """Other nodes would not take the event of a child with such an ancestor."""
    store = Store(tmp_path)
    store.create("db")
    command = WriteDocuments("db", 1, [edit("d", parent, {})], orphans=True)
    (refused,) = store.do(command)
    assert isinstance(refused, Conflict)
    good = edit("d", "1-a", {})
    (rev,) = store.do(WriteDocuments("db", 1, [good], orphans=True))
    assert rev == f"2-{good.rev_hash}"
    store.close()


def test_two_origins_of_one_transaction_are_both_contained_after_a_restart(tmp_path: Path) -> None:
    """The slot changes hands between two writes that share a commit."""
    store = Store(tmp_path)
    store.create("x")

    def step(ledger: Ledger) -> None:
        first = ledger.next_dot(Kind.REGISTER, 0, "setting/a")
        ledger.end_origin()
        second = ledger.next_dot(Kind.REGISTER, 0, "setting/b")
        assert first[0] != second[0]

    store.do(step)
    before = dict(store.ledger.vector)
    store.close()
    store.open()
    assert store.ledger.vector == before
    assert len(before) == 2
    store.close()
