"""Traces: which spans there are, what they say, what is current in them, and what they cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("prometheus_client")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from lightrag_resilience import (
    AttemptTimeoutError,
    BreakerPolicy,
    CircuitOpenError,
    Guards,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
    resilient,
)
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.correlation import correlated
from lightrag_resilience.telemetry.otel import Instrumentation, current_trace, instrument
from lightrag_resilience.telemetry.prometheus import observe
from support.telemetry import (
    NAME,
    OURS,
    REFUSED,
    attributes,
    current_id,
    id_of,
    pieces,
    spans,
)

pytestmark = pytest.mark.anyio


async def answer() -> str:
    return "an answer"


# ---------------------------------------------------------------------- calls and attempts


async def test_a_call_is_a_span_and_its_attempt_the_current_one(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    seen: list[int] = []

    async def ask(prompt: str, *, model: str) -> str:
        seen.append(current_id())
        return "an answer"

    outside = current_id()
    with correlated("4bf92f35"):
        await guard.call(ask, "the text of a prompt", model="gpt-4o")
    assert current_id() == outside
    attempt, call = exporter.get_finished_spans()
    assert (call.name, call.kind) == ("chat gpt-4o", SpanKind.CLIENT)
    assert attributes(call) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        OURS + "dependency": NAME,
        OURS + "request_id": "4bf92f35",
        OURS + "attempts": 1,
    }
    assert (attempt.name, attributes(attempt)) == ("attempt", {OURS + "attempt": 1})
    assert attempt.parent is not None
    assert (attempt.parent.span_id, seen) == (id_of(call), [id_of(attempt)])
    assert call.parent is None
    assert call.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("name", "kwargs", "span", "known"),
    [
        ("storage.neo4j", {"model": "x"}, "storage.neo4j", {}),
        ("llm", {}, "chat", {"gen_ai.operation.name": "chat"}),
        ("llm.x", {"model": "m" * 200}, "chat", {"gen_ai.provider.name": "x"}),
        ("llm.x", {"model": ["the text of a prompt"]}, "chat", {}),
        (
            "embedding.azure_openai",
            {"model": "ada"},
            "embeddings ada",
            {"gen_ai.provider.name": "azure.ai.openai", "gen_ai.request.model": "ada"},
        ),
        ("rerank.cohere", {}, "rerank", {"gen_ai.provider.name": "cohere"}),
    ],
)
async def test_a_span_is_named_by_operation_and_model(  # noqa: PLR0913, PLR0917 - two fixtures, four values
    guards: Guards,
    exporter: InMemorySpanExporter,
    instrumentation: Instrumentation,
    name: str,
    kwargs: dict[str, Any],
    span: str,
    known: dict[str, str],
) -> None:
    async def ask(**kwargs: Any) -> None:
        """Does nothing."""

    await guards.get(name).call(ask, **kwargs)
    call = exporter.get_finished_spans()[-1]
    assert call.name == span
    assert known.items() <= attributes(call).items()
    assert "the text of a prompt" not in str(attributes(call))


async def test_each_attempt_is_a_span_and_a_retry_an_event(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    outcomes = [None, REFUSED, REFUSED]

    async def at_last() -> None:
        if (error := outcomes.pop()) is not None:
            raise error

    await guard.call(at_last)
    (call,) = spans(exporter)["chat"]
    attempts = spans(exporter)["attempt"]
    assert [attributes(attempt)[OURS + "attempt"] for attempt in attempts] == [1, 2, 3]
    assert {attempt.parent.span_id for attempt in attempts if attempt.parent} == {id_of(call)}
    assert [attributes(attempt).get("error.type") for attempt in attempts] == [
        "ConnectionRefusedError",
        "ConnectionRefusedError",
        None,
    ]
    assert [event.name for event in call.events] == [OURS + "retry"] * 2
    assert dict(call.events[0].attributes or {})[OURS + "attempt"] == 2
    assert (attributes(call)[OURS + "attempts"], attributes(call).get("error.type")) == (3, None)


async def test_failures_and_rejections_record_their_class_and_no_text(
    guards: Guards, exporter: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    breaker = BreakerPolicy(consecutive_failures=1)
    guard = guards.get(NAME, Policy(retry=RetryPolicy(attempts=1), breaker=breaker))

    async def fail() -> None:
        raise REFUSED

    with pytest.raises(ConnectionRefusedError):
        await guard.call(fail)
    with pytest.raises(CircuitOpenError):
        await guard.call(fail)
    failed, refused = spans(exporter)["chat"]
    assert attributes(failed)["error.type"] == "ConnectionRefusedError"
    assert attributes(refused)["error.type"] == "lightrag_resilience.errors.CircuitOpenError"
    assert failed.status.status_code is refused.status.status_code is StatusCode.ERROR
    (opened,) = failed.events
    assert opened.name == OURS + "breaker"
    assert dict(opened.attributes or {})[OURS + "new"] == "open"
    assert len(spans(exporter)["attempt"]) == 1
    assert "prompt" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_an_attempt_timeout_is_recorded_as_one(
    guards: Guards, exporter: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    policy = Policy(timeout=TimeoutPolicy(attempt=0.01), retry=RetryPolicy(attempts=1))
    with pytest.raises(AttemptTimeoutError):
        await guards.get(NAME, policy).call(asyncio.Event().wait)
    for name in ("attempt", "chat"):
        (span,) = spans(exporter)[name]
        kind = attributes(span)["error.type"]
        assert kind == "lightrag_resilience.errors.AttemptTimeoutError"


async def test_a_cancelled_calls_span_ends_without_an_error(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    task = asyncio.create_task(guard.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for span in exporter.get_finished_spans():
        assert attributes(span)["error.type"] == "asyncio.exceptions.CancelledError"
        assert span.status.status_code is StatusCode.UNSET
    assert len(exporter.get_finished_spans()) == 2


async def test_a_garbage_collected_calls_span_ends(
    guard: Guard, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    call = guard.run(wait, (), {})
    call.send(None)
    await asyncio.to_thread(call.close)  # in another context
    assert len(exporter.get_finished_spans()) == 2
    assert caplog.messages == []


async def test_a_call_inside_a_call_of_the_same_guard_has_no_span(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    async def outer() -> str:
        async with guard:
            return await guard.call(answer)

    await guard.call(outer)
    assert len(exporter.get_finished_spans()) == 2


async def test_a_block_is_a_span(guard: Guard, exporter: InMemorySpanExporter) -> None:
    outside = current_id()
    async with guard:
        inside = current_id()
    assert current_id() == outside
    with pytest.raises(ConnectionRefusedError):
        async with guard:
            raise REFUSED
    guard.breaker.open()
    with pytest.raises(CircuitOpenError):
        async with guard:
            pass
    assert current_id() == outside
    well, failed, refused = exporter.get_finished_spans()
    assert id_of(well) == inside
    assert attributes(failed)["error.type"] == "ConnectionRefusedError"
    assert attributes(refused)["error.type"] == "lightrag_resilience.errors.CircuitOpenError"


async def test_a_blocks_span_is_not_current_between_items_of_a_generator(
    guards: Guards,
    guard: Guard,
    exporter: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def items() -> AsyncIterator[int]:
        async with guard:
            await guards.get("llm.inner").call(answer)
            yield 1
            yield 2

    generator = items()
    await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
    assert await anext(generator) == 2
    assert current_id() == 0
    await guards.get("llm.outer").call(answer)
    with pytest.raises(StopAsyncIteration):
        await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
    spans = exporter.get_finished_spans()
    inner, outer, block = (spans[at] for at in (1, 3, 4))
    assert inner.parent is not None
    assert inner.parent.span_id == id_of(block)
    assert (outer.parent, block.parent) == (None, None)
    assert caplog.messages == []


async def test_a_context_manager_that_ends_in_another_task_ends_its_span(
    guard: Guard, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def session() -> AsyncIterator[int]:
        async with guard:
            yield current_id()

    async with session() as inside:
        assert current_id() == inside
    manager = session()
    await asyncio.create_task(manager.__aenter__())
    await asyncio.create_task(manager.__aexit__(None, None, None))
    assert [span.name for span in exporter.get_finished_spans()] == ["chat", "chat"]
    assert (current_id(), caplog.messages) == (0, [])


async def test_a_block_that_times_out_records_a_timeout(
    guards: Guards, exporter: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    with pytest.raises(AttemptTimeoutError):
        async with guards.get(NAME, Policy(timeout=TimeoutPolicy(attempt=0.01))):
            await asyncio.Event().wait()
    (block,) = exporter.get_finished_spans()
    kind = attributes(block)["error.type"]
    assert kind == "lightrag_resilience.errors.AttemptTimeoutError"


async def test_functions_decorated_before_instrumenting_are_traced(
    guards: Guards, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    coroutine = resilient(NAME, registry=guards)(answer)
    stream = resilient(NAME, registry=guards)(pieces)

    @resilient(NAME, registry=guards)
    def sync() -> int:
        return current_id()

    await coroutine()
    instrumentation = instrument(guards, tracer_provider=provider)
    await coroutine()
    assert [item async for item in stream()] == [0, 1, 2]
    inside = await asyncio.to_thread(sync)
    attempts = spans(exporter)["attempt"]
    assert (len(attempts), len(spans(exporter)["chat"])) == (3, 3)
    assert id_of(attempts[-1]) == inside
    instrumentation.close()
    guards.close()


async def test_an_exemplar_has_the_ids_of_the_trace(
    guards: Guards, guard: Guard, exporter: InMemorySpanExporter
) -> None:
    assert current_trace() is None
    registry = CollectorRegistry()
    observation = observe(guards, registry=registry, exemplar=current_trace)
    await guard.call(answer)
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    (call,) = spans(exporter)["chat"]
    assert call.context is not None
    assert f'trace_id="{call.context.trace_id:032x}"' in text
    assert f'span_id="{call.context.span_id:016x}"' in text
    observation.close()


# ---------------------------------------------------------------------- begin and end


async def test_closing_ends_tracing_and_allows_instrumenting_again(
    guards: Guards, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    guard = guards.get(NAME)
    instrumentation = instrument(guards, tracer_provider=provider)
    with pytest.raises(ValueError, match="already"):
        instrument(guards, tracer_provider=provider)
    stream: Any = await guard.call(pieces)
    await anext(stream)
    async with guard:
        instrumentation.close()
        assert [span.name for span in exporter.get_finished_spans()] == ["attempt", "chat"]
    assert current_id() == 0
    assert [item async for item in stream] == [1, 2]
    await guard.call(answer)
    assert len(exporter.get_finished_spans()) == 3
    assert type(guard) is type(guards.get("another")) is Guard
    assert guards.events.subscribers == ()
    assert guards.events.succeeded is None
    instrument(guards, tracer_provider=provider).close()


async def test_a_method_looked_up_before_closing_still_runs(
    guards: Guards, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    guard = guards.get(NAME)
    instrumentation = instrument(guards, tracer_provider=provider)
    call, enter = guard.run(answer, (), {}), guard.__aenter__()

    instrumentation.close()
    assert await call == "an answer"
    await enter
    await guard.__aexit__(None, None, None)
    call = guard.run(answer, (), {})
    again = instrument(guards, tracer_provider=provider)
    assert await call == "an answer"
    assert exporter.get_finished_spans() == ()
    again.close()


async def test_instrumenting_without_an_sdk_is_harmless(guards: Guards) -> None:
    instrumentation = instrument(guards)
    assert await guards.get(NAME).call(answer) == "an answer"
    instrumentation.close()


def test_an_untraced_guard_keeps_its_class(guards: Guards) -> None:
    made = guards.get(NAME)
    instrument(guards).close()
    assert type(made) is Guard
    assert type(made).run is Guard.run
