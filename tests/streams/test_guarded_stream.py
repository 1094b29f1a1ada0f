"""A stream is one call: begun like a call, judged at its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    BulkheadFullError,
    CircuitOpenError,
    ConcurrencyPolicy,
    RetryPolicy,
    State,
    TimeoutPolicy,
    TruncatedStreamError,
)
from lightrag_resilience.calls.call_context import inside_guarded_call
from lightrag_resilience.streams.guarded_stream import GuardedStream
from support.guards import down, guard_on_loop, now, outcomes
from support.streams import ONE_PERMIT, Source, collected, free_permits, verdict

pytestmark = pytest.mark.anyio


async def test_all_items_are_passed_on_and_success_is_published_at_the_end() -> None:
    guard, source = guard_on_loop(concurrency=ONE_PERMIT), Source("one", 1.0, "two", "three")
    stream = await guard.call(source.words)
    assert isinstance(stream, GuardedStream)
    assert await anext(stream) == "one"
    assert (verdict(guard), free_permits(guard)) == ((0, 0), 0)
    assert await collected(stream) == ["two", "three"]
    assert (verdict(guard), free_permits(guard)) == ((1, 0), 1)
    assert await collected(stream) == []


async def test_an_empty_stream_is_a_success() -> None:
    guard = guard_on_loop()
    assert await collected(await guard.call(Source().words)) == []
    assert verdict(guard) == (1, 0)


async def test_an_empty_stream_leaves_no_timer_running() -> None:
    guard = guard_on_loop(attempt_timeout=5.0)
    assert await collected(await guard.call(Source().words)) == []
    assert guard._loop_state is not None
    assert guard._loop_state.timer is not None
    assert not guard._loop_state.timer.running()
    await asyncio.sleep(60.0)


async def test_a_stream_that_cannot_begin_is_begun_again() -> None:
    guard = guard_on_loop(retry=RetryPolicy(attempts=3))
    source = Source(down())
    with pytest.raises(ConnectionRefusedError):
        await guard.call(source.words)
    assert (source.begun, source.closed, verdict(guard)) == (3, 3, (3, 3))


async def test_a_stream_that_breaks_later_is_not_begun_again() -> None:
    guard, error = guard_on_loop(retry=RetryPolicy(attempts=3), concurrency=ONE_PERMIT), down()
    source = Source("one", error)
    stream = await guard.call(source.words)
    assert await anext(stream) == "one"
    with pytest.raises(ConnectionRefusedError) as raised:
        await anext(stream)
    assert raised.value is error
    assert (source.begun, source.closed, verdict(guard), free_permits(guard)) == (1, 1, (1, 1), 1)
    assert await collected(stream) == []


async def test_a_stream_that_another_task_closes_is_settled_once() -> None:
    class Source:
        closed = asyncio.Event()

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> str:
            if not self.closed.is_set() and now() == 0.0:
                return "one"
            await self.closed.wait()
            raise down()

        async def aclose(self) -> None:
            self.closed.set()

    async def begin() -> Source:
        await asyncio.sleep(0)
        return Source()

    guard = guard_on_loop(concurrency=ONE_PERMIT)
    stream: Any = await guard.call(begin)
    await anext(stream)
    await asyncio.sleep(1.0)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1.0)
    await stream.aclose()
    with pytest.raises(ConnectionRefusedError):
        await reading
    assert (verdict(guard), free_permits(guard)) == ((0, 0), 1)


async def test_a_stream_that_another_task_closes_ends_with_the_item_under_way() -> None:
    class Endless:
        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> float:
            await asyncio.sleep(2.0)
            return now()

    async def begin() -> Endless:
        return Endless()

    guard = guard_on_loop(concurrency=ONE_PERMIT)
    stream: Any = await guard.call(begin)
    assert await anext(stream) == 2.0
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1.0)
    await stream.aclose()
    assert await reading == 4.0
    assert await collected(stream) == []
    assert (verdict(guard), free_permits(guard)) == ((0, 0), 1)


async def test_items_that_were_read_are_not_kept() -> None:
    class Item:
        pass

    class Items:
        async def all(self) -> AsyncIterator[Item]:
            for _ in range(3):
                yield Item()
                assert [item() for item in seen] == [None] * len(seen)

    seen: list[Any] = []
    async for item in await guard_on_loop().call(Items().all):
        seen.append(weakref.ref(item))
        del item
    assert len(seen) == 3


async def test_an_odd_item_does_not_break_its_stream() -> None:
    choice: Any = {"index": 0, "finish_reason": None}
    steps: list[Any] = [
        {"choices": [choice]},
        "odd",
        {"choices": [choice | {"finish_reason": "x"}]},
    ]
    guard = guard_on_loop()
    assert await collected(await guard.call(Source(*steps).words)) == steps
    assert verdict(guard) == (1, 0)


class Deaf:
    """Waits for ever, closed or not."""

    async def words(self) -> AsyncIterator[str]:
        yield "one"
        await asyncio.get_running_loop().create_future()


async def test_a_reader_whose_stream_was_closed_is_not_left_waiting() -> None:
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=None, total=None, gap=10.0))
    stream: Any = await guard.call(Deaf().words)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(1.0)
    with pytest.raises(RuntimeError, match="already running"):
        await stream.aclose()
    with pytest.raises(AttemptTimeoutError):
        await reading
    assert (now(), verdict(guard)) == (10.0, (0, 0))


WAYS_TO_END: dict[str, tuple[Any, ...]] = {
    "read to its end": ("one", 1.0, "two"),
    "closed": ("one", 1.0, "two", "three"),
    "broken": ("one", 1.0, "two", down()),
    "late": ("one", 1.0, "two", 90.0),
}


@pytest.mark.parametrize("steps", WAYS_TO_END.values(), ids=list(WAYS_TO_END))
async def test_a_stream_that_has_ended_leaves_no_timer_behind(steps: tuple[Any, ...]) -> None:
    loop: Any = asyncio.get_running_loop()
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=None, total=None, gap=60.0))
    stream = await guard.call(Source(*steps).words)
    with contextlib.suppress(ConnectionRefusedError, AttemptTimeoutError):
        async for word in stream:
            if word == "three":
                await stream.aclose()
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []


async def test_a_fatal_error_in_a_stream_is_not_the_dependencys_fault() -> None:
    guard = guard_on_loop()
    with pytest.raises(ValueError, match="a bug"):
        await collected(await guard.call(Source("one", ValueError("a bug")).words))
    assert verdict(guard) == (0, 0)


@pytest.mark.parametrize("steps", [(60.0, "one"), ("one", 60.0, "two")])
async def test_a_stream_that_stalls_ends_at_the_attempt_timeout(steps: Any) -> None:
    guard, source = guard_on_loop(attempt_timeout=5.0), Source(*steps)
    with pytest.raises(AttemptTimeoutError) as ended:
        await collected(await guard.call(source.words))
    assert now() == 5.0
    assert isinstance(ended.value.__cause__, asyncio.CancelledError)
    assert (source.closed, verdict(guard)) == (1, (1, 1))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_stall_says_that_an_item_was_waited_for() -> None:
    stream = await guard_on_loop(attempt_timeout=5.0).call(Source("one", 60.0).words)
    await anext(stream)
    with pytest.raises(AttemptTimeoutError, match="waiting 5 s for the next item"):
        await anext(stream)


async def test_a_long_stream_with_short_gaps_may_outlast_every_timeout() -> None:
    guard = guard_on_loop(attempt_timeout=5.0, total_timeout=8.0)
    source = Source(*(step for _ in range(100) for step in (4.0, "word")))
    assert len(await collected(await guard.call(source.words))) == 100
    assert now() == 400.0


async def test_a_slow_reader_is_not_the_dependencys_fault() -> None:
    guard = guard_on_loop(attempt_timeout=5.0)
    async for _ in await guard.call(Source("one", "two", "three").words):
        await asyncio.sleep(60.0)
    assert verdict(guard) == (1, 0)


async def test_slow_is_a_stream_whose_first_item_is_late() -> None:
    guard = guard_on_loop(breaker=BreakerPolicy(slow_call=3.0))
    await collected(await guard.call(Source("one", 60.0, "two").words))
    assert guard.breaker.snapshot().slow == 0
    await collected(await guard.call(Source(3.0, "one").words))
    assert guard.breaker.snapshot().slow == 1


async def test_a_stream_is_a_probe_until_its_end() -> None:
    guard = guard_on_loop()
    guard.breaker.half_open()
    stream = await guard.call(Source("one", "two").words)
    assert guard.breaker.snapshot().probes == 1
    await collected(stream)
    assert guard.breaker.state is State.CLOSED


async def test_a_probe_stream_longer_than_its_lease_keeps_its_slot_and_counts() -> None:
    guard = guard_on_loop(breaker=BreakerPolicy(probe_lease=60.0))
    guard.breaker.half_open()
    stream = await guard.call(Source("one", 200.0, "two", 90.0, "three").words)
    reading = asyncio.create_task(collected(stream))
    await asyncio.sleep(199.0)
    with pytest.raises(CircuitOpenError):
        await guard.call(Source("other").words)
    await reading
    assert guard.breaker.state is State.CLOSED


async def test_a_probe_stream_that_never_ends_loses_its_slot() -> None:
    guard = guard_on_loop(breaker=BreakerPolicy(probe_lease=60.0))
    guard.breaker.half_open()
    stream = await guard.call(Source("one", 1e6).words)
    reading = asyncio.create_task(collected(stream))
    await asyncio.sleep(301.0)
    assert await collected(await guard.call(Source("other").words)) == ["other"]
    assert guard.breaker.state is State.CLOSED
    reading.cancel()
    await asyncio.wait({reading})


async def test_the_source_runs_inside_its_call_and_the_reader_does_not() -> None:
    guard, source = guard_on_loop(), Source("one", "two")
    async for _ in await guard.call(source.words):
        assert not inside_guarded_call()
    assert source.owned == [True, True]


async def test_a_source_is_closed_outside_of_the_call_that_it_failed() -> None:
    class Closed:
        def __init__(self) -> None:
            self.steps: Iterator[str | Exception] = iter(["one", down()])
            self.was_owned: bool | None = None

        def __aiter__(self) -> Closed:
            return self

        async def __anext__(self) -> str:
            step = next(self.steps)
            if isinstance(step, Exception):
                raise step
            return step

        async def aclose(self) -> None:
            self.was_owned = inside_guarded_call()

    source = Closed()

    async def begin() -> Closed:
        return source

    with pytest.raises(ConnectionError):
        await collected(await guard_on_loop(retry=RetryPolicy(attempts=1)).call(begin))
    assert source.was_owned is False


async def test_a_source_without_aclose_is_read_and_not_closed() -> None:
    class Bare:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Bare:
            return self

        async def __anext__(self) -> int:
            self.left -= 1
            if not self.left:
                raise StopAsyncIteration
            return self.left

    async def connect() -> Bare:
        return Bare()

    guard = guard_on_loop()
    stream: Any = await guard.call(connect)
    assert await anext(stream) == 2
    await stream.aclose()
    assert verdict(guard) == (0, 0)


class Response:
    """What holds a stream, as httpx's responses do: the iterator itself cannot be closed."""

    def __init__(self, *steps: Any) -> None:
        self._words = Source(*steps).words()
        self.closed = False

    async def connect(self) -> Response:
        return self

    def __aiter__(self) -> Any:
        return self.Iterator(self._words)

    async def aclose(self) -> None:
        self.closed = True

    class Iterator:
        def __init__(self, words: AsyncIterator[str]) -> None:
            self._words = words

        async def __anext__(self) -> str:
            return await anext(self._words)

        def __aiter__(self) -> Any:
            return self


async def test_a_source_is_closed_through_the_response_that_holds_it() -> None:
    response = Response("one", "two")
    stream: Any = await guard_on_loop().call(response.connect)
    assert not response.closed
    await stream.aclose()
    assert response.closed


@pytest.mark.parametrize("steps", [(down(),), (60.0, "one"), ("one", down()), ("one", 60.0)])
async def test_a_response_that_fails_is_closed(steps: Any) -> None:
    response = Response(*steps)
    guard = guard_on_loop(attempt_timeout=5.0)

    async def read() -> None:
        stream: Any = await guard.call(response.connect)
        await collected(stream)

    with pytest.raises((ConnectionRefusedError, AttemptTimeoutError)):
        await read()
    assert response.closed


async def test_an_empty_sdk_stream_is_retried_and_releases_its_permit_once() -> None:
    class AsyncStream:
        __module__ = "openai"
        open = 0

        def __aiter__(self) -> AsyncIterator[Any]:
            return self

        async def __anext__(self) -> Any:
            raise StopAsyncIteration

    async def begin() -> Any:
        return AsyncStream()

    retry = RetryPolicy(attempts=3, jitter="none")
    bulkhead = ConcurrencyPolicy(max_concurrent=1, max_queue=0)
    guard = guard_on_loop(retry=retry, concurrency=bulkhead, consecutive_failures=None)
    with pytest.raises(TruncatedStreamError, match="before its first item"):
        await guard.call(begin)
    assert (guard.breaker.snapshot().failed, now()) == (3, 1.5)
    gc.collect()

    async def wait() -> None:
        await asyncio.sleep(1.0)

    outcome = await outcomes([guard.call(wait), guard.call(wait)])
    assert [type(each) for each in outcome] == [type(None), BulkheadFullError]
