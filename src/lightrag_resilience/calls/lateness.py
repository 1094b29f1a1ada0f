"""What a call whose time is up is told, and whom it is counted against."""

from __future__ import annotations

from typing import Protocol

from lightrag_resilience.errors import AttemptTimeoutError, DeadlineExceededError

from .call_context import Call

__all__ = ["Timekeeper", "timeout_error", "was_cut_short"]


class Timekeeper(Protocol):
    """A guard, as far as times are concerned."""

    name: str

    def remaining(self, call: Call) -> float:
        """Seconds to the deadline of a call."""
        ...


def timeout_error(guard: Timekeeper, call: Call, cause: BaseException, late: str = "") -> Exception:
    """The error for a call whose own time is up; `late` says so of an attempt.

    Its cause, which tells whether anything was sent, is set here: the verdict comes before `raise`.
    """
    error = _timeout_error(guard, call, late)
    error.__cause__ = cause
    return error


def _timeout_error(guard: Timekeeper, call: Call, late: str) -> Exception:
    total = call.parts.policy.timeout.total
    if total is not None and guard.remaining(call) <= 0:
        return DeadlineExceededError(guard.name, None, f"after {total:g} s")
    if not late and call.timer is not None:
        late = f"after {call.timer.seconds:g} s"
    return AttemptTimeoutError(guard.name, None, late)


def was_cut_short(call: Call, error: Exception, duration: float) -> bool:
    """Whether the deadline gave an attempt less time than the policy gives attempts."""
    timer = call.parts.timer
    return isinstance(error, DeadlineExceededError) and (
        timer is not None and duration < timer.seconds
    )
