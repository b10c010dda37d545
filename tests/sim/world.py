"""Simulated time, and processes that can be stopped and killed, on one thread.

The loop jumps to the next timer instead of waiting for it. What belongs to a process is known by
its context: every task, timer and callback inherits it. A stopped process's callbacks are held
until it goes on, as SIGSTOP does it; those of a dead one are held until the run is over.
"""

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Optional, TypeVar

T = TypeVar("T")
END_S = 100.0
"""Simulated time in which what is cancelled must have ended once a run is over."""
ENDINGS_MAX = 5
"""What is cancelled may begin something to clean up."""


class Stuck(Exception):
    """Nothing is left that could happen."""


class Gone(Exception):
    """The process that was asked is no more."""


class _Jumping(selectors.SelectSelector):
    loop: "SimLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.loop.now_s += max(timeout, 0.0)
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """asyncio with its own time; the same seed gives the same order of everything."""

    def __init__(self) -> None:
        selector = _Jumping()
        selector.loop = self
        self.now_s = 0.0
        self.nobody = contextvars.Context()
        """Of what belongs to no process: the network, the board, and whoever tests them."""
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:  # fmt: skip
        context = contextvars.copy_context() if context is None else context
        process = context.get(_PROCESS)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        step = _Step(process, callback, args, context)
        step.handle = super().call_soon(step, context=context)
        return step.handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        context = contextvars.copy_context() if context is None else context
        process = context.get(_PROCESS)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        step = _Step(process, callback, args, context)
        timer = super().call_at(when, step, context=context)
        step.handle = timer
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:  # fmt: skip
        return self.call_soon(callback, *args, context=context)

    def later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Have something happen that belongs to no process."""
        self.call_at(self.now_s + delay_s, callback, *args, context=self.nobody)


class _Step:
    """A callback of a process: it runs, or waits while the process does not."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self, process: "Process", callback: Callable[..., Any], args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:  # fmt: skip
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.handle: asyncio.Handle

    def __call__(self) -> None:
        if self.process.is_running:
            self.callback(*self.args)
        else:
            self.process.held.append(self)

    def again(self) -> None:
        """It was held, and may run now."""
        if not self.handle.cancelled():
            self.callback(*self.args)


class Process:
    """Something that runs, may be stopped for a while, and may be killed at any moment."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.is_running = True
        self.is_alive = True
        self.held: list[_Step] = []
        self.at_death: list[Callable[[], object]] = []
        self._loop = loop
        self._asked: dict[asyncio.Future[Any], None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.Context()
        self._context.run(_PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something in this process."""
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop, context=self._loop.nobody)
        return task

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done there, from outside; raises ``Gone`` if the process dies first."""
        if not self.is_alive:
            work.close()
            raise Gone(self.name)
        answer: asyncio.Future[T] = self._loop.create_future()
        self._asked[answer] = None
        task = self.start(work)
        task.add_done_callback(lambda done: _settle(answer, done), context=self._loop.nobody)
        try:
            return await answer
        finally:
            self._asked.pop(answer, None)

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_running = False

    def go_on(self) -> None:
        """SIGCONT: what came due meanwhile happens now, in its order."""
        self.is_running = self.is_alive
        if self.is_running:
            self.release()

    def release(self) -> None:
        """Let happen what was held."""
        held, self.held = self.held, []
        for step in held:
            if not step.handle.cancelled():
                self._loop.call_soon(step.again, context=step.context)

    def kill(self) -> None:
        """SIGKILL: no ``finally``, no last word."""
        self.is_running = self.is_alive = False
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(Gone(self.name))
        for step in self.at_death:
            step()

    def unwind(self) -> None:
        """The run is over: let its tasks end."""
        self.is_running = True
        self.release()


_PROCESS: contextvars.ContextVar[Optional["Process"]] = contextvars.ContextVar(
    "process", default=None
)


def _settle(answer: asyncio.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        fault: BaseException | None = Gone("cancelled")
    else:
        fault = task.exception()  # also looked at when nobody waits any more
    if answer.done():
        return
    if fault is not None:
        answer.set_exception(fault)
    else:
        answer.set_result(task.result())


class SimClock:
    """The loop's time as a ``Clock``; ``offset_ms`` is how wrong a node's wall clock is."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.offset_ms = 0

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.now_s * 1000) + self.offset_ms

    def monotonic(self) -> float:
        return self._loop.now_s


def run(body: Coroutine[Any, Any, None], loop: SimLoop, processes: list[Process]) -> None:
    """Run to the end, then end what is left running; ``processes`` are all that there were."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(body)
    finally:
        _end_all(loop, processes)
        asyncio.set_event_loop(None)
        loop.close()


def _end_all(loop: SimLoop, processes: list[Process]) -> None:
    loop.set_exception_handler(lambda _, context: None)  # what the dead say counts for nothing
    for _ in range(ENDINGS_MAX):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        for process in processes:
            process.unwind()
        loop.run_until_complete(asyncio.wait(tasks, timeout=END_S))
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())
