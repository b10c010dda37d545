"""Threads that read for queries: the node's file and its indexes beside it, each thread on a
connection of its own.

A query is a run of short steps, each a bounded read; so queries take turns with each other, and a
long one makes nobody wait.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from divandb.store import queries
from divandb.store.file import Connection, Disk

THREADS = 2

Step = Callable[[Connection], Any]


class Readers:
    """Lives on the event loop."""

    def __init__(self, disk: Disk, indexes_path: Path, cache_bytes: int) -> None:
        self._disk = disk
        self._indexes_path = indexes_path
        self._cache_bytes = cache_bytes
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="find")
        self._mine = threading.local()
        self._connections: list[Connection] = []

    def close(self) -> None:
        """End what runs."""
        self._pool.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    async def run(self, step: Step) -> Any:
        """What a step gives, which reads both files as of one moment each."""
        return await self._offload(self._on_thread, step)

    async def work(self, function: Callable[[], Any]) -> Any:
        """What a function gives that reads nothing."""
        return await self._offload(function)

    async def _offload(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _on_thread(self, step: Step) -> Any:
        connection: Connection | None = getattr(self._mine, "connection", None)
        if connection is None:
            connection = queries.connect(self._disk, self._indexes_path, self._cache_bytes)
            self._mine.connection = connection
            self._connections.append(connection)
        with connection:
            return step(connection)
