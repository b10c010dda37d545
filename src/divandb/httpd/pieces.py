"""Answers that are made piece by piece: whole when they turn out small, a stream when they do not.

The first pieces are made before the status is sent, so that what is refused there is answered as
an error. A stream makes its next piece only when the last one is on its way.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing

from starlette.responses import Response

from divandb.httpd import respond

WHOLE_BYTES_MAX = 64 * 1024
"""An answer of up to this size is sent in one piece, with its length."""
BATCH_BYTES_MIN = 32 * 1024
"""Small pieces are gathered to this size."""

Pieces = AsyncGenerator[bytes, None]


async def answer(
    made: Pieces, media_type: str, headers: Mapping[str, str], *, live: bool
) -> Response:
    """The answer whose bytes ``made`` yields; a ``live`` one is a stream from its first piece."""
    begun = bytearray()
    async for piece in made:
        begun += piece
        if live or len(begun) > WHOLE_BYTES_MAX:
            return respond.stream(_resumed(bytes(begun), made), media_type, headers)
    return Response(bytes(begun), 200, {"cache-control": "must-revalidate", **headers}, media_type)


async def _resumed(begun: bytes, rest: Pieces) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield begun
        async for piece in rest:
            yield piece


def batched(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of at least ``BATCH_BYTES_MIN``, but for the last; none is empty."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= BATCH_BYTES_MIN:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)
