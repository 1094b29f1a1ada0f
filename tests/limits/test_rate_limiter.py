"""Requests a minute: smooth, first come first served, and never a wait without an end."""

from __future__ import annotations

import asyncio
import math

import pytest

from lightrag_resilience import BulkheadFullError, ConcurrencyPolicy, LimitPolicy, RateLimitedError
from lightrag_resilience.limits.rate_limiter import LocalRateLimiter
from support.guards import Scripted, down, guard_on_loop, now

pytestmark = pytest.mark.anyio


def limit(rpm: float = 60.0, burst: int | None = 1, max_wait: float = 1000.0) -> LocalRateLimiter:
    return LocalRateLimiter("llm", LimitPolicy(rpm=rpm, burst=burst, max_wait=max_wait))


async def turn(rate: LocalRateLimiter, longest: float = math.inf) -> float:
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


async def test_callers_are_served_in_order_of_arrival() -> None:
    rate, served = limit(), list[int]()

    async def come(number: int) -> None:
        await asyncio.sleep(number * 0.1)
        await rate.acquire(0, math.inf)
        served.append(number)

    await asyncio.gather(*(come(number) for number in reversed(range(20))))
    assert served == sorted(served)


async def test_try_acquire_takes_a_due_turn_only_if_no_caller_waits() -> None:
    rate = limit(rpm=60.0, burst=2)
    assert [rate.try_acquire(0) for _ in range(3)] == [True, True, False]
    waiting = [asyncio.create_task(turn(rate)) for _ in range(2)]
    await asyncio.sleep(1.5)
    assert not rate.try_acquire(0)
    assert await asyncio.gather(*waiting) == pytest.approx([1, 2], abs=0.01)
    await asyncio.sleep(1.01)
    assert rate.try_acquire(0)


async def test_try_acquire_takes_tokens_only_if_there_are_enough() -> None:
    rate = LocalRateLimiter("llm", LimitPolicy(tpm=600.0, token_burst=100, max_wait=1000.0))
    assert [rate.try_acquire(60), rate.try_acquire(60), rate.try_acquire(40)] == [True, False, True]
    rate.settle(40, 0)
    assert [rate.try_acquire(41), rate.try_acquire(40)] == [False, True]


async def test_a_wait_beyond_max_wait_is_rejected_with_its_seconds() -> None:
    rate = limit(max_wait=2.5)
    outcomes = await asyncio.gather(*(turn(rate) for _ in range(6)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, RateLimitedError)]
    assert len(refused) == 3
    assert refused[0].retry_after == pytest.approx(3.0, abs=0.01)
    assert str(refused[0]) == (
        "Rate limit of 'llm' is used up with 2 calls waiting; try again in 3.0 s"
    )


async def test_a_wait_beyond_the_callers_time_is_rejected_at_once() -> None:
    rate = limit()
    await turn(rate)
    with pytest.raises(RateLimitedError):
        await turn(rate, longest=0.5)
    assert now() == 0.0
    await turn(rate, longest=1.5)


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    rate = limit()
    await turn(rate)
    waiters = [asyncio.create_task(turn(rate)) for _ in range(3)]
    await asyncio.sleep(0.5)
    waiters[0].cancel()
    await asyncio.wait(waiters)
    assert waiters[0].cancelled()
    assert [task.result() for task in waiters[1:]] == pytest.approx([1.0, 2.0], abs=0.01)
    assert rate.waiting == (0, 0)


# ---------------------------------------------------------------------- tokens


def token_limit(
    tpm: float = 60.0, token_burst: int | None = 10, max_wait: float = 1000.0
) -> LocalRateLimiter:
    return LocalRateLimiter("llm", LimitPolicy(tpm=tpm, token_burst=token_burst, max_wait=max_wait))


async def spend(rate: LocalRateLimiter, tokens: int) -> float:
    await rate.acquire(tokens, math.inf)
    return now()


async def test_tokens_go_in_a_burst_and_then_at_their_rate() -> None:
    rate = token_limit()
    times = await asyncio.gather(*(spend(rate, 5) for _ in range(4)))
    assert times == pytest.approx([0, 0, 5, 10], abs=0.01)


async def test_a_large_call_is_served_in_its_turn() -> None:
    """In aiolimiter it starves: its waiters are ordered by size."""
    rate = token_limit()
    served: list[int] = []

    async def come(number: int, tokens: int) -> None:
        await asyncio.sleep(number * 0.1)
        await rate.acquire(tokens, math.inf)
        served.append(number)

    await asyncio.gather(*(come(number, 30 if number == 2 else 3) for number in range(20)))
    assert served == sorted(served)


async def test_a_call_larger_than_a_minute_can_pass() -> None:
    rate = token_limit(tpm=60.0)
    await spend(rate, 10)
    assert await spend(rate, 10_000) == pytest.approx(60.0)


async def test_a_rejected_large_call_passes_when_it_comes_back_as_it_was_told() -> None:
    rate = token_limit(tpm=60.0, max_wait=30.0)
    await spend(rate, 1)
    with pytest.raises(RateLimitedError, match="used up for a call of 50 tokens, with 0") as caught:
        await spend(rate, 50)
    await asyncio.sleep(caught.value.retry_after or 0.0)
    assert rate.try_acquire(50)
    assert not rate.try_acquire(11)


async def test_tokens_that_return_late_count_as_no_idle_time() -> None:
    rate = token_limit(tpm=60.0)
    await spend(rate, 10)
    await asyncio.sleep(60.0)
    await spend(rate, 10)
    rate.settle(10, 0)
    rate.settle(10, 0)
    assert await spend(rate, 50) == pytest.approx(100.0)


async def test_unused_tokens_return_and_overused_tokens_are_owed() -> None:
    rate = token_limit()
    await spend(rate, 10)
    rate.settle(10, 4)
    assert await spend(rate, 6) == 0.0
    rate.settle(6, 16)
    assert await spend(rate, 1) == pytest.approx(11.0)


async def test_no_more_tokens_return_than_were_reserved() -> None:
    limit = LocalRateLimiter("llm", LimitPolicy(tpm=1000.0, token_burst=1000, max_wait=3600.0))
    assert limit.try_acquire(1000)
    others = [asyncio.create_task(limit.acquire(1000, 3600.0)) for _ in range(3)]
    await asyncio.sleep(0)
    large = asyncio.create_task(limit.acquire(5000, 3600.0))
    await asyncio.sleep(1.0)
    large.cancel()
    await asyncio.gather(*others)
    assert now() == pytest.approx(180.0)
    assert not limit.try_acquire(1000)
    await limit.acquire(1000, 3600.0)
    assert now() == pytest.approx(240.0)


async def test_a_cancelled_waiter_returns_its_tokens() -> None:
    rate = token_limit()
    await spend(rate, 10)
    waiter = asyncio.create_task(spend(rate, 50))
    await asyncio.sleep(1.0)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert await spend(rate, 1) == pytest.approx(1.0)


async def test_tokens_beyond_max_wait_are_rejected_and_not_reserved() -> None:
    rate = token_limit(max_wait=5.0)
    await spend(rate, 10)
    with pytest.raises(RateLimitedError) as caught:
        await spend(rate, 20)
    assert caught.value.retry_after == pytest.approx(20.0)
    assert await spend(rate, 5) == pytest.approx(5.0)


async def test_requests_and_tokens_are_both_waited_for() -> None:
    rate = LocalRateLimiter("llm", LimitPolicy(rpm=60.0, burst=1, tpm=600.0, token_burst=10))
    assert [await spend(rate, tokens) for tokens in (5, 5, 40, 1)] == pytest.approx(
        [0, 1, 4, 4.1], abs=0.11
    )


async def test_a_share_is_a_part_of_both_limits() -> None:
    rate = LocalRateLimiter("llm", LimitPolicy(rpm=240.0, burst=4), 0.25)
    times = await asyncio.gather(*(turn(rate) for _ in range(3)))
    assert times == pytest.approx([0, 1, 2], abs=0.01)
    rate = LocalRateLimiter("llm", LimitPolicy(tpm=240.0, token_burst=40), 0.25)
    start = now()
    times = await asyncio.gather(*(spend(rate, 5) for _ in range(4)))
    assert [at - start for at in times] == pytest.approx([0, 0, 5, 10], abs=0.01)


# ---------------------------------------------------------------------- around a guarded call


class Answer:
    usage = {"total_tokens": 100}  # noqa: RUF012 - as an SDK's


async def test_tokens_are_reserved_by_arguments_and_settled_by_the_answer() -> None:
    guard = guard_on_loop(limit=LimitPolicy(tpm=600.0, max_wait=1000.0, token_burst=600))
    await guard.call(Scripted(Answer()), "居" * 100, max_tokens=500)  # 600 booked, 100 used
    await guard.call(Scripted("居" * 100), "居" * 100, max_tokens=400)  # 500 booked, 200 used
    assert now() == 0.0
    await guard.call(Scripted(Answer()), max_tokens=301)
    assert now() == pytest.approx(0.1)


@pytest.mark.parametrize(("failure", "cost"), [(down(), 0), (TimeoutError(), 60), (KeyError(), 0)])
async def test_a_failed_call_costs_what_the_provider_may_have_done(
    failure: Exception, cost: int
) -> None:
    guard = guard_on_loop(limit=LimitPolicy(tpm=60.0, token_burst=60, max_wait=1000.0))
    with pytest.raises(type(failure)):
        await guard.call(Scripted(failure), max_tokens=60)
    await guard.call(Scripted(Answer()), max_tokens=60)
    assert now() == pytest.approx(cost)


async def test_an_answer_of_unknown_length_is_expected_to_be_as_long_as_the_policy_says() -> None:
    policy = LimitPolicy(tpm=600.0, token_burst=60, answer_tokens=90)
    guard = guard_on_loop(limit=policy)
    await guard.call(Scripted(object()))
    await guard.call(Scripted(object()))
    assert now() == pytest.approx(9.0)


async def test_a_call_without_a_permit_returns_its_tokens() -> None:
    guard = guard_on_loop(
        limit=LimitPolicy(tpm=60.0, token_burst=60, max_wait=1000.0),
        concurrency=ConcurrencyPolicy(max_concurrent=1, max_queue=0),
    )
    busy = asyncio.create_task(guard.call(Scripted(0.5), max_tokens=30))
    await asyncio.sleep(0.1)
    with pytest.raises(BulkheadFullError):
        await guard.call(Scripted("fine"), max_tokens=30)
    await busy
    await guard.call(Scripted("fine"), max_tokens=30)
    assert now() == 0.5


# ---------------------------------------------------------------------- what changes meanwhile


async def test_returned_tokens_shorten_the_wait() -> None:
    rate = token_limit(tpm=600.0, token_burst=100)  # ten tokens a second
    assert rate.try_acquire(100)
    waiting = [asyncio.create_task(spend(rate, tokens)) for tokens in (20, 10)]
    await asyncio.sleep(0.5)
    rate.settle(100, 90)
    assert await asyncio.gather(*waiting) == pytest.approx([1.0, 2.0], abs=0.01)


async def test_tokens_used_beyond_the_reserved_ones_prolong_the_wait() -> None:
    rate = token_limit(tpm=600.0, token_burst=100)
    assert rate.try_acquire(100)
    waiting = [asyncio.create_task(spend(rate, tokens)) for tokens in (20, 10)]
    await asyncio.sleep(0.5)
    rate.settle(100, 107)
    assert await asyncio.gather(*waiting) == pytest.approx([2.7, 3.7], abs=0.01)


async def test_a_newcomer_does_not_overtake_a_waiter_whose_turn_is_due() -> None:
    rate = token_limit(tpm=600.0, token_burst=100)
    assert rate.try_acquire(100)
    waiting = asyncio.create_task(spend(rate, 50))
    await asyncio.sleep(0.1)
    rate.settle(100, 0)
    assert not rate.try_acquire(1)
    assert await waiting == pytest.approx(0.1)
    assert rate.try_acquire(1)


async def test_a_newcomer_is_judged_by_the_whole_queue_before_it() -> None:
    rate = token_limit(tpm=600.0, token_burst=100, max_wait=6.0)
    assert rate.try_acquire(100)
    waiting = [asyncio.create_task(spend(rate, 20)) for _ in range(2)]
    await asyncio.sleep(0.0)
    with pytest.raises(RateLimitedError) as refused:
        await spend(rate, 21)
    assert refused.value.retry_after == pytest.approx(6.1, abs=0.01)
    rate.settle(100, 90)
    waiting.append(asyncio.create_task(spend(rate, 21)))
    assert await asyncio.gather(*waiting) == pytest.approx([1.0, 3.0, 5.1], abs=0.01)


async def test_a_newcomer_is_judged_by_what_the_queue_owes() -> None:
    rate = LocalRateLimiter("llm", LimitPolicy(rpm=60.0, burst=1, max_wait=12.0), owed=(10.0, 0.0))
    waiting = [asyncio.create_task(turn(rate)) for _ in range(3)]
    await asyncio.sleep(0.0)
    with pytest.raises(RateLimitedError) as refused:
        await turn(rate)
    assert refused.value.retry_after == pytest.approx(13.0, abs=0.01)
    assert await asyncio.gather(*waiting) == pytest.approx([10.0, 11.0, 12.0], abs=0.01)


async def test_a_cancelled_waiter_keeps_no_tokens() -> None:
    rate = token_limit(tpm=600.0, token_burst=100)
    assert rate.try_acquire(100)
    waiting = [asyncio.create_task(spend(rate, 30)) for _ in range(3)]
    await asyncio.sleep(0.5)
    for task in waiting[:2]:
        task.cancel()
    assert await waiting[2] == pytest.approx(3.0, abs=0.01)
    assert rate.waiting == (0, 0)
    assert rate.try_acquire(0)
