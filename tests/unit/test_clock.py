"""Hybrid-logical-clock stamps."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.clock import COUNTER_BITS, HybridClock, SystemClock, SystemRng, stamp_ms
from tests.stores import StillClock


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 2**50))))
def test_stamps_rise_whatever_the_wall_clock_does(steps: list[tuple[int, int]]) -> None:
    clock = StillClock()
    hybrid = HybridClock(clock)
    last = 0
    for step_ms, after in steps:
        clock.ms += step_ms
        stamp = hybrid.stamp(after)
        assert stamp > last
        assert stamp > after
        last = stamp


def test_a_stamp_is_close_to_wall_time() -> None:
    clock = StillClock()
    hybrid = HybridClock(clock)
    hybrid.stamp()
    clock.ms += 1000
    assert stamp_ms(hybrid.stamp()) == clock.ms


def test_a_stamp_exceeds_what_was_seen_of_others_and_what_was_kept() -> None:
    clock = StillClock()
    ahead = (clock.ms + 60_000) << COUNTER_BITS
    hybrid = HybridClock(clock)
    hybrid.seen(ahead)
    assert hybrid.stamp() == ahead + 1
    assert HybridClock(clock, last=ahead).stamp() == ahead + 1
    hybrid.seen(0)
    assert hybrid.stamp() == ahead + 2


def test_the_machines_own_clock_and_chance() -> None:
    clock, rng = SystemClock(), SystemRng()
    assert clock.wall_ms() > 1_600_000_000_000
    assert clock.monotonic() <= clock.monotonic()
    assert len(rng.token(16)) == 16
    assert rng.token(16) != rng.token(16)
    assert 0 <= rng.uniform() < 1
