"""Wrong passwords lock one account for one address, and nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.auth.throttle import LOCKED, LoginThrottle, Settings
from divandb.errors import Busy, Forbidden

HOME = "192.0.2.1"


def fail(throttle: LoginThrottle, times: int, now_s: float, account: str = "jan") -> None:
    for _ in range(times):
        throttle.begin(account, HOME, now_s)
        throttle.failed(account, HOME, now_s)


def test_the_sixth_attempt_is_refused_until_the_lock_is_over() -> None:
    throttle = LoginThrottle(Settings())
    fail(throttle, 4, 0.0)
    assert not throttle.locked("jan", HOME, 0.0)
    fail(throttle, 1, 10.0)
    with pytest.raises(Forbidden) as caught:
        throttle.begin("jan", HOME, 309.9)
    assert caught.value.reason == LOCKED
    throttle.begin("jan", HOME, 310.0)
    throttle.failed("jan", HOME, 310.0)
    assert not throttle.locked("jan", HOME, 310.0)
    fail(throttle, 4, 310.0)
    assert throttle.locked("jan", HOME, 310.0)


def test_others_are_not_locked_out() -> None:
    throttle = LoginThrottle(Settings())
    fail(throttle, 5, 0.0)
    throttle.begin("jan", "192.0.2.2", 0.0)
    throttle.begin("eve", HOME, 0.0)


def test_failures_are_forgotten_after_the_window() -> None:
    throttle = LoginThrottle(Settings())
    fail(throttle, 4, 0.0)
    fail(throttle, 4, 300.0)
    assert not throttle.locked("jan", HOME, 300.0)


def test_a_login_clears_the_count() -> None:
    throttle = LoginThrottle(Settings())
    for _ in range(3):
        fail(throttle, 4, 0.0)
        throttle.begin("jan", HOME, 0.0)
        throttle.succeeded("jan", HOME)
    assert len(throttle) == 0


def test_a_new_password_unlocks() -> None:
    throttle = LoginThrottle(Settings())
    fail(throttle, 5, 0.0)
    fail(throttle, 5, 0.0, "eve")
    throttle.unlock("jan")
    assert not throttle.locked("jan", HOME, 0.0)
    assert throttle.locked("eve", HOME, 0.0)


def test_guesses_at_the_same_time_do_not_slip_through() -> None:
    throttle = LoginThrottle(Settings(checks_per_account_max=3))
    for _ in range(3):
        throttle.begin("jan", HOME, 0.0)
    with pytest.raises(Busy):
        throttle.begin("jan", HOME, 0.0)
    throttle.begin("eve", HOME, 0.0)
    throttle.dropped("jan", HOME)
    throttle.begin("jan", HOME, 0.0)


def test_the_number_of_checks_is_bounded_and_given_back() -> None:
    throttle = LoginThrottle(Settings(checks_max=2))
    throttle.begin("a", HOME, 0.0)
    throttle.begin("b", HOME, 0.0)
    with pytest.raises(Busy):
        throttle.begin("c", HOME, 0.0)
    throttle.failed("a", HOME, 0.0)
    throttle.succeeded("b", HOME)
    throttle.begin("c", HOME, 0.0)
    throttle.begin("d", HOME, 0.0)


def test_the_table_is_bounded_and_forgets_the_oldest_failure() -> None:
    throttle = LoginThrottle(Settings(entries_max=2, failures_max=2))
    fail(throttle, 1, 0.0, "a")
    fail(throttle, 1, 1.0, "b")
    fail(throttle, 1, 2.0, "a")
    fail(throttle, 1, 3.0, "c")
    assert len(throttle) == 2
    assert throttle.locked("a", HOME, 3.0)
    fail(throttle, 1, 4.0, "b")
    assert not throttle.locked("b", HOME, 4.0)


def test_long_names_count_without_filling_memory() -> None:
    throttle = LoginThrottle(Settings(failures_max=1))
    fail(throttle, 1, 0.0, "x" * 10_000)
    assert throttle.locked("x" * 10_000, HOME, 0.0)
    assert not throttle.locked("x" * 10_001, HOME, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("a:b", "a:c", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    throttle = LoginThrottle(Settings(failures_max=1))
    throttle.begin("jan", one, 0.0)
    throttle.failed("jan", one, 0.0)
    assert throttle.locked("jan", other, 0.0) is same


def test_locking_can_be_turned_off() -> None:
    throttle = LoginThrottle(Settings(failures_max=0))
    fail(throttle, 100, 0.0)
    assert len(throttle) == 0


STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.floats(0, 200)), max_size=60)


@given(STEPS)
def test_no_more_than_the_limit_of_wrong_guesses_in_a_window(
    steps: list[tuple[str, bool, float]],
) -> None:
    """Against a list of all failures: between two logins never more than five in 300 s."""
    throttle, now_s = LoginThrottle(Settings()), 0.0
    failures: dict[str, list[float]] = {"a": [], "b": []}
    for account, right, later_s in steps:
        now_s += later_s
        try:
            throttle.begin(account, HOME, now_s)
        except Forbidden:
            assert len(failures[account]) >= 5
            continue
        if right:
            throttle.succeeded(account, HOME)
            failures[account].clear()
            continue
        throttle.failed(account, HOME, now_s)
        failures[account].append(now_s)
        # A window begins with its first failure, so two may meet: twice the limit, less one.
        assert len([at for at in failures[account] if at > now_s - 300]) <= 9
