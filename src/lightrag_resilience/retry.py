"""Retries after a first failure, by tenacity's strategies, and the budget that limits them.

When most calls fail, the budget ends retries, which would multiply the traffic: the retry quota of
AWS SDKs' standard mode; see `RetryPolicy`. In a brownout, where some calls pass, a call is retried
more often; beyond the budget as rarely and as slowly as LightRAG retries by itself, so that no call
fails that LightRAG alone would have answered.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity
from tenacity.wait import wait_base, wait_exponential, wait_random_exponential

from .config.policies import RetryPolicy
from .errors import CallRejected, ShuttingDownError
from .failures.classifier import Failure, FailureKind

__all__ = [
    "BEFORE_LIGHTRAG",
    "LIGHTRAG_BACKOFF",
    "RETRY_COST",
    "TIMEOUT_RETRY_COST",
    "RetryBudget",
    "RetryLoop",
    "add_reason",
    "is_retryable",
    "single_worker",
]

_FATAL, _UNKNOWN_OUTCOME = (
    FailureKind.FATAL,
    FailureKind.UNKNOWN_OUTCOME,
)  # local names: Python 3.11 looks enum members up slowly
_TRANSIENT = FailureKind.TRANSIENT
# Statuses of a gateway that lost the answer or did not wait: the server may have done the work.
_MAY_BE_DONE = frozenset({460, 499, 502, 504, 520, 524, 598, 599})
RETRY_COST = 5  # tokens, as in the AWS SDKs
TIMEOUT_RETRY_COST = 10  # a timeout has cost the dependency more
_LIGHTRAG_ATTEMPTS = 3
LIGHTRAG_BACKOFF, _LONGEST_LIGHTRAG_BACKOFF = 4.0, 10.0
"""Seconds between the attempts of LightRAG's own functions."""
BEFORE_LIGHTRAG = LIGHTRAG_BACKOFF - 0.5
"""Seconds after which an attempt still comes before one of LightRAG's."""
# tenacity's strategies get its state of a call. Its controller does not run the call: made anew for
# each, it costs three times the rest of a retry.
_STRATEGIES = tenacity.AsyncRetrying()
R = TypeVar("R")


def single_worker() -> int:
    """Number of workers where no other is known."""
    return 1


class RetryBudget:
    """Tokens that retries spend and successes earn back.

    Args:
        capacity: Tokens at the start and at most; 0 allows every retry.
        workers: Number of workers that share them, this one included: each may spend its share, or
            the cost of one retry where that is more.
    """

    __slots__ = ("_cost", "_workers", "capacity", "tokens")

    def __init__(self, capacity: int, workers: Callable[[], int] = single_worker) -> None:
        self.capacity = capacity
        self.tokens = capacity
        self._workers = workers
        self._cost = RETRY_COST

    def resize(self, capacity: int) -> None:
        """Change the capacity; spent tokens stay spent."""
        spent = self.capacity - self.tokens
        self.capacity = capacity
        self.tokens = max(capacity - spent, 0)

    @property
    def _part(self) -> float:
        """Tokens of the capacity that this process may spend."""
        part = max(self.capacity / self._workers(), TIMEOUT_RETRY_COST)
        return min(part, self.capacity)

    @property
    def share(self) -> float:
        """Unspent share of this process's part, 0 to 1; 1 where every retry is allowed.

        0 if it does not suffice for a retry like the last one.
        """
        if not self.capacity:
            return 1.0
        part = self._part
        return self._left / part if self.affords(self._cost) else 0.0

    @property
    def _left(self) -> float:
        return self._part - (self.capacity - self.tokens)

    def affords(self, cost: int) -> bool:
        """Whether enough tokens are left for a retry of this cost."""
        return not self.capacity or self._left >= cost

    def spend(self, cost: int) -> bool:
        """Spend `cost` tokens on a retry. False if too few are left; then none is spent."""
        if not self.capacity:
            return True
        self._cost = cost
        if not self.affords(cost):
            return False
        self.tokens -= cost
        return True

    def earn(self, amount: int = 1) -> None:
        """Give tokens back after a success: 1, or the cost of its last retry."""
        self.tokens = min(self.tokens + amount, self.capacity)


def is_retryable(failure: Failure, policy: RetryPolicy) -> bool:
    """Whether a retry can help and does no harm."""
    if failure.kind is _UNKNOWN_OUTCOME or (
        failure.kind is _TRANSIENT and failure.status in _MAY_BE_DONE
    ):
        return policy.idempotent is not False
    return failure.kind is not _FATAL


@functools.lru_cache(maxsize=64)
def _exponential(policy: RetryPolicy) -> wait_base:
    """The strategy of tenacity that a policy names."""
    kind = wait_random_exponential if policy.jitter == "full" else wait_exponential
    return kind(policy.initial_backoff, policy.max_backoff, policy.backoff_growth)


def _cost_after(failure: Failure) -> int:
    """Tokens of a retry after this failure."""
    return TIMEOUT_RETRY_COST if failure.kind is _UNKNOWN_OUTCOME else RETRY_COST


def add_reason(error: Exception, dependency: str, reason: str) -> None:
    """Add to the error of a call's last attempt why it was the last."""
    error.add_note(f"lightrag_resilience: {dependency!r} {reason}")


@dataclass(slots=True, kw_only=True)
class RetryLoop:
    """The retries of one call.

    Attributes:
        dependency: The dependency that is called.
        policy: How often to retry, and how long to wait.
        budget: Shared by all calls of the dependency.
        deadline: Returns the monotonic seconds at which the call ends for good, or None.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        scheduled: Called with the number of the next attempt and the wait before it, in seconds.
        last_failure: Returns the class of the last attempt's failure; None if it was rejected.
        is_browned_out: Whether some calls of the dependency pass.
        took: Returns the seconds that the last attempt took.
    """

    dependency: str
    policy: RetryPolicy
    budget: RetryBudget
    deadline: Callable[[], float | None]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    scheduled: Callable[[int, float], None]
    last_failure: Callable[[], Failure | None]
    is_browned_out: Callable[[], bool]
    took: Callable[[], float]
    _spent: int = 0
    _is_waiting: bool = False
    _wait: float = 0.0

    async def run_after(self, first: Exception, attempt: Callable[[], Awaitable[R]]) -> R:
        """Retry after the error `first`, until an attempt succeeds or no retry is allowed.

        Raises:
            Exception: What the last attempt raised, with a note that says why it was the last.
        """
        last, state = first, tenacity.RetryCallState(_STRATEGIES, None, (), {})
        try:
            while (why := self._stop_reason(state)) is None:
                self._is_waiting = True
                self.scheduled(state.attempt_number + 1, state.upcoming_sleep)
                await self.sleep(state.upcoming_sleep)
                self._is_waiting = False
                state.prepare_for_next_attempt()
                try:
                    result = await attempt()
                except CallRejected as rejection:
                    raise rejection from last
                except Exception as error:  # noqa: BLE001 - raised below, if it is the last
                    last = error
                else:
                    self.budget.earn(self._spent)
                    return result
        except ShuttingDownError as rejection:
            raise rejection from last
        finally:
            if self._is_waiting:  # the wait was interrupted: its attempt is not made
                self.budget.earn(self._spent)
        if why:
            add_reason(last, self.dependency, why)
        raise last

    def _stop_reason(self, state: tenacity.RetryCallState) -> str | None:
        """Why there is no further attempt, empty where the failure says enough.

        None where there is one, after `state.upcoming_sleep`.
        """
        policy, failure = self.policy, self.last_failure()
        if failure is None or not is_retryable(failure, policy):
            return ""
        is_brownout = self._is_brownout(failure)
        attempts = max(policy.attempts, policy.brownout_attempts if is_brownout else 0)
        if state.attempt_number >= attempts:
            return f"gave up after {state.attempt_number} attempts"
        if failure.retry_after is not None and failure.retry_after > policy.max_retry_after:
            return f"asks to wait {failure.retry_after:g} s, more than {policy.max_retry_after:g} s"
        state.upcoming_sleep = wait = self._backoff(state, failure, is_brownout=is_brownout)
        deadline = self.deadline()
        if deadline is not None and self.clock() + wait >= deadline:
            return f"would be called again only in {wait:.1f} s, after the call's deadline"
        cost = _cost_after(failure)
        self._spent = cost if self.budget.spend(cost) else 0
        if not self._spent and not (is_brownout and state.attempt_number < _LIGHTRAG_ATTEMPTS):
            return "is not called again: the retry budget is used up"
        return None

    def _is_brownout(self, failure: Failure) -> bool:
        """Whether chance decides if the next attempt passes; not so after a 429."""
        return failure.kind is not FailureKind.THROTTLED and self.is_browned_out()

    def _backoff(
        self, state: tenacity.RetryCallState, failure: Failure, *, is_brownout: bool
    ) -> float:
        """Seconds before the next attempt: the provider's Retry-After, or the policy's backoff."""
        hint = failure.retry_after
        if hint:
            # Jitter on top: the provider must not get all callers back at once.
            return hint + random.uniform(0.0, min(0.25 * hint, 0.5))  # noqa: S311
        self._wait = self._own_backoff(state, self._wait)
        if is_brownout:
            if not self.budget.affords(_cost_after(failure)):
                return random.uniform(LIGHTRAG_BACKOFF, _LONGEST_LIGHTRAG_BACKOFF)  # noqa: S311
            self._wait = min(self._wait, LIGHTRAG_BACKOFF)
        # After an attempt that hung a moment costs little, and the next one may hang as long.
        return max(self._wait, min(self.took(), BEFORE_LIGHTRAG))

    def _own_backoff(self, state: tenacity.RetryCallState, before: float) -> float:
        """Seconds to wait by the policy; `before` is the last wait by it."""
        policy = self.policy
        if policy.jitter == "decorrelated":
            before = max(before, policy.initial_backoff)
            return min(random.uniform(policy.initial_backoff, before * 3), policy.max_backoff)  # noqa: S311
        longest = _exponential(policy)(state)
        if policy.jitter == "growing":
            # From half the growth on, so that jitter never makes a later wait the shorter one.
            growth = policy.backoff_growth
            shortest = min(before, longest / growth) * (1 + growth) / 2
            return random.uniform(shortest, longest)  # noqa: S311
        return longest
