"""Which faults are played, and what became of the queries: one row for each policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from .policies import ALONE, OURS, POLICIES, chance_of_opening, ours
from .world import Cell, Fault, Policy, simulate

__all__ = ["CHANCES", "OTHERS", "SHARES", "TUNINGS", "Row", "play_all"]

Row = dict[str, Any]

SHARES = (0.05, 0.3, 0.6, 0.8, 0.95, 1.0)
_LENGTHS, _RATES = (2, 20, 120), (0.1, 1, 10, 100)
_FAULTS = [Fault(share, seconds) for seconds in _LENGTHS for share in SHARES]
_DENSEST = 2000  # queries; 100 a second for 120 s show nothing that 10 a second do not
OTHERS = (
    *(Fault(share, seconds, "hangs") for share in (0.3, 1.0) for seconds in (20, 120)),
    Fault(0.6, 120, "slow"),
)
CHANCES = (1e-2, 1e-5, 1e-6, 1e-7)
TUNINGS: dict[str, Policy] = {
    "the defaults": ours(),
    "`QUERY__PATIENCE=0`": ours(patience=0.0),
    "`QUERY__PATIENCE=30`": ours(patience=30.0),
    "`QUERY__MAX_OUTAGE=600`": ours(max_outage=600.0),
    "`BREAKER__CONSECUTIVE_FAILURES=5`": ours(consecutive_failures=5),
    "`BREAKER__FAILURE_RATE=0.5`": ours(failure_rate=0.5),
    "`BREAKER__BACKGROUND_PROBE=false`": ours(background_probe=False),
}


def _row(table: str, name: str, fault: Fault, rate: float, cell: Cell, workers: int = 1) -> Row:  # noqa: PLR0913, PLR0917
    of = {"share": fault.share, "seconds": fault.seconds, "kind": fault.kind, "rate": rate}
    return {"table": table, "policy": name, **of, "workers": workers, **cell.figures}


def _policies() -> Iterator[Row]:
    cells = [(rate, fault) for rate in _RATES for fault in _FAULTS]
    cells = [(rate, fault) for rate, fault in cells if rate * fault.seconds <= _DENSEST]
    for rate, fault in [*cells, *((1, fault) for fault in OTHERS)]:
        for name, policy in POLICIES.items():
            yield _row("policies", name, fault, rate, simulate(policy, fault, rate))


def _workers() -> Iterator[Row]:
    for rate in (1, 10):
        for fault in _FAULTS:
            for name in (ALONE, OURS):
                cell = simulate(POLICIES[name], fault, rate, workers=4)
                yield _row("workers", name, fault, rate, cell, 4)


def _chances() -> Iterator[Row]:
    for chance in CHANCES:
        with chance_of_opening(chance):
            for fault in (Fault(share, 120) for share in SHARES[1:]):
                cell = simulate(POLICIES[OURS], fault, 1, queries=1200)
                yield _row("chances", f"{chance:g}", fault, 1, cell)


def _tunings() -> Iterator[Row]:
    for name, policy in TUNINGS.items():
        for fault in (Fault(0.6, 20), Fault(1.0, 20), Fault(1.0, 180)):
            yield _row("tunings", name, fault, 1, simulate(policy, fault, 1, queries=400))


def play_all() -> list[Row]:
    """Every row, the same each time on one version of Python."""
    logging.disable()
    try:
        return [*_policies(), *_workers(), *_chances(), *_tunings()]
    finally:
        logging.disable(logging.NOTSET)
