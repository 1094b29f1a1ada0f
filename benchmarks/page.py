"""docs/performance.md and its pictures, out of the figures that are kept beside them.

Measuring and writing are two things: ``python -m benchmarks.page`` writes the page anew from
``docs/performance.json``, or from another file, which then takes that one's place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import words
from benchmarks.figures import BARE
from benchmarks.svg import Bar, Line, bars, small_multiples

__all__ = ["DOCS", "FIGURES", "add", "files", "renew", "write"]

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = "performance.json"
_OURS = "ours"

Data = Mapping[str, Any]


def write(data: Data, folder: Path = DOCS) -> None:
    """The figures, the page and the pictures."""
    for name, text in files(data).items():
        (folder / name).write_text(text, encoding="utf-8")


def renew(data: Data, folder: Path = DOCS) -> None:
    """As `write`; figures of parts that were not measured this time, as a soak's, are kept."""
    kept = folder / FIGURES
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    measured = {part: figures for part, figures in data.items() if figures != {}}
    if before and "cases" not in measured:  # the page names the machine that the calls were made on
        measured = {part: measured[part] for part in measured if part not in {"machine", "scale"}}
    write({**before, **measured}, folder)


def add(part: str, figures: Any, folder: Path = DOCS) -> None:
    """Put figures of another run beside those that are kept, and write the page again."""
    kept = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    write({**kept, part: figures}, folder)


def files(data: Data) -> dict[str, str]:
    """The text of each file by its name."""
    pictures = {f"performance-{name}.svg": text for name, text in _pictures(data)}
    return {
        FIGURES: json.dumps(data, indent=1, ensure_ascii=False) + "\n",
        "performance.md": words.page(data, pictures=tuple(pictures)),
        **pictures,
    }


def _pictures(data: Data) -> Iterator[tuple[str, str]]:
    cases = data["cases"]
    for case, title in (
        ("happy", "A call that succeeds: µs above the bare call"),
        ("refused", "A call that an open breaker refuses: µs"),
    ):
        figures = sorted(
            ((name, one) for name, one in cases[case].items() if name != BARE),
            key=lambda pair: float(pair[1]["low"]),
        )
        rows = [
            Bar(name, max(one["low"], 0.01), f"{one['low']:.3g}", name.startswith(_OURS))
            for name, one in figures
        ]
        yield case, bars(title, rows)
    lines = [
        Line(f"{curve['what']} ({curve['unit']})", curve["sizes"], curve["costs"])
        for curve in data["growth"]
    ]
    yield "growth", small_multiples("What each costs when there are more of them", lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("figures", type=Path, nargs="?", default=DOCS / FIGURES)
    write(json.loads(parser.parse_args().figures.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
