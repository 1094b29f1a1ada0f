"""Calls at once: so many, so many more in line, and the rest refused."""

from __future__ import annotations

import asyncio
import math

import pytest

from lightrag_resilience import ConcurrencyPolicy, QueueFullError
from lightrag_resilience.concurrency import Places
from support.guards import now

pytestmark = pytest.mark.anyio


def places(at_once: int = 2, queue: int = 100, max_wait: float = 1000.0) -> Places:
    policy = ConcurrencyPolicy(max_concurrent=at_once, max_queue=queue, max_wait=max_wait)
    return Places("llm", policy)


async def stay(places: Places, seconds: float = 1.0, longest: float = math.inf) -> float:
    await places.acquire(longest)
    entered = now()
    try:
        await asyncio.sleep(seconds)
    finally:
        places.release()
    return entered


async def test_so_many_at_once_and_the_rest_in_their_order() -> None:
    made = places()
    assert await asyncio.gather(*(stay(made) for _ in range(6))) == [0, 0, 1, 1, 2, 2]


async def test_it_says_whether_there_was_a_wait() -> None:
    made = places(at_once=1)
    assert await made.acquire(math.inf) is False
    waiter = asyncio.create_task(made.acquire(math.inf))
    await asyncio.sleep(1)
    made.release()
    assert await waiter is True


async def test_a_full_queue_refuses_at_once() -> None:
    made = places(at_once=1, queue=2)
    calls = (stay(made) for _ in range(5))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [float] * 3 + [QueueFullError] * 2
    assert str(outcomes[-1]) == "Too many calls of 'llm' at once and 2 more are waiting"


@pytest.mark.parametrize(("max_wait", "longest"), [(3.0, math.inf), (1000.0, 3.0)])
async def test_a_wait_that_takes_too_long_is_refused(max_wait: float, longest: float) -> None:
    made = places(at_once=1, max_wait=max_wait)
    stayer = asyncio.create_task(stay(made, 60.0))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="for 3 s"):
        await made.acquire(longest)
    assert now() == 3.0
    await stayer
    assert await stay(made) == 60.0


async def test_a_waiter_who_leaves_takes_no_place() -> None:
    made = places(at_once=1)
    calls = [asyncio.create_task(stay(made)) for _ in range(4)]
    await asyncio.sleep(0.5)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert [call.result() for call in (calls[0], *calls[2:])] == [0.0, 1.0, 2.0]
    assert made.waiting == 0


async def test_a_place_granted_to_a_waiter_who_leaves_is_not_lost() -> None:
    made = places(at_once=1)
    calls = [asyncio.create_task(stay(made)) for _ in range(3)]
    await asyncio.sleep(1.0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert calls[2].result() <= 2.0


async def test_a_cancellation_is_no_refusal() -> None:
    made = places(at_once=1, max_wait=5.0)
    await made.acquire(math.inf)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await made.acquire(math.inf)
    assert now() == 2.0
