"""Documents as JSON: the bytes that are stored and sent, and the hashes that name revisions."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import document
from divandb.errors import BadRequest, DivanError, DocValidation, IllegalDocId
from divandb.revtree import HASH_CHARS_MAX, POS_MAX, Attachment

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
names = texts.filter(lambda name: name[:1] != "_")
members_of = st.dictionaries(names, json_values, max_size=4)
attachments_of = st.lists(
    st.builds(
        Attachment,
        name=names.filter(bool),
        content_type=texts,
        revpos=st.integers(1, 99),
        digest=st.binary(min_size=16, max_size=16),
        length=st.integers(0, 2**40),
        encoding=st.sampled_from(["", "gzip"]),
        encoded_length=st.integers(0, 2**40),
        blob=st.binary(min_size=32, max_size=32),
    ),
    max_size=3,
    unique_by=lambda att: att.name,
)
ATTACHMENT = Attachment("a.txt", "text/plain", 2, bytes(range(16)), 5, "gzip", 25, b"s" * 32)


# Bytes


@given(texts, texts, st.booleans(), members_of, attachments_of)
def test_a_body_is_the_answer_to_a_plain_get(
    doc_id: str, rev: str, deleted: bool, members: dict[str, Any], atts: list[Attachment]
) -> None:
    packed = document.dump_members(members)
    body = document.body_bytes(doc_id, rev, deleted, packed, atts)
    expected: dict[str, Any] = {"_id": doc_id, "_rev": rev}
    if deleted:
        expected["_deleted"] = True
    expected.update(orjson.loads(packed))
    if atts:
        expected["_attachments"] = {att.name: document.stub(att) for att in atts}
    assert orjson.loads(body) == expected
    assert list(orjson.loads(body)) == list(expected)


@given(texts, st.booleans(), members_of, attachments_of)
def test_a_body_comes_back_without_its_stubs(
    doc_id: str, deleted: bool, members: dict[str, Any], atts: list[Attachment]
) -> None:
    packed = document.dump_members(members)
    body = document.body_bytes(doc_id, "1-a", deleted, packed, atts)
    assert document.without_stubs(body, atts) == document.body_bytes(
        doc_id, "1-a", deleted, packed, ()
    )


@given(members_of, attachments_of, st.dictionaries(st.sampled_from(["_conflicts"]), json_values))
def test_members_are_added_at_the_end(
    members: dict[str, Any], atts: list[Attachment], more: dict[str, Any]
) -> None:
    body = document.body_bytes("d", "1-a", False, document.dump_members(members), atts)
    longer = document.with_members(body, more)
    assert orjson.loads(longer) == {**orjson.loads(body), **more}


def test_the_stored_form() -> None:
    assert document.body_bytes("d", "1-a", False, b"{}", ()) == b'{"_id":"d","_rev":"1-a"}'
    assert document.body_bytes("d", "2-b", True, b'{"x":1}', (ATTACHMENT,)) == (
        b'{"_id":"d","_rev":"2-b","_deleted":true,"x":1,"_attachments":{"a.txt":{'
        b'"content_type":"text/plain","revpos":2,"digest":"md5-AAECAwQFBgcICQoLDA0ODw==",'
        b'"length":5,"stub":true}}}'
    )


# Hashes


def test_revisions_keep_their_names() -> None:
    # A change of any of these breaks "the same edit on two masters is one revision" between
    # versions of the database, and `_revs_diff` against data that is stored already.
    empty = document.content_digest(b"{}", False, ())
    assert empty.hex() == "14dc07217b31cdb7c2942197ea3c32cb"
    full = document.content_digest(b'{"x":1}', True, (ATTACHMENT,))
    assert full.hex() == "f4eb1fe0f032ce2299cc30e231d2e2a8"


@pytest.mark.parametrize(
    ("parent", "deleted", "members", "rev_hash"),
    [
        (None, False, {}, "967a00dff5e02add41819138abb3284d"),
        (None, False, {"v": "1"}, "806db366bc1ba3ebef40f4b7c63a53af"),
        (
            "1-806db366bc1ba3ebef40f4b7c63a53af",
            False,
            {"v": "2"},
            "8ef50bd631ee32d350edd37cd66f2e31",
        ),
    ],
)
def test_revisions_have_the_names_that_couchdb_gives_them(
    parent: str | None, deleted: bool, members: dict[str, Any], rev_hash: str
) -> None:
    """Known answers of CouchDB 3."""
    assert document.rev_hash(parent, deleted, members, ()) == rev_hash


def test_a_digest_tells_contents_apart() -> None:
    other = Attachment("b.txt", "text/plain", 2, bytes(range(16)), 5, "", 5, b"s" * 32)
    plain = Attachment("a.txt", "text/plain", 2, bytes(range(16)), 25, "", 25, b"t" * 32)
    moved = Attachment("a.txt", "text/plain", 3, bytes(range(16)), 5, "gzip", 25, b"s" * 32)
    digests = {
        document.content_digest(members, deleted, attachments)
        for members in (b"{}", b'{"x":1}', b'{"x":2}')
        for deleted in (False, True)
        for attachments in ((), (ATTACHMENT,), (moved,), (plain,), (ATTACHMENT, other))
    }
    assert len(digests) == 30
    assert document.content_digest(b"{}", False, (ATTACHMENT, other)) == document.content_digest(
        b"{}", False, (other, ATTACHMENT)
    )


def test_a_revision_hash_tells_parents_apart() -> None:
    parents = (None, "1-a", "1-b", "2-a")
    hashes = {document.rev_hash(parent, False, {}, ()) for parent in parents}
    assert len(hashes) == 4
    assert all(len(found) == 32 and found == found.lower() for found in hashes)


# What clients send


def test_a_sent_document_is_taken_apart() -> None:
    sent = document.parse(
        {
            "_id": "d",
            "_rev": "1-a",
            "_deleted": True,
            "_attachments": {"n": {"stub": True}},
            "_revisions": {"start": 2, "ids": ["b", "a"]},
            "_conflicts": ["1-b"],
            "_local_seq": 7,
            "x": 1,
        }
    )
    assert sent == document.Sent("d", "1-a", True, {"x": 1}, {"n": {"stub": True}}, (2, ("b", "a")))
    assert document.parse({"x": 1}) == document.Sent(None, None, False, {"x": 1}, {}, None)
    assert document.parse({"_rev": None}).rev is None


@pytest.mark.parametrize(
    ("sent", "kind", "reason"),
    [
        ([], BadRequest, "Document must be a JSON object"),
        ({"_foo": 1}, DocValidation, "Bad special document member: _foo"),
        ({"_id": 1}, IllegalDocId, "Document id must be a string"),
        ({"_id": ""}, IllegalDocId, "Document id must not be empty"),
        ({"_id": "_x"}, IllegalDocId, "Only reserved document ids may start with underscore."),
        ({"_id": "_local/"}, IllegalDocId, "Illegal document id `_local/`"),
        ({"_id": "x" * 7169}, IllegalDocId, "Document id is longer"),
        ({"_id": "é" * 3585}, IllegalDocId, "Document id is longer"),
        ({"_rev": 1}, BadRequest, "Invalid rev format"),
        ({"_rev": "1"}, BadRequest, "Invalid rev format"),
        ({"_deleted": 1}, DocValidation, "_deleted must be a boolean"),
        ({"_attachments": []}, DocValidation, "Attachments must be a JSON object"),
        ({"_attachments": {"": {}}}, BadRequest, "Attachment name must not be empty"),
        ({"_attachments": {"_a": {}}}, BadRequest, "prohibited character '_'"),
        ({"_attachments": {"a": 1}}, BadRequest, "must be a JSON object"),
        ({"_revisions": 1}, DocValidation, "_revisions must be a JSON object"),
        ({"_revisions": {}}, DocValidation, "_revisions.start isn't an integer."),
        ({"_revisions": {"start": True, "ids": ["a"]}}, DocValidation, "isn't an integer"),
        ({"_revisions": {"start": 1, "ids": "a"}}, DocValidation, "_revisions.ids isn't a array."),
        ({"_revisions": {"start": 1, "ids": [1]}}, DocValidation, "RevId isn't a string"),
        ({"_revisions": {"start": 1, "ids": [""]}}, DocValidation, "RevId isn't a string"),
        ({"_revisions": {"start": 1, "ids": []}}, DocValidation, "must have ids"),
        ({"_revisions": {"start": -1, "ids": ["a"]}}, DocValidation, "not negative"),
        ({"_revisions": {"start": POS_MAX + 1, "ids": ["a"]}}, DocValidation, "start"),
    ],
)
def test_what_is_refused(sent: object, kind: type[DivanError], reason: str) -> None:
    with pytest.raises(kind) as refused:
        document.parse(sent)
    assert type(refused.value) is kind
    assert reason in refused.value.reason


@given(st.dictionaries(st.sampled_from(
    ["_id", "_rev", "_deleted", "_attachments", "_revisions", "_conflicts", "_x", "a"]
), json_values))  # fmt: skip
def test_any_json_is_taken_or_refused(sent: dict[str, Any]) -> None:
    try:
        document.ancestry_of(document.parse(sent))
    except BadRequest:
        return


def test_ids_that_are_longest() -> None:
    assert document.check_id("é" * 3584) == "é" * 3584
    assert document.check_id("_design/a") == "_design/a"


def test_ancestry_of_a_revision_made_elsewhere() -> None:
    def ancestry(sent: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        return document.ancestry_of(document.parse(sent))

    assert ancestry({"_rev": "3-c"}) == (3, ("c",))
    assert ancestry({"_revisions": {"start": 3, "ids": ["c", "b"]}}) == (3, ("c", "b"))
    assert ancestry({"_rev": "3-c", "_revisions": {"start": 3, "ids": ["c"]}}) == (3, ("c",))
    # As in CouchDB, `_revisions` decides.
    assert ancestry({"_rev": "2-c", "_revisions": {"start": 3, "ids": ["c"]}}) == (3, ("c",))
    with pytest.raises(BadRequest, match="needs `_rev` or `_revisions`"):
        ancestry({})
    longest = {"_revisions": {"start": POS_MAX, "ids": ["x" * HASH_CHARS_MAX]}}
    assert ancestry(longest) == (POS_MAX, ("x" * HASH_CHARS_MAX,))
