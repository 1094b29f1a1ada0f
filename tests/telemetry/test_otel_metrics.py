"""Metrics for OpenTelemetry, and that neither they nor those for Prometheus grow without bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("prometheus_client")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from lightrag_resilience import Guards, LimitPolicy, Policy, RetryPolicy
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    CallFailed,
    CallSucceeded,
    DocumentsCounted,
    QueryCompleted,
    RecoveryCompleted,
)
from lightrag_resilience.telemetry.genai_conventions import DURATION
from lightrag_resilience.telemetry.otel import Instrumentation, instrument
from lightrag_resilience.telemetry.prometheus import observe

pytestmark = pytest.mark.anyio

NAME = "llm.openai"
MANY = 10_000
MOST = 10


async def no_sleep(seconds: float) -> None:
    """Waits no time."""


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def guards() -> Guards:
    return Guards(settings=load_settings({}), sleep=no_sleep)


@pytest.fixture
def instrumentation(guards: Guards, reader: InMemoryMetricReader) -> Iterator[Instrumentation]:
    provider = MeterProvider([reader])
    made = instrument(guards, meter_provider=provider, most=MOST)
    yield made
    made.close()
    provider.shutdown()


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    """All that was measured under a name."""
    data = reader.get_metrics_data()
    scopes = (
        [scope for each in data.resource_metrics for scope in each.scope_metrics] if data else []
    )
    metrics = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
    return [point for metric in metrics for point in metric.data.data_points]


def value(reader: InMemoryMetricReader, name: str, **labels: str) -> Any:
    """Of one series; of a histogram how many were measured. None where there is none."""
    for point in points(reader, f"lightrag_resilience.{name}"):
        if dict(point.attributes) == labels:
            return getattr(point, "count", None) or point.value
    return None


async def answer(**kwargs: Any) -> dict[str, Any]:
    return {"usage": {"total_tokens": 7}}


async def fail(**kwargs: Any) -> None:
    raise ConnectionRefusedError


@pytest.mark.usefixtures("instrumentation")
async def test_opentelemetry_counts_calls_as_prometheus_does(
    guards: Guards, reader: InMemoryMetricReader
) -> None:
    guard = guards.get(NAME, Policy(retry=RetryPolicy(attempts=3, budget=100)))
    for _ in range(3):
        await guard.call(answer)
    with pytest.raises(ConnectionRefusedError):
        await guard.call(fail)
    labels = {"dependency": NAME, "outcome": "success"}
    assert value(reader, "attempt_duration", **labels) == 3
    assert value(reader, "attempt_duration", **{**labels, "outcome": "transient"}) == 3
    assert value(reader, "call_failures", **{**labels, "outcome": "transient"}) == 1
    assert value(reader, "retries", dependency=NAME) == 2
    assert value(reader, "retry_budget_ratio", dependency=NAME) == pytest.approx(0.9)
    assert value(reader, "redis_up") is None


@pytest.mark.usefixtures("instrumentation")
async def test_tokens_and_gauges_are_recorded(guards: Guards, reader: InMemoryMetricReader) -> None:
    limit = LimitPolicy(tpm=1_000_000, answer_tokens=20)
    guard = guards.get(NAME, Policy(limit=limit))
    for _ in range(2):
        await guard.call(answer)
    guards.events.publish(DocumentsCounted("books", "failed", 4))
    guards.events.publish(DocumentsCounted("books", "failed", 3))
    used = {"dependency": NAME, "work": "other", "use": "answer"}
    assert value(reader, "tokens_used", **used) == 14
    assert value(reader, "documents", workspace="books", status="failed") == 3


@pytest.mark.usefixtures("instrumentation")
async def test_an_operation_of_a_model_is_measured_with_its_retries_and_its_error(
    guards: Guards, reader: InMemoryMetricReader
) -> None:
    guard = guards.get(NAME, Policy(retry=RetryPolicy(attempts=3, budget=100)))
    await guard.call(answer, model="gpt-4o")
    with pytest.raises(ConnectionRefusedError):
        await guard.call(fail)
    await guards.get("storage.neo4j").call(answer)
    known = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
    found = {frozenset(point.attributes.items()): point.count for point in points(reader, DURATION)}
    assert found == {
        frozenset({**known, "gen_ai.request.model": "gpt-4o"}.items()): 1,
        frozenset({**known, "error.type": "ConnectionRefusedError"}.items()): 1,
    }


async def test_closed_instrumentation_reports_no_gauges(
    guards: Guards, reader: InMemoryMetricReader, instrumentation: Instrumentation
) -> None:
    await guards.get(NAME).call(answer)
    assert value(reader, "breaker_state", dependency=NAME) == 0
    instrumentation.close()
    assert value(reader, "breaker_state", dependency=NAME) is None


# ---------------------------------------------------------------------- bounds


def publish_many(guards: Guards) -> None:
    for number in range(MANY):
        name = f"http.{number}"
        guards.events.publish(CallSucceeded(name, 0.1, 5))
        guards.events.publish(CallSucceeded(name, 0.1))
        guards.events.publish(AttemptFailed(name, "transient", "ConnectionError", 0.1))
        guards.events.publish(CallFailed(name, "transient", 0.1))
        guards.events.publish(AttemptRejected(name, "CircuitOpenError"))
        guards.events.publish(DocumentsCounted(name, "failed", 1))
        guards.events.publish(RecoveryCompleted(name, 1, 1, 1))
        guards.events.publish(QueryCompleted(name, "success", 0.1))


@pytest.mark.no_cover
def test_ten_thousand_names_make_few_prometheus_series(guards: Guards) -> None:
    registry = CollectorRegistry()
    observation = observe(guards, registry=registry, most=MOST)
    publish_many(guards)
    text = generate_latest(registry).decode()
    assert text.count("lightrag_resilience_call_failures_total{") == MOST + 1
    assert text.count("lightrag_resilience_documents{") == MOST + 1
    assert text.count('outcome="success"} 20000.0') == 0
    total = sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if "attempt_duration_seconds_count{" in line and 'outcome="success"' in line
    )
    assert total == 2 * MANY
    assert len(observation._successes) <= MOST
    assert len(observation._children) < 20 * (MOST + 1)
    assert len(observation._adders) < 20 * (MOST + 1)
    observation.close()


@pytest.mark.no_cover
async def test_ten_thousand_names_and_models_make_few_opentelemetry_series(
    guards: Guards, reader: InMemoryMetricReader, instrumentation: Instrumentation
) -> None:
    publish_many(guards)
    guard = guards.get(NAME)
    for number in range(MANY):
        await guard.call(answer, model=f"model-{number}")
    for name in ("attempt_duration", "call_failures", "refusals", "documents", "tokens_used"):
        assert len(points(reader, f"lightrag_resilience.{name}")) <= 2 * (MOST + 1)
    models = {point.attributes["gen_ai.request.model"] for point in points(reader, DURATION)}
    assert len(models) == MOST + 1
    assert "other" in models
    assert len(instrumentation._successes) <= MOST
    assert instrumentation._tracing.streams == {}
