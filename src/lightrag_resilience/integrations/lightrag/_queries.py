"""How long the queries of a protected LightRAG take, and how they end."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lightrag_resilience.events import Events, QueryAnswered

from ._answers import Answer, streamed

__all__ = ["told"]

_Clock = Callable[[], float]


def told(
    method: Callable[..., Awaitable[Answer]],
    events: Events,
    workspace: str,
    clock: _Clock = time.monotonic,
) -> Callable[..., Awaitable[Answer]]:
    """A query method whose end is told: of a streamed answer that of its stream.

    A query that its caller gave up is not told of.
    """

    @functools.wraps(method)
    async def ask(*args: Any, **kwargs: Any) -> Answer:
        if not events.listeners:
            return await method(*args, **kwargs)
        began = clock()

        def ended(outcome: str, duration: float) -> None:
            events.emit(QueryAnswered(workspace, outcome, duration))

        try:
            answer = await method(*args, **kwargs)
        except Exception:
            ended("failed", clock() - began)
            raise
        outcome, duration = _outcome_of(answer), clock() - began
        if not (answer.get("llm_response") or {}).get("is_streaming"):
            ended(outcome, duration)
            return answer
        return streamed(answer, functools.partial(_to_its_end, ended, outcome, duration))

    return ask


def _outcome_of(answer: Answer) -> str:
    left_out = (answer.get("metadata") or {}).get("left_out")
    return "degraded" if left_out else "success"


async def _to_its_end(
    ended: Callable[[str, float], None],
    outcome: str,
    duration: float,
    stream: AsyncIterator[str],
) -> AsyncIterator[str]:
    try:
        async for item in stream:
            yield item
    except Exception:
        outcome = "failed"
        raise
    finally:
        ended(outcome, duration)
        if (close := getattr(stream, "aclose", None)) is not None:
            await close()
