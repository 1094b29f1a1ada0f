"""From samples to figures: medians over rounds, their spread, and ratios to ours."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.measure import Samples

__all__ = ["BARE", "COMPOSED", "OURS", "Figure", "as_they_are", "costs", "rounded"]

BARE, OURS, COMPOSED = "bare", "ours", "composed by hand"


@dataclass(frozen=True, slots=True)
class Figure:
    """One stack in one case.

    Attributes:
        median: Over all rounds.
        least: The quietest round's.
        low: A quarter of the rounds were below.
        high: A quarter of the rounds were above.
        ratio: Median over the rounds of this stack's figure to ours in the same round.
    """

    median: float
    least: float
    low: float
    high: float
    ratio: float


def costs(samples: Samples) -> dict[str, Figure]:
    """Microseconds above the bare call of the same round; for the bare call, its own."""
    bare = samples[BARE]
    above = {
        name: [(own - base) * 1e6 for own, base in zip(values, bare, strict=True)]
        for name, values in samples.items()
    }
    above[BARE] = [value * 1e6 for value in bare]
    return as_they_are(above)


def as_they_are(samples: Samples) -> dict[str, Figure]:
    """The samples in their own unit."""
    return {name: _figure(values, samples[OURS]) for name, values in samples.items()}


def _figure(values: list[float], ours: list[float]) -> Figure:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    ratio = median(own / base for own, base in zip(values, ours, strict=True))
    return Figure(median(values), min(values), low, high, ratio)


def rounded(figures: Any) -> Any:
    """The same with four digits, which is more than noise leaves; for a file that is kept."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [rounded(value) for value in figures]
    return float(f"{figures:.4g}") if isinstance(figures, float) else figures
