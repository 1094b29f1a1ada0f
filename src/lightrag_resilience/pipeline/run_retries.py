"""The attempts after the first, until one succeeds or nothing is left for another."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from lightrag_resilience.calls.call_context import Call
from lightrag_resilience.calls.publishing import tell_failure, tell_retry
from lightrag_resilience.config.policies import RetryPolicy
from lightrag_resilience.retry import Retries

if TYPE_CHECKING:
    from .guard import Guard

__all__ = ["try_again"]

R = TypeVar("R")


async def try_again(
    guard: Guard,
    call: Call,
    policy: RetryPolicy,
    first: Exception,
    attempt: Callable[[], Awaitable[R]],
) -> R:
    """What a further attempt gives; `first` is what the first one raised.

    Raises:
        Exception: What the last attempt raised.
    """
    total = call.parts.policy.timeout.total
    call.deadline = None if total is None else call.began + total
    retries = Retries(
        dependency=guard.name,
        policy=policy,
        budget=guard.budget,
        deadline=lambda: call.deadline,  # it moves while time is set aside
        clock=guard.clock,
        sleep=guard.pause,
        scheduled=functools.partial(tell_retry, guard, call),
        last_failure=lambda: call.failure,
    )
    try:
        return await retries.after(first, attempt)
    except Exception as error:
        tell_failure(guard, call, error)
        raise
