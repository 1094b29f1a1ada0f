"""Verdicts of the demo."""

from __future__ import annotations

import pytest

from lightrag_resilience.demo.comparison import Figure, Kind, Row, Verdict, compare
from lightrag_resilience.demo.measurements import Measured

TIME = Kind(tolerance=2.0, share=0.25, is_time=True)
ANSWERS = Kind(tolerance=1, share=0.05, more_is_better=True)


@pytest.mark.parametrize(
    ("kind", "first", "second", "verdict"),
    [
        (TIME, 1.0, 3.0, "equal"),
        (TIME, 1.0, 3.1, "worse"),
        (TIME, 20.0, 25.0, "equal"),
        (TIME, 20.0, 25.1, "worse"),
        (TIME, 20.0, 14.9, "better"),
        (TIME, None, 30.0, "better"),
        (TIME, 30.0, None, "worse"),
        (TIME, None, None, "equal"),
        (ANSWERS, 11, 12, "equal"),
        (ANSWERS, 11, 13, "better"),
        (ANSWERS, 13, 11, "worse"),
        (Kind(), 0, 1, "worse"),
        (Kind(), 1, 0, "better"),
        (Kind(more_is_better=None), 0, 9, "-"),
    ],
)
def test_a_verdict_allows_for_noise(
    kind: Kind, first: float | None, second: float | None, verdict: str
) -> None:
    assert kind.judge(first, second) == verdict


def test_a_row_is_left_out_if_no_run_has_its_figure() -> None:
    figures: list[Figure[Measured]] = [
        Figure("recovery", TIME, lambda run: run.recovery),
        Figure("answered", ANSWERS, lambda run: run.answered, lambda _: 14),
    ]
    assert list(compare(figures, Measured(answered=9), Measured(answered=14))) == [
        Row("answered", "9 of 14", "14 of 14", Verdict.BETTER)
    ]
    recovery = next(compare(figures, Measured(), Measured(recovery=0.25)))
    assert recovery == Row("recovery", "never", "250 ms", Verdict.BETTER)
