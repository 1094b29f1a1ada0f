"""What the manager of this process lets it do at its end, and sees of it; nobody by default."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from .worker_ledger import Ledger

__all__ = ["Host", "host", "repeats_sigterm"]


@dataclass(slots=True)
class Host:
    """Who started this process, such as Gunicorn.

    Attributes:
        patience: Seconds between its signal and the moment by which everything must have ended;
            None where nobody says. Drains that would last longer are made shorter in proportion.
        repeats: Whether it says SIGTERM again as long as the process lives, so that a second one
            does not mean haste.
        ledger: Where it reads what is in flight here, should this process die.
    """

    patience: float | None = None
    repeats: bool = False
    ledger: Ledger | None = None


host = Host()


def repeats_sigterm() -> bool:
    """Whether a manager passes SIGTERM on to this process, so that a second one is no haste.

    Servers start their workers by `multiprocessing`: uvicorn, hypercorn and granian. A child of it
    has imported it, and no other process pays for that.
    """
    process = sys.modules.get("multiprocessing.process")
    return host.repeats or (process is not None and process.parent_process() is not None)
