"""Basic headers, and the memory of those that were right."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth import credentials
from divandb.auth.credentials import VerifiedCache, basic_header, parse_basic
from divandb.auth.policy import UserContext

JAN = UserContext("jan", ("crew",), "default")
EVE = UserContext("eve")
KEY = bytes(range(32))


def test_a_header_is_read() -> None:
    assert parse_basic(b"Basic " + b64encode(b"jan:a:b")) == ("jan", "a:b")
    assert parse_basic(b"bAsIc  " + b64encode(b"jan:")) == ("jan", "")
    assert parse_basic(b"Basic " + b64encode(b":")) == ("", "")
    assert parse_basic(b"Basic " + b64encode("jän:pä".encode())) == ("jän", "pä")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Basic",
        b"Basic ",
        b"Basic x",
        b"Basic XX=",
        b"Basic !!!!",
        b"Basic amFuOnA",
        b"Basic " + b64encode(b"no colon"),
        b"Basic " + b64encode(b"j\xe4n:p"),
        b"Basic " + b64encode(b"_:_"),
        b"Basic am\xffu",
        b"Bearer amFuOnA=",
        b64encode(b"jan:p"),
    ],
)
def test_malformed_headers_are_anonymous(header: bytes) -> None:
    assert parse_basic(header) is None


@given(st.text().filter(lambda name: ":" not in name and name != "_"), st.text())
def test_what_was_written_is_read(name: str, password: str) -> None:
    assert parse_basic(basic_header(name, password)) == (name, password)


@given(st.binary(max_size=80))
def test_any_header_is_read_without_an_error(header: bytes) -> None:
    parse_basic(b"Basic " + header)
    parse_basic(header)


def test_only_the_very_header_is_remembered() -> None:
    cache = VerifiedCache(KEY)
    header = basic_header("jan", "p")
    assert cache.get(header) is None
    cache.put(header, JAN, cache.generation)
    assert cache.get(header) is JAN
    assert cache.get(basic_header("jan", "q")) is None
    assert cache.get(header + b" ") is None


def test_nothing_of_a_password_is_kept() -> None:
    cache = VerifiedCache(KEY)
    header = basic_header("jan", "secret")
    cache.put(header, JAN, 0)
    assert all(b"secret" not in key and header not in key for key in cache._entries)
    assert VerifiedCache(bytes(32))._digest(header) != cache._digest(header)


def test_a_changed_user_is_checked_again() -> None:
    cache = VerifiedCache(KEY)
    cache.put(b"1", JAN, 0)
    cache.put(b"2", JAN, 0)
    cache.put(b"3", EVE, 0)
    cache.forget("jan")
    cache.forget("nobody")
    assert (cache.get(b"1"), cache.get(b"2"), cache.get(b"3")) == (None, None, EVE)
    cache.clear()
    assert cache.get(b"3") is None
    assert len(cache) == 0


def test_a_check_that_a_change_has_overtaken_is_not_remembered() -> None:
    cache = VerifiedCache(KEY)
    before = cache.generation
    cache.forget("jan")
    cache.put(b"1", JAN, before)
    cache.put(b"2", EVE, before)
    assert (cache.get(b"1"), cache.get(b"2")) == (None, EVE)
    before = cache.generation
    cache.clear()
    cache.put(b"2", EVE, before)
    assert cache.get(b"2") is None
    cache.put(b"2", EVE, cache.generation)
    assert cache.get(b"2") is EVE


def test_many_changes_overtake_every_check() -> None:
    cache = VerifiedCache(KEY)
    before = cache.generation
    cache.forget("jan")
    for number in range(credentials.FORGOTTEN_MAX):
        cache.forget(f"user{number}")
    cache.put(b"1", JAN, before)
    assert cache.get(b"1") is None
    assert len(cache._forgotten) == credentials.FORGOTTEN_MAX
    cache.put(b"1", JAN, cache.generation)
    assert cache.get(b"1") is JAN


def test_the_least_recently_used_header_goes_first() -> None:
    cache = VerifiedCache(KEY, entries_max=2)
    cache.put(b"1", JAN, 0)
    cache.put(b"2", EVE, 0)
    cache.get(b"1")
    cache.put(b"3", EVE, 0)
    assert (cache.get(b"1"), cache.get(b"2"), cache.get(b"3")) == (JAN, None, EVE)


def test_a_header_may_get_another_user_context() -> None:
    cache = VerifiedCache(KEY)
    cache.put(b"1", JAN, 0)
    cache.put(b"1", EVE, 0)
    cache.forget("jan")
    assert cache.get(b"1") is EVE
    assert len(cache) == 1


MOVES = st.lists(
    st.tuples(st.sampled_from(["put", "forget", "clear", "get"]), st.integers(0, 5)), max_size=50
)


@given(MOVES)
def test_against_a_dict(moves: list[tuple[str, int]]) -> None:
    """Six headers of three users, room for all: the cache is a dict without the forgotten."""
    cache, model = VerifiedCache(KEY, entries_max=6), {}
    users = [UserContext(f"u{number % 3}") for number in range(6)]
    for move, number in moves:
        header, ctx = bytes([number]), users[number]
        if move == "put":
            cache.put(header, ctx, cache.generation)
            model[header] = ctx
        elif move == "forget":
            cache.forget(str(ctx.name))
            model = {key: kept for key, kept in model.items() if kept.name != ctx.name}
        elif move == "clear":
            cache.clear()
            model = {}
        assert cache.get(header) == model.get(header)
        assert len(cache) == len(model)
        assert sum(map(len, cache._by_name.values())) == len(model)
