"""A supervisor over two nodes that behave as the first argument says: see test_supervisor.py.

python -m tests.system.fake_nodes BEHAVIOUR DATA [no-restart]
"""

import os
import select
import signal
import socket
import sys
from pathlib import Path

from divandb import datadir
from divandb.clock import SystemClock
from divandb.config import Config
from divandb.supervisor import Bounds, StartError, Supervisor
from divandb.telemetry import LineLog

UP = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
BOUNDS = Bounds(restart_s_min=0.05, restart_s_max=0.2, ready_s_max=2.0, stop_s_max=0.5)


def serve(config: Config, sockets: list[socket.socket]) -> None:
    """Answer every connection alike; end on SIGTERM, unless the behaviour is another one."""
    behaviour = sys.argv[1]
    if behaviour == "fails":
        raise OSError(28, "No space left on device")
    if behaviour == "crashes":
        raise ZeroDivisionError
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listening = [] if behaviour == "silent" else sockets
    while True:
        for ready in select.select(listening, [], [])[0]:
            connection, _ = ready.accept()
            with connection:
                first = connection.recv(4096)
                connection.sendall(UP)
            if first.startswith(b"POST /end"):
                os._exit(7)


def main() -> int:
    data = Path(sys.argv[2])
    configs = [Config(data=data, name=name, port=0) for name in ("m1", "m2")]
    clock = SystemClock()
    restart = "no-restart" not in sys.argv
    supervisor = Supervisor(
        configs, serve, clock, LineLog("supervisor", clock), restart=restart, bounds=BOUNDS
    )
    with datadir.locked(data, clock, orphan_s_max=5.0):
        try:
            return supervisor.run(lambda cluster: print("ready", flush=True))
        except StartError as problem:
            print(problem, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
