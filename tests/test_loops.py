"""What a guard keeps of event loops, and what it lets go."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar

from lightrag_resilience import Guards
from lightrag_resilience.settings import Settings

NAME = "llm.made-up"


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
