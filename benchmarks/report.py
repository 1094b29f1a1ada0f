"""The tables for people, and the JSON for what compares runs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import BARE, Figure

__all__ = ["Results", "print_tables", "write_json"]

Results = Mapping[str, Mapping[str, Figure]]
"""By case, then by stack."""

_TIMES = "×"  # noqa: RUF001 - the sign of multiplication
_CALLS = {"happy": "happy path", "refused": "refused by an open breaker", "failing": "ValueError"}
_REST: dict[str, tuple[str, Callable[[float], str]]] = {
    "throughput": ("calls/s", lambda value: f"{value:,.0f}"),
    "memory": ("bytes a dependency", lambda value: f"{value:,.0f}"),
    "imports": ("ms to import", lambda value: f"{value * 1e3:,.0f}"),
}


def print_tables(console: Console, results: Results, at_once: int) -> None:
    """One table of what a call costs, and one of the rest; so many calls were made at once."""
    costs = Table(title="µs of a call above the bare call: median (quartiles), ratio to ours")
    costs.add_column("stack", no_wrap=True)
    rest = Table(title=f"{at_once:,} calls of 50 ms at once, memory, import: median, ratio to ours")
    rest.add_column("stack", no_wrap=True)
    for title in _CALLS.values():
        costs.add_column(title, justify="right", no_wrap=True)
    for title, _ in _REST.values():
        rest.add_column(title, justify="right", no_wrap=True)
    for stack in results["happy"]:
        costs.add_row(stack, *(_cost(stack, results[case][stack]) for case in _CALLS))
        rest.add_row(
            stack, *(_plain(results[case].get(stack), show) for case, (_, show) in _REST.items())
        )
    console.print(costs)
    console.print("bare: what the call itself takes; its import is asyncio's, which all need\n")
    console.print(rest)


def _cost(stack: str, figure: Figure) -> str:
    if stack == BARE:
        return f"[dim]{figure.median:.2f}[/] {'':20}"
    return f"{figure.median:.2f} {_spread(figure):>14} [bold]{_TIMES}{figure.ratio:<4.1f}[/]"


def _spread(figure: Figure) -> str:
    return f"({figure.low:.2f}–{figure.high:.2f})"  # noqa: RUF001 - a range


def _plain(figure: Figure | None, show: Callable[[float], str]) -> str:
    if figure is None:
        return ""
    return f"{show(figure.median)} {_TIMES}{figure.ratio:<5.2f}"


def write_json(path: Path, results: Results, scale: object) -> None:
    """All figures in their units: µs for costs, calls/s, bytes, and seconds for imports."""
    data = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "scale": scale,
        "cases": {
            case: {stack: asdict(figure) for stack, figure in figures.items()}
            for case, figures in results.items()
        },
    }
    path.write_text(json.dumps(data, indent=2) + "\n")
