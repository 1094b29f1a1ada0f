"""What a process manager, such as Gunicorn, asks of this process; nothing by default."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from lightrag_resilience.runtime.process_state import process

from .worker_ledger import WorkerLedger

__all__ = ["SPARE", "Supervisor", "grace_period_of", "repeats_sigterm", "supervisor"]

SPARE = 2.0
"""Seconds between the end of a drain and the supervisor's SIGKILL."""


@dataclass(eq=False)
class Supervisor:
    """The manager of this process.

    Attributes:
        grace_period: Seconds from its signal until a drain must have ended; None if unknown.
            Drains that would last longer are shortened in proportion.
        repeats_sigterm: Whether it repeats SIGTERM while the process lives, so that a second one
            does not skip the waiting.
        ledger: Shared memory in which it reads what was in flight when this process has died.
        coordinators: The active ones; those that joined another one are not among them.
    """

    grace_period: float | None = None
    repeats_sigterm: bool = False
    ledger: WorkerLedger | None = None
    coordinators: WeakSet[Any] = field(default_factory=WeakSet)

    def drain_all(self, reason: str) -> None:
        """Begin the drain of every coordinator; on the thread of its event loop."""
        for coordinator in list(self.coordinators):
            coordinator.begin(reason)

    def record_all_abandoned(self, reason: str) -> None:
        """Write what is in flight to the journals at once: for a process that dies here."""
        for coordinator in list(self.coordinators):
            coordinator.record_abandoned(reason)

    def reset_after_fork(self) -> None:
        """In a forked child: work in flight, signals and the ledger belong to the parent."""
        self.ledger = None
        for coordinator in list(self.coordinators):
            coordinator.reset_after_fork()
        self.coordinators.clear()


def supervisor() -> Supervisor:
    """The manager of this process."""
    return process[Supervisor]


def grace_period_of(kill_after: float) -> float:
    """Seconds that a drain may take if the supervisor kills the process after `kill_after`."""
    return max(kill_after - SPARE, kill_after / 2)


def repeats_sigterm() -> bool:
    """Whether a second SIGTERM may come from the parent, and so does not skip the waiting.

    uvicorn, hypercorn and granian start their workers by `multiprocessing` and pass SIGTERM on.
    Such a worker has imported `multiprocessing`; it is not imported here, to keep startup fast.
    """
    module = sys.modules.get("multiprocessing.process")
    return supervisor().repeats_sigterm or (
        module is not None and module.parent_process() is not None
    )
