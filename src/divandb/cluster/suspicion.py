"""Is a node that says nothing slow, or gone? A level of suspicion instead of one missed beat.

The phi accrual detector (Hayashibara et al., 2004): from the pauses between a node's signs of life
so far it computes how unlikely the present one is. A level of 8 means that a pause so long comes
once in a hundred million. Where signs of life come unevenly, it takes longer to suspect.
"""

import math
from collections import deque

PAUSES_MAX = 64
"""Pauses that are remembered."""
SPREAD_S_MIN = 0.1
"""A process on a busy machine is late by so much now and then, however evenly it ran so far."""
LEVEL = 8.0
"""From here on a node is taken for gone."""


class Suspicion:
    """The signs of life of one node; moments are monotonic, in seconds."""

    def __init__(self, pause_s: float, failure_s: float) -> None:
        """``pause_s`` is what is expected between two signs before any was seen. A pause longer
        than ``failure_s`` was a failure, and says nothing of how the node lives.
        """
        self._failure_s = failure_s
        self._pauses: deque[float] = deque([pause_s], maxlen=PAUSES_MAX)
        self._last: float | None = None

    def heard(self, moment: float) -> None:
        """A sign of life."""
        if self._last is not None and 0 < moment - self._last <= self._failure_s:
            self._pauses.append(moment - self._last)
        self._last = max(moment, self._last or moment)

    def level(self, now: float) -> float:
        """How sure it is that the node is gone; 0 before anything was heard of it."""
        if self._last is None:
            return 0.0
        mean_s = sum(self._pauses) / len(self._pauses)
        square = sum((pause - mean_s) ** 2 for pause in self._pauses) / len(self._pauses)
        spread_s = max(math.sqrt(square), SPREAD_S_MIN)
        # The tail of the normal distribution, by the logistic curve that comes close to it.
        y = (now - self._last - mean_s) / spread_s
        exponent = y * (1.5976 + 0.070566 * y * y)
        if exponent > 500:
            return 500 / math.log(10)
        likely = math.exp(-exponent) / (1 + math.exp(-exponent)) if y > 0 else 0.5
        return -math.log10(likely)
