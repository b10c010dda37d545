"""The embedded board's endpoints: what each request asks the broker for.

GET  /board/v1/_up                              is it up? Nobody is asked who they are
PUT  /board/v1/_principals/{name}               {"secret": …}; admins
PUT  /board/v1/topics/{topic}                   partitions, access, durable; admins
GET  /board/v1/topics/{topic}                   identity and offsets
POST /board/v1/topics/{topic}/{partition}       packed messages; {"offset": …}
GET  /board/v1/topics/{topic}/{partition}       ?offset=&bytes_max=&wait_ms=; records
GET  /board/v1/topics/{topic}/{partition}/feed  ?offset=&bytes_max=; records as they come
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from divandb.board import records
from divandb.board.access import Principal, access_from, check_admin
from divandb.board.base import MIB, BadRequest, BoardError, Full, TooLarge, TopicInfo
from divandb.board.broker import Broker
from divandb.board.feed import Answer, Feed
from divandb.board.records import END_HEADER, IDENTITY_HEADER, PREFIX

JSON_BYTES_MAX = 1 * MIB
JSON = "application/json"
RECORDS = "application/octet-stream"


@dataclasses.dataclass(frozen=True)
class Head:
    """A request up to its body."""

    method: str
    target: str
    authorization: str
    length: int
    """Bytes of the body."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    kind: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    feed: Feed | None = None
    """There is no end to it: ``body`` is only the beginning."""


def _nothing() -> None:
    pass


def _not_at_once(_: bytes) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Call:
    """A request that may go on: ``run`` it with its body, then ``release`` it, run or not."""

    run: Callable[[bytes], Awaitable[Reply]]
    release: Callable[[], None] = _nothing
    answer: Callable[[bytes], Reply | None] = _not_at_once
    """The reply, if it can be given at once: nothing is to be run then."""


class Visitor:
    """Who is at the other end of a connection. Looked up again only when it says something else."""

    def __init__(self, routes: "Routes") -> None:
        self._routes = routes
        self._known: tuple[str, object] | None = None
        self._principal = Principal("")

    def principal(self, authorization: str) -> Principal:
        """Raises ``Unidentified``; ``Full`` for a principal with too many connections."""
        principals = self._routes.broker.principals
        # Another table means that some secret has changed.
        seen = (authorization, principals.known)
        if self._known is None or self._known[0] != seen[0] or self._known[1] is not seen[1]:
            found = principals.authenticate(authorization)
            self.leave()
            self._routes.enter(found.name)
            self._known, self._principal = seen, found
        return self._principal

    def leave(self) -> None:
        """The connection is gone."""
        if self._known is not None:
            self._routes.left(self._principal.name)
        self._known = None


class Routes:
    """From requests to the broker."""

    def __init__(self, broker: Broker, connections_per_principal_max: int) -> None:
        self.broker = broker
        self._connections_max = connections_per_principal_max
        self._connections: Counter[str] = Counter()

    def enter(self, name: str) -> None:
        """Count a principal's connection; raises ``Full`` when it has too many."""
        if self._connections[name] >= self._connections_max:
            raise Full(f"{name} has {self._connections_max} connections already.")
        self._connections[name] += 1

    def left(self, name: str) -> None:
        """A connection less."""
        self._connections[name] -= 1
        if not self._connections[name]:
            del self._connections[name]

    def begin(self, visitor: Visitor, head: Head) -> Call:
        """What a request asks for, decided before its body is read. Raises ``BoardError``."""
        path, _, query = head.target.partition("?")
        if not path.startswith(PREFIX):
            raise _no_endpoint(head)
        match head.method, path.removeprefix(PREFIX).split("/"):
            case "GET", ["_up"]:
                return Call(_up)
            case _, parts:
                principal = visitor.principal(head.authorization)
                return self._begin(principal, head, parts, query)

    def _begin(self, principal: Principal, head: Head, parts: list[str], query: str) -> Call:
        match head.method, parts:
            case "POST", ["topics", topic, partition]:
                return self._publish(principal, topic, _number(partition), head.length)
            case "GET", ["topics", topic, partition]:
                return self._read(principal, topic, _number(partition), query)
            case "GET", ["topics", topic, partition, "feed"]:
                return self._feed(principal, topic, _number(partition), query)
            case "GET", ["topics", topic]:
                return self._describe(principal, topic)
            case "PUT", ["topics", topic]:
                return self._create(principal, topic, head)
            case "PUT", ["_principals", name]:
                return self._set_principal(principal, name, head)
            case _:
                raise _no_endpoint(head)

    def _publish(self, principal: Principal, topic: str, partition: int, length: int) -> Call:
        admission = self.broker.admit(principal, topic, partition, length)

        def answer(body: bytes) -> Reply | None:
            first = admission.publish_now(body)
            return None if first is None else _json({"offset": first})

        async def run(body: bytes) -> Reply:
            return _json({"offset": await admission.publish(body)})

        return Call(run, admission.release, answer)

    def _read(self, principal: Principal, topic: str, partition: int, query: str) -> Call:
        offset, bytes_max, wait_s = self._place(query)

        def answer(_: bytes) -> Reply | None:
            found = self.broker.recent(principal, topic, partition, offset, bytes_max)
            has_records = found is not None and found.slice.records
            return _records(found) if found is not None and has_records else None

        async def run(_: bytes) -> Reply:
            return _records(
                await self.broker.read(principal, topic, partition, offset, bytes_max, wait_s)
            )

        return Call(run, answer=answer)

    def _feed(self, principal: Principal, topic: str, partition: int, query: str) -> Call:
        offset, bytes_max, _ = self._place(query)

        async def run(_: bytes) -> Reply:
            feed = await self.broker.feed(principal, topic, partition, offset, bytes_max)
            headers = ((IDENTITY_HEADER, feed.identity),)
            return Reply(200, records.pack_piece(*feed.first), RECORDS, headers, feed)

        return Call(run)

    def _place(self, query: str) -> tuple[int, int, float]:
        """(offset, bytes of an answer, seconds to wait)"""
        asked = _asked(query)
        bytes_max = asked.get("bytes_max", str(self.broker.limits.answer_bytes_max))
        wait_ms = asked.get("wait_ms", "0")
        return _number(asked.get("offset", "")), _number(bytes_max), _number(wait_ms) / 1000

    def _describe(self, principal: Principal, topic: str) -> Call:
        async def run(_: bytes) -> Reply:
            return _json(_described(self.broker.describe(principal, topic)))

        return Call(run)

    def _create(self, principal: Principal, topic: str, head: Head) -> Call:
        _check_admin(principal, head)

        async def run(body: bytes) -> Reply:
            asked = _object(body)
            try:
                partitions, access = int(asked["partitions"]), access_from(asked["access"])
            except (KeyError, TypeError, ValueError) as problem:
                raise BadRequest(f"A topic takes partitions and access: {problem}.") from None
            durable = asked.get("durable", True) is not False
            info = await self.broker.create_topic(principal, topic, partitions, access, durable)
            return _json(_described(info))

        return Call(run)

    def _set_principal(self, principal: Principal, name: str, head: Head) -> Call:
        _check_admin(principal, head)

        async def run(body: bytes) -> Reply:
            secret = _object(body).get("secret")
            if not isinstance(secret, str):
                raise BadRequest("A principal takes a secret.")
            await self.broker.set_principal(principal, name, secret)
            return _json({"ok": True})

        return Call(run)


async def _up(_: bytes) -> Reply:
    return _json({"status": "ok"})


def _asked(query: str) -> dict[str, str]:
    """A query's last value of each name. Only numbers are asked for: nothing is unescaped."""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return {name: value for name, _, value in pairs}


def _records(found: Answer) -> Reply:
    headers = ((END_HEADER, str(found.slice.end)), (IDENTITY_HEADER, found.identity))
    return Reply(200, found.slice.records, RECORDS, headers)


def failure(error: BoardError) -> Reply:
    """The answer for an error."""
    value = {"error": error.error, "reason": error.reason, **error.details()}
    return _json(value, error.status)


def _json(value: dict[str, Any], status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode() + b"\n")


def _described(info: TopicInfo) -> dict[str, Any]:
    return dataclasses.asdict(info)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise BadRequest(f"{text[:40]!r} is not a number.")
    return int(text)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    return value


def _check_admin(principal: Principal, head: Head) -> None:
    """Before a body of JSON is read."""
    check_admin(principal, f"{head.method} {head.target[:200]}")
    if head.length > JSON_BYTES_MAX:
        raise TooLarge(f"The body is above the limit of {JSON_BYTES_MAX} bytes.")


def _no_endpoint(head: Head) -> BoardError:
    return BadRequest(f"There is no {head.method[:20]} {head.target[:200]} here.")
