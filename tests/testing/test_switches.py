"""Guards as tests want them: fresh, fast, off, of a dependency that is down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest

from lightrag_resilience import (
    AttemptTimeoutError,
    BulkheadFullError,
    CircuitOpenError,
    ConcurrencyPolicy,
    Failure,
    FailureKind,
    Guards,
    LimitPolicy,
    Policy,
    RateLimitedError,
    RetryPolicy,
    State,
    guard,
    resilient,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import BackgroundProbeEnded
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.tracing import TracedGuard
from lightrag_resilience.testing import (
    Recorder,
    VirtualTimeLoop,
    open_circuit,
    outage,
    resilience_fast,
    resilience_fresh,
    resilience_off,
)
from support.guards import Scripted

pytestmark = pytest.mark.anyio

HOUR = 3600.0


class Throttled(Exception):  # noqa: N818
    __resilience_failure__ = Failure(FailureKind.THROTTLED, retry_after=HOUR)


@pytest.fixture
def still() -> Guards:
    """Guards for which no time passes but that of waits."""
    return Guards(settings=load_settings({}), clock=lambda: 0.0)


# ---------------------------------------------------------------------- fresh


async def test_fresh_guards_are_closed_and_leave_nothing_behind() -> None:
    held = guard("llm.openai")
    held.breaker.open()
    with resilience_fresh():
        assert held.breaker.state is State.CLOSED
        held.breaker.open()
    assert held.breaker.state is State.CLOSED


# ---------------------------------------------------------------------- off


async def test_off_no_policy_has_a_say() -> None:
    policy = Policy.llm(
        attempt_timeout=0.001, rpm=1.0, max_concurrent=1, consecutive_failures=1
    ).with_changes(result=lambda _: FailureKind.TRANSIENT)
    made = Scripted(ConnectionError(), Throttled(), 0.05, "answer")

    @resilient("llm.openai", policy)
    async def ask() -> Any:
        return await made()

    with resilience_off():
        with pytest.raises(ConnectionError) as caught:
            await ask()
        assert not hasattr(caught.value, "__notes__")
        with pytest.raises(Throttled):
            await ask()
        assert [*await asyncio.gather(ask(), ask())] == [0.05, "answer"]
        assert await ask() == "answer"
        async with guard("llm.openai"):
            assert await ask() == "answer"


async def test_off_a_stream_is_still_one() -> None:
    @resilient("llm.openai")
    async def pieces() -> AsyncIterator[str]:
        yield "one"
        yield "two"

    with resilience_off():
        assert [each async for each in pieces()] == ["one", "two"]
        async with await guard("llm.openai").call(pieces) as stream:
            assert [each async for each in stream] == ["one", "two"]


def test_off_a_sync_function_in_threads_is_called_once_each() -> None:
    called: list[str] = []

    @resilient("llm.openai")
    def ask() -> None:
        called.append("once")
        raise ConnectionError

    def caller() -> None:
        with pytest.raises(ConnectionError):
            ask()

    with resilience_off():
        threads = [threading.Thread(target=caller) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert called == ["once"] * 3


# ---------------------------------------------------------------------- fast


async def test_fast_retries_come_at_once_and_as_many_as_ever() -> None:
    policy = Policy.llm(
        retry=RetryPolicy(attempts=5, initial_backoff=HOUR, max_backoff=HOUR, jitter="none"),
        total_timeout=None,
    )
    made = Scripted(*[ConnectionError()] * 4, "answer")
    with resilience_fast(), Recorder() as recorded:
        assert await guard("llm.openai", policy).call(made) == "answer"
    assert recorded.attempts("llm.openai") == 5
    assert recorded.waits("llm.openai") == [HOUR] * 4


async def test_fast_a_deadline_holds_for_waits_that_take_no_time() -> None:
    policy = Policy.llm(retry=RetryPolicy(initial_backoff=20.0, jitter="none"), total_timeout=50.0)
    made = Scripted(ConnectionError())
    with resilience_fast(), pytest.raises(ConnectionError) as caught:
        await guard("llm.openai", policy).call(made)
    assert made.calls == 2
    assert "after the call's deadline" in str(caught.value.__notes__)


async def test_fast_calls_that_wait_together_do_not_add_up_their_waits(still: Guards) -> None:
    policy = Policy.llm(retry=RetryPolicy(initial_backoff=30.0, jitter="none"), total_timeout=100.0)
    with resilience_fast(still) as time:
        steps = [Scripted(ConnectionError(), "answer") for _ in range(5)]
        calls = [still.get("llm.openai", policy).call(each) for each in steps]
        assert await asyncio.gather(*calls) == ["answer"] * 5
        assert time.now() == pytest.approx(30)


async def test_fast_limits_let_calls_wait_in_no_time_and_reject_what_waits_too_long(
    still: Guards,
) -> None:
    policy = Policy.llm(limit=LimitPolicy(rpm=60.0, burst=1))
    with resilience_fast(still) as time:
        it = still.get("llm.openai", policy)
        for _ in range(20):
            await it.call(Scripted("answer"))
        assert time.now() == pytest.approx(19)
        calls = [it.call(Scripted("answer")) for _ in range(40)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(each, RateLimitedError) for each in ended) == 10
        time.advance(HOUR)
        assert await it.call(Scripted("answer")) == "answer"


async def test_fast_tokens_are_limited_too(still: Guards) -> None:
    policy = Policy.llm(limit=LimitPolicy(tpm=600.0, token_burst=100, answer_tokens=100))
    with resilience_fast(still) as time:
        calls = [still.get("llm.openai", policy).call(Scripted(0.01)) for _ in range(3)]
        await asyncio.gather(*calls)
        assert time.now() == pytest.approx(20)


async def test_fast_a_cool_down_of_the_provider_is_over_at_once_for_all() -> None:
    policy = Policy.llm(
        retry=RetryPolicy(max_retry_after=2 * HOUR),
        limit=LimitPolicy(max_wait=2 * HOUR),
        total_timeout=None,
    )
    made = Scripted(Throttled(), "answer")
    with resilience_fast() as time:
        began = time.now()
        calls = [guard("llm.openai", policy).call(made) for _ in range(3)]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*calls) == ["answer"] * 3
        assert time.now() - began >= HOUR


async def test_fast_the_break_of_a_circuit_passes_by_advance() -> None:
    made = Scripted(*[ConnectionError()] * 6, "answer")
    with resilience_fast() as time:
        it = guard("llm.openai", Policy.llm(attempts=1))
        for _ in range(6):
            with pytest.raises(ConnectionError):
                await it.call(made)
        with pytest.raises(CircuitOpenError):
            await it.call(made)
        time.advance(60)
        assert await it.call(made) == "answer"
        assert it.breaker.state is State.CLOSED


async def test_fast_patience_takes_no_time() -> None:
    with resilience_fast() as time:
        it, began = guard("llm.openai"), time.now()
        it.breaker.open(open_for=HOUR)
        async with asyncio.timeout(60):
            await it.wait_for_recovery(HOUR)
        assert time.now() - began >= HOUR


async def test_fast_an_attempt_is_timed_out_and_a_full_queue_rejects_as_ever() -> None:
    policy = Policy.llm(
        attempts=1,
        attempt_timeout=0.01,
        concurrency=ConcurrencyPolicy(max_concurrent=1, max_queue=0),
    )
    with resilience_fast():
        it = guard("llm.openai", policy)
        calls = [it.call(Scripted(HOUR)) for _ in range(2)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in ended] == [AttemptTimeoutError, BulkheadFullError]


def test_time_is_real_again_after_it() -> None:
    held = guard("llm.openai")
    clock, sleep = held.clock, held.sleep
    with resilience_fast():
        assert held.clock != clock
    assert (held.clock, held.sleep) == (clock, sleep)
    assert type(held) is Guard


# ---------------------------------------------------------------------- outages


async def test_in_an_outage_calls_of_every_kind_fail_and_others_pass() -> None:
    called: list[str] = []

    @resilient("llm.openai", Policy.llm(attempts=1))
    async def ask() -> None:
        called.append("coroutine")

    @resilient("llm.openai", Policy.llm(attempts=1))
    async def pieces() -> AsyncIterator[str]:
        called.append("stream")
        yield "one"

    @resilient("llm.openai", Policy.llm(attempts=1))
    def sync() -> None:
        called.append("sync")

    with outage("llm.openai"):
        for call in (ask, pieces().__anext__, lambda: asyncio.to_thread(sync)):
            with pytest.raises(ConnectionRefusedError, match=r"llm\.openai is down"):
                await call()
        with pytest.raises(ConnectionRefusedError):
            async with guard("llm.openai"):
                called.append("block")
        assert await guard("llm.other").call(Scripted("answer")) == "answer"
    assert called == []
    await ask()
    assert called == ["coroutine"]
    assert not guard("llm.openai").gate.running


async def test_an_outage_of_a_family_is_one_of_all_its_dependencies_and_no_namesake() -> None:
    with outage("llm", TimeoutError):
        for name in ("llm", "llm.openai"):
            with pytest.raises(TimeoutError):
                await guard(name, Policy.llm(attempts=1)).call(Scripted("answer"))
        assert await guard("storage.llm").call(Scripted("answer")) == "answer"


def test_the_background_probe_meets_the_outage_as_well() -> None:
    async def live_through_it() -> None:
        clock = asyncio.get_running_loop().time
        owner, sent = Guards(settings=load_settings({}), clock=clock), Scripted("answer")
        it = owner.get("llm.openai", Policy.llm(attempts=1))
        it.set_probe(sent)
        with Recorder(owner) as recorded:
            with outage("llm", registry=owner):
                for _ in range(6):
                    with pytest.raises(ConnectionError):
                        await it.call(sent)
                await asyncio.sleep(10)
            assert sent.calls == 0
            await asyncio.sleep(60)
        ended = [each.outcome for each in recorded.events if isinstance(each, BackgroundProbeEnded)]
        assert ended[0] == "failure"
        assert ended[-1] == "success"
        assert sent.calls == 1

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(live_through_it())


async def test_outages_may_be_nested_and_traced() -> None:
    owner = Guards(settings=load_settings({}))
    owner.trace(None, TracedGuard)
    once = Policy.llm(attempts=1)
    with ExitStack() as stack:
        for name in ("llm", "storage"):
            stack.enter_context(outage(name, registry=owner))
        for name in ("llm", "storage"):
            with pytest.raises(ConnectionError):
                await owner.get(name, once).call(Scripted("answer"))
        assert isinstance(owner.get("llm"), TracedGuard)
    assert type(owner.get("llm")) is TracedGuard


async def test_an_open_circuit_rejects_before_anything_is_sent_and_is_closed_after_it() -> None:
    sent = Scripted("answer")

    @resilient("llm.openai", Policy.llm(attempts=2))
    async def ask() -> Any:
        return await sent()

    with Recorder() as recorded:
        with (
            open_circuit("llm.openai", retry_after=HOUR),
            pytest.raises(CircuitOpenError) as caught,
        ):
            await ask()
        assert caught.value.retry_after == pytest.approx(HOUR, rel=0.5)
        assert await ask() == "answer"
    assert sent.calls == 1
    assert recorded.rejections("llm.openai") == ["CircuitOpenError"]
    assert recorded.transitions("llm.openai") == ["open", "closed"]
    assert "StateChanged(dependency='llm.openai', old='closed'" in repr(recorded)
    assert repr(Recorder()) == "<Recorder of no events>"


async def test_the_first_block_after_a_reset_is_in_the_outage_too() -> None:
    held = guard("llm.openai")
    with resilience_fresh(), outage("llm.openai"), pytest.raises(ConnectionError):
        async with held:
            raise AssertionError
