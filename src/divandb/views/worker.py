"""The process that runs JavaScript: it reads requests, answers them, and can do nothing else.

    python -I -m divandb.views.worker MEMORY_BYTES_MAX CPU_S_MAX

Standard input and output are the same socket. Each way goes ``length: u32`` little-endian, and so
many bytes of MessagePack: a ``Request`` in, a ``Reply`` out. QuickJS knows no file, no network, no
process and no timer; what the process itself could reach it gives up before it reads anything.

A context is one design document's: nothing that another one's functions do is seen in it. The most
recently used ones are kept. A context that has failed is thrown away.
"""

import ctypes
import re
import resource
import signal
import struct
import sys
from collections import OrderedDict
from importlib import resources
from time import process_time
from typing import Any, BinaryIO

# Not `quickjs`, which starts a thread when it is imported: the supervisor knows this module and may
# hold none, or a signal that it waits for would end it.
import _quickjs as quickjs
import msgspec

CONTEXTS_MAX = 8
STACK_BYTES_MAX = 512 * 1024
SLICE_CPU_S = 0.5
SLICE_CHARS = 4 * 2**20
"""A request with many calls ends with the one that passes either; the rest is asked for again."""
OWN_BYTES = 96 * 2**20
"""What the process may have besides one context's memory."""
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LENGTH = struct.Struct("<I")

TIME, MEMORY, THROWN, COMPILATION, UNKNOWN = "time", "memory", "thrown", "compilation", "unknown"
"""Why there is no answer: ``UNKNOWN``, because the program is not here (any more)."""

INTERRUPTED = "InternalError: interrupted"
NO_MEMORY_TO_TELL = ("null", "")
"""What an error says when there was no memory left for its text."""

# A surrogate that stands alone is no character: JSON.stringify escapes it, and nothing else so.
_ALONE = re.compile(r"(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}")


class Request(msgspec.Struct, array_like=True, frozen=True):
    """Calls of one function of `program.js`, with their arguments."""

    program: bytes
    """The program's name."""
    source: str | None
    """The program itself, as JSON: sent when it was not known."""
    function: str
    calls: list[list[str]]


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """What went wrong with the call behind those that were answered."""

    kind: str
    """``TIME``, ``MEMORY``, ``THROWN``, ``COMPILATION``, ``UNKNOWN``."""
    message: str
    running: str
    """Which function of the program it was."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """The answers to the first calls, at least to one unless there is a fault."""

    answers: list[str]
    notes: list[str]
    """What functions logged, and what they raised where that is no fault."""
    fault: Fault | None = None


class Runtime:
    """The contexts of this process."""

    def __init__(self, memory_bytes_max: int, cpu_s_max: float) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._cpu_s_max = cpu_s_max
        self._contexts: OrderedDict[bytes, Any] = OrderedDict()
        self._library = resources.files("divandb.views").joinpath("program.js").read_text()

    def answer(self, request: Request) -> Reply:
        """Carry out a request's calls, as far as a slice goes."""
        context = self._contexts.get(request.program)
        if context is None:
            if request.source is None:
                return Reply([], [], Fault(UNKNOWN, "", ""))
            context = self._begun()
            try:
                context.get("__divan_begin")(request.source)
            except (quickjs.JSException, quickjs.StackOverflow) as error:
                return Reply([], [], self._fault(context, error, COMPILATION))
            self._contexts[request.program] = context
            if len(self._contexts) > CONTEXTS_MAX:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(request.program)
        return self._called(context, request)

    def _begun(self) -> Any:
        context = quickjs.Context()
        context.set_max_stack_size(STACK_BYTES_MAX)
        context.eval(self._library)
        context.eval("for (let n in __divan) globalThis['__divan_' + n] = __divan[n]")
        context.set_memory_limit(self._memory_bytes_max)
        context.set_time_limit(self._cpu_s_max)
        return context

    def _called(self, context: Any, request: Request) -> Reply:
        function = context.get("__divan_" + request.function)
        answers: list[str] = []
        until, left = process_time() + SLICE_CPU_S, SLICE_CHARS
        try:
            for arguments in request.calls:
                answers.append(_sound(function(*arguments)))
                left -= len(answers[-1])
                if left < 0 or process_time() > until:
                    break
            return Reply(answers, self._notes(context))
        except (quickjs.JSException, quickjs.StackOverflow) as error:
            notes, fault = self._notes(context), self._fault(context, error, THROWN)
            if fault.kind in (TIME, MEMORY):
                del self._contexts[request.program]
            return Reply(answers, notes, fault)

    def _notes(self, context: Any) -> list[str]:
        try:
            taken = context.get("__divan_notes")()
        except (quickjs.JSException, quickjs.StackOverflow):
            return []
        notes: list[str] = msgspec.json.decode(_sound(taken)) if taken else []
        return notes

    def _fault(self, context: Any, error: Exception, usual: str) -> Fault:
        message = str(error).split("\n", 1)[0]
        kind = usual
        if message == INTERRUPTED:
            kind = TIME
        elif message.startswith("InternalError") or message in NO_MEMORY_TO_TELL:
            kind = MEMORY
        try:
            running = str(context.get("__divan_running")())
        except (quickjs.JSException, quickjs.StackOverflow):
            running = ""
        return Fault(kind, message, running)


def _sound(text: str) -> str:
    return _ALONE.sub(r"\1\\ufffd", text) if "\\ud" in text else text


def give_up(memory_bytes_max: int) -> None:
    """Nothing can be opened, begun or written to any more; the process ends with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    for what, most in (
        (resource.RLIMIT_DATA, memory_bytes_max + OWN_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(what, (most, most))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its parent has no more requests


def serve(requests: BinaryIO, replies: BinaryIO, runtime: Runtime) -> None:
    """Answer until there are no more requests."""
    decode = msgspec.msgpack.Decoder(Request).decode
    encode = msgspec.msgpack.Encoder().encode
    while len(head := requests.read(LENGTH.size)) == LENGTH.size:
        request = decode(requests.read(LENGTH.unpack(head)[0]))
        reply = encode(runtime.answer(request))
        replies.write(LENGTH.pack(len(reply)) + reply)
        replies.flush()


def main(arguments: list[str]) -> None:
    """The process."""
    memory_bytes_max, cpu_s_max = int(arguments[0]), float(arguments[1])
    runtime = Runtime(memory_bytes_max, cpu_s_max)
    give_up(memory_bytes_max)
    serve(sys.stdin.buffer, sys.stdout.buffer, runtime)


if __name__ == "__main__":
    main(sys.argv[1:])
