"""Signals of the process, heard beside whoever hears them already."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["Ears", "forget_signals", "signals_to_hear"]

_NOBODY = object()
_heard: set[signal.Signals] = set()


def signals_to_hear() -> list[signal.Signals]:
    """Those that tell a process to stop, on this system; SIGQUIT where a server hears it."""
    names = ["SIGTERM", "SIGINT", "SIGBREAK"]
    if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) != signal.SIG_DFL:
        names.append("SIGQUIT")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


class Ears:
    """Tells of signals for as long as its block lasts; only the main thread can.

    A server's own handler is called as before: `asyncio.add_signal_handler` would replace it.

    Args:
        wanted: The signals.
        tell: Runs inside the handler, so it must neither wait nor log.
    """

    def __init__(self, wanted: Iterable[signal.Signals], tell: Callable[[str], None]) -> None:
        self._wanted = tuple(wanted)
        self._tell = tell
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
                self._ours[number] = _handler(number, current, self._tell)
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


def forget_signals() -> None:
    """In a child that was forked, signals do again what they do in a new program."""
    with contextlib.suppress(ValueError):  # not in the main thread
        if _heard:
            signal.set_wakeup_fd(-1)  # that of the parent's loop, which would hear of ours
        for number in _heard:
            is_ctrl_c = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    _heard.clear()


def _handler(
    number: signal.Signals, before: Any, tell: Callable[[str], None]
) -> Callable[[int, FrameType | None], None]:
    times = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        tell(number.name)
        # What would break the work off at the first signal does so at the second.
        if callable(before) and (times > 1 or not _breaks_off(before)):
            before(signum, frame)

    return handle


def _breaks_off(handler: Any) -> bool:
    """Whether it is Python's own Ctrl-C, or asyncio's."""
    if handler is signal.default_int_handler:
        return True
    function = handler.func if isinstance(handler, functools.partial) else handler
    return getattr(function, "__qualname__", "") == "Runner._on_sigint"
