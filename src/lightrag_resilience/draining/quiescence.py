"""Details that tracked tasks carry: whether they are parked, and their records in the journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from .journal import AbandonedWork

__all__ = ["QuiescenceDetector", "WorkDetails"]

# In a row. A single poll may fall into the moment between two calls of a task that goes on.
_POLLS = 10


class WorkDetails(Protocol):
    """Details of a tracked task."""

    @property
    def is_parked(self) -> bool:
        """Whether it only waits for the process to end, so that waiting for it is useless."""
        ...

    def records(self, task: AbandonedWork) -> Iterable[AbandonedWork]:
        """The record of the task, completed, and those of its parts."""
        ...


class QuiescenceDetector:
    """Detects quiescence: all work in flight has been parked for `_POLLS` polls in a row."""

    def __init__(self) -> None:
        self._polls = 0

    def is_quiescent(self, works: Iterable[WorkDetails | None]) -> bool:
        """Whether it is, at a poll with these works in flight; never with none."""
        found = list(works)
        is_parked = bool(found) and all(each is not None and each.is_parked for each in found)
        self._polls = self._polls + 1 if is_parked else 0
        return self._polls >= _POLLS
