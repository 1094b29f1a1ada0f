"""What a call whose time is up is told, and whom it is counted against."""

from __future__ import annotations

from typing import Protocol

from ._call import Call
from .errors import AttemptTimeoutError, DeadlineExceededError
from .policy import Policy

__all__ = ["Timekeeper", "timeout_error", "was_cut_short"]


class Timekeeper(Protocol):
    """A guard, as far as times are concerned."""

    name: str
    policy: Policy

    def remaining(self, call: Call) -> float:
        """Seconds to the deadline of a call."""
        ...


def timeout_error(guard: Timekeeper, call: Call, late: str = "") -> Exception:
    """The error for a call whose own time is up; `late` says so of an attempt."""
    timeout = guard.policy.timeout
    if guard.remaining(call) <= 0:
        return DeadlineExceededError(guard.name, None, f"after {timeout.total:g} s")
    return AttemptTimeoutError(guard.name, None, late or f"after {timeout.attempt:g} s")


def was_cut_short(call: Call, error: Exception, duration: float) -> bool:
    """Whether the deadline gave an attempt less time than the policy gives attempts."""
    timer = call.parts.timer
    return isinstance(error, DeadlineExceededError) and (
        timer is not None and duration < timer.seconds
    )
