"""Stop signals, handled beside the handlers that are installed already."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from lightrag_resilience.runtime.asyncio_compat import is_runner_interrupt

__all__ = ["ONE_REQUEST", "SignalListener", "shutdown_signals"]

ONE_REQUEST = 1.0
"""Seconds within which several signals are one request to stop.

A signal to a process group reaches a worker twice: from the sender, and from the worker's parent,
which passes it on. Ctrl-C and the parent's SIGTERM are such a pair too.
"""

_NOT_OURS = object()


def shutdown_signals() -> list[signal.Signals]:
    """The stop signals of this system, with SIGQUIT if a server has a handler for it."""
    names = ["SIGTERM", "SIGINT", "SIGBREAK"]
    if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) != signal.SIG_DFL:
        names.append("SIGQUIT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class SignalListener:
    """Calls back on signals while its block lasts; only the main thread can.

    A handler that was installed before is called too: `asyncio.add_signal_handler` would replace
    it.

    Args:
        wanted: The signals.
        on_signal: Called inside the signal handler, so it must neither wait nor log.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        wanted: Iterable[signal.Signals],
        on_signal: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = tuple(wanted)
        self._on_signal = on_signal
        self._clock = clock
        self._first_at: float | None = None
        self._called: list[Any] = []
        self._before: dict[signal.Signals, Any] = {}
        self._ours: dict[signal.Signals, Any] = {}

    def __enter__(self) -> bool:
        return self.listen()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listen(self) -> bool:
        """Install the handlers, again where another library has replaced them.

        Returns:
            False outside the main thread, where Python allows no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        for number in self._wanted:
            current = signal.getsignal(number)
            if current is not self._ours.get(number, _NOT_OURS):
                self._before[number] = current
                self._ours[number] = functools.partial(self._handle, current)
                signal.signal(number, self._ours[number])
        return True

    def stop(self) -> None:
        """Restore the previous handlers, except where another library has replaced ours."""
        for number, handler in self._before.items():
            if signal.getsignal(number) is self._ours[number]:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before, self._ours = {}, {}

    def reset_after_fork(self) -> None:
        """In a forked child, give the handled signals their default actions."""
        with contextlib.suppress(ValueError):  # not in the main thread
            if self._before:
                signal.set_wakeup_fd(-1)  # or the child's signals would wake the parent's loop
            for number in self._before:
                is_ctrl_c = number is signal.SIGINT
                signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
        self._before, self._ours = {}, {}

    def _handle(self, before: Any, number: int, frame: FrameType | None) -> None:
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
        name = signal.Signals(number).name
        is_first = now - self._first_at < ONE_REQUEST and name != "SIGQUIT"
        self._on_signal(name)
        if not callable(before):
            return
        if is_first:
            # A server stops at once when its handler is called a second time, and Python's own
            # Ctrl-C handler interrupts whatever runs: the first request means neither.
            if before in self._called or _interrupts(before):
                return
            self._called.append(before)
        before(number, frame)


def _interrupts(handler: Any) -> bool:
    """Whether it is the Ctrl-C handler of Python or asyncio."""
    return handler is signal.default_int_handler or is_runner_interrupt(handler)
