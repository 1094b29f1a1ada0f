"""Limits that two registries of one process share through a real server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from lightrag_resilience import BreakerPolicy, Guards, LimitPolicy, RateLimitedError
from lightrag_resilience.events import Events
from lightrag_resilience.failures.classifier import Failure, FailureKind
from lightrag_resilience.shared_state import shared_rate_limiter as module
from lightrag_resilience.shared_state.synchronizer import Synchronizer
from lightrag_resilience.testing.redis_server import RedisServer
from lightrag_resilience.testing.tcp_proxy import TcpProxy
from support.waiting import until

NAME = "llm.made-up"


def link_of(guards: Guards) -> Any:
    breaker: Any = guards.get(NAME).breaker
    return breaker._sync


def limit_of(guards: Guards) -> Any:
    return link_of(guards)._shared.limits[NAME]


async def connected(*registries: Guards) -> None:
    links = [link_of(guards) for guards in registries]
    await until(lambda: all(link.connected for link in links))


async def fine(**_: Any) -> str:
    return ""


async def times_of(guards: Guards, calls: int, **options: Any) -> list[float]:
    """Seconds after which calls made at once were sent."""
    began = time.monotonic()

    async def one() -> float:
        await guards.get(NAME).call(fine, **options)
        return time.monotonic() - began

    return sorted(await asyncio.gather(*(one() for _ in range(calls))))


@pytest.mark.anyio
async def test_two_workers_have_one_burst_and_one_rate(make: Any) -> None:
    one, two = make(LIMIT__RPM=300, LIMIT__BURST=5), make(LIMIT__RPM=300, LIMIT__BURST=5)
    await connected(one, two)
    times = await asyncio.gather(times_of(one, 10), times_of(two, 10))
    together = sorted(times[0] + times[1])
    assert together[4] < 0.7  # 0.8 s if they came one by one
    assert together[-1] >= 15 * 0.2 - 0.01


@pytest.mark.anyio
async def test_tokens_are_shared_too(make: Any) -> None:
    one = make(LIMIT__TPM=24_000, LIMIT__TOKEN_BURST=1000)
    await connected(one)
    assert (await times_of(one, 2, max_tokens=500))[-1] < 1.0
    # Nothing was used, which Redis learns with the next report: a call of 500 need not wait 1.2 s.
    assert any([(await times_of(one, 1, max_tokens=500))[0] < 1.0 for _ in range(4)])
    limit_of(one).settle(0, 1500)  # a debt
    assert (await times_of(one, 1, max_tokens=10))[0] < 2.0  # from stock: the debt takes 3.7 s
    assert (await times_of(one, 1, max_tokens=900))[0] > 0.8


@pytest.mark.anyio
async def test_the_script_rejects_a_turn_beyond_the_longest_wait(make: Any) -> None:
    one = make(LIMIT__RPM=60, LIMIT__BURST=1, LIMIT__MAX_WAIT=1.5)
    await connected(one)
    outcomes = await asyncio.gather(
        *(one.get(NAME).call(fine) for _ in range(5)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, RateLimitedError)]
    assert len(refused) == 3
    assert all(1.9 < (error.retry_after or 0) <= 2.0 for error in refused)


@pytest.mark.anyio
async def test_a_turn_beyond_the_deadline_is_rejected_and_put_back(make: Any) -> None:
    one = make(LIMIT__RPM=60, LIMIT__BURST=1)
    await connected(one)
    limit = limit_of(one)
    assert not await limit.acquire(0, 10.0)
    with pytest.raises(RateLimitedError, match="by all workers together"):
        await limit.acquire(0, 0.5)
    began = time.monotonic()
    assert await limit.acquire(0, 10.0)
    assert time.monotonic() - began < 1.8  # 2 s if it had been lost


@pytest.mark.anyio
async def test_a_held_turn_is_taken_only_once_it_is_due(make: Any) -> None:
    one = make(LIMIT__RPM=120, LIMIT__BURST=4)  # two turns a second, a lot of one
    await connected(one)
    limit = limit_of(one)
    assert not limit.try_acquire(0)  # none is held yet
    for _ in range(4):
        assert not await limit.acquire(0, 10.0)
    waiter = asyncio.create_task(limit.acquire(0, 10.0))
    await until(lambda: limit._sleeping)
    limit._put_back(limit._clock() + 0.3, 0)
    assert not limit.try_acquire(0)
    assert limit._requests.total == 1
    await asyncio.sleep(0.31)
    assert limit.try_acquire(0)
    assert not limit.try_acquire(0)
    await waiter


@pytest.mark.anyio
async def test_a_caller_cancelled_while_sleeping_puts_its_turn_back(make: Any) -> None:
    one = make(LIMIT__RPM=40, LIMIT__BURST=1)
    await connected(one)
    limit = limit_of(one)
    await limit.acquire(0, 10.0)
    waiter = asyncio.create_task(limit.acquire(0, 10.0))
    await asyncio.sleep(0.1)
    waiter.cancel()
    await asyncio.wait([waiter])
    began = time.monotonic()
    await limit.acquire(0, 10.0)
    assert time.monotonic() - began < 2.6  # 3 s if it had been lost
    assert limit._sleeping == 0


@pytest.mark.anyio
async def test_a_caller_cancelled_before_its_reservation_leaves_the_queue(
    make: Any, server: RedisServer
) -> None:
    one = make(LIMIT__RPM=120, LIMIT__BURST=1)
    await connected(one)
    limit = limit_of(one)
    server.pause()
    waiter = asyncio.create_task(limit.acquire(0, 10.0))
    await asyncio.sleep(0.05)
    waiter.cancel()
    await asyncio.wait([waiter])
    server.resume()
    assert waiter.cancelled()
    assert not limit._waiters
    await until(lambda: not limit._is_reserving)


@pytest.mark.anyio
async def test_turns_of_a_late_reservation_are_given_back(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(LIMIT__RPM=60_000, LIMIT__BURST=10)
    await connected(one)
    limit = limit_of(one)
    monkeypatch.setattr(module, "_ANSWER_TIMEOUT", 0.0)
    assert not await limit.acquire(0, 10.0)  # alone
    await until(lambda: not limit._is_reserving)
    monkeypatch.undo()
    assert not await limit.acquire(0, 10.0)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["kill", "pause"])
async def test_without_redis_a_worker_uses_its_local_limiter(
    make: Any, server: RedisServer, kind: str
) -> None:
    one = make(LIMIT__RPM=6000, LIMIT__BURST=10, LIMIT__TPM=600_000)
    await connected(one)
    await times_of(one, 3, max_tokens=10)
    getattr(server, kind)()
    began = time.monotonic()
    await times_of(one, 20, max_tokens=10)
    assert time.monotonic() - began < 5.0
    await until(lambda: not link_of(one).connected)
    assert (await times_of(one, 20, max_tokens=10))[-1] > 0.05
    {"kill": server.start, "pause": server.resume}[kind]()
    await connected(one)
    async with asyncio.timeout(10):
        while limit_of(one)._local_limiters:
            await times_of(one, 30, max_tokens=10)


@pytest.mark.anyio
async def test_callers_still_in_a_local_limiter_are_reserved_when_redis_is_back(
    make: Any, server: RedisServer
) -> None:
    one = make(LIMIT__RPM=600, LIMIT__BURST=1)
    await connected(one)
    server.kill()
    await until(lambda: not link_of(one).connected)
    alone = asyncio.create_task(times_of(one, 11))
    await asyncio.sleep(0.05)
    server.start()
    await connected(one)
    began = time.monotonic()
    await one.get(NAME).call(fine)
    assert time.monotonic() - began > 0.3
    await alone


@pytest.mark.anyio
async def test_a_redis_that_loses_its_data_again_and_again_grants_no_burst_each_time(
    make: Any, server: RedisServer
) -> None:
    one = make(LIMIT__RPM=60, LIMIT__BURST=6, LIMIT__MAX_WAIT=1)
    await connected(one)
    began = time.monotonic()
    went = 0

    async def try_on() -> None:
        nonlocal went
        while True:
            with contextlib.suppress(RateLimitedError):
                await one.get(NAME).call(fine)
                went += 1
            await asyncio.sleep(0.01)

    trying = asyncio.create_task(try_on())
    await until(lambda: went >= 6)
    for _ in range(2):
        server.kill()
        await until(lambda: not link_of(one).connected)
        server.start()
        await connected(one)
        await asyncio.sleep(1.5)
    lasted = time.monotonic() - began
    trying.cancel()
    await asyncio.wait([trying])
    assert went <= 6 + lasted + 1


@pytest.mark.anyio
@pytest.mark.parametrize("delay", [0.17, 0.4])  # seconds in each direction
async def test_a_slow_redis_grants_no_second_burst(server: RedisServer, delay: float) -> None:
    async with TcpProxy(server.port) as proxy:
        link = Synchronizer(proxy.url, "lr:")
        link.breaker(NAME, BreakerPolicy(), Events())
        limit = link.limit(NAME, LimitPolicy(rpm=60, burst=6, max_wait=30))
        link.begin()
        await until(lambda: link.connected)
        proxy.delay(delay)
        went = 0

        async def go_on() -> None:
            nonlocal went
            while True:
                await limit.acquire(0, 30)
                went += 1

        callers = [asyncio.create_task(go_on()) for _ in range(4)]
        await asyncio.wait(callers, timeout=4)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert link.connected
        assert 6 <= went <= 6 + 4 + 2
        await asyncio.to_thread(link.close)


@pytest.mark.anyio
async def test_local_calls_past_a_slow_redis_are_charged_to_the_next_reservation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ANSWER_TIMEOUT", 0.0)
    now = 1000.0
    never = SimpleNamespace(connected=True, reserve=lambda _: None, cool_down=lambda *_: None)
    policy = LimitPolicy(rpm=60, burst=6, tpm=6000)
    limit = module.SharedRateLimiter(NAME, policy, "lr:", never, clock=lambda: now)
    for _ in range(3):
        assert not await limit.acquire(10, 30)
    now += 2.0
    caller = asyncio.create_task(limit.acquire(10, 30))
    await asyncio.sleep(0)
    request = limit.next_request()
    assert request is not None
    assert request.given_back == (-3, -30)
    await caller


@pytest.mark.anyio
async def test_a_429_cools_down_the_other_worker(make: Any) -> None:
    one, two = make(), make()
    await connected(one, two)
    await two.get(NAME).call(fine)
    await until(lambda: link_of(two)._worker._pubsub)
    await asyncio.sleep(0.1)

    async def throttled() -> None:
        error = RuntimeError("429")
        error.__resilience_failure__ = Failure(FailureKind.THROTTLED, 0.5)  # type: ignore[attr-defined]
        raise error

    with pytest.raises(RuntimeError):
        await one.get(NAME).call(throttled)
    loop_state = two.get(NAME)._loop_state
    assert loop_state is not None
    await until(lambda: loop_state.controller)
    assert (await times_of(two, 3))[0] > 0.3


@pytest.mark.anyio
@pytest.mark.parametrize("message", [b"wait", b"wait x", b"wait -5", b"wait 999999999999"])
async def test_a_malformed_cooldown_is_ignored(
    make: Any, server: RedisServer, message: bytes
) -> None:
    one = make()
    await connected(one)
    await until(lambda: link_of(one)._worker._pubsub)
    with redis.Redis.from_url(server.url) as client:
        channel = one.get(NAME).breaker.ref.channel
        await until(lambda: client.publish(channel, message))
    await asyncio.sleep(0.05)
    assert (await times_of(one, 1))[0] < 0.2


def test_malformed_data_of_a_limit_is_logged(
    make: Any, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        one = make(LIMIT__RPM=600)
        await connected(one)
        with redis.Redis.from_url(server.url) as client:
            client.set(limit_of(one).key, "nonsense")
        await one.get(NAME).call(fine)

    asyncio.run(run())
    assert f"Malformed data in Redis for limit '{NAME}' is replaced" in caplog.text


def test_callers_of_two_loops_may_wait(make: Any) -> None:
    one = make(LIMIT__RPM=600, LIMIT__BURST=1)

    async def run() -> None:
        await connected(one)
        await times_of(one, 3)

    asyncio.run(run())
    asyncio.run(run())


def test_a_waiting_caller_of_a_closed_loop_is_dropped(make: Any) -> None:
    one = make(LIMIT__RPM=600, LIMIT__BURST=1)
    asyncio.run(connected(one))

    async def start_waiting() -> None:
        limit_of(one)._waiters.append(module._Caller(0))

    asyncio.run(start_waiting())

    async def run() -> None:
        await times_of(one, 2)

    asyncio.run(run())


def test_a_child_process_inherits_no_turns(make: Any) -> None:
    one = make(LIMIT__RPM=600, LIMIT__BURST=50)

    async def run() -> None:
        await connected(one)
        await times_of(one, 3)

    asyncio.run(run())
    limit = limit_of(one)
    assert limit._requests.total
    link_of(one).reset_after_fork()
    assert not limit._requests.total
    assert limit._lock.acquire(blocking=False)
