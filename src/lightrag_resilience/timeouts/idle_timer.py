"""The time between a stream's items, which are too many to arm a timer for each."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable
from weakref import ref

from lightrag_resilience.errors import UnsupportedCallError
from lightrag_resilience.runtime.tasks import current_task

from .attempt_timer import Clock

__all__ = ["IdleTimer", "wrong_loop_error"]

_NEVER = math.inf
_PAUSED = sys.float_info.max  # later than any moment, and still not never


class IdleTimer:
    """Ends the wait for a stream's next item that lasts longer than `seconds`.

    A wait only notes when it will have lasted too long. The timer rings when the first of them
    would have, and is armed again for the one of that moment: once in `seconds`, not for each item.

    Args:
        seconds: How long each wait may last; infinity where it may for ever.
        until: Monotonic seconds at which the last must end in any case.
        loop: The loop on which the stream is read.
        clock: Monotonic seconds.

    Attributes:
        ran_out: Whether the last wait that was ended here had come to `until`.
    """

    __slots__ = (
        "__weakref__",
        "_cancelling",
        "_clock",
        "_due",
        "_handle",
        "_is_late",
        "_loop",
        "_reader",
        "_rings_at",
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
        self._due = self._rings_at = _NEVER
        self._is_late = False
        self._handle: asyncio.TimerHandle | None = None
        self._reader = _reader_on(loop)

    @property
    def task(self) -> asyncio.Task[object] | None:
        """The task that waits, or waited last, or has the stream since it was begun."""
        return self._reader()

    def start(self) -> None:
        """A wait begins, in the task that calls this.

        Raises:
            UnsupportedCallError: It runs on another loop than the stream.
        """
        task = current_task(self._loop)
        if task is None:
            raise wrong_loop_error()
        if self._reader() is not task:
            # In another thread, the loop's task is not the one that reads. Not asked for each
            # item: that costs 3 to 5 %, and while the reader itself waits for the thread, it
            # does not read beside it.
            if asyncio._get_running_loop() is not self._loop:  # noqa: SLF001 - the other one raises
                raise wrong_loop_error()
            # Weak: its result may be the stream, which shall go when it is dropped.
            self._reader = ref(task)
        self._cancelling = task.cancelling()
        due = self._clock() + self.seconds
        if due > self.until:  # noqa: PLR1730 - min() takes as long as the rest
            due = self.until
        self._due = due
        if due < self._rings_at:
            self._arm(due)

    def stop(self) -> bool:
        """The wait is over. True if it lasted too long, and nobody else cancelled the task."""
        self._due = _NEVER
        if not self._is_late:
            return False
        self._is_late = False
        task = self._reader()
        return task is not None and task.uncancel() <= self._cancelling

    def pause(self) -> None:
        """Let no time run, if a wait is under way."""
        self._due = max(self._due, _PAUSED)

    def resume(self, now: float) -> None:
        """Let its whole time run anew from `now`, if it is paused and not over."""
        if self._due == _PAUSED:
            self._due = min(now + self.seconds, self.until)
            if self._due < self._rings_at:
                self._arm(self._due)

    def close(self) -> None:
        """No wait follows the present one, which still ends in time; on the loop of the stream."""
        if self._handle is not None and self._due == _NEVER:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        delay = max(due - self._clock(), 0.0)
        # In an empty context: that of the caller would be kept for as long as it lasts.
        self._handle = self._loop.call_later(delay, self._ring, context=contextvars.Context())
        self._rings_at = due

    def _ring(self) -> None:
        """End the present wait if it is due; look again when it will be."""
        self._handle = None
        self._rings_at = _NEVER
        if self._due > self._clock():
            if self._due < _PAUSED:
                self._arm(self._due)
            return
        if (task := self._reader()) is not None:
            self._is_late = True
            self.ran_out = self._due >= self.until
            task.cancel()


def wrong_loop_error() -> UnsupportedCallError:
    """What a reader on another loop is told."""
    return UnsupportedCallError("A stream must be read on the event loop that began it")


def _reader_on(loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Task[object] | None]:
    task = current_task(loop)
    return _nobody if task is None else ref(task)


def _nobody() -> None:
    return None
