"""A stream that is read to its end inside one call, and asked for again as a whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    ConcurrencyPolicy,
    DeadlineExceededError,
    Guard,
    Guards,
    RetryPolicy,
    StreamPolicy,
    TimeoutPolicy,
    TruncatedStreamError,
    UnsupportedCallError,
    collected,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import CallSucceeded
from support.guards import down, guard_on_loop, now, published_by

pytestmark = pytest.mark.anyio


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


WHOLE = [chunk("one"), chunk("two", "stop")]
HALF = [chunk("one")]


class Source:
    """Streams its next run of steps at each call: waits a number, raises an error, else an item."""

    def __init__(self, *runs: list[Any]) -> None:
        self.runs = list(runs)
        self.calls = 0
        self.open = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        run = self.runs[min(self.calls, len(self.runs) - 1)]
        self.calls += 1
        self.open += 1
        try:
            for step in run:
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.open -= 1


def guarded(attempts: int = 3, **changes: Any) -> Guard:
    retry = RetryPolicy(attempts=attempts, jitter="none", initial_backoff=1.0)
    plain: dict[str, Any] = {"timeout": TimeoutPolicy(attempt=None, total=None), "retry": retry}
    return guard_on_loop(**(plain | changes))


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


# ---------------------------------------------------------------------- what comes of it


async def test_a_collected_stream_is_one_successful_call_with_all_items() -> None:
    guard, source = guarded(), Source(WHOLE)
    published = published_by(guard)
    assert await guard.call(collected(source.__call__), "prompt", stream=True) == WHOLE
    assert verdict(guard) == (1, 0)
    assert [type(event) for event in published] == [CallSucceeded]
    assert source.open == 0


@pytest.mark.parametrize(
    "broken", [HALF, [chunk("one"), down()], [chunk("one"), ConnectionResetError()]]
)
async def test_a_stream_that_breaks_is_retried_as_a_whole(broken: list[Any]) -> None:
    guard, source = guarded(), Source(broken, broken, WHOLE)
    assert await guard.call(collected(source.__call__)) == WHOLE
    assert (source.calls, source.open, now()) == (3, 0, 3.0)
    assert verdict(guard) == (3, 2)


async def test_the_last_truncation_is_raised_when_attempts_are_used_up() -> None:
    source = Source(HALF)
    with pytest.raises(TruncatedStreamError, match="'llm' was cut off before its finish marker"):
        await guarded().call(collected(source.__call__))
    assert source.calls == 3


async def test_a_fatal_error_in_mid_stream_is_not_retried() -> None:
    source = Source([chunk("one"), ValueError("a bug")])
    with pytest.raises(ValueError, match="a bug"):
        await guarded().call(collected(source.__call__))
    assert source.calls == 1


async def test_a_policy_may_do_without_finish_markers() -> None:
    guard = guarded(stream=StreamPolicy(finish_marker=False))
    assert await guard.call(collected(Source(HALF).__call__)) == HALF


async def test_an_empty_stream_is_an_empty_list() -> None:
    assert await guarded().call(collected(Source([]).__call__)) == []


# ---------------------------------------------------------------------- how long it may take


@pytest.mark.parametrize(
    ("times", "run", "error", "when"),
    [
        ({"gap": 2.0}, [chunk("one"), 5.0], AttemptTimeoutError, 2.0),
        ({"first_item": 2.0}, [5.0], AttemptTimeoutError, 2.0),
        ({"attempt": 3.0, "gap": 2.0}, [chunk("one"), 1.5] * 9, AttemptTimeoutError, 3.0),
        ({"stream_total": 4.0}, [chunk("one"), 1.5] * 9, AttemptTimeoutError, 4.0),
        ({"total": 3.5, "gap": 2.0}, [chunk("one"), 1.5] * 9, DeadlineExceededError, 3.5),
        ({"total": 3.5, "first_item": 9.0}, [9.0], DeadlineExceededError, 3.5),
    ],
)
async def test_each_timeout_of_the_policy_ends_an_attempt(
    times: Any, run: list[Any], error: type[Exception], when: float
) -> None:
    timeout = TimeoutPolicy(**({"attempt": None, "total": None} | times))
    guard, source = guarded(attempts=1, timeout=timeout), Source(run)
    with pytest.raises(error):
        await guard.call(collected(source.__call__))
    task = asyncio.current_task()
    assert task is not None
    assert (now(), task.cancelling(), source.open) == (when, 0, 0)


async def test_the_first_item_timeout_starts_when_the_call_is_sent() -> None:
    await asyncio.sleep(7.0)
    timeout = TimeoutPolicy(attempt=None, total=None, first_item=2.0)

    async def connect() -> AsyncIterator[Any]:
        await asyncio.sleep(1.5)
        return Source([60.0])()

    with pytest.raises(AttemptTimeoutError, match="waiting 2 s for the first item"):
        await guarded(attempts=1, timeout=timeout).call(collected(connect))
    assert now() == 9.0


async def test_a_stalled_stream_is_retried() -> None:
    guard = guarded(timeout=TimeoutPolicy(attempt=None, total=None, gap=2.0))
    source = Source([chunk("one"), 60.0], WHOLE)
    assert await guard.call(collected(source.__call__)) == WHOLE
    assert now() == 4.0


async def test_a_cancellation_is_passed_on_and_not_counted() -> None:
    guard, source = guarded(), Source([chunk("one"), 60.0])
    task = asyncio.create_task(guard.call(collected(source.__call__)))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (verdict(guard), source.calls, source.open) == ((0, 0), 1, 0)


@pytest.mark.parametrize(
    "times", [{"attempt": 20.0}, {"total": 20.0}, {"gap": 9.0, "attempt": 20.0}]
)
async def test_suspended_timers_cost_the_attempt_no_time(times: Any) -> None:
    async def words(last: float) -> AsyncIterator[Any]:
        yield chunk("one")
        call = current_call.get()
        assert call is not None
        with call.suspend_timers():
            await asyncio.sleep(100.0)
        await asyncio.sleep(last)
        yield chunk("two", "stop")

    guard = guarded(attempts=1, timeout=TimeoutPolicy(**({"attempt": None, "total": None} | times)))
    assert await guard.call(collected(words), 8.0) == WHOLE
    assert now() == 108.0
    with pytest.raises((AttemptTimeoutError, DeadlineExceededError)):
        await guard.call(collected(words), 60.0)


# ---------------------------------------------------------------------- together with others


async def test_a_collected_stream_holds_its_permit_to_its_end() -> None:
    guard = guarded(concurrency=ConcurrencyPolicy(max_concurrent=1))
    source = Source([chunk("one"), 5.0, chunk("two", "stop")])
    await asyncio.gather(*(guard.call(collected(source.__call__)) for _ in range(3)))
    assert now() == 15.0


async def test_nested_calls_of_the_same_guard_pass_through_while_it_is_read() -> None:
    guard = guarded(concurrency=ConcurrencyPolicy(max_concurrent=1, max_wait=0.0))

    async def inner() -> str:
        return "inner"

    async def words() -> AsyncIterator[str]:
        yield await guard.call(inner)
        yield await guard.call(inner)

    assert await guard.call(collected(words)) == ["inner", "inner"]
    assert verdict(guard) == (1, 0)


async def test_collected_goes_below_resilient_as_a_decorator() -> None:
    owner = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)
    source = Source(HALF, WHOLE)

    @resilient("llm.a", registry=owner)
    @collected
    async def pieces(prompt: str) -> AsyncIterator[Any]:
        """What the model says."""
        async for item in source(prompt):
            yield item

    assert await pieces("…") == WHOLE
    assert pieces.__doc__ == "What the model says."
    assert verdict(owner.get("llm.a")) == (2, 1)


async def test_a_chain_falls_back_when_a_stream_stays_truncated() -> None:
    owner = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)
    links = [
        resilient(name, registry=owner)(collected(Source(run).__call__))
        for name, run in (("llm.a", HALF), ("llm.b", WHOLE))
    ]
    assert await with_fallbacks(*links, registry=owner)() == WHOLE


async def awaited(source: Source) -> AsyncIterator[Any]:
    return source()


@pytest.mark.parametrize("breaker", [None, BreakerPolicy(mode="disabled")])
async def test_a_function_may_return_its_stream(breaker: Any) -> None:
    guard = guarded(breaker=breaker or BreakerPolicy())
    source = Source(HALF, WHOLE)
    assert await guard.call(collected(awaited), source) == WHOLE


async def test_collected_only_reads_without_a_guard() -> None:
    source = Source(HALF)
    assert await collected(source.__call__)() == HALF
    source = Source([chunk("one"), down()])
    with pytest.raises(ConnectionRefusedError):
        await collected(source.__call__)()
    assert source.open == 0


async def test_a_source_that_does_not_close_itself_is_closed() -> None:
    class Connection:
        closed = 0

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            if next(steps):
                raise ConnectionResetError

        async def close(self) -> None:
            self.closed += 1

    connection = Connection()

    async def connect() -> Any:
        return connection

    for call in (collected(connect), lambda: guarded(attempts=1).call(collected(connect))):
        connection.closed, steps = 0, iter([False, True])
        with pytest.raises(ConnectionResetError):
            await call()
        assert connection.closed


async def answer() -> str:
    return "a text"


@pytest.mark.parametrize("function", [answer, lambda: 5])
async def test_a_result_that_is_no_stream_is_one_error(function: Callable[..., Any]) -> None:
    guard = guarded()
    with pytest.raises(UnsupportedCallError, match=r"collected\(.*\) needs a stream, not"):
        await guard.call(collected(function))
    assert verdict(guard) == (0, 0)


async def test_a_task_that_outlives_its_call_only_reads() -> None:
    guard, source = guarded(), Source(HALF)

    async def begin() -> asyncio.Task[list[Any]]:
        async def later() -> list[Any]:
            await asyncio.sleep(1.0)
            return await collected(source.__call__)()

        return asyncio.create_task(later())

    assert await (await guard.call(begin)) == HALF


async def test_a_malformed_event_outside_of_an_sdk_is_a_bug() -> None:
    async def words() -> AsyncIterator[Any]:
        yield json.loads("{")

    with pytest.raises(json.JSONDecodeError):
        await guarded().call(collected(words))
