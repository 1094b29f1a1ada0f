"""Requests a minute: smooth, first come first served, and never a wait without an end."""

from __future__ import annotations

import asyncio
import math

import pytest

from lightrag_resilience import LimitPolicy, RateLimitedError
from lightrag_resilience.limits import LocalLimit
from support.guards import now

pytestmark = pytest.mark.anyio


def limit(rpm: float = 60.0, burst: int | None = 1, max_wait: float = 1000.0) -> LocalLimit:
    return LocalLimit("llm", LimitPolicy(rpm=rpm, burst=burst, max_wait=max_wait))


async def turn(rate: LocalLimit, longest: float = math.inf) -> float:
    await rate.acquire(0, longest)
    return now()


async def test_a_burst_goes_at_once_and_the_rest_in_even_steps() -> None:
    rate = limit(rpm=60.0, burst=3)
    times = await asyncio.gather(*(turn(rate) for _ in range(8)))
    assert times == pytest.approx([0, 0, 0, 1, 2, 3, 4, 5], abs=0.01)


@pytest.mark.parametrize(("rpm", "burst"), [(1000.0, 100), (60.0, 6), (5.0, 1)])
async def test_the_burst_is_a_tenth_unless_it_is_given(rpm: float, burst: int) -> None:
    rate = limit(rpm=rpm, burst=None)
    assert [await rate.acquire(0, math.inf) for _ in range(burst + 1)] == [False] * burst + [True]


async def test_no_minute_sees_more_than_the_limit_and_the_burst() -> None:
    rate = limit(rpm=120.0, burst=12)
    times = await asyncio.gather(*(turn(rate) for _ in range(500)))
    for start in (0.0, 60.0, 120.0, 180.5):
        assert sum(start <= at < start + 60.0 for at in times) <= 120 + 12


async def test_who_comes_first_is_served_first() -> None:
    rate, served = limit(), list[int]()

    async def come(number: int) -> None:
        await asyncio.sleep(number * 0.1)
        await rate.acquire(0, math.inf)
        served.append(number)

    await asyncio.gather(*(come(number) for number in reversed(range(20))))
    assert served == sorted(served)


async def test_a_wait_beyond_the_policy_is_refused_with_its_length() -> None:
    rate = limit(max_wait=2.5)
    outcomes = await asyncio.gather(*(turn(rate) for _ in range(6)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, RateLimitedError)]
    assert len(refused) == 3
    assert refused[0].retry_after == pytest.approx(3.0, abs=0.01)
    assert str(refused[0]) == (
        "Rate limit of 'llm' is used up with 2 calls waiting; try again in 3.0 s"
    )


async def test_a_wait_beyond_the_callers_time_is_refused_at_once() -> None:
    rate = limit()
    await turn(rate)
    with pytest.raises(RateLimitedError):
        await turn(rate, longest=0.5)
    assert now() == 0.0
    await turn(rate, longest=1.5)


async def test_a_waiter_who_leaves_frees_the_line() -> None:
    rate = limit()
    await turn(rate)
    waiters = [asyncio.create_task(turn(rate)) for _ in range(3)]
    await asyncio.sleep(0.5)
    waiters[0].cancel()
    await asyncio.wait(waiters)
    assert waiters[0].cancelled()
    assert [task.result() for task in waiters[1:]] == pytest.approx([1.0, 2.0], abs=0.01)
    assert rate._waiting == 0
