"""When a group turns to a new version of a design document."""

from hypothesis import given
from hypothesis import strategies as st

from divandb.switching import NOT_BEGUN, Build, Switch, Verdict

PATIENCE_S = 60.0
READY = Build(9, is_ready=True)


def look(
    switch: Switch, own: Build, now: float = 0.0, *, owner: bool = False, **replicas: Build | None
) -> Verdict:
    return switch.look(own, replicas, now, PATIENCE_S, is_owner=owner)


def test_a_node_without_others_builds_and_turns_when_it_is_ready() -> None:
    assert look(Switch(), Build(), owner=True) == Verdict(True, False, ())
    assert look(Switch(), READY, owner=True) == Verdict(True, True, ())


def test_replicas_build_at_once_and_the_owner_after_them() -> None:
    assert look(Switch(), Build(), r2=Build()) == Verdict(True, False, ("r2",))
    owner = Switch()
    assert look(owner, Build(), owner=True, r1=READY, r2=Build(3)) == Verdict(False, False, ("r2",))
    assert look(owner, Build(), owner=True, r1=READY, r2=READY) == Verdict(True, False, ())


def test_replicas_turn_together_and_wait_for_no_owner() -> None:
    switch = Switch()
    assert not look(switch, READY, r2=Build(3)).is_switched
    assert look(switch, READY, r2=READY).is_switched


def test_who_grows_is_waited_for_and_who_stands_still_is_not() -> None:
    switch = Switch()
    for number in range(10):
        now = number * 0.9 * PATIENCE_S
        assert look(switch, READY, now, r2=Build(number)).waits_for == ("r2",)
    last = 9 * 0.9 * PATIENCE_S
    assert look(switch, READY, last + PATIENCE_S - 1, r2=Build(9)).waits_for == ("r2",)
    assert look(switch, READY, last + PATIENCE_S, r2=Build(9)).is_switched


def test_no_answer_is_no_growth_and_one_that_is_gone_counts_no_more() -> None:
    switch = Switch()
    assert look(switch, READY, 0, r2=Build(5)).waits_for == ("r2",)
    assert look(switch, READY, PATIENCE_S / 2, r2=None).waits_for == ("r2",)
    assert look(switch, READY, PATIENCE_S / 2).is_switched
    assert look(switch, READY, PATIENCE_S / 2, r2=None).waits_for == ("r2",)  # it is back
    assert look(switch, READY, PATIENCE_S, r2=None).waits_for == ("r2",)
    assert look(switch, READY, PATIENCE_S * 1.5, r2=None).is_switched


def test_one_that_was_ready_and_does_not_answer_holds_nobody() -> None:
    switch = Switch()
    assert look(switch, Build(1), 0, r2=READY).waits_for == ()
    assert look(switch, READY, 1, r2=None).is_switched


builds = st.builds(Build, st.integers(NOT_BEGUN, 3), st.booleans())
groups = st.dictionaries(st.sampled_from(["r1", "r2", "r3"]), st.none() | builds)


@given(looks=st.lists(st.tuples(builds, groups, st.booleans())), own=builds)
def test_whatever_was_said_nobody_is_waited_for_for_ever(
    looks: list[tuple[Build, dict[str, Build | None], bool]], own: Build
) -> None:
    switch, now = Switch(), 0.0
    group: dict[str, Build | None] = {}
    for build, group, is_owner in looks:
        verdict = switch.look(build, group, now, PATIENCE_S, is_owner=is_owner)
        assert verdict.may_build or is_owner
        assert not (verdict.is_switched and (verdict.waits_for or not build.is_ready))
        now += 1
    silent = dict.fromkeys(group)
    switch.look(own, silent, now, PATIENCE_S, is_owner=True)
    verdict = switch.look(own, silent, now + PATIENCE_S, PATIENCE_S, is_owner=True)
    assert verdict == Verdict(True, own.is_ready, ())
