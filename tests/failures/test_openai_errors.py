"""What errors of the OpenAI and Anthropic SDKs mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from support.failures import (
    FATAL,
    LIBRARIES,
    LOCAL,
    STATUSES,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    status_error,
)

Respond = Callable[[Any], Any]


# ---------------------------------------------------------------------- openai, anthropic

pytestmark = pytest.mark.processes  # openai asks `uname` for its headers


def openai_error(respond: Respond, *, library: str = "httpx2", stream: bool = False) -> Exception:
    openai, module = pytest.importorskip("openai"), pytest.importorskip(library)
    client = openai.OpenAI(
        api_key="key",
        base_url="http://provider/v1",
        max_retries=0,
        http_client=module.Client(transport=module.MockTransport(respond)),
    )
    with pytest.raises(openai.OpenAIError) as caught:
        list(client.chat.completions.create(model="m", messages=[], stream=stream))
    error: Exception = caught.value
    return error


def openai_status(status: int, headers: Any = None, error: object = None) -> Exception:
    httpx2 = pytest.importorskip("httpx2")
    body = {"error": error}
    return openai_error(lambda _: httpx2.Response(status, headers=headers, json=body))


ODD_BODIES: list[Any] = [None, "m", 5, [], [{}], {}]


def said(code: object, kind: object = None) -> dict[str, object]:
    return {"message": "m", "type": kind, "param": None, "code": code}


@pytest.mark.parametrize(("status", "headers", "expected"), STATUSES)
def test_openai_errors_by_status(status: int, headers: dict[str, str], expected: Failure) -> None:
    assert classify(openai_status(status, headers, said("odd"))) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said("rate_limit_exceeded", "tokens"), Failure(FailureKind.THROTTLED, 2.0)),
        (said("insufficient_quota", "insufficient_quota"), FATAL),
        (said(None, "insufficient_quota"), FATAL),
        (said("credit_balance_exhausted"), FATAL),
        (said("billing_hard_limit_reached", "invalid_request_error"), FATAL),
        (said("Daily_Quota_Exceeded"), FATAL),
        (said("requests_per_day"), FATAL),
        ({"error": {"code": "insufficient_quota"}}, FATAL),
        *((odd, Failure(FailureKind.THROTTLED, 2.0)) for odd in ODD_BODIES),
        (said(["insufficient_quota"], {"type": 1}), Failure(FailureKind.THROTTLED, 2.0)),
    ],
)
def test_a_429_about_money_or_a_daily_quota_is_fatal(error: object, expected: Failure) -> None:
    assert classify(openai_status(429, {"retry-after": "2"}, error)) == expected


def test_an_explicit_advice_to_retry_overrides_a_spent_quota() -> None:
    error = openai_status(429, {"x-should-retry": "true"}, said("insufficient_quota"))
    assert classify(error) == THROTTLED


def test_a_spent_quota_is_read_from_a_body_that_still_has_its_envelope() -> None:
    error = status_error("httpx", 429)
    error.body = {"error": {"type": "insufficient_quota"}}  # type: ignore[attr-defined]
    assert classify(error) == FATAL


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, UNKNOWN) for name in ("ReadTimeout", "WriteTimeout", "ReadError")),
        ("RemoteProtocolError", UNKNOWN),
        *((name, TRANSIENT) for name in ("ConnectTimeout", "ConnectError")),
        ("PoolTimeout", LOCAL),
        ("LocalProtocolError", FATAL),
    ],
)
def test_openai_connection_errors_by_cause(library: str, name: str, expected: Failure) -> None:
    transport_error = getattr(pytest.importorskip(library), name)

    def respond(_: Any) -> Any:
        raise transport_error("m")

    assert classify(openai_error(respond, library=library)) == expected


def test_openai_connection_errors_without_a_cause_have_a_default() -> None:
    openai, request = pytest.importorskip("openai"), httpx.Request("POST", "http://provider/")
    error = openai.APIConnectionError(request=request)
    assert classify(error) == TRANSIENT
    assert classify(openai.APITimeoutError(request=request)) == UNKNOWN
    error.__cause__ = error
    assert classify(error) == TRANSIENT


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (said("server_error"), TRANSIENT),
        (said(None, "overloaded"), TRANSIENT),
        (said("rate_limit_exceeded", "invalid_request_error"), THROTTLED),
        (said("context_length_exceeded", "server_error"), FATAL),
        (said("content_filter"), FATAL),
        (said(None, "invalid_request_error"), FATAL),
        (said("insufficient_quota"), FATAL),
        (said(429), THROTTLED),
        (said(400, "BadRequestError"), FATAL),
        (said("502"), TRANSIENT),
        (said(1006), TRANSIENT),
        (said(18), TRANSIENT),
        (said("an_unknown_code"), TRANSIENT),
        ("a text", TRANSIENT),
    ],
)
def test_an_error_in_an_openai_stream_is_classified_by_its_body(
    error: object, expected: Failure
) -> None:
    httpx2 = pytest.importorskip("httpx2")
    events = f"data: {json.dumps({'error': error})}\n\n"
    headers = {"content-type": "text/event-stream"}
    raised = openai_error(lambda _: httpx2.Response(200, headers=headers, text=events), stream=True)
    assert not hasattr(raised, "status_code")
    assert classify(raised) == expected


def test_a_client_that_cannot_be_built_is_the_callers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openai = pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError) as caught:
        openai.OpenAI().models.list()
    assert classify(caught.value) == FATAL


def anthropic_like(status: int, headers: dict[str, str], error: object = None) -> Exception:
    """An error of the shape that the anthropic SDK raises."""
    names = {"__module__": "anthropic"}
    root = type("AnthropicError", (Exception,), names)
    base = type("APIStatusError", (type("APIError", (root,), names),), names)
    raised: Any = base("m")
    raised.response = httpx.Response(status, headers=headers)
    raised.status_code = status
    raised.body = {"type": "error", "error": error}
    return raised  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, Failure(FailureKind.THROTTLED, 3.0)),
        ({"retry-after": "nonsense"}, THROTTLED),
        ({"x-should-retry": "true"}, THROTTLED),
        ({}, FATAL),
        ({"x-should-retry": "perhaps"}, FATAL),
        ({"anthropic-ratelimit-tokens-reset": "2099-01-01T00:00:00Z"}, FATAL),
    ],
)
def test_an_anthropic_429_without_a_retry_after_is_its_spend_limit(
    headers: dict[str, str], expected: Failure
) -> None:
    assert classify(anthropic_like(429, headers)) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", TRANSIENT),
        ("rate_limit_error", THROTTLED),
        ("invalid_request_error", FATAL),
    ],
)
def test_an_error_in_an_anthropic_stream_is_classified_by_its_body(
    kind: str, expected: Failure
) -> None:
    assert classify(anthropic_like(200, {}, {"type": kind})) == expected
