"""How far a drain has come, what became of the work, and who is told of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightrag_resilience.events import DrainEnded, DrainProgress, Events, WorkAbandoned

from .journal import AbandonedWork
from .phases import Phase

__all__ = ["DrainReport", "Progress", "log_phase"]

_log = logging.getLogger("lightrag_resilience")

_NAMED = 10  # names in a line of the log


@dataclass(frozen=True, slots=True)
class DrainReport:
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
    abandoned: tuple[AbandonedWork, ...]
    stuck: tuple[str, ...]
    failed_to_close: tuple[str, ...]
    seconds: float

    def log(self, events: Events) -> None:
        """Let the log and listeners know."""
        abandoned, stuck = len(self.abandoned), len(self.stuck)
        level = logging.WARNING if abandoned or stuck or self.failed_to_close else logging.INFO
        _log.log(
            level,
            "Drained in %.1f s: %d ended, %d given up, %d stuck%s",
            self.seconds,
            self.drained,
            abandoned,
            stuck,
            f": {', '.join(self.stuck[:_NAMED])}" if stuck else "",
        )
        for given_up in self.abandoned:
            events.publish(WorkAbandoned(given_up.kind))
        events.publish(DrainEnded(self.drained, abandoned, stuck, self.seconds))


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


def log_phase(events: Events, phase: Phase, left: int) -> None:
    """A drain is in this phase, with so much in flight."""
    events.publish(DrainProgress(phase.value, left))
