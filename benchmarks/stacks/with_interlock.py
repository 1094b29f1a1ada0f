"""interlock-cb: its pipeline of retry, breaker, bulkhead and timeout, in its own order."""

from __future__ import annotations

import itertools

from interlock import CallTimeoutError, CircuitBreaker, CircuitOpenError, Config, Pipeline
from interlock.integrations.tenacity import retry_unless_open
from interlock.protocols import AsyncStorage
from tenacity import wait_none

from benchmarks.stack import TRANSIENT, Call, Setup, Stack

__all__ = ["STACKS", "pipeline_around"]

_FAILURES = (*TRANSIENT, CallTimeoutError)
_names = (f"llm.{number}" for number in itertools.count())


class _Failures:
    """Which errors count, as its `FailureClassifier` asks."""

    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        del result
        return isinstance(exception, _FAILURES)


def protect(function: Call, setup: Setup) -> Call:
    return pipeline_around(function, setup)


def pipeline_around(function: Call, setup: Setup, storage: AsyncStorage | None = None) -> Call:
    breaker = CircuitBreaker(
        name=next(_names),
        config=Config(wait_duration_in_open=setup.open_for),
        classifier=_Failures(),
        storage=storage,
    )
    pipeline = (
        Pipeline.builder()
        .retry(attempts=4, retry=retry_unless_open(*_FAILURES), wait=wait_none())
        .circuit_breaker(breaker)
        .bulkhead(setup.max_concurrent)
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
        has_bulkhead=True,
        imports="interlock, interlock.integrations.tenacity",
        window=Config().window_size,
    )
]
