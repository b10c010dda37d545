"""Who is the closest, and when another one is chosen."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.closest import GAIN_S_MIN, GAIN_SHARE_MIN, Candidate, Closest, averaged, is_away

RTTS = st.none() | st.floats(0.0, 0.2)
CANDIDATES = st.lists(
    st.builds(Candidate, st.sampled_from("abcdef"), st.booleans(), RTTS),
    max_size=6,
    unique_by=lambda one: one.name,
)


def test_the_own_zone_comes_first_then_who_is_near_then_who_was_not_measured() -> None:
    found = [
        Candidate("far", False, 0.05),
        Candidate("unknown", False, None),
        Candidate("away", True, 0.0),
        Candidate("near", False, 0.01),
    ]
    assert Closest().order(found) == ["near", "far", "unknown", "away"]


def test_who_names_no_zone_is_as_near_as_anybody() -> None:
    assert is_away("a", "b")
    assert not (is_away("", "b") or is_away("a", "") or is_away("a", "a"))


def test_a_small_difference_moves_nobody_and_a_large_one_does() -> None:
    closest = Closest()

    def first(a_s: float, b_s: float) -> str:
        return closest.order([Candidate("a", False, a_s), Candidate("b", False, b_s)])[0]

    assert first(0.010, 0.012) == "a"
    assert first(0.010, 0.008) == "a"  # less than a quarter
    assert first(0.0012, 0.0004) == "a"  # less than a millisecond
    assert first(0.010, 0.007) == "b"
    assert first(0.006, 0.007) == "b"


def test_who_went_to_the_other_zone_comes_back_to_the_own_one() -> None:
    closest = Closest()
    assert closest.order([Candidate("away", True, 0.001)]) == ["away"]
    found = [Candidate("away", True, 0.001), Candidate("here", False, 0.1)]
    assert closest.order(found) == ["here", "away"]


def test_an_average_follows_what_is_measured() -> None:
    rtt_s = averaged(None, 0.001)
    assert rtt_s == 0.001
    for _ in range(20):
        rtt_s = averaged(rtt_s, 0.031)
    assert 0.030 < rtt_s < 0.031


@given(st.lists(CANDIDATES, max_size=20))
def test_a_move_is_always_worth_it(moments: list[list[Candidate]]) -> None:
    """Everybody is named once; and who was chosen is left only for one that is clearly closer."""
    closest = Closest()
    for found in moments:
        before = closest.chosen
        names = closest.order(found)
        assert sorted(names) == sorted(one.name for one in found)
        by_name = {one.name: one for one in found}
        if not found or before not in by_name or names[0] == before:
            continue
        held, first = by_name[before], by_name[names[0]]
        assert first.is_away <= held.is_away
        if held.is_away == first.is_away and held.rtt_s is not None:
            assert first.rtt_s is not None
            gain_s = held.rtt_s - first.rtt_s
            assert gain_s >= GAIN_S_MIN and gain_s >= held.rtt_s * GAIN_SHARE_MIN


@given(st.lists(st.tuples(st.floats(0.010, 0.0125), st.floats(0.010, 0.0125)), max_size=50))
def test_two_that_are_about_as_far_never_take_turns(moments: list[tuple[float, float]]) -> None:
    closest = Closest()
    chosen = {
        closest.order([Candidate("a", False, a_s), Candidate("b", False, b_s)])[0]
        for a_s, b_s in moments
    }
    assert len(chosen) <= 1
