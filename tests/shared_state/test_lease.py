"""Work that one worker of a cluster does at a time, on a real server."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis import Redis

from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.lease import Lease
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
KEY = "lr:lease:recovery%3Aw"


def lease(server: RedisServer, seconds: float = 30.0) -> Lease:
    return Lease(server.url, "lr:", "recovery:w", seconds=seconds)


class Work:
    """Counts its starts, and runs until `end` is set."""

    def __init__(self) -> None:
        self.began = 0
        self.ended = asyncio.Event()
        self.running = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self) -> None:
        self.began += 1
        self.running.set()
        try:
            await self.ended.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def nothing() -> None: ...


async def test_one_worker_holds_the_lease_and_releases_it(server: RedisServer) -> None:
    work = Work()
    holder = asyncio.create_task(lease(server).run(work))
    await work.running.wait()
    refused = Work()
    assert 0 < await lease(server).run(refused) <= 30
    assert refused.began == 0
    work.ended.set()
    assert await holder == 0
    with Redis.from_url(server.url) as redis:
        assert redis.keys() == []
    assert await lease(server).run(nothing) == 0


async def test_the_lease_is_renewed_while_the_work_runs(server: RedisServer) -> None:
    work = Work()
    holder = asyncio.create_task(lease(server, 0.4).run(work))
    await work.running.wait()
    await asyncio.sleep(1.0)
    assert await lease(server).run(nothing) > 0
    work.ended.set()
    assert await holder == 0


async def test_a_rejected_worker_gets_the_time_left_of_a_dead_holders_lease(
    server: RedisServer,
) -> None:
    client = make_client(server.url)
    await lease(server, 0.5)._acquire(client, 0.5)  # and is killed
    await client.aclose()
    wait = await lease(server).run(nothing)
    assert 0 < wait <= 0.5
    await asyncio.sleep(wait)
    assert await lease(server).run(nothing) == 0


async def test_a_suspended_holder_stops_if_another_took_over(
    server: RedisServer,
) -> None:
    work = Work()
    holder = asyncio.create_task(lease(server, 0.4).run(work))
    await work.running.wait()
    time.sleep(0.6)  # noqa: ASYNC251 - the process is suspended
    with Redis.from_url(server.url) as redis:
        seconds, microseconds = redis.time()
        until = seconds * 1000 + microseconds // 1000 + 5000
        redis.hset(KEY, "another worker", str(until))
        assert 0 < await asyncio.wait_for(holder, 10) <= 5
        assert work.was_cancelled
        assert redis.hgetall(KEY) == {b"another worker": str(until).encode()}


async def test_a_suspended_holder_goes_on_if_no_other_took_over(
    server: RedisServer,
) -> None:
    work = Work()
    holder = asyncio.create_task(lease(server, 0.4).run(work))
    await work.running.wait()
    time.sleep(0.6)  # noqa: ASYNC251 - the process is suspended
    await asyncio.sleep(0.5)
    assert await lease(server).run(nothing) > 0
    work.ended.set()
    assert await holder == 0


async def test_a_holder_goes_on_after_redis_lost_all_data(server: RedisServer) -> None:
    work = Work()
    holder = asyncio.create_task(lease(server, 0.4).run(work))
    await work.running.wait()
    with Redis.from_url(server.url) as redis:
        redis.flushall()
        await asyncio.sleep(0.5)
        assert redis.keys() == [KEY.encode()]
    work.ended.set()
    assert await holder == 0


async def test_without_redis_the_work_is_done(server: RedisServer) -> None:
    server.kill()
    assert await lease(server).run(nothing) == 0


async def test_an_error_of_the_work_is_raised_and_the_lease_released(
    server: RedisServer,
) -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lease(server).run(fail)
    assert await lease(server).run(nothing) == 0


async def test_a_cancelled_holder_ends_work_that_swallows_a_cancellation(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightrag_resilience.shared_state.lease._CANCEL_AGAIN", 0.05)
    swallowed, began, has_ended = 0, asyncio.Event(), False

    async def stubborn() -> None:
        nonlocal swallowed, has_ended
        began.set()
        while swallowed < 2:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                swallowed += 1
        has_ended = True

    holder = asyncio.create_task(lease(server).run(stubborn))
    await began.wait()
    holder.cancel()
    await asyncio.sleep(0)
    holder.cancel()  # while it waits for the work to end
    await asyncio.wait([holder], timeout=10)
    assert holder.cancelled()
    assert (swallowed, has_ended) == (2, True)


async def test_work_that_cannot_be_cancelled_keeps_the_lease_until_it_ends(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightrag_resilience.shared_state.lease._CANCEL_AGAIN", 0.01)
    ended = asyncio.Event()

    async def stubborn() -> None:
        while not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError:
                continue

    holder = asyncio.create_task(lease(server).run(stubborn))
    await asyncio.sleep(0.1)
    holder.cancel()
    await asyncio.wait([holder], timeout=10)
    assert holder.cancelled()
    assert await lease(server).run(nothing) > 0
    ended.set()


@pytest.mark.parametrize("value", ["data", "", "nan", "inf", "-1", "9" * 400, "99999999999999"])
async def test_a_malformed_or_endless_lease_is_removed(server: RedisServer, value: str) -> None:
    with Redis.from_url(server.url) as redis:
        redis.hset(KEY, "another", value)
        assert await lease(server).run(nothing) == 0
        assert redis.keys() == []


async def test_a_key_of_another_type_is_replaced(server: RedisServer) -> None:
    with Redis.from_url(server.url) as redis:
        redis.set(KEY, "foreign")
    assert await lease(server).run(nothing) == 0
