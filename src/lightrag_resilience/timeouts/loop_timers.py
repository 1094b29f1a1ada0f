"""The event loops on which guards are called, and the timers that all calls on one loop share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import get_ident

from lightrag_resilience.runtime.process_state import process

from .attempt_timer import Timed, Timer

__all__ = ["LoopTimers", "LoopTimersRegistry"]


class LoopTimers:
    """An event loop with one timer for each timeout, shared by the calls of all guards.

    Args:
        loop: The loop.
        clock: Monotonic seconds, by which `Timed.due` is set.

    Attributes:
        thread: The thread in which the loop ran last; None where it cannot run any more.
    """

    __slots__ = ("_clock", "_timers", "loop", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self.loop = loop
        self.thread: int | None = None
        self._clock = clock
        self._timers: dict[float, Timer] = {}

    def timer(self, seconds: float) -> Timer:
        """The timer that cancels calls that take longer than `seconds`."""
        timer = self._timers.get(seconds)
        if timer is None:
            timer = self._timers.setdefault(seconds, Timer(seconds, self.loop, self._clock))
        return timer

    def running(self) -> list[Timed]:
        """All calls whose time runs; from any thread."""
        return [timed for timer in list(self._timers.values()) for timed in timer.running()]


class LoopTimersRegistry:
    """All loops on which the guards of a registry are called.

    Args:
        clock: Monotonic seconds, by which `Timed.due` is set.
    """

    __slots__ = ("__weakref__", "_by_loop", "_clock")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopTimers] = {}

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> LoopTimers:
        """The timers of a loop which runs in this thread."""
        timers = self._by_loop.get(loop)
        if timers is None:
            process.reset_in_children(self)
            for other in list(self._by_loop):
                if other.is_closed():
                    self._by_loop.pop(other, None)
            timers = self._by_loop.setdefault(loop, LoopTimers(loop, self._clock))
        timers.thread = get_ident()
        return timers

    def running(self) -> list[Timed]:
        """All calls of all loops whose time runs; from any thread."""
        return [timed for timers in list(self._by_loop.values()) for timed in timers.running()]

    def reset_after_fork(self) -> None:
        """Mark all loops as dead in a child process: they run in the parent."""
        for timers in self._by_loop.values():
            timers.thread = None
