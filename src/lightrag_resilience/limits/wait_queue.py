"""A bounded queue with two priorities. No clock and no event loop in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from .priority import Priority

__all__ = ["PriorityWaitQueue"]

T = TypeVar("T", bound=Hashable)

_MAX_INTERACTIVE_STREAK = 4  # then one background waiter is served, so that none starves


class PriorityWaitQueue(Generic[T]):
    """Waiters in order of arrival within a priority, interactive ones first.

    Args:
        max_size: How many may wait.
    """

    __slots__ = ("_queues", "_streak", "max_size")

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        # Dicts, not deques: many waiters may time out at once, at any position.
        self._queues: tuple[OrderedDict[T, None], ...] = tuple(OrderedDict() for _ in Priority)
        self._streak = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __bool__(self) -> bool:
        interactive, background = self._queues
        return bool(interactive or background)

    def position_of(self, level: Priority) -> int:
        """How many waiters go before a newcomer of this priority, streaks not counted."""
        return sum(len(self._queues[each]) for each in Priority if each <= level)

    def accepts(self, level: Priority) -> bool:
        """Whether a newcomer may wait, if need be by evicting a waiter of lower priority."""
        return len(self) < self.max_size or any(self._queues[level + 1 :])

    def push(self, waiter: T, level: Priority) -> T | None:
        """Add a waiter that the queue `accepts`; returns the one that is evicted, if any."""
        assert self.accepts(level)  # noqa: S101 - asked by the caller
        evicted = None
        if len(self) >= self.max_size:
            lowest = next(queue for queue in reversed(self._queues[level + 1 :]) if queue)
            evicted, _ = lowest.popitem()
        self._queues[level][waiter] = None
        return evicted

    def pop(self) -> T | None:
        """Remove and return the next waiter; None if none waits."""
        interactive, background = self._queues
        if background and (not interactive or self._streak >= _MAX_INTERACTIVE_STREAK):
            self._streak = 0
            return background.popitem(last=False)[0]
        if not interactive:
            return None
        self._streak += 1
        return interactive.popitem(last=False)[0]

    def remove(self, waiter: T, level: Priority) -> None:
        """Remove a waiter that gave up. No-op if it was already served or evicted."""
        self._queues[level].pop(waiter, None)
