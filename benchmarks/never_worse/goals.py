"""What protection must reach beside LightRAG alone, over all seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_BUSY = 0.25  # seconds, beside those that the event loop was late

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


def each(runs: Runs, key: str) -> list[float]:
    return [run[key] for run in runs]


def total(runs: Runs, key: str) -> float:
    return sum(each(runs, key))


def most(runs: Runs, key: str) -> float:
    return max(each(runs, key))


def middle(runs: Runs, key: str) -> float:
    return median(each(runs, key))


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


def old_outage(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    asked = total(protected, "asked")
    refused = total(alone, "refused"), total(protected, "refused")
    yield Verdict(f"refused of {asked}", *refused, f"{asked}", refused[1] == asked)
    medians = most(alone, "p50"), most(protected, "p50")
    yield Verdict("until refused, s, median", *medians, "≤ 0.05", medians[1] <= 0.05)
    yield Verdict("slowest, s", most(alone, "slowest"), most(protected, "slowest"), "-", None)


def burst(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    calls = most(alone, "calls"), most(protected, "calls")
    yield Verdict("HTTP calls, most of a seed", *calls, "≤ 10", calls[1] <= 10)


def ingest(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    failed = total(alone, "failed"), total(protected, "failed")
    yield Verdict("failed documents", *failed, "0", failed[1] == 0)
    opened = total(protected, "opened")
    yield Verdict("breaker opens", None, opened, "0", opened == 0)
    calls = middle(alone, "calls_per_answer"), middle(protected, "calls_per_answer")
    yield Verdict("HTTP calls a logical call, median", *calls, "≤ 1.5", calls[1] <= 1.5)
    shares = [
        mine["processed_at"][count - 1] / theirs["processed_at"][count - 1]
        for theirs, mine in zip(alone, protected, strict=True)
        if 0 < (count := theirs["processed"]) <= mine["processed"]
    ]
    share = median(shares) if shares else None
    yield Verdict(
        "time for as many documents as alone processed, of alone's, median",
        1.0,
        share,
        "≤ 1",
        None if share is None else share <= 1,
    )


def slow(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    calls = most(alone, "calls"), most(protected, "calls")
    yield Verdict("calls to the slow model", *calls, "1", calls[1] == 1)
    yield no_later(alone, protected, "took")


def hang(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    yield no_later(alone, protected, "took")


def two_hosts(alone: Runs, protected: Runs) -> Iterator[Verdict]:
    yield from _queries(alone, protected)
    refused = total(alone, "refused"), total(protected, "refused")
    yield Verdict("refused by the well host's guard", *refused, "0", refused[1] == 0)
    yield no_later(alone, protected, "p95")
    calls = total(alone, "calls"), total(protected, "calls")
    yield at_most("chat calls to the well host", *calls, 1.0)


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
    latest = most(alone, key), most(protected, key)
    yield Verdict("first answer after return, s, max", *latest, f"≤ {worst:g}", latest[1] <= worst)


def no_later(alone: Runs, protected: Runs, key: str) -> Verdict:
    """As soon as alone, or by no more later than a busy machine explains."""
    busy = _BUSY + most(protected, "loop_lag")
    return at_most(f"{key}, s, median", middle(alone, key), middle(protected, key), 1.0, busy)


def at_most(
    figure: str, alone: float, protected: float, share: float, tolerance: float = 0.0
) -> Verdict:
    """A figure may be so large a share of alone's, and a tolerance more."""
    text = "≤ alone" if share == 1.0 else f"≤ {share:g} of alone"
    if tolerance:
        text += f" + {tolerance:g}"
    return Verdict(figure, alone, protected, text, protected <= share * alone + tolerance)
