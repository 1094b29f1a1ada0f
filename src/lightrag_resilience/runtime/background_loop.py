"""An event loop in a thread, for guarded sync functions: their callers have no running loop."""

from __future__ import annotations

import _thread
import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from lightrag_resilience.errors import UnsupportedCallError

from .process_state import process

__all__ = ["BackgroundLoop", "refuse_green_threads"]

R = TypeVar("R")

_CLOSE_TIMEOUT = 5.0  # seconds for cancelled tasks to end
_GREEN_THREADS = frozenset({"gevent", "eventlet"})


def refuse_green_threads() -> None:
    """Refuse a sync call if a library has replaced threads: it would block the only event loop.

    Raises:
        UnsupportedCallError: gevent or eventlet has patched `threading` or `socket`.
    """
    replaced = (_thread.start_new_thread, socket.socket)
    for library in (each.__module__.partition(".")[0] for each in replaced):
        if library in _GREEN_THREADS:
            raise UnsupportedCallError(
                f"{library} has replaced threads and sockets in this process, and sync functions "
                "cannot be guarded without them: serve it with threads (Gunicorn's gthread), or "
                "guard coroutine functions on an event loop"
            )


class BackgroundLoop:
    """Runs coroutines for threads that wait for the result. Starts on first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine, in the caller's context; interrupting the wait cancels it.

        Raises:
            UnsupportedCallError: This process has greenlets in place of threads.
        """
        with self._lock:  # `close` then finds no task, or one that it can cancel
            try:
                loop = self._running_loop()
            except UnsupportedCallError:
                coroutine.close()
                raise
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel running tasks, end the loop and its thread; the next `run` starts new ones."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            if loop is None or thread is None:
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def reset_after_fork(self) -> None:
        """In a child process: the thread and its loop exist in the parent only."""
        self._lock = threading.Lock()
        self._loop = self._thread = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            refuse_green_threads()
            process.reset_in_children(self)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_serve, args=(self._loop,), name="lightrag-resilience", daemon=True
            )
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, then end its tasks and generators in order."""
    loop.run_forever()
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=_CLOSE_TIMEOUT))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
