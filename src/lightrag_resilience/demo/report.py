"""The demo's results: as JSON for machines, as a table for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from .experiments import Experiment, Scale
from .measurements import Measured
from .workers import Cluster

__all__ = ["Result", "as_json", "as_table", "workers_table"]

Result = dict[str, tuple[Measured, Measured]]
"""For each experiment's name: unprotected, protected."""


def as_json(result: Result, *, seed: int, scale: Scale, took: float) -> dict[str, Any]:
    """Everything that was measured, with the timelines; durations are seconds."""
    return {
        "seed": seed,
        "scale": asdict(scale),
        "took": round(took, 1),
        "experiments": {
            name: {"unprotected": _figures(plain), "protected": _figures(protected)}
            for name, (plain, protected) in result.items()
        },
    }


def _figures(measured: Measured) -> dict[str, Any]:
    return asdict(measured) | {
        "processed_documents": measured.processed,
        "failed_documents": measured.failed_documents,
    }


def as_table(experiments: tuple[Experiment, ...], result: Result) -> Table:
    """Unprotected and protected side by side."""
    table = Table(title="LightRAG through trouble", title_justify="left", show_lines=False)
    table.add_column("")
    table.add_column("unprotected", justify="right")
    table.add_column("protected", justify="right")
    for experiment in experiments:
        plain, protected = result[experiment.name]
        table.add_section()
        table.add_row(f"[bold]{experiment.title}[/]", "", "")
        for (label, left), (_, right) in zip(_rows(plain), _rows(protected), strict=True):
            if left or right:
                table.add_row(f"  {label}", left or "-", right or "-")
    return table


def _rows(measured: Measured) -> list[tuple[str, str]]:
    total = sum(measured.documents.values())
    asked = bool(measured.queries)
    return [
        ("documents processed", f"{measured.processed} of {total}"),
        ("documents failed for good", str(measured.failed_documents)),
        ("queries answered", str(measured.answered) if asked else ""),
        ("queries refused with a clear error", str(measured.refused) if asked else ""),
        ("queries silently empty", str(measured.empty) if asked else ""),
        ("queries failed otherwise", str(measured.failed) if measured.failed else ""),
        ("HTTP calls made", str(measured.http_calls)),
        ("query p50", _seconds(measured.query_p50)),
        ("query p95", _seconds(measured.query_p95)),
        ("recovery to first answer", _seconds(measured.recovery)),
        ("one more query fails after", _seconds(measured.refusal)),
        ("  with retry_after", _seconds(measured.refusal_retry_after)),
        ("the whole took", _seconds(measured.took)),
    ]


def workers_table(number: int, local: Cluster, shared: Cluster) -> Table:
    """Workers with breakers of their own, and with a shared one, side by side."""
    table = Table(title=f"{number} workers while the provider is down", title_justify="left")
    table.add_column("")
    table.add_column("own breakers", justify="right")
    table.add_column("shared through Redis", justify="right")
    for label, show in _CLUSTER_ROWS:
        table.add_row(label, show(local), show(shared))
    return table


_CLUSTER_ROWS: tuple[tuple[str, Callable[[Cluster], str]], ...] = (
    ("the first worker rejects after", lambda run: _seconds(run.noticed) or "-"),
    ("all others reject later by", lambda run: _seconds(run.all_reject) or "-"),
    ("HTTP calls to the dead provider", lambda run: str(run.calls)),
    ("calls rejected at once", lambda run: str(run.rejected)),
    ("probes until recovery", lambda run: str(run.probes)),
    ("recovery of the last worker", lambda run: _seconds(run.recovery) or "-"),
)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 0.001:  # noqa: PLR2004
        return "< 1 ms"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
