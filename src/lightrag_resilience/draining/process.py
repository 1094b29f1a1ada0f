"""The active coordinators of this process; those that joined another one are not among them."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from lightrag_resilience.runtime.fork_safety import reset_in_children

from .signals import reset_signals
from .supervisor import supervisor

__all__ = ["add_coordinator", "discard_coordinator", "drain_all", "record_all_abandoned"]


class _ActiveCoordinators:
    def __init__(self) -> None:
        self.coordinators: WeakSet[Any] = WeakSet()

    def reset_after_fork(self) -> None:
        """In a forked child: work in flight, signals and the ledger belong to the parent."""
        reset_signals()
        supervisor.ledger = None
        for coordinator in list(self.coordinators):
            coordinator.reset_after_fork()
        self.coordinators.clear()


_active = _ActiveCoordinators()


def add_coordinator(coordinator: Any) -> None:
    """Add one that has begun."""
    reset_in_children(_active)
    _active.coordinators.add(coordinator)


def discard_coordinator(coordinator: Any) -> None:
    """Remove one that has ended."""
    _active.coordinators.discard(coordinator)


def drain_all(reason: str) -> None:
    """Begin the drain of every active coordinator; on the thread of its event loop."""
    for coordinator in list(_active.coordinators):
        coordinator.begin(reason)


def record_all_abandoned(reason: str) -> None:
    """Write what is in flight to the journals at once: for a process that dies here."""
    for coordinator in list(_active.coordinators):
        coordinator.record_abandoned(reason)
