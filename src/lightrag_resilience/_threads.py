"""An event loop in a thread, for sync functions that are called where no loop runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from ._forks import renew_in_children

__all__ = ["BackgroundLoop"]

R = TypeVar("R")

_LAST_WORDS = 5.0  # seconds that cancelled tasks get to end


class BackgroundLoop:
    """Runs coroutines for threads that wait for them. Starts on first use, again after a fork."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine, in the caller's context; interrupting the wait cancels it."""
        with self._lock:  # so that `close` finds either nothing or a task that it can cancel
            outcome = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        try:
            return outcome.result()
        except BaseException:
            outcome.cancel()
            raise

    def close(self) -> None:
        """Cancel what runs, end the loop and its thread; the next `run` starts anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            if loop is None or thread is None:
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def renew_after_fork(self) -> None:
        """In a child process: the thread and its loop are the parent's."""
        self._lock = threading.Lock()
        self._loop = self._thread = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            renew_in_children(self)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_serve, args=(self._loop,), name="lightrag-resilience", daemon=True
            )
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, then end in order what it still does."""
    loop.run_forever()
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_WORDS))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
