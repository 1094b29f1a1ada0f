"""A concurrency limit that adapts to latency and overload. No clock and no I/O in it.

Additive increase, multiplicative decrease: Chiu and Jain (1989), as in TCP and in Netflix's
concurrency-limits (`AIMDLimit`), here anchored to a goal for the 90th percentile of latency.
"""

from __future__ import annotations

import math

__all__ = ["AdaptiveLimit"]

_CUT_FACTOR = 0.8
_SLOW_START_FACTOR = 1.5  # for each window before the first cut
_SHORTEST_WINDOW = 10  # calls: fewer have no 90th percentile


class AdaptiveLimit:
    """The limit, adapted to how calls end.

    It is cut at most once for all calls that were in flight together, and grows only while it is
    reached: an idle hour proves nothing.

    Args:
        smallest: The limit is never lower.
        largest: The limit is never higher.
        goal: Seconds that nine calls in ten should not exceed; None adapts to overload only.

    Attributes:
        value: Calls in flight that are allowed now.
    """

    __slots__ = (
        "_cut_at",
        "_durations",
        "_goal",
        "_is_reached",
        "_is_starting",
        "_largest",
        "_limit",
        "_smallest",
        "value",
    )

    def __init__(self, *, smallest: int, largest: int, goal: float | None) -> None:
        self._smallest, self._largest, self._goal = smallest, largest, goal
        self._limit = float(min(max(smallest, _SHORTEST_WINDOW // 2), largest))
        self.value = int(self._limit)
        self._is_starting = True
        self._is_reached = False
        self._cut_at = -math.inf
        self._durations: list[float] = []

    def reached(self) -> None:
        """As many calls as allowed are in flight."""
        self._is_reached = True

    def on_success(self, *, started: float, duration: float, now: float) -> None:
        """A call that was sent at `started` has succeeded after `duration` seconds."""
        if started < self._cut_at:
            return  # sent under the limit before the cut
        self._durations.append(duration)
        if len(self._durations) < max(_SHORTEST_WINDOW, self.value):
            return
        if self._goal is not None and _percentile_90(self._durations) > self._goal:
            self._cut(now)
        elif self._is_reached:
            self._grow()
        self._begin_window()

    def on_overload(self, *, started: float, now: float) -> None:
        """A call that was sent at `started` was throttled, or not answered in time."""
        if started >= self._cut_at:
            self._cut(now)
            self._begin_window()

    def _grow(self) -> None:
        wanted = self._limit * _SLOW_START_FACTOR if self._is_starting else self._limit + 1.0
        self._set(wanted)

    def _cut(self, now: float) -> None:
        self._is_starting = False
        self._cut_at = now
        self._set(self._limit * _CUT_FACTOR)

    def _set(self, wanted: float) -> None:
        self._limit = min(max(wanted, float(self._smallest)), float(self._largest))
        self.value = int(self._limit)

    def _begin_window(self) -> None:
        self._durations.clear()
        self._is_reached = False


def _percentile_90(durations: list[float]) -> float:
    return sorted(durations)[int(0.9 * (len(durations) - 1))]
