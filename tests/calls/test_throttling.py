"""What a provider says of its limits is kept, and never more than is configured."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from lightrag_resilience import Guard, LimitPolicy
from lightrag_resilience.throttling import learn_limits
from support.guards import Scripted, guard_on_loop, now, outcomes

pytestmark = pytest.mark.anyio


def refused(**headers: str) -> httpx.HTTPStatusError:
    """A 429 with these headers."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    request = httpx.Request("POST", "http://provider")
    response = httpx.Response(429, headers=names, request=request)
    return httpx.HTTPStatusError("429", request=request, response=response)


def limited(rpm: float | None = 600.0, tpm: float | None = None, **more: Any) -> Guard:
    return guard_on_loop(limit=LimitPolicy(rpm=rpm, tpm=tpm, max_wait=300.0, **more))


@pytest.mark.parametrize(
    ("headers", "rpm", "tpm"),
    [
        ({"x-ratelimit-limit-requests": "60"}, 60.0, 6000.0),
        ({"x-ratelimit-limit-requests": "6000"}, 600.0, 6000.0),
        ({"x-ratelimit-limit-tokens": "500"}, 600.0, 500.0),
        ({"anthropic-ratelimit-requests-limit": "50"}, 50.0, 6000.0),
        ({"x-ratelimit-limit-requests": "0"}, 600.0, 6000.0),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-limit-tokens": "many"}, 600.0, 6000.0),
        ({}, 600.0, 6000.0),
        (None, 600.0, 6000.0),
    ],
)
async def test_limits_are_lowered_to_what_is_granted(headers: Any, rpm: float, tpm: float) -> None:
    guard = limited(tpm=6000.0)
    learn_limits(guard, headers)
    assert (guard.policy.limit.rpm, guard.policy.limit.tpm) == (rpm, tpm)


async def test_where_none_is_configured_none_is_learned() -> None:
    guard = limited(rpm=None)
    before = guard.policy
    learn_limits(guard, {"x-ratelimit-limit-requests": "60"})
    assert guard.policy is before


async def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = limited(tpm=6000.0)
    for _ in range(3):
        learn_limits(guard, {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9e9"})
    assert [record.getMessage() for record in caplog.records] == [
        "The provider of 'llm' grants less than is configured: LIMIT__RPM 600 is 60"
    ]


async def test_a_429_lowers_the_limit_and_its_wait_is_kept_too() -> None:
    guard = limited(burst=1)
    error = refused(retry_after="5", x_ratelimit_limit_requests="60")
    with pytest.raises(httpx.HTTPStatusError):
        await guard.call(Scripted(error))
    function = Scripted("fine")
    await outcomes(guard.call(function) for _ in range(3))
    assert 5.0 <= function.at[0] <= 5.5
    assert function.gaps() == pytest.approx([1.0, 1.0], abs=0.01)


async def test_a_wait_outlives_a_change_of_the_policy() -> None:
    guard = limited()
    with pytest.raises(httpx.HTTPStatusError):
        await guard.call(Scripted(refused(retry_after="5")))
    guard.change(guard.policy.with_changes(attempts=2))
    await guard.call(Scripted("fine"))
    assert 5.0 <= now() <= 5.5
