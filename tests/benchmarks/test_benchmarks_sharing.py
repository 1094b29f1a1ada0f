"""The benchmark of sharing runs from the root of the repository, and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("rich")
from support.paths import ROOT

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a smoke run prints, and what it writes."""
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    options = ["-X", "utf8", "-m", "benchmarks.sharing", "--smoke", "--json", str(file)]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *options], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())["results"]


def test_each_figure_stands_beside_its_goal(run: tuple[str, dict[str, Any]]) -> None:
    for goal in ("p99 ≤ 5 ms", "≤ 30", "≤ 1.10", "≥ 95 %", "≤ 1 ms more", "≤ 2 s", "≤ 10 MB"):
        assert goal in run[0]


def test_what_does_not_depend_on_speed_is_as_it_shall_be(run: tuple[str, dict[str, Any]]) -> None:
    figures = run[1]
    assert figures["probes"] == [3]
    assert figures["closed calls"]["scripts"] <= figures["closed calls"]["batches"]
    for kind in ("killed", "hung"):
        outage = figures["outages"][kind]
        assert (outage["wrong"], outage["leaked"]) == (0, 0)
        assert outage["calls"]["samples"] > 100


def test_limits_of_requests_and_of_tokens_are_measured(run: tuple[str, dict[str, Any]]) -> None:
    limits = run[1]["limits"]
    assert set(limits) == {"requests", "tokens"}
    for accuracy in limits.values():
        assert 0 < accuracy["worst"] < 1.3
        assert accuracy["used"] > 0
        assert accuracy["round_trips"] > 0
        assert accuracy["calls"] > 0


def test_all_times_are_measured(run: tuple[str, dict[str, Any]]) -> None:
    figures = run[1]
    spreads = [figures["propagation"], figures["outages"]["well"], *figures["loop lag"].values()]
    for spread in spreads:
        assert 0 < spread["p50"] <= spread["p99"] <= spread["most"]
    assert set(figures["costs"]) == {"happy", "refused", "failing"}
    assert figures["bytes"]["bytes"] > 0
    assert figures["round trips"]["per 1000 calls"] > 0
