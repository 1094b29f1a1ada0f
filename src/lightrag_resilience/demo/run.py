"""Runs all experiments at once, protected and not, and shows what happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from .comparison import compare
from .experiments import EXPERIMENTS, Progress, Scale
from .live_view import live_table
from .measurements import Measured
from .outage_chart import Chart, draw
from .report import Clusters, Result, as_json, as_table, workers_table
from .workers import compare_workers

__all__ = ["compare_clusters", "run_demo"]

_REFRESH = 0.5  # seconds


def run_demo(  # noqa: PLR0913 - each is an option of the command
    *, seed: int, scale: Scale, workers: int, output: Path, quiet: bool, console: Console
) -> dict[str, Any]:
    """Run the demo; writes ``demo.json`` and ``demo.svg`` into `output`.

    Args:
        seed: Of the providers' faults: the same seed fails the same calls.
        scale: How large the experiments are.
        workers: Processes that share a breaker; 0 leaves them out.
        output: Folder for the results.
        quiet: Whether to leave the live view and the table out.
        console: Where to show them.
    """
    started = time.monotonic()
    all_progress = {
        (e.name, protected): Progress() for e in EXPERIMENTS for protected in (False, True)
    }
    with _silence(), _live(quiet, console, all_progress, started) as refresh:
        result, clusters = asyncio.run(_run_all(seed, scale, workers, all_progress, refresh))
    report = as_json(
        result,
        seed=seed,
        scale=scale,
        took=time.monotonic() - started,
        workers=workers,
        clusters=clusters,
    )
    (output / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / "demo.svg").write_text(draw(list(_charts(result, scale))))
    if not quiet:
        console.print(as_table(result))
        if clusters:
            console.print(workers_table(workers, *clusters))
        console.print(f"Took {report['took']} s. Figures and picture: {output}/demo.json, demo.svg")
    return report


def _charts(result: Result, scale: Scale) -> Iterator[Chart]:
    for experiment in EXPERIMENTS:
        if experiment.trouble is not None:
            alone, protected = result[experiment.name]
            yield Chart(
                title=experiment.title,
                alone=alone,
                protected=protected,
                trouble=experiment.trouble(scale),
                rows=list(compare(experiment.figures, alone, protected)),
            )


async def _run_all(
    seed: int,
    scale: Scale,
    workers: int,
    all_progress: dict[tuple[str, bool], Progress],
    refresh: Callable[[], None],
) -> tuple[Result, Clusters]:
    async def show() -> None:
        while True:
            refresh()
            await asyncio.sleep(_REFRESH)

    runs: dict[tuple[str, bool], asyncio.Task[Measured]] = {}
    showing = asyncio.create_task(show())
    try:
        async with asyncio.TaskGroup() as group:
            for experiment in EXPERIMENTS:
                for protected in (False, True):
                    progress = all_progress[experiment.name, protected]
                    runs[experiment.name, protected] = group.create_task(
                        experiment.run(
                            protected=protected, seed=seed, scale=scale, progress=progress
                        )
                    )
            # Their processes would disturb what is timed by the second; the others mostly wait.
            await asyncio.wait(
                [runs[e.name, side] for e in EXPERIMENTS if e.trouble for side in (False, True)]
            )
            clusters = await compare_clusters(workers) if workers else None
    finally:
        showing.cancel()
    return {
        e.name: (runs[e.name, False].result(), runs[e.name, True].result()) for e in EXPERIMENTS
    }, clusters


async def compare_clusters(number: int) -> Clusters:
    """Workers with breakers of their own and with a shared one; None where no server is."""
    try:
        return await compare_workers(number)
    except ImportError as error:
        Console(stderr=True).print(f"The workers are left out: {error}")
        return None


@contextlib.contextmanager
def _live(
    quiet: bool,  # noqa: FBT001 - private, and called in one place
    console: Console,
    all_progress: dict[tuple[str, bool], Progress],
    started: float,
) -> Iterator[Callable[[], None]]:
    if quiet:
        yield lambda: None
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield lambda: live.update(live_table(EXPERIMENTS, all_progress, started), refresh=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """LightRAG and its clients log each call and each failure; the demo shows them in its way."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        gc.collect()  # what tasks left behind is reported now or never
        logging.disable(before)
