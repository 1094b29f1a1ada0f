"""The state of the cluster as people read it."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from ._circuit import State
from ._words import as_words, counted
from .shared.overview import Overview
from .shared.wire import Description

__all__ = ["as_page"]

_COLUMNS = ("breaker", "state", "why", "calls", "failed", "slow", "workers", "next probe")
_WHOLE = {"breaker", "state"}  # columns that are not broken where the terminal is narrow
_COLOURS = {State.CLOSED: "green", State.OPEN: "bold red", State.HALF_OPEN: "yellow"}


def as_page(seen: Overview) -> Group:
    """The cluster for a person."""
    lines: list[Any] = []
    if seen.breakers:
        table = Table(*(Column(name, no_wrap=name in _WHOLE) for name in _COLUMNS))
        for name, it in seen.breakers.items():
            table.add_row(Text(name), *_cells(it))
        lines.append(table)
    lines += [
        Text(f"{name} is {override.value} {override.reason}", "yellow")
        for name, override in seen.overrides.items()
    ]
    lines += [Text(line) for line in _sentences(seen)]
    return Group(*lines)


def _cells(it: Description) -> list[Text]:
    state = Text(it.now.state.value, _COLOURS[it.now.state])
    counted = ["", "", "", ""]
    if it.now.state is State.CLOSED:
        counted = [str(it.calls), _share(it.failed, it.calls), _share(it.slow, it.calls)]
        counted.append(str(it.workers))
    return [state, Text(it.now.reason), *map(Text, counted), Text(_next_probe(it))]


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if part else "0"


def _next_probe(it: Description) -> str:
    if it.now.state is State.OPEN:
        return f"in {as_words(it.now.remaining)}" if it.now.remaining else "with the next call"
    return f"{it.probes} under way" if it.now.state is State.HALF_OPEN else ""


def _sentences(seen: Overview) -> list[str]:
    hosts = sorted({worker.host for worker in seen.workers})
    said = ["No worker has shown itself in the last ten seconds"]
    if hosts:
        said = [f"{counted(len(seen.workers), 'worker')} on {', '.join(hosts)}"]
    for worker in seen.workers:
        if worker.alone:
            names = ", ".join(worker.alone)
            said.append(f"Process {worker.pid} on {worker.host} refuses by itself: {names}")
    # Once more in words: in a narrow terminal the table is hard to read.
    said += [f"Not closed: {name}, {_in_words(seen.breakers[name])}" for name in seen.troubled]
    if not seen.troubled:
        said.append("All breakers are closed" if seen.breakers else "No breaker was used lately")
    return said


def _in_words(it: Description) -> str:
    probe = _next_probe(it)
    probes = f"; next probe {probe}" if it.now.state is State.OPEN else f"; probes: {probe}"
    lasted = "" if it.since is None else f" for {as_words(it.since)},"
    return f"{it.now.state.value}{lasted} {it.now.reason}{probes}"
