"""Judges results that are no exceptions, by a function of the application."""

from __future__ import annotations

import logging
import math
from inspect import iscoroutine
from typing import Any

from lightrag_resilience.config.policies import Judge
from lightrag_resilience.errors import InvalidResultError
from lightrag_resilience.verdicts import Failure, FailureKind

__all__ = ["verdict_on"]

_log = logging.getLogger("lightrag_resilience")

_LONGEST_REASON = 200  # characters


def verdict_on(result: Any, judge: Judge, dependency: str) -> InvalidResultError | None:
    """The error of a result that is judged a failure; None for a success.

    A judge that raises, or returns something else, lets the result pass: a bug in it must not cost
    an answer.
    """
    try:
        verdict: object = judge(result)
    except Exception as mistake:  # noqa: BLE001
        _log_mistake(judge, dependency, f"raised {type(mistake).__name__}")
        return None
    if verdict is None:
        return None
    if isinstance(verdict, FailureKind):
        verdict = Failure(verdict)
    if not isinstance(verdict, Failure):
        if iscoroutine(verdict):
            verdict.close()  # else Python warns, too, that it was never awaited
        _log_mistake(judge, dependency, f"returned {type(verdict).__name__}")
        return None
    if not _is_sound(verdict):
        _log_mistake(judge, dependency, "returned a Failure with a field of a wrong type")
        return None
    reason = "".join(filter(str.isprintable, verdict.reason[:_LONGEST_REASON]))
    reason = reason or "with a result that was judged a failure"
    return InvalidResultError(dependency, verdict.retry_after, reason, verdict)


def _log_mistake(judge: Judge, dependency: str, what: str) -> None:
    """Log what a wrong judge did: names only, as an error's words may hold the result."""
    _log.error(
        "The judge %s of %r %s, so the result passes: it must return a Failure, a FailureKind or "
        "None",
        getattr(judge, "__qualname__", type(judge).__name__),
        dependency,
        what,
    )


def _is_sound(verdict: Failure) -> bool:
    """Whether a judge, which no type checker may have read, has set each field as it must be."""
    wait: object = verdict.retry_after
    fields = (verdict.kind, FailureKind), (verdict.reason, str), (verdict.is_local, bool)
    return all(isinstance(value, kind) for value, kind in fields) and (
        wait is None or (isinstance(wait, (int, float)) and 0 <= wait < math.inf)
    )
