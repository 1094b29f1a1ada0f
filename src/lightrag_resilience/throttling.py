"""What a provider says of its rate limits, by a 429 or in the headers of any answer."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any, Protocol

from ._hints import RateState, rate_states
from .failures import Failure
from .policy import LimitPolicy, Policy

__all__ = ["heed", "learn_limits"]

_log = logging.getLogger("lightrag_resilience")


class _Guard(Protocol):
    name: str
    policy: Policy

    def change(self, policy: Policy, reason: str) -> None: ...
    def cool_down(self, seconds: float) -> None: ...


def heed(guard: _Guard, error: BaseException, failure: Failure) -> None:
    """Wait as a 429 asks, but no longer than the policy lets it, and keep the limits it names."""
    if failure.retry_after:
        guard.cool_down(min(failure.retry_after, guard.policy.retry.max_retry_after))
    learn_limits(guard, getattr(getattr(error, "response", None), "headers", None))


def learn_limits(guard: _Guard, headers: Any) -> None:
    """Lower limits that are above what the provider grants; they are never raised, or set anew."""
    limit = guard.policy.limit
    if headers is None or not (limit.rpm or limit.tpm):
        return
    told = rate_states(headers, now_wall=time.time())
    learned = replace(
        limit, rpm=_lower(limit.rpm, told.requests), tpm=_lower(limit.tpm, told.tokens)
    )
    if learned == limit:
        return
    text = "The provider of %r grants less than is configured: %s"
    _log.warning(text, guard.name, _in_words(limit, learned))
    guard.change(replace(guard.policy, limit=learned), "as the provider says")


def _lower(configured: float | None, told: RateState) -> float | None:
    if configured is None or told.limit is None:
        return configured
    return min(configured, float(told.limit))


def _in_words(before: LimitPolicy, after: LimitPolicy) -> str:
    pairs = (("LIMIT__RPM", before.rpm, after.rpm), ("LIMIT__TPM", before.tpm, after.tpm))
    return ", ".join(f"{name} {old:g} is {new:g}" for name, old, new in pairs if old != new)
