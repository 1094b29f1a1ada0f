"""How long files of tests take, as `scripts/slow-files` wrote it down."""

from __future__ import annotations

from pathlib import Path

from .paths import ROOT

LIST = ROOT / "tests/slow_files.txt"


def seconds_by_file() -> dict[Path, float]:
    """The files that take longest; a line is seconds and a path."""
    lines = (line.split() for line in LIST.read_text().splitlines())
    return {ROOT / path: float(seconds) for seconds, path in lines}
