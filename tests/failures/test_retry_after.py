"""What headers say about trying again, and that nonsense in them is ignored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightrag_resilience.failures.rate_limit_headers import RateState, RateStates, rate_states
from lightrag_resilience.failures.retry_after import (
    advice,
    retry_after,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()
NONSENSE = [
    *("", " ", "soon", "nan", "inf", "-inf", "-1", "-0.5", "+5", "1e3", "0x10", "1_000", "1,5"),
    *(
        "5 s",
        "1.",
        ".5",
        "٣",
        "120, 120",
        "9" * 65,
        "Mon, 99 Foo 2026 99:99:99 GMT",
        "\x00",
        "True",
    ),
]
NAMES = [
    "retry-after-ms",
    "retry-after",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-reset",
]


def wait(headers: Any, *, resets: bool = True) -> float | None:
    return retry_after(headers, now_wall=NOW, resets=resets)


def message(headers: Mapping[str, str]) -> Message:
    built = Message()
    for name, value in headers.items():
        built[name] = value
    return built


def multidict(headers: Mapping[str, str]) -> Any:
    return pytest.importorskip("multidict").CIMultiDict(headers)


def httpx2_headers(headers: Mapping[str, str]) -> Any:
    return pytest.importorskip("httpx2").Headers(headers)


@pytest.mark.parametrize("kind", [dict, httpx.Headers, httpx2_headers, multidict, message])
@pytest.mark.parametrize("name", ["retry-after", "Retry-After", "RETRY-AFTER"])
def test_any_mapping_is_read_whatever_the_case_of_its_names(kind: Any, name: str) -> None:
    assert wait(kind({"Content-Type": "text/plain", name: "7"})) == 7.0


@pytest.mark.parametrize("kind", [dict, httpx.Headers, httpx2_headers, multidict, message])
def test_any_mapping_is_searched_for_resets(kind: Any) -> None:
    assert wait(kind({"X-RateLimit-Reset-Tokens": "1m30.5s"})) == 90.5


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("20", 20.0), ("1.25", 1.25), (" 3 ", 3.0), ("007", 7.0)]
)
def test_seconds_may_be_whole_or_decimal(text: str, seconds: float) -> None:
    assert wait({"retry-after": text}) == seconds


def test_a_number_that_is_no_text_counts_too() -> None:
    assert wait({"retry-after": 5}) == 5.0
    assert wait({"retry-after": b"5"}) == 5.0


def test_milliseconds_go_before_seconds() -> None:
    assert wait({"retry-after": "2", "retry-after-ms": "1500"}) == 1.5


@pytest.mark.parametrize("text", NONSENSE)
def test_a_malformed_header_leads_on_to_the_next(text: str) -> None:
    headers = {"retry-after-ms": text, "retry-after": "2"}
    assert wait(headers) == 2.0
    assert wait({"retry-after": text, "x-ratelimit-reset-requests": "4s"}) == 4.0
    assert wait({"x-ratelimit-reset-requests": text, "x-ratelimit-reset-tokens": "4s"}) == 4.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", NONSENSE)
def test_malformed_headers_are_no_hint(name: str, text: str) -> None:
    assert wait({name: text}) is None


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 01 Mar 2026 12:00:30 GMT",
        "Sun, 01 Mar 2026 12:00:30 -0000",
        "Sunday, 01-Mar-26 12:00:30 GMT",
        "Sun Mar  1 12:00:30 2026",
        "Sun, 01 Mar 2026 13:00:30 +0100",
    ],
)
def test_a_date_is_seconds_from_now_in_every_form_of_http(text: str) -> None:
    assert wait({"retry-after": text}) == 30.0


@pytest.mark.parametrize("off", [-3600, -30, 0, 30, 3600])
def test_now_is_the_date_of_the_answer(off: int) -> None:
    """Our clock may be an hour off; both dates are of the provider's."""
    theirs = datetime.fromtimestamp(NOW + off, UTC)
    then = format_datetime(theirs + timedelta(seconds=2), usegmt=True)
    dated = {"Date": format_datetime(theirs, usegmt=True), "Retry-After": then}
    assert wait(dated) == 2.0
    assert wait(httpx.Headers(dated)) == 2.0
    assert wait({**dated, "Date": "yesterday"}) == (2.0 + off if off > -2 else None)
    reset = {"anthropic-ratelimit-requests-reset": (theirs + timedelta(seconds=3)).isoformat()}
    reset["date"] = dated["Date"]
    assert retry_after(reset, now_wall=NOW, resets=True) == 3.0
    states = rate_states({**reset, "anthropic-ratelimit-requests-limit": "5"}, now_wall=NOW)
    assert states.requests == RateState(limit=5, reset_after=3.0)


def test_a_date_header_alone_is_no_rate_limit() -> None:
    assert rate_states({"Date": "Sun, 01 Mar 2026 12:00:00 GMT"}, now_wall=NOW) == RateStates()


def test_a_date_in_the_past_is_no_wait() -> None:
    assert wait({"retry-after": "Sun, 01 Mar 2026 11:59:59 GMT"}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1m30.5s", 90.5),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d2h", 93_600.0),
        ("5m", 300.0),
        ("1s500ms", 1.5),
        ("42", 42.0),
    ],
)
def test_resets_are_durations_or_whole_seconds(text: str, seconds: float) -> None:
    assert wait({"x-ratelimit-reset-requests": text}) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0s", "-1", "-1s", "5s1m", "s", "1s2s", "1 s", "1.5m"])
def test_a_reset_of_zero_or_of_odd_form_is_no_hint(text: str) -> None:
    assert wait({"x-ratelimit-reset-tokens": text}) is None


def test_the_longest_of_several_resets_counts() -> None:
    headers = {"x-ratelimit-reset-requests": "12ms", "x-ratelimit-reset-tokens": "3s"}
    assert wait(headers) == 3.0


@pytest.mark.parametrize("text", ["2026-03-01T12:00:09Z", "2026-03-01T13:00:09.000+01:00"])
def test_anthropic_resets_are_moments(text: str) -> None:
    assert wait({"Anthropic-RateLimit-Input-Tokens-Reset": text}) == 9.0


@pytest.mark.parametrize("text", ["2026-03-01T12:00:09", "2026-03-02", "2026-03-01T11:00:00Z"])
def test_an_anthropic_reset_without_a_zone_or_in_the_past_is_no_hint(text: str) -> None:
    assert wait({"anthropic-ratelimit-tokens-reset": text}) is None


def test_resets_are_read_only_when_asked_for_and_only_without_a_retry_after() -> None:
    headers = {"x-ratelimit-reset-tokens": "6m0s"}
    assert wait(headers, resets=False) is None
    assert wait(headers | {"retry-after": "1"}) == 1.0
    assert wait(headers | {"retry-after": "0"}) == 0.0


def test_advice_has_malformed_headers_too() -> None:
    found = advice({"X-Should-Retry": "true", "Retry-After": "nonsense", "Other": "1"})
    assert found == {"x-should-retry": "true", "retry-after": "nonsense"}


class Hostile(Mapping[str, str]):
    def __getitem__(self, key: str) -> str:
        raise RuntimeError(key)

    def __iter__(self) -> Any:
        raise RuntimeError

    def __len__(self) -> int:
        return 1

    @property
    def raw(self) -> Any:
        raise RuntimeError


@pytest.mark.parametrize(
    "headers",
    [None, {}, 5, "retry-after: 1", [("retry-after", "1")], Hostile(), {1: 2, None: None}],
)
def test_headers_that_are_no_mapping_of_text_give_no_hint_and_no_error(headers: object) -> None:
    assert wait(headers) is None


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=80)), st.booleans())
@example({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, False)
@example({"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, False)
@example({"anthropic-ratelimit-tokens-reset": "0001-01-01T00:00:00+23:59"}, True)
@example({"anthropic-ratelimit-tokens-reset": "9999-12-31T23:59:59-23:59"}, True)
def test_any_text_gives_a_clean_hint_or_none(headers: dict[str, str], resets: bool) -> None:  # noqa: FBT001
    seconds = wait(headers, resets=resets)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


numbers_and_signs = st.text("0123456789.-+eE_msdhinfaTZ:, GMT", max_size=70)


@given(st.dictionaries(st.sampled_from(NAMES), numbers_and_signs))
def test_almost_numbers_give_a_clean_hint_or_none(headers: dict[str, str]) -> None:
    seconds = wait(httpx.Headers(headers))
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


@given(st.integers(0, 10**9), st.integers(0, 999))
def test_every_decimal_number_of_seconds_is_read_back(whole: int, thousandths: int) -> None:
    seconds = wait({"retry-after": f"{whole}.{thousandths:03}"})
    assert seconds == pytest.approx(whole + thousandths / 1000)


@given(st.integers(0, 10**8))
def test_every_future_date_is_read_back(seconds: int) -> None:
    moment = datetime.fromtimestamp(NOW + seconds, UTC)
    assert wait({"retry-after": format_datetime(moment, usegmt=True)}) == seconds
    assert wait({"anthropic-ratelimit-tokens-reset": moment.isoformat()}) == (seconds or None)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(1, 999))
def test_every_duration_is_read_back(hours: int, minutes: int, seconds: int, millis: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{millis:03}s"
    expected = hours * 3600 + minutes * 60 + seconds + millis / 1000
    assert wait({"x-ratelimit-reset-tokens": text}) == pytest.approx(expected)
