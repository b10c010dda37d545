"""A board that lives on another thread's event loop, for tasks of any."""

import asyncio
from collections.abc import Sequence

from divandb.across import across
from divandb.board.base import Access, Batch, EventBoard, TopicInfo


class BoardAcross:
    """``board`` as it is on ``loop``; called there, nothing is in between."""

    def __init__(self, board: EventBoard, loop: asyncio.AbstractEventLoop) -> None:
        self._board = board
        self._loop = loop

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """See ``EventBoard.publish``."""
        return await across(self._loop, self._board.publish(topic, partition, messages))

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """See ``EventBoard.read``."""
        reading = self._board.read(topic, partition, offset, bytes_max=bytes_max, wait_s=wait_s)
        return await across(self._loop, reading)

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard.describe``."""
        return await across(self._loop, self._board.describe(topic))

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """See ``EventBoard.create_topic``."""
        making = self._board.create_topic(topic, partitions, access, durable=durable)
        return await across(self._loop, making)

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard.set_principal``."""
        await across(self._loop, self._board.set_principal(name, secret))

    async def close(self) -> None:
        """See ``EventBoard.close``."""
        await across(self._loop, self._board.close())
