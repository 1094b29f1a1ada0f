"""pyresilience: one decorator with retry, timeout, circuit breaker and bulkhead."""

from __future__ import annotations

from pyresilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    CircuitOpenError,
    ResilienceTimeoutError,
    RetryConfig,
    TimeoutConfig,
    resilient,
)

from benchmarks.stack import TRANSIENT, Call, Setup, Stack


def protect(function: Call, setup: Setup) -> Call:
    decorate = resilient(
        retry=RetryConfig(max_attempts=4, delay=0, retry_on=TRANSIENT),
        timeout=TimeoutConfig(seconds=setup.timeout),
        circuit_breaker=CircuitBreakerConfig(
            recovery_timeout=setup.open_for, error_types=TRANSIENT
        ),
        bulkhead=BulkheadConfig(max_concurrent=setup.max_concurrent),
    )
    return decorate(function)


STACKS = [
    Stack(
        name="pyresilience",
        protect=protect,
        refusal=CircuitOpenError,
        timeout=ResilienceTimeoutError,
        has_bulkhead=True,
        imports="pyresilience",
    )
]
