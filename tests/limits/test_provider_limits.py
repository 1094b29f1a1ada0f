"""What a provider says of its limits is kept, and never more than is configured."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from lightrag_resilience import Guard, LimitPolicy, Policy
from lightrag_resilience.limits.provider_limits import GrantedLimits, lower_limits_from_headers
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
    lower_limits_from_headers(guard, headers)
    assert (guard.policy.limit.rpm, guard.policy.limit.tpm) == (rpm, tpm)


async def test_no_limit_is_applied_where_none_is_configured() -> None:
    guard = limited(rpm=None)
    before = guard.policy
    lower_limits_from_headers(guard, {"x-ratelimit-limit-requests": "60"})
    assert guard.policy is before


def granted_headers(requests: int | None = None, tokens: int | None = None) -> dict[str, str]:
    limits = {"requests": requests, "tokens": tokens}
    return {f"x-ratelimit-limit-{of}": str(n) for of, n in limits.items() if n is not None}


def asking(model: str, url: str = "http://provider/v1/chat/completions") -> httpx.Request:
    question = 'Say "model": "no-model" and \\"model": "neither"'
    content = {"messages": [{"role": "user", "content": question}], "model": model}
    return httpx.Request("POST", url, json=content)


async def test_the_latest_limit_holds_up_to_the_configured_one() -> None:
    guard = limited(tpm=6000.0)
    for requests, rpm in ((10, 10.0), (5000, 600.0), (50, 50.0), (None, 50.0), (400, 400.0)):
        lower_limits_from_headers(
            guard, granted_headers(requests, 100 if requests is None else None)
        )
        assert guard.policy.limit.rpm == rpm
    assert guard.policy.limit.tpm == 100.0


async def test_models_together_may_send_the_sum_of_their_grants() -> None:
    guard = limited(rpm=100.0)
    small, large = asking("small"), asking("large")
    lower_limits_from_headers(guard, granted_headers(10), small)
    assert guard.policy.limit.rpm == 10.0
    lower_limits_from_headers(guard, granted_headers(50), large)
    for _ in range(3):  # the answers come in turns
        lower_limits_from_headers(guard, granted_headers(10), small)
        lower_limits_from_headers(guard, granted_headers(50), large)
        assert guard.policy.limit.rpm == 60.0
    lower_limits_from_headers(guard, granted_headers(500), large)
    assert guard.policy.limit.rpm == 100.0
    lower_limits_from_headers(guard, granted_headers(20), large)
    assert guard.policy.limit.rpm == 30.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asking("a"), asking("b")),
        (
            asking("", "http://x/openai/deployments/a/x"),
            asking("", "http://x/openai/deployments/b"),
        ),
        (asking("", "http://x/v1/models/a:embed"), asking("", "http://x/v1/models/b:embed")),
    ],
)
async def test_a_model_is_known_by_the_path_or_the_body(
    one: httpx.Request, other: httpx.Request
) -> None:
    guard = limited(rpm=100.0)
    lower_limits_from_headers(guard, granted_headers(10), one)
    lower_limits_from_headers(guard, granted_headers(20), other)
    assert guard.policy.limit.rpm == 30.0


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: None,
        object,
        lambda: httpx.Request("POST", "http://x", content=b"\xff"),
        lambda: httpx.Request("POST", "http://x", content=iter([b"a"])),
    ],
)
async def test_requests_without_a_model_count_as_one_model(request_of: Any) -> None:
    guard = limited(rpm=100.0)
    lower_limits_from_headers(guard, granted_headers(10), request_of())
    lower_limits_from_headers(guard, granted_headers(20), request_of())
    assert guard.policy.limit.rpm == 20.0


async def test_a_model_without_recent_answers_counts_no_longer() -> None:
    guard = limited(rpm=100.0)
    lower_limits_from_headers(guard, granted_headers(50), asking("old"))
    await asyncio.sleep(599.0)
    lower_limits_from_headers(guard, granted_headers(10), asking("new"))
    assert guard.policy.limit.rpm == 60.0
    await asyncio.sleep(2.0)
    lower_limits_from_headers(guard, granted_headers(10), asking("new"))
    assert guard.policy.limit.rpm == 10.0


async def test_at_most_32_models_are_kept() -> None:
    guard = limited(rpm=1000.0)
    for number in range(100):
        lower_limits_from_headers(guard, granted_headers(1), asking(f"model-{number}"))
    assert guard.policy.limit.rpm == 32.0


async def test_an_operators_limit_holds_at_once_and_bounds_later_grants() -> None:
    guard = limited(rpm=600.0)
    lower_limits_from_headers(guard, granted_headers(60))
    guard.update_policy(replace(guard.policy, limit=replace(guard.policy.limit, rpm=30.0)))
    lower_limits_from_headers(guard, granted_headers(60))
    assert guard.policy.limit.rpm == 30.0
    guard.update_policy(replace(guard.policy, limit=replace(guard.policy.limit, rpm=900.0)))
    lower_limits_from_headers(guard, granted_headers(700))
    assert guard.policy.limit.rpm == 700.0


async def test_limits_that_change_with_each_answer_are_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = limited(rpm=600.0)
    for number in range(100, 200):
        lower_limits_from_headers(guard, granted_headers(number))
        await asyncio.sleep(1.0)
    assert len(caplog.records) == 2
    assert guard.policy.limit.rpm == 199.0


async def test_a_lowered_limit_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = limited(tpm=6000.0)
    for _ in range(3):
        lower_limits_from_headers(
            guard, {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9e9"}
        )
    assert [record.getMessage() for record in caplog.records] == [
        "The limits of 'llm' follow what its provider grants: LIMIT__RPM 600 is 60"
    ]


async def test_a_429_lowers_the_limit_and_begins_a_cooldown() -> None:
    guard = limited(burst=1)
    error = refused(retry_after="5", x_ratelimit_limit_requests="60")
    with pytest.raises(httpx.HTTPStatusError):
        await guard.call(Scripted(error))
    function = Scripted("fine")
    await outcomes(guard.call(function) for _ in range(3))
    assert 5.0 <= function.at[0] <= 5.5
    assert function.gaps() == pytest.approx([1.0, 1.0], abs=0.01)


async def test_a_cooldown_outlives_a_change_of_the_policy() -> None:
    guard = limited()
    with pytest.raises(httpx.HTTPStatusError):
        await guard.call(Scripted(refused(retry_after="5")))
    guard.update_policy(guard.policy.with_changes(attempts=2))
    await guard.call(Scripted("fine"))
    assert 5.0 <= now() <= 5.5


class SlowGuard:
    """A guard of whose limits another thread applies some while they are being changed."""

    name = "llm"
    granted: GrantedLimits | None = None

    def __init__(self) -> None:
        self.policy = Policy.llm(rpm=600.0)
        self.clock = lambda: 0.0
        self._other: threading.Thread | None = None

    def update_policy(self, policy: Policy, _reason: str) -> None:
        if self._other is None:
            self._other = threading.Thread(
                target=lower_limits_from_headers, args=(self, granted_headers(50))
            )
            self._other.start()
            self._other.join(0.1)  # it waits for the end of this, or would have ended
        self.policy = policy

    def cool_down(self, seconds: float) -> None:
        """Not needed here."""

    def wait(self) -> None:
        assert self._other is not None
        self._other.join()


def test_limits_applied_in_another_thread_are_not_taken_for_configured_ones() -> None:
    guard = SlowGuard()
    lower_limits_from_headers(guard, granted_headers(10))
    guard.wait()
    lower_limits_from_headers(guard, granted_headers(5000))
    assert guard.policy.limit.rpm == 600.0


@pytest.mark.parametrize("tokens", [None, 100])
async def test_a_limit_that_changes_with_each_answer_grants_no_new_burst(
    tokens: int | None,
) -> None:
    guard = limited(rpm=60.0, tpm=None if tokens is None else 6000.0)

    async def answer(number: int, **_: Any) -> None:
        headers = granted_headers(30 + number % 2, None if tokens is None else 3000 + number % 2)
        lower_limits_from_headers(guard, headers)

    for number in range(40):
        await guard.call(answer, number, max_tokens=tokens or 1)
    assert now() >= 60.0
