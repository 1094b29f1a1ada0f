"""How all attempts of the last seconds ended, by status and error class.

This includes failures that no breaker counts: with 401 to every call the breaker stays closed, and
still no caller is served. No clock and no lock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["MOST_CAUSES", "OTHER", "OutcomeCounts", "Outcomes", "are_over", "condition_of", "short"]

_SLICES = 10
_KEPT = 600.0  # seconds after the last attempt; the Lua scripts keep as long
MOST_CAUSES: Final = 8
OTHER: Final = "other"
_FEW = 3  # failures before a verdict
_ENOUGH = 10  # calls before a share of failures means anything
_SOME, _MOST = 0.1, 0.5  # shares of failed calls: degraded, failing
_CHANCE = math.log(0.001)  # probability below which a run of successes is no accident


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """How recent attempts ended.

    Attributes:
        calls: Number of attempts.
        failed: How many of them failed.
        causes: Failures by cause, such as ``HTTP 401``; at most nine causes.
        run: Successes since the last failure.
        last: The symptom of the last failure, such as ``HTTP 401 (AuthenticationError)``.
        uncounted: Failures that no breaker counts.
    """

    calls: int = 0
    failed: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    run: int = 0
    last: str = ""
    uncounted: int = 0

    @property
    def condition(self) -> str:
        """``healthy``, ``degraded`` or ``failing``; see `condition_of`."""
        return condition_of(self.calls, self.failed, self.run)


def condition_of(calls: int, failed: int, run: int) -> str:
    """Whether callers are served, by how attempts ended: ``healthy``, ``degraded`` or ``failing``.

    Args:
        calls: Number of attempts.
        failed: How many of them failed.
        run: Successes since the last failure.
    """
    if failed < _FEW or failed < _SOME * calls or are_over(calls, failed, run):
        return "healthy"
    if failed >= _MOST * calls:
        return "failing"
    return "degraded" if calls >= _ENOUGH else "healthy"


def are_over(calls: int, failed: int, run: int) -> bool:
    """Whether so long a run of successes shows that the failures before it are over.

    It does if its probability is below 0.1 % at the rate of failures before it: 3 successes after
    failures alone, 10 where every other call failed.

    Args:
        calls: Number of calls.
        failed: How many of them failed.
        run: Successes since the last failure.
    """
    if run < _FEW:
        return False
    before = max(calls - run, failed)
    return failed in {0, before} or run * math.log(1.0 - failed / before) <= _CHANCE


def short(symptom: str) -> str:
    """A symptom without its error class: ``HTTP 401`` of ``HTTP 401 (AuthenticationError)``."""
    return symptom.partition(" (")[0]


class _Slice:
    __slots__ = ("calls", "number", "symptoms", "uncounted")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = self.uncounted = 0
        self.symptoms: dict[str, int] = {}


class Outcomes:
    """Attempts of the last seconds that had any, from the first failure on.

    Nothing is forgotten while no attempt is made: the newest outcomes are what the next caller has
    to expect.

    Args:
        seconds: How long an attempt is remembered, to a tenth.
    """

    __slots__ = ("_last", "_slice", "_slices", "_until", "calls", "failed", "run", "uncounted")

    def __init__(self, seconds: float) -> None:
        self._slice = seconds / _SLICES
        self._slices: deque[_Slice] = deque()
        self._until = -math.inf  # the end of the newest slice
        self._last = ""
        self.calls = self.failed = self.run = self.uncounted = 0

    def on_success(self, now: float) -> None:
        """Count a success."""
        self._present(now).calls += 1
        self.calls += 1
        self.run += 1

    def on_failure(self, now: float, symptom: str, *, counts: bool) -> None:
        """Count a failure; `counts` says whether the breaker counts it, too."""
        present = self._slices[-1] if now < self._until else self._present(now)
        self._last = symptom
        symptoms = present.symptoms
        if symptom not in symptoms and len(symptoms) >= MOST_CAUSES:
            symptom = OTHER
        symptoms[symptom] = symptoms.get(symptom, 0) + 1
        present.calls += 1
        self.calls += 1
        self.failed += 1
        self.run = 0
        if not counts:
            present.uncounted += 1
            self.uncounted += 1

    @property
    def condition(self) -> str:
        """As `OutcomeCounts.condition`, without making one."""
        return condition_of(self.calls, self.failed, self.run)

    @property
    def is_news(self) -> bool:
        """Whether callers are not served, and no trip of the breaker is about to publish it."""
        calls, failed = self.calls, self.failed
        # Few failures that the breaker counts may trip it within the next calls.
        is_certain = calls >= _ENOUGH or 2 * self.uncounted >= failed
        return is_certain and condition_of(calls, failed, self.run) != "healthy"

    @property
    def is_over(self) -> bool:
        """Whether enough calls succeeded since the last failure to forget the failures."""
        return self.failed >= _FEW and are_over(self.calls, self.failed, self.run)

    def is_stale(self, now: float) -> bool:
        """Whether the last attempt is more than ten minutes old."""
        return now > (self._slices[-1].number + 1) * self._slice + _KEPT

    def tally(self) -> OutcomeCounts:
        """The counts of all slices."""
        seen: Counter[str] = Counter()
        for each in self._slices:
            for symptom, count in each.symptoms.items():
                seen[short(symptom)] += count
        causes = dict(seen.most_common(MOST_CAUSES))
        if others := self.failed - sum(causes.values()):
            causes[OTHER] = causes.get(OTHER, 0) + others
        return OutcomeCounts(self.calls, self.failed, causes, self.run, self._last, self.uncounted)

    def _present(self, now: float) -> _Slice:
        """The slice of `now`, or the newest one where the clock stops or steps back."""
        slices, number = self._slices, int(now // self._slice)
        if not slices or slices[-1].number < number:
            while slices and slices[0].number <= number - _SLICES:
                self._forget(slices.popleft())
            slices.append(_Slice(number))
            self._until = (number + 1) * self._slice
        return slices[-1]

    def _forget(self, old: _Slice) -> None:
        self.calls -= old.calls
        self.uncounted -= old.uncounted
        self.failed -= sum(old.symptoms.values())
        self.run = min(self.run, self.calls)
