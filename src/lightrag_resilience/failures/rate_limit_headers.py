"""The rate limits that a provider reports in the headers of its answers.

Malformed headers are ignored, never raised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .retry_after import as_number, lowered_items, seconds_of, seconds_to_reset

__all__ = ["RateState", "RateStates", "rate_states"]

_RATE = re.compile(
    r"x-ratelimit-(limit|remaining|reset)-(requests|tokens)"
    r"|anthropic-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)"
)


@dataclass(frozen=True, slots=True)
class RateState:
    """One rate limit of a provider, by one answer; None for what the answer does not say.

    Attributes:
        limit: Requests or tokens in all, above 0.
        remaining: How many of them are left, 0 or more.
        reset_after: Seconds until all are available again, above 0; may be days.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_after: float | None = None

    @property
    def scarcity(self) -> float:
        """The share that is used up, from 0 to 1; 0 if unknown."""
        if self.limit is None or self.remaining is None:
            return 0.0
        return max(0.0, 1.0 - self.remaining / self.limit)


@dataclass(frozen=True, slots=True)
class RateStates:
    """The rate limits of requests and of tokens."""

    requests: RateState = RateState()
    tokens: RateState = RateState()


def rate_states(headers: Any, *, now_wall: float) -> RateStates:
    """The provider's rate limits by the headers of an answer, successful or not.

    If input and output tokens have separate limits and no common one, the scarcer is returned.

    Args:
        headers: Any mapping of names to values, in any case, or None.
        now_wall: Seconds since the epoch, for resets that are dates in an answer without a date.
    """
    try:
        found = {
            name: text
            for name, text in lowered_items(headers)
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


def _state(found: Mapping[str, str], what: str, now_wall: float) -> RateState:
    def text(part: str) -> tuple[str, str]:
        names = (f"x-ratelimit-{part}-{what}", f"anthropic-ratelimit-{what}-{part}")
        name = next((name for name in names if name in found), names[0])
        return name, found.get(name, "")

    reset = seconds_of(seconds_to_reset(*text("reset"), found.get("date", ""), now_wall))
    # Azure sends 0 and -1 for "unknown".
    return RateState(_count(text("limit")[1]) or None, _count(text("remaining")[1]), reset or None)


def _by_scarcity(state: RateState) -> tuple[float, bool]:
    return state.scarcity, state != RateState()


def _count(text: str) -> int | None:
    number = seconds_of(as_number(text))
    return None if number is None else math.floor(number)
