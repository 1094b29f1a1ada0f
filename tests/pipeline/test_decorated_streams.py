"""Guarded functions that give streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    Guards,
    resilient,
)
from support.decorated import POLICY, Flaky, drain


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ---------------------------------------------------------------------- streams


class Source:
    """A stream that fails at given starts, and says how often it was begun and closed."""

    def __init__(self, failures: int, *, after: int = 0) -> None:
        self.flaky = Flaky(failures)
        self.after = after
        self.closed = 0

    async def items(self, *words: str) -> AsyncIterator[str]:
        try:
            for position, word in enumerate(words):
                yield self.flaky.answer(word) if position == self.after else word
        finally:
            self.closed += 1

    def iterator(self, *words: str) -> AsyncIterator[str]:
        return self.items(*words)


KINDS_OF_STREAM = pytest.mark.parametrize("kind", ["items", "iterator"])


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_is_begun_again_before_its_first_item(kind: str, owner: Guards) -> None:
    source = Source(2)
    guarded = resilient("llm.stream", POLICY, registry=owner)(getattr(source, kind))
    assert await drain(guarded("one", "two")) == ["ONE", "two"]
    assert (source.flaky.calls, source.closed) == (3, 3)


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_is_not_begun_again_after_its_first_item(kind: str, owner: Guards) -> None:
    source = Source(1, after=1)
    guarded = resilient("llm.stream", POLICY, registry=owner)(getattr(source, kind))
    received: list[str] = []
    with pytest.raises(ConnectionError, match="failure 1"):
        await drain(guarded("one", "two"), received)
    assert received == ["one"]
    assert (source.flaky.calls, source.closed) == (1, 1)


@pytest.mark.anyio
@KINDS_OF_STREAM
async def test_a_stream_that_is_abandoned_early_is_closed(kind: str, owner: Guards) -> None:
    source = Source(0)
    guarded: Any = resilient("llm.stream", registry=owner)(getattr(source, kind))
    async with contextlib.aclosing(guarded("one", "two")) as stream:
        async for item in stream:
            assert item == "ONE"
            break
        assert source.closed == 0
    assert source.closed == 1


@pytest.mark.anyio
async def test_a_stream_is_not_opened_before_it_is_iterated_over(owner: Guards) -> None:
    source = Source(0)
    guarded: Any = resilient("llm.stream", registry=owner)(source.items)
    stream = guarded("one")
    assert list(owner) == []
    await stream.aclose()
    assert source.flaky.calls == 0


@pytest.mark.anyio
async def test_a_guarded_stream_inside_its_own_guard_is_closed_too(owner: Guards) -> None:
    source = Source(0)
    inner = resilient("llm.nested", registry=owner)(source.items)
    outer = resilient("llm.nested", registry=owner)(inner)
    assert await drain(outer("one", "two")) == ["ONE", "two"]
    assert source.closed == 1


@pytest.mark.anyio
async def test_an_iterator_that_cannot_be_closed_passes_through(owner: Guards) -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 2

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    @resilient("llm.countdown", registry=owner)
    def count() -> AsyncIterator[int]:
        return Countdown()

    async with owner.get("llm.countdown"):
        assert await drain(count()) == [1, 0]
    assert await drain(count()) == [1, 0]
