"""LightRAG alone beside a protected one, through brownouts, outages and hangs.

``python -m benchmarks.never_worse [--seeds 1-3] [--rows brownout,dead-503] [--json FILE]``

Both run at the same time with the same seeds, each in a process of its own. Exits with 1 if a goal
is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.never_worse.goals import Verdict
from benchmarks.never_worse.rows import ROWS, Row
from lightrag_resilience.testing.command_process import CommandedProcess, request_all

PLACES = 6  # scripts at once in each process: they mostly wait
_POLL = 0.2  # seconds

Pair = tuple[dict[str, Any], dict[str, Any]]
Job = tuple[Row, int]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.never_worse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--seeds", type=_seeds, default=[1, 2, 3], help="1-3 (default), 2 or 1,4")
    parser.add_argument("--rows", type=_names, default=[], help=f"all by default: {names}")
    parser.add_argument("--places", type=int, default=PLACES, help="scripts at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    rows = [row for row in ROWS if row.is_chosen(options.rows)]
    if not rows:
        parser.error(f"no such row: {', '.join(options.rows)}; there are {names}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: dict[str, Any] = {}
    for row, pairs in run_all(rows, options.seeds, options.places):
        verdicts = list(row.judge([alone for alone, _ in pairs], [mine for _, mine in pairs]))
        console.print(as_table(row, options.seeds, pairs, verdicts))
        results[row.name] = {
            "title": row.title,
            "seeds": [
                {"seed": seed, "alone": alone, "protected": mine}
                for seed, (alone, mine) in zip(options.seeds, pairs, strict=True)
            ],
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    missed = [
        f"{name}: {verdict['figure']}"
        for name, result in results.items()
        for verdict in result["verdicts"]
        if verdict["met"] is False
    ]
    console.print(f"not met: {'; '.join(missed)}" if missed else "all goals are met")
    return int(bool(missed))


def run_all(
    rows: Sequence[Row], seeds: Sequence[int], places: int
) -> Iterator[tuple[Row, list[Pair]]]:
    """Run each row with each seed in both processes at the same time; a row as soon as it ended."""
    variables = {key: value for key, value in os.environ.items() if "RESILIENCE_" in key}
    waiting: list[Job] = [(row, seed) for row in rows for seed in seeds]
    running: dict[tuple[str, int], Job] = {}
    found: dict[tuple[str, int], list[Any]] = {}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                CommandedProcess(["-m", "benchmarks.never_worse.worker", kind], variables)
            )
            for kind in ("alone", "protected")
        ]
        request_all(processes, "finished")  # both have imported everything
        left = {row.name: len(seeds) for row in rows}
        while waiting or running:
            while waiting and _fits(waiting[0][0], running, places):
                row, seed = waiting.pop(0)
                running[row.name, seed] = row, seed
                request_all(processes, "prepare", row=row.name, seed=seed)
            request_all(processes, "go")
            time.sleep(_POLL)
            for index, finished in enumerate(request_all(processes, "finished")):
                for name, seed, figures in finished:
                    if "error" in figures:
                        raise RuntimeError(f"{name}, seed {seed}: {figures['error']}")
                    pair = found.setdefault((name, seed), [None, None])
                    pair[index] = figures
                    if None not in pair:
                        row, _ = running.pop((name, seed))
                        left[name] -= 1
                        if not left[name]:
                            yield row, [_pair(found[name, one]) for one in seeds]


def _pair(both: list[Any]) -> Pair:
    alone, mine = both
    return alone, mine


def _fits(row: Row, running: dict[tuple[str, int], Job], places: int) -> bool:
    return not running or sum(job[0].load for job in running.values()) + row.load <= places


def as_table(
    row: Row, seeds: Sequence[int], pairs: Sequence[Pair], verdicts: Sequence[Verdict]
) -> Table:
    """Each figure of both, seed by seed and over all seeds, and whether the goal is met."""
    table = Table(title=f"{row.name}: {row.title}", title_justify="left")
    for heading in ("figure", "alone", "protected", "goal", "met"):
        table.add_column(heading)
    shown = [key for key, value in pairs[0][0].items() if not isinstance(value, list)]
    for key in shown:
        each = [[_text(figures[key]) for figures in side] for side in zip(*pairs, strict=True)]
        table.add_row(f"[dim]{key}, seeds {_span(seeds)}", *map("  ".join, each), "", "")
    table.add_section()
    for one in verdicts:
        met = {True: "[green]met", False: "[red]NOT MET", None: "-"}[one.met]
        table.add_row(one.figure, _text(one.alone), _text(one.protected), one.goal, met)
    return table


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _span(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


if __name__ == "__main__":
    sys.exit(main())
