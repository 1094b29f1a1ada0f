"""Records what guards do, for assertions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

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

_SHOWN = 20  # events of a recorder that an assertion shows


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
        self._registry = resolve_guards(registry)

    def __enter__(self) -> Self:
        self._unsubscribe = self._registry.events.subscribe(self.events.append)
        return self

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()

    def __repr__(self) -> str:
        return f"<Recorder of {', '.join(map(str, self.events[-_SHOWN:])) or 'no events'}>"

    def attempts(self, dependency: str) -> int:
        """How many attempts succeeded or failed; a stream's counts once it has ended."""
        return len(self._of(dependency, CallSucceeded, AttemptFailed))

    def rejections(self, dependency: str) -> list[str]:
        """The names of the errors by which calls were rejected before they were sent."""
        return [each.error for each in self._of(dependency, AttemptRejected)]

    def transitions(self, dependency: str) -> list[str]:
        """The states into which the circuit has gone, such as ``["open", "half-open"]``."""
        return [each.new for each in self._of(dependency, StateChanged)]

    def waits(self, dependency: str) -> list[float]:
        """Seconds before each further attempt."""
        return [each.wait for each in self._of(dependency, RetryScheduled)]

    def _of(self, dependency: str, *kinds: type) -> list[Any]:
        found: list[Any] = [each for each in self.events if isinstance(each, kinds)]
        return [each for each in found if each.dependency == dependency]
