"""docs/brownouts.md and its picture, out of the rows that are kept beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.svg import Panel, shares

from .grid import CHANCES, OTHERS, SHARES, TUNINGS, Row
from .policies import ALONE, OURS, POLICIES

__all__ = ["DOCS", "FIGURES", "files", "kept", "pairs", "selected"]

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = "brownouts.json"
_PICTURE = "brownouts.svg"
_SHOWN = [(rate, seconds) for rate in (1, 10) for seconds in (20, 120)]
_TEXT = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")


def files(rows: Sequence[Row]) -> dict[str, str]:
    """The text of each file by its name."""
    lines = ",\n".join(json.dumps(list(row)) for row in (rows[0], *(row.values() for row in rows)))
    tables = {
        "policies": _policies(rows),
        "fewer": _fewer(rows),
        "chances": _chances(rows),
        "tunings": _tunings(rows),
    }
    return {
        FIGURES: f"[\n{lines}\n]\n",
        "brownouts.md": _TEXT.format(
            **{name: "\n".join(table) for name, table in tables.items()}, picture=_PICTURE
        ),
        _PICTURE: _picture(rows),
    }


def kept() -> list[Row]:
    """The rows that are kept beside the page."""
    names, *rows = json.loads((DOCS / FIGURES).read_text(encoding="utf-8"))
    return [dict(zip(names, row, strict=True)) for row in rows]


def selected(rows: Iterable[Row], **of: object) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in of.items())]


def _cell(row: Row) -> str:
    if not row["answered"]:
        return "0 %"
    return f"{_percent(row)}, {row['p50']:.1f} / {row['p95']:.1f} s, {row['calls']:.1f}"


def _percent(row: Row) -> str:
    return f"{row['answered']:.0%}".replace("%", " %")


def _table(headings: Sequence[str], cells: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(headings)
    yield _line(["---"] * len(headings))
    yield from map(_line, cells)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _what(row: Row) -> str:
    kind = {"errors": "fail", "hangs": "hang", "slow": "are slow"}[row["kind"]]
    return f"{row['share']:.0%} {kind} for {row['seconds']} s".replace("%", " %")


def _policies(rows: Sequence[Row]) -> Iterator[str]:
    played = selected(rows, table="policies")
    faults = [
        {"rate": rate, "seconds": seconds, "share": share, "kind": "errors"}
        for rate, seconds in _SHOWN
        for share in SHARES[1:]
    ]
    faults += [
        {"rate": 1, "seconds": one.seconds, "share": one.share, "kind": one.kind} for one in OTHERS
    ]
    lines = [{row["policy"]: row for row in selected(played, **fault)} for fault in faults]
    return _table(
        ["queries a second", "attempts", *POLICIES],
        (
            [
                f"{line[OURS]['rate']:g}",
                _what(line[OURS]),
                *(_cell(line[name]) for name in POLICIES),
            ]
            for line in lines
        ),
    )


def pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Alone beside ours, wherever both were played."""
    played = [row for row in rows if row["table"] in {"policies", "workers"}]
    names = ("table", "kind", "workers", "rate", "seconds", "share")
    alone = {tuple(row[one] for one in names): row for row in selected(played, policy=ALONE)}
    for row in selected(played, policy=OURS):
        yield alone[tuple(row[one] for one in names)], row


def _fewer(rows: Sequence[Row]) -> Iterator[str]:
    both = list(pairs(rows))
    worse = [(alone, ours) for alone, ours in both if ours["answered"] < alone["answered"]]
    yield (
        f"In {len(both) - len(worse)} of {len(both)} cells, those with four workers among them, "
        "at least as many queries are answered as by LightRAG alone. The others are these:\n"
    )
    yield from _table(
        ["queries a second", "workers", "attempts", ALONE, OURS],
        (
            [f"{ours['rate']:g}", str(ours["workers"]), _what(ours), _cell(alone), _cell(ours)]
            for alone, ours in worse
        ),
    )


def _chances(rows: Sequence[Row]) -> Iterator[str]:
    headings = [f"{share:.0%} fail".replace("%", " %") for share in SHARES[1:]]
    lines = [selected(rows, table="chances", policy=f"{chance:g}") for chance in CHANCES]
    return _table(
        ["chance", *headings],
        (
            [line[0]["policy"], *(f"{_percent(row)}, {row['trips']:.1f}" for row in line)]
            for line in lines
        ),
    )


def _tunings(rows: Sequence[Row]) -> Iterator[str]:
    lines = [selected(rows, table="tunings", policy=name) for name in TUNINGS]
    brownout, short, long = map(_what, lines[0])
    headings = (f"{brownout}: answered, p95", f"{short}: answered, p95", "first answer after it")
    return _table(
        ["`RESILIENCE_…`", *headings, f"{long}: answered, others fail after"],
        (
            [
                one["policy"],
                *(f"{_percent(row)}, {row['p95'] or 0:.1f} s" for row in (one, two)),
                f"{two['first']:.1f} s",
                f"{_percent(three)}, {three['in_vain']:.1f} s",
            ]
            for one, two, three in lines
        ),
    )


def _picture(rows: Sequence[Row]) -> str:
    labels = [f"{share:.0%}" for share in SHARES]
    panels = []
    for rate, seconds in _SHOWN:
        cells = selected(rows, table="policies", rate=rate, seconds=seconds, kind="errors")
        curves = {
            name: [row["answered"] for row in selected(cells, policy=name)] for name in POLICIES
        }
        often = "a query a second" if rate == 1 else f"{rate} queries a second"
        panels.append(Panel(f"{seconds} s, {often}", labels, curves))
    return shares("Queries answered, by the share of attempts that fail", panels)
