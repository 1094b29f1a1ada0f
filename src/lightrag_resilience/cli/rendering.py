"""The state of the cluster as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.health import Health
from lightrag_resilience.shared_state.cluster_view import Overview
from lightrag_resilience.shared_state.messages import Description
from lightrag_resilience.text import as_words, counted, is_isolation

__all__ = ["as_page"]

_COLUMNS = ("breaker", "state", "why", "calls", "failed", "slow", "workers", "next probe")
_NARROW = ("breaker", "state", "why", "failed")  # the sentences below have the rest
_WIDE = 120  # characters of a terminal that has room for all columns
_COLOURS = {"healthy": "green", "unmonitored": "", "degraded": "yellow", "probing": "yellow"}
_RED = "bold red"


def as_page(seen: Overview, width: int) -> Group:
    """Render the cluster for a terminal of `width` characters."""
    lines: list[Any] = []
    if seen.breakers:
        columns = _COLUMNS if width >= _WIDE else _NARROW
        table = Table(*(Column(name, no_wrap=name != "why") for name in columns))
        health = seen.health
        for name, it in seen.breakers.items():
            cells = _cells(name, it, health[name])
            if columns is _NARROW:
                cells["failed"] = Text(_failed_of_calls(it) if it.now.state is State.CLOSED else "")
            table.add_row(*(cells[column] for column in columns))
        lines.append(table)
    lines += [
        Text(f"{name} is {override.value} {override.reason}", "yellow")
        for name, override in seen.overrides.items()
    ]
    lines += [Text(line) for line in _sentences(seen)]
    return Group(*lines)


def _cells(name: str, it: Description, health: Health) -> dict[str, Text]:
    is_closed = it.now.state is State.CLOSED
    tally = it.tally
    counted = {
        "calls": str(tally.calls),
        "failed": _share(tally.failed, tally.calls),
        "slow": _share(it.slow, it.calls),
        "workers": str(it.workers),
    }
    return {
        "breaker": Text(name),
        "state": Text(it.now.state.value, _COLOURS.get(health.condition, _RED)),
        "why": Text(str(health) if is_closed and not health.is_well else it.now.reason),
        **{column: Text(shown if is_closed else "") for column, shown in counted.items()},
        "next probe": Text(_next_probe(it)),
    }


def _failed_of_calls(it: Description) -> str:
    return f"{it.tally.failed} of {it.tally.calls}"


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if part else "0"


def _next_probe(it: Description) -> str:
    if it.now.state is State.CLOSED:
        return ""
    if it.now.state is State.HALF_OPEN and it.probes:
        return f"{it.probes} in flight"
    if it.now.state is State.HALF_OPEN or not it.now.remaining:
        return "due"
    ends = "ends " if is_isolation(it.now.reason) else ""
    return f"{ends}in {as_words(it.now.remaining)}"


def _sentences(seen: Overview) -> list[str]:
    hosts = sorted({worker.host for worker in seen.workers})
    sentences = ["No worker has sent a heartbeat in the last ten seconds"]
    if hosts:
        sentences = [f"{counted(len(seen.workers), 'worker')} on {', '.join(hosts)}"]
    for worker in seen.workers:
        if worker.diverged:
            names = ", ".join(worker.diverged)
            sentences.append(f"Process {worker.pid} on {worker.host} rejects on its own: {names}")
    # Again in words: a narrow terminal makes the table hard to read.
    known, health = seen.breakers, seen.health
    sentences += [
        f"Not closed: {name}, {_in_words(known[name])}{_to_do(health[name])}"
        for name in seen.troubled
        if name in known
    ]
    unwell = [
        f"Not well: {health[name]}"
        for name in known
        if name not in seen.troubled and not health[name].is_well
    ]
    if not seen.troubled and not unwell:
        sentences.append(
            "All breakers are closed"
            if seen.breakers
            else "No breaker was used in the last ten minutes"
        )
    return sentences + unwell


def _to_do(health: Health) -> str:
    return f". To do: {health.advice}" if health.advice else ""


def _in_words(it: Description) -> str:
    lasted = "" if it.since is None else f" for {as_words(it.since)},"
    probe = _next_probe(it)
    if not probe.startswith("ends "):
        is_out = it.now.state is State.HALF_OPEN and it.probes
        probe = f"probes: {probe}" if is_out else f"next probe {probe}"
    return f"{it.now.state.value}{lasted} {it.now.reason}; {probe}"
