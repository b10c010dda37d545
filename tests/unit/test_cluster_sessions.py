"""Session tokens: read from headers and cookies."""

import pytest

from divandb.cluster import sessions
from divandb.cluster.sessions import COOKIES_MAX, NOTHING
from divandb.errors import BadRequest

OURS = sessions.prefix_of("0123456789abcdef")


def cookie(slot: str, vector: dict[int, int]) -> tuple[str, str]:
    return OURS + slot, sessions.text(vector, dict.fromkeys(vector, slot))


def test_a_token_is_read_as_it_was_written() -> None:
    token = sessions.parse(sessions.text({7: 3, -9: 1}, {7: "m1", -9: "m2"}))
    assert (token.vector, token.slots) == ({7: 3, -9: 1}, {7: "m1", -9: "m2"})


def test_an_empty_token_is_of_who_never_wrote() -> None:
    assert sessions.parse("") == NOTHING
    assert sessions.parse(sessions.text({}, {})) == NOTHING
    found = sessions.of_cookies([(OURS + "m1", ""), (OURS + "m2", '""')], OURS)
    assert found == NOTHING


@pytest.mark.parametrize("text", ["nonsense", "A", "kQ", "x" * 20_000, "é"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        sessions.parse(text)


def test_cookies_of_all_slots_count_however_old_they_are() -> None:
    """A browser may hold what a master wrote in a run long ago."""
    cookies = [
        cookie("m1", {1: 5}),
        ("DivanSession-76543210-m1", cookie("m1", {9: 9})[1]),
        ("AuthSession", "x"),
        cookie("m2", {2: 900, 1: 3}),
        (OURS + "m3", "nonsense"),
        cookie("m4", {4: 1}),
    ]
    assert sessions.of_cookies(cookies, OURS).vector == {1: 5, 2: 900, 4: 1}
    assert sessions.of_cookies(reversed(cookies), OURS).vector == {1: 5, 2: 900, 4: 1}


def test_only_so_many_cookies_are_read() -> None:
    many = [cookie(f"m{number}", {number: 1}) for number in range(1, COOKIES_MAX + 10)]
    read = sessions.of_cookies([("theirs", "x")] * 500 + many, OURS)
    assert set(read.vector) == set(range(1, COOKIES_MAX + 1))
