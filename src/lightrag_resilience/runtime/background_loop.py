"""An event loop in a thread, for sync functions that are called where no loop runs."""

from __future__ import annotations

import _thread
import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from lightrag_resilience.errors import UnsupportedCallError

from .fork_safety import reset_in_children

__all__ = ["BackgroundLoop", "refuse_green_threads"]

R = TypeVar("R")

_LAST_WORDS = 5.0  # seconds that cancelled tasks get to end
_GREEN = frozenset({"gevent", "eventlet"})


def refuse_green_threads() -> None:
    """Refuse a sync call where a library has replaced threads: all would be on one event loop.

    Raises:
        UnsupportedCallError: gevent or eventlet has patched `threading` or `socket`.
    """
    replaced = (_thread.start_new_thread, socket.socket)
    for library in (each.__module__.partition(".")[0] for each in replaced):
        if library in _GREEN:
            raise UnsupportedCallError(
                f"{library} has replaced threads and sockets in this process, without which sync "
                "functions cannot be guarded: serve it with threads (Gunicorn's gthread), or "
                "guard coroutine functions on an event loop"
            )


class BackgroundLoop:
    """Runs coroutines for threads that wait for them. Starts on first use, again after a fork."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine, in the caller's context; interrupting the wait cancels it.

        Raises:
            UnsupportedCallError: There are no threads in this process, only greenlets.
        """
        with self._lock:  # so that `close` finds either nothing or a task that it can cancel
            try:
                loop = self._running_loop()
            except UnsupportedCallError:
                coroutine.close()
                raise
            outcome = asyncio.run_coroutine_threadsafe(coroutine, loop)
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

    def reset_after_fork(self) -> None:
        """In a child process: the thread and its loop are the parent's."""
        self._lock = threading.Lock()
        self._loop = self._thread = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            refuse_green_threads()
            reset_in_children(self)
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
