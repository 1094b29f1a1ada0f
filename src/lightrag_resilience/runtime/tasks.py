"""The task that runs, and tasks that end in time.

Limits on time that hold even where a cancellation is lost.

Python 3.11 loses one that comes while `asyncio.wait_for` is about to end, as redis-py's sending
does; `asyncio.timeout` cancels once, so that what stands in it then lasts as long as it likes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["current_task", "end", "within"]

_CANCEL_AGAIN = 0.05  # seconds
T = TypeVar("T")

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:  # written in Python there, which takes four times as long as what it looks up
    current_task: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = vars(
        asyncio.tasks
    )["_current_tasks"].get


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they end, however often they lose that; what they raise is dropped."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        ended, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # or asyncio logs that nothing asked for it


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Do something of several steps, in a task of its own, in at most so many seconds.

    Raises:
        TimeoutError: It was not done by then, and is cancelled.
        Exception: What the work raised.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            await end([task])
