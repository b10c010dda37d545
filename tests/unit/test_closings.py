"""What vectors mean that leave finished origins out."""

from hypothesis import given, settings
from hypothesis import strategies as st

from divandb.closings import NONE, Closings, End
from divandb.vector import contains, covers

ORIGINS = st.integers(1, 6)
NUMBERS = st.integers(1, 4)
ENDS = st.lists(
    st.builds(
        lambda origin, upto, by, k, stamp, closed: End(origin, upto, (by, k), stamp, closed),
        ORIGINS, NUMBERS, ORIGINS, NUMBERS, st.integers(0, 9), st.booleans(),
    ).filter(lambda end: end.origin != end.by[0]),
    max_size=7,
)  # fmt: skip
VECTORS = st.dictionaries(ORIGINS, st.integers(0, 5))


def known_to(vector: dict[int, int], ends: list[End]) -> list[End]:
    """What a node must have heard of that contains this."""
    return [end for end in ends if contains(vector, end.by)]


def positive(vector: dict[int, int]) -> dict[int, int]:
    return {origin: n for origin, n in vector.items() if n}


@given(VECTORS, ENDS, st.data())
@settings(max_examples=600)
def test_nobody_takes_from_a_vector_more_than_is_in_it(
    vector: dict[int, int], ends: list[End], data: st.DataObject
) -> None:
    """Whatever each of the two has heard of, and whoever has ended whom."""
    more = [end for end in ends if not contains(vector, end.by)]
    here = known_to(vector, ends) + more[: data.draw(st.integers(0, len(more)))]
    told = Closings(here).compact(vector)
    there = [end for end in ends if data.draw(st.booleans())]
    assert covers(vector, Closings(there).expand(told))
    # Who has heard of the same ends, or of more, takes all of it.
    assert positive(Closings(here).expand(told)) == positive(vector)
    assert covers(Closings(ends).expand(told), vector)


@given(VECTORS, ENDS, VECTORS)
@settings(max_examples=600)
def test_fewer_needs_are_met_where_all_are(
    vector: dict[int, int], ends: list[End], needs: dict[int, int]
) -> None:
    """By a node that has heard of what it contains; and where they are not met, so it is seen."""
    closings = Closings(known_to(vector, ends))
    giver = Closings(ends)
    fewer = giver.fewer(needs)
    assert len(fewer) <= len(needs)
    if closings.is_met(vector, fewer):
        assert covers(vector, needs)


def test_a_needed_write_of_a_closed_origin_is_needed_all_the_same() -> None:
    """Where a file was put back that has heard of the end again, and lacks what ended."""
    closings = Closings([End(1, 5, (2, 3), 10, True)])
    token = closings.fewer({1: 4})
    assert token == {2: 3}
    assert closings.is_met({1: 5, 2: 3}, token)
    assert not closings.is_met({1: 3, 2: 3}, token)
    assert not closings.are_met_by({1: 3, 2: 3})


def chain(count: int, *, closed: bool = True) -> Closings:
    """Each origin is ended by the next one."""
    return Closings(
        End(origin, 10, (origin + 1, 1), stamp=origin, is_closed=closed)
        for origin in range(1, count)
    )


def test_a_slot_that_was_started_a_hundred_times_has_one_entry() -> None:
    closings = chain(100)
    whole = {**dict.fromkeys(range(1, 100), 10), 100: 7}
    assert closings.compact(whole) == {100: 7}
    assert closings.expand({100: 7}) == whole
    assert closings.fewer({50: 3, 100: 2}) == {100: 2}
    assert closings.expand({100: 0}) == {100: 0}


def test_what_has_ended_and_is_not_closed_stays() -> None:
    """Not all members have heard of it: they would take it for missing."""
    whole = {1: 10, 2: 1}
    assert chain(2, closed=False).compact(whole) == whole
    assert chain(2, closed=False).of(1, 10) and not chain(2, closed=False).closed
    assert chain(2).closed == 1
    assert chain(2).is_closed(1, 10) and not chain(2).is_closed(1, 11)


def test_who_lacks_a_part_of_what_has_ended_says_so() -> None:
    closings = chain(3)
    assert closings.compact({3: 5}) == {3: 5, 2: 0}
    assert closings.compact({1: 4, 2: 10, 3: 5}) == {1: 4, 3: 5}
    assert closings.compact({1: 12, 2: 10, 3: 5}) == {1: 12, 3: 5}


def test_two_owners_that_have_ended_each_other_are_not_both_left_out() -> None:
    ends = [End(1, 5, (2, 6), 10, True), End(2, 6, (1, 5), 11, True)]
    told = Closings(ends).compact({1: 5, 2: 6})
    assert told
    assert Closings(ends).expand(told) == {1: 5, 2: 6}
    assert Closings([*ends, End(1, 5, (3, 1), 12, True), End(2, 6, (3, 2), 13, True)]).compact(
        {1: 5, 2: 6, 3: 2}
    ) == {3: 2}


def test_without_ends_vectors_are_what_they_are() -> None:
    assert not NONE
    assert NONE.compact({1: 2}) == NONE.expand({1: 2}) == NONE.fewer({1: 2}) == {1: 2}
