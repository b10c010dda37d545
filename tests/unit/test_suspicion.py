"""How sure it is that a node is gone, by its signs of life so far."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.cluster.suspicion import LEVEL, Suspicion

FAILURE_S = 1.0


def after(pauses_s: list[float]) -> tuple[Suspicion, float]:
    """A node whose signs of life came with these pauses, and the moment of the last."""
    suspicion, moment = Suspicion(0.25, FAILURE_S), 100.0
    suspicion.heard(moment)
    for pause_s in pauses_s:
        moment += pause_s
        suspicion.heard(moment)
    return suspicion, moment


def test_nobody_is_suspected_before_anything_was_heard() -> None:
    assert Suspicion(0.25, FAILURE_S).level(1e9) == 0


def test_an_even_beat_that_stops_is_suspicious_within_a_second() -> None:
    suspicion, last = after([0.25] * 20)
    assert suspicion.level(last + 0.3) < 1
    assert suspicion.level(last + 0.6) < LEVEL
    assert suspicion.level(last + 1.0) >= LEVEL


def test_an_uneven_beat_is_given_more_time() -> None:
    suspicion, last = after([0.1, 0.9] * 20)
    assert suspicion.level(last + 1.3) < LEVEL
    assert suspicion.level(last + 3.0) >= LEVEL


def test_a_failure_does_not_count_as_a_pause() -> None:
    """However short it was: who was stopped or cut off is suspected as soon the next time."""
    for failure_s in (FAILURE_S + 0.1, 3.0, 600.0):
        suspicion, last = after([0.25] * 5 + [failure_s] + [0.25] * 5)
        assert suspicion.level(last + 1.0) >= LEVEL


@given(st.lists(st.floats(0.01, 5), max_size=100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_suspicion_only_grows_while_nothing_is_heard(
    pauses_s: list[float], one: float, other: float
) -> None:
    suspicion, last = after(pauses_s)
    early, late = sorted((one, other))
    assert 0 <= suspicion.level(last + early) <= suspicion.level(last + late) < 1000
