"""Figures that a page quotes are those of the page that was written by a measurement."""

from __future__ import annotations

import re

import pytest

from support.paths import ROOT

CELL = r" \|[^|]*\| \*\*"
BROWNOUT = r"\| 1 \| 60 % fail for 20 s \| "
FIGURES = [  # a page and how it quotes; the measured page and the row there
    (
        "faq",
        r"([\d.]+) µs above the bare",
        "performance",
        rf"bare call, with a deadline{CELL}([\d.]+)",
    ),
    ("faq", r"([\d.]+) µs for a rejection", "performance", rf"by an open breaker{CELL}([\d.]+)"),
    (
        "faq",
        r"([\d.]+) µs with\s+limits",
        "performance",
        rf"on and shared through Redis{CELL}([\d.]+)",
    ),
    ("faq", r"took ([\d.]+) % longer", "performance", r"protected, \+([\d.]+)%"),
    ("faq", r"within ([\d.]+) s\]", "performance", r"after its return within \| ([\d.]+) s"),
    ("faq", r"In (\d+) of \d+ simulated", "brownouts", r"In (\d+) of \d+ cells"),
    ("faq", r"In \d+ of (\d+) simulated", "brownouts", r"In \d+ of (\d+) cells"),
    ("faq", r"it answers (\d+) % where", "brownouts", rf"{BROWNOUT}.*\| (\d+) %[^|]*\|\n"),
    ("faq", r"LightRAG alone answers (\d+) %", "brownouts", rf"{BROWNOUT}(\d+) %"),
    ("faq", r"([\d.]+) s after its end", "brownouts", r"the defaults \|[^|]*\|[^|]*\| ([\d.]+) s"),
    ("shared", r"after ([\d.]+) ms \(p50\)", "performance", rf"another process{CELL}p50 ([\d.]+)"),
    ("shared", r"or ([\d.]+) ms \(p99\)", "performance", rf"process{CELL}p50 [\d.]+, p99 ([\d.]+)"),
    ("shared", r"cost (\d+) commands", "performance", rf"calls, 4 processes{CELL}(\d+)"),
    ("shared", r"Of ([\d,]+) calls", "performance", r"of ([\d,]+) calls \| 0 failed, 0 passed"),
]


def figure(page: str, pattern: str) -> str:
    found = re.search(pattern, (ROOT / f"docs/{page}.md").read_text("utf-8"))
    assert found, f"docs/{page}.md has nothing like {pattern}"
    return found[1].replace(",", "")


@pytest.mark.parametrize(
    ("page", "quote", "measured", "row"), FIGURES, ids=[each[1] for each in FIGURES]
)
def test_a_quoted_figure_is_the_measured_one(
    page: str, quote: str, measured: str, row: str
) -> None:
    quoted = figure(page, quote)
    decimals = len(quoted.partition(".")[2])
    assert float(quoted) == round(float(figure(measured, row)), decimals)
