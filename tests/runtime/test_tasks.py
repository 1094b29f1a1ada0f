"""Time limits and cancellation hold even for work that loses a cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightrag_resilience.runtime.tasks import cancel_until_done, is_being_cancelled, within
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


async def test_within_gives_the_result_or_the_error_of_work_done_in_time() -> None:
    assert await within(1.0, stubborn(1, 0.1)) == "done"

    async def fail() -> None:
        raise LookupError("made up")

    with pytest.raises(LookupError, match="made up"):
        await within(1.0, fail())


async def test_within_cancels_work_that_loses_cancellations_until_it_ends() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await within(1.0, stubborn(7, 10.0))
    assert asyncio.get_running_loop().time() - began < 2.0


async def test_within_ends_its_work_when_its_caller_is_cancelled() -> None:
    before = asyncio.all_tasks()
    caller = asyncio.create_task(within(60.0, stubborn(2, 10.0)))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert asyncio.all_tasks() == before


async def test_errors_of_cancelled_tasks_are_dropped_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            raise LookupError("made up")

    tasks = [asyncio.create_task(fail()), asyncio.create_task(stubborn(1, 60.0))]
    await asyncio.sleep(0)
    await cancel_until_done(tasks)
    await cancel_until_done([])
    assert [task.done() for task in tasks] == [True, True]
    del tasks
    assert not caplog.records


async def test_a_second_cancellation_of_the_caller_is_raised_once_the_task_has_ended() -> None:
    task = asyncio.create_task(stubborn(3, 10.0))
    await asyncio.sleep(0)
    caller = asyncio.create_task(cancel_until_done([task], every=1.0))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert task.cancelled()


async def test_a_task_may_outlast_the_attempts_to_cancel_it() -> None:
    task = asyncio.create_task(stubborn(3, 10.0))
    await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    await cancel_until_done([task], every=1.0, attempts=2)
    assert asyncio.get_running_loop().time() - began == pytest.approx(2.0)
    assert not task.done()
    await cancel_until_done([task])


async def test_a_task_is_left_to_clean_up_without_an_interval() -> None:
    task = asyncio.create_task(stubborn(1, 10.0))
    await asyncio.sleep(0)
    await cancel_until_done([task], every=None)
    assert task.result() == "done"


async def test_only_the_cancelled_task_itself_is_being_cancelled() -> None:
    seen: list[bool] = []

    async def wait() -> None:
        inner = asyncio.create_task(asyncio.sleep(10.0))
        for cancelled in (inner, asyncio.current_task()):
            assert cancelled is not None
            cancelled.cancel()
            try:
                await inner if cancelled is inner else await asyncio.sleep(10.0)
            except asyncio.CancelledError:
                seen.append(is_being_cancelled())

    await asyncio.create_task(wait())
    assert seen == [False, True]
