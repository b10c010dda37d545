import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.cli.rows import ArraySplitter, BadRow, Row, document, rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=8)


class Fixed:
    """Randomness that a test knows."""

    def token(self, size: int) -> bytes:
        return bytes(range(size))

    def uniform(self) -> float:
        return 0.5


def read(text: bytes, row_bytes_max: int = 1000) -> list[tuple[int, bytes | str]]:
    found = rows(io.BytesIO(text), row_bytes_max)
    return [(row.number, row.problem or row.text) for row in found]


def test_lines_are_numbered_as_in_the_file() -> None:
    assert read(b'\n {"a":1}\r\n\n{"b":2}') == [(2, b'{"a":1}'), (4, b'{"b":2}')]


def test_an_empty_file_has_no_rows() -> None:
    assert read(b"") == read(b" \n\n") == read(b"[]") == read(b" [ ]\n") == []


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert read(b"\xef\xbb\xbf{}") == [(1, b"{}")]
    assert read(b"\xef\xbb\xbf[{}]") == [(1, b"{}")]


def test_a_line_that_is_too_large_is_left_out_and_the_next_one_comes() -> None:
    text = b'{"a":"' + b"x" * 2_000_000 + b'"}\n{"b":2}\n'
    assert read(text, row_bytes_max=1_048_576) == [(1, "larger than 1 MiB"), (2, b'{"b":2}')]


def test_an_element_that_is_too_large_is_left_out_and_the_next_one_comes() -> None:
    text = b'[{"a":"' + b"x" * 2_000_000 + b'"},\n{"b":2}\n]'
    assert read(text, row_bytes_max=1_048_576) == [(1, "larger than 1 MiB"), (2, b'{"b":2}')]


def test_an_array_that_breaks_off_gives_what_is_whole_and_a_problem() -> None:
    assert read(b'[{"a":1},{"b"') == [(1, b'{"a":1}'), (2, "the array ends in the middle")]


def test_brackets_and_quotes_inside_strings_cut_nothing() -> None:
    first = rb'{"a":"]},[{\"\\"}'
    assert read(b"[" + first + b',{"b":[1,{"c":2}]}]') == [(1, first), (2, b'{"b":[1,{"c":2}]}')]


@given(OBJECTS, st.sampled_from([None, 2]), st.integers(1, 50))
def test_an_array_is_cut_at_its_commas_however_it_arrives(
    objects: list[object], indent: int | None, size: int
) -> None:
    text = json.dumps(objects, indent=indent, ensure_ascii=False).encode()
    splitter = ArraySplitter(len(text))
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    found = [element for piece in pieces for element in splitter.feed(piece)]
    assert [json.loads(element or b"") for element in found] == objects
    assert splitter.is_done


@given(OBJECTS)
def test_lines_and_an_array_give_the_same_rows(objects: list[object]) -> None:
    lines = "\n".join(json.dumps(one) for one in objects).encode()
    array = json.dumps(objects).encode()
    assert read(lines, 10**6) == read(array, 10**6)


def test_a_document_is_sent_as_it_stands() -> None:
    text = b'{ "_id": "a", "n": 1e400, "big": 123456789012345678901234567890 }'
    made = document(Row(1, text), None, Fixed())
    assert (made.id, made.text, made.has_rev) == ("a", text, False)


def test_a_document_without_an_id_gets_one_so_that_it_can_be_sent_twice() -> None:
    made = document(Row(1, b'{"n":1}'), None, Fixed())
    assert made.id == "000102030405060708090a0b0c0d0e0f"
    assert json.loads(made.text) == {"_id": made.id, "n": 1}


def test_the_id_can_come_from_another_member() -> None:
    made = document(Row(1, b'{"_id":"x","sku":17}'), "sku", Fixed())
    assert json.loads(made.text) == {"_id": "17", "sku": 17}


def test_a_document_can_lose_its_revision() -> None:
    made = document(Row(1, b'{"_id":"a","_rev":"1-x","n":1.50}'), None, Fixed())
    assert made.has_rev
    bare = made.without_rev()
    assert not bare.has_rev
    assert bare.text == b'{"_id":"a","n":1.50}'


@pytest.mark.parametrize(
    ("text", "id_field", "reason"),
    [
        (b"[1]", None, "not a JSON object"),
        (b"nonsense", None, "not a JSON object"),
        (b'{"a":1', None, "not a JSON object"),
        (b"", None, "not a JSON object"),
        (b"[" * 100_000, None, "not a JSON object"),
        (b'{"_id":[1]}', None, "neither a string"),
        (b'{"sku":1.5}', "sku", "neither a string"),
        (b'{"sku":null}', "sku", "neither a string"),
        (b"{}", "sku", "has no member 'sku'"),
    ],
)
def test_a_row_that_is_no_document_says_why(text: bytes, id_field: str | None, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        document(Row(1, text), id_field, Fixed())


def test_a_row_that_could_not_be_read_keeps_its_reason() -> None:
    with pytest.raises(BadRow, match="larger than"):
        document(Row(1, b"", "larger than 64 MiB"), None, Fixed())
