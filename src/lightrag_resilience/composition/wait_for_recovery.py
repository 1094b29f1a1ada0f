"""Wait for a dependency to recover, where waiting is better than failing.

Ingest waits long: a document that waits is not lost. A query waits as long as LightRAG's own
retries would, for an outage that has only just begun. Each round is an ordinary guarded call, so
breaker, budget and limits hold; this adds the wait between rounds.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeGuard, TypeVar

from lightrag_resilience.calls.call_context import current_deadline
from lightrag_resilience.circuit.state_machine import State
from lightrag_resilience.config.policies import RetryPolicy
from lightrag_resilience.errors import (
    AllFailedError,
    CallRejected,
    DependencyError,
    ShuttingDownError,
)
from lightrag_resilience.failures.classifier import FailureKind, classify
from lightrag_resilience.pipeline.guard import Guard
from lightrag_resilience.retry import LIGHTRAG_BACKOFF, is_retryable

__all__ = ["Patience", "retry_until_available"]

R = TypeVar("R")

_SHORTEST_WAIT = 0.1  # seconds
_JITTER = 0.25  # seconds
_ROUNDS = 8  # that a short patience has time for


class Patience:
    """For how long calls wait for unavailable dependencies: those that share it, together.

    The seconds run from the first trouble on: from the beginning of a call that failed, or from the
    moment at which a call was rejected. They begin anew after the answer of a call that waited. The
    verdict of a probe under way is waited for up to as long again. A call that hung is repeated
    only where another one could hang as long.

    Args:
        seconds: How long; 0 waits for nothing.
        max_outage: Seconds for which a circuit may have been open, to be waited for.
        waiting: The number of calls that wait, by dependency.
        most_waiting: How many of them may wait for one dependency.
        repeats_single: Whether a call that failed is repeated where its policy makes one attempt.
    """

    __slots__ = (
        "_ends",
        "_max_outage",
        "_most_waiting",
        "_repeats_single",
        "_seconds",
        "_waiting",
    )

    def __init__(
        self,
        seconds: float,
        *,
        max_outage: float = math.inf,
        waiting: Counter[str] | None = None,
        most_waiting: float = math.inf,
        repeats_single: bool = True,
    ) -> None:
        self._seconds = seconds
        self._max_outage = max_outage
        self._waiting = Counter() if waiting is None else waiting
        self._most_waiting = most_waiting
        self._repeats_single = repeats_single
        self._ends: float | None = None

    def wait(
        self, guard: Guard, policy: RetryPolicy, error: Exception, began: float
    ) -> float | None:
        """Seconds to wait before another call, or only until the circuit closes; None to give up.

        Args:
            guard: The guard of the dependency.
            policy: Which errors may be followed by another call.
            error: What the last call raised.
            began: Monotonic seconds at which that call began.
        """
        if (hint := self._backoff(policy, error)) is None:
            return None
        now, outage = guard.clock(), guard.breaker.outage
        if self._ends is None:
            self._ends = self._seconds + (now if _is_rejection(error) else began)
        left = self._ends - now
        if guard.breaker.state is State.HALF_OPEN:
            left += self._seconds  # the verdict is near
        if (deadline := current_deadline()) is not None:
            left = min(left, deadline.left)
        if _hung(error) and left < now - began:
            return None  # the next call may hang as long, and LightRAG alone makes none
        if self._waiting[guard.name] >= self._most_waiting or left <= 0:
            return None
        if outage is None:
            return hint if hint <= left else None
        # The circuit may close sooner than its next probe by a call is due.
        return min(hint, left) if outage <= self._max_outage else None

    def _backoff(self, policy: RetryPolicy, error: Exception) -> float | None:
        """Seconds after which another call may succeed; None if waiting would not help."""
        if isinstance(error, ShuttingDownError):
            return None
        if _is_rejection(error):
            hint = error.retry_after
        else:
            failure = classify(error)
            is_single = policy.attempts == 1 and not self._repeats_single
            if is_single or not is_retryable(failure, policy):
                return None
            hint = failure.retry_after
        if hint is None:
            hint = min(policy.max_backoff / 4, self._seconds / _ROUNDS, LIGHTRAG_BACKOFF)
        # Many calls wait for one dependency: the jitter keeps them from returning together.
        return max(hint, _SHORTEST_WAIT) + random.uniform(0.0, _JITTER)  # noqa: S311

    def renew(self) -> None:
        """A call that waited has its answer: that trouble is over, and the next is another."""
        self._ends = None

    @contextlib.contextmanager
    def waiting(self, dependency: str) -> Iterator[None]:
        """A block in which a call waits for a dependency."""
        self._waiting[dependency] += 1
        try:
            yield
        finally:
            self._waiting[dependency] -= 1


async def retry_until_available(  # noqa: PLR0913 - most by name
    guard: Guard,
    call: Callable[[], Awaitable[R]],
    *,
    patience: Patience,
    idempotent: bool | None = None,
    is_foreign: Callable[[Exception], bool] = lambda _: False,
    is_background: bool = False,
) -> R:
    """The result of a guarded call, repeated while the dependency is unavailable.

    While the circuit is open no call is made. The next one follows as soon as the circuit closes,
    or may be probed by it.

    Args:
        guard: The guard that `call` goes through.
        call: Makes the call; it must be safe to repeat.
        patience: After it the last error is raised.
        idempotent: Whether the call is; None leaves it to the guard's policy.
        is_foreign: Whether an error is of another dependency, which has been waited for there.
        is_background: Whether the call is held back in a brownout, in favour of others.

    Raises:
        Exception: The error of the last round, or one that waiting cannot mend.
    """
    first_began, has_waited = guard.clock(), False
    while True:
        began = guard.clock()
        try:
            # Before `call`, which may queue or compute before it reaches the guard.
            guard.refuse_if_open(first_began)
            if is_background:
                guard.shed_in_brownout()
            result = await call()
        except Exception as error:
            policy = guard.policy.retry.with_idempotent(idempotent=idempotent)
            wait = None if is_foreign(error) else patience.wait(guard, policy, error, began)
            if wait is None:
                raise
        else:
            if has_waited:
                patience.renew()
            return result
        has_waited = True
        with patience.waiting(guard.name):
            await guard.wait_for_recovery(wait)


def _hung(error: Exception) -> bool:
    """Whether a call was sent and not answered; one of a reset connection ended soon, though."""
    return not _is_rejection(error) and classify(error).kind is FailureKind.UNKNOWN_OUTCOME


def _is_rejection(error: Exception) -> TypeGuard[DependencyError]:
    return isinstance(error, CallRejected) or (
        isinstance(error, AllFailedError) and error.any_rejected
    )
