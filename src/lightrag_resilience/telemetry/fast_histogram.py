"""A histogram for the hot path: nearly every call observes a duration, and scrapes are rare.

A duration is appended to a list and sorted into buckets in batches, at a tenth of the cost of
prometheus_client's own histogram.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from prometheus_client import Counter
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from lightrag_resilience.runtime.process_state import ProcessLock

__all__ = ["FastHistogram", "FastHistogramCollector"]

_BATCH = 256  # durations before they are sorted into buckets
_LONGEST_EXEMPLAR = 128  # characters, by OpenMetrics 1.0


class FastHistogram:
    """The durations of one series. Any thread may observe.

    No duration is lost without a lock: `list.append` is atomic, and `flush` deletes only the items
    that it has copied, so that later ones stay.

    Args:
        bounds: Upper bounds of the buckets, inclusive; infinity is added.

    Attributes:
        pending: Seconds that are in no bucket yet.
        created: When the series began, seconds since the epoch.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_flushing", "_total", "created", "pending")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.pending: list[float] = []
        self.created = time.time()
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self._flushing = ProcessLock()

    def observe(self, seconds: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Add a duration; an exemplar beyond OpenMetrics' length is left out."""
        self.pending.append(seconds)
        if len(self.pending) >= _BATCH:
            self.flush(wait=False)
        if exemplar and sum(map(len, chain(*exemplar.items()))) <= _LONGEST_EXEMPLAR:
            bucket = bisect_left(self._bounds, seconds)
            self._exemplars[bucket] = Exemplar(dict(exemplar), seconds, time.time())

    def flush(self, *, wait: bool = True) -> None:
        """Sort pending durations into the buckets; with ``wait=False`` skip if another thread does.

        `observe` must not wait: the garbage collector may call it in the thread that holds the
        lock.
        """
        if not self._flushing.acquire(wait=wait):
            return
        try:
            # Copy, then delete as many: what another thread appends in between stays.
            taken = self.pending[:]
            del self.pending[: len(taken)]
            taken.sort()
            self._total += sum(taken)
            before = 0
            for bucket, bound in enumerate(self._bounds):
                within = bisect_right(taken, bound)
                self._counts[bucket] += within - before
                before = within
            self._counts[-1] += len(taken) - before
        finally:
            self._flushing.release()

    def read(self) -> tuple[list[tuple[int, Exemplar | None]], float]:
        """Return the cumulative count and exemplar of each bucket, and the sum of durations."""
        self.flush()
        with self._flushing:
            counts, total = self._counts[:], self._total
        below, cumulated = 0, []
        for count, exemplar in zip(counts, self._exemplars, strict=True):
            below += count
            cumulated.append((below, exemplar))
        return cumulated, total


class FastHistogramCollector(Collector):
    """Collector of prometheus_client for the `FastHistogram` of each series.

    Args:
        name: Of the metric.
        meaning: Its help text.
        labels: Names of the labels.
        bounds: Upper bounds of the buckets, without infinity.
    """

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._shown = [_as_text(bound) for bound in (*bounds, math.inf)]
        self._series: dict[tuple[str, ...], FastHistogram] = {}

    def labels(self, *values: str) -> FastHistogram:
        """The histogram of a series."""
        return self._series.setdefault(values, FastHistogram(self._bounds))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Name the metric for the registry's check of duplicates."""
        return (HistogramMetricFamily(self._name, self._meaning, labels=self._labels),)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return all series."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        has_created = _has_created_samples()
        for values, histogram in list(self._series.items()):
            cumulated, total = histogram.read()
            buckets = [
                (shown, count) if exemplar is None else (shown, count, exemplar)
                for shown, (count, exemplar) in zip(self._shown, cumulated, strict=True)
            ]
            family.add_metric(values, buckets, total)
            if has_created:
                labels = dict(zip(self._labels, values, strict=True))
                family.samples.append(Sample(self._name + "_created", labels, histogram.created))
        return (family,)


def _as_text(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _has_created_samples() -> bool:
    """Whether prometheus_client adds ``_created`` samples; its switch has no public getter."""
    probe = Counter("probe", "Not in any registry.", registry=None)
    return any(
        sample.name == "probe_created" for each in probe.collect() for sample in each.samples
    )
