"""Waiting for a dependency to come back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from lightrag_resilience import BreakerPolicy, CircuitOpenError, Guard, RetryPolicy
from lightrag_resilience.composition.wait_for_recovery import retry_until_available
from support.guards import Scripted, down, guard_on_loop, now

pytestmark = pytest.mark.anyio


def quick(**changes: Any) -> Guard:
    return guard_on_loop(retry=RetryPolicy(attempts=1, max_backoff=4.0), **changes)


async def test_an_open_circuit_is_waited_for() -> None:
    guard = quick()
    guard.breaker.open()
    answer = await retry_until_available(
        guard, lambda: guard.call(Scripted("answer")), patience=600
    )
    assert answer == "answer"
    assert 5.0 <= now() <= 5.5


async def test_no_call_is_made_while_the_circuit_is_open() -> None:
    guard, begun = quick(), list[float]()
    guard.breaker.open()

    async def begin() -> str:
        begun.append(now())
        return str(await guard.call(Scripted("answer")))

    await retry_until_available(guard, begin, patience=600)
    assert len(begun) == 1


async def test_an_outage_is_outlasted_with_few_calls() -> None:
    guard = quick(consecutive_failures=3)
    function = Scripted(*[down()] * 8, "answer")
    assert (
        await retry_until_available(guard, lambda: guard.call(function), patience=3600) == "answer"
    )
    assert function.calls == 9


async def test_many_waiting_calls_send_one_probe_at_a_time() -> None:
    guard = quick(consecutive_failures=1)
    function = Scripted(*[down()] * 30, "answer")
    calls = (
        retry_until_available(guard, lambda: guard.call(function), patience=36_000)
        for _ in range(20)
    )
    assert await asyncio.gather(*calls) == ["answer"] * 20
    assert function.calls < 80


async def test_the_last_error_is_raised_when_patience_ends() -> None:
    guard = quick(breaker=BreakerPolicy(mode="metrics-only"))
    error = down()
    with pytest.raises(ConnectionRefusedError) as raised:
        await retry_until_available(guard, lambda: guard.call(Scripted(error)), patience=30.0)
    assert raised.value is error
    assert 25.0 < now() <= 30.0


async def test_a_retry_after_beyond_the_patience_is_not_waited_for() -> None:
    guard = quick()
    guard.breaker.open()
    with pytest.raises(CircuitOpenError):
        await retry_until_available(guard, lambda: guard.call(Scripted(None)), patience=3.0)
    assert now() == 0.0


async def test_a_fatal_failure_is_raised_at_once() -> None:
    guard, function = quick(), Scripted(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await retry_until_available(guard, lambda: guard.call(function), patience=600)
    assert (function.calls, now()) == (1, 0.0)


async def test_the_wait_follows_the_providers_retry_after() -> None:
    request = httpx.Request("POST", "http://provider")
    response = httpx.Response(429, headers={"Retry-After": "20"}, request=request)
    error = httpx.HTTPStatusError("busy", request=request, response=response)
    guard, function = quick(), Scripted(error, "answer")
    await retry_until_available(guard, lambda: guard.call(function), patience=600)
    assert 20.0 <= function.at[1] <= 20.5


async def test_cancelling_the_caller_ends_the_wait() -> None:
    guard = quick()
    guard.breaker.open()
    task = asyncio.create_task(
        retry_until_available(guard, lambda: guard.call(Scripted(None)), patience=600)
    )
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
