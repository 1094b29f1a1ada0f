"""The figures of the model as rows, which a terminal and a page both show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

__all__ = [
    "MEASURED",
    "SIMULATED",
    "as_tables",
    "costs_in_words",
    "measured_rows",
    "simulated_rows",
]

MEASURED = (
    "workers",
    "commands/s each, idle",
    "calling",
    "a core's share each, idle",
    "calling",
    "trip p50",
    "p99",
    "probes",
)
SIMULATED = ("workers", "", "commands/s", "one core", "trip: waits", "half", "all have it")


def measured_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each size that was measured."""
    for one in figures["measured"]:
        idle, busy, probes = one["idle"], one["busy"], one["probes"]
        yield (
            str(one["workers"]),
            f"{idle['commands']:.1f}",
            f"{busy['commands']:.1f}",
            f"{idle['worker_cpu']:.2%}",
            f"{busy['worker_cpu']:.2%}",
            f"{one['trip']['p50'] * 1e3:.1f} ms",
            f"{one['trip']['p99'] * 1e3:.1f} ms",
            f"{min(probes)} to {max(probes)} of 3",
        )


def simulated_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each size that was simulated."""
    for one in figures["simulated"]:
        times = [f"{one[key] * 1e3:.1f} ms" for key in ("waited", "p50", "last")]
        keeps_up = one["load"] < 1
        yield (
            f"{one['workers']:,}",
            "all call" if one["busy"] else "idle",
            f"{one['commands']:,.0f}",
            f"{one['load']:.0%}",
            *(times if keeps_up else ["-"] * 3),
        )


def costs_in_words(figures: dict[str, Any]) -> str:
    """What the server takes for each thing."""
    costs = {name: f"{seconds * 1e6:.1f} µs" for name, seconds in figures["costs"].items()}
    return (
        f"One core of the server takes {costs['poll']} for a poll of a breaker, "
        f"{costs['heartbeat']} for a heartbeat, {costs['report']} for a report, "
        f"{costs['delivery']} for one message to one worker."
    )


def as_tables(figures: dict[str, Any]) -> Iterator[Table]:
    """For a terminal."""
    for title, headings, rows in (
        ("Real workers on a real server, one breaker", MEASURED, measured_rows(figures)),
        ("Simulated from these costs, one Redis", SIMULATED, simulated_rows(figures)),
    ):
        table = Table(title=title)
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        yield table
