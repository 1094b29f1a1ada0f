"""Whether another model may succeed where one failed."""

from __future__ import annotations

import re

from lightrag_resilience.errors import AllFailedError, CallRejected

from .classifier import FailureKind, classify, root_cause
from .http_errors import names_a_spent_quota, status_of, words_of

__all__ = ["should_fall_back"]

# About a provider's key, bill, rights, models, size limit or quota.
_PROVIDER_STATUSES = frozenset({401, 402, 403, 404, 413, 429})
_FIRST_SERVER_ERROR = 500
_REQUEST_STATUSES = frozenset({400, 422})
_PROVIDER_CODES = frozenset(
    {
        *("context_length_exceeded", "request_too_large"),
        *("model_not_found", "model_decommissioned", "not_found_error"),
        *("invalid_api_key", "authentication_error", "permission_error", "billing_error"),
    }
)
# Anthropic, vLLM and others say "prompt too long" in the message only.
_TOO_LONG = re.compile(
    r"context[ _](length|window)|prompt is too long|too many (input )?tokens", re.IGNORECASE
)


def should_fall_back(error: Exception) -> bool:
    """Whether a chain goes on to its next function after this error.

    Yes for rejected calls (`CallRejected`), for passing failures (transient, throttled, unknown
    outcome), and for a fault of one provider or model: key, rights, bill, spent quota, unknown
    model, a prompt too long for it. No for a fault that every provider would find: other 400s, a
    content filter, and bugs such as ValueError and TypeError.
    """
    if isinstance(error, CallRejected | AllFailedError):
        return True
    if classify(error).kind is not FailureKind.FATAL:
        return True
    try:
        return _is_of_one_provider(root_cause(error))
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        return False


def _is_of_one_provider(error: BaseException) -> bool:
    status = status_of(error)
    if status is not None and (status in _PROVIDER_STATUSES or status >= _FIRST_SERVER_ERROR):
        return True
    if any(word in _PROVIDER_CODES or names_a_spent_quota(word) for word in words_of(error)):
        return True
    return status in _REQUEST_STATUSES and _TOO_LONG.search(str(error)) is not None
