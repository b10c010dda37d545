"""The embedded board's client: an ``EventBoard`` over HTTP/1.1 with kept-alive connections.

After a failed connect, requests wait before the next one, longer each time and never all at the
same moment; so callers may try again at once. A request without an answer is ``Unreachable``; it is
not repeated here.
"""

import asyncio
import contextlib
import dataclasses
import json
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from divandb.board import base, records
from divandb.board.access import access_json, basic
from divandb.board.base import (
    KIB,
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
from divandb.board.records import END_HEADER, IDENTITY_HEADER, PREFIX
from divandb.clock import Rng

STREAM_BYTES_MAX = 256 * KIB
HEAD_BYTES_MAX = 16 * KIB
BACK_OFF_S_MIN = 0.05
CLOSE_S_MAX = 1.0


@dataclasses.dataclass(frozen=True)
class ClientLimits:
    """What one client uses and how long it waits."""

    reads_max: int = 16
    """Readers at a time, each on a connection; others wait."""
    requests_max: int = 8
    """All other requests at a time."""
    connect_s_max: float = 2.0
    """To open a connection."""
    answer_s_max: float = 10.0
    """For an answer, in addition to the time a reader asked to wait, back-off included."""
    back_off_s_max: float = 2.0
    """Between attempts to connect."""


class _Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class _Connection:
    """One request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def is_open(self) -> bool:
        """False once the other side has closed it."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, request: bytes, body_bytes_max: int) -> tuple[_Reply, bool]:
        """Send a request; the answer, and whether the connection can be used again."""
        self._writer.write(request)
        await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers["content-length"])
        if len(head) > HEAD_BYTES_MAX or length > body_bytes_max:
            raise ValueError(f"an answer of {length} bytes")
        body = await self._reader.readexactly(length)
        return _Reply(int(first.split(" ")[1]), headers, body), headers.get("connection") != "close"

    def close(self) -> None:
        """Close without waiting."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until it is closed."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class EmbeddedBoard:
    """A principal's view of the embedded board at ``url``."""

    def __init__(
        self,
        url: str,
        name: str,
        secret: str,
        rng: Rng,
        limits: BoardLimits | None = None,
        bounds: ClientLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Nothing is opened before the first request. An ``https`` URL needs ``tls`` unless the
        system's certificates will do.
        """
        address = urlsplit(url)
        self._host = address.hostname or ""
        self._tls = (tls or ssl.create_default_context()) if address.scheme == "https" else None
        self._port = address.port or (443 if self._tls else 80)
        self._url = url
        self._common = f"host: {address.netloc}\r\nauthorization: {basic(name, secret)}\r\n"
        self._rng = rng
        self._limits = limits or BoardLimits()
        self._bounds = bounds or ClientLimits()
        self._reads = asyncio.Semaphore(self._bounds.reads_max)
        self._requests = asyncio.Semaphore(self._bounds.requests_max)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._failures = 0
        self._retry_at = 0.0
        self._is_closed = False

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
        wait_ms = min(int(wait_s * 1000), self._limits.wait_ms_max)
        query = f"offset={offset}&bytes_max={max(bytes_max, 0)}&wait_ms={max(wait_ms, 0)}"
        what = f"{topic_named(topic)}/{partition}?{query}"
        reply = await self._ask("GET", what, wait_s=wait_ms / 1000)
        try:
            messages, first, after = records.unpack(reply.body, offset, bytes_max)
            end, identity = int(reply.headers[END_HEADER]), reply.headers[IDENTITY_HEADER]
        except (KeyError, ValueError) as problem:
            raise Unreachable(f"{self._url} gave an answer that is not sound: {problem}") from None
        return Batch(messages, first, after, end, identity)

    async def describe(self, topic: str) -> TopicInfo:
        """See ``EventBoard.describe``."""
        return _info(await self._ask("GET", topic_named(topic)))

    async def create_topic(self, topic: str, partitions: int, access: Access) -> TopicInfo:
        """See ``EventBoard.create_topic``."""
        asked = {"partitions": partitions, "access": access_json(access)}
        return _info(await self._ask("PUT", topic_named(topic), json.dumps(asked).encode()))

    async def set_principal(self, name: str, secret: str) -> None:
        """See ``EventBoard.set_principal``."""
        body = json.dumps({"secret": secret}).encode()
        await self._ask("PUT", topic_named(name), body, folder="_principals")

    async def close(self) -> None:
        """See ``EventBoard.close``."""
        self._is_closed = True
        open_ones = [*self._idle, *self._busy]
        self._idle.clear()
        for connection in open_ones:
            connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await asyncio.gather(*(connection.closed() for connection in open_ones))

    # Requests

    async def _ask(
        self,
        method: str,
        what: str,
        body: bytes = b"",
        *,
        wait_s: float = 0.0,
        folder: str = "topics",
    ) -> _Reply:
        """One request; raises what the board answered, or ``Unreachable``."""
        head = f"{method} {PREFIX}{folder}/{what} HTTP/1.1\r\n{self._common}"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        slots = self._reads if wait_s else self._requests
        try:
            async with asyncio.timeout(wait_s + self._bounds.answer_s_max):
                async with slots:
                    reply = await self._exchange(request)
        except TimeoutError:
            raise Unreachable(f"{self._url} gave no answer in time.") from None
        except (OSError, EOFError, KeyError, ValueError, asyncio.LimitOverrunError) as problem:
            raise Unreachable(f"{self._url} cannot be reached: {problem}") from None
        if reply.status != 200:
            raise _error(reply)
        return reply

    async def _exchange(self, request: bytes) -> _Reply:
        connection = await self._connection()
        self._busy.add(connection)
        try:
            bytes_max = self._limits.answer_bytes_max + self._limits.message_bytes_max + MIB
            reply, is_reusable = await connection.ask(request, bytes_max)
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        if is_reusable and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            connection.close()
        if self._is_closed:
            raise Unreachable("The client is closed.")
        return await self._connect()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._retry_at > loop.time():
            await asyncio.sleep(self._retry_at - loop.time())
        try:
            async with asyncio.timeout(self._bounds.connect_s_max):
                connection = _Connection(
                    *await asyncio.open_connection(
                        self._host, self._port, ssl=self._tls, limit=STREAM_BYTES_MAX
                    )
                )
        except OSError:  # TimeoutError is one
            self._failures += 1
            ceiling = min(
                BACK_OFF_S_MIN * 2 ** min(self._failures, 16), self._bounds.back_off_s_max
            )
            self._retry_at = loop.time() + ceiling * (0.5 + self._rng.uniform() / 2)
            raise
        self._failures = 0
        return connection


def _json(reply: _Reply) -> dict[str, Any]:
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _info(reply: _Reply) -> TopicInfo:
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


def _error(reply: _Reply) -> BoardError:
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
