"""What the manager of this process lets it do at its end, and sees of it; nobody by default."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .worker_ledger import WorkerLedger

__all__ = ["Supervisor", "repeats_sigterm", "supervisor"]


@dataclass(slots=True)
class Supervisor:
    """Who started this process, such as Gunicorn.

    Attributes:
        grace_period: Seconds between its signal and the moment by which everything must have ended;
            None where nobody says. Drains that would last longer are made shorter in proportion.
        repeats_sigterm: Whether it sends SIGTERM again as long as the process lives, so that a
            second one does not mean haste.
        ledger: Where it reads what is in flight here, should this process die.
    """

    grace_period: float | None = None
    repeats_sigterm: bool = False
    ledger: WorkerLedger | None = None


supervisor = Supervisor()


def repeats_sigterm() -> bool:
    """Whether a manager passes SIGTERM on to this process, so that a second one is no haste.

    Servers start their workers by `multiprocessing`: uvicorn, hypercorn and granian. A child of it
    has imported it, and no other process pays for that.
    """
    process = sys.modules.get("multiprocessing.process")
    return supervisor.repeats_sigterm or (
        process is not None and process.parent_process() is not None
    )
