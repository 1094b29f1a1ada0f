"""Calls of a role of LightRAG that has less time than other roles that call the same endpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from lightrag_resilience.config.policies import TimeoutPolicy
from lightrag_resilience.errors import AttemptTimeoutError, DeadlineExceededError
from lightrag_resilience.pipeline.guard import Guard

__all__ = ["at_most", "run_within"]


async def run_within(
    times: TimeoutPolicy,
    guard: Guard,
    function: Callable[..., Coroutine[Any, Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """As `guard.run`, within `times` where they are shorter than the guard's.

    Raises:
        AttemptTimeoutError: The last attempt took too long.
        DeadlineExceededError: All attempts together took too long.
        Exception: What `guard.run` raises.
    """
    if times == guard.policy.timeout:
        return await guard.run(function, args, kwargs)

    name, each, total = guard.name, times.attempt, times.total

    async def attempt(*args: Any, **kwargs: Any) -> Any:
        async with at_most(each, lambda: AttemptTimeoutError(name, None, f"after {each:g} s")):
            return await function(*args, **kwargs)

    vars(attempt).update(vars(function))  # the name of the model, for traces
    async with at_most(total, lambda: DeadlineExceededError(name, None, f"after {total:g} s")):
        return await guard.run(attempt, args, kwargs)


@contextlib.asynccontextmanager
async def at_most(seconds: float | None, error: Callable[[], Exception]) -> AsyncIterator[None]:
    """A block that has so many seconds; None: no limit.

    Args:
        seconds: From now on.
        error: Makes what is raised after them. A `TimeoutError` of the block itself passes.
    """
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            yield
    except TimeoutError as cause:
        if timer.expired():
            raise error() from cause
        raise
