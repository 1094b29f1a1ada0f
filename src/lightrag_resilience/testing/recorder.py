"""Records what guards do, for assertions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    CallSucceeded,
    Event,
    RetryScheduled,
    StateChanged,
)
from lightrag_resilience.pipeline.registry import Guards, resolve_guards

__all__ = ["Recorder"]

E = TypeVar("E")


class Recorder:
    """The events of guards from the beginning of a ``with`` block to its end.

    Args:
        registry: The registry of guards; that of the process by default.

    Attributes:
        events: All of them, in order.
    """

    _unsubscribe: Callable[[], None]

    def __init__(self, registry: Guards | None = None) -> None:
        self.events: list[Event] = []
        self._registry = registry

    def __enter__(self) -> Self:
        events = resolve_guards(self._registry).events
        self._unsubscribe = events.subscribe(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()

    def __repr__(self) -> str:
        """What was recorded: an assertion that fails shows it."""
        return f"<Recorder of {', '.join(map(str, self.events[-20:])) or 'no events'}>"

    def _record(self, event: Event) -> None:
        self.events.append(event)

    def of(self, dependency: str, *kinds: type[E]) -> list[E]:
        """The events of one dependency that are of these kinds."""
        found: list[Any] = self.events
        return [
            each
            for each in found
            if isinstance(each, kinds) and getattr(each, "dependency", None) == dependency
        ]

    def attempts(self, dependency: str) -> int:
        """How many attempts succeeded or failed; a stream's counts once it has ended."""
        return len(self.of(dependency, CallSucceeded, AttemptFailed))

    def rejections(self, dependency: str) -> list[str]:
        """The names of the errors by which calls were rejected before they were sent."""
        return [each.error for each in self.of(dependency, AttemptRejected)]

    def waits(self, dependency: str) -> list[float]:
        """Seconds before each further attempt."""
        return [each.wait for each in self.of(dependency, RetryScheduled)]

    def transitions(self, dependency: str) -> list[str]:
        """The states into which the circuit has gone, such as ``["open", "half-open"]``."""
        return [each.new for each in self.of(dependency, StateChanged)]
