"""One deadline for all guarded calls of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    DeadlineExceededError,
    Guard,
    PolicyError,
    RetryPolicy,
    State,
    deadline,
)
from lightrag_resilience.calls.call_context import current_call, current_deadline
from lightrag_resilience.calls.deadline import under_deadline
from lightrag_resilience.limits.bulkhead import Occupancy
from support.guards import Scripted, down, guard_on_loop, now, outcomes, patient

pytestmark = pytest.mark.anyio


def limit(seconds: float) -> Any:
    return deadline(seconds, clock=now)


async def test_an_attempt_is_cut_at_the_deadline_and_counts_as_no_failure() -> None:
    guard, hangs = guard_on_loop(attempt_timeout=60.0, consecutive_failures=1), Scripted(3600.0)
    with pytest.raises(DeadlineExceededError) as raised, limit(2.0):
        await guard.call(hangs)
    assert (now(), hangs.calls) == (2.0, 1)
    assert str(raised.value) == "The deadline of 'llm' has passed after the 2 s of deadline()"
    assert guard.breaker.state is State.CLOSED
    assert guard.breaker.snapshot().failed == 0


async def test_a_dependency_without_timeouts_is_cut_too() -> None:
    guard = guard_on_loop(consecutive_failures=1)
    with pytest.raises(DeadlineExceededError), limit(2.0):
        await guard.call(Scripted(3600.0))
    assert (now(), guard.breaker.state) == (2.0, State.CLOSED)


async def test_a_timeout_of_the_policy_before_the_deadline_counts() -> None:
    guard = guard_on_loop(attempt_timeout=1.0, consecutive_failures=1)
    with pytest.raises(AttemptTimeoutError), limit(2.0):
        await guard.call(Scripted(3600.0))
    assert (now(), guard.breaker.state) == (1.0, State.OPEN)


async def test_a_deadline_spans_all_calls_of_its_block() -> None:
    guard = guard_on_loop(attempt_timeout=60.0)
    with limit(2.0):
        await guard.call(Scripted(1.5))
        with pytest.raises(DeadlineExceededError):
            await guard.call(Scripted(1.5))
    assert now() == 2.0


async def test_no_call_begins_after_the_deadline() -> None:
    guard, function = guard_on_loop(), Scripted("answer")
    with limit(2.0):
        await asyncio.sleep(3.0)
        with pytest.raises(DeadlineExceededError):
            await guard.call(function)
    assert function.calls == 0


async def test_tasks_begun_in_the_block_share_its_deadline() -> None:
    guard = guard_on_loop()
    with limit(2.0):
        found = await outcomes(guard.call(Scripted(seconds)) for seconds in (1.0, 3.0, 4.0))
    assert [type(each) for each in found] == [float, DeadlineExceededError, DeadlineExceededError]
    assert now() == 2.0


async def test_a_retry_that_could_not_end_in_time_is_not_made() -> None:
    retry = RetryPolicy(attempts=5, initial_backoff=1.5, jitter="none")
    guard, fails = guard_on_loop(retry=retry), Scripted(down())
    with pytest.raises(ConnectionRefusedError) as raised, limit(2.0):
        await guard.call(fails)
    assert fails.at == [0.0, 1.5]
    assert "after the call's deadline" in raised.value.__notes__[0]


async def test_a_call_under_a_deadline_is_retried_as_any_other() -> None:
    retry = RetryPolicy(attempts=3, initial_backoff=0.5, jitter="none")
    guard, function = guard_on_loop(retry=retry), Scripted(down(), down(), "answer")
    with limit(60.0):
        assert await guard.call(function) == "answer"
    assert function.at == [0.0, 0.5, 1.5]


async def test_a_wait_for_a_permit_ends_at_the_deadline() -> None:
    guard = guard_on_loop(max_concurrent=1)
    first = asyncio.create_task(guard.call(Scripted(10.0)))
    await asyncio.sleep(0)
    function = Scripted("answer")
    with pytest.raises(Exception, match="Too many calls"), limit(2.0):
        await guard.call(function)
    assert (now(), function.calls) == (2.0, 0)
    await first
    assert guard.occupancy == Occupancy(1)


async def test_a_nested_call_gives_the_outer_one_no_more_time() -> None:
    outer, inner = guard_on_loop(attempt_timeout=60.0), Guard("embedding", patient(), clock=now)

    async def embed_and_search() -> None:
        call = current_call.get()
        assert call is not None
        with call.suspend_timers():
            await inner.call(Scripted(1.5))
        await asyncio.sleep(30.0)

    with pytest.raises(DeadlineExceededError), limit(2.0):
        await outer.call(embed_and_search)
    assert now() == 2.0


async def test_of_two_deadlines_the_first_to_pass_decides() -> None:
    guard = guard_on_loop()
    with pytest.raises(DeadlineExceededError), limit(2.0), limit(5.0):
        await guard.call(Scripted(3600.0))
    assert now() == 2.0
    with pytest.raises(DeadlineExceededError), limit(5.0), limit(1.0):
        await guard.call(Scripted(3600.0))
    assert now() == 3.0


async def test_a_deadline_ends_with_its_block() -> None:
    guard = guard_on_loop()
    with limit(2.0):
        late = asyncio.create_task(asyncio.sleep(5.0, "slept"))
        later = asyncio.create_task(_after(3.0, guard))
    assert current_deadline() is None
    assert await later == "answer"
    assert await late == "slept"


async def _after(seconds: float, guard: Guard) -> Any:
    await asyncio.sleep(seconds)
    return await guard.call(Scripted("answer"))


async def test_a_call_keeps_its_deadline_when_the_block_ends_before_it() -> None:
    guard = guard_on_loop(attempt_timeout=60.0, consecutive_failures=1)
    with limit(2.0):
        task = asyncio.create_task(guard.call(Scripted(3600.0)))
        await asyncio.sleep(1.0)
    with pytest.raises(DeadlineExceededError):
        await task
    assert (now(), guard.breaker.state) == (2.0, State.CLOSED)


async def test_a_stream_has_the_deadline_up_to_its_first_item() -> None:
    guard = guard_on_loop()

    async def words(before: float) -> AsyncIterator[str]:
        await asyncio.sleep(before)
        yield "Ada"
        await asyncio.sleep(10.0)
        yield "founded"

    with limit(2.0):
        stream = await guard.call(words, 1.0)
        assert [word async for word in stream] == ["Ada", "founded"]
    with pytest.raises(DeadlineExceededError), limit(2.0):
        await guard.call(words, 3.0)
    assert now() == 13.0


async def test_a_block_under_a_guard_has_the_deadline_too() -> None:
    guard = guard_on_loop(consecutive_failures=1)
    with pytest.raises(DeadlineExceededError), limit(2.0):
        async with guard:
            await asyncio.sleep(3600.0)
    assert (now(), guard.breaker.state) == (2.0, State.CLOSED)


async def test_the_callers_own_cancellation_is_not_converted() -> None:
    guard = guard_on_loop()

    async def ask() -> None:
        with limit(2.0):
            await guard.call(Scripted(3600.0))

    task = asyncio.create_task(ask())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_is_carried_into_another_context() -> None:
    guard = guard_on_loop()
    with limit(2.0):
        carried = current_deadline()
    with pytest.raises(DeadlineExceededError), under_deadline(carried):
        await guard.call(Scripted(3600.0))
    assert now() == 2.0
    with limit(1.0), under_deadline(None):
        await guard.call(Scripted(3.0))


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), 1e9, "2"])
async def test_a_deadline_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(PolicyError, match="deadline: seconds must be"):
        deadline(seconds)


async def test_a_generator_that_another_task_closes_leaves_no_deadline_to_its_reader() -> None:
    async def items() -> AsyncIterator[int]:
        with limit(2.0):
            yield 1

    reading: Any = items()
    await anext(reading)
    await asyncio.create_task(reading.aclose())
    assert current_deadline() is None
