"""Turns of a rate limit where some callers wait for the answer and others do not."""

from __future__ import annotations

import asyncio
import math

import pytest

from lightrag_resilience import LimitPolicy, Priority, RateLimitedError, priority
from lightrag_resilience.limits.priority_rate_limiter import BackgroundRateLimiter
from lightrag_resilience.limits.rate_limiter import LocalRateLimiter
from support.guards import now

pytestmark = pytest.mark.anyio
INTERACTIVE, BACKGROUND = Priority.INTERACTIVE, Priority.BACKGROUND


def background_limiter(rpm: float = 60.0, max_wait: float = 1000.0) -> BackgroundRateLimiter:
    policy = LimitPolicy(rpm=rpm, burst=1, max_wait=max_wait)
    return BackgroundRateLimiter(
        "llm", LocalRateLimiter("llm", policy), asyncio.get_running_loop().time
    )


async def turn(made: BackgroundRateLimiter, level: Priority, longest: float = math.inf) -> float:
    with priority(level):
        await made.acquire(0, longest)
    return now()


async def test_a_query_waits_little_beside_much_ingest() -> None:
    made = background_limiter()
    ingest = [asyncio.create_task(turn(made, BACKGROUND)) for _ in range(20)]
    await asyncio.sleep(3.5)
    asked = now()
    assert await turn(made, INTERACTIVE) - asked <= 2.5
    entered = await asyncio.gather(*ingest)
    assert sorted(entered) == entered  # first come, first served
    assert entered[-1] == pytest.approx(20, abs=1.2)  # and no turn is left unused


async def with_one_at_the_head() -> tuple[BackgroundRateLimiter, asyncio.Task[bool]]:
    """A background call waits for sixty tokens, of which there are enough for a small one."""
    limit = LocalRateLimiter("llm", LimitPolicy(tpm=60.0, token_burst=60, max_wait=1000.0))
    made = BackgroundRateLimiter("llm", limit, asyncio.get_running_loop().time)
    with priority(BACKGROUND):
        assert made.try_acquire(60)
        head = asyncio.create_task(made.acquire(60, math.inf))
    await asyncio.sleep(1)
    made.settle(60, 0)
    return made, head


async def test_a_background_call_does_not_overtake_the_head() -> None:
    made, head = await with_one_at_the_head()
    with priority(BACKGROUND):
        assert not made.try_acquire(10)
        head.cancel()
        await asyncio.wait([head])
        assert made.try_acquire(10)


async def test_an_interactive_call_overtakes_the_head() -> None:
    made, head = await with_one_at_the_head()
    assert made.try_acquire(10)
    head.cancel()
    await asyncio.wait([head])


async def test_a_query_waits_for_all_ingest_without_the_background_limiter() -> None:
    bare = LocalRateLimiter("llm", LimitPolicy(rpm=60.0, burst=1, max_wait=1000.0))
    ingest = [asyncio.create_task(bare.acquire(0, math.inf)) for _ in range(20)]
    await asyncio.sleep(3.5)
    asked = now()
    await bare.acquire(0, math.inf)
    assert now() - asked > 10
    await asyncio.gather(*ingest)


async def test_ingest_is_served_though_queries_take_every_turn() -> None:
    made = background_limiter()
    queries = [asyncio.create_task(turn(made, INTERACTIVE)) for _ in range(100)]
    await asyncio.sleep(0)

    async def asks_for_ever() -> None:
        while True:
            await asyncio.sleep(1.0)
            queries.append(asyncio.create_task(turn(made, INTERACTIVE)))

    more = asyncio.create_task(asks_for_ever())
    assert await turn(made, BACKGROUND) <= 107
    more.cancel()
    await asyncio.gather(*queries)


@pytest.mark.parametrize(("max_wait", "longest"), [(1000.0, 3.0), (3.0, 1000.0)])
async def test_a_turn_that_comes_too_late_is_rejected(max_wait: float, longest: float) -> None:
    made = background_limiter(rpm=1.0, max_wait=max_wait)
    await turn(made, INTERACTIVE)
    with pytest.raises(RateLimitedError) as refused:
        await turn(made, BACKGROUND, longest)
    assert refused.value.retry_after == pytest.approx(60, abs=8)
    # Beyond the caller's own time it is refused at once; the policy is asked again for a while.
    assert now() == 0.0 if longest == 3.0 else now() <= 8.0


async def test_a_background_call_is_rejected_if_it_reaches_the_head_too_late() -> None:
    made = background_limiter(rpm=6.0)
    first = [asyncio.create_task(turn(made, BACKGROUND)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimitedError, match="for 5 s, with other background calls waiting"):
        await turn(made, BACKGROUND, 5.0)
    assert now() == 5.0
    assert await asyncio.gather(*first) == pytest.approx([0, 10, 20, 30], abs=1.0)


async def test_a_cancelled_background_call_lets_the_next_go() -> None:
    made = background_limiter()
    await turn(made, INTERACTIVE)
    calls = [asyncio.create_task(turn(made, BACKGROUND)) for _ in range(3)]
    await asyncio.sleep(0.1)
    calls[0].cancel()
    await asyncio.sleep(0)
    calls[1].cancel()
    assert await calls[2] == pytest.approx(1.0, abs=0.2)
