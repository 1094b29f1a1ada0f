"""A limit on time holds, whatever stands in it makes of a cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightrag_resilience.runtime.tasks import end, within
from lightrag_resilience.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


pytestmark = pytest.mark.anyio


async def stubborn(loses: int, seconds: float) -> str:
    """Several commands, each of which may lose the cancellation that comes in it."""
    for _ in range(loses):
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            continue
    await asyncio.sleep(seconds)
    return "done"


async def test_what_is_done_in_time_gives_its_result_or_its_error() -> None:
    assert await within(1.0, stubborn(1, 0.1)) == "done"

    async def fail() -> None:
        raise LookupError("made up")

    with pytest.raises(LookupError, match="made up"):
        await within(1.0, fail())


async def test_what_loses_cancellations_is_cancelled_until_it_ends() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await within(1.0, stubborn(7, 10.0))
    assert asyncio.get_running_loop().time() - began < 2.0


async def test_a_caller_that_is_cancelled_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    caller = asyncio.create_task(within(60.0, stubborn(2, 10.0)))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert asyncio.all_tasks() == before


async def test_what_ended_tasks_raise_is_dropped_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            raise LookupError("made up")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(stubborn(1, 60.0))]
    await asyncio.sleep(0)
    await end(tasks)
    await end([])
    assert [task.done() for task in tasks] == [True, True]
    del tasks
    assert not caplog.records
