"""What protection must reach beside LightRAG alone, over all seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Runs = Sequence[dict[str, Any]]
"""The figures of one script, seed by seed."""


@dataclass(frozen=True)
class Verdict:
    """One figure of both, and whether it is as it must be; None where it cannot be judged."""

    figure: str
    alone: float | None
    protected: float | None
    goal: str
    met: bool | None


Judge = Callable[[Runs, Runs], Iterator[Verdict]]


def total(runs: Runs, key: str) -> float:
    return sum(run[key] for run in runs)


def middle(runs: Runs, key: str) -> float:
    return median(run[key] for run in runs)


def brownout(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    answered = middle(alone, "answered"), middle(protected, "answered")
    yield Verdict("answered of 14, median", *answered, "≥ 13", answered[1] >= 13)
    yield at_most("p50, s, median", middle(alone, "p50"), middle(protected, "p50"), 0.5)
    yield at_most("p95, s, median", middle(alone, "p95"), middle(protected, "p95"), 1.0)
    yield at_most("HTTP calls", total(alone, "calls"), total(protected, "calls"), 1.25)


def dead(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    yield from _first_answer(alone, protected, 1.0, 2.0)
    if protected[0]["calls_while_dead"] is not None:
        calls = total(alone, "calls_while_dead"), total(protected, "calls_while_dead")
        yield at_most("HTTP calls while dead", *calls, 0.7)
    calls = total(alone, "calls"), total(protected, "calls")
    yield Verdict("HTTP calls in all", *calls, "-", None)


def _queries(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    answered = total(alone, "answered"), total(protected, "answered")
    yield Verdict("answered, all seeds", *answered, "≥ alone", answered[1] >= answered[0])
    empty = total(alone, "empty"), total(protected, "empty")
    yield Verdict("silently empty", *empty, "0", empty[1] == 0)


def _first_answer(alone: Runs, protected: Runs, usual: float, worst: float) -> Iterator[Verdict]:
    key = "first_answer"
    medians = middle(alone, key), middle(protected, key)
    yield Verdict(
        "first answer after return, s, median", *medians, f"≤ {usual:g}", medians[1] <= usual
    )
    latest = max(run[key] for run in alone), max(run[key] for run in protected)
    yield Verdict("first answer after return, s, max", *latest, f"≤ {worst:g}", latest[1] <= worst)


def at_most(
    figure: str, alone: float, protected: float, share: float, tolerance: float = 0.0
) -> Verdict:
    """A figure may be so large a share of alone's, and a tolerance more."""
    text = "≤ alone" if share == 1.0 else f"≤ {share:g} of alone"
    if tolerance:
        text += f" + {tolerance:g}"
    return Verdict(figure, alone, protected, text, protected <= share * alone + tolerance)
