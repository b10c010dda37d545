"""Answers made of pieces."""

import asyncio

from starlette.responses import Response, StreamingResponse

from divandb.httpd import pieces
from divandb.httpd.pieces import BATCH_BYTES_MIN, WHOLE_BYTES_MAX, Pieces, batched


def answered(made: Pieces, *, live: bool = False) -> tuple[Response, bytes]:
    async def run() -> tuple[Response, bytes]:
        response = await pieces.answer(made, "text/plain", {"x-mine": "1"}, live=live)
        if not isinstance(response, StreamingResponse):
            return response, bytes(response.body)
        return response, b"".join([bytes(piece) async for piece in response.body_iterator])

    return asyncio.run(run())


async def made_of(*parts: bytes) -> Pieces:
    for part in parts:
        yield part


def test_a_small_answer_is_sent_whole() -> None:
    response, body = answered(made_of(b"a", b"b"))
    assert body == b"ab"
    assert response.headers["content-length"] == "2"
    assert response.headers["x-mine"] == "1"


def test_a_large_answer_is_a_stream() -> None:
    parts = [b"x" * WHOLE_BYTES_MAX, b"y", b"z"]
    response, body = answered(made_of(*parts))
    assert isinstance(response, StreamingResponse)
    assert body == b"".join(parts)


def test_a_live_answer_is_a_stream_from_its_first_piece() -> None:
    response, body = answered(made_of(b"", b"a"), live=True)
    assert isinstance(response, StreamingResponse)
    assert body == b"a"


def test_a_stream_that_is_given_up_lets_its_source_end() -> None:
    ended = []

    async def source() -> Pieces:
        try:
            yield b"a"
            yield b"b"
        finally:
            ended.append(True)

    async def run() -> None:
        response = await pieces.answer(source(), "text/plain", {}, live=True)
        assert isinstance(response, StreamingResponse)
        stream = response.body_iterator
        assert await anext(stream) == b"a"
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert ended == [True]


def test_a_stream_that_is_never_begun_lets_its_source_end() -> None:
    ended = []

    async def source() -> Pieces:
        try:
            yield b"a"
        finally:
            ended.append(True)

    async def run() -> None:
        response = await pieces.answer(source(), "text/plain", {}, live=True)
        del response
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert ended == [True]


def test_small_pieces_are_gathered() -> None:
    parts = [b"x" * 1000] * 100
    gathered = list(batched(iter(parts)))
    assert b"".join(gathered) == b"".join(parts)
    assert all(len(piece) >= BATCH_BYTES_MIN for piece in gathered[:-1])
    assert list(batched(iter([b"", b""]))) == []
