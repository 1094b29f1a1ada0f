"""Guards under observation: by Prometheus, and by OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from lightrag_resilience import Guards, Policy, RetryPolicy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.telemetry.otel import Instrumentation, instrument
from lightrag_resilience.telemetry.prometheus import Observation, observe
from support.telemetry import NAME, no_sleep


@pytest.fixture
def guards() -> Iterator[Guards]:
    made = Guards(settings=load_settings({}), sleep=no_sleep)
    yield made
    made.close()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def observation(guards: Guards, registry: CollectorRegistry) -> Iterator[Observation]:
    observation = observe(guards, registry=registry)
    yield observation
    observation.close()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


@pytest.fixture
def instrumentation(guards: Guards, provider: TracerProvider) -> Iterator[Instrumentation]:
    made = instrument(guards, tracer_provider=provider)
    yield made
    made.close()


@pytest.fixture
def guard(guards: Guards, instrumentation: Instrumentation) -> Guard:
    return guards.get(NAME, Policy(retry=RetryPolicy(attempts=3, budget=100)))
