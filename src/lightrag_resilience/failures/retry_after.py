"""What a provider says about trying again and about its rate limits, in headers or in a body.

Nonsense is ignored, never raised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = [
    "RateState",
    "RateStates",
    "advice",
    "asked_wait",
    "longest_reset",
    "rate_states",
    "retry_after",
    "retry_info",
    "seconds_of",
]

_LONGEST = 64  # characters; a longer value is no number, duration or date
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
    """Seconds a provider asks to wait, finite and not negative; None where it says nothing.

    Args:
        headers: Any mapping of names to values, in any case, or None.
        now_wall: Seconds since the epoch, for hints that are dates in an answer without a date.
        resets: Whether to fall back on when the rate limits reset; right for a 429 only.
    """
    wait = asked_wait(advice(headers), now_wall=now_wall)
    return longest_reset(headers, now_wall=now_wall) if wait is None and resets else wait


def advice(headers: Any) -> dict[str, str]:
    """The headers that speak of a retry, and the answer's date, by their names in lower case."""
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
    """Seconds asked for by ``retry-after``, or by one of those in milliseconds, out of `advice`."""
    for name in _MILLISECONDS:
        milliseconds = _number(found.get(name, ""))
        if milliseconds is not None:
            return milliseconds / 1000.0
    text = found.get("retry-after", "")
    seconds = _number(text)
    return _until(_http_date(text), found.get("date", ""), now_wall) if seconds is None else seconds


def longest_reset(headers: Any, *, now_wall: float) -> float | None:
    """Seconds until all rate limits named in the headers have reset: which one refused is unknown.

    A reset of zero is no hint: Azure sends it where it does not know.
    """
    try:
        pairs = [*_lowered(headers)]
        date = next((text for name, text in pairs if name == "date"), "")
        waits = [_reset(name, text, date, now_wall) for name, text in pairs]
    except Exception:  # noqa: BLE001 - odd headers must not hide the error that carries them
        return None
    return max(filter(None, waits), default=None)


def retry_info(detail: Mapping[str, Any]) -> float | None:
    """Seconds asked for by a ``google.rpc.RetryInfo`` among the details in a body: ``12.3s``."""
    if not str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
        return None
    match = _PROTOBUF_DURATION.fullmatch(_text(detail.get("retryDelay")))
    return float(match[1]) if match else None


def seconds_of(value: object) -> float | None:
    """A number of seconds that an SDK has read already, finite and not negative, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _MOST:  # type: ignore[operator]  # mypy forgets why
        return None
    return float(value)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the state of rate limits


@dataclass(frozen=True, slots=True)
class RateState:
    """One rate limit as a provider last told it; None where it did not.

    Attributes:
        limit: How many there are in all, above 0.
        remaining: How many are left, 0 or more.
        reset_after: Seconds until all are there again, above 0; may be days.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_after: float | None = None

    @property
    def scarcity(self) -> float:
        """The share that is used up, from 0 to 1; 0 where it is unknown."""
        if self.limit is None or self.remaining is None:
            return 0.0
        return max(0.0, 1.0 - self.remaining / self.limit)


@dataclass(frozen=True, slots=True)
class RateStates:
    """The rate limits of requests and of tokens."""

    requests: RateState = RateState()
    tokens: RateState = RateState()


def rate_states(headers: Any, *, now_wall: float) -> RateStates:
    """What the headers of an answer, good or bad, say about the provider's rate limits.

    Where tokens in and out have limits of their own and no common one, the scarcer is told.

    Args:
        headers: Any mapping of names to values, in any case, or None.
        now_wall: Seconds since the epoch, for resets that are dates in an answer without a date.
    """
    try:
        found = {
            name: text
            for name, text in _lowered(headers)
            if name == "date" or _RATE.fullmatch(name)
        }
    except Exception:  # noqa: BLE001 - odd headers must not hide the answer that carries them
        return RateStates()
    if found.keys() <= {"date"}:
        return RateStates()
    tokens = _state(found, "tokens", now_wall)
    if tokens == RateState():
        separate = (_state(found, f"{way}-tokens", now_wall) for way in ("input", "output"))
        tokens = max(separate, key=_by_scarcity)
    return RateStates(_state(found, "requests", now_wall), tokens)


_RATE = re.compile(
    r"x-ratelimit-(limit|remaining|reset)-(requests|tokens)"
    r"|anthropic-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)"
)
_MOST = 10**15  # of anything; more is nonsense


def _state(found: Mapping[str, str], what: str, now_wall: float) -> RateState:
    def text(part: str) -> tuple[str, str]:
        names = (f"x-ratelimit-{part}-{what}", f"anthropic-ratelimit-{what}-{part}")
        name = next((name for name in names if name in found), names[0])
        return name, found.get(name, "")

    reset = seconds_of(_reset(*text("reset"), found.get("date", ""), now_wall))
    # Azure sends 0 and -1 where it does not know.
    return RateState(_count(text("limit")[1]) or None, _count(text("remaining")[1]), reset or None)


def _by_scarcity(state: RateState) -> tuple[float, bool]:
    return state.scarcity, state != RateState()


def _count(text: str) -> int | None:
    number = seconds_of(_number(text))
    return None if number is None else math.floor(number)


# ---------------------------------------------------------------------- the forms of values


def _reset(name: str, text: str, date: str, now_wall: float) -> float | None:
    if name in _DURATION_RESETS:
        seconds = _number(text)
        return _duration(text) if seconds is None else seconds
    if _DATE_RESET.fullmatch(name):
        return _until(_rfc_3339(text), date, now_wall)
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


def _until(moment: datetime | None, date: str, now_wall: float) -> float | None:
    """Seconds from now to a moment; None for the past, which asks for nothing.

    Both are of the provider's clock where the answer is dated: ours may be an hour off.
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
