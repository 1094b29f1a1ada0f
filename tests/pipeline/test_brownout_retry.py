"""While some calls of a dependency pass, a call is retried more often; never more than that."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from lightrag_resilience import CircuitOpenError, Guard, RetryPolicy
from lightrag_resilience.circuit.state_machine import State
from support.guards import Scripted, down, guard_on_loop, now, outcomes

pytestmark = pytest.mark.anyio


def retrying(**changes: Any) -> Guard:
    return guard_on_loop(retry=RetryPolicy(**({"attempts": 3} | changes)), failure_rate=None)


async def brown_out(guard: Guard) -> None:
    """Three attempts of a call fail, and the next call passes."""
    function = Scripted(down(), down(), down(), "answer")
    await outcomes([guard.call(function)])
    await guard.call(function)
    assert guard.breaker.circuit.is_browned_out


async def times_of(guard: Guard, *results: Any) -> tuple[Any, list[float]]:
    """The outcome of a call, and the seconds at which its attempts began."""
    function, began, at = Scripted(*results), now(), []

    async def attempt() -> Any:
        at.append(now() - began)
        return await function()

    return (await outcomes([guard.call(attempt)]))[0], at


async def test_a_call_is_retried_beyond_its_attempts_while_some_calls_pass() -> None:
    guard = retrying()
    await brown_out(guard)
    answer, at = await times_of(guard, *[down()] * 8, "answer")
    assert (answer, len(at)) == ("answer", 9)
    assert max(after - before for before, after in itertools.pairwise(at)) <= 4.001


async def test_a_call_ends_after_the_attempts_of_a_brownout() -> None:
    guard = retrying(brownout_attempts=5)
    await brown_out(guard)
    error, at = await times_of(guard, down())
    assert (type(error), len(at)) == (ConnectionRefusedError, 5)


async def test_a_call_of_a_dependency_that_is_down_has_its_attempts_alone() -> None:
    error, at = await times_of(retrying(), down())
    assert (type(error), len(at)) == (ConnectionRefusedError, 3)


async def test_one_attempt_stays_one_in_a_brownout() -> None:
    guard = retrying()
    await brown_out(guard)
    guard.update_policy(guard.policy.with_changes(attempts=1))
    error, at = await times_of(guard, down())
    assert (type(error), len(at)) == (ConnectionRefusedError, 1)


async def test_a_throttled_call_is_not_retried_more_often_in_a_brownout() -> None:
    guard = retrying()
    await brown_out(guard)
    request = httpx.Request("POST", "http://provider/v1")
    response = httpx.Response(429, headers={"Retry-After": "0"}, request=request)
    throttled = httpx.HTTPStatusError("no", request=request, response=response)
    _, at = await times_of(guard, throttled)
    assert len(at) == 3


async def test_without_budget_a_call_is_retried_as_lightrag_alone_retries() -> None:
    """Three attempts, 4 to 10 s apart."""
    guard = retrying(attempts=4, budget=15)
    await brown_out(guard)
    guard.budget.tokens = 0
    _, at = await times_of(guard, down())
    assert len(at) == 3
    gaps = [after - before for before, after in itertools.pairwise(at)]
    assert all(4.0 <= gap <= 10.0 for gap in gaps)
    assert guard.budget.tokens == 0


async def test_a_retry_that_the_budget_cannot_pay_comes_late_after_a_timeout() -> None:
    """It costs 10 tokens, not 5 as the one before."""
    guard = retrying(budget=15)
    await brown_out(guard)
    guard.budget.tokens = 12
    _, at = await times_of(guard, down(), TimeoutError(), "answer")
    first, second = (after - before for before, after in itertools.pairwise(at))
    assert first <= 1.0
    assert 4.0 <= second <= 10.0


async def test_without_budget_and_without_a_call_that_passes_nothing_is_retried() -> None:
    guard = retrying(budget=15)
    guard.budget.tokens = 0
    _, at = await times_of(guard, down())
    assert len(at) == 1


async def fails_after(seconds: float, at: list[float]) -> None:
    at.append(now())
    await asyncio.sleep(seconds)
    raise down()


@pytest.mark.parametrize("latency", [0.02, 0.3, 1.0, 3.0])
async def test_calls_at_once_send_no_more_retries_than_show_that_it_is_down(latency: float) -> None:
    guard, at = retrying(), list[float]()
    ended = await outcomes(guard.call(fails_after, latency, at) for _ in range(4))
    assert len(at) == 6
    assert guard.breaker.state is State.OPEN
    assert {type(error) for error in ended} <= {CircuitOpenError, ConnectionRefusedError}


async def test_a_retry_waits_for_those_that_hang_no_longer_than_lightrag_alone() -> None:
    guard, at, sleeps = retrying(), list[float](), list[float]()

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.sleep(seconds)

    guard.sleep = sleep

    async def fails_then_hangs() -> None:
        at.append(now())
        await asyncio.sleep(0.1 if len(at) <= 4 else 60.0)
        raise down()

    calls = [asyncio.ensure_future(guard.call(fails_then_hangs)) for _ in range(4)]
    await asyncio.sleep(10.0)
    assert len(at) == 8
    assert at[-1] - at[3] < 5.0
    assert len(sleeps) < 30  # backoffs, and looks whether it is needed yet
    for call in calls:
        call.cancel()
    await outcomes(calls)
