"""One timer for all waits of a stream, armed seldom: each wait ends when its own time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.testing import VirtualTimeLoop
from lightrag_resilience.timeouts.idle_timer import IdleTimer
from support.guards import now

pytestmark = pytest.mark.anyio

GAP = 5.0
NEVER = float("inf")


def gap_timer(*, seconds: float = GAP, until: float = NEVER) -> IdleTimer:
    loop = asyncio.get_running_loop()
    return IdleTimer(seconds, until, loop, loop.time)


async def waited(idle_timer: IdleTimer, seconds: float) -> bool:
    """Whether a wait of so many seconds ended in time."""
    idle_timer.start()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if idle_timer.stop():
            return False
        raise
    assert not idle_timer.stop()
    return True


def on_virtual_time(steps: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(steps)


def armed() -> list[float]:
    """When a timer will ring."""
    loop: Any = asyncio.get_running_loop()
    return sorted(handle.when() for handle in loop._scheduled if not handle.cancelled())


def noting_arms(idle_timer: IdleTimer) -> list[float]:
    """When the timer of `idle_timer` was armed, from now on."""
    loop: Any = asyncio.get_running_loop()
    call_later, arms = loop.call_later, list[float]()

    def noting(delay: float, callback: Any, *args: Any, **options: Any) -> Any:
        if callback == idle_timer._fire:
            arms.append(now())
        return call_later(delay, callback, *args, **options)

    loop.call_later = noting
    return arms


async def test_a_wait_that_lasts_too_long_is_cancelled_in_time() -> None:
    idle_timer = gap_timer()
    assert not await waited(idle_timer, 60.0)
    assert now() == GAP
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_the_timer_is_armed_once_per_timeout_for_any_number_of_waits() -> None:
    idle_timer = gap_timer()
    arms = noting_arms(idle_timer)
    for _ in range(1000):
        assert await waited(idle_timer, 0.015625)
    assert now() == 15.625
    assert arms == pytest.approx([0.0, 5.0, 10.0, 15.0], abs=0.1)


async def test_each_wait_has_its_own_time_wherever_the_timer_was_armed_for() -> None:
    idle_timer = gap_timer()
    for _ in range(3):
        assert await waited(idle_timer, 4.0)
    assert not await waited(idle_timer, 60.0)
    assert now() == 3 * 4.0 + GAP


async def test_a_slow_reader_costs_the_source_no_time() -> None:
    idle_timer = gap_timer()
    assert await waited(idle_timer, 1.0)
    await asyncio.sleep(100.0)
    assert armed() == []
    assert await waited(idle_timer, 4.0)
    assert not await waited(idle_timer, 60.0)
    assert now() == 1.0 + 100.0 + 4.0 + GAP


async def test_no_wait_lasts_beyond_the_end_of_the_stream() -> None:
    idle_timer = gap_timer(until=7.0)
    assert await waited(idle_timer, 4.0)
    assert not await waited(idle_timer, 60.0)
    assert now() == 7.0


async def test_without_timeouts_no_timer_is_armed() -> None:
    idle_timer = gap_timer(seconds=NEVER)
    assert await waited(idle_timer, 1e6)
    assert armed() == []


async def test_a_closed_timer_leaves_nothing_behind() -> None:
    idle_timer = gap_timer()
    assert await waited(idle_timer, 1.0)
    idle_timer.close()
    idle_timer.close()
    assert armed() == []


async def test_a_dropped_timer_ends_when_it_next_fires() -> None:
    assert await waited(gap_timer(), 1.0)
    assert armed() == [GAP]
    await asyncio.sleep(60.0)
    assert armed() == []


async def test_a_foreign_cancellation_is_passed_on() -> None:
    idle_timer = gap_timer()
    task = asyncio.create_task(waited(idle_timer, 60.0))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_foreign_cancellation_at_the_same_moment_is_passed_on() -> None:
    task = asyncio.create_task(waited(gap_timer(), 60.0))
    asyncio.get_running_loop().call_at(GAP, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_item_at_the_last_moment_takes_the_cancellation_back() -> None:
    idle_timer, task = gap_timer(), asyncio.current_task()
    assert task is not None
    idle_timer.start()
    idle_timer._due = now()
    idle_timer._fire()
    assert task.cancelling() == 1
    assert idle_timer.stop()
    assert task.cancelling() == 0
    assert not idle_timer.stop()


async def test_a_resumed_wait_has_its_whole_time_again() -> None:
    idle_timer = gap_timer()
    task = asyncio.create_task(waited(idle_timer, 60.0))
    await asyncio.sleep(4.0)
    idle_timer.pause()
    await asyncio.sleep(20.0)
    assert armed() == [60.0]  # what the task itself waits for
    idle_timer.resume(now())
    assert not await task
    assert now() == 24.0 + GAP


async def test_a_pause_that_outlives_its_wait_starts_no_other() -> None:
    idle_timer = gap_timer()
    idle_timer.start()
    idle_timer.pause()
    assert not idle_timer.stop()
    idle_timer.resume(now())
    idle_timer.pause()
    idle_timer.resume(now())
    await asyncio.sleep(60.0)


async def test_closing_the_timer_does_not_shorten_the_wait_under_way() -> None:
    idle_timer = gap_timer()
    task = asyncio.create_task(waited(idle_timer, 60.0))
    await asyncio.sleep(1.0)
    idle_timer.close()
    assert not await task
    assert now() == GAP
    assert armed() == []


SECONDS = st.integers(0, 60).map(lambda eighths: eighths / 8 + 0.0625)


@given(
    steps=st.lists(st.tuples(SECONDS, SECONDS), max_size=12),
    until=st.one_of(st.just(NEVER), SECONDS.map(lambda seconds: seconds * 4 + 0.03125)),
)
def test_the_timer_cancels_what_a_timer_for_each_wait_would_cancel(
    steps: list[tuple[float, float]], until: float
) -> None:
    async def seldom_armed() -> list[tuple[bool, float]]:
        idle_timer, seen = gap_timer(until=until), list[tuple[bool, float]]()
        for elsewhere, wait in steps:
            await asyncio.sleep(elsewhere)
            if now() >= until:
                break
            seen.append((await waited(idle_timer, wait), now()))
        assert len(armed()) <= 1
        idle_timer.close()
        assert armed() == []
        return seen

    async def armed_for_each() -> list[tuple[bool, float]]:
        seen = list[tuple[bool, float]]()
        for elsewhere, wait in steps:
            await asyncio.sleep(elsewhere)
            if now() >= until:
                break
            try:
                async with asyncio.timeout_at(min(now() + GAP, until)):
                    await asyncio.sleep(wait)
            except TimeoutError:
                seen.append((False, now()))
            else:
                seen.append((True, now()))
        return seen

    assert on_virtual_time(seldom_armed()) == on_virtual_time(armed_for_each())
