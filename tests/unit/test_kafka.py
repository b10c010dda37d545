"""The parts of the board on Kafka, over the broker that librdkafka brings for tests: one partition
written, one partition read, errors as boards raise them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest
from confluent_kafka import KafkaError, Producer

from divandb.board.base import (
    BoardError,
    Full,
    NoTopic,
    Refused,
    TooLarge,
    Unidentified,
    Unreachable,
)
from divandb.board.kafka_client import KafkaBounds, common, error_of
from divandb.board.kafka_pen import Paper, Pen
from divandb.board.kafka_tail import Lost, Tail
from divandb.config import BoardAccess, KafkaAccess

TOPIC = "t"
BOUNDS = KafkaBounds(answer_s_max=5.0, ahead_bytes_max=100_000)
SILENT = logging.getLogger("silent")
SILENT.disabled = True


class Mock:
    """A cluster of one broker in librdkafka's own threads, until ``end``."""

    def __init__(self) -> None:
        self._cluster: Producer | None = Producer({"test.mock.num.brokers": 1, "logger": SILENT})
        (self._broker,) = self._cluster.list_topics(TOPIC, timeout=10).brokers.values()

    def access(self) -> BoardAccess:
        url = f"kafka://{self._broker.host}:{self._broker.port}"
        return BoardAccess(url, "me", "a secret", KafkaAccess(security="plaintext"))

    def end(self) -> None:
        self._cluster = None


@pytest.fixture
def mock() -> Iterator[Mock]:
    made = Mock()
    yield made
    made.end()


class Hands:
    """Makes pens and tails, and knows which pens broke."""

    def __init__(self, mock: Mock, bounds: KafkaBounds) -> None:
        self.settings = common(mock.access(), bounds)
        self.bounds = bounds
        self.broken: list[Pen] = []
        self.made: list[Pen | Tail] = []

    def pen(self, topic: str = TOPIC) -> Pen:
        paper = Paper(topic, 0, 20_000)
        pen = Pen(self.settings, self.bounds, "me", paper, self.broken.append)
        self.made.append(pen)
        return pen

    def tail(self, offset: int) -> Tail:
        tail = Tail(self.settings, self.bounds, "me", TOPIC, 0, offset, "identity")
        self.made.append(tail)
        return tail

    async def end(self) -> None:
        for one in self.made:
            if isinstance(one, Pen):
                one.close()
            else:
                one.close("The test ends.")
            async with asyncio.timeout(10):
                await one.ended


def with_hands(
    mock: Mock, body: Callable[[Hands], Awaitable[None]], bounds: KafkaBounds = BOUNDS
) -> None:
    async def run() -> None:
        hands = Hands(mock, bounds)
        try:
            await body(hands)
        finally:
            await hands.end()

    asyncio.run(run())


async def read(tail: Tail, offset: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        assert await tail.wait(offset, 10)
        messages, first, offset = tail.take(offset, 10**6)
        assert first == offset - len(messages)
        found += messages
    return found


def test_what_a_pen_writes_a_tail_reads(mock: Mock) -> None:
    sent = [b"", b"\0\xff", *(b"%d" % number * number for number in range(100))]

    async def body(hands: Hands) -> None:
        pen = hands.pen()
        assert await pen.write(sent[:2]) == 0
        later = [pen.write([message]) for message in sent[2:]]
        assert await asyncio.gather(*later) == list(range(2, len(sent)))
        assert await read(hands.tail(0), 0, len(sent)) == sent
        assert await read(hands.tail(50), 50, len(sent) - 50) == sent[50:]

    with_hands(mock, body)


def test_a_tail_covers_what_it_has_and_what_comes_next_and_nothing_else(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        await hands.pen().write([b"%d" % number for number in range(10)])
        tail = hands.tail(4)
        assert await tail.wait(9, 10)
        assert [offset for offset in range(12) if tail.covers(offset)] == [4, 5, 6, 7, 8, 9, 10]
        assert tail.take(7, 2) == ([b"7", b"8"], 7, 9)
        assert not tail.covers(6), "what was passed is forgotten"
        assert tail.take(7, 0) == ([b"7"], 7, 8)
        assert tail.has(9) and not tail.has(10)
        assert tail.end == 10

    with_hands(mock, body)


def test_a_tail_holds_no_more_than_its_bound_and_goes_on_when_there_is_room(mock: Mock) -> None:
    sent = [b"%06d" % number + b"x" * 9_994 for number in range(100)]

    async def body(hands: Hands) -> None:
        pen = hands.pen()
        for place in range(0, 100, 10):
            await pen.write(sent[place : place + 10])
        tail = hands.tail(0)
        assert await tail.wait(0, 10)
        await asyncio.sleep(0.5)
        held = sum(len(message) for _, message in tail._messages)
        assert held < 4 * hands.bounds.ahead_bytes_max
        assert await read(tail, 0, 100) == sent
        assert tail.take(100, 1) == ([], 100, 100)

    with_hands(mock, body)


def test_publishes_that_come_while_one_is_on_its_way_go_together_in_their_order(
    mock: Mock,
) -> None:
    async def body(hands: Hands) -> None:
        pen = hands.pen()
        assert await pen.write([b"0"]) == 0
        together: list[int] = []
        hand_over = pen._hand_over

        def counted() -> None:
            together.append(len(pen._waiting))
            hand_over()

        pen._hand_over = counted  # type: ignore[method-assign]
        writes = [pen.write([b"%d" % number, b"x"]) for number in range(1, 21)]
        assert await asyncio.gather(*writes) == list(range(1, 41, 2))
        assert together == [1, 19]
        sent = [part for number in range(1, 21) for part in (b"%d" % number, b"x")]
        assert await read(hands.tail(1), 1, 40) == sent

    with_hands(mock, body)


def test_who_is_busy_is_not_woken_and_finds_all_that_came(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        pen, tail = hands.pen(), hands.tail(0)
        await pen.write([b"first"])
        assert await tail.wait(0, 10)
        assert tail.take(0, 1000)[0] == [b"first"]
        for number in range(5):
            await pen.write([b"%d" % number])
        await asyncio.sleep(0.3)
        assert not tail.has(1)
        assert await read(tail, 1, 5) == [b"0", b"1", b"2", b"3", b"4"]

    with_hands(mock, body)


def test_an_offset_that_is_not_there_is_lost_and_never_another_one(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        await hands.pen().write([b"a"])
        tail = hands.tail(7)
        with pytest.raises(Lost):
            await tail.wait(7, 10)
        assert not tail.has(7)

    with_hands(mock, body)


def test_a_wait_ends_empty_handed_and_a_closed_tail_ends_it_at_once(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        tail = hands.tail(0)
        assert not await tail.wait(0, 0.05)
        waiting = asyncio.create_task(tail.wait(0, 60))
        await asyncio.sleep(0)
        tail.close("Enough.")
        with pytest.raises(Unreachable, match=r"Enough\."):
            await waiting

    with_hands(mock, body)


def test_without_brokers_everything_is_unreachable_and_nothing_hangs(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        pen = hands.pen()
        await pen.write([b"a"])
        tail = hands.tail(1)  # before the log is so long, it would be nowhere
        assert not await tail.wait(1, 0.05)
        await asyncio.to_thread(mock.end)
        with pytest.raises(Unreachable):
            await tail.wait(1, 60)
        writes = [asyncio.create_task(pen.write([b"b"])) for _ in range(3)]
        for write in writes:
            with pytest.raises(Unreachable):
                await write
        assert hands.broken == [pen]

    with_hands(mock, body)


def test_a_pen_that_waits_too_long_breaks_and_so_does_all_that_it_has(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        pen = hands.pen("nowhere")  # librdkafka waits for such a topic to come
        writes = [asyncio.create_task(pen.write([b"%d" % number])) for number in range(3)]
        for write in writes:
            with pytest.raises(Unreachable):
                await write
        assert hands.broken == [pen]
        await pen.ended
        with pytest.raises(Unreachable):
            await pen.write([b"later"])

    with_hands(mock, body, KafkaBounds(answer_s_max=0.2))


def test_a_pen_takes_no_more_than_its_bounds(mock: Mock) -> None:
    async def body(hands: Hands) -> None:
        pen = hands.pen()
        with pytest.raises(TooLarge, match="20001 bytes"):
            await pen.write([b"x" * 20_001])
        first = asyncio.create_task(pen.write([b"x" * 20_000]))
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await pen.write([b"x" * 10_001])
        assert await first == 0
        assert await pen.write([b"x" * 20_000]) == 1
        assert not hands.broken

    with_hands(mock, body, KafkaBounds(answer_s_max=5.0, publish_bytes_max=30_000))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Refused),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, Refused),
        (KafkaError.SASL_AUTHENTICATION_FAILED, Unidentified),
        (KafkaError._AUTHENTICATION, Unidentified),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, NoTopic),
        (KafkaError._UNKNOWN_PARTITION, NoTopic),
        (KafkaError.MSG_SIZE_TOO_LARGE, TooLarge),
        (KafkaError._ALL_BROKERS_DOWN, Unreachable),
        (KafkaError._TIMED_OUT, Unreachable),
        (KafkaError.NOT_ENOUGH_REPLICAS, Unreachable),
        (KafkaError.INVALID_REQUIRED_ACKS, BoardError),
    ],
)
def test_an_error_says_who_wanted_what_and_keeps_the_brokers_words(
    code: int, kind: type[BoardError]
) -> None:
    problem = KafkaError(code, "in the broker's words")
    error = error_of(problem, "m1", "write divandb.x.masters")
    assert type(error) is kind
    assert "m1" in error.reason
    assert "in the broker's words" in error.reason and problem.name() in error.reason
    if kind is not Unidentified:
        assert "write divandb.x.masters" in error.reason


def test_settings_say_how_a_client_proves_who_it_is() -> None:
    plain = common(
        BoardAccess("kafka://a:1,b:2", "m1", "s", KafkaAccess(security="plaintext")), BOUNDS
    )
    assert plain["bootstrap.servers"] == "a:1,b:2"
    assert not any(key.startswith(("sasl", "ssl")) for key in plain)
    scram = common(BoardAccess("kafka://a:1", "m1", "s"), BOUNDS)
    assert (scram["sasl.username"], scram["sasl.password"]) == ("m1", "s")
    assert scram["security.protocol"] == "sasl_plaintext"
