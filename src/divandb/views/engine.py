"""Asks a worker to run functions of design documents, and sees that it comes to an end.

A worker is started when it is first needed, and ended when nobody has needed it for a while. One
that does not answer in time, or is gone, is replaced: whoever asked hears why, the next one is
served by another. The engine's user is one thread at a time.
"""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from divandb.clock import Clock
from divandb.errors import Busy, CompilationError, DivanError, FunctionEnded, FunctionFailed
from divandb.telemetry import Log
from divandb.views import worker
from divandb.views.worker import LENGTH, Fault, Reply, Request

WALL_FACTOR: Final = 4
"""A worker has this much more time than its functions may use of a core: it may have to wait for
one."""
WALL_S_MIN: Final = 10.0
NOTES_MAX: Final = 20
"""Lines of one request that go into the log."""
STARTS_MAX: Final = 2
"""A request is sent again when its worker is gone: others may have ended it."""
LOOK_EVERY_S: Final = 5.0
GONE: Final = "gone"
_COMMAND: Final = [sys.executable, "-I", "-m", "divandb.views.worker"]


Offload = Callable[..., Awaitable[Any]]


class Program(msgspec.Struct, frozen=True):
    """What a context is made of."""

    name: bytes
    """16 bytes or more: the same for the same text."""
    text: str
    """``{"design": …, "maps": [[name, source], …]}``, as `program.js` takes it."""
    label: str
    """The design document's id, for errors and the log."""


class Engine:
    """A worker that is there when it is asked."""

    def __init__(
        self, memory_bytes_max: int, function_ms_max: int, idle_s_max: float, clock: Clock, log: Log
    ) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._function_ms_max = function_ms_max
        self._idle_s_max = idle_s_max
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._used = clock.monotonic()
        self._is_closed = False
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Reply).decode

    def ask(
        self, program: Program, function: str, calls: Sequence[list[str]], labels: Sequence[str]
    ) -> list[str]:
        """The answers, as JSON, to the first of these calls of a function of `program.js`, to one
        at least; what a function raises where that is no answer is raised.

        ``labels`` name what each call is about. Raises ``FunctionFailed``, ``CompilationError``,
        and ``Busy`` when the node stops.
        """
        answers, failure = self.attempt(program, function, calls, labels)
        if failure is not None and not answers:
            raise failure
        return answers

    def attempt(
        self, program: Program, function: str, calls: Sequence[list[str]], labels: Sequence[str]
    ) -> tuple[list[str], DivanError | None]:
        """The same with what became of the call behind the last that was answered, if it failed:
        who asks for it again would have it fail again, after as long a time.
        """
        with self._lock:
            if self._is_closed:
                raise Busy("The node stops.")
            reply = self._answered(program, Request(program.name, None, function, list(calls)))
        for line in reply.notes[:NOTES_MAX]:
            self._log.event("a function says", design=program.label, text=line)
        if reply.fault is None:
            return reply.answers, None
        place = len(reply.answers)
        about = labels[place] if place < len(labels) else ""
        return reply.answers, self._failure(program, reply.fault, about)

    def _answered(self, program: Program, request: Request) -> Reply:
        whole = msgspec.structs.replace(request, source=program.text)
        try:
            for _ in range(STARTS_MAX):
                try:
                    reply = self._exchange(request)
                    if reply.fault is not None and reply.fault.kind == worker.UNKNOWN:
                        reply = self._exchange(whole)
                    return reply
                except (ConnectionError, msgspec.MsgspecError):
                    self._end()
                    if self._is_closed:
                        break
            return Reply([], [], Fault(GONE, "", ""))
        except TimeoutError:
            self._end()
            return Reply([], [], Fault(worker.TIME, "", ""))
        finally:
            self._used = self._clock.monotonic()

    def _exchange(self, request: Request) -> Reply:
        peer = self._socket or self._begun()
        until = self._clock.monotonic() + max(
            WALL_S_MIN, WALL_FACTOR * self._function_ms_max / 1000
        )
        data = self._encode(request)
        peer.settimeout(max(until - self._clock.monotonic(), 0.001))
        peer.sendall(LENGTH.pack(len(data)) + data)
        (size,) = LENGTH.unpack(self._received(peer, LENGTH.size, until))
        return self._decode(self._received(peer, size, until))

    def _received(self, peer: socket.socket, size: int, until: float) -> bytes:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            peer.settimeout(max(until - self._clock.monotonic(), 0.001))
            count = peer.recv_into(view[have:])
            if not count:
                raise ConnectionResetError
            have += count
        return bytes(data)

    def _begun(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        limits = [str(self._memory_bytes_max), str(self._function_ms_max / 1000)]
        with theirs:
            self._process = subprocess.Popen(
                _COMMAND + limits,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"LC_ALL": "C.UTF-8"},
            )
        self._socket = ours
        return ours

    def _failure(self, program: Program, fault: Fault, about: str) -> DivanError:
        what = f"The function {fault.running} in {program.label}".replace("  ", " ")
        where = f" on document {about}" if about else ""
        if fault.kind == worker.COMPILATION:
            return CompilationError(f"Compilation of {what[4:]} failed: {fault.message}")
        if fault.kind == worker.TIME:
            done = f"ran longer than {self._function_ms_max} ms{where}"
        elif fault.kind == worker.MEMORY:
            done = f"needed more than {self._memory_bytes_max >> 20} MiB of memory{where}"
        elif fault.kind == GONE:
            done = f"ended its process{where}"
        else:
            return FunctionFailed(f"{what} raised {fault.message}{where}.")
        return FunctionEnded(f"{what} {done}.")

    @property
    def pid(self) -> int | None:
        """The worker's process id while there is one."""
        process = self._process
        return None if process is None else process.pid

    @property
    def is_idle(self) -> bool:
        """Is there a worker that has not been needed for ``idle_s_max``?"""
        idle_s = self._clock.monotonic() - self._used
        return self._process is not None and idle_s >= self._idle_s_max

    def rest(self) -> None:
        """End the worker if it is idle."""
        with self._lock:
            if self.is_idle:
                self._end()

    def close(self) -> None:
        """End the worker. One that is at work is not waited for."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, peer = self._process, self._socket
        self._process = self._socket = None
        if peer is not None:
            peer.close()
        if process is not None:
            process.kill()
            process.wait()


async def tended(engines: Sequence[Engine], offload: Offload) -> None:
    """End workers that nobody needs, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for engine in engines:
            if engine.is_idle:
                await offload(engine.rest)
