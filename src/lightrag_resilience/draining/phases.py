"""The phases of a drain, by one deadline that is set when it begins. No clock, no signal in it."""

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
    """What is to be done when, in one budget of time.

    Args:
        timeout: Seconds for all of it.
        cancel_grace: Of these, for what is cancelled to end.
        close_timeout: Of these, for clients to be closed.

    Attributes:
        changed: Told of each new phase, and of each change of what is in flight in it.

    Raises:
        PolicyError: No time is left for what is in flight, or one of the times is none.
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
        self.changed: Callable[[Phase, int], None] = lambda _phase, _left: None
        self._told: tuple[Phase, int] | None = None
        self.timeout = timeout
        self.cancel_grace = cancel_grace
        self.close_timeout = close_timeout
        self.reset()

    def reset(self) -> None:
        """Nobody was told to stop."""
        self.phase = Phase.RUNNING
        self.began = math.inf
        self.deadline = math.inf
        self.is_hurried = False
        self._cancel_at = math.inf
        self._close_at = math.inf

    def shrink_to(self, most: float | None) -> None:
        """Last no longer than this; all its parts become shorter alike."""
        if most is None or most >= self.timeout:
            return
        share = most / self.timeout
        self.timeout *= share
        self.cancel_grace *= share
        self.close_timeout *= share

    def begin(self, now: float) -> None:
        """The process was told to stop; a second time changes nothing."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
            self.began = now
            self.deadline = now + self.timeout
            self._close_at = self.deadline - self.close_timeout
            self._cancel_at = self._close_at - self.cancel_grace

    def skip_waiting(self, now: float) -> None:
        """It was told once more: nothing is waited for any longer."""
        self.begin(now)
        self.is_hurried = True
        self._cancel_at = min(self._cancel_at, now)
        self._close_at = min(self._close_at, now + self.cancel_grace)

    def step(self, now: float, left: int) -> Phase:
        """The phase now, with so much in flight."""
        if self.phase is Phase.DRAINING and now >= self._cancel_at:
            self.phase = Phase.CANCELLING
        if self.phase is Phase.CANCELLING and now >= self._close_at:
            self.phase = Phase.CLOSING
        if self.phase in {Phase.DRAINING, Phase.CANCELLING} and not left:
            self.phase = Phase.CLOSING
        if self._told != (self.phase, left):
            self._told = self.phase, left
            self.changed(self.phase, left)
        return self.phase

    def is_late(self, now: float) -> bool:
        """Whether the last third of the time for what is in flight has begun."""
        last = (self.timeout - self.cancel_grace - self.close_timeout) / 3
        return now >= self._cancel_at - last

    def within_grace(self, now: float, seconds: float) -> bool:
        """Whether it began less than so many seconds ago, and nothing asked to skip the waiting."""
        return not self.is_hurried and now - self.began < seconds

    def remaining(self, now: float) -> float:
        """Seconds to the end of this phase."""
        ends = {
            Phase.DRAINING: self._cancel_at,
            Phase.CANCELLING: self._close_at,
            Phase.CLOSING: self.deadline,
        }
        return max(ends.get(self.phase, math.inf) - now, 0.0)
