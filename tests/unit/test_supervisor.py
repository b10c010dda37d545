import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb.supervisor import Action, Bounds, Policy, _url
from tests.stores import Time

BOUNDS = Bounds(
    restart_s_min=0.1, restart_s_max=5.0, healthy_s_min=10.0, ready_s_max=1.0, stop_s_max=3.0
)


def policy(*names: str, restart: bool = True) -> tuple[Policy, Time]:
    time = Time()
    made = Policy(names or ("m1",), time, BOUNDS, restart)
    for action, name in made.actions():
        assert action is Action.START
        made.started(name)
    return made, time


def test_all_nodes_are_to_be_started_at_once() -> None:
    made = Policy(["m1", "m2"], Time(), BOUNDS, restart=True)
    assert made.wait_s() == 0
    assert made.actions() == [(Action.START, "m1"), (Action.START, "m2")]


def test_nothing_is_due_while_all_nodes_run() -> None:
    made, time = policy()
    time.now += 1_000_000
    assert made.actions() == []
    assert made.wait_s() is None
    assert made.exit_status() is None


def test_a_dead_node_is_started_again_after_the_pause_and_not_before() -> None:
    made, time = policy()
    assert made.ended("m1", 137) == pytest.approx(0.1)
    assert made.actions() == []
    assert made.wait_s() == pytest.approx(0.1)
    assert made.exit_status() is None
    time.now += 0.11
    assert made.actions() == [(Action.START, "m1")]


def test_a_node_that_is_dropped_ends_and_stays_down_while_others_go_on() -> None:
    made, time = policy("m1", "m2")
    made.drop("m2")
    assert made.actions() == [(Action.TERMINATE, "m2")]
    assert made.actions() == []
    assert made.wait_s() == pytest.approx(BOUNDS.stop_s_max)
    time.now += BOUNDS.stop_s_max
    assert made.actions() == [(Action.KILL, "m2")]
    assert made.ended("m2", 137) is None
    made.forget("m2")
    assert made.ended("m1", 1) is not None
    assert not made.stopping and made.exit_status() is None


def test_a_node_that_is_down_when_it_is_dropped_is_not_started_again() -> None:
    made, time = policy("m1", "m2")
    made.ended("m2", 1)
    made.drop("m2")
    assert made.is_dropped("m2") and not made.is_dropped("m1")
    time.now += 100
    assert made.actions() == []


def test_the_pause_doubles_up_to_its_bound() -> None:
    made, time = policy()
    pauses = []
    for _ in range(9):
        pauses.append(made.ended("m1", 1))
        time.now += 5
        made.started("m1")
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])


def test_a_node_that_lived_long_enough_begins_with_the_shortest_pause() -> None:
    made, time = policy()
    for _ in range(5):
        made.ended("m1", 1)
        made.started("m1")
    time.now += 10
    assert made.ended("m1", 1) == pytest.approx(0.1)


def test_one_node_is_started_again_while_the_other_runs_on() -> None:
    made, time = policy("m1", "m2")
    made.ended("m2", 1)
    time.now += 1
    assert made.actions() == [(Action.START, "m2")]


def test_without_restart_the_last_failure_is_the_exit_status() -> None:
    made, time = policy("m1", "m2", "m3", restart=False)
    assert made.ended("m1", 3) is None
    assert made.exit_status() is None
    made.ended("m2", 4)
    made.ended("m3", 0)
    time.now += 100
    assert made.actions() == []
    assert made.exit_status() == 4


def test_stop_terminates_each_node_once_and_kills_it_once_after_the_bound() -> None:
    made, time = policy("m1", "m2")
    made.stop()
    assert made.actions() == [(Action.TERMINATE, "m1"), (Action.TERMINATE, "m2")]
    assert made.actions() == []
    assert made.wait_s() == pytest.approx(3)
    assert made.ended("m1", 0) is None
    time.now += 3
    assert made.actions() == [(Action.KILL, "m2")]
    assert made.actions() == []
    assert made.wait_s() is None
    assert made.exit_status() is None
    made.ended("m2", 137)
    assert made.exit_status() == 0


def test_stop_cancels_a_start_that_was_to_come() -> None:
    made, time = policy()
    made.ended("m1", 1)
    made.stop()
    time.now += 100
    assert made.actions() == []
    assert made.exit_status() == 0


def test_who_insists_gets_a_kill_at_once_and_the_status_of_an_interrupt() -> None:
    made, _ = policy()
    made.stop()
    made.actions()
    made.stop(insist=True)
    assert made.actions() == [(Action.KILL, "m1")]
    made.ended("m1", 137)
    assert made.exit_status() == 130


def test_a_second_polite_stop_does_not_move_the_deadline() -> None:
    made, time = policy()
    made.stop()
    made.actions()
    time.now += 2
    made.stop()
    assert made.wait_s() == pytest.approx(1)


def policy_with_board(*names: str, restart: bool = True) -> tuple[Policy, Time]:
    time = Time()
    made = Policy(["board", *names], time, BOUNDS, restart, last=["board"])
    for _, name in made.actions():
        made.started(name)
    return made, time


def test_the_last_is_terminated_when_all_others_have_ended() -> None:
    made, time = policy_with_board("m1", "m2")
    made.stop()
    assert made.actions() == [(Action.TERMINATE, "m1"), (Action.TERMINATE, "m2")]
    made.ended("m1", 0)
    assert made.actions() == []
    made.ended("m2", 0)
    assert made.actions() == [(Action.TERMINATE, "board")]
    assert made.wait_s() == pytest.approx(3)
    time.now += 3
    assert made.actions() == [(Action.KILL, "board")]
    made.ended("board", 137)
    assert made.exit_status() == 0


def test_others_are_killed_early_enough_for_the_last_to_end_cleanly() -> None:
    made, time = policy_with_board("m1")
    made.stop()
    made.actions()
    assert made.wait_s() == pytest.approx(3 * 0.8)
    time.now += 3 * 0.8
    assert made.actions() == [(Action.KILL, "m1")]
    assert made.wait_s() == pytest.approx(3 * 0.2)
    made.ended("m1", 137)
    assert made.actions() == [(Action.TERMINATE, "board")]


def test_who_insists_kills_the_last_as_well() -> None:
    made, _ = policy_with_board("m1")
    made.stop(insist=True)
    assert made.actions() == [(Action.KILL, "board"), (Action.KILL, "m1")]


def test_the_last_is_started_again_like_any_other() -> None:
    made, time = policy_with_board("m1")
    made.ended("board", 1)
    time.now += 1
    assert made.actions() == [(Action.START, "board")]


def test_without_restart_the_last_alone_is_no_work() -> None:
    made, _ = policy_with_board("m1", "m2", restart=False)
    made.ended("m1", 3)
    assert made.actions() == []
    made.ended("m2", 0)
    assert made.stopping
    assert made.actions() == [(Action.TERMINATE, "board")]
    made.ended("board", 0)
    assert made.exit_status() == 3


def test_one_that_is_added_is_started_at_once_and_watched() -> None:
    made, time = policy()
    time.now += 100
    made.add("r1")
    assert made.wait_s() == 0
    assert made.actions() == [(Action.START, "r1")]
    made.started("r1")
    made.ended("r1", 1)
    assert made.wait_s() == pytest.approx(0.1)


def test_one_that_is_added_after_the_stop_stays_down() -> None:
    made, _ = policy()
    made.stop()
    made.add("r1")
    made.ended("m1", 0)
    assert made.actions() == []
    assert made.exit_status() == 0


@given(st.lists(st.tuples(st.sampled_from("eps"), st.floats(0, 20)), max_size=40))
def test_the_pause_is_always_within_its_bounds_and_the_end_is_reached(steps) -> None:  # type: ignore[no-untyped-def]
    """Ends, passing time and starts in any order: a stop ends it all."""
    made, time = policy()
    runs = True
    for step, seconds in steps:
        if step == "e" and runs:
            pause = made.ended("m1", 1)
            assert pause is not None
            assert BOUNDS.restart_s_min <= pause <= BOUNDS.restart_s_max
            runs = False
        elif step == "p":
            time.now += seconds
        for action, name in made.actions():
            assert action is Action.START
            assert not runs
            made.started(name)
            runs = True
    made.stop()
    time.now += BOUNDS.stop_s_max
    assert [action for action, _ in made.actions()] == [Action.KILL] * runs
    if runs:
        made.ended("m1", 137)
    assert made.exit_status() == 0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5984"),
        ("0.0.0.0", "http://127.0.0.1:5984"),
        ("::", "http://[::1]:5984"),
        ("db.example", "http://db.example:5984"),
    ],
)
def test_the_url_reaches_what_listens(host: str, url: str) -> None:
    assert _url(host, 5984) == url
