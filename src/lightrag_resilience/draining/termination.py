"""Ends what did not end by itself: cancels tasks, terminates children, closes clients."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from lightrag_resilience.runtime.callables import names_of_threads
from lightrag_resilience.runtime.tasks import cancel_until_done
from lightrag_resilience.text import LONGEST_TEXT, printable

from .in_flight import cancel, has_ended

__all__ = ["close_all", "end_all", "end_children", "exit_despite_threads"]

_log = logging.getLogger("lightrag_resilience")

_CANCEL_AGAIN = 0.1  # seconds between two cancellations of a task that goes on
_POLL = 0.02  # seconds between two polls of whether it has ended


async def end_all(
    tasks: Iterable[asyncio.Task[Any]],
    processes: Iterable[Any],
    has_time: Callable[[int], bool],
) -> list[str]:
    """Cancel tasks repeatedly and terminate processes, while there is time; then kill processes.

    Args:
        tasks: What to cancel.
        processes: What to terminate.
        has_time: Called with the number of what is left.

    Returns:
        The printable names of tasks that did not end and of functions that still run in threads.
    """
    left, children = set(tasks), list(processes)
    for process in children:
        _end(process.terminate)
    cancelled_at = -_CANCEL_AGAIN
    while True:
        left = {task for task in left if not task.done()}
        children = [process for process in children if not has_ended(process)]
        count = len(left) + len(children) + len(names_of_threads())
        if not has_time(count) or not count:
            break
        if time.monotonic() - cancelled_at >= _CANCEL_AGAIN:
            cancelled_at = time.monotonic()
            for task in left:  # again, since a task may swallow a cancellation
                cancel(task)
        await asyncio.sleep(_POLL)
    end_children(children)
    names = [*sorted(task.get_name() for task in left), *names_of_threads()]
    return [printable(name, LONGEST_TEXT) for name in names]


def end_children(processes: Iterable[Any]) -> None:
    """Kill processes that still run."""
    for process in processes:
        if not has_ended(process):
            _end(process.kill)


def exit_despite_threads(deadline: float) -> None:
    """Exit although guarded functions hang in threads, once the main thread has ended.

    Python waits for such threads without limit, and a thread cannot be stopped. They have until
    `deadline`, in monotonic seconds; the main thread has no limit.
    """
    waiter = threading.Thread(
        target=_exit_despite_threads, args=(deadline,), name="lightrag-resilience-exit", daemon=True
    )
    waiter.start()


def _exit_despite_threads(deadline: float) -> None:
    threading.main_thread().join()
    while (left := names_of_threads()) and time.monotonic() < deadline:
        time.sleep(_POLL)
    if left:
        _log.error("Exit with threads that do not end: %s", ", ".join(left))
        logging.shutdown()
        os._exit(1)


def _end(how: Callable[[], Any]) -> None:
    with contextlib.suppress(ProcessLookupError, ValueError):  # it has just ended
        how()


async def close_all(
    closers: Iterable[tuple[Callable[[], Awaitable[Any] | None], float | None]], deadline: float
) -> tuple[str, ...]:
    """Call each callback within its timeout; returns the names of those that failed.

    Each runs in a task of its own, so that one that is cancelled, or swallows its cancellation,
    does not block the others.
    """
    failed = []
    for callback, timeout in closers:
        left = deadline - time.monotonic()
        limit = left if timeout is None else min(timeout, left)
        name = getattr(callback, "__qualname__", repr(callback))
        if (problem := await _close(callback, name, max(limit, 0.0))) is not None:
            failed.append(name)
            _log.warning("%s could not be closed: %s", name, problem)
    return tuple(failed)


async def _close(
    callback: Callable[[], Awaitable[Any] | None], name: str, seconds: float
) -> str | None:
    closing = asyncio.create_task(_call(callback), name=name)
    try:
        await asyncio.wait({closing}, timeout=seconds)
        if not closing.done():
            # One cancellation, and a moment for its own cleanup.
            await cancel_until_done([closing], every=_POLL, attempts=1)
            return "TimeoutError"
    except asyncio.CancelledError:  # the drain itself was cancelled
        closing.cancel()
        raise
    if closing.cancelled():
        return "CancelledError"
    error = closing.exception()
    return None if error is None else type(error).__name__


async def _call(callback: Callable[[], Awaitable[Any] | None]) -> None:
    result = callback()
    if inspect.isawaitable(result):
        await result
