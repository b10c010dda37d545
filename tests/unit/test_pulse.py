import asyncio
import contextlib
import dataclasses
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divandb import pulse
from divandb.clock import SystemClock
from divandb.pulse import Pulse, Vigil, keep_listening

SILENT_S_MAX = 0.25


@dataclasses.dataclass
class Time:
    """A clock that a test moves."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(self.now * 1000)


def vigil(now: float) -> Vigil:
    """One that has looked before, so that it is not late."""
    made = Vigil(SILENT_S_MAX)
    made.look({"a": now}, now - SILENT_S_MAX)
    return made


def test_a_pulse_tells_its_last_beat() -> None:
    time = Time()
    made = Pulse(time)
    assert made.last_beat == 0.0
    made.beat()
    assert made.last_beat == 1000.0
    time.now += 0.125
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
    assert made.look({"a": 9.9, "b": 9.95}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(0.15)
    assert made.wait_s(11.0) == 0


def test_one_is_shut_when_it_has_been_silent_for_the_bound_and_not_before() -> None:
    made = vigil(10.0)
    assert made.look({"a": 9.9, "b": 10.0}, 10.14) == []
    assert made.look({"a": 9.9, "b": 10.1}, 10.151) == ["a"]


def test_one_that_is_down_is_silent_at_once() -> None:
    assert vigil(10.0).look({"a": None, "b": 9.9}, 10.0) == ["a"]


def test_nobody_is_shut_while_nobody_is_awake() -> None:
    made = vigil(10.0)
    assert made.look({"a": None, "b": 9.7}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(SILENT_S_MAX)
    assert made.look({"a": 10.1, "b": 9.7}, 10.1) == ["b"]


def test_a_pause_of_the_one_who_looks_is_not_held_against_the_others() -> None:
    made = vigil(10.0)
    made.look({"a": 9.9, "b": 9.9}, 10.0)
    assert made.look({"a": 9.9, "b": 15.0}, 15.0) == []
    assert made.look({"a": 9.9, "b": 15.2}, 15.251) == ["a"]


def test_with_nobody_to_look_at_the_next_look_is_not_far() -> None:
    made = vigil(10.0)
    assert made.look({}, 10.0) == []
    assert made.wait_s(10.0) == pytest.approx(SILENT_S_MAX)


@given(st.dictionaries(st.sampled_from("abcd"), st.none() | st.floats(5, 10)), st.floats(0, 2))
def test_somebody_is_always_left(beats: dict[str, float | None], late_s: float) -> None:
    made = vigil(10.0)
    for now in (10.0, 10.0 + late_s):
        shut = made.look(beats, now)
        assert not beats or set(shut) < set(beats)
        assert 0 <= made.wait_s(now) <= SILENT_S_MAX + 1e-9


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
