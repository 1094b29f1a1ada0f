"""Calls to observe, and their spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

NAME = "llm.openai"
OURS = "lightrag_resilience."
REFUSED = ConnectionRefusedError("the text of a prompt")


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


def spans(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def current_id() -> int:
    return int(trace.get_current_span().get_span_context().span_id)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def answer() -> str:
    return "an answer"


async def pieces() -> AsyncIterator[int]:
    for number in range(3):
        yield number
