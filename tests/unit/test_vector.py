"""Vectors: a lattice under ``join``."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.vector import advanced, contains, covers, join, short_of

vectors = st.dictionaries(st.integers(-3, 3), st.integers(1, 9), max_size=4)
dots = st.tuples(st.integers(-3, 3), st.integers(1, 9))


@given(vectors, vectors, vectors)
def test_join_is_commutative_associative_and_idempotent(
    a: dict[int, int], b: dict[int, int], c: dict[int, int]
) -> None:
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c)) == join(a, b, c)
    assert join(a, a) == join(a) == a
    assert join() == {}


@given(vectors, vectors, vectors)
def test_join_is_the_least_that_covers_both(
    a: dict[int, int], b: dict[int, int], c: dict[int, int]
) -> None:
    joined = join(a, b)
    assert covers(joined, a) and covers(joined, b)
    if covers(c, a) and covers(c, b):
        assert covers(c, joined)


@given(vectors, dots)
def test_a_vector_contains_a_dot_when_it_covers_it(a: dict[int, int], dot: tuple[int, int]) -> None:
    assert contains(a, dot) == covers(a, {dot[0]: dot[1]})
    assert covers(a, {})


@given(vectors, st.lists(dots))
def test_advanced_raises_to_the_dots_and_leaves_its_argument(
    a: dict[int, int], new: list[tuple[int, int]]
) -> None:
    before = dict(a)
    assert advanced(a, new) == join(a, *({origin: oseq} for origin, oseq in new))
    assert a == before


@given(vectors, vectors, st.lists(vectors, max_size=8))
def test_short_of_is_between_its_bounds_and_covers_nothing_that_it_must_not(
    a: dict[int, int], b: dict[int, int], contexts: list[dict[int, int]]
) -> None:
    whole = join(a, b)
    lowered = short_of(whole, b, contexts)
    assert covers(whole, lowered) and covers(lowered, b)
    assert not any(covers(lowered, one) for one in contexts if not covers(b, one))


def test_short_of_gives_up_as_little_as_it_can() -> None:
    """Twenty documents were written by 1 and again by 2: 1's writes to others need not be lost."""
    again = [{1: n, 2: n} for n in range(1, 21)]
    assert short_of({1: 60, 2: 20}, {}, [*again, {1: 31}]) == {1: 30, 2: 0}
