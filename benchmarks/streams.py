"""What a stream costs for each of its items: a guarded one, and one timed by hand, over a bare one.

No peer guards streams: a breaker around an async generator's first step sees none of what follows.
By hand is what `asyncio.timeout` costs around each item, with nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable, Sequence
from time import perf_counter
from typing import Any

from benchmarks.measure import Samples, quietly
from benchmarks.stacks.ours import make_registry
from lightrag_resilience import Guards, resilient

__all__ = ["BY_HAND", "items_of_model", "per_item", "text"]

BY_HAND = "asyncio.timeout for each item"
_GAP = 60.0  # seconds, as `Policy.llm` gives

Source = Callable[[], AsyncIterator[Any]]


def text(number: int) -> list[Any]:
    """Items as LightRAG hands them on."""
    return ["token "] * number


def items_of_model(number: int) -> list[Any] | None:
    """Chunks of OpenAI, the last of which says that it is the last; None without its SDK."""
    try:
        from openai.types.chat import ChatCompletionChunk  # noqa: PLC0415
    except ModuleNotFoundError:
        return None

    def chunk(finish: str | None) -> Any:
        choice = {"index": 0, "delta": {"content": "token "}, "finish_reason": finish}
        about = {"id": "1", "created": 1, "model": "m", "object": "chat.completion.chunk"}
        return ChatCompletionChunk.model_validate({**about, "choices": [choice]})

    return [*(chunk(None) for _ in range(number - 1)), chunk("stop")]


async def per_item(
    items: Sequence[Any], rounds: int, registries: dict[str, Guards] | None = None
) -> Samples:
    """Seconds of an item of a stream that is read to its end."""

    async def source() -> AsyncIterator[Any]:
        for item in items:
            yield item

    ready: dict[str, Source] = {"bare": source, BY_HAND: lambda: _timed(source())}
    for name, registry in (registries or {"ours": make_registry()}).items():
        ready[name] = resilient("llm.stream", registry=registry)(source)
    for stream in ready.values():
        await _read(stream, len(items))
    samples: Samples = {name: [] for name in ready}
    order = list(ready)
    with quietly():
        for _ in range(rounds):
            random.shuffle(order)
            for name in order:
                await asyncio.sleep(0)
                gc.collect()
                samples[name].append(await _read(ready[name], len(items)))
    return samples


async def _timed(source: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        try:
            async with asyncio.timeout(_GAP):
                item = await anext(source)
        except StopAsyncIteration:
            return
        yield item


async def _read(stream: Source, expected: int) -> float:
    began = perf_counter()
    seen = 0
    async for _ in stream():
        seen += 1
    took = perf_counter() - began
    if seen != expected:
        raise AssertionError(f"A stream lost {expected - seen} of {expected} items")
    return took / expected
