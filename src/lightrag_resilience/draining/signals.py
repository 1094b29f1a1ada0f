"""Signals of the process, heard beside whoever hears them already."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["ONE_REQUEST", "SignalListener", "reset_signals", "shutdown_signals"]

ONE_REQUEST = 1.0
"""Seconds within which several signals are one request to stop.

A signal to a whole process group reaches a worker twice: from the sender, and from the worker's
parent, which passes it on. Ctrl-C and the parent's SIGTERM are such a pair, too.
"""

_NOBODY = object()
_heard: set[signal.Signals] = set()


def shutdown_signals() -> list[signal.Signals]:
    """Those that tell a process to stop, on this system; SIGQUIT where a server hears it."""
    names = ["SIGTERM", "SIGINT", "SIGBREAK"]
    if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) != signal.SIG_DFL:
        names.append("SIGQUIT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class SignalListener:
    """Tells of signals for as long as its block lasts; only the main thread can.

    A server's own handler is called as before: `asyncio.add_signal_handler` would replace it.

    Args:
        wanted: The signals.
        tell: Runs inside the handler, so it must neither wait nor log.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        wanted: Iterable[signal.Signals],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = tuple(wanted)
        self._tell = tell
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
        """Hear, or hear again where somebody has set a handler since; False where nobody can."""
        if threading.current_thread() is not threading.main_thread():
            return False
        for number in self._wanted:
            current = signal.getsignal(number)
            if current is not self._ours.get(number, _NOBODY):
                self._before[number] = current
                self._ours[number] = functools.partial(self._handle, current)
                signal.signal(number, self._ours[number])
                _heard.add(number)
        return True

    def stop(self) -> None:
        """Leave signals to those who heard them before, or have set a handler since."""
        for number, handler in self._before.items():
            _heard.discard(number)
            if signal.getsignal(number) is self._ours[number]:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before, self._ours = {}, {}

    def _handle(self, before: Any, number: int, frame: FrameType | None) -> None:
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
        name = signal.Signals(number).name
        is_first = now - self._first_at < ONE_REQUEST and name != "SIGQUIT"
        self._tell(name)
        if not callable(before):
            return
        if is_first:
            # A server ends at once when one handler of its own is called a second time, and
            # Python's Ctrl-C breaks off whatever runs: neither is meant by the first request.
            if before in self._called or _breaks_off(before):
                return
            self._called.append(before)
        before(number, frame)


def reset_signals() -> None:
    """In a child that was forked, signals do again what they do in a new program."""
    with contextlib.suppress(ValueError):  # not in the main thread
        if _heard:
            signal.set_wakeup_fd(-1)  # that of the parent's loop, which would hear of ours
        for number in _heard:
            is_ctrl_c = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    _heard.clear()


def _breaks_off(handler: Any) -> bool:
    """Whether it is Python's own Ctrl-C, or asyncio's."""
    if handler is signal.default_int_handler:
        return True
    function = handler.func if isinstance(handler, functools.partial) else handler
    return getattr(function, "__qualname__", "") == "Runner._on_sigint"
