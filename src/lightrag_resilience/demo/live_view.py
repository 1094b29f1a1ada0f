"""The table that is shown while the demo runs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from .experiments import Experiment, Progress
from .measurements import ANSWERED, EMPTY, REFUSED

__all__ = ["live_table"]

_COLOURS = {"closed": "green", "open": "red", "half-open": "yellow"}


def live_table(
    experiments: tuple[Experiment, ...],
    all_progress: Mapping[tuple[str, bool], Progress],
    started: float,
) -> Table:
    """One line for each instance: calls made, queries ended, and the state of its circuits."""
    table = Table(title=f"{time.monotonic() - started:3.0f} s", title_justify="left")
    for heading in ("experiment", "LightRAG", "HTTP calls", "answered/refused/empty", "circuits"):
        table.add_column(heading)
    for experiment in experiments:
        for protected in (False, True):
            progress = all_progress[experiment.name, protected]
            queries = progress.queries
            counts = "/".join(str(queries.count(kind)) for kind in (ANSWERED, REFUSED, EMPTY))
            table.add_row(
                "" if protected else experiment.title,
                "protected" if protected else "alone",
                str(progress.rig.provider.count()) if progress.rig else "",
                counts if queries.asked else "",
                _circuits(progress),
            )
    return table


def _circuits(progress: Progress) -> Text:
    if progress.rig is None:
        return Text("done" if progress.done else "starting", style="dim")
    if progress.rig.guards is None:
        return Text("none", style="dim")
    text = Text()
    for guard in progress.rig.guards:
        state = guard.breaker.state.value
        text.append(f"{guard.name} ").append(f"{state}  ", style=_COLOURS[state])
    return text
