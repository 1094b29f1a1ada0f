"""Pictures, drawn with nothing but text: they read on a light page and on a dark one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "Panel", "bars", "shares", "small_multiples"]

# Greys in the middle between black and white, and colours that both grounds bear.
_TEXT, _FAINT, _OURS, _THEIRS = "#7d8590", "#7d859055", "#2f9e6e", "#8a8fa3"
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_WIDTH, _LABELS, _FIGURES = 760, 268, 70
_BAR, _STEP, _TOP = 14, 22, 40
_CELL_WIDTH, _CELL_HEIGHT, _PAD = 380, 150, 40


@dataclass(frozen=True, slots=True)
class Bar:
    """A row: its label, its length, the caption at its end, and whether it is ours."""

    label: str
    value: float
    caption: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: of what, for how many, and what each costs."""

    title: str
    sizes: Sequence[float]
    costs: Sequence[float]


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars on a logarithmic axis, from the power of ten below the least."""
    least = 10 ** math.floor(math.log10(min(row.value for row in rows)))
    most = 10 ** math.ceil(math.log10(max(row.value for row in rows)))
    room = _WIDTH - _LABELS - _FIGURES
    scale = _scale(least, most, _LABELS, _LABELS + room)
    height = _TOP + _STEP * len(rows) + 26
    return _picture(_WIDTH, height, title, _bars(rows, least, most, scale, height))


def _bars(
    rows: Sequence[Bar], least: float, most: float, scale: Callable[[float], float], height: int
) -> Iterator[str]:
    for power in range(round(math.log10(least)), round(math.log10(most)) + 1):
        x = scale(10.0**power)
        yield _rule(x, _TOP - 6, x, height - 22)
        yield _text(x, height - 8, f"{10.0**power:g}", "middle")
    for number, row in enumerate(rows):
        y = _TOP + number * _STEP
        colour = _OURS if row.is_ours else _THEIRS
        width = max(scale(row.value) - _LABELS, 2)
        yield _text(_LABELS - 8, y + 11, row.label, "end", bold=row.is_ours)
        yield (
            f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" '
            f'fill="{colour}"/>'
        )
        yield _text(_LABELS + width + 6, y + 11, row.caption, "start", bold=row.is_ours)


def small_multiples(title: str, lines: Sequence[Line], columns: int = 2) -> str:
    """A curve in each cell, both axes logarithmic; a flat curve is a linear cost."""
    height = _TOP + _CELL_HEIGHT * math.ceil(len(lines) / columns)
    parts = (
        part
        for number, line in enumerate(lines)
        for part in _cell(
            line, number % columns * _CELL_WIDTH, _TOP + number // columns * _CELL_HEIGHT
        )
    )
    return _picture(columns * _CELL_WIDTH, height, title, parts)


def _cell(line: Line, left: int, top: int) -> Iterator[str]:
    least = 10 ** math.floor(math.log10(min(line.costs)))
    most = 10 ** math.ceil(math.log10(max(line.costs) * 1.001))
    x = _scale(min(line.sizes), max(*line.sizes, 10), left + _PAD, left + _CELL_WIDTH - 16)
    y = _scale(least, most, top + _CELL_HEIGHT - _PAD, top + 24)
    yield _text(left + _PAD, top + 12, line.title, "start")
    for power in range(round(math.log10(least)), round(math.log10(most)) + 1):
        value = 10.0**power
        yield _rule(left + _PAD, y(value), left + _CELL_WIDTH - 16, y(value))
        yield _text(left + _PAD - 4, y(value) + 4, _short(value), "end")
    for size in line.sizes:
        yield _text(x(size), top + _CELL_HEIGHT - _PAD + 16, _short(size), "middle")
    points = list(zip(line.sizes, line.costs, strict=True))
    path = " ".join(f"{x(size):.1f},{y(cost):.1f}" for size, cost in points)
    yield f'<polyline points="{path}" fill="none" stroke="{_OURS}" stroke-width="2"/>'
    for size, cost in points:
        yield f'<circle cx="{x(size):.1f}" cy="{y(cost):.1f}" r="2.5" fill="{_OURS}"/>'


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves of shares over the same labels, by what each is of; the last one is ours."""

    title: str
    labels: Sequence[str]
    curves: Mapping[str, Sequence[float]]


_DASHES = ("", "6 3", "2 3", "8 3 2 3", "")  # a curve is known by its dashes, also without colour


def shares(title: str, panels: Sequence[Panel], columns: int = 2) -> str:
    """Curves between 0 and 100 %, a panel for each, and one legend for all."""
    foot = _TOP + _CELL_HEIGHT * math.ceil(len(panels) / columns)
    parts = [
        part
        for number, panel in enumerate(panels)
        for part in _panel(
            panel, number % columns * _CELL_WIDTH, _TOP + number // columns * _CELL_HEIGHT
        )
    ]
    names = list(panels[0].curves)
    step = columns * _CELL_WIDTH / len(names)
    for number, name in enumerate(names):
        is_ours = number == len(names) - 1
        x = 8 + number * step
        parts.append(_curve(f"{x:.1f},{foot + 6} {x + 28:.1f},{foot + 6}", number, is_ours=is_ours))
        parts.append(_text(x + 34, foot + 10, name, "start", bold=is_ours))
    return _picture(columns * _CELL_WIDTH, foot + 24, title, iter(parts))


def _panel(panel: Panel, left: int, top: int) -> Iterator[str]:
    bottom, right = top + _CELL_HEIGHT - _PAD, left + _CELL_WIDTH - 16
    step = (right - left - _PAD - 20) / (len(panel.labels) - 1)
    yield _text(left + _PAD, top + 12, panel.title, "start")
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top - 24)
        yield _rule(left + _PAD, y, right, y)
        yield _text(left + _PAD - 4, y + 4, f"{share:.0%}", "end")
    for number, label in enumerate(panel.labels):
        yield _text(left + _PAD + 10 + number * step, bottom + 16, label, "middle")
    for number, values in enumerate(panel.curves.values()):
        points = " ".join(
            f"{left + _PAD + 10 + place * step:.1f},{bottom - value * (bottom - top - 24):.1f}"
            for place, value in enumerate(values)
        )
        yield _curve(points, number, is_ours=number == len(panel.curves) - 1)


def _curve(points: str, number: int, *, is_ours: bool) -> str:
    colour, width = (_OURS, 2.5) if is_ours else (_THEIRS, 1.5)
    dashes = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
    stroke = f'stroke="{colour}" stroke-width="{width}"{dashes}'
    return f'<polyline points="{points}" fill="none" {stroke}/>'


def _scale(least: float, most: float, start: float, end: float) -> Callable[[float], float]:
    low, span = math.log10(least), math.log10(most) - math.log10(least)
    return lambda value: start + (math.log10(value) - low) / span * (end - start)


def _short(value: float) -> str:
    return f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"


def _text(x: float, y: float, words: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_TEXT}"{weight}>'
        f"{escape(words)}</text>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_FAINT}"/>'


def _picture(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {_FONT}>',
        f"<title>{escape(title)}</title>",
        _text(8, 18, title, "start", bold=True),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
