"""Which failures another model may mend."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
import tenacity

from lightrag_resilience import (
    AllFailedError,
    AttemptTimeoutError,
    BulkheadFullError,
    CircuitOpenError,
    Failure,
    FailureKind,
    PolicyError,
    RateLimitedError,
    should_fall_back,
)
from support.names import without_address

REQUEST: Any = httpx.Request("POST", "https://provider.invalid/v1")


class ProviderError(Exception):
    """What an SDK raises, with what a test gives it."""

    def __init__(self, message: str = "no", **attributes: Any) -> None:
        super().__init__(message)
        vars(self).update(attributes)


def given_up(error: Exception) -> Exception:
    """An error as tenacity reports it after its last attempt."""
    attempt = tenacity.Future(1)
    attempt.set_exception(error)
    return tenacity.RetryError(attempt)


def status(number: int, message: str = "no", **attributes: Any) -> Exception:
    return ProviderError(message, status_code=number, **attributes)


def in_stream(**body: str) -> Exception:
    return openai.APIError("no", REQUEST, body=body)


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpenError("llm", 3.0),
        BulkheadFullError("llm"),
        RateLimitedError("llm"),
        AllFailedError("llm", None, "", (ValueError(),)),
        AttemptTimeoutError("llm"),
        ConnectionRefusedError(),
        TimeoutError(),
        RuntimeError("unknown"),
        *map(status, (401, 402, 403, 404, 408, 409, 413, 429, 500, 503, 529)),
        status(503, response=httpx.Response(503, headers={"x-should-retry": "false"})),
        status(429, code="insufficient_quota"),
        status(400, code="context_length_exceeded"),
        status(400, body={"error": {"code": "model_decommissioned"}}),
        status(400, type="billing_error"),
        status(400, "prompt is too long: 210000 tokens > 200000 maximum"),
        status(400, "This model's maximum context length is 8192 tokens"),
        status(422, "Too many input tokens"),
        in_stream(code="insufficient_quota"),
        in_stream(type="authentication_error"),
        given_up(status(401)),
    ],
    ids=without_address,
)
def test_a_fault_of_one_provider_falls_back(error: Exception) -> None:
    assert should_fall_back(error) is True


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the context length is a bug of ours"),
        TypeError(),
        KeyError("model_not_found"),
        PolicyError("Too large"),
        AssertionError(),
        openai.OpenAIError("wrong options"),
        *map(status, (400, 405, 422)),
        status(400, code="content_filter"),
        status(400, type="invalid_request_error"),
        status(405, "context length"),
        in_stream(code="content_filter"),
        given_up(ValueError()),
        ProviderError(__resilience_failure__=Failure(FailureKind.FATAL)),
    ],
    ids=without_address,
)
def test_a_fault_of_the_request_does_not_fall_back(error: Exception) -> None:
    assert should_fall_back(error) is False


def test_an_error_with_odd_attributes_does_not_fall_back() -> None:
    class OddError(ValueError):
        @property
        def status_code(self) -> int:
            raise RuntimeError

    assert should_fall_back(OddError()) is False
