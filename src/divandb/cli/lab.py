"""A cluster of its own, each process on a host of its own, that can be cut apart.

For `divandb drill partition` and for tests. It lives in a folder as that of `divandb up`: what runs
is in ``cluster.json``, so that `divandb status` and the like know it, on the host ``OUTSIDE``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from divandb import datadir
from divandb.cli.netns import Hosts
from divandb.clock import SystemClock, SystemRng
from divandb.config import REPLICA, Limits, Member
from divandb.configfile import board_text, node_text
from divandb.datadir import BOARD, ClusterRecord, DataDirError, NodeRecord
from divandb.hosts import BOARD_PORT_OFFSET, Plan, board_file, node_file
from divandb.layout import planned
from divandb.supervisor import answers

CLOCK = SystemClock()
OUTSIDE = "outside"
"""The host of who looks on."""
PORT = 5984
READY_S_MAX = 60.0
END_S_MAX = 10.0
LOOK_S = 0.05
COMMAND = (sys.executable, "-m", "divandb")


class Lab:
    """The cluster; see ``lab``."""

    def __init__(
        self, folder: Path, masters: int, replicas: int, limits: Limits, around: Hosts
    ) -> None:
        self.folder = folder
        self.hosts = around
        self.members = [
            Member(one.name, one.role, one.slot, f"http://{around.address(one.name)}:{PORT}")
            for one in planned(masters, replicas)
        ]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._board = around.address(BOARD)
        self._limits = limits

    def begin(self) -> None:
        """Write the files and start everything; raises ``DataDirError``."""
        rng = SystemRng()
        datadir.make(self.folder)
        secret, admin = datadir.make_secret(self.folder, rng), datadir.make_admin(self.folder, rng)
        plan = Plan((self._board,), self._board, PORT, self.folder, admin, secret, self._limits)
        datadir.write_private(self._file(BOARD), board_text(board_file(plan, self.members)))
        for one in self.members:
            address = self.hosts.address(one.name)
            made = node_file(
                secret, one, self.members, plan.boards, host=address, node_port=PORT, port=None,
                data=self.folder / one.name, admin=admin, limits=self._limits,
            )  # fmt: skip
            datadir.write_private(self._file(one.name), node_text(made))
        for name in (BOARD, *(one.name for one in self.members)):
            self.start(name)
        with self.hosts.on(OUTSIDE):
            self.await_up()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.toml"

    def log(self, name: str) -> Path:
        """What a process has said."""
        return self.folder / f"{name}.log"

    def start(self, name: str) -> None:
        """Start a process, again or for the first time."""
        kind = BOARD if name == BOARD else "node"
        command = [*COMMAND, kind, "--config", str(self._file(name))]
        self._processes[name] = self.hosts.start(name, command, self.log(name), os.environ)
        self._record()

    def kill(self, name: str) -> None:
        """`kill -9`, and it stays down."""
        self._processes[name].kill()
        self._processes[name].wait(END_S_MAX)
        self._record()

    def pid(self, name: str) -> int:
        """The process id."""
        return self._processes[name].pid

    def await_up(self) -> None:
        """Wait, on a host that reaches them, until all nodes answer; raises ``DataDirError``."""
        until = CLOCK.monotonic() + READY_S_MAX
        for one in self.members:
            while not answers(one.url):
                if CLOCK.monotonic() > until or self._processes[one.name].poll() is not None:
                    last = self.log(one.name).read_text(errors="replace")[-500:]
                    raise DataDirError(f"{one.name} does not answer: {last}")
                time.sleep(LOOK_S)

    def _record(self) -> None:
        """For who asks the folder what runs."""
        masters = {one.slot: one.name for one in self.members if one.role != REPLICA}
        board = f"http://{self._board}:{PORT + BOARD_PORT_OFFSET}"
        found = [(BOARD, BOARD, None, board)] + [
            (one.name, one.role, masters[one.slot] if one.role == REPLICA else None, one.url)
            for one in self.members
        ]
        records = [
            NodeRecord(name, role, master, url, self._pid(name), 0, None)
            for name, role, master, url in found
        ]
        url = self.members[-1].url
        datadir.write_cluster(self.folder, ClusterRecord(url, os.getpid(), records, board=board))

    def _pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        return None if process is None or process.poll() is not None else process.pid

    @contextlib.contextmanager
    def cut_off(self, name: str) -> Iterator[None]:
        """Nobody hears it and it hears nobody, for as long as one is inside."""
        self.hosts.cut(self.hosts.around(name))
        try:
            yield
        finally:
            self.hosts.heal()

    def end(self) -> dict[str, int]:
        """Stop everything; name → exit status, of those that had not been killed."""
        running = {name: one for name, one in self._processes.items() if one.poll() is None}
        for name, one in running.items():
            if name != BOARD:
                one.send_signal(signal.SIGTERM)
        for name, one in sorted(running.items(), key=lambda pair: pair[0] == BOARD):
            if name == BOARD:
                one.send_signal(signal.SIGTERM)
            try:
                one.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait(END_S_MAX)
        return {name: one.returncode for name, one in running.items()}


@contextlib.contextmanager
def lab(folder: Path, masters: int, replicas: int, limits: Limits) -> Iterator[Lab]:
    """A cluster in this folder, stopped at the end. Inside one is on the host ``OUTSIDE``.

    Raises ``NetnsError`` or ``DataDirError``.
    """
    names = [BOARD, OUTSIDE, *(one.name for one in planned(masters, replicas))]
    with contextlib.closing(Hosts(names)) as around:
        made = Lab(folder, masters, replicas, limits, around)
        try:
            made.begin()
            with around.on(OUTSIDE):
                yield made
        finally:
            made.end()
