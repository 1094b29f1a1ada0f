"""One timer for many calls: each ends when its own time is up, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightrag_resilience import Guards, Policy, TimeoutPolicy
from lightrag_resilience.config.settings import Settings
from lightrag_resilience.timeouts.attempt_timer import Timed, Timer
from lightrag_resilience.timeouts.loop_timers import LoopTimersRegistry
from support.guards import now

pytestmark = pytest.mark.anyio


def timer(seconds: float) -> Timer:
    loop = asyncio.get_running_loop()
    return Timer(seconds, loop, loop.time)


async def timed(timer: Timer, work: Callable[[], Awaitable[object]]) -> str:
    """How work under a timer ends."""
    call = Timed()
    timer.start(call, now())
    try:
        await work()
    except asyncio.CancelledError:
        if timer.stop(call):
            return "timeout"
        raise
    return "timeout at the last moment" if timer.stop(call) else "done"


def sleeping(seconds: float) -> Callable[[], Awaitable[object]]:
    return lambda: asyncio.sleep(seconds)


async def test_what_takes_too_long_is_ended_in_time() -> None:
    assert await timed(timer(5.0), sleeping(60)) == "timeout"
    assert now() == 5.0
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_call_that_ends_in_time_is_not_cancelled() -> None:
    assert await timed(timer(5.0), sleeping(4.9)) == "done"
    await asyncio.sleep(60)


async def test_each_of_many_calls_has_its_own_time() -> None:
    shared = timer(5.0)

    async def call(start: float, seconds: float) -> tuple[str, float]:
        await asyncio.sleep(start)
        return await timed(shared, sleeping(seconds)), now()

    results = await asyncio.gather(*(call(start, 4.0 if start % 2 else 9.0) for start in range(10)))
    assert results == [
        ("done", start + 4.0) if start % 2 else ("timeout", start + 5.0) for start in range(10)
    ]
    assert not shared.running()


async def test_one_timer_is_armed_for_all() -> None:
    shared, armed = timer(5.0), list[float]()
    call_later = shared.loop.call_later

    def noted(delay: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
        armed.append(delay)
        return call_later(delay, *rest, **options)

    shared.loop.call_later = noted  # type: ignore[assignment, method-assign]
    calls = [Timed() for _ in range(1000)]
    for call in calls:
        shared.start(call, now())
    for call in calls:
        assert not shared.stop(call)
    assert armed == [5.0]


async def test_a_foreign_cancellation_is_no_timeout() -> None:
    shared = timer(5.0)
    task = asyncio.create_task(timed(shared, sleeping(60)))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not shared.running()


async def test_a_cancellation_at_the_same_moment_wins_over_the_timeout() -> None:
    task = asyncio.create_task(timed(timer(5.0), sleeping(60)))
    asyncio.get_running_loop().call_at(5.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_result_at_the_last_moment_takes_the_cancellation_back() -> None:
    shared, call = timer(5.0), Timed()
    shared.start(call, now())
    task = asyncio.current_task()
    assert task is not None
    shared._fire()
    await asyncio.sleep(0)
    shared.start(call, now() - 5.0)
    shared._fire()
    assert call.expired
    assert task.cancelling() == 1
    assert shared.stop(call)
    assert task.cancelling() == 0


async def test_timeouts_inside_each_other_end_the_inner_one_first() -> None:
    outer, inner = timer(9.0), timer(3.0)
    assert await timed(outer, lambda: timed(inner, sleeping(60))) == "done"
    assert now() == 3.0


async def test_the_timer_works_inside_asyncio_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await timed(timer(5.0), sleeping(60))
    assert now() == 2.0
    async with asyncio.timeout(20):
        assert await timed(timer(5.0), sleeping(60)) == "timeout"


async def test_calls_with_equal_timeouts_share_a_timer_across_guards() -> None:
    loop = asyncio.get_running_loop()
    registry = Guards(settings=Settings(), clock=loop.time)
    policy = Policy(timeout=TimeoutPolicy(attempt=5.0))
    one, two = registry.get("llm.one", policy), registry.get("storage.two", policy)
    calls = [asyncio.create_task(guard.call(asyncio.sleep, 3)) for guard in (one, two)]
    await asyncio.sleep(1)
    timer = registry.loop_timers.for_loop(loop).timer(5.0)
    assert [timed.name for timed in timer.running()] == ["llm.one", "storage.two"]
    assert registry.loop_timers.running() == timer.running()
    await asyncio.gather(*calls)
    assert registry.loop_timers.running() == []


async def test_a_timer_is_of_one_loop_and_one_duration() -> None:
    loop, other = asyncio.get_running_loop(), asyncio.new_event_loop()
    homes = LoopTimersRegistry(loop.time)
    try:
        found = [
            homes.for_loop(loop).timer(5.0),
            homes.for_loop(loop).timer(6.0),
            homes.for_loop(other).timer(5.0),
        ]
        assert [(timer.loop, timer.seconds) for timer in found] == [
            (loop, 5.0),
            (loop, 6.0),
            (other, 5.0),
        ]
        assert homes.for_loop(loop).timer(5.0) is found[0]
    finally:
        other.close()


async def test_loops_that_are_closed_are_forgotten_with_their_timers() -> None:
    closed = [asyncio.new_event_loop() for _ in range(3)]
    homes = LoopTimersRegistry(now)
    for loop in closed:
        homes.for_loop(loop)
        loop.close()
    homes.for_loop(asyncio.get_running_loop())
    assert list(homes._by_loop) == [asyncio.get_running_loop()]
