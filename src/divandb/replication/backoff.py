"""When what failed is tried again. Pure: moments are arguments."""

import msgspec


class Backoff(msgspec.Struct):
    """Twice as long after each failure in a row, up to a bound, shortened by chance by up to half
    so that what failed together does not come back together.
    """

    first_ms: int
    most_ms: int
    failures: int = 0

    def failed(self, chance: float) -> float:
        """How long to wait, in seconds; ``chance`` is in [0, 1)."""
        doublings = min(self.failures, 32)
        self.failures += 1
        wait_ms: int = min(self.first_ms * 2**doublings, self.most_ms)
        wait_s: float = wait_ms * (1 - chance / 2) / 1000
        return wait_s

    def went_well(self) -> None:
        """The next failure is the first again."""
        self.failures = 0
