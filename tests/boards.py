"""A board's partition 0 as a stubborn publisher and a patient reader see it."""

import asyncio

from divandb.board.base import EventBoard, Unreachable

PATIENCE_S = 120.0
RETRY_S = 0.05
READ_BYTES_MAX = 10**6


async def read_all(board: EventBoard, topic: str) -> list[bytes]:
    """All messages up to the end as it is now."""
    found: list[bytes] = []
    offset, end = 0, None
    async with asyncio.timeout(PATIENCE_S):
        while offset != end:
            try:
                batch = await board.read(topic, 0, offset, bytes_max=READ_BYTES_MAX, wait_s=0)
            except Unreachable:
                await asyncio.sleep(RETRY_S)
                continue
            found += batch.messages
            offset, end = batch.next, batch.end
    return found


async def persist(board: EventBoard, topic: str, message: bytes) -> None:
    """Publish as the publisher does: again, until it is there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await board.publish(topic, 0, [message])
                return
            except Unreachable:
                await asyncio.sleep(RETRY_S)


def check_prefixes(found: list[bytes], count: int) -> None:
    """All numbers from 0 are there, repeated or not, and none before the one that it follows."""
    reached = 0
    for message in found:
        assert int(message) <= reached, f"{message!r} without {reached}"
        reached = max(reached, int(message) + 1)
    assert reached == count
