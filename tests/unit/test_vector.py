"""Vectors: a lattice under ``join``."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.vector import advanced, contains, covers, join

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
