"""Events about the queries and documents of a protected LightRAG."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("lightrag")

from lightrag import QueryParam
from lightrag.base import DocStatus

from lightrag_resilience import Guards
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import DocumentsCounted, Event, QueryCompleted
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.integrations.lightrag.work.document_counts import DocumentCounts
from support.lightrag_rig import Provider, lightrag_on

pytestmark = [pytest.mark.anyio, pytest.mark.lightrag]

DOWN = ConnectionRefusedError("the provider is down")
TEXT = "Ada founded Alderwick beside the river."
VARIABLES = {
    "RESILIENCE_DEFAULT__RETRY__INITIAL_BACKOFF": "0.001",
    "RESILIENCE_DEFAULT__RETRY__MAX_BACKOFF": "0.002",
    "RESILIENCE_QUERY__PATIENCE": "0",
}


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def published() -> list[Event]:
    return []


@pytest.fixture
async def rag(provider: Provider, published: list[Event]) -> AsyncIterator[Any]:
    guards = Guards(settings=load_settings(VARIABLES))
    async with lightrag_on(provider) as rag:
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        await rag.aclear_cache()
        guards.events.subscribe(published.append)
        yield rag
        await unprotect(rag)


def outcomes(published: list[Event]) -> list[str]:
    return [event.outcome for event in published if isinstance(event, QueryCompleted)]


async def ask(rag: Any, **changes: Any) -> Any:
    return await rag.aquery("Who founded Alderwick?", QueryParam(mode="naive", **changes))


async def test_each_query_publishes_its_outcome_and_duration(
    rag: Any, provider: Provider, published: list[Event]
) -> None:
    await ask(rag)
    provider.fail = lambda kind: DOWN if kind == "rerank" else None
    await ask(rag, user_prompt="anew")
    provider.fail = lambda kind: DOWN if kind == "llm" else None
    with pytest.raises(Exception, match="not answered"):
        await ask(rag, user_prompt="once more")
    assert outcomes(published) == ["success", "degraded", "failed"]
    queries = [event for event in published if isinstance(event, QueryCompleted)]
    assert {query.workspace for query in queries} == {rag.workspace}
    assert all(0 < query.duration < 60 for query in queries)


async def test_a_streamed_answer_is_published_when_its_stream_ends(
    rag: Any, provider: Provider, published: list[Event]
) -> None:
    stream = await ask(rag, stream=True)
    assert outcomes(published) == []
    async for _ in stream:
        pass
    assert outcomes(published) == ["success"]
    stream = await ask(rag, stream=True, user_prompt="anew")
    await anext(stream)
    provider.fail = lambda kind: DOWN if kind == "stream" else None
    with pytest.raises(Exception, match="llm"):
        async for _ in stream:
            pass
    assert outcomes(published) == ["success", "failed"]


async def test_a_streamed_answer_that_its_reader_closes_counts_as_answered(
    rag: Any, published: list[Event]
) -> None:
    stream = await ask(rag, stream=True)
    await anext(stream)
    await stream.aclose()
    assert outcomes(published) == ["success"]


async def test_a_cancelled_query_publishes_nothing(rag: Any, published: list[Event]) -> None:
    query = asyncio.create_task(ask(rag))
    await asyncio.sleep(0)
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    assert outcomes(published) == []


async def test_documents_are_counted_by_status_while_the_event_has_subscribers(
    rag: Any, published: list[Event]
) -> None:
    guards = Guards(settings=load_settings(VARIABLES))
    counts = DocumentCounts(rag, guards.events, every=0.01)
    counts.begin()
    try:
        guards.events.subscribe(published.append)
        async with asyncio.timeout(30):
            while not counted(published):  # noqa: ASYNC110 - what is waited for is a round
                await asyncio.sleep(0.01)
    finally:
        await counts.end()
    assert counted(published)["processed"] == 1
    assert counted(published)["failed"] == 0
    assert set(counted(published)) == {status.value for status in DocStatus}


async def test_a_failed_count_is_repeated(
    rag: Any, published: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, failures = rag.doc_status.get_status_counts, [DOWN, DOWN]

    async def at_last() -> Any:
        if failures:
            raise failures.pop()
        return await count()

    monkeypatch.setattr(rag.doc_status, "get_status_counts", at_last)
    guards = Guards(settings=load_settings(VARIABLES))
    guards.events.subscribe(published.append)
    counts = DocumentCounts(rag, guards.events, every=0.01)
    counts.begin()
    try:
        async with asyncio.timeout(30):
            while not counted(published):  # noqa: ASYNC110 - what is waited for is a round
                await asyncio.sleep(0.01)
    finally:
        await counts.end()
    assert counted(published)["processed"] == 1


def counted(published: list[Event]) -> dict[str, int]:
    return {event.status: event.count for event in published if isinstance(event, DocumentsCounted)}
