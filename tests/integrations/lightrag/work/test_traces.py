"""A query and what it leads to are one trace under one id, also across LightRAG's queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("lightrag")
pytest.importorskip("opentelemetry.sdk")

from lightrag import LightRAG, QueryParam
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightrag_resilience import Guards, Priority, priority
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.integrations.lightrag import protect, unprotect
from lightrag_resilience.telemetry.correlation import correlated, correlation_id
from lightrag_resilience.telemetry.otel import instrument
from support.lightrag_rig import Provider, lightrag_on

carries_contexts = pytest.mark.skipif(
    not hasattr(LightRAG, "_wrap_llm_role_func"),
    reason="the queue of LightRAG 1.4 leaves a caller's context behind",
)
pytestmark = [pytest.mark.anyio, pytest.mark.lightrag, carries_contexts]

OURS = "lightrag_resilience."
TEXT = "Ada founded Alderwick beside the river."
DOWN = ConnectionRefusedError("the provider is down")


class Noting(Provider):
    """Notes under which id it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str | None] = []

    async def complete(self, prompt: str, *, stream: bool = False, **_: Any) -> Any:
        self.ids.append(correlation_id())
        return await super().complete(prompt, stream=stream)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider() -> Noting:
    return Noting()


@pytest.fixture
async def rag(provider: Noting, exporter: InMemorySpanExporter) -> AsyncIterator[Any]:
    variables = {"RESILIENCE_DEFAULT__RETRY__ATTEMPTS": "1", "RESILIENCE_QUERY__PATIENCE": "0"}
    guards = Guards(settings=load_settings(variables))
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    async with lightrag_on(provider) as rag:
        rag.set_role_llm_metadata("query", model="simulated")  # as LightRAG's server does
        await protect(rag, registry=guards)
        await rag.ainsert(TEXT)
        await rag.aclear_cache()
        provider.ids.clear()
        instrumentation = instrument(guards, tracer_provider=tracers)
        yield rag
        instrumentation.close()
        await unprotect(rag)


async def ask(rag: Any, **changes: Any) -> Any:
    return await rag.aquery("Who founded Alderwick?", QueryParam(mode="mix", **changes))


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Spans of this name, or of this operation of any model."""
    return [
        span for span in exporter.get_finished_spans() if f"{span.name} ".startswith(f"{name} ")
    ]


def ancestors(exporter: InMemorySpanExporter, span: ReadableSpan) -> list[str]:
    """The names of the spans above one, the nearest first."""
    by_id = {each.context.span_id: each for each in exporter.get_finished_spans() if each.context}
    names = []
    above = span.parent
    while above is not None:
        names.append(by_id[above.span_id].name)
        above = by_id[above.span_id].parent
    return names


async def test_the_span_of_a_model_call_is_a_child_of_its_query(
    rag: Any, exporter: InMemorySpanExporter, provider: Noting
) -> None:
    # In 1.5 a queue's worker was begun by other work, whose context would be the wrong one.
    with correlated("first"):
        await ask(rag)
    with correlated("second"):
        await ask(rag, user_prompt="anew")
    assert set(provider.ids) == {"first", "second"}
    models = named(exporter, "chat")
    assert len(models) == len(provider.ids)
    for model, identity in zip(models, provider.ids, strict=True):
        assert ancestors(exporter, model)[-1] == "lightrag query"
        assert dict(model.attributes or {})[OURS + "request_id"] == identity
    assert {model.name for model in models} == {"chat", "chat simulated"}
    queries = named(exporter, "lightrag query")
    assert len({query.context.trace_id for query in queries if query.context}) == 2
    assert {dict(query.attributes or {})[OURS + "outcome"] for query in queries} == {"success"}
    storages = [span for span in exporter.get_finished_spans() if span.name.startswith("storage")]
    assert storages
    assert all("lightrag query" in ancestors(exporter, storage) for storage in storages)


async def test_the_span_of_a_background_call_is_a_child_of_its_query_too(
    rag: Any, exporter: InMemorySpanExporter, provider: Noting
) -> None:
    with correlated("background"), priority(Priority.BACKGROUND):
        await ask(rag)
    assert set(provider.ids) == {"background"}
    for model in named(exporter, "chat"):
        assert ancestors(exporter, model) == ["lightrag query"]


async def test_concurrent_queries_have_separate_traces(
    rag: Any, exporter: InMemorySpanExporter, provider: Noting
) -> None:
    async def one(number: int) -> None:
        with correlated(f"query-{number}"):
            await ask(rag, user_prompt=str(number))

    await asyncio.gather(*map(one, range(8)))
    traces: dict[int, set[str]] = {}
    for span in named(exporter, "lightrag query") + named(exporter, "chat"):
        assert span.context is not None
        identity = str(dict(span.attributes or {})[OURS + "request_id"])
        traces.setdefault(span.context.trace_id, set()).add(identity)
    assert sorted(map(list, traces.values())) == [[f"query-{number}"] for number in range(8)]


async def test_the_span_of_a_streamed_query_ends_with_its_stream(
    rag: Any, exporter: InMemorySpanExporter
) -> None:
    stream = await ask(rag, stream=True)
    assert named(exporter, "lightrag query") == []
    async for _ in stream:
        pass
    (query,) = named(exporter, "lightrag query")
    model = named(exporter, "chat")[-1]
    assert ancestors(exporter, model) == ["lightrag query"]
    assert query.end_time is not None
    assert model.end_time is not None
    assert model.end_time <= query.end_time


async def test_the_span_of_a_failed_or_cancelled_query_has_that_outcome(
    rag: Any, exporter: InMemorySpanExporter, provider: Noting
) -> None:
    provider.fail = lambda kind: DOWN if kind == "llm" else None
    with pytest.raises(Exception, match="not answered"):
        await ask(rag)
    provider.fail = lambda kind: None
    query = asyncio.create_task(ask(rag))
    await asyncio.sleep(0)
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    outcomes = [
        dict(span.attributes or {})[OURS + "outcome"] for span in named(exporter, "lightrag query")
    ]
    assert outcomes == ["failed", "cancelled"]
