"""What the scripts store in Redis, for how long, and what they delete; on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lightrag_resilience import BreakerPolicy, LimitPolicy, State
from lightrag_resilience.redis_client import lua_scripts as scripts
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Report, policy_as_json
from lightrag_resilience.shared_state.reservations import ReservationRequest
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer

# What is tested runs in Redis.
pytestmark = [pytest.mark.once, pytest.mark.no_cover]

POLICY = BreakerPolicy(
    failure_rate=0.5, min_calls=4, window_seconds=40.0, open_for=4.0, probe_lease=90.0
)
KEPT = 600_000  # milliseconds
DAY = 86_400_000
NOW = 1_800_000_000_000
SLACK = 60_000  # milliseconds that a busy machine may take for a test


class Limit:
    """The part of a shared limiter that the script needs."""

    def __init__(self, **limits: Any) -> None:
        self.policy = LimitPolicy(**limits)
        self.key = "t:rl:{llm}"


def on(server: RedisServer, steps: Callable[[ScriptRunner, BreakerRef], Awaitable[None]]) -> None:
    async def run() -> None:
        async with make_client(server.url) as client:
            await steps(ScriptRunner(client, "one", str(NOW)), ref())

    asyncio.run(run())


def ref(policy: BreakerPolicy = POLICY) -> BreakerRef:
    return BreakerRef("t:", "llm", policy_as_json(policy))


async def about(runner: ScriptRunner, key: str, kept: float) -> None:
    """A key is kept for so many milliseconds, less what the test took."""
    left = await runner.client.pttl(key)
    assert kept - SLACK < left <= kept


def book(
    *, requests: int = 0, tokens: int = 0, back: tuple[int, int] = (0, 0)
) -> ReservationRequest:
    return ReservationRequest(1, (requests, tokens), (requests, tokens), back)


# ---------------------------------------------------------------------- how long a circuit is open


@pytest.mark.parametrize("days", [1, 7])
def test_an_isolation_of_days_is_kept_until_it_ends(server: RedisServer, days: int) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.force_state(it, State.OPEN, "by hand", open_for=days * 86_400.0)
        await about(runner, it.state, 4 * days * DAY)
        assert (await runner.read_state(it)).now.remaining == days * 86_400.0

    on(server, steps)


def test_an_open_state_lasts_at_most_7_days(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        reply = await runner.force_state(it, State.OPEN, "by hand", open_for=9e12)
        assert reply.now.remaining == 7 * 86_400.0
        await runner.client.delete(it.state)
        await runner.restore(it, 9e12, 1, "as the worker says")
        till = int(await runner.client.hget(it.state, "till"))
        assert till == NOW + 7 * DAY

    on(server, steps)


@pytest.mark.parametrize(("beyond", "found"), [(0, "held"), (1, "corrupt")])
def test_a_state_open_for_more_than_7_days_is_corrupt(
    server: RedisServer, beyond: int, found: str
) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.force_state(it, State.OPEN, "by hand", open_for=60.0)
        await runner.client.hset(it.state, "till", str(NOW + 7 * DAY + beyond))
        assert (await runner.read_state(it)).found == found

    on(server, steps)


# ---------------------------------------------------------------------- clocks that step back


@pytest.mark.parametrize("how", ["by hand", "by failures"])
def test_a_break_is_not_prolonged_by_a_clock_that_steps_back(server: RedisServer, how: str) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        if how == "by hand":
            await runner.force_state(it, State.OPEN, "by hand", open_for=4.0)
        else:
            await runner.report(it, Report(1, calls=1, failed=1, tripped="it is down"))
        runner.now_ms = str(NOW - 3_600_000)
        assert (await runner.read_state(it)).now.remaining == 4.0
        runner.now_ms = str(NOW - 3_600_000 + 3999)
        assert (await runner.acquire_probe(it, "early")).extra == -1
        runner.now_ms = str(NOW - 3_600_000 + 4000)
        assert (await runner.acquire_probe(it, "a probe")).extra == 90_000

    on(server, steps)


def test_a_dead_workers_lease_is_not_prolonged_by_a_clock_that_steps_back(
    server: RedisServer,
) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.force_state(it, State.HALF_OPEN, "by hand")
        await runner.acquire_probe(it, "died")
        runner.now_ms = str(NOW - 3_600_000)
        assert (await runner.acquire_probe(it, "early")).extra == -1
        runner.now_ms = str(NOW - 3_600_000 + 90_000)
        assert (await runner.acquire_probe(it, "next")).extra == 90_000

    on(server, steps)


def test_waits_for_turns_are_not_prolonged_by_a_clock_that_steps_back(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        limit: Any = Limit(rpm=60, tpm=60_000, burst=2, max_wait=10.0)
        await runner.reserve(limit, book(requests=12, tokens=60_000))
        runner.now_ms = str(NOW - 3_600_000)
        assert (await runner.reserve(limit, book(requests=1))).wait <= 72.0
        runner.now_ms = str(NOW - 3_600_000 + 72_000)
        assert (await runner.reserve(limit, book(requests=1, tokens=1))).taken == (1, 1)

    on(server, steps)


# ---------------------------------------------------------------------- versions out of reach


@pytest.mark.parametrize("ahead", [5 * 10**12, 6 * 10**12, 2**52 - 1 - NOW, 2**53 - 1 - NOW])
def test_versions_grow_beyond_any_stored_version(server: RedisServer, ahead: int) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.force_state(it, State.CLOSED, "by hand")
        await runner.client.hset(it.state, "ver", str(NOW + ahead))
        it.version = (await runner.read_state(it)).now.version
        for moment, state in enumerate([State.OPEN, State.HALF_OPEN, State.OPEN, State.CLOSED]):
            runner.now_ms = str(NOW + moment)
            there = (await runner.force_state(it, state, "by hand", open_for=1.0)).now
            assert there.version > it.version
            it.version = there.version
            looked = await runner.read_state(it)
            assert (looked.found, looked.now.state) == ("held", state)

    on(server, steps)


# ---------------------------------------------------------------------- malformed fields

ODD = [
    *(b"", b"-0", b"-0.0", b"nan", b"-inf", b"1e400", b"-7", b"1.5", b"0x10", b" 12", b"%d %s"),
    *(b"\xff\xfe", b"\xed\xa0\x80", b"9" * 5000, b"9007199254740991", b"4503599627370495"),
    *(b"null", b"[1]", b'{"a":-0.0,"b":1e999,"c":"nan","d":{}}', b"[" * 2000, b"x" * 20_000),
]
OF_STATES = ["ver", "till", "opens", "proven", "why", "since", "last", "length", "st"]
OF_WINDOWS = [
    "n0",
    "c0",
    "f0",
    "s0",
    "e0",
    "n7",
    "e7",
    "qone",
    "tone",
    "zone",
    "zz",
    "pa",
    "r",
    "l",
]


@pytest.mark.parametrize("state", [State.OPEN, State.HALF_OPEN, State.CLOSED])
def test_every_script_answers_whatever_a_field_holds(server: RedisServer, state: State) -> None:
    async def every_script(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.read_state(it)
        await runner.describe(it)
        await runner.acquire_probe(it, "a")
        await runner.renew_probe(it, "a")
        await runner.report(it, Report(2, 3, 1, 1, "", (("a", "met 5 HTTP 401"),), {"x": 1}, "x"))
        await runner.report(it, Report(3, 3, 1, tripped="it is down"))
        await runner.force_state(it, State.OPEN, "by hand")
        await runner.restore(it, 3.0, 2, "as the worker says")
        await runner.describe(it)

    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        limit: Any = Limit(rpm=60, tpm=60_000)
        for odd in ODD:
            for fields, key in ((OF_STATES, it.state), (OF_WINDOWS, it.window)):
                for field in fields:
                    await runner.force_state(it, state, "by hand", open_for=0.0)
                    await runner.report(
                        it, Report(1, 2, 1, causes={"HTTP 503": 1}, last="HTTP 503")
                    )
                    await runner.client.hset(key, field, odd)
                    await every_script(runner, it)
                    await runner.client.delete(it.state, it.window)
            for field in ("r", "k", "wone", "wother", "w"):
                await runner.client.hset(limit.key, field, odd)
                await runner.reserve(limit, book(requests=1, tokens=1))

    on(server, steps)


def test_a_huge_text_is_cut_before_it_reaches_the_workers(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.report(it, Report(1, 2, 1, causes={"HTTP 503": 1}, last="HTTP 503"))
        huge = "x" * 300_000
        await runner.client.hset(it.state, mapping={"why": huge, "last": huge})
        slices = {f"e{n}": f'{{"{huge}":1}}' for n in range(10)}
        await runner.client.hset(it.window, mapping={"l": huge, **slices})
        words = (it.channel, str(NOW), it.policy, "one", 0)
        for name in ("read_state", "describe"):
            source = scripts.source(name)
            answer = await runner.client.eval(source, 2, it.state, it.window, *words)
            assert len(repr(answer)) < 20_000
            assert (await getattr(runner, name)(it)).now.reason == "x" * 200

    on(server, steps)


# ---------------------------------------------------------------------- how long keys are kept


def test_the_keys_of_a_breaker_expire(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.report(it, Report(1, calls=1))
        await about(runner, it.state, KEPT)
        await about(runner, it.window, KEPT)
        await runner.client.persist(it.state)
        await runner.client.persist(it.window)
        await runner.report(it, Report(2, calls=1))  # it is in use
        await about(runner, it.state, KEPT)
        await about(runner, it.window, KEPT)
        await runner.force_state(it, State.HALF_OPEN, "by hand")
        await about(runner, it.state, KEPT)
        await runner.acquire_probe(it, "a probe")
        await about(runner, it.window, 180_000)

    on(server, steps)


def test_a_long_window_is_kept_twice_as_long(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        it.policy = ref(BreakerPolicy(window_seconds=400.0)).policy
        await runner.report(it, Report(1, calls=1))
        await about(runner, it.window, 800_000)

    on(server, steps)


def test_a_window_longer_than_a_lease_is_kept_while_a_probe_runs(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        it.policy = ref(BreakerPolicy(window_seconds=300.0, probe_lease=1.0)).policy
        await runner.force_state(it, State.HALF_OPEN, "by hand")
        await runner.acquire_probe(it, "a probe")
        await about(runner, it.window, 600_000)

    on(server, steps)


def test_the_key_of_a_limit_is_kept_until_all_turns_are_paid_for(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        limit: Any = Limit(rpm=60, burst=1, max_wait=86_400.0)
        await runner.reserve(limit, book(requests=1))
        await about(runner, limit.key, 61_000)
        await runner.reserve(limit, book(requests=599))
        await about(runner, limit.key, 660_000)

    on(server, steps)


def test_the_key_of_workers_expires_with_the_last(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        assert await runner.count_workers("t:", 100.0) == 1
        await about(runner, "t:workers", 100_000)

    on(server, steps)


# ---------------------------------------------------------------------- what is deleted


def test_workers_with_an_endless_heartbeat_are_not_counted(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        now = int((await runner.client.time())[0]) * 1000
        odd: Any = {f"odd {n}": now + 260_000 + n * DAY for n in range(50)} | {"inf": "inf"}
        await runner.client.zadd("t:workers", odd)
        await ScriptRunner(runner.client, "other").count_workers("t:", 100.0)
        assert await runner.count_workers("t:", 100.0) == 2

    on(server, steps)


def test_workers_without_reports_are_dropped_from_the_window(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        gone = ScriptRunner(runner.client, "gone", str(NOW))
        await gone.report(it, Report(1, calls=2, failed=1))
        for ago, is_there in ((79_000, True), (81_000, False)):
            runner.now_ms = str(NOW + ago)
            await runner.report(it, Report(ago, calls=1))
            fields = set(await runner.client.hkeys(it.window))
            assert {b"qgone" in fields, b"tgone" in fields} == {is_there}
            assert b"qone" in fields

    on(server, steps)


def test_ended_probe_leases_are_deleted(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, it: BreakerRef) -> None:
        await runner.force_state(it, State.HALF_OPEN, "by hand")
        await runner.acquire_probe(it, "first")
        runner.now_ms = str(NOW + 90_000)
        await runner.acquire_probe(it, "second")
        assert await runner.client.hkeys(it.window) == [b"psecond"]

    on(server, steps)


def test_ended_or_malformed_leases_of_work_are_deleted(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        async def ask(worker: str, held: int) -> int:
            return int(await runner.client.eval(scripts.source("lease"), 1, "t:work", worker, held))

        far = int((await runner.client.time())[0]) * 1000 + DAY
        await runner.client.hset("t:work", mapping={"ended": 1, "never": far, "odd": "text"})
        assert await ask("one", 30_000) == 0
        assert await runner.client.hkeys("t:work") == [b"one"]
        await about(runner, "t:work", 60_000)
        assert 0 < await ask("two", 30_000) <= 30_000
        assert await ask("one", 0) == 0
        assert await runner.client.hkeys("t:work") == []

    on(server, steps)


def test_workers_without_reservations_are_dropped(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        limit: Any = Limit(rpm=60)
        await ScriptRunner(runner.client, "gone", str(NOW)).reserve(limit, book(requests=1))
        for ago, workers in ((59_999, 2), (60_000, 1)):
            runner.now_ms = str(NOW + ago)
            assert (await runner.reserve(limit, book(requests=1))).workers == workers
            assert (b"wgone" in await runner.client.hkeys(limit.key)) is (workers == 2)

    on(server, steps)


def test_turns_given_back_do_not_add_to_the_burst(server: RedisServer) -> None:
    async def steps(runner: ScriptRunner, _: BreakerRef) -> None:
        limit: Any = Limit(rpm=60, tpm=60_000, burst=2, max_wait=60.0)
        await runner.reserve(limit, book(back=(1000, 1_000_000)))
        for field in ("r", "k"):
            assert float(await runner.client.hget(limit.key, field)) == NOW
        # No more go at once than the burst: the next waits for its turn.
        assert (await runner.reserve(limit, book(requests=2))).wait == 0
        assert (await runner.reserve(limit, book(requests=1))).wait == 1.0

    on(server, steps)
