"""What single Lua scripts answer, also where their keys are malformed or lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import Keys, Reply, Report, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer
from support.breaker_model import policy_of

# What is tested runs in Redis.
pytestmark = [pytest.mark.once, pytest.mark.no_cover]


def test_scripts_are_loaded_again_after_a_script_flush(server: RedisServer) -> None:
    async def run() -> State:
        client = make_client(server.url)
        try:
            runner = ScriptRunner(client, "one")
            ref = BreakerRef("t:", "again", policy_as_json(BreakerPolicy()))
            await runner.read_state(ref)
            await client.script_flush()
            return (await runner.read_state(ref)).now.state
        finally:
            await client.aclose()

    assert asyncio.run(run()) is State.CLOSED


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda client, keys: client.set(keys.state, "text"),
        lambda client, keys: client.hset(keys.state, mapping={"st": "X", "ver": "1"}),
        lambda client, keys: client.hset(
            keys.state,
            mapping={"st": "O", "ver": "nan", "till": "inf", "opens": "-1", "proven": "1.5"},
        ),
        lambda client, keys: client.hset(
            keys.state, mapping={"st": "C", "ver": "99999999999999999999", "till": "0"}
        ),
        lambda client, keys: client.hset(
            keys.state,
            mapping={"st": "C", "ver": str(2**53 - 1), "till": "0", "opens": "0", "proven": "0"},
        ),
    ],
)
def test_a_corrupt_state_is_reported_and_replaced(server: RedisServer, corrupt: Any) -> None:
    keys = Keys("t:", "corrupt")
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        corrupt(client, keys)

    async def run() -> tuple[str, str]:
        client = make_client(server.url)
        try:
            runner = ScriptRunner(client, "one")
            ref = BreakerRef("t:", keys.name, policy_as_json(BreakerPolicy()))
            first = await runner.report(ref, Report(1, calls=1))
            second = await runner.report(ref, Report(2, calls=1))
            return first.found, second.found
        finally:
            await client.aclose()

    assert asyncio.run(run()) == ("corrupt", "held")


def test_an_outage_lasts_from_its_first_break_through_failed_probes(
    server: RedisServer,
) -> None:
    ref = BreakerRef("since:", "llm", policy_as_json(policy_of()))

    async def ask() -> None:
        async with make_client(server.url) as client:
            runner = ScriptRunner(client, "one", "1000000")

            async def since(now: int) -> float | None:
                runner.now_ms = str(now)
                found = await runner.describe(ref)
                is_down = found.now.state is not State.CLOSED
                assert found.now.outage == (found.since if is_down else 0.0)
                return found.since

            assert await since(1_000_000) is None
            await runner.report(ref, Report(0, 5, 0, 0))
            assert await since(1_000_000) is None  # it has always been well
            await runner.report(ref, Report(1, 5, 5, 0, "after 5 failures in a row"))
            for number in range(1, 4):  # each break is over, and the probe fails
                now = 1_000_000 + number * 20_000
                assert await since(now) == number * 20.0
                token = f"probe {number}"
                assert (await runner.acquire_probe(ref, token)).extra > 0
                report = Report(number + 1, verdicts=((token, "failed"),))
                assert (await runner.report(ref, report)).now.state is State.OPEN
            await runner.force_state(ref, State.CLOSED, "by hand")
            assert await since(1_065_000) == 5.0
            await runner.force_state(ref, State.OPEN, "by hand", open_for=9.0)
            assert await since(1_066_000) == 1.0

    asyncio.run(ask())


def test_a_window_of_another_type_is_replaced(server: RedisServer) -> None:
    keys = Keys("t:", "window")
    with redis.Redis.from_url(server.url) as client:
        client.flushall()

    async def run() -> str:
        client = make_client(server.url)
        try:
            runner = ScriptRunner(client, "one")
            ref = BreakerRef("t:", keys.name, policy_as_json(BreakerPolicy()))
            ref.version = (await runner.report(ref, Report(1, calls=1))).now.version
            await client.set(keys.window, "text")
            return (await runner.report(ref, Report(2, calls=1))).found
        finally:
            await client.aclose()

    assert asyncio.run(run()) == "corrupt"


def test_a_window_of_another_type_does_not_stop_probes(server: RedisServer) -> None:
    keys = Keys("t:", "probes")

    async def run() -> Reply:
        async with make_client(server.url) as client:
            runner = ScriptRunner(client, "one")
            ref = BreakerRef("t:", keys.name, policy_as_json(BreakerPolicy()))
            reply = await runner.force_state(ref, State.HALF_OPEN, "by hand")
            ref.version = reply.now.version
            await client.set(keys.window, "text")
            await runner.release_probe(ref, "a probe of before")
            await client.set(keys.window, "text")
            assert (await runner.acquire_probe(ref, "a probe")).extra > 0
            return await runner.report(ref, Report(1, verdicts=(("a probe", "ok"),)))

    assert asyncio.run(run()).now.state is State.CLOSED


def test_a_policy_with_fewer_probes_than_succeeded_closes_the_circuit(server: RedisServer) -> None:
    async def run() -> None:
        async with make_client(server.url) as client:
            runner = ScriptRunner(client, "one")
            ref = BreakerRef("t:", "fewer", policy_as_json(policy_of(probes=3)))
            ref.version = (await runner.force_state(ref, State.HALF_OPEN, "")).now.version
            for token in ("first", "second"):
                assert (await runner.acquire_probe(ref, token)).extra > 0
            await runner.report(ref, Report(1, verdicts=(("first", "ok"),)))
            ref.policy = policy_as_json(policy_of(probes=1))
            # One is out, whose end decides.
            assert (await runner.acquire_probe(ref, "third")).extra == -1
            await runner.release_probe(ref, "second")
            reply = await runner.acquire_probe(ref, "third")
            assert (reply.extra, reply.now.state) == (-2, State.CLOSED)

    asyncio.run(run())


def test_failures_without_a_verdict_are_counted_over_all_workers(
    server: RedisServer,
) -> None:
    policy = BreakerPolicy(window_seconds=10.0)

    async def run() -> None:
        async with make_client(server.url) as client:
            await client.flushall()
            runners = [ScriptRunner(client, name) for name in ("one", "two")]
            ref = BreakerRef("t:", "unserved", policy_as_json(policy))

            async def report(
                worker: int, at: int, calls: int, last: str, **causes: int
            ) -> OutcomeCounts:
                runner, number = runners[worker], at
                runner.now_ms = str(1_000_000 + at)
                named = {name.replace("_", " "): count for name, count in causes.items()}
                report = Report(number, calls, causes=named, last=last)
                assert (await runner.report(ref, report)).now.state is State.CLOSED
                return (await runner.describe(ref)).tally

            seen = await report(0, 0, 0, "HTTP 401 (Odd)", HTTP_401=3)
            assert seen == OutcomeCounts(3, 3, {"HTTP 401": 3}, 0, "HTTP 401 (Odd)", 3)
            seen = await report(1, 400, 5, "")  # perhaps from before the failures
            assert (seen.calls, seen.failed, seen.run) == (8, 3, 0)
            assert (await report(0, 1000, 2, "")).run == 2  # of the worker that saw them
            assert (await report(1, 1100, 3, "")).run == 5
            seen = await report(0, 2000, 1, "ReadTimeout", HTTP_401=1, ReadTimeout=1)
            assert (seen.calls, seen.run, seen.last) == (16, 0, "ReadTimeout")
            assert seen.causes == {"HTTP 401": 4, "ReadTimeout": 1}
            # Without calls nothing is forgotten, and with them what is too old.
            runners[0].now_ms = "1500000"
            assert (await runners[0].describe(ref)).tally == seen
            seen = await report(1, 10_500, 1, "")
            assert (seen.calls, seen.causes) == (9, {"HTTP 401": 1, "ReadTimeout": 1})
            assert seen.run == 1  # the other worker calls no more
            names = {f"kind {number}": 1 for number in range(30)}
            runners[0].now_ms = "1011000"
            await runners[0].report(ref, Report(11_000, causes=names, last="kind 0"))
            seen = (await runners[0].describe(ref)).tally
            assert len(seen.causes) <= 11
            assert seen.causes["other"] == 22
            await client.hset(ref.window, mapping={"e0": "{not json", "e1": "[1]", "r": "x"})
            assert (await runners[0].describe(ref)).tally.run == 0

    asyncio.run(run())


def test_reasons_name_the_last_failure_also_after_probes(server: RedisServer) -> None:
    async def run() -> list[str]:
        reasons = []
        async with make_client(server.url) as client:
            await client.flushall()
            runner = ScriptRunner(client, "one", "1000000")
            ref = BreakerRef("t:", "named", policy_as_json(policy_of()))
            seen = {"HTTP 503": 4}
            report = Report(1, 4, 4, causes=seen, last="HTTP 503 (Odd)")
            reply = await runner.report(ref, report)
            reasons.append(reply.now.reason)
            for number, verdict in enumerate(["failed with Refused", "met 1000 HTTP 401 (Odd)"], 2):
                runner.now_ms = str(1_000_000 + number * 20_000)
                reply = await runner.acquire_probe(ref, "probe")
                reasons.append(reply.now.reason)
                reply = await runner.report(ref, Report(number, verdicts=(("probe", verdict),)))
                reasons.append(reply.now.reason)
            runner.now_ms = "2000000"
            reasons.append((await runner.acquire_probe(ref, "probe")).now.reason)
            reply = await runner.report(ref, Report(9, verdicts=(("probe", "ok"),)))
            reasons.append(reply.now.reason)
        return reasons

    probing = "while probes are under way, the last failure"
    assert asyncio.run(run()) == [
        "after 4 of 4 calls failed in 1 workers, the last HTTP 503 (Odd)",
        f"{probing} HTTP 503 (Odd)",
        "after a probe failed with Refused",
        f"{probing} Refused",
        "after a probe met HTTP 401 (Odd)",
        f"{probing} HTTP 401 (Odd)",
        "after its probes succeeded",
    ]


def test_a_probe_is_renewed_only_while_it_holds_its_lease(
    server: RedisServer,
) -> None:
    policy = BreakerPolicy(probe_lease=5.0)

    async def run() -> None:
        client: Any = make_client(server.url)
        try:
            ref = BreakerRef("lr:", "llm", policy_as_json(policy))

            def at(seconds: float) -> ScriptRunner:
                return ScriptRunner(client, "one", str(round(1000 * (1e6 + seconds))))

            await at(0).force_state(ref, State.HALF_OPEN, "by hand")
            assert (await at(0).acquire_probe(ref, "first")).extra == 5000
            await at(4).renew_probe(ref, "first")
            assert (await at(8).acquire_probe(ref, "second")).extra == -1  # it holds its permit
            assert (await at(8).describe(ref)).probes == 1
            assert (
                await at(9).acquire_probe(ref, "second")
            ).extra == 5000  # it was renewed no more
            await at(9).renew_probe(ref, "first")
            await at(9).renew_probe(ref, "never admitted")
            assert (await at(9).describe(ref)).probes == 1
            done = await at(10).report(ref, Report(1, verdicts=(("second", "ok"),)))
            assert done.now.state is State.CLOSED
            await at(11).renew_probe(ref, "second")
            assert (await at(11).describe(ref)).probes == 0
        finally:
            await client.aclose()

    asyncio.run(run())
