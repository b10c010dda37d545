"""Multipart bodies: parsed from any chunks, written to CouchDB's framing."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from divandb.errors import BadRequest, TooLarge
from divandb.httpd.multipart import (
    AttPart,
    End,
    Framing,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    attachment_disposition,
    boundary_of,
    bulk_get_close,
    bulk_get_document,
    bulk_get_error,
    byteranges,
    filename_of,
    mixed_close,
    mixed_document,
    mixed_missing,
    mixed_open,
    parse_content_type,
    related,
)

Part = tuple[dict[str, str], bytes]


def parse(chunks: Iterable[bytes], boundary: bytes, **bounds: int) -> list[Part]:
    """The whole parts of a body; checks the order of events on the way."""
    parser = MultipartParser(boundary, **bounds)
    parts: list[Part] = []
    expected: tuple[type, ...] = (PartBegin, End)
    for event in (event for chunk in chunks for event in parser.feed(chunk)):
        assert isinstance(event, expected)
        match event:
            case PartBegin(headers):
                parts.append((headers, b""))
                expected = (PartData, PartEnd)
            case PartData(data):
                assert len(data) > 0
                parts[-1] = (parts[-1][0], parts[-1][1] + data)
            case PartEnd():
                expected = (PartBegin, End)
            case End():
                expected = ()
    parser.close()
    assert expected == ()
    return parts


def cut(body: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(body)) for place in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def singly(body: bytes) -> list[bytes]:
    return [body[index : index + 1] for index in range(len(body))]


def feed_all(parser: MultipartParser, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        parser.feed(chunk)


def filled(framing: Framing, bodies: Sequence[bytes]) -> bytes:
    """The bytes that go over the wire; checks the length that was announced."""
    between = [piece for pair in zip(framing.heads, bodies, strict=True) for piece in pair]
    wire = b"".join(between) + framing.tail
    assert len(wire) == framing.length
    return wire


# --- header values


@pytest.mark.parametrize(
    ("value", "kind", "params"),
    [
        ("Multipart/Related", "multipart/related", {}),
        ("multipart/form-data; boundary=AaB03x", "multipart/form-data", {"boundary": "AaB03x"}),
        ('a/b;Boundary="x;y z"', "a/b", {"boundary": "x;y z"}),
        (r'form-data; name="a\"b\\c"', "form-data", {"name": 'a"b\\c'}),
        ("a/b ; x = 1 ; ; y ; =z ; w=2", "a/b", {"x": "1", "w": "2"}),
        ("a/b; x=1; X=2", "a/b", {"x": "1"}),
        ('a/b; x="open', "a/b", {"x": "open"}),
        ('a/b; x=""; y="', "a/b", {"x": "", "y": ""}),
        ("", "", {}),
    ],
)
def test_parse_content_type(value: str, kind: str, params: dict[str, str]) -> None:
    assert parse_content_type(value) == (kind, params)


def test_boundary_quoted_or_not() -> None:
    assert boundary_of("multipart/related; boundary=abc") == b"abc"
    assert boundary_of('multipart/mixed;BOUNDARY="a b:c"') == b"a b:c"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/related",
        "multipart/related; boundary=",
        'multipart/related; boundary=""',
        "application/json; boundary=abc",
        'multipart/related; boundary="a\r\nb"',
        'multipart/related; boundary="ä"',
        "multipart/related; boundary=" + "x" * 201,
    ],
)
def test_without_a_boundary_it_is_a_bad_request(content_type: str) -> None:
    with pytest.raises(BadRequest):
        boundary_of(content_type)


def test_file_names_are_quoted() -> None:
    assert attachment_disposition("foo.txt") == 'attachment; filename="foo.txt"'
    assert attachment_disposition("naïve ☃.png") == 'attachment; filename="naïve ☃.png"'
    assert attachment_disposition('a"b\\c;d') == r'attachment; filename="a\"b\\c;d"'
    assert (
        attachment_disposition("a\r\nX: y")
        == "attachment; filename=\"a%0D%0AX: y\"; filename*=UTF-8''a%0D%0AX%3A%20y"
    )
    assert filename_of("attachment; filename*=utf-8'en'%E2%98%83; filename=x") == "☃"
    assert filename_of("attachment; filename*=latin-1''x; filename=y") == "y"
    assert filename_of("attachment") is None


@given(st.text())
def test_any_file_name_comes_back(name: str) -> None:
    header = attachment_disposition(name)
    assert not any(char < " " or char == "\x7f" for char in header)
    assert filename_of(header) == name


@given(st.text(alphabet=";=\"\\ \r\n\tab'*"))
def test_any_header_value_is_parsed(value: str) -> None:
    kind, params = parse_content_type(value)
    assert isinstance(kind, str)
    assert all(name for name in params)


# --- parser


def test_a_body_as_clients_send_it() -> None:
    body = (
        b"--abc123\r\ncontent-type: application/json\r\n\r\n{}"
        b"\r\n--abc123\r\n\r\nthis is 21 chars long"
        b"\r\n--abc123\r\nX-Two: a\r\nx-two: b\r\n\r\n"
        b"\r\n--abc123--epilogue\r\n--abc123\r\n"
    )
    for chunks in ([body], singly(body)):
        assert parse(chunks, b"abc123") == [
            ({"content-type": "application/json"}, b"{}"),
            ({}, b"this is 21 chars long"),
            ({"x-two": "b"}, b""),
        ]


def test_preamble_padding_bare_newlines_and_folded_headers() -> None:
    body = (
        b"read this with a newer program\r\n--b \t\r\nA: 1\r\n  and 2\r\n\r\nx"
        b"\r\n--b\nB:3\n\ny\n--b\r\n--b\t--"
    )
    with pytest.raises(BadRequest):
        parse([body], b"b")
    assert parse([body[:-3] + b"--"], b"b") == [({"a": "1 and 2"}, b"x"), ({"b": "3"}, b"y\n--b")]


def test_no_parts_at_all() -> None:
    assert parse([b"--b--"], b"b") == []


def test_data_is_passed_on_as_it_comes() -> None:
    parser = MultipartParser(b"boundary")
    parser.feed(b"--boundary\r\n\r\n")
    fed = given_out = 0
    for chunk in (
        b"x" * 1000,
        b"\r\n--bound",
        b"\r\n--bounda",
        b"\r",
        b"\r",
        b"y",
        b"\n--boundary",
    ):
        fed += len(chunk)
        given_out += sum(
            len(event.data) for event in parser.feed(chunk) if isinstance(event, PartData)
        )
        assert fed - given_out < len(b"\r\n--boundary")
    assert given_out == fed


def test_data_is_not_copied() -> None:
    parser = MultipartParser(b"b")
    parser.feed(b"--b\r\n\r\n")
    chunk = b"x" * 1000
    [event] = parser.feed(chunk)
    assert isinstance(event, PartData)
    assert event.data.obj is chunk


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary here",
        b"--b",
        b"--b-",
        b"--b\r\n",
        b"--b\r\nA: 1\r\n",
        b"--b\r\n\r\ndata",
        b"--b\r\n\r\ndata\r\n--b",
        b"--b\r\n\r\ndata\r\n--b\r\n",
        b"--b\r\n\r\ndata\r\n--b-",
    ],
)
def test_a_truncated_body_is_a_bad_request(body: bytes) -> None:
    parser = MultipartParser(b"b")
    parser.feed(body)
    with pytest.raises(BadRequest, match="closing boundary"):
        parser.close()


@pytest.mark.parametrize(
    "body",
    [
        b"--bx\r\n\r\ndata\r\n--b--",
        b"--b-\r\n\r\ndata\r\n--b--",
        b"--b" + b" " * 256,
        b"--b\r\nno colon\r\n\r\n\r\n--b--",
        b"--b\r\n: no name\r\n\r\n\r\n--b--",
        b"--b\r\nbad name: x\r\n\r\n\r\n--b--",
        b"--b\r\nA: x\ry\r\n\r\n\r\n--b--",
        b"--b\r\nA: x\x00y\r\n\r\n\r\n--b--",
        b"--b\r\nA: \xff\r\n\r\n\r\n--b--",
    ],
)
def test_bad_delimiter_lines_and_headers_are_refused(body: bytes) -> None:
    for chunks in ([body], singly(body)):
        parser = MultipartParser(b"b")
        with pytest.raises(BadRequest):
            feed_all(parser, chunks)


def test_headers_are_bounded() -> None:
    fits = b"--b\r\nA: " + b"x" * 90 + b"\r\n\r\n\r\n--b--"
    assert len(parse([fits], b"b", header_bytes_max=100)) == 1
    too_large = b"--b\r\nA: " + b"x" * 100
    for chunks in ([too_large], [too_large + b"\r\n\r\n"], singly(too_large)):
        parser = MultipartParser(b"b", header_bytes_max=100)
        with pytest.raises(TooLarge):
            feed_all(parser, chunks)


def test_parts_are_bounded() -> None:
    part = b"\r\n--b\r\n\r\nx"
    assert len(parse([part * 3 + b"\r\n--b--"], b"b", parts_max=3)) == 3
    with pytest.raises(TooLarge):
        parse([part * 4 + b"\r\n--b--"], b"b", parts_max=3)


def test_nesting_is_bounded() -> None:
    inner = MultipartParser(b"outer").nested('multipart/related; boundary="inner"')
    assert [type(event) for event in inner.feed(b"--inner--")] == [End]
    with pytest.raises(BadRequest, match="too deeply"):
        inner.nested("multipart/mixed; boundary=x")
    with pytest.raises(BadRequest):
        MultipartParser(b"outer").nested("text/plain")


BOUNDARY = b"--ab"
NEAR_MISSES = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"a", b"b", b"\r\n--", b"\r\n----a", b"\x00"])
).map(b"".join)
BODIES = (st.binary(max_size=40) | NEAR_MISSES).filter(
    lambda body: b"\r\n--" + BOUNDARY not in body
)
HEADERS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs")), max_size=10),
    max_size=3,
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


@given(
    parts=st.lists(st.tuples(HEADERS, BODIES), max_size=4),
    preamble=NEAR_MISSES.filter(lambda text: b"--" + BOUNDARY not in text),
    epilogue=st.binary(max_size=20),
    newline=st.sampled_from([b"\r\n", b"\n", b" \t\r\n"]),
    cuts=CUTS,
)
def test_any_chunks_give_the_same_parts(
    parts: list[Part], preamble: bytes, epilogue: bytes, newline: bytes, cuts: list[int]
) -> None:
    body = preamble
    for headers, data in parts:
        body += b"\r\n--" + BOUNDARY + newline
        body += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
        body += b"\r\n" + data
    body += b"\r\n--" + BOUNDARY + b"--" + epilogue
    for chunks in ([body], cut(body, cuts), singly(body)):
        assert parse(chunks, BOUNDARY) == parts


@given(st.lists(st.sampled_from([b"--b", b"\r\n", b"\n", b"\r", b"-", b"--", b"A: x", b" "])), CUTS)
@example([b"--b", b"\r\n", b"--b", b"--b", b"--b", b"\r\n", b"\r\n"], [])
def test_any_bytes_in_any_chunks_end_the_same_way(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)

    def outcome(chunks: list[bytes]) -> list[Part] | str:
        try:
            return parse(chunks, b"b", header_bytes_max=12, parts_max=3)
        except (BadRequest, TooLarge) as refused:
            return refused.error

    assert outcome([body]) == outcome(cut(body, cuts)) == outcome(singly(body))


# --- writers

DOC = b'{"_id":"doc"}'
TEXT = AttPart("foo.txt", "text/plain", 5, "gzip")
BLOB = AttPart("bar", "application/test", 3)


def test_a_document_with_attachments_is_framed_as_couchdb_does() -> None:
    framing = related(DOC, [TEXT, BLOB], "B")
    assert framing.content_type == 'multipart/related; boundary="B"'
    assert filled(framing, [b"12345", b"abc"]) == (
        b"--B\r\nContent-Type: application/json\r\n\r\n"
        b'{"_id":"doc"}\r\n--B'
        b'\r\nContent-Disposition: attachment; filename="foo.txt"'
        b"\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\n"
        b"12345\r\n--B"
        b'\r\nContent-Disposition: attachment; filename="bar"'
        b"\r\nContent-Type: application/test\r\nContent-Length: 3\r\n\r\n"
        b"abc\r\n--B--"
    )


def test_a_document_without_attachments_is_plain_json() -> None:
    assert related(DOC, [], "B") == Framing("application/json", (), DOC, len(DOC))


def test_open_revs_are_framed_as_couchdb_does() -> None:
    plain = mixed_document(related(DOC, [], "I"), "O")
    nested = mixed_document(related(DOC, [BLOB], "I"), "O")
    wire = mixed_open("O") + filled(plain, []) + filled(nested, [b"abc"])
    wire += mixed_missing(b'{"missing":"1-x"}', "O") + mixed_close()
    assert wire == (
        b"--O\r\nContent-Type: application/json\r\n\r\n"
        b'{"_id":"doc"}\r\n--O'
        b'\r\nContent-Type: multipart/related; boundary="I"\r\n\r\n'
        b'--I\r\nContent-Type: application/json\r\n\r\n{"_id":"doc"}\r\n--I'
        b'\r\nContent-Disposition: attachment; filename="bar"'
        b"\r\nContent-Type: application/test\r\nContent-Length: 3\r\n\r\nabc\r\n--I--"
        b"\r\n--O"
        b'\r\nContent-Type: application/json; error="true"\r\n\r\n{"missing":"1-x"}\r\n--O--'
    )
    assert [data for _, data in parse([mixed_open("O") + mixed_close()], b"O")] == []


def test_bulk_get_is_framed_as_couchdb_does() -> None:
    plain = bulk_get_document(related(DOC, [], "I"), "--O", "doc", "1-x")
    nested = bulk_get_document(related(DOC, [BLOB], "I"), "--O", "doc", "1-x")
    wire = filled(plain, []) + filled(nested, [b"abc"])
    wire += bulk_get_error(b'{"error":"not_found"}', "--O") + bulk_get_close("--O")
    assert wire.startswith(b"\r\n----O\r\nContent-Type: application/json\r\n\r\n" + DOC)
    assert wire.endswith(b'{"error":"not_found"}\r\n----O--\r\n')
    first, second, third = parse([wire], b"--O")
    assert first == ({"content-type": "application/json"}, DOC)
    assert second[0] == {
        "x-doc-id": "doc",
        "x-rev-id": "1-x",
        "content-type": 'multipart/related; boundary="I"',
    }
    assert [data for _, data in parse([second[1]], b"I")] == [DOC, b"abc"]
    assert third == ({"content-type": 'application/json; error="true"'}, b'{"error":"not_found"}')


def test_ranges_are_framed_as_couchdb_does() -> None:
    framing = byteranges("image/png", [(0, 1), (4, 6)], 9, "B")
    assert framing.content_type == 'multipart/byteranges; boundary="B"'
    assert filled(framing, [b"ab", b"efg"]) == (
        b"--B\r\nContent-Type: image/png\r\nContent-Range: bytes 0-1/9\r\n\r\nab"
        b"\r\n--B\r\nContent-Type: image/png\r\nContent-Range: bytes 4-6/9\r\n\r\nefg\r\n--B--"
    )


def test_names_types_and_ids_cannot_add_headers() -> None:
    evil = AttPart("a\r\n\r\nx", "text/plain\r\nX-Evil: 1\r\n\r\n", 0)
    inner = related(DOC, [evil], "I")
    wire = filled(bulk_get_document(inner, "O", "id\r\nX-Evil: 1", "1-x"), [b""])
    [(outer_headers, data)] = parse([wire + bulk_get_close("O")], b"O")
    [_, (headers, body)] = parse([data], b"I")
    assert outer_headers.keys() == {"x-doc-id", "x-rev-id", "content-type"}
    assert headers.keys() == {"content-disposition", "content-type", "content-length"}
    assert body == b""


def test_broken_unicode_is_still_written() -> None:
    framing = related(DOC, [AttPart("\ud800\n", "\udfff", 0)], "B")
    assert b'filename="?%0A"' in filled(framing, [b""])


ATTACHMENTS = st.tuples(st.text(), st.text(), BODIES, st.sampled_from([None, "gzip"]))


@given(st.lists(st.lists(ATTACHMENTS, max_size=3), max_size=3), CUTS)
def test_what_is_written_is_parsed_back(
    documents: list[list[tuple[str, str, bytes, Literal["gzip"] | None]]], cuts: list[int]
) -> None:
    outer, inner = "outer", BOUNDARY.decode()
    wire = mixed_open(outer)
    for document in documents:
        parts = [AttPart(name, kind, len(data), coding) for name, kind, data, coding in document]
        framing = mixed_document(related(DOC, parts, inner), outer)
        wire += filled(framing, [data for _, _, data, _ in document])
    wire += mixed_close()
    revisions = parse(cut(wire, cuts), outer.encode())
    assert len(revisions) == len(documents)
    for (headers, data), document in zip(revisions, documents, strict=True):
        if not document:
            assert (headers, data) == ({"content-type": "application/json"}, DOC)
            continue
        (_, json), *atts = parse([data], boundary_of(headers["content-type"]))
        assert json == DOC
        for (att_headers, body), (name, _, sent, coding) in zip(atts, document, strict=True):
            assert filename_of(att_headers["content-disposition"]) == name
            assert body == sent
            assert att_headers["content-length"] == str(len(sent))
            assert att_headers.get("content-encoding") == coding
