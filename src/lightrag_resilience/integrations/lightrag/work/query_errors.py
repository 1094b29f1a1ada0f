"""A query whose dependency failed raises; LightRAG by itself would answer that it found nothing."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from lightrag_resilience.errors import DependencyError, ResilienceError
from lightrag_resilience.failures.classifier import classify, root_cause
from lightrag_resilience.failures.kinds import symptom

from .context import WorkContext, current_request, current_work

__all__ = [
    "Answer",
    "QueryFailedError",
    "mark",
    "query_error",
    "raise_on_dependency_error",
    "streamed",
]

Answer = dict[str, Any]
"""What LightRAG answers to a query, with `status`, `data`, `metadata` and `llm_response`."""


class QueryFailedError(DependencyError):
    """A query could not be answered because a dependency failed."""

    def summary(self) -> str:
        """What failed, and because of which dependency."""
        return f"The query was not answered: {self.dependency!r} failed"


def raise_on_dependency_error(
    method: Callable[..., Awaitable[Answer]],
) -> Callable[..., Awaitable[Answer]]:
    """A query method that raises if a dependency failed.

    A dependency that LightRAG answers without, such as its reranker, is listed in
    ``metadata["left_out"]`` of the answer.
    """

    @functools.wraps(method)
    async def ask(*args: Any, **kwargs: Any) -> Answer:
        around = current_work.get()  # one attempt of several, at an answer
        query = WorkContext(query_patience=None if around is None else around.patience)
        token = current_work.set(query)
        try:
            answer = await method(*args, **kwargs)
        except Exception as error:
            if query.last is None or error is not query.last[1]:
                raise
            answer = {"status": "failure"}
        finally:
            current_work.reset(token)
        if query.last is not None:
            if answer.get("status") == "failure":
                raise query_error(*query.last)
            mark(answer, query.failures)
        return streamed(answer, _typed)

    return ask


def query_error(dependency: str, error: Exception) -> Exception:
    """The error that a query raises for a dependency's failure."""
    if isinstance(error, ResilienceError):
        return error
    failure = classify(error)
    reason = f"with {symptom(root_cause(error), failure)}, {failure.kind.value}"
    failed = QueryFailedError(dependency, failure.retry_after, reason)
    failed.__cause__ = error
    return failed


def mark(answer: Answer, left_out: Mapping[str, Exception]) -> None:
    """Add to an answer which dependencies it was made without, and why."""
    if left_out:
        marks = answer.setdefault("metadata", {}).setdefault("left_out", [])
        for dependency, error in left_out.items():
            reason = type(root_cause(error)).__name__
            marks.append({"dependency": dependency, "reason": reason})


def streamed(answer: Answer, change: Callable[[AsyncIterator[str]], AsyncIterator[str]]) -> Answer:
    """An answer whose stream, if it has one, goes through `change`."""
    response = answer.get("llm_response") or {}
    if response.get("is_streaming") and response.get("response_iterator") is not None:
        response["response_iterator"] = change(response["response_iterator"])
    return answer


async def _typed(stream: AsyncIterator[str]) -> AsyncIterator[str]:
    """A stream that fails with our error: LightRAG's server sends the error's text to the user."""
    try:
        async for item in stream:
            yield item
    except Exception as error:  # noqa: BLE001 - raised again below
        dependency = getattr(stream, "dependency", "llm")
        if (request := current_request.get()) is not None:
            request.last, request.is_cut_off = (dependency, error), True
        typed = query_error(dependency, error)
        raise typed from typed.__cause__  # not `from error`, which may be `typed` itself
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            await close()
