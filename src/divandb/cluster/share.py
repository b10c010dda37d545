"""The applier's share of the machine: a first, simple limit, so that clients come first.

While clients ask, the applier rests after each batch, so long that it is busy for no more than its
share of the time; while nobody asks it may use all of it.
"""

import asyncio
from collections.abc import Callable

REST_S_MAX = 0.05
"""However long a batch took, the rest after it is no longer: replication never stands still."""


class Share:
    """Rests for the applier."""

    def __init__(self, share_max: float, asked: Callable[[], int]) -> None:
        """``asked`` counts requests."""
        self._rests_per_work = max(1 / share_max - 1, 0.0)
        self._asked = asked
        self._seen = 0

    async def pace(self, busy_s: float, _: int) -> None:
        """A batch took ``busy_s``: rest, if clients have asked meanwhile."""
        asked = self._asked()
        if asked != self._seen:
            self._seen = asked
            await asyncio.sleep(min(busy_s * self._rests_per_work, REST_S_MAX))
