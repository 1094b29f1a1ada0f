"""Streams of SDKs that end too early: an error inside a guarded call, and unchanged elsewhere."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightrag")
anthropic = pytest.importorskip("anthropic")

import openai  # noqa: E402
from lightrag.llm.openai import openai_complete_if_cache  # noqa: E402

from lightrag_resilience import (  # noqa: E402
    Guard,
    Guards,
    Policy,
    StreamPolicy,
    TruncatedStreamError,
    UnsupportedCallError,
    protect,
)
from lightrag_resilience.config.settings import load_settings  # noqa: E402
from lightrag_resilience.integrations.lightrag import unprotect  # noqa: E402
from lightrag_resilience.integrations.sdks import (  # noqa: E402
    detect_truncated_streams,
    disable_sdk_retries,
    follow_rate_limits,
)
from lightrag_resilience.testing import Fault, Simulator  # noqa: E402
from support.lightrag_rig import Provider, lightrag_on  # noqa: E402
from support.waiting import until  # noqa: E402

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "Say something."}]}


@pytest.fixture(autouse=True)
def _no_other_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances protected in other tests may still be there."""
    for sdk in (openai, anthropic):
        original = inspect.unwrap(sdk.AsyncStream.__stream__)
        monkeypatch.setattr(sdk.AsyncStream, "__stream__", original)


@pytest.fixture
def _detection(_no_other_detection: None) -> Iterator[None]:
    take_back = detect_truncated_streams(openai, anthropic)
    yield
    take_back()


def guard(**changes: Any) -> Guard:
    return Guard("llm.openai", Policy.llm(**({"attempts": 1} | changes)))


def lightrags(provider: Simulator) -> Callable[[], Any]:
    async def complete() -> Any:
        return await openai_complete_if_cache(
            "m", "prompt", base_url=provider.base_url, api_key="none", stream=True
        )

    return complete


def is_changed() -> bool:
    return any(hasattr(sdk.AsyncStream.__stream__, "__wrapped__") for sdk in (openai, anthropic))


async def words_of(stream: Any) -> str:
    return "".join([word async for word in stream])


@pytest.mark.usefixtures("_detection")
@pytest.mark.parametrize(
    ("pieces", "why"), [(0, "before its first item"), (4, "before its finish marker")]
)
async def test_lightrags_text_raises_where_it_was_cut_off(
    provider: Simulator, pieces: int, why: str
) -> None:
    provider.set_faults([Fault.end_early(pieces=pieces)])
    made = guard()
    with pytest.raises(TruncatedStreamError, match=f"'llm.openai' was cut off {why}"):
        await words_of(await made.call(lightrags(provider)))
    shown = made.breaker.snapshot()
    assert (shown.calls, shown.failed) == (1, 1)


@pytest.mark.usefixtures("_detection")
async def test_a_whole_stream_is_as_ever(provider: Simulator) -> None:
    made = guard()
    assert await words_of(await made.call(lightrags(provider)))
    assert made.breaker.snapshot().failed == 0


@pytest.mark.usefixtures("_detection")
async def test_outside_of_a_guard_an_sdk_ends_as_it_always_did(provider: Simulator) -> None:
    provider.set_faults([Fault.end_early(pieces=4)])
    assert await words_of(await lightrags(provider)())


@pytest.mark.usefixtures("_detection")
@pytest.mark.parametrize("pieces", [0, 4])
async def test_a_policy_may_do_without_finish_markers(provider: Simulator, pieces: int) -> None:
    provider.set_faults([Fault.end_early(pieces=pieces)])
    made = guard(stream=StreamPolicy(finish_marker=False))
    assert bool(await words_of(await made.call(lightrags(provider)))) == (pieces > 0)
    assert made.breaker.snapshot().failed == 0


@pytest.mark.parametrize("marker", [True, False])
async def test_an_empty_stream_of_the_sdk_itself_is_cut_off(
    client: openai.AsyncOpenAI,
    provider: Simulator,
    marker: bool,  # noqa: FBT001
) -> None:
    provider.set_faults([Fault.end_early(pieces=0)])
    made = guard(attempts=2, stream=StreamPolicy(finish_marker=marker))

    begin: Any = client.chat.completions.create

    async def read() -> list[Any]:
        stream: Any = await made.call(begin, **CHAT, stream=True)
        return [chunk async for chunk in stream]

    if marker:
        with pytest.raises(TruncatedStreamError, match="before its first item"):
            await read()
    else:
        assert await read() == []
    assert provider.count() == (2 if marker else 1)


@pytest.mark.usefixtures("_detection")
async def test_a_stream_that_is_left_or_dropped_closes_its_connection(
    client: openai.AsyncOpenAI, provider: Simulator
) -> None:
    provider.set_faults([Fault.stall(pieces=3)])
    made = guard()
    begin: Any = client.chat.completions.create

    async def read_one() -> None:
        async for _ in await made.call(begin, **CHAT, stream=True):
            break

    await read_one()
    gc.collect()
    async with await made.call(begin, **CHAT, stream=True) as stream:
        assert await anext(stream)
    await until(lambda: all(call.duration > 0 for call in provider.calls))
    assert (provider.count(), made.breaker.snapshot().calls) == (2, 0)


async def test_closing_an_sdks_stream_closes_it_here_and_now() -> None:
    closed = False

    class Stream:
        async def __stream__(self) -> AsyncIterator[int]:
            nonlocal closed
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                closed = True

    take_back = detect_truncated_streams(SimpleNamespace(AsyncStream=Stream))  # type: ignore[arg-type]
    chunks: Any = Stream().__stream__()
    assert await anext(chunks) == 1
    await chunks.aclose()
    assert closed
    take_back()


@pytest.mark.usefixtures("_detection")
async def test_a_task_that_outlives_an_inner_call_affects_the_outer_one(
    provider: Simulator,
) -> None:
    provider.set_faults([Fault.end_early(pieces=4)])
    ended = asyncio.Event()

    async def later() -> str:
        await ended.wait()
        return await words_of(await lightrags(provider)())

    async def begin() -> asyncio.Task[str]:
        return asyncio.create_task(later())

    async def outer() -> str:
        task = await Guard("inner", Policy.llm()).call(begin)
        ended.set()
        return await task

    with pytest.raises(TruncatedStreamError, match=r"'llm.openai'"):
        await guard().call(outer)


async def test_a_protected_lightrag_detects_cut_streams_until_it_is_unprotected() -> None:
    assert not is_changed()
    async with lightrag_on(Provider()) as rag:
        await protect(rag, registry=Guards(settings=load_settings({})))
        assert is_changed()
        await unprotect(rag)
    assert not is_changed()


def test_what_is_taken_back_twice_is_taken_back_once() -> None:
    first, second = detect_truncated_streams(openai), detect_truncated_streams(openai)
    first()
    first()
    assert is_changed()
    second()
    assert not is_changed()


@pytest.mark.parametrize("wrong", [asyncio, None, openai.AsyncOpenAI])
@pytest.mark.parametrize(
    ("change", "owner", "method"),
    [
        (detect_truncated_streams, openai.AsyncStream, "__stream__"),
        (disable_sdk_retries, openai._models.FinalRequestOptions, "get_max_retries"),
        (follow_rate_limits, openai._base_client.AsyncAPIClient, "_process_response"),
    ],
)
def test_what_is_no_such_sdk_is_refused_and_nothing_is_changed(
    change: Callable[..., Any], owner: type, method: str, wrong: Any
) -> None:
    before = getattr(owner, method)
    with pytest.raises(UnsupportedCallError, match="takes the packages openai or anthropic"):
        change(openai, wrong)
    assert getattr(owner, method) is before
    change(openai)()  # while the SDK itself is changed, and restored
    assert getattr(owner, method) is before
