"""What each failure of a provider's SDK means: Google, AWS, Ollama, and LightRAG's wrappers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from support.lookalikes import errors, kinds
from support.verdicts import FATAL, THROTTLED, TRANSIENT, UNKNOWN, caused, raised_over

Make = Callable[[Any], Exception]

# ---------------------------------------------------------------------- Google

GOOGLE = "type.googleapis.com/google.rpc."
PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"


def quota(*ids: str) -> dict[str, Any]:
    return {"@type": f"{GOOGLE}QuotaFailure", "violations": [{"quotaId": id_} for id_ in ids]}


def retry_info(delay: object) -> dict[str, Any]:
    return {"@type": f"{GOOGLE}RetryInfo", "retryDelay": delay}


def google_said(status: int, *details: object) -> dict[str, Any]:
    return {"error": {"code": status, "message": "m", "status": "S", "details": [*details]}}


def google_error(status: int, body: object, headers: Any = None) -> Exception:
    """What google-genai makes of an answer over HTTP."""
    module = pytest.importorskip("google.genai.errors")
    response = httpx.Response(status, json=body, headers=headers)
    with pytest.raises(module.APIError) as caught:
        module.APIError.raise_for_response(response)
    error: Exception = caught.value
    return error


@pytest.mark.parametrize(
    ("status", "details", "expected"),
    [
        (429, [quota(PER_MINUTE), retry_info("12.3s")], Failure(FailureKind.THROTTLED, 12.3)),
        (429, [quota(PER_MINUTE)], THROTTLED),
        (429, [quota(PER_MINUTE, PER_DAY), retry_info("12.3s")], FATAL),
        (429, [quota(PER_DAY)], FATAL),
        (429, [], THROTTLED),
        (503, [retry_info("2s")], Failure(FailureKind.TRANSIENT, 2.0)),
        (503, [], TRANSIENT),
        (500, [], TRANSIENT),
        (402, [retry_info("2s")], FATAL),
        (400, [], FATAL),
        (403, [], FATAL),
    ],
)
def test_google_errors_have_wait_and_quota_in_the_body(
    status: int, details: list[object], expected: Failure
) -> None:
    assert classify(google_error(status, google_said(status, *details))) == expected


def test_a_quota_of_google_may_be_named_by_its_metric() -> None:
    metric = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_requests_per_model_per_day"
    }
    assert classify(google_error(429, google_said(429, {"violations": [metric]}))) == FATAL


def test_a_header_goes_before_the_body() -> None:
    error = google_error(429, google_said(429, retry_info("12s")), {"retry-after": "3"})
    assert classify(error) == Failure(FailureKind.THROTTLED, 3.0)


@pytest.mark.parametrize(
    "delay", ["-5s", "soon", "", "12", "1e3s", "nans", "infs", "12.3", "1m", 12, None, {}, "9" * 70]
)
def test_a_malformed_delay_in_the_body_is_no_wait(delay: object) -> None:
    error = google_error(429, google_said(429, retry_info(delay)))
    assert classify(error) == THROTTLED


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"details": None}},
        {"error": {"details": {"@type": "x"}}},
        {"error": {"details": [None, 5, "x", [], {"violations": 5}, {"violations": [5, None]}]}},
        {"error": "m"},
        {"message": "m"},
        [{"error": {"message": "m"}}],
    ],
)
def test_an_odd_body_does_not_hide_the_status(body: object) -> None:
    assert classify(google_error(429, body)) == THROTTLED


def test_gemini_by_openais_protocol_has_a_list_for_a_body() -> None:
    openai = pytest.importorskip("openai")
    httpx2 = pytest.importorskip("httpx2")
    request = httpx2.Request("POST", "http://provider/")

    def error(*details: object) -> Exception:
        body = [google_said(429, *details)]
        response = httpx2.Response(429, json=body, request=request)
        made: Exception = openai.RateLimitError("m", response=response, body=body)
        return made

    waiting = Failure(FailureKind.THROTTLED, 7.5)
    assert classify(error(quota(PER_MINUTE), retry_info("7.500s"))) == waiting
    assert classify(error(quota(PER_DAY), retry_info("7.500s"))) == FATAL


@pytest.mark.parametrize(
    ("code", "expected"), [(1006, TRANSIENT), (1011, TRANSIENT), (200, TRANSIENT)]
)
def test_a_closed_websocket_of_google_is_passing(code: int, expected: Failure) -> None:
    module = pytest.importorskip("google.genai.errors")
    assert classify(module.APIError(code, "going away", None)) == expected


def test_other_errors_of_google_have_their_verdicts() -> None:
    genai = pytest.importorskip("google.genai.errors")
    auth = importlib.import_module("google.auth.exceptions")
    core = pytest.importorskip("google.api_core.exceptions")
    verdicts = {
        genai.UnknownApiResponseError("m"): UNKNOWN,
        genai.UnsupportedFunctionError("m"): FATAL,
        auth.TransportError("m"): TRANSIENT,
        auth.RefreshError("m", retryable=True): TRANSIENT,
        auth.DefaultCredentialsError("m"): FATAL,
        core.ResourceExhausted("m"): THROTTLED,
        core.ServiceUnavailable("m"): TRANSIENT,
        core.InvalidArgument("m"): FATAL,
        core.RetryError("m", cause=core.ServiceUnavailable("m")): UNKNOWN,
    }
    found = {type(error).__name__: classify(error) for error in verdicts}
    assert found == {type(error).__name__: verdict for error, verdict in verdicts.items()}


# ---------------------------------------------------------------------- AWS


def aws_said(
    code: str, status: int | None = None, headers: Any = None, message: str = "m"
) -> dict[str, Any]:
    answer = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    metadata = {} if status is None else {"ResponseMetadata": answer}
    return {"Error": {"Code": code, "Message": message}, **metadata}


AWS = [
    (aws_said("ThrottlingException", 429), THROTTLED),
    (aws_said("TooManyRequestsException", 429), THROTTLED),
    (aws_said("SlowDown", 503), THROTTLED),
    (aws_said("ThrottlingException", 429, message="Too many tokens, please wait."), THROTTLED),
    (aws_said("ThrottlingException", 429, message="Too many tokens per day, please wait."), FATAL),
    (
        aws_said("ThrottlingException", 429, {"retry-after": "4"}),
        Failure(FailureKind.THROTTLED, 4.0),
    ),
    (
        aws_said("ServiceUnavailableException", 503, {"x-amz-retry-after": "1500"}),
        Failure(FailureKind.TRANSIENT, 1.5),
    ),
    (aws_said("ModelNotReadyException", 429), TRANSIENT),
    (aws_said("ModelTimeoutException", 408), TRANSIENT),
    (aws_said("ModelErrorException", 424), TRANSIENT),
    (aws_said("InternalServerException", 500), TRANSIENT),
    (aws_said("529", 529), TRANSIENT),
    (aws_said("429", 429), THROTTLED),
    (aws_said("ValidationException", 400), FATAL),
    (aws_said("ValidationException", 400, {"retry-after": "4"}), FATAL),
    (aws_said("AccessDeniedException", 403), FATAL),
    (aws_said("ServiceQuotaExceededException", 400), FATAL),
    (aws_said("UnrecognizedClientException", 403), FATAL),
    (aws_said("SomethingNewException", 200), TRANSIENT),
    ({}, TRANSIENT),
    ({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": "nonsense"}}, TRANSIENT),
]


@pytest.mark.parametrize("kind", kinds("botocore"))
@pytest.mark.parametrize(("response", "expected"), AWS)
def test_bedrock_errors_by_code_before_status(
    kind: str, response: dict[str, Any], expected: Failure
) -> None:
    make = errors(kind, "botocore.exceptions").ClientError
    assert classify(make(response, "InvokeModel")) == expected


@pytest.mark.parametrize("kind", kinds("botocore"))
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("throttlingException", THROTTLED),
        ("internalServerException", TRANSIENT),
        ("modelStreamErrorException", TRANSIENT),
        ("modelTimeoutException", TRANSIENT),
        ("serviceUnavailableException", TRANSIENT),
        ("validationException", FATAL),
    ],
)
def test_an_error_within_a_bedrock_stream_has_only_its_code(
    kind: str, code: str, expected: Failure
) -> None:
    make = errors(kind, "botocore.exceptions").EventStreamError
    assert classify(make(aws_said(code), "ConverseStream")) == expected


BOTOCORE: list[tuple[Make, Failure]] = [
    (lambda b: b.EndpointConnectionError(endpoint_url="u", error="m"), TRANSIENT),
    (lambda b: b.ConnectTimeoutError(endpoint_url="u", error="m"), TRANSIENT),
    (lambda b: b.ProxyConnectionError(proxy_url="u", error="m"), TRANSIENT),
    (lambda b: b.SSLError(endpoint_url="u", error="m"), TRANSIENT),
    (lambda b: b.ReadTimeoutError(endpoint_url="u", error="m"), UNKNOWN),
    (lambda b: b.ConnectionClosedError(endpoint_url="u", error="m"), UNKNOWN),
    (lambda b: b.HTTPClientError(error="m"), UNKNOWN),
    (lambda b: b.ResponseStreamingError(error="m"), UNKNOWN),
    (lambda b: b.IncompleteReadError(actual_bytes=1, expected_bytes=2), UNKNOWN),
    (lambda b: b.NoCredentialsError(), FATAL),
    (lambda b: b.ParamValidationError(report="m"), FATAL),
]


@pytest.mark.parametrize("kind", kinds("botocore"))
@pytest.mark.parametrize(("make", "expected"), BOTOCORE)
def test_botocore_connection_errors_by_whether_a_request_was_sent(
    kind: str, make: Make, expected: Failure
) -> None:
    assert classify(make(errors(kind, "botocore.exceptions"))) == expected


def test_classes_that_boto3_makes_for_a_service_are_classified() -> None:
    boto3 = pytest.importorskip("boto3")
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = boto3.client("bedrock-runtime", region_name="us-east-1", **keys)
    error = client.exceptions.ModelNotReadyException(aws_said("ModelNotReadyException", 429), "m")
    assert classify(error) == TRANSIENT


# ---------------------------------------------------------------------- Ollama


@pytest.mark.parametrize("kind", kinds("ollama"))
@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, TRANSIENT), (500, TRANSIENT), (429, THROTTLED), (404, FATAL), (400, FATAL)],
)
def test_ollama_keeps_the_status(kind: str, status: int, expected: Failure) -> None:
    assert classify(errors(kind, "ollama._types").ResponseError("m", status)) == expected


@pytest.mark.parametrize("kind", kinds("ollama"))
def test_an_ollama_error_without_a_status_came_within_a_stream(kind: str) -> None:
    ollama = errors(kind, "ollama._types")
    assert classify(ollama.ResponseError("m")) == TRANSIENT
    assert classify(ollama.RequestError("m")) == FATAL


def test_a_connection_error_with_a_context_of_httpx_is_classified_by_that() -> None:
    refused, lost = httpx.ConnectError("m"), httpx.ReadError("m")
    assert classify(raised_over(refused, ConnectionError("m"))) == TRANSIENT
    assert classify(raised_over(lost, ConnectionError("m"))) == UNKNOWN
    assert classify(raised_over(refused, ConnectionResetError("m"))) == UNKNOWN
    assert classify(raised_over(ValueError(), ConnectionError("m"))) == UNKNOWN


def test_a_refused_port_is_transient_with_the_real_ollama_client() -> None:
    ollama = pytest.importorskip("ollama")
    with pytest.raises(ConnectionError) as caught:
        ollama.Client("http://127.0.0.1:9", trust_env=False).list()
    assert classify(caught.value) == TRANSIENT


# ---------------------------------------------------------------------- anthropic


WAITLESS = Failure(FailureKind.THROTTLED, 0.0)


def anthropic_error(status: int, headers: dict[str, str], error: object) -> Exception:
    anthropic = pytest.importorskip("anthropic")
    httpx2 = pytest.importorskip("httpx2")
    body = {"type": "error", "error": error}
    client = anthropic.Anthropic(
        api_key="key",
        max_retries=0,
        http_client=httpx2.Client(
            transport=httpx2.MockTransport(
                lambda _: httpx2.Response(status, headers=headers, json=body)
            )
        ),
    )
    with pytest.raises(anthropic.AnthropicError) as caught:
        client.messages.create(model="m", max_tokens=1, messages=[])
    made: Exception = caught.value
    return made


@pytest.mark.parametrize(
    ("status", "headers", "error", "expected"),
    [
        (
            429,
            {"retry-after": "3"},
            {"type": "rate_limit_error"},
            Failure(FailureKind.THROTTLED, 3),
        ),
        (429, {}, {"type": "rate_limit_error"}, FATAL),
        (429, {"retry-after": "3"}, "enforced_spend_limit_reached", FATAL),
        (429, {"retry-after": "3"}, "contract_spend_limit_reached", FATAL),
        (429, {}, "ramp_limit_exceeded", THROTTLED),
        (402, {}, {"type": "billing_error"}, FATAL),
        (529, {}, {"type": "overloaded_error"}, TRANSIENT),
        (500, {}, {"type": "api_error"}, TRANSIENT),
        (400, {}, {"type": "invalid_request_error"}, FATAL),
    ],
)
def test_errors_of_the_real_anthropic_client(
    status: int, headers: dict[str, str], error: Any, expected: Failure
) -> None:
    if isinstance(error, str):
        details = {"error_code": error}
        error = {"type": "rate_limit_error", "message": "m", "details": details}
    assert classify(anthropic_error(status, headers, error)) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [("enforced_spend_limit_reached", FATAL), ("ramp_limit_exceeded", THROTTLED)],
)
def test_an_anthropic_429_may_name_its_cause_in_a_code(code: str, expected: Failure) -> None:
    names = {"__module__": "anthropic"}
    error: Any = type("RateLimitError", (Exception,), names)("m")
    error.status_code, error.error_code = 429, code
    assert classify(error) == expected


# ---------------------------------------------------------------------- LightRAG's own


def lightrag_error(name: str) -> Exception:
    names = {"__module__": "lightrag.llm.bedrock"}
    base = type("BedrockError", (Exception,), names)
    made = base("m") if name == "BedrockError" else type(name, (base,), names)("m")
    assert isinstance(made, Exception)
    return made


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("BedrockRateLimitError", THROTTLED),
        ("BedrockConnectionError", TRANSIENT),
        ("BedrockTimeoutError", UNKNOWN),
        ("BedrockError", FATAL),
    ],
)
def test_lightrags_bedrock_errors_are_classified_by_their_context(
    name: str, alone: Failure
) -> None:
    botocore = errors("lookalike", "botocore.exceptions")
    day = aws_said("ThrottlingException", 429, message="Too many tokens per day")
    closed = botocore.ConnectionClosedError(endpoint_url="u")
    assert classify(lightrag_error(name)) == alone
    assert classify(raised_over(TimeoutError(), lightrag_error(name))) == alone
    assert classify(raised_over(botocore.ClientError(day, "m"), lightrag_error(name))) == FATAL
    assert classify(raised_over(closed, lightrag_error(name))) == UNKNOWN


@pytest.mark.lightrag
def test_lightrag_has_the_bedrock_errors_and_the_cut_answer() -> None:
    pytest.importorskip("lightrag")
    cut = importlib.import_module("lightrag.exceptions").EmptyTruncatedResponseError("m")
    assert classify(cut) == FATAL
    pytest.importorskip("aioboto3")
    bedrock = importlib.import_module("lightrag.llm.bedrock")
    assert classify(bedrock.BedrockRateLimitError("m")) == THROTTLED


# ---------------------------------------------------------------------- errors in circles


def test_errors_that_cause_each_other_are_classified_once() -> None:
    def connection_error() -> Exception:
        names = {"__module__": "openai"}
        error: Exception = type("APIConnectionError", (Exception,), names)("m")
        return error

    one, other = connection_error(), connection_error()
    assert classify(caused(one, caused(other, one))) == TRANSIENT
    group = ExceptionGroup("m", [one, other])
    one.__cause__ = other.__cause__ = group
    assert classify(group) == TRANSIENT
    assert classify(ExceptionGroup("m", [one, ValueError()])) == FATAL


def test_groups_nested_too_deep_are_of_unknown_outcome() -> None:
    error: Exception = ValueError()
    for _ in range(5_000):
        error = ExceptionGroup("m", [error])
    assert classify(error) == UNKNOWN


# ---------------------------------------------------------------------- broken answers


def raised_in(module: str, code: str) -> Exception:
    """What some code raises as a part of a module."""
    names: dict[str, Any] = {"__name__": module, "json": json}
    exec(f"def read():\n    {code}", names)  # noqa: S102 - what an SDK's module would hold
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - of either kind
        names["read"]()
    return raised.value


@pytest.mark.parametrize("code", ["json.loads('{')", "bytes([255]).decode()"])
def test_an_answer_that_an_sdk_cannot_read_is_unknown_and_elsewhere_a_bug(code: str) -> None:
    for module in ("openai._streaming", "anthropic._streaming", "httpx2._decoders", "ollama"):
        assert classify(raised_in(module, code)) == UNKNOWN
    for module in ("application", "openaix", "lightrag.utils", "__main__"):
        assert classify(raised_in(module, code)) == FATAL
