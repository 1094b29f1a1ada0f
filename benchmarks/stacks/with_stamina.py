"""stamina around aiobreaker. Neither bounds the time of an attempt, nor how many are under way."""

from __future__ import annotations

from datetime import timedelta

import stamina
from aiobreaker import CircuitBreaker, CircuitBreakerError

from benchmarks.stack import TRANSIENT, Call, Setup, Stack


def protect(function: Call, setup: Setup) -> Call:
    breaker = CircuitBreaker(
        fail_max=5, timeout_duration=timedelta(seconds=setup.open_for), exclude=[ValueError]
    )

    @stamina.retry(on=TRANSIENT, attempts=4, wait_initial=0.001, wait_max=0.002, wait_jitter=0.001)
    async def call(number: int) -> int:
        return await breaker.call_async(function, number)

    return call


STACKS = [
    Stack(
        name="stamina + aiobreaker, no timeout",
        protect=protect,
        refusal=CircuitBreakerError,
        timeout=None,
        imports="stamina, aiobreaker",
    )
]
