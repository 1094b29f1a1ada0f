"""Prints what many workers ask of one Redis."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from rich.console import Console

from benchmarks.cluster_model import measure
from benchmarks.cluster_model.tables import as_tables, costs_in_words


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_model")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each measurement")
    parser.add_argument("--commands", type=int, default=100, help="of each connection")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    logging.disable()
    figures = measure(options.workers, options.seconds, options.commands)
    console = Console()
    console.print(costs_in_words(figures))
    for table in as_tables(figures):
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
