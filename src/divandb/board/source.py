"""One partition of an Event Board as an applier reads it: every answer is a batch, or another place
to go on.
"""

from divandb.board.base import Batch, Damaged, EventBoard, OffsetAhead, OffsetGone


class PlaceGone(Exception):
    """The board does not have what lies at the offset asked for: only a peer can help. At
    ``resume`` the log can be read, unless it is another log by then.
    """

    def __init__(self, resume: int) -> None:
        super().__init__(f"the board goes on at {resume}")
        self.resume = resume


class BoardSource:
    """A partition of ``board``, which positions know as ``name``."""

    def __init__(
        self,
        board: EventBoard,
        topic: str,
        partition: int,
        name: str,
        bytes_max: int,
        wait_s: float,
    ) -> None:
        """A batch has ``bytes_max`` bytes of messages, or one message; ``wait_s`` is how long a
        read waits for something new, and with it what else the reader has to do.
        """
        self.board = name
        self.topic = topic
        self.partition = partition
        self._board = board
        self._bytes_max = bytes_max
        self._wait_s = wait_s

    async def read(self, offset: int) -> Batch:
        """What lies at ``offset``, and under which identity. Raises ``PlaceGone``, and what else
        boards raise.
        """
        try:
            return await self._board.read(
                self.topic, self.partition, offset, bytes_max=self._bytes_max, wait_s=self._wait_s
            )
        except OffsetGone as gone:
            raise PlaceGone(gone.start) from gone
        except Damaged as damage:
            raise PlaceGone(damage.resume) from damage
        except OffsetAhead as ahead:
            # The log was made again, or lost its end: all that it has may be new.
            info = await self._board.describe(self.topic)
            raise PlaceGone(info.partitions[self.partition].start) from ahead
