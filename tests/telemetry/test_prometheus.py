"""Metrics: what is counted, how names are bounded, and several processes behind one scrape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from lightrag_resilience import (
    BreakerPolicy,
    CallRejected,
    ConcurrencyPolicy,
    Guards,
    LimitPolicy,
    Policy,
    RetryPolicy,
)
from lightrag_resilience.config.settings import load_settings
from lightrag_resilience.events import (
    CallSucceeded,
    DocumentDegraded,
    DocumentsCounted,
    DrainEnded,
    DrainProgress,
    Event,
    FallbackUsed,
    HedgeSent,
    QueryCompleted,
    RecoveryCompleted,
    StaleAnswerServed,
    WorkAbandoned,
)
from lightrag_resilience.integrations.status.dependency_rows import dependency_rows
from lightrag_resilience.integrations.status.outage_history import OutageHistory
from lightrag_resilience.retry import TIMEOUT_RETRY_COST, RetryBudget
from lightrag_resilience.telemetry.metric_catalog import METRICS, describe_metrics
from lightrag_resilience.telemetry.prometheus import Observation, observe
from lightrag_resilience.testing.redis_server import RedisServer
from support.paths import ROOT
from support.telemetry import NAME, answer

PREFIX = "lightrag_resilience_"
BOUNDED = {"dependency", "kind", "outcome", "reason", "state", "status", "use", "work", "workspace"}

Read = Callable[..., float | None]


async def fail() -> str:
    raise ConnectionRefusedError("a secret detail")


@pytest.fixture
def read(registry: CollectorRegistry, observation: Observation) -> Read:
    def one(name: str, **labels: str) -> float | None:
        of_redis = name.startswith("redis_")
        labels = labels if of_redis else {"dependency": NAME, **labels}
        return registry.get_sample_value(PREFIX + name, labels)

    return one


# ---------------------------------------------------------------------- what is counted


@pytest.mark.anyio
async def test_a_success_is_one_attempt_and_no_failure(guards: Guards, read: Read) -> None:
    for _ in range(3):
        await guards.get(NAME).call(answer)
    assert read("attempt_duration_seconds_count", outcome="success") == 3
    assert read("call_failures_total", outcome="transient") is None


@pytest.mark.anyio
async def test_a_failed_call_counts_its_attempts_retries_and_one_call_failure(
    guards: Guards, read: Read
) -> None:
    policy = Policy(retry=RetryPolicy(attempts=3, budget=100))
    with pytest.raises(ConnectionError):
        await guards.get(NAME, policy).call(fail)
    assert read("attempt_duration_seconds_count", outcome="transient") == 3
    assert read("retries_total") == 2
    assert read("call_failures_total", outcome="transient") == 1
    assert read("call_failure_duration_seconds_count") == 1
    assert read("retry_budget_ratio") == pytest.approx(0.9)


@pytest.mark.anyio
async def test_a_call_that_succeeds_by_a_retry_is_no_call_failure(
    guards: Guards, read: Read
) -> None:
    outcomes = iter([fail, answer])

    async def second_time() -> str:
        return await next(outcomes)()

    await guards.get(NAME).call(second_time)
    assert read("call_failures_total", outcome="transient") is None
    assert read("attempt_duration_seconds_count", outcome="success") == 1


@pytest.mark.anyio
async def test_fatal_errors_and_failed_blocks_are_call_failures(guards: Guards, read: Read) -> None:
    async def mistake() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await guards.get(NAME).call(mistake)
    with pytest.raises(ConnectionError):
        async with guards.get(NAME):
            raise ConnectionRefusedError
    assert read("call_failures_total", outcome="fatal") == 1
    assert read("call_failures_total", outcome="transient") == 1


@pytest.mark.anyio
async def test_a_cancelled_call_is_not_counted(
    guards: Guards, read: Read, registry: CollectorRegistry
) -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(guards.get(NAME).call(wait_for_ever))
    await asyncio.sleep(0)
    assert read("in_flight") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert read("in_flight") == 0
    assert b"outcome=" not in generate_latest(registry)


@pytest.mark.anyio
async def test_a_broken_stream_is_a_call_failure(guards: Guards, read: Read) -> None:
    async def pieces():  # type: ignore[no-untyped-def]  # noqa: ANN202
        yield 1
        raise ConnectionRefusedError

    stream = await guards.get(NAME).call(pieces)
    with pytest.raises(ConnectionError):
        async for _ in stream:
            pass
    assert read("call_failures_total", outcome="transient") == 1
    assert read("attempt_duration_seconds_count", outcome="success") is None


@pytest.mark.anyio
async def test_an_open_circuit_counts_rejections_and_transitions(
    guards: Guards, read: Read
) -> None:
    policy = Policy(breaker=BreakerPolicy(consecutive_failures=1), retry=RetryPolicy(attempts=1))
    guard = guards.get(NAME, policy)
    assert read("breaker_state") == 0
    with pytest.raises(ConnectionError):
        await guard.call(fail)
    with pytest.raises(CallRejected):
        await guard.call(answer)
    assert read("breaker_state") == 2
    assert read("breaker_transitions_total", state="open") == 1
    assert read("rejections_total", reason="CircuitOpenError") == 1
    guard.breaker.half_open()
    leave = guard.breaker.acquire()
    assert (read("breaker_state"), read("breaker_probes")) == (1, 1)
    guard.breaker.release(leave)
    await guard.call(answer)
    await guard.call(answer)
    assert read("probes_total") == 1


@pytest.mark.anyio
async def test_admission_waits_and_tokens_are_counted(guards: Guards, read: Read) -> None:
    async def cost() -> dict[str, dict[str, int]]:
        return {"usage": {"total_tokens": 7}}

    limit = LimitPolicy(tpm=1_000_000, answer_tokens=20)
    for _ in range(2):
        await guards.get(NAME, Policy(limit=limit)).call(cost)
    assert read("admission_wait_seconds_count") == 2
    assert read("tokens_reserved_total") == 40
    assert read("tokens_used_total", work="other", use="answer") == 14


@pytest.mark.anyio
async def test_queue_depth_counts_calls_waiting_for_a_permit(guards: Guards, read: Read) -> None:
    gate = asyncio.Event()
    guard = guards.get(NAME, Policy(concurrency=ConcurrencyPolicy(max_concurrent=1)))
    tasks = [asyncio.create_task(guard.call(gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (read("in_flight"), read("queue_depth")) == (1, 2)
    gate.set()
    await asyncio.gather(*tasks)
    assert (read("in_flight"), read("queue_depth")) == (0, 0)


@pytest.mark.anyio
async def test_a_stream_is_in_flight_until_its_end(guards: Guards, read: Read) -> None:
    async def words() -> AsyncIterator[str]:
        yield "one"
        yield "two"

    stream = await guards.get(NAME).call(words)
    assert read("in_flight") == 1
    assert [word async for word in stream] == ["one", "two"]
    assert read("in_flight") == 0


@pytest.mark.anyio
async def test_concurrency_limit_is_shown_only_with_a_limit(guards: Guards, read: Read) -> None:
    await guards.get(NAME, Policy(concurrency=ConcurrencyPolicy(max_concurrent=7))).call(answer)
    await guards.get("free").call(answer)
    assert read("concurrency_limit") == 7
    assert read("concurrency_limit", dependency="free") is None


def test_documents_recoveries_queries_and_drains_are_counted(
    guards: Guards, read: Read, registry: CollectorRegistry
) -> None:
    for event in (
        DocumentsCounted("books", "failed", 4),
        DocumentsCounted("books", "failed", 3),
        RecoveryCompleted("books", 0, 2, 1),
        RecoveryCompleted("books", 5, 0, 1, 3),
        DocumentDegraded("books", "parser.mineru"),
        QueryCompleted("books", "degraded", 1.5),
        DrainProgress("draining", 9),
        WorkAbandoned("stream"),
        DrainEnded(8, 1, 0, 2.0),
    ):
        guards.events.publish(event)
    one = registry.get_sample_value
    recovered = PREFIX + "recovered_documents_total"
    of_books = {"workspace": "books"}
    assert one(PREFIX + "documents", {**of_books, "status": "failed"}) == 3
    assert one(recovered, {**of_books, "outcome": "resumed"}) == 5
    assert one(recovered, {**of_books, "outcome": "requeued"}) == 2
    assert one(recovered, {**of_books, "outcome": "parsed_anew"}) == 3
    of_mineru = {**of_books, "dependency": "parser.mineru"}
    assert one(PREFIX + "degraded_documents_total", of_mineru) == 1
    assert one(PREFIX + "documents_given_up", of_books) == 1
    in_time = {"outcome": "degraded", "le": "2.0"}
    assert one(PREFIX + "query_duration_seconds_bucket", in_time) == 1
    assert one(PREFIX + "drain_phase") == 4
    assert one(PREFIX + "drain_in_flight") == 0
    assert one(PREFIX + "drain_completed_total") == 8
    assert one(PREFIX + "drain_abandoned_total", {"kind": "stream"}) == 1


@pytest.mark.parametrize(
    ("event", "metric"),
    [
        (FallbackUsed(NAME, "llm.local", "ConnectionError"), "fallbacks_total"),
        (HedgeSent(NAME), "hedges_total"),
        (StaleAnswerServed(NAME, "llm.local", 3.0), "stale_answers_total"),
    ],
)
def test_fallbacks_hedges_and_stale_answers_are_counted(
    guards: Guards, read: Read, event: Event, metric: str
) -> None:
    guards.events.publish(event)
    assert read(metric) == 1


@pytest.mark.anyio
async def test_redis_metrics_are_absent_without_a_redis(guards: Guards, read: Read) -> None:
    await guards.get(NAME).call(answer)
    assert read("redis_up") is None


@pytest.mark.anyio
async def test_redis_metrics_show_a_connected_redis(registry: CollectorRegistry) -> None:
    with RedisServer() as server:
        guards = Guards(settings=load_settings({"RESILIENCE_REDIS_URL": server.url}))
        observation = observe(guards, registry=registry)
        await guards.get(NAME).call(answer)
        async with asyncio.timeout(20):
            while registry.get_sample_value(PREFIX + "redis_up") != 1:  # noqa: ASYNC110 - a thread
                await asyncio.sleep(0.05)
        assert registry.get_sample_value(PREFIX + "redis_workers") == 1
        assert guards.link is not None
        guards.link.workers = 3
        assert registry.get_sample_value(PREFIX + "redis_workers") == 3
        guards.link.is_up = False  # then it is alone
        assert registry.get_sample_value(PREFIX + "redis_workers") == 1
        observation.close()
        guards.close()


# ---------------------------------------------------------------------- bounds and ends


def test_names_beyond_the_limit_are_other_and_logged_once(
    guards: Guards, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    observation = observe(guards, registry=registry, most=2)
    with caplog.at_level(logging.WARNING, "lightrag_resilience"):
        for _ in range(2):
            for number in range(5):
                guards.events.publish(CallSucceeded(f"http.{number}", 0.1))
    read = registry.get_sample_value
    count = PREFIX + "attempt_duration_seconds_count"
    assert read(count, {"dependency": "http.1", "outcome": "success"}) == 2
    assert read(count, {"dependency": "other", "outcome": "success"}) == 6
    assert read(count, {"dependency": "http.2", "outcome": "success"}) is None
    assert len(caplog.messages) == 1
    assert len(observation._successes) <= 3
    observation.close()


def test_a_workers_share_of_the_retry_budget_reaches_zero(
    guards: Guards, registry: CollectorRegistry
) -> None:
    observation = observe(guards, registry=registry)
    budget = guards.get(NAME).budget = RetryBudget(500, lambda: 3)
    while budget.spend(TIMEOUT_RETRY_COST):
        observation.refresh_gauges()
    observation.refresh_gauges()
    shown = registry.get_sample_value(PREFIX + "retry_budget_ratio", {"dependency": NAME})
    assert shown == 0.0
    assert asyncio.run(dependency_rows(guards, None, OutageHistory()))[0]["budget"] == 0.0
    observation.close()


def test_gauges_of_dependencies_shown_as_other_are_merged(
    guards: Guards, registry: CollectorRegistry
) -> None:
    observation = observe(guards, registry=registry, most=1)
    for name in ("a", "b", "c"):
        guards.get(name)
    observation.refresh_gauges()
    guards.get("b").breaker.open()
    guards.get("c").budget.tokens = 50
    read = registry.get_sample_value
    assert read(PREFIX + "breaker_state", {"dependency": "other"}) == 2
    assert read(PREFIX + "retry_budget_ratio", {"dependency": "other"}) == pytest.approx(0.1)
    assert read(PREFIX + "in_flight", {"dependency": "other"}) == 0
    observation.close()


@pytest.mark.anyio
async def test_closing_ends_observing_and_allows_observing_again(
    guards: Guards, registry: CollectorRegistry
) -> None:
    observe(guards, registry=registry).close()
    assert guards.events.subscribers == ()
    assert generate_latest(registry) == b""
    again = observe(guards, registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        observe(guards, registry=registry)
    await guards.get(NAME).call(answer)
    labels = {"dependency": NAME, "outcome": "success"}
    assert registry.get_sample_value(PREFIX + "attempt_duration_seconds_count", labels) == 1
    again.close()


@pytest.mark.anyio
async def test_a_duration_has_the_exemplar_of_its_trace(
    guards: Guards, registry: CollectorRegistry
) -> None:
    traces = iter(["of the first", "of the last"])
    observation = observe(guards, registry=registry, exemplar=lambda: {"trace_id": next(traces)})
    for _ in range(2):
        await guards.get(NAME).call(answer)
    assert b'# {trace_id="of the last"}' in generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    observation.close()


def test_every_metric_has_help_a_unit_and_bounded_labels() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.meaning.endswith(".")
        assert set(metric.labels) <= BOUNDED
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")


def test_the_documented_table_of_metrics_is_current() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert describe_metrics() in page
