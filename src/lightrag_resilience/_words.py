"""Durations and numbers as people write them: ``90``, ``90s``, ``10m``, ``2h``, ``1d``."""

from __future__ import annotations

import re

__all__ = ["as_count", "as_duration", "as_words", "counted", "printable"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 7 * 86400  # seconds


def as_duration(text: str) -> float:
    """Seconds of a duration.

    Raises:
        ValueError: It is none, not above zero, or longer than 7 days.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"{text!r} is no duration such as 90s, 10m or 2h, of at most 7d")
    return seconds


def as_count(text: str) -> int | None:
    """A whole number; None where it is none. Digits of other scripts, such as ``²``, are none."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text := text.strip()) else None


def printable(text: str) -> str:
    """A text without what moves the cursor, begins a line or cannot be encoded."""
    return "".join(character for character in text if character.isprintable())


def as_words(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = max(round(seconds), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count or (parts and len(parts) < 2):  # noqa: PLR2004
            parts.append(f"{count} {unit}")
    shown = [part for part in parts[:2] if not part.startswith("0 ")]
    return " ".join(shown) or "0 s"


def counted(number: int, thing: str) -> str:
    """So many things."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
