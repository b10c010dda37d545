"""How old a node's view of a slot is."""

from divandb.closings import NONE, Closings, End
from divandb.cluster.progress import WATERMARKS_MAX, Progress, Watermark
from tests.stores import StillClock

SILENT_MS = 10_000


class View:
    """A node that hears of slot m1 alone."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.closings = NONE
        self.progress = Progress({}, {7: "m1", 8: "m1"}, self.clock, closings=lambda: self.closings)

    def hear(self, wrote: dict[int, int]) -> None:
        """One millisecond later, as of now."""
        self.clock.ms += 1
        self.progress.heard([Watermark("m1", wrote, 0.0)], self.clock.monotonic())

    def lag_ms(self) -> float | None:
        lag = self.progress.lag(SILENT_MS)[0]
        return None if lag is None else round(lag)


def test_the_view_is_as_old_as_the_latest_watermark_that_is_contained() -> None:
    view = View()
    for oseq in range(1, 11):
        view.hear({7: oseq})
    assert view.lag_ms() is None
    for oseq in (1, 4, 9, 10):
        view.progress.advance({7: oseq})
        assert view.lag_ms() == 10 - oseq
    view.clock.ms += 5
    assert view.lag_ms() == 5


def test_of_more_watermarks_than_are_kept_the_newest_still_counts() -> None:
    view = View()
    for oseq in range(1, 3 * WATERMARKS_MAX):
        view.hear({7: oseq})
    view.progress.advance({7: 3 * WATERMARKS_MAX})
    assert view.lag_ms() == 0


def test_what_an_owner_has_lost_with_its_disk_is_not_waited_for() -> None:
    view = View()
    view.hear({7: 5})
    view.hear({7: 90})
    view.hear({7: 5, 8: 1})
    view.hear({7: 5, 8: 2})
    view.progress.advance({7: 5, 8: 1})
    assert view.lag_ms() == 1


def test_an_owner_that_writes_nothing_keeps_the_view_young() -> None:
    view = View()
    view.progress.advance({7: 5})
    for _ in range(3):
        view.clock.ms += 100
        view.hear({7: 5})
        assert view.lag_ms() == 0


def test_the_same_watermark_means_more_once_an_end_was_heard_of() -> None:
    """An origin that has ended is not named any more, and this file, which was put back, lacks a
    part of it.
    """
    view = View()
    view.progress.advance({7: 3, 8: 1})
    view.hear({8: 1})
    assert view.lag_ms() == 0
    view.closings = Closings([End(7, 5, (8, 1), 1, is_closed=True)])
    view.hear({8: 1})
    assert view.lag_ms() == 1
    view.progress.advance({7: 5, 8: 1})
    assert view.lag_ms() == 0


def test_what_is_told_of_the_own_slot_follows_what_is_known_of_origins() -> None:
    """Whose an origin is may be heard of later than its writes are."""
    progress = Progress({7: 5, 9: 2}, {7: "m1"}, StillClock(), "m1")
    assert progress.watermarks()[0].wrote == {7: 5}
    progress.slots.update({9: "m1"})
    assert progress.watermarks()[0].wrote == {7: 5, 9: 2}
    progress.advance({7: 6, 9: 2})
    assert progress.watermarks()[0].wrote == {7: 6, 9: 2}
