"""While some calls of a dependency pass, a call is retried more often; never more than that."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from lightrag_resilience import Guard, RetryPolicy
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


async def test_without_budget_and_without_a_call_that_passes_nothing_is_retried() -> None:
    guard = retrying(budget=15)
    guard.budget.tokens = 0
    _, at = await times_of(guard, down())
    assert len(at) == 1
