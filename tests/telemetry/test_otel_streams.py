"""Spans of streams."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("prometheus_client")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lightrag_resilience.pipeline.guard import Guard
from support.telemetry import OURS, REFUSED, attributes, current_id, id_of, pieces, spans

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- streams


async def test_a_streams_spans_end_with_the_stream(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    seen: list[int] = []

    async def stream() -> AsyncIterator[int]:
        seen.append(current_id())
        yield 1
        yield 2

    outside = current_id()
    opened: Any = await guard.call(stream)
    assert current_id() == outside
    assert exporter.get_finished_spans() == ()
    assert [item async for item in opened] == [1, 2]
    attempt, call = exporter.get_finished_spans()
    assert seen == [id_of(attempt)]
    assert call.end_time is not None
    assert attempt.end_time is not None
    assert attempt.end_time <= call.end_time
    assert "error.type" not in attributes(call)


async def test_a_broken_stream_is_an_error_and_a_closed_one_is_not(
    guard: Guard, exporter: InMemorySpanExporter
) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise REFUSED

    opened: Any = await guard.call(broken)
    with pytest.raises(ConnectionRefusedError):
        async for _ in opened:
            pass
    left: Any = await guard.call(pieces)
    await anext(left)
    await left.aclose()
    dropped: Any = await guard.call(pieces)
    await anext(dropped)
    del dropped
    gc.collect()
    types = [attributes(call).get("error.type") for call in spans(exporter)["chat"]]
    assert types == ["ConnectionRefusedError", None, None]


async def test_a_stream_that_fails_to_open_is_retried_in_a_new_attempt(
    guard: Guard, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [None, REFUSED]

    async def stream() -> AsyncIterator[int]:
        if (error := errors.pop()) is not None:
            raise error
        yield 1

    opened: Any = await guard.call(stream)
    assert [item async for item in opened] == [1]
    first, second = spans(exporter)["attempt"]
    (call,) = spans(exporter)["chat"]
    assert attributes(first)["error.type"] == "ConnectionRefusedError"
    for attempt in (first, second):
        assert attempt.parent is not None
        assert attempt.parent.span_id == id_of(call)
    assert [event.name for event in call.events] == [OURS + "retry"]
    assert caplog.messages == []


async def test_an_empty_streams_spans_end(guard: Guard, exporter: InMemorySpanExporter) -> None:
    async def empty() -> AsyncIterator[int]:
        return
        yield

    opened: Any = await guard.call(empty)
    assert [item async for item in opened] == []
    assert len(exporter.get_finished_spans()) == 2
