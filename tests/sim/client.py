"""Clients: what they send over the simulated network, and what they may expect of the answers.

Client      requests, with the session token in a header, in cookies, or not at all
Notebook    a session that writes and reads documents of its own: reads show its writes, and
            with the header never go back
Follower    a ``_changes`` reader that goes to another node at each poll and misses nothing
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from divandb import cursor
from divandb.auth import credentials
from divandb.vector import join
from tests.sim.checkers import (
    AnsweredIsCommitted,
    FeedsMissNothing,
    OwnWritesAreRead,
    ReadsNeverGoBack,
)
from tests.sim.network import Broken, Request
from tests.sim.node import ADMIN, Node

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

WITHIN_S = 40.0
BASIC = credentials.basic_header(*ADMIN.split(":"))


class Unanswered(Exception):
    """Nobody knows what became of it."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: list[tuple[str, str]]
    json: Any

    def header(self, name: str) -> str | None:
        """The last header of that name."""
        return next((value for known, value in reversed(self.headers) if known == name), None)


class Client:
    """Somebody outside. ``carries``: "header", "cookies" or nothing of the session token."""

    def __init__(self, cluster: "Cluster", name: str = "client", carries: str = "") -> None:
        self.cluster = cluster
        self.name = name
        self.carries = carries
        self.token = ""
        self.cookies: dict[str, str] = {}
        self.user: bytes = BASIC
        cluster.network.add(name)

    async def ask(
        self, node: Node, method: str, path: str, body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """An answer, whatever it says; raises ``Unanswered``."""
        data = orjson.dumps(body) if body is not None else b""
        said = [(b"authorization", self.user)] if self.user else []
        if body is not None:
            said.append((b"content-type", b"application/json"))
        if data or method in ("PUT", "POST"):
            said.append((b"content-length", b"%d" % len(data)))
        said += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        said += self._carried()
        try:
            reply = await self.cluster.network.ask(
                self.name, node.name, Request(method, path, said, data), WITHIN_S
            )
        except Broken as broken:
            raise Unanswered(broken.reason) from None
        found = [(name.decode().lower(), value.decode()) for name, value in reply.lines]
        answer = Answer(reply.status, found, orjson.loads(reply.body) if reply.body else None)
        self._keep(answer)
        self._believe(path, answer)
        return answer

    def _believe(self, path: str, answer: Answer) -> None:
        """What is answered is true."""
        if answer.status != 201:
            return
        told = answer.json if isinstance(answer.json, list) else [answer.json]
        for one in told:
            if "rev" in one and "id" in one and not one["id"].startswith("_local/"):
                name = path.split("/")[1].partition("?")[0]
                self.cluster.told(AnsweredIsCommitted, name, one["id"], one["rev"])

    def _carried(self) -> list[tuple[bytes, bytes]]:
        if self.carries == "header":
            # An empty token asks for one.
            return [(b"divan-session", (self.token or "kA").encode())]
        if self.carries == "cookies" and self.cookies:
            pairs = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
            return [(b"cookie", pairs.encode())]
        return []

    def _keep(self, answer: Answer) -> None:
        if self.carries == "header":
            self.token = answer.header("divan-session") or self.token
        elif self.carries == "cookies":
            for name, value in answer.headers:
                if name == "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0]

    def log_in(self, name: str, password: str) -> None:
        """Be somebody else from now on."""
        self.user = credentials.basic_header(name, password)

    async def bytes(self, node: Node, path: str, first: int, last: int) -> bytes:
        """A range of something."""
        headers = [(b"authorization", self.user), (b"range", b"bytes=%d-%d" % (first, last))]
        asked = Request("GET", path, headers, b"")
        reply = await self.cluster.network.ask(self.name, node.name, asked, WITHIN_S)
        assert reply.status == 206, reply
        return reply.body

    async def put(self, node: Node, path: str, body: Any, **headers: str) -> Answer:
        return await self.ask(node, "PUT", path, body, _headers(headers))

    async def post(self, node: Node, path: str, body: Any, **headers: str) -> Answer:
        return await self.ask(node, "POST", path, body, _headers(headers))

    async def get(self, node: Node, path: str, **headers: str) -> Answer:
        return await self.ask(node, "GET", path, None, _headers(headers))

    async def delete(self, node: Node, path: str, **headers: str) -> Answer:
        return await self.ask(node, "DELETE", path, None, _headers(headers))


def _headers(named: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in named.items()}


class Notebook:
    """A session that counts up in a document of its own and reads it wherever it likes."""

    def __init__(self, client: Client, database: str) -> None:
        self.client = client
        self.database = database
        self.reads = 0
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self.doc_id = f"{self.client.name}-{self._number}"
        self.rev: str | None = None
        self.value = 0
        self.seen = 0

    @property
    def path(self) -> str:
        return f"/{self.database}/{self.doc_id}"

    async def write(self, node: Node) -> bool:
        """Count on; was it approved? After an answer that leaves it open, another page begins."""
        body: dict[str, Any] = {"v": self.value + 1}
        if self.rev is not None:
            body["_rev"] = self.rev
        try:
            answer = await self.client.put(node, self.path, body)
        except Unanswered:
            self._begin()
            return False
        if answer.status != 201:
            assert answer.status in (404, 410, 503, 507), (
                "a correct client is refused", node.name, answer,
            )  # fmt: skip
            self._begin()
            return False
        self.rev = answer.json["rev"]
        self.value += 1
        return True

    async def read(self, node: Node) -> None:
        """Look: what was approved must be there, and nothing goes back."""
        path, value = self.path, self.value
        if not value:
            return
        try:
            answer = await self.client.get(node, path)
        except Unanswered:
            return
        is_behind = answer.status in (410, 503) or answer.header("divan-session-behind")
        if is_behind or path != self.path:
            return
        self.reads += 1
        shown = answer.json.get("v", 0) if answer.status == 200 else 0
        cluster = self.client.cluster
        cluster.told(OwnWritesAreRead, node, path, value, self.seen, shown)
        if self.client.carries == "header":
            cluster.told(ReadsNeverGoBack, node, path, value, self.seen, shown)
        self.seen = max(self.seen, shown)


class Follower:
    """Reads ``_changes`` wherever it likes, goes on from ``last_seq``, and keeps what it was told.
    Its cursor vouches for what it has seen.
    """

    def __init__(self, client: Client, database: str, *, by_rows: bool = False) -> None:
        """``by_rows``: it goes on from the last row's ``seq``, as PouchDB does."""
        self.client = client
        self.database = database
        self.by_rows = by_rows
        self.since = "0"
        self.polls = 0
        self._shown: dict[str, set[str]] = {}
        self._vouched: dict[int, int] = {}

    async def poll(self, node: Node, limit: int) -> int:
        """Read some; how many changes there were."""
        path = f"/{self.database}/_changes?style=all_docs&limit={limit}&since={self.since}"
        try:
            answer = await self.client.get(node, path)
        except Unanswered:
            return 0
        if answer.status != 200:
            assert answer.status in (404, 410, 503), (node.name, answer)
            return 0
        self.polls += 1
        for row in answer.json["results"]:
            revs = {change["rev"] for change in row["changes"]}
            self._shown.setdefault(row["id"], set()).update(revs)
        rows = answer.json["results"]
        self.since = rows[-1]["seq"] if rows and self.by_rows else answer.json["last_seq"]
        self._check(node)
        return len(rows)

    def _check(self, node: Node) -> None:
        _, found = cursor.parse(self.since)
        assert found is not None
        # Whoever answered knows what its cursor means.
        vector = node.ledger.closings.expand(found.vector)
        self.client.cluster.told(
            FeedsMissNothing, node, (self.database, found.generation), self._shown,
            self._vouched, vector,
        )  # fmt: skip
        self._vouched = join(self._vouched, vector)

    def check_all(self) -> None:
        """Nothing is written any more and it has read to the end: it has seen every leaf."""
        node = self.client.cluster.nodes[0]
        database = node.ledger.register[self.database]
        rows = node.connection.execute(
            "SELECT id FROM doc WHERE db = ? ORDER BY id", (database.num,)
        )
        for (doc_id,) in rows.fetchall():
            missed = set(node.leaves(self.database, str(doc_id))) - self._shown.get(
                str(doc_id), set()
            )
            assert not missed, ("a change is missed", doc_id, missed)
