import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import pulse
from divandb.clock import SystemClock
from divandb.pulse import LOOK_AGAIN_S, Pulse, Signs, Vigil, keep_listening, signs_of
from tests.stores import Time

SILENT_S_MAX = 0.25
STARVED_S_MAX = 1.5
STOPPED = Signs(frozenset("T"), 7)
ASLEEP = Signs(frozenset("SD"), 7)
WAITING = Signs(frozenset("SR"), 7)
"""For a core."""


def vigil(now: float) -> Vigil:
    """One that has looked before, so that it is not late."""
    made = Vigil(SILENT_S_MAX, STARVED_S_MAX)
    look(made, {"a": now}, now - SILENT_S_MAX)
    return made


def look(
    made: Vigil, beats: dict[str, float | None], now: float, signs: Signs = STOPPED
) -> list[str]:
    """Whom it would shut, if the silent show these signs."""
    return made.look(beats, now, lambda name: signs)


def test_a_pulse_tells_its_last_beat() -> None:
    clock = Time()
    made = Pulse(clock)
    assert made.last_beat == 0.0
    made.beat()
    assert made.last_beat == 1000.0
    clock.now += 0.125
    made.beat()
    assert made.last_beat == 1000.125


def test_a_pulse_is_seen_across_a_fork() -> None:
    made = Pulse(Time())
    pid = os.fork()
    if pid == 0:
        made.beat()
        os._exit(0)
    os.waitpid(pid, 0)
    assert made.last_beat == 1000.0


def test_all_who_beat_are_left_alone_and_looked_at_when_the_first_would_be_silent() -> None:
    made = vigil(10.0)
    assert look(made, {"a": 9.9, "b": 9.95}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(0.15)
    assert made.wait_s(11.0) == 0


def test_one_is_shut_when_it_has_been_silent_for_the_bound_and_not_before() -> None:
    made = vigil(10.0)
    assert look(made, {"a": 9.9, "b": 10.0}, 10.14) == []
    assert look(made, {"a": 9.9, "b": 10.1}, 10.151) == ["a"]


def test_one_that_is_down_is_silent_at_once() -> None:
    assert look(vigil(10.0), {"a": None, "b": 9.9}, 10.0) == ["a"]


def test_nobody_is_shut_while_nobody_is_awake() -> None:
    made = vigil(10.0)
    assert look(made, {"a": None, "b": 9.7}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(SILENT_S_MAX)
    assert look(made, {"a": 10.1, "b": 9.7}, 10.1) == ["b"]


def test_a_pause_of_the_one_who_looks_is_not_held_against_the_others() -> None:
    made = vigil(10.0)
    look(made, {"a": 9.9, "b": 9.9}, 10.0)
    assert look(made, {"a": 9.9, "b": 15.0}, 15.0) == []
    assert look(made, {"a": 9.9, "b": 15.2}, 15.251) == ["a"]


def test_with_nobody_to_look_at_the_next_look_is_not_far() -> None:
    made = vigil(10.0)
    assert look(made, {}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(SILENT_S_MAX)


# What silent ones are seen to do


def test_one_that_waits_for_a_core_is_left_until_the_longer_bound() -> None:
    made = vigil(10.0)
    now = 10.0
    while now < 9.9 + STARVED_S_MAX:
        assert look(made, {"a": 9.9, "b": now}, now, WAITING) == []
        assert made.wait_s(now) <= SILENT_S_MAX
        now += max(made.wait_s(now), 0.001)
    assert look(made, {"a": 9.9, "b": now}, now, WAITING) == ["a"]


def test_one_that_uses_the_cpu_between_two_looks_is_left() -> None:
    made = vigil(10.0)
    for tick in range(20):
        now = 10.2 + tick * LOOK_AGAIN_S
        assert look(made, {"a": 9.9, "b": now}, now, Signs(frozenset("D"), tick)) == []


def test_one_that_neither_uses_nor_wants_a_core_is_shut_at_the_second_look() -> None:
    made = vigil(10.0)
    assert look(made, {"a": 9.9, "b": 10.1}, 10.16, ASLEEP) == []
    assert made.wait_s(10.16) == pytest.approx(LOOK_AGAIN_S)
    assert look(made, {"a": 9.9, "b": 10.2}, 10.16 + LOOK_AGAIN_S, ASLEEP) == ["a"]


@pytest.mark.parametrize(("before", "after"), [(WAITING, ASLEEP), (ASLEEP, WAITING)])
def test_one_that_wanted_a_core_at_either_look_is_left(before: Signs, after: Signs) -> None:
    made = vigil(10.0)
    assert look(made, {"a": 9.9, "b": 10.1}, 10.16, before) == []
    assert look(made, {"a": 9.9, "b": 10.2}, 10.21, after) == []


def test_a_beat_makes_all_that_was_seen_before_it_forgotten() -> None:
    made = vigil(10.0)
    assert look(made, {"a": 9.9, "b": 10.1}, 10.16, ASLEEP) == []
    assert look(made, {"a": 10.2, "b": 10.2}, 10.21, ASLEEP) == []
    assert look(made, {"a": 10.2, "b": 10.4}, 10.45, ASLEEP) == []
    assert look(made, {"a": 10.2, "b": 10.5}, 10.50, ASLEEP) == ["a"]


def test_a_stopped_one_is_shut_while_the_others_wait_for_a_core() -> None:
    """They will answer, and it will not."""
    made = vigil(10.0)
    seen = {"a": STOPPED, "b": WAITING}
    assert made.look({"a": 9.9, "b": 9.9}, 10.16, seen.__getitem__) == ["a"]


def test_a_longer_bound_that_is_not_longer_shuts_at_the_shorter_one() -> None:
    made = Vigil(SILENT_S_MAX, 0.1)
    look(made, {"a": 10.0}, 10.0)
    assert look(made, {"a": 10.0, "b": 10.1}, 10.2, WAITING) == []
    assert look(made, {"a": 10.0, "b": 10.1}, 10.26, WAITING) == ["a"]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.none() | st.floats(5, 10)),
    st.floats(0, 2),
    st.sampled_from([STOPPED, ASLEEP, WAITING]),
)
def test_somebody_is_always_left(
    beats: dict[str, float | None], late_s: float, signs: Signs
) -> None:
    made = vigil(10.0)
    for now in (10.0, 10.0 + late_s):
        shut = look(made, beats, now, signs)
        assert not beats or set(shut) < set(beats)
        assert 0 <= made.wait_s(now) <= SILENT_S_MAX + 1e-9


def test_signs_of_one_that_runs_sleeps_is_stopped_and_is_gone() -> None:
    assert "R" in signs_of(os.getpid()).states
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    try:
        _await(lambda: signs_of(pid).states == {"S"})
        asleep = signs_of(pid)
        assert signs_of(pid).is_stuck_since(asleep)
        assert not asleep.is_stopped
        os.kill(pid, signal.SIGSTOP)
        _await(lambda: signs_of(pid).is_stopped)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert signs_of(pid) == Signs(frozenset(), 0)


def test_signs_tell_of_work() -> None:
    before = signs_of(os.getpid())
    _await(lambda: signs_of(os.getpid()).cpu_ticks > before.cpu_ticks)


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


# The child's part


def test_who_was_shut_listens_again() -> None:
    asyncio.run(_shut_and_see())


async def _shut_and_see() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        # A port that was asked for: one that the system chose is forgotten with the shutting.
        address = holder.getsockname()
    with socket.create_server(address) as shared:
        made = Pulse(SystemClock())
        keeping = asyncio.create_task(keep_listening(made, shared))
        await asyncio.sleep(0)
        first = made.last_beat
        assert first > 0
        for _ in range(2):
            assert pulse.is_listening(shared)
            pulse.shut(shared)
            assert not pulse.is_listening(shared)
            pulse.shut(shared)  # does not mind
            async with asyncio.timeout(5):
                while not pulse.is_listening(shared):
                    await asyncio.sleep(0.01)
        assert made.last_beat > first
        assert shared.getsockname() == address
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


def test_a_closed_socket_ends_it() -> None:
    shared = socket.create_server(("127.0.0.1", 0))
    shared.close()
    asyncio.run(keep_listening(Pulse(Time()), shared))
