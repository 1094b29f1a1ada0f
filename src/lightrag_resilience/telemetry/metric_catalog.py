"""The metrics, each with its kind, its labels and what it means; the page is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BUCKETS", "METRICS", "Metric", "describe_metrics"]

PREFIX = "lightrag_resilience_"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds: 2 is the goal of a query, 120 the attempt of an LLM, and 300 its call."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Without the prefix of all, and without the ``_total`` of counters.
        kind: Counter, gauge or histogram.
        labels: All have bounded values.
        meaning: A sentence, for its help text and for the page.
        across: How a gauge's processes add up, where several are scraped as one.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    across: Literal["livesum", "livemax", "livemin", "liveall"] = "livesum"

    @property
    def of_redis(self) -> bool:
        """Whether it is there only where a Redis is set."""
        return self.name.startswith("redis_")

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


_D = "dependency"
_W = "workspace"
METRICS = (
    Metric(
        "attempt_duration_seconds",
        "histogram",
        (_D, "outcome"),
        "Seconds of an attempt; of a stream, to its first item. Its outcome is success, or the "
        "class of its failure: transient, throttled, unknown, fatal. Each attempt that "
        "succeeds is a call that succeeds, so its count is also that of calls.",
    ),
    Metric(
        "attempt_failures",
        "counter",
        (_D, "reason"),
        "Attempts that failed, by their HTTP status, such as HTTP 401, or else the name of the "
        "error's class.",
    ),
    Metric(
        "call_failures",
        "counter",
        (_D, "outcome"),
        "Calls that failed for good, by the class of their last failure.",
    ),
    Metric(
        "call_failure_duration_seconds",
        "histogram",
        (_D,),
        "Seconds from the begin of a call that failed for good to its end, retries included.",
    ),
    Metric(
        "refusals",
        "counter",
        (_D, "reason"),
        "Calls refused before they were sent, by the name of the error.",
    ),
    Metric("retries", "counter", (_D,), "Attempts after the first that were scheduled."),
    Metric(
        "retry_wait_seconds", "counter", (_D,), "Seconds that retries waited, by their schedule."
    ),
    Metric("fallbacks", "counter", (_D,), "Calls that went on to the next function of a chain."),
    Metric("hedges", "counter", (_D,), "Reads that were asked for once more, as they were late."),
    Metric("stale_answers", "counter", (_D,), "Old answers that a chain gave as all had failed."),
    Metric(
        "line_wait_seconds",
        "histogram",
        (_D,),
        "Seconds a call was in line for its turn and its place before it was sent; only of "
        "dependencies that have a limit.",
    ),
    Metric("tokens_reserved", "counter", (_D,), "Tokens booked for calls, before they were sent."),
    Metric("tokens_used", "counter", (_D,), "Tokens that calls used, as far as their answers say."),
    Metric(
        "breaker_transitions",
        "counter",
        (_D, "state"),
        "Changes of a circuit, by the state it went to: closed, open, half-open.",
    ),
    Metric(
        "breaker_state",
        "gauge",
        (_D,),
        "Where a circuit stands: 0 closed, 1 half-open, 2 open; of several processes the worst.",
        "livemax",
    ),
    Metric(
        "dependency_health",
        "gauge",
        (_D,),
        "How a dependency is for its callers, by all attempts of the last minute and its circuit: "
        "0 well, 1 some calls fail or wait, 2 most fail or are refused; of processes the worst.",
        "livemax",
    ),
    Metric("breaker_probes", "gauge", (_D,), "Probes of a half-open circuit that are under way."),
    Metric("probes", "counter", (_D,), "Calls that a half-open circuit let through, to find out."),
    Metric(
        "breaker_failure_ratio",
        "gauge",
        (_D,),
        "Share of failures among the calls a breaker remembers, 0 to 1; of processes the worst.",
        "livemax",
    ),
    Metric(
        "retry_budget_ratio",
        "gauge",
        (_D,),
        "Share of a process's part of the retry budget that is left, 0 to 1; 0 where it makes no "
        "further retry; of processes the least.",
        "livemin",
    ),
    Metric("in_flight", "gauge", (_D,), "Streams, and attempts with a time limit, under way."),
    Metric("queue_depth", "gauge", (_D,), "Calls that wait for a place."),
    Metric(
        "concurrency_limit",
        "gauge",
        (_D,),
        "Calls at once that are let through now, all processes together; it moves where it "
        "adapts. Only of dependencies that have such a limit.",
    ),
    Metric(
        "query_duration_seconds",
        "histogram",
        ("outcome",),
        "Seconds of a query of a protected LightRAG; of a streamed answer, to its first words. "
        "Its outcome is success, degraded (answered without something that is away), or failed.",
    ),
    Metric(
        "documents",
        "gauge",
        (_W, "status"),
        "Documents of a protected LightRAG's workspace by their status; counted twice a minute.",
        "livemax",
    ),
    Metric(
        "recovered_documents",
        "counter",
        (_W, "outcome"),
        "Documents that recovery has picked up: resumed, which were left in the middle, or "
        "requeued, which had failed.",
    ),
    Metric(
        "documents_given_up",
        "gauge",
        (_W,),
        "Failed documents that the last recovery that had any did not try again.",
        "livemax",
    ),
    Metric(
        "drain_phase",
        "gauge",
        (),
        "How far a shutdown is: 0 none, 1 draining, 2 cancelling, 3 closing, 4 ended; of processes "
        "the furthest.",
        "livemax",
    ),
    Metric("drain_in_flight", "gauge", (), "Work that a drain waits for."),
    Metric("drained", "counter", (), "Work in flight at the begin of a drain that then ended."),
    Metric(
        "abandoned",
        "counter",
        ("kind",),
        "Work that a drain gave up and cancelled, by its kind in the journal, such as call.",
    ),
    Metric(
        "redis_up",
        "gauge",
        (),
        "1 if breakers are shared through Redis now, 0 if this process is alone; of processes the "
        "worst. Not there where no Redis is set.",
        "livemin",
    ),
    Metric(
        "redis_round_trip_seconds", "gauge", (), "Seconds to Redis and back, lately.", "livemax"
    ),
    Metric("redis_workers", "gauge", (), "Processes that share breakers.", "livemax"),
)


def describe_metrics() -> str:
    """All metrics as a Markdown table."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        rows.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows)
