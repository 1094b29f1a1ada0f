"""The order of the policies around a call, and that each outcome settles all of them."""

from __future__ import annotations

import asyncio
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    BulkheadFullError,
    CircuitOpenError,
    ConcurrencyPolicy,
    DeadlineExceededError,
    Guard,
    LimitPolicy,
    RateLimitedError,
    ShuttingDownError,
    State,
)
from lightrag_resilience.calls.call_context import current_call, inside_guarded_call
from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    CallFailed,
    CallSucceeded,
    StateChanged,
)
from support.guards import Scripted, down, guard_on_loop, now, outcomes, patient, published_by

pytestmark = pytest.mark.anyio

ONE_PERMIT = ConcurrencyPolicy(max_concurrent=1)
SMALL = BreakerPolicy(window_calls=4, min_calls=4, consecutive_failures=None)


async def as_block(guard: Guard, function: Callable[[], Any]) -> Any:
    async with guard:
        return await function()


async def as_call(guard: Guard, function: Callable[[], Any]) -> Any:
    return await guard.call(function)


both_ways = pytest.mark.parametrize("run", [as_call, as_block])


def free_permits(guard: Guard) -> int:
    occupancy = guard.occupancy
    assert occupancy.limit is not None
    return occupancy.limit - occupancy.in_use


# ---------------------------------------------------------------------- success and failure


@both_ways
async def test_a_success_is_passed_on_and_remembered(run: Any) -> None:
    guard = guard_on_loop()
    published = published_by(guard)
    assert await run(guard, Scripted(2.0)) == 2.0
    assert guard.breaker.snapshot().calls == 1
    assert published == [CallSucceeded("llm", 2.0)]


@both_ways
async def test_a_failure_is_passed_on_and_remembered(run: Any) -> None:
    guard, error = guard_on_loop(), down()
    published = published_by(guard)
    with pytest.raises(ConnectionRefusedError) as raised:
        await run(guard, Scripted(error))
    assert raised.value is error
    assert guard.breaker.snapshot().failed == 1
    assert published == [
        AttemptFailed("llm", "transient", "ConnectionRefusedError", 0.0),
        CallFailed("llm", "transient", 0.0),
    ]


@both_ways
async def test_the_callers_own_mistake_is_no_failure_of_the_dependency(run: Any) -> None:
    guard = guard_on_loop()
    with pytest.raises(ValueError, match="mine"):
        await run(guard, Scripted(ValueError("mine")))
    assert guard.breaker.snapshot().calls == 0


@both_ways
async def test_an_open_circuit_rejects_before_anything_else(run: Any) -> None:
    guard = guard_on_loop(rpm=1.0, concurrency=ONE_PERMIT)
    guard.breaker.open("for a test")
    published, function = published_by(guard), Scripted(None)
    with pytest.raises(CircuitOpenError, match="for a test; next probe in"):
        await run(guard, function)
    assert function.calls == 0
    assert published == [AttemptRejected("llm", "CircuitOpenError")]


@both_ways
async def test_calls_trip_the_breaker_and_a_probe_closes_it(run: Any) -> None:
    guard = guard_on_loop(consecutive_failures=2)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await run(guard, Scripted(down()))
    published = published_by(guard)
    await asyncio.sleep(5.0)
    await run(guard, Scripted("fine"))
    states = [event.new for event in published if isinstance(event, StateChanged)]
    assert states == ["half-open", "closed"]


async def test_callers_at_once_meet_one_probe() -> None:
    guard = guard_on_loop()
    guard.breaker.open()
    await asyncio.sleep(5.0)
    function = Scripted(1.0)
    results = await outcomes(guard.call(function) for _ in range(50))
    assert function.calls == 1
    assert [type(result) for result in results].count(CircuitOpenError) == 49
    assert guard.breaker.state is State.CLOSED


async def test_refuse_if_open_makes_no_call() -> None:
    guard = guard_on_loop()
    guard.refuse_if_open()
    guard.breaker.open()
    with pytest.raises(CircuitOpenError):
        guard.refuse_if_open()
    await asyncio.sleep(5.0)
    guard.refuse_if_open()
    assert guard.breaker.state is State.OPEN


# ---------------------------------------------------------------------- time


@both_ways
async def test_a_hanging_call_ends_at_its_attempt_timeout(run: Any) -> None:
    guard = guard_on_loop(attempt_timeout=7.0)
    with pytest.raises(AttemptTimeoutError) as ended:
        await run(guard, Scripted(3600.0))
    assert now() == 7.0
    assert not isinstance(ended.value, TimeoutError | OSError)
    assert isinstance(ended.value.__cause__, asyncio.CancelledError)
    assert guard.breaker.snapshot().failed == 1


@both_ways
async def test_the_total_timeout_ends_an_attempt_if_it_is_shorter(run: Any) -> None:
    guard = guard_on_loop(attempt_timeout=7.0, total_timeout=4.0)
    with pytest.raises(DeadlineExceededError, match="after 4 s"):
        await run(guard, Scripted(3600.0))
    assert now() == 4.0
    assert guard.breaker.snapshot().failed == 1


@both_ways
async def test_the_functions_own_timeout_stays_its_own(run: Any) -> None:
    guard, own = guard_on_loop(attempt_timeout=7.0), TimeoutError("from inside")
    with pytest.raises(TimeoutError) as raised:
        await run(guard, Scripted(own))
    assert raised.value is own


async def test_a_last_attempt_cut_short_by_the_deadline_does_not_blame_the_dependency() -> None:
    guard = guard_on_loop(attempts=3, attempt_timeout=6.0, total_timeout=10.0)

    async def fail_late() -> None:
        await asyncio.sleep(5.0)
        raise down()

    with pytest.raises(DeadlineExceededError):
        await guard.call(Scripted(fail_late, 60.0))
    assert now() == 10.0
    assert guard.breaker.snapshot().failed == 1


async def test_time_in_the_queue_is_not_part_of_an_attempt() -> None:
    guard = guard_on_loop(attempt_timeout=2.0, concurrency=ONE_PERMIT)
    assert await outcomes(guard.call(Scripted(1.5)) for _ in range(4)) == [1.5] * 4
    assert guard.breaker.snapshot().failed == 0


async def test_a_call_that_waited_long_has_less_time_left() -> None:
    guard = guard_on_loop(total_timeout=10.0, concurrency=ONE_PERMIT)
    first, second = await outcomes(guard.call(Scripted(8.0)) for _ in range(2))
    assert first == 8.0
    assert isinstance(second, DeadlineExceededError)
    assert now() == 10.0


# ---------------------------------------------------------------------- limits


@both_ways
async def test_permits_are_released_however_a_call_ends(run: Any) -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT, attempt_timeout=5.0)
    for step in ("fine", down(), ValueError("mine"), 60.0, asyncio.CancelledError()):
        await outcomes([run(guard, Scripted(step))])
        assert free_permits(guard) == 1


async def test_permits_are_released_when_the_breaker_opens_meanwhile() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    first = asyncio.create_task(guard.call(Scripted(2.0)))
    await asyncio.sleep(1.0)
    second = asyncio.create_task(guard.call(function := Scripted(None)))
    await asyncio.sleep(0.5)
    guard.breaker.open("meanwhile")
    await asyncio.wait([first, second])
    assert isinstance(second.exception(), CircuitOpenError)
    assert function.calls == 0
    assert free_permits(guard) == 1


async def test_the_breaker_decides_again_after_a_wait_for_the_rate_limit() -> None:
    guard = guard_on_loop(limit=LimitPolicy(rpm=60.0, burst=1))
    await guard.call(Scripted("first"))
    waiting = asyncio.create_task(guard.call(function := Scripted(None)))
    await asyncio.sleep(0.5)
    guard.breaker.open("meanwhile")
    with pytest.raises(CircuitOpenError):
        await waiting
    assert function.calls == 0


async def test_a_wait_that_ends_in_the_same_closed_state_goes_on() -> None:
    guard = guard_on_loop(limit=LimitPolicy(rpm=60.0, burst=1))
    results = await outcomes(guard.call(Scripted("fine")) for _ in range(3))
    assert results == ["fine"] * 3


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({"limit": LimitPolicy(rpm=1.0, burst=1, max_wait=0.0)}, RateLimitedError),
        ({"concurrency": ConcurrencyPolicy(max_concurrent=1, max_queue=0)}, BulkheadFullError),
    ],
)
@both_ways
async def test_rejections_by_limits_are_not_counted(run: Any, part: Any, error: type) -> None:
    guard = guard_on_loop(**part)
    published = published_by(guard)
    results = await outcomes(run(guard, Scripted(1.0)) for _ in range(3))
    assert [type(result) for result in results] == [float, error, error]
    assert guard.breaker.snapshot().calls == 1
    assert published.count(AttemptRejected("llm", error.__name__)) == 2


async def test_a_probe_rejected_by_a_limit_frees_its_slot() -> None:
    guard = guard_on_loop(limit=LimitPolicy(rpm=1.0, burst=1, max_wait=0.0))
    await guard.call(Scripted("uses up the limit"))
    guard.breaker.half_open()
    with pytest.raises(RateLimitedError):
        await guard.call(Scripted(None))
    assert guard.breaker.snapshot().probes == 0


# ---------------------------------------------------------------------- inside each other


async def test_a_call_inside_a_call_of_the_same_guard_passes_straight_through() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)

    async def outer() -> str:
        async with guard:
            return str(await guard.call(Scripted("inner")))

    assert await guard.call(outer) == "inner"
    assert guard.breaker.snapshot().calls == 1


async def test_a_call_of_another_guard_inside_is_guarded() -> None:
    outer, inner = guard_on_loop(), guard_on_loop()
    inner.breaker.open()
    with pytest.raises(CircuitOpenError):
        await outer.call(lambda: inner.call(Scripted(None)))
    assert outer.breaker.snapshot().failed == 0


async def test_a_task_that_outlives_its_call_is_guarded_again() -> None:
    guard, tasks = guard_on_loop(), list[asyncio.Task[Any]]()

    async def leave_a_task() -> None:
        async def later() -> None:
            await asyncio.sleep(1.0)
            assert not inside_guarded_call()
            await guard.call(Scripted("later"))

        tasks.append(asyncio.create_task(later()))

    await guard.call(leave_a_task)
    await tasks[0]
    assert guard.breaker.snapshot().calls == 2


async def test_nothing_of_a_call_stays_in_the_callers_context() -> None:
    guard = guard_on_loop()
    await guard.call(Scripted("fine"))
    async with guard:
        assert inside_guarded_call()
    assert current_call.get() is None


async def test_a_block_may_end_in_another_task() -> None:
    """As where an exit stack is closed by another task than the one that filled it."""
    guard = guard_on_loop()
    await asyncio.create_task(guard.__aenter__())
    async with guard:
        assert len(guard.gate.running) == 2
    await guard.__aexit__(None, None, None)
    assert not guard.gate.running
    assert guard.breaker.snapshot().calls == 2
    with pytest.raises(RuntimeError, match="ended in another context"):
        await guard.__aexit__(None, None, None)


async def test_blocks_may_end_in_another_order() -> None:
    one, other = guard_on_loop(), guard_on_loop()
    for guard in (one, other):
        await guard.__aenter__()
    for guard in (one, other):
        await guard.__aexit__(None, None, None)
        assert not guard.gate.running
    assert current_call.get() is None


# ---------------------------------------------------------------------- small things


async def test_a_copy_of_a_guard_is_itself() -> None:
    guard = guard_on_loop()
    assert copy.deepcopy({"guard": guard})["guard"] is guard
    assert repr(guard) == "<Guard 'llm': closed>"


async def test_a_successful_call_leaves_no_cycle_behind() -> None:
    guard = guard_on_loop(attempt_timeout=5.0)

    class Answer:
        pass

    async def function() -> Answer:
        return Answer()

    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(await guard.call(function))
        assert gone() is None
    finally:
        gc.enable()


async def test_a_success_that_changes_nothing_is_not_timed() -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return now()

    guard = Guard("llm", patient(breaker=SMALL), clock=clock)
    for _ in range(4):
        await guard.call(Scripted("fine"))
    looks = 0
    await guard.call(Scripted("fine"))
    assert looks == 1


@both_ways
async def test_a_subscriber_gets_a_success_that_changes_nothing(run: Any) -> None:
    guard = guard_on_loop(breaker=SMALL)
    for _ in range(4):
        await run(guard, Scripted("fine"))
    assert guard.breaker.circuit.ignores_successes
    events = published_by(guard)
    await run(guard, Scripted(2.5))
    assert events == [CallSucceeded("llm", 2.5, 0)]


async def test_a_success_earns_back_retries_whatever_else_it_changes() -> None:
    guard = guard_on_loop(breaker=SMALL)
    for _ in range(4):
        await guard.call(Scripted("fine"))
    guard.budget.spend(5)
    before = guard.budget.tokens
    await guard.call(Scripted("fine"))
    assert guard.budget.tokens == before + 1


async def test_a_metrics_only_breaker_records_and_never_refuses() -> None:
    guard = guard_on_loop(breaker=BreakerPolicy(mode="metrics-only", consecutive_failures=1))
    for _ in range(20):
        with pytest.raises(ConnectionRefusedError):
            await guard.call(Scripted(down()))
    assert guard.breaker.snapshot().failed == 20


def test_each_loop_has_its_own_limits_and_all_share_the_breaker() -> None:
    guard = Guard("llm", patient(concurrency=ONE_PERMIT))

    async def fail() -> None:
        raise down()

    async def call() -> Any:
        with pytest.raises(ConnectionRefusedError):
            await guard.run(fail, (), {})
        return guard._loop_state

    first, second = asyncio.run(call()), asyncio.run(call())
    assert first is not second
    assert first._controller._bulkhead is not second._controller._bulkhead
    assert guard.breaker.snapshot().failed == 2


async def test_a_task_that_outlives_its_call_is_rejected_by_a_drain() -> None:
    guard = guard_on_loop()

    async def later() -> None:
        await asyncio.sleep(10.0)
        await guard.call(Scripted("answer"))

    async def later_in_a_block() -> None:
        await asyncio.sleep(10.0)
        async with guard:
            pass

    async def begin() -> list[asyncio.Task[None]]:
        return [asyncio.create_task(later()), asyncio.create_task(later_in_a_block())]

    tasks = await guard.call(begin)
    await asyncio.sleep(5.0)
    guard.gate.close()
    for task in tasks:
        with pytest.raises(ShuttingDownError):
            await task
