"""New calls are refused while a drain lasts; what was let in goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import Guards, Policy, ShuttingDownError
from lightrag_resilience.composition.wait_for_recovery import Patience, retry_until_available
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.draining.gate import allow_during_drain
from lightrag_resilience.events import AttemptRejected
from lightrag_resilience.testing import VirtualTimeLoop
from support.guards import published_by

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def registry() -> Guards:
    loop = asyncio.get_running_loop()
    return Guards(settings=load_settings({}), clock=loop.time)


async def work(seconds: float = 1.0) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_a_closed_gate_rejects_new_calls_and_lets_calls_in_flight_end() -> None:
    guards = registry()
    guard = guards.get("llm")
    under_way = asyncio.create_task(guard.call(work))
    await asyncio.sleep(0.5)
    assert [call.name for call in guards.gate.running] == ["llm"]
    guards.gate.close()
    published = published_by(guard)
    with pytest.raises(ShuttingDownError, match="'llm' is not called any more"):
        await guard.call(work)
    with pytest.raises(ShuttingDownError):
        async with guard:
            raise AssertionError
    assert published == [AttemptRejected("llm", "ShuttingDownError")] * 2
    assert await under_way == "done"
    assert not guards.gate.running
    guards.gate.open()
    assert await guard.call(work) == "done"
    assert guard.breaker.snapshot().failed == 0


async def test_a_closed_gate_accepts_calls_inside_an_accepted_call() -> None:
    guards = registry()

    async def outer() -> str:
        await asyncio.sleep(1.0)
        return await guards.get("storage.kv").call(work)

    under_way = asyncio.create_task(guards.get("llm").call(outer))
    await asyncio.sleep(0.5)
    guards.gate.close()
    assert await under_way == "done"


async def test_a_closed_gate_accepts_an_inner_call_whose_limit_needs_no_wait() -> None:
    guards = registry()
    inner = guards.get("storage.kv", Policy().with_changes(rpm=600.0, max_concurrent=1))

    async def outer() -> str:
        await asyncio.sleep(1.0)
        return await inner.call(work)

    under_way = asyncio.create_task(guards.get("llm").call(outer))
    await asyncio.sleep(0.5)
    guards.gate.close()
    assert await under_way == "done"


async def test_accepted_work_makes_new_calls_during_a_drain() -> None:
    guards = registry()

    async def request() -> list[str]:
        await asyncio.sleep(1.0)
        return [await guards.get("llm").call(work) for _ in range(2)]

    with allow_during_drain():
        task = asyncio.create_task(request())
    guards.gate.close()
    assert await task == ["done", "done"]


async def test_a_drain_interrupts_the_sleep_before_a_retry() -> None:
    guards = registry()
    guard = guards.get("llm", Policy.llm(attempts=3))

    async def fail() -> None:
        raise ConnectionRefusedError

    calls = [asyncio.create_task(guard.call(fail)) for _ in range(3)]
    await asyncio.sleep(0.01)
    guards.gate.close()
    began = asyncio.get_running_loop().time()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert asyncio.get_running_loop().time() == began
    assert {type(error) for error in ended} == {ShuttingDownError}
    causes = {type(error.__cause__) for error in ended if error is not None}
    assert causes == {ConnectionRefusedError}


@pytest.mark.parametrize("limit", ["rpm", "max_concurrent"])
async def test_a_drain_interrupts_a_wait_in_the_queue(limit: str) -> None:
    guards = registry()
    policy = Policy()
    if limit == "rpm":
        policy = policy.with_changes(rpm=6.0)
    else:
        policy = policy.with_changes(max_concurrent=1)
    guard = guards.get("llm", policy)
    first = asyncio.create_task(guard.call(work))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(guard.call(work))
    await asyncio.sleep(0.1)
    guards.gate.close()
    with pytest.raises(ShuttingDownError):
        await waiting
    assert await first == "done"
    assert guard.occupancy.waiting == 0


async def test_a_forked_child_does_not_interrupt_waits_of_its_parent() -> None:
    gate = registry().gate

    async def wait() -> str:
        async with gate.interruptible("llm"):
            return await work(5.0)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(1.0)
    gate._pid -= 1  # as in a child, which has its parent's memory
    gate.reset_if_forked()
    gate.close()
    assert await waiting == "done"


async def test_a_drain_interrupts_a_wait_for_recovery() -> None:
    guards = registry()
    guard = guards.get("llm")
    guard.breaker.open()
    waiting = asyncio.create_task(
        retry_until_available(guard, lambda: guard.call(work), patience=Patience(600.0))
    )
    await asyncio.sleep(1.0)
    guards.gate.close()
    with pytest.raises(ShuttingDownError):
        await waiting
    with pytest.raises(ShuttingDownError):
        await retry_until_available(guard, lambda: guard.call(work), patience=Patience(600.0))


async def test_the_callers_own_cancellation_wins_over_the_interruption() -> None:
    guards = registry()
    guard = guards.get("llm", Policy().with_changes(max_concurrent=1))
    first = asyncio.create_task(guard.call(work))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(guard.call(work))
    await asyncio.sleep(0.1)
    guards.gate.close()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert await first == "done"


async def test_a_stream_is_in_flight_until_its_end() -> None:
    guards = registry()

    async def pieces() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(1.0)
            yield number

    stream = await guards.get("llm").call(pieces)
    assert len(guards.gate.running) == 1
    guards.gate.close()
    assert [item async for item in stream] == [0, 1, 2]
    assert not guards.gate.running
    guards.gate.open()
    stream = await guards.get("llm").call(pieces)
    await stream.aclose()
    assert not guards.gate.running
