"""Sliding windows of a breaker: the last calls, or the calls of the last seconds.

No clock and no lock: `now` is given, and `Breaker` holds the lock. The two kinds of windows are
those of resilience4j.
"""

from __future__ import annotations

from typing import Protocol

from lightrag_resilience.config.policies import BreakerPolicy

__all__ = ["CountWindow", "TimeWindow", "Window", "make_window"]

_SLICES = 10


class Window(Protocol):
    """Counts of the calls in the window."""

    calls: int
    failed: int
    slow: int
    all_successes: bool
    """Full of quick successes: one more changes nothing."""

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add one call."""
        ...

    def advance(self, now: float) -> None:
        """Forget what is too old."""
        ...


class CountWindow:
    """The last `size` calls, in two integers with one bit a call, the newest call lowest.

    Both are 0 while all is well, so that a success costs next to nothing.
    """

    __slots__ = ("_failures", "_size", "_slowness", "all_successes", "calls", "failed", "slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._failures = self._slowness = 0
        self.calls = self.failed = self.slow = 0
        self.all_successes = False

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add one call, in place of the oldest."""
        del now
        size = self._size
        if self.calls < size:
            self.calls += 1
        if failed or self.failed:
            self._failures = _pushed(self._failures, failed, size)
            self.failed = self._failures.bit_count()
        if slow or self.slow:
            self._slowness = _pushed(self._slowness, slow, size)
            self.slow = self._slowness.bit_count()
        self.all_successes = self.calls == size and not self.failed and not self.slow

    def advance(self, now: float) -> None:
        """Do nothing: a count window forgets by calls alone."""


def _pushed(bits: int, bit: int, size: int) -> int:
    return (bits << 1 | bit) & ~(-1 << size)


class TimeWindow:
    """The calls of the last `seconds`, in ten slices; forgetting is as coarse as a slice."""

    __slots__ = ("_current", "_slice", "_slices", "all_successes", "calls", "failed", "slow")

    def __init__(self, seconds: float, now: float) -> None:
        self._slice = seconds / _SLICES
        self._slices = [[0, 0, 0] for _ in range(_SLICES)]
        self._current = int(now // self._slice)
        self.calls = self.failed = self.slow = 0
        self.all_successes = False

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        """Add one call to the present slice."""
        self.advance(now)
        present = self._slices[self._current % _SLICES]
        present[0] += 1
        present[1] += failed
        present[2] += slow
        self.calls += 1
        self.failed += failed
        self.slow += slow

    def advance(self, now: float) -> None:
        """Empty the slices that have passed; a clock that stops or steps back empties none."""
        index = int(now // self._slice)
        for passed in range(max(self._current + 1, index - _SLICES + 1), index + 1):
            old = self._slices[passed % _SLICES]
            self.calls -= old[0]
            self.failed -= old[1]
            self.slow -= old[2]
            old[:] = (0, 0, 0)
        self._current = max(self._current, index)


def make_window(policy: BreakerPolicy, now: float) -> Window:
    """An empty window by a policy."""
    if policy.window == "count":
        return CountWindow(policy.window_calls)
    return TimeWindow(policy.window_seconds, now)
