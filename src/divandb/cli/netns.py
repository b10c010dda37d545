"""Hosts within this machine: network namespaces that a bridge joins, and that can be cut apart.

A host is a process that sleeps in a network namespace of its own. Nothing gets a name in the
system: namespaces, links and addresses are gone with these processes, and they end with whoever
made them, however that ends.

A cut is silent, as that of a network: packets go to a hardware address that nobody has. So it can
be one-way, and nobody is told.

Needs root, `ip` (iproute2), `unshare`, `nsenter` and `setpriv` (util-linux).
"""

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
NETWORK = "10.213.0"
HOSTS_MAX = 250
LIFE_S = 3600
"""A host is gone after this time, whatever became of who made it."""
END_S_MAX = 5.0
NOWHERE = "02:00:00:00:00:00"
"""A hardware address that nobody has."""


class NetnsError(Exception):
    """There are no such hosts to be had; the text is one line for the operator."""


class Hosts:
    """Some, and a switch between them; to be closed."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises ``NetnsError``."""
        if len(names) > HOSTS_MAX:
            raise NetnsError(f"there is room for {HOSTS_MAX} hosts")
        self._stack = contextlib.ExitStack()
        self._sleepers: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses = {name: f"{NETWORK}.{n}" for n, name in enumerate(names, 1)}
        self._is_cut: set[tuple[str, str]] = set()
        try:
            self._make(names)
        except BaseException:
            self.close()
            raise

    def _make(self, names: Sequence[str]) -> None:
        switch = self._sleeper()
        _ip(switch, "link add br0 type bridge", "link set br0 up")
        for number, name in enumerate(names):
            host = self._sleepers[name] = self._sleeper()
            _ip(
                switch,
                f"link add p{number} type veth peer name eth0 netns {host.pid}",
                f"link set p{number} master br0 up",
            )
            address = self._addresses[name]
            _ip(host, f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up")

    def _sleeper(self) -> subprocess.Popen[bytes]:
        """A process in a namespace of its own."""
        command = f"echo there; exec sleep {LIFE_S}"
        try:
            made = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError as missing:
            raise _unable(f"there is no {missing.filename}") from None
        self._stack.callback(_end, made)
        assert made.stdout is not None and made.stderr is not None
        if made.stdout.readline() != b"there\n":
            raise _unable(made.stderr.read().decode(errors="replace").strip())
        return made

    def address(self, name: str) -> str:
        """Where the others reach it."""
        return self._addresses[name]

    def start(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Run a command on that host; it ends when whoever started it does."""
        where = ["nsenter", "--target", str(self._sleepers[name].pid), "--net"]
        with log.open("ab") as file:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *where, *command],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(environment),
            )  # fmt: skip

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Inside, this thread, and what it starts, is on that host."""
        with open("/proc/thread-self/ns/net") as home:
            with open(f"/proc/{self._sleepers[name].pid}/ns/net") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self, pairs: Iterable[tuple[str, str]]) -> None:
        """From now on nothing that the first of a pair sends arrives at the second."""
        self._set(pairs, f"neigh replace {{}} lladdr {NOWHERE} dev eth0 nud permanent")

    def heal(self) -> None:
        """Everything arrives again."""
        pairs, self._is_cut = self._is_cut, set()
        self._set(pairs, "neigh del {} dev eth0")
        self._is_cut.clear()

    def _set(self, pairs: Iterable[tuple[str, str]], command: str) -> None:
        ordered = sorted(set(pairs))
        self._is_cut.update(ordered)
        for sender, group in itertools.groupby(ordered, key=lambda pair: pair[0]):
            _ip(self._sleepers[sender], *(command.format(self.address(to)) for _, to in group))

    def around(self, name: str) -> list[tuple[str, str]]:
        """The pairs that cut this host off from all others, both ways."""
        others = [other for other in self._addresses if other != name]
        return [(name, other) for other in others] + [(other, name) for other in others]

    def close(self) -> None:
        """Everything is as it was."""
        self._stack.close()


def _ip(where: subprocess.Popen[bytes], *commands: str) -> None:
    """Have `ip` carry these out in a process's namespace."""
    try:
        done = subprocess.run(
            ["nsenter", "--target", str(where.pid), "--net", "ip", "-batch", "-"],
            input="".join(f"{command}\n" for command in commands).encode(),
            capture_output=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as missing:
        raise _unable(f"there is no {missing.filename}") from None
    if done.returncode:
        raise _unable(done.stderr.decode(errors="replace").strip().replace("\n", "; "))


def _unable(why: str) -> NetnsError:
    return NetnsError(
        f"cannot make network namespaces: {why} (they need root and the packages iproute2 and"
        " util-linux)"
    )


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise _unable(os.strerror(ctypes.get_errno()))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(END_S_MAX)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
