"""All metrics: name, kind, labels, meaning. Source of the table in docs/observability.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BUCKETS", "METRICS", "Metric", "describe_metrics"]

PREFIX = "lightrag_resilience_"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. 2 is the goal for a query, 120 the default attempt timeout of an LLM, 300 its total."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Without `PREFIX`, and without the ``_total`` of counters.
        kind: Counter, gauge or histogram.
        labels: Names; `label_limit` bounds their values.
        meaning: Help text, also shown in the documentation.
        multiprocess_mode: How prometheus_client merges a gauge of several processes.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    multiprocess_mode: Literal["livesum", "livemax", "livemin", "liveall"] = "livesum"

    @property
    def of_redis(self) -> bool:
        """Whether the metric exists only with a Redis address."""
        return self.name.startswith("redis_")

    @property
    def full_name(self) -> str:
        """The name in Prometheus."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


_D = "dependency"
_W = "workspace"
METRICS = (
    Metric(
        "attempt_duration_seconds",
        "histogram",
        (_D, "outcome"),
        "Seconds of an attempt; of a stream, to its first item. The outcome is success, or the "
        "class of the failure: transient, throttled, unknown, fatal. A call ends with its first "
        "successful attempt, so the count of successes is also that of successful calls.",
    ),
    Metric(
        "attempt_failures",
        "counter",
        (_D, "reason"),
        "Failed attempts, by HTTP status, such as HTTP 401, or else by the error's class name.",
    ),
    Metric(
        "call_failures",
        "counter",
        (_D, "outcome"),
        "Calls that failed after their retries, by the class of the last failure.",
    ),
    Metric(
        "call_failure_duration_seconds",
        "histogram",
        (_D,),
        "Seconds from the start of a failed call to its end, retries included.",
    ),
    Metric(
        "rejections",
        "counter",
        (_D, "reason"),
        "Calls rejected before they were sent, by the error's class name.",
    ),
    Metric("retries", "counter", (_D,), "Scheduled attempts after the first."),
    Metric("retry_wait_seconds", "counter", (_D,), "Seconds of backoff before retries."),
    Metric("fallbacks", "counter", (_D,), "Calls that went on to the next function of a chain."),
    Metric("hedges", "counter", (_D,), "Second requests sent because the first was slow."),
    Metric(
        "stale_answers", "counter", (_D,), "Cached answers served because all of a chain failed."
    ),
    Metric(
        "admission_wait_seconds",
        "histogram",
        (_D,),
        "Seconds a call waited for the rate limit and the bulkhead before it was sent. Only for "
        "dependencies with a limit.",
    ),
    Metric("tokens_reserved", "counter", (_D,), "Tokens reserved for calls before they were sent."),
    Metric(
        "tokens_used",
        "counter",
        (_D, "work", "use"),
        "Tokens that attempts used, as reported or else by an estimate. The work is query, "
        "document or other. The use is answer, or the cause of their waste: failed (a first "
        "attempt), retry (a further one), hedge (the slower of two calls), cancelled.",
    ),
    Metric(
        "breaker_transitions",
        "counter",
        (_D, "state"),
        "State changes of a circuit, by the new state: closed, open, half-open.",
    ),
    Metric(
        "breaker_state",
        "gauge",
        (_D,),
        "State of a circuit: 0 closed, 1 half-open, 2 open; of several processes the worst.",
        "livemax",
    ),
    Metric(
        "dependency_health",
        "gauge",
        (_D,),
        "Health of a dependency, from all attempts of the last minute and its circuit: 0 well, "
        "1 some calls fail or wait, 2 most fail or are rejected; of several processes the worst.",
        "livemax",
    ),
    Metric("breaker_probes", "gauge", (_D,), "Probes of a half-open circuit in flight."),
    Metric("probes", "counter", (_D,), "Probes that half-open circuits let through."),
    Metric(
        "background_probes",
        "counter",
        (_D, "outcome"),
        "Probes sent in the background while a circuit was open, by outcome: success, failure, "
        "timeout, unserved (such as 401 or 429), unsuitable (this very request is refused), "
        "rejected (a limit had no room).",
    ),
    Metric(
        "breaker_failure_ratio",
        "gauge",
        (_D,),
        "Share of failures in the breaker's window, 0 to 1; of several processes the worst.",
        "livemax",
    ),
    Metric(
        "retry_budget_ratio",
        "gauge",
        (_D,),
        "Share of this process's retry budget that is left, 0 to 1. At 0 it makes no retries. Of "
        "several processes the least.",
        "livemin",
    ),
    Metric("in_flight", "gauge", (_D,), "Streams, and attempts with a time limit, in flight."),
    Metric("queue_depth", "gauge", (_D,), "Calls waiting for a permit of the bulkhead."),
    Metric(
        "concurrency_limit",
        "gauge",
        (_D,),
        "Permits of the bulkhead now, summed over processes; an adaptive limit changes. Only for "
        "dependencies with a concurrency limit.",
    ),
    Metric(
        "query_duration_seconds",
        "histogram",
        ("outcome",),
        "Seconds of a query of a protected LightRAG; of a streamed answer, to its first words. "
        "The outcome is success, degraded (answered without an unavailable dependency), or failed.",
    ),
    Metric(
        "documents_processed",
        "counter",
        (_W,),
        "Documents that LightRAG's pipeline was done with, or gave up.",
    ),
    Metric(
        "documents",
        "gauge",
        (_W, "status"),
        "Documents in a protected LightRAG's workspace by status; counted twice a minute.",
        "livemax",
    ),
    Metric(
        "recovered_documents",
        "counter",
        (_W, "outcome"),
        "Documents that recovery took on: resumed (interrupted while in process), requeued "
        "(failed before), or parsed_anew (degraded before).",
    ),
    Metric(
        "degraded_documents",
        "counter",
        (_W, "dependency"),
        "Documents that LightRAG's own parser has read because theirs was down.",
    ),
    Metric(
        "documents_given_up",
        "gauge",
        (_W,),
        "Failed documents that the last recovery did not retry. Runs without failed documents do "
        "not change it.",
        "livemax",
    ),
    Metric(
        "drain_phase",
        "gauge",
        (),
        "Phase of a shutdown: 0 none, 1 draining, 2 cancelling, 3 closing, 4 ended; of several "
        "processes the furthest.",
        "livemax",
    ),
    Metric("drain_in_flight", "gauge", (), "Work that a drain waits for."),
    Metric(
        "drain_completed", "counter", (), "Work in flight when a drain began that ended by itself."
    ),
    Metric(
        "drain_abandoned",
        "counter",
        ("kind",),
        "Work that a drain cancelled, by its kind in the journal, such as call.",
    ),
    Metric(
        "redis_up",
        "gauge",
        (),
        "1 if breakers are shared through Redis now, 0 if this process uses its own; of several "
        "processes the worst. Absent without a Redis address.",
        "livemin",
    ),
    Metric("redis_round_trip_seconds", "gauge", (), "Recent round-trip time to Redis.", "livemax"),
    Metric("redis_workers", "gauge", (), "Processes that share breakers.", "livemax"),
)


def describe_metrics() -> str:
    """Return all metrics as a Markdown table."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        rows.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows)
