"""The comfort zone: what a node may spend on other things than clients."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.config import Limits
from divandb.governor import (
    DECREASE,
    GATHER_S_MAX,
    INCREASE,
    LARGE_EVENTS,
    LITTLE,
    LOOK_S,
    REST_S_MAX,
    START_SHARE,
    UPKEEP_SHARE_MAX,
    Governor,
    Look,
    Shortages,
    Work,
)

LIMITS = Limits(background_share_min=0.1)
CALM = Look(10, 1.0, 0.0)
SLOW = Look(10, 50.0, 0.0)
OLD = Look(10, 1.0, LIMITS.lag_max_ms + 1.0)
NOBODY = Look(0, 0.0, 0.0)

shares = st.floats(0, 1)
looks = st.builds(
    Look,
    st.integers(0, 2),
    st.floats(0, 1e4),
    st.none() | st.floats(0, 1e6),
    st.builds(Shortages, shares, shares, shares, shares),
)
worked = st.lists(st.tuples(st.sampled_from(Work), st.floats(0, 2 * LOOK_S)), max_size=4)


def busy(governor: Governor, share: float = 0.5, work: Work = Work.REPLICATION) -> None:
    """It was used so much since the last look."""
    governor.rest_s(work, share * LOOK_S)


@given(st.lists(st.tuples(worked, looks), max_size=40))
def test_the_budget_is_never_zero_and_never_more_than_all(
    turns: list[tuple[list[tuple[Work, float]], Look]],
) -> None:
    governor = Governor(LIMITS)
    for done, look in turns:
        for work, busy_s in done:
            most_s = REST_S_MAX if work <= Work.INDEXES else busy_s / LITTLE
            assert 0 <= governor.rest_s(work, busy_s) <= most_s
        governor.look(look)
        assert LIMITS.background_share_min <= governor.floor <= 1
        assert LIMITS.background_share_min <= governor.share <= 1
        assert all(0 < governor.allowed(work) <= 1 for work in Work)
        assert governor.hurts <= (governor.share > LIMITS.background_share_min)


@given(st.lists(looks, max_size=20))
def test_a_share_that_the_operator_has_fixed_stays(seen: list[Look]) -> None:
    governor = Governor(Limits(background_share=0.3))
    for look in seen:
        governor.look(look)
        assert (governor.share, governor.reason) == (0.3, "fixed by the operator")


@given(st.lists(looks, max_size=20))
def test_with_nobody_asking_it_is_all_of_the_machine(seen: list[Look]) -> None:
    governor = Governor(LIMITS)
    for look in [*seen, NOBODY, NOBODY]:
        governor.look(look)
    assert (governor.share, governor.reason) == (1.0, "nobody asks")
    assert governor.rest_s(Work.REPLICATION, 0.5) == 0
    assert governor.rest_s(Work.PROOFS, 0.01) > 0.1


def test_it_grows_a_little_while_clients_fare_as_usual() -> None:
    governor = Governor(LIMITS)
    for turn in range(1, 5):
        busy(governor)
        governor.look(CALM)
        assert round(governor.share, 6) == round(START_SHARE + turn * INCREASE, 6)
    assert governor.reason == "clients fare as usual"


def test_it_shrinks_at_once_when_clients_wait_longer_than_usual() -> None:
    governor = Governor(LIMITS)
    governor.look(CALM)
    before = governor.share
    busy(governor)
    governor.look(SLOW)
    assert governor.share == before * DECREASE
    assert (governor.is_cut, governor.reason) == (True, "clients wait longer than usual")
    assert governor.usual_ms == 1.0  # who is hurt must not become used to it
    for _ in range(50):
        busy(governor)
        governor.look(SLOW)
    assert governor.share == LIMITS.background_share_min


def test_what_waits_though_nothing_is_done_beside_it_is_usual() -> None:
    governor = Governor(LIMITS)
    governor.look(CALM)
    before = governor.share
    for _ in range(30):
        governor.look(SLOW)
    assert governor.usual_ms is not None
    assert governor.usual_ms > 45
    assert governor.share >= before  # to do less would have helped nobody


def test_it_does_not_grow_where_no_core_is_free() -> None:
    governor = Governor(LIMITS)
    for _ in range(5):
        busy(governor)
        governor.look(Look(10, 1.0, 0.0, Shortages(cpu=1.0)))
    assert governor.share == START_SHARE


def test_memory_and_disk_that_are_short_shrink_it() -> None:
    for shortage, why in (
        (Shortages(memory_free=0.01), "memory is short"),
        (Shortages(memory_pressure=0.9), "memory is short"),
        (Shortages(disk_pressure=0.9), "the disk is behind"),
    ):
        governor = Governor(LIMITS)
        busy(governor)
        governor.look(Look(10, 1.0, 0.0, shortage))
        assert (governor.share, governor.reason) == (START_SHARE * DECREASE, why)


def test_a_view_that_is_too_old_raises_the_floor_and_says_whom_it_hurts() -> None:
    governor = Governor(LIMITS)
    governor.look(CALM)
    for _ in range(100):
        busy(governor)
        governor.look(Look(10, 50.0, LIMITS.lag_max_ms + 1.0))
    assert (governor.share, governor.hurts) == (1.0, True)
    assert "clients are hurt to catch up" in governor.reason
    for _ in range(100):
        busy(governor)
        governor.look(SLOW)
    assert (governor.share, governor.hurts) == (LIMITS.background_share_min, False)


def test_between_the_bounds_the_floor_stays() -> None:
    governor = Governor(LIMITS)
    for _ in range(10):
        governor.look(OLD)
    floor = governor.floor
    governor.look(Look(10, 1.0, LIMITS.lag_max_ms * 0.75))
    governor.look(Look(10, 1.0, None))
    assert governor.floor == floor > LIMITS.background_share_min


def test_what_is_more_urgent_is_paid_first() -> None:
    governor = Governor(Limits(background_share=0.5))
    busy(governor, 0.4)
    governor.look(CALM)
    assert governor.allowed(Work.REPLICATION) == 0.5
    assert round(governor.allowed(Work.INDEXES), 6) == 0.1
    busy(governor, 0.5)
    governor.look(CALM)
    assert 0 < governor.allowed(Work.UPKEEP) < 0.1


def test_each_has_its_own_ceiling() -> None:
    governor = Governor(Limits(background_share=0.9, index_share_max=0.3, verify_share_max=0.05))
    governor.look(CALM)
    assert governor.allowed(Work.COPIES) == 0.9
    assert governor.allowed(Work.INDEXES) == 0.3
    assert governor.allowed(Work.UPKEEP) == UPKEEP_SHARE_MAX
    assert governor.allowed(Work.PROOFS) == 0.05


def test_who_works_for_a_share_of_the_time_rests_for_the_rest() -> None:
    governor = Governor(Limits(background_share=0.25))
    assert round(governor.rest_s(Work.REPLICATION, 0.01), 6) == 0.03
    assert governor.rest_s(Work.REPLICATION, 60) == REST_S_MAX


def test_small_batches_gather_whoever_asks() -> None:
    governor = Governor(LIMITS)
    for _ in range(3):
        governor.look(NOBODY)
    assert governor.applier_rest_s(0.001, LARGE_EVENTS - 1) == 0.004
    assert governor.applier_rest_s(1.0, LARGE_EVENTS - 1) == GATHER_S_MAX
    assert governor.applier_rest_s(1.0, LARGE_EVENTS) == 0


def test_a_small_budget_makes_small_batches() -> None:
    assert Governor(Limits(background_share=0.1)).batch_events() == 64
    assert Governor(Limits(background_share=0.5)).batch_events() == 256


def test_what_it_says() -> None:
    governor = Governor(LIMITS)
    busy(governor, 0.25, Work.INDEXES)
    governor.look(CALM)
    said = governor.status()
    assert said["use"] == {
        "replication": 0, "copies": 0, "indexes": 0.25, "upkeep": 0, "proofs": 0
    }  # fmt: skip
    assert (said["wait_ms"], said["usual_ms"]) == (1.0, 1.0)
    numbers = governor.numbers()
    assert numbers["background_indexes_use"] == 0.25
    assert numbers["background_share"] == round(governor.share, 4)
