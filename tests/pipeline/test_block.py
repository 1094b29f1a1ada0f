"""A block of an async generator ends with its generator, in any task and on any loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    ConcurrencyPolicy,
    Guard,
    TimeoutPolicy,
)
from lightrag_resilience.calls.call_context import current_call, inside_guarded_call
from support.guards import down, guard_on_loop, now

pytestmark = pytest.mark.anyio

ONE_PERMIT = ConcurrencyPolicy(max_concurrent=1, max_wait=0.0)


async def words(guard: Guard, number: int = 3) -> AsyncGenerator[int, None]:
    async with guard:
        for each in range(number):
            yield each


async def words_by_stack(guard: Guard, number: int = 3) -> AsyncGenerator[int, None]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(guard)
        for each in range(number):
            yield each


async def words_by_session(guard: Guard, number: int = 3) -> AsyncGenerator[int, None]:
    async with session(guard):
        for each in range(number):
            yield each


@asynccontextmanager
async def session(guard: Guard) -> AsyncIterator[str]:
    async with guard:
        yield "connection"


Words = Callable[..., AsyncGenerator[int, None]]
WAYS: list[Words] = [words, words_by_stack, words_by_session]


async def here(step: Awaitable[Any]) -> Any:
    return await step


async def in_a_task(step: Any) -> Any:
    return await asyncio.ensure_future(step)


async def in_an_empty_context(step: Any) -> Any:
    async def run() -> Any:
        return await step

    return await asyncio.get_running_loop().create_task(run(), context=contextvars.Context())


STEPS = [here, in_a_task, in_an_empty_context]


def is_at_rest(guard: Guard) -> bool:
    occupancy = guard.occupancy
    return not (guard.gate.running or guard.gate.in_generators or occupancy.in_use)


async def ask() -> str:
    return "answer"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
async def test_generators_that_are_read_in_turns_end_their_own_blocks(
    way: Words, step: Any
) -> None:
    guard = guard_on_loop(concurrency=ConcurrencyPolicy(max_concurrent=2, max_wait=0.0))
    first, second = way(guard), way(guard, 2)
    turns = (first, second, first, second, first)
    seen = [await step(anext(generator)) for generator in turns]
    assert guard.occupancy.in_use == 2
    for generator in (first, second):
        with pytest.raises(StopAsyncIteration):
            await step(anext(generator))
    assert seen == [0, 0, 1, 1, 2]
    assert is_at_rest(guard)
    assert guard.breaker.snapshot().calls == 2
    assert not inside_guarded_call()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_generator_that_is_closed_or_fails_releases_its_permit(
    way: Words, step: Any
) -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    generator = way(guard)
    await step(anext(generator))
    await step(generator.aclose())
    assert is_at_rest(guard)
    generator = way(guard)
    await step(anext(generator))
    with pytest.raises(ConnectionRefusedError):
        await step(generator.athrow(down()))
    assert is_at_rest(guard)
    assert guard.breaker.snapshot().failed == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_generator_that_is_dropped_releases_its_permit(way: Words) -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    generator = way(guard)
    await anext(generator)
    del generator
    gc.collect()
    await asyncio.sleep(1.0)
    assert is_at_rest(guard)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
async def test_what_the_reader_calls_between_two_items_is_guarded(way: Words, step: Any) -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    generator = way(guard)
    await step(anext(generator))
    assert not inside_guarded_call()
    with pytest.raises(BulkheadFullError):
        await guard.call(ask)
    with pytest.raises(BulkheadFullError):
        await asyncio.create_task(guard.call(ask))
    await step(generator.aclose())
    assert await guard.call(ask) == "answer"


async def test_what_the_generator_calls_itself_passes_straight_through() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)

    async def answers() -> AsyncIterator[str]:
        async with guard:
            yield await guard.call(ask)
            for answer in await asyncio.gather(guard.call(ask), guard.call(ask)):
                yield answer
            async with guard:
                yield await guard.call(ask)

    async for _ in answers():
        assert not inside_guarded_call()
    assert guard.breaker.snapshot().calls == 1
    assert is_at_rest(guard)


async def test_the_body_of_a_context_manager_is_inside_its_block() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    async with session(guard):
        assert inside_guarded_call()
        assert await guard.call(ask) == "answer"
    assert not inside_guarded_call()
    assert guard.breaker.snapshot().calls == 1


async def test_a_context_manager_may_end_in_another_task() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    manager = session(guard)
    await asyncio.create_task(manager.__aenter__())
    await asyncio.create_task(manager.__aexit__(None, None, None))
    assert is_at_rest(guard)


async def test_blocks_inside_each_other_end_from_the_inside() -> None:
    outer, inner = guard_on_loop(), guard_on_loop()

    async def nested() -> AsyncIterator[int]:
        async with outer:
            async with inner, outer:
                yield 1
            assert not inner.gate.running
            assert len(outer.gate.running) == 1
            yield 2

    assert [item async for item in nested()] == [1, 2]
    assert (outer.breaker.snapshot().calls, inner.breaker.snapshot().calls) == (1, 1)
    assert current_call.get() is None


async def test_many_blocks_that_end_elsewhere_leave_nothing_behind() -> None:
    guard = guard_on_loop()
    for _ in range(3):
        generator = words(guard, 1)
        await anext(generator)
        await in_an_empty_context(generator.aclose())
    last: Any = current_call.get()
    assert last.owner is None
    assert last.before is None


async def test_the_readers_time_is_not_that_of_the_block() -> None:
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=5.0, total=None))
    generator = words(guard)
    async for _ in generator:
        await asyncio.sleep(20.0)
    task = asyncio.current_task()
    assert task is not None
    assert (now(), task.cancelling(), guard.breaker.snapshot().failed) == (60.0, 0, 0)


async def test_a_wait_of_the_generator_times_out() -> None:
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=5.0, total=None))

    async def slow() -> AsyncIterator[int]:
        async with guard:
            yield 1
            await asyncio.sleep(60.0)

    generator = slow()
    await anext(generator)
    with pytest.raises(AttemptTimeoutError):
        await anext(generator)
    assert (now(), guard.breaker.snapshot().failed) == (5.0, 1)


async def test_a_cancellation_of_another_task_is_no_timeout() -> None:
    guard = guard_on_loop(timeout=TimeoutPolicy(attempt=5.0, total=None))

    async def slow() -> AsyncIterator[int]:
        async with guard:
            yield 1
            await asyncio.sleep(60.0)

    generator = slow()
    await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(anext(generator))
    await asyncio.sleep(10.0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (guard.breaker.snapshot().failed, is_at_rest(guard)) == (0, True)


async def test_a_rejected_block_leaves_nothing_behind() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    generator = words(guard)
    await anext(generator)
    with pytest.raises(BulkheadFullError):
        await anext(words(guard))
    await generator.aclose()
    assert is_at_rest(guard)
