"""stamina around aiobreaker. Neither bounds the time of an attempt, nor how many are under way."""

from __future__ import annotations

from datetime import timedelta

import stamina
from aiobreaker import CircuitBreaker, CircuitBreakerError
from aiobreaker.storage.base import CircuitBreakerStorage

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

__all__ = ["STACKS", "compose"]

stamina.instrumentation.set_on_retry_hooks([])  # it would log, and the others do not


def protect(function: Call, setup: Setup) -> Call:
    return compose(function, setup)


def compose(function: Call, setup: Setup, storage: CircuitBreakerStorage | None = None) -> Call:
    breaker = CircuitBreaker(
        fail_max=5,
        timeout_duration=timedelta(seconds=setup.open_for),
        exclude=[ValueError],
        state_storage=storage,
    )

    @stamina.retry(on=TRANSIENT, attempts=4, wait_initial=0, wait_max=0, wait_jitter=0)
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
