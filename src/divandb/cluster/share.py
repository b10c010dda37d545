"""The applier's share of the machine: a first, simple limit, so that clients come first.

After each batch it rests, so long that it is busy for no more than its share of the time. What
comes meanwhile makes the next batch larger, and cheaper by the write: under load a batch takes
longer, the rest is longer, and so the batches grow. Only when nobody asks and the batches are large
already, as in catching up, it takes all that it can get.
"""

import asyncio
from collections.abc import Callable

LARGE_EVENTS = 128
"""A batch of so many is not made cheaper by waiting."""
REST_S_MAX = 0.05
"""However long a batch took, the rest after it is no longer: replication never stands still."""


class Share:
    """Rests for the applier."""

    def __init__(self, share_max: float, asked: Callable[[], int]) -> None:
        """``asked`` counts requests."""
        self._rests_per_work = max(1 / share_max - 1, 0.0)
        self._asked = asked
        self._seen = 0

    async def pace(self, busy_s: float, events: int) -> None:
        """A batch of so many events took ``busy_s``: rest."""
        asked = self._asked()
        if asked != self._seen or events < LARGE_EVENTS:
            self._seen = asked
            await asyncio.sleep(min(busy_s * self._rests_per_work, REST_S_MAX))
