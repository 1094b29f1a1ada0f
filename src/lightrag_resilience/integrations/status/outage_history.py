"""Recent changes of breakers, so that a status page opened later shows them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.events import AttemptFailed, Event, StateChanged
from lightrag_resilience.failures.kinds import FailureKind, symptom_of
from lightrag_resilience.runtime.process_state import ProcessLock
from lightrag_resilience.text import is_isolation

__all__ = ["Outage", "OutageHistory"]

_MOST = 50  # changes
_MOST_NAMES = 1000
_RECENT = 600.0  # seconds for which a failure is shown
_CLOCK_TOLERANCE = 2.0  # seconds by which two reports of one start may differ


@dataclass(slots=True)
class _Change:
    """A breaker changed at `at`, seconds since the epoch; `lasted` seconds if an outage ended."""

    at: float
    name: str
    old: str
    new: str
    reason: str
    failed_probes: int = 0
    lasted: float | None = None


@dataclass(slots=True)
class Outage:
    """A breaker that is not closed since `since`, seconds since the epoch, and its first reason."""

    since: float
    reason: str
    failed_probes: int = 0


class OutageHistory:
    """The last changes of breakers, and the outages that go on. Any thread may use it.

    A long outage is one entry with a count of failed probes.

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = ProcessLock()
        self._changes: deque[_Change] = deque(maxlen=_MOST)
        self._outages: dict[str, Outage] = {}
        self._failures: dict[str, dict[str, Any]] = {}

    def on_event(self, event: Event) -> None:
        """Record a change of state, or how an attempt failed."""
        with self._lock:
            if isinstance(event, StateChanged):
                self._record(event)
            elif isinstance(event, AttemptFailed):
                is_fatal = event.kind == FailureKind.FATAL.value
                error = symptom_of(event.error, event.status or None, is_fatal)
                failure = {"at": self._clock(), "error": error, "kind": event.kind}
                self._failures[event.dependency] = failure
                if len(self._failures) > _MOST_NAMES:
                    del self._failures[next(iter(self._failures))]

    def _record(self, event: StateChanged) -> None:
        now, name = self._clock(), event.dependency
        outage = self._outages.get(name)
        if event.new == State.CLOSED.value:
            self._outages.pop(name, None)
            lasted = now - outage.since if outage else None
            self._changes.append(
                _Change(now, name, event.old, event.new, event.reason, lasted=lasted)
            )
        elif event.old == State.HALF_OPEN.value and outage is not None:
            outage.failed_probes += 1
            for change in reversed(self._changes):
                if change.name == name:
                    change.failed_probes = outage.failed_probes
                    break
        elif event.old == State.CLOSED.value or outage is None:
            self._start(name, Outage(now, event.reason))
            self._changes.append(_Change(now, name, event.old, event.new, event.reason))

    def _start(self, name: str, outage: Outage) -> Outage:
        if len(self._outages) < _MOST_NAMES:
            self._outages[name] = outage
        return outage

    def outage(self, name: str, since: float, state: str, reason: str) -> Outage:
        """The outage of a breaker that is not closed, reported to have begun at `since`.

        The earliest report wins: a worker that started later must not shorten the outage. Reports
        that differ by less than the clocks do not move it.
        """
        with self._lock:
            known = self._outages.get(name)
            if known is None:
                self._changes.append(_Change(since, name, State.CLOSED.value, state, reason))
                return self._start(name, Outage(since, reason))
            if since < known.since - _CLOCK_TOLERANCE:
                known.since = since
            return known

    def ended(self, name: str, reason: str) -> None:
        """A breaker is closed of which this process receives no events."""
        if name in self._outages:
            self.on_event(StateChanged(name, State.OPEN.value, State.CLOSED.value, reason, 0))

    def last_failure(self, name: str) -> dict[str, Any] | None:
        """The last failed attempt in this process; None if older than ten minutes."""
        failure = self._failures.get(name)
        if failure is None or self._clock() - failure["at"] > _RECENT:
            return None
        return failure

    def to_json(self) -> list[dict[str, Any]]:
        """The last changes, newest first."""
        with self._lock:
            return [
                asdict(change) | {"isolated": is_isolation(change.reason)}
                for change in reversed(self._changes)
            ]
