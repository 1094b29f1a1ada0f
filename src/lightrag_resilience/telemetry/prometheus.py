"""Metrics for Prometheus, from the events and the state of guards.

Counters and histograms follow the events. Gauges are set at each scrape; in prometheus_client's
multiprocess mode, where another process may be scraped, a thread sets them once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, get_args

from lightrag_resilience.runtime.extras import install

try:
    import prometheus_client as client
    from prometheus_client import values
    from prometheus_client.registry import Collector, CollectorRegistry
except ModuleNotFoundError as error:  # pragma: no cover - tests/telemetry/ runs it apart
    message = f"Metrics need {error.name}: {install('prometheus')}"
    raise ModuleNotFoundError(message, name=error.name) from error

from lightrag_resilience.events import CallSucceeded, Event
from lightrag_resilience.pipeline.registry import Guards

from .event_metrics import collect_gauges, measures_of
from .fast_histogram import FastHistogramCollector
from .label_limit import bounded_labels
from .metric_catalog import BUCKETS, METRICS, PREFIX, Metric

__all__ = ["Observation", "observe"]

_GAUGE_INTERVAL = 1.0  # seconds, in multiprocess mode
_JOIN_TIMEOUT = 2.0  # seconds that the thread gets to end
_BY_NAME = {metric.name: metric for metric in METRICS}
_OTHERS = [kind for kind in get_args(Event) if kind is not CallSucceeded]

Exemplar = Callable[[], dict[str, str] | None]


def observe(
    guards: Guards,
    *,
    registry: CollectorRegistry = client.REGISTRY,
    most: int = 100,
    exemplar: Exemplar | None = None,
) -> Observation:
    """Keep metrics of all guards, also of those that are made later.

    With Gunicorn call it in each worker, after the fork.

    Args:
        guards: Of this process: ``guards()``.
        registry: Gets the metrics.
        most: Dependencies that metrics name; further ones are ``other``.
        exemplar: Returns the labels of a duration's exemplar, such as ``{"trace_id": …}``, or None.

    Returns:
        An object whose ``close()`` ends it.

    Raises:
        ValueError: The registry has these metrics already.
    """
    return Observation(guards, registry, most, exemplar)


class Observation:
    """Metrics of one set of guards in one registry, until ``close()``; see `observe`."""

    def __init__(
        self,
        guards: Guards,
        registry: CollectorRegistry,
        most: int,
        exemplar: Exemplar | None,
    ) -> None:
        self._guards = guards
        self._registry = registry
        self._bounded = bounded_labels(most)
        self._names = self._bounded["dependency"]
        self._exemplar = exemplar
        self._metrics: dict[str, Any] = {}
        self._successes: dict[str, Callable[[float], None]] = {}
        self._adders: dict[tuple[str, tuple[str, ...]], Callable[[float], None]] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._refresher = _GaugeRefresher(self.refresh_gauges)
        self._register()
        self._unsubscribe = (
            guards.events.count(self._on_success),
            guards.events.subscribe(self._on_event, *_OTHERS),
        )
        if _is_multiprocess():
            self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="metrics")
            self._thread.start()

    def close(self) -> None:
        """Unsubscribe, and remove the metrics from the registry."""
        for stop in self._unsubscribe:
            stop()
        self._ending.set()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT)
            self._thread = None
        for collector in (self._refresher, *self._metrics.values()):
            self._registry.unregister(collector)
        self._metrics = {}

    def refresh_gauges(self) -> None:
        """Set all gauges to their present values."""
        for metric, labels, value in collect_gauges(self._guards, self._names):
            if metric not in self._metrics:  # first seen with a Redis link
                self._make(metric for metric in METRICS if metric.of_redis)
            self._child(metric, *labels).set(value)

    # ------------------------------------------------------------------ in the registry

    def _register(self) -> None:
        """Register all metrics or none."""
        try:
            # A registry collects in the order of registration: this must precede the gauges.
            self._registry.register(self._refresher)
            self._make(metric for metric in METRICS if not metric.of_redis)
        except ValueError:
            for collector in (self._refresher, *self._metrics.values()):
                self._registry.unregister(collector)
            raise

    def _make(self, metrics: Iterable[Metric]) -> None:
        for metric in metrics:
            self._metrics[metric.name] = _make_metric(metric, self._registry)

    def _keep_fresh(self) -> None:
        while not self._ending.wait(_GAUGE_INTERVAL):
            self.refresh_gauges()

    def _child(self, metric: str, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            parent = self._metrics[metric]
            self._children[key] = child = parent.labels(*labels) if labels else parent
        return child

    # ------------------------------------------------------------------ events

    def _on_event(self, event: Event) -> None:
        for metric, labels, amount in measures_of(event):
            add = self._adders.get((metric, labels)) or self._adder_for(metric, labels)
            add(amount)

    def _on_success(self, dependency: str, duration: float, tokens: int) -> None:
        """Record a success: the hot path, which every call pays for."""
        observe = self._successes.get(dependency)
        if observe is None or self._exemplar is not None:
            self._on_event(CallSucceeded(dependency, duration, tokens))
            # Cached only under its own name: the cache must not grow beyond the labels' bound.
            if self._names.label_for(dependency) == dependency:
                child = self._child("attempt_duration_seconds", dependency, "success")
                self._successes[dependency] = child.observe
        else:
            observe(duration)

    def _adder_for(self, metric: str, labels: tuple[str, ...]) -> Callable[[float], None]:
        """The function that adds to a series. Cached unless a label became ``other``: bounded."""
        described, shown = _BY_NAME[metric], labels
        if labels:
            shown = tuple(map(self._shown, described.labels, labels))
        add = self._make_adder(described, self._child(metric, *shown))
        if shown == labels:
            self._adders[metric, labels] = add
        return add

    def _shown(self, label: str, value: str) -> str:
        bounded = self._bounded.get(label)
        return value if bounded is None else bounded.label_for(value)

    def _make_adder(self, metric: Metric, child: Any) -> Callable[[float], None]:
        exemplar = self._exemplar
        if metric.kind == "counter":
            add = child.inc
        elif metric.kind == "gauge":
            add = child.set
        elif metric.name == "attempt_duration_seconds" and exemplar is not None:

            def add(seconds: float) -> None:
                child.observe(seconds, exemplar())
        else:
            add = child.observe
        return add  # type: ignore[no-any-return]


class _GaugeRefresher(Collector):
    """A collector without metrics that sets the gauges before they are collected."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        self._refresh = refresh

    def collect(self) -> Iterable[Any]:
        self._refresh()
        return ()

    def describe(self) -> Iterable[Any]:
        return ()


def _is_multiprocess() -> bool:
    return values.ValueClass is not values.MutexValue


def _make_metric(metric: Metric, registry: CollectorRegistry) -> Any:
    options: dict[str, Any] = {"registry": registry, "labelnames": metric.labels}
    name = PREFIX + metric.name
    if metric.kind == "counter":
        return client.Counter(name, metric.meaning, **options)
    if metric.kind == "gauge":
        return client.Gauge(
            name, metric.meaning, multiprocess_mode=metric.multiprocess_mode, **options
        )
    if metric.name == "attempt_duration_seconds" and not _is_multiprocess():
        histogram = FastHistogramCollector(name, metric.meaning, metric.labels, BUCKETS)
        registry.register(histogram)
        return histogram
    return client.Histogram(name, metric.meaning, buckets=BUCKETS, **options)
