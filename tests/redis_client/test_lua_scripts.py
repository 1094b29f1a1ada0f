"""The Lua scripts on a real server agree, step by step, with a plain model of what they decide."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightrag_resilience import BreakerPolicy
from lightrag_resilience.redis_client.client import make_client
from lightrag_resilience.shared_state.messages import LETTERS, Reply, Report, policy_as_json
from lightrag_resilience.shared_state.script_runner import BreakerRef, ScriptRunner
from lightrag_resilience.testing.redis_server import RedisServer
from support.breaker_model import Model, policy_of

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
        stored = await self.runners["one"].client.hmget(key, "bc", "bf", "br", "bs", "bt")
        *counts, failed_at = (int(number or 0) for number in stored)
        return counts if self.now <= failed_at + 600_000 else [0] * 4

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
                    assert await both.stored_evidence() == both.model.weighed(both.now)
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
            for number in range(250):
                if number % 100 == 99:  # a failure of so long ago shows nothing any more
                    both.now += 600_001
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
                assert await both.stored_evidence() == both.model.weighed(both.now)
                both.now += 20
            return opens
        finally:
            await client.aclose()

    opens = asyncio.run(run())
    assert (opens > 3) == (share == 1.0)
