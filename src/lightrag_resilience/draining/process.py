"""The coordinators of this process that have begun and do not join another."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from lightrag_resilience.runtime.fork_safety import reset_in_children

from .signals import reset_signals
from .supervisor import supervisor

__all__ = ["add_root", "discard_root", "drain_all", "write_down_all"]


class _ActiveCoordinators:
    def __init__(self) -> None:
        self.coordinators: WeakSet[Any] = WeakSet()

    def reset_after_fork(self) -> None:
        """In a child process: what is in flight, and how it ends, is its parent's business."""
        reset_signals()
        supervisor.ledger = None
        for coordinator in list(self.coordinators):
            coordinator.forget()
        self.coordinators.clear()


_roots = _ActiveCoordinators()


def add_root(coordinator: Any) -> None:
    """It has begun."""
    reset_in_children(_roots)
    _roots.coordinators.add(coordinator)


def discard_root(coordinator: Any) -> None:
    """It has ended."""
    _roots.coordinators.discard(coordinator)


def drain_all(reason: str) -> None:
    """Begin the drain of every coordinator that has not begun it; on the thread of its loop."""
    for coordinator in list(_roots.coordinators):
        coordinator.begin(reason)


def write_down_all(reason: str) -> None:
    """Write to the journals what is in flight, at once: for a process that dies here."""
    for coordinator in list(_roots.coordinators):
        coordinator.record_abandoned(reason)
