"""Guarded streams of the real openai SDK and of LightRAG's binding, over real HTTP."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from lightrag.llm.openai import openai_complete_if_cache

from lightrag_resilience import (
    AttemptTimeoutError,
    ConcurrencyPolicy,
    Guard,
    Guards,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
    TruncatedStreamError,
    resilient,
    with_fallbacks,
)
from lightrag_resilience.events import AttemptFailed
from lightrag_resilience.testing import Fault, Simulator
from support.waiting import until

pytestmark = pytest.mark.anyio

QUICK = RetryPolicy(attempts=4, initial_backoff=0.01, max_backoff=0.02)
CHAT: Any = {
    "model": "simulated",
    "messages": [{"role": "user", "content": "Say something."}],
    "stream": True,
}


def guard(**changes: Any) -> Guard:
    return Guard("llm.openai", Policy.llm(**({"retry": QUICK} | changes)))


def create(client: openai.AsyncOpenAI) -> Any:
    return client.chat.completions.create


def verdict(guard: Guard) -> tuple[int, int]:
    shown = guard.breaker.snapshot()
    return shown.calls, shown.failed


async def words_of(stream: AsyncIterator[Any]) -> str:
    return "".join(
        [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    )


def has_left(provider: Simulator) -> bool:
    """Whether the server has seen that its only caller disconnected."""
    (call,) = provider.calls
    return call.duration > 0


# ---------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": True}}])
async def test_a_whole_stream_is_a_success(client: openai.AsyncOpenAI, more: Any) -> None:
    made = guard()
    assert await words_of(await made.call(create(client), **CHAT, **more))
    assert verdict(made) == (1, 0)


async def test_a_stream_that_ends_before_its_finish_marker_is_a_failure(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.end_early(pieces=4)])
    made = guard()
    kinds: list[str] = []
    made.events.subscribe(lambda e: kinds.append(e.kind) if isinstance(e, AttemptFailed) else None)
    stream = await made.call(create(client), **CHAT)
    for _ in range(4):
        await anext(stream)
    with pytest.raises(TruncatedStreamError) as cut_off:
        await anext(stream)
    assert str(cut_off.value) == "A stream of 'llm.openai' was cut off before its finish marker"
    assert (verdict(made), kinds) == ((1, 1), ["unknown"])
    assert (provider.count(), provider.count("end_early")) == (1, 1)
    assert [chunk async for chunk in stream] == []


@pytest.mark.parametrize(
    ("fault", "kind", "error"),
    [
        (Fault.truncate(pieces=3), "unknown", openai.APIConnectionError),
        (Fault.error_event("overloaded", pieces=3), "transient", openai.APIError),
        (Fault.error_event("rate_limit_exceeded", pieces=3), "throttled", openai.APIError),
        (Fault.error_event("content_filter", pieces=3), "fatal", openai.APIError),
        (Fault.error_event("503", pieces=3), "transient", openai.APIError),
        (Fault.stall(pieces=3), "unknown", AttemptTimeoutError),
    ],
)
async def test_what_breaks_in_mid_stream_is_what_it_is_and_not_retried(
    client: openai.AsyncOpenAI, provider: Simulator, fault: Fault, kind: str, error: type[Exception]
) -> None:
    provider.set_faults([fault])
    made = guard(timeout=TimeoutPolicy(gap=0.3))
    kinds: list[str] = []
    made.events.subscribe(lambda e: kinds.append(e.kind) if isinstance(e, AttemptFailed) else None)
    stream = await made.call(create(client), **CHAT)
    with pytest.raises(error):
        await words_of(stream)
    counted = int(kind in {"unknown", "transient"})
    assert (kinds, verdict(made)) == ([kind], (counted, counted))
    assert (provider.count(), provider.count(fault.action)) == (1, 1)
    await until(lambda: has_left(provider))


@pytest.mark.parametrize(
    "fault", [Fault.stall(pieces=0), Fault.error_event("overloaded", pieces=0)]
)
async def test_what_breaks_before_the_first_item_is_retried(
    client: openai.AsyncOpenAI, provider: Simulator, fault: Fault
) -> None:
    provider.set_faults([fault])
    made = guard(timeout=TimeoutPolicy(first_item=2.0))
    made.events.subscribe(lambda _: provider.set_faults([]), AttemptFailed)
    assert await words_of(await made.call(create(client), **CHAT))
    assert verdict(made) == (2, 1)
    assert provider.count() == 2


async def test_a_chain_goes_on_only_before_the_first_item(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    owner, plain = Guards(), Policy.llm(attempts=1)

    async def complete() -> Any:
        return await create(client)(**CHAT)

    links = [resilient(name, plain, registry=owner)(complete) for name in ("llm.a", "llm.b")]
    chain = with_fallbacks(*links, registry=owner)
    provider.set_faults([Fault.error_event(pieces=0)])
    with pytest.raises(Exception, match=r"llm\.a.*llm\.b"):
        await chain()
    assert provider.count() == 2
    provider.set_faults([Fault.end_early(pieces=3)])
    async with await chain() as stream:
        assert stream.response.status_code == 200
        with pytest.raises(TruncatedStreamError):
            await words_of(stream)
    assert provider.count() == 3


# ---------------------------------------------------------------------- leaving early


async def leave_by_aclose(stream: Any) -> None:
    await stream.aclose()


async def leave_by_close(stream: Any) -> None:
    await stream.close()


async def leave_block(stream: Any) -> None:
    async with stream as same:
        assert same is stream


async def be_cancelled(stream: Any) -> None:
    reading = asyncio.create_task(words_of(stream))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("leave", [leave_by_aclose, leave_by_close, leave_block, be_cancelled])
async def test_leaving_early_closes_the_connection_and_is_no_verdict(
    client: openai.AsyncOpenAI, provider: Simulator, leave: Any
) -> None:
    provider.set_faults([Fault.stall(pieces=3)])
    made = guard(concurrency=ConcurrencyPolicy(max_concurrent=1, max_wait=0.0))
    stream = await made.call(create(client), **CHAT)
    assert await anext(stream)
    response = stream.response
    assert not response.is_closed
    assert not has_left(provider)
    await leave(stream)
    assert response.is_closed
    await until(lambda: has_left(provider))
    assert verdict(made) == (0, 0)
    provider.set_faults([])
    assert await words_of(await made.call(create(client), **CHAT))


async def test_a_stream_that_is_dropped_closes_the_connection(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.stall(pieces=3)])
    made = guard()

    async def read_one() -> None:
        async for _ in await made.call(create(client), **CHAT):
            break

    await read_one()
    gc.collect()
    await until(lambda: has_left(provider))
    assert verdict(made) == (0, 0)


async def test_a_decorated_generator_that_is_left_closes_the_connection(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.stall(pieces=3)])
    owner = Guards()

    @resilient("llm.openai", registry=owner)
    async def words() -> AsyncIterator[str]:
        async with await create(client)(**CHAT) as stream:
            async for chunk in stream:
                yield chunk.choices[0].delta.content or ""

    async for _ in words():
        break
    gc.collect()
    await until(lambda: has_left(provider))
    assert verdict(owner.get("llm.openai")) == (0, 0)


async def test_leaving_after_the_finish_marker_is_a_success(client: openai.AsyncOpenAI) -> None:
    made = guard()
    async with await made.call(create(client), **CHAT) as stream:
        async for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    assert verdict(made) == (1, 0)


# ---------------------------------------------------------------------- what it looks like


async def test_the_sdks_own_way_to_read_still_works(client: openai.AsyncOpenAI) -> None:
    owner = Guards()

    @resilient("llm.openai", registry=owner)
    async def complete(**more: Any) -> Any:
        return await create(client)(**CHAT, **more)

    async with await complete(temperature=0.5) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text
    assert verdict(owner.get("llm.openai")) == (1, 0)


# ---------------------------------------------------------------------- LightRAG


def lightrags(provider: Simulator) -> Any:
    async def complete() -> Any:
        return await openai_complete_if_cache(
            "simulated", "prompt", base_url=provider.base_url, api_key="none", stream=True
        )

    return complete


@pytest.mark.lightrag
@pytest.mark.parametrize("fault", [Fault.truncate(pieces=4), Fault.stall(pieces=4)])
async def test_lightrags_text_stream_fails_where_its_connection_does(
    provider: Simulator, fault: Fault
) -> None:
    provider.set_faults([fault])
    made = guard(timeout=TimeoutPolicy(gap=0.3))
    stream = await made.call(lightrags(provider))
    with pytest.raises((openai.APIConnectionError, AttemptTimeoutError)):
        [word async for word in stream]
    assert (provider.count(), verdict(made)) == (1, (1, 1))
    await until(lambda: has_left(provider))


@pytest.mark.lightrag
async def test_lightrags_text_hides_that_it_was_cut_off_by_itself(
    provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Instances protected in other tests may still be there.
    original = inspect.unwrap(openai.AsyncStream.__stream__)
    monkeypatch.setattr(openai.AsyncStream, "__stream__", original)
    provider.set_faults([Fault.end_early(pieces=4)])
    made = guard()
    assert [word async for word in await made.call(lightrags(provider))]
    assert verdict(made) == (1, 0)
