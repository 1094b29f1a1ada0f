"""A bounded line of those who wait, the important ones first. No clock, no event loop in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from .priority import Priority

__all__ = ["PriorityWaitQueue"]

T = TypeVar("T", bound=Hashable)

_IN_A_ROW = 4  # interactive ones, before a background one has its turn


class PriorityWaitQueue(Generic[T]):
    """First come, first served among equals. None waits for ever: see `_IN_A_ROW`.

    Args:
        max_size: How many may wait.
    """

    __slots__ = ("_queues", "_row", "max_size")

    def __init__(self, most: int) -> None:
        self.max_size = most
        # Ordered, since many may leave at once from anywhere.
        self._queues: tuple[OrderedDict[T, None], ...] = tuple(OrderedDict() for _ in Priority)
        self._row = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __bool__(self) -> bool:
        interactive, background = self._queues
        return bool(interactive or background)

    def position_of(self, level: Priority) -> int:
        """How many would be served before a newcomer, as far as one can tell."""
        return sum(len(self._queues[each]) for each in Priority if each <= level)

    def accepts(self, level: Priority) -> bool:
        """Whether a newcomer may wait, if need be in the place of a lesser one."""
        return len(self) < self.max_size or any(self._queues[level + 1 :])

    def push(self, waiter: T, level: Priority) -> T | None:
        """Let a newcomer wait, for whom there is room; returns who has to go for that."""
        assert self.accepts(level)  # noqa: S101 - asked by the caller
        shed = None
        if len(self) >= self.max_size:
            lesser = next(line for line in reversed(self._queues[level + 1 :]) if line)
            shed, _ = lesser.popitem()
        self._queues[level][waiter] = None
        return shed

    def pop(self) -> T | None:
        """Who is served next; None where none waits."""
        interactive, background = self._queues
        if background and (not interactive or self._row >= _IN_A_ROW):
            self._row = 0
            return background.popitem(last=False)[0]
        if not interactive:
            return None
        self._row += 1
        return interactive.popitem(last=False)[0]

    def remove(self, waiter: T, level: Priority) -> None:
        """A caller leaves unserved; one that is no longer in the line is ignored."""
        self._queues[level].pop(waiter, None)
