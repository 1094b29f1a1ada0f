"""The verdicts, for tests."""

from __future__ import annotations

from lightrag_resilience import Failure, FailureKind

TRANSIENT = Failure(FailureKind.TRANSIENT)
THROTTLED = Failure(FailureKind.THROTTLED)
LOCAL = Failure(FailureKind.TRANSIENT, is_local=True)
FATAL = Failure(FailureKind.FATAL)
UNKNOWN = Failure(FailureKind.UNKNOWN_OUTCOME)


def caused(error: Exception, cause: BaseException) -> Exception:
    """The same error, as ``raise error from cause`` leaves it."""
    error.__cause__ = cause
    return error


def raised_over(hidden: Exception, error: Exception) -> Exception:
    """The same error, as ``raise error from None`` leaves it where another was handled."""
    error.__context__, error.__suppress_context__ = hidden, True
    return error
