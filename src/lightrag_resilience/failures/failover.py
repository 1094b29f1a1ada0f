"""Whether another model may succeed where one failed."""

from __future__ import annotations

import re

from lightrag_resilience.errors import AllFailedError, CallRejected

from .classifier import FailureKind, classify, root_cause
from .http_errors import names_a_spent_quota, status_of, words_of

__all__ = ["should_fall_back"]

# Its key, its bill, its rights, its models, its size limit, its quota.
_OF_THE_PROVIDER = frozenset({401, 402, 403, 404, 413, 429})
_OF_THE_SERVER = 500
_OF_THE_REQUEST = frozenset({400, 422})
_WORDS = frozenset(
    {
        *("context_length_exceeded", "request_too_large"),
        *("model_not_found", "model_decommissioned", "not_found_error"),
        *("invalid_api_key", "authentication_error", "permission_error", "billing_error"),
    }
)
# Anthropic, vLLM and others say so in the message only.
_TOO_LONG = re.compile(
    r"context[ _](length|window)|prompt is too long|too many (input )?tokens", re.IGNORECASE
)


def should_fall_back(error: Exception) -> bool:
    """Whether a chain goes on to its next function after this error.

    Yes for refusals (`CallRejected`), for what passes (transient, throttled, unknown outcome), and
    for what is wrong with one provider or model: key, rights, bill, spent quota, unknown model,
    a prompt too long for it. No for what would be wrong everywhere: other 400s, a content filter,
    and bugs such as ValueError and TypeError.
    """
    if isinstance(error, CallRejected | AllFailedError):
        return True
    if classify(error).kind is not FailureKind.FATAL:
        return True
    try:
        return _is_its_own(root_cause(error))
    except Exception:  # noqa: BLE001 - an error's odd attributes must not hide the error
        return False


def _is_its_own(error: BaseException) -> bool:
    status = status_of(error)
    if status is not None and (status in _OF_THE_PROVIDER or status >= _OF_THE_SERVER):
        return True
    if any(word in _WORDS or names_a_spent_quota(word) for word in words_of(error)):
        return True
    return status in _OF_THE_REQUEST and _TOO_LONG.search(str(error)) is not None
