"""Contract tests: each private part of asyncio is, on this Python, as `asyncio_compat` expects."""

from __future__ import annotations

import asyncio
import functools
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lightrag_resilience.runtime.asyncio_compat import (
    current_task,
    is_runner_interrupt,
    running_loop,
)


def test_the_current_task_of_a_loop_is_seen_from_every_thread() -> None:
    async def look() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert current_task(loop) is task
        with ThreadPoolExecutor(1) as other:  # waits for it without a switch to another task
            assert other.submit(current_task, loop).result() is task
        assert await asyncio.create_task(is_own())

    async def is_own() -> bool:
        return current_task(asyncio.get_running_loop()) is asyncio.current_task()

    asyncio.run(look())


def test_a_loop_that_does_not_run_has_no_current_task() -> None:
    idle = asyncio.new_event_loop()
    assert current_task(idle) is None
    idle.close()


def test_a_callback_of_a_loop_has_no_current_task() -> None:
    async def look() -> None:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[Any] = loop.create_future()
        loop.call_soon(lambda: seen.set_result(current_task(loop)))
        assert await seen is None

    asyncio.run(look())


def test_the_running_loop_is_that_of_the_thread_or_none() -> None:
    async def look() -> None:
        assert running_loop() is asyncio.get_running_loop()
        assert await asyncio.to_thread(running_loop) is None

    asyncio.run(look())
    assert running_loop() is None


def test_the_ctrl_c_handler_of_asyncio_is_recognised_and_no_other() -> None:
    async def handler() -> Any:
        return signal.getsignal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else Runner installs none
    try:
        assert is_runner_interrupt(asyncio.run(handler()))
    finally:
        signal.signal(signal.SIGINT, before)
    for other in (signal.default_int_handler, functools.partial(print), signal.SIG_DFL, None):
        assert not is_runner_interrupt(other)
