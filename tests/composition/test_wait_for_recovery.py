"""Waiting for a dependency to come back."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from typing import Any

import httpx
import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    CircuitOpenError,
    Guard,
    RateLimitedError,
    RetryPolicy,
    deadline,
)
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
from lightrag_resilience.events import AttemptRejected, Event
from support.guards import Scripted, down, guard_on_loop, now, outcomes

pytestmark = pytest.mark.anyio


def quick(**changes: Any) -> Guard:
    return guard_on_loop(retry=RetryPolicy(attempts=1, max_backoff=4.0), **changes)


async def test_an_open_circuit_is_waited_for() -> None:
    guard = quick()
    guard.breaker.open()
    answer = await retry_until_available(
        guard, lambda: guard.call(Scripted("answer")), patience=Patience(600)
    )
    assert answer == "answer"
    assert 5.0 <= now() <= 5.5


async def test_no_call_is_made_while_the_circuit_is_open() -> None:
    guard, begun = quick(), list[float]()
    guard.breaker.open()

    async def begin() -> str:
        begun.append(now())
        return str(await guard.call(Scripted("answer")))

    await retry_until_available(guard, begin, patience=Patience(600))
    assert len(begun) == 1


async def test_background_calls_are_held_back_in_a_brownout_and_others_are_not() -> None:
    """Four of five calls fail: some background calls wait a second or more."""
    guard = quick(failure_rate=None)

    async def fail_most() -> None:
        for number in range(60):
            await outcomes([guard.call(Scripted(down() if number % 5 else "fine"))])

    await fail_most()
    shed = list[Event]()
    guard.events.subscribe(shed.append, AttemptRejected)
    function = Scripted("answer")

    def call(*, is_background: bool) -> Any:
        return retry_until_available(
            guard,
            lambda: guard.call(function),
            patience=Patience(600),
            is_background=is_background,
        )

    await asyncio.gather(*(call(is_background=True) for _ in range(200)))
    assert {event.error for event in shed if isinstance(event, AttemptRejected)} == {
        "CallShedError"
    }
    assert now() >= 1.0
    count = len(shed)
    await fail_most()
    await asyncio.gather(*(call(is_background=False) for _ in range(20)))
    assert len(shed) == count
    await fail_most()
    count = len(shed)
    await asyncio.sleep(601)  # nothing is known of it any more
    await asyncio.gather(*(call(is_background=True) for _ in range(20)))
    assert len(shed) == count


async def test_an_outage_is_outlasted_with_few_calls() -> None:
    guard = quick(consecutive_failures=3)
    function = Scripted(*[down()] * 8, "answer")
    assert (
        await retry_until_available(guard, lambda: guard.call(function), patience=Patience(3600))
        == "answer"
    )
    assert function.calls == 9


async def test_many_waiting_calls_send_one_probe_at_a_time() -> None:
    guard = quick(consecutive_failures=1)
    function = Scripted(*[down()] * 30, "answer")
    calls = (
        retry_until_available(guard, lambda: guard.call(function), patience=Patience(36_000))
        for _ in range(20)
    )
    assert await asyncio.gather(*calls) == ["answer"] * 20
    assert function.calls < 80


async def test_the_last_error_is_raised_when_patience_ends() -> None:
    guard = quick(breaker=BreakerPolicy(mode="metrics-only"))
    error = down()
    with pytest.raises(ConnectionRefusedError) as raised:
        await retry_until_available(
            guard, lambda: guard.call(Scripted(error)), patience=Patience(30.0)
        )
    assert raised.value is error
    assert 25.0 < now() <= 30.0


async def test_a_retry_after_beyond_the_patience_is_not_waited_for() -> None:
    guard = quick()
    guard.cool_down(40.0)
    with pytest.raises(RateLimitedError):
        await retry_until_available(
            guard, lambda: guard.call(Scripted(None)), patience=Patience(3.0)
        )
    assert now() == 0.0


async def test_a_circuit_that_closes_ends_the_wait_at_once() -> None:
    guard = quick()
    guard.breaker.open(open_for=300.0)
    asyncio.get_running_loop().call_later(2.0, guard.breaker.close)
    calls = (
        retry_until_available(guard, lambda: guard.call(Scripted("answer")), patience=Patience(8))
        for _ in range(3)
    )
    assert await asyncio.gather(*calls) == ["answer"] * 3
    assert now() == pytest.approx(2.1)


async def test_another_thread_may_close_the_circuit() -> None:
    guard = quick()
    guard.breaker.open(open_for=300.0)
    loop = asyncio.get_running_loop()
    loop.call_later(2.0, lambda: threading.Thread(target=guard.breaker.close).start())
    waiting = retry_until_available(
        guard, lambda: guard.call(Scripted("answer")), patience=Patience(8)
    )
    assert await waiting == "answer"


async def test_a_circuit_that_stays_open_is_waited_for_as_long_as_the_patience_lasts() -> None:
    guard, function = quick(), Scripted("answer")
    guard.breaker.open(open_for=300.0)
    with pytest.raises(CircuitOpenError) as raised:
        await retry_until_available(guard, lambda: guard.call(function), patience=Patience(8))
    assert (now(), function.calls) == (8.0, 0)
    assert raised.value.retry_after == pytest.approx(292.0)


async def test_calls_that_share_a_patience_end_their_waits_together() -> None:
    guard, other, patience = quick(), quick(), Patience(8)
    for each in (guard, other):
        each.breaker.open(open_for=300.0)

    async def ask(asked: Guard, at: float) -> float:
        await asyncio.sleep(at)
        with pytest.raises(CircuitOpenError):
            await retry_until_available(
                asked, lambda: asked.call(Scripted("answer")), patience=patience
            )
        return now()

    ends = await asyncio.gather(ask(guard, 0.0), ask(other, 5.0), ask(guard, 9.0))
    assert list(ends) == [8.0, 8.0, 9.0]


async def test_an_outage_after_an_answer_is_waited_for_anew() -> None:
    guard, patience = quick(), Patience(8)
    for began in (0.0, 6.0, 12.0):
        await asyncio.sleep(began - now())
        guard.breaker.open(open_for=300.0)
        asyncio.get_running_loop().call_later(4.0, guard.breaker.close)
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=patience
        )
    assert now() == 16.0


async def test_answers_of_another_dependency_prolong_no_patience() -> None:
    guard, other, patience = quick(), quick(), Patience(8)
    guard.breaker.open(open_for=300.0)
    for asked, ends in ((guard, 8.0), (other, 8.0), (guard, 8.0)):
        call = functools.partial(asked.call, Scripted("answer"))
        await outcomes([retry_until_available(asked, call, patience=patience)])
        assert now() == ends


async def test_the_verdict_of_a_probe_under_way_is_waited_for_up_to_as_long_again() -> None:
    guard, slow = quick(), Scripted(14.0)
    guard.set_probe(slow)
    guard.breaker.open("after a test")
    calls = (
        retry_until_available(guard, lambda: guard.call(Scripted("answer")), patience=Patience(8))
        for _ in range(2)
    )
    assert await asyncio.gather(*calls) == ["answer"] * 2
    assert 14.8 <= now() <= 15.0
    slow.steps = [100.0]
    guard.breaker.open("after a test")
    with pytest.raises(CircuitOpenError):
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=Patience(8)
        )
    assert 30.0 <= now() <= 31.1


async def test_ingest_tries_every_four_seconds_while_the_circuit_is_closed() -> None:
    guard = guard_on_loop(retry=RetryPolicy(attempts=1), breaker=BreakerPolicy(mode="metrics-only"))
    function = Scripted(*[down()] * 5, "answer")
    await retry_until_available(guard, lambda: guard.call(function), patience=Patience(3600))
    assert all(4.0 <= gap <= 4.25 for gap in function.gaps())


async def test_an_old_outage_is_not_waited_for() -> None:
    guard, patience = quick(), Patience(8, max_outage=60)
    guard.breaker.open(open_for=30.0)
    await asyncio.sleep(40.0)
    guard.breaker.open(open_for=300.0)  # a probe failed: the outage is the same one
    await asyncio.sleep(21.0)
    with pytest.raises(CircuitOpenError):
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=patience
        )
    assert now() == 61.0


@pytest.mark.parametrize("since", range(120, 135))  # between probes, and while one is put off
async def test_the_first_query_in_an_old_outage_is_refused_at_once(since: int) -> None:
    guard = quick(consecutive_failures=1)
    guard.set_probe(Scripted(down()))
    with pytest.raises(ConnectionRefusedError):
        await guard.call(Scripted(down()))
    await asyncio.sleep(since)
    with pytest.raises(CircuitOpenError):
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=Patience(8, max_outage=60)
        )
    assert now() == since


async def test_an_isolated_dependency_is_not_waited_for_by_a_query() -> None:
    guard = quick()
    guard.breaker.set_mode("forced-open")
    with pytest.raises(CircuitOpenError):
        await retry_until_available(
            guard, lambda: guard.call(Scripted(None)), patience=Patience(8, max_outage=60)
        )
    assert now() == 0.0


async def test_no_more_calls_wait_than_may() -> None:
    guard, waiting = quick(), Counter[str]()
    guard.breaker.open(open_for=300.0)
    asyncio.get_running_loop().call_later(2.0, guard.breaker.close)

    async def ask() -> float:
        patience = Patience(8, waiting=waiting, most_waiting=3)
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=patience
        )
        return now()

    found = await outcomes(ask() for _ in range(5))
    assert found[:3] == pytest.approx([2.0, 2.05, 2.1])
    assert all(isinstance(each, CircuitOpenError) for each in found[3:])
    assert not +waiting


@pytest.mark.parametrize(("hangs_for", "calls"), [(3.0, 2), (5.0, 1), (20.0, 1)])
async def test_a_call_that_hung_is_repeated_only_while_another_may_hang_as_long(
    hangs_for: float, calls: int
) -> None:
    guard = quick(attempt_timeout=hangs_for)
    hangs = Scripted(3600.0)
    with pytest.raises(AttemptTimeoutError):
        await retry_until_available(guard, lambda: guard.call(hangs), patience=Patience(8))
    assert hangs.calls == calls
    assert calls == 2 or now() == hangs_for


async def test_a_deadline_ends_the_patience() -> None:
    guard = quick()
    guard.breaker.open(open_for=300.0)
    with pytest.raises(CircuitOpenError), deadline(2.0, clock=now):
        await retry_until_available(
            guard, lambda: guard.call(Scripted("answer")), patience=Patience(8)
        )
    assert now() == 2.0


async def test_a_fatal_failure_is_raised_at_once() -> None:
    guard, function = quick(), Scripted(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await retry_until_available(guard, lambda: guard.call(function), patience=Patience(600))
    assert (function.calls, now()) == (1, 0.0)


async def test_the_wait_follows_the_providers_retry_after() -> None:
    request = httpx.Request("POST", "http://provider")
    response = httpx.Response(429, headers={"Retry-After": "20"}, request=request)
    error = httpx.HTTPStatusError("busy", request=request, response=response)
    guard, function = quick(), Scripted(error, "answer")
    await retry_until_available(guard, lambda: guard.call(function), patience=Patience(600))
    assert 20.0 <= function.at[1] <= 20.5


async def test_cancelling_the_caller_ends_the_wait() -> None:
    guard = quick()
    guard.breaker.open()
    task = asyncio.create_task(
        retry_until_available(guard, lambda: guard.call(Scripted(None)), patience=Patience(600))
    )
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_callers_that_waited_go_on_one_after_another() -> None:
    """At once, each would be answered as late as the last."""
    guard, at = quick(), list[float]()
    guard.breaker.open()

    async def begin() -> str:
        at.append(now())
        return str(await guard.call(Scripted("answer")))

    waiting = asyncio.gather(
        *(retry_until_available(guard, begin, patience=Patience(60)) for _ in range(30))
    )
    await asyncio.sleep(1.0)
    guard.breaker.close()
    await waiting
    assert at[0] == pytest.approx(1.0)
    assert at[10] == pytest.approx(1.5)
    assert at[-1] == pytest.approx(2.0)
