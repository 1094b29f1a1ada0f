"""Wait for a dependency to recover, where waiting is better than failing.

For background work such as LightRAG's ingest: a document that waits is not lost. Each round is an
ordinary guarded call, so breaker, budget and limits hold; this adds the wait between rounds.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from lightrag_resilience.errors import AllFailedError, CallRejected, ShuttingDownError
from lightrag_resilience.failures.classifier import classify
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.retry import is_retryable

__all__ = ["retry_until_available"]

R = TypeVar("R")

_SHORTEST_WAIT = 0.1  # seconds
_JITTER = 0.25  # seconds


async def retry_until_available(
    guard: Guard,
    call: Callable[[], Awaitable[R]],
    *,
    patience: float,
    idempotent: bool | None = None,
    is_foreign: Callable[[Exception], bool] = lambda _: False,
) -> R:
    """The result of a guarded call, repeated while the dependency is unavailable.

    Args:
        guard: The guard that `call` goes through.
        call: Makes the call; it must be safe to repeat.
        patience: Seconds after which the last error is raised.
        idempotent: Whether the call is; None leaves it to the guard's policy.
        is_foreign: Whether an error is of another dependency, which has been waited for there.

    Raises:
        Exception: The error of the last round, or one that waiting cannot mend.
    """
    end = guard.clock() + patience
    while True:
        try:
            # Before `call`, which may queue or compute before it reaches the guard.
            guard.refuse_if_open()
            return await call()
        except Exception as error:
            wait = None if is_foreign(error) else _wait_before_retry(error, guard, idempotent)
            if wait is None or guard.clock() + wait > end:
                raise
        await guard.pause(wait)


def _wait_before_retry(error: Exception, guard: Guard, idempotent: bool | None) -> float | None:  # noqa: FBT001 - passed on
    """Seconds to wait before another round; None if that would not help."""
    if isinstance(error, ShuttingDownError):
        return None
    if isinstance(error, CallRejected) or (
        isinstance(error, AllFailedError) and error.any_rejected
    ):
        hint = error.retry_after
    else:
        failure = classify(error)
        if not is_retryable(failure, guard.policy.retry.with_idempotent(idempotent=idempotent)):
            return None
        hint = failure.retry_after
    wait = guard.policy.retry.max_backoff / 4 if hint is None else hint
    # Many documents wait for one dependency: the jitter keeps them from returning together.
    return max(wait, _SHORTEST_WAIT) + random.uniform(0.0, _JITTER)  # noqa: S311
