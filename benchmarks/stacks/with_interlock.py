"""interlock-cb: its pipeline of retry, breaker, bulkhead and timeout, in its own order."""

from __future__ import annotations

import itertools

from interlock import CallTimeoutError, CircuitBreaker, CircuitOpenError, Config, Pipeline
from interlock.integrations.tenacity import retry_unless_open
from tenacity import wait_fixed

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

_FAILURES = (*TRANSIENT, CallTimeoutError)
_names = (f"llm.{number}" for number in itertools.count())


class _Failures:
    """Which errors count, as its `FailureClassifier` asks."""

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        del result
        return isinstance(exception, _FAILURES)


def protect(function: Call, setup: Setup) -> Call:
    breaker = CircuitBreaker(
        name=next(_names),
        config=Config(wait_duration_in_open=setup.open_for),
        classifier=_Failures(),
    )
    pipeline = (
        Pipeline.builder()
        .retry(attempts=4, retry=retry_unless_open(*_FAILURES), wait=wait_fixed(0.001))
        .circuit_breaker(breaker)
        .bulkhead(setup.places)
        .timeout(setup.timeout)
        .build()
    )
    return pipeline(function)


STACKS = [
    Stack(
        name="interlock-cb pipeline",
        protect=protect,
        refusal=CircuitOpenError,
        timeout=CallTimeoutError,
        limits_places=True,
        imports="interlock, interlock.integrations.tenacity",
        window=Config().window_size,
    )
]
