"""All workers together, while Redis comes and goes: no outage and no return is a new burst."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightrag_resilience import LimitPolicy, RateLimitedError
from lightrag_resilience.shared_state.reservations import Reservation
from lightrag_resilience.shared_state.shared_rate_limiter import SharedRateLimiter
from lightrag_resilience.testing.virtual_time import VirtualTimeLoop

RPM, BURST, TOKENS = 600.0, 10, 100
RATE = RPM / 60.0
REQUESTS = LimitPolicy(rpm=RPM, burst=BURST, max_wait=3600.0)
ALSO_TOKENS = LimitPolicy(tpm=RPM * TOKENS, token_burst=BURST * TOKENS, max_wait=3600.0)
times = st.floats(0.05, 8.0)
flaps = st.lists(st.tuples(times, times, st.booleans()), min_size=1, max_size=8)


class Redis:
    """What the script does, for one limit."""

    def __init__(self, policy: LimitPolicy) -> None:
        self.policy = policy
        self.paid = [0.0, 0.0]
        self.seen: set[int] = set()

    def book(self, worker: int, request: Any) -> Reservation:
        self.seen.add(worker)
        now = asyncio.get_running_loop().time()
        bursts = (self.policy.request_burst, self.policy.tokens_at_once)
        each = [60.0 / rate if rate else 0.0 for rate in (self.policy.rpm, self.policy.tpm)]
        starts, taken = [0.0, 0.0], [0, 0]
        for kind in (0, 1):
            paid = max(self.paid[kind], now + request.owed[kind])
            paid = max(paid - request.given_back[kind] * each[kind], now)
            if each[kind]:
                starts[kind] = paid - bursts[kind] * each[kind] - now
                taken[kind] = request.wanted[kind]
            self.paid[kind] = paid + taken[kind] * each[kind]
        return Reservation(
            "held", 0.0, len(self.seen), (starts[0], starts[1]), (taken[0], taken[1])
        )


class Link:
    """One worker's way to it."""

    def __init__(self, worker: int, redis: Redis, delay: float) -> None:
        self.connected = True
        self.worker, self.redis, self.delay = worker, redis, delay

    def reserve(self, limit: SharedRateLimiter) -> None:
        asyncio.get_running_loop().call_later(self.delay, self._reserve, limit)

    def _reserve(self, limit: SharedRateLimiter) -> None:
        if (request := limit.next_request()) is None:
            return
        if not self.connected:
            limit.on_reservation_lost(request)
            return
        booking = self.redis.book(self.worker, request)
        asyncio.get_running_loop().call_later(self.delay, self._answer, limit, request, booking)

    def _answer(self, limit: SharedRateLimiter, request: Any, booking: Reservation) -> None:
        if self.connected:
            limit.on_reserved(request, booking)
            self._reserve(limit)
        else:
            limit.on_reservation_lost(request)

    def cool_down(self, name: str, seconds: float) -> None: ...


def sent_while(
    policy: LimitPolicy,
    workers: int,
    delay: float,
    flapping: list[tuple[float, float, bool]],
    callers: int = 8,
) -> list[float]:
    """When calls were sent by workers whose callers never rest."""
    loop = VirtualTimeLoop()
    sent: list[float] = []
    tokens = TOKENS if policy.tpm else 0

    async def run() -> None:
        redis = Redis(policy)
        links = [Link(number, redis, delay) for number in range(workers)]
        limits = [SharedRateLimiter("llm", policy, "lr:", link, clock=loop.time) for link in links]

        async def go_on(limit: SharedRateLimiter) -> None:
            while True:
                await limit.acquire(tokens, 3600.0)
                sent.append(loop.time())

        tasks = [loop.create_task(go_on(limit)) for limit in limits for _ in range(callers)]
        for up, down, forgets in flapping:
            await asyncio.sleep(up)
            for link in links:
                link.connected = False
            await asyncio.sleep(down)
            if forgets:
                redis.paid = [0.0, 0.0]
            for limit, link in zip(limits, links, strict=True):
                limit.on_redis_back()
                link.connected = True
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    loop.run_until_complete(run())
    loop.close()
    return sent


def most_above_the_rate(sent: list[float]) -> float:
    """Of all windows, by how much the calls in one are more than its time allows."""
    most = level = 0.0
    before = 0.0
    for at in sent:
        level = max(level - (at - before) * RATE, 0.0) + 1
        before = at
        most = max(most, level)
    return most


@pytest.mark.no_cover
@settings(max_examples=40, deadline=None)
@given(flaps, st.sampled_from([REQUESTS, ALSO_TOKENS]), st.sampled_from([0.001, 0.1, 0.2]))
@example([(2.0, 0.0625, True), (1.0, 1.0, False)], REQUESTS, 0.1)  # an answer outlasts the outage
def test_a_worker_sends_at_most_its_limit_and_one_burst_however_redis_flaps(
    flapping: list[tuple[float, float, bool]], policy: LimitPolicy, delay: float
) -> None:
    sent = sent_while(policy, 1, delay, flapping)
    assert most_above_the_rate(sent) <= BURST + 1
    up_and_down = sum(up + down for up, down, _ in flapping)
    assert len(sent) >= 0.7 * RATE * up_and_down - 2 * BURST  # and not much less either


@pytest.mark.no_cover
@settings(max_examples=20, deadline=None)
@given(flaps, st.sampled_from([REQUESTS, ALSO_TOKENS]), st.sampled_from([0.001, 0.1]))
def test_an_outage_and_its_end_grant_workers_no_further_burst(
    flapping: list[tuple[float, float, bool]], policy: LimitPolicy, delay: float
) -> None:
    """What others booked last is known to none: a few calls at each outage."""
    workers, acquainted = 3, [(3.0, 0.5, False)]
    sent = sent_while(policy, workers, delay, acquainted + flapping)
    a_burst_each = workers * BURST * len(flapping)
    assert most_above_the_rate(sent) <= 3 * BURST + 0.4 * a_burst_each


async def _went_with_more_tokens_than_booked(limit: SharedRateLimiter) -> None:
    assert not await limit.acquire(10, 30.0)
    limit.settle(10, 70)


def test_tokens_used_beyond_the_reservation_are_paid_for_in_an_outage() -> None:
    loop = VirtualTimeLoop()
    link = Link(0, Redis(REQUESTS), 0.0)
    link.connected = False
    policy = LimitPolicy(tpm=60.0, token_burst=10, max_wait=3600.0)
    limit = SharedRateLimiter("llm", policy, "lr:", link, clock=loop.time)

    async def run() -> None:
        await _went_with_more_tokens_than_booked(limit)
        with pytest.raises(RateLimitedError):
            await limit.acquire(10, 30.0)
        assert await limit.acquire(10, 70.0)
        assert loop.time() == pytest.approx(60.0)

    loop.run_until_complete(run())
    loop.close()
