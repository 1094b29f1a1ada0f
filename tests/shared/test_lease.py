"""Work that one worker of a cluster does at a time, on a real server."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from redis import Redis

from lightrag_resilience.shared.client import RedisClient
from lightrag_resilience.shared.lease import Lease
from lightrag_resilience.testing.redis_server import RedisServer

pytestmark = pytest.mark.anyio
KEY = "lr:lease:recovery%3Aw"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def lease(server: RedisServer, seconds: float = 30.0) -> Lease:
    return Lease(server.url, "lr:", "recovery:w", seconds=seconds)


async def test_one_holds_it_and_gives_it_back(server: RedisServer) -> None:
    one, other = lease(server), lease(server)
    async with one.held() as is_ones, other.held() as is_others:
        assert (is_ones, is_others) == (True, False)
    async with other.held() as is_others:
        assert is_others
    with Redis.from_url(server.url) as redis:
        assert redis.keys() == []


async def test_it_is_renewed_while_it_is_held(server: RedisServer) -> None:
    async with lease(server, 0.3).held():
        await asyncio.sleep(1.0)
        async with lease(server).held() as is_others:
            assert not is_others


async def test_a_holder_that_is_gone_keeps_it_for_so_long(server: RedisServer) -> None:
    with Redis.from_url(server.url) as redis:
        redis.set(KEY, "a worker that was killed", px=300)
    async with lease(server).held() as is_ones:
        assert not is_ones
    await asyncio.sleep(0.5)
    async with lease(server).held() as is_ones:
        assert is_ones


async def test_who_stood_still_for_too_long_stops(server: RedisServer) -> None:
    async def hold() -> None:
        async with lease(server, 0.3).held():
            time.sleep(0.6)  # noqa: ASYNC251 - the process stands still
            with Redis.from_url(server.url) as redis:
                redis.set(KEY, "another worker")
            await asyncio.sleep(30)

    task = asyncio.create_task(hold())
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()
    with Redis.from_url(server.url) as redis:
        assert redis.get(KEY) == b"another worker"


async def test_without_redis_nobody_is_held_up(server: RedisServer) -> None:
    server.kill()
    async with lease(server).held() as is_ones:
        assert is_ones


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_renewal_that_loses_its_cancellation_ends_with_the_work(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    ask, renewing, renewals = Lease._ask, asyncio.Event(), set[asyncio.Task[Any]]()

    async def lose(self: Lease, client: RedisClient, seconds: float) -> bool:
        task = asyncio.current_task()
        if task is not None and task is not holder:
            renewals.add(task)
            with nullcontext() if renewing.is_set() else suppress(asyncio.CancelledError):
                renewing.set()
                await asyncio.sleep(1)  # as redis-py, while it connects
        return await ask(self, client, seconds)

    async def hold() -> None:
        async with lease(server, 0.3).held():
            await renewing.wait()

    monkeypatch.setattr(Lease, "_ask", lose)
    holder = asyncio.create_task(hold())
    await renewing.wait()
    await asyncio.sleep(0)
    if is_cancelled:  # while it waits for the renewal to end
        holder.cancel()
    await asyncio.wait([holder], timeout=5)
    assert holder.done()
    assert holder.cancelled() == is_cancelled
    _, running = await asyncio.wait(renewals, timeout=1)
    assert not running


async def test_what_is_none_of_ours_is_replaced(server: RedisServer) -> None:
    with Redis.from_url(server.url) as redis:
        redis.hset(KEY, "foreign", "data")
    async with lease(server).held() as is_ones:
        assert is_ones
