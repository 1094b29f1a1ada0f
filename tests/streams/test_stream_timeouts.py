"""How long a stream may take: to its first item, between two items, and as a whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    DeadlineExceededError,
    Guard,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
)
from lightrag_resilience.calls.call_context import current_call
from support.guards import down, guard_on_loop, now

pytestmark = pytest.mark.anyio


def guarded(*, attempts: int = 1, **times: float | None) -> Guard:
    plain: dict[str, float | None] = {"attempt": None, "total": None}
    timeout = TimeoutPolicy(**plain | times)
    return guard_on_loop(timeout=timeout, retry=RetryPolicy(attempts=attempts, jitter="none"))


def stream_of(*steps: Any) -> Any:
    """A function that streams steps: a number waits, an exception is raised, else an item."""

    async def words() -> AsyncIterator[Any]:
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, Exception):
                raise step
            else:
                yield step

    return words


def connecting(seconds: float, *steps: Any) -> Any:
    """A coroutine function that returns such a stream after some seconds."""

    async def connect() -> Any:
        await asyncio.sleep(seconds)
        return stream_of(*steps)()

    return connect


async def read(guard: Guard, function: Any, *, pause: float = 0.0) -> list[Any]:
    items = []
    async for item in await guard.call(function):
        items.append(item)
        await asyncio.sleep(pause)
    return items


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


async def ends(reading: Any) -> tuple[float, str]:
    """When reading ends, and with which error."""
    with pytest.raises((AttemptTimeoutError, DeadlineExceededError)) as ended:
        await reading
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return now(), str(ended.value)


# ---------------------------------------------------------------------- the first item


async def test_a_late_first_item_is_a_failure_that_is_retried() -> None:
    guard = guarded(first_item=5.0, attempt=30.0, attempts=2)
    at, said = await ends(read(guard, stream_of(6.0, "one")))
    assert at == 5.0 + 3.5 + 5.0  # the next attempt may hang as long
    assert said == "An attempt of 'llm' timed out waiting 5 s for the first item"
    assert verdict(guard) == (2, 2)


async def test_a_first_item_may_take_longer_than_an_attempt() -> None:
    guard = guarded(first_item=90.0, attempt=30.0)
    assert await read(guard, connecting(20.0, 60.0, "one")) == ["one"]
    assert (now(), verdict(guard)) == (80.0, (1, 0))


async def test_the_time_to_the_first_item_runs_from_when_the_attempt_was_sent() -> None:
    guard = guarded(first_item=50.0, attempt=30.0)
    assert (await ends(read(guard, connecting(20.0, 60.0, "one"))))[0] == 50.0


async def test_what_comes_before_the_stream_has_the_time_of_an_attempt() -> None:
    guard = guarded(first_item=50.0, attempt=30.0)
    at, said = await ends(read(guard, connecting(40.0, "one")))
    assert (at, said) == (30.0, "An attempt of 'llm' timed out after 30 s")


async def test_a_connection_slower_than_the_first_item_may_be_has_no_time_left() -> None:
    guard = guarded(first_item=5.0, attempt=30.0)
    assert (await ends(read(guard, connecting(10.0, 1.0, "one"))))[0] == 10.0


async def test_a_first_item_is_waited_for_no_longer_than_to_the_deadline() -> None:
    guard = guarded(first_item=50.0, total=30.0)
    at, said = await ends(read(guard, stream_of(60.0, "one")))
    assert (at, said) == (30.0, "The deadline of 'llm' has passed after 30 s")


async def test_a_cancellation_before_the_first_item_is_no_verdict() -> None:
    guard = guarded(first_item=50.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await read(guard, stream_of(60.0, "one"))
    assert verdict(guard) == (0, 0)


async def test_the_timeout_of_the_first_item_does_not_outlive_it() -> None:
    assert await read(guarded(first_item=5.0), stream_of(4.0, "one", 60.0, "two"), pause=60) == [
        "one",
        "two",
    ]


# ---------------------------------------------------------------------- between items


@pytest.mark.parametrize(
    ("times", "seconds"),
    [({"gap": 7.0}, 7), ({"attempt": 9.0}, 9), ({"attempt": 3.0, "gap": 7.0}, 7)],
)
async def test_a_gap_is_a_failure_and_not_retried(times: Any, seconds: float) -> None:
    guard = guarded(attempts=3, **times)
    at, said = await ends(read(guard, stream_of("one", 20.0, "two")))
    assert at == seconds
    assert said == f"An attempt of 'llm' timed out waiting {seconds} s for the next item"
    assert verdict(guard) == (1, 1)


async def test_the_first_item_is_no_gap() -> None:
    assert await read(guarded(gap=5.0), stream_of(60.0, "one")) == ["one"]


async def test_a_model_may_be_silent_for_a_minute() -> None:
    guard = guard_on_loop(Policy.llm())
    assert await read(guard, stream_of("one", 59.9, "two", 59.9, "three"))
    assert (await ends(read(guard, stream_of("one", 60.1, "two"))))[0] == pytest.approx(179.8)


async def test_a_gaps_time_ends_with_an_error() -> None:
    with pytest.raises(ConnectionRefusedError):
        await read(guarded(gap=5.0), stream_of("one", 1.0, down()))
    await asyncio.sleep(60)


class Stubborn:
    """Answers a cancellation as a step says: with an item, or by ending."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.begun = False

    def __aiter__(self) -> Stubborn:
        return self

    async def __anext__(self) -> str:
        if not self.begun:
            self.begun = True
            return "one"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if self.answer is None:
                raise StopAsyncIteration from None
        return self.answer or "two"


@pytest.mark.parametrize("answer", ["</think>", None])
async def test_a_source_that_swallows_its_timeout_is_late_all_the_same(answer: str | None) -> None:
    guard = guarded(gap=5.0)

    async def connect() -> Any:
        return Stubborn(answer)

    at, said = await ends(read(guard, connect))
    assert (at, verdict(guard)) == (5.0, (1, 1))
    assert "waiting 5 s for the next item" in said


# ---------------------------------------------------------------------- as a whole


ENDLESS = [step for _ in range(1000) for step in (1.0, "word")]


@pytest.mark.parametrize("times", [{}, {"gap": 5.0}, {"attempt": 5.0}, {"gap": 0.5 + 1}])
async def test_a_stream_without_end_is_a_failure(times: Any) -> None:
    guard = guarded(stream_total=20.5, attempts=3, **times)
    at, said = await ends(read(guard, stream_of(*ENDLESS)))
    assert (at, said) == (20.5, "An attempt of 'llm' timed out after 20.5 s of its stream")
    assert verdict(guard) == (1, 1)


async def test_a_stream_that_ends_in_time_is_a_success() -> None:
    guard = guarded(stream_total=20.0, gap=5.0)
    assert len(await read(guard, stream_of(*ENDLESS[:38]))) == 19
    assert verdict(guard) == (1, 0)
    await asyncio.sleep(60)


async def test_the_time_of_a_stream_runs_from_when_its_attempt_was_sent() -> None:
    guard = guarded(stream_total=20.0, attempts=2)
    assert (await ends(read(guard, connecting(15.0, *ENDLESS))))[0] == 20.0


async def test_a_gap_that_comes_first_is_named() -> None:
    guard = guarded(stream_total=20.0, gap=5.0)
    assert "next item" in (await ends(read(guard, stream_of("one", 60.0))))[1]
    assert now() == 5.0
    assert "of its stream" in (await ends(read(guard, stream_of("one", 3.0, *ENDLESS))))[1]
    assert now() == 25.0


async def test_a_gap_is_a_gap_however_long_its_source_takes_to_clean_up() -> None:
    async def words() -> AsyncIterator[str]:
        yield "one"
        try:
            await asyncio.sleep(60.0)
        finally:
            await asyncio.sleep(8.0)

    guard = guarded(stream_total=20.0, gap=5.0)
    at, said = await ends(read(guard, words, pause=11.0))
    assert (at, verdict(guard)) == (24.0, (1, 1))
    assert "waiting 5 s for the next item" in said


GAP_OF_60, GAP_OF_3 = {"gap": 60.0}, {"gap": 3.0}


@pytest.mark.parametrize(
    ("before", "after", "ends_at"),
    [
        (GAP_OF_60, GAP_OF_3, 25.0),
        (GAP_OF_3, GAP_OF_60, 8.0),
        (GAP_OF_60, {"gap": 60.0, "stream_total": 6.0}, 25.0),
    ],
)
async def test_a_stream_keeps_the_policy_it_began_with(
    before: Any, after: Any, ends_at: float
) -> None:
    guard = guarded(**before)
    reading = asyncio.create_task(read(guard, stream_of(5.0, "one", 20.0, "two")))
    await asyncio.sleep(1.0)
    guard.update_policy(guarded(**after).policy)
    with contextlib.suppress(AttemptTimeoutError):
        assert await reading == ["one", "two"]
    assert now() == ends_at


@pytest.mark.parametrize("times", [{"gap": 20.0}, {"attempt": 20.0}, {"attempt": 9.0, "gap": 20.0}])
async def test_suspended_time_does_not_count_toward_a_stream(times: Any) -> None:
    async def words(last: float) -> AsyncIterator[str]:
        yield "one"
        call = current_call.get()
        assert call is not None
        with call.suspend_timers():
            await asyncio.sleep(100.0)
        await asyncio.sleep(last)
        yield "two"

    guard = guarded(**times)
    assert [word async for word in await guard.call(words, 19.0)] == ["one", "two"]
    assert now() == 119.0
    stream = await guard.call(words, 60.0)
    await anext(stream)
    with pytest.raises(AttemptTimeoutError):
        await anext(stream)
    assert now() == 119.0 + 100.0 + 20.0


@pytest.mark.parametrize("times", [{}, {"attempt": 30.0}, {"first_item": 30.0}])
async def test_the_first_item_is_a_part_of_the_whole(times: Any) -> None:
    at, said = await ends(read(guarded(stream_total=9.0, **times), stream_of(20.0, "one")))
    assert (at, said) == (9.0, "An attempt of 'llm' timed out waiting 9 s for the first item")


async def test_a_shorter_time_for_the_first_item_stays() -> None:
    assert (await ends(read(guarded(stream_total=9.0, attempt=3.0), stream_of(20.0))))[0] == 3.0
    assert (await ends(read(guarded(stream_total=9.0, first_item=2.0), stream_of(20.0))))[0] == 5.0


@pytest.mark.parametrize(("pause", "failed"), [(0.5, 1), (0.9, 1), (1.1, 0), (30.0, 0)])
async def test_a_reader_that_took_most_of_the_time_is_to_blame(pause: float, failed: int) -> None:
    guard = guarded(stream_total=20.0)
    await ends(read(guard, stream_of(*ENDLESS), pause=pause))
    assert verdict(guard) == (failed, failed)


async def test_a_cancellation_within_a_stream_is_no_verdict() -> None:
    guard = guarded(stream_total=20.0, gap=5.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await read(guard, stream_of(*ENDLESS))
    assert verdict(guard) == (0, 0)


async def test_one_timer_is_armed_for_the_end_of_a_stream() -> None:
    loop, armed = asyncio.get_running_loop(), list[float]()
    call_at = loop.call_at

    def noted(when: float, callback: Any, *rest: Any, **more: Any) -> asyncio.TimerHandle:
        if getattr(callback, "__name__", "") == "_fire":
            armed.append(when)
        return call_at(when, callback, *rest, **more)

    loop.call_at = noted  # type: ignore[assignment, method-assign]
    await ends(read(guarded(stream_total=20.5), stream_of("one", *ENDLESS)))
    assert armed == [20.5, 20.5]  # one for the first item, one for the rest
