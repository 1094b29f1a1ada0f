"""The state of rate limits in the headers of an answer, and that nonsense in them is ignored."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrag_resilience.failures.rate_limit_headers import RateState, RateStates, rate_states
from lightrag_resilience.failures.retry_after import retry_info, seconds_of

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()
PARTS = ["limit", "remaining", "reset"]
OPENAI = [f"x-ratelimit-{part}-{what}" for part in PARTS for what in ("requests", "tokens")]
ANTHROPIC = [
    f"anthropic-ratelimit-{what}-{part}"
    for part in PARTS
    for what in ("requests", "tokens", "input-tokens", "output-tokens")
]


def states(headers: Any) -> RateStates:
    return rate_states(headers, now_wall=NOW)


def tokens(headers: Any) -> RateState:
    return states(headers).tokens


def test_openai_headers_have_counts_and_durations() -> None:
    headers = {
        "X-RateLimit-Limit-Requests": "500",
        "X-RateLimit-Remaining-Requests": "499",
        "X-RateLimit-Reset-Requests": "120ms",
        "X-RateLimit-Limit-Tokens": "30000",
        "X-RateLimit-Remaining-Tokens": "0",
        "X-RateLimit-Reset-Tokens": "6m0s",
    }
    expected = RateStates(RateState(500, 499, 0.12), RateState(30_000, 0, 360.0))
    assert states(headers) == states(httpx.Headers(headers)) == expected


def test_anthropic_headers_have_counts_and_dates() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:01Z",
        "anthropic-ratelimit-tokens-limit": "100000",
        "anthropic-ratelimit-tokens-remaining": "1000",
        "anthropic-ratelimit-tokens-reset": "2026-03-01T12:01:00Z",
        "anthropic-ratelimit-input-tokens-remaining": "0",
    }
    expected = RateStates(RateState(50, 49, 1.0), RateState(100_000, 1000, 60.0))
    assert states(headers) == expected


@pytest.mark.parametrize(("inward", "outward"), [("10", "90"), ("90", "10")])
def test_the_scarcer_of_input_and_output_tokens_is_returned(inward: str, outward: str) -> None:
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "100",
        "anthropic-ratelimit-input-tokens-remaining": inward,
        "anthropic-ratelimit-output-tokens-limit": "100",
        "anthropic-ratelimit-output-tokens-remaining": outward,
    }
    assert tokens(headers) == RateState(100, 10, None)


@pytest.mark.parametrize("way", ["input", "output"])
def test_the_only_limit_on_tokens_is_returned_even_if_its_share_is_unknown(way: str) -> None:
    headers = {f"anthropic-ratelimit-{way}-tokens-reset": "2026-03-01T12:00:05Z"}
    assert tokens(headers) == RateState(None, None, 5.0)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "-1"}, RateState()),
        ({"x-ratelimit-reset-tokens": "0"}, RateState()),
        ({"x-ratelimit-reset-tokens": "-1"}, RateState()),
        ({"x-ratelimit-reset-tokens": "60"}, RateState(None, None, 60.0)),
    ],
)
def test_azures_zero_and_minus_one_are_unknown(
    headers: dict[str, str], expected: RateState
) -> None:
    assert tokens(headers) == expected


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "-inf", "-5", "many", "1e9", "0x10", "1_000", "9" * 30, "9" * 70]
)
@pytest.mark.parametrize("name", [*OPENAI, *ANTHROPIC])
def test_a_malformed_header_is_unknown(name: str, text: str) -> None:
    assert states({name: text}) == RateStates()


def test_a_reset_may_be_days_away() -> None:
    assert tokens({"x-ratelimit-reset-tokens": "2d"}).reset_after == 172_800.0
    moment = {"anthropic-ratelimit-tokens-reset": "2026-03-31T12:00:00Z"}
    assert tokens(moment).reset_after == 30 * 86_400.0


def test_a_moment_in_the_past_is_unknown() -> None:
    assert states({"anthropic-ratelimit-tokens-reset": "2026-03-01T11:59:00Z"}) == RateStates()


def test_a_count_with_a_fraction_is_rounded_down() -> None:
    assert tokens({"x-ratelimit-remaining-tokens": "29999.7"}).remaining == 29_999


class Hostile(dict[str, str]):
    def items(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize("headers", [None, {}, 5, "text", [], Hostile(), {1: 2, None: None}])
def test_headers_that_are_no_mapping_of_text_are_unknown(headers: object) -> None:
    assert states(headers) == RateStates()


@pytest.mark.parametrize(
    ("state", "used_up"),
    [
        (RateState(100, 25), 0.75),
        (RateState(100, 0), 1.0),
        (RateState(100, 200), 0.0),
        (RateState(None, 5), 0.0),
        (RateState(5, None), 0.0),
    ],
)
def test_scarcity_is_the_share_that_is_used_up(state: RateState, used_up: float) -> None:
    assert state.scarcity == used_up


almost = st.text("0123456789.-+eE_msdhinfaTZ:, GMT", max_size=70)


@given(st.dictionaries(st.sampled_from([*OPENAI, *ANTHROPIC]), st.text(max_size=80) | almost))
def test_any_text_gives_a_clean_state(headers: dict[str, str]) -> None:
    found = states(headers)
    for state in (found.requests, found.tokens):
        assert state.limit is None or state.limit > 0
        assert state.remaining is None or state.remaining >= 0
        reset = state.reset_after
        assert reset is None or (math.isfinite(reset) and reset > 0)
        assert 0.0 <= state.scarcity <= 1.0


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.integers(1, 10**7))
def test_every_state_is_read_back(limit: int, remaining: int, seconds: int) -> None:
    moment = datetime.fromtimestamp(NOW + seconds, UTC).isoformat()
    expected = RateState(limit, remaining, float(seconds))
    openai = zip(OPENAI[1::2], (limit, remaining, f"{seconds}s"), strict=True)
    anthropic = zip(ANTHROPIC[1::4], (limit, remaining, moment), strict=True)
    assert tokens(dict(openai)) == expected
    assert tokens(dict(anthropic)) == expected


# ---------------------------------------------------------------------- waits in bodies

RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


@pytest.mark.parametrize(
    ("detail", "seconds"),
    [
        ({"@type": RETRY_INFO, "retryDelay": "12.3s"}, 12.3),
        ({"@type": RETRY_INFO, "retryDelay": "0.250000000s"}, 0.25),
        ({"@type": RETRY_INFO, "retryDelay": "86400s"}, 86_400.0),
        ({"@type": RETRY_INFO}, None),
        ({"retryDelay": "12s"}, None),
        ({"@type": 5, "retryDelay": "12s"}, None),
        ({"@type": f"{RETRY_INFO}s", "retryDelay": "12s"}, None),
    ],
)
def test_a_retry_info_has_seconds(detail: dict[str, Any], seconds: float | None) -> None:
    assert retry_info(detail) == seconds


@given(almost | st.text() | st.none() | st.floats() | st.lists(st.integers()))
def test_any_delay_in_a_body_is_clean_or_none(delay: object) -> None:
    seconds = retry_info({"@type": RETRY_INFO, "retryDelay": delay})
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


@given(st.integers() | st.floats() | st.booleans() | st.text() | st.none())
def test_seconds_that_an_sdk_has_read_are_clean_or_none(value: object) -> None:
    seconds = seconds_of(value)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)
    assert seconds_of(7) == 7.0
    assert seconds_of(True) is None
