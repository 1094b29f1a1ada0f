"""What a failure of a dependency means: whether to try again, and who is to blame.

SDKs are recognised by their attributes and by the names of their classes, never imported. To add
one, write a table like those below and enter it in `_RULES` under its top-level module: a class is
given a verdict, or a function that reads the exception; subclasses inherit it.

An exception that knows better carries a `Failure` as ``__resilience_failure__``, on the instance or
on its class, and that wins. An error that nobody knows is assumed to pass: TRANSIENT.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from ._hints import advice, asked_wait, longest_reset
from .errors import AllFailedError

__all__ = [
    "Failure",
    "FailureKind",
    "classify",
    "names_a_spent_quota",
    "root_cause",
    "status_of",
    "words_of",
]


class FailureKind(enum.Enum):
    """The four classes of failures."""

    TRANSIENT = "transient"
    """Passing: worth a retry, and counted."""
    THROTTLED = "throttled"
    """Too many requests: wait as told. Not counted."""
    FATAL = "fatal"
    """The caller's own fault, or nothing that time heals: never tried again, not counted."""
    UNKNOWN_OUTCOME = "unknown"
    """Sent, no answer: repeat only what is idempotent. Counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The verdict on one exception.

    Attributes:
        kind: What follows from it.
        retry_after: Seconds the provider asks to wait, finite and not negative, or None.
    """

    kind: FailureKind
    retry_after: float | None = None

    @property
    def counts(self) -> bool:
        """Whether the dependency is to blame, so that its breaker counts it."""
        return self.kind is FailureKind.TRANSIENT or self.kind is FailureKind.UNKNOWN_OUTCOME


_Rule = Failure | Callable[[Any], Failure]

_TRANSIENT: Final = Failure(FailureKind.TRANSIENT)
_THROTTLED: Final = Failure(FailureKind.THROTTLED)
_FATAL: Final = Failure(FailureKind.FATAL)
_UNKNOWN: Final = Failure(FailureKind.UNKNOWN_OUTCOME)

_DEEPEST: Final = 16  # retries around retries


def classify(exc: BaseException) -> Failure:
    """What a failure means.

    Raises:
        TypeError: `exc` is no `Exception`: a cancellation or an exit has no verdict.
    """
    rule = _rule_for(type(exc))
    try:
        own = getattr(exc, "__resilience_failure__", None)
        if isinstance(own, Failure):
            return own
        status = status_of(exc)
        if status is not None and 400 <= status < 600:  # noqa: PLR2004 - the errors of HTTP
            return _by_status(exc, status)
        return rule if isinstance(rule, Failure) else rule(exc)
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        return rule if isinstance(rule, Failure) else _TRANSIENT


def root_cause(exc: BaseException) -> BaseException:
    """What a `tenacity.RetryError` gave up on, also through several of them; else `exc` itself."""
    for _ in range(_DEEPEST):
        if not isinstance(exc, Exception) or _rule_for(type(exc)) is not _by_last_attempt:
            break
        attempt: Any = getattr(exc, "last_attempt", None)
        # An unfinished attempt would block here, and a cancelled one has no verdict.
        if attempt is None or not attempt.done() or attempt.cancelled():
            break
        inner = attempt.exception()
        if not isinstance(inner, Exception):
            break
        exc = inner
    return exc


# ---------------------------------------------------------------------- what the type tells


def _find_rule(cls: type[BaseException]) -> _Rule:
    """The rule of the nearest class that has one; every `Exception` has."""
    if not issubclass(cls, Exception):
        raise TypeError(f"{cls.__name__} is no failure of a dependency and must be raised on")
    rules = (_RULES.get(_package(base), {}).get(base.__name__) for base in cls.__mro__)
    return next(rule for rule in rules if rule is not None)


# For mypy no class is hashable.
_rule_for: Callable[[type[BaseException]], _Rule] = lru_cache(maxsize=512)(_find_rule)  # type: ignore[assignment]


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]


def _is_from(cls: type, package: str) -> bool:
    return any(_package(base) == package for base in cls.__mro__)


# ---------------------------------------------------------------------- what a status tells

_PASSING = frozenset({408, 409, 425})
_TOO_MANY = 429
_LONGEST_RESET = 30.0  # seconds: a full refill takes longer than room for one call


def status_of(exc: BaseException) -> int | None:
    """The HTTP status, under the names the SDKs give it. Stops early: aiohttp deprecates `code`."""
    for name in ("status_code", "status"):
        status = getattr(exc, name, None)
        if isinstance(status, int):
            return status
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    status = getattr(exc, "code", None)
    return status if isinstance(status, int) else None


def _by_status(exc: BaseException, status: int) -> Failure:
    headers = getattr(getattr(exc, "response", None), "headers", None)
    if headers is None:
        headers = getattr(exc, "headers", None)
    found = advice(headers)
    should = found.get("x-should-retry", "").lower()
    if should == "false":
        return _FATAL
    now = time.time()
    wait = asked_wait(found, now_wall=now)
    if status == _TOO_MANY:
        if should != "true" and _is_spent(exc, found):
            return _FATAL
        if wait is None and (reset := longest_reset(headers, now_wall=now)) is not None:
            wait = min(reset, _LONGEST_RESET)
        return _with_wait(_THROTTLED, wait)
    verdict = _TRANSIENT if should == "true" else _of_status(status)
    return verdict if verdict is _FATAL else _with_wait(verdict, wait)


def _of_status(status: int) -> Failure:
    if status == _TOO_MANY:
        return _THROTTLED
    return _TRANSIENT if status in _PASSING or status >= 500 else _FATAL  # noqa: PLR2004 - HTTP


def _with_wait(verdict: Failure, wait: float | None) -> Failure:
    return verdict if wait is None else Failure(verdict.kind, wait)


def _is_spent(exc: BaseException, found: dict[str, str]) -> bool:
    """Whether a 429 is about money or the day's quota, which waiting does not bring back."""
    if _is_from(type(exc), "anthropic") and not found.keys() & {"retry-after", "retry-after-ms"}:
        return True
    return any(map(names_a_spent_quota, words_of(exc)))


# ---------------------------------------------------------------------- what a body tells

_SPENT = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"})
_STATUS = re.compile(r"[45][0-9]{2}")
_WORDS = {
    **dict.fromkeys(("server_error", "api_error", "timeout_error"), _TRANSIENT),
    **dict.fromkeys(("overloaded", "overloaded_error"), _TRANSIENT),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "slow_down"), _THROTTLED),
    **dict.fromkeys(("context_length_exceeded", "content_filter"), _FATAL),
    **dict.fromkeys(("invalid_request_error", "not_found_error", "request_too_large"), _FATAL),
    **dict.fromkeys(("authentication_error", "permission_error", "billing_error"), _FATAL),
}


def words_of(exc: BaseException) -> Iterator[str]:
    """The codes and types of an error, the precise before the general, in lower case."""
    own = vars(exc)  # past properties: to read aiohttp's `code` warns
    body = own.get("body")
    inner = body.get("error") if isinstance(body, dict) else None
    parts = [part for part in (own, inner, body) if isinstance(part, dict)]
    for key in ("code", "type"):
        for part in parts:
            if isinstance(word := part.get(key), (str, int)):
                yield str(word).lower()


def names_a_spent_quota(word: str) -> bool:
    """Whether a code or type is about money or the day's quota."""
    return word in _SPENT or "daily" in word or "per_day" in word


def _by_body(exc: BaseException) -> Failure:
    """An error event within a stream: its words, or a status among them (vLLM, OpenRouter)."""
    for word in words_of(exc):
        if names_a_spent_quota(word):
            return _FATAL
        if word in _WORDS:
            return _WORDS[word]
        if _STATUS.fullmatch(word):
            return _of_status(int(word))
    return _TRANSIENT


# ---------------------------------------------------------------------- what other errors tell


def _by_cause(default: Failure) -> Callable[[BaseException], Failure]:
    """The verdict of the transport's error beneath, which knows whether anything was sent."""

    def read(exc: BaseException) -> Failure:
        cause = exc.__cause__
        rule = _rule_for(type(cause)) if isinstance(cause, Exception) else default
        return rule if isinstance(rule, Failure) else default

    return read


def _by_last_attempt(exc: BaseException) -> Failure:
    inner = root_cause(exc)
    return _TRANSIENT if inner is exc else classify(inner)


def _by_worst_member(exc: BaseExceptionGroup[Exception]) -> Failure:
    """For a retry, all members must be worth one; the longest wait is theirs all."""
    return max((classify(member) for member in exc.exceptions), key=_badness)


def _badness(failure: Failure) -> tuple[int, float]:
    return _BADNESS.index(failure.kind), failure.retry_after or 0.0


def _by_best_member(exc: AllFailedError) -> Failure:
    """A chain succeeds as soon as one of its functions does."""
    verdicts = [classify(member) for member in exc.errors] or [_TRANSIENT]
    if any(verdict.kind is FailureKind.UNKNOWN_OUTCOME for verdict in verdicts):
        return _UNKNOWN  # whatever the others say, one may have done it
    return min(verdicts, key=_badness)


_BADNESS = (
    FailureKind.TRANSIENT,
    FailureKind.THROTTLED,
    FailureKind.UNKNOWN_OUTCOME,
    FailureKind.FATAL,
)


def _by_redis_message(exc: BaseException) -> Failure:
    """Only redis-py's wording tells a failure to connect from a lost answer."""
    unsent = "connecting to" in str(exc) or "No connection available" in str(exc)
    return _TRANSIENT if unsent else _UNKNOWN


# ---------------------------------------------------------------------- the tables

_BUILTINS: dict[str, _Rule] = {
    "Exception": _TRANSIENT,
    "ExceptionGroup": _by_worst_member,
    "OSError": _TRANSIENT,  # of the network: gaierror, unreachable, TLS
    "ConnectionError": _UNKNOWN,
    "ConnectionRefusedError": _TRANSIENT,
    "TimeoutError": _UNKNOWN,
    **dict.fromkeys(("FileNotFoundError", "FileExistsError", "PermissionError"), _FATAL),
    **dict.fromkeys(("IsADirectoryError", "NotADirectoryError"), _FATAL),
    **dict.fromkeys(("TypeError", "ValueError", "AttributeError", "LookupError"), _FATAL),
    **dict.fromkeys(("NameError", "AssertionError", "NotImplementedError"), _FATAL),
    **dict.fromkeys(("ArithmeticError", "ImportError", "MemoryError", "RecursionError"), _FATAL),
}
_OURS: dict[str, _Rule] = {
    "AllFailedError": _by_best_member,
    "CallRejected": _FATAL,  # by a guard within this one
    **dict.fromkeys(("AttemptTimeoutError", "DeadlineExceededError"), _UNKNOWN),
    "TruncatedStreamError": _UNKNOWN,
}
_HTTPX: dict[str, _Rule] = {
    **dict.fromkeys(("ConnectTimeout", "ConnectError", "PoolTimeout", "ProxyError"), _TRANSIENT),
    **dict.fromkeys(("TimeoutException", "NetworkError", "RemoteProtocolError"), _UNKNOWN),
    "DecodingError": _UNKNOWN,  # an answer came, but cannot be read
    **dict.fromkeys(("LocalProtocolError", "UnsupportedProtocol", "InvalidURL"), _FATAL),
    **dict.fromkeys(("TooManyRedirects", "StreamError"), _FATAL),
}
_OPENAI: dict[str, _Rule] = {
    **dict.fromkeys(("OpenAIError", "AnthropicError"), _FATAL),  # bare: no key, wrong options
    "APIError": _by_body,
    "APIConnectionError": _by_cause(_TRANSIENT),
    "APITimeoutError": _by_cause(_UNKNOWN),
    **dict.fromkeys(("APIResponseValidationError", "WebSocketConnectionClosedError"), _UNKNOWN),
}
_AIOHTTP: dict[str, _Rule] = {
    **dict.fromkeys(("ClientConnectorError", "ConnectionTimeoutError"), _TRANSIENT),
    **dict.fromkeys(("ClientConnectionError", "ClientPayloadError", "ContentTypeError"), _UNKNOWN),
    **dict.fromkeys(("NonHttpUrlClientError", "InvalidURL", "TooManyRedirects"), _FATAL),
    "ServerFingerprintMismatch": _FATAL,
}
_REDIS: dict[str, _Rule] = {
    **dict.fromkeys(("ConnectionError", "TimeoutError"), _by_redis_message),
    **dict.fromkeys(("BusyLoadingError", "MaxConnectionsError", "ClusterError"), _TRANSIENT),
    **dict.fromkeys(("TryAgainError", "AskError", "ReadOnlyError", "OutOfMemoryError"), _TRANSIENT),
    **dict.fromkeys(("AuthenticationError", "AuthorizationError"), _FATAL),  # ConnectionErrors too
    **dict.fromkeys(("ResponseError", "DataError", "WatchError"), _FATAL),
    "CrossSlotTransactionError": _FATAL,
    "InvalidResponse": _UNKNOWN,
}
_RULES: dict[str, dict[str, _Rule]] = {
    "builtins": _BUILTINS,
    "lightrag_resilience": _OURS,
    "httpx": _HTTPX,
    "httpx2": _HTTPX,
    "openai": _OPENAI,
    "anthropic": _OPENAI,
    "aiohttp": _AIOHTTP,
    "anyio": dict.fromkeys(("EndOfStream", "BrokenResourceError"), _UNKNOWN),
    "redis": _REDIS,
    "tenacity": {"RetryError": _by_last_attempt},
}
