"""Brownout and outage through time, as an SVG: calls, queries, and the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import wrap
from xml.sax.saxutils import escape

from .comparison import Row, Verdict
from .figures import RULE
from .measurements import ANSWERED, EMPTY, REFUSED, Measured

__all__ = ["Chart", "draw"]

_WIDTH, _LEFT, _PLOT = 960, 60, 90
_LEGEND_HEIGHT, _TITLE, _LINE, _PANEL = 92, 34, 18, 145
_COLUMNS = 260, 110, 110, 100  # of a row: label, alone, protected, verdict
_TEXT = "#22272e"
_GOOD, _BAD, _CLEAR, _SILENT = "#2e7d4f", "#c0392b", "#c98a00", "#5c6470"
_QUERY_COLOURS = {ANSWERED: _GOOD, REFUSED: _CLEAR, EMPTY: _SILENT}
_VERDICT_COLOURS = {Verdict.BETTER: _GOOD, Verdict.WORSE: _BAD}
_LEGEND = (
    (_GOOD, "call or query answered"),
    (_BAD, "call failed"),
    (_CLEAR, "query refused with a clear error"),
    (_SILENT, "query silently empty"),
    ("#f3dedb", "trouble"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One experiment.

    Attributes:
        title: What happens.
        alone: LightRAG alone.
        protected: The same, protected.
        trouble: Seconds at which the trouble begins and ends.
        rows: Both side by side, with verdicts.
    """

    title: str
    alone: Measured
    protected: Measured
    trouble: tuple[float, float]
    rows: Sequence[Row]

    @property
    def height(self) -> int:
        """Of the picture, in its units."""
        return _TITLE + _LINE * (len(self.rows) + 1) + 2 * _PANEL

    @property
    def seconds(self) -> int:
        """How many are shown."""
        calls = (at for run in (self.alone, self.protected) for at, _ in run.calls)
        return ceil(max(calls, default=1.0)) + 1

    @property
    def tallest(self) -> int:
        """The most calls within a second."""
        return max(
            max(_per_second(run).values(), default=1) for run in (self.alone, self.protected)
        )


def draw(charts: Sequence[Chart]) -> str:
    """HTTP calls a second as bars, queries as dots where they end, the trouble shaded."""
    body = [*_legend()]
    top = _LEGEND_HEIGHT
    for chart in charts:
        body += _chart(chart, top)
        top += chart.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'font-family="sans-serif" role="img" aria-label="Calls and queries through trouble">\n'
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    x = _LEFT
    for colour, label in _LEGEND:
        yield f'<rect x="{x}" y="12" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 15, 21, label)
        x += 40 + 6 * len(label)
    for number, line in enumerate(wrap(RULE, 150)):
        yield _text(_LEFT, 40 + 15 * number, line, size=11)


def _chart(chart: Chart, top: int) -> Iterator[str]:
    yield _text(_LEFT, top + 26, chart.title, size=17)
    top += _TITLE
    yield from _line(top, ("", "LightRAG alone", "protected", "verdict"))
    for row in chart.rows:
        top += _LINE
        colour = _VERDICT_COLOURS.get(row.verdict, _TEXT)
        yield from _line(top, (row.label, row.first, row.second, row.verdict), colour)
    top += _LINE
    yield from _panel(chart, chart.alone, "LightRAG alone: HTTP calls a second", top)
    yield from _panel(chart, chart.protected, "protected: HTTP calls a second", top + _PANEL)


def _line(top: int, words: Sequence[str], colour: str = _TEXT) -> Iterator[str]:
    x = _LEFT
    for number, (word, width) in enumerate(zip(words, _COLUMNS, strict=True)):
        is_figure = number in {1, 2}
        end = x + width if is_figure else x + 20 * (number == len(words) - 1)
        yield _text(
            end,
            top + 14,
            word,
            anchor="end" if is_figure else "start",
            colour=colour if number == len(words) - 1 else _TEXT,
        )
        x += width


def _panel(chart: Chart, measured: Measured, label: str, top: int) -> Iterator[str]:
    floor = top + 30 + _PLOT
    scale = (_WIDTH - _LEFT - 20) / chart.seconds

    def x(second: float) -> float:
        return round(_LEFT + second * scale, 1)

    start, end = chart.trouble
    yield (
        f'<rect x="{x(start)}" y="{top + 30}" width="{round((end - start) * scale, 1)}" '
        f'height="{_PLOT}" fill="#f3dedb"/>'
    )
    yield _text(_LEFT, top + 22, label)
    good = _per_second(measured, answered=True)
    for second, count in sorted(_per_second(measured).items()):
        tall, answered = (_PLOT * n / chart.tallest for n in (count, good[second]))
        yield _bar(x(second), floor, scale, tall, _BAD)
        yield _bar(x(second), floor, scale, answered, _GOOD)
    for asked in measured.queries:
        colour = _QUERY_COLOURS.get(asked.outcome, _BAD)
        ended = asked.at + asked.took
        if ended <= chart.seconds:
            yield f'<circle cx="{x(ended)}" cy="{top + 38}" r="4" fill="{colour}"/>'
    yield f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 20}" y2="{floor}" stroke="#5c6470"/>'
    yield _text(_LEFT - 8, floor, "0", size=11, anchor="end")
    yield _text(_LEFT - 8, floor - _PLOT + 10, str(chart.tallest), size=11, anchor="end")
    for second in range(0, chart.seconds, 10):
        yield _text(x(second), floor + 15, f"{second} s", size=11, anchor="middle")


def _per_second(measured: Measured, *, answered: bool = False) -> Counter[int]:
    return Counter(int(at) for at, outcome in measured.calls if not answered or outcome == "200")


def _bar(x: float, floor: int, scale: float, height: float, colour: str) -> str:
    width = max(round(scale - 1.5, 1), 1)
    return (
        f'<rect x="{x}" y="{round(floor - height, 1)}" width="{width}" '
        f'height="{round(height, 1)}" fill="{colour}"/>'
    )


def _text(  # noqa: PLR0913 - what an element of SVG has
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", colour: str = _TEXT
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
