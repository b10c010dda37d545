"""Do the checkers see? Each test breaks one rule, and a run must be found out by the right checker.

A rule that can be broken without anybody noticing is a rule that no simulation keeps.
"""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from divandb import cursor, merge, node
from divandb import event as events
from divandb.closings import Closings
from divandb.cluster import courier, desk, fetching, progress
from divandb.cluster.closer import Closer
from divandb.cluster.peers import Missing
from divandb.cluster.progress import Progress
from divandb.cluster.relay import Relay
from divandb.commands import DropDatabase, WriteDocuments
from divandb.config import Limits
from divandb.cursor import Cursor, suffix
from divandb.errors import DivanError
from divandb.httpd.app import App
from divandb.master import Master
from divandb.publisher import Publisher
from divandb.replica import Replica
from divandb.store import changes, file, outbox
from divandb.store.catchup import End
from divandb.store.ledger import Ledger
from divandb.store.writer import Writer
from divandb.vector import join
from tests.sim import (
    chaos,
    faults,
    storm,
    test_closing,
    test_groups,
    test_reading,
    test_removal,
    test_scenarios,
    workloads,
)
from tests.sim.checkers import Checker, EqualVectors, NothingLost, VectorsAreUnderstood
from tests.sim.client import Client
from tests.sim.cluster import Cluster
from tests.sim.harness import play_out
from tests.sim.test_random import masters_alone, whole_groups

SEEDS_MAX = 40
Body = Callable[[Cluster], Awaitable[None]]


class Court:
    """Plays runs until one is found out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def finds(
        self, make: Callable[[int], tuple[Body, dict[str, Any]]], what: str,
        only: type[Checker] | None = None,
    ) -> None:  # fmt: skip
        """One of the random runs fails, and its message or notes say ``what``; though nobody but
        ``only`` looks, if that is given.
        """
        for seed in range(SEEDS_MAX):
            body, shape = make(seed)
            place = self._folder / str(seed)
            place.mkdir()
            try:
                play_out(_judged(body, only), place, seed, **{"limits": chaos.LIMITS, **shape})
            except AssertionError as violation:
                said = f"{violation} {getattr(violation, '__notes__', ())}"
                if what in said:
                    return
        raise AssertionError(f"{SEEDS_MAX} runs, and nobody notices: {what}")

    def finds_in(
        self, scenario: Callable[..., None], what: str, only: type[Checker] | None = None
    ) -> None:
        """The scenario fails like that."""

        def play(body: Body, **shape: Any) -> Cluster:
            shape = {"masters": 3, "replicas": 1, **shape}
            return play_out(_judged(body, only), self._folder, 1, **shape)

        with pytest.raises(AssertionError) as caught:
            scenario(play)
        said = f"{caught.value} {getattr(caught.value, '__notes__', ())}"
        assert what in said, said


def _judged(body: Body, only: type[Checker] | None) -> Body:
    async def judged(c: Cluster) -> None:
        c.checkers = [one for one in c.checkers if only is None or type(one) is only]
        await body(c)

    return judged


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


def test_a_commit_without_fsync(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masters are as careless as replicas may be; then the power goes."""
    right = file.open_for_writing

    def wrong(disk: file.Disk, **how: Any) -> Any:
        return right(dataclasses.replace(disk, synchronous="NORMAL"), **how)

    monkeypatch.setattr(file, "open_for_writing", wrong)
    monkeypatch.setattr(node, "SYNC_ALL", node.SYNC_SOME)

    def scenario(play: Callable[..., Any]) -> None:
        async def body(c: Cluster) -> None:
            m1 = (await c.with_database("x"))[0]
            c.cut([m1], [node for node in c.nodes if node is not m1])
            c.cut_from_board(m1)
            for number in range(20):
                await m1.put("x", f"d{number}", number)
            m1.crash(power=True)
            c.heal()
            c.start(m1)

        play(body)

    court.finds_in(scenario, "found by NothingLost", only=NothingLost)


def _under(*kinds: type[faults.Fault]) -> Callable[[int], tuple[Body, dict[str, Any]]]:
    """Runs with these faults alone."""

    def make(seed: int) -> tuple[Body, dict[str, Any]]:
        rng = random.Random(seed)
        return storm.play(rng, kinds, workloads.ALL[:4]), {
            "masters": 2, "replicas": 1, "limits": storm.LIMITS,
        }  # fmt: skip

    return make


def test_an_answer_before_the_commit(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies in between has told of what is not there."""

    def wrong(self: Any, batch: list[Any]) -> Any:
        self._work.begin()
        for job in batch:
            try:
                job.result = self._work.execute(job.command)
                job.written = self._work.written()
            except DivanError as refusal:
                job.result = refusal
            job.done(job)
        if any(isinstance(job.command, WriteDocuments) for job in batch):
            self._work.rollback()  # as if it had died just then
            return [], None
        return [], self._work.commit()

    monkeypatch.setattr(Writer, "run", wrong)

    def scenario(play: Callable[..., Any]) -> None:
        async def body(c: Cluster) -> None:
            client, m1 = Client(c), (await c.with_database("x"))[0]
            await client.put(m1, "/x/d", {})
            await c.passes(1)

        play(body)

    court.finds_in(scenario, "found by AnsweredIsCommitted")


def test_an_origin_that_is_used_again(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A master goes on after a restart where it was."""
    right = Ledger._open_origin

    def wrong(self: Ledger) -> int:
        found: Any = self.connection.execute(
            "SELECT origin FROM origin WHERE slot = ? ORDER BY stamp DESC", (self._slot,)
        ).fetchone()
        self.origin = found[0] if found else right(self)
        return self.origin

    monkeypatch.setattr(Ledger, "_open_origin", wrong)
    court.finds(_under(faults.Restart), "found by OneOwner")


def test_a_merge_of_trees_by_union(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without dots: a leaf goes when another one names it as its ancestor, if it still does."""

    def wrong(one: merge.Document, other: merge.Document) -> merge.Document:
        leaves = {leaf.rev: leaf for leaf in (*one.leaves, *other.leaves)}
        named = {rev for leaf in leaves.values() for rev in _ancestors(leaf)}
        kept = [leaf for leaf in leaves.values() if leaf.rev not in named]
        context = join(one.context, other.context)
        return merge.Document(tuple(sorted(kept, key=merge._order)), context)

    monkeypatch.setattr(merge, "merge", wrong)
    court.finds(
        lambda seed: (masters_alone(seed)[0], {"masters": 3, "replicas": 0, "revs_limit": 3}),
        "found by EqualVectors", only=EqualVectors,
    )  # fmt: skip


def _ancestors(leaf: Any) -> list[str]:
    return [f"{leaf.pos - index}-{name}" for index, name in enumerate(leaf.ancestry) if index]


def test_a_drop_of_whatever_has_the_name(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes late, and the database was made again."""
    right = Master._drop_database

    def wrong(self: Master, command: DropDatabase) -> None:
        known = self._ledger.register[command.name]
        right(self, msgspec.structs.replace(command, generation=known.generation))

    monkeypatch.setattr(Master, "_drop_database", wrong)

    def scenario(play: Callable[..., Any]) -> None:
        async def body(c: Cluster) -> None:
            m1 = (await c.with_database("x"))[0]
            await m1.drop("x")
            await m1.create("x")
            await m1.put("x", "d", 1)
            await m1.execute(DropDatabase("x", 1))

        play(body)

    court.finds_in(scenario, "found by DropsHitWhatTheyMeant")


def test_a_checkpoint_that_is_answered_early(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other write; then the disk of who has the documents is lost."""
    monkeypatch.setattr(desk, "_vouches", lambda job: False)

    def scenario(play: Callable[..., Any]) -> None:
        async def body(c: Cluster) -> None:
            m1, _ = await c.with_database("x")
            replicator = workloads.Checkpoints(c, random.Random(1))
            replicator.anybody = lambda: m1  # type: ignore[method-assign]
            c.cut([m1], [node for node in c.nodes if node is not m1])
            c.cut_from_board(m1)
            await replicator.act(m1)
            saved = m1.register("x", "local", f"_local/{replicator.client.name}")
            m1.crash()
            m1.lose_file()
            c.losses.disk_lost(m1)
            c.heal()
            c.start(m1)
            await c.settled()
            assert saved is not None
            await replicator.read_on()

        play(body, masters=2)

    court.finds_in(scenario, "found by CheckpointsVouch")


def test_a_queue_without_an_end(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk is slow, and everything is taken all the same."""

    monkeypatch.setattr(Writer, "_check_room", lambda self, job: None)

    def scenario(play: Callable[..., Any]) -> None:
        async def body(c: Cluster) -> None:
            m1 = (await c.with_database("x"))[0]
            m1.commit_s_max = 5.0
            writing = [asyncio.ensure_future(m1.put("x", f"d{n}", n)) for n in range(40)]
            await c.until(lambda: all(task.done() for task in writing))

        play(body, limits=Limits(write_queue_jobs_max=20, group_commit_jobs_max=4))

    court.finds_in(scenario, "found by StaysBounded")


def test_a_watermark_that_holds_up_all_others(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is waited for that cannot be reached: its owner's disk was put back."""

    def note(self: Any, as_of: float, wrote: dict[int, int], closings: Any) -> None:
        self.ahead.append((as_of, wrote))

    def reached(self: Any, has: Callable[[Any], bool]) -> None:
        while self.ahead and has(self.ahead[0][1]):
            self.as_of, self.mark = self.ahead.popleft()

    monkeypatch.setattr(progress._Slot, "note", note)
    monkeypatch.setattr(progress._Slot, "reached", reached)
    court.finds_in(
        test_reading.test_a_view_is_young_again_though_its_owner_has_lost_what_it_wrote,
        "found by LagReturns",
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
    court.finds(whole_groups, "found by OwnWritesAreRead")


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
    court.finds(whole_groups, "found by FeedsMissNothing")


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
    court.finds(whole_groups, "found by FeedsMissNothing")


def test_anti_entropy_that_is_off(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for what the board does not bring."""
    monkeypatch.setattr(Missing, "look", lambda self, *_: False)
    court.finds_in(
        test_groups.test_masters_fetch_from_each_other_while_the_board_is_away,
        "not within 30 simulated seconds",
    )


def test_a_watermark_of_this_run_alone(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that was started again says nothing of what it wrote before."""

    right = Progress._of_own_slot

    def wrong(self: Progress, vector: Any) -> dict[int, int]:
        return dict(list(right(self, vector).items())[1:])

    monkeypatch.setattr(Progress, "_of_own_slot", wrong)
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


def test_an_origin_that_is_closed_before_all_members_know(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is away: what it does not hear of it takes for missing, in its clients' cursors, too."""

    async def wrong(self: Closer, ends: Any) -> bool:
        return True

    monkeypatch.setattr(Closer, "_have_all_passed", wrong)
    court.finds_in(
        test_closing.test_a_member_that_is_away_comes_back_among_nodes_that_name_less,
        "found by VectorsAreUnderstood", only=VectorsAreUnderstood,
    )  # fmt: skip


def test_a_missing_entry_that_means_complete_to_all_who_know_the_end(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has said it: a node that was put back, or is new, has never heard of the origin."""

    def wrong(self: Closings, vector: Any) -> dict[int, int]:
        return {**self.upto, **vector}

    monkeypatch.setattr(Closings, "expand", wrong)
    court.finds_in(
        test_closing.test_a_disk_that_was_put_back_to_before_takes_what_it_lacks,
        "found by MarksAreTruthful",
    )


def test_a_removed_owner_that_ends_at_once(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has answered a moment ago is nowhere else yet."""

    async def wrong(self: node.Role, within_s: float) -> bool:
        return False

    monkeypatch.setattr(node.Role, "finish", wrong)
    monkeypatch.setattr(Publisher, "_linger", lambda self, *_: asyncio.sleep(0.5))

    def scenario(play: Callable[..., Any]) -> None:
        test_removal.test_a_node_is_removed_that_is_just_taking_over(play, 8, True, "m2-r1")

    court.finds_in(scenario, "lost with the removed owner")


def test_an_origin_that_is_left_out_though_not_all_of_it_is_here(
    court: Court, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is closed is not named, whatever the node has of it."""

    def wrong(self: Closings, vector: Any) -> dict[int, int]:
        return {origin: n for origin, n in vector.items() if origin not in self._closed}

    monkeypatch.setattr(Closings, "compact", wrong)
    court.finds_in(
        test_closing.test_who_has_heard_of_an_end_and_lacks_a_part_says_so,
        "found by VectorsAreUnderstood",
    )
