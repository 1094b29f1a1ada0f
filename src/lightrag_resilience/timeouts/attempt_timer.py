"""Timeouts for many calls with one armed timer.

All calls of one policy may take equally long, so the order in which they begin is the order in
which they are due: a dict and a single timer serve them all, where `asyncio.timeout` would arm and
cancel a timer for each call.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Protocol

from lightrag_resilience.runtime.tasks import current_task

__all__ = ["Clock", "Timed", "Timer"]


class Clock(Protocol):
    """A clock. For pyright a plain ``Callable`` in a slot would be a method."""

    def __call__(self) -> float:
        """Monotonic seconds."""
        ...


class Timed:
    """Something whose task is cancelled when its time is up."""

    __slots__ = ("cancelling", "due", "expired", "name", "task")

    name: str
    """The dependency that has it run."""
    task: asyncio.Task[object]
    cancelling: int
    """Cancellations the task already had when the time began to run."""
    due: float
    expired: bool

    @property
    def is_suspended(self) -> bool:
        """Whether what it runs is not its own at the moment: its whole time runs anew."""
        return False


class Timer:
    """Ends what is still running `seconds` after it began. For one event loop.

    Args:
        seconds: How long each may take.
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
        """Let the time of `timed` run from `now`, in the task that calls this."""
        timed.task = task = current_task(self.loop)  # type: ignore[assignment]
        timed.cancelling = task.cancelling()  # type: ignore[union-attr]
        timed.expired = False
        timed.due = now + self.seconds
        self._running[timed] = None
        if not self._armed:
            self._arm(self.seconds)

    def stop(self, timed: Timed) -> bool:
        """The time no longer matters. True if it was up, and nobody else cancelled the task."""
        if timed.expired:
            timed.expired = False
            return timed.task.uncancel() <= timed.cancelling
        if self._running.pop(timed, self) is self:
            timed.due = 0.0  # it was paused, and shall not be resumed
        return False

    def pause(self, timed: Timed) -> None:
        """Let no time run; one whose time is up is ended all the same."""
        if self._running.pop(timed, self) is None:
            timed.due = math.inf

    def resume(self, timed: Timed, now: float) -> None:
        """Let its whole time run anew from `now`, if it is paused and was not stopped since."""
        if timed.due == math.inf:
            timed.due = now + self.seconds
            self._running[timed] = None
            if not self._armed:
                self._arm(self.seconds)

    def running(self) -> list[Timed]:
        """Those whose time runs; any thread may ask."""
        return list(self._running)

    def _arm(self, delay: float) -> None:
        # In an empty context: that of the caller would be kept for as long as it lasts.
        self.loop.call_later(max(delay, 0.0), self._ring, context=contextvars.Context())
        self._armed = True

    def _ring(self) -> None:
        """End what is due; arm again for the next, if any is left."""
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
