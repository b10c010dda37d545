"""One side of a replication: CouchDB's HTTP API, by httpx.

Documents pass through as the bytes they came in: what this node's JSON could not hold, such as
whole numbers beyond 64 bits, is not changed on its way. A request that fails for a reason that may
pass is sent again a few times; all of them may be carried out twice.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
import orjson

from divandb.clock import Clock, Rng
from divandb.errors import DivanError, NotFound, ReplicationFailed, Unauthorized
from divandb.replication.backoff import Backoff
from divandb.replication.batches import Wanted, bulk_body
from divandb.replication.request import Side

ANSWER_BYTES_MAX = 32 * 2**20
"""Of one answer that is held in memory: `_changes`, `_revs_diff`, `_bulk_get`, `_bulk_docs`."""
TRIES_MAX = 4
TRY_FIRST_MS, TRY_MOST_MS = 200, 5_000
ANSWER_S_MAX = 120.0
"""Until an answer begins, and between two pieces of it."""
LONG_POLL_MS = 30_000
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well be answered."""
UNFIT = frozenset({400, 412, 413, 415})
"""What a target answers to a document that it will never take."""
REFUSED = frozenset({401, 403})
"""What it answers to one that may not be written, and to somebody who may not write."""
SESSION = "divan-session"
"""Sent back, it has a cluster of this kind show all that this replication wrote there."""


class Reply(NamedTuple):
    """An answer, whatever its status."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, decoded; raises ``ReplicationFailed``."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            raise ReplicationFailed("An answer is not JSON.") from None


class TooMuch(ReplicationFailed):
    """An answer is larger than ``ANSWER_BYTES_MAX``: ask for less."""

    def __init__(self) -> None:
        super().__init__(f"An answer is larger than {ANSWER_BYTES_MAX} bytes.")


_NONE = msgspec.Raw(b"")


class Head(msgspec.Struct):
    """What must be known of a document that is passed on."""

    id: str = msgspec.field(name="_id")
    rev: str = msgspec.field(name="_rev")
    attachments: msgspec.Raw = msgspec.field(name="_attachments", default=_NONE)

    @property
    def has_attachments(self) -> bool:
        """Must bytes follow it?"""
        return bool(bytes(self.attachments).strip(b"{} \r\n\t"))


class _Found(msgspec.Struct):
    ok: msgspec.Raw = _NONE
    error: dict[str, Any] | None = None


class _Row(msgspec.Struct):
    docs: list[_Found]


class _Rows(msgspec.Struct):
    results: list[_Row]


class Fetched(NamedTuple):
    """A document with all that `_bulk_docs` needs but attachments."""

    head: Head
    raw: bytes


class End:
    """A database, here or elsewhere."""

    def __init__(self, side: Side, client: httpx.AsyncClient, clock: Clock, rng: Rng) -> None:
        self.side = side
        self._client = client
        self._clock = clock
        self._rng = rng
        base = side.url or f"http://here/{quote(side.database, safe='')}/"
        self._base = base
        self._session = ""
        self.busy_s = 0.0
        """How long this node worked on requests to itself; whoever rests for it sets it back."""

    async def close(self) -> None:
        """Ask no more."""
        await self._client.aclose()

    # Databases

    async def info(self) -> dict[str, Any] | None:
        """``GET /{db}``; ``None`` if there is no such database."""
        reply = await self._ask("GET", "")
        if reply.status == 404:
            return None
        found: dict[str, Any] = self._good(reply)
        return found

    async def create(self, params: Mapping[str, Any]) -> None:
        """Make the database, if it is not there."""
        reply = await self._ask("PUT", "", params=_plain(params))
        if reply.status != 412:
            self._good(reply)

    def missing(self) -> NotFound:
        """The refusal when it is not there."""
        return NotFound(f"could not open {self.side.shown}", error="db_not_found")

    async def changes(
        self,
        since: str | int,
        limit: int,
        *,
        wait: bool = False,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Changes behind ``since``, at most ``limit``; ``wait``: for one, if there is none."""
        asked = {"since": str(since), "limit": str(limit), **_plain(params or {})}
        if wait:
            asked |= {"feed": "longpoll", "timeout": str(LONG_POLL_MS)}
        reply = await self._ask(
            "GET" if body is None else "POST", "_changes", params=asked, json=body,
            extra_s=LONG_POLL_MS / 1000 if wait else 0.0,
        )  # fmt: skip
        if reply.status == 404 and params and "filter" in params:
            raise NotFound(f"the filter is not at {self.side.shown}")
        found = self._good(reply)
        if not isinstance(found, dict) or not isinstance(found.get("results"), list):
            raise ReplicationFailed(f"{self.side.shown}: _changes cannot be read")
        return found

    async def revs_diff(self, revs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Which of these are not there."""
        found: dict[str, Any] = self._good(await self._ask("POST", "_revs_diff", json=revs))
        return found

    async def confirm(self) -> None:
        """What was written is safe. Servers that know no such request need none."""
        reply = await self._ask("POST", "_ensure_full_commit", json={})
        if reply.status not in (404, 405, 501):
            self._good(reply)

    # Logs

    async def log(self, name: str) -> dict[str, Any] | None:
        """`_local/{name}`."""
        reply = await self._ask("GET", f"_local/{name}")
        if reply.status == 404:
            return None
        found = self._good(reply)
        return found if isinstance(found, dict) else None

    async def put_log(self, name: str, log: Mapping[str, Any], rev: str | None) -> str:
        """Store a log over the revision ``rev``; its new revision. Who else stored one meanwhile
        is overwritten: its session stands in the log of the other side as well, or counts no more.
        """
        for _ in range(TRIES_MAX):
            sent = {"_id": f"_local/{name}", **log, **({"_rev": rev} if rev else {})}
            reply = await self._ask("PUT", f"_local/{name}", json=sent)
            if reply.status != 409:
                return str(self._good(reply).get("rev", ""))
            rev = (await self.log(name) or {}).get("_rev")
        raise ReplicationFailed(f"the checkpoint at {self.side.shown} changes all the time")

    # Documents

    async def document(self, doc_id: str) -> dict[str, Any] | None:
        """The winner of a document; ``None`` without one."""
        reply = await self._ask("GET", _path(doc_id))
        return None if reply.status == 404 else self._good(reply)

    async def put(self, doc_id: str, doc: Mapping[str, Any]) -> bool:
        """An ordinary edit; was it no conflict?"""
        reply = await self._ask("PUT", _path(doc_id), json=doc)
        if reply.status == 409:
            return False
        self._good(reply)
        return True

    async def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched] | None:
        """These revisions, or later ones, without the bytes of their attachments. What is gone is
        left out. ``None``: the server knows no `_bulk_get`. Raises ``TooMuch``.
        """
        asked = {"docs": [{"id": one.id, "rev": one.rev} for one in wanted]}
        params = {"revs": "true", "latest": "true"}
        reply = await self._ask("POST", "_bulk_get", params=params, json=asked)
        if reply.status in (400, 404, 405, 501):
            return None
        self._good(reply, decode=False)
        try:
            rows = msgspec.json.decode(reply.body, type=_Rows).results
            return self._unique(found for row in rows for found in row.docs)
        except msgspec.MsgspecError:
            raise ReplicationFailed(f"{self.side.shown}: _bulk_get cannot be read") from None

    def _unique(self, rows: Any) -> list[Fetched]:
        kept: dict[tuple[str, str], Fetched] = {}
        for found in rows:
            raw = bytes(found.ok)
            if raw:
                head = msgspec.json.decode(raw, type=Head)
                kept[head.id, head.rev] = Fetched(head, raw)
            elif (found.error or {}).get("error") != "not_found":
                raise ReplicationFailed(f"{self.side.shown}: {found.error}")
        return list(kept.values())

    async def store(self, docs: Sequence[bytes]) -> int | None:
        """Store documents as they are; how many were refused. ``None``: the whole of it was."""
        reply = await self._ask("POST", "_bulk_docs", content=bulk_body(docs))
        if reply.status in UNFIT:
            return None
        rows = self._good(reply)
        if not isinstance(rows, list):
            raise ReplicationFailed(f"{self.side.shown}: _bulk_docs cannot be read")
        refused = [row for row in rows if isinstance(row, dict) and "error" in row]
        for row in refused:
            if row["error"] in ("service_unavailable", "insufficient_storage", "timeout"):
                raise ReplicationFailed(f"{self.side.shown}: {row['error']}")
        return len(refused)

    async def hand_over(self, one: Wanted, target: "End") -> bool | None:
        """One revision with its attachments, from here to the target in pieces; was it taken?
        ``None``: it is gone here.
        """
        taken = await self._tried(one, target, one.ancestors)
        if taken == 412 and one.ancestors:  # it has not the attachments that we left out
            taken = await self._tried(one, target, ())
        if taken is None:
            return None
        if taken in REFUSED:
            await target.info()  # raises if it is us who are refused
        if taken in UNFIT | REFUSED:
            return False
        if taken not in (200, 201, 202):
            raise ReplicationFailed(f"{target.side.shown} answered {taken}")
        return True

    async def _tried(self, one: Wanted, target: "End", ancestors: Sequence[str]) -> int | None:
        backoff = Backoff(TRY_FIRST_MS, TRY_MOST_MS)
        while True:
            try:
                taken = await self._hand_over(one, target, ancestors)
                if taken not in PASSING or backoff.failures == TRIES_MAX - 1:
                    return taken
            except ReplicationFailed:
                if backoff.failures == TRIES_MAX - 1:
                    raise
            await asyncio.sleep(backoff.failed(self._rng.uniform()))

    async def _hand_over(self, one: Wanted, target: "End", ancestors: Sequence[str]) -> int | None:
        params = {"rev": one.rev, "revs": "true", "latest": "true", "attachments": "true"}
        if ancestors:
            params["atts_since"] = orjson.dumps(list(ancestors)).decode()
        accept = {"accept": "multipart/related, application/json"}
        begun = self._clock.monotonic()
        try:
            async with self._stream("GET", _path(one.id), params, None, accept) as response:
                if response.status_code == 404:
                    return None
                if response.status_code != 200:
                    await response.aread()
                    self._good(Reply(response.status_code, response.content))
                headers = {
                    name: response.headers[name]
                    for name in ("content-type", "content-length")
                    if name in response.headers
                }
                body = response.aiter_raw()
                into = {"new_edits": "false"}
                async with target._stream("PUT", _path(one.id), into, body, headers) as stored:
                    await stored.aread()
                    return stored.status_code
        except (httpx.HTTPError, TimeoutError) as fault:
            raise ReplicationFailed(f"{one.id}: {fault or repr(fault)}") from None
        finally:
            self._worked(begun)

    # Requests

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        content: bytes | None = None,
        extra_s: float = 0.0,
    ) -> Reply:
        """An answer, asked for a few times; raises ``ReplicationFailed`` and ``TooMuch``."""
        body = content if json is None else orjson.dumps(json)
        backoff = Backoff(TRY_FIRST_MS, TRY_MOST_MS)
        while True:
            begun = self._clock.monotonic()
            try:
                async with asyncio.timeout(ANSWER_S_MAX + extra_s):
                    reply = await self._once(method, path, params or {}, body)
                if reply.status not in PASSING or backoff.failures == TRIES_MAX - 1:
                    return reply
            except (httpx.HTTPError, TimeoutError) as fault:
                if backoff.failures == TRIES_MAX - 1:
                    why = str(fault) or type(fault).__name__
                    raise ReplicationFailed(f"could not reach {self.side.shown}: {why}") from None
            finally:
                if not extra_s:
                    self._worked(begun)
            await asyncio.sleep(backoff.failed(self._rng.uniform()))

    async def _once(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None
    ) -> Reply:
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        async with self._stream(method, path, params, body, headers) as response:
            pieces = bytearray()
            async for piece in response.aiter_bytes():
                pieces += piece
                if len(pieces) > ANSWER_BYTES_MAX:
                    raise TooMuch
            return Reply(response.status_code, bytes(pieces))

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None,
        headers: Mapping[str, str],
    ) -> AsyncIterator[httpx.Response]:
        sent = {"accept-encoding": "identity", SESSION: self._session, **self.side.headers}
        if not self.side.url:
            sent["divan-forwarded"] = "1"  # nobody else knows who asks
        async with self._client.stream(
            method, self._base + path, params=params, content=body, headers={**sent, **headers}
        ) as response:
            self._session = response.headers.get(SESSION, self._session)
            yield response

    def _good(self, reply: Reply, *, decode: bool = True) -> Any:
        """The decoded body of an answer that is none of an error; else what it means is raised."""
        if reply.status in (401, 403):
            raise Unauthorized(f"unauthorized to access {self.side.shown}")
        if reply.status >= 300:
            raise self._refusal(reply)
        return reply.json() if decode else None

    def _refusal(self, reply: Reply) -> DivanError:
        try:
            said = orjson.loads(reply.body)
            why = f": {said['error']}: {said['reason']}"
        except (orjson.JSONDecodeError, TypeError, KeyError):
            why = ""
        return ReplicationFailed(f"{self.side.shown} answered {reply.status}{why[:500]}")

    def _worked(self, begun: float) -> None:
        if not self.side.url:
            self.busy_s += self._clock.monotonic() - begun


def _path(doc_id: str) -> str:
    return quote(doc_id, safe="/" if doc_id.startswith("_design/") else "")


def _plain(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they stand in a URL: strings as they are, anything else as JSON."""
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in params.items()
    }
