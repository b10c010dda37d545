"""One process of a cluster over several hosts, run from its file, in the foreground, by itself.

Whoever runs it starts it again. No supervisor looks after its place on the clients' port: on
several hosts a proxy with health checks does that.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from divandb import datadir
from divandb.board import embedded_server
from divandb.board.embedded_server import Steward
from divandb.clock import Clock
from divandb.cluster import topics
from divandb.configfile import ConfigFileError, KafkaFile, NodeFile, read_board, read_boards
from divandb.pulse import Pulse, Sockets
from divandb.server import serve
from divandb.supervisor import bound, listen


def run_node(file: NodeFile, clock: Clock) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``DataDirError``, ``StartError`` or ``OSError``."""
    data = file.config.data
    datadir.make(data)
    with contextlib.ExitStack() as stack:
        stack.enter_context(datadir.locked(data, clock, orphan_s_max=0.0))
        own = stack.enter_context(listen(file.host, file.node_port))
        shared = None if file.port is None else stack.enter_context(bound(file.host, file.port))
        serve(file.config, Sockets(own, shared, Pulse(clock)))


def run_board(path: Path, environment: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT; at SIGHUP the members are read from the file again.

    Raises ``ConfigFileError``, ``DataDirError``, ``StartError``, ``InUse`` or ``OSError``.
    """
    file = read_boards(path, environment)
    if isinstance(file, KafkaFile):
        raise ConfigFileError(f"{path}: url is Kafka's: there is no board to run")
    datadir.make(file.config.data)

    async def arrange(steward: Steward) -> None:
        now = await asyncio.to_thread(read_board, path, environment)
        await topics.arrange(steward, now.cluster, now.members, now.secrets, now.readers)

    with listen(file.host, file.port) as own:
        embedded_server.serve(dataclasses.replace(file.config, arrange=arrange), [own])
