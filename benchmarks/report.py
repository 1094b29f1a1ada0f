"""The tables for people at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cluster_model.tables import as_tables, costs_in_words
from benchmarks.figures import BARE
from benchmarks.goals import goals
from benchmarks.growth import LINEAR
from benchmarks.sharing.__main__ import as_table

__all__ = ["print_all"]

Data = Mapping[str, Any]

_TIMES = "×"  # noqa: RUF001 - the sign of multiplication
_CALLS = {
    "happy": "happy path",
    "refused": "refused by an open breaker",
    "failing": "ValueError",
    "retried": "retried once",
}
_REST: dict[str, tuple[str, Callable[[float], str]]] = {
    "throughput": ("calls/s", lambda value: f"{value:,.0f}"),
    "memory": ("bytes a dependency", lambda value: f"{value:,.0f}"),
    "imports": ("ms to import", lambda value: f"{value * 1e3:,.0f}"),
}
_ITEMS = {"items of text": "text", "items of a model": "chunks of OpenAI"}


def print_all(console: Console, data: Data) -> None:
    """Every table for which there are figures; the goals last."""
    if "cases" in data:
        for table in (_costs(data["cases"]), _rest(data), _items(data["cases"])):
            console.print(table)
        console.print(
            "bare: what the call itself takes; of memory, a wrapper that does nothing; "
            "its import is asyncio's\n"
        )
    if data.get("sharing"):
        console.print(as_table(data["sharing"]))
    if data.get("growth"):
        console.print(_growth(data["growth"]))
    if data.get("ingests"):
        console.print(_ingests(data["ingests"]))
    for name, cases in data.get("interpreters", {}).items():
        console.print(_interpreter(name, cases))
    if data.get("cluster"):
        console.print(costs_in_words(data["cluster"]))
        for table in as_tables(data["cluster"]):
            console.print(table)
    if "cases" in data:
        console.print(_goals(data))


def _costs(cases: Data) -> Table:
    table = Table(title="µs of a call above the bare call: median (quartiles), ratio to ours")
    table.add_column("stack", no_wrap=True)
    for title in _CALLS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for stack in cases["happy"]:
        table.add_row(stack, *(_cost(stack, cases[case].get(stack)) for case in _CALLS))
    return table


def _rest(data: Data) -> Table:
    at_once = data["scale"]["at_once"]
    table = Table(
        title=f"{at_once:,} calls of 50 ms at once, memory, import: median, ratio to ours"
    )
    table.add_column("stack", no_wrap=True)
    for title, _ in _REST.values():
        table.add_column(title, justify="right", no_wrap=True)
    cases = {**data["cases"], "memory": data.get("memory", {})}
    for stack in cases["happy"]:
        cells = (_plain(cases[case].get(stack), show) for case, (_, show) in _REST.items())
        table.add_row(stack, *cells)
    return table


def _items(cases: Data) -> Table:
    table = Table(title="µs of an item of a stream, above a bare stream")
    table.add_column("items")
    for stack in cases["items of text"]:
        table.add_column(stack, justify="right")
    for case, title in _ITEMS.items():
        if case in cases:
            table.add_row(title, *(f"{figure['median']:.2f}" for figure in cases[case].values()))
    return table


def _growth(curves: list[Data]) -> Table:
    table = Table(title=f"What each costs when there are more; worse than linear from {LINEAR} on")
    table.add_column("of what")
    table.add_column("", no_wrap=True)
    sizes = max((curve["sizes"] for curve in curves), key=len)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    table.add_column("exponent", justify="right")
    for curve in curves:
        cells = [f"{cost:,.1f}" for cost in curve["costs"]]
        cells += [""] * (len(sizes) - len(cells))
        table.add_row(curve["what"], curve["unit"], *cells, f"{curve['exponent']:.2f}")
    return table


def _ingests(took: Mapping[str, list[float]]) -> Table:
    table = Table(title="A real LightRAG's ingest of 20 documents, with no fault")
    for title in ("", "fastest", "median"):
        table.add_column(title)
    for name, seconds in took.items():
        middle = sorted(seconds)[len(seconds) // 2]
        table.add_row(name, f"{min(seconds):.3f} s", f"{middle:.3f} s")
    return table


def _interpreter(name: str, cases: Data) -> Table:
    table = Table(title=f"Python {name}: µs above the bare call, quartile below")
    for title in ("stack", "happy path", "refused", "ValueError", "calls/s"):
        table.add_column(title, justify="right")
    for stack in cases["happy"]:
        costs = [f"{cases[case][stack]['low']:.2f}" for case in ("happy", "refused", "failing")]
        table.add_row(stack, *costs, f"{cases['throughput'][stack]['median']:,.0f}")
    return table


def _goals(data: Data) -> Table:
    table = Table(title="The goals of the design, judged by the lower quartile")
    for title in ("what", "goal", "ours", "", "peers in the same run"):
        table.add_column(title)
    for row in goals(data):
        met = {True: "[green]met", False: "[red]not met", None: ""}[row.is_met]
        table.add_row(row.what, row.goal, row.ours, met, row.peers)
    return table


def _cost(stack: str, figure: Data | None) -> str:
    if figure is None:
        return ""
    if stack == BARE:
        return f"[dim]{figure['median']:.2f}[/] {'':20}"
    spread = f"({figure['low']:.2f}–{figure['high']:.2f})"  # noqa: RUF001 - a range
    return f"{figure['median']:.2f} {spread:>14} [bold]{_TIMES}{figure['ratio']:<4.1f}[/]"


def _plain(figure: Data | None, show: Callable[[float], str]) -> str:
    if figure is None:
        return ""
    return f"{show(figure['median'])} {_TIMES}{figure['ratio']:<5.2f}"
