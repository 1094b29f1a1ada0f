"""Readers of a guarded stream: other tasks, loops and threads, and readers that stop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from threading import Thread
from typing import Any

import pytest

from lightrag_resilience import (
    Guard,
    Policy,
    TimeoutPolicy,
    UnsupportedCallError,
)
from support.guards import guard_on_loop
from support.streams import ONE_PERMIT, Source, collected, free_permits, verdict

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("read", [0, 1])
async def test_closing_early_is_no_verdict_and_closes_the_source(read: int) -> None:
    guard, source = guard_on_loop(concurrency=ONE_PERMIT), Source("one", "two", "three")
    stream = await guard.call(source.words)
    for _ in range(read):
        await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert (source.closed, verdict(guard), free_permits(guard)) == (1, (0, 0), 1)
    assert await collected(stream) == []


async def test_a_stream_that_is_dropped_releases_its_permit() -> None:
    guard = guard_on_loop(concurrency=ONE_PERMIT)
    stream = await guard.call(Source("one", "two").words)
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0)
    assert (verdict(guard), free_permits(guard)) == ((0, 0), 1)


@pytest.mark.parametrize("times", [{}, {"attempt": 30.0}, {"gap": 30.0}])
@pytest.mark.parametrize("is_read", [True, False])
async def test_a_stream_that_a_task_returned_is_gone_once_it_is_dropped(
    times: Any,
    is_read: bool,  # noqa: FBT001 - a test's case
) -> None:
    timeout = TimeoutPolicy(**{"attempt": None, "total": None} | times)
    guard = guard_on_loop(concurrency=ONE_PERMIT, timeout=timeout)

    async def begin() -> AsyncIterator[str]:
        stream: AsyncIterator[str] = await guard.call(Source("one", 1.0, "two", "three").words)
        if is_read:
            assert [await anext(stream), await anext(stream)] == ["one", "two"]
        return stream

    gc.collect()
    gc.disable()
    try:
        stream = await asyncio.create_task(begin())
        await asyncio.sleep(0)  # the loop has the task until then
        assert (len(guard.gate.running), free_permits(guard)) == (1, 0)
        del stream
        assert (len(guard.gate.running), free_permits(guard)) == (0, 1)
    finally:
        gc.enable()


async def test_a_second_reader_gets_an_error_that_is_not_counted() -> None:
    class Slow:
        async def words(self) -> AsyncIterator[str]:
            yield "one"
            await asyncio.sleep(5.0)
            yield "two"

    guard = guard_on_loop()
    stream = await guard.call(Slow().words)
    assert await anext(stream) == "one"
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(1.0)
    with pytest.raises(RuntimeError, match="already running"):
        await anext(stream)
    assert await reader == "two"
    assert await collected(stream) == []
    assert verdict(guard) == (1, 0)


@pytest.mark.parametrize("is_shut_down", [True, False])
def test_reading_on_another_loop_raises_and_releases_the_permit(
    is_shut_down: bool,  # noqa: FBT001 - a test's case
) -> None:
    class Endless:
        def __init__(self) -> None:
            self.closed_on: list[asyncio.AbstractEventLoop] = []

        def __aiter__(self) -> Endless:
            return self

        async def __anext__(self) -> str:
            return "one"

        async def aclose(self) -> None:
            self.closed_on.append(asyncio.get_running_loop())

    guard, source = Guard("llm", Policy(concurrency=ONE_PERMIT)), Endless()

    async def connect() -> Endless:
        return source

    async def begin() -> AsyncIterator[str]:
        stream: AsyncIterator[str] = await guard.call(connect)
        assert await anext(stream) == "one"
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin())
    assert (len(guard.gate.running), free_permits(guard)) == (1, 0)
    if is_shut_down:
        loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.raises(UnsupportedCallError, match="on the event loop that began it"):
        asyncio.run(collected(stream))
    assert (verdict(guard), len(guard.gate.running), free_permits(guard)) == ((0, 0), 0, 1)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert source.closed_on == [loop]
    loop.close()


@pytest.mark.parametrize("has_loop", [True, False])
def test_reading_in_another_thread_beside_a_busy_loop_raises(*, has_loop: bool) -> None:
    async def words() -> AsyncIterator[str]:
        for word in ("one", "two", "three"):
            yield word

    guard = Guard("llm", Policy())
    logged: list[BaseException] = []

    def read(stream: AsyncIterator[str]) -> None:
        try:
            if has_loop:
                asyncio.run(collected(stream))
            else:
                anext(stream).__await__().send(None)
        except (UnsupportedCallError, StopIteration) as error:
            logged.append(error)

    async def be_busy(stream: AsyncIterator[str]) -> None:
        other = Thread(target=read, args=(stream,))
        other.start()
        other.join()  # the loop's task is this one all the while

    async def begin() -> None:
        stream: AsyncIterator[str] = await guard.call(words)
        assert await anext(stream) == "one"
        await asyncio.create_task(be_busy(stream))

    asyncio.run(begin())
    assert [str(error) for error in logged] == [
        "A stream must be read on the event loop that began it"
    ]
    assert (verdict(guard), len(guard.gate.running)) == ((0, 0), 0)


def test_a_stream_goes_on_where_its_loop_is_run_in_another_thread() -> None:
    async def words() -> AsyncIterator[str]:
        for word in ("one", "two", "three"):
            yield word

    guard, left = Guard("llm", Policy()), []

    async def begin() -> AsyncIterator[str]:
        stream: AsyncIterator[str] = await guard.call(words)
        assert await anext(stream) == "one"
        return stream

    async def go_on(stream: AsyncIterator[str]) -> None:
        left.extend(await collected(stream))

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin())
    other = Thread(target=lambda: loop.run_until_complete(go_on(stream)))
    other.start()
    other.join()
    loop.close()
    assert left == ["two", "three"]
    assert verdict(guard) == (1, 0)
