"""Settings that a process manager, such as Gunicorn, gives this process; none by default."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .worker_ledger import WorkerLedger

__all__ = ["SPARE", "Supervisor", "grace_period_of", "repeats_sigterm", "supervisor"]

SPARE = 2.0
"""Seconds between the end of a drain and the supervisor's SIGKILL."""


@dataclass(slots=True)
class Supervisor:
    """The manager of this process.

    Attributes:
        grace_period: Seconds from its signal until a drain must have ended; None if unknown.
            Drains that would last longer are shortened in proportion.
        repeats_sigterm: Whether it repeats SIGTERM while the process lives, so that a second one
            does not skip the waiting.
        ledger: Shared memory in which it reads what was in flight when this process has died.
    """

    grace_period: float | None = None
    repeats_sigterm: bool = False
    ledger: WorkerLedger | None = None


supervisor = Supervisor()


def grace_period_of(kill_after: float) -> float:
    """Seconds that a drain may take if the supervisor kills the process after `kill_after`."""
    return max(kill_after - SPARE, kill_after / 2)


def repeats_sigterm() -> bool:
    """Whether a second SIGTERM may come from the parent, and so does not skip the waiting.

    uvicorn, hypercorn and granian start their workers by `multiprocessing` and pass SIGTERM on.
    Such a worker has imported `multiprocessing`; it is not imported here, to keep startup fast.
    """
    process = sys.modules.get("multiprocessing.process")
    return supervisor.repeats_sigterm or (
        process is not None and process.parent_process() is not None
    )
