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

from lightrag_resilience.telemetry import fast_histogram as _tally
from lightrag_resilience.telemetry.fast_histogram import FastHistogram, FastHistogramCollector
from lightrag_resilience.telemetry.metric_catalog import BUCKETS

NAME = "attempt_duration_seconds"
LABELS = ("dependency", "outcome")
EXACT = [bound for bound in BUCKETS if bound % 0.25 == 0]  # sums of these know no rounding
MANY = 3 * _tally._MANY


def tallies() -> FastHistogramCollector:
    return FastHistogramCollector(NAME, "Seconds.", LABELS, BUCKETS)


def counted(tally: FastHistogram) -> int:
    cumulated, _ = tally.read()
    return cumulated[-1][0]


def without_times(text: bytes) -> list[str]:
    """A scrape without the times at which its series began."""
    return [line for line in text.decode().splitlines() if "_created{" not in line]


def test_a_scrape_is_that_of_prometheus_clients_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    own = tallies()
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
def test_it_is_not_told_since_when_a_series_is_there_where_nobody_wants_it() -> None:
    registry, own = CollectorRegistry(), tallies()
    registry.register(own)
    own.labels("llm", "success").observe(1.0)
    assert b"_created" not in generate_latest(registry)


def test_a_duration_beyond_all_bounds_is_in_the_last_bucket() -> None:
    tally = FastHistogram(BUCKETS)
    tally.observe(1e9)
    tally.observe(math.inf)
    cumulated, total = tally.read()
    assert [count for count, _ in cumulated] == [0] * len(BUCKETS) + [2]
    assert total == math.inf


def test_few_durations_wait_to_be_put_into_buckets() -> None:
    tally = FastHistogram(BUCKETS)
    most = 0
    for _ in range(MANY + 1):
        tally.observe(0.1)
        most = max(most, len(tally.waiting))
    assert most < _tally._MANY
    assert counted(tally) == MANY + 1


def test_while_another_folds_a_duration_waits() -> None:
    tally = FastHistogram(BUCKETS)
    with tally._flushing:
        for _ in range(MANY):
            tally.observe(0.1)
        assert len(tally.waiting) == MANY
    tally.observe(0.1)
    assert tally.waiting == []
    assert counted(tally) == MANY + 1


class Racing(list[float]):
    """Another thread adds one as soon as the first are taken out."""

    def __getitem__(self, key: Any) -> Any:
        taken = super().__getitem__(key)
        self.append(0.5)
        return taken


def test_what_is_added_while_others_are_taken_out_is_kept() -> None:
    tally = FastHistogram(BUCKETS)
    tally.waiting = Racing([0.1, 0.2])
    tally.flush()
    assert list(tally.waiting) == [0.5]
    tally.waiting = list(tally.waiting)
    assert counted(tally) == 3


def test_no_duration_is_lost_between_threads_and_scrapes() -> None:
    tally, threads, each = FastHistogram(BUCKETS), 4, 100_000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def observe() -> None:
        for _ in range(each):
            tally.observe(0.5)

    try:
        workers = [threading.Thread(target=observe) for _ in range(threads)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            tally.read()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert counted(tally) == threads * each
    assert tally.read()[1] == threads * each * 0.5


def test_an_exemplar_stands_at_its_bucket_and_a_longer_one_than_may_be_nowhere() -> None:
    tally = FastHistogram((1.0, 2.0))
    tally.observe(1.5, {"trace_id": "4bf92f35"})
    tally.observe(0.5, {"trace_id": "a" * 200})
    first, second, last = (exemplar for _, exemplar in tally.read()[0])
    assert (first, last) == (None, None)
    assert second is not None
    assert (second.labels, second.value) == ({"trace_id": "4bf92f35"}, 1.5)
