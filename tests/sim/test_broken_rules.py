"""Do the checkers see? Each test breaks one rule, and a run must be found out by the right checker.

A rule that can be broken without anybody noticing is a rule that no simulation keeps.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb import cursor, merge
from divandb import event as events
from divandb.cluster import courier, fetching
from divandb.cluster.peers import Missing
from divandb.cluster.progress import Progress
from divandb.cluster.relay import Relay
from divandb.cursor import Cursor, suffix
from divandb.httpd.app import App
from divandb.master import Master
from divandb.replica import Replica
from divandb.store import changes, outbox
from divandb.store.catchup import End
from divandb.vector import join
from tests.sim import chaos, test_groups, test_reading, test_scenarios
from tests.sim.cluster import Cluster
from tests.sim.harness import play_out
from tests.sim.test_random import masters_alone, whole_groups

SEEDS_MAX = 40
Body = Callable[[Cluster], Awaitable[None]]


class Court:
    """Plays runs until one is found out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def finds(self, make: Callable[[int], tuple[Body, dict[str, Any]]], what: str) -> None:
        """One of the random runs fails, and its message or notes say ``what``."""
        for seed in range(SEEDS_MAX):
            body, shape = make(seed)
            place = self._folder / str(seed)
            place.mkdir()
            try:
                play_out(body, place, seed, limits=chaos.LIMITS, **shape)
            except AssertionError as violation:
                said = f"{violation} {getattr(violation, '__notes__', ())}"
                if what in said:
                    return
        raise AssertionError(f"{SEEDS_MAX} runs, and nobody notices: {what}")

    def finds_in(self, scenario: Callable[..., None], what: str) -> None:
        """The scenario fails like that."""

        def play(body: Body, **shape: Any) -> Cluster:
            shape = {"masters": 3, "replicas": 1, **shape}
            return play_out(body, self._folder, 1, **shape)

        with pytest.raises(AssertionError) as caught:
            scenario(play)
        said = f"{caught.value} {getattr(caught.value, '__notes__', ())}"
        assert what in said, said


@pytest.fixture
def court(folder: Path) -> Court:
    return Court(folder)


def test_a_mark_that_is_too_high(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message completes one write more than it has."""
    right = outbox._event

    def wrong(row: Any, after: int, mark: int, *rest: Any) -> bytes:
        return right(row, after, mark + (mark > after), *rest)

    monkeypatch.setattr(outbox, "_event", wrong)
    court.finds(masters_alone, "found by VectorIsTruthful")


def test_a_message_that_vouches_for_what_went_before(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it completes everything up to it, whatever its reader had."""
    right = events.encode

    def wrong(event: events.Event) -> bytes:
        if event.mark > event.after:
            event = msgspec.structs.replace(event, after=0)
        return right(event)

    monkeypatch.setattr(events, "encode", wrong)
    court.finds_in(
        test_scenarios.test_a_message_vouches_only_for_what_it_carries,
        "found by VectorIsTruthful",
    )


def test_half_an_answer_that_counts(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catch-up that broke off is believed to have been whole."""
    right = fetching.Fetcher._take_all

    async def wrong(self: fetching.Fetcher, peer: Any) -> tuple[End | None, int]:
        vector = dict(peer.vector)
        try:
            return await right(self, peer)
        except Exception:
            return End(vector, {}), 0

    monkeypatch.setattr(fetching.Fetcher, "_take_all", wrong)
    court.finds_in(
        test_groups.test_trace_12_a_page_moves_while_an_answer_is_read_and_the_responder_dies,
        "found by VectorIsTruthful",
    )


def test_holes_that_are_passed(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that arrived is taken for contained, though it lies behind a gap."""
    monkeypatch.setattr(
        "divandb.store.ledger.Ledger.cover",
        lambda self, origin, slot, after, upto: _covered(self, origin, slot, upto),
    )
    court.finds_in(
        test_scenarios.test_a_gap_that_no_peer_can_fill_yet_is_not_passed,
        "found by VectorIsTruthful",
    )


def _covered(ledger: Any, origin: int, slot: str, upto: int) -> None:
    if ledger._known(origin, slot) < upto:
        ledger.vector[origin] = upto
        ledger.reached[origin] = max(ledger.reached[origin], upto)
        ledger._moved.add(origin)


def test_a_relay_that_stores_its_place_too_early(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was applied is taken for passed on."""
    monkeypatch.setattr(Relay, "passed_on", lambda self, position: position)
    court.finds_in(
        test_groups.test_what_a_master_has_applied_and_not_passed_on_it_passes_on_later,
        "not within 10 simulated seconds",
    )


def test_a_session_that_nobody_waits_for(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node answers whatever the client's token says."""

    async def wrong(*_: Any) -> None:
        return None

    monkeypatch.setattr(App, "_better", wrong)
    court.finds(whole_groups, "a write is not read")


def test_a_session_that_a_master_does_not_believe(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child of a write that is not there is a conflict, token or not."""
    right = Master._edit

    def wrong(self: Master, database: Any, row: Any, write: Any, limit: int, command: Any) -> Any:
        return right(
            self, database, row, write, limit, msgspec.structs.replace(command, orphans=False)
        )

    monkeypatch.setattr(Master, "_edit", wrong)
    court.finds_in(
        test_reading.test_trace_23_a_session_goes_on_after_its_master_died, "assert 409 == 201"
    )


def test_a_repeat_that_is_not_marked(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt looks like a first."""
    monkeypatch.setattr(courier, "_mark_repeats", lambda jobs: None)
    court.finds_in(
        test_groups.test_trace_6_an_update_that_a_dead_master_has_made_is_answered_by_another,
        "assert 409 == 201",
    )


def test_a_cursor_from_the_newest_vector(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """It vouches for all that the node has, not for what was shown."""

    def wrong(self: Replica, known: Any, seq: int, seen: Any = None) -> str:
        newest = changes.vector(self._connection)
        return f"{seq}{suffix(Cursor(self._numbering, known.generation, dict(newest)))}"

    monkeypatch.setattr(Replica, "sequence", wrong)
    court.finds(whole_groups, "a change is missed")


def test_a_cursor_without_a_numbering(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """N is believed on whatever node."""
    right = Replica.start

    def wrong(self: Replica, known: Any, since: str) -> Any:
        if since != "0":
            number, foreign = cursor.parse(since)
            assert foreign is not None
            own = Cursor(self._numbering, foreign.generation, {})
            since = f"{number}{suffix(own)}"
        return right(self, known, since)

    monkeypatch.setattr(Replica, "start", wrong)
    court.finds(whole_groups, "a change is missed")


def test_anti_entropy_that_is_off(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for what the board does not bring."""
    monkeypatch.setattr(Missing, "look", lambda self, *_: False)
    court.finds_in(
        test_groups.test_masters_fetch_from_each_other_while_the_board_is_away,
        "not within 30 simulated seconds",
    )


def test_a_watermark_of_this_run_alone(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that was started again says nothing of what it wrote before."""

    right = Progress.written
    monkeypatch.setattr(Progress, "written", lambda self: dict(list(right(self).items())[1:]))
    court.finds_in(
        test_reading.test_what_an_owner_wrote_before_it_was_started_again_counts,
        "found by LagIsNoLess",
    )


def test_a_dead_owner_that_counts(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lag is that of all slots, whoever lives."""
    right = Progress.lag
    monkeypatch.setattr(Progress, "lag", lambda self, silent_ms: right(self, 10**9))
    court.finds_in(test_reading.test_trace_27_the_age_of_a_view_stays_small_when_an_owner_dies, "")


def test_a_purge_that_forgets_its_context(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that takes every leaf that either side has."""

    def wrong(one: merge.Document, other: merge.Document) -> merge.Document:
        leaves = {merge._element(leaf): leaf for leaf in (*one.leaves, *other.leaves)}
        context = join(one.context, other.context)
        return merge.Document(tuple(sorted(leaves.values(), key=merge._order)), context)

    monkeypatch.setattr(merge, "merge", wrong)
    court.finds(masters_alone, "found by NothingComesBack")
