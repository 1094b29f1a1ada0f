"""The phases of a drain, by one deadline that is set when it begins. No clock and no I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Annotated

from annotated_types import Le

from lightrag_resilience.config.validation import problem_with
from lightrag_resilience.errors import PolicyError

__all__ = ["Drain", "Phase"]

_Seconds = Annotated[float, Le(86_400)]


class Phase(Enum):
    """How far a drain has come."""

    RUNNING = "running"
    DRAINING = "draining"
    CANCELLING = "cancelling"
    CLOSING = "closing"


class Drain:
    """When to cancel and when to close, within one budget of time.

    Args:
        timeout: Seconds for the whole drain.
        cancel_grace: Of these, seconds for cancelled work to end.
        close_timeout: Of these, seconds for clients to be closed.

    Attributes:
        on_change: Called with the phase and the number in flight when either changes.

    Raises:
        PolicyError: A time is out of bounds, or the two parts are longer than `timeout`.
    """

    def __init__(self, *, timeout: float, cancel_grace: float, close_timeout: float) -> None:
        for name, value in (
            ("timeout", timeout),
            ("cancel_grace", cancel_grace),
            ("close_timeout", close_timeout),
        ):
            if problem := problem_with(value, _Seconds):
                raise PolicyError(f"Coordinator: {name} {problem}")
        if min(timeout, cancel_grace, close_timeout) < 0 or cancel_grace + close_timeout > timeout:
            raise PolicyError(
                f"A drain of {timeout:g} s has no room for {cancel_grace:g} s to cancel and "
                f"{close_timeout:g} s to close: raise the first, or lower the others"
            )
        self.on_change: Callable[[Phase, int], None] = lambda _phase, _in_flight: None
        self._published: tuple[Phase, int] | None = None
        self.timeout = timeout
        self.cancel_grace = cancel_grace
        self.close_timeout = close_timeout
        self.reset()

    def reset(self) -> None:
        """Go back to the time before the drain began."""
        self.phase = Phase.RUNNING
        self.began = math.inf
        self.deadline = math.inf
        self.skips_waiting = False
        self._cancel_at = math.inf
        self._close_at = math.inf

    def shrink_to(self, seconds: float | None) -> None:
        """Shorten the drain to `seconds`, all its parts in proportion; None changes nothing."""
        if seconds is None or seconds >= self.timeout:
            return
        share = seconds / self.timeout
        self.timeout *= share
        self.cancel_grace *= share
        self.close_timeout *= share

    def begin(self, now: float) -> None:
        """Begin the drain; a second call changes nothing."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
            self.began = now
            self.deadline = now + self.timeout
            self._close_at = self.deadline - self.close_timeout
            self._cancel_at = self._close_at - self.cancel_grace

    def skip_waiting(self, now: float) -> None:
        """Cancel what is in flight now instead of waiting for it; begins the drain if need be."""
        self.begin(now)
        self.skips_waiting = True
        self._cancel_at = min(self._cancel_at, now)
        self._close_at = min(self._close_at, now + self.cancel_grace)

    def step(self, now: float, in_flight: int) -> Phase:
        """Move on to the phase that is due, and return it."""
        if self.phase is Phase.DRAINING and now >= self._cancel_at:
            self.phase = Phase.CANCELLING
        if self.phase is Phase.CANCELLING and now >= self._close_at:
            self.phase = Phase.CLOSING
        if self.phase in {Phase.DRAINING, Phase.CANCELLING} and not in_flight:
            self.phase = Phase.CLOSING
        if self._published != (self.phase, in_flight):
            self._published = self.phase, in_flight
            self.on_change(self.phase, in_flight)
        return self.phase

    def is_near_deadline(self, now: float) -> bool:
        """Whether the last third of the time for work in flight has begun."""
        last = (self.timeout - self.cancel_grace - self.close_timeout) / 3
        return now >= self._cancel_at - last

    def within_grace(self, now: float, seconds: float) -> bool:
        """Whether it began less than `seconds` ago, and does not skip the waiting."""
        return not self.skips_waiting and now - self.began < seconds

    def remaining(self, now: float) -> float:
        """Seconds to the end of this phase."""
        ends = {
            Phase.DRAINING: self._cancel_at,
            Phase.CANCELLING: self._close_at,
            Phase.CLOSING: self.deadline,
        }
        return max(ends.get(self.phase, math.inf) - now, 0.0)
