"""The progress of a drain and its result, in the log and as events."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lightrag_resilience.events import DrainEnded, DrainProgress, Events, WorkAbandoned

from .journal import AbandonedWork
from .phases import Phase

__all__ = ["DrainReport", "Progress", "publish_progress"]

_log = logging.getLogger("lightrag_resilience")

_MAX_NAMES = 10  # in a log line


@dataclass(frozen=True, slots=True)
class DrainReport:
    """The result of a drain.

    Attributes:
        drained: Number of works in flight that ended by themselves.
        abandoned: The records of what was cancelled, as in the journal.
        stuck: Names of tasks that did not end although they were cancelled, and of functions that
            still run in threads.
        failed_to_close: Names of `on_close` callbacks that failed or took too long.
        seconds: Duration of the drain.
    """

    drained: int
    abandoned: tuple[AbandonedWork, ...]
    stuck: tuple[str, ...]
    failed_to_close: tuple[str, ...]
    seconds: float

    def log(self, events: Events) -> None:
        """Log the result and publish it."""
        abandoned, stuck = len(self.abandoned), len(self.stuck)
        level = logging.WARNING if abandoned or stuck or self.failed_to_close else logging.INFO
        _log.log(
            level,
            "Drained in %.1f s: %d ended, %d given up, %d stuck%s",
            self.seconds,
            self.drained,
            abandoned,
            stuck,
            f": {', '.join(self.stuck[:_MAX_NAMES])}" if stuck else "",
        )
        for record in self.abandoned:
            events.publish(WorkAbandoned(record.kind))
        events.publish(DrainEnded(self.drained, abandoned, stuck, self.seconds))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a drain has come.

    Attributes:
        phase: The present phase; ``running`` before it begins.
        reason: What requested it, such as ``SIGTERM``.
        left: Seconds to the end of this phase; infinity before the drain begins.
        in_flight: The number of works in flight, by name.
    """

    phase: Phase
    reason: str
    left: float
    in_flight: dict[str, int]


def publish_progress(events: Events, phase: Phase, in_flight: int) -> None:
    """Publish the phase of a drain and the number of works in flight."""
    events.publish(DrainProgress(phase.value, in_flight))
