"""Tasks: a time limit and an end that holds even if a cancellation is lost.

Python 3.11 loses a cancellation that arrives while `asyncio.wait_for` is about to end, as in
redis-py's send; libraries swallow one now and then. `asyncio.timeout` cancels only once, so code
inside it may then run without a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from .process_state import process

__all__ = [
    "DetachedWork",
    "cancel_until_done",
    "drop_error",
    "finish_from_any_thread",
    "is_being_cancelled",
    "keep_until_done",
    "within",
]

_CANCEL_AGAIN = 0.05  # seconds
T = TypeVar("T")


def is_being_cancelled() -> bool:
    """Whether the running task itself is cancelled.

    A `CancelledError` that arrives while this is False is of the task that it waits for.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def drop_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a done task, so that asyncio does not log it as never retrieved."""
    if not task.cancelled():
        task.exception()


def finish_from_any_thread(future: asyncio.Future[T], result: T) -> None:
    """End the wait for a future of any event loop."""
    with contextlib.suppress(RuntimeError):  # its loop is closed
        future.get_loop().call_soon_threadsafe(_finish, future, result)


def _finish(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


async def cancel_until_done(
    tasks: Iterable[asyncio.Task[Any]],
    *,
    every: float | None = _CANCEL_AGAIN,
    attempts: int | None = None,
) -> None:
    """Cancel tasks until they end, also while the caller is cancelled; their errors are dropped.

    Args:
        tasks: Of the running event loop.
        every: Seconds between two cancellations; None cancels again only if the caller is.
        attempts: Cancellations at the most; None goes on until all tasks have ended.

    Raises:
        asyncio.CancelledError: The caller was cancelled meanwhile.
    """
    running = set(tasks)
    interruption: asyncio.CancelledError | None = None
    while True:
        for task in [task for task in running if task.done()]:
            running.remove(task)
            drop_error(task)
        if not running or attempts == 0:
            break
        attempts = None if attempts is None else attempts - 1
        for task in running:
            task.cancel()
        try:
            await asyncio.wait(running, timeout=every)
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        raise interruption


class DetachedWork:
    """Work of this process that nothing awaits.

    Attributes:
        tasks: Kept alive until they are done, as an event loop does not.
        threads: Names of sync functions, of which a thread runs each.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.threads: dict[object, str] = {}

    def reset_after_fork(self) -> None:
        """In a child process: it runs in the parent."""
        self.tasks.clear()
        self.threads.clear()


def keep_until_done(task: asyncio.Task[Any]) -> None:
    """Keep a task that nothing awaits alive; its error is dropped."""
    kept = process[DetachedWork].tasks
    kept.add(task)
    task.add_done_callback(kept.discard)
    task.add_done_callback(drop_error)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine in a task of its own, for at most so many seconds.

    Raises:
        TimeoutError: It took longer, and is cancelled.
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
            await cancel_until_done([task])
