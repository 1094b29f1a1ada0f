"""Prints what became of the queries in each cell; ``--page`` writes docs/brownouts.md as well."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from .grid import Row, play_all
from .page import DOCS, files

_COLUMNS = ("answered", "p50", "p95", "in_vain", "calls", "trips", "first")


def _tables(rows: list[Row]) -> Iterator[Table]:
    for name in dict.fromkeys(row["table"] for row in rows):
        table = Table(title=name)
        for heading in ("workers", "rate", "fault", "policy", *_COLUMNS):
            table.add_column(heading, justify="right")
        for row in rows:
            if row["table"] == name:
                fault = f"{row['share']:.0%} {row['kind']} {row['seconds']} s"
                figures = ("-" if row[one] is None else f"{row[one]:.2f}" for one in _COLUMNS)
                table.add_row(
                    str(row["workers"]), f"{row['rate']:g}", fault, row["policy"], *figures
                )
        yield table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.brownout_model", description=__doc__
    )
    parser.add_argument("--page", action="store_true", help="write the page, figures and picture")
    options = parser.parse_args()
    rows = play_all()
    console = Console(width=140)
    for table in _tables(rows):
        console.print(table)
    if options.page:
        for name, text in files(rows).items():
            (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
