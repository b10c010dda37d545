"""The applier's loop, over sources that do what a test wants, and over a board in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from divandb.applier import GAP_PATIENCE_S, NO_LOG, Applier
from divandb.board.base import Batch, Right, Unreachable
from divandb.board.memory import MemoryBoard
from divandb.board.source import BoardSource, PlaceGone
from divandb.store.positions import Position
from divandb.trouble import RETRY_S_MAX
from tests.sim.world import SimLoop
from tests.stores import SeededRng

Answer = Batch | Exception


def at(identity: str, offset: int) -> Position:
    return Position("b", "t", 0, identity, offset)


def batch(offset: int, *messages: bytes, log: str = "A", end: int | None = None) -> Batch:
    after = offset + len(messages)
    return Batch(list(messages), offset, after, after if end is None else end, log)


class Script:
    """A source that gives these answers, and then nothing for ever."""

    board, topic, partition = "b", "t", 0

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[int] = []

    async def read(self, offset: int) -> Batch:
        self.asked.append(offset)
        if not self._answers:
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Lines:
    """A log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, what: str, **values: object) -> None:
        self.lines.append(what)

    def fault(self, what: str, fault: BaseException, **values: object) -> None:
        self.lines.append(what)


class Node:
    """What an applier works for. ``done`` has what happened, in its order."""

    def __init__(self, source: Any, position: Position | None, *, tells: bool = True) -> None:
        self.done: list[Any] = []
        self.faults: list[Exception] = []
        """Raised by the next calls of ``take``."""
        self.told_faults: list[Exception] = []
        """Raised by the next calls of ``applied``."""
        self.takes_s = 0.0
        self.events_max = 256
        self.has_gap = False
        self.peers = 0
        """So many times a peer answers; then there is none."""
        self.catch_ups = 0
        self.log = Lines()
        self.applier = Applier(
            source, position, self._take, lambda: self.has_gap, self._catch_up, SeededRng(),
            self.log, pace=self._pace, events_max=lambda: self.events_max,
            applied=self._applied if tells else None,
        )  # fmt: skip

    async def _take(self, messages: list[bytes], position: Position) -> None:
        if self.faults:
            raise self.faults.pop(0)
        await asyncio.sleep(self.takes_s)
        self.done.append(("took", messages, position))

    async def _applied(self, messages: list[bytes], position: Position) -> None:
        if self.told_faults:
            raise self.told_faults.pop(0)
        self.done.append(("told", messages, position))

    async def _pace(self, seconds: float, messages: int) -> None:
        self.done.append(("pace", round(seconds, 6), messages))

    async def _catch_up(self) -> bool:
        self.catch_ups += 1
        self.peers -= 1
        return self.peers >= 0

    @property
    def took(self) -> list[tuple[list[bytes], Position]]:
        return [(one[1], one[2]) for one in self.done if one[0] == "took"]


def play(node: Node, body: Callable[[], Awaitable[None]] | None = None, for_s: float = 60) -> None:
    """Run the applier for some simulated time, or while ``body`` runs."""

    async def whole() -> None:
        running = asyncio.ensure_future(node.applier.run())
        await (body() if body is not None else asyncio.sleep(for_s))
        assert not running.done()

    with asyncio.Runner(loop_factory=SimLoop) as runner:
        runner.run(whole())


# Positions and identities


def test_messages_are_taken_with_the_position_behind_them() -> None:
    source = Script(batch(7, b"x", b"y"), batch(9, b"z"))
    node = Node(source, at("A", 7), tells=False)
    play(node)
    assert node.took == [([b"x", b"y"], at("A", 9)), ([b"z"], at("A", 10))]
    assert source.asked == [7, 9, 10]
    assert node.applier.position == at("A", 10)


def test_who_never_read_begins_at_0_and_asks_a_peer() -> None:
    source = Script(batch(0, b"x"), batch(0, b"x"))
    node = Node(source, None, tells=False)
    node.peers = 9
    play(node)
    assert node.took == [([], at("A", 0)), ([b"x"], at("A", 1))]
    assert source.asked == [0, 0, 1]
    assert node.catch_ups == 1


def test_an_answer_from_another_log_is_thrown_away_though_its_offset_is_valid() -> None:
    """Trace 18: the log was made again, and is longer by now."""
    source = Script(
        batch(5, b"x"), batch(6, b"not ours", log="B"), batch(0, b"1", log="B"), batch(1, log="B")
    )
    node = Node(source, at("A", 5), tells=False)
    node.peers = 9
    play(node)
    assert node.took == [([b"x"], at("A", 6)), ([], at("B", 0)), ([b"1"], at("B", 1))]
    assert source.asked == [5, 6, 0, 1, 1]
    assert node.catch_ups == 2  # one owed since the start, one for the other log


def test_an_empty_answer_tells_of_another_log_too() -> None:
    source = Script(batch(5, log="B", end=9))
    node = Node(source, at("A", 5), tells=False)
    play(node)
    assert node.took == [([], at("B", 0))]
    assert source.asked == [5, 0]
    assert node.applier.end == 9


def test_a_log_that_changes_while_its_beginning_is_read_is_begun_again() -> None:
    source = Script(batch(5, log="B"), batch(0, b"b", log="C"), batch(0, b"c", log="C"))
    node = Node(source, at("A", 5), tells=False)
    play(node)
    assert node.took == [([], at("B", 0)), ([], at("C", 0)), ([b"c"], at("C", 1))]


def test_where_the_place_is_gone_reading_goes_on_behind_it_and_a_peer_is_asked() -> None:
    source = Script(batch(3), PlaceGone(40), batch(40, b"x"))
    node = Node(source, at("A", 3), tells=False)
    node.peers = 9
    play(node)
    assert node.took == [([], at("A", 40)), ([b"x"], at("A", 41))]
    assert node.catch_ups == 2


def test_a_place_that_another_log_named_is_not_begun_at() -> None:
    source = Script(PlaceGone(40), batch(40, b"x", log="B"), PlaceGone(30), batch(30, log="B"))
    node = Node(source, at("A", 100), tells=False)
    play(node)
    assert [position for _, position in node.took] == [at("A", 40), at("B", 0), at("B", 30)]


def test_a_beginning_that_is_gone_is_found_by_who_never_read() -> None:
    source = Script(PlaceGone(40), batch(40, b"x"), PlaceGone(40), batch(40, b"x"))
    node = Node(source, None, tells=False)
    play(node)
    assert node.took[-1] == ([b"x"], at("A", 41))
    assert node.took[0] == ([], at(NO_LOG, 40))


def test_a_position_that_moves_without_messages_is_stored() -> None:
    source = Script(Batch([], 8, 8, 8, "A"))
    node = Node(source, at("A", 5), tells=False)
    play(node)
    assert node.took == [([], at("A", 8))]


def test_nothing_new_is_not_stored() -> None:
    node = Node(Script(batch(5), batch(5)), at("A", 5))
    play(node)
    assert node.done == []


@pytest.mark.parametrize("after", [Batch([b"x"], 6, 7, 7, "A"), Batch([], 6, 6, 6, "A")])
def test_what_the_log_skips_is_asked_of_a_peer(after: Batch) -> None:
    """A board that cut a torn end may have cut an event off; no later mark need show it."""
    node = Node(Script(batch(4, b"w"), after), at("A", 4), tells=False)
    node.peers = 9
    play(node)
    assert node.catch_ups == 2


# What is owed


def test_a_catch_up_stays_owed_until_a_peer_has_answered() -> None:
    node = Node(Script(*(batch(5) for _ in range(4))), at("A", 5))

    async def body() -> None:
        await asyncio.sleep(1)
        assert node.catch_ups == 4

    play(node, body)


def test_a_gap_is_given_time_to_close_by_itself() -> None:
    class Quiet(Script):
        async def read(self, offset: int) -> Batch:
            await asyncio.sleep(0.1)
            return batch(offset)

    node = Node(Quiet(), at("A", 5))
    node.peers = 9

    async def body() -> None:
        await asyncio.sleep(0.3)
        assert node.catch_ups == 1  # owed since the start
        node.has_gap = True
        await asyncio.sleep(GAP_PATIENCE_S)
        assert node.catch_ups == 1
        await asyncio.sleep(0.3)
        assert node.catch_ups == 2
        node.has_gap = False
        await asyncio.sleep(3 * GAP_PATIENCE_S)
        assert node.catch_ups == 2

    play(node, body)


# Hooks


def test_each_batch_is_taken_then_told_then_paced_before_the_next_is_read() -> None:
    source = Script(batch(0, b"x", b"y"), batch(2, b"z"))
    node = Node(source, at("A", 0))
    node.takes_s = 0.25
    play(node)
    assert node.done == [
        ("took", [b"x", b"y"], at("A", 2)),
        ("told", [b"x", b"y"], at("A", 2)),
        ("pace", 0.25, 2),
        ("took", [b"z"], at("A", 3)),
        ("told", [b"z"], at("A", 3)),
        ("pace", 0.25, 1),
    ]


def test_while_the_pace_is_awaited_nothing_is_read() -> None:
    source = Script(batch(0, b"x"), batch(1, b"y"))
    node = Node(source, at("A", 0))
    go_on = asyncio.Event()

    async def pace(seconds: float, messages: int) -> None:
        await go_on.wait()

    node.applier._pace = pace

    async def body() -> None:
        await asyncio.sleep(9)
        assert source.asked == [0]
        go_on.set()
        await asyncio.sleep(1)
        assert source.asked == [0, 1, 2]

    play(node, body)


def test_a_move_without_messages_is_told_and_not_paced() -> None:
    node = Node(Script(PlaceGone(7)), at("A", 5))
    play(node)
    assert node.done == [("took", [], at("A", 7)), ("told", [], at("A", 7))]


def test_what_could_not_be_told_is_told_before_the_next_is_read() -> None:
    source = Script(batch(0, b"x"), batch(1, b"y"))
    node = Node(source, at("A", 0))
    node.told_faults = [OSError("one"), OSError("two")]
    play(node)
    told = [one for one in node.done if one[0] == "told"]
    assert told == [("told", [b"x"], at("A", 1)), ("told", [b"y"], at("A", 2))]
    assert [one[1] for one in node.done if one[0] == "took"] == [[b"x"], [b"y"]]
    assert source.asked == [0, 1, 2]


def test_what_could_not_be_taken_is_read_again() -> None:
    source = Script(batch(0, b"x"), batch(0, b"x"))
    node = Node(source, at("A", 0), tells=False)
    node.faults = [OSError("disk full")]
    play(node)
    assert source.asked == [0, 0, 1]
    assert node.took == [([b"x"], at("A", 1))]


# Status


def test_lag_is_the_end_less_the_position() -> None:
    node = Node(Script(batch(3, b"x", end=50)), at("A", 3))
    assert node.applier.end is None
    play(node)
    applier = node.applier
    assert (applier.end, applier.position.next) == (50, 4)


def test_failing_has_the_last_fault_until_it_works_again() -> None:
    source = Script(Unreachable("one"), Unreachable("two"), OSError(), batch(3), batch(3))
    node = Node(source, at("A", 3))
    seen: list[str | None] = [node.applier.failing]

    async def body() -> None:
        while len(source.asked) < 6:
            await asyncio.sleep(0.001)
            if node.applier.failing != seen[-1]:
                seen.append(node.applier.failing)

    play(node, body)
    assert seen == [None, "one", "two", "OSError()", None]
    assert node.log.lines == [], "what passes soon is not told"


def test_it_fails_while_a_peer_does() -> None:
    node = Node(Script(batch(3), batch(3)), at("A", 3))

    async def refused() -> bool:
        raise OSError("no peer")

    node.applier._catch_up = refused
    play(node, for_s=0.01)
    assert node.applier.failing == "no peer"


def test_a_board_that_is_away_is_tried_less_and_less_often() -> None:
    source = Script(*(Unreachable("away") for _ in range(1000)))
    node = Node(source, at("A", 0))
    play(node, for_s=60)
    assert node.log.lines == ["applying waits"]
    assert 60 / (1.5 * RETRY_S_MAX) < len(source.asked) < 60 / (0.5 * RETRY_S_MAX) + 10


# Over a board


def test_over_a_board_every_message_of_every_log_is_taken() -> None:
    """The log is trimmed, made again shorter, made again longer, loses its end, and goes away."""
    board = MemoryBoard(SeededRng())
    client = board.connect("admin", is_admin=True)
    source = BoardSource(client, "t", 0, "b", 1000, 0.5)
    node = Node(source, None)
    node.peers = 1000
    sent: list[bytes] = []

    async def publish(count: int) -> None:
        messages = [b"%d" % (len(sent) + number) for number in range(count)]
        await client.publish("t", 0, messages)
        sent.extend(messages)

    async def settled() -> None:
        async with asyncio.timeout(60):
            while not (
                node.applier.failing is None
                and node.applier.position.identity == board.topic("t").identity
                and node.applier.position.next == node.applier.end
                and node.applier.end == board.partition("t", 0).end
            ):
                await asyncio.sleep(0.01)

    async def body() -> None:
        await client.create_topic("t", 1, {"m": frozenset(Right)})
        await publish(20)
        await settled()
        for count in (5, 100):
            before = node.catch_ups
            board.lose("t")
            await publish(count)
            await settled()
            assert node.catch_ups > before
        board.is_up = False
        await asyncio.sleep(5)
        assert node.applier.failing == "The board is down."
        board.is_up = True
        await publish(10)
        await settled()
        before = node.catch_ups
        board.cut("t", 0, 50)
        await publish(10)
        await settled()
        assert node.catch_ups > before
        board.is_up = False
        await asyncio.sleep(5)
        board.is_up = True
        before = node.catch_ups
        await publish(30)
        sent[-30:-10] = []
        board.forget("t", 0, board.partition("t", 0).end - 10)
        await settled()
        assert node.catch_ups > before

    play(node, body)
    taken = [message for messages, _ in node.took for message in messages]
    assert set(sent) <= set(taken)
    told = [one[1:] for one in node.done if one[0] == "told"]
    assert told == node.took


def test_a_batch_that_is_larger_than_a_transaction_may_be_moves_the_place_with_its_last_part() -> (
    None
):
    source = Script(batch(7, b"a", b"b", b"c", b"d", b"e"))
    node = Node(source, at("A", 7))
    node.events_max = 2
    play(node)
    assert node.took == [
        ([b"a", b"b"], at("A", 7)), ([b"c", b"d"], at("A", 7)), ([b"e"], at("A", 12))
    ]  # fmt: skip
    assert [one for one in node.done if one[0] == "told"] == [
        ("told", [b"a", b"b", b"c", b"d", b"e"], at("A", 12))
    ]
    assert [one[2] for one in node.done if one[0] == "pace"] == [5, 5, 5]


def test_a_fault_in_the_middle_of_a_large_batch_has_all_of_it_read_again() -> None:
    source = Script(batch(7, b"a", b"b"), batch(7, b"a", b"b"))
    node = Node(source, at("A", 7), tells=False)
    node.events_max = 1
    node.takes_s = 1.0

    async def body() -> None:
        await asyncio.sleep(0.5)
        node.faults.append(OSError("the disk"))
        await asyncio.sleep(60)

    play(node, body)
    assert len(node.took) == 3
    assert node.took[-2:] == [([b"a"], at("A", 7)), ([b"b"], at("A", 9))]
    assert source.asked[:2] == [7, 7]
