"""Proxies that make nodes seem far away, and a transport that takes a client's requests there."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterable

import httpx

from tests.running import Cluster

PIECE_BYTES = 65_536


class FarNode:
    """One node behind a TCP proxy that keeps every piece of an answer back for ``delay_s``."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0

    async def open(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(
                self._carry(reader, there[1], delays=False),
                self._carry(there[0], writer, delays=True),
            )
        except OSError:
            pass
        except asyncio.CancelledError:
            return
        finally:
            self._links.discard(task)
            writer.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delays: bool
    ) -> None:
        try:
            while data := await reader.read(PIECE_BYTES):
                if delays:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def close(self) -> None:
        """Let go of everything."""
        if self._server is not None:
            self._server.close()
        for task in list(self._links):
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


class Detour(httpx.AsyncBaseTransport):
    """Sends what is for a node through its proxy, and counts who was asked for what counts."""

    def __init__(self, names: dict[int, str], ports: dict[str, int]) -> None:
        """``names`` by the nodes' own ports, ``ports`` of the proxies."""
        self._names = names
        self._ports = ports
        self._inner = httpx.AsyncHTTPTransport()
        self.asked: collections.Counter[str] = collections.Counter()
        """Requests by node, probes and looks at the topology aside."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = self._names[request.url.port or 80]
        if request.url.path not in ("/_up", "/_divan/topology"):
            self.asked[name] += 1
        request.url = request.url.copy_with(port=self._ports[name])
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextlib.asynccontextmanager
async def far(
    cluster: Cluster, names: Iterable[str]
) -> AsyncIterator[tuple[dict[str, FarNode], Detour]]:
    """Proxies before these nodes, and the transport that uses them."""
    nodes = {name: FarNode(cluster.port_of(name)) for name in names}
    try:
        ports = {name: await node.open() for name, node in nodes.items()}
        yield nodes, Detour({cluster.port_of(name): name for name in nodes}, ports)
    finally:
        for node in nodes.values():
            await node.close()
