"""Questions to many nodes at once, each with a bound on the wait.

Whether a node is up, ``/_up`` says at once and without a login. What it says about itself may take
longer when it is asked by an admin for the first time: a password is checked by a slow hash.
"""

import asyncio
import base64
import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from divandb.clock import SystemRng
from divandb.link import Link, LinkBounds, LinkBroken
from divandb.localkafka import API_VERSIONS

UP = "/_up"
UP_S_MAX = 2.0
"""A node that has not answered by then is silent."""
ANSWER_S_MAX = 15.0
"""For the answer of a node that is up."""
ANSWER_BYTES_MAX = 16 * 2**20
AT_A_TIME_MAX = 64
REASON_CHARS_MAX = 200


@dataclasses.dataclass(frozen=True)
class Asked:
    """What became of a question."""

    state: str
    """``up``: it answers. ``silent``: it took the question and did not answer in time. ``down``:
    nobody took the question.
    """
    body: dict[str, Any] | None = None
    """The JSON object of a 200 or 202."""
    refused: str | None = None
    """Why there is none, if it is up."""

    @property
    def is_up(self) -> bool:
        """Did it answer?"""
        return self.state == "up"


def basic(admin: str | None) -> str | None:
    """The ``Authorization`` of `USER:PASSWORD`."""
    return None if admin is None else f"Basic {base64.b64encode(admin.encode()).decode()}"


async def ask_all(
    questions: Mapping[str, tuple[str, str]], authorization: str | None, body: bytes | None = None
) -> dict[str, Asked]:
    """Name → what became of ``GET`` of a (URL, path), or of ``POST`` if there is a JSON body."""
    turns = asyncio.Semaphore(AT_A_TIME_MAX)

    async def one(url: str, path: str) -> Asked:
        async with turns:
            return await ask(url, path, authorization, body)

    found = await asyncio.gather(*(one(url, path) for url, path in questions.values()))
    return dict(zip(questions, found, strict=True))


async def greet(url: str) -> Asked:
    """Does a Kafka broker say what it speaks?"""
    place, writer = urlsplit(url), None
    try:
        async with asyncio.timeout(UP_S_MAX):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(API_VERSIONS)
            return Asked("up" if await reader.read(1) else "down")
    except TimeoutError:
        return Asked("silent")
    except OSError:
        return Asked("down")
    finally:
        if writer is not None:
            writer.close()


async def ask(url: str, path: str, authorization: str | None, body: bytes | None = None) -> Asked:
    """What becomes of one ``GET``, or ``POST`` if there is a JSON body."""
    bounds = LinkBounds(connect_s_max=UP_S_MAX, answer_s_max=ANSWER_S_MAX)
    link = Link(url, {"accept": "application/json"}, SystemRng(), bounds)
    try:
        async with asyncio.timeout(UP_S_MAX):
            await link.ask("GET", UP, body_bytes_max=ANSWER_BYTES_MAX)
        return await _answer(link, path, authorization, body)
    except TimeoutError:
        return Asked("silent")
    except LinkBroken as problem:
        return Asked("silent" if problem.sent else "down")
    finally:
        await link.close()


async def _answer(link: Link, path: str, authorization: str | None, sent: bytes | None) -> Asked:
    """Of a node that is up."""
    headers = {} if authorization is None else {"authorization": authorization}
    if sent is not None:
        headers["content-type"] = "application/json"
    try:
        reply = await link.ask(
            "GET" if sent is None else "POST", path, sent or b"", headers=headers,
            body_bytes_max=ANSWER_BYTES_MAX,
        )  # fmt: skip
    except LinkBroken as problem:
        return Asked("up", refused=str(problem))
    try:
        body = msgspec.json.decode(reply.body, type=dict[str, Any])
    except msgspec.DecodeError:
        body = {}
    if reply.status in (200, 202):
        return Asked("up", body)
    reason = str(body.get("reason", ""))[:REASON_CHARS_MAX]
    return Asked("up", refused=f"answered {reply.status}, {reason}".removesuffix(", "))


def credentials_in(url: str, admin: str | None) -> tuple[str, str | None]:
    """(the URL without credentials, those in it or else ``admin``); raises ``ValueError``."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # from a bad address or port
        is_one = False
    if not is_one:
        raise ValueError(f"{url} is not an http:// or https:// URL")
    if parts.username:
        admin = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", admin
