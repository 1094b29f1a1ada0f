"""The time between a stream's items, which are too many to arm a timer for each."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable

from ._tasks import current_task
from .errors import UnsupportedCallError
from .timeouts import Clock

__all__ = ["GapTimer", "read_elsewhere"]

_NEVER = math.inf


class GapTimer:
    """Ends the wait for a stream's next item that lasts longer than `seconds`.

    A wait only notes when it will have lasted too long. The timer rings when the first of them
    would have, and is armed again for the one of that moment: once in `seconds`, not for each item.

    Args:
        seconds: How long each wait may last; infinity where it may for ever.
        until: Monotonic seconds at which the last must end in any case.
        loop: The loop on which the stream is read.
        clock: Monotonic seconds.
    """

    __slots__ = (
        "_cancelling",
        "_clock",
        "_due",
        "_handle",
        "_is_late",
        "_loop",
        "_rings_at",
        "_task",
        "seconds",
        "until",
    )

    _task: asyncio.Task[object]
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
        self._loop = loop
        self._clock: Clock = clock
        self._due = self._rings_at = _NEVER
        self._is_late = False
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """A wait begins, in the task that calls this.

        Raises:
            UnsupportedCallError: It runs on another loop than the stream.
        """
        task = current_task(self._loop)
        if task is None:
            raise read_elsewhere()
        self._task = task
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
        return self._task.uncancel() <= self._cancelling

    def close(self) -> None:
        """No wait follows; on the loop of the stream."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, due: float) -> None:
        self.close()
        delay = max(due - self._clock(), 0.0)
        # In an empty context: that of the caller would be kept for as long as it lasts.
        self._handle = self._loop.call_later(delay, self._ring, context=contextvars.Context())
        self._rings_at = due

    def _ring(self) -> None:
        """End the present wait if it is due; look again when it will be."""
        self._handle = None
        self._rings_at = _NEVER
        if self._due > self._clock():
            if self._due < _NEVER:
                self._arm(self._due)
            return
        self._is_late = True
        self._task.cancel()


def read_elsewhere() -> UnsupportedCallError:
    """What a reader on another loop is told."""
    return UnsupportedCallError("A stream must be read on the event loop that began it")
