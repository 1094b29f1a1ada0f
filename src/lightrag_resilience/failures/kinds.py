"""The four kinds of failures, and the form of a rule that finds the kind of an exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from lightrag_resilience.errors import InvalidResultError
from lightrag_resilience.verdicts import Failure, FailureKind

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
_LONGEST_REASON = 90  # characters; the reason of a circuit has it, which has at most 200
_TOO_MANY_REQUESTS = 429


# A reader returns a verdict, or the inner errors that are classified in place of this one.
Reader = Callable[[Any], Failure | tuple[Exception, ...]]
Rule = Failure | Reader
Table = dict[str, Rule]

_FATAL = FailureKind.FATAL  # looked up once: in Python 3.11 that costs as much as a call
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
    ``HTTP 429 of a used-up quota (RateLimitError)``. Of a result that was judged a failure the
    reason is said, which holds nothing of it: ``InvalidResultError (with an empty text)``.
    """
    if isinstance(error, InvalidResultError):
        reason = "".join(char for char in error.reason if char.isprintable() and char not in "(),;")
        return f"{type(error).__name__} ({reason[:_LONGEST_REASON]})"
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
