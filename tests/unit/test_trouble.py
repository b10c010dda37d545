"""What is told of things that are tried again."""

import asyncio

import pytest

from divandb.trouble import RETRY_S_MAX, RETRY_S_MIN, TROUBLE_S_MIN, Trouble


class Lines:
    """A log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append((what, values))

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        raise AssertionError(what)


def test_what_passes_soon_is_not_told() -> None:
    log = Lines()
    trouble = Trouble(log, "it waits")
    for start in (10.0, 20.0):
        for step in (0.0, 0.5, TROUBLE_S_MIN):
            trouble.met(OSError("away"), start + step)
            assert trouble.failing == "away"
        trouble.over()
        assert trouble.failing is None
    assert log.lines == []


def test_what_lasts_is_told_once_with_its_latest_fault() -> None:
    log = Lines()
    trouble = Trouble(log, "it waits", topic="t")
    trouble.met(OSError("at first"), 10.0)
    trouble.met(OSError("later"), 10.1 + TROUBLE_S_MIN)
    trouble.met(OSError("and later"), 99.0)
    assert log.lines == [("it waits", {"topic": "t", "fault": "OSError('later')"})]
    trouble.over()
    trouble.met(OSError("again"), 100.0)
    trouble.met(OSError("again"), 101.0 + TROUBLE_S_MIN)
    assert len(log.lines) == 2


def test_a_fault_without_a_text_is_shown_all_the_same() -> None:
    trouble = Trouble(Lines(), "it waits")
    trouble.met(TimeoutError(), 0.0)
    assert trouble.failing == "TimeoutError()"


class Middle:
    """Chance that is always in the middle."""

    def uniform(self) -> float:
        return 0.5

    def token(self, size: int) -> bytes:
        raise AssertionError(size)


def test_attempts_back_off_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def attempts(trouble: Trouble, faults: list[Exception | None]) -> None:
        for fault in faults:
            with trouble.attempt():
                if fault is not None:
                    raise fault
            await trouble.back_off(Middle())

    monkeypatch.setattr(asyncio, "sleep", sleep)
    trouble = Trouble(Lines(), "it waits")
    away = OSError("away")
    asyncio.run(attempts(trouble, [away] * 9))
    assert waited[:3] == [RETRY_S_MIN, 2 * RETRY_S_MIN, 4 * RETRY_S_MIN]
    assert waited[-1] == RETRY_S_MAX
    assert trouble.failing == "away"
    del waited[:]
    asyncio.run(attempts(trouble, [None, away, None]))
    assert waited == [RETRY_S_MIN]
    assert trouble.failing is None
