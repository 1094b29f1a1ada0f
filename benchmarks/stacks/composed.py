"""The stack people write by hand: tenacity, asyncio.timeout, aiolimiter and pybreaker.

The order is retry(timeout(limiter(breaker(call)))). pybreaker's ``call`` would count a coroutine
that was made as a success, and its ``call_async`` needs Tornado, so the form that is both usual and
right is ``with breaker.calling()`` around the ``await``: it asks before, and records after. Its
errors still are pybreaker's (a cancellation counts as a failure, half-open lets all through).
"""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter
from pybreaker import CircuitBreaker, CircuitBreakerError, CircuitBreakerStorage
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_none

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

__all__ = ["STACKS", "compose"]


def protect(function: Call, setup: Setup) -> Call:
    return compose(function, setup)


def compose(function: Call, setup: Setup, storage: CircuitBreakerStorage | None = None) -> Call:
    breaker = CircuitBreaker(
        fail_max=5, reset_timeout=setup.open_for, exclude=[ValueError], state_storage=storage
    )
    limiter = AsyncLimiter(100_000, time_period=0.6)

    @retry(
        retry=retry_if_exception_type(TRANSIENT),
        stop=stop_after_attempt(4),
        wait=wait_none(),
        reraise=True,
    )
    async def call(number: int) -> int:
        async with asyncio.timeout(setup.timeout), limiter:
            with breaker.calling():
                return await function(number)

    return call


STACKS = [
    Stack(
        name="composed by hand",
        protect=protect,
        refusal=CircuitBreakerError,
        timeout=TimeoutError,
        imports="tenacity, aiolimiter, pybreaker",
    )
]
