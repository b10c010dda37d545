"""Write Events as bytes: what is opened may be applied without a second look."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from divandb import document, entry, event
from divandb.errors import DivanError
from divandb.event import (
    CHUNK_BYTES,
    Chunk,
    Creation,
    DocumentState,
    Event,
    Large,
    Payload,
    RegisterValue,
    UnknownVersion,
    Unreadable,
)
from divandb.merge import Document
from divandb.revtree import POS_MAX, Attachment, Leaf

ORIGIN = -(2**63)
SHA = b"s" * 32
SOUND: dict[str, Any] = {
    "version": 1, "slot": "m1", "origin": ORIGIN, "oseq": 2, "after": 1, "mark": 2,
    "stamp": 5, "kind": event.DOCUMENT, "database": "a", "generation": 1, "payload": b"",
}  # fmt: skip
LOCAL = b'{"_id":"_local/c","_rev":"0-3","last_seq":4}'


def envelope(**changed: Any) -> bytes:
    return msgspec.msgpack.encode(list({**SOUND, **changed}.values()))


def opened(payload: Payload, kind: str, **changed: Any) -> Payload:
    """What an event with this payload is opened as."""
    data = envelope(kind=kind, payload=event.pack(payload), **changed)
    return event.open_payload(event.decode(data))


def leaf_of(
    doc_id: str = "d", pos: int = 1, path: tuple[str, ...] = ("a",), deleted: bool = False,
    dots: tuple[tuple[int, int], ...] = ((ORIGIN, 2),), attachments: tuple[Attachment, ...] = (),
) -> tuple[Leaf, bytes]:  # fmt: skip
    leaf = Leaf(pos, path, deleted, b"x" * 16, attachments, dots)
    return leaf, document.body_bytes(doc_id, leaf.rev, deleted, b'{"v":1}', attachments)


def state(
    doc_id: str = "d", body: bytes | None = None, context: dict[int, int] | None = None,
    **changed: Any,
) -> DocumentState:  # fmt: skip
    leaf, made = leaf_of(doc_id, **changed)
    found = Document((leaf,), {ORIGIN: 2} if context is None else context)
    return DocumentState(doc_id, found, (made if body is None else body,))


# The envelope


def test_an_event_is_read_as_it_was_written() -> None:
    one = Event(1, "m1", ORIGIN, 2, 1, 2, 5, event.DOCUMENT, "a", 1, event.pack(state()))
    assert event.decode(event.encode(one)) == one
    assert event.open_payload(one) == state()


@pytest.mark.parametrize("data", [envelope(version=2), b"\x92\x02", b"\x9c\x02" + b"\xc0" * 11])
def test_another_version_is_known_by_its_first_number(data: bytes) -> None:
    with pytest.raises(UnknownVersion, match="event version 2, this node reads 1"):
        event.decode(data)


def test_another_kind_is_another_version() -> None:
    with pytest.raises(UnknownVersion, match="event kind 'later'"):
        event.open_payload(event.decode(envelope(kind="later")))


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": 2**63}, {"oseq": -1}, {"oseq": 2**63}, {"after": -1}, {"mark": 2**63},
        {"after": 3}, {"stamp": -1}, {"stamp": 2**62 + 1}, {"generation": -1},
        {"generation": 2**53 + 1}, {"generation": 0}, {"slot": "m1\r\nset-cookie: a"},
        {"slot": "m;1"}, {"slot": "m" * 65}, {"database": "A"}, {"database": "a\n"},
        {"database": "../a"}, {"database": "_other"}, {"database": "a" * 239}, {"database": 'a"'},
        {"payload": "text"}, {"slot": None},
    ],
)  # fmt: skip
def test_an_envelope_that_does_not_fit_is_not_read(changed: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="damaged event"):
        event.decode(envelope(**changed))


def test_text_that_is_no_utf8_is_damage() -> None:
    """It must become a hole, and not stop whoever reads it."""
    with pytest.raises(Unreadable, match="damaged event"):
        event.decode(envelope().replace(b"m1", b"m\xff"))
    payload = b"\x93\xa1\xff\x92\x90\x80\x90"
    with pytest.raises(Unreadable, match="damaged document event"):
        event.open_payload(event.decode(envelope(payload=payload)))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x9b", b"{}", envelope()[:-1], envelope() + b"x"])
def test_torn_bytes_are_no_event(data: bytes) -> None:
    with pytest.raises(Unreadable, match="damaged event"):
        event.decode(data)


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        event.open_payload(event.decode(data))


# Names: what clients may use, and nothing else


NAMES = st.text(st.sampled_from('abz09_$()+/-A."\n '), min_size=1, max_size=6)


@given(NAMES | st.sampled_from(sorted(entry.SYSTEM_NAMES)))
@example("a" * entry.NAME_CHARS_MAX)
@example("a" * (entry.NAME_CHARS_MAX + 1))
@example("a\n")
def test_databases_are_called_as_clients_may_call_them(name: str) -> None:
    try:
        entry.check_name(name)
    except DivanError:
        with pytest.raises(Unreadable):
            event.decode(envelope(database=name))
    else:
        assert event.decode(envelope(database=name)).database == name


@given(st.lists(st.text(max_size=3), max_size=3).map(tuple))
@example(("a" * 256,))
@example(('"',))
@example(("a b",))
@example(("a\n",))
@example(("!~#\\",))
@example(("é",))
def test_revisions_are_named_as_clients_may_name_them(path: tuple[str, ...]) -> None:
    # What a client may send as one path: no hash of its own has a line's end in it.
    allowed = entry._REV_HASHES.fullmatch("\n".join(path)) is not None
    assert event.are_hashes(path) == (allowed and not any("\n" in one for one in path))


def test_a_revision_has_a_bounded_name() -> None:
    assert not event.are_hashes(("a" * 257,))


@pytest.mark.parametrize("doc_id", ["d", "é\x00\n", "_design/x", "a" * 7168, '"\\', "\u2028"])
def test_ids_that_clients_may_use(doc_id: str) -> None:
    assert opened(state(doc_id), event.DOCUMENT) == state(doc_id)


@pytest.mark.parametrize("doc_id", ["", "_other", "_design/", "_local/c", "a" * 7169])
def test_ids_that_clients_may_not_use(doc_id: str) -> None:
    with pytest.raises(Unreadable, match="damaged document event"):
        opened(state(doc_id), event.DOCUMENT)


# Documents


ATTACHMENT = Attachment("a", "text/plain", 1, b"m" * 16, 3, "gzip", 23, SHA)


@pytest.mark.parametrize(
    "good",
    [
        state(deleted=True),
        state(pos=0),
        state(pos=POS_MAX + 1),
        state(pos=3, path=("c", "b", "a")),
        state(pos=1, path=("b", "a")),
        state(path=('\\<>&',)),
        state(attachments=(ATTACHMENT,)),
        state(dots=((ORIGIN, 1), (7, 4)), context={ORIGIN: 2, 7: 9}),
        DocumentState("d", Document((), {ORIGIN: 2}), ()),
        DocumentState("d", Document((), {}), ()),
    ],
)  # fmt: skip
def test_documents_as_masters_make_them(good: DocumentState) -> None:
    assert opened(good, event.DOCUMENT) == good


@pytest.mark.parametrize(
    "bad",
    [
        state(pos=-1),
        state(pos=POS_MAX + 2),
        DocumentState("d", Document((Leaf(1, (), False, b"", (), ()),), {1: 1}), (b"",)),
        state(pos=1, path=("c", "b", "a")),
        state(path=("a", "")),
        state(dots=()),
        state(dots=((ORIGIN, 3),)),
        state(dots=((ORIGIN, 0),)),
        state(dots=((7, 1),)),
        state(context={}),
        state(context={ORIGIN: 2, 2**63: 1}),
        state(context={ORIGIN: 2, 7: 2**63}),
        state(context={ORIGIN: 2, 7: 0}),
        state(body=b""),
        state(body=b"null"),
        state(body=b'{"_id":"d","_rev":"1-a"'),
        state(body=b'{"_id":"e","_rev":"1-a"}'),
        state(body=b'{"_id":"d","_rev":"2-a"}'),
        state(body=b'{"_id":"d","_rev":"1-a","_deleted":true}'),
        state(body=b'{"_id":"d","_rev":"1-a"}', deleted=True),
        DocumentState("d", state().document, ()),
        *(
            state(attachments=(msgspec.structs.replace(ATTACHMENT, **changed),))
            for changed in (
                {"name": ""}, {"name": "_a"}, {"content_type": "a\r\nb: c"}, {"digest": b"m"},
                {"blob": b"s"}, {"encoding": "br"}, {"length": -1}, {"revpos": 2**63},
            )
        ),
    ],
)  # fmt: skip
def test_documents_whose_parts_do_not_fit(bad: DocumentState) -> None:
    with pytest.raises(Unreadable, match="damaged document event"):
        opened(bad, event.DOCUMENT)


@pytest.mark.parametrize("kind", [event.DOCUMENT, event.CREATED, event.DROPPED])
def test_what_is_about_a_database_names_it(kind: str) -> None:
    payloads: dict[str, Payload] = {
        event.DOCUMENT: state(), event.CREATED: Creation("{}", 1), event.DROPPED: None,
    }  # fmt: skip
    assert opened(payloads[kind], kind) == payloads[kind]
    with pytest.raises(Unreadable):
        opened(payloads[kind], kind, database="", generation=0)


# Registers, creations, chunks


def register(kind: str, key: str, value: bytes | None, **changed: Any) -> RegisterValue:
    values = {"stamp": 1, "origin": ORIGIN, "oseq": 2, "seen": {ORIGIN: 1}, **changed}
    return RegisterValue(kind, key, value, **values)


@pytest.mark.parametrize(
    "good",
    [
        register("security", "", b'{"admins":{"names":["a"],"roles":[]}}'),
        register("security", "", None),
        register("option", "revs_limit", b"1000"),
        register("local", "_local/c", LOCAL),
        register("local", "_local/c", None),
        register("setting", "cors/origins", "é".encode()),
    ],
)
def test_registers_as_masters_make_them(good: RegisterValue) -> None:
    changed = {"database": "", "generation": 0} if good.kind == "setting" else {}
    assert opened(good, event.REGISTER, **changed) == good


@pytest.mark.parametrize(
    "bad",
    [
        register("security", "", b"[]"),
        register("security", "", b"{"),
        register("security", "", b'{"admins":{"names":1}}'),
        register("security", "other", b"{}"),
        register("option", "revs_limit", b"many"),
        register("option", "revs_limit", b""),
        register("local", "c", LOCAL),
        register("local", "_local/d", LOCAL),
        register("local", "_local/c", b"checkpoint"),
        register("setting", "cors/origins", b"x"),
        register("later", "", b""),
        register("security", "", b"{}", stamp=2**62 + 1),
        register("security", "", b"{}", origin=2**63),
        register("security", "", b"{}", oseq=-1),
        register("security", "", b"{}", seen={7: -1}),
    ],
)
def test_registers_that_would_not_be_understood(bad: RegisterValue) -> None:
    with pytest.raises(Unreadable, match="damaged register event"):
        opened(bad, event.REGISTER)


@pytest.mark.parametrize("value", [b"\xff", b"x"])
def test_settings_are_text_and_of_no_database(value: bytes) -> None:
    with pytest.raises(Unreadable):
        opened(
            register("setting", "cors/origins", value), event.REGISTER,
            database="" if value == b"\xff" else "a",
        )  # fmt: skip


@pytest.mark.parametrize(
    "bad", [Creation("", 1), Creation("[]", 1), Creation("{}", -1), Creation("{}", 2**46 + 1)]
)
def test_creations_have_an_object_for_options(bad: Creation) -> None:
    with pytest.raises(Unreadable, match="damaged created event"):
        opened(bad, event.CREATED)


@pytest.mark.parametrize(
    ("index", "length", "size", "good"),
    [
        (0, 0, 0, True), (0, 3, 3, True), (0, CHUNK_BYTES, CHUNK_BYTES, True),
        (1, CHUNK_BYTES + 1, 1, True), (0, CHUNK_BYTES + 1, CHUNK_BYTES, True),
        (0, 3, 2, False), (0, 3, 4, False), (1, 3, 0, False), (0, CHUNK_BYTES + 1, 5, False),
        (1, CHUNK_BYTES, 0, False), (-1, 3, 3, False), (0, -1, 0, False),
        (2**24, (2**24 + 1) * CHUNK_BYTES, CHUNK_BYTES, False),
    ],
)  # fmt: skip
def test_chunks_have_the_length_that_their_place_says(
    index: int, length: int, size: int, good: bool
) -> None:
    chunk = Chunk(SHA, index, length, b"x" * size)
    if good:
        assert opened(chunk, event.BLOB, database="", generation=0) == chunk
    else:
        with pytest.raises(Unreadable, match="damaged blob event"):
            opened(chunk, event.BLOB, database="", generation=0)


@pytest.mark.parametrize(
    ("payload", "kind"), [(Chunk(b"s", 0, 1, b"x"), event.BLOB), (Large(b"s"), event.LARGE)]
)
def test_blobs_are_named_by_their_sum(payload: Payload, kind: str) -> None:
    with pytest.raises(Unreadable, match=f"damaged {kind} event"):
        opened(payload, kind)
