"""Errors of the providers' SDKs, by class name."""

from __future__ import annotations

import time
from typing import Any, Final

from .http_errors import by_body, by_words, of_status
from .kinds import (
    FATAL,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    Failure,
    Reader,
    Table,
    package_of,
    with_status,
    with_wait,
)
from .retry_after import advice, asked_wait

__all__ = ["OURS", "PROVIDERS"]


def _by_cause(default: Failure) -> Reader:
    """By the transport's error that caused it, which shows whether anything was sent."""

    def read(exc: BaseException) -> Failure | tuple[Exception, ...]:
        cause = exc.__cause__
        return (cause,) if isinstance(cause, Exception) else default

    return read


def _by_hidden(package: str, default: Failure) -> Reader:
    """By the context of a wrapper without a cause, if that is an error of `package`."""

    def read(exc: BaseException) -> Failure | tuple[Exception, ...]:
        hidden = exc.__context__
        if isinstance(hidden, Exception) and package_of(type(hidden)) == package:
            return (hidden,)
        return default

    return read


# ---------------------------------------------------------------------- AWS

_THROTTLING = "throttling throttled requestthrottled ec2throttled toomanyrequests slowdown"
_LIMITS = "requestlimitexceeded limitexceeded bandwidthlimitexceeded provisionedthroughputexceeded"
_ONE_AT_A_TIME = "transactioninprogress priorrequestnotcomplete"
_MODEL = "modelnotready modeltimeout modelerror modelstreamerror"
_SERVER = "serviceunavailable internalserver internalfailure internalerror requesttimeout"
_REJECTED = "validation accessdenied servicequotaexceeded resourcenotfound expiredtoken"
_AWS: dict[str, Failure] = {
    **dict.fromkeys(f"{_THROTTLING} {_LIMITS} {_ONE_AT_A_TIME}".split(), THROTTLED),
    **dict.fromkeys(f"{_MODEL} {_SERVER}".split(), TRANSIENT),
    **dict.fromkeys(_REJECTED.split(), FATAL),
}


def _by_aws_code(exc: Any) -> Failure:
    """By the code: a model that is not ready is a 429 too, and errors in a stream have no status.

    Names differ: `ThrottlingException` with a status, `throttlingException` in a stream.
    """
    error, answer = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
    code = str(error.get("Code")).lower().removesuffix("exception")
    status = answer.get("HTTPStatusCode")
    is_error = isinstance(status, int) and 400 <= status < 600  # noqa: PLR2004 - HTTP
    verdict = _AWS.get(code) or (of_status(status) if is_error else TRANSIENT)
    if verdict is THROTTLED and "per day" in str(error.get("Message")).lower():
        verdict = FATAL
    if verdict is not FATAL:
        asked = asked_wait(advice(answer.get("HTTPHeaders")), now_wall=time.time())
        verdict = with_wait(verdict, asked)
    return with_status(verdict, status) if is_error else verdict


def _by_retryable(exc: Any) -> Failure:
    return TRANSIENT if exc.retryable else FATAL


def _by_code(exc: Any) -> Failure:
    """By the code with which a model's server ended its stream."""
    return by_words([exc.code]) or UNKNOWN


def _by_finish_reason(exc: BaseException) -> Failure:
    """An empty answer, or none, in LightRAG's bindings.

    The next one would be refused by the content filter too, or cut by Ollama's token limit.
    """
    text = str(exc)
    is_final = "finish_reason=content_filter" in text or "done_reason=length" in text
    return FATAL if is_final else TRANSIENT


# ---------------------------------------------------------------------- the tables

OURS: Table = {
    "CallRejected": FATAL,  # by a nested guard
    **dict.fromkeys(("AttemptTimeoutError", "DeadlineExceededError"), UNKNOWN),
    "TruncatedStreamError": _by_code,
}
_OPENAI: Table = {
    **dict.fromkeys(("OpenAIError", "AnthropicError"), FATAL),  # bare: no key, wrong options
    "APIError": by_body,
    "APIConnectionError": _by_cause(TRANSIENT),
    "APITimeoutError": _by_cause(UNKNOWN),
    **dict.fromkeys(("APIResponseValidationError", "WebSocketConnectionClosedError"), UNKNOWN),
    "RetryableError": TRANSIENT,
}
_GOOGLE: Table = {
    "APIError": by_body,
    "UnknownApiResponseError": UNKNOWN,  # an answer arrived, but is no JSON
    "ContinuationInterruptedError": _by_cause(UNKNOWN),
    "TransportError": TRANSIENT,
    "GoogleAuthError": _by_retryable,
    "RetryError": _by_cause(UNKNOWN),
}
_BOTOCORE: Table = {
    "ClientError": _by_aws_code,
    "BotoCoreError": FATAL,  # no credentials, no region, wrong parameters
    "ConnectionError": TRANSIENT,  # refused, no name, connect timeout, proxy, TLS
    **dict.fromkeys(("HTTPClientError", "IncompleteReadError", "ChecksumError"), UNKNOWN),
    "MetadataRetrievalError": TRANSIENT,
    **dict.fromkeys(("ResponseParserError", "ParserError"), UNKNOWN),  # the answer is not AWS's
}
_VOYAGE: Table = {
    "VoyageError": FATAL,
    "APIError": UNKNOWN,  # an answer arrived, but is no JSON
    "APIConnectionError": _by_cause(UNKNOWN),
    "Timeout": _by_cause(UNKNOWN),
    "RateLimitError": THROTTLED,
    **dict.fromkeys(("ServerError", "ServiceUnavailableError", "TryAgain"), TRANSIENT),
}
_ZHIPU: Table = {
    "ZhipuAIError": FATAL,
    "APIResponseError": UNKNOWN,
    **dict.fromkeys(("APIConnectionError", "APITimeoutError"), _by_cause(UNKNOWN)),
}
_OLLAMA: Table = {
    "ResponseError": TRANSIENT,  # without a status: an error in a stream
    "RequestError": FATAL,
}
_LIGHTRAG: Table = {
    "BedrockRateLimitError": _by_hidden("botocore", THROTTLED),
    "BedrockConnectionError": _by_hidden("botocore", TRANSIENT),
    "BedrockTimeoutError": _by_hidden("botocore", UNKNOWN),
    "BedrockError": _by_hidden("botocore", FATAL),
    "APITimeoutError": UNKNOWN,
    "InvalidResponseError": _by_finish_reason,
    "VoyageAIError": TRANSIENT,  # an empty answer
    "TransientBadRequestError": TRANSIENT,
    "EmptyTruncatedResponseError": FATAL,  # the same limit would cut the next answer too
}
PROVIDERS: Final[dict[str, Table]] = {
    "openai": _OPENAI,
    "anthropic": _OPENAI,
    "google": _GOOGLE,
    "botocore": _BOTOCORE,
    "aiobotocore": _BOTOCORE,
    "voyageai": _VOYAGE,
    "zhipuai": _ZHIPU,
    "ollama": _OLLAMA,
    "lightrag": _LIGHTRAG,
}
