"""A late answer is asked for once more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lightrag_resilience import (
    Guards,
    LimitPolicy,
    Policy,
    PolicyError,
    RetryPolicy,
    UnsupportedCallError,
    hedged,
    resilient,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import Event, HedgeSent, TokensUsed
from lightrag_resilience.runtime.process_state import process
from lightrag_resilience.runtime.tasks import DetachedWork
from support.guards import Scripted, down, now, patient

pytestmark = pytest.mark.anyio


def asking(script: Scripted, policy: Policy | None = None) -> tuple[Guards, Callable[..., Any]]:
    registry = Guards(settings=load_settings({}), clock=asyncio.get_running_loop().time)

    @hedged(0.2, registry=registry)
    @resilient("storage", policy or patient(), registry=registry)
    async def ask(*args: Any, **kwargs: Any) -> Any:
        return await script(*args, **kwargs)

    return registry, ask


async def after(seconds: float, result: Any) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


async def test_a_quick_answer_is_not_hedged() -> None:
    script = Scripted(lambda: after(0.1, "quick"))
    registry, ask = asking(script)
    assert await ask() == "quick"
    assert script.calls == 1
    assert registry.get("storage").budget.tokens == 500


async def test_the_first_of_two_answers_counts_and_the_other_call_is_cancelled() -> None:
    ended: list[str] = []

    async def slow() -> str:
        try:
            return str(await after(5.0, "slow"))
        finally:
            ended.append("slow")

    script = Scripted(slow, lambda: after(0.1, "second"))
    registry, ask = asking(script)
    published: list[Any] = []
    registry.events.subscribe(published.append)
    assert await ask() == "second"
    assert now() == pytest.approx(0.3)
    await asyncio.sleep(0.01)
    assert ended == ["slow"]
    assert HedgeSent("storage") in published
    assert registry.get("storage").breaker.snapshot().calls == 1


async def test_an_answer_does_not_wait_for_the_cancelled_call_to_clean_up() -> None:
    async def stalled() -> str:
        try:
            return str(await after(60.0, "late"))
        finally:
            await asyncio.sleep(3.0)
            raise down()

    before = asyncio.all_tasks()
    assert await asking(Scripted(stalled, lambda: after(0.1, "second")))[1]() == "second"
    assert now() == pytest.approx(0.3)
    assert len(asyncio.all_tasks() - before) == 1
    await asyncio.sleep(4.0)
    assert asyncio.all_tasks() == before
    assert not process[DetachedWork].tasks


async def test_the_first_call_may_still_win_after_the_hedge() -> None:
    script = Scripted(lambda: after(0.25, "first"), lambda: after(5.0, "second"))
    assert await asking(script)[1]() == "first"
    assert now() == pytest.approx(0.25)


@pytest.mark.parametrize(("first", "second"), [(0.3, 1.0), (1.0, 0.3)])
async def test_if_one_call_fails_the_other_is_awaited(first: float, second: float) -> None:
    script = Scripted(lambda: after(first, down()), lambda: after(second, "fine"))
    assert await asking(script)[1]() == "fine"


async def test_if_both_calls_fail_the_first_error_is_raised() -> None:
    errors = [down(), down()]
    script = Scripted(lambda: after(0.5, errors[0]), lambda: after(0.1, errors[1]))
    with pytest.raises(ConnectionRefusedError) as caught:
        await asking(script)[1]()
    assert caught.value is errors[0]


async def test_an_early_failure_is_not_hedged() -> None:
    script = Scripted(down())
    with pytest.raises(ConnectionRefusedError):
        await asking(script)[1]()
    assert script.calls == 1


async def test_no_hedge_without_retry_budget() -> None:
    script = Scripted(lambda: after(1.0, "fine"))
    policy = patient(retry=RetryPolicy(attempts=1, budget=4))
    assert await asking(script, policy)[1]() == "fine"
    assert script.calls == 1


async def test_no_hedge_while_the_circuit_is_open() -> None:
    script = Scripted(lambda: after(1.0, "fine"))
    registry, ask = asking(script)
    asked = asyncio.create_task(ask())
    await asyncio.sleep(0.1)
    registry.get("storage").breaker.open()
    assert await asked == "fine"
    assert script.calls == 1


async def test_cancelling_the_caller_cancels_both_calls() -> None:
    script = Scripted(lambda: after(5.0, "slow"))
    registry, ask = asking(script)
    before = asyncio.all_tasks()
    asked = asyncio.create_task(ask())
    await asyncio.sleep(1.0)
    assert script.calls == 2
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert asyncio.all_tasks() == before
    assert registry.get("storage").breaker.snapshot().failed == 0


async def test_arguments_and_names_are_passed_on() -> None:
    async def load(number: int, *, name: str) -> tuple[int, str]:
        return number, name

    registry = Guards(settings=load_settings({}))
    ask = hedged(1.0, registry=registry)(resilient("storage", registry=registry)(load))
    assert await ask(1, name="x") == (1, "x")
    assert ask.__name__ == "load"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), "0.2"])
def test_an_invalid_hedge_time_is_refused(seconds: Any) -> None:
    with pytest.raises(PolicyError, match="hedged: after"):
        hedged(seconds)


def test_hedged_refuses_a_function_that_is_not_resilient() -> None:
    @resilient("storage")
    def sync() -> None: ...

    for function in (down, Scripted(1), sync):
        with pytest.raises(UnsupportedCallError, match="hedged"):
            hedged(0.2)(function)  # type: ignore[arg-type]


async def test_the_tokens_of_the_slower_call_are_waste() -> None:
    used: list[Event] = []
    script = Scripted(lambda: after(5.0, "slow"), lambda: after(0.1, "quick"))
    registry, ask = asking(script, Policy(limit=LimitPolicy(tpm=1e9)))
    registry.events.subscribe(used.append, TokensUsed)
    assert await ask("居" * 100) == "quick"
    await asyncio.sleep(0.1)
    assert used == [
        TokensUsed("storage", "other", "answer", 102),
        TokensUsed("storage", "other", "hedge", 100),
    ]
