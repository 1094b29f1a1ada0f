"""The benchmarks run from the root of the repository, and measure something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

ROOT = Path(__file__).parents[1]
CASES = {"happy", "refused", "failing", "throughput", "memory", "imports"}


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


def test_a_run_has_figures_above_zero_for_every_case(run: tuple[str, dict[str, Any]]) -> None:
    cases = run[1]["cases"]

    assert set(cases) == CASES
    for figures in cases.values():
        assert {"ours", "composed by hand"} <= set(figures)
        assert all(figure["median"] > 0 for figure in figures.values())


def test_a_run_says_where_it_was_made(run: tuple[str, dict[str, Any]]) -> None:
    assert run[1]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert run[1]["platform"]
    assert run[1]["cpus"] >= 1
