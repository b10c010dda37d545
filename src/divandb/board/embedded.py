"""The embedded board's client: an ``EventBoard`` over a ``Link``.

Callers may try again at once: the link waits longer before each new connection. A request without
an answer is ``Unreachable``; only one that changes nothing is made again here, and only when the
board had closed a connection that was kept alive.
"""

import json
import ssl
from collections.abc import Sequence
from typing import Any

from divandb.board import base, records
from divandb.board.access import access_json, basic
from divandb.board.base import (
    MIB,
    Access,
    Batch,
    BoardError,
    BoardLimits,
    Damaged,
    OffsetAhead,
    OffsetGone,
    PartitionInfo,
    TopicInfo,
    Unreachable,
    check_batch,
    topic_named,
)
from divandb.board.embedded_tail import Tail
from divandb.board.records import END_HEADER, IDENTITY_HEADER, PREFIX
from divandb.clock import Rng
from divandb.link import Link, LinkBounds, LinkBroken, Reply

Place = tuple[str, int]
"""A topic, and the number of a partition."""


class EmbeddedBoard:
    """A principal's view of the embedded board at ``url``."""

    def __init__(
        self,
        url: str,
        name: str,
        secret: str,
        rng: Rng,
        limits: BoardLimits | None = None,
        bounds: LinkBounds | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened before the first request. An ``https`` URL needs ``tls`` unless the
        system's certificates will do.
        """
        self._link = Link(url, {"authorization": basic(name, secret)}, rng, bounds, tls)
        self._limits = limits or BoardLimits()
        self._answer_bytes_max = (
            self._limits.answer_bytes_max + self._limits.message_bytes_max + MIB
        )
        self._tails: dict[Place, Tail] = {}
        self._next: dict[Place, int] = {}
        """Where the last answer ended that was asked for."""
        self._busy: set[Place] = set()
        """Partitions that somebody reads: others ask by themselves."""

    # EventBoard

    async def publish(self, topic: str, partition: int, messages: Sequence[bytes]) -> int:
        """See ``EventBoard.publish``."""
        check_batch(messages, self._limits)
        body = records.pack_messages(messages)
        reply = await self._ask("POST", f"{topic_named(topic)}/{partition}", body)
        offset: int = _json(reply)["offset"]
        return offset

    async def read(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_s: float
    ) -> Batch:
        """See ``EventBoard.read``."""
        place = (topic_named(topic), partition)
        if wait_s <= 0 or place in self._busy:
            return await self._look(place, offset, bytes_max, wait_s)
        self._busy.add(place)
        try:
            tail = await self._tail(place, offset)
            if tail is not None and (found := await self._took(tail, bytes_max, wait_s)):
                return found
            batch = await self._look(place, offset, bytes_max, wait_s)
            self._next[place] = batch.next
            return batch
        finally:
            self._busy.discard(place)

    async def _tail(self, place: Place, offset: int) -> Tail | None:
        """What is sent to who reads on from where the last answer ended; ``None`` for others."""
        tail = self._tails.get(place)
        if tail is not None and (tail.next != offset or tail.is_over):
            tail.close()
            self._tails.pop(place)
            tail = None
        if tail is None and self._next.pop(place, None) == offset:
            what = f"{PREFIX}topics/{place[0]}/{place[1]}/feed?offset={offset}"
            try:
                tail = await Tail.opened(self._link, what, offset, self._answer_bytes_max)
            except LinkBroken as broken:
                raise Unreachable(broken.reason) from None
            self._tails[place] = tail
        return tail

    async def _took(self, tail: Tail, bytes_max: int, wait_s: float) -> Batch | None:
        """What has come; ``None`` if the board has to be asked, and says why."""
        await tail.wait(wait_s)
        if tail.is_over or not tail.identity:
            return None
        try:
            return tail.take(bytes_max)
        except ValueError as problem:
            tail.close()
            raise self._unsound(problem) from None

    async def _look(self, place: Place, offset: int, bytes_max: int, wait_s: float) -> Batch:
        wait_ms = min(int(wait_s * 1000), self._limits.wait_ms_max)
        query = f"offset={offset}&bytes_max={max(bytes_max, 0)}&wait_ms={max(wait_ms, 0)}"
        reply = await self._ask("GET", f"{place[0]}/{place[1]}?{query}", wait_s=wait_ms / 1000)
        try:
            messages, first, after = records.unpack(reply.body, offset, bytes_max)
            headers = reply.headers
            end, identity = int(headers[END_HEADER]), headers[IDENTITY_HEADER]
        except (KeyError, ValueError) as problem:
            raise self._unsound(problem) from None
        return Batch(messages, first, after, end, identity)

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard.describe``."""
        return _info(await self._ask("GET", topic_named(topic)))

    async def create_topic(
        self, topic: str, partitions: int, access: Access, *, durable: bool = True
    ) -> TopicInfo:
        """See ``EventBoard.create_topic``."""
        asked = {"partitions": partitions, "access": access_json(access), "durable": durable}
        return _info(await self._ask("PUT", topic_named(topic), json.dumps(asked).encode()))

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard.set_principal``."""
        body = json.dumps({"secret": secret}).encode()
        await self._ask("PUT", topic_named(name), body, folder="_principals")

    async def close(self) -> None:
        """See ``EventBoard.close``."""
        for tail in self._tails.values():
            tail.close()
        await self._link.close()

    def _unsound(self, problem: Exception) -> Unreachable:
        return Unreachable(f"{self._link.url} gave an answer that is not sound: {problem}")

    async def _ask(
        self,
        method: str,
        what: str,
        body: bytes = b"",
        *,
        wait_s: float = 0.0,
        folder: str = "topics",
    ) -> Reply:
        """One request; raises what the board answered, or ``Unreachable``."""
        try:
            reply = await self._link.ask(
                method,
                f"{PREFIX}{folder}/{what}",
                body,
                wait_s=wait_s,
                body_bytes_max=self._answer_bytes_max,
                repeatable=method == "GET",
            )
        except LinkBroken as broken:
            raise Unreachable(broken.reason) from None
        if reply.status != 200:
            raise _error(reply)
        return reply


def _json(reply: Reply) -> dict[str, Any]:
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _info(reply: Reply) -> TopicInfo:
    value = _json(reply)
    partitions = tuple(PartitionInfo(**one) for one in value["partitions"])
    return TopicInfo(value["topic"], value["identity"], partitions, value["message_bytes_max"])


_BY_CODE: dict[str, type[BoardError]] = {
    kind.error: kind
    for kind in (
        base.BadRequest,
        base.Refused,
        base.Unidentified,
        base.NoTopic,
        base.TooLarge,
        base.Full,
        base.DiskFull,
    )
}


def _error(reply: Reply) -> BoardError:
    """The error that a board answered with."""
    value = _json(reply)
    match value:
        case {"error": "offset_gone", "start": int(start)}:
            return OffsetGone(start)
        case {"error": "offset_ahead", "end": int(end)}:
            return OffsetAhead(end)
        case {
            "error": "damaged",
            "segment": str(name),
            "offset": int(offset),
            "resume": int(resume),
        }:
            return Damaged(name, offset, resume)
    kind = _BY_CODE.get(str(value.get("error")), BoardError)
    return kind(str(value.get("reason", f"The board answered {reply.status}.")))
