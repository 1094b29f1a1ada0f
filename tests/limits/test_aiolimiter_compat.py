"""Contract tests: each private part of aiolimiter is as `aiolimiter_compat` expects it."""

from __future__ import annotations

import asyncio

import pytest

from lightrag_resilience.limits.aiolimiter_compat import LeakyBucket
from support.guards import now

pytestmark = pytest.mark.anyio


async def test_a_turn_taken_counts_like_one_that_was_acquired() -> None:
    taken, acquired = LeakyBucket(3, time_period=30), LeakyBucket(3, time_period=30)
    for _ in range(3):
        assert taken.has_capacity()
        taken.take()
        await acquired.acquire()
        assert taken.owed == acquired.owed
    assert not taken.has_capacity()
    await taken.acquire()
    assert now() == pytest.approx(10.0)


async def test_what_is_owed_is_paid_off_by_time() -> None:
    bucket = LeakyBucket(3, time_period=30)
    assert bucket.owed == 0.0
    bucket.owe(25.0)
    assert bucket.owed == pytest.approx(25.0)
    await asyncio.sleep(10.0)
    assert bucket.owed == pytest.approx(15.0)


async def test_an_old_bucket_owes_all_that_it_begins_with() -> None:
    bucket = LeakyBucket(3, time_period=30)
    await bucket.acquire()
    await asyncio.sleep(100.0)
    bucket.owe(25.0)
    assert bucket.owed == pytest.approx(25.0)


@pytest.mark.parametrize("ahead", [0, 1, 4])
async def test_the_computed_wait_is_the_wait_of_aiolimiter_itself(ahead: int) -> None:
    bucket = LeakyBucket(2, time_period=20)
    for _ in range(2):
        bucket.take()
    expected = bucket.wait(ahead)
    for _ in range(ahead + 1):
        await bucket.acquire()
    assert now() == pytest.approx(expected) == 10.0 * (ahead + 1)


@pytest.mark.parametrize(("burst", "seconds", "until"), [(3, 3.0, 1.0), (1, 60.0, 60.0)])
async def test_a_changed_bucket_holds_for_a_caller_that_waits(
    burst: int, seconds: float, until: float
) -> None:
    bucket = LeakyBucket(3, time_period=30)
    for _ in range(3):
        bucket.take()
    waiting = asyncio.create_task(bucket.acquire())
    await asyncio.sleep(0)
    bucket.change(burst, seconds)
    await waiting
    assert now() == pytest.approx(until, abs=0.01)
