"""What people see while the demo runs."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from .experiments import Experiment, Watch
from .measurements import ANSWERED, EMPTY, REFUSED

__all__ = ["live_table"]

_COLOURS = {"closed": "green", "open": "red", "half-open": "yellow"}


def live_table(
    experiments: tuple[Experiment, ...],
    watches: Mapping[tuple[str, bool], Watch],
    started: float,
) -> Table:
    """One line for each instance: calls made, queries ended, and the state of its circuits."""
    table = Table(title=f"{time.monotonic() - started:3.0f} s", title_justify="left")
    for heading in ("experiment", "LightRAG", "HTTP calls", "answered/refused/empty", "circuits"):
        table.add_column(heading)
    for experiment in experiments:
        for protected in (False, True):
            watch = watches[experiment.name, protected]
            queries = watch.queries
            counts = "/".join(str(queries.count(kind)) for kind in (ANSWERED, REFUSED, EMPTY))
            table.add_row(
                "" if protected else experiment.title,
                "protected" if protected else "unprotected",
                str(watch.rig.provider.count()) if watch.rig else "",
                counts if queries.asked else "",
                _circuits(watch),
            )
    return table


def _circuits(watch: Watch) -> Text:
    if watch.rig is None:
        return Text("done" if watch.done else "starting", style="dim")
    if watch.rig.guards is None:
        return Text("none", style="dim")
    text = Text()
    for guard in watch.rig.guards:
        state = guard.breaker.state.value
        text.append(f"{guard.name} ").append(f"{state}  ", style=_COLOURS[state])
    return text
