"""The demo's results: as JSON for machines, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from .comparison import Row, Verdict, compare
from .experiments import EXPERIMENTS, Scale
from .figures import RULE, WORKERS
from .measurements import Measured
from .workers import Cluster

__all__ = ["Clusters", "Result", "as_json", "as_table", "workers_table"]

Result = dict[str, tuple[Measured, Measured]]
"""For each experiment's name: LightRAG alone, protected."""
Clusters = tuple[Cluster, Cluster] | None
"""Workers with breakers of their own, with a shared one; None without them."""

_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "bold red"}


def as_json(  # noqa: PLR0913 - what the report has
    result: Result,
    *,
    seed: int,
    scale: Scale,
    took: float,
    workers: int = 0,
    clusters: Clusters = None,
) -> dict[str, Any]:
    """Everything that was measured, with the timelines and verdicts; durations are seconds."""
    report: dict[str, Any] = {
        "seed": seed,
        "scale": asdict(scale),
        "took": round(took, 1),
        "rule": RULE,
        "experiments": {
            e.name: {
                "alone": _figures(result[e.name][0]),
                "protected": _figures(result[e.name][1]),
                "rows": _rows(compare(e.figures, *result[e.name]), "alone", "protected"),
            }
            for e in EXPERIMENTS
        },
    }
    if clusters:
        own, shared = clusters
        report["workers"] = {
            "number": workers,
            "own": asdict(own),
            "shared": asdict(shared),
            "rows": _rows(compare(WORKERS, own, shared), "own", "shared"),
        }
    return report


def _rows(rows: Iterable[Row], first: str, second: str) -> list[dict[str, str]]:
    return [
        {"row": row.label.strip(), first: row.first, second: row.second, "verdict": row.verdict}
        for row in rows
    ]


def _figures(measured: Measured) -> dict[str, Any]:
    return asdict(measured) | {
        "processed_documents": measured.processed,
        "failed_documents": measured.failed_documents,
    }


def as_table(result: Result) -> Table:
    """LightRAG alone and protected side by side, with a verdict for each row."""
    table = _table("LightRAG through trouble", "LightRAG alone", "protected")
    for experiment in EXPERIMENTS:
        table.add_section()
        table.add_row(f"[bold]{experiment.title}[/]")
        _add(table, compare(experiment.figures, *result[experiment.name]), "  ")
    return table


def workers_table(number: int, own: Cluster, shared: Cluster) -> Table:
    """Workers with breakers of their own, and with a shared one, side by side."""
    title = f"{number} workers while the provider is down"
    table = _table(title, "own breakers", "shared through Redis")
    _add(table, compare(WORKERS, own, shared), "")
    return table


def _table(title: str, first: str, second: str) -> Table:
    table = Table(title=title, title_justify="left", caption=RULE, caption_justify="left")
    table.add_column("")
    table.add_column(first, justify="right")
    table.add_column(second, justify="right")
    table.add_column("verdict")
    return table


def _add(table: Table, rows: Iterable[Row], indent: str) -> None:
    for row in rows:
        style = _STYLES.get(row.verdict, "")
        verdict = f"[{style}]{row.verdict}[/]" if style else row.verdict
        table.add_row(f"{indent}{row.label}", row.first, row.second, verdict)
