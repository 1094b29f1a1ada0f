"""The benchmarks run from the root of the repository, and measure something."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("rich")
from support.paths import ROOT

pytestmark = pytest.mark.once
CASES = {
    "happy",
    "refused",
    "failing",
    "retried",
    "throughput",
    "items of text",
    "imports",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a smoke run prints, and what it writes."""
    file = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    command = [sys.executable, "-X", "utf8", "-m", "benchmarks", "--smoke", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_a_run_prints_a_row_for_ours_beside_the_bare_call(run: tuple[str, dict[str, Any]]) -> None:
    rows = [line.strip("│ ").split("│")[0].strip() for line in run[0].splitlines()]

    assert {"bare", "ours", "composed by hand"} <= set(rows)


def test_a_run_has_figures_for_every_case(run: tuple[str, dict[str, Any]]) -> None:
    cases = run[1]["cases"]

    assert set(cases) - {"items of a model"} == CASES
    for case, figures in cases.items():
        expected = {"ours"} if case.startswith("items") else {"ours", "composed by hand"}
        assert expected <= set(figures)
        for figure in figures.values():
            assert figure["least"] <= figure["low"] <= figure["median"] <= figure["high"]


def test_a_run_weighs_a_dependency_of_each_stack_above_a_bare_wrapper(
    run: tuple[str, dict[str, Any]],
) -> None:
    memory = run[1]["memory"]

    assert {"bare", "ours", "ours, guard.call", "composed by hand"} <= set(memory)
    for figure in memory.values():
        assert 100 < figure["median"] < 100_000


def test_a_run_prints_the_goals_of_the_design(run: tuple[str, dict[str, Any]]) -> None:
    for goal in ("≤ 1.5 µs", "≤ 0.8 µs", "≤ 3.5 µs", "≥ 73 %", "≤ 1024 bytes", "≤ 150 ms"):
        assert goal in run[0]


def test_a_run_follows_how_cost_grows(run: tuple[str, dict[str, Any]]) -> None:
    curves = run[1]["growth"]

    assert len(curves) == 7
    for curve in curves:
        assert curve["sizes"] == [1, 10, 100]
        assert all(cost > 0 for cost in curve["costs"])


def test_the_import_loads_no_extra(run: tuple[str, dict[str, Any]]) -> None:
    assert run[1]["extras"] == []


def test_a_run_says_where_it_was_made(run: tuple[str, dict[str, Any]]) -> None:
    machine = run[1]["machine"]

    assert machine["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert machine["kernel"]
    assert machine["cpus"] >= 1
