"""After a 429: no call goes before the time, one goes first, and no attempt is wasted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    CircuitOpenError,
    ConcurrencyPolicy,
    Guard,
    LimitPolicy,
    RateLimitedError,
)
from lightrag_resilience.failures.classifier import Failure, FailureKind
from support.guards import Scripted, down, guard_on_loop, now, outcomes

pytestmark = pytest.mark.anyio


class Throttled(Exception):  # noqa: N818 - a 429
    def __init__(self, seconds: float | None) -> None:
        super().__init__("429")
        self.__resilience_failure__ = Failure(FailureKind.THROTTLED, seconds)


async def throttle(guard: Guard, seconds: float | None = 5.0) -> None:
    """One call of another caller is throttled now."""
    with pytest.raises(Throttled):
        await guard.call(Scripted(Throttled(seconds)))


def stands_still(guard: Guard) -> bool:
    assert guard._loop_state is not None
    return guard._loop_state.controller is not None


async def test_no_call_goes_during_a_cooldown_and_then_one_canary() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    function = Scripted(1.0)
    await outcomes(guard.call(function) for _ in range(4))
    first, *others = function.at
    assert 5.0 <= first <= 5.5
    assert others == pytest.approx([first + 1.0] * 3)
    assert not stands_still(guard)


async def test_the_remaining_cooldown_is_visible() -> None:
    guard = guard_on_loop()
    assert guard.occupancy.cooldown_remaining == 0
    await throttle(guard)
    assert guard.occupancy.cooldown_remaining == 5.0
    await asyncio.sleep(2.0)
    assert guard.occupancy.cooldown_remaining == 3.0
    await asyncio.sleep(9.0)
    assert guard.occupancy.cooldown_remaining == 0


async def test_a_call_in_flight_is_not_affected_by_a_cooldown() -> None:
    guard = guard_on_loop()
    slow = asyncio.create_task(guard.call(Scripted(3.0, "done")))
    await asyncio.sleep(1.0)
    await throttle(guard)
    await slow
    assert now() == 3.0
    assert stands_still(guard)


async def test_a_retry_waits_in_the_queue_of_the_cooldown() -> None:
    guard = guard_on_loop(attempts=2)
    function = Scripted(Throttled(5.0), "fine")
    assert await guard.call(function) == "fine"
    assert function.calls == 2
    assert function.at[1] >= 5.0


async def test_a_throttled_canary_costs_the_waiting_calls_no_attempt() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    function = Scripted(Throttled(5.0), Throttled(5.0), "fine")
    results = await outcomes(guard.call(function) for _ in range(5))
    assert [type(result) for result in results] == [Throttled, Throttled, str, str, str]
    assert 15.0 <= function.at[2] <= 16.5
    assert function.at[2:] == pytest.approx([function.at[2]] * 3)


async def test_a_minute_of_429s_costs_one_canary_each_5_seconds() -> None:
    guard = guard_on_loop(attempts=4, limit=LimitPolicy(max_wait=300.0))
    sent: list[float] = []

    async def provider() -> str:
        sent.append(now())
        if now() < 60.0:
            raise Throttled(5.0)
        return "fine"

    results = await outcomes(guard.call(provider) for _ in range(20))
    assert results == ["fine"] * 20
    assert sum(at < 60.0 for at in sent) == pytest.approx(12, abs=1)
    assert guard.breaker.state.value == "closed"


@pytest.mark.parametrize("failure", [down(), ValueError("mine")])
async def test_a_canary_that_fails_otherwise_lets_the_next_go(failure: Exception) -> None:
    guard = guard_on_loop()
    await throttle(guard)
    results = await outcomes(guard.call(Scripted(failure, "fine")) for _ in range(2))
    assert results == [failure, failure]
    assert now() <= 5.5


async def test_a_cancelled_canary_lets_the_next_go() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    first = asyncio.create_task(guard.call(Scripted(100.0)))
    other = asyncio.create_task(guard.call(Scripted("fine")))
    await asyncio.sleep(6.0)
    first.cancel()
    await other
    assert now() == 6.0


async def test_a_cancelled_waiter_leaves_the_cooldown_queue() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    waiters = [asyncio.create_task(guard.call(Scripted("fine"))) for _ in range(3)]
    await asyncio.sleep(1.0)
    waiters[0].cancel()
    await asyncio.wait(waiters)
    assert [task.cancelled() for task in waiters] == [True, False, False]
    assert not stands_still(guard)


async def test_a_cooldown_longer_than_max_wait_rejects_at_once_with_its_seconds() -> None:
    guard = guard_on_loop(limit=LimitPolicy(max_wait=4.0))
    await throttle(guard)
    with pytest.raises(RateLimitedError, match="as the provider throttles") as caught:
        await guard.call(Scripted("fine"))
    assert caught.value.retry_after == pytest.approx(5.0)
    assert now() == 0.0


async def test_a_cooldown_that_is_prolonged_past_max_wait_rejects_then() -> None:
    guard = guard_on_loop(limit=LimitPolicy(max_wait=7.0))
    await throttle(guard)
    first = asyncio.create_task(guard.call(Scripted(100.0)))
    await asyncio.sleep(0)
    with pytest.raises(RateLimitedError):
        await guard.call(Scripted("fine"))
    assert now() == 7.0
    first.cancel()


async def test_a_call_waits_for_a_cooldown_until_its_deadline_only() -> None:
    guard = guard_on_loop(total_timeout=3.0)
    await throttle(guard)
    with pytest.raises(RateLimitedError):
        await guard.call(Scripted("fine"))
    assert now() == 0.0


async def test_a_cooldown_of_days_is_not_waited_for() -> None:
    guard = guard_on_loop(limit=LimitPolicy(max_wait=300.0))
    await throttle(guard, 86_400.0)
    await guard.call(Scripted("fine"))
    assert now() <= 60.5


async def test_a_429_without_a_wait_begins_no_cooldown() -> None:
    guard = guard_on_loop()
    await throttle(guard, None)
    assert not stands_still(guard)
    await guard.call(Scripted("fine"))
    assert now() == 0.0


async def test_a_canary_whose_429_has_no_wait_ends_the_cooldown() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    with pytest.raises(Throttled):
        await guard.call(Scripted(Throttled(None)))
    await guard.call(Scripted("fine"))
    assert now() <= 5.5


async def test_the_breaker_is_asked_again_after_a_cooldown_and_the_next_call_is_canary() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    waiting = [asyncio.create_task(guard.call(Scripted("fine"))) for _ in range(2)]
    await asyncio.sleep(1.0)
    guard.breaker.open()
    results: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [CircuitOpenError] * 2
    assert now() <= 6.0


async def test_bulkhead_and_cooldown_hold_together() -> None:
    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=1))
    await throttle(guard)
    function = Scripted(1.0)
    await outcomes(guard.call(function) for _ in range(3))
    assert function.gaps() == pytest.approx([1.0, 1.0])
    assert stands_still(guard)


async def test_a_guarded_block_waits_for_a_cooldown_too() -> None:
    guard = guard_on_loop()
    with pytest.raises(Throttled):
        async with guard:
            raise Throttled(5.0)
    async with guard:
        assert now() >= 5.0


@pytest.mark.parametrize(
    "limits",
    [
        {"concurrency": ConcurrencyPolicy(max_concurrent=1)},
        {"limit": LimitPolicy(rpm=60.0, burst=1, max_wait=600.0)},
        {
            "concurrency": ConcurrencyPolicy(max_concurrent=2),
            "limit": LimitPolicy(rpm=60.0, burst=1, max_wait=600.0),
        },
    ],
    ids=["for a permit", "for a turn", "for both"],
)
async def test_calls_already_in_a_queue_wait_for_a_cooldown_too(limits: Any) -> None:
    guard = guard_on_loop(**limits)
    function = Scripted(Throttled(20.0), 1.0)
    answers = await outcomes(guard.call(function) for _ in range(6))
    assert isinstance(answers[0], Throttled)
    assert answers[1:] == [1.0] * 5
    first, second, *others = function.at
    assert first == 0.0
    assert 20.0 <= second <= 21.0
    assert min(others) >= second + 1.0


async def test_calls_queued_under_the_previous_policy_wait_for_a_cooldown_too() -> None:
    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=1))
    function = Scripted(2.0)
    waiting = [asyncio.create_task(guard.call(function)) for _ in range(3)]
    await asyncio.sleep(1.0)
    guard.update_policy(guard.policy.with_changes(max_concurrent=2))
    guard.cool_down(20.0)
    waiting += [asyncio.create_task(guard.call(function)) for _ in range(2)]
    await asyncio.gather(*waiting)
    begun, first, *others = function.at
    assert begun == 0.0
    assert 21.0 <= first <= 21.6
    assert min(others) >= first + 2.0  # in whichever queue they wait, one canary goes first


async def test_the_first_item_of_a_canary_stream_ends_the_cooldown() -> None:
    async def words() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(60.0)
        yield "two"

    guard = guard_on_loop()
    await throttle(guard)
    stream = await guard.call(words)
    began = now()
    function = Scripted(1.0)
    await outcomes(guard.call(function) for _ in range(3))
    assert function.at == [began] * 3
    assert [word async for word in stream] == ["one", "two"]


async def test_a_canary_without_a_result_lets_the_next_go_after_a_while() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    function = Scripted(60.0)
    calls = [asyncio.create_task(guard.call(function)) for _ in range(4)]
    await asyncio.gather(*calls)
    first, *others = function.at
    assert 5.0 <= first <= 5.5
    assert others == pytest.approx([first + 5.0, first + 10.0, first + 15.0])


async def test_the_success_of_any_canary_ends_the_cooldown() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    calls = [asyncio.create_task(guard.call(Scripted(6.0))) for _ in range(2)]
    await asyncio.sleep(5.5 + 5.0)
    function = Scripted(0.1)
    await guard.call(function)
    assert function.at[0] < 12.0
    assert guard._loop_state is not None
    controller = guard._loop_state.controller or guard._loop_state._controller
    await asyncio.gather(*calls)
    assert controller is not None
    assert not controller.cooldown._canaries


async def test_a_canary_sent_before_the_newest_429_does_not_end_the_cooldown() -> None:
    guard = guard_on_loop()
    await throttle(guard)
    slow = asyncio.create_task(guard.call(Scripted(9.0)))
    await asyncio.sleep(5.6)
    second = Scripted(Throttled(20.0))
    with pytest.raises(Throttled):
        await guard.call(second)
    assert 10.0 <= second.at[0] <= 10.6
    await slow
    third = Scripted("answer")
    await guard.call(third)
    assert third.at[0] >= second.at[0] + 20.0


async def test_a_cooldown_of_less_than_a_second_is_waited_for() -> None:
    guard = guard_on_loop()
    await throttle(guard, 0.25)
    function = Scripted("fine")
    await guard.call(function)
    assert 0.25 <= function.at[0] <= 0.275


async def test_a_second_429_prolongs_a_cooldown_and_never_shortens_it() -> None:
    guard = guard_on_loop()
    later, sooner = (asyncio.create_task(throttle_at(guard, *each)) for each in ((1, 20), (2, 3)))
    await asyncio.sleep(0)
    await throttle(guard, 5.0)
    function = Scripted("fine")
    await asyncio.gather(guard.call(function), later, sooner)
    assert 21.0 <= function.at[0] <= 21.5


async def throttle_at(guard: Guard, at: float, seconds: float) -> None:
    """Under way by now, and throttled then."""

    async def ask() -> None:
        await asyncio.sleep(at)
        raise Throttled(seconds)

    with pytest.raises(Throttled):
        await guard.call(ask)


@pytest.mark.parametrize(("seconds", "spread"), [(0.2, 0.02), (3.0, 0.3), (20.0, 0.5)])
async def test_canaries_of_several_workers_are_staggered(seconds: float, spread: float) -> None:
    guards = [guard_on_loop() for _ in range(50)]
    await asyncio.gather(*(throttle(guard, seconds) for guard in guards))
    functions = [Scripted("fine") for _ in guards]
    calls = zip(guards, functions, strict=True)
    await asyncio.gather(*(guard.call(function) for guard, function in calls))
    went = sorted(function.at[0] - seconds for function in functions)
    assert went[0] >= 0
    assert went[-1] <= spread
    assert went[-1] - went[0] > spread / 2  # of 50 that are spread evenly


@pytest.mark.parametrize("waits", ["before its turn", "between its turn and its permit"])
async def test_a_call_that_waited_for_a_limit_waits_for_a_later_429_too(waits: str) -> None:
    guard = guard_on_loop(
        concurrency=ConcurrencyPolicy(max_concurrent=1),
        limit=LimitPolicy(rpm=600.0, burst=1, max_wait=600.0),
    )
    holder = asyncio.create_task(guard.call(Scripted(2.0)))
    await asyncio.sleep(0.05 if waits == "before its turn" else 0.5)
    function = Scripted("fine")
    waiting = asyncio.create_task(guard.call(function))
    await asyncio.sleep(1.0)
    guard.cool_down(30.0)
    async with asyncio.timeout(100):
        await asyncio.gather(holder, waiting)
    assert 31.0 <= function.at[0] <= 33.0
