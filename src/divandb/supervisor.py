"""Start the processes of one machine, and start again what dies.

The parent opens the sockets, forks one child each and then only waits for signals: it holds no
threads, loops or connections, so that a fork is safe at any time. The children's own sockets listen
from the beginning and stay open in the parent while a child is down, so that who calls waits in the
queue for the next one instead of being refused. Only a child that stays down gives its sockets up.

Clients share one port: each child that serves them has a socket on it, which listens once the child
does. The parent looks after these listeners (``divandb.pulse``): it shuts that of a child that is
down, stopped or stuck, as long as another one is left. With fewer than two it never wakes up.

``Policy`` decides what to do and when; ``Supervisor`` does it.
"""

import contextlib
import ctypes
import dataclasses
import enum
import gc
import http.client
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from divandb import datadir, pulse
from divandb.clock import Clock
from divandb.datadir import BOARD, BOARDS, ClusterRecord, NodeRecord
from divandb.errors import DivanError
from divandb.probe import ANSWER_S_MAX, Probe, Question
from divandb.pulse import BACKLOG_CONNECTIONS_MAX, Pulse, Signs, Sockets, Vigil
from divandb.telemetry import Log, rfc3339

RECORD_RETRY_S = 1.0
"""So often what runs is tried to be written down while the disk refuses it."""
READY_POLL_S = 0.02
"""Signals are seen this late while the first answers are waited for."""
CHILDREN_MAX = 256
LAST_SHARE = 0.2
"""Of ``stop_s_max``: kept for those that are to end last."""
CRASHED = 70
PR_SET_PDEATHSIG = 1

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class StartError(Exception):
    """The children cannot be started; the text is one line for the operator."""


@dataclasses.dataclass(frozen=True)
class ChildSpec:
    """One process of the plan."""

    name: str
    role: str
    """`board`, `kafka`, `master` or `replica`. Boards are stopped last, and are ready with any
    answer; the others are with a 200.
    """
    master: str | None
    """The master that a replica follows."""
    serves_clients: bool
    """Whether it gets a socket on the clients' port."""
    port: int = 0
    """Its own; 0 lets the system choose."""
    ready_path: str = "/_up?drained=true"
    """What is asked for to see that it is ready."""
    url: str = ""
    """Where it is, if it opens that port itself."""
    greeting: bytes = b""
    """What it is sent to see that it is ready, if it does not speak HTTP."""
    is_first: bool = False
    """Whether the others are started only when it is ready."""


Serve = Callable[[ChildSpec, Mapping[str, str], Sockets], None]
"""Runs in the child, after the fork: make what ``spec`` says and serve it on these sockets until
SIGTERM or SIGINT, then return. The mapping has all children that are known by then, name → URL.
"""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How long the supervisor waits, in seconds."""

    restart_s_min: float = 0.1
    """Before the first new start of a child that died; doubled each time."""
    restart_s_max: float = 5.0
    healthy_s_min: float = 10.0
    """A child that lived this long begins again with ``restart_s_min``."""
    ready_s_max: float = 60.0
    """For the first answer of all children."""
    stop_s_max: float = 10.0
    """For all to end after SIGTERM, before they are killed."""
    silent_s_max: float = 0.25
    """For a child that serves clients to show no life, before its listener is shut if it is stopped
    or stuck.
    """
    starved_s_max: float = 1.5
    """The same for one that may only be waiting for a core."""


class Action(enum.Enum):
    """What is to be done to a child."""

    START = enum.auto()
    TERMINATE = enum.auto()
    KILL = enum.auto()


@dataclasses.dataclass
class _Watch:
    """What ``Policy`` knows about one child."""

    start_at: float | None
    """When to start it; None while it runs, and when it stays down."""
    delay_s: float = 0.0
    """The wait before the latest new start."""
    started_at: float | None = None
    """When it was started; None while it is down."""
    is_last: bool = False
    """Whether it is to end after the others."""
    terminated: bool = False
    killed: bool = False
    drop_at: float | None = None
    """When it is killed, if it is to end for itself."""


class Policy:
    """When to start, terminate and kill which child: decisions only, on the clock it is given.

    Rules: a child that ends is started again after a pause that doubles from ``restart_s_min`` to
    ``restart_s_max`` and begins anew once the child has lived for ``healthy_s_min``. Without
    ``restart`` it stays down, and when all are down but those that are to end last, the work is
    over, with the status of the last that failed. After ``stop`` nothing is started, each child is
    terminated once, and killed once when ``stop_s_max`` has passed or somebody insists. Those that
    are to end ``last`` are terminated when the others have ended, which are killed early enough
    for that.
    """

    def __init__(
        self,
        names: Sequence[str],
        clock: Clock,
        bounds: Bounds,
        restart: bool,
        last: Collection[str] = (),
    ) -> None:
        self._clock = clock
        self._bounds = bounds
        self._restart = restart
        self._watches: dict[str, _Watch] = {}
        self._kill_at: float | None = None
        self._status = 0
        for name in names:
            self.add(name, is_last=name in last)

    @property
    def stopping(self) -> bool:
        """Whether the end was asked for, or has come."""
        return self._kill_at is not None

    def add(self, name: str, *, is_last: bool = False) -> None:
        """``name`` is to be started now."""
        start_at = None if self.stopping else self._clock.monotonic()
        self._watches[name] = _Watch(start_at=start_at, is_last=is_last)

    def drop(self, name: str) -> None:
        """``name`` is to end, and not to be started again."""
        watch = self._watches[name]
        watch.start_at = None
        watch.drop_at = self._clock.monotonic() + self._bounds.stop_s_max

    def is_dropped(self, name: str) -> bool:
        """Is it to end for itself?"""
        return self._watches[name].drop_at is not None

    def forget(self, name: str) -> None:
        """It has ended."""
        del self._watches[name]

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
        if self.stopping or watch.drop_at is not None:
            return None
        if not self._restart:
            self._status = status or self._status
            if not self._others_run():
                self._kill_at = now + self._bounds.stop_s_max
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
        """What is due now; TERMINATE and KILL are given once a child."""
        now = self._clock.monotonic()
        due = ((self._due(watch, now), name) for name, watch in self._watches.items())
        return [(action, name) for action, name in due if action is not None]

    def _due(self, watch: _Watch, now: float) -> Action | None:
        if watch.started_at is None:
            is_due = watch.start_at is not None and watch.start_at <= now
            return Action.START if is_due else None
        kill_at = self._kill_time(watch)
        if kill_at is None:
            return None
        if kill_at <= now and not watch.killed:
            watch.terminated = watch.killed = True
            return Action.KILL
        if not watch.terminated and not (watch.is_last and self._others_run()):
            watch.terminated = True
            return Action.TERMINATE
        return None

    def _kill_time(self, watch: _Watch) -> float | None:
        """When ``watch`` is killed if it has not ended; None unless it is to end."""
        if watch.drop_at is not None:
            return watch.drop_at if self._kill_at is None else min(watch.drop_at, self._kill_at)
        if self._kill_at is None or watch.is_last:
            return self._kill_at
        is_awaited = any(other.is_last for other in self._running())
        return self._kill_at - is_awaited * LAST_SHARE * self._bounds.stop_s_max

    def wait_s(self) -> float | None:
        """Seconds until something is due; None if only a signal can bring something."""
        times = [watch.start_at for watch in self._watches.values()]
        times += [self._kill_time(watch) for watch in self._running() if not watch.killed]
        due = [time for time in times if time is not None]
        return max(0.0, min(due) - self._clock.monotonic()) if due else None

    def _running(self) -> list[_Watch]:
        return [watch for watch in self._watches.values() if watch.started_at is not None]

    def _others_run(self) -> bool:
        """Whether anything runs that is not to end last."""
        return any(not watch.is_last for watch in self._running())

    def exit_status(self) -> int | None:
        """The supervisor's exit status; None while there is something left to watch."""
        if self._running() or any(w.start_at is not None for w in self._watches.values()):
            return None
        return self._status


@dataclasses.dataclass
class _Child:
    """One process, or the lack of it."""

    spec: ChildSpec
    sockets: Sockets
    record: NodeRecord
    starts: int = 0
    is_shut: bool = False
    """Whether its shared listener was shut and has not been seen to listen since."""

    def close(self) -> None:
        """Give its sockets up."""
        self.sockets.own.close()
        if self.sockets.shared is not None:
            self.sockets.shared.close()


class Supervisor:
    """The processes of one machine under one parent.

    ``data`` is the folder that says what runs, ``host`` and ``port`` are the clients' (port 0: the
    system chooses), ``plan`` says what to start, in this order. ``serve`` is what each child runs.
    On SIGUSR1, ``grow`` is asked for the plan as it is now: what is new in it is started, what
    is not in it any more ends. ``board``
    is the URL of boards that are no child's, for those who read what runs.
    """

    def __init__(
        self,
        data: Path,
        host: str,
        port: int,
        plan: Sequence[ChildSpec],
        serve: Serve,
        clock: Clock,
        log: Log,
        *,
        grow: Callable[[], Sequence[ChildSpec]] | None = None,
        restart: bool = True,
        bounds: Bounds | None = None,
        board: str = "",
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """``prepare`` is called once those that come first are ready, before the others start."""
        self._data = data
        self._host = host
        self._port = port
        self._plan = plan
        self._serve = serve
        self._clock = clock
        self._log = log
        self._grow = grow
        self._bounds = bounds or Bounds()
        self._prepare = prepare
        self._policy = Policy([], clock, self._bounds, restart)
        self._vigil = Vigil(self._bounds.silent_s_max, self._bounds.starved_s_max)
        self._children: dict[str, _Child] = {}
        self._cluster = ClusterRecord(url="", pid=os.getpid(), nodes=[], board=board)
        self._recorded = b""
        self._unrecorded = False
        self._signals = _watched_signals()
        self._is_ready = False
        self._asked_to_grow = False

    def run(self, on_ready: Callable[[ClusterRecord], None]) -> int:
        """Run until told to stop; the exit status.

        ``on_ready`` is called once, when all children answer. The caller holds the data folder's
        lock. Raises ``StartError`` when the sockets cannot be opened, or a child ends or stays
        silent before that.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_sockets)
            self._take_port(stack)
            for spec in self._plan:
                self._open(spec)
            stack.enter_context(_blocked(self._signals))
            stack.callback(datadir.remove_cluster, self._data)
            stack.callback(self._wind_down)
            # What is alive now is shared with the children: keep the collector from touching,
            # and thereby copying, its pages.
            gc.collect()
            gc.freeze()
            first = [spec for spec in self._plan if spec.is_first]
            self._bring_up(first)
            if not self._policy.stopping:
                self._prepare()
                self._bring_up([spec for spec in self._plan if not spec.is_first])
            if not self._policy.stopping:
                self._is_ready = True
                on_ready(self._cluster)
            return self._watch()

    def _take_port(self, stack: contextlib.ExitStack) -> None:
        """Hold the clients' port, whichever child listens on it."""
        if self._port:
            _refuse_used_port(self._host, self._port)
        holder = stack.enter_context(bound(self._host, self._port))
        self._port = holder.getsockname()[1]
        self._cluster.url = _url(self._host, self._port)

    def _open(self, spec: ChildSpec) -> None:
        """Make a child's sockets and its entry, not the child; raises ``StartError``."""
        own = _holder(spec.url) if spec.url else listen(self._host, spec.port)
        try:
            shared = bound(self._host, self._port) if spec.serves_clients else None
        except StartError:
            own.close()
            raise
        record = NodeRecord(
            name=spec.name,
            role=spec.role,
            master=spec.master,
            url=spec.url or _url(self._host, own.getsockname()[1]),
            pid=None,
            restarts=0,
            started_at=None,
        )
        sockets = Sockets(own, shared, Pulse(self._clock))
        self._children[spec.name] = _Child(spec, sockets, record)
        self._cluster.nodes.append(record)

    def _bring_up(self, specs: Sequence[ChildSpec]) -> None:
        """Start these children and wait, bounded, until each answers."""
        deadline = self._clock.monotonic() + self._bounds.ready_s_max
        for spec in specs:
            self._policy.add(spec.name, is_last=spec.role in BOARDS)
        self._step(wait_s_max=0)
        children = [self._children[spec.name] for spec in specs]
        questions = [_question(child) for child in children]
        with contextlib.closing(Probe(questions, self._clock)) as probe:
            while (probe.silent or not _has_listener(children)) and not self._policy.stopping:
                if any(child.record.pid is None for child in children):
                    raise StartError("a node ended before it was ready; its last words are above")
                if self._clock.monotonic() > deadline:
                    names = ", ".join(probe.silent) or self._cluster.url
                    raise StartError(f"no answer from {names} in {self._bounds.ready_s_max:g} s")
                probe.wait(READY_POLL_S)
                self._step(wait_s_max=0)

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
        if self._asked_to_grow and self._is_ready:
            self._add_children()
        for action, name in self._policy.actions():
            self._do(action, self._children[name])
        look_s = self._look()
        self._record()
        retry_s = RECORD_RETRY_S if self._unrecorded else None
        waits = [self._policy.wait_s(), look_s, retry_s, wait_s_max]
        if self._policy.exit_status() is None:
            wait_s = min((wait for wait in waits if wait is not None), default=None)
            self._take(_wait_for(self._signals, wait_s))

    def _record(self) -> None:
        """Write down what runs, if it is not what was written last.

        A disk that is full just now must not stop the watch over the children.
        """
        now = msgspec.json.encode(self._cluster)
        if now == self._recorded or self._policy.stopping:
            self._unrecorded = False
            return
        try:
            datadir.write_cluster(self._data, self._cluster)
        except OSError as problem:
            if not self._unrecorded:
                self._log.event("cannot record what runs", fault=problem.strerror or problem)
            self._unrecorded = True
        else:
            self._recorded, self._unrecorded = now, False

    def _look(self) -> float | None:
        """Shut the listeners of dead children; seconds to the next look, None for never.

        One listener alone stays open whatever it does: there is nothing to look for.
        """
        listeners = self._listeners()
        if len(listeners) < 2 or not self._is_ready or self._policy.stopping:
            return None
        beats: dict[str, float | None] = {}
        for child, shared in listeners:
            if pulse.is_listening(shared):
                is_down = child.record.pid is None
                beats[child.spec.name] = None if is_down else child.sockets.pulse.last_beat
                self._note(child, is_shut=False)
        now = self._clock.monotonic()
        dead = self._vigil.look(beats, now, self._signs_of)
        for child, shared in listeners:
            if child.spec.name in dead:
                pulse.shut(shared)
                self._note(child, is_shut=True)
        return self._vigil.wait_s(now)

    def _signs_of(self, name: str) -> Signs:
        pid = self._children[name].record.pid
        return pulse.signs_of(pid) if pid is not None else Signs(frozenset(), 0)

    def _note(self, child: _Child, *, is_shut: bool) -> None:
        if child.is_shut != is_shut:
            child.is_shut = is_shut
            what = "listener shut" if is_shut else "listener open again"
            self._log.event(what, node=child.spec.name, pid=child.record.pid)

    def _listeners(self) -> list[tuple[_Child, socket.socket]]:
        return _listeners(self._children.values())

    def _take(self, number: int | None) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGUSR1:
            self._asked_to_grow = True
        elif number is not None:
            self._log.event("stopping", signal=signal.Signals(number).name)
            self._policy.stop(insist=self._policy.stopping and number == signal.SIGINT)
            self._close_sockets()

    def _close_sockets(self) -> None:
        """From now on only children that are still ending can take connections."""
        for child in self._children.values():
            child.close()

    def _add_children(self) -> None:
        """Take up what is new in the plan; what cannot be is left out, and said."""
        self._asked_to_grow = False
        if self._grow is None or self._policy.stopping:
            return
        try:
            plan = self._grow()
        except Exception as fault:  # it is not ours, and must not take the children down
            self._log.fault("cannot read what to add", fault)
            return
        for spec in plan:
            if spec.name not in self._children:
                self._add(spec)
        known = {spec.name for spec in plan}
        for name, child in list(self._children.items()):
            # The board stays: nodes that were started with it go on using it.
            if name not in known and child.spec.role not in BOARDS:
                self._drop(name)

    def _add(self, spec: ChildSpec) -> None:
        try:
            if len(self._children) >= CHILDREN_MAX:
                raise StartError(f"there are {CHILDREN_MAX} already")
            self._open(spec)
        except StartError as problem:
            self._log.event("cannot add node", node=spec.name, reason=problem)
            return
        self._policy.add(spec.name, is_last=spec.role in BOARDS)
        self._log.event("node added", node=spec.name, url=self._children[spec.name].record.url)

    def _drop(self, name: str) -> None:
        """It is no node any more."""
        if not self._policy.is_dropped(name):
            self._policy.drop(name)
            self._log.event("node removed", node=name)
        if self._children[name].record.pid is None:
            self._forget(name)

    def _forget(self, name: str) -> None:
        child = self._children.pop(name)
        child.close()
        self._policy.forget(name)
        self._cluster.nodes.remove(child.record)

    def _do(self, action: Action, child: _Child) -> None:
        if action is Action.START:
            self._start(child)
        elif child.record.pid is not None:
            number = signal.SIGTERM if action is Action.TERMINATE else signal.SIGKILL
            os.kill(child.record.pid, number)

    def _start(self, child: _Child) -> None:
        name = child.spec.name
        parent = os.getpid()
        self._policy.started(name)
        started_at = rfc3339(self._clock.wall_ms())  # before it could say so itself
        try:
            pid = os.fork()
        except OSError as problem:
            # The machine is out of processes or memory: this passes, and the policy waits.
            delay_s = self._policy.ended(name, CRASHED)
            self._tell("cannot start node", name, delay_s, reason=problem.strerror)
            return
        if pid == 0:
            self._be(child, parent)
        child.record.pid = pid
        child.record.started_at = started_at
        child.record.restarts = child.starts
        child.starts += 1

    def _be(self, child: _Child, parent: int) -> None:
        """The child's whole life; does not return."""
        status = CRASHED
        name = child.spec.name
        try:
            # A group of its own: Ctrl-C in the terminal goes to the supervisor alone, which
            # tells the children.
            os.setpgid(0, 0)
            _die_with(parent)
            _reset_signals(self._signals)
            for other in self._children.values():
                if other is not child:
                    other.close()
            urls = {known: one.record.url for known, one in self._children.items()}
            self._serve(child.spec, urls, child.sockets)
            status = 0
        except (OSError, DivanError) as problem:  # one that was removed, too
            print(f"divandb: node {name}: {problem}", file=sys.stderr)
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
        for child in list(self._children.values()):
            if child.record.pid is None:
                continue
            pid, status = os.waitpid(child.record.pid, os.WNOHANG)
            if pid:
                self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        pid, name = child.record.pid, child.spec.name
        child.record.pid = child.record.started_at = None
        delay_s = self._policy.ended(name, code if code >= 0 else 128 - code)
        if delay_s is None:
            child.close()
        if code < 0:
            self._tell("node killed", name, delay_s, pid=pid, signal=signal.Signals(-code).name)
        else:
            self._tell("node ended", name, delay_s, pid=pid, status=code)
        if self._policy.is_dropped(name):
            self._forget(name)

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


def _listeners(children: Iterable[_Child]) -> list[tuple[_Child, socket.socket]]:
    """The children that have a place on the clients' port, and their sockets on it."""
    pairs = [(child, child.sockets.shared) for child in children]
    return [(child, shared) for child, shared in pairs if shared and shared.fileno() >= 0]


def _has_listener(children: Iterable[_Child]) -> bool:
    """Whether a client that comes now is taken, if any child is there for clients."""
    listeners = [shared for _, shared in _listeners(children)]
    return not listeners or any(pulse.is_listening(shared) for shared in listeners)


def _question(child: _Child) -> Question:
    address = urlsplit(child.record.url)
    spec = child.spec
    host, port = address.hostname or "", address.port or 0
    status = None if spec.role == BOARD else 200
    return Question(spec.name, host, port, spec.ready_path, status, spec.greeting)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ``StartError``."""
    with _listen_errors(host, port):
        family, address = _resolved(host, port)
        return socket.create_server(address, family=family, backlog=BACKLOG_CONNECTIONS_MAX)


def bound(host: str, port: int) -> socket.socket:
    """A socket that shares its port with others like it, and does not listen yet.

    With ``port`` 0 the system chooses, and forgets what it chose if the socket is ever shut.
    Raises ``StartError``.
    """
    with _listen_errors(host, port), contextlib.ExitStack() as stack:
        family, address = _resolved(host, port)
        made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        stack.pop_all()
        return made


def _holder(url: str) -> socket.socket:
    """The port of this URL, held for the process that listens there; raises ``StartError``."""
    address = urlsplit(url)
    return bound(address.hostname or "", address.port or 0)


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
    watched = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1}
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
    # Stopped (SIGSTOP) and continued after its time, CPython gives what memory happened to hold.
    return None if taken is None or taken.si_signo not in signals else taken.si_signo


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
