"""Our own histogram is that of prometheus_client, and loses no duration."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    disable_created_metrics,
    enable_created_metrics,
    generate_latest,
)

from lightrag_resilience.telemetry import fast_histogram
from lightrag_resilience.telemetry.fast_histogram import FastHistogram, FastHistogramCollector
from lightrag_resilience.telemetry.metric_catalog import BUCKETS

NAME = "attempt_duration_seconds"
LABELS = ("dependency", "outcome")
EXACT = [bound for bound in BUCKETS if bound % 0.25 == 0]  # sums of these know no rounding
MANY = 3 * fast_histogram._BATCH


def collector() -> FastHistogramCollector:
    return FastHistogramCollector(NAME, "Seconds.", LABELS, BUCKETS)


def counted(histogram: FastHistogram) -> int:
    cumulated, _ = histogram.read()
    return cumulated[-1][0]


def without_times(text: bytes) -> list[str]:
    """A scrape without the times at which its series began."""
    return [line for line in text.decode().splitlines() if "_created{" not in line]


def test_a_scrape_is_that_of_prometheus_clients_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    own = collector()
    ours.register(own)
    other = Histogram(NAME, "Seconds.", LABELS, buckets=BUCKETS, registry=theirs)
    chance = random.Random(7)
    for labels in (("llm", "success"), ("llm", "fatal")):
        for _ in range(MANY):
            seconds = chance.choice((chance.choice(EXACT), chance.randrange(1024) / 2))
            own.labels(*labels).observe(seconds)
            other.labels(*labels).observe(seconds)
    assert without_times(generate_latest(ours)) == without_times(generate_latest(theirs))
    assert generate_latest(ours).count(b"_created{") == generate_latest(theirs).count(b"_created{")


@pytest.fixture
def without_created() -> Iterator[None]:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    yield
    enable_created_metrics()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("without_created")
def test_created_samples_follow_prometheus_clients_switch() -> None:
    registry, own = CollectorRegistry(), collector()
    registry.register(own)
    own.labels("llm", "success").observe(1.0)
    assert b"_created" not in generate_latest(registry)


def test_a_duration_beyond_all_bounds_is_in_the_infinity_bucket() -> None:
    histogram = FastHistogram(BUCKETS)
    histogram.observe(1e9)
    histogram.observe(math.inf)
    cumulated, total = histogram.read()
    assert [count for count, _ in cumulated] == [0] * len(BUCKETS) + [2]
    assert total == math.inf


def test_pending_durations_are_bounded() -> None:
    histogram = FastHistogram(BUCKETS)
    most = 0
    for _ in range(MANY + 1):
        histogram.observe(0.1)
        most = max(most, len(histogram.pending))
    assert most < fast_histogram._BATCH
    assert counted(histogram) == MANY + 1


def test_observe_does_not_wait_for_a_running_flush() -> None:
    histogram = FastHistogram(BUCKETS)
    with histogram._flushing:
        for _ in range(MANY):
            histogram.observe(0.1)
        assert len(histogram.pending) == MANY
    histogram.observe(0.1)
    assert histogram.pending == []
    assert counted(histogram) == MANY + 1


class Racing(list[float]):
    """Another thread adds one as soon as the first are taken out."""

    def __getitem__(self, key: Any) -> Any:
        taken = super().__getitem__(key)
        self.append(0.5)
        return taken


def test_a_flush_keeps_durations_appended_meanwhile() -> None:
    histogram = FastHistogram(BUCKETS)
    histogram.pending = Racing([0.1, 0.2])
    histogram.flush()
    assert list(histogram.pending) == [0.5]
    histogram.pending = list(histogram.pending)
    assert counted(histogram) == 3


@pytest.mark.no_cover
def test_no_duration_is_lost_between_threads_and_scrapes() -> None:
    histogram, threads, each = FastHistogram(BUCKETS), 4, 100_000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def observe() -> None:
        for _ in range(each):
            histogram.observe(0.5)

    try:
        workers = [threading.Thread(target=observe) for _ in range(threads)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            histogram.read()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert counted(histogram) == threads * each
    assert histogram.read()[1] == threads * each * 0.5


def test_an_exemplar_is_at_its_bucket_and_a_too_long_one_is_dropped() -> None:
    histogram = FastHistogram((1.0, 2.0))
    histogram.observe(1.5, {"trace_id": "4bf92f35"})
    histogram.observe(0.5, {"trace_id": "a" * 200})
    first, second, last = (exemplar for _, exemplar in histogram.read()[0])
    assert (first, last) == (None, None)
    assert second is not None
    assert (second.labels, second.value) == ({"trace_id": "4bf92f35"}, 1.5)
