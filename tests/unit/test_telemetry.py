"""What is told of things that are tried again."""

from divandb.telemetry import TROUBLE_S_MIN, Trouble


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
