"""The event loops on which guards are called, and what all calls on one of them share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import get_ident

from lightrag_resilience.runtime.fork_safety import reset_in_children

from .attempt_timer import Timed, Timer

__all__ = ["LoopTimers", "LoopTimersRegistry"]


class LoopTimers:
    """An event loop, and a timer for all calls that may take equally long, whoever makes them.

    Args:
        loop: The loop.
        clock: Monotonic seconds, by which `Timed.due` is set.

    Attributes:
        thread: Where the loop ran when it was last looked for; None where it cannot run any more.
    """

    __slots__ = ("_clock", "_timers", "loop", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self.loop = loop
        self.thread: int | None = None
        self._clock = clock
        self._timers: dict[float, Timer] = {}

    def timer(self, seconds: float) -> Timer:
        """What ends calls that take longer than `seconds`."""
        timer = self._timers.get(seconds)
        if timer is None:
            timer = self._timers.setdefault(seconds, Timer(seconds, self.loop, self._clock))
        return timer

    def running(self) -> list[Timed]:
        """Those whose time runs; any thread may ask."""
        return [timed for timer in list(self._timers.values()) for timed in timer.running()]


class LoopTimersRegistry:
    """All loops on which the guards of a registry are called.

    Args:
        clock: Monotonic seconds, by which `Timed.due` is set.
    """

    __slots__ = ("__weakref__", "_clock", "_of_loops")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of_loops: dict[asyncio.AbstractEventLoop, LoopTimers] = {}

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> LoopTimers:
        """That of a loop which runs in this thread."""
        home = self._of_loops.get(loop)
        if home is None:
            reset_in_children(self)
            for other in list(self._of_loops):
                if other.is_closed():
                    self._of_loops.pop(other, None)
            home = self._of_loops.setdefault(loop, LoopTimers(loop, self._clock))
        home.thread = get_ident()
        return home

    def running(self) -> list[Timed]:
        """Calls of all loops whose time runs; any thread may ask."""
        return [timed for home in list(self._of_loops.values()) for timed in home.running()]

    def reset_after_fork(self) -> None:
        """In a child process: a loop that seems to run in this thread is the parent's."""
        for home in self._of_loops.values():
            home.thread = None
