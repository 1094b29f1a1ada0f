"""The timeout for a stream's next item, without a timer for each item."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable
from weakref import ref

from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.runtime.asyncio_compat import current_task, running_loop

from .attempt_timer import Clock

__all__ = ["IdleTimer", "wrong_loop_error"]

_NEVER = math.inf
_PAUSED = sys.float_info.max  # later than any moment, and still below _NEVER


class IdleTimer:
    """Cancels a wait for a stream's next item that lasts longer than `seconds`.

    The start of a wait only notes when it is due. The timer fires when the first wait would be due,
    and is then armed for the present one: once in `seconds`, not once for each item.

    Args:
        seconds: The timeout of each wait; infinity for none.
        until: Monotonic seconds at which the last wait ends in any case.
        loop: The loop on which the stream is read.
        clock: Monotonic seconds.

    Attributes:
        ran_out: Whether the last cancelled wait had come to `until`.
    """

    __slots__ = (
        "__weakref__",
        "_cancelling",
        "_clock",
        "_due",
        "_fires_at",
        "_handle",
        "_is_late",
        "_loop",
        "_reader",
        "ran_out",
        "seconds",
        "until",
    )

    _cancelling: int

    def __init__(
        self,
        seconds: float,
        until: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self.seconds = seconds
        self.until = until
        self.ran_out = False
        self._loop = loop
        self._clock: Clock = clock
        self._due = self._fires_at = _NEVER
        self._is_late = False
        self._handle: asyncio.TimerHandle | None = None
        self._reader = _reader_on(loop)

    @property
    def task(self) -> asyncio.Task[object] | None:
        """The task that reads the stream, or has opened it and not read yet."""
        return self._reader()

    def start(self) -> None:
        """Begin a wait, in the task that calls this.

        Raises:
            UnsupportedCallError: The task runs on another loop than the stream.
        """
        task = current_task(self._loop)
        if task is None:
            raise wrong_loop_error()
        if self._reader() is not task:
            # In another thread, the current task of the stream's loop is not the one that reads.
            # Checked for a new reader alone: a check for each item costs 3 to 5 %, and the known
            # reader cannot read here while it waits for that thread.
            if running_loop() is not self._loop:
                raise wrong_loop_error()
            # Weak: its result may be the stream, which must be freed when it is dropped.
            self._reader = ref(task)
        self._cancelling = task.cancelling()
        due = self._clock() + self.seconds
        if due > self.until:  # noqa: PLR1730 - min() takes as long as the rest
            due = self.until
        self._due = due
        if due < self._fires_at:
            self._arm(due)

    def stop(self) -> bool:
        """End the wait. True if it was too long and this timer alone has cancelled the task."""
        self._due = _NEVER
        if not self._is_late:
            return False
        self._is_late = False
        task = self._reader()
        return task is not None and task.uncancel() <= self._cancelling

    def pause(self) -> None:
        """Suspend the time of a wait, if one is under way."""
        self._due = max(self._due, _PAUSED)

    def resume(self, now: float) -> None:
        """Start the whole time anew at `now`, if a wait is paused and not over."""
        if self._due == _PAUSED:
            self._due = min(now + self.seconds, self.until)
            if self._due < self._fires_at:
                self._arm(self._due)

    def close(self) -> None:
        """Disarm the timer, on the loop of the stream; a wait under way keeps it."""
        if self._handle is not None and self._due == _NEVER:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        delay = max(due - self._clock(), 0.0)
        # In an empty context: the timer would keep the caller's context alive.
        self._handle = self._loop.call_later(delay, self._fire, context=contextvars.Context())
        self._fires_at = due

    def _fire(self) -> None:
        """Cancel the present wait if it is due; else arm the timer for when it will be."""
        self._handle = None
        self._fires_at = _NEVER
        if self._due > self._clock():
            if self._due < _PAUSED:
                self._arm(self._due)
            return
        if (task := self._reader()) is not None:
            self._is_late = True
            self.ran_out = self._due >= self.until
            task.cancel()


def wrong_loop_error() -> UnsupportedCallError:
    """The error for a reader on another loop."""
    return UnsupportedCallError("A stream must be read on the event loop that began it")


def _reader_on(loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Task[object] | None]:
    task = current_task(loop)
    return _no_task if task is None else ref(task)


def _no_task() -> None:
    return None
