"""What changed lately, for readers who open the status page after it happened."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.events import AttemptFailed, Event, StateChanged
from lightrag_resilience.failures.kinds import FailureKind, symptom_of
from lightrag_resilience.runtime.fork_safety import ProcessLock
from lightrag_resilience.text import is_isolation

__all__ = ["Outage", "OutageHistory"]

_MOST = 50  # changes
_MOST_NAMES = 1000
_RECENT = 600.0  # seconds
_SAME = 2.0  # seconds by which two accounts of one moment may differ


@dataclass(slots=True)
class _Change:
    """A breaker changed at `at`, seconds since the epoch; `tries` failed since."""

    at: float
    name: str
    old: str
    new: str
    reason: str
    tries: int = 0
    lasted: float | None = None


@dataclass(slots=True)
class Outage:
    """Since when a breaker is not closed, in seconds since the epoch, and what it began with."""

    since: float
    reason: str
    tries: int = 0


class OutageHistory:
    """The last changes of breakers, and when those that are not closed broke; for any thread.

    A long outage is one entry with a count of tries, and not one for each of them.

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
        """Note a change of state, or how an attempt failed."""
        with self._lock:
            if isinstance(event, StateChanged):
                self._note(event)
            elif isinstance(event, AttemptFailed):
                is_fatal = event.kind == FailureKind.FATAL.value
                error = symptom_of(event.error, event.status or None, is_fatal)
                failure = {"at": self._clock(), "error": error, "kind": event.kind}
                self._failures[event.dependency] = failure
                if len(self._failures) > _MOST_NAMES:
                    del self._failures[next(iter(self._failures))]

    def _note(self, event: StateChanged) -> None:
        now, name = self._clock(), event.dependency
        outage = self._outages.get(name)
        if event.new == State.CLOSED.value:
            self._outages.pop(name, None)
            lasted = now - outage.since if outage else None
            self._add(_Change(now, name, event.old, event.new, event.reason, lasted=lasted))
        elif event.old == State.HALF_OPEN.value and outage is not None:
            outage.tries += 1
            for change in reversed(self._changes):
                if change.name == name:
                    change.tries = outage.tries
                    break
        elif event.old == State.CLOSED.value or outage is None:
            self._begin(name, Outage(now, event.reason))
            self._add(_Change(now, name, event.old, event.new, event.reason))

    def _add(self, change: _Change) -> None:
        self._changes.append(change)

    def _begin(self, name: str, outage: Outage) -> Outage:
        if len(self._outages) < _MOST_NAMES:
            self._outages[name] = outage
        return outage

    def outage(self, name: str, since: float, state: str, reason: str) -> Outage:
        """The outage of a breaker that is not closed, `since` being another account of its begin.

        An earlier account wins, so that who came late does not make an outage shorter; and one
        moment that is told with small differences is one.
        """
        with self._lock:
            known = self._outages.get(name)
            if known is None:
                self._add(_Change(since, name, State.CLOSED.value, state, reason))
                return self._begin(name, Outage(since, reason))
            if since < known.since - _SAME:
                known.since = since
            return known

    def ended(self, name: str, reason: str) -> None:
        """A breaker of which nobody tells this process is closed."""
        if name in self._outages:
            self.on_event(StateChanged(name, State.OPEN.value, State.CLOSED.value, reason, 0))

    def last_failure(self, name: str) -> dict[str, Any] | None:
        """How an attempt failed last in this process, and when; None if not in ten minutes."""
        failure = self._failures.get(name)
        if failure is None or self._clock() - failure["at"] > _RECENT:
            return None
        return failure

    def to_json(self) -> list[dict[str, Any]]:
        """The last changes, the newest first."""
        with self._lock:
            return [
                asdict(change) | {"isolated": is_isolation(change.reason)}
                for change in reversed(self._changes)
            ]
