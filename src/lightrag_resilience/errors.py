"""Every error this library raises: what happened, to which dependency, what to do.

None of them is a ``TimeoutError`` or a ``ConnectionError``: callers retry those, and LightRAG's
queue rewrites a ``TimeoutError`` into a message about its own workers. The data of an error lives
in ``args``: an error is then made without running Python code, which keeps a refusal cheap, and it
can be pickled.
"""

from __future__ import annotations

from pybreaker import CircuitBreakerError

from .text import is_isolation

__all__ = [
    "AllFailedError",
    "AttemptTimeoutError",
    "BulkheadFullError",
    "CallRejected",
    "CircuitOpenError",
    "DeadlineExceededError",
    "DependencyError",
    "PolicyError",
    "RateLimitedError",
    "ResilienceError",
    "SettingsError",
    "ShuttingDownError",
    "TruncatedStreamError",
    "UnsupportedCallError",
]


_PREFIXED = ": "
"""What LightRAG puts between a text of its own and the first argument of an error."""


class ResilienceError(Exception):
    """Root of all errors of this library."""


class PolicyError(ResilienceError, ValueError):
    """A policy that makes no sense, or two policies under one name."""


class UnsupportedCallError(ResilienceError, TypeError):
    """A callable that cannot be guarded in the way it was used, or what a call does not take."""


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
    """An error about one dependency. ``args`` are the dependency, seconds to wait, and details."""

    @property
    def dependency(self) -> str:
        """Name of the guard, such as ``llm.openai``."""
        return str(self.args[0]).rpartition(_PREFIXED)[2]

    @property
    def retry_after(self) -> float | None:
        """Seconds after which another call may succeed; None where that is unknown."""
        value = self.args[1] if len(self.args) > 1 else None
        return None if value is None else float(value)

    @property
    def reason(self) -> str:
        """What led to this, as a clause without a full stop."""
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


class CallRejected(DependencyError):  # noqa: N818 - a refusal is the outcome of a call, not a fault
    """The call was rejected before it was sent. Never retried, never counted as a failure."""

    def summary(self) -> str:
        """Which call."""
        return f"A call of {self.dependency!r} was rejected"


class CircuitOpenError(CallRejected, CircuitBreakerError):
    """The circuit is open, or half-open with all its probes taken."""

    @property
    def state(self) -> str:
        """``open`` or ``half-open``."""
        return str(self.args[3]) if len(self.args) > 3 else "open"  # noqa: PLR2004

    def summary(self) -> str:
        """Which circuit."""
        return f"Circuit {self.dependency!r} is {self.state}"

    def advice(self) -> str:
        """When the next probe is due."""
        if self.retry_after is None or self.state != "open":
            return super().advice()
        what = "ends" if is_isolation(self.reason) else "next probe"
        return f"; {what} in {self.retry_after:.1f} s"


class RateLimitedError(CallRejected):
    """The local rate limit would have made this call wait longer than it may."""

    def summary(self) -> str:
        """Whose limit."""
        return f"Rate limit of {self.dependency!r} is used up"


class BulkheadFullError(CallRejected):
    """All places are taken, and the queue for them is full or was too slow."""

    def summary(self) -> str:
        """Whose queue."""
        return f"Too many calls of {self.dependency!r} at once"


class ShuttingDownError(CallRejected):
    """This process is told to stop, and lets no new call in."""

    def summary(self) -> str:
        """Which call."""
        return f"{self.dependency!r} is not called any more: this process shuts down"


class AttemptTimeoutError(DependencyError):
    """One attempt, or a stream's wait for an item, took longer than its timeout.

    Counted as a failure, outcome unknown.
    """

    def summary(self) -> str:
        """Whose attempt."""
        return f"An attempt of {self.dependency!r} timed out"


class TruncatedStreamError(DependencyError):
    """A model's stream ended without its finish marker, or with one that says its server gave up.

    Counted as a failure, outcome unknown; with a `code`, it is of the class that this stands for.
    """

    @property
    def code(self) -> str:
        """The word by which the server gave up, such as ``server_error``; empty without one."""
        return str(self.args[3]) if len(self.args) > 3 else ""  # noqa: PLR2004

    def summary(self) -> str:
        """Whose stream."""
        return f"A stream of {self.dependency!r} was cut off"


class DeadlineExceededError(DependencyError):
    """The call as a whole, retries and waits included, took longer than its total timeout."""

    def summary(self) -> str:
        """Whose deadline."""
        return f"The deadline of {self.dependency!r} has passed"


class AllFailedError(DependencyError):
    """A dependency and all its fallbacks failed. `retry_after` is the shortest that one gave.

    It can be pickled where the errors in it can.
    """

    @property
    def errors(self) -> tuple[Exception, ...]:
        """What each raised, in the order in which they were called."""
        return tuple(self.args[3]) if len(self.args) > 3 else ()  # noqa: PLR2004

    @property
    def any_rejected(self) -> bool:
        """Whether a guard refused one of them, so that waiting may help where calling did not."""
        return any(
            isinstance(error, CallRejected)
            or (isinstance(error, AllFailedError) and error.any_rejected)
            for error in self.errors
        )

    def summary(self) -> str:
        """Whose chain."""
        return f"{self.dependency!r} and its fallbacks failed"


def _clause(reason: str) -> str:
    return f" {reason}" if reason else ""
