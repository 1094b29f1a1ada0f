"""Timeouts for many calls with one armed timer.

All calls with the same timeout are due in the order in which they begin. One dict and one timer of
the loop serve them all, where `asyncio.timeout` arms and cancels a timer for each call.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Protocol

from lightrag_resilience.runtime.asyncio_compat import current_task

__all__ = ["Clock", "DeadlineTimer", "Timed", "Timer"]


class Clock(Protocol):
    """A clock. Pyright takes a plain ``Callable`` in a slot for a method."""

    def __call__(self) -> float:
        """Monotonic seconds."""
        ...


class Timed:
    """Something whose task is cancelled when its time is up."""

    __slots__ = ("cancelling", "due", "expired", "name", "task")

    name: str
    """The dependency."""
    task: asyncio.Task[object]
    cancelling: int
    """`Task.cancelling()` at the start: later cancellations beside the timer's are the caller's."""
    due: float
    """Monotonic seconds at which its time is up; infinity while it is paused."""
    expired: bool
    """Whether the timer has cancelled the task."""

    @property
    def is_suspended(self) -> bool:
        """Whether other code runs at the moment: then its whole time starts anew when it is due."""
        return False


class Timer:
    """Cancels what is still running `seconds` after it began. For one event loop.

    Args:
        seconds: The timeout.
        loop: The loop on which they run.
        clock: Monotonic seconds, by which `Timed.due` is set.
    """

    __slots__ = ("_armed", "_running", "clock", "loop", "seconds")

    def __init__(
        self, seconds: float, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> None:
        self.seconds = seconds
        self.loop = loop
        self.clock = clock
        self._running: dict[Timed, Timer | None] = {}
        self._armed = False

    def start(self, timed: Timed, now: float) -> None:
        """Start the time of `timed` at `now`, in the task that calls this."""
        timed.task = task = current_task(self.loop)  # type: ignore[assignment]
        timed.cancelling = task.cancelling()  # type: ignore[union-attr]
        timed.expired = False
        timed.due = now + self.seconds
        self._running[timed] = None
        if not self._armed:
            self._arm(self.seconds)

    def stop(self, timed: Timed) -> bool:
        """Stop the time. True if it was up and the timer alone has cancelled the task."""
        if timed.expired:
            # As asyncio.timeout does: take back the own cancellation, and see what is left.
            timed.expired = False
            return timed.task.uncancel() <= timed.cancelling
        if self._running.pop(timed, self) is self:
            timed.due = 0.0  # it was paused, and must not be resumed
        return False

    def pause(self, timed: Timed) -> None:
        """Suspend the time, unless it is up already."""
        if self._running.pop(timed, self) is None:
            timed.due = math.inf

    def resume(self, timed: Timed, now: float) -> None:
        """Start the whole time anew at `now`, if it is paused and was not stopped since."""
        if timed.due == math.inf:
            timed.due = now + self.seconds
            self._running[timed] = None
            if not self._armed:
                self._arm(self.seconds)

    def running(self) -> list[Timed]:
        """All whose time runs; from any thread."""
        return list(self._running)

    def _arm(self, delay: float) -> None:
        # In an empty context: the timer would keep the caller's context alive.
        self.loop.call_later(max(delay, 0.0), self._fire, context=contextvars.Context())
        self._armed = True

    def _fire(self) -> None:
        """Cancel what is due, and arm the timer for the next, if any is left."""
        self._armed = False
        now = self.clock()
        while self._running:
            first = next(iter(self._running))
            if first.due > now:
                self._arm(first.due - now)
                return
            del self._running[first]
            if first.is_suspended:
                first.due = now + self.seconds
                self._running[first] = None
                continue
            first.expired = True
            first.task.cancel()


class DeadlineTimer(Timer):
    """The timer of one call that ends at a deadline in any case: a pause does not defer that.

    Args:
        seconds: The timeout of the call; infinity for none.
        until: Monotonic seconds of the deadline.
        loop: As for `Timer`.
        clock: As for `Timer`.
    """

    __slots__ = ("_longest", "_until")

    def __init__(
        self,
        seconds: float,
        until: float,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(seconds, loop, clock)
        self._longest = seconds
        self._until = until

    def start(self, timed: Timed, now: float) -> None:
        """As `Timer.start`, up to the deadline."""
        self.seconds = min(self._longest, max(self._until - now, 0.0))
        super().start(timed, now)

    def resume(self, timed: Timed, now: float) -> None:
        """As `Timer.resume`, up to the deadline."""
        self.seconds = min(self._longest, max(self._until - now, 0.0))
        super().resume(timed, now)
