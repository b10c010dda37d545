"""Accept, Accept-Encoding, Content-Type and gzip as CouchDB treats them."""

import gzip
import random
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.errors import BadRequest, TooLarge
from divandb.httpd.negotiate import (
    MultipartKind,
    accepts,
    accepts_gzip,
    is_json_content_type,
    wants_multipart,
)
from divandb.packing import Gunzip, GzipStream, compressible, gzip_bytes


@pytest.mark.parametrize(
    ("header", "media_type", "accepted"),
    [
        (None, "application/json", True),
        ("*/*", "application/json", True),
        ("text/plain, application/*", "application/json", True),
        ("text/plain, */*; q=0.0", "application/json", False),
        ("text/plain; q=0.5, */*; q=0.1", "application/json", True),
        ("text/*; q=0.0, */*", "text/plain", False),
        ("text/plain;q=0, text/*", "text/plain", False),
        ("APPLICATION/JSON ; Q = 0.001", "application/json", True),
        ("application/json;charset=utf-8", "application/json", False),
        ("multipart/related,*/*;", "multipart/related", True),
        ("text/html", "application/json", False),
        ("application/json;q=7", "application/json", True),
        ("application/json;q=oops", "application/json", True),
        ("", "application/json", False),
        (" , ;q=1", "application/json", False),
    ],
)
def test_accept(header: str | None, media_type: str, accepted: bool) -> None:
    assert accepts(header, media_type) is accepted


@pytest.mark.parametrize(
    ("kind", "header", "answer"),
    [
        ("open_revs", None, "multipart/mixed"),
        ("open_revs", "*/*", "multipart/mixed"),
        ("open_revs", "application/json", None),
        ("open_revs", "application/json, multipart/mixed", "multipart/mixed"),
        ("attachments", "*/*", "multipart/related"),
        ("attachments", "multipart/*", "multipart/related"),
        ("attachments", "application/json", None),
        ("attachments", "multipart/mixed", None),
        ("bulk_get", None, None),
        ("bulk_get", "*/*", None),
        ("bulk_get", "application/json, multipart/mixed", None),
        ("bulk_get", "multipart/mixed", "multipart/mixed"),
        ("bulk_get", "multipart/related", "multipart/related"),
        ("bulk_get", "multipart/related, multipart/mixed", "multipart/mixed"),
        ("bulk_get", "multipart/related, */*;q=0.1", None),
        ("bulk_get", "text/html", None),
    ],
)
def test_multipart_or_json(kind: MultipartKind, header: str | None, answer: str | None) -> None:
    assert wants_multipart(header, kind) == answer


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZip, deflate, br", True),
        ("deflate;q=1, gzip;q=0.2", True),
        ("identity", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0, gzip", True),
        ("gzip, gzip;q=0", False),
    ],
)
def test_accept_encoding(header: str | None, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


def test_json_content_type() -> None:
    assert is_json_content_type("application/json")
    assert is_json_content_type(" Application/JSON ; charset=utf-8")
    assert not is_json_content_type("application/json-patch")
    assert not is_json_content_type("text/plain")
    assert not is_json_content_type(None)


@pytest.mark.parametrize(
    ("content_type", "stored_gzipped"),
    [
        ("text/plain", True),
        ("Text/HTML; charset=utf-8", True),
        ("application/json", True),
        (" application/javascript ;x", True),
        ("application/xml", True),
        ("application/jsonx", False),
        ("application/octet-stream", False),
        ("image/png", False),
        ("x-text/plain", False),
        ("", False),
    ],
)
def test_compressible(content_type: str, stored_gzipped: bool) -> None:
    assert compressible(content_type) is stored_gzipped


def test_compressible_types_can_be_set() -> None:
    assert compressible("image/svg+xml", ("image/*",))
    assert not compressible("text/plain", ("image/*",))


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(1, 9))
def test_gzip_does_not_depend_on_chunks(chunks: list[bytes], level: int) -> None:
    data = b"".join(chunks) * 7
    stream = GzipStream(level)
    packed = b"".join([stream.feed(chunk) for chunk in chunks * 7]) + stream.flush()
    assert packed == gzip_bytes(data, level)
    assert gzip.decompress(packed) == data


def test_gzip_does_not_depend_on_chunks_across_windows() -> None:
    rng = random.Random(1)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(1000)]
    data = b"".join(rng.choice(words) for _ in range(60_000))
    stream = GzipStream()
    packed = b""
    position = 0
    while position < len(data):
        size = rng.randint(1, 40_000)
        packed += stream.feed(memoryview(data)[position : position + size])
        position += size
    assert packed + stream.flush() == gzip_bytes(data)


def test_gzip_header_is_fixed() -> None:
    packed = gzip_bytes(b"hello")
    assert packed[:10] == bytes.fromhex("1f8b0800000000000003")
    assert packed == gzip_bytes(b"hello")
    assert gzip.decompress(gzip_bytes(b"")) == b""


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5), st.integers(1, 50))
def test_gunzip_in_any_chunks_and_pieces(data: bytes, cuts: list[int], piece: int) -> None:
    packed = gzip.compress(data) + gzip.compress(data[:100])
    edges = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    stream = Gunzip(4000, piece_bytes_max=piece)
    pieces = [out for start, end in pairwise(edges) for out in stream.feed(packed[start:end])]
    stream.flush()
    assert b"".join(pieces) == data + data[:100]
    assert all(0 < len(out) <= piece for out in pieces)


def test_gunzip_takes_exactly_its_bound() -> None:
    packed = gzip.compress(b"x" * 1000)
    stream = Gunzip(1000)
    assert b"".join(stream.feed(packed)) == b"x" * 1000
    stream.flush()
    with pytest.raises(TooLarge):
        list(Gunzip(999).feed(packed))


def test_gunzip_stops_a_bomb_at_its_bound() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    sizes: list[int] = []
    stream = Gunzip(1_000_000, piece_bytes_max=65_536)
    with pytest.raises(TooLarge):
        sizes.extend(map(len, stream.feed(bomb)))
    assert max(sizes) <= 65_536
    assert sum(sizes) <= 1_000_000


def unpack(packed: bytes) -> bytes:
    stream = Gunzip(1000)
    unpacked = b"".join(stream.feed(packed))
    stream.flush()
    return unpacked


@pytest.mark.parametrize(
    "packed",
    [
        b"{}",
        b"\x1f\x8b\x08junkjunkjunkjunk",
        zlib.compress(b"zlib is not gzip"),
        gzip.compress(b"a", mtime=0)[:-1],
        gzip.compress(b"a", mtime=0)[:5],
        gzip.compress(b"a", mtime=0) + b"trailing",
        gzip.compress(b"a", mtime=0)[:-8] + bytes(8),
        b"",
    ],
)
def test_gunzip_refuses_what_is_not_whole_gzip(packed: bytes) -> None:
    with pytest.raises(BadRequest, match="not properly gzipped"):
        unpack(packed)
