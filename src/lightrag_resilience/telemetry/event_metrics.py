"""Maps events and guards to measurements, for Prometheus and OpenTelemetry alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.draining.phases import Phase
from lightrag_resilience.events import (
    AttemptFailed,
    AttemptRejected,
    BackgroundProbeEnded,
    CallAdmitted,
    CallFailed,
    CallSucceeded,
    DocumentDegraded,
    DocumentProcessed,
    DocumentsCounted,
    DrainEnded,
    DrainProgress,
    Event,
    FallbackUsed,
    HedgeSent,
    ProbeSent,
    QueryCompleted,
    RecoveryCompleted,
    RetryScheduled,
    StaleAnswerServed,
    StateChanged,
    TokensUsed,
    WorkAbandoned,
)
from lightrag_resilience.health import level_of
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards

from .label_limit import LabelLimiter
from .metric_catalog import METRICS

__all__ = ["GAUGES", "Measure", "collect_gauges", "measures_of"]

Measure = tuple[str, tuple[str, ...], float]
"""A metric, its label values, and the amount: to add, observe or set, by the metric's kind."""

# The numbers that `breaker_state` and `drain_phase` show; dashboards and alerts rely on them.
_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}
_PHASES = {phase.value: number for number, phase in enumerate(Phase)}
_ENDED = len(_PHASES)
_MERGE_MODES = {metric.name: metric.multiprocess_mode for metric in METRICS}


def measures_of(event: Event) -> Iterable[Measure]:
    """Yield the measurements of an event; counters yield no zeros."""
    return _OF.get(event.__class__, _nothing)(event)


def _nothing(_event: Any) -> Iterable[Measure]:
    return ()


def _call_succeeded(event: CallSucceeded) -> Iterable[Measure]:
    yield "attempt_duration_seconds", (event.dependency, "success"), event.duration


def _attempt_failed(event: AttemptFailed) -> Iterable[Measure]:
    yield "attempt_duration_seconds", (event.dependency, event.kind), event.duration
    # Never the error's text: it may quote a prompt, and would make a series of its own.
    cause = f"HTTP {event.status}" if event.status else event.error
    yield "attempt_failures", (event.dependency, cause), 1


def _call_failed(event: CallFailed) -> Iterable[Measure]:
    yield "call_failures", (event.dependency, event.kind), 1
    yield "call_failure_duration_seconds", (event.dependency,), event.duration


def _retried(event: RetryScheduled) -> Iterable[Measure]:
    yield "retries", (event.dependency,), 1
    yield "retry_wait_seconds", (event.dependency,), event.wait


def _admitted(event: CallAdmitted) -> Iterable[Measure]:
    yield "admission_wait_seconds", (event.dependency,), event.seconds
    if event.tokens:
        yield "tokens_reserved", (event.dependency,), event.tokens


def _recovered(event: RecoveryCompleted) -> Iterable[Measure]:
    if event.resumed:
        yield "recovered_documents", (event.workspace, "resumed"), event.resumed
    if event.requeued:
        yield "recovered_documents", (event.workspace, "requeued"), event.requeued
    if event.parsed_anew:
        yield "recovered_documents", (event.workspace, "parsed_anew"), event.parsed_anew
    yield "documents_given_up", (event.workspace,), event.given_up


def _drain_changed(event: DrainProgress) -> Iterable[Measure]:
    yield "drain_phase", (), _PHASES.get(event.phase, 0)
    yield "drain_in_flight", (), event.left


def _drain_ended(event: DrainEnded) -> Iterable[Measure]:
    yield "drain_phase", (), _ENDED
    yield "drain_in_flight", (), event.stuck
    if event.drained:
        yield "drain_completed", (), event.drained


def _once(metric: str) -> Callable[[Any], Iterable[Measure]]:
    return lambda event: ((metric, (event.dependency,), 1),)


_OF: dict[type, Callable[[Any], Iterable[Measure]]] = {
    AttemptFailed: _attempt_failed,
    CallFailed: _call_failed,
    AttemptRejected: lambda event: (("rejections", (event.dependency, event.error), 1),),
    CallSucceeded: _call_succeeded,
    CallAdmitted: _admitted,
    DocumentsCounted: lambda event: (("documents", (event.workspace, event.status), event.count),),
    DrainProgress: _drain_changed,
    DrainEnded: _drain_ended,
    FallbackUsed: _once("fallbacks"),
    HedgeSent: _once("hedges"),
    ProbeSent: _once("probes"),
    BackgroundProbeEnded: lambda event: (
        ("background_probes", (event.dependency, event.outcome), 1),
    ),
    QueryCompleted: lambda event: (("query_duration_seconds", (event.outcome,), event.duration),),
    RecoveryCompleted: _recovered,
    RetryScheduled: _retried,
    StaleAnswerServed: _once("stale_answers"),
    DocumentDegraded: lambda event: (
        ("degraded_documents", (event.workspace, event.dependency), 1),
    ),
    DocumentProcessed: lambda event: (("documents_processed", (event.workspace,), 1),),
    TokensUsed: lambda event: (
        ("tokens_used", (event.dependency, event.work, event.use), event.tokens),
    ),
    StateChanged: lambda event: (("breaker_transitions", (event.dependency, event.new), 1),),
    WorkAbandoned: lambda event: (("drain_abandoned", (event.kind,), 1),),
}


GAUGES = frozenset(
    {
        "breaker_state",
        "dependency_health",
        "breaker_probes",
        "breaker_failure_ratio",
        "retry_budget_ratio",
        "in_flight",
        "queue_depth",
        "concurrency_limit",
        "redis_up",
        "redis_round_trip_seconds",
        "redis_workers",
    }
)
"""Gauges that no event updates: `collect_gauges` reads them from the guards."""


def collect_gauges(guards: Guards, names: LabelLimiter) -> Iterable[Measure]:
    """Yield the present value of each of `GAUGES`; guards shown as ``other`` are merged."""
    found: dict[tuple[str, str], float] = {}
    # Calls of the gate may still wait; a running timer, or a stream, shows that one was sent.
    timed = Counter(call.name for call in guards.loop_timers.running())
    timed += Counter(call.name for call in list(guards.gate.running) if call.is_streaming)
    for guard in guards:
        name = names.label_for(guard.name)
        for metric, value in _gauges_of(guard, timed[guard.name]):
            found[metric, name] = _merged(metric, found.get((metric, name)), value)
    for (metric, name), value in found.items():
        yield metric, (name,), value
    if (link := guards.link) is not None:
        yield "redis_up", (), link.is_up
        yield "redis_round_trip_seconds", (), link.round_trip
        yield "redis_workers", (), link.workers if link.is_up else 1


def _gauges_of(guard: Guard, timed: int) -> Iterable[tuple[str, float]]:
    """Yield the gauges of one guard; `timed` counts its calls with a running timer."""
    seen = guard.breaker.snapshot()
    occupancy = guard.occupancy
    yield "breaker_state", _STATES[seen.state]
    yield "dependency_health", level_of(guard.health.condition)
    yield "breaker_probes", seen.probes
    yield "breaker_failure_ratio", seen.failed / seen.calls if seen.calls else 0.0
    yield "retry_budget_ratio", guard.budget.share
    yield "in_flight", timed if occupancy.limit is None else occupancy.in_use
    yield "queue_depth", occupancy.waiting
    if occupancy.limit is not None:
        yield "concurrency_limit", occupancy.limit


def _merged(metric: str, before: float | None, value: float) -> float:
    """Merge guards shown as ``other`` in the way prometheus_client merges processes."""
    if before is None:
        return value
    mode = _MERGE_MODES[metric]
    if mode == "livesum":
        return before + value
    return max(before, value) if mode == "livemax" else min(before, value)
