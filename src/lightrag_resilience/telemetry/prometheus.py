"""Metrics for Prometheus, out of the events of guards and of what guards know when asked.

Counters and histograms follow the events. Gauges are set when Prometheus asks; in the multiprocess
mode of prometheus_client, where another process is asked, a thread sets them once a second.
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

_EVERY = 1.0  # seconds between two looks, where another process is asked
_LAST_WORDS = 2.0  # seconds that the thread gets to end
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
    """Begin to keep metrics of all guards, those to come included.

    With Gunicorn call it in each worker, after the fork.

    Args:
        guards: Of this process: ``guards()``.
        registry: Where the metrics are found.
        most: Dependencies that are shown by name; further ones are ``other``.
        exemplar: What to note beside a duration, such as ``{"trace_id": …}``, or None.

    Returns:
        What ends it, by ``close()``.

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
        self._known: dict[tuple[str, tuple[str, ...]], Callable[[float], None]] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._look = _Look(self.look)
        self._register()
        self._stop_listening = (
            guards.events.count(self._succeeded),
            guards.events.subscribe(self._hear, *_OTHERS),
        )
        if _is_multiprocess():
            self._thread = threading.Thread(target=self._look_often, daemon=True, name="metrics")
            self._thread.start()

    def close(self) -> None:
        """End it: nothing is heard any more, and the metrics leave the registry."""
        for stop in self._stop_listening:
            stop()
        self._ending.set()
        if self._thread is not None:
            self._thread.join(_LAST_WORDS)
            self._thread = None
        for collector in (self._look, *self._metrics.values()):
            self._registry.unregister(collector)
        self._metrics = {}

    def look(self) -> None:
        """Set all gauges to what is so now."""
        for metric, labels, value in collect_gauges(self._guards, self._names):
            if metric not in self._metrics:
                self._make(metric for metric in METRICS if metric.of_redis)
            self._child(metric, *labels).set(value)

    # ------------------------------------------------------------------ in the registry

    def _register(self) -> None:
        """All metrics or none."""
        try:
            # First, so that the gauges that follow it in a scrape are those of this moment.
            self._registry.register(self._look)
            self._make(metric for metric in METRICS if not metric.of_redis)
        except ValueError:
            for collector in (self._look, *self._metrics.values()):
                self._registry.unregister(collector)
            raise

    def _make(self, metrics: Iterable[Metric]) -> None:
        for metric in metrics:
            self._metrics[metric.name] = _made(metric, self._registry)

    def _look_often(self) -> None:
        while not self._ending.wait(_EVERY):
            self.look()

    def _child(self, metric: str, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            made = self._metrics[metric]
            self._children[key] = child = made.labels(*labels) if labels else made
        return child

    # ------------------------------------------------------------------ events

    def _hear(self, event: Event) -> None:
        for metric, labels, amount in measures_of(event):
            add = self._known.get((metric, labels)) or self._find(metric, labels)
            add(amount)

    def _succeeded(self, dependency: str, duration: float, tokens: int) -> None:
        """Nearly all that happens. The time this takes is taken from every call."""
        observe = self._successes.get(dependency)
        if observe is None or tokens or self._exemplar is not None:
            self._hear(CallSucceeded(dependency, duration, tokens))
            if self._names.label_for(dependency) == dependency:
                child = self._child("attempt_duration_seconds", dependency, "success")
                self._successes[dependency] = child.observe
        else:
            observe(duration)

    def _find(self, metric: str, labels: tuple[str, ...]) -> Callable[[float], None]:
        """What adds to a series. It is kept where no label is ``other``, of which there are few."""
        described, shown = _BY_NAME[metric], labels
        if labels:
            shown = tuple(map(self._shown, described.labels, labels))
        add = self._adding(described, self._child(metric, *shown))
        if shown == labels:
            self._known[metric, labels] = add
        return add

    def _shown(self, label: str, value: str) -> str:
        bounded = self._bounded.get(label)
        return value if bounded is None else bounded.label_for(value)

    def _adding(self, metric: Metric, child: Any) -> Callable[[float], None]:
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


class _Look(Collector):
    """Yields nothing: it is asked before the gauges are, and sets them."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def collect(self) -> Iterable[Any]:
        self._look()
        return ()

    def describe(self) -> Iterable[Any]:
        return ()


def _is_multiprocess() -> bool:
    return values.ValueClass is not values.MutexValue


def _made(metric: Metric, registry: CollectorRegistry) -> Any:
    options: dict[str, Any] = {"registry": registry, "labelnames": metric.labels}
    name = PREFIX + metric.name
    if metric.kind == "counter":
        return client.Counter(name, metric.meaning, **options)
    if metric.kind == "gauge":
        return client.Gauge(
            name, metric.meaning, multiprocess_mode=metric.multiprocess_mode, **options
        )
    if metric.name == "attempt_duration_seconds" and not _is_multiprocess():
        tallies = FastHistogramCollector(name, metric.meaning, metric.labels, BUCKETS)
        registry.register(tallies)
        return tallies
    return client.Histogram(name, metric.meaning, buckets=BUCKETS, **options)
