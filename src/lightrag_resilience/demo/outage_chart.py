"""Calls through time, as an SVG: what reached the provider, and what the users got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from xml.sax.saxutils import escape

from .measurements import ANSWERED, EMPTY, REFUSED, Measured

__all__ = ["draw"]

_WIDTH, _PANEL, _LEFT, _TOP, _PLOT = 960, 190, 60, 70, 110
_GOOD, _BAD, _CLEAR, _SILENT = "#2e7d4f", "#c0392b", "#c98a00", "#5c6470"
_QUERY_COLOURS = {ANSWERED: _GOOD, REFUSED: _CLEAR, EMPTY: _SILENT}
_LEGEND = (
    (_GOOD, "call or query answered"),
    (_BAD, "call failed"),
    (_CLEAR, "query refused with a clear error"),
    (_SILENT, "query silently empty"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """What both panels share: seconds shown, most calls a second, begin and end of the outage."""

    seconds: int
    tallest: int
    outage: tuple[float, float]


def draw(plain: Measured, protected: Measured, outage: tuple[float, float]) -> str:
    """The outage experiment: HTTP calls a second as bars, queries as dots, the outage shaded."""
    both = (plain, protected)
    frame = _Frame(
        seconds=ceil(max((at for m in both for at, _ in m.calls), default=1.0)) + 1,
        tallest=max(max(_per_second(m).values(), default=1) for m in both),
        outage=outage,
    )
    height = _TOP + 2 * _PANEL
    body = [
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(
            _LEFT, 26, f"HTTP calls a second through {outage[1] - outage[0]:g} s of outage", size=17
        ),
        *_legend(),
        *_panel(plain, "unprotected", _TOP, frame),
        *_panel(protected, "protected", _TOP + _PANEL, frame),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" role="img" aria-label="HTTP calls through an outage">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    x = _LEFT
    for colour, label in _LEGEND:
        yield f'<rect x="{x}" y="38" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 15, 47, label, size=12)
        x += 40 + 7 * len(label)


def _panel(measured: Measured, label: str, top: int, frame: _Frame) -> Iterator[str]:
    floor = top + 30 + _PLOT
    scale = (_WIDTH - _LEFT - 20) / frame.seconds

    def x(second: float) -> float:
        return round(_LEFT + second * scale, 1)

    start, end = frame.outage
    yield (
        f'<rect x="{x(start)}" y="{top + 30}" width="{round((end - start) * scale, 1)}" '
        f'height="{_PLOT}" fill="#f3dedb"/>'
    )
    yield _text(_LEFT, top + 18, f"{label}: {_summary(measured)}", size=13)
    good = _per_second(measured, answered=True)
    for second, count in sorted(_per_second(measured).items()):
        tall, answered = (_PLOT * n / frame.tallest for n in (count, good[second]))
        yield _bar(x(second), floor, scale, tall, _BAD)
        yield _bar(x(second), floor, scale, answered, _GOOD)
    for asked in measured.queries:
        colour = _QUERY_COLOURS.get(asked.outcome, _BAD)
        ended = asked.at + asked.took
        if ended <= frame.seconds:
            yield f'<circle cx="{x(ended)}" cy="{top + 38}" r="4" fill="{colour}"/>'
    yield f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 20}" y2="{floor}" stroke="#5c6470"/>'
    yield _text(_LEFT - 8, floor, "0", size=11, anchor="end")
    yield _text(_LEFT - 8, floor - _PLOT + 10, str(frame.tallest), size=11, anchor="end")
    for second in range(0, frame.seconds, 10):
        yield _text(x(second), floor + 15, f"{second} s", size=11, anchor="middle")


def _summary(measured: Measured) -> str:
    recovery = "none" if measured.recovery is None else f"{measured.recovery:.1f} s"
    return (
        f"{measured.processed} documents processed, {measured.failed_documents} failed; "
        f"{measured.http_calls} calls; first answer after recovery: {recovery}"
    )


def _per_second(measured: Measured, *, answered: bool = False) -> Counter[int]:
    return Counter(int(at) for at, outcome in measured.calls if not answered or outcome == "200")


def _bar(x: float, floor: int, scale: float, height: float, colour: str) -> str:
    width = max(round(scale - 1.5, 1), 1)
    return (
        f'<rect x="{x}" y="{round(floor - height, 1)}" width="{width}" '
        f'height="{round(height, 1)}" fill="{colour}"/>'
    )


def _text(x: float, y: float, words: str, *, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="#22272e">'
        f"{escape(words)}</text>"
    )
