"""What a guard keeps of event loops, and what it lets go."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import pytest

from lightrag_resilience import AttemptTimeoutError, Guards, Policy, RetryPolicy, TimeoutPolicy
from lightrag_resilience.calls.call_context import current_call
from lightrag_resilience.config.settings import Settings

NAME = "llm.made-up"
T = TypeVar("T")


async def answer() -> str:
    return "fine"


def test_loops_that_are_closed_are_forgotten() -> None:
    guard = Guards(settings=Settings()).get(NAME)
    seen: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def call() -> None:
        seen.append(weakref.ref(asyncio.get_running_loop()))
        await guard.call(answer)

    for _ in range(5):
        asyncio.run(call())
    gc.collect()
    assert [loop() is not None for loop in seen] == [False, False, False, False, True]


class Request:
    """What the context of a call holds."""


def test_an_armed_timer_keeps_nothing_of_its_first_caller() -> None:
    current: ContextVar[Request] = ContextVar("current")
    guard = Guards(settings=Settings()).get(NAME)

    async def handle() -> weakref.ref[Request]:
        request = Request()
        current.set(request)
        await guard.call(answer)
        return weakref.ref(request)

    async def run() -> bool:
        request = await asyncio.create_task(handle())
        await asyncio.sleep(0)  # the loop lets go of the task
        gc.collect()
        return request() is None

    assert asyncio.run(run())


def test_dependencies_with_equal_policies_share_them() -> None:
    registry = Guards(settings=Settings())
    assert registry.get("llm.one").policy is registry.get("llm.two").policy
    assert registry.get("llm.one").policy is not registry.get("storage").policy


async def loop_of_call() -> asyncio.AbstractEventLoop:
    """The loop whose parts a call has."""
    call = current_call.get()
    assert call is not None
    assert call.loop_state.timer is not None
    assert call.timer is call.loop_state.timer
    assert call.loop_state.timer.loop is call.loop_state.loop
    assert call.loop_state.loop_timers.thread == threading.get_ident()
    return call.loop_state.loop


def in_a_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of another thread, and wait for it in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_a_loop_that_runs_in_another_thread_at_the_same_moment_is_another() -> None:
    guard = Guards(settings=Settings()).get(NAME)

    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def both() -> list[bool]:
        async def blocks() -> bool:  # while the task of this loop is what it runs
            async def there() -> bool:
                return await guard.call(loop_of_call) is await running()

            return in_a_thread(there())

        here = await running()
        return [
            await guard.call(loop_of_call) is here,
            await blocks(),
            await guard.call(loop_of_call) is here,
        ]

    assert asyncio.run(both()) == [True, True, True]


def test_a_loop_may_be_run_in_another_thread_later() -> None:
    guard = Guards(settings=Settings()).get(NAME)
    loop = asyncio.new_event_loop()

    def call() -> asyncio.AbstractEventLoop:
        return loop.run_until_complete(guard.call(loop_of_call))

    try:
        assert call() is loop
        for _ in range(2):  # found anew, and then known
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(call).result() is loop
            assert call() is loop
    finally:
        loop.close()


def test_loops_that_alternate_in_one_thread_have_their_own_state() -> None:
    policy = Policy(timeout=TimeoutPolicy(attempt=0.01), retry=RetryPolicy(attempts=1))
    guard = Guards(settings=Settings()).get(NAME, policy)
    loops = [asyncio.new_event_loop(), asyncio.new_event_loop()]
    try:
        for loop in loops * 2:
            assert loop.run_until_complete(guard.call(loop_of_call)) is loop
            with pytest.raises(AttemptTimeoutError):
                loop.run_until_complete(guard.call(asyncio.Event().wait))
    finally:
        for loop in loops:
            loop.close()
