"""Guards that begin again, as between two tests, and whatever holds one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from lightrag_resilience import (
    CircuitOpenError,
    Guards,
    Policy,
    PolicyError,
    State,
    guard,
    guards,
    resilient,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, StateChanged
from lightrag_resilience.telemetry.tracing import TracedGuard
from support.guards import Scripted, down

pytestmark = pytest.mark.anyio


@pytest.fixture
def owner() -> Guards:
    return Guards(settings=load_settings({}))


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def fail(it: Any, times: int = 6) -> None:
    for _ in range(times):
        with contextlib.suppress(ConnectionError, CircuitOpenError):
            await it()


async def test_a_held_guard_is_itself_closed_and_has_counted_nothing(owner: Guards) -> None:
    held = owner.get("llm", Policy.llm(attempts=1))
    await fail(lambda: held.call(Scripted(down())))
    assert held.breaker.outage is not None
    owner.reset()
    assert list(owner) == []
    assert held.breaker.state is State.CLOSED
    assert held.breaker.snapshot().failed == 0
    assert held.budget.tokens == held.budget.capacity
    assert owner.get("llm") is held
    assert held.policy.retry.attempts == 1


async def test_a_decorated_function_meets_the_circuit_of_now(owner: Guards) -> None:
    @resilient("llm", Policy.llm(attempts=1), registry=owner)
    async def ask() -> str:
        return "answer"

    assert await ask() == "answer"
    owner.get("llm").breaker.open()
    owner.reset()
    assert await ask() == "answer"
    owner.get("llm").breaker.open()
    with pytest.raises(CircuitOpenError):
        await ask()


def test_variables_are_read_when_a_guard_is_next_used(monkeypatch: pytest.MonkeyPatch) -> None:
    held = guard("llm.openai")
    guards().override({"RESILIENCE_LLM__RETRY__ATTEMPTS": "9"})
    assert held.policy.retry.attempts == 9
    guards().reset()
    monkeypatch.setenv("RESILIENCE_LLM__RETRY__ATTEMPTS", "7")
    assert held.policy.retry.attempts == 7


def test_settings_that_were_given_stay() -> None:
    owner = Guards(settings=load_settings({"RESILIENCE_LLM__RETRY__ATTEMPTS": "7"}))
    owner.reset()
    assert owner.get("llm").policy.retry.attempts == 7


async def test_the_policy_of_a_function_decorated_before_is_that_of_its_name(
    owner: Guards,
) -> None:
    @resilient("llm", Policy.llm(attempts=2), registry=owner)
    async def ask() -> None: ...

    for _ in range(2):
        owner.reset()
        await ask()
    owner.reset()
    assert owner.get("llm").policy.retry.attempts == 2  # asked for before the function is called


async def test_the_policy_of_a_function_of_one_test_ends_with_it(owner: Guards) -> None:
    owner.reset()

    @resilient("llm", Policy.llm(attempts=2), registry=owner)
    async def ask() -> None: ...

    await ask()
    owner.reset()
    assert owner.get("llm").policy.retry.attempts == 4
    with pytest.raises(PolicyError):
        owner.get("llm", Policy.llm(attempts=3)), owner.get("llm", Policy.llm(attempts=5))


async def test_a_block_of_a_held_guard_works(owner: Guards) -> None:
    held = owner.get("llm")
    owner.reset()
    async with held as entered:
        assert entered is held
        assert len(owner.gate.running) == 1
    assert owner.find("llm") is held
    assert not owner.gate.running


async def test_a_call_in_flight_ends_as_it_would(owner: Guards) -> None:
    held, going, go_on = owner.get("llm", Policy.llm(attempts=1)), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        going.set()
        await go_on.wait()
        raise down()

    call = asyncio.ensure_future(held.call(slow))
    await going.wait()
    owner.reset()
    go_on.set()
    with pytest.raises(ConnectionError):
        await call
    assert not owner.gate.running


async def test_listeners_tracing_token_counts_and_probes_stay() -> None:
    owner = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)
    seen: list[Event] = []
    probed = asyncio.Event()

    async def probe() -> None:
        probed.set()

    owner.events.subscribe(seen.append, StateChanged)
    held = owner.get("llm")
    end = held.set_probe(probe)
    held.count_tokens = len
    owner.trace(None, TracedGuard)
    owner.reset()
    assert held.count_tokens is len
    assert isinstance(held, TracedGuard)
    await fail(lambda: held.call(Scripted(down())), 6)
    async with asyncio.timeout(60):
        await probed.wait()
    assert seen[0].new == "open"  # type: ignore[union-attr]
    end()
    assert not held.breaker.circuit.is_probed


async def test_a_probe_of_the_circuit_before_ends() -> None:
    owner = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)
    held = owner.get("llm")
    held.set_probe(Scripted(down()))
    await fail(lambda: held.call(Scripted(down())))
    await asyncio.sleep(5)
    assert probes_running()
    owner.reset()
    await asyncio.sleep(5)
    assert (probes_running(), list(owner)) == ([], [])  # nor has it made the guard anew


def probes_running() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("recovery probe")]


def test_the_gate_of_a_drain_opens(owner: Guards) -> None:
    owner.gate.close()
    owner.reset()
    assert not owner.gate.is_closed


def test_clock_and_sleep_may_be_others_from_then_on(owner: Guards) -> None:
    held = owner.get("llm")
    owner.reset(clock=lambda: 7.0, sleep=no_sleep)
    assert (held.clock(), held.sleep) == (7.0, no_sleep)
    owner.reset()
    assert held.sleep is no_sleep
