"""Requests to a node without sockets, for counting: ``python -m bench.operations``, a process of
its own, which ``bench.counters`` starts.

A master is opened as ``divandb.server`` opens it, and requests go into its protocol as bytes; what
the transport is given is the answer. A line on stdout says that a case is ready, and a line on
stdin lets it go on: between two such lines only the requests run.
"""

import asyncio
import base64
import gc
import json
import logging
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from bench import documents
from divandb.cluster import sessions
from divandb.config import MASTER, Config, Keys
from divandb.httpd.app import App
from divandb.httpd.lane import Lane
from divandb.httpd.peer_lane import PeerLane
from divandb.httpd.protocol import protocol_class
from divandb.httpd.services import Services
from divandb.server import TABLES, opened

DB = "bench"
DOCS, DOC_BYTES, BULK_DOCS = 1_000, 200, 250
ANSWER_S_MAX = 300.0
"""valgrind is slow."""
ADMIN = "bench:bench"
TOKEN = sessions.text({}, {})
"""Of a client that has written nothing; a single node gives none itself."""


@dataclass(frozen=True, slots=True)
class Case:
    """``requests`` are sent one after another; ``warm`` of them before counting."""

    name: str
    requests: int
    warm: int
    docs: int
    """Documents in a request, by which its cost is divided, too."""


CASES = (
    Case("get", 300, 20, 1),
    Case("get_session", 300, 20, 1),
    Case("not_modified", 300, 20, 1),
    Case("put", 100, 10, 1),
    Case("bulk", 4, 1, BULK_DOCS),
    Case("all_docs", 4, 1, DOCS),
    Case("changes", 4, 1, DOCS),
)


class Wire(asyncio.Transport):
    """A connection whose other end is this process."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.received = bytearray()
        self.heard = asyncio.Event()

    def write(self, data: Any) -> None:
        self.received += data
        self.heard.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing comes that was not asked for."""

    def resume_reading(self) -> None:
        """As above."""

    def close(self) -> None:
        raise ConnectionError(f"the node closed: {bytes(self.received[:500])!r}")

    abort = close


class Client:
    """Sends requests and waits for their answers."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._wire = Wire()
        protocol.connection_made(self._wire)

    async def send(self, request: bytes) -> bytes:
        """The answer to one request. ConnectionError when it is not a success."""
        wire = self._wire
        wire.received.clear()
        self._protocol.data_received(request)
        async with asyncio.timeout(ANSWER_S_MAX):
            while not is_whole(wire.received):
                wire.heard.clear()
                await wire.heard.wait()
        answer = bytes(wire.received)
        if answer[9:10] not in (b"2", b"3"):
            raise ConnectionError(f"{request[:80]!r}: {answer[:500]!r}")
        return answer


def is_whole(answer: bytes | bytearray) -> bool:
    """Is an answer to its end?"""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    head = head.lower()
    if head.startswith(b"http/1.1 304"):
        return True
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


def request(method: str, path: str, body: bytes = b"", more: str = "") -> bytes:
    """As a client sends it."""
    login = base64.b64encode(ADMIN.encode()).decode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:5984\r\nAuthorization: Basic {login}\r\n"
    head += f"Accept: application/json\r\n{more}"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


class Requests:
    """The requests of each case, the same in every run."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._bodies = [
            documents.body(self._rng, DOC_BYTES, documents.NUMBER_FIRST + n) for n in range(DOCS)
        ]
        self.ids = documents.ids(self._rng, DOCS)
        self.tags: dict[str, str] = {}

    def filling(self) -> bytes:
        """One bulk request with all documents."""
        docs = b",".join(map(documents.with_id, self.ids, self._bodies))
        return request("POST", f"/{DB}/_bulk_docs", b'{"docs":[' + docs + b"]}")

    def of(self, case: Case) -> Iterator[bytes]:
        """Without end."""
        bulk = documents.bulk_bodies(self._rng, self._bodies[:BULK_DOCS])
        while True:
            one = self._rng.choice(self.ids)
            if case.name == "get":
                yield request("GET", f"/{DB}/{one}")
            elif case.name == "get_session":
                yield request("GET", f"/{DB}/{one}", more=f"Divan-Session: {TOKEN}\r\n")
            elif case.name == "not_modified":
                yield request("GET", f"/{DB}/{one}", more=f'If-None-Match: "{self.tags[one]}"\r\n')
            elif case.name == "put":
                (new,) = documents.ids(self._rng, 1)
                yield request("PUT", f"/{DB}/{new}", self._rng.choice(self._bodies))
            elif case.name == "bulk":
                yield request("POST", f"/{DB}/_bulk_docs", next(bulk))
            else:
                yield request("GET", f"/{DB}/_{case.name}?limit={DOCS}")


def config_in(folder: Path) -> Config:
    """A master that is alone, without a board: what it writes waits in its outbox."""
    return Config(
        data=folder,
        name="m1",
        role=MASTER,
        slot="m1",
        admin=ADMIN,
        url="http://127.0.0.1:8",
        board=None,
        keys=Keys("cluster", "cookies", "token"),
    )


def client_of(services: Services) -> Client:
    """A connection to this node."""
    config = uvicorn.Config(
        App(services, TABLES),
        http=protocol_class(Lane(services), PeerLane(services), 32 * 1024),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
    )
    config.load()
    made = cast(Any, config.http_protocol_class)
    return Client(made(config=config, server_state=ServerState(), app_state={}))


async def run(folder: Path, names: list[str], tell: Any, wait: Any) -> None:
    """All cases, or those of these names; ``tell`` a line and ``wait`` for one around each."""
    async with opened(config_in(folder)) as node:
        client, requests = client_of(node.services), Requests()
        await client.send(request("PUT", f"/{DB}"))
        rows = (await client.send(requests.filling())).partition(b"\r\n\r\n")[2]
        requests.tags = {row["id"]: row["rev"] for row in json.loads(rows)}
        for case in CASES:
            if names and case.name not in names:
                continue
            made = requests.of(case)
            for _ in range(case.warm):
                await client.send(next(made))
            ready = [next(made) for _ in range(case.requests)]
            gc.collect()
            tell(f"ready {case.name}")
            wait()
            for one in ready:
                await client.send(one)
            tell(f"done {case.name}")
            wait()


def main(names: list[str]) -> None:
    """Until all cases have run."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    gc.set_threshold(50_000)

    def tell(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(Path(name), names, tell, sys.stdin.readline))


if __name__ == "__main__":
    main(sys.argv[1:])
