"""Traces and metrics for OpenTelemetry: `instrument(guards())`.

It needs only OpenTelemetry's API; the SDK decides where data goes, and without an SDK nothing is
recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from lightrag_resilience.runtime.extras import install

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider
except ModuleNotFoundError as error:  # pragma: no cover - tests/telemetry/ runs it apart
    message = f"Traces need {error.name}: {install('otel')}"
    raise ModuleNotFoundError(message, name=error.name) from error

from lightrag_resilience._version import __version__
from lightrag_resilience.events import CallSucceeded, Event, RetryScheduled, StateChanged
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.pipeline.registry import Guards

from .event_metrics import GAUGES, collect_gauges, measures_of
from .genai_conventions import DURATION, DURATION_BUCKETS
from .label_limit import LabelLimiter, bounded_labels
from .metric_catalog import BUCKETS, METRICS, Metric
from .tracing import TracedGuard, Tracing

__all__ = ["Instrumentation", "current_trace", "instrument"]

_NAME = "lightrag_resilience"
_BY_NAME = {metric.name: metric for metric in METRICS}
_OTHERS = [kind for kind in get_args(Event) if kind is not CallSucceeded]
_SECONDS = "_seconds"

Attributes = Mapping[str, str]


def instrument(
    guards: Guards,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    most: int = 100,
) -> Instrumentation:
    """Trace and measure all guards, also those that are made later.

    With Gunicorn call it in each worker, after the fork.

    Args:
        guards: Of this process: ``guards()``.
        tracer_provider: Where spans go; the global one by default.
        meter_provider: Where metrics go; the global one by default.
        most: Dependencies, and models, that metrics name; further ones are ``other``.

    Returns:
        An object whose ``close()`` ends it.

    Raises:
        ValueError: These guards are instrumented already.
    """
    return Instrumentation(guards, tracer_provider, meter_provider, most)


def current_trace() -> dict[str, str] | None:
    """Ids of the current trace and span; None outside a sampled span.

    Exemplars link Prometheus metrics to traces: ``observe(guards(), exemplar=current_trace)``.
    """
    context = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


class Instrumentation:
    """Spans and metrics of one set of guards, until ``close()``; see `instrument`."""

    def __init__(
        self,
        guards: Guards,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        most: int,
    ) -> None:
        if guards.tracing is not None:
            raise ValueError("These guards are instrumented already")
        self._guards = guards
        self._bounded = bounded_labels(most) | {"model": LabelLimiter(most, "models")}
        self._successes: dict[str, Attributes] = {}
        self._instruments: dict[str, Any] = {}
        self._is_closed = False
        self._make(metrics.get_meter(_NAME, __version__, meter_provider))
        tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
        self._tracing = Tracing(tracer, self._measured)
        self._unsubscribe = (
            guards.events.count(self._on_success),
            guards.events.subscribe(self._on_event, *_OTHERS),
        )
        # A class for each instrumentation: guards of two registries may be traced apart.
        traced = type("TracedGuard", (TracedGuard,), {"tracing": self._tracing, "__slots__": ()})
        guards.trace(self._tracing, traced)

    def close(self) -> None:
        """End it, also for calls in flight. The SDK keeps its instruments, without new data."""
        for stop in self._unsubscribe:
            stop()
        self._is_closed = True
        if self._guards.tracing is self._tracing:
            self._guards.trace(None, Guard)
        self._tracing.close()

    # ------------------------------------------------------------------ metrics

    def _make(self, meter: metrics.Meter) -> None:
        for metric in METRICS:
            name, unit = _name_and_unit(metric)
            if metric.name in GAUGES:
                callbacks = [self._callback_for(metric.name)]
                meter.create_observable_gauge(name, callbacks, unit, metric.meaning)
            elif metric.kind == "counter":
                self._instruments[metric.name] = meter.create_counter(
                    name, unit, metric.meaning
                ).add
            elif metric.kind == "gauge":
                self._instruments[metric.name] = meter.create_gauge(name, unit, metric.meaning).set
            else:
                self._instruments[metric.name] = meter.create_histogram(
                    name, unit, metric.meaning, explicit_bucket_boundaries_advisory=BUCKETS
                ).record
        self._operations = meter.create_histogram(
            DURATION,
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self._record = self._instruments["attempt_duration_seconds"]

    def _callback_for(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            if self._is_closed:  # the SDK calls this as long as its provider lives
                return
            for metric, labels, value in collect_gauges(self._guards, self._bounded["dependency"]):
                if metric == name:
                    yield Observation(value, dict(zip(_BY_NAME[name].labels, labels, strict=True)))

        return observe

    def _on_success(self, dependency: str, duration: float, tokens: int) -> None:
        attributes = self._successes.get(dependency)  # cached: this runs once for each call
        if attributes is None:
            self._count(CallSucceeded(dependency, duration, tokens))
            if len(self._successes) < self._bounded["dependency"].most:
                shown = self._bounded["dependency"].label_for(dependency)
                self._successes[dependency] = {"dependency": shown, "outcome": "success"}
        else:
            self._record(duration, attributes)

    def _count(self, event: Event) -> None:
        for name, values, amount in measures_of(event):
            labels = dict(zip(_BY_NAME[name].labels, values, strict=True))
            for label in labels.keys() & self._bounded.keys():
                labels[label] = self._bounded[label].label_for(labels[label])
            self._instruments[name](amount, labels)

    def _measured(self, seconds: float, known: Attributes, error: str | None) -> None:
        attributes = dict(known)
        if model := known.get("gen_ai.request.model"):
            attributes["gen_ai.request.model"] = self._bounded["model"].label_for(model)
        if provider := known.get("gen_ai.provider.name"):
            attributes["gen_ai.provider.name"] = self._bounded["dependency"].label_for(provider)
        if error is not None:
            attributes["error.type"] = error
        self._operations.record(seconds, attributes)

    # ------------------------------------------------------------------ events

    def _on_event(self, event: Event) -> None:
        self._count(event)
        if isinstance(event, RetryScheduled):
            _add_span_event("retry", {"attempt": event.attempt, "wait": event.wait})
        elif isinstance(event, StateChanged):
            changed = {"dependency": event.dependency, "old": event.old, "new": event.new}
            _add_span_event("breaker", {**changed, "reason": event.reason})


def _add_span_event(name: str, attributes: Mapping[str, str | int | float]) -> None:
    """Add an event to the current span."""
    ours = {f"{_NAME}.{key}": value for key, value in attributes.items()}
    trace.get_current_span().add_event(f"{_NAME}.{name}", ours)


def _name_and_unit(metric: Metric) -> tuple[str, str]:
    """Name and unit that OpenTelemetry's Prometheus exporter turns into `Metric.full_name`."""
    if metric.name.endswith(_SECONDS):
        return f"{_NAME}.{metric.name.removesuffix(_SECONDS)}", "s"
    return f"{_NAME}.{metric.name}", "1" if metric.name.endswith("_ratio") else ""
