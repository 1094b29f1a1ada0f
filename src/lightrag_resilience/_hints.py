"""What a provider's headers say about trying again. Nonsense in them is ignored, never raised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["advice", "asked_wait", "longest_reset", "retry_after"]

_LONGEST = 64  # characters; a longer value is no number, duration or date
_ADVICE = {name.encode(): name for name in ("x-should-retry", "retry-after-ms", "retry-after")}
_ADVICE_NAMES = frozenset(_ADVICE.values())
_DURATION_RESETS = frozenset({"x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"})
_DATE_RESET = re.compile(r"anthropic-ratelimit-[a-z0-9-]+-reset")

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?"
    r"(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)  # seconds in each group of _DURATION


def retry_after(headers: Any, *, now_wall: float, resets: bool = False) -> float | None:
    """Seconds a provider asks to wait, finite and not negative; None where it says nothing.

    Args:
        headers: Any mapping of names to values, in any case, or None.
        now_wall: Seconds since the epoch, for hints that are dates.
        resets: Whether to fall back on when the rate limits reset; right for a 429 only.
    """
    wait = asked_wait(advice(headers), now_wall=now_wall)
    return longest_reset(headers, now_wall=now_wall) if wait is None and resets else wait


def advice(headers: Any) -> dict[str, str]:
    """The headers that speak of a retry, by their names in lower case."""
    try:
        raw = getattr(headers, "raw", None)
        if isinstance(raw, list):  # httpx, undecoded: a fraction of the cost of its items()
            return {
                _ADVICE[key]: _text(value)
                for name, value in raw
                if (key := name.lower()) in _ADVICE
            }
        return {key: value for key, value in _lowered(headers) if key in _ADVICE_NAMES}
    except Exception:  # noqa: BLE001 - odd headers must not hide the error that carries them
        return {}


def asked_wait(found: dict[str, str], *, now_wall: float) -> float | None:
    """Seconds asked for by ``retry-after-ms`` or ``retry-after``, out of `advice`."""
    milliseconds = _number(found.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000.0
    text = found.get("retry-after", "")
    seconds = _number(text)
    return _until(_http_date(text), now_wall) if seconds is None else seconds


def longest_reset(headers: Any, *, now_wall: float) -> float | None:
    """Seconds until all rate limits named in the headers have reset: which one refused is unknown.

    A reset of zero is no hint: Azure sends it where it does not know.
    """
    try:
        waits = [_reset(name, text, now_wall) for name, text in _lowered(headers)]
    except Exception:  # noqa: BLE001 - odd headers must not hide the error that carries them
        return None
    return max(filter(None, waits), default=None)


def _reset(name: str, text: str, now_wall: float) -> float | None:
    if name in _DURATION_RESETS:
        seconds = _number(text)
        return _duration(text) if seconds is None else seconds
    if _DATE_RESET.fullmatch(name):
        return _until(_rfc_3339(text), now_wall)
    return None


def _lowered(headers: Any) -> Iterable[tuple[str, str]]:
    pairs = () if headers is None else headers.items()
    return ((str(name).lower(), _text(value)) for name, value in pairs)


def _text(value: object) -> str:
    """A value to parse; empty where it is too long to mean anything."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip() if len(text) <= _LONGEST else ""


def _number(text: str) -> float | None:
    return float(text) if text and _NUMBER.fullmatch(text) else None


def _duration(text: str) -> float | None:
    """Seconds in a duration as OpenAI writes it: ``6m0s``, ``12ms``, ``1m30.5s``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    parts = zip(match.groups(), _UNITS, strict=True)
    return sum(float(count) * unit for count, unit in parts if count is not None)


def _until(moment: datetime | None, now_wall: float) -> float | None:
    """Seconds from now; None for the past, which asks for nothing."""
    seconds = -1.0 if moment is None else moment.timestamp() - now_wall
    return seconds if seconds >= 0.0 else None


def _http_date(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _rfc_3339(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else None
