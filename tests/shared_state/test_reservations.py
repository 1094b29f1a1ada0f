"""Turns that are booked: the script on a real server, its answers, and a worker's stock."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightrag_resilience import LimitPolicy
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import WireError
from lightrag_resilience.shared_state.reservations import (
    Reservation,
    ReservationRequest,
    ReservedTurns,
)
from lightrag_resilience.shared_state.script_runner import ScriptRunner
from lightrag_resilience.shared_state.shared_rate_limiter import SharedRateLimiter
from lightrag_resilience.testing.redis_server import RedisServer

WORKERS = ("one", "two")
RPM, BURST, TPM, TOKEN_BURST = 600.0, 10, 6000.0, 100
POLICY = LimitPolicy(rpm=RPM, burst=BURST, tpm=TPM, token_burst=TOKEN_BURST, max_wait=5.0)
bookings = st.tuples(
    st.just("book"), st.sampled_from(WORKERS), st.integers(1, 8), st.integers(0, 60)
)
steps = st.lists(
    st.one_of(
        bookings,
        bookings,
        bookings,
        st.tuples(st.just("give back"), st.sampled_from(WORKERS)),
        st.tuples(st.just("pass"), st.sampled_from([1, 50, 400, 3000, 70_000])),
    ),
    max_size=60,
)


class Unused:
    connected = True

    def reserve(self, limit: SharedRateLimiter) -> None: ...
    def cool_down(self, name: str, seconds: float) -> None: ...


def limit(policy: LimitPolicy = POLICY) -> SharedRateLimiter:
    return SharedRateLimiter("llm", policy, "t:", Unused(), clock=lambda: 0.0)


def request(requests: int, tokens: int, back: tuple[int, int] = (0, 0)) -> ReservationRequest:
    return ReservationRequest(1, (requests, tokens), (requests, tokens), back)


class Run:
    """Times are milliseconds."""

    def __init__(self, client: Any) -> None:
        self.now = 1_000_000.0
        self.limit = limit()
        self.runners = {name: ScriptRunner(client, name) for name in WORKERS}
        self.requests: list[float] = []
        self.tokens: list[float] = []
        self.returned = [0, 0]
        self.back: dict[str, tuple[int, int]] = {}

    async def book(self, worker: str, requests: int, tokens: int) -> Reservation:
        runner = self.runners[worker]
        runner.now_ms = str(self.now)
        booking = await runner.reserve(
            self.limit, request(requests, tokens, self.back.pop(worker, (0, 0)))
        )
        if any(booking.taken):
            assert booking.taken == (requests, tokens)
            self.requests += self.times(booking.starts[0], 60_000 / RPM, requests)
            self.tokens += self.times(booking.starts[1], 60_000 / TPM, tokens)
        else:
            assert booking.wait > POLICY.max_wait
        return booking

    def times(self, start: float, each: float, turns: int) -> list[float]:
        return [self.now + max(start * 1000 + (n + 1) * each, 0.0) for n in range(turns)]

    def give_back(self, worker: str) -> None:
        """The last turns that are not yet due are not used after all.

        If they come late the rate has made room for them, and they count twice.
        """
        requests, tokens = self.back.get(worker, (0, 0))
        if self.requests and self.requests[-1] > self.now:
            self.requests.pop()
            requests += 1
            self.returned[0] += 1
        if self.tokens and self.tokens[-1] > self.now:
            self.tokens.pop()
            tokens += 1
            self.returned[1] += 1
        self.back[worker] = (requests, tokens)


def most_in_any(window: float, times: list[float]) -> int:
    inside: deque[float] = deque()
    most = 0
    for at in sorted(times):
        inside.append(at)
        while inside[0] <= at - window:
            inside.popleft()
        most = max(most, len(inside))
    return most


@pytest.mark.no_cover
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_no_window_sees_more_than_the_limit_and_the_burst(
    server: RedisServer, steps: list[tuple[Any, ...]]
) -> None:
    async def run() -> None:
        client = make_client(server.url)
        await client.flushall()
        try:
            script = Run(client)
            for step in steps:
                if step[0] == "pass":
                    script.now += step[1]
                elif step[0] == "book":
                    await script.book(*step[1:])
                else:
                    script.give_back(step[1])
            for window in (10.0, 100.0, 1000.0, 60_000.0):
                requests, tokens = script.returned
                requests += BURST + int(window / 60_000 * RPM) + 1
                tokens += TOKEN_BURST + int(window / 60_000 * TPM) + 1
                assert most_in_any(window, script.requests) <= requests
                assert most_in_any(window, script.tokens) <= tokens
        finally:
            await client.aclose()

    asyncio.run(run())


@pytest.mark.anyio
async def test_reservations_are_served_in_order_over_all_workers(server: RedisServer) -> None:
    client = make_client(server.url)
    script = Run(client)
    ready = []
    for number in range(40):
        booking = await script.book(WORKERS[number % 2], 1, 1)
        ready.append(booking.starts[0] + 60 / RPM)
    assert ready == sorted(ready)
    assert ready[0] <= 0 < ready[-1]
    await client.aclose()


@pytest.mark.anyio
async def test_a_reservation_counts_the_workers_of_the_last_minute(server: RedisServer) -> None:
    client = make_client(server.url)
    script = Run(client)
    assert [(await script.book(name, 1, 1)).workers for name in (*WORKERS, "one")] == [1, 2, 2]
    script.now += 61_000
    assert (await script.book("one", 1, 1)).workers == 1
    assert await client.hkeys(script.limit.key) == [b"r", b"k", b"wone"]
    await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "corrupt",
    [
        lambda client, key: client.set(key, "nonsense"),
        lambda client, key: client.hset(key, mapping={"r": "nonsense", "k": "-"}),
        lambda client, key: client.hset(key, mapping={"r": "9e99", "k": "nan"}),
        lambda client, key: client.hset(key, mapping={"wother": "soon", "w": ""}),
    ],
)
async def test_malformed_data_is_replaced(server: RedisServer, corrupt: Any) -> None:
    client = make_client(server.url)
    script = Run(client)
    with redis.Redis.from_url(server.url) as other:
        corrupt(other, script.limit.key)
    booking = await script.book("one", 1, 1)
    assert booking.wait == 0
    assert booking.workers == 1
    await script.book("one", 1, 1)
    assert 0 < await client.pttl(script.limit.key) <= 70_000
    await client.aclose()


@pytest.mark.anyio
async def test_only_the_needed_turns_are_reserved_if_the_extra_ones_are_due_too_late(
    server: RedisServer,
) -> None:
    client = make_client(server.url)
    script = Run(client)
    runner = script.runners["one"]
    runner.now_ms = "1000000"
    booking = await runner.reserve(script.limit, ReservationRequest(1, (1, 0), (100, 0), (0, 0)))
    assert booking.taken == (1, 0)
    await client.aclose()


@pytest.mark.anyio
async def test_turns_above_a_burst_add_up_while_their_caller_stays_away(
    server: RedisServer,
) -> None:
    client = make_client(server.url)
    script = Run(client)
    await script.book("one", 1, 100)
    assert (await script.book("two", 1, 900)).taken == (0, 0)
    script.now += 8_000.0
    assert (await script.book("two", 1, 900)).wait == pytest.approx(1.0)
    assert (await script.book("one", 1, 1)).wait == pytest.approx(1.0 + 0.01)
    await client.aclose()


@pytest.mark.anyio
async def test_what_a_worker_owes_counts_if_redis_lost_it(
    server: RedisServer,
) -> None:
    client = make_client(server.url)
    script = Run(client)
    runner = script.runners["one"]
    runner.now_ms = "1000000"
    owing = ReservationRequest(1, (1, 0), (1, 0), (0, 0), owed=(2.0, 0.0))
    booking = await runner.reserve(script.limit, owing)
    assert booking.starts[0] == pytest.approx(2.0 - BURST * 60 / RPM)
    assert (await runner.reserve(script.limit, owing)).starts[0] == pytest.approx(
        booking.starts[0] + 60 / RPM  # it is no debt that adds up
    )
    await client.aclose()


# ---------------------------------------------------------------------- what the script answers


GOOD: list[Any] = [b"held", b"1500.000", 2, b"-100.000", b"4", b"20.500", b"300"]


def test_a_reservation_is_parsed_in_seconds() -> None:
    assert Reservation.parse(GOOD) == Reservation("held", 1.5, 2, (-0.1, 0.0205), (4, 300))


@given(st.one_of(st.none(), st.binary(), st.lists(st.binary() | st.integers() | st.none())))
def test_a_malformed_answer_is_rejected(answer: Any) -> None:
    with pytest.raises(WireError):
        Reservation.parse(answer)


@given(st.integers(0, 6), st.binary() | st.none() | st.floats() | st.integers(max_value=0))
def test_an_answer_with_one_malformed_part_is_rejected(at: int, value: Any) -> None:
    answer = [*GOOD[:at], value, *GOOD[at + 1 :]]
    try:
        Reservation.parse(answer)
    except WireError:
        return
    assert isinstance(value, bytes)
    float(value) if at else value.decode()


# ---------------------------------------------------------------------- the stock


def test_turns_are_due_at_their_times_and_not_before_the_reservation() -> None:
    stock = ReservedTurns()
    stock.add(start=-1.0, each=0.5, turns=4, now=0.0)
    assert [stock.take(1, 0.0) for _ in range(4)] == [0.0, 0.0, 0.5, 1.0]
    assert stock.total == 0


def test_a_large_take_uses_several_lots() -> None:
    stock = ReservedTurns()
    stock.add(0.0, 1.0, 2, 0.0)
    stock.add(2.0, 1.0, 3, 0.0)
    assert stock.take(4, 0.0) == 4.0
    assert stock.total == 1
    assert stock.take(1, 0.0) == 5.0


def test_turns_put_back_are_used_first() -> None:
    stock = ReservedTurns()
    stock.add(0.0, 1.0, 2, 0.0)
    ready = stock.take(1, 0.0)
    stock.put_back(ready, 1)
    assert stock.take(1, 0.0) == ready
    stock.put_back(1.0, 0)
    stock.add(0.0, 1.0, 0, 0.0)
    assert stock.total == 1


def test_a_lot_is_dropped_once_all_its_turns_are_idle() -> None:
    stock = ReservedTurns()
    stock.add(0.0, 1.0, 2, 0.0)
    assert stock.expire(2.2) == 0
    assert stock.expire(2.3) == 2
    assert stock.total == 0


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 5), st.integers(1, 9)), max_size=8),
    st.lists(st.integers(1, 5), max_size=20),
)
def test_turns_are_taken_in_order_and_none_is_lost(
    lots: list[tuple[float, float, int]], takes: list[int]
) -> None:
    stock, start, expected = ReservedTurns(), 0.0, 0
    for gap, each, turns in lots:
        start += abs(gap)
        stock.add(start, each, turns, 0.0)
        start += each * turns
        expected += turns
    ready = 0.0
    for turns in takes:
        if turns <= stock.total:
            later = stock.take(turns, 0.0)
            assert later >= ready - 1e-9  # sums of floats
            ready, expected = later, expected - turns
        assert stock.total == expected
