"""What was found is counted once, said once, and forgotten when it is over."""

import pytest

from divandb.cluster import findings
from divandb.cluster.findings import Findings, shown
from divandb.store.mending import Outcome
from tests.stores import Lines, StillClock

KEY = ("x", 1, "dd")


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def found(log: Lines) -> Findings:
    return Findings(StillClock(), log)


def told(found: Findings, outcome: Outcome, peer: str = "m2", key: str = "dd") -> None:
    found.note_outcomes("x", 1, {key: outcome}, peer)


def counts(found: Findings) -> tuple[int, int, int]:
    totals = found.totals
    return totals.divergent_documents, totals.mended_documents, found.open


def test_a_damaged_document_counts_once_until_it_is_mended(found: Findings, log: Lines) -> None:
    for _ in range(3):
        found.note_damaged(KEY, "wrong", {1: 1}, 0.0)
    assert counts(found) == (1, 0, 1)
    told(found, Outcome.LATER)
    assert counts(found) == (1, 0, 1)
    told(found, Outcome.MENDED)
    assert counts(found) == (1, 1, 0)
    assert len(log.events) == 2
    assert [(one.what, one.peer) for one in found.since(0)] == [("wrong", ""), ("mended", "m2")]
    assert [one.what for one in found.since(1)] == ["mended"]
    assert found.since(2) == []


def test_who_read_a_row_before_it_was_mended_does_not_count_it_again(log: Lines) -> None:
    clock = StillClock()
    found = Findings(clock, log)
    began = clock.monotonic()
    found.note_damaged(KEY, "wrong", {}, began)
    told(found, Outcome.MENDED)
    found.note_damaged(KEY, "wrong", {}, began)
    assert counts(found) == (1, 1, 0)
    found.note_damaged(KEY, "wrong", {}, began + 1)
    assert counts(found) == (2, 1, 1)


def test_what_was_mended_is_remembered_of_the_last_alone(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "MENDED_MAX", 1)
    clock = StillClock()
    found = Findings(clock, log)
    for key in ("da", "db"):
        told(found, Outcome.MENDED, key=key)
    for key in ("da", "db"):
        found.note_damaged(("x", 1, key), "wrong", {}, clock.monotonic())
    assert list(found.damaged) == [("x", 1, "da")]


def test_a_disputed_one_counts_once_until_it_is_the_same(found: Findings, log: Lines) -> None:
    for peer in ("m2", "m3", "m2"):
        told(found, Outcome.DISPUTED, peer)
    assert counts(found) == (1, 0, 1)
    assert len(log.events) == 1
    assert found.names_open(5) == [{"database": "x", "id": "d", "what": "differs from m2"}]
    found.note_same("x", "m3")
    found.note_same("y", "m2")
    assert counts(found) == (1, 0, 1)
    found.note_same("x", "m2")
    assert counts(found) == (1, 0, 0)
    told(found, Outcome.MENDED)
    assert counts(found) == (2, 1, 0)


def test_what_a_later_reading_finds_sound_is_not_damaged_any_more(found: Findings) -> None:
    for key in ("da", "db"):
        found.note_damaged(("x", 1, key), "wrong", {}, 0.0)
    found.note_damaged(("y", 1, "da"), "wrong", {}, 0.0)
    found.note_sound("x", 1, ["db"])
    assert list(found.damaged) == [("x", 1, "db"), ("y", 1, "da")]
    assert len(found.names_open(1)) == 1


def test_what_is_known_is_bounded(found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "OPEN_MAX", 2)
    for number in range(4):
        found.note_damaged(("x", 1, f"d{number}"), "wrong", {}, 0.0)
        told(found, Outcome.DISPUTED, key=f"e{number}")
    assert found.open == 2


def test_lines_in_the_log_are_bounded(
    found: Findings, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LINES_MAX", 2)
    for number in range(5):
        told(found, Outcome.MENDED, key=f"d{number}")
    assert [line.split()[0] for line in log.events] == ["not", "not", "more"]
    assert found.totals.mended_documents == 5


def test_what_differs_elsewhere_is_only_for_the_report(found: Findings, log: Lines) -> None:
    found.note_elsewhere("x", "dd", "m2")
    assert counts(found) == (0, 0, 0)
    assert log.events == []
    assert [(one.id, one.peer) for one in found.since(0)] == [("d", "m2")]


def test_a_missing_database_counts(found: Findings) -> None:
    found.note_database("x", "m2")
    assert counts(found) == (1, 1, 0)
    found.note_digest("x")
    assert found.totals.corrected_digests == 1


def test_keys_are_shown_as_people_know_them() -> None:
    assert [shown(key) for key in ("dlocal/a", "rlocal/_local/a", "rsecurity/")] == [
        "local/a", "_local/a", "security/",
    ]  # fmt: skip
