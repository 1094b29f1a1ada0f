"""What kind of failure an exception is, or a result that is none: it decides what follows."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["Failure", "FailureKind"]

_DEFAULT_PAUSE = 1.0  # seconds
# The request itself is wrong: these say nothing of the next one.
_BAD_REQUESTS = frozenset({400, 405, 406, 409, 410, 411, 413, 414, 415, 422, 431})


class FailureKind(enum.Enum):
    """The four kinds of failures."""

    TRANSIENT = "transient"
    """Passing: retried, and counted by the breaker."""
    THROTTLED = "throttled"
    """Too many requests: retried after the wait that the provider asks for. Not counted."""
    FATAL = "fatal"
    """The caller's fault, or a fault that no wait mends: never retried, not counted."""
    UNKNOWN_OUTCOME = "unknown"
    """Sent, but not answered: retried only if idempotent. Counted."""


# Looked up once: in Python 3.11 access to an enum's member costs as much as a function call.
_TRANSIENT, _UNKNOWN_OUTCOME = FailureKind.TRANSIENT, FailureKind.UNKNOWN_OUTCOME
_FATAL = FailureKind.FATAL


@dataclass(frozen=True, slots=True)
class Failure:
    """The verdict on one exception, or on a result that is none.

    Attributes:
        kind: Whether it is retried and counted.
        retry_after: Seconds the provider asks to wait, finite and not negative, or None.
        status: The HTTP status of the answer, 400 to 599, or None. Not part of the verdict.
        is_local: Whether a resource of this process is exhausted, such as the connections of its
            pool, file descriptors or threads: nothing was sent, so it is retried but not counted.
        reason: Why a result is a failure, as a clause such as ``with an empty text``; shown in
            errors and logs, so no part of the result. Not part of the verdict.
    """

    kind: FailureKind
    retry_after: float | None = None
    status: int | None = field(default=None, compare=False)
    is_local: bool = False
    reason: str = field(default="", compare=False)

    @property
    def counts(self) -> bool:
        """Whether the dependency is to blame, so that its breaker counts it."""
        return (self.kind is _TRANSIENT or self.kind is _UNKNOWN_OUTCOME) and not self.is_local

    @property
    def pause(self) -> float:
        """Seconds until the next probe, if a probe failed by this and it is not counted."""
        if self.retry_after is not None:
            return self.retry_after
        is_of_call = self.status is None or self.status in _BAD_REQUESTS
        return 0.0 if is_of_call and self.kind is _FATAL else _DEFAULT_PAUSE
