"""The errors of this library: what happened, to which dependency, and what to do.

None of them is a ``TimeoutError`` or a ``ConnectionError``: callers retry those, and LightRAG's
queue rewrites a ``TimeoutError`` into a message about its own workers. All data of an error is in
``args``: it is then made without running Python code, which keeps a rejection cheap, and it can be
pickled.
"""

from __future__ import annotations

from pybreaker import CircuitBreakerError

from .text import is_isolation
from .verdicts import Failure, FailureKind

__all__ = [
    "AllFailedError",
    "AttemptTimeoutError",
    "BulkheadFullError",
    "CallRejected",
    "CallShedError",
    "CircuitOpenError",
    "DeadlineExceededError",
    "DependencyError",
    "InvalidResultError",
    "PolicyError",
    "RateLimitedError",
    "ResilienceError",
    "SettingsError",
    "ShuttingDownError",
    "TruncatedStreamError",
    "UnsupportedCallError",
]


_PREFIXED = ": "
"""Separates a text that LightRAG puts before an error's first argument from that argument."""


class ResilienceError(Exception):
    """Root of all errors of this library."""


class PolicyError(ResilienceError, ValueError):
    """A policy is out of bounds or contradicts itself, or one name has two policies."""


class UnsupportedCallError(ResilienceError, TypeError):
    """A callable cannot be guarded in this way, or a call does not take such an argument."""


class SettingsError(ResilienceError, ValueError):
    """One or more ``RESILIENCE_*`` variables are wrong.

    Attributes:
        problems: One sentence each: the variable, its value, what is allowed.
    """

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each wrong variable."""
        return tuple(str(problem) for problem in self.args)

    def __str__(self) -> str:
        count = len(self.problems)
        noun = "setting is" if count == 1 else "settings are"
        return "\n".join((f"{count} {noun} wrong:", *(f"  {line}" for line in self.problems)))


class DependencyError(ResilienceError):
    """An error of one dependency. ``args``: its name, seconds to wait or None, reason, details."""

    @property
    def dependency(self) -> str:
        """Name of the guard, such as ``llm.openai``."""
        return str(self.args[0]).rpartition(_PREFIXED)[2]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which another call may succeed; None if unknown."""
        value = self.args[1] if len(self.args) > 1 else None
        return None if value is None else float(value)

    @property
    def reason(self) -> str:
        """The cause, as a clause without a full stop."""
        return str(self.args[2]) if len(self.args) > 2 else ""  # noqa: PLR2004

    def __str__(self) -> str:
        prefix, colon, _ = str(self.args[0]).rpartition(_PREFIXED)
        return f"{prefix}{colon}{self.summary()}{_clause(self.reason)}{self.advice()}"

    def summary(self) -> str:
        """What happened, to which dependency."""
        return f"{self.dependency!r} failed"

    def advice(self) -> str:
        """What to do."""
        if self.retry_after is None:
            return ""
        return f"; try again in {self.retry_after:.1f} s"


class CallRejected(DependencyError):  # noqa: N818 - a rejection is the outcome of a call, not a fault
    """The call was rejected before it was sent. Never retried, never counted as a failure."""

    def summary(self) -> str:
        """The call."""
        return f"A call of {self.dependency!r} was rejected"


class CircuitOpenError(CallRejected, CircuitBreakerError):
    """The circuit is open, or half-open with all its probes in flight."""

    @property
    def state(self) -> str:
        """``open`` or ``half-open``."""
        return str(self.args[3]) if len(self.args) > 3 else "open"  # noqa: PLR2004

    def summary(self) -> str:
        """The circuit."""
        return f"Circuit {self.dependency!r} is {self.state}"

    def advice(self) -> str:
        """When the next probe is due."""
        if self.retry_after is None or self.state != "open":
            return super().advice()
        what = "ends" if is_isolation(self.reason) else "next probe"
        return f"; {what} in {self.retry_after:.1f} s"


class CallShedError(CallRejected):
    """A background call is held back in a brownout, so that queries have what passes."""

    def summary(self) -> str:
        """What was held back."""
        return f"A background call of {self.dependency!r} was shed"


class RateLimitedError(CallRejected):
    """The rate limit, or the cool-down after a 429, lasts longer than this call may wait."""

    def summary(self) -> str:
        """The limit."""
        return f"Rate limit of {self.dependency!r} is used up"


class BulkheadFullError(CallRejected):
    """All permits are in use, and the queue is full or was too slow."""

    def summary(self) -> str:
        """The bulkhead."""
        return f"Too many calls of {self.dependency!r} at once"


class ShuttingDownError(CallRejected):
    """This process is shutting down and admits no new call."""

    def summary(self) -> str:
        """The call."""
        return f"{self.dependency!r} is not called any more: this process shuts down"


class AttemptTimeoutError(DependencyError):
    """One attempt, or a stream's wait for an item, took longer than its timeout.

    Counted as a failure of unknown outcome.
    """

    def summary(self) -> str:
        """The attempt."""
        return f"An attempt of {self.dependency!r} timed out"


class TruncatedStreamError(DependencyError):
    """A model's stream ended without its finish marker, or with a marker of failure.

    Counted as a failure of unknown outcome, or of the kind that its `code` stands for.
    """

    @property
    def code(self) -> str:
        """The server's code of the failure, such as ``server_error``; empty without one."""
        return str(self.args[3]) if len(self.args) > 3 else ""  # noqa: PLR2004

    def summary(self) -> str:
        """The stream."""
        return f"A stream of {self.dependency!r} was cut off"


class InvalidResultError(DependencyError):
    """A result, or a stream's item, was judged a failure. The result is in no error and no log."""

    @property
    def __resilience_failure__(self) -> Failure:
        """The verdict: how it is retried and counted."""
        verdict = self.args[3] if len(self.args) > 3 else None  # noqa: PLR2004
        return verdict if isinstance(verdict, Failure) else Failure(FailureKind.TRANSIENT)

    def summary(self) -> str:
        """The answer."""
        return f"{self.dependency!r} answered"


class DeadlineExceededError(DependencyError):
    """The call as a whole, retries and waits included, took longer than its total timeout."""

    def summary(self) -> str:
        """The deadline."""
        return f"The deadline of {self.dependency!r} has passed"


class AllFailedError(DependencyError):
    """A dependency and all its fallbacks failed. `retry_after` is the shortest of their waits.

    It can be pickled if the errors in it can.
    """

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The error of each function, in the order of the calls."""
        return tuple(self.args[3]) if len(self.args) > 3 else ()  # noqa: PLR2004

    @property
    def any_rejected(self) -> bool:
        """Whether a guard rejected one of the calls, so that waiting may help."""
        return any(
            isinstance(error, CallRejected)
            or (isinstance(error, AllFailedError) and error.any_rejected)
            for error in self.errors
        )

    def summary(self) -> str:
        """The chain."""
        return f"{self.dependency!r} and its fallbacks failed"


def _clause(reason: str) -> str:
    return f" {reason}" if reason else ""
