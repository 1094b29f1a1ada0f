"""The acceptance compares a protected LightRAG with one alone, and says where it is the worse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("lightrag")
from benchmarks.never_worse import goals

from support.paths import ROOT

pytestmark = pytest.mark.once


def figures(
    answered: int, *, empty: int = 0, p50: float = 1.0, calls: int = 50
) -> dict[str, float]:
    return {"answered": answered, "empty": empty, "p50": p50, "p95": 2 * p50, "calls": calls}


def missed(alone: list[dict[str, float]], protected: list[dict[str, float]]) -> set[str]:
    return {one.figure for one in goals.brownout(alone, protected) if not one.met}


def test_a_protected_one_that_answers_sooner_with_as_many_calls_meets_all_goals() -> None:
    alone = [figures(12, empty=2, p50=8.0), figures(13, empty=1, p50=9.0)]
    assert missed(alone, [figures(13), figures(14)]) == set()


def test_fewer_answers_than_alone_are_a_goal_missed_however_fast_they_are() -> None:
    assert missed([figures(13, p50=8.0)], [figures(3)]) == {
        "answered, all seeds",
        "answered of 14, median",
    }


def test_an_empty_answer_and_a_slow_one_and_calls_without_end_are_goals_missed() -> None:
    alone = [figures(13, p50=8.0)]
    assert missed(alone, [figures(13, empty=1)]) == {"silently empty"}
    assert missed(alone, [figures(14, p50=5.0)]) == {"p50, s, median"}
    assert missed(alone, [figures(14, calls=63)]) == {"HTTP calls"}


def test_a_row_runs_both_with_the_same_seed_and_prints_the_verdicts(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ["-m", "benchmarks.never_worse", "--rows", "hang-rerank", "--seeds", "3"]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-X", "utf8", *options, "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr  # a busy machine may miss a goal
    (row,) = json.loads(file.read_text()).values()
    (run,) = row["seeds"]
    assert run["seed"] == 3
    assert run["alone"]["answered"] == run["protected"]["answered"] == 1
    for verdict in row["verdicts"]:
        assert verdict["figure"] in done.stdout
