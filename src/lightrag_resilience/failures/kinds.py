"""The four kinds of failures, and the form of a rule that finds the kind of an exception."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

__all__ = [
    "FATAL",
    "LOCAL",
    "THROTTLED",
    "TRANSIENT",
    "UNKNOWN",
    "Failure",
    "FailureKind",
    "Reader",
    "Rule",
    "Table",
    "package_of",
    "symptom",
    "symptom_of",
    "with_status",
    "with_wait",
]

_LONGEST_NAME = 60  # characters of a class's name
_DEFAULT_PAUSE = 1.0  # seconds
_TOO_MANY_REQUESTS = 429
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
    """The verdict on one exception.

    Attributes:
        kind: Whether it is retried and counted.
        retry_after: Seconds the provider asks to wait, finite and not negative, or None.
        status: The HTTP status of the answer, 400 to 599, or None. Not part of the verdict.
        is_local: Whether a resource of this process is exhausted, such as the connections of its
            pool, file descriptors or threads: nothing was sent, so it is retried but not counted.
    """

    kind: FailureKind
    retry_after: float | None = None
    status: int | None = field(default=None, compare=False)
    is_local: bool = False

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


# A reader returns a verdict, or the inner errors that are classified in place of this one.
Reader = Callable[[Any], Failure | tuple[Exception, ...]]
Rule = Failure | Reader
Table = dict[str, Rule]

TRANSIENT: Final = Failure(FailureKind.TRANSIENT)
THROTTLED: Final = Failure(FailureKind.THROTTLED)
LOCAL: Final = Failure(FailureKind.TRANSIENT, is_local=True)
FATAL: Final = Failure(FailureKind.FATAL)
UNKNOWN: Final = Failure(FailureKind.UNKNOWN_OUTCOME)


def with_wait(verdict: Failure, seconds: float | None) -> Failure:
    """The same verdict with a wait, unless it is None."""
    return verdict if seconds is None else replace(verdict, retry_after=seconds)


@lru_cache(maxsize=256)
def with_status(verdict: Failure, status: int) -> Failure:
    """The same verdict with the HTTP status that led to it."""
    return replace(verdict, status=status)


def symptom(error: BaseException, verdict: Failure) -> str:
    """A failure in a few words: its HTTP status and the name of its class, never its text.

    ``HTTP 503 (InternalServerError)``, ``ConnectError``; a 429 that no wait mends is
    ``HTTP 429 of a used-up quota (RateLimitError)``.
    """
    return symptom_of(type(error).__name__, verdict.status, verdict.kind is _FATAL)


@lru_cache(maxsize=512)
def symptom_of(cls: str, status: int | None, is_fatal: bool) -> str:  # noqa: FBT001 - by position for the cache
    """The same by the name of the error's class, its status, and whether no wait mends it."""
    # `type()` takes any name for a class.
    name = "".join(char for char in cls if char.isprintable() and char not in "()")
    name = name[:_LONGEST_NAME] or "an error"
    if status is None:
        return name
    quota = " of a used-up quota" if status == _TOO_MANY_REQUESTS and is_fatal else ""
    return f"HTTP {status}{quota} ({name})"


def package_of(cls: type) -> str:
    """The top-level module of a class."""
    return str(cls.__module__).partition(".")[0]
