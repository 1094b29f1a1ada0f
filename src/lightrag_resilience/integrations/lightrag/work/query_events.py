"""Events and spans of queries: how long each took, and its outcome."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lightrag_resilience.calls.token_account import TokenAccount, current_account
from lightrag_resilience.events import QueryCompleted
from lightrag_resilience.pipeline.registry import Guards

from .query_errors import Answer, streamed

__all__ = ["with_query_events"]

_Method = Callable[..., Awaitable[Answer]]


def with_query_events(method: _Method, guards: Guards, workspace: str) -> _Method:
    """A query method that publishes `QueryCompleted`, for a streamed answer when its stream ends.

    A cancelled query publishes nothing: its duration says nothing about the service.
    """

    @functools.wraps(method)
    async def ask(*args: Any, **kwargs: Any) -> Answer:
        if guards.tracing is None and not guards.events.counts_tokens:
            return await method(*args, **kwargs)
        query = _Query(guards, workspace)
        token = current_account.set(query.account)
        try:
            with query.current():
                answer = await method(*args, **kwargs)
        except BaseException as error:
            query.account.is_abandoned = True
            query.failed(error)
            raise
        finally:
            current_account.reset(token)
        query.completed(answer)
        if (answer.get("llm_response") or {}).get("is_streaming"):
            return streamed(answer, query.follow_stream)
        query.end()
        return answer

    return ask


class _Query:
    """One query from start to end."""

    def __init__(self, guards: Guards, workspace: str) -> None:
        self.account = TokenAccount("query")
        self._events = guards.events
        self._workspace = workspace
        tracing = guards.tracing
        self._span = None if tracing is None else tracing.begin_query(workspace)
        self._outcome = "failed"
        self._began = time.monotonic()
        self._duration = 0.0

    def current(self) -> contextlib.AbstractContextManager[None]:
        """A block whose spans are children of this query's span."""
        return contextlib.nullcontext() if self._span is None else self._span.current()

    def completed(self, answer: Answer) -> None:
        """The query has an answer, or the first words of one."""
        self._duration = time.monotonic() - self._began
        left_out = (answer.get("metadata") or {}).get("left_out")
        self._outcome = "degraded" if left_out else "success"

    def failed(self, error: BaseException) -> None:
        """The query has no answer, or its stream broke off."""
        self._duration = self._duration or time.monotonic() - self._began
        self._outcome = "failed" if isinstance(error, Exception) else "cancelled"
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Publish the outcome and end the span."""
        if error is None or isinstance(error, Exception):
            used, wasted = self.account.used, self.account.wasted
            event = QueryCompleted(self._workspace, self._outcome, self._duration, used, wasted)
            self._events.publish(event)
        if self._span is not None:
            self._span.end(error, self._outcome)

    async def follow_stream(self, stream: AsyncIterator[str]) -> AsyncIterator[str]:
        """A stream that ends the query when it ends; one closed early counts as answered."""
        try:
            async for item in stream:
                yield item
        except Exception as error:
            self.failed(error)
            raise
        except BaseException:
            self.end()
            raise
        else:
            self.end()
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()
