"""How far a drain has come, and what became of the work in the end."""

from __future__ import annotations

from dataclasses import dataclass

from ._phases import Phase
from .journal import Abandoned

__all__ = ["Progress", "Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the work that was in flight when the drain began.

    Attributes:
        drained: How much of it ended by itself.
        abandoned: What was cancelled, as the journal has it.
        stuck: Names of tasks that did not end although they were cancelled, and of functions that
            still run in threads.
        failed_to_close: Names of callbacks that failed, or took too long.
        seconds: How long all of it took.
    """

    drained: int
    abandoned: tuple[Abandoned, ...]
    stuck: tuple[str, ...]
    failed_to_close: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain has come.

    Attributes:
        phase: Where it is; ``running`` before it begins.
        reason: Who told the process to stop.
        left: Seconds to the end of this phase; infinity before it begins.
        in_flight: How much of what is left there is, by name.
    """

    phase: Phase
    reason: str
    left: float
    in_flight: dict[str, int]
