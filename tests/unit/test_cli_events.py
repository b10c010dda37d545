"""`divandb events`: what it prints, what it refuses, and whom it lets read."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from divandb import configfile, event, hosts
from divandb.cli import divandb
from divandb.cli.eventlines import as_json, as_line
from divandb.cluster import topics
from divandb.config import Member
from divandb.event import Creation, DocumentState, Event, Payload, RegisterValue
from divandb.follow import Moved, Seen, Unread
from divandb.merge import Document
from divandb.provision import Right
from divandb.revtree import Attachment, Leaf

ORIGIN = -(2**63)
STAMP = 1795449684217 << 16
ATTACHMENT = Attachment("a.txt", "text/plain", 1, b"\0" * 16, 5, "", 5, b"b" * 32)
HOSTILE = "a\x1b[2J\nb"


def seen(payload: Payload, kind: str, database: str = "shop", stamp: int = STAMP) -> Seen:
    made = Event(
        1, "m1", ORIGIN, 7, 6, 7, stamp, kind, database, 1, event.pack(payload)
    )  # fmt: skip
    return Seen(0, 3, made, payload)


def a_document(*leaves: tuple[Leaf, bytes], doc_id: str = "order-1") -> Seen:
    state = Document(tuple(leaf for leaf, _ in leaves), {ORIGIN: 7})
    return seen(DocumentState(doc_id, state, tuple(body for _, body in leaves)), event.DOCUMENT)


def leaf(pos: int = 1, deleted: bool = False, rev_hash: str = "abc") -> Leaf:
    return Leaf(pos, (rev_hash,), deleted, b"d" * 16, (ATTACHMENT,), ((ORIGIN, 7),))


def test_a_document_has_all_of_its_event_in_json() -> None:
    found = json.loads(as_json(a_document((leaf(), b'{"_id":"order-1","_rev":"1-abc","n":1.50}'))))
    assert found == {
        "partition": 0, "offset": 3, "slot": "m1", "origin": str(ORIGIN), "oseq": 7, "after": 6,
        "mark": 7, "stamp": str(STAMP), "time": "2026-11-23T16:01:24.217Z", "kind": "document",
        "database": "shop", "generation": 1, "id": "order-1", "winner": "1-abc",
        "leaves": [
            {
                "rev": "1-abc", "ancestry": ["abc"], "deleted": False, "digest": b"d".hex() * 16,
                "attachments": [
                    {
                        "name": "a.txt", "content_type": "text/plain", "revpos": 1,
                        "digest": "md5-AAAAAAAAAAAAAAAAAAAAAA==", "length": 5, "encoding": "",
                        "encoded_length": 5, "blob": b"b".hex() * 32,
                    }
                ],
                "dots": [[str(ORIGIN), 7]],
                "body": {"_id": "order-1", "_rev": "1-abc", "n": 1.5},
            }
        ],
        "context": {str(ORIGIN): 7},
    }  # fmt: skip


def test_a_body_is_shown_as_it_is_unless_it_would_end_the_line() -> None:
    assert b'"body":{"n":1.50}' in as_json(a_document((leaf(), b'{"n":1.50}')))
    for odd in (b'{"n":\n1}', b'{"n"', b"\xff"):
        line = as_json(a_document((leaf(), odd)))
        assert b"\n" not in line
        assert json.loads(line)["leaves"][0]["body"] == odd.decode(errors="replace")


def test_the_winner_is_the_one_that_clients_see() -> None:
    both = a_document((leaf(2, rev_hash="b"), b"{}"), (leaf(3, True, "c"), b"{}"))
    assert json.loads(as_json(both))["winner"] == "2-b"
    assert as_line(both).endswith("order-1  2-b  2 leaves")
    gone = a_document((leaf(3, True, "c"), b"{}"))
    assert as_line(gone).endswith("order-1  3-c  deleted")
    assert json.loads(as_json(a_document()))["winner"] is None
    assert as_line(a_document()).endswith("order-1  purged")


def test_other_kinds_are_shown_in_both_forms() -> None:
    value = RegisterValue("local", "_local/c", b'{"a":1}', STAMP, ORIGIN, 7, {ORIGIN: 6})
    one = seen(value, event.REGISTER)
    found = json.loads(as_json(one))
    assert (found["register"], found["key"], found["value"]) == ("local", "_local/c", '{"a":1}')
    assert found["set"] == [str(STAMP), str(ORIGIN), 7] and found["seen"] == {str(ORIGIN): 6}
    assert as_line(one) == "0:3  2026-11-23T16:01:24.217Z  m1#7  register  shop  local  _local/c"
    gone = seen(RegisterValue("setting", "a/b", None, 1, 1, 1, {}), event.REGISTER, "")
    assert json.loads(as_json(gone))["value"] is None
    assert as_line(gone).endswith("m1#7  register  setting  a/b  removed")
    made = seen(Creation('{"q":1}', 5), event.CREATED)
    assert json.loads(as_json(made))["options"] == {"q": 1}
    assert as_line(seen(None, event.DROPPED)).endswith("m1#7  dropped  shop")


def test_what_is_no_event_is_shown_in_its_place() -> None:
    unread, moved = Unread(1, 2, 30, "event version 2"), Moved(1, 2, 9, "What is retained …")
    assert json.loads(as_json(unread)) == {
        "partition": 1, "offset": 2, "unreadable": "event version 2", "bytes": 30,
    }  # fmt: skip
    assert json.loads(as_json(moved)) == {
        "partition": 1, "offset": 2, "resumes": 9, "why": "What is retained …",
    }  # fmt: skip
    assert as_line(unread) == "1:2  unreadable, 30 bytes: event version 2"
    assert as_line(moved) == "1:2  goes on at 9: What is retained …"


def test_no_name_reaches_the_terminal_as_a_command() -> None:
    for line in (
        as_line(a_document((leaf(), b"{}"), doc_id=HOSTILE)),
        as_line(Unread(0, 0, 1, HOSTILE)),
    ):
        assert line.isprintable() and r"a\x1b[2J\nb" in line
    assert b"\n" not in as_json(a_document((leaf(), b"{}"), doc_id=HOSTILE))


@pytest.mark.parametrize(
    ("stamp", "year"), [(0, "1970-01-01T00:00:00.000Z"), (event.STAMP_MAX, "4199-11-24T01:22")]
)
def test_any_stamp_can_be_shown(stamp: int, year: str) -> None:
    one = seen(None, event.DROPPED, stamp=stamp)
    assert json.loads(as_json(one))["time"].startswith(year)
    assert year in as_line(one)


# The commands


def run(*arguments: str) -> Result:
    return CliRunner().invoke(divandb, ["events", *arguments], env={"DIVANDB_BOARD_URL": None})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slot", "x1"], "no slot"),
        (["--slot", "m1", "--partition", "0"], "say the same"),
        (["--replicas", "m1", "--partition", "0"], "one partition"),
        (["--from", "-1"], "must be START, END or an offset"),
        (["--from", str(2**63)], "must be START, END or an offset"),
        (["--from", "5"], "give --slot or --partition"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    result = run("tail", *arguments)
    assert result.exit_code == 2 and words in result.output


def test_nothing_is_followed_where_nothing_is(tmp_path: Path) -> None:
    result = run("tail", "--data", str(tmp_path))
    assert result.exit_code == 1 and "cannot read" in result.output
    (tmp_path / "secret").write_text("ab" * 32)
    result = run("tail", "--data", str(tmp_path))
    assert result.exit_code == 1 and "nothing runs in" in result.output
    result = run("tail", "--data", str(tmp_path), "--board", "kafka://127.0.0.1:1")
    assert result.exit_code == 1 and "make a reader with" in result.output


@pytest.mark.parametrize("options", [[], ["--board", "kafka://k1:9092"]])
def test_a_reader_is_added_to_a_file_and_gets_its_own(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "files"
    made = CliRunner().invoke(
        divandb,
        ["up", "--print-config", "--hosts", "h1,h2", "--out", str(out), *options],
        env={
            "DIVANDB_ADMIN": None, "DIVANDB_BOARD_URL": None,
            "DIVANDB_BOARD_ADMIN_SECRET": "an admin's secret",
        },
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    path = out / "board.toml"
    before = configfile.read_boards(path, {})
    printed = CliRunner().invoke(divandb, ["events", "reader", "audit", "--config", str(path)])
    assert printed.exit_code == 0, printed.output
    assert ("board init" if options else "SIGHUP") in printed.stderr
    after = configfile.read_boards(path, {})
    (tmp_path / "audit.toml").write_text(printed.stdout)
    reader = configfile.read_reader(tmp_path / "audit.toml", {})
    assert after.readers == {"audit": reader.access.secret} and len(reader.access.secret) == 64
    assert (after.members, after.cluster) == (before.members, reader.cluster)
    assert reader.access.principal == "audit"
    assert path.stat().st_mode & 0o777 == 0o600
    again = run("reader", "audit", "--config", str(path))
    assert again.exit_code == 1 and "name of a node" in again.output
    by_hand = run("reader", "audit", "--config", str(path), "--remove")
    assert by_hand.exit_code == 2 and "by hand" in by_hand.output


def test_a_reader_of_boards_with_tls_trusts_their_authority(tmp_path: Path) -> None:
    out = tmp_path / "files"
    arguments = ["up", "--print-config", "--hosts", "h1", "--out", str(out), "--tls", "/tls"]
    assert CliRunner().invoke(divandb, arguments, env={"DIVANDB_ADMIN": None}).exit_code == 0
    printed = CliRunner().invoke(
        divandb, ["events", "reader", "audit", "--config", str(out / "board.toml")]
    )
    (tmp_path / "audit.toml").write_text(printed.stdout)
    reader = configfile.read_reader(tmp_path / "audit.toml", {})
    assert reader.ca == hosts.tls_in(Path("/tls")).ca
    assert reader.access.url == "https://h1:6984"


def test_a_reader_may_read_the_masters_board_and_nothing_else() -> None:
    members = [Member("m1", "master", "m1", ""), Member("m1-r1", "replica", "m1", "")]
    layout = topics.layout("c", members, ["audit"])
    rights = {topic: access.get("audit") for topic, (_, access) in layout.items()}
    assert rights == {
        "divandb.c.masters": frozenset({Right.READ}),
        "divandb.c.replicas.m1": None,
        "divandb.c.claims": None,
    }
