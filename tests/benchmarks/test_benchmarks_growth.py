"""How cost grows, and what is reckoned from it, where the arithmetic is known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("rich")

from benchmarks.cluster_model import measure
from benchmarks.cluster_model.costs import Costs
from benchmarks.cluster_model.model import capacity, load_of_a_worker
from benchmarks.cluster_model.simulation import simulate
from benchmarks.cluster_model.tables import as_tables
from benchmarks.growth import LINEAR, Curve, exponent
from benchmarks.soak import Soaked
from benchmarks.stacks import find_stacks

from benchmarks import interpreters
from support.paths import ROOT

pytestmark = pytest.mark.once
SIZES = [1, 10, 100, 1000, 10_000]
COSTS = Costs(poll=10e-6, heartbeat=30e-6, report=70e-6, delivery=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power: float) -> None:
    assert exponent(SIZES, [3e-6 * size**power for size in SIZES]) == pytest.approx(power)


def test_what_small_numbers_cost_does_not_count() -> None:
    together = [5e-3, 6e-3, *(3e-6 * size for size in SIZES[2:])]

    assert exponent(SIZES, together) == pytest.approx(1.0)


def test_a_quadratic_cost_is_worse_than_linear_and_a_flat_one_is_not() -> None:
    flat = Curve("calls", "µs each", SIZES, [2.0] * len(SIZES))
    growing = Curve("calls", "µs each", SIZES, [float(size) for size in SIZES])

    assert flat.exponent < LINEAR < growing.exponent


def test_an_idle_worker_polls_once_a_second_and_sends_a_heartbeat_every_third_time() -> None:
    commands, load = load_of_a_worker(COSTS, 1, busy=False)

    assert commands == pytest.approx(2.0)
    assert load == pytest.approx(10e-6 + 30e-6 / 3)


def test_a_busy_worker_reports_ten_times_a_second_for_each_breaker() -> None:
    commands, load = load_of_a_worker(COSTS, 3, busy=True)

    assert commands == pytest.approx(3 + 1 + 30)
    assert load == pytest.approx(3 * 10e-6 + 10e-6 + 30 * 70e-6)


def test_capacity_is_seventy_percent_of_a_core() -> None:
    found = capacity(COSTS, 1)

    assert found.idle == pytest.approx(0.7 / 20e-6, abs=1)
    assert found.busy == pytest.approx(0.7 / 720e-6, abs=1)


def test_in_a_simulation_a_trip_takes_longer_to_reach_more_workers() -> None:
    few, many = (simulate(number, COSTS, 1e-3, busy=False) for number in (100, 1000))

    assert few.last == pytest.approx(few.waited + 70e-6 + 1e-3 + 100e-6)
    assert many.last - many.waited == pytest.approx(70e-6 + 1e-3 + 1000e-6)
    assert few.p50 < few.last
    assert few.waited < 1e-3


def test_in_a_simulation_too_many_workers_overload_the_server() -> None:
    simulated = simulate(2000, COSTS, 1e-3, busy=True)

    assert simulated.load == pytest.approx(2000 * (20e-6 + 700e-6))
    assert simulated.waited > 0.5  # it is behind by three seconds of what was too much


@pytest.mark.processes
def test_real_workers_on_a_real_server_are_measured() -> None:
    figures = measure([4], seconds=0.5, commands=3)

    assert all(seconds >= 0 for seconds in figures["costs"].values())
    measured = figures["measured"][0]
    assert measured["probes"] == [3] * 5
    assert measured["busy"]["commands"] > 1
    assert 0 < measured["trip"]["p50"] <= measured["trip"]["p99"]
    assert len(list(as_tables(figures))) == 2


@pytest.mark.anyio
async def test_a_sample_of_one_interpreter_has_every_case() -> None:
    stacks, _ = find_stacks("plain")

    sample = await interpreters.sample(stacks, 2, 20, 20)

    assert set(sample) == {"happy", "refused", "failing", "throughput"}
    merged = interpreters.merged([sample, sample])
    assert merged["happy"]["ours"]["least"] == sample["happy"]["ours"]["least"]
    assert merged["throughput"]["ours"]["median"] == sample["throughput"]["ours"]["median"]


def test_a_soak_of_some_seconds_loses_no_task_and_meets_every_kind_of_end() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.07"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603

    assert not done.stderr
    result = json.loads(done.stdout.rpartition("\n}")[0] + "}")
    assert result["pending"] == 0
    assert result["outcomes"]["ok"] > 0
    assert result["outcomes"]["CircuitOpenError"] > 0
    assert (
        result["traced"][1] - result["traced"][0] < 5_000_000
    )  # what is slower takes minutes to see


@pytest.mark.parametrize(
    ("traced", "rss", "pending", "is_flat"),
    [
        ((10_000_000, 10_400_000), (100_000_000, 109_000_000), 0, True),
        ((10_000_000, 10_600_000), (100_000_000, 100_000_000), 0, False),
        ((10_000_000, 10_000_000), (100_000_000, 111_000_000), 0, False),
        ((10_000_000, 10_000_000), (100_000_000, 100_000_000), 1, False),
    ],
)
def test_memory_is_flat_within_bounds(
    traced: tuple[int, int], rss: tuple[int, int], pending: int, *, is_flat: bool
) -> None:
    assert Soaked(10.0, 1, {}, traced, rss, pending).is_flat is is_flat
