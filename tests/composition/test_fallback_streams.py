"""Streams of a chain: which function a stream begins with, and how it ends."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightrag_resilience import (
    AllFailedError,
    Guards,
    Policy,
    call_chain,
    resilient,
)
from lightrag_resilience.events import Event, FallbackUsed
from support.chains import Source, received
from support.guards import down

pytestmark = pytest.mark.anyio


KINDS_OF_STREAM = pytest.mark.parametrize("kind", ["generator", "iterator", "coroutine"])


@KINDS_OF_STREAM
@pytest.mark.parametrize("guarded", [True, False])
async def test_a_stream_that_fails_before_its_first_item_falls_back(
    kind: str,
    guarded: bool,  # noqa: FBT001
    chain: Any,
    owner: Guards,
    published: list[Event],
) -> None:
    one, two = Source(down(), "never"), Source("a", "b")
    first, second = getattr(one, kind), getattr(two, kind)
    if guarded:
        plain = Policy().with_changes(attempts=1)
        first = resilient("llm.a", plain, registry=owner)(first)
        second = resilient("llm.b", plain, registry=owner)(second)
    assert await received(chain(first, second)) == ["a", "b"]
    assert (one.begun, one.closed, two.closed) == (1, 1, 1)
    assert [type(event) for event in published].count(FallbackUsed) == 1


@KINDS_OF_STREAM
async def test_a_stream_that_fails_after_its_first_item_raises(kind: str, chain: Any) -> None:
    one, two = Source("a", down()), Source("b")
    stream = chain(getattr(one, kind), getattr(two, kind))()
    stream = await stream if inspect.isawaitable(stream) else stream
    assert await anext(stream) == "a"
    with pytest.raises(ConnectionRefusedError):
        await anext(stream)
    assert (two.begun, one.closed) == (0, 1)


@KINDS_OF_STREAM
async def test_a_stream_without_items_is_an_answer(kind: str, chain: Any) -> None:
    two = Source("b")
    assert await received(chain(getattr(Source(), kind), getattr(two, kind))) == []
    assert two.begun == 0


@KINDS_OF_STREAM
async def test_a_stream_that_is_not_read_to_its_end_is_closed(kind: str, chain: Any) -> None:
    source = Source("a", "b")
    stream = chain(getattr(source, kind))()
    async with contextlib.aclosing(await stream if inspect.isawaitable(stream) else stream) as it:
        assert await anext(it) == "a"
        assert source.closed == 0
    assert source.closed == 1


async def test_call_chain_names_the_source_of_a_stream(chain: Any) -> None:
    found = await call_chain(chain(Source(down()).generator, Source("b").iterator))
    assert (found.source, found.is_stale) == ("iterator", False)
    assert [word async for word in found.value] == ["b"]


async def test_a_stream_whose_time_is_up_before_its_first_item_fails(chain: Any) -> None:
    one = Source(60, "a")
    with pytest.raises(AllFailedError, match="after 5 s for all"):
        await received(chain(one.generator, total=5))
    assert one.closed == 1
    assert await received(chain(Source("a", 60, "b").generator, total=5)) == ["a", "b"]


async def test_a_stream_that_cannot_begin_is_closed(chain: Any) -> None:
    closed: list[str] = []

    class Broken:
        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> str:
            raise down()

        async def aclose(self) -> None:
            closed.append("closed")

    async def begin() -> Any:
        return Broken()

    assert await received(chain(begin, Source("b").coroutine)) == ["b"]
    assert closed == ["closed"]


async def test_an_iterator_that_cannot_be_closed_passes_through(chain: Any) -> None:
    class Once:
        def __init__(self) -> None:
            self.words = ["a"]

        def __aiter__(self) -> Once:
            return self

        async def __anext__(self) -> str:
            if not self.words:
                raise StopAsyncIteration
            return self.words.pop()

    def begin() -> AsyncIterator[str]:
        return Once()

    assert await received(chain(begin)) == ["a"]
