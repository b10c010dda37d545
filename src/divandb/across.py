"""From one thread's event loop to another's."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def across(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives on ``loop``, which may be another thread's. Who cancels it waits until
    ``work`` has ended.
    """
    here = asyncio.get_running_loop()
    if here is loop:
        return await work
    ended: asyncio.Future[T] = here.create_future()
    started: list[asyncio.Task[T]] = []

    def end(task: asyncio.Task[T]) -> None:
        if task.cancelled():
            ended.cancel()
        elif (fault := task.exception()) is not None:
            ended.set_exception(fault)
        else:
            ended.set_result(task.result())

    def start() -> None:
        task = loop.create_task(work)
        task.add_done_callback(lambda task: here.call_soon_threadsafe(end, task))
        started.append(task)

    loop.call_soon_threadsafe(start)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        if not ended.done():
            loop.call_soon_threadsafe(lambda: started[0].cancel())
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await ended
        raise
