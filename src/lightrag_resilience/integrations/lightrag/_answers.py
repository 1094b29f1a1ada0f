"""Honest answers: a query that a dependency failed raises, instead of finding nothing."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from lightrag_resilience.errors import DependencyError, ResilienceError
from lightrag_resilience.failures import classify, root_cause

from ._work import Work, current_work

__all__ = ["QueryFailedError", "honest"]


class QueryFailedError(DependencyError):
    """A query could not be answered because a dependency failed."""

    def summary(self) -> str:
        """What could not be done."""
        return f"The query was not answered: {self.dependency!r} failed"


def honest(method: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Any]:
    """A query method that raises where a dependency failed, instead of finding nothing."""

    @functools.wraps(method)
    async def ask(*args: Any, **kwargs: Any) -> dict[str, Any]:
        query = Work()
        token = current_work.set(query)
        try:
            answer = await method(*args, **kwargs)
        except Exception as error:
            if error is not query.failure:
                raise
            answer = {"status": "failure"}
        finally:
            current_work.reset(token)
        if query.failure is not None and answer.get("status") == "failure":
            raise query_error(query.failure, query.dependency)
        return answer

    return ask


def query_error(error: Exception, dependency: str) -> Exception:
    """What a query raises for the failure of a dependency."""
    if isinstance(error, ResilienceError):
        return error
    failure = classify(error)
    reason = f"with {type(root_cause(error)).__name__} ({failure.kind.value})"
    failed = QueryFailedError(dependency, failure.retry_after, reason)
    failed.__cause__ = error
    return failed
