"""The durations of attempts, kept cheaply: nearly every call adds one, and few are ever asked for.

A duration is appended to a list, and put into the buckets of its histogram with many others. That
takes a tenth of what prometheus_client's own histogram takes.
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

from lightrag_resilience.runtime.fork_safety import ProcessLock

__all__ = ["FastHistogram", "FastHistogramCollector"]

_MANY = 256  # durations that wait to be put into buckets
_LONGEST_EXEMPLAR = 128  # characters, by OpenMetrics 1.0


class FastHistogram:
    """The durations of one series. Any thread may add.

    None is lost: appending is one step under the interpreter's lock (or the list's own, where there
    is no such lock), and what is appended while the first so many are taken out stands behind them.

    Args:
        bounds: The upper bounds of the buckets, each within its bucket; infinity follows.

    Attributes:
        waiting: Seconds that are not yet in a bucket.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_flushing", "_total", "created", "waiting")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.waiting: list[float] = []
        self.created = time.time()
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self._flushing = ProcessLock()

    def observe(self, seconds: float, exemplar: Mapping[str, str] | None = None) -> None:
        """One more, and what to show beside it, unless that is longer than it may be."""
        self.waiting.append(seconds)
        if len(self.waiting) >= _MANY:
            self.flush(wait=False)
        if exemplar and sum(map(len, chain(*exemplar.items()))) <= _LONGEST_EXEMPLAR:
            bucket = bisect_left(self._bounds, seconds)
            self._exemplars[bucket] = Exemplar(dict(exemplar), seconds, time.time())

    def flush(self, *, wait: bool = True) -> None:
        """Put what waits into the buckets; without waiting leave it to who is at it already.

        The garbage collector may run other code of this thread while it folds: it must not wait.
        """
        if not self._flushing.acquire(wait=wait):
            return
        try:
            taken = self.waiting[:]
            del self.waiting[: len(taken)]
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
        """For each bucket how many are in it or in a lower one; and the sum of all."""
        self.flush()
        with self._flushing:
            counts, total = self._counts[:], self._total
        below, cumulated = 0, []
        for count, exemplar in zip(counts, self._exemplars, strict=True):
            below += count
            cumulated.append((below, exemplar))
        return cumulated, total


class FastHistogramCollector(Collector):
    """A histogram like those of prometheus_client, out of one tally for each series.

    Args:
        name: Of the metric.
        meaning: Its help text.
        labels: Their names.
        bounds: The upper bounds of its buckets, without infinity.
    """

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._name = name
        self._meaning = meaning
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._shown = [_shown(bound) for bound in (*bounds, math.inf)]
        self._tallies: dict[tuple[str, ...], FastHistogram] = {}

    def labels(self, *values: str) -> FastHistogram:
        """The tally of a series."""
        return self._tallies.setdefault(values, FastHistogram(self._bounds))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Its name, for the registry."""
        return (HistogramMetricFamily(self._name, self._meaning, labels=self._labels),)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """All series as they are now."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        tells_begin = _tells_begin()
        for values, tally in list(self._tallies.items()):
            cumulated, total = tally.read()
            buckets = [
                (shown, count) if exemplar is None else (shown, count, exemplar)
                for shown, (count, exemplar) in zip(self._shown, cumulated, strict=True)
            ]
            family.add_metric(values, buckets, total)
            if tells_begin:
                labels = dict(zip(self._labels, values, strict=True))
                family.samples.append(Sample(self._name + "_created", labels, tally.created))
        return (family,)


def _shown(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call] # it has no types


def _tells_begin() -> bool:
    """Whether prometheus_client says of its own metrics since when they are there."""
    probe = Counter("probe", "Not in any registry.", registry=None)
    return any(
        sample.name == "probe_created" for each in probe.collect() for sample in each.samples
    )
