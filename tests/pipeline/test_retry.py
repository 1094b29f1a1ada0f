"""What follows a failure: whether, when and how often a call is made again."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from typing import Any

import httpx
import pytest
import tenacity

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    CircuitOpenError,
    Failure,
    FailureKind,
    Guard,
    RetryPolicy,
)
from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.events import RetryScheduled
from support.guards import Scripted, down, guard_on_loop, now, outcomes, published_by

pytestmark = pytest.mark.anyio


def throttled(retry_after: str | None = None, status: int = 429) -> httpx.HTTPStatusError:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    request = httpx.Request("POST", "http://provider/v1")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


def retrying(**changes: Any) -> Guard:
    plain = {"attempts": 3, "jitter": "none", "initial_backoff": 1.0, "brownout_attempts": 1}
    fields: dict[str, Any] = plain | changes
    return guard_on_loop(retry=RetryPolicy(**fields), breaker=BreakerPolicy(mode="metrics-only"))


async def failing(guard: Guard, function: Any) -> BaseException:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the test looks at it
        await guard.call(function)
    return raised.value


def why(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", []))


# ---------------------------------------------------------------------- how often


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
async def test_attempts_counts_the_first_call_too(attempts: int) -> None:
    function = Scripted(down())
    error = await failing(retrying(attempts=attempts), function)
    assert function.calls == attempts
    assert type(error) is ConnectionRefusedError
    assert f"gave up after {attempts} attempts" in why(error)


async def test_a_single_attempt_makes_no_use_of_tenacity() -> None:
    """It would cost twenty times the call."""
    error = await failing(retrying(attempts=1), Scripted(down()))
    modules = {frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)}
    assert not {name for name in modules if name.startswith("tenacity")}


async def test_a_success_ends_the_retries() -> None:
    function = Scripted(down(), down(), "answer")
    assert await retrying().call(function) == "answer"
    assert function.calls == 3


async def test_the_last_error_is_raised_and_not_the_first() -> None:
    last = down()
    assert await failing(retrying(attempts=2), Scripted(down(), last)) is last


async def test_what_is_fatal_is_not_tried_again() -> None:
    for error in (ValueError("a bug"), throttled(status=401), throttled(status=400)):
        function = Scripted(error)
        assert await failing(retrying(), function) is error
        assert function.calls == 1


async def test_a_verdict_of_the_errors_own_counts() -> None:
    error = ValueError("come again")
    error.__resilience_failure__ = Failure(FailureKind.TRANSIENT)  # type: ignore[attr-defined]
    function = Scripted(error, "answer")
    assert await retrying().call(function) == "answer"


@pytest.mark.parametrize(("idempotent", "calls"), [(True, 3), (False, 1)])
async def test_an_unknown_outcome_is_repeated_only_where_that_is_harmless(
    idempotent: bool,  # noqa: FBT001
    calls: int,
) -> None:
    function = Scripted(httpx.ReadError("lost after sending"))
    await failing(retrying(idempotent=idempotent), function)
    assert function.calls == calls


@pytest.mark.parametrize("status", [460, 499, 502, 504, 520, 524, 598, 599])
@pytest.mark.parametrize(("idempotent", "calls"), [(True, 3), (None, 3), (False, 1)])
async def test_what_a_gateway_lost_may_have_been_done(
    status: int,
    idempotent: bool | None,  # noqa: FBT001
    calls: int,
) -> None:
    function = Scripted(throttled(status=status))
    await failing(retrying(idempotent=idempotent), function)
    assert function.calls == calls


async def test_the_error_inside_a_tenacity_retry_error_is_classified() -> None:
    for cause, calls in ((ValueError("a bug"), 1), (down(), 3)):
        function = Scripted(cause)
        inner = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(1)).wraps(function)
        assert isinstance(await failing(retrying(), inner), tenacity.RetryError)
        assert function.calls == calls


# ---------------------------------------------------------------------- how long between


async def test_waits_grow_up_to_their_cap() -> None:
    function = Scripted(down())
    await failing(retrying(attempts=6, max_backoff=5.0), function)
    assert function.gaps() == [1.0, 2.0, 4.0, 5.0, 5.0]


async def test_by_default_no_wait_is_shorter_than_one_and_a_half_times_the_last() -> None:
    spread: list[float] = []
    for _ in range(200):
        function = Scripted(down())
        jitter = RetryPolicy().jitter
        await failing(retrying(attempts=6, jitter=jitter, max_backoff=6.0, budget=0), function)
        gaps = function.gaps()
        spread.append(gaps[0])
        for before, after in itertools.pairwise(gaps[:3]):
            assert after >= 1.5 * before - 1e-9
        for gap, cap in zip(gaps, (1.0, 2.0, 4.0, 6.0, 6.0), strict=True):
            assert 0.0 <= gap <= cap + 1e-9
    assert min(spread) < 0.1
    assert max(spread) > 0.9


@pytest.mark.no_cover
async def test_at_their_cap_waits_are_still_spread() -> None:
    last: list[float] = []
    for _ in range(200):
        function = Scripted(down())
        await failing(retrying(attempts=9, jitter="growing", max_backoff=2.0, budget=0), function)
        last.append(function.gaps()[-1])
    assert 1.49 <= min(last) < 1.6
    assert 1.9 < max(last) <= 2.0 + 1e-9


async def test_after_a_long_retry_after_the_policys_backoff_is_used_again() -> None:
    function = Scripted(throttled("20"), down(), "answer")
    await retrying(jitter="growing").call(function)
    assert function.gaps()[1] <= 2.0


async def test_full_jitter_stays_below_the_grown_wait_and_uses_all_of_it() -> None:
    gaps: list[list[float]] = [[], [], []]
    for _ in range(200):
        function = Scripted(down())
        await failing(retrying(attempts=4, jitter="full", budget=0), function)
        for kept, gap in zip(gaps, function.gaps(), strict=True):
            kept.append(gap)
    for kept, cap in zip(gaps, (1.0, 2.0, 4.0), strict=True):
        assert 0.0 <= min(kept) < 0.1 * cap
        assert 0.9 * cap < max(kept) <= cap + 1e-9


async def test_decorrelated_jitter_grows_from_the_last_wait() -> None:
    longest = 0.0
    for _ in range(100):
        function = Scripted(down())
        guard = retrying(attempts=6, jitter="decorrelated", max_backoff=10.0, budget=0)
        await failing(guard, function)
        before = 1.0
        for gap in function.gaps():
            assert 1.0 - 1e-9 <= gap <= min(3 * before, 10.0) + 1e-9
            before = max(gap, 1.0)
        longest = max(longest, *function.gaps())
    assert longest > 3.5  # more than it can be after the first wait


async def test_a_retry_after_of_two_seconds_is_kept_with_little_jitter() -> None:
    for _ in range(50):
        function = Scripted(throttled("2"), "answer")
        await retrying(jitter="full").call(function)
        (gap,) = function.gaps()
        assert 2.0 <= gap <= 2.6


async def test_callers_with_the_same_retry_after_are_spread() -> None:
    functions = [Scripted(throttled("2"), "answer") for _ in range(50)]
    await outcomes(retrying().call(function) for function in functions)
    assert len({function.at[1] for function in functions}) > 40


async def test_a_retry_after_of_zero_falls_back_to_the_backoff() -> None:
    function = Scripted(throttled("0"), "answer")
    await retrying().call(function)
    assert function.gaps() == [1.0]


async def test_a_retry_after_above_the_maximum_ends_the_retries() -> None:
    function = Scripted(throttled("61"))
    error = await failing(retrying(max_retry_after=60.0), function)
    assert (function.calls, now()) == (1, 0.0)
    assert "asks to wait 61 s, more than 60 s" in why(error)


# ---------------------------------------------------------------------- deadline and budget


async def test_a_retry_cancelled_during_its_wait_costs_nothing() -> None:
    retry = RetryPolicy(attempts=3, jitter="none", initial_backoff=5.0, budget=50)
    guard = guard_on_loop(retry=retry, consecutive_failures=None)
    for wait, left in ((1.0, 50), (6.0, 45)):
        call = asyncio.create_task(guard.call(Scripted(down(), 60.0)))
        await asyncio.sleep(wait)
        call.cancel()
        await asyncio.wait([call])
        assert guard.budget.tokens == left


async def test_suspended_time_in_any_attempt_does_not_count_toward_the_deadline() -> None:
    retry = RetryPolicy(attempts=4, jitter="none", initial_backoff=0.1)
    guard = guard_on_loop(retry=retry, total_timeout=30.0)

    calls: list[float] = []

    async def elsewhere() -> str:
        calls.append(now())
        call = current_call.get()
        assert call is not None
        with call.suspend_timers():
            await asyncio.sleep(20.0)
        if len(calls) < 4:
            raise down()
        return "fine"

    assert await guard.call(elsewhere) == "fine"


async def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for() -> None:
    function = Scripted(down())
    retry = RetryPolicy(attempts=9, jitter="none", initial_backoff=4.0)
    guard = guard_on_loop(retry=retry, total_timeout=10.0)
    error = await failing(guard, function)
    assert function.at == [0.0, 4.0]
    assert now() == 4.0
    assert "would be called again only in 8.0 s, after the call's deadline" in why(error)


async def test_retries_stop_when_most_calls_fail() -> None:
    guard, function = retrying(attempts=2, budget=50), Scripted(down())
    errors = [await failing(guard, function) for _ in range(20)]
    assert function.calls == 20 + 10
    assert "retry budget is used up" in why(errors[-1])


async def test_timeouts_cost_twice_as_much() -> None:
    guard, function = retrying(attempts=2, budget=50), Scripted(httpx.ReadTimeout("slow"))
    for _ in range(20):
        await failing(guard, function)
    assert function.calls == 20 + 5


async def test_a_retry_that_succeeds_gives_back_what_it_cost() -> None:
    guard = retrying(budget=10)
    for _ in range(20):
        assert await guard.call(Scripted(down(), "answer")) == "answer"
    assert guard.budget.tokens == 10


async def test_successes_refill_the_budget() -> None:
    guard = retrying(attempts=2, budget=5)
    await failing(guard, Scripted(down()))
    assert guard.budget.tokens == 0
    for _ in range(5):
        await guard.call(Scripted("answer"))
    assert guard.budget.tokens == 5


# ---------------------------------------------------------------------- among others


async def test_a_breaker_that_opens_meanwhile_ends_the_retries() -> None:
    last = down()
    retry = RetryPolicy(attempts=5, jitter="none")
    guard = guard_on_loop(retry=retry, consecutive_failures=2)
    function = Scripted(down(), last)
    error = await failing(guard, function)
    assert isinstance(error, CircuitOpenError)
    assert error.__cause__ is last
    assert function.calls == 2


async def test_calls_of_one_guard_do_not_mix() -> None:
    guard = retrying(attempts=4, budget=0)
    functions = [Scripted(*[down()] * (number % 5), number) for number in range(100)]
    results = await outcomes(guard.call(function) for function in functions)
    for number, (result, function) in enumerate(zip(results, functions, strict=True)):
        assert function.calls == min(number % 5 + 1, 4)
        assert result == number if number % 5 < 4 else type(result) is ConnectionRefusedError


async def test_a_retry_after_an_attempt_that_hung_comes_as_late_as_one_of_lightrag() -> None:
    """LightRAG waits 4 s: a retry at once hangs as long again in an outage that is about to end."""
    guard = guard_on_loop(attempts=2, attempt_timeout=20.0)

    async def hang_until_23() -> str:
        if now() < 23.0:
            await asyncio.sleep(1000.0)
        return "answer"

    assert await guard.call(hang_until_23) == "answer"
    assert 23.5 <= now() <= 24.0


async def test_a_timeout_is_retried_with_its_full_time() -> None:
    function = Scripted(60.0, 60.0, "answer")
    guard = guard_on_loop(retry=RetryPolicy(jitter="none"), attempt_timeout=5.0)
    assert await guard.call(function) == "answer"
    assert function.at == [0.0, 8.5, 17.0]


async def test_the_last_timeout_is_raised_as_an_attempt_timeout() -> None:
    guard = guard_on_loop(attempt_timeout=5.0, attempts=2)
    error = await failing(guard, Scripted(60.0))
    assert isinstance(error, AttemptTimeoutError)
    assert not isinstance(error, TimeoutError)
    assert str(error) == "An attempt of 'llm' timed out after 5 s"


async def test_each_retry_is_published_with_its_wait() -> None:
    guard = retrying()
    published = published_by(guard)
    await failing(guard, Scripted(down()))
    assert [e for e in published if isinstance(e, RetryScheduled)] == [
        RetryScheduled("llm", 2, 1.0),
        RetryScheduled("llm", 3, 2.0),
    ]


async def test_a_cancellation_during_backoff_is_passed_on_and_not_counted() -> None:
    guard, function = retrying(), Scripted(down())
    task = asyncio.create_task(guard.call(function))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert function.calls == 1
    assert guard.breaker.snapshot().calls == 1
