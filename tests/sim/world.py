"""Simulated time, and processes that can be stopped and killed, on one thread.

The loop jumps to the next timer instead of waiting for it. What belongs to a process is known by
its context: every task, timer and callback inherits it. A stopped process's callbacks are held
until it goes on, as SIGSTOP does it; those of a dead one are held until the run is over.
"""

import asyncio
import contextvars
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from heapq import heappop, heappush
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


class _Silent(selectors.SelectSelector):
    """Nothing ever comes from outside."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []


class _Step(asyncio.TimerHandle):
    """A callback that is to run, perhaps at a time; of a process, or of nobody.

    Made and run in one go each: this is what a simulation does most.
    """

    __slots__ = ("process",)

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context,
        when: float,
    ) -> None:  # fmt: skip
        self._callback: Callable[..., Any] | None = callback
        self._args: Any = args
        self._context = context
        self._when = when
        self._cancelled = False
        self.process: Process | None = context.get(_PROCESS)

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None

    def __repr__(self) -> str:
        return f"<step at {self._when} {self._callback}>"


class SimLoop(asyncio.SelectorEventLoop):
    """asyncio with its own time; the same seed gives the same order of everything."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.nobody = contextvars.Context()
        """Of what belongs to no process: the network, the board, and whoever tests them."""
        self._steps: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        """A heap. Those of one moment run in the order in which they were set."""
        self._timers_set = 0
        super().__init__(_Silent())

    def time(self) -> float:
        return self.now_s

    def call_soon(
        self, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:  # fmt: skip
        context = contextvars.copy_context() if context is None else context
        step = _Step(callback, args, context, self.now_s)
        self._steps.append(step)
        return step

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        context = contextvars.copy_context() if context is None else context
        step = _Step(callback, args, context, when)
        self._timers_set += 1
        heappush(self._timers, (when, self._timers_set, step))
        return step

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:  # fmt: skip
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Have something happen that belongs to no process."""
        self.call_at(self.now_s + delay_s, callback, *args, context=self.nobody)

    def resume(self, held: Iterable[_Step]) -> None:
        """What was held may run now, in its order."""
        self._steps.extend(held)

    def _run_once(self) -> None:
        """In place of asyncio's, until it is stopped: jumps to the next timer instead of waiting
        for it.
        """
        steps, timers = self._steps, self._timers
        while True:
            if not steps and not self._stopping:
                while timers and timers[0][2]._cancelled:
                    heappop(timers)
                if not timers:
                    raise Stuck
                self.now_s = max(self.now_s, timers[0][0])
            while timers and timers[0][0] <= self.now_s:
                steps.append(heappop(timers)[2])
            for _ in range(len(steps)):
                step = steps.popleft()
                if step._cancelled:
                    continue
                process = step.process
                if process is None or process.is_running:
                    try:
                        step._context.run(step._callback, *step._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as fault:
                        said = f"Exception in {step}"
                        self.call_exception_handler({"message": said, "exception": fault})
                else:
                    process.held.append(step)
            if self._stopping:
                return


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
        task = self._loop.create_task(work, context=self.new_context())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop, context=self._loop.nobody)
        return task

    def new_context(self) -> contextvars.Context:
        """For a step of this process."""
        return self._context.copy()

    @property
    def tasks(self) -> int:
        """How many it was asked to do and has not ended."""
        return len(self._tasks)

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
        self._loop.resume(held)

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
