"""The four classes of failures, and the form of a rule that finds the class of an exception."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "FATAL",
    "THROTTLED",
    "TRANSIENT",
    "UNKNOWN",
    "Failure",
    "FailureKind",
    "Reader",
    "Rule",
    "Table",
    "package_of",
    "with_wait",
]


class FailureKind(enum.Enum):
    """The four classes of failures."""

    TRANSIENT = "transient"
    """Passing: worth a retry, and counted."""
    THROTTLED = "throttled"
    """Too many requests: wait as told. Not counted."""
    FATAL = "fatal"
    """The caller's own fault, or nothing that time heals: never tried again, not counted."""
    UNKNOWN_OUTCOME = "unknown"
    """Sent, no answer: repeat only what is idempotent. Counted."""


# Looked up once: a member of an enum takes Python 3.11 as long as a function call.
_TRANSIENT, _UNKNOWN_OUTCOME = FailureKind.TRANSIENT, FailureKind.UNKNOWN_OUTCOME


@dataclass(frozen=True, slots=True)
class Failure:
    """The verdict on one exception.

    Attributes:
        kind: What follows from it.
        retry_after: Seconds the provider asks to wait, finite and not negative, or None.
    """

    kind: FailureKind
    retry_after: float | None = None

    @property
    def counts(self) -> bool:
        """Whether the dependency is to blame, so that its breaker counts it."""
        return self.kind is _TRANSIENT or self.kind is _UNKNOWN_OUTCOME


# A reader gives a verdict, or the errors beneath that are to be judged instead.
Reader = Callable[[Any], Failure | tuple[Exception, ...]]
Rule = Failure | Reader
Table = dict[str, Rule]

TRANSIENT: Final = Failure(FailureKind.TRANSIENT)
THROTTLED: Final = Failure(FailureKind.THROTTLED)
FATAL: Final = Failure(FailureKind.FATAL)
UNKNOWN: Final = Failure(FailureKind.UNKNOWN_OUTCOME)


def with_wait(verdict: Failure, seconds: float | None) -> Failure:
    """The same verdict with a wait, where there is one."""
    return verdict if seconds is None else Failure(verdict.kind, seconds)


def package_of(cls: type) -> str:
    """The top-level module that a class is from."""
    return str(cls.__module__).partition(".")[0]
