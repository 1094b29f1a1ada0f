"""Errors with an HTTP status: the verdict by status, headers and body."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from .kinds import FATAL, THROTTLED, TRANSIENT, Failure, package_of, with_status, with_wait
from .retry_after import advice, asked_wait, longest_reset, retry_info

__all__ = [
    "DATABASE_PASSING",
    "STATUS_NAMES",
    "by_body",
    "by_status",
    "by_words",
    "is_of_size",
    "may_have_status",
    "names_a_spent_quota",
    "of_status",
    "status_of",
    "words_of",
]

# Attributes in which SDKs keep a status, the usual ones first: a missing one costs a lookup.
_USUAL, _RARE = ("status_code", "status"), ("http_status", "http_status_code")
_HOLDERS = ("http_response", "raw_response", "resp", "meta")
STATUS_NAMES = frozenset({*_USUAL, *_RARE, "response", *_HOLDERS, "code"})
PASSING = frozenset(
    {408, 409, 425}
    | {424, 498, 499}  # overloaded gateways and inference servers: TGI, Groq, nginx, vLLM
    | {444, 449, 460}  # nginx, Azure's "retry with", AWS's load balancer
)
DATABASE_PASSING = PASSING - {409}  # there a conflict with stored data, which stays
_TOO_MANY_REQUESTS = frozenset({429, 420})
_LONGEST_READ = 2000  # characters of a message
_UNAUTHORIZED = 561  # AWS's load balancer
_LONGEST_RESET = 30.0  # seconds: room for one call comes sooner than the full refill
_WAIT_HEADERS = frozenset({"retry-after", "retry-after-ms"})


def status_of(exc: BaseException) -> int | None:
    """The HTTP status of an error, by the attributes of the SDKs, or None.

    Reads `code` last: aiohttp deprecates it, with a warning.
    """
    status = None if _is_broken_answer(exc) else _first_number(exc)
    return int(status) if status is not None and 400 <= status < 600 else None  # noqa: PLR2004 - HTTP


def _is_broken_answer(exc: BaseException) -> bool:
    """Whether aiohttp could not parse an answer: the error then has a 400 of its own."""
    of_parsing = "aiohttp.http_exceptions"
    return type(exc).__module__ == of_parsing or (
        type(exc).__module__ == "aiohttp.client_exceptions"
        and type(exc.__cause__).__module__ == of_parsing
    )


def _first_number(exc: BaseException) -> int | None:
    response = getattr(exc, "response", None)
    for holder, names in ((exc, _USUAL), (response, _USUAL), (exc, _RARE)):
        for name in names if holder is not None else ():
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return status
    for held in (getattr(exc, holder, None) for holder in _HOLDERS):
        for name in _USUAL if held is not None else ():
            status = getattr(held, name, None)
            if isinstance(status, int):
                return status
    status = getattr(exc, "code", None)
    return status if isinstance(status, int) else None


def _headers_of(exc: BaseException) -> Any:
    headers = getattr(getattr(exc, "response", None), "headers", None)
    if headers is None:
        headers = getattr(exc, "headers", None)
    if headers is not None:
        return headers
    held = (getattr(getattr(exc, name, None), "headers", None) for name in _HOLDERS)
    return next((headers for headers in held if headers is not None), None)


def may_have_status(cls: type[BaseException]) -> bool:
    """Whether an object of the class may have an HTTP status outside of its ``__dict__``."""
    looks_up = hasattr(cls, "__getattr__") or (
        cls.__getattribute__ is not BaseException.__getattribute__
    )
    return looks_up or any(hasattr(cls, name) for name in STATUS_NAMES)


def by_status(exc: BaseException, status: int, passing: frozenset[int] = PASSING) -> Failure:
    """The verdict on an error with a status of 400 to 599; `passing` are those below 500."""
    return with_status(_by_status(exc, status, passing), status)


def _by_status(exc: BaseException, status: int, passing: frozenset[int]) -> Failure:
    headers = _headers_of(exc)
    found = advice(headers)
    should = found.get("x-should-retry", "").lower()
    if should == "false":
        return FATAL
    now = time.time()
    wait = asked_wait(found, now_wall=now)
    if wait is None:
        wait = _wait_in_body(exc)
    if status in _TOO_MANY_REQUESTS:
        if should != "true" and _is_spent_quota(exc, found):
            return FATAL
        if wait is None and (reset := longest_reset(headers, now_wall=now)) is not None:
            wait = min(reset, _LONGEST_RESET)
        return with_wait(THROTTLED, wait)
    if status == 500 and is_of_size(exc):  # noqa: PLR2004 - HTTP
        return FATAL
    verdict = TRANSIENT if should == "true" else of_status(status, passing)
    return verdict if verdict is FATAL else with_wait(verdict, wait)


# Ollama and llama.cpp answer 500 where an input is longer than the context.
_OVER_CONTEXT = re.compile(
    r"exceeds? the (?:available |maximum )?context (?:length|size|window)|"
    r"too large to process.{0,40}batch size",
    re.IGNORECASE,
)


def is_of_size(exc: BaseException) -> bool:
    """Whether a server's error is about the size of the request; only its words say so."""
    return bool(_OVER_CONTEXT.search(str(exc)[:_LONGEST_READ]))


def of_status(status: int, passing: frozenset[int] = PASSING) -> Failure:
    """The verdict on a status of 400 to 599 without headers or a body."""
    if status in _TOO_MANY_REQUESTS:
        return THROTTLED
    if status < 500:  # noqa: PLR2004 - HTTP
        return TRANSIENT if status in passing else FATAL
    return FATAL if status == _UNAUTHORIZED else TRANSIENT


def _is_spent_quota(exc: BaseException, found: dict[str, str]) -> bool:
    """Whether a 429 is about money or a daily quota, which no wait of a call brings back."""
    words = [*words_of(exc), *_quotas(exc)]
    if any(map(names_a_spent_quota, words)):
        return True
    from_anthropic = any(package_of(base) == "anthropic" for base in type(exc).__mro__)
    return from_anthropic and not found.keys() & _WAIT_HEADERS and _RAMP_LIMIT not in words


# ---------------------------------------------------------------------- the body

_SPENT_QUOTAS = frozenset(
    {"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"}
)
_RAMP_LIMIT = "ramp_limit_exceeded"  # Anthropic's: requests grew too fast
_STATUS = re.compile(r"[45][0-9]{2}")
_CODES = {
    **dict.fromkeys(("server_error", "api_error", "timeout_error"), TRANSIENT),
    **dict.fromkeys(("overloaded", "overloaded_error"), TRANSIENT),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "slow_down"), THROTTLED),
    **dict.fromkeys(("context_length_exceeded", "content_filter"), FATAL),
    **dict.fromkeys(("invalid_request_error", "not_found_error", "request_too_large"), FATAL),
    **dict.fromkeys(("authentication_error", "permission_error", "billing_error"), FATAL),
    # Codes of failed OpenAI Responses; the other passing ones are above.
    "vector_store_timeout": TRANSIENT,
    **dict.fromkeys(("invalid_prompt", "data_residency_mismatch", "bio_policy"), FATAL),
    **dict.fromkeys(("misalignment_policy_violation", "image_content_policy_violation"), FATAL),
    **dict.fromkeys(("invalid_image", "invalid_image_format", "invalid_base64_image"), FATAL),
    **dict.fromkeys(("invalid_image_url", "invalid_image_mode", "image_parse_error"), FATAL),
    **dict.fromkeys(("image_too_large", "image_too_small", "image_file_too_large"), FATAL),
    **dict.fromkeys(("unsupported_image_media_type", "empty_image_file"), FATAL),
    **dict.fromkeys(("failed_to_download_image", "image_file_not_found"), FATAL),
}


def by_body(exc: BaseException) -> Failure:
    """An error event in a stream: its codes, or a status among them (vLLM, OpenRouter)."""
    return by_words(words_of(exc)) or TRANSIENT


def by_words(words: Iterable[str]) -> Failure | None:
    """The verdict of the first code that has one; None if none has."""
    for word in words:
        if names_a_spent_quota(word):
            return FATAL
        if word in _CODES:
            return _CODES[word]
        if _STATUS.fullmatch(word):
            return with_status(of_status(int(word)), int(word))
    return None


def _parts(exc: BaseException) -> Iterator[dict[str, Any]]:
    """The parts of an error that may hold a code, the precise ones first."""
    own = vars(exc)  # bypasses properties: aiohttp's `code` warns
    yield own
    # "details" is Google's, "json_body" Voyage's.
    for body in (own.get("body"), own.get("details"), own.get("json_body")):
        if isinstance(body, list) and len(body) == 1:  # Gemini by OpenAI's protocol
            (body,) = body  # noqa: PLW2901 - the same body, without its list
        if isinstance(body, dict):
            if isinstance(inner := body.get("error"), dict):
                yield inner
            yield body


def words_of(exc: BaseException) -> Iterator[str]:
    """The codes and types of an error, in lower case."""
    parts = [*_parts(exc)]
    for key in ("error_code", "code", "type"):
        for part in parts:
            if isinstance(word := part.get(key), (str, int)):
                yield str(word).lower()


def _quotas(exc: BaseException) -> Iterator[str]:
    """The quotas that a Google API reports as used up, in lower case."""
    for detail in _details(exc):
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                yield from (str(violation.get(key)).lower() for key in ("quotaId", "quotaMetric"))


def _wait_in_body(exc: BaseException) -> float | None:
    return next(filter(None, map(retry_info, _details(exc))), None)


def _details(exc: BaseException) -> Iterator[dict[str, Any]]:
    for part in _parts(exc):
        details = part.get("details")
        if part is not vars(exc) and isinstance(details, list):
            yield from (detail for detail in details if isinstance(detail, dict))


def names_a_spent_quota(word: str) -> bool:
    """Whether a code or a quota is about money or the day."""
    day = "daily" in word or "perday" in word.replace("_", "")
    return day or word in _SPENT_QUOTAS or word.endswith("spend_limit_reached")
