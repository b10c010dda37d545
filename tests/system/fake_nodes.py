"""A supervisor over processes that behave as the first argument says: see test_supervisor.py.

python -m tests.system.fake_nodes BEHAVIOUR DATA [no-restart] [PLAN]

PLAN is `pair` (two masters that serve clients; the default), `single` (one of them), `readers`
(three replicas that do) or `cluster` (a board, three masters and nine replicas, which serve
clients). Words in the file DATA/more, NAME or NAME:PORT, are further replicas; it is read on
SIGUSR1. A process that ends cleanly writes its name to DATA/ended.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from divandb import datadir
from divandb.clock import SystemClock
from divandb.pulse import Sockets, keep_listening
from divandb.supervisor import Bounds, ChildSpec, StartError, Supervisor
from divandb.telemetry import LineLog

BOUNDS = Bounds(restart_s_min=0.05, restart_s_max=0.2, ready_s_max=2.0, stop_s_max=0.5)
DATA = Path(sys.argv[2])
BLOCKED_S = 0.8
SPUN_S = 0.9


def reader(word: str) -> ChildSpec:
    """A replica that serves clients, from its NAME or NAME:PORT."""
    name, _, port = word.partition(":")
    master = name.partition(".")[0]
    return ChildSpec(name, "replica", master, serves_clients=True, port=int(port or 0))


def master(name: str, *, serves_clients: bool = False) -> ChildSpec:
    """A master."""
    return ChildSpec(name, "master", None, serves_clients=serves_clients)


PLANS = {
    "pair": [master(name, serves_clients=True) for name in ("m1", "m2")],
    "single": [master("m1", serves_clients=True)],
    "readers": [reader(name) for name in ("r1", "r2", "r3")],
    "cluster": [
        ChildSpec("board", "board", None, serves_clients=False),
        *(master(name) for name in ("m1", "m2", "m3")),
        *(reader(f"m{group}.r{number}") for group in (1, 2, 3) for number in (1, 2, 3)),
    ],
}


class Connection(asyncio.Protocol):
    """Answers one request with who answers, and who the others are."""

    def __init__(self, spec: ChildSpec, urls: Mapping[str, str]) -> None:
        self._spec = spec
        self._body = json.dumps({"name": spec.name, "urls": dict(urls)}).encode()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST /end"):
            os._exit(7)
        if data.startswith(b"GET /block"):
            time.sleep(BLOCKED_S)
        if data.startswith(b"GET /spin"):
            until = time.monotonic() + SPUN_S
            while time.monotonic() < until:
                pass
        status = b"401 Unauthorized" if self._spec.role == "board" else b"200 OK"
        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self._transport.write(head % (status, len(self._body)) + self._body)
        self._transport.close()


def serve(spec: ChildSpec, urls: Mapping[str, str], sockets: Sockets) -> None:
    """Answer every request alike; end on SIGTERM, unless the behaviour is another one."""
    behaviour = sys.argv[1]
    if behaviour == "fails":
        raise OSError(28, "No space left on device")
    if behaviour == "crashes":
        raise ZeroDivisionError
    if behaviour == "silent":
        signal.sigwait({signal.SIGTERM})
        return
    uvloop.run(_serve(spec, urls, sockets, is_stubborn=behaviour == "stubborn"))


async def _serve(
    spec: ChildSpec, urls: Mapping[str, str], sockets: Sockets, *, is_stubborn: bool
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    is_stubborn = is_stubborn and spec.role != "board"
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if is_stubborn else stopping.set)
    await loop.create_server(lambda: Connection(spec, urls), sock=sockets.own, backlog=1024)
    if sockets.shared is None:
        await stopping.wait()
    else:
        sockets.pulse.beat()
        shared = sockets.shared
        await loop.create_server(lambda: Connection(spec, urls), sock=shared, backlog=1024)
        beating = asyncio.create_task(keep_listening(sockets.pulse, shared))
        await stopping.wait()
        beating.cancel()
    if spec.role != "board":
        await asyncio.sleep(0.05)  # so that a board that is stopped too early would end first
    with open(DATA / "ended", "a") as ended:
        ended.write(f"{spec.name}\n")


def more() -> list[ChildSpec]:
    """The plan as the file says it now."""
    return [*_plan(), *(reader(word) for word in (DATA / "more").read_text().split())]


def _plan() -> list[ChildSpec]:
    return next((PLANS[word] for word in sys.argv[3:] if word in PLANS), PLANS["pair"])


def main() -> int:
    clock = SystemClock()
    supervisor = Supervisor(
        DATA,
        "127.0.0.1",
        0,
        _plan(),
        serve,
        clock,
        LineLog("supervisor", clock),
        grow=more,
        restart="no-restart" not in sys.argv,
        bounds=BOUNDS,
    )
    before = clock.monotonic()
    with datadir.locked(DATA, clock, orphan_s_max=5.0):
        try:
            return supervisor.run(
                lambda cluster: print(f"ready {clock.monotonic() - before:.3f}", flush=True)
            )
        except StartError as problem:
            print(problem, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
