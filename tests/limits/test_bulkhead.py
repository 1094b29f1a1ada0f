"""Calls at once: so many, so many more in the queue, and the rest rejected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightrag_resilience import (
    BulkheadFullError,
    ConcurrencyPolicy,
    DeadlineExceededError,
    Guard,
    Priority,
    ResilienceError,
    State,
    priority,
)
from lightrag_resilience.breakers import Admission, Breaker
from lightrag_resilience.failures.classifier import Failure, FailureKind
from lightrag_resilience.limits.bulkhead import Bulkhead, Occupancy
from lightrag_resilience.testing import VirtualTimeLoop
from support.guards import Scripted, guard_on_loop, now, patient

pytestmark = pytest.mark.anyio
INTERACTIVE, BACKGROUND = Priority.INTERACTIVE, Priority.BACKGROUND


def make_bulkhead(at_once: int = 2, queue: int = 100, max_wait: float = 1000.0) -> Bulkhead:
    policy = ConcurrencyPolicy(max_concurrent=at_once, max_queue=queue, max_wait=max_wait)
    return Bulkhead("llm", policy, asyncio.get_running_loop().time)


async def stay(bulkhead: Bulkhead, seconds: float = 1.0, longest: float = math.inf) -> float:
    await bulkhead.acquire(longest)
    entered = now()
    try:
        await asyncio.sleep(seconds)
    finally:
        bulkhead.release()
    return entered


async def test_as_many_calls_as_permits_run_and_the_rest_in_order_of_arrival() -> None:
    made = make_bulkhead()
    assert await asyncio.gather(*(stay(made) for _ in range(6))) == [0, 0, 1, 1, 2, 2]


async def test_acquire_returns_whether_it_waited() -> None:
    made = make_bulkhead(at_once=1)
    assert await made.acquire(math.inf) is False
    waiter = asyncio.create_task(made.acquire(math.inf))
    await asyncio.sleep(1)
    made.release()
    assert await waiter is True


async def test_a_full_queue_rejects_at_once() -> None:
    made = make_bulkhead(at_once=1, queue=2)
    calls = (stay(made) for _ in range(5))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [float] * 3 + [BulkheadFullError] * 2
    assert str(outcomes[-1]) == "Too many calls of 'llm' at once and 2 more are waiting"


@pytest.mark.parametrize(("max_wait", "longest"), [(3.0, math.inf), (1000.0, 3.0)])
async def test_a_wait_that_takes_too_long_is_rejected(max_wait: float, longest: float) -> None:
    made = make_bulkhead(at_once=1, max_wait=max_wait)
    stayer = asyncio.create_task(stay(made, 60.0))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError, match="after 3 s in the queue"):
        await made.acquire(longest)
    assert now() == 3.0
    await stayer
    assert await stay(made) == 60.0


async def test_a_cancelled_waiter_takes_no_permit() -> None:
    made = make_bulkhead(at_once=1)
    calls = [asyncio.create_task(stay(made)) for _ in range(4)]
    await asyncio.sleep(0.5)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert [call.result() for call in (calls[0], *calls[2:])] == [0.0, 1.0, 2.0]
    assert made.occupancy.waiting == 0


async def test_a_permit_granted_to_a_cancelled_waiter_is_passed_on() -> None:
    made = make_bulkhead(at_once=1)
    calls = [asyncio.create_task(stay(made)) for _ in range(3)]
    await asyncio.sleep(1.0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert calls[2].result() <= 2.0


async def test_a_cancelled_waiter_is_not_counted_as_rejected() -> None:
    made = make_bulkhead(at_once=1, max_wait=5.0)
    await made.acquire(math.inf)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await made.acquire(math.inf)
    assert now() == 2.0


# ---------------------------------------------------------------------- the order


async def stay_as(level: Priority, made: Bulkhead, seconds: float = 1.0) -> float:
    with priority(level):
        return await stay(made, seconds)


async def test_interactive_calls_go_before_background_ones() -> None:
    made = make_bulkhead(at_once=1)
    order = [BACKGROUND, BACKGROUND, INTERACTIVE, BACKGROUND, INTERACTIVE]
    entered = await asyncio.gather(*(stay_as(level, made) for level in order))
    assert entered == [0, 3, 1, 4, 2]


async def test_an_interactive_call_evicts_the_newest_background_call_of_a_full_queue() -> None:
    made = make_bulkhead(at_once=1, queue=2)
    first = asyncio.create_task(stay(made, 10.0))
    await asyncio.sleep(0)
    background = [asyncio.create_task(stay_as(BACKGROUND, made)) for _ in range(2)]
    await asyncio.sleep(1)
    interactive = asyncio.create_task(stay_as(INTERACTIVE, made))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert background[1].done()
    with pytest.raises(BulkheadFullError, match="an interactive call took its position"):
        await background[1]
    assert now() == 1.0
    assert [await call for call in (first, background[0], interactive)] == [0, 11, 10]
    assert made.occupancy == Occupancy(limit=1)


async def test_an_evicted_call_that_is_cancelled_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make_bulkhead(at_once=1, queue=1)
    await made.acquire(math.inf)
    with priority(BACKGROUND):
        background = asyncio.create_task(made.acquire(math.inf))
    await asyncio.sleep(0)
    interactive = asyncio.create_task(made.acquire(math.inf))
    await asyncio.sleep(0)  # sheds
    background.cancel()
    await asyncio.wait([background])
    assert background.cancelled()
    made.release()
    assert await interactive is True
    del background
    gc.collect()
    assert caplog.records == []


async def test_a_rejection_has_retry_after_once_the_pace_is_known() -> None:
    made = make_bulkhead(at_once=1, queue=10)
    calls = [asyncio.create_task(stay(made)) for _ in range(11)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError) as early:
        await made.acquire(math.inf)
    assert early.value.retry_after is None
    await asyncio.sleep(8.5)
    more = [asyncio.create_task(stay(made)) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError) as later:
        await made.acquire(math.inf)
    assert later.value.retry_after == pytest.approx(11, rel=0.1)
    await asyncio.gather(*calls, *more)


async def test_a_call_whose_wait_would_be_far_too_long_is_rejected_at_once() -> None:
    made = make_bulkhead(at_once=1)
    calls = [asyncio.create_task(stay(made)) for _ in range(30)]
    await asyncio.sleep(10.5)
    before = now()
    with pytest.raises(BulkheadFullError, match=r"the queue takes 1\d\.\d s"):
        await made.acquire(5.0)
    assert now() == before
    assert await made.acquire(25.0) is True
    made.release()
    await asyncio.gather(*calls)


async def test_a_limit_that_shrinks_ends_no_call_and_admits_fewer() -> None:
    policy = ConcurrencyPolicy(max_concurrent=10, adaptive=True, min_concurrent=1)
    made = Bulkhead("llm", policy, asyncio.get_running_loop().time)
    at_once = made.occupancy.limit
    assert at_once == 5
    calls = [asyncio.create_task(stay(made, 10.0)) for _ in range(8)]
    await asyncio.sleep(1)
    made.record_outcome(now(), 1.0, is_overloaded=True)
    assert made.occupancy == Occupancy(limit=4, in_use=5, waiting=3)
    assert await asyncio.gather(*calls) == [0, 0, 0, 0, 0, 10, 10, 10]


async def test_a_limit_that_grows_admits_waiting_calls() -> None:
    policy = ConcurrencyPolicy(max_concurrent=10, adaptive=True)
    made = Bulkhead("llm", policy, asyncio.get_running_loop().time)
    calls = [asyncio.create_task(stay(made, 10.0)) for _ in range(8)]
    await asyncio.sleep(1)
    for _ in range(10):
        made.record_outcome(now(), 0.1, is_overloaded=False)
    assert made.occupancy == Occupancy(limit=7, in_use=7, waiting=1)
    assert await asyncio.gather(*calls) == [0] * 5 + [1.0] * 2 + [10.0]


class Failed(Exception):  # noqa: N818 - in a test's words
    def __init__(self, kind: FailureKind) -> None:
        super().__init__(kind)
        self.__resilience_failure__ = Failure(kind)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (FailureKind.THROTTLED, 4),
        (FailureKind.UNKNOWN_OUTCOME, 4),
        (FailureKind.TRANSIENT, 5),
        (FailureKind.FATAL, 5),
    ],
)
async def test_429s_and_timeouts_lower_the_adaptive_limit(kind: FailureKind, limit: int) -> None:
    policy = ConcurrencyPolicy(max_concurrent=10, adaptive=True, min_concurrent=1)
    guard = guard_on_loop(concurrency=policy)

    async def ask() -> None:
        await asyncio.sleep(1.0)
        raise Failed(kind)

    with pytest.raises(Failed):
        await guard.call(ask)
    assert guard.occupancy.limit == limit


async def test_an_attempt_timeout_lowers_the_adaptive_limit() -> None:
    policy = ConcurrencyPolicy(max_concurrent=10, adaptive=True, min_concurrent=1)
    guard = guard_on_loop(concurrency=policy, attempt_timeout=1.0)
    with pytest.raises(ResilienceError):
        await guard.call(Scripted(60.0))
    assert guard.occupancy.limit == 4


class Room(RuleBasedStateMachine):
    """Callers that come, go, and give up: never too many inside, and no waiter is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.made = self.run(self.make())
        self.waiting: list[asyncio.Task[bool]] = []
        self.inside = 0

    async def make(self) -> Bulkhead:
        return make_bulkhead(at_once=2, queue=4, max_wait=20.0)

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def settle(self) -> None:
        self.run(asyncio.sleep(0.001))
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.inside += 1

    @rule(level=st.sampled_from(Priority))
    def come(self, level: Priority) -> None:
        with priority(level):
            self.waiting.append(self.loop.create_task(self.made.acquire(math.inf)))
        self.settle()

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def go(self, data: Any) -> None:
        self.inside -= 1
        self.made.release()
        if self.waiting and data.draw(st.booleans()):  # just as a permit is granted
            data.draw(st.sampled_from(self.waiting)).cancel()
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        data.draw(st.sampled_from(self.waiting)).cancel()
        self.settle()

    @rule(seconds=st.floats(0.1, 30.0))
    def time_goes_by(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        self.settle()

    @invariant()
    def places_are_taken_by_those_inside(self) -> None:
        occupancy = self.made.occupancy
        assert occupancy.in_use == self.inside <= 2
        assert occupancy.waiting == len(self.waiting) <= 4
        assert self.inside == 2 or not self.waiting

    def teardown(self) -> None:
        for task in self.waiting:
            task.cancel()
        self.settle()
        self.loop.close()


TestRoom = Room.TestCase
TestRoom.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def test_a_call_cut_short_by_its_deadline_does_not_lower_the_adaptive_limit() -> None:
    policy = ConcurrencyPolicy(max_concurrent=20, adaptive=True, max_queue=1000)
    guard = guard_on_loop(attempt_timeout=15.0, total_timeout=20.0, concurrency=policy)
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        await asyncio.sleep(number * 0.8)
        with contextlib.suppress(DeadlineExceededError):
            await guard.call(Scripted(8.0))
            done += 1

    await asyncio.gather(*(client(number) for number in range(200)))
    assert done > 190
    assert guard.occupancy.limit == 20


async def test_a_call_cancelled_at_the_second_breaker_check_returns_its_permit() -> None:
    class Slow(Breaker):
        __slots__ = ("asked",)

        async def acquire_async(self) -> Admission:
            if self.state is State.CLOSED:
                return self.acquire()
            answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
            return await answer

    policy = patient(concurrency=ConcurrencyPolicy(max_concurrent=1))
    loop = asyncio.get_running_loop()
    guard = Guard("llm", policy, breaker=Slow("llm", policy.effective_breaker), clock=loop.time)
    first = asyncio.create_task(guard.call(Scripted(10.0)))
    await asyncio.sleep(0)
    second = asyncio.create_task(guard.call(Scripted("answer")))
    await asyncio.sleep(1.0)
    guard.breaker.open()
    await first
    await asyncio.sleep(1.0)
    assert guard.occupancy.in_use == 1
    second.cancel()
    await asyncio.wait([second])
    assert guard.occupancy.in_use == 0
