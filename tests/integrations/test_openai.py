"""Guarded calls of the real openai SDK and of LightRAG's binding, over real HTTP."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from lightrag.llm.openai import openai_complete_if_cache, openai_embed

from lightrag_resilience import AttemptTimeoutError, Guard, Policy, RetryPolicy
from lightrag_resilience.events import AttemptFailed
from lightrag_resilience.integrations.lightrag.inner_retries import (
    make_inner_retries_yield,
    restore_inner_retries,
)
from lightrag_resilience.integrations.sdks import disable_sdk_retries
from lightrag_resilience.testing import Fault, Simulator

pytestmark = pytest.mark.anyio

CHAT: Any = {"model": "simulated", "messages": [{"role": "user", "content": "Say something."}]}
QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.02)


def create(client: openai.AsyncOpenAI) -> Any:
    return client.chat.completions.create


def guard(**changes: Any) -> Guard:
    return Guard("llm.openai", Policy.llm(**({"retry": QUICK} | changes)))


def kinds_published(guard: Guard) -> list[str]:
    kinds: list[str] = []
    guard.events.subscribe(lambda e: kinds.append(e.kind) if isinstance(e, AttemptFailed) else None)
    return kinds


async def test_a_third_of_errors_is_not_noticed(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.status(500, share=0.3)])
    made = guard(attempts=9, consecutive_failures=None)
    for number in range(30):
        message = {"role": "user", "content": f"Say {number}."}
        asked: Any = CHAT | {"messages": [message]}
        assert await made.call(create(client), **asked)
    assert provider.count("500") > 3
    assert provider.count("200") == 30


async def test_a_provider_that_says_when_is_asked_then(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.throttle(retry_after=1, end=0.5)])
    made = guard()
    kinds = kinds_published(made)
    await made.call(create(client), **CHAT)
    first, second = provider.calls
    assert second.at - first.at >= 1.0
    assert kinds == ["throttled"]
    assert made.breaker.snapshot().failed == 0


async def test_a_hanging_call_ends_at_its_timeout(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.hang()])
    made = guard(attempt_timeout=0.1, attempts=2)
    with pytest.raises(AttemptTimeoutError):
        await made.call(create(client), **CHAT)
    assert provider.count() == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.reset(), "unknown"),
        (Fault.status(503), "transient"),
        (Fault.status(401), "fatal"),
        (Fault.throttle(retry_after=0), "throttled"),
    ],
)
async def test_each_failure_is_what_it_is(
    client: openai.AsyncOpenAI, provider: Simulator, fault: Fault, kind: str
) -> None:
    provider.set_faults([fault])
    made = guard()
    kinds = kinds_published(made)
    with pytest.raises(openai.APIError):
        await made.call(create(client), **CHAT)
    assert kinds == [kind] * (1 if kind == "fatal" else 4)
    assert provider.count() == len(kinds)


async def test_a_whole_stream_is_a_success_and_a_cut_one_a_failure(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    made = guard()

    async def read() -> str:
        stream: Any = await made.call(create(client), **CHAT, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await read()
    provider.set_faults([Fault.truncate(pieces=4)])
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the SDK makes of it
        await read()
    shown = made.breaker.snapshot()
    assert shown.calls == provider.count()
    assert shown.failed == provider.count("truncate") > 0


@pytest.mark.lightrag
@pytest.mark.parametrize("binding", ["complete", "embed"])
async def test_lightrags_own_retries_yield_inside_a_guard(
    provider: Simulator, binding: str
) -> None:
    provider.set_faults([Fault.status(500)])
    connection: Any = {"base_url": provider.base_url, "api_key": "none"}

    async def call() -> Any:
        if binding == "embed":
            return await openai_embed.func(["text"], model="simulated", **connection)
        return await openai_complete_if_cache("simulated", "prompt", **connection)

    take_back = disable_sdk_retries(openai)  # LightRAG 1.4 leaves the SDK's on
    make_inner_retries_yield()
    try:
        with pytest.raises(Exception):  # noqa: B017, PT011 - a RetryError around the SDK's error
            await guard(attempts=3).call(call)
    finally:
        restore_inner_retries()
        take_back()
    assert provider.count() == 3
