"""What an Event Board is to those who use it.

    BoardError                     500 internal_server_error
    ├── Unreachable                503 unreachable          no answer: it may have been done or not
    ├── BadRequest                 400 bad_request          a mistake of the caller
    ├── Refused                    403 forbidden            a right is missing, it says which
    │   └── Unidentified           401 unauthorized         name or secret are wrong
    ├── NoTopic                    404 not_found            no such topic or partition
    ├── OffsetGone                 410 offset_gone          before what is retained: ask peers
    ├── OffsetAhead                416 offset_ahead         behind the end: ask peers
    ├── TooLarge                   413 too_large            a message or a batch above its limit
    ├── Damaged                    500 damaged              records there cannot be read: ask peers
    └── Full                       503 service_unavailable  a bound is reached: come back later
        └── DiskFull               507 insufficient_storage

These are spoken between nodes and boards and are no part of the tree that clients of the database
see. None of them means "go to the latest": what cannot be read on the board is fetched from peers.
"""

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

KIB = 2**10
MIB = 2**20
TOPIC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
PRINCIPAL_NAME = TOPIC_NAME
PARTITIONS_MAX = 1000
"""Partitions of one topic."""
OFFSET_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class BoardLimits:
    """What a board takes and gives at once. Server and clients should agree."""

    message_bytes_max: int = 1 * MIB
    """One message."""
    batch_bytes_max: int = 4 * MIB
    """One publish: its messages, and four bytes for each."""
    answer_bytes_max: int = 256 * KIB
    """One answer to a reader; only a single message that is larger makes it larger."""
    wait_ms_max: int = 30_000
    """The longest a reader may wait for something new."""


class Right(enum.StrEnum):
    """What a principal may do with a topic. Either right is enough to describe it."""

    READ = "read"
    WRITE = "write"


Access = Mapping[str, frozenset[Right]]
"""The rights of each principal on one topic; who is not named has none."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Messages as they stand in a partition."""

    messages: list[bytes]
    first: int
    """The first message's offset: greater than the offset asked for where the log has a gap. With
    no messages it is ``next``.
    """
    next: int
    """Where to go on reading. Offsets within a batch are contiguous when there are messages."""
    end: int
    """The log's end when this was read: the offset that the next message gets."""
    identity: str
    """The topic's identity when this was read: an offset means nothing under another."""


@dataclasses.dataclass(frozen=True)
class PartitionInfo:
    """What a partition retains: offsets from ``start`` up to, not including, ``end``."""

    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class TopicInfo:
    """What may be known of a topic."""

    topic: str
    identity: str
    """Changes when the topic's log was lost or made again: stored offsets then mean nothing."""
    partitions: tuple[PartitionInfo, ...]
    message_bytes_max: int
    """The largest message that this topic takes."""


class EventBoard(Protocol):
    """A principal's view of a board. Safe for any number of tasks of one event loop."""

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """Append a batch; the offset of its first message.

        Returns when the whole batch is durable, in order and contiguous. Without an answer
        (``Unreachable``, cancelled) it may be there or not: publish it again, so each message is
        there at least once.
        """
        ...

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """What lies at ``offset`` and behind it: at most ``bytes_max`` bytes of messages, but at
        least one message if there is any.

        At the end it waits for something new, ``wait_s`` seconds at most; the batch is empty if
        nothing came. Raises ``OffsetGone``, ``OffsetAhead`` or ``Damaged`` where only peers can
        help.
        """
        ...

    async def describe(self, topic: str) -> TopicInfo:
        """The topic's identity and offsets."""
        ...

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """Make a topic, or give one more partitions and these rights. For admins only.

        An existing topic's partitions are never made fewer (``BadRequest``), and nothing in them
        changes. What is published on a topic that is not ``durable`` may be lost when the machine
        fails; its identity is another one then. A topic stays what it was made as.
        """
        ...

    async def set_principal(self, name: str, secret: str) -> None:
        """Make a principal known, or give it another secret. For admins only."""
        ...

    async def close(self) -> None:
        """Let go of connections; requests under way end with ``Unreachable``."""
        ...


class BoardError(Exception):
    """The root: ``status`` (HTTP), ``error`` (code), ``reason`` (text), and the values that
    ``details`` names.
    """

    status: ClassVar[int] = 500
    error: ClassVar[str] = "internal_server_error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def details(self) -> dict[str, Any]:
        """The values that travel with the error."""
        return {}


class Unreachable(BoardError):
    """No answer came. What was asked for may have been done or not."""

    status = 503
    error = "unreachable"


class BadRequest(BoardError):
    status = 400
    error = "bad_request"


class Refused(BoardError):
    status = 403
    error = "forbidden"


class Unidentified(Refused):
    status = 401
    error = "unauthorized"


class NoTopic(BoardError):
    status = 404
    error = "not_found"


class OffsetGone(BoardError):
    """The offset lies before ``start``, where what is retained begins."""

    status = 410
    error = "offset_gone"

    def __init__(self, start: int) -> None:
        super().__init__(f"What is retained begins at {start}.")
        self.start = start

    def details(self) -> dict[str, Any]:
        return {"start": self.start}


class OffsetAhead(BoardError):
    """The offset lies behind ``end``: the log is not what it was."""

    status = 416
    error = "offset_ahead"

    def __init__(self, end: int) -> None:
        super().__init__(f"The log ends at {end}.")
        self.end = end

    def details(self) -> dict[str, Any]:
        return {"end": self.end}


class TooLarge(BoardError):
    status = 413
    error = "too_large"


class Damaged(BoardError):
    """``segment`` has no sound record for ``offset``; at ``resume`` the log can be read again."""

    status = 500
    error = "damaged"

    def __init__(self, segment: str, offset: int, resume: int) -> None:
        super().__init__(f"{segment} is damaged at offset {offset}; it goes on at {resume}.")
        self.segment = segment
        self.offset = offset
        self.resume = resume

    def details(self) -> dict[str, Any]:
        return {"segment": self.segment, "offset": self.offset, "resume": self.resume}


class Full(BoardError):
    status = 503
    error = "service_unavailable"


class DiskFull(Full):
    status = 507
    error = "insufficient_storage"


def topic_named(name: str) -> str:
    """``name`` if a topic can be called that; raises ``BadRequest``."""
    if not TOPIC_NAME.fullmatch(name):
        raise BadRequest(f"{name!r} cannot be a topic's name: 200 of A-Z a-z 0-9 . _ - at most.")
    return name


def check_batch(messages: Sequence[bytes], limits: BoardLimits) -> None:
    """Raises ``BadRequest`` or ``TooLarge`` unless these messages can be published at once."""
    if not messages:
        raise BadRequest("There is nothing to publish.")
    largest = max(map(len, messages))
    if largest > limits.message_bytes_max:
        raise TooLarge(
            f"A message of {largest} bytes is above the limit of {limits.message_bytes_max}."
        )
    size = sum(map(len, messages)) + 4 * len(messages)
    if size > limits.batch_bytes_max:
        raise TooLarge(f"A batch of {size} bytes is above the limit of {limits.batch_bytes_max}.")


def check_growth(topic: str, before: int, partitions: int) -> None:
    """Raises ``BadRequest`` unless a topic may go from ``before`` to ``partitions``."""
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise BadRequest(f"A topic has 1 to {PARTITIONS_MAX} partitions.")
    if partitions < before:
        raise BadRequest(f"{topic} has {before} partitions; they cannot be made fewer.")


def refusal(principal: str, right: Right, topic: str) -> Refused:
    """The error for a missing right."""
    return Refused(f"{principal} may not {right} {topic}.")
