"""hyx: its four decorators on top of one another, as its documentation shows them."""

from __future__ import annotations

from hyx.bulkhead import bulkhead
from hyx.circuitbreaker import consecutive_breaker
from hyx.circuitbreaker.exceptions import BreakerFailing
from hyx.retry import retry
from hyx.retry.exceptions import MaxAttemptsExceeded
from hyx.timeout import timeout
from hyx.timeout.exceptions import MaxDurationExceeded

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

_FAILURES = (*TRANSIENT, MaxDurationExceeded)


def protect(function: Call, setup: Setup) -> Call:
    @retry(on=_FAILURES, attempts=4, backoff=0)
    @consecutive_breaker(_FAILURES, failure_threshold=5, recovery_time_secs=setup.open_for)
    @bulkhead(max_concurrency=setup.max_concurrent, max_capacity=setup.max_concurrent)
    @timeout(setup.timeout)
    async def call(number: int) -> int:
        return await function(number)

    return call


STACKS = [
    Stack(
        name="hyx",
        protect=protect,
        refusal=BreakerFailing,
        timeout=MaxAttemptsExceeded,
        has_bulkhead=True,
        imports="hyx.retry, hyx.timeout, hyx.circuitbreaker, hyx.bulkhead",
    )
]
