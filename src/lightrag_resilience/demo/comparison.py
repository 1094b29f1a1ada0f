"""One figure of two runs side by side, and the verdict of the second beside the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Generic, TypeVar

__all__ = ["Figure", "Kind", "Row", "Verdict", "compare"]

T = TypeVar("T")


class Verdict(StrEnum):
    """How the second run does beside the first."""

    BETTER = "better"
    EQUAL = "equal"
    WORSE = "worse"
    NONE = "-"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a figure is, and how far two of them lie apart by chance.

    Attributes:
        tolerance: In the figure's unit: less apart is equal.
        share: Of the first run's figure: less apart is equal.
        more_is_better: Whether the larger figure is the better one; None: neither is.
        is_time: Whether it is seconds.
    """

    tolerance: float = 0.0
    share: float = 0.0
    more_is_better: bool | None = False
    is_time: bool = False

    def judge(self, first: float | None, second: float | None) -> Verdict:
        """The verdict of the second. What never came took for ever."""
        if self.more_is_better is None:
            return Verdict.NONE
        if first == second:
            return Verdict.EQUAL
        first, second = (inf if value is None else value for value in (first, second))
        near = max(self.tolerance, self.share * first)
        if abs(second - first) <= near < inf:
            return Verdict.EQUAL
        return Verdict.BETTER if (second > first) is self.more_is_better else Verdict.WORSE

    def text(self, value: float | None) -> str:
        """The figure as people read it; durations with their unit."""
        if value is None:
            return "-" if self.more_is_better is None else "never"
        if not self.is_time:
            return f"{value:.3g}"
        if value < 0.001:  # noqa: PLR2004
            return "< 1 ms"
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


@dataclass(frozen=True, slots=True)
class Figure(Generic[T]):
    """A figure that every run has.

    Attributes:
        label: What it is.
        kind: How it is judged.
        of: Takes it from the run; None if it never came.
        total: Of how many it is; None if of none.
    """

    label: str
    kind: Kind
    of: Callable[[T], float | None]
    total: Callable[[T], int] | None = None

    def text(self, run: T) -> str:
        """As people read it."""
        text = self.kind.text(self.of(run))
        return text if self.total is None else f"{text} of {self.total(run)}"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both runs, as people read it, and the verdict of the second."""

    label: str
    first: str
    second: str
    verdict: Verdict


def compare(figures: Sequence[Figure[T]], first: T, second: T) -> Iterator[Row]:
    """A row for each figure that at least one run has."""
    for figure in figures:
        values = figure.of(first), figure.of(second)
        if values != (None, None):
            verdict = figure.kind.judge(*values)
            yield Row(figure.label, figure.text(first), figure.text(second), verdict)
