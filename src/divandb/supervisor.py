"""Start the nodes of one machine, and start again what dies.

The parent opens the sockets, forks one child a node and then only waits for signals: it holds no
threads, loops or connections, so that a fork is safe at any time, and uses no CPU when nothing
happens. The listening sockets stay open in the parent while a node is down, so that clients wait
in the queue for the next one instead of being refused.

``Policy`` decides what to do and when; ``Supervisor`` does it.
"""

import contextlib
import ctypes
import dataclasses
import datetime
import enum
import gc
import http.client
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from divandb import datadir
from divandb.clock import Clock
from divandb.config import Config
from divandb.datadir import ClusterRecord, NodeRecord
from divandb.telemetry import Log

Serve = Callable[[Config, list[socket.socket]], None]
"""Serve a node on these listening sockets until SIGTERM or SIGINT, then return."""

BACKLOG_CONNECTIONS_MAX = 1024
RECORD_RETRY_S = 1.0
"""So often what runs is tried to be written down while the disk refuses it."""
READY_POLL_S = 0.02
ANSWER_S_MAX = 1.0
CRASHED = 70
PR_SET_PDEATHSIG = 1

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class StartError(Exception):
    """The nodes cannot be started; the text is one line for the operator."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How long the supervisor waits, in seconds."""

    restart_s_min: float = 0.1
    """Before the first new start of a node that died; doubled each time."""
    restart_s_max: float = 5.0
    healthy_s_min: float = 10.0
    """A node that lived this long begins again with ``restart_s_min``."""
    ready_s_max: float = 60.0
    """For the first answer of all nodes."""
    stop_s_max: float = 10.0
    """For a node to end after SIGTERM, before it is killed."""


class Action(enum.Enum):
    """What is to be done to a node."""

    START = enum.auto()
    TERMINATE = enum.auto()
    KILL = enum.auto()


@dataclasses.dataclass
class _Watch:
    """What ``Policy`` knows about one node."""

    start_at: float | None
    """When to start it; None while it runs, and when it stays down."""
    delay_s: float = 0.0
    """The wait before the latest new start."""
    started_at: float | None = None
    """When it was started; None while it is down."""
    terminated: bool = False
    killed: bool = False


class Policy:
    """When to start, terminate and kill which node: decisions only, on the clock it is given.

    Rules: a node that ends is started again after a pause that doubles from ``restart_s_min`` to
    ``restart_s_max`` and begins anew once the node has lived for ``healthy_s_min``. Without
    ``restart`` it stays down, and when all are down the work is over, with the status of the last
    that failed. After ``stop`` nothing is started, each node is terminated once, and killed once
    when ``stop_s_max`` has passed or somebody insists.
    """

    def __init__(self, names: Sequence[str], clock: Clock, bounds: Bounds, restart: bool) -> None:
        self._clock = clock
        self._bounds = bounds
        self._restart = restart
        now = clock.monotonic()
        self._watches = {name: _Watch(start_at=now) for name in names}
        self._kill_at: float | None = None
        self._status = 0

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was asked for."""
        return self._kill_at is not None

    def started(self, name: str) -> None:
        """``name`` runs now."""
        watch = self._watches[name]
        watch.started_at = self._clock.monotonic()
        watch.start_at = None

    def ended(self, name: str, status: int) -> float | None:
        """``name`` has ended with ``status``: seconds to its next start, None if it stays down."""
        watch = self._watches[name]
        now = self._clock.monotonic()
        lived_s = 0.0 if watch.started_at is None else now - watch.started_at
        watch.started_at = None
        if self.stopping:
            return None
        if not self._restart:
            self._status = status or self._status
            return None
        watch.delay_s = self._next_delay_s(watch.delay_s, lived_s)
        watch.start_at = now + watch.delay_s
        return watch.delay_s

    def _next_delay_s(self, delay_s: float, lived_s: float) -> float:
        if lived_s >= self._bounds.healthy_s_min:
            delay_s = 0.0
        return min(max(2 * delay_s, self._bounds.restart_s_min), self._bounds.restart_s_max)

    def stop(self, *, insist: bool = False) -> None:
        """End everything: politely, or at once if ``insist``."""
        now = self._clock.monotonic()
        if self._kill_at is None:
            self._kill_at = now + self._bounds.stop_s_max
            self._status = 0
        if insist:
            self._kill_at = now
            self._status = 128 + signal.SIGINT
        for watch in self._watches.values():
            watch.start_at = None

    def actions(self) -> list[tuple[Action, str]]:
        """What is due now; TERMINATE and KILL are given once a node."""
        now = self._clock.monotonic()
        due = ((self._due(watch, now), name) for name, watch in self._watches.items())
        return [(action, name) for action, name in due if action is not None]

    def _due(self, watch: _Watch, now: float) -> Action | None:
        if watch.started_at is None:
            is_due = watch.start_at is not None and watch.start_at <= now
            return Action.START if is_due else None
        if self._kill_at is None:
            return None
        if self._kill_at <= now and not watch.killed:
            watch.terminated = watch.killed = True
            return Action.KILL
        if not watch.terminated:
            watch.terminated = True
            return Action.TERMINATE
        return None

    def wait_s(self) -> float | None:
        """Seconds until something is due; None if only a signal can bring something."""
        times = [watch.start_at for watch in self._watches.values()]
        if any(not watch.killed for watch in self._running()):
            times.append(self._kill_at)
        due = [time for time in times if time is not None]
        return max(0.0, min(due) - self._clock.monotonic()) if due else None

    def _running(self) -> list[_Watch]:
        return [watch for watch in self._watches.values() if watch.started_at is not None]

    def exit_status(self) -> int | None:
        """The supervisor's exit status; None while there is something left to watch."""
        if self._running() or any(w.start_at is not None for w in self._watches.values()):
            return None
        return self._status


@dataclasses.dataclass
class _Node:
    """One node's process, or the lack of it."""

    config: Config
    sockets: list[socket.socket]
    """The shared client socket and the node's own, listening."""
    record: NodeRecord
    starts: int = 0


class Supervisor:
    """The nodes of one machine under one parent process.

    ``configs`` share data folder, host and port; ``serve`` is what each child runs.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        serve: Serve,
        clock: Clock,
        log: Log,
        *,
        restart: bool = True,
        bounds: Bounds | None = None,
    ) -> None:
        self._configs = configs
        self._data = configs[0].data
        self._serve = serve
        self._clock = clock
        self._log = log
        self._unrecorded = False
        self._bounds = bounds or Bounds()
        names = [config.name for config in configs]
        self._policy = Policy(names, clock, self._bounds, restart)
        self._nodes: dict[str, _Node] = {}
        self._cluster = ClusterRecord(url="", pid=os.getpid(), nodes=[])
        self._signals = _watched_signals()
        self._is_ready = False

    def run(self, on_ready: Callable[[ClusterRecord], None]) -> int:
        """Run until told to stop; the exit status.

        ``on_ready`` is called once, when all nodes answer. The caller holds the data folder's
        lock. Raises ``StartError`` when the sockets cannot be opened, or a node ends or stays
        silent before that.
        """
        with contextlib.ExitStack() as stack:
            self._open_nodes(stack)
            stack.enter_context(_blocked(self._signals))
            stack.callback(datadir.remove_cluster, self._data)
            stack.callback(self._wind_down)
            # What is alive now is shared with the children: keep the collector from touching,
            # and thereby copying, its pages.
            gc.collect()
            gc.freeze()
            self._bring_up()
            if not self._policy.stopping:
                self._is_ready = True
                on_ready(self._cluster)
            return self._watch()

    def _open_nodes(self, stack: contextlib.ExitStack) -> None:
        port = self._configs[0].port
        if port:
            _refuse_used_port(self._configs[0].host, port)
        for config in self._configs:
            shared = stack.enter_context(_listen(config.host, port, shared=True))
            port = shared.getsockname()[1]
            own = stack.enter_context(_listen(config.host, config.node_port, shared=False))
            node_port = own.getsockname()[1]
            record = NodeRecord(
                name=config.name,
                role="master",
                master=None,
                url=_url(config.host, node_port),
                pid=None,
                restarts=0,
                started_at=None,
            )
            config = dataclasses.replace(config, port=port, node_port=node_port)
            self._nodes[config.name] = _Node(config, [shared, own], record)
            self._cluster.nodes.append(record)
        self._cluster.url = _url(self._configs[0].host, port)

    def _bring_up(self) -> None:
        """Start all nodes and wait, bounded, until each answers."""
        deadline = self._clock.monotonic() + self._bounds.ready_s_max
        silent = list(self._nodes.values())
        while silent and not self._policy.stopping:
            self._step(wait_s_max=READY_POLL_S)
            if any(node.record.pid is None for node in silent) and not self._policy.stopping:
                raise StartError("a node ended before it was ready; its last words are above")
            if self._clock.monotonic() > deadline:
                names = ", ".join(node.config.name for node in silent)
                raise StartError(f"no answer from {names} in {self._bounds.ready_s_max:g} s")
            silent = [node for node in silent if not answers(node.record.url)]

    def _watch(self) -> int:
        while (status := self._policy.exit_status()) is None:
            self._step()
        return status

    def _wind_down(self) -> None:
        """Leave no child behind, whatever the reason for leaving."""
        if self._policy.exit_status() is None:
            self._policy.stop()
            self._watch()

    def _step(self, wait_s_max: float | None = None) -> None:
        """Do what is due, then sleep until a signal comes or the next thing is due."""
        actions = self._policy.actions()
        for action, name in actions:
            self._do(action, self._nodes[name])
        if actions or self._unrecorded:
            self._record()
        wait_s = self._policy.wait_s()
        if self._unrecorded:
            wait_s = min(wait_s or RECORD_RETRY_S, RECORD_RETRY_S)
        if wait_s is None:
            wait_s = wait_s_max
        elif wait_s_max is not None:
            wait_s = min(wait_s, wait_s_max)
        if self._policy.exit_status() is None:
            self._take(_wait_for(self._signals, wait_s))

    def _record(self) -> None:
        """Write down what runs; a disk that is full just now must not stop the watch over nodes."""
        try:
            datadir.write_cluster(self._data, self._cluster)
        except OSError as problem:
            if not self._unrecorded:
                self._log.event("cannot record what runs", fault=problem.strerror or problem)
            self._unrecorded = True
        else:
            self._unrecorded = False

    def _take(self, number: int | None) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number is not None:
            self._log.event("stopping", signal=signal.Signals(number).name)
            self._policy.stop(insist=self._policy.stopping and number == signal.SIGINT)
            self._close_sockets()

    def _close_sockets(self) -> None:
        """From now on only nodes that are still ending can take connections."""
        for node in self._nodes.values():
            for listener in node.sockets:
                listener.close()

    def _do(self, action: Action, node: _Node) -> None:
        if action is Action.START:
            self._start(node)
        elif node.record.pid is not None:
            number = signal.SIGTERM if action is Action.TERMINATE else signal.SIGKILL
            os.kill(node.record.pid, number)

    def _start(self, node: _Node) -> None:
        name = node.config.name
        parent = os.getpid()
        self._policy.started(name)
        try:
            pid = os.fork()
        except OSError as problem:
            # The machine is out of processes or memory: this passes, and the policy waits.
            delay_s = self._policy.ended(name, CRASHED)
            self._tell("cannot start node", name, delay_s, reason=problem.strerror)
            return
        if pid == 0:
            self._be_node(node, parent)
        node.record.pid = pid
        node.record.started_at = _rfc3339(self._clock.wall_ms())
        node.record.restarts = node.starts
        node.starts += 1

    def _be_node(self, node: _Node, parent: int) -> None:
        """The child's whole life; does not return."""
        status = CRASHED
        try:
            # A group of its own: Ctrl-C in the terminal goes to the supervisor alone, which
            # tells the nodes.
            os.setpgid(0, 0)
            _die_with(parent)
            _reset_signals(self._signals)
            for other in self._nodes.values():
                if other is not node:
                    for listener in other.sockets:
                        listener.close()
            self._serve(node.config, node.sockets)
            status = 0
        except OSError as problem:
            print(f"divandb: node {node.config.name}: {problem}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            # Past every handler of the parent: this process is not the supervisor.
            os._exit(status)

    def _reap(self) -> None:
        """Take note of every child that has ended; one SIGCHLD may stand for several."""
        for node in self._nodes.values():
            if node.record.pid is None:
                continue
            pid, status = os.waitpid(node.record.pid, os.WNOHANG)
            if pid:
                self._ended(node, os.waitstatus_to_exitcode(status))
        if not self._policy.stopping:
            self._record()

    def _ended(self, node: _Node, code: int) -> None:
        pid, name = node.record.pid, node.config.name
        node.record.pid = node.record.started_at = None
        delay_s = self._policy.ended(name, code if code >= 0 else 128 - code)
        if code < 0:
            self._tell("node killed", name, delay_s, pid=pid, signal=signal.Signals(-code).name)
        else:
            self._tell("node ended", name, delay_s, pid=pid, status=code)

    def _tell(self, what: str, name: str, delay_s: float | None, **values: object) -> None:
        if delay_s is not None and self._is_ready:
            values["restart_s"] = f"{delay_s:g}"
        self._log.event(what, node=name, **values)


def answers(url: str, wait_s_max: float = ANSWER_S_MAX) -> bool:
    """Whether the node at ``url`` says on `/_up`, within ``wait_s_max`` seconds, that it is up."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=wait_s_max
    )
    try:
        connection.request("GET", "/_up")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listen(host: str, port: int, *, shared: bool) -> socket.socket:
    with _listen_errors(host, port):
        family, address = _resolved(host, port)
        return socket.create_server(
            address, family=family, backlog=BACKLOG_CONNECTIONS_MAX, reuse_port=shared
        )


def _refuse_used_port(host: str, port: int) -> None:
    """With SO_REUSEPORT the system would let two supervisors share a port: look first."""
    with _listen_errors(host, port):
        family, address = _resolved(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


@contextlib.contextmanager
def _listen_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        # create_server appends the address to strerror; the plain reason is enough.
        is_plain = isinstance(problem, socket.gaierror) or problem.errno is None
        reason = problem.strerror if is_plain else os.strerror(problem.errno or 0)
        raise StartError(f"cannot listen on {host} port {port}: {reason}") from None
    except UnicodeError:
        raise StartError(f"{host} is not a host name") from None


def _url(host: str, port: int) -> str:
    """A URL at which this machine reaches what listens on ``host``."""
    host = ANY_HOST.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _watched_signals() -> set[signal.Signals]:
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        watched.add(signal.SIGHUP)
    return watched


@contextlib.contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Let ``signals`` wait until ``_wait_for`` takes them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(signals: set[signal.Signals], wait_s: float | None) -> int | None:
    """The next of ``signals``; None after ``wait_s`` seconds."""
    if wait_s is None:
        return signal.sigwaitinfo(signals).si_signo
    taken = signal.sigtimedwait(signals, wait_s)
    return None if taken is None else taken.si_signo


def _reset_signals(signals: set[signal.Signals]) -> None:
    for number in signals - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, whatever kills it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _rfc3339(wall_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
