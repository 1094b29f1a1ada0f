"""The Lua scripts on a real server agree, step by step, with a plain model of what they decide."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy, State
from lightrag_resilience.circuit.outcomes import OutcomeCounts
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import LETTERS, Keys, Reply, Report, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer
from support.breaker_model import Model

# What is tested runs in Redis.
pytestmark = [pytest.mark.once, pytest.mark.no_cover]

WORKERS = ("one", "two", "three")
BAD = ("failed", "failed with HTTP 503 (Odd)", "was slow", "met 1000 Odd", "met 90000 Odd")
Step = tuple[Any, ...]

counts = st.integers(0, 9).flatmap(
    lambda calls: st.tuples(st.just(calls), st.integers(0, calls), st.integers(0, calls))
)
workers = st.sampled_from(WORKERS)
reports = st.tuples(
    st.just("report"),
    workers,
    st.sampled_from(["next", "next", "next", "repeated", "late", "ahead"]),
    counts,
    st.sampled_from([False, False, False, False, True]),
    st.lists(st.sampled_from(["ok", "ok", *BAD]), max_size=2),
    st.sampled_from([0, 0, 0, 0, 2500]),
)
steps = st.lists(
    st.one_of(
        *[reports] * 5,
        *[st.tuples(st.just("admit"), workers)] * 4,
        *[st.tuples(st.just("pass"), st.sampled_from([1, 900, 4999, 5000, 10_000, 61_000]))] * 3,
        st.tuples(st.just("release"), st.integers(0, 3)),
        st.tuples(st.just("force"), st.sampled_from(["C", "O", "H"])),
        st.tuples(st.just("poll"), workers),
        st.tuples(st.just("forget")),
    ),
    max_size=40,
)
policies = st.builds(
    BreakerPolicy,
    min_calls=st.sampled_from([1, 4, 10]),
    open_for=st.just(4.0),
    open_max=st.just(12.0),
    failure_rate=st.sampled_from([None, 0.3, 0.5, 1.0]),
    slow_rate=st.sampled_from([0.5, 1.0]),
    window_seconds=st.sampled_from([10.0, 60.0]),
    probes=st.integers(1, 3),
    probe_lease=st.sampled_from([5.0, 60.0]),
    open_growth=st.sampled_from([1.0, 1.5, 2.0]),
    quorum=st.integers(1, 3),
)


def policy_of(*, probes: int = 1, quorum: int = 1) -> BreakerPolicy:
    return BreakerPolicy(
        min_calls=4,
        failure_rate=0.5,
        window_seconds=10.0,
        open_for=4.0,
        open_growth=2.0,
        open_max=12.0,
        probes=probes,
        quorum=quorum,
    )


def failures(number: int, *, worker: str = "one", which: str = "next") -> Step:
    return ("report", worker, which, (number, number, 0), False, [], 0)


def verdict(word: str) -> Step:
    return ("report", "one", "next", (0, 0, 0), False, [word], 0)


TRIP: Step = ("report", "one", "next", (1, 1, 0), True, [], 0)
PLANT: Step = ("report", "one", "next", (0, 0, 0), True, [], 3000)
ASK: Step = ("admit", "one")
FAILED_PROBE: list[Step] = [("pass", 10_000), ASK, verdict("failed")]
TWO_PROBES: list[Step] = [("pass", 10_000), ASK, ASK]
BOTH_VERDICTS: Step = ("report", "one", "next", (0, 0, 0), False, ["ok", "failed"], 0)
DENIED_PROBE: list[Step] = [("pass", 10_000), ASK, verdict("met 1000 HTTP 401 (Odd)")]
GOOD_PROBE: list[Step] = [("pass", 10_000), ASK, verdict("ok")]


class Run:
    """The same steps through the scripts and through the model."""

    def __init__(self, client: Any, policy: BreakerPolicy) -> None:
        self.now = 1_000_000
        self.model = Model(policy)
        self.runners = {name: ScriptRunner(client, name) for name in WORKERS}
        self.refs = {name: BreakerRef("t:", "llm", policy_as_json(policy)) for name in WORKERS}
        self.batches = dict.fromkeys(WORKERS, 0)
        self.tokens: list[str] = []
        self.asked = itertools.count()

    async def take(self, step: Step) -> None:
        for runner in self.runners.values():
            runner.now_ms = str(self.now)
        await getattr(self, step[0])(*step[1:])
        looker = BreakerRef("t:", "llm", self.refs["one"].policy)
        self.compare(await self.runners["one"].read_state(looker))

    def compare(self, reply: Reply) -> None:
        there = reply.now
        shown = (LETTERS[there.state], there.version, round(there.remaining * 1000), there.opens)
        assert shown == self.model.shown(self.now)

    async def report(self, worker: str, which: str, counts: Any, *rest: Any) -> None:
        tripped, verdicts, left = rest
        ref = self.refs[worker]
        self.batches[worker] += which != "repeated"
        known = ref.version + {"late": -1, "ahead": 5000}.get(which, 0)
        ref.version = known
        calls, failed, slow = counts
        reason = "by itself" if tripped else ""
        report = Report(self.batches[worker], calls, failed, slow, reason)
        report.verdicts = tuple(zip(self.tokens, verdicts, strict=False))
        opens = 2 if left else 0
        reply = await self.runners[worker]._report(ref, report, left=left, opens=opens)
        self.model.report(
            worker,
            known=known,
            now=self.now,
            batch=report.batch,
            counts=counts,
            tripped=tripped,
            verdicts=dict(report.verdicts),
            left=left,
            opens=opens,
        )
        self.compare(reply)
        ref.version = reply.now.version

    async def admit(self, worker: str) -> None:
        ref, token = self.refs[worker], f"token{next(self.asked)}"
        reply = await self.runners[worker].acquire_probe(ref, token)
        assert reply.extra == self.model.admit(token, known=ref.version, now=self.now)
        if reply.extra >= 0:
            self.tokens.insert(0, token)
        ref.version = reply.now.version

    async def release(self, index: int) -> None:
        if index < len(self.tokens):
            token = self.tokens.pop(index)
            await self.runners["one"].release_probe(self.refs["one"], token)
            self.model.release(token)

    async def force(self, letter: str) -> None:
        ref = self.refs["one"]
        state = next(state for state, code in LETTERS.items() if code == letter)
        await self.runners["one"].force_state(ref, state, "by hand", open_for=7.0)
        self.model.force(letter, open_for=7000, known=ref.version, now=self.now)

    async def poll(self, worker: str) -> None:
        reply = await self.runners[worker].read_state(self.refs[worker])
        self.refs[worker].version = reply.now.version

    async def stored_evidence(self) -> list[int]:
        key = BreakerRef("t:", "llm", "").window
        stored = await self.runners["one"].client.hmget(key, "bc", "bf", "br", "bs")
        return [int(number or 0) for number in stored]

    async def forget(self) -> None:
        await self.runners["one"].client.flushall()
        self.model.forget()


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(policy=policy_of(), steps=[TRIP, *FAILED_PROBE, *FAILED_PROBE, ("poll", "one")])
@example(policy=policy_of(), steps=[TRIP, *DENIED_PROBE, ASK, ("pass", 1000), ASK])
@example(policy=policy_of(), steps=[failures(3), failures(3, which="repeated")])
@example(policy=policy_of(probes=2), steps=[TRIP, *GOOD_PROBE, ASK, ASK])
@example(policy=policy_of(), steps=[failures(3), ("pass", 5000), ("pass", 900), failures(1)])
@example(policy=policy_of(), steps=[TRIP, ("pass", 10_000), ASK, ("pass", 61_000), ASK])
@example(policy=policy_of(), steps=[TRIP, ("pass", 10_000), ASK, ("release", 0), ASK])
@example(policy=policy_of(quorum=2), steps=[failures(9), failures(1, worker="two")])
@example(policy=policy_of(), steps=[failures(1, worker="two"), PLANT])
@example(policy=policy_of(), steps=[("report", "one", "next", (9, 0, 9), False, [], 0)])
@example(policy=BreakerPolicy(), steps=[("report", "one", "next", (6, 6, 0), True, [], 0)])
@example(policy=policy_of(probes=3), steps=[TRIP, *TWO_PROBES, ("release", 1), ASK, BOTH_VERDICTS])
@given(policy=policies, steps=steps)
def test_the_scripts_decide_as_the_model_does(
    server: RedisServer, policy: BreakerPolicy, steps: list[Step]
) -> None:
    async def run() -> None:
        client = make_client(server.url)
        try:
            await client.flushall()
            both = Run(client, policy)
            for step in steps:
                if step[0] == "pass":
                    both.now += step[1]
                else:
                    await both.take(step)
                    assert await both.stored_evidence() == both.model.weighed()
        finally:
            await client.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.85, 1.0])
def test_the_scripts_weigh_evidence_as_the_model_does(server: RedisServer, share: float) -> None:
    """Workers report one to three calls each of a dependency of which some or no calls pass."""
    draw = random.Random(share)
    policy = BreakerPolicy(window_seconds=60.0, open_for=4.0, open_growth=1.0)

    async def run() -> int:
        client = make_client(server.url)
        try:
            await client.flushall()
            both, opens = Run(client, policy), 0
            for _ in range(250):
                if both.model.shown(both.now)[0] == "O":
                    opens += 1
                    both.now += 10_000
                    for step in GOOD_PROBE[1:]:
                        await both.take(step)
                calls = draw.randint(1, 3)
                failed = sum(draw.random() < share for _ in range(calls))
                worker = draw.choice(WORKERS)
                await both.take(("report", worker, "next", (calls, failed, 0), False, [], 0))
                await both.take(("poll", draw.choice(WORKERS)))
                assert await both.stored_evidence() == both.model.weighed()
                both.now += 20
            return opens
        finally:
            await client.aclose()

    opens = asyncio.run(run())
    assert (opens > 3) == (share == 1.0)


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
