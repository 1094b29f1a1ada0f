"""A cancelled caller: the cancellation passes unchanged in every phase, and is no failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import pytest

from lightrag_resilience import ConcurrencyPolicy, Guard, LimitPolicy, RetryPolicy, State
from lightrag_resilience.timeouts.idle_timer import IdleTimer
from support.guards import Scripted, down, guard_on_loop, now

pytestmark = pytest.mark.anyio

HANGING = 3600.0
Phase = Callable[[Guard], Coroutine[Any, Any, Any]]


async def in_the_function(guard: Guard) -> None:
    await guard.call(Scripted(HANGING))


async def in_a_block(guard: Guard) -> None:
    async with guard:
        await asyncio.sleep(HANGING)


async def queued_for_the_rate(guard: Guard) -> None:
    await guard.call(Scripted("uses up the minute"))
    await guard.call(Scripted(None))


async def queued_for_a_permit(guard: Guard) -> None:
    neighbour = asyncio.create_task(guard.call(Scripted(40.0)))
    await asyncio.sleep(0)
    try:
        await guard.call(Scripted(None))
    finally:
        neighbour.cancel()


async def between_attempts(guard: Guard) -> None:
    await guard.call(Scripted(down()))


async def words(*waits: float) -> AsyncIterator[str]:
    for wait in waits:
        await asyncio.sleep(wait)
        yield "word"


async def before_the_first_item(guard: Guard) -> None:
    await guard.call(words, HANGING)


async def between_items(guard: Guard) -> None:
    async for _ in await guard.call(words, 0.0, HANGING):
        pass


PHASES: dict[Phase, dict[str, Any]] = {
    in_the_function: {},
    in_a_block: {},
    queued_for_the_rate: {"limit": LimitPolicy(rpm=1.0, burst=1, max_wait=600.0)},
    queued_for_a_permit: {"concurrency": ConcurrencyPolicy(max_concurrent=1, max_wait=600.0)},
    between_attempts: {"retry": RetryPolicy(jitter="none", initial_backoff=60.0, max_backoff=60.0)},
    before_the_first_item: {},
    between_items: {},
}
in_every_phase = pytest.mark.parametrize(
    ("phase", "policy"), PHASES.items(), ids=[phase.__name__ for phase in PHASES]
)
WITH_TIMEOUT = {"attempt_timeout": 1800.0, "total_timeout": 2000.0}


def owners_of_armed_timers() -> list[Any]:
    loop: Any = asyncio.get_running_loop()
    armed = [handle for handle in loop._scheduled if not handle.cancelled()]
    return [getattr(handle._callback, "__self__", None) for handle in armed]


async def begun(phase: Phase, policy: dict[str, Any]) -> tuple[Guard, asyncio.Task[Any]]:
    guard = guard_on_loop(**(WITH_TIMEOUT | policy))
    task = asyncio.create_task(phase(guard))
    await asyncio.sleep(10.0)
    assert not task.done()
    return guard, task


@in_every_phase
async def test_a_cancelled_call_raises_what_cancelled_it(phase: Phase, policy: Any) -> None:
    _, task = await begun(phase, policy)
    task.cancel("the user left")
    with pytest.raises(asyncio.CancelledError, match="the user left"):
        await task
    assert task.cancelled()
    assert now() == 10.0


@in_every_phase
async def test_a_cancelled_call_is_no_verdict(phase: Phase, policy: Any) -> None:
    guard, task = await begun(phase, policy)
    before = guard.breaker.snapshot()
    task.cancel()
    await asyncio.wait([task])
    after = guard.breaker.snapshot()
    assert (after.calls, after.failed) == (before.calls, before.failed)
    assert after.state is State.CLOSED


@in_every_phase
async def test_a_cancelled_call_releases_its_permit_and_its_timer(
    phase: Phase, policy: Any
) -> None:
    guard, task = await begun(phase, policy)
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    parts = guard._loop_state
    assert parts is not None
    assert parts.timer is not None
    assert not parts.timer.running()
    assert not any(isinstance(owner, IdleTimer) for owner in owners_of_armed_timers())
    assert (guard.occupancy.in_use, guard.occupancy.waiting) == (0, 0)


@in_every_phase
async def test_asyncios_timeout_around_it_works(phase: Phase, policy: Any) -> None:
    guard = guard_on_loop(**(WITH_TIMEOUT | policy))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10.0):
            await phase(guard)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@in_every_phase
async def test_anyios_cancel_scope_around_it_works(phase: Phase, policy: Any) -> None:
    guard = guard_on_loop(**(WITH_TIMEOUT | policy))
    with anyio.move_on_after(10.0) as scope:
        await phase(guard)
    assert scope.cancelled_caught
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "phase", [in_the_function, in_a_block, before_the_first_item, between_items]
)
async def test_a_cancelled_probe_frees_its_slot_at_once(phase: Phase) -> None:
    guard = guard_on_loop()
    guard.breaker.open()
    await asyncio.sleep(5.0)
    task = asyncio.create_task(phase(guard))
    await asyncio.sleep(1.0)
    assert guard.breaker.snapshot().probes == 1
    task.cancel()
    await asyncio.wait([task])
    assert guard.breaker.snapshot().state is State.HALF_OPEN
    assert await guard.call(Scripted("fine")) == "fine"
    assert guard.breaker.state is State.CLOSED


@pytest.mark.parametrize("phase", [in_the_function, in_a_block, before_the_first_item])
async def test_a_cancellation_at_the_moment_of_the_timeout_is_not_lost(phase: Phase) -> None:
    guard = guard_on_loop(attempt_timeout=5.0)
    task = asyncio.create_task(phase(guard))
    await asyncio.sleep(1.0)
    asyncio.get_running_loop().call_at(5.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_many_cancellations_never_open_the_circuit() -> None:
    guard = guard_on_loop(consecutive_failures=2)
    for _ in range(50):
        task = asyncio.create_task(guard.call(Scripted(HANGING)))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert guard.breaker.snapshot().calls == 0


async def test_a_function_that_swallows_its_timeout_keeps_its_result() -> None:
    guard = guard_on_loop(attempt_timeout=5.0)

    async def stubborn() -> str:
        try:
            await asyncio.sleep(HANGING)
        except asyncio.CancelledError:
            return "late, but here"
        return ""

    assert await guard.call(stubborn) == "late, but here"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cleanup_that_takes_long_is_waited_for() -> None:
    guard, cleaned = guard_on_loop(attempt_timeout=5.0), list[float]()

    async def tidy() -> None:
        try:
            await asyncio.sleep(HANGING)
        finally:
            await asyncio.sleep(2.0)
            cleaned.append(now())

    task = asyncio.create_task(guard.call(tidy))
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert cleaned == [3.0]
