"""Durations, numbers, texts and the reasons of state changes, for people to write and read."""

from __future__ import annotations

import re

__all__ = [
    "ISOLATED",
    "LONGEST_OPEN",
    "LONGEST_TEXT",
    "MET",
    "as_count",
    "as_duration",
    "as_words",
    "counted",
    "is_by_hand",
    "is_isolation",
    "printable",
    "symptom_of",
]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_OPEN = 7 * 86_400.0
"""Seconds for which a circuit can be open, by hand or by a value from Redis."""
LONGEST_TEXT = 200
"""Characters of a name or a reason from outside this process."""

_BY_HAND = ("by ", "through ")  # begin the reason of a change by hand
MET = "after a probe met "
"""Begins the reason if a probe failed by what is no outage, such as a wrong key."""
_SYMPTOM = re.compile(r"(?:, the last(?: failure)?| failed with| met) ([^,;]+)$")
ISOLATED = " (isolated)"
"""Follows the author's name in the reason of an isolation."""


def is_by_hand(reason: str) -> bool:
    """Whether this is the reason of a state that was set by hand."""
    return reason.startswith(_BY_HAND)


def is_isolation(reason: str) -> bool:
    """Whether this is the reason of a circuit opened by hand for a time without probes."""
    return is_by_hand(reason) and reason.partition(":")[0].endswith(ISOLATED)


def symptom_of(reason: str) -> str:
    """The last failure that a reason names, such as ``HTTP 401 (Odd)``; empty without one."""
    found = None if is_by_hand(reason) else _SYMPTOM.search(reason)
    return found[1] if found else ""


def as_duration(text: str) -> float:
    """Seconds of a duration: ``90``, ``90s``, ``10m``, ``2h``, ``1d``.

    Raises:
        ValueError: It is no duration, not above zero, or longer than 7 days.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_OPEN:
        raise ValueError(f"{text!r} is no duration such as 90s, 10m or 2h, of at most 7d")
    return seconds


def as_count(text: str) -> int | None:
    """A whole number in ASCII digits; None for any other text, such as ``²``."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text := text.strip()) else None


def printable(text: str, most: int | None = None) -> str:
    """A text without control characters, line breaks and what cannot be encoded.

    Args:
        text: From a request, a task, a journal, Redis or a command line.
        most: Characters to keep; None keeps all.
    """
    if not text.isprintable():
        text = "".join(filter(str.isprintable, text))
    return text[:most]


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
    """A number and a noun: ``1 call``, ``2 calls``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
