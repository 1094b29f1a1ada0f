"""How long a provider asks to wait before a retry, in headers or in a body.

Malformed values are ignored, never raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = [
    "advice",
    "as_number",
    "asked_wait",
    "longest_reset",
    "lowered_items",
    "retry_after",
    "retry_info",
    "seconds_of",
    "seconds_to_reset",
]

_LONGEST_VALUE = 64  # characters; a longer value is no number, duration or date
_LARGEST_NUMBER = 10**15  # a larger number is malformed
_MILLISECONDS = ("retry-after-ms", "x-amz-retry-after", "grpc-retry-pushback-ms")
_ADVICE_NAMES = frozenset({"x-should-retry", "retry-after", "date", *_MILLISECONDS})
_ADVICE = {name.encode(): name for name in _ADVICE_NAMES}
_DURATION_RESETS = frozenset({"x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"})
_DATE_RESET = re.compile(r"anthropic-ratelimit-[a-z0-9-]+-reset")

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(
    r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?"
    r"(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+(?:\.[0-9]+)?)ms)?"
)
_PROTOBUF_DURATION = re.compile(r"([0-9]+(?:\.[0-9]{1,9})?)s")
_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)  # seconds in each group of _DURATION


def retry_after(headers: Any, *, now_wall: float, resets: bool = False) -> float | None:
    """Seconds a provider asks to wait, finite and not negative; None if it does not say.

    Args:
        headers: Any mapping of names to values, in any case, or None.
        now_wall: Seconds since the epoch, for hints that are dates in an answer without a date.
        resets: Whether to fall back on the time at which the rate limits reset: for a 429 only.
    """
    wait = asked_wait(advice(headers), now_wall=now_wall)
    return longest_reset(headers, now_wall=now_wall) if wait is None and resets else wait


def advice(headers: Any) -> dict[str, str]:
    """The headers about a retry, and the answer's date, by their names in lower case."""
    try:
        raw = getattr(headers, "raw", None)
        if isinstance(raw, list):  # httpx, undecoded: a fraction of the cost of its items()
            return {
                _ADVICE[key]: _text(value)
                for name, value in raw
                if (key := name.lower()) in _ADVICE
            }
        return {key: value for key, value in lowered_items(headers) if key in _ADVICE_NAMES}
    except Exception:  # noqa: BLE001 - odd headers must not hide the error that carries them
        return {}


def asked_wait(found: dict[str, str], *, now_wall: float) -> float | None:
    """Seconds to wait by what `advice` found: a header in milliseconds, or ``retry-after``."""
    for name in _MILLISECONDS:
        milliseconds = as_number(found.get(name, ""))
        if milliseconds is not None:
            return milliseconds / 1000.0
    text = found.get("retry-after", "")
    seconds = as_number(text)
    return _until(_http_date(text), found.get("date", ""), now_wall) if seconds is None else seconds


def longest_reset(headers: Any, *, now_wall: float) -> float | None:
    """Seconds until all rate limits named in the headers have reset.

    All of them, since a 429 does not say which limit rejected. A reset of zero is ignored: Azure
    sends it for "unknown".
    """
    try:
        pairs = [*lowered_items(headers)]
        date = next((text for name, text in pairs if name == "date"), "")
        waits = [seconds_to_reset(name, text, date, now_wall) for name, text in pairs]
    except Exception:  # noqa: BLE001 - odd headers must not hide the error that carries them
        return None
    return max(filter(None, waits), default=None)


def retry_info(detail: Mapping[str, Any]) -> float | None:
    """Seconds of a ``google.rpc.RetryInfo`` among the details in a body, such as ``12.3s``."""
    if not str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
        return None
    match = _PROTOBUF_DURATION.fullmatch(_text(detail.get("retryDelay")))
    return float(match[1]) if match else None


def seconds_of(value: object) -> float | None:
    """A number of seconds that an SDK has read already, finite and not negative, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _LARGEST_NUMBER:  # type: ignore[operator]  # mypy forgets why
        return None
    return float(value)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the forms of values


def seconds_to_reset(name: str, text: str, date: str, now_wall: float) -> float | None:
    """Seconds of a header that says when a rate limit resets; None for any other header."""
    if name in _DURATION_RESETS:
        seconds = as_number(text)
        return _duration(text) if seconds is None else seconds
    if _DATE_RESET.fullmatch(name):
        return _until(_rfc_3339(text), date, now_wall)
    return None


def lowered_items(headers: Any) -> Iterable[tuple[str, str]]:
    """Names in lower case and values; may raise whatever odd headers do."""
    pairs = () if headers is None else headers.items()
    return ((str(name).lower(), _text(value)) for name, value in pairs)


def _text(value: object) -> str:
    """A value to parse; empty where it is too long to mean anything."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip() if len(text) <= _LONGEST_VALUE else ""


def as_number(text: str) -> float | None:
    """A plain decimal number, or None."""
    return float(text) if text and _NUMBER.fullmatch(text) else None


def _duration(text: str) -> float | None:
    """Seconds in a duration as OpenAI writes it: ``6m0s``, ``12ms``, ``1m30.5s``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    parts = zip(match.groups(), _UNITS, strict=True)
    return sum(float(count) * unit for count, unit in parts if count is not None)


def _until(moment: datetime | None, date: str, now_wall: float) -> float | None:
    """Seconds from now to a moment; None if it is past.

    In an answer with a date, "now" is that date: this machine's clock may be an hour off.
    """
    if moment is None:
        return None
    dated = _http_date(date)
    seconds = moment.timestamp() - (now_wall if dated is None else dated.timestamp())
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
